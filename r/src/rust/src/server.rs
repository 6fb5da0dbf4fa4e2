//! The fork server: the flow's own R process, after the script was read, answering the engine. It
//! stays single-threaded and runs no R code. Whatever needs R (the helper, tasks) is a fork that
//! returns to R with its role.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{self, ChildWatch, Reaped, Signals};
use crate::wire::{Connection, End, Frame, adopt};
use crate::zygote::Zygote;

pub const ZYGOTE_VARIABLE: &str = "FERROFLOW_ZYGOTE_FD";
pub const TOOK_OVER_VARIABLE: &str = "FERROFLOW_ZYGOTE_PIPE_FD";
pub const SETTINGS_VARIABLE: &str = "FERROFLOW_ZYGOTE_SETTINGS";

/// What a process is when it returns to R.
pub enum Role {
    /// The server, after the engine has closed the socket and every descendant is gone.
    Over,
    /// Answers requests that run user code.
    Helper(Connection),
    Task {
        spec: Value,
        control: OwnedFd,
    },
}

/// How the flow's process was started, to start another like it.
#[derive(Clone)]
pub struct Origin {
    pub command: Vec<String>,
    pub directory: String,
    pub environment: Vec<(String, String)>,
    /// Why tasks cannot be forked from this process.
    pub spawn_reason: Option<String>,
}

impl Origin {
    /// Executes R on the flow again, in this process's place.
    pub fn become_fresh(&self, extra: HashMap<String, String>, keep: &[RawFd]) -> io::Error {
        let mut variables: HashMap<String, String> = self.environment.iter().cloned().collect();
        variables.extend(extra);
        let environment: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if let Err(error) = std::env::set_current_dir(&self.directory) {
            return error;
        }
        process::execute(&self.command, Some(&environment), keep)
    }
}

struct Starting {
    socket: OwnedFd,
    settings: Value,
    took_over: OwnedFd,
}

struct Server<'a> {
    connection: Connection,
    watch: ChildWatch,
    origin: &'a Origin,
    signals: Signals,
    helper: Option<Connection>,
    unanswered: Vec<Value>,
    /// Fresh zygotes that have not said that they took over, by process id.
    starting: HashMap<u32, Starting>,
}

/// Hands this process to the engine and returns in its forks only; see [`Role`].
pub fn hand_over(engine: &str, hello: &Value, origin: &Origin) -> Result<Role, String> {
    let (engine_end, server_end) = UnixStream::pair().map_err(|error| format!("no socket can be made: {error}"))?;
    process::hold_interrupts(true);
    let pid = process::fork().map_err(|error| format!("the flow's process cannot be forked: {error}"))?;
    if pid == 0 {
        let signals = Signals::take();
        process::hold_interrupts(false);
        drop(engine_end);
        process::become_subreaper();
        let watch = ChildWatch::new().map_err(|error| error.to_string())?;
        let connection = Connection::new(server_end.into());
        let (helper, unanswered, starting) = (None, Vec::new(), HashMap::new());
        return Ok(Server { connection, watch, origin, signals, helper, unanswered, starting }.run(hello));
    }
    drop(server_end);
    let socket = engine_end.as_raw_fd();
    let command = [engine.to_owned(), "flow".to_owned(), "--socket-fd".to_owned(), socket.to_string()];
    process::set_default(libc::SIGINT);
    process::hold_interrupts(false);
    let error = process::execute(&command, None, &[socket]);
    Err(format!("the engine `{engine}` cannot be executed: {error}"))
}

impl Server<'_> {
    fn run(mut self, hello: &Value) -> Role {
        match self.serve(hello) {
            Ok(role) => {
                // A fork: what it does not need was closed by number, and must not be again.
                std::mem::forget(self);
                role
            }
            Err(_) => {
                process::kill_descendants();
                Role::Over
            }
        }
    }

    fn serve(&mut self, hello: &Value) -> Result<Role, End> {
        let mut hello = hello.clone();
        hello["pid"] = json!(std::process::id());
        self.say(&hello)?;
        loop {
            for ready in self.wait() {
                if ready == self.watch.fd() {
                    self.watch.clear();
                    if let Some(role) = self.reap() {
                        return Ok(role);
                    }
                } else if self.helper.as_ref().is_some_and(|helper| helper.fd() == ready) {
                    self.pass_replies_on()?;
                } else if ready != self.connection.fd() {
                    self.let_go_of_started(ready);
                }
            }
            while let Some(frame) = self.connection.receive_available()? {
                if let Some(role) = self.handle(frame)? {
                    return Ok(role);
                }
            }
        }
    }

    fn say(&mut self, message: &Value) -> Result<(), End> {
        self.connection.send(message).map_err(|_| End)
    }

    fn wait(&self) -> Vec<RawFd> {
        let mut descriptors = vec![self.connection.fd(), self.watch.fd()];
        descriptors.extend(self.helper.as_ref().map(Connection::fd));
        descriptors.extend(self.starting.values().map(|each| each.took_over.as_raw_fd()));
        process::wait_readable(&descriptors)
    }

    fn handle(&mut self, mut frame: Frame) -> Result<Option<Role>, End> {
        match frame.kind() {
            "open_zygote" => {
                let Some(socket) = frame.descriptors.pop() else { return Ok(None) };
                Ok(self.open_zygote(frame.message["settings"].clone(), socket))
            }
            "convert" | "write_parameters" | "dump" => self.ask_helper(frame.message),
            other => {
                let text = format!("unknown request `{other}`");
                self.refuse(&frame.message["id"], &text)?;
                Ok(None)
            }
        }
    }

    fn refuse(&mut self, id: &Value, message: &str) -> Result<(), End> {
        let error = json!({"usage": false, "headline": "Internal error", "message": message});
        self.say(&json!({"id": id, "error": error}))
    }

    fn ask_helper(&mut self, message: Value) -> Result<Option<Role>, End> {
        if self.helper.is_none() {
            match self.start_helper() {
                Ok(Some(role)) => return Ok(Some(role)),
                Ok(None) => {}
                Err(error) => {
                    self.refuse(&message["id"], &format!("a process for the parameters cannot be started: {error}"))?;
                    return Ok(None);
                }
            }
        }
        self.unanswered.push(message["id"].clone());
        if self.helper.as_mut().is_some_and(|helper| helper.send(&message).is_err()) {
            self.helper_is_gone()?;
        }
        Ok(None)
    }

    fn start_helper(&mut self) -> io::Result<Option<Role>> {
        let (ours, theirs) = UnixStream::pair()?;
        let server = std::process::id();
        if process::fork()? == 0 {
            process::die_with_parent(server);
            self.close_in_child();
            return Ok(Some(Role::Helper(Connection::new(theirs.into()))));
        }
        self.helper = Some(Connection::new(ours.into()));
        Ok(None)
    }

    fn pass_replies_on(&mut self) -> Result<(), End> {
        loop {
            let Some(helper) = self.helper.as_mut() else { return Ok(()) };
            match helper.receive_available() {
                Ok(Some(frame)) => {
                    self.unanswered.retain(|id| *id != frame.message["id"]);
                    self.say(&frame.message)?;
                }
                Ok(None) => return Ok(()),
                Err(_) => return self.helper_is_gone(),
            }
        }
    }

    fn helper_is_gone(&mut self) -> Result<(), End> {
        self.helper = None;
        for id in std::mem::take(&mut self.unanswered) {
            let text = "the process that evaluates the flow's parameters and values died; its last output may say why";
            self.refuse(&id, text)?;
        }
        Ok(())
    }

    fn open_zygote(&mut self, settings: Value, socket: OwnedFd) -> Option<Role> {
        let changed = settings["environment"].as_object().is_some_and(|variables| {
            variables.iter().any(|(name, value)| std::env::var(name).ok().as_deref() != value.as_str())
        });
        let spawns = settings["spawn"].as_bool().unwrap_or(false) || self.origin.spawn_reason.is_some();
        if changed && !spawns {
            self.start_fresh_zygote(settings, socket);
            return None;
        }
        self.fork_zygote(&settings, socket, None)
    }

    fn fork_zygote(&mut self, settings: &Value, socket: OwnedFd, reason: Option<String>) -> Option<Role> {
        let asked = settings["spawn"].as_bool().unwrap_or(false).then(|| "spawning was asked for".to_owned());
        let reason = asked.or_else(|| self.origin.spawn_reason.clone()).or(reason);
        // No parent-death signal for zygotes: they see the end of the engine's socket and take
        // along what their tasks left behind. A fork that fails closes the socket, which says so.
        if !matches!(process::fork(), Ok(0)) {
            return None;
        }
        self.close_in_child();
        match Zygote::new(socket, settings, reason, self.origin, &self.signals) {
            Ok(zygote) => Some(zygote.serve()),
            Err(_) => process::leave(1),
        }
    }

    /// With another environment the script is read anew: it may look at variables, and so may the
    /// libraries it loads.
    fn start_fresh_zygote(&mut self, settings: Value, socket: OwnedFd) {
        let Ok((ours, theirs)) = UnixStream::pair() else { return };
        match process::fork() {
            Ok(0) => {
                let (socket, pipe) = (socket.as_raw_fd(), theirs.as_raw_fd());
                let mut extra: HashMap<String, String> =
                    serde_json::from_value(settings["environment"].clone()).unwrap_or_default();
                extra.insert(ZYGOTE_VARIABLE.to_owned(), socket.to_string());
                extra.insert(TOOK_OVER_VARIABLE.to_owned(), pipe.to_string());
                extra.insert(SETTINGS_VARIABLE.to_owned(), settings.to_string());
                self.signals.give_back();
                silence();
                self.origin.become_fresh(extra, &[socket, pipe]);
                process::leave(1);
            }
            Ok(pid) => {
                let took_over = OwnedFd::from(ours);
                self.starting.insert(pid.cast_unsigned(), Starting { socket, settings, took_over });
            }
            Err(_) => {}
        }
    }

    /// A fresh zygote that has taken over is like any other; one that died is reaped.
    fn let_go_of_started(&mut self, ready: RawFd) {
        self.starting.retain(|_, each| each.took_over.as_raw_fd() != ready || !has_taken_over(&each.took_over));
    }

    fn reap(&mut self) -> Option<Role> {
        while let Reaped::Process(pid, ..) = process::reap() {
            if let Some(each) = self.starting.remove(&pid)
                && !has_taken_over(&each.took_over)
            {
                let reason = "reading the flow with the step's environment_variables() failed".to_owned();
                let role = self.fork_zygote(&each.settings, each.socket, Some(reason));
                if role.is_some() {
                    return role;
                }
            }
        }
        None
    }

    fn close_in_child(&self) {
        self.watch.close();
        process::close(self.connection.fd());
        if let Some(helper) = &self.helper {
            process::close(helper.fd());
        }
        for each in self.starting.values() {
            process::close(each.socket.as_raw_fd());
            process::close(each.took_over.as_raw_fd());
        }
    }
}

fn has_taken_over(pipe: &OwnedFd) -> bool {
    let mut byte = [0u8];
    // SAFETY: reads at most one byte into a local array.
    unsafe { libc::recv(pipe.as_raw_fd(), byte.as_mut_ptr().cast(), 1, libc::MSG_DONTWAIT) == 1 }
}

/// What the script prints when it is read again was printed already.
fn silence() {
    // SAFETY: plain system calls.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        for descriptor in 0..3 {
            libc::dup2(null, descriptor);
        }
        libc::close(null);
    }
}

/// In an R that was started to be a zygote with another environment; returns in its tasks only.
pub fn serve_fresh_zygote(socket: i32, pipe: i32, settings: &str, origin: &Origin) -> Result<Role, String> {
    let settings: Value = serde_json::from_str(settings).map_err(|error| error.to_string())?;
    let (socket, pipe) = (adopt(socket), adopt(pipe));
    let signals = Signals::take();
    let zygote = Zygote::new(socket, &settings, origin.spawn_reason.clone(), origin, &signals);
    let zygote = zygote.map_err(|error| error.to_string())?;
    // SAFETY: writes one byte to an open socket.
    unsafe { libc::write(pipe.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
    drop(pipe);
    Ok(zygote.of_its_own().serve())
}

/// A descriptor number as an owned descriptor, or why not.
pub fn number(text: &str) -> Result<i32, String> {
    text.parse().map_err(|_| format!("`{text}` is not a descriptor"))
}

/// Why this process should not be forked: what the script has started would not be in the fork.
pub fn fork_safety(known: &[RawFd]) -> Option<String> {
    let threads = threads_left();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    // OpenBLAS puts its threads back in order around a fork.
    if threads > 1 && !maps.contains("openblas") {
        let started = if threads == 2 {
            "a native thread was".to_owned()
        } else {
            format!("{} native threads were", threads - 1)
        };
        return Some(format!("{started} started while the flow was read"));
    }
    let children = process::children_of(std::process::id()).len();
    if children > 0 {
        return Some(format!("{children} child processes were started while the flow was read"));
    }
    let socket = process::open_descriptors().into_iter().filter(|fd| *fd > 2 && !known.contains(fd)).find(|fd| {
        std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"))
    });
    socket.map(|_| "a network connection was opened while the flow was read".to_owned())
}

/// Threads of this process. One that was just joined is still listed for a moment.
fn threads_left() -> usize {
    let count = || std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    for _ in 0..20 {
        if count() == 1 {
            return 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    count()
}

/// The first frame on a control channel, for a task without a spec file.
pub fn spec_from(control: OwnedFd) -> Result<(Value, OwnedFd), String> {
    // SAFETY: the copy is owned by the connection that reads the frame.
    let copy = unsafe { OwnedFd::from_raw_fd(libc::dup(control.as_raw_fd())) };
    match Connection::new(copy).receive() {
        Ok(frame) => Ok((frame.message, control)),
        Err(_) => Err("the engine closed the task's control channel".to_owned()),
    }
}

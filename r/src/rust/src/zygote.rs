//! A step's zygote: the process that the step's tasks are forked from. It starts tasks when the
//! engine says so, waits for them and says how they ended. It runs no user code itself.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use serde_json::{Value, json};

use crate::process::{self, ChildWatch, Reaped, Signals};
use crate::server::{Origin, Role};
use crate::wire::{Connection, End, Frame};

pub const TASK_VARIABLE: &str = "FERROFLOW_TASK_FD";
pub const SPEC_VARIABLE: &str = "FERROFLOW_TASK_SPEC_FD";
/// Out of the way of the numbers user code gets for the files it opens.
const LOWEST_CONTROL: i32 = 200;

pub struct Zygote<'a> {
    connection: Connection,
    watch: ChildWatch,
    origin: &'a Origin,
    signals: &'a Signals,
    environment: HashMap<String, String>,
    spawn_reason: Option<String>,
    by_pid: HashMap<u32, Value>,
    left_behind: HashSet<u32>,
    /// This process was started for the zygote, so R's folder for temporary files is its own.
    owns_folder: bool,
}

impl<'a> Zygote<'a> {
    pub fn new(
        descriptor: OwnedFd,
        settings: &Value,
        spawn_reason: Option<String>,
        origin: &'a Origin,
        signals: &'a Signals,
    ) -> io::Result<Self> {
        let environment = serde_json::from_value(settings["environment"].clone()).unwrap_or_default();
        Ok(Self {
            connection: Connection::new(descriptor),
            watch: ChildWatch::new()?,
            origin,
            signals,
            environment,
            spawn_reason,
            by_pid: HashMap::new(),
            left_behind: HashSet::new(),
            owns_folder: false,
        })
    }

    pub fn of_its_own(mut self) -> Self {
        self.owns_folder = true;
        self
    }

    /// Serves until the engine closes the socket; returns only in a forked task.
    pub fn serve(mut self) -> Role {
        process::become_subreaper();
        match self.run() {
            Ok(role) => {
                // A task: what it does not need was closed by number, and must not be again.
                std::mem::forget(self);
                role
            }
            Err(_) => {
                process::kill_descendants();
                if self.owns_folder {
                    crate::task::remove_folder();
                }
                process::leave(0)
            }
        }
    }

    fn run(&mut self) -> Result<Role, End> {
        self.say(&json!({"type": "ready", "pid": std::process::id(), "spawn_reason": self.spawn_reason}))?;
        loop {
            let ready = process::wait_readable(&[self.connection.fd(), self.watch.fd()]);
            if ready.contains(&self.watch.fd()) {
                self.watch.clear();
                self.reap()?;
            }
            if ready.contains(&self.connection.fd()) {
                while let Some(frame) = self.connection.receive_available()? {
                    if let Some(role) = self.handle(frame)? {
                        return Ok(role);
                    }
                }
            }
        }
    }

    fn say(&mut self, event: &Value) -> Result<(), End> {
        self.connection.send(event).map_err(|_| End)
    }

    fn handle(&mut self, frame: Frame) -> Result<Option<Role>, End> {
        match frame.kind() {
            "task" => return self.start(frame),
            "signal" => {
                let number = frame.message["signal"].as_i64().unwrap_or_default() as i32;
                let attempt = &frame.message["attempt"];
                if let Some((pid, _)) = self.by_pid.iter().find(|(_, running)| *running == attempt) {
                    process::signal_group(*pid, number);
                }
            }
            "learn" => {
                let packages = frame.message["packages"].as_array().cloned().unwrap_or_default();
                let refused: Vec<String> = packages
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|package| format!("{package}: R steps do not learn imports"))
                    .collect();
                self.say(&json!({"type": "learned", "packages": [], "refused": refused}))?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn start(&mut self, frame: Frame) -> Result<Option<Role>, End> {
        let attempt = frame.message["attempt"].clone();
        let failed = |reason: String| {
            let message = format!("the task's process could not be started: {reason}");
            json!({"type": "start_failed", "attempt": attempt, "message": message})
        };
        let Ok(descriptors) = <[OwnedFd; 3]>::try_from(frame.descriptors) else {
            let reason = "its output descriptors did not arrive; is the limit on open files (`ulimit -n`) too low?";
            self.say(&failed(reason.to_owned()))?;
            return Ok(None);
        };
        let parent = std::process::id();
        match process::fork() {
            Err(error) => self.say(&failed(error.to_string()))?,
            Ok(0) => return Ok(Some(self.become_task(parent, descriptors, frame.message["spec"].clone()))),
            Ok(pid) => {
                self.by_pid.insert(pid.cast_unsigned(), attempt.clone());
                self.say(&json!({"type": "started", "attempt": attempt, "pid": pid}))?;
            }
        }
        Ok(None)
    }

    fn become_task(&self, parent: u32, descriptors: [OwnedFd; 3], spec: Value) -> Role {
        // SAFETY: plain system call.
        unsafe { libc::setpgid(0, 0) };
        process::die_with_parent(parent);
        self.signals.give_back();
        self.watch.close();
        process::close(self.connection.fd());
        let [stdout, stderr, control] = descriptors;
        replace_streams(&stdout, &stderr);
        let control = move_up(control, LOWEST_CONTROL);
        if self.spawn_reason.is_some() {
            self.spawn(control, &spec);
        }
        Role::Task { spec, control: crate::wire::adopt(control) }
    }

    /// Becomes a fresh interpreter that finds its spec in a memory file.
    fn spawn(&self, control: i32, spec: &Value) -> ! {
        let file = memory_file(spec.to_string().as_bytes()).map(|file| move_up(file, LOWEST_CONTROL + 1));
        let error = match file {
            Ok(file) => {
                let mut extra = self.environment.clone();
                extra.insert(TASK_VARIABLE.to_owned(), control.to_string());
                extra.insert(SPEC_VARIABLE.to_owned(), file.to_string());
                self.origin.become_fresh(extra, &[control, file])
            }
            Err(error) => error,
        };
        eprintln!("R could not be started for this task: {error}");
        process::leave(1)
    }

    fn reap(&mut self) -> Result<(), End> {
        while let Reaped::Process(pid, status, usage) = process::reap() {
            let Some(attempt) = self.by_pid.remove(&pid) else {
                self.left_behind.remove(&pid);
                continue;
            };
            let exit = if libc::WIFSIGNALED(status) {
                json!({"signal": libc::WTERMSIG(status)})
            } else {
                json!({"code": libc::WEXITSTATUS(status)})
            };
            let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
            let event = json!({
                "type": "exited", "attempt": attempt, "exit": exit,
                "usage": {
                    "cpu_seconds": seconds(usage.ru_utime) + seconds(usage.ru_stime),
                    "peak_memory": usage.ru_maxrss.cast_unsigned() * 1024,
                },
                "leftover": self.count_leftovers(),
            });
            self.say(&event)?;
        }
        Ok(())
    }

    /// Orphans become our children; those that no running task's group claims are of the task that
    /// has just gone.
    fn count_leftovers(&mut self) -> usize {
        let mut count = 0;
        for pid in process::children_of(std::process::id()) {
            if self.by_pid.contains_key(&pid) || self.left_behind.contains(&pid) {
                continue;
            }
            match process::state_and_group(pid) {
                Some((state, group)) if state != 'Z' && !self.by_pid.contains_key(&group) => {
                    self.left_behind.insert(pid);
                    count += 1 + process::descendants_of(pid).len();
                }
                _ => {}
            }
        }
        count
    }
}

fn replace_streams(stdout: &OwnedFd, stderr: &OwnedFd) {
    // SAFETY: plain system calls on open descriptors.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        libc::dup2(null, 0);
        libc::close(null);
        libc::dup2(stdout.as_raw_fd(), 1);
        libc::dup2(stderr.as_raw_fd(), 2);
    }
}

fn move_up(descriptor: OwnedFd, lowest: i32) -> i32 {
    // SAFETY: plain system call; with a limit below 200 open files it is refused.
    let moved = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    if moved < 0 { descriptor.into_raw_fd() } else { moved }
}

fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let file = rustix::fs::memfd_create("ferroflow-task-spec", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

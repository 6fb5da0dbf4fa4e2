//! Process 1 of a remote task's container: starts the task as a fresh R on the flow, passes on what
//! it prints, and says how it ended in the container's termination message. What it knows and how
//! logs travel is `ferroflow_task::remote`; how the container got here is
//! `compute/src/remote/bootstrap.R`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use ferroflow_core::task::{ProcessExit, StoreLocation, TaskSpec, Usage};
use ferroflow_store::remote::blocking::BlockingObjects;
use ferroflow_task::remote::ending::{Facts, fitted, free_space};
use ferroflow_task::remote::memory::Memory;
use ferroflow_task::remote::shipper::{Assignment, Shipper};
use serde::Deserialize;

use crate::process::{self, Reaped};
use crate::wire::Connection;

const READ_SIZE: usize = 1 << 16;
/// R acts on a time limit itself; a task that has not reacted by then hangs in native code.
const TIME_LIMIT_GRACE: Duration = Duration::from_secs(60);
/// A told task may clean up for so long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Streams of an ended task are read this long when a process it left behind holds them open.
const DRAIN: Duration = Duration::from_millis(200);
/// Out of the way of the numbers user code gets for the files it opens.
const LOWEST_DESCRIPTOR: RawFd = 200;

static WAKE: AtomicI32 = AtomicI32::new(-1);

/// What R says of the container (`R/remote.R`).
#[derive(Deserialize)]
struct Settings {
    layer: String,
    log_prefix: String,
    lease_key: String,
    lease_seconds: f64,
    time_limit: Option<f64>,
    termination_log: String,
    command: Vec<String>,
    /// The task's variables, `NAME=value`.
    environment: Vec<String>,
}

/// Runs the task; the exit code for this process. `spec` is the task's `TaskSpec` as JSON.
pub fn run(settings: &str, spec: &str) -> Result<i32, String> {
    let settings: Settings = serde_json::from_str(settings).map_err(|error| error.to_string())?;
    let task: TaskSpec = serde_json::from_str(spec).map_err(|error| error.to_string())?;
    let store = task.store.clone();
    let mut facts = Facts::new(task, &settings.layer, Memory::of_container());
    match Supervisor::start(&settings, spec, &store, &mut facts) {
        Ok(supervisor) => Ok(supervisor.run()),
        Err(error) => {
            facts.supervisor_failed(&error);
            let text = fitted(&facts.message(None));
            let _only_kubernetes_has_it = fs::write(&settings.termination_log, text);
            Err(error)
        }
    }
}

/// Process 1 gets no signal that it does not handle.
extern "C" fn note_signal(number: libc::c_int) {
    wake(number as u8);
}

fn wake(byte: u8) {
    // SAFETY: write is async-signal-safe; a full pipe wakes its reader as well.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(WAKE.load(Ordering::Relaxed), [byte].as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
    }
}

struct Stream {
    letter: char,
    own: RawFd,
    from: File,
}

struct Supervisor<'a> {
    settings: &'a Settings,
    facts: &'a mut Facts,
    wake: OwnedFd,
    pid: u32,
    streams: Vec<Stream>,
    control: Option<Connection>,
    log: Shipper,
    limit: Option<Instant>,
    stopping: bool,
    kill_at: Option<Instant>,
    over_at: Option<Instant>,
}

impl<'a> Supervisor<'a> {
    fn start(settings: &'a Settings, spec: &str, store: &StoreLocation, facts: &'a mut Facts) -> Result<Self, String> {
        if std::process::id() != 1 {
            process::become_subreaper();
        }
        let failed = |error: io::Error| error.to_string();
        let wake_end = catch_signals().map_err(failed)?;
        let started = start_task(settings, spec).map_err(|error| format!("the task cannot be started: {error}"))?;
        // Threads must not be there before the task was forked.
        let objects = BlockingObjects::open(store).map_err(|error| error.to_string())?;
        let assignment = Assignment {
            log_prefix: settings.log_prefix.clone(),
            lease_key: settings.lease_key.clone(),
            lease: Duration::from_secs_f64(settings.lease_seconds),
        };
        let log = Shipper::start(Box::new(objects), assignment, || wake(0)).map_err(failed)?;
        let limit = settings.time_limit.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(Self {
            settings,
            facts,
            wake: wake_end,
            pid: started.pid,
            streams: started.streams,
            control: Some(started.control),
            log,
            limit: limit.map(|limit| Instant::now() + limit + TIME_LIMIT_GRACE),
            stopping: false,
            kill_at: None,
            over_at: None,
        })
    }

    fn run(mut self) -> i32 {
        while self.over_at.is_none_or(|at| Instant::now() < at) {
            self.wait();
        }
        self.facts.note_leftovers();
        process::kill_descendants();
        self.finish()
    }

    fn wait(&mut self) {
        let mut descriptors = vec![self.wake.as_raw_fd()];
        descriptors.extend(self.streams.iter().map(|stream| stream.from.as_raw_fd()));
        descriptors.extend(self.control.as_ref().map(Connection::fd));
        for ready in process::wait_readable_for(&descriptors, self.patience()) {
            if ready == self.wake.as_raw_fd() {
                self.woken();
            } else if self.control.as_ref().is_some_and(|control| control.fd() == ready) {
                self.hear();
            } else {
                self.pump(ready);
            }
        }
        self.keep_time();
    }

    /// Milliseconds until something is due; -1 when nothing is.
    fn patience(&self) -> i32 {
        let due = [self.limit, self.kill_at, self.over_at].into_iter().flatten().min();
        due.map_or(-1, |at| {
            i32::try_from(at.saturating_duration_since(Instant::now()).as_millis()).unwrap_or(i32::MAX) + 1
        })
    }

    fn keep_time(&mut self) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| now >= at);
        if self.over_at.is_some() {
            if self.streams.is_empty() {
                self.over_at = Some(now);
            }
        } else if is_due(self.kill_at) {
            self.kill_at = None;
            process::signal_group(self.pid, libc::SIGKILL);
        } else if is_due(self.limit) {
            self.limit = None;
            self.facts.overran(self.settings.time_limit.unwrap_or_default(), TIME_LIMIT_GRACE.as_secs_f64());
            process::signal_group(self.pid, libc::SIGKILL);
        }
    }

    /// Signals and the log's thread write into the same pipe; a zero is the thread's.
    fn woken(&mut self) {
        let mut said = [0; 4096];
        let length = rustix::io::read(&self.wake, &mut said).unwrap_or(0);
        if said[..length].iter().any(|byte| [libc::SIGTERM, libc::SIGINT].contains(&i32::from(*byte))) {
            self.facts.told_to_stop();
            self.stop_task();
        }
        if self.log.lease_expired() && !self.stopping {
            self.facts.lease_expired(self.settings.lease_seconds);
            self.stop_task();
        }
        self.reap();
    }

    fn stop_task(&mut self) {
        if self.over_at.is_none() && !self.stopping {
            self.stopping = true;
            process::signal_group(self.pid, libc::SIGTERM);
            self.kill_at = Some(Instant::now() + STOP_PATIENCE);
        }
    }

    fn reap(&mut self) {
        while let Reaped::Process(pid, status, usage) = process::reap() {
            if pid == self.pid {
                self.facts.ended(exit_of(status), used(&usage));
                self.over_at = Some(Instant::now() + DRAIN);
            }
        }
    }

    fn pump(&mut self, descriptor: RawFd) {
        let Some(position) = self.streams.iter().position(|stream| stream.from.as_raw_fd() == descriptor) else {
            return;
        };
        let mut data = vec![0; READ_SIZE];
        let stream = &mut self.streams[position];
        match stream.from.read(&mut data) {
            Ok(0) => drop(self.streams.swap_remove(position)),
            Ok(length) => {
                self.log.add(stream.letter, &data[..length]);
                // For the node's own log, which `kubectl logs` shows; nobody may be reading it.
                let _ = write_all(stream.own, &data[..length]);
            }
            Err(error) if [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted].contains(&error.kind()) => {}
            Err(_) => drop(self.streams.swap_remove(position)),
        }
    }

    fn is_open(&self, descriptor: RawFd) -> bool {
        self.streams.iter().any(|stream| stream.from.as_raw_fd() == descriptor)
    }

    fn hear(&mut self) {
        while let Some(control) = self.control.as_mut() {
            match control.receive_available() {
                Ok(None) => return,
                Ok(Some(frame)) => match serde_json::from_value(frame.message) {
                    Ok(message) => self.facts.hear(message),
                    Err(error) => {
                        self.facts.control_fault(error.to_string());
                        self.control = None;
                    }
                },
                Err(_) => self.control = None,
            }
        }
    }

    fn finish(mut self) -> i32 {
        self.hear();
        for descriptor in self.streams.iter().map(|stream| stream.from.as_raw_fd()).collect::<Vec<_>>() {
            // Who else held its other end was killed, so it comes to an end.
            while self.is_open(descriptor) && !process::wait_readable_for(&[descriptor], 0).is_empty() {
                self.pump(descriptor);
            }
        }
        let mut message = self.facts.message(free_space(Path::new(".")));
        let told = fs::write(&self.settings.termination_log, fitted(&message)).is_ok();
        // Only Kubernetes reads that file; the store tells the others.
        let apart = !told || self.settings.layer != "kubernetes";
        if let Some(problem) = self.log.finish(&message, apart) {
            let _ = write_all(2, format!("{problem}\n").as_bytes());
            message.log_is_short = true;
            let _ = fs::write(&self.settings.termination_log, fitted(&message));
        }
        self.facts.exit_code()
    }
}

fn catch_signals() -> io::Result<OwnedFd> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    let (read, write) = rustix::pipe::pipe_with(flags)?;
    WAKE.store(std::os::fd::IntoRawFd::into_raw_fd(write), Ordering::Relaxed);
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGCHLD] {
        process::set_handler(number, note_signal);
    }
    Ok(read)
}

struct Started {
    pid: u32,
    streams: Vec<Stream>,
    control: Connection,
}

fn start_task(settings: &Settings, spec: &str) -> io::Result<Started> {
    let (out, out_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (err, err_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (ours, theirs) = UnixStream::pair()?;
    let control = moved(theirs.as_raw_fd())?;
    let spec = spec_file(spec)?;
    let mut environment = settings.environment.clone();
    environment.push(format!("FERROFLOW_TASK_FD={}", control.as_raw_fd()));
    environment.push(format!("FERROFLOW_TASK_SPEC_FD={}", spec.as_raw_fd()));
    let supervisor = std::process::id();
    let pid = process::fork()?;
    if pid == 0 {
        if supervisor != 1 {
            process::die_with_parent(supervisor);
        }
        replace_streams(out_write.as_raw_fd(), err_write.as_raw_fd());
        let error = process::execute(&settings.command, Some(&environment), &[control.as_raw_fd(), spec.as_raw_fd()]);
        let _ = write_all(2, format!("R cannot be started: {error}\n").as_bytes());
        process::leave(1);
    }
    let stream = |letter, own, from| Stream { letter, own, from: File::from(from) };
    Ok(Started {
        pid: pid.cast_unsigned(),
        streams: vec![stream('o', 1, out), stream('e', 2, err)],
        control: Connection::new(ours.into()),
    })
}

/// In the child.
fn replace_streams(out: RawFd, err: RawFd) {
    // SAFETY: plain system calls between fork and exec.
    unsafe {
        libc::setpgid(0, 0);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY);
        for (descriptor, standard) in [(null, 0), (out, 1), (err, 2)] {
            libc::dup2(descriptor, standard);
        }
    }
}

/// A copy under a high number.
fn moved(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the copy is ours alone. A limit below 200 open files leaves the number to the kernel.
    unsafe {
        let mut copy = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, LOWEST_DESCRIPTOR);
        if copy < 0 {
            copy = libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 3);
        }
        if copy < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(copy)) }
    }
}

/// The spec in a file without a name.
fn spec_file(spec: &str) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("ferroflow-task-spec", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(spec.as_bytes())?;
    io::Seek::rewind(&mut file)?;
    moved(file.as_raw_fd())
}

fn write_all(descriptor: RawFd, mut data: &[u8]) -> io::Result<()> {
    // SAFETY: 1 and 2 stay open as long as this process.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    while !data.is_empty() {
        match rustix::io::write(borrowed, data) {
            Ok(length) => data = &data[length..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn exit_of(status: i32) -> ProcessExit {
    if libc::WIFSIGNALED(status) {
        ProcessExit::Signal(libc::WTERMSIG(status))
    } else {
        ProcessExit::Code(libc::WEXITSTATUS(status))
    }
}

fn used(usage: &libc::rusage) -> Usage {
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Usage {
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        peak_memory: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    }
}

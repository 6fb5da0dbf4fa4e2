//! Process plumbing of the fork server: subreaper, parent-death signal, walking and killing the
//! process tree, signals. Nothing here knows about flows, steps or tasks.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

/// What the fork server ignores, and a task must find as the flow's own process had it.
const TAKEN: [i32; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGCHLD];
const KILL_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Signal actions as they were before `take`.
#[derive(Clone)]
pub struct Signals(Vec<(i32, libc::sigaction)>);

extern "C" fn note_child(_number: libc::c_int) {
    let wake = WAKE.load(Ordering::Relaxed);
    if wake >= 0 {
        // SAFETY: write is async-signal-safe; a full pipe wakes its reader as well.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(wake, [1u8].as_ptr().cast(), 1);
            *libc::__errno_location() = errno;
        }
    }
}

impl Signals {
    /// Ignores what would end the fork server: that is the engine's to decide.
    pub fn take() -> Self {
        let saved = TAKEN.iter().map(|&number| (number, action_of(number))).collect();
        for &number in &TAKEN[..4] {
            set_action(number, libc::SIG_IGN);
        }
        Self(saved)
    }

    pub fn give_back(&self) {
        WAKE.store(-1, Ordering::Relaxed);
        for (number, action) in &self.0 {
            // SAFETY: restores what the kernel gave us.
            unsafe { libc::sigaction(*number, action, std::ptr::null_mut()) };
        }
    }
}

fn action_of(number: i32) -> libc::sigaction {
    // SAFETY: a zeroed sigaction is a valid place for the kernel to write to.
    unsafe {
        let mut action = std::mem::zeroed();
        libc::sigaction(number, std::ptr::null(), &raw mut action);
        action
    }
}

fn set_action(number: i32, handler: libc::sighandler_t) {
    // SAFETY: plain system call with a complete structure.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(number, &raw const action, std::ptr::null_mut());
    }
}

/// Interrupts system calls, unlike those of the fork server.
pub fn set_handler(number: i32, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: plain system call with a complete structure.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        libc::sigaction(number, &raw const action, std::ptr::null_mut());
    }
}

pub fn set_default(number: i32) {
    set_action(number, libc::SIG_DFL);
}

/// Blocks or unblocks SIGINT: between a fork and its precautions it must not hit only one side.
pub fn hold_interrupts(hold: bool) {
    // SAFETY: plain system calls on a local set.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGINT);
        libc::sigprocmask(if hold { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, &raw const set, std::ptr::null_mut());
    }
}

/// A descriptor that becomes readable when a child ended.
pub struct ChildWatch {
    read_end: RawFd,
    write_end: RawFd,
}

impl ChildWatch {
    pub fn new() -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: plain system call into a local array.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return Err(io::Error::last_os_error());
        }
        WAKE.store(ends[1], Ordering::Relaxed);
        set_action(libc::SIGCHLD, note_child as *const () as libc::sighandler_t);
        Ok(Self { read_end: ends[0], write_end: ends[1] })
    }

    pub fn fd(&self) -> RawFd {
        self.read_end
    }

    pub fn clear(&self) {
        let mut bin = [0u8; 512];
        // SAFETY: reads into a local array; the descriptor does not block.
        while unsafe { libc::read(self.read_end, bin.as_mut_ptr().cast(), bin.len()) } > 0 {}
    }

    pub fn close(&self) {
        close(self.read_end);
        close(self.write_end);
    }
}

pub fn close(descriptor: RawFd) {
    // SAFETY: closing a number that is not open is refused by the kernel.
    unsafe { libc::close(descriptor) };
}

/// Waits until one of the descriptors can be read; which ones.
pub fn wait_readable(descriptors: &[RawFd]) -> Vec<RawFd> {
    wait_readable_for(descriptors, -1)
}

/// The same for so many milliseconds at most, or without end (-1).
pub fn wait_readable_for(descriptors: &[RawFd], milliseconds: i32) -> Vec<RawFd> {
    let mut polled: Vec<libc::pollfd> =
        descriptors.iter().map(|&fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array is as long as is said. An interrupted call reads as nothing ready.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds) };
    if ready <= 0 {
        return Vec::new();
    }
    polled.iter().filter(|each| each.revents != 0).map(|each| each.fd).collect()
}

/// Orphaned descendants become children of this process.
pub fn become_subreaper() {
    // SAFETY: plain system call.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// SIGKILL for this process when its parent ends; leaves at once if it has already.
pub fn die_with_parent(parent: u32) {
    // SAFETY: plain system calls.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(1);
        }
    }
}

/// Forks with R's and C's output written out first. `Ok(0)` in the child.
pub fn fork() -> io::Result<i32> {
    // SAFETY: this process is single-threaded as far as we can tell (see `server::fork_safety`).
    unsafe {
        libc::fflush(std::ptr::null_mut());
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            pid => Ok(pid),
        }
    }
}

/// Ends this process at once: no finalizer, no clean-up of what the parent still uses.
pub fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(code)
    }
}

pub fn set_inheritable(descriptor: RawFd, inheritable: bool) {
    // SAFETY: plain system call.
    unsafe { libc::fcntl(descriptor, libc::F_SETFD, if inheritable { 0 } else { libc::FD_CLOEXEC }) };
}

/// Descriptors this process has open.
pub fn open_descriptors() -> Vec<RawFd> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Executes a program in this process's place, with only the named descriptors (and 0 to 2) open.
pub fn execute(command: &[String], environment: Option<&[String]>, keep: &[RawFd]) -> io::Error {
    for descriptor in open_descriptors() {
        if descriptor > 2 {
            set_inheritable(descriptor, keep.contains(&descriptor));
        }
    }
    let texts = |list: &[String]| -> Vec<CString> {
        list.iter().filter_map(|text| CString::new(text.as_bytes()).ok()).collect()
    };
    let arguments = texts(command);
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let Some(program) = arguments.first() else { return io::Error::other("no program") };
    // SAFETY: both arrays end with a null pointer and outlive the call.
    unsafe {
        match environment {
            None => libc::execv(program.as_ptr(), pointers.as_ptr()),
            Some(environment) => {
                let variables = texts(environment);
                let mut environment: Vec<*const libc::c_char> = variables.iter().map(|text| text.as_ptr()).collect();
                environment.push(std::ptr::null());
                libc::execve(program.as_ptr(), pointers.as_ptr(), environment.as_ptr())
            }
        };
    }
    io::Error::last_os_error()
}

/// Process ids of the living and unreaped children of a process.
pub fn children_of(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>()).collect()
}

pub fn descendants_of(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![pid];
    while let Some(next) = pending.pop() {
        let children = children_of(next);
        found.extend(&children);
        pending.extend(children);
    }
    found
}

/// State letter and process group of a process.
pub fn state_and_group(pid: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(1)?.parse().ok()?))
}

/// Signals a task's process group; the process alone when it has not made its group yet.
pub fn signal_group(pid: u32, number: i32) {
    // SAFETY: plain system calls.
    unsafe {
        if libc::kill(-pid.cast_signed(), number) != 0 {
            libc::kill(pid.cast_signed(), number);
        }
    }
}

/// Kills and reaps until this process has no child left. As subreaper it inherits every orphan, so
/// no child means no descendant.
pub fn kill_descendants() {
    let give_up = Instant::now() + KILL_PATIENCE;
    let mut killed = HashSet::new();
    loop {
        let stopped = stop_descendants(&killed);
        for &pid in &stopped {
            signal(pid, libc::SIGKILL);
        }
        killed.extend(stopped);
        if reap_for(LOOK_AGAIN) || Instant::now() > give_up {
            return;
        }
    }
}

/// Each is stopped before its children are listed, so that one that forks faster than we look is
/// caught all the same.
fn stop_descendants(killed: &HashSet<u32>) -> HashSet<u32> {
    let mut stopped = HashSet::new();
    let mut pending = vec![std::process::id()];
    while let Some(next) = pending.pop() {
        for child in children_of(next) {
            if !killed.contains(&child) && stopped.insert(child) {
                signal(child, libc::SIGSTOP);
                pending.push(child);
            }
        }
    }
    stopped
}

fn signal(pid: u32, number: i32) {
    // SAFETY: plain system call; a process that is gone is no problem.
    unsafe { libc::kill(pid.cast_signed(), number) };
}

/// Whether no child is left after reaping for a while.
fn reap_for(patience: Duration) -> bool {
    let end = Instant::now() + patience;
    loop {
        match reap() {
            Reaped::NoChild => return true,
            Reaped::None if Instant::now() > end => return false,
            Reaped::None => std::thread::sleep(Duration::from_micros(500)),
            Reaped::Process(..) => {}
        }
    }
}

pub enum Reaped {
    Process(u32, i32, libc::rusage),
    /// No child has ended.
    None,
    NoChild,
}

/// Waits for any child that has ended already.
pub fn reap() -> Reaped {
    // SAFETY: the kernel fills both places.
    unsafe {
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        match libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage) {
            -1 => Reaped::NoChild,
            0 => Reaped::None,
            pid => Reaped::Process(pid.cast_unsigned(), status, usage),
        }
    }
}

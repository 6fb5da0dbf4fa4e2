//! The first and last moments of a task's process: between the fork and user code, and after it.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use extendr_api::prelude::*;
use extendr_ffi::SEXP;
use serde_json::Value;

use crate::process;
use crate::wire::Connection;

unsafe extern "C" {
    /// R's folder for temporary files; removed by R itself only if R made it.
    static mut R_TempDir: *mut libc::c_char;
    static mut R_interrupts_pending: libc::c_int;
    /// What R calls to end the session.
    static mut ptr_R_CleanUp: Option<CleanUp>;
}

type CleanUp = unsafe extern "C" fn(libc::c_int, libc::c_int, libc::c_int);

thread_local! {
    static ORIGINAL: Cell<Option<CleanUp>> = const { Cell::new(None) };
    static CONTROL: RefCell<Option<Connection>> = const { RefCell::new(None) };
    static FORKED: Cell<bool> = const { Cell::new(false) };
    static QUIT: RefCell<Option<Robj>> = const { RefCell::new(None) };
}

/// In a forked task.
pub fn begin(control: OwnedFd) {
    begin_spawned(control);
    FORKED.set(true);
    use_own_folder();
}

/// In an R that was started for one task.
pub fn begin_spawned(control: OwnedFd) {
    CONTROL.set(Some(Connection::new(control)));
}

/// Sends a `wire::TaskMessage`. A vanished engine is not the task's failure.
pub fn say(message: &Value) {
    CONTROL.with_borrow_mut(|control| {
        if let Some(control) = control.as_mut() {
            let _ = control.send(message);
        }
    });
}

/// A task's temporary files are its own and end with it: a folder below the server's, which is
/// removed when the run is over at the latest.
fn use_own_folder() {
    // SAFETY: R keeps the pointer; the new text is never freed, as R's own is not. One thread.
    unsafe {
        if R_TempDir.is_null() {
            return;
        }
        let parent = CStr::from_ptr(R_TempDir).to_string_lossy().into_owned();
        let folder = format!("{parent}/task-{}", std::process::id());
        if std::fs::create_dir(&folder).is_ok()
            && let Ok(text) = CString::new(folder)
        {
            R_TempDir = text.into_raw();
        }
    }
}

fn folder() -> Option<String> {
    // SAFETY: reads the text that R, or `use_own_folder`, left.
    unsafe { (!R_TempDir.is_null()).then(|| CStr::from_ptr(R_TempDir).to_string_lossy().into_owned()) }
}

/// Removes R's folder for temporary files.
pub fn remove_folder() {
    if let Some(folder) = folder() {
        // What cannot be removed stays, as when R itself ends.
        let _ = std::fs::remove_dir_all(folder);
    }
}

pub fn remove_own_folder() {
    // Without a folder of its own the task used the server's.
    if folder().is_some_and(|folder| folder.ends_with(&format!("/task-{}", std::process::id()))) {
        remove_folder();
    }
}

/// Ends the task's process. R's own way out would remove what the fork shares with its parent.
pub fn leave(code: i32) -> ! {
    remove_own_folder();
    process::leave(code)
}

static TIMED_OUT: AtomicBool = AtomicBool::new(false);

extern "C" fn time_is_up(_number: libc::c_int) {
    TIMED_OUT.store(true, Ordering::Relaxed);
    // SAFETY: what R's own handler of SIGINT does; R looks at the number at its next safe point.
    unsafe { R_interrupts_pending = 1 };
}

/// Interrupts R after so many seconds, and again until it takes notice; 0 ends that.
pub fn limit_time(seconds: f64) {
    TIMED_OUT.store(false, Ordering::Relaxed);
    let after = |seconds: f64| libc::timeval {
        tv_sec: seconds.trunc() as libc::time_t,
        tv_usec: (seconds.fract() * 1e6) as libc::suseconds_t,
    };
    process::set_handler(libc::SIGALRM, time_is_up);
    let again = if seconds > 0.0 { 0.2 } else { 0.0 };
    let timer = libc::itimerval { it_interval: after(again), it_value: after(seconds) };
    // SAFETY: plain system call with a complete structure.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Whether the limit was what interrupted R.
pub fn timed_out() -> bool {
    TIMED_OUT.load(Ordering::Relaxed)
}

/// `quit()` in a step calls `hook(status)`, which says what came of the task; then the process ends.
pub fn watch_quit(hook: Robj) {
    QUIT.set(Some(hook));
    // SAFETY: R reads the pointer when it ends, on this thread.
    unsafe {
        ORIGINAL.set(ptr_R_CleanUp);
        ptr_R_CleanUp = Some(end_by_quit);
    }
}

unsafe extern "C" fn end_by_quit(save: libc::c_int, status: libc::c_int, run_last: libc::c_int) {
    if let Some(hook) = QUIT.take() {
        // SAFETY: calls an R function with one number; errors in it end here.
        unsafe {
            let mut failed = 0;
            let status = extendr_ffi::Rf_protect(extendr_ffi::Rf_ScalarInteger(status));
            let call: SEXP = extendr_ffi::Rf_protect(extendr_ffi::Rf_lcons(
                hook.get(),
                extendr_ffi::Rf_cons(status, extendr_ffi::R_NilValue),
            ));
            extendr_ffi::R_tryEval(call, extendr_ffi::R_GlobalEnv, &raw mut failed);
        }
    }
    if !FORKED.get()
        && let Some(original) = ORIGINAL.get()
    {
        // SAFETY: R's own way out, with R's own arguments.
        unsafe { original(save, status, run_last) };
    }
    leave(status)
}

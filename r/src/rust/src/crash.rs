//! A task that crashes in native code: R's own words without our frames. R's own handler would also
//! remove the folder for temporary files that R made, which in a fork is every task's.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use extendr_api::prelude::*;
use extendr_ffi::SEXP;

use crate::task;

#[allow(non_upper_case_globals, reason = "R's names")]
unsafe extern "C" {
    static mut R_CStackLimit: usize;
    static R_CStackStart: usize;
    static R_CStackDir: libc::c_int;
}

type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

const SIGNALS: [libc::c_int; 3] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL];
/// The report is written by R code, on a stack of its own: the task's may be what broke.
const STACK: usize = 4 << 20;
/// What R adds to its limit when it asks whether an address was beyond the end of its stack.
const BEYOND: usize = 0x100_0000;

static CRASHED: AtomicBool = AtomicBool::new(false);
/// R's handler of segmentation faults, which turns those of a full stack into an error.
static OF_R: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    static REPORT: RefCell<Option<Robj>> = const { RefCell::new(None) };
}

/// From now on a crash calls `report(words)`, a function of R, and ends the process by its signal.
pub fn watch(report: Robj) {
    REPORT.set(Some(report));
    let stack = libc::stack_t { ss_sp: Vec::leak(vec![0_u8; STACK]).as_mut_ptr().cast(), ss_flags: 0, ss_size: STACK };
    // SAFETY: complete structures; the stack is never freed; R installed its handler with SA_SIGINFO.
    unsafe {
        libc::sigaltstack(&raw const stack, std::ptr::null_mut());
        for number in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = crashed as Handler as usize;
            action.sa_flags = libc::SA_ONSTACK | libc::SA_SIGINFO;
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(number, &raw const action, &raw mut before);
            if number == libc::SIGSEGV {
                OF_R.store(before.sa_sigaction as *mut libc::c_void, Ordering::Relaxed);
            }
        }
    }
}

extern "C" fn crashed(number: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a complete structure.
    let (address, code) = unsafe { ((*info).si_addr() as usize, (*info).si_code) };
    let of_r = OF_R.load(Ordering::Relaxed);
    if number == libc::SIGSEGV && is_stack_full(address) && of_r as usize > 1 {
        // SAFETY: the address of a function that takes these arguments.
        let of_r: Handler = unsafe { std::mem::transmute(of_r) };
        return of_r(number, info, context);
    }
    if !CRASHED.swap(true, Ordering::Relaxed) {
        report(&words(number, address, code));
        task::remove_own_folder();
    }
    // SAFETY: plain system calls; the signal ends the process when this handler returns.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::raise(number);
    }
}

fn is_stack_full(address: usize) -> bool {
    // SAFETY: reads R's numbers.
    let (start, limit, direction) = unsafe { (R_CStackStart, R_CStackLimit, R_CStackDir) };
    let used = if direction > 0 { start.wrapping_sub(address) } else { address.wrapping_sub(start) };
    let most = if limit == usize::MAX { BEYOND } else { limit.saturating_add(BEYOND) };
    used > 0 && used < most
}

/// As R says it.
fn words(number: libc::c_int, address: usize, code: libc::c_int) -> String {
    let what = match number {
        libc::SIGBUS => "bus error",
        libc::SIGILL => "illegal operation",
        _ => "segfault",
    };
    let cause = match (number, code) {
        (libc::SIGSEGV, 1) => "memory not mapped",
        (libc::SIGSEGV, 2) => "invalid permissions",
        (libc::SIGBUS, 1) => "invalid alignment",
        (libc::SIGBUS, 2) => "non-existent physical address",
        _ => "unknown",
    };
    let place = if code > 0 { format!("address {address:#x}, cause '{cause}'") } else { "sent as a signal".to_owned() };
    format!("\n *** caught {what} ***\n{place}\n")
}

fn report(words: &str) {
    let Some(hook) = REPORT.take() else { return };
    // SAFETY: calls an R function with one text; errors in it end here. R measures its stack from
    // where that began, so the measuring ends.
    unsafe {
        R_CStackLimit = usize::MAX;
        let mut failed = 0;
        let text: Robj = words.into();
        let call: SEXP = extendr_ffi::Rf_protect(extendr_ffi::Rf_lcons(
            hook.get(),
            extendr_ffi::Rf_cons(text.get(), extendr_ffi::R_NilValue),
        ));
        extendr_ffi::R_tryEval(call, extendr_ffi::R_GlobalEnv, &raw mut failed);
    }
}

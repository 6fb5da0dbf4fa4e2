//! Running a command for an interactive session: its output goes to R's console as it comes, and
//! interrupting R interrupts the command.

use std::ffi::CString;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use crate::process;

unsafe extern "C" {
    static mut R_interrupts_pending: libc::c_int;
    fn R_FlushConsole();
}

/// Exit code of the command; 128 and the signal's number if a signal ended it.
pub fn run(command: &[String], variables: &[String]) -> Result<i32, String> {
    let (program, arguments) = command.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    command.envs(variables.iter().filter_map(|line| line.split_once('=')));
    // SAFETY: one system call between fork and exec: the run ends with the session.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM, 0, 0, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(|error| format!("`{program}` cannot be started: {error}"))?;
    show_output(&mut child);
    let status = child.wait().map_err(|error| error.to_string())?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

fn show_output(child: &mut Child) {
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else { return };
    let (out, err) = (stdout.as_raw_fd(), stderr.as_raw_fd());
    let mut open = vec![out, err];
    while !open.is_empty() {
        for ready in process::wait_readable(&open) {
            let mut text = vec![0; 1 << 15];
            let read = if ready == out { stdout.read(&mut text) } else { stderr.read(&mut text) };
            match read {
                Ok(0) | Err(_) => open.retain(|each| *each != ready),
                Ok(length) => print(&text[..length], ready == err),
            }
        }
        pass_interrupt_on(child.id());
    }
}

fn print(bytes: &[u8], to_stderr: bool) {
    let Ok(text) = CString::new(String::from_utf8_lossy(bytes).replace('\0', "")) else { return };
    // SAFETY: prints a text by a constant format.
    unsafe {
        if to_stderr {
            extendr_ffi::REprintf(c"%s".as_ptr(), text.as_ptr());
        } else {
            extendr_ffi::Rprintf(c"%s".as_ptr(), text.as_ptr());
        }
        R_FlushConsole();
    }
}

fn pass_interrupt_on(child: u32) {
    // SAFETY: R's handler of SIGINT sets the number; R itself looks at it on this thread only.
    unsafe {
        if R_interrupts_pending != 0 {
            R_interrupts_pending = 0;
            libc::kill(child.cast_signed(), libc::SIGINT);
        }
    }
}

//! Writing to standard streams that may be pipes nobody reads. While the run goes on it waits for
//! its reader, however slow; once it was told to stop, such a stream must not keep it from ending.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// So much goes into a pipe that has room without waiting.
const PIECE: usize = 4096;
/// Between two looks at a stream without room; it may be another one by then.
const LOOK: Duration = Duration::from_millis(200);
/// How long a stream may have no room after the run was told to stop.
const PATIENCE: Duration = Duration::from_secs(3);

/// Writes all of it, waiting for room.
pub fn write(stream: BorrowedFd<'_>, mut text: &[u8]) -> io::Result<()> {
    while !text.is_empty() {
        while !has_room(stream, LOOK) {}
        match rustix::io::write(stream, &text[..text.len().min(PIECE)]) {
            Ok(written) => text = &text[written..],
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// `println!` and its like end the process with a panic when the reader is gone (`| head`); these do
/// not, and they wait as said above.
macro_rules! outln {
    ($($text:tt)*) => { $crate::unread::tell(&(format!($($text)*) + "\n")) };
}

macro_rules! out {
    ($($text:tt)*) => { $crate::unread::tell(&format!($($text)*)) };
}

macro_rules! errln {
    ($($text:tt)*) => { $crate::unread::say(&(format!($($text)*) + "\n")) };
}

macro_rules! err {
    ($($text:tt)*) => { $crate::unread::say(&format!($($text)*)) };
}

/// Writes to stdout. That the reader has enough is no error; that a disk is full is.
pub fn tell(text: &str) {
    if let Err(error) = write(io::stdout().as_fd(), text.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        say(&format!("Error: cannot write to stdout: {error}\n"));
        std::process::exit(1);
    }
}

/// Writes to stderr; nobody can be told that nobody listens.
pub fn say(text: &str) {
    let _ = write(io::stderr().as_fd(), text.as_bytes());
}

/// Whether a write would do something at once: take bytes, or tell that the reader is gone.
fn has_room(stream: BorrowedFd<'_>, patience: Duration) -> bool {
    let patience = Timespec::try_from(patience).ok();
    match poll(&mut [PollFd::new(&stream, PollFlags::OUT)], patience.as_ref()) {
        Ok(ready) => ready > 0,
        // What cannot be watched is not a pipe.
        Err(error) => error != Errno::INTR,
    }
}

/// From now on a standard stream that has had no room for a while leads nowhere.
pub fn give_up_on_readers() {
    // Without a thread the run waits for its readers, as it did before.
    let _ = std::thread::Builder::new().name("readers".to_owned()).spawn(|| {
        let mut without_room = [Duration::ZERO; 2];
        loop {
            std::thread::sleep(LOOK);
            for (number, waited) in without_room.iter_mut().enumerate() {
                let is_stdout = number == 0;
                let (stdout, stderr) = (io::stdout(), io::stderr());
                let stream = if is_stdout { stdout.as_fd() } else { stderr.as_fd() };
                *waited = if has_room(stream, Duration::ZERO) { Duration::ZERO } else { *waited + LOOK };
                if *waited >= PATIENCE {
                    *waited = Duration::ZERO;
                    let _ = lead_nowhere(is_stdout);
                }
            }
        }
    });
}

fn lead_nowhere(is_stdout: bool) -> io::Result<()> {
    let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    if is_stdout { rustix::stdio::dup2_stdout(nowhere) } else { rustix::stdio::dup2_stderr(nowhere) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_reaches_a_slow_reader_whole() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let text: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
        let expected = text.clone();
        let thread = std::thread::spawn(move || write(writer.as_fd(), &text));
        let mut read = Vec::new();
        io::Read::read_to_end(&mut io::BufReader::with_capacity(1000, reader), &mut read).expect("readable");
        thread.join().expect("no panic").expect("written");
        assert!(read == expected);
    }

    #[test]
    fn a_reader_that_is_gone_is_an_error_and_a_full_pipe_has_no_room() {
        let (reader, writer) = io::pipe().expect("a pipe");
        assert!(has_room(writer.as_fd(), Duration::ZERO));
        rustix::io::ioctl_fionbio(&writer, true).expect("a pipe can be asked not to wait");
        while rustix::io::write(&writer, &[0; PIECE]).is_ok() {}
        assert!(!has_room(writer.as_fd(), Duration::ZERO));
        drop(reader);
        assert_eq!(write(writer.as_fd(), b"x").map_err(|error| error.kind()), Err(io::ErrorKind::BrokenPipe));
    }
}

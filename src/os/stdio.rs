//! stdout and stderr in every state: closed, full, without a reader, or non-blocking.
//!
//! This is the only code that writes to them. `print!` and its like panic when a write fails, and a panic ends a release
//! build by SIGABRT.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The stream that gets a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Writes all of `text`.
///
/// # Errors
/// What the kernel says: the reader is gone, the disk is full. A part may have been written.
pub fn write(stream: Stream, text: &str) -> io::Result<()> {
    write_whole(&open(stream)?, text.as_bytes()).map_err(|torn| torn.cause)
}

/// The stream without the standard library's buffer, as a new descriptor. If the stream was closed when the process started,
/// it is `/dev/null`.
///
/// # Errors
/// No descriptor is left.
pub fn open(stream: Stream) -> io::Result<File> {
    let descriptor = match stream {
        Stream::Stdout => io::stdout().as_fd().try_clone_to_owned(),
        Stream::Stderr => io::stderr().as_fd().try_clone_to_owned(),
    };
    descriptor.map(File::from)
}

/// A write that failed.
#[derive(Debug)]
pub struct Torn {
    pub cause: io::Error,
    /// Bytes that were written before the failure.
    pub written: usize,
}

/// Writes all of `bytes`, in as many writes as the kernel needs. Waits when a non-blocking descriptor has no room.
///
/// # Errors
/// [`Torn`]: how much was written, and why the rest was not.
pub fn write_whole(mut file: &File, bytes: &[u8]) -> Result<(), Torn> {
    let mut written = 0;
    while written < bytes.len() {
        let result = match file.write(&bytes[written..]) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                written += count;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => wait_for_room(file.as_fd()),
            Err(error) => Err(error),
        };
        result.map_err(|cause| Torn { cause, written })?;
    }
    Ok(())
}

/// Returns when the next write can take something or would say why not.
fn wait_for_room(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `poll` is one valid pollfd, and its descriptor is open for as long as it is borrowed.
    if unsafe { libc::poll(&mut poll, 1, -1) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_stream_that_does_not_block_gets_everything() {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs
            .set_nonblocking(true)
            .expect("an option of every socket");
        let text = "x".repeat(4_000_000);
        let expected = text.clone();
        let writer = std::thread::spawn(move || {
            let file = File::from(OwnedFd::from(theirs));
            write_whole(&file, text.as_bytes()).expect("a reader")
        });
        let mut read = String::new();
        ours.read_to_string(&mut read).expect("until it is closed");
        writer.join().expect("no panic");
        assert!(read == expected);
    }

    #[test]
    fn a_write_that_fails_says_how_far_it_came() {
        let full = File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device");
        let torn = write_whole(&full, b"x").expect_err("it is full");
        assert_eq!(
            (torn.cause.raw_os_error(), torn.written),
            (Some(libc::ENOSPC), 0)
        );
        let (reader, writer) = io::pipe().expect("a pipe");
        drop(reader);
        let torn = write_whole(&File::from(OwnedFd::from(writer)), b"x").expect_err("nobody reads");
        assert_eq!(torn.cause.kind(), ErrorKind::BrokenPipe);
    }
}

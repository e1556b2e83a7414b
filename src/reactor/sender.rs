//! Sends many small messages with few system calls: a ring of its own, for sends that do not wait.
//!
//! A single send through the ring saves little. But while one call hands over hundreds of messages, no receiver is woken in
//! between, and the network stack handles them in bulk: over loopback a message costs less than half of a send(2). This ring
//! is not the ring of the polls, so every completion here belongs to the current call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

/// Messages that one call hands over.
const SENDS_PER_CALL_MAX: u32 = 256;

/// One message for one socket.
pub struct Outgoing<'a> {
    pub socket: BorrowedFd<'a>,
    pub bytes: &'a [u8],
}

/// Marks a message without a result; no send returns this value.
const NO_RESULT: i32 = i32::MIN;

/// The ring for sends of one shard.
pub struct Sender {
    ring: IoUring,
}

impl Sender {
    /// # Errors
    /// The kernel's refusal; the messages are then sent one by one.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(SENDS_PER_CALL_MAX)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => IoUring::new(SENDS_PER_CALL_MAX),
                _ => Err(error),
            })?;
        Ok(Self { ring })
    }

    /// Sends of each message what its socket takes now. `results` gets, in the same order, the number of bytes taken or the
    /// negative errno, as send(2) with `MSG_DONTWAIT` and `MSG_NOSIGNAL` would return.
    ///
    /// # Errors
    /// A broken ring. Messages without a result were not sent then, and `results` has `-ECANCELED` for them.
    pub fn send_all(
        &mut self,
        messages: &[Outgoing<'_>],
        results: &mut Vec<i32>,
    ) -> io::Result<()> {
        results.clear();
        results.resize(messages.len(), NO_RESULT);
        let chunk_max = SENDS_PER_CALL_MAX as usize;
        let outcome = messages
            .chunks(chunk_max)
            .zip(results.chunks_mut(chunk_max))
            .try_for_each(|(messages, results)| self.send_chunk(messages, results));
        for result in results {
            if *result == NO_RESULT {
                *result = -libc::ECANCELED;
            }
        }
        outcome
    }

    fn send_chunk(&mut self, messages: &[Outgoing<'_>], results: &mut [i32]) -> io::Result<()> {
        for (index, message) in messages.iter().enumerate() {
            let entry = opcode::Send::new(
                types::Fd(message.socket.as_raw_fd()),
                message.bytes.as_ptr(),
                u32::try_from(message.bytes.len()).unwrap_or(u32::MAX),
            )
            .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build()
            .user_data(index as u64);
            // SAFETY: the bytes and the descriptor are borrowed for longer than this function runs. The function returns
            // only after every request has completed, or when the ring is broken, and a broken ring takes no more requests.
            // MSG_DONTWAIT is needed for this: without it, the request to a full socket would stay in the kernel, with the
            // pointer, until the far end reads.
            unsafe { self.ring.submission().push(&entry) }
                .map_err(|_| io::Error::other("the queue of sends is full"))?;
        }
        let mut missing = messages.len();
        while missing > 0 {
            match self.ring.submit_and_wait(missing) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => {}
                    _ => return Err(error),
                },
            }
            for entry in self.ring.completion() {
                results[entry.user_data() as usize] = entry.result();
                missing -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().expect("socketpair")
    }

    #[test]
    fn every_message_reaches_its_socket_and_has_its_own_result() {
        let mut sender = Sender::new().expect("io_uring on the test machine");
        let count = SENDS_PER_CALL_MAX as usize * 2 + 7;
        let texts: Vec<String> = (0..count)
            .map(|number| format!("message {number}"))
            .collect();
        let pairs: Vec<_> = texts.iter().map(|_| pair()).collect();
        let messages: Vec<Outgoing> = texts
            .iter()
            .zip(&pairs)
            .map(|(text, (ours, _))| Outgoing {
                socket: ours.as_fd(),
                bytes: text.as_bytes(),
            })
            .collect();
        let mut results = Vec::new();
        sender
            .send_all(&messages, &mut results)
            .expect("a whole ring");
        for ((text, (_, theirs)), result) in texts.iter().zip(&pairs).zip(&results) {
            assert_eq!(*result as usize, text.len());
            let mut read = vec![0; text.len()];
            (&*theirs).read_exact(&mut read).expect("it has arrived");
            assert_eq!(read, text.as_bytes());
        }
    }

    #[test]
    fn a_full_socket_and_a_closed_one_do_not_hold_the_others_up() {
        let mut sender = Sender::new().expect("io_uring on the test machine");
        let (full, _far) = pair();
        let (closed, far) = pair();
        drop(far);
        let (open, mut reader) = pair();
        let large = vec![b'x'; 8 << 20];
        let message = |socket, bytes| Outgoing { socket, bytes };
        let mut results = Vec::new();
        let first = [message(full.as_fd(), &large[..])];
        sender.send_all(&first, &mut results).expect("a whole ring");
        assert!(0 < results[0] && (results[0] as usize) < large.len());
        let messages = [
            message(full.as_fd(), &large[..]),
            message(closed.as_fd(), b"lost"),
            message(open.as_fd(), b"heard"),
        ];
        sender
            .send_all(&messages, &mut results)
            .expect("a whole ring");
        assert_eq!(results, [-libc::EAGAIN, -libc::EPIPE, 5]);
        let mut read = [0; 5];
        reader.read_exact(&mut read).expect("it has arrived");
        assert_eq!(&read, b"heard");
    }
}

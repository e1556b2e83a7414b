//! The io_uring of the child: armed polls and receives that never complete, and batches of sends.

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fd::OwnedFd;

use super::child::finish;

/// Sends that are submitted at once.
const BATCH: usize = 1024;
/// Size of the buffer for armed receives.
const RECEIVE_BYTES: usize = 4096;

/// The ring of one thread. Armed requests never complete, because clients send nothing and leave after the child.
pub struct Ring {
    ring: IoUring,
    /// The buffer of every armed receive; lives as long as the ring.
    received: Box<[u8; RECEIVE_BYTES]>,
}

impl Ring {
    pub fn new() -> Self {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        // Kernels before 6.1 do not have these options.
        let ring = builder
            .build(BATCH as u32)
            .or_else(|_| IoUring::new(BATCH as u32));
        Self {
            ring: ring.expect("the limit of io_uring needs io_uring"),
            received: Box::new([0; RECEIVE_BYTES]),
        }
    }

    pub fn arm_poll(&mut self, socket: &OwnedFd, multishot: bool) {
        let poll = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), libc::POLLIN as u32);
        self.push(&poll.multi(multishot).build());
        self.ring.submit().expect("the kernel takes a poll");
    }

    pub fn arm_receive(&mut self, socket: &OwnedFd) {
        let (start, bytes) = (self.received.as_mut_ptr(), RECEIVE_BYTES as u32);
        let receive = opcode::Recv::new(types::Fd(socket.as_raw_fd()), start, bytes);
        self.push(&receive.build());
        self.ring.submit().expect("the kernel takes a receive");
    }

    /// Sends the same bytes to all sockets, in batches.
    pub fn send_all(&mut self, sockets: &[OwnedFd], bytes: &[u8]) {
        let mut unfinished = Vec::new();
        for batch in sockets.chunks(BATCH) {
            for (at, socket) in batch.iter().enumerate() {
                let send = opcode::Send::new(
                    types::Fd(socket.as_raw_fd()),
                    bytes.as_ptr(),
                    bytes.len() as u32,
                )
                .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
                self.push(&send.build().user_data(at as u64));
            }
            self.ring
                .submit_and_wait(batch.len())
                .expect("the kernel takes a batch");
            for entry in self.ring.completion() {
                let sent = usize::try_from(entry.result()).unwrap_or(0);
                if sent < bytes.len() {
                    unfinished.push((&batch[entry.user_data() as usize], sent));
                }
            }
        }
        for (socket, sent) in unfinished {
            finish(socket, &bytes[sent..]);
        }
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the descriptors stay open while the child runs; a send's bytes outlive its batch, which is waited for;
        // the bytes of receives live beside the ring.
        unsafe { self.ring.submission().push(entry) }
            .expect("no more than a batch is pushed before a submit");
    }
}

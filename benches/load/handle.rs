//! The side of a worker thread that gives it commands: the threads of a fleet and of a crowd.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

/// A running worker. It is stopped when this is dropped.
pub struct Handle<C> {
    commands: Sender<C>,
    wake: OwnedFd,
    /// The thread, and the command that ends it.
    running: Option<(JoinHandle<()>, C)>,
}

impl<C: Send + 'static> Handle<C> {
    /// Starts a thread that takes commands until `stop` comes. It gets its inbox and the eventfd that wakes it for that.
    pub fn start(stop: C, run: impl FnOnce(Receiver<C>, RawFd) + Send + 'static) -> Self {
        let (commands, inbox) = channel();
        let wake = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let number = wake.as_raw_fd();
        Self {
            commands,
            wake,
            running: Some((std::thread::spawn(move || run(inbox, number)), stop)),
        }
    }

    pub fn send(&self, command: C) {
        self.commands
            .send(command)
            .expect("workers run until they are told to stop");
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).expect("an eventfd takes a count");
    }
}

impl<C> Drop for Handle<C> {
    fn drop(&mut self) {
        if let Some((thread, stop)) = self.running.take() {
            // A worker that panicked has already printed why.
            let _ = self.commands.send(stop);
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
            let _ = thread.join();
        }
    }
}

/// What all workers answer to a command. The channel ends when all have answered.
pub fn ask_all<C: Send + 'static, A>(
    handles: &[Handle<C>],
    command: impl Fn(Sender<A>) -> C,
) -> Receiver<A> {
    let (reply, answers) = channel();
    for handle in handles {
        handle.send(command(reply.clone()));
    }
    answers
}

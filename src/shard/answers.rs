//! Answers to publications: they leave together with what the turn writes to sessions.
//!
//! A send costs mostly what it wakes. While one call hands over many messages, no receiver runs in between, so an answer
//! that leaves with the deliveries costs about half of one that is sent alone. Without such calls (epoll) the answers are
//! sent one by one after the deliveries: a publisher that is woken earlier often takes the shard's CPU before they are
//! written.
//!
//! An answer waits here only until the next turn, and every connection has at most one, so their number is limited by the
//! number of connections (`--max-conn`).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::net::TcpSocket;
use crate::os::sockets;
use crate::reactor::Outgoing;

/// The answers of one shard that wait for a turn.
#[derive(Default)]
pub struct Answers {
    waiting: RefCell<VecDeque<Answer>>,
}

/// An answer on its way, with the socket that it is for.
pub struct Answer {
    socket: TcpSocket,
    bytes: Vec<u8>,
    ticket: Rc<Ticket>,
}

/// Where the task of the client finds its socket again.
type Ticket = RefCell<Progress>;

enum Progress {
    Waits(Option<Waker>),
    Sent(SentAnswer),
}

/// What became of an answer.
pub struct SentAnswer {
    pub socket: TcpSocket,
    pub bytes: Vec<u8>,
    /// How many of the bytes the kernel has taken.
    pub taken: io::Result<usize>,
}

impl Answers {
    /// Has the next turn send `bytes`, once, without waiting for room in the socket.
    ///
    /// # Cancel safety
    /// After a drop the answer may still be sent; then the socket is closed.
    pub fn send(
        &self,
        socket: TcpSocket,
        bytes: Vec<u8>,
    ) -> impl Future<Output = SentAnswer> + use<> {
        let ticket = Rc::new(Ticket::new(Progress::Waits(None)));
        self.waiting.borrow_mut().push_back(Answer {
            socket,
            bytes,
            ticket: Rc::clone(&ticket),
        });
        poll_fn(move |context| {
            let waits = Progress::Waits(Some(context.waker().clone()));
            match ticket.replace(waits) {
                Progress::Waits(_) => Poll::Pending,
                Progress::Sent(written) => Poll::Ready(written),
            }
        })
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Moves the oldest answers, at most `count`, to the end of `answers`.
    pub fn take(&self, count: usize, answers: &mut Vec<Answer>) {
        let mut waiting = self.waiting.borrow_mut();
        let count = count.min(waiting.len());
        answers.extend(waiting.drain(..count));
    }
}

impl Answer {
    pub fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            socket: self.socket.fd().expect("lent while it was open"),
            bytes: &self.bytes,
        }
    }

    /// Sends what the socket takes now.
    pub fn write(self) {
        let Outgoing { socket, bytes } = self.outgoing();
        let taken = sockets::send(&socket, bytes);
        self.finish(taken);
    }

    /// Gives the socket back to the client's task. `taken`: how many bytes the kernel took.
    pub fn finish(self, taken: io::Result<usize>) {
        let taken = match taken {
            Err(error) if is_temporary(&error) => Ok(0),
            taken => taken,
        };
        let written = Progress::Sent(SentAnswer {
            socket: self.socket,
            bytes: self.bytes,
            taken,
        });
        if let Progress::Waits(Some(waker)) = self.ticket.replace(written) {
            waker.wake();
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == io::ErrorKind::WouldBlock || kind == io::ErrorKind::Interrupted
}

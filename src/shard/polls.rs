//! A poll on its way: from the shard that has read it to the shard of its session, and with its answer back into the HTTP
//! phase. Data only: `http::polling` makes and answers polls, `sessions::polling` decides when.

use std::fmt;
use std::net::TcpStream;
use std::rc::Rc;

use crate::mesh::{Permit, SessionRef};
use crate::net::tls::TlsSession;
use crate::protocol::poll_id::PollId;
use crate::session::Admission;
use crate::shard::outbox::frame::Frame;

/// A request of a polling client that has no answer yet, and the connection on which it came. Small, because one waits for
/// each client.
pub struct Poll {
    pub socket: TcpStream,
    pub tls: Option<Box<TlsSession>>,
    /// The socket's place among the open connections; `None` in the unit tests.
    pub permit: Option<Permit>,
    /// The connection may go on after the answer.
    pub keep_alive: bool,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub version_minor: u8,
    /// What most polls do not have.
    pub rest: Option<Box<PollRest>>,
}

#[derive(Debug, Default)]
pub struct PollRest {
    /// Of the browser that asks, if the answer depends on it.
    pub origin: Option<Box<str>>,
    /// Bytes that came after the request.
    pub unread: Vec<u8>,
}

impl Poll {
    /// Bytes that came after the request.
    pub fn unread_bytes(&self) -> usize {
        self.rest.as_ref().map_or(0, |rest| rest.unread.len())
    }

    /// Bytes that it takes while it is on its way, without its commands.
    pub fn held_bytes(&self) -> usize {
        let origin = self.rest.as_ref().and_then(|rest| rest.origin.as_ref());
        self.unread_bytes() + origin.map_or(0, |origin| origin.len())
    }

    /// Keeps what the client has sent behind its request. False when that ends the connection.
    pub fn keep_behind(&mut self, bytes: &mut [u8]) -> bool {
        let unread = &mut self.rest.get_or_insert_default().unread;
        let Some(tls) = &mut self.tls else {
            unread.extend_from_slice(bytes);
            return true;
        };
        tls.decrypt(bytes, unread).is_ok() && !tls.peer_has_closed()
    }
}

impl fmt::Debug for Poll {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Poll")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// A poll for the shard of its session, and the client's commands, one a line.
#[derive(Debug)]
pub struct PassedPoll {
    pub id: PollId,
    pub poll: Poll,
    pub lines: Vec<u8>,
}

/// What the HTTP phase knows about a client that opens a session over long polling.
pub struct NewPolling {
    pub admission: Admission,
    /// Gets the answer with the id.
    pub poll: Poll,
    pub lines: Vec<u8>,
}

/// What a client gets for its poll.
pub struct PollAnswer {
    pub poll: Poll,
    pub content: PollContent,
}

pub enum PollContent {
    /// The session has ended, or has never been.
    Expired,
    Messages(PollMessages),
}

/// Messages of a session. There may be none.
pub struct PollMessages {
    /// 200, or the status of a session that was refused.
    pub status: u16,
    /// For the client of a new session.
    pub id: Option<PollId>,
    /// Encoded, with their line ends.
    pub frames: Vec<Rc<Frame>>,
    /// Told whether the client's socket has taken the whole answer; `None` when nobody has to know.
    pub session: Option<SessionRef>,
}

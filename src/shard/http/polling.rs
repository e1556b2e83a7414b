//! Requests of polling clients: they are read here, wait for their answer in the session table (`sessions::polling`), and
//! are answered here. Then the connection goes on as before.

use std::net::IpAddr;
use std::rc::Rc;

use crate::endpoints::Response;
use crate::endpoints::polling::{self, POLL_ID, PollRequest as Asked};
use crate::net::Socket;
use crate::protocol::poll_id::PollId;
use crate::session::Admission;
use crate::shard::Shard;
use crate::shard::http::client::{Client, Next};
use crate::shard::http::connection;
use crate::shard::http::upgrade::admit;
use crate::shard::http::writing::{date, encode_answer_head};
use crate::shard::message::ShardMessage;
use crate::shard::outbox::frame::Frame;
use crate::shard::polls::{NewPolling, PassedPoll, Poll, PollAnswer, PollContent, PollRest};
use crate::shard::sessions::SESSION_ENTRY_BYTES;
use crate::wire::http_request::RequestHead;

/// Messages of an answer that are written together with what comes before them, up to this size.
const GATHERED_BYTES: usize = 64 << 10;

/// A whole request for the session table.
pub struct AcceptedPoll {
    head: RequestHead,
    /// `None`: a new session.
    id: Option<PollId>,
    lines: Vec<u8>,
}

impl Client {
    /// Reads a request. One that is refused is answered at once; the others are returned for [`Client::hand_over_poll`],
    /// which consumes the client.
    pub(super) async fn poll(&mut self, head: RequestHead) -> Next {
        let Some(bytes_max) = self
            .shard
            .config
            .poll
            .as_ref()
            .map(|poll| poll.request_bytes_max)
        else {
            return self.answer(&head, Response::not_found()).await;
        };
        let rules = Rc::clone(&self.rules);
        let origin = head.header("origin");
        let headers = polling::headers(origin, &rules.poll);
        let poll_id = head.filled(POLL_ID);
        let id = match polling::check(head.method(), poll_id, origin, &rules.poll) {
            Asked::Refused(response) => return self.answer(&head, response).await,
            Asked::Poll(id) if id.shard < self.shard.mesh.shards() => Some(id),
            Asked::Poll(_) | Asked::Unknown => {
                self.shard.counters().long_poll_stale_requests_total.add(1);
                let response = self.shard.expired().with_headers(headers);
                return self.answer(&head, response).await;
            }
            Asked::Open => None,
        };
        if !self.say_continue(&head).await {
            return Next::End;
        }
        match self.read_body(&head, bytes_max).await {
            Ok(lines) => Next::Poll(Box::new(AcceptedPoll {
                head,
                id,
                lines: lines.into_bytes(),
            })),
            Err(refusal) => self.write(&head, refusal.with_headers(headers)).await,
        }
    }

    /// Moves the socket into the session table, here or on the shard of the session.
    pub(super) async fn hand_over_poll(mut self, accepted: AcceptedPoll) {
        let AcceptedPoll { head, id, lines } = accepted;
        if id.is_none() && !self.shard.budget.admits(SESSION_ENTRY_BYTES) {
            self.shard.counters().upgrade_refused_total.add(1);
            let headers = polling::headers(head.header("origin"), &self.rules.poll);
            let response = Response::text(503, "no memory for more clients").with_headers(headers);
            // The client may come again on another connection.
            self.write(&head, response.closing()).await;
            return;
        }
        let shard = Rc::clone(&self.shard);
        let peer = self.peer;
        let keep_alive = self.keeps_alive(&head);
        let Ok(released) = self.socket.release() else {
            return;
        };
        let mut unread = self.input;
        unread.extend_from_slice(&released.unread);
        let origin = head.header("origin").filter(|_| shard.answers_by_origin());
        let has_rest = origin.is_some() || !unread.is_empty();
        let poll = Poll {
            socket: released.stream,
            tls: released.tls,
            permit: Some(self.permit),
            keep_alive,
            version_minor: head.version_minor(),
            rest: has_rest.then(|| {
                Box::new(PollRest {
                    origin: origin.map(Into::into),
                    unread,
                })
            }),
        };
        match id {
            None => open(&shard, &head, peer, poll, lines),
            Some(id) if id.shard == shard.id => {
                let passed = PassedPoll { id, poll, lines };
                shard.turn(|sessions| sessions.poll(passed));
            }
            Some(id) => {
                let message = ShardMessage::Poll(Box::new(PassedPoll { id, poll, lines }));
                shard.publisher.tell(id.shard, message);
            }
        }
    }
}

/// Opens a session, which answers when its client is authenticated and its commands are done.
fn open(shard: &Rc<Shard>, head: &RequestHead, peer: IpAddr, poll: Poll, lines: Vec<u8>) {
    let admission = Admission {
        // The server sends no pings to it. Its own requests show that it is alive.
        ping_interval_secs: None,
        ping_precision: None,
        ..admit(shard, head, None, peer)
    };
    let new = NewPolling {
        admission,
        poll,
        lines,
    };
    shard.turn(|sessions| sessions.open_polling(new));
}

/// Starts to write an answer. The connection goes on after it.
pub fn answer(shard: &Rc<Shard>, answer: PollAnswer) {
    let PollAnswer { poll, content } = answer;
    // Only the main listener takes polls, and what it accepts has a permit.
    let (Some(rules), Some(permit)) = (shard.main_rules.get(), poll.permit) else {
        return;
    };
    // A client that has reset its connection has no address any more. It is only for the log.
    let peer = poll.socket.peer_addr();
    let peer = peer.map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip());
    let socket = Socket::readopt(poll.socket, poll.tls);
    let request = AnsweredRequest {
        keep_alive: poll.keep_alive,
        version_minor: poll.version_minor,
        rest: poll.rest,
    };
    let client = Client::new(Rc::clone(shard), Rc::clone(rules), socket, peer, permit);
    monoio::spawn(connection::go_on(client, request, content));
}

/// What the answer to a poll needs of its request.
pub struct AnsweredRequest {
    keep_alive: bool,
    version_minor: u8,
    rest: Option<Box<PollRest>>,
}

impl Client {
    /// Writes an answer, and tells the session whether the socket has taken all of it.
    pub(super) async fn answer_poll(
        &mut self,
        request: AnsweredRequest,
        content: PollContent,
    ) -> Next {
        self.time.begin(self.shard.begin_request());
        let rest = request.rest.map(|rest| *rest).unwrap_or_default();
        self.input = rest.unread;
        let headers = polling::headers(rest.origin.as_deref(), &self.rules.poll);
        let keep = request.keep_alive && !self.shard.shutdown.closes_connections();
        let encode_head = |response: &Response, body_bytes| {
            encode_answer_head(request.version_minor, response, body_bytes, keep, &date())
        };
        let messages = match content {
            PollContent::Messages(messages) => messages,
            PollContent::Expired => {
                let response = self.shard.expired().with_headers(headers);
                let mut out = encode_head(&response, response.body.len());
                out.extend_from_slice(&response.body);
                return self.send(out, keep).await;
            }
        };
        let body_bytes = messages.frames.iter().map(|frame| frame.len()).sum();
        let id = messages.id.map(|id| id.encode());
        let head = polling::messages(messages.status, id, body_bytes).with_headers(headers);
        let out = encode_head(&head, body_bytes);
        let written = self.write_frames(out, &messages.frames).await;
        if let Some(session) = messages.session {
            self.shard
                .turn(|sessions| sessions.on_poll_answered(session, written));
        }
        match written {
            true => self.end_answer(keep).await,
            false => Next::End,
        }
    }

    /// Writes `out` and then the frames, few of them with each write. Returns false when the client did not take one of the
    /// writes in time.
    async fn write_frames(&mut self, mut out: Vec<u8>, frames: &[Rc<Frame>]) -> bool {
        for piece in frames.iter().flat_map(|frame| frame.pieces()) {
            if out.len() + piece.len() <= GATHERED_BYTES {
                out.extend_from_slice(piece);
                continue;
            }
            for part in [&out[..]].into_iter().chain(piece.chunks(GATHERED_BYTES)) {
                if !matches!(self.write_in_time(part).await, Some(Ok(()))) {
                    return false;
                }
            }
            out.clear();
        }
        matches!(self.write_in_time(&out).await, Some(Ok(())))
    }
}

impl Shard {
    /// True when an answer depends on the origin of the browser that asks.
    fn answers_by_origin(&self) -> bool {
        !self.config.server.allowed_origins.is_empty()
    }

    /// The answer to a poll of a session that has ended.
    fn expired(&self) -> Response {
        polling::expired(self.config.broker.keeps_sessions())
    }
}

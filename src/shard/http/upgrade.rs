//! From a WebSocket request to a session: the handshake, the 101, and the move into the session table.

use std::net::IpAddr;

use crate::endpoints::Response;
use crate::os::random;
use crate::protocol::sid::{encode_sid, encode_sid_of_shard};
use crate::session::Admission;
use crate::shard::Shard;
use crate::shard::http::client::{AcceptedUpgrade, Client, Next, SessionKind};
use crate::shard::http::refusals;
use crate::shard::http::writing::date;
use crate::shard::sessions::{NewConnection, SESSION_ENTRY_BYTES, Transport};
use crate::wire::handshake::{self, Subprotocol};
use crate::wire::http_request::RequestHead;
use crate::wire::origins::AllowedOrigins;

impl Client {
    /// Answers a refusal. An accepted request is returned for [`Client::hand_over`], which consumes the client.
    pub(super) async fn upgrade(&mut self, head: RequestHead, kind: SessionKind) -> Next {
        let upgrade = match kind {
            SessionKind::Client => {
                let compression = self.shard.config.websocket.compression;
                handshake::upgrade(&head, &self.rules.origins, compression)
            }
            // `console::decide` has checked the origin, and snapshots are too small to compress.
            SessionKind::Console => handshake::upgrade(&head, &AllowedOrigins::default(), false),
        };
        match upgrade {
            Ok(_) if !self.shard.budget.admits(SESSION_ENTRY_BYTES) => {
                self.shard.counters().upgrade_refused_total.add(1);
                let response = Response::text(503, "no memory for more clients");
                self.answer(&head, response).await
            }
            Ok(upgrade) => Next::Upgrade(Box::new(AcceptedUpgrade {
                head,
                upgrade,
                kind,
            })),
            Err(error) => {
                refusals::upgrade(&self.shard, &head, self.peer, error);
                let keep = self.skip_arrived_body(&head) && self.keeps_alive(&head);
                let mut out = Vec::new();
                if head.method() == "HEAD" {
                    handshake::encode_refusal_head(error, &date(), keep, &mut out);
                } else {
                    handshake::encode_refusal(error, &date(), keep, &mut out);
                }
                self.send(out, keep).await
            }
        }
    }

    /// Sends the 101 and moves the socket into the session table.
    pub(super) async fn hand_over(mut self, accepted: AcceptedUpgrade) {
        let AcceptedUpgrade {
            head,
            upgrade,
            kind,
        } = accepted;
        let mut out = Vec::with_capacity(256);
        handshake::encode_switching_protocols(&upgrade, &mut out);
        if !matches!(self.write_in_time(&out).await, Some(Ok(()))) {
            return;
        }
        self.shard.counters().upgrades_total.add(1);
        if upgrade.subprotocol.is_none() {
            refusals::subprotocol(&self.shard, &head, self.peer);
        }
        let Ok(released) = self.socket.release() else {
            return;
        };
        let mut early_input = self.input;
        early_input.extend_from_slice(&released.unread);
        let admission = admit(&self.shard, &head, upgrade.token.as_deref(), self.peer);
        let new = NewConnection {
            socket: Some(released.stream),
            tls: released.tls,
            admission,
            transport: Transport::WebSocket {
                extended: upgrade.subprotocol == Some(Subprotocol::V1ExtJson),
                deflate: upgrade.deflate.is_some(),
            },
            early_input,
            permit: Some(self.permit),
        };
        self.shard.turn(|sessions| match kind {
            SessionKind::Client => sessions.open(new),
            SessionKind::Console => sessions.open_console(new),
        });
    }
}

/// What the request of a client says about it. What was ignored in it is logged.
pub(super) fn admit(
    shard: &Shard,
    head: &RequestHead,
    token: Option<&str>,
    peer: IpAddr,
) -> Admission {
    let admission = Admission::new(head, token, peer, &shard.config, || new_sid(shard));
    for flaw in &admission.flaws {
        refusals::flaw(shard, &admission.sid, peer, flaw);
    }
    admission
}

/// A random session id. When sessions can come back, it names the shard that knows this one.
pub(super) fn new_sid(shard: &Shard) -> String {
    match shard.config.broker.keeps_sessions() {
        true => encode_sid_of_shard(random::bytes(), shard.id),
        false => encode_sid(random::bytes()),
    }
}

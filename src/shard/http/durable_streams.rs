//! Requests for durable streams, up to the session table, which answers them.

use std::rc::Rc;

use crate::endpoints::Response;
use crate::endpoints::durable_streams::{self, ReadMode, ReadVerdict};
use crate::session::Admission;
use crate::shard::http::client::{AcceptedReading, Client, Next};
use crate::shard::http::upgrade::admit;
use crate::shard::sessions::{NewConnection, ReadRequest, SESSION_ENTRY_BYTES, Transport};
use crate::wire::http_request::RequestHead;

impl Client {
    /// Answers a refusal. A client that may read its stream is returned for [`Client::hand_over_reading`].
    pub(super) async fn read_stream(&mut self, head: RequestHead, stream: Option<String>) -> Next {
        let rules = Rc::clone(&self.rules);
        let Some(policy) = &rules.durable_streams else {
            return self.answer(&head, Response::not_found()).await;
        };
        let counters = self.shard.counters();
        let reading = match durable_streams::check(&head, stream, policy) {
            ReadVerdict::Read(reading) => reading,
            ReadVerdict::Answer(answer) => {
                let is_unauthorized = answer.status == 401;
                counters
                    .http_unauthorized_total
                    .add(u64::from(is_unauthorized));
                return self.answer(&head, answer).await;
            }
        };
        if !self.shard.budget.admits(SESSION_ENTRY_BYTES) {
            counters.upgrade_refused_total.add(1);
            return self.answer(&head, Response::no_memory()).await;
        }
        counters.ds_requests_total.add(1);
        match reading.mode {
            ReadMode::LongPoll => counters.ds_poll_requests_total.add(1),
            ReadMode::Events => counters.ds_sse_requests_total.add(1),
            ReadMode::Head | ReadMode::CatchUp => {}
        }
        Next::Reading(Box::new(AcceptedReading { head, reading }))
    }

    /// Moves the socket into the session table, which answers the request.
    pub(super) async fn hand_over_reading(self, accepted: AcceptedReading) {
        let AcceptedReading { head, reading } = accepted;
        let Ok(released) = self.socket.release() else {
            return;
        };
        let admission = Admission {
            // These parameters are those of a WebSocket.
            earlier: None,
            ping_interval_secs: None,
            ping_precision: None,
            ..admit(&self.shard, &head, None, self.peer)
        };
        let chunked = head.version_minor() > 0;
        let new = NewConnection {
            socket: Some(released.stream),
            tls: released.tls,
            admission,
            transport: Transport::Reading(ReadRequest { reading, chunked }),
            early_input: Vec::new(),
            permit: Some(self.permit),
        };
        self.shard.turn(|sessions| sessions.open(new));
    }
}

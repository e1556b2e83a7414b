//! One client from its first byte to its upgrade, or through its ordinary requests.
//!
//! The task exists only while the client speaks HTTP. An upgrade, a poll or a request for events hands the socket to the
//! session table and ends the task; the answer to a poll begins another one.

use std::net::{IpAddr, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use crate::mesh::Permit;
use crate::net::Socket;
use crate::shard::Shard;
use crate::shard::http::client::{Client, Next};
use crate::shard::http::listener::ListenerRules;
use crate::shard::http::polling::AnsweredRequest;
use crate::shard::http::reading::{HEAD_TIMEOUT, HeadRefusal};
use crate::shard::polls::PollContent;

/// How long a kept connection may be idle between requests. The reference waits for ever, so a client that vanished would
/// hold its slot.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(180);

/// Serves one accepted connection.
pub async fn serve(
    shard: Rc<Shard>,
    rules: Rc<ListenerRules>,
    stream: TcpStream,
    peer: IpAddr,
    permit: Permit,
) {
    // The TLS configuration was tried at the start, so this does not fail.
    let Ok(socket) = Socket::adopt(stream, shard.tls.as_deref()) else {
        return;
    };
    let mut client = Client::new(shard, rules, socket, peer, permit);
    let mut wait = HEAD_TIMEOUT;
    loop {
        match client.next_request(wait).await {
            Next::Keep => {
                wait = KEEP_ALIVE_TIMEOUT;
                client.rest();
            }
            Next::End => return,
            next => return Box::pin(client.leave(next)).await,
        }
    }
}

/// Writes the answer to a poll and serves what comes after it on the connection.
pub async fn go_on(mut client: Client, request: AnsweredRequest, content: PollContent) {
    let mut next = Box::pin(client.answer_poll(request, content)).await;
    while let Next::Keep = next {
        client.rest();
        next = client.next_request(KEEP_ALIVE_TIMEOUT).await;
    }
    Box::pin(client.leave(next)).await;
}

impl Client {
    /// Notes that the connection is idle until the next request.
    fn rest(&mut self) {
        self.is_kept = self.input.is_empty();
        self.time.rest();
        self.held = None;
    }

    /// Ends the HTTP phase. Box this future: it is large, and a task that waits for a head must stay small.
    async fn leave(self, next: Next) {
        match next {
            Next::Upgrade(accepted) => self.hand_over(*accepted).await,
            Next::Events(accepted) => self.hand_over_events(*accepted).await,
            Next::Reading(accepted) => self.hand_over_reading(*accepted).await,
            Next::Poll(accepted) => self.hand_over_poll(*accepted).await,
            Next::Keep | Next::End => {}
        }
    }

    async fn next_request(&mut self, first_byte_timeout: Duration) -> Next {
        if !self.input.is_empty() {
            // Requests that arrived together are answered one after the other, with no read between them.
            self.time.let_others_run(&self.shard).await;
        }
        if std::mem::take(&mut self.publishes) {
            Box::pin(self.shard.mesh.caught_up()).await;
        }
        let head = match self.read_head(first_byte_timeout).await {
            Ok(Some(head)) => head,
            Ok(None) => return Next::End,
            Err(HeadRefusal::Bytes(error)) => return Box::pin(self.refuse_bytes(&error)).await,
            Err(HeadRefusal::NoMemory) => return Box::pin(self.refuse_head()).await,
        };
        // Boxed: this future is large, and a task that waits for a head must stay small.
        Box::pin(self.respond(head)).await
    }
}

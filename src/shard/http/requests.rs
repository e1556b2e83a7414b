//! Requests other than upgrades: where each path leads, and what is answered there.

use std::rc::Rc;

use crate::endpoints::broadcast::{
    self, BROADCAST_BODY_BYTES_MAX, BroadcastPolicy, BroadcastVerdict,
};
use crate::endpoints::{Response, api};
use crate::shard::broadcasts::{self, DECODED_HERE_BYTES_MAX, DECODING_COPIES_MAX};
use crate::shard::http::body::Body;
use crate::shard::http::client::{Client, Next, SessionKind};
use crate::shard::http::refusals::{self, Secured};
use crate::shard::http::routes::Route;
use crate::shard::notices::Notice;
use crate::shard::sampling::sample;
use crate::wire::http_request::RequestHead;

/// The header of a broadcast that may be sent again: with a broker it is delivered once.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

impl Client {
    pub(super) async fn respond(&mut self, head: RequestHead) -> Next {
        self.shard.counters().http_requests_total.add(1);
        let rules = Rc::clone(&self.rules);
        let response = match rules.routes.route(head.path()) {
            Route::WebSocket => return self.upgrade(head, SessionKind::Client).await,
            Route::Sse => return Box::pin(self.events(head)).await,
            Route::DurableStream { stream } => {
                return Box::pin(self.read_stream(head, stream)).await;
            }
            Route::Poll => return Box::pin(self.poll(head)).await,
            Route::Console(route) => return Box::pin(self.console(head, route)).await,
            Route::Broadcast => {
                let policy = &rules.broadcast;
                return self.publish(&head, policy, Secured::Broadcast).await;
            }
            Route::ApiPublish => return self.publish(&head, &rules.publish, Secured::Api).await,
            Route::ApiPresence { stream } => {
                Box::pin(self.presence(&head, stream.as_deref())).await
            }
            Route::Health => self.health(),
            Route::Metrics => self.metrics(),
            Route::Page(page) => page.response(),
            Route::NotFound => {
                refusals::not_found(&self.shard, &rules, &head, self.peer);
                Response::not_found()
            }
        };
        self.answer(&head, response).await
    }

    async fn presence(&self, head: &RequestHead, stream: Option<&str>) -> Response {
        let token = self.rules.api_token.as_deref();
        let authorization = head.header("authorization");
        match api::presence_stream(head.method(), authorization, token, stream) {
            Ok(stream) => match self.shard.publisher.members(stream).await {
                Some(Ok(info)) => api::members(&info),
                Some(Err(_)) => api::members_unknown(),
                None => api::no_presence(),
            },
            Err(refusal) => {
                self.note_refusal(head, &refusal, Secured::Api);
                refusal
            }
        }
    }

    fn health(&self) -> Response {
        let stopping = self.shard.shutdown.has_begun();
        if stopping && !self.shard.config.shutdown.healthy {
            Response::shutting_down()
        } else {
            Response::health()
        }
    }

    fn metrics(&self) -> Response {
        let shard = &self.shard;
        let rpc = shard.rpc.as_ref().map(|rpc| rpc.shared());
        sample(&shard.metrics, &shard.mesh, &shard.interest, rpc);
        Response::metrics(&shard.metrics, &shard.config.metrics.tags)
    }

    async fn publish(
        &mut self,
        head: &RequestHead,
        policy: &BroadcastPolicy,
        secured: Secured,
    ) -> Next {
        let origin = head.header("origin");
        let verdict = broadcast::check(head.method(), head.header("authorization"), origin, policy);
        if let BroadcastVerdict::Refuse(response) = verdict {
            self.note_refusal(head, &response, secured);
            return self.answer(head, response).await;
        }
        let Some(publication) = self.shard.shutdown.begin_publication() else {
            return self.drop_publication();
        };
        if !self.say_continue(head).await {
            return Next::End;
        }
        let published = match self.read_body(head, BROADCAST_BODY_BYTES_MAX).await {
            Ok(_) if publication.is_late() => return self.drop_publication(),
            Ok(body) => self.publish_body(body, head.filled(IDEMPOTENCY_KEY)).await,
            Err(refusal) => Err(refusal),
        };
        let response = match published {
            // The publication waited for a full inbox until sessions were being closed. Some did not get it, so the app must
            // send it again.
            Ok(()) if publication.is_late() => return self.drop_publication(),
            Ok(()) => broadcast::accepted(),
            Err(refusal) => refusal,
        };
        drop(publication);
        let response = response.with_headers(broadcast::cors_headers(origin, policy));
        self.write_with_turn(head, response).await
    }

    /// Puts a publication into the inboxes, or returns the answer that refuses it.
    async fn publish_body(&mut self, body: Body, key: Option<&str>) -> Result<(), Response> {
        let is_long = body.len() > DECODED_HERE_BYTES_MAX;
        if is_long && !self.has_memory(DECODING_COPIES_MAX * body.len()) {
            return Err(self.no_memory());
        }
        self.publishes = true;
        if !is_long {
            broadcasts::publish_body(&self.shard, &body.into_bytes(), key).await;
        } else if !broadcasts::publish_long_body(&self.shard, body, key).await {
            // No thread could be started to decode the body.
            return Err(self.no_memory());
        }
        Ok(())
    }

    /// The server is stopping and the publication would reach no session. The connection is reset without an answer, because
    /// the Ruby side sends again after a reset, but not after any answer. Source: contract/broadcast.md §3.
    fn drop_publication(&mut self) -> Next {
        self.shard.counters().publications_refused_total.add(1);
        if let Some(admitted) = self.shard.notices.admit(Notice::PublicationRefused) {
            tracing::warn!(
                context = "broadcast",
                shard = self.shard.id,
                peer = %self.peer,
                left_out = admitted.left_out(),
                "refused a broadcast while the server stops, its connection is reset: the app sends it again, to the next server"
            );
        }
        self.socket.reset_on_close();
        Next::End
    }

    fn note_refusal(&self, head: &RequestHead, response: &Response, secured: Secured) {
        if response.status == 401 {
            refusals::unauthorized(&self.shard, secured, head, self.peer);
        }
    }
}

//! Requests for server-sent events, up to the session table, which answers them.

use std::rc::Rc;

use crate::endpoints::response::Headers;
use crate::endpoints::sse::{self, SSE_BODY_BYTES_MAX, SseError, SseVerdict};
use crate::endpoints::{Response, broadcast};
use crate::protocol::event_stream::View;
use crate::session::Admission;
use crate::shard::http::client::{AcceptedEvents, Client, Next};
use crate::shard::http::refusals;
use crate::shard::http::upgrade::admit;
use crate::shard::sessions::{
    EventForm, EventRequest, NewConnection, SESSION_ENTRY_BYTES, Transport,
};
use crate::wire::http_request::RequestHead;

impl Client {
    /// Answers a refusal. An accepted request is returned for [`Client::hand_over_events`], which consumes the client.
    pub(super) async fn events(&mut self, head: RequestHead) -> Next {
        let rules = Rc::clone(&self.rules);
        let cors = rules.sse_cors.headers(head.header("origin"));
        let commands = match sse::check(&head) {
            Ok(SseVerdict::Subscribe(line)) => Ok(line),
            Ok(SseVerdict::ReadBody) if !self.say_continue(&head).await => return Next::End,
            Ok(SseVerdict::ReadBody) => match self.read_body(&head, SSE_BODY_BYTES_MAX).await {
                Ok(body) => {
                    let lines = body.into_bytes();
                    sse::check_lines(&lines).map(|()| lines)
                }
                Err(refusal) => return self.refuse_events_body(&head, refusal, cors).await,
            },
            Ok(SseVerdict::Refuse(status)) => {
                let response = Response::empty(status).with_headers(cors);
                return self.answer(&head, response).await;
            }
            Err(error) => Err(error),
        };
        match commands {
            Ok(_) if !self.shard.budget.admits(SESSION_ENTRY_BYTES) => {
                self.shard.counters().upgrade_refused_total.add(1);
                let response = Response::text(503, "no memory for more clients");
                self.answer(&head, response.with_headers(cors)).await
            }
            Ok(commands) => Next::Events(Box::new(AcceptedEvents {
                head,
                commands,
                headers: cors,
            })),
            Err(error) => self.refuse_events(&head, &error, cors).await,
        }
    }

    /// The body of a POST has been read by now; that of a GET has no meaning.
    async fn refuse_events(&mut self, head: &RequestHead, error: &SseError, cors: Headers) -> Next {
        refusals::events(&self.shard, self.peer, error);
        let response = sse::bad_request().with_headers(cors);
        match head.method() {
            "POST" => self.write(head, response).await,
            _ => self.answer(head, response).await,
        }
    }

    /// A body that is too long or cannot be read is a bad request, as in the reference.
    async fn refuse_events_body(
        &mut self,
        head: &RequestHead,
        refusal: Response,
        cors: Headers,
    ) -> Next {
        let is_bad =
            refusal == broadcast::body_too_large() || refusal == broadcast::unreadable_body();
        let response = match is_bad {
            true => sse::bad_request().closing(),
            false => refusal,
        };
        self.write(head, response.with_headers(cors)).await
    }

    /// Moves the socket into the session table, which answers the request.
    pub(super) async fn hand_over_events(self, accepted: AcceptedEvents) {
        let AcceptedEvents {
            head,
            commands,
            headers: cors,
        } = accepted;
        let Ok(released) = self.socket.release() else {
            return;
        };
        let admission = Admission {
            // These parameters are those of a WebSocket. Source: contract/http_transports.md §1.5.
            earlier: None,
            ping_interval_secs: None,
            ping_precision: None,
            ..admit(&self.shard, &head, None, self.peer)
        };
        let mut headers = cors;
        headers.extend(sse::headers());
        let form = EventForm {
            view: View {
                unwrap: head.method() == "GET",
                raw: sse::wants_raw(&head),
            },
            chunked: head.version_minor() > 0,
        };
        let new = NewConnection {
            socket: Some(released.stream),
            tls: released.tls,
            admission,
            transport: Transport::Events(EventRequest { form, headers }),
            early_input: commands,
            permit: Some(self.permit),
        };
        self.shard.turn(|sessions| sessions.open(new));
    }
}

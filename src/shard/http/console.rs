//! Requests to the console: `console` decides from the request head what to do, and this file does it.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::console::access::Guard;
use crate::console::requests::{self, DisconnectRequest};
use crate::console::search::{Query, SearchAnswer};
use crate::console::streams::{Proposed, StreamList, StreamQuery, StreamReport};
use crate::console::{
    self, BODY_BYTES_MAX, ConsoleRoute, Decision, LOGIN_BODY_BYTES_MAX, Operation, page,
};
use crate::endpoints::Response;
use crate::log::recent;
use crate::mesh::SessionRef;
use crate::protocol::publication::Publication;
use crate::shard::console::{LOGIN_PAUSE, ask_all, ask_one};
use crate::shard::http::client::{Client, Next, SessionKind};
use crate::shard::message::{ConsoleQuestion, PublishMessage};
use crate::shard::notices::Notice;
use crate::wire::http_request::RequestHead;
use crate::wire::query::query_param_last;

const BUSY: &str = "too many requests at once, try again in a moment";
const STOPPING: &str = "the server stops, nobody would get it";
const WRONG_WORD: &str = "That is neither the console's token nor the application secret.";

impl Client {
    /// Serves a request to a path of the console.
    pub(super) async fn console(&mut self, head: RequestHead, route: ConsoleRoute) -> Next {
        let rules = Rc::clone(&self.rules);
        let Some(guard) = &rules.console else {
            return self.answer(&head, Response::not_found()).await;
        };
        let tls = self.shard.tls.is_some();
        match console::decide(guard, route, &head, tls, unix_secs()) {
            Decision::Answer(response) => self.answer(&head, response).await,
            Decision::Records => {
                #[derive(Serialize)]
                struct Records {
                    records: Vec<recent::RecentRecord>,
                }
                let records = recent::records();
                self.answer(&head, page::json(200, &Records { records }))
                    .await
            }
            Decision::Upgrade if self.shard.sessions.borrow().console_is_full() => {
                self.shard.counters().console_refused_total.add(1);
                self.answer(&head, page::refusal(503, BUSY)).await
            }
            Decision::Upgrade => self.upgrade(head, SessionKind::Console).await,
            Decision::LogIn => self.log_in(&head, guard, tls).await,
            Decision::Operation(operation) => self.operate(&head, operation).await,
        }
    }

    async fn log_in(&mut self, head: &RequestHead, guard: &Guard, tls: bool) -> Next {
        let body = match self.console_body(head, LOGIN_BODY_BYTES_MAX).await {
            Ok(body) => body,
            Err(response) => return self.write(head, response).await,
        };
        let shard = Rc::clone(&self.shard);
        let Some(_under_way) = shard.console.begin_login() else {
            shard.counters().console_refused_total.add(1);
            let response = page::login(429, Some("Too many tries at once. Wait a moment."), true)
                .with_headers(vec![("Retry-After", Cow::Borrowed("2"))]);
            return self.write(head, response).await;
        };
        let form = String::from_utf8_lossy(&body);
        let word = query_param_last(&form, "token").unwrap_or_default();
        let response = match guard.log_in(head, word.trim(), tls, unix_secs()) {
            Some(cookie) => {
                if let Some(admitted) = shard.notices.admit(Notice::ConsoleLogin) {
                    tracing::info!(
                        context = "console",
                        peer = %self.peer.to_canonical(),
                        left_out = admitted.left_out(),
                        "somebody has logged in to the console"
                    );
                }
                page::see_other(console::PATH)
                    .with_headers(vec![("Set-Cookie", Cow::Owned(cookie))])
            }
            None => {
                shard.counters().console_logins_failed_total.add(1);
                if let Some(admitted) = shard.notices.admit(Notice::ConsoleLoginFailed) {
                    tracing::warn!(
                        context = "console",
                        peer = %self.peer.to_canonical(),
                        left_out = admitted.left_out(),
                        "a login to the console has failed"
                    );
                }
                shard.timeouts.sleep(LOGIN_PAUSE).await;
                page::login(403, Some(WRONG_WORD), guard.has_login())
            }
        };
        self.write(head, response).await
    }

    async fn operate(&mut self, head: &RequestHead, operation: Operation) -> Next {
        let body = match self.console_body(head, BODY_BYTES_MAX).await {
            Ok(body) => body,
            Err(response) => return self.write(head, response).await,
        };
        let shard = Rc::clone(&self.shard);
        let Some(_under_way) = shard.console.begin_request() else {
            shard.counters().console_refused_total.add(1);
            return self.write(head, page::refusal(429, BUSY)).await;
        };
        let response = match operation {
            Operation::Search => match requests::search(&body) {
                Ok(query) => self.search(&query).await,
                Err(error) => page::refusal(422, &error.to_string()),
            },
            Operation::Streams => match requests::streams(&body) {
                Ok(query) => self.streams(query).await,
                Err(error) => page::refusal(422, &error.to_string()),
            },
            Operation::Stream => match requests::stream(&body) {
                Ok(stream) => self.stream(&stream).await,
                Err(error) => page::refusal(422, &error.to_string()),
            },
            Operation::Disconnect => match requests::disconnect(&body) {
                Ok(request) => self.disconnect(request).await,
                Err(error) => page::refusal(422, &error.to_string()),
            },
            Operation::Publish => match requests::publication(&body) {
                Ok(publication) => self.publish_test(publication).await,
                Err(error) => page::refusal(422, &error.to_string()),
            },
        };
        self.write(head, response).await
    }

    async fn console_body(
        &mut self,
        head: &RequestHead,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Response> {
        if !self.say_continue(head).await {
            return Err(Response::empty(408).closing());
        }
        let body = self.read_body(head, bytes_max).await?;
        Ok(body.into_bytes())
    }

    async fn search(&mut self, query: &str) -> Response {
        let query = Arc::new(Query::new(query));
        let (found, complete) = ask_all(&self.shard, |reply| ConsoleQuestion::Search {
            query: Arc::clone(&query),
            reply,
        })
        .await;
        page::json(200, &SearchAnswer::merged(found, complete))
    }

    /// What comes first somewhere is counted everywhere.
    async fn streams(&mut self, query: StreamQuery) -> Response {
        let query = Arc::new(query);
        let (proposals, complete) = ask_all(&self.shard, |reply| ConsoleQuestion::Streams {
            query: Arc::clone(&query),
            reply,
        })
        .await;
        let proposed = Proposed::by_all(proposals);
        let names: Arc<[Box<str>]> = proposed.names.as_slice().into();
        let (figures, counted) = ask_all(&self.shard, |reply| ConsoleQuestion::Figures {
            names: Arc::clone(&names),
            reply,
        })
        .await;
        let list = StreamList::of(proposed, figures, query.order, complete && counted);
        page::json(200, &list)
    }

    async fn stream(&mut self, stream: &str) -> Response {
        let stream: Arc<str> = stream.into();
        let (parts, complete) = ask_all(&self.shard, |reply| ConsoleQuestion::Stream {
            stream: Arc::clone(&stream),
            reply,
        })
        .await;
        page::json(200, &StreamReport::merged(parts, complete))
    }

    async fn disconnect(&mut self, request: DisconnectRequest) -> Response {
        if request.shard >= self.shard.mesh.shards() {
            return page::refusal(404, "there is no such shard");
        }
        let session = SessionRef {
            shard: request.shard,
            slot: request.slot,
            generation: request.generation,
        };
        let ended = ask_one(&self.shard, request.shard, |reply| {
            ConsoleQuestion::Disconnect {
                session,
                sid: request.sid.as_str().into(),
                reconnect: request.reconnect,
                reply,
            }
        })
        .await;
        match ended {
            Some(true) => {
                self.shard.counters().console_actions_total.add(1);
                if let Some(admitted) = self.shard.notices.admit_often(Notice::ConsoleDisconnect) {
                    tracing::info!(
                        context = "console",
                        sid = request.sid,
                        shard = request.shard,
                        reconnect = request.reconnect,
                        peer = %self.peer.to_canonical(),
                        left_out = admitted.left_out(),
                        "the console has disconnected a session"
                    );
                }
                page::json(200, &Done { listeners: None })
            }
            Some(false) => page::refusal(404, "the session has ended by itself"),
            None => page::refusal(503, "the session's shard is too busy to answer"),
        }
    }

    /// Publishes as the app would, then asks all shards for the listeners. In an inbox that gets both the question comes
    /// after the publication.
    async fn publish_test(&mut self, publication: Publication) -> Response {
        let Some(guard) = self.shard.shutdown.begin_publication() else {
            return page::refusal(503, STOPPING);
        };
        let stream: Arc<str> = Arc::from(&*publication.stream);
        let counters = self.shard.counters();
        counters.publications_total.add(1);
        counters.console_actions_total.add(1);
        let message = PublishMessage::Deliver(Arc::new([publication]));
        let published = self.shard.publisher.publish(message);
        published.into_inboxes().await;
        if guard.is_late() {
            return page::refusal(503, STOPPING);
        }
        drop(guard);
        let (listeners, complete) = ask_all(&self.shard, |reply| ConsoleQuestion::Listeners {
            stream: Arc::clone(&stream),
            reply,
        })
        .await;
        let listeners: u64 = listeners.iter().sum();
        if let Some(admitted) = self.shard.notices.admit_often(Notice::ConsolePublication) {
            tracing::info!(
                context = "console",
                stream = &*stream,
                listeners,
                peer = %self.peer.to_canonical(),
                left_out = admitted.left_out(),
                "the console has published a test message"
            );
        }
        page::json(
            200,
            &Done {
                listeners: complete.then_some(listeners),
            },
        )
    }
}

/// The answer to an action that succeeded.
#[derive(Serialize)]
struct Done {
    /// Subscriptions that a test message went to, if this is known.
    listeners: Option<u64>,
}

/// A clock that shows a time before 1970 counts as 1970.
fn unix_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

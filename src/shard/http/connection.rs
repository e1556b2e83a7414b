//! One client from its first byte to its upgrade, or through its ordinary requests.
//!
//! The task exists only as long as the client speaks HTTP. An upgrade hands the socket to the session table and ends it.

use std::io;
use std::net::{IpAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use crate::endpoints::broadcast::{
    self, BROADCAST_BODY_BYTES_MAX, BroadcastPolicy, BroadcastVerdict,
};
use crate::endpoints::{Response, api};
use crate::mesh::{Charge, Permit};
use crate::net::Socket;
use crate::os::random;
use crate::protocol::sid::encode_sid;
use crate::session::Admission;
use crate::shard::http::body::Body;
use crate::shard::http::listener::ListenerRules;
use crate::shard::http::pace::Pace;
use crate::shard::http::reading::{HEAD_BUFFER_BYTES, HeadRefusal, Read};
use crate::shard::http::refusals::{self, Secured};
use crate::shard::http::routes::Route;
use crate::shard::notices::Notice;
use crate::shard::publishing::{DECODED_HERE_BYTES_MAX, DECODING_COPIES_MAX, Publications};
use crate::shard::sampling::sample;
use crate::shard::sessions::{NewConnection, SESSION_ENTRY_BYTES};
use crate::shard::{Shard, Stage, publishing};
use crate::wire::handshake::{self, Subprotocol, Upgrade};
use crate::wire::http_head::HttpError;
use crate::wire::http_request::RequestHead;
use crate::wire::http_response::{encode_malformed_request, encode_response};
use crate::wire::origins::AllowedOrigins;

/// Time for a whole request head, counted from the connection or from the head's first byte.
/// Source: contract/websocket.md §1.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a kept connection may rest between requests. The reference waits for ever; a lost peer would hold its slot.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(180);
/// Time to take a whole answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long, and for how many bytes, an answered client that still sends is listened to.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 << 20;
/// Sent when the client waits with its body for a word.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves one accepted connection.
pub async fn serve(
    shard: Rc<Shard>,
    rules: Rc<ListenerRules>,
    stream: TcpStream,
    peer: IpAddr,
    permit: Permit,
) {
    // The configuration of TLS was tried at the start: this does not fail.
    let Ok(socket) = Socket::adopt(stream, shard.tls.as_deref()) else {
        return;
    };
    let mut client = Client {
        shard,
        rules,
        socket,
        peer,
        permit,
        input: Vec::new(),
        held: None,
        pace: Pace::new(),
        is_kept: false,
        publishes: false,
    };
    let mut wait = HEAD_TIMEOUT;
    loop {
        match client.next_request(wait).await {
            Next::Keep => {
                wait = KEEP_ALIVE_TIMEOUT;
                client.is_kept = client.input.is_empty();
                client.pace.rest();
                client.held = None;
            }
            Next::Upgrade(accepted) => return Box::pin(client.hand_over(*accepted)).await,
            Next::End => return,
        }
    }
}

/// What follows a request.
pub enum Next {
    Keep,
    Upgrade(Box<AcceptedUpgrade>),
    End,
}

/// A request that becomes a session.
pub struct AcceptedUpgrade {
    head: RequestHead,
    upgrade: Upgrade,
    kind: SessionKind,
}

/// Whose session it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A client's of the app.
    Client,
    /// The console's, which has let it in.
    Console,
}

pub struct Client {
    pub(super) shard: Rc<Shard>,
    pub(super) rules: Rc<ListenerRules>,
    pub(super) socket: Socket,
    pub(super) peer: IpAddr,
    /// Its socket's right to exist.
    pub(super) permit: Permit,
    /// Bytes that were read and not used yet.
    pub(super) input: Vec<u8>,
    /// Memory of the request that is under way.
    pub(super) held: Option<Charge>,
    pub(super) pace: Pace,
    /// It rests between two requests.
    pub(super) is_kept: bool,
    /// It has published something.
    publishes: bool,
}

impl Client {
    async fn next_request(&mut self, first_byte_timeout: Duration) -> Next {
        if !self.input.is_empty() {
            // Requests that came together are answered without a wait between them.
            self.pace.let_others_run(&self.shard).await;
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
        // In a box of its own: a task that waits for a head is to be small.
        Box::pin(self.respond(head)).await
    }

    async fn respond(&mut self, head: RequestHead) -> Next {
        self.shard.counters().http_requests_total.add(1);
        let rules = Rc::clone(&self.rules);
        let response = match rules.routes.route(head.path()) {
            Route::WebSocket => return self.upgrade(head, SessionKind::Client).await,
            Route::Console(place) => return Box::pin(self.console(head, place)).await,
            Route::Broadcast => {
                let policy = &rules.broadcast;
                return self.publish(&head, policy, Secured::Broadcast).await;
            }
            Route::ApiPublish => return self.publish(&head, &rules.publish, Secured::Api).await,
            Route::ApiPresence { stream } => self.presence(&head, stream.as_deref()),
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

    fn presence(&self, head: &RequestHead, stream: Option<&str>) -> Response {
        let token = self.rules.api_token.as_deref();
        let response = api::presence(head.method(), head.header("authorization"), token, stream);
        self.note_refusal(head, &response, Secured::Api);
        response
    }

    fn health(&self) -> Response {
        let stopping = self.shard.stage.get() != Stage::Serving;
        if stopping && !self.shard.config.shutdown.healthy {
            Response::shutting_down()
        } else {
            Response::health()
        }
    }

    fn metrics(&self) -> Response {
        let shard = &self.shard;
        let rpc = shard.rpc.as_ref().map(|rpc| rpc.shared());
        sample(&shard.metrics, &shard.mesh, rpc);
        Response::metrics(&shard.metrics, &shard.config.metrics.tags)
    }

    // ---- answering -----------------------------------------------------------------------------------------------

    /// Answers a request whose body is not wanted. What of it has come is thrown away; if that is not all, the answer ends
    /// the connection: nobody waits for bytes that change nothing.
    pub(super) async fn answer(&mut self, head: &RequestHead, response: Response) -> Next {
        let response = if self.skip_arrived_body(head) {
            response
        } else {
            response.closing()
        };
        self.write(head, response).await
    }

    /// Writes the answer to a request whose body has been read.
    pub(super) async fn write(&mut self, head: &RequestHead, response: Response) -> Next {
        let keep = self.keeps_alive(head) && !response.close;
        let says_keep_alive = keep && head.version_minor() == 0;
        let out = encode(&response, keep, says_keep_alive, head.method() == "HEAD");
        self.send(out, keep).await
    }

    /// While sessions are being closed the next request belongs to another server.
    fn keeps_alive(&self, head: &RequestHead) -> bool {
        head.keep_alive()
            && self.shard.stage.get() != Stage::Draining
            && !self.shard.publications.are_closed()
    }

    /// A client that does not take its answer in time loses the connection.
    async fn send(&mut self, bytes: Vec<u8>, keep: bool) -> Next {
        match self.write_in_time(&bytes).await {
            Some(Ok(())) if keep => Next::Keep,
            Some(Ok(())) => self.linger().await,
            _ => Next::End,
        }
    }

    async fn write_in_time(&mut self, bytes: &[u8]) -> Option<io::Result<()>> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let write = pin!(self.socket.write_all(bytes));
        self.pace.wait(&self.shard, None, deadline, write).await
    }

    /// Waits a moment for the client to close. Closing while it still sends would reset the connection, and the reset can
    /// overtake the answer that says why.
    async fn linger(&mut self) -> Next {
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let finished = {
            let finish = pin!(self.socket.finish_writing());
            self.pace.wait(&self.shard, None, deadline, finish).await
        };
        if finished.is_none() {
            return Next::End;
        }
        let mut discarded = self.input.len();
        while discarded < LINGER_BYTES_MAX {
            self.input.clear();
            if !matches!(
                self.read_some(deadline, HEAD_BUFFER_BYTES).await,
                Read::Bytes
            ) {
                break;
            }
            discarded += self.input.len();
        }
        Next::End
    }

    async fn refuse_bytes(&mut self, error: &HttpError) -> Next {
        self.shard.counters().http_bad_requests_total.add(1);
        refusals::malformed(&self.shard, self.peer, error);
        let mut out = Vec::new();
        encode_malformed_request(error, &mut out);
        self.send(out, false).await
    }

    /// A head that there is no memory for. Nobody knows its method.
    async fn refuse_head(&mut self) -> Next {
        self.input = Vec::new();
        let response = self.no_memory();
        let out = encode(&response, false, false, false);
        self.send(out, false).await
    }

    // ---- publishing ----------------------------------------------------------------------------------------------

    async fn publish(
        &mut self,
        head: &RequestHead,
        policy: &BroadcastPolicy,
        secured: Secured,
    ) -> Next {
        let origin = head.header("origin");
        match broadcast::check(head.method(), head.header("authorization"), origin, policy) {
            BroadcastVerdict::Refuse(response) => {
                self.note_refusal(head, &response, secured);
                self.answer(head, response).await
            }
            BroadcastVerdict::ReadBody => {
                let Some(publication) = Publications::begin(&self.shard) else {
                    return self.drop_publication();
                };
                if !self.say_continue(head).await {
                    return Next::End;
                }
                let response = match self.read_body(head, BROADCAST_BODY_BYTES_MAX).await {
                    Ok(_) if publication.is_late() => return self.drop_publication(),
                    Ok(body) => {
                        let published = self.publish_body(body).await;
                        if published && publication.is_late() {
                            // A full inbox has kept it until some were told: the app had better send it again.
                            return self.drop_publication();
                        }
                        match published {
                            true => broadcast::accepted(),
                            false => self.no_memory(),
                        }
                    }
                    Err(response) => response,
                };
                drop(publication);
                let response = response.with_headers(broadcast::cors_headers(origin, policy));
                self.write(head, response).await
            }
        }
    }

    /// False: there is no memory, or no thread, to decode a body of this length.
    async fn publish_body(&mut self, body: Body) -> bool {
        let is_long = body.len() > DECODED_HERE_BYTES_MAX;
        if is_long && !self.has_memory(DECODING_COPIES_MAX * body.len()) {
            return false;
        }
        self.publishes = true;
        match is_long {
            true => publishing::publish_long_body(&self.shard, body).await,
            false => {
                publishing::publish_body(&self.shard, &body.into_bytes()).await;
                true
            }
        }
    }

    /// Tells a client that waits for it to send its body. False: it has not taken the word.
    pub(super) async fn say_continue(&mut self, head: &RequestHead) -> bool {
        !head.expects_continue() || matches!(self.write_in_time(CONTINUE).await, Some(Ok(())))
    }

    /// The server stops and the publication would reach nobody. Its connection is reset without an answer: the Ruby side
    /// sends again after a reset, and not after an answer, whatever it says. Source: contract/broadcast.md §3.
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

    // ---- upgrading -----------------------------------------------------------------------------------------------

    pub(super) async fn upgrade(&mut self, head: RequestHead, kind: SessionKind) -> Next {
        let upgrade = match kind {
            SessionKind::Client => {
                let compression = self.shard.config.websocket.compression;
                handshake::upgrade(&head, &self.rules.origins, compression)
            }
            // Whose page may connect has been decided, and snapshots are small.
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

    /// Sends the 101 and gives the socket to the session table.
    async fn hand_over(mut self, accepted: AcceptedUpgrade) {
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
        let admission = Admission::new(
            &head,
            upgrade.token.as_deref(),
            self.peer,
            &self.shard.config,
        );
        let sid = admission.sid.unwrap_or_else(|| encode_sid(random::bytes()));
        for flaw in &admission.flaws {
            refusals::flaw(&self.shard, &sid, self.peer, flaw);
        }
        let new = NewConnection {
            socket: released.stream,
            tls: released.tls,
            sid,
            env: admission.env,
            credentials: admission.credentials,
            extended: upgrade.subprotocol == Some(Subprotocol::V1ExtJson),
            deflate: upgrade.deflate.is_some(),
            ping_interval_secs: admission.ping_interval_secs,
            ping_precision: admission.ping_precision,
            early_input,
            permit: Some(self.permit),
        };
        self.shard.turn(|sessions| match kind {
            SessionKind::Client => sessions.open(new),
            SessionKind::Console => sessions.open_console(new),
        });
    }
}

fn encode(response: &Response, keep: bool, says_keep_alive: bool, head_only: bool) -> Vec<u8> {
    let mut headers: Vec<(&str, &str)> = response
        .headers
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    if says_keep_alive {
        headers.push(("Connection", "keep-alive"));
    }
    let mut out = Vec::with_capacity(256 + response.body.len());
    encode_response(
        response.status,
        &headers,
        &response.body,
        &date(),
        keep,
        head_only,
        &mut out,
    );
    out
}

fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

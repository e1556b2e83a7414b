//! One client from its first byte to its upgrade, or through its ordinary requests.
//!
//! The task exists only as long as the client speaks HTTP. An upgrade hands the socket to the session table and ends it.

mod console;

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use crate::auth::jwt;
use crate::config::PingPrecision;
use crate::console::{Place, place};
use crate::demo;
use crate::endpoints::broadcast::{
    self, BROADCAST_BODY_BYTES_MAX, BroadcastPolicy, BroadcastVerdict,
};
use crate::endpoints::routes::Endpoint;
use crate::endpoints::{Response, api};
use crate::mesh::Permit;
use crate::net::Socket;
use crate::protocol::request_env::{filter_cookies, request_url};
use crate::protocol::rpc::encode_env_prefix;
use crate::protocol::sid::random_sid;
use crate::session::Credentials;
use crate::shard::front::Front;
use crate::shard::refusals::{self, Secured};
use crate::shard::sampling::sample;
use crate::shard::sessions::{NewConnection, SESSION_ENTRY_BYTES};
use crate::shard::{RequestGuard, Shard, Stage, publishing};
use crate::wire::handshake::{self, Subprotocol, Upgrade};
use crate::wire::http_body::{BodyFraming, ChunkedDecoder};
use crate::wire::http_head::{HeadLimits, HeadScanner, HttpError};
use crate::wire::http_request::RequestHead;
use crate::wire::http_response::{encode_malformed_request, encode_response};
use crate::wire::origins::AllowedOrigins;
use crate::wire::query::query_param_last;

/// Time for a whole request head, counted from the connection or from the head's first byte.
/// Source: contract/websocket.md §1.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a kept connection may rest between requests. The reference waits for ever; a lost peer would hold its slot.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(180);
/// Time in which some more of a request body must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Room made for each read of a head.
const HEAD_BUFFER_BYTES: usize = 2048;
/// Room made for each read of a body.
const BODY_READ_BYTES: usize = 64 << 10;
/// Body bytes that are read and thrown away so that a refused request does not end the connection.
const SKIPPED_BODY_BYTES_MAX: usize = 64 << 10;
/// How long, and for how many bytes, an answered client that still sends is listened to.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 4 << 20;
/// Sent when the client waits with its body for a word.
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Serves one accepted connection.
pub async fn serve(
    shard: Rc<Shard>,
    front: Rc<Front>,
    stream: TcpStream,
    peer: IpAddr,
    permit: Option<Permit>,
) {
    // The configuration of TLS was tried at the start: this does not fail.
    let Ok(socket) = Socket::adopt(stream, shard.tls.as_deref()) else {
        return;
    };
    let mut client = Client {
        shard,
        front,
        socket,
        peer,
        input: Vec::new(),
        under_way: None,
    };
    let mut wait = HEAD_TIMEOUT;
    loop {
        match client.next_request(wait).await {
            Next::Keep => {
                wait = KEEP_ALIVE_TIMEOUT;
                client.under_way = None;
            }
            Next::Upgrade(head, upgrade) => return client.hand_over(&head, &upgrade, permit).await,
            Next::End => return,
        }
    }
}

/// What follows a request.
enum Next {
    Keep,
    Upgrade(Box<RequestHead>, Box<Upgrade>),
    End,
}

struct Client {
    shard: Rc<Shard>,
    front: Rc<Front>,
    socket: Socket,
    peer: IpAddr,
    /// Bytes that were read and not used yet.
    input: Vec<u8>,
    /// From the first byte of a request until it is answered, or the session is in the table: the drain waits for it.
    under_way: Option<RequestGuard>,
}

impl Client {
    async fn next_request(&mut self, first_byte_timeout: Duration) -> Next {
        let head = match self.read_head(first_byte_timeout).await {
            Ok(Some(head)) => head,
            Ok(None) => return Next::End,
            Err(error) => return Box::pin(self.refuse_bytes(&error)).await,
        };
        // In a box of its own: a task that waits for a head is to be small.
        Box::pin(self.respond(head)).await
    }

    async fn respond(&mut self, head: RequestHead) -> Next {
        self.shard.counters().http_requests_total.add(1);
        if self.front.features.main
            && self.shard.config.demo
            && let Some((content_type, body)) = demo::page(head.path())
        {
            let response = Response {
                headers: vec![("Content-Type", Cow::Borrowed(content_type))],
                body: Cow::Borrowed(body),
                ..Response::empty(200)
            };
            return self.answer(&head, response).await;
        }
        if let Some(place) = self.console_place(&head) {
            return Box::pin(self.console(head, place)).await;
        }
        match self.front.routes.route(head.path()) {
            Endpoint::WebSocket => {
                let front = Rc::clone(&self.front);
                let compression = self.shard.config.websocket.compression;
                self.upgrade(head, &front.origins, compression).await
            }
            Endpoint::Health => {
                let stopping = self.shard.stage.get() != Stage::Serving;
                let response = if stopping && !self.shard.config.shutdown.healthy {
                    Response::shutting_down()
                } else {
                    Response::health()
                };
                self.answer(&head, response).await
            }
            Endpoint::Metrics => {
                let shard = &self.shard;
                let rpc = shard.rpc.as_ref().map(|rpc| rpc.shared());
                sample(&shard.metrics, &shard.mesh, rpc);
                let response = Response::metrics(&shard.metrics, &shard.config.metrics.tags);
                self.answer(&head, response).await
            }
            Endpoint::Broadcast => {
                let front = Rc::clone(&self.front);
                self.publish(&head, &front.broadcast, Secured::Broadcast)
                    .await
            }
            Endpoint::ApiPublish => {
                let front = Rc::clone(&self.front);
                self.publish(&head, &front.publish, Secured::Api).await
            }
            Endpoint::ApiPresence { stream } => {
                let token = self.front.api_token.as_deref();
                let authorization = head.header("authorization");
                let response =
                    api::presence(head.method(), authorization, token, stream.as_deref());
                self.note_refusal(&head, &response, Secured::Api);
                self.answer(&head, response).await
            }
            Endpoint::NotFound => {
                refusals::not_found(&self.shard, &self.front, &head, self.peer);
                self.answer(&head, Response::not_found()).await
            }
        }
    }

    /// Before any other route: a pattern such as `/*` must not take the console's requests to the app.
    fn console_place(&self, head: &RequestHead) -> Option<Place> {
        self.front.console.as_ref()?;
        place(head.path())
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    /// The next head; `None` when the client has closed or was too slow (nothing is sent then).
    async fn read_head(
        &mut self,
        first_byte_timeout: Duration,
    ) -> Result<Option<RequestHead>, HttpError> {
        let limits = HeadLimits::default();
        let mut scanner = HeadScanner::default();
        if self.input.is_empty() {
            // Who rests between requests holds no buffer.
            self.input = Vec::new();
            if !self.read_more(first_byte_timeout).await {
                return Ok(None);
            }
        }
        self.under_way = Some(self.shard.begin_request());
        let started = Instant::now();
        while scanner.find_end(&self.input, &limits)?.is_none() {
            let left = HEAD_TIMEOUT.saturating_sub(started.elapsed());
            if !self.read_more(left).await {
                return Ok(None);
            }
        }
        let Some((head, consumed)) = RequestHead::decode(&self.input, &limits)? else {
            return Err(HttpError::Malformed("the head ends too early"));
        };
        self.input.drain(..consumed);
        Ok(Some(head))
    }

    /// Appends what arrives within `timeout`. False: closed, broken or too slow; the connection is over.
    async fn read_more(&mut self, timeout: Duration) -> bool {
        let room = self.input.len().clamp(HEAD_BUFFER_BYTES, BODY_READ_BYTES);
        let read = pin!(self.socket.read(&mut self.input, room));
        match self.shard.timeouts.within(timeout, read).await {
            Some(Ok(bytes)) => bytes > 0,
            Some(Err(error)) => {
                if error.kind() == io::ErrorKind::InvalidData {
                    self.shard.counters().tls_errors_total.add(1);
                    tracing::debug!(context = "http", shard = self.shard.id, peer = %self.peer, %error, "closing after a TLS error");
                }
                false
            }
            None => {
                self.shard.counters().http_timeouts_total.add(1);
                false
            }
        }
    }

    /// The whole body, or the answer that says why not.
    async fn read_body(
        &mut self,
        head: &RequestHead,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Response> {
        match head.body_framing() {
            Err(_) => Err(broadcast::unreadable_body()),
            Ok(BodyFraming::None) => Ok(Vec::new()),
            Ok(BodyFraming::Length(bytes)) if bytes > bytes_max as u64 => {
                Err(broadcast::body_too_large())
            }
            Ok(BodyFraming::Length(bytes)) => self.read_sized_body(bytes as usize).await,
            Ok(BodyFraming::Chunked) => self.read_chunked_body(bytes_max).await,
        }
    }

    async fn read_sized_body(&mut self, bytes: usize) -> Result<Vec<u8>, Response> {
        while self.input.len() < bytes {
            if !self.read_more(BODY_TIMEOUT).await {
                return Err(broadcast::unreadable_body());
            }
        }
        let rest = self.input.split_off(bytes);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    async fn read_chunked_body(&mut self, bytes_max: usize) -> Result<Vec<u8>, Response> {
        let mut decoder = ChunkedDecoder::default();
        let mut body = Vec::new();
        loop {
            let (consumed, done) = match decoder.decode(&self.input, &mut body, bytes_max) {
                Ok(progress) => progress,
                Err(HttpError::BodyTooLarge { .. }) => return Err(broadcast::body_too_large()),
                Err(_) => return Err(broadcast::unreadable_body()),
            };
            self.input.drain(..consumed);
            if done {
                return Ok(body);
            }
            if !self.read_more(BODY_TIMEOUT).await {
                return Err(broadcast::unreadable_body());
            }
        }
    }

    // ---- answering -----------------------------------------------------------------------------------------------

    /// Answers a request whose body has not been read; a small body is skipped, a larger one ends the connection.
    async fn answer(&mut self, head: &RequestHead, response: Response) -> Next {
        let waits = head.expects_continue();
        let skipped = !waits && self.read_body(head, SKIPPED_BODY_BYTES_MAX).await.is_ok();
        self.write(
            head,
            if skipped {
                response
            } else {
                response.closing()
            },
        )
        .await
    }

    /// Writes the answer to a request whose body has been read.
    async fn write(&mut self, head: &RequestHead, response: Response) -> Next {
        let keep = self.keeps_alive(head) && !response.close;
        let mut headers: Vec<(&str, &str)> = response
            .headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        if keep && head.version_minor() == 0 {
            headers.push(("Connection", "keep-alive"));
        }
        let mut out = Vec::with_capacity(256 + response.body.len());
        let head_only = head.method() == "HEAD";
        encode_response(
            response.status,
            &headers,
            &response.body,
            &date(),
            keep,
            head_only,
            &mut out,
        );
        self.send(out, keep).await
    }

    /// While sessions are being closed the next request belongs to another server.
    fn keeps_alive(&self, head: &RequestHead) -> bool {
        head.keep_alive() && self.shard.stage.get() != Stage::Draining
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
        let write = pin!(self.socket.write_all(bytes));
        self.shard.timeouts.within(BODY_TIMEOUT, write).await
    }

    /// Waits a moment for the client to close. Closing while it still sends would reset the connection, and the reset can
    /// overtake the answer that says why.
    async fn linger(&mut self) -> Next {
        let started = Instant::now();
        let finished = {
            let finish = pin!(self.socket.finish_writing());
            self.shard.timeouts.within(LINGER_TIMEOUT, finish).await
        };
        if finished.is_none() {
            return Next::End;
        }
        let mut discarded = self.input.len();
        while discarded < LINGER_BYTES_MAX {
            self.input.clear();
            let left = LINGER_TIMEOUT.saturating_sub(started.elapsed());
            if left.is_zero() || !self.read_more(left).await {
                break;
            }
            discarded += self.input.len();
        }
        Next::End
    }

    async fn refuse_bytes(&mut self, error: &HttpError) -> Next {
        self.shard.counters().http_bad_requests_total.add(1);
        tracing::debug!(context = "http", shard = self.shard.id, peer = %self.peer, %error, "refused a malformed request");
        let mut out = Vec::new();
        encode_malformed_request(error, &mut out);
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
                if head.expects_continue() && self.socket.write_all(CONTINUE).await.is_err() {
                    return Next::End;
                }
                let response = match self.read_body(head, BROADCAST_BODY_BYTES_MAX).await {
                    Ok(body) => {
                        publishing::publish_body(&self.shard, &body).await;
                        broadcast::accepted()
                    }
                    Err(response) => response,
                };
                let response = response.with_headers(broadcast::cors_headers(origin, policy));
                self.write(head, response).await
            }
        }
    }

    fn note_refusal(&self, head: &RequestHead, response: &Response, secured: Secured) {
        if response.status == 401 {
            refusals::unauthorized(&self.shard, secured, head, self.peer);
        }
    }

    // ---- upgrading -----------------------------------------------------------------------------------------------

    async fn upgrade(
        &mut self,
        head: RequestHead,
        origins: &AllowedOrigins,
        compression: bool,
    ) -> Next {
        match handshake::upgrade(&head, origins, compression) {
            Ok(_) if !self.shard.budget.has_room(SESSION_ENTRY_BYTES) => {
                self.shard.counters().upgrade_refused_total.add(1);
                let response = Response::text(503, "no memory for more clients");
                self.answer(&head, response).await
            }
            Ok(upgrade) => Next::Upgrade(Box::new(head), Box::new(upgrade)),
            Err(error) => {
                refusals::upgrade(&self.shard, &head, self.peer, error);
                let body_skipped = self.read_body(&head, SKIPPED_BODY_BYTES_MAX).await.is_ok();
                let mut out = Vec::new();
                if head.method() == "HEAD" {
                    handshake::encode_refusal_head(error, &date(), &mut out);
                } else {
                    handshake::encode_refusal(error, &date(), &mut out);
                }
                self.send(out, body_skipped && self.keeps_alive(&head))
                    .await
            }
        }
    }

    /// Sends the 101 and gives the socket to the session table.
    async fn hand_over(mut self, head: &RequestHead, upgrade: &Upgrade, permit: Option<Permit>) {
        let mut out = Vec::with_capacity(256);
        handshake::encode_switching_protocols(upgrade, &mut out);
        if !matches!(self.write_in_time(&out).await, Some(Ok(()))) {
            return;
        }
        self.shard.counters().upgrades_total.add(1);
        if upgrade.subprotocol.is_none() {
            refusals::subprotocol(&self.shard, head, self.peer);
        }
        // Only what the console has let in comes this far on its paths.
        let is_console = self.console_place(head).is_some();
        let Ok(released) = self.socket.release() else {
            return;
        };
        let mut early_input = self.input;
        early_input.extend_from_slice(&released.unread);
        let new = NewConnection {
            tls: released.tls,
            permit,
            early_input,
            ..describe(&self.shard, head, upgrade, self.peer, released.stream)
        };
        if is_console {
            self.shard.turn(|sessions| sessions.open_console(new));
        } else {
            self.shard.turn(|sessions| sessions.open(new));
        }
    }
}

/// What the session table has to know about the client.
fn describe(
    shard: &Shard,
    head: &RequestHead,
    upgrade: &Upgrade,
    peer: IpAddr,
    socket: TcpStream,
) -> NewConnection {
    let query = head.query().unwrap_or("");
    let sid = match head.header("x-request-id") {
        Some(id) if !id.is_empty() => id.to_string(),
        _ => random_sid(),
    };
    let ping_interval_secs = query_param_last(query, "pi").and_then(|text| match text.parse() {
        Ok(secs) => Some(secs),
        Err(_) => {
            refusals::ping_interval(shard, &sid, &text);
            None
        }
    });
    NewConnection {
        socket,
        tls: None,
        env: encode_env(shard, head, upgrade, peer),
        credentials: credentials(shard, head, &sid),
        sid,
        extended: upgrade.subprotocol == Some(Subprotocol::V1ExtJson),
        deflate: upgrade.deflate,
        ping_interval_secs,
        ping_precision: query_param_last(query, "ptp").map(|text| match &*text {
            "ms" => PingPrecision::Milliseconds,
            "ns" => PingPrecision::Nanoseconds,
            _ => PingPrecision::Seconds,
        }),
        early_input: Vec::new(),
        permit: None,
    }
}

/// url and headers of the RPC env. Source: contract/rpc.md §4.1, §4.2.
fn encode_env(shard: &Shard, head: &RequestHead, upgrade: &Upgrade, peer: IpAddr) -> Box<str> {
    let config = &shard.config;
    let url = request_url(config.server.tls.is_some(), head.host(), head.target());
    let mut headers: Vec<(&str, Cow<'_, str>)> =
        vec![("REMOTE_ADDR", Cow::Owned(peer.to_canonical().to_string()))];
    for name in &config.rpc.headers {
        let Some(value) = head
            .header(name)
            .filter(|value| !value.is_empty() && name != "host")
        else {
            continue;
        };
        if name != "cookie" || config.rpc.cookies.is_empty() {
            headers.push((name, Cow::Borrowed(value)));
        } else if let Some(cookies) = filter_cookies(value, &config.rpc.cookies) {
            headers.push((name, Cow::Owned(cookies)));
        }
    }
    let jwt_header = config
        .auth
        .jwt
        .as_ref()
        .map(|jwt| format!("x-{}", jwt.param.to_lowercase()));
    if let Some(name) = &jwt_header {
        let token = head
            .header(name)
            .filter(|value| !value.is_empty())
            .or(upgrade.token.as_deref());
        if let Some(token) = token.filter(|_| !config.rpc.headers.contains(name)) {
            headers.push((name, Cow::Borrowed(token)));
        }
    }
    encode_env_prefix(&url, &mut headers)
}

/// The token that the client brings, if JWT is on. Source: contract/auth_streams.md §3.
fn credentials(shard: &Shard, head: &RequestHead, sid: &str) -> Credentials {
    let Some(config) = &shard.config.auth.jwt else {
        return Credentials::default();
    };
    let header = head.header(&format!("x-{}", config.param.to_lowercase()));
    let subprotocol = head.header("sec-websocket-protocol");
    match jwt::find_token(header, subprotocol, head.query(), &config.param) {
        Ok(token) => Credentials {
            token,
            bad_query: false,
        },
        Err(error) => {
            refusals::bad_query(shard, sid, &error);
            Credentials {
                token: None,
                bad_query: true,
            }
        }
    }
}

fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

//! Reading durable streams: what a request asks for, and the answers to it.
//!
//! Decides from the head of a request; the history and the client's authentication are the caller's matter. A reader shows
//! that it may read a stream by the stream's signed name, or the stream is public. **The signed name must be that of the
//! stream in the path**: the reference reads the stream in the path, whatever the name that was signed.
//!
//! Called by `shard::http` for any method, and by `shard::sessions` for the answers.
//!
//! Source: `contract/http_transports.md` §4, traps 11 and 12, correction 2; PROTOCOL.md of the protocol where they are
//! silent.

use std::borrow::Cow;

use crate::auth::channels::StreamsConfig;
use crate::auth::signed_stream;
use crate::config::Config;
use crate::endpoints::Response;
use crate::endpoints::response::Headers;
use crate::protocol::durable_streams::{Cursor, Offset, offset_text, read_cursor};
use crate::protocol::position::Position;
use crate::wire::http_request::RequestHead;
use crate::wire::origins::AllowedOrigins;
use crate::wire::query;

/// Longest name of a stream that can be read. The name is kept for as long as a client waits for messages.
pub const READ_NAME_BYTES_MAX: usize = 4096;

const ALLOWED_HEADERS: &str = "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization, \
                               If-None-Match, X-Signed";
const EXPOSED_HEADERS: &str =
    "Stream-Next-Offset, Stream-Cursor, Stream-Up-To-Date, ETag, X-AnyCable-Version";
const JSON: &str = "application/json";
const NEVER_STORED: &str = "no-store";

/// Who may read, and which browsers may call.
#[derive(Debug)]
pub struct ReadPolicy {
    origins: AllowedOrigins,
    any_origin: bool,
    streams: StreamsConfig,
    /// The URL alone gives access, so a shared cache may keep the answers.
    is_open: bool,
    /// What pages of other origins may send.
    allowed_headers: String,
}

/// How a client reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadMode {
    /// It only wants to know where the stream ends.
    Head,
    /// All that is there.
    CatchUp,
    /// The same, or the next message if nothing is there.
    LongPoll,
    /// The same, and what follows, as events.
    Events,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamReading {
    pub stream: Box<str>,
    pub mode: ReadMode,
    pub offset: Offset,
    pub cursor: Option<Cursor>,
    /// The entity tags that the client has, as it has sent them.
    known_tags: Option<Box<str>>,
    origin: Option<Box<str>>,
    is_shared: bool,
}

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadVerdict {
    /// Send this answer. The body, if any, has not been read.
    Answer(Response),
    /// The client may read the stream, once it is authenticated.
    Read(Box<StreamReading>),
}

/// What an answer has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The position of its first message.
    pub first: Option<Position>,
    /// Where the stream ends; `None`: nothing is known of it.
    pub last: Option<Position>,
}

/// Why a stream is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefusal {
    #[error("the path names no stream")]
    NoStream,
    #[error("the name of the stream is longer than {READ_NAME_BYTES_MAX} bytes")]
    LongName,
    #[error("the query cannot be decoded, or has an offset more than once")]
    BadQuery,
    #[error("live must be long-poll or sse")]
    BadMode,
    #[error("live needs an offset")]
    NoOffset,
    #[error("the offset must be -1, now, or one that this server has given")]
    BadOffset,
    #[error("only GET and HEAD are served")]
    BadMethod,
    #[error("the client may not read this stream")]
    Unauthorized,
    /// The stream has no such position, or what follows it is not kept.
    #[error("what follows this offset is not kept, read from -1 or now")]
    Gone,
    #[error("the server stops")]
    Stopping,
}

impl ReadRefusal {
    fn status(self) -> u16 {
        match self {
            Self::BadMethod => 405,
            Self::Unauthorized => 401,
            Self::Gone | Self::Stopping => 410,
            _ => 400,
        }
    }
}

/// Checks a request for `stream`, the decoded name in its path; `None`: it cannot be decoded. The order is the reference's:
/// preflight, parameters, method, access.
pub fn check(head: &RequestHead, stream: Option<String>, policy: &ReadPolicy) -> ReadVerdict {
    let origin = head.header("origin");
    if head.method() == "OPTIONS" {
        return ReadVerdict::Answer(policy.answer(200, origin));
    }
    match reading(head, stream, policy) {
        Ok(reading) => ReadVerdict::Read(Box::new(reading)),
        Err(refusal) => ReadVerdict::Answer(policy.refuse(refusal, origin)),
    }
}

fn reading(
    head: &RequestHead,
    stream: Option<String>,
    policy: &ReadPolicy,
) -> Result<StreamReading, ReadRefusal> {
    let stream = stream.filter(|name| !name.is_empty());
    let stream = stream.ok_or(ReadRefusal::NoStream)?;
    if stream.len() > READ_NAME_BYTES_MAX {
        return Err(ReadRefusal::LongName);
    }
    let params = Params::read(head.query().unwrap_or(""))?;
    let mode = match (head.method(), params.live.as_deref().unwrap_or_default()) {
        (_, live) if !["", "long-poll", "sse"].contains(&live) => return Err(ReadRefusal::BadMode),
        (_, "long-poll" | "sse") if params.offset.is_none() => return Err(ReadRefusal::NoOffset),
        ("HEAD", _) => ReadMode::Head,
        (_, "long-poll") => ReadMode::LongPoll,
        (_, "sse") => ReadMode::Events,
        _ => ReadMode::CatchUp,
    };
    let offset = params.offset.map_or(Ok(Offset::Beginning), |text| {
        Offset::decode(&text).map_err(|_| ReadRefusal::BadOffset)
    })?;
    if !["GET", "HEAD"].contains(&head.method()) {
        return Err(ReadRefusal::BadMethod);
    }
    let in_header = head.filled("x-signed");
    let signed = params.signed.as_deref().or(in_header);
    if !may_read(&stream, signed, &policy.streams) {
        return Err(ReadRefusal::Unauthorized);
    }
    let needs_header = params.signed.is_none() && in_header.is_some();
    Ok(StreamReading {
        stream: stream.into(),
        mode,
        offset,
        cursor: params.cursor.as_deref().and_then(read_cursor),
        known_tags: head.combined("if-none-match").map(Into::into),
        origin: head.header("origin").map(Into::into),
        is_shared: policy.is_open && !needs_header,
    })
}

/// As for a subscription to `$pubsub`: if there is a signed name, only it counts.
fn may_read(stream: &str, signed: Option<&str>, streams: &StreamsConfig) -> bool {
    let secret = streams.secret.as_deref().unwrap_or_default();
    match signed {
        Some(signed) => signed_stream::verify(signed, secret).is_some_and(|name| name == stream),
        None => streams.public,
    }
}

/// The parameters of the query that count.
#[derive(Default)]
struct Params<'a> {
    live: Option<Cow<'a, str>>,
    offset: Option<Cow<'a, str>>,
    cursor: Option<Cow<'a, str>>,
    /// Not empty.
    signed: Option<Cow<'a, str>>,
}

impl<'a> Params<'a> {
    /// Of several parameters with one name the first counts, as in the reference. Two offsets are a mistake.
    fn read(query: &'a str) -> Result<Self, ReadRefusal> {
        let mut params = Self::default();
        for pair in query::pairs(query) {
            let (name, value) = pair.map_err(|_| ReadRefusal::BadQuery)?;
            let param = match &*name {
                "offset" if params.offset.is_some() => return Err(ReadRefusal::BadQuery),
                "offset" => &mut params.offset,
                "live" => &mut params.live,
                "cursor" => &mut params.cursor,
                "signed" if !value.is_empty() => &mut params.signed,
                _ => continue,
            };
            param.get_or_insert(value);
        }
        Ok(params)
    }
}

impl ReadPolicy {
    /// `None` when the server serves no durable streams.
    pub fn of(config: &Config) -> Option<Self> {
        let durable_streams = config.durable_streams.as_ref()?;
        Some(Self::new(config, durable_streams.skips_authentication))
    }

    /// A policy for readers that need no authentication, for any origin.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn for_streams(streams: StreamsConfig) -> Self {
        Self {
            origins: AllowedOrigins::default(),
            any_origin: true,
            streams,
            is_open: true,
            allowed_headers: ALLOWED_HEADERS.to_owned(),
        }
    }

    fn new(config: &Config, skips_authentication: bool) -> Self {
        let auth = &config.auth;
        let enforces_tokens = auth.jwt.as_ref().is_some_and(|jwt| jwt.enforce);
        let token_header = auth.jwt.as_ref();
        let token_header = token_header.map_or(String::new(), |jwt| format!(", X-{}", jwt.param));
        Self {
            origins: AllowedOrigins::new(&config.server.allowed_origins),
            any_origin: config.server.allowed_origins.is_empty(),
            streams: auth.streams.clone(),
            is_open: skips_authentication || (auth.noauth && !enforces_tokens),
            allowed_headers: format!("{ALLOWED_HEADERS}{token_header}"),
        }
    }

    /// Where the stream ends, without a body.
    pub fn metadata(&self, reading: &StreamReading, found: Found) -> Response {
        let mut response = self.answer(200, reading.origin.as_deref());
        response.headers.extend([
            ("Content-Type", Cow::Borrowed(JSON)),
            ("Cache-Control", Cow::Borrowed(NEVER_STORED)),
            ("Stream-Next-Offset", Cow::Owned(offset_text(found.last))),
        ]);
        response
    }

    /// Status and headers of an answer with messages. 304 has no body; that of 200 is their JSON array.
    pub fn messages(&self, reading: &StreamReading, found: Found, cursor: Cursor) -> Response {
        let tag = entity_tag(found);
        let may_be_stored = reading.offset != Offset::Now;
        let is_known = may_be_stored && reading.knows(&tag);
        let mut response = self.answer(if is_known { 304 } else { 200 }, reading.origin.as_deref());
        let headers = &mut response.headers;
        headers.push(("Content-Type", Cow::Borrowed(JSON)));
        let cache_control = match (may_be_stored, reading.is_shared) {
            (false, _) => NEVER_STORED,
            (true, true) => "public, max-age=60, stale-while-revalidate=300",
            (true, false) => "private, max-age=60, stale-while-revalidate=300",
        };
        headers.push(("Cache-Control", Cow::Borrowed(cache_control)));
        if may_be_stored {
            headers.push(("ETag", Cow::Owned(tag)));
        }
        headers.extend(up_to_date(found, cursor));
        response
    }

    /// The answer to a client that has waited in vain.
    pub fn nothing_came(&self, reading: &StreamReading, found: Found, cursor: Cursor) -> Response {
        let mut response = self.answer(204, reading.origin.as_deref());
        let headers = &mut response.headers;
        headers.push(("Cache-Control", Cow::Borrowed(NEVER_STORED)));
        headers.extend(up_to_date(found, cursor));
        response
    }

    /// Status and headers in front of events.
    pub fn events(&self, reading: &StreamReading) -> Response {
        let mut response = self.answer(200, reading.origin.as_deref());
        response.headers.extend([
            ("Content-Type", Cow::Borrowed("text/event-stream")),
            (
                "Cache-Control",
                Cow::Borrowed("private, no-cache, no-store, must-revalidate, max-age=0"),
            ),
            ("X-Accel-Buffering", Cow::Borrowed("no")),
        ]);
        response
    }

    /// The answer to a client that gets nothing.
    pub fn refusal(&self, reading: &StreamReading, refusal: ReadRefusal) -> Response {
        self.refuse(refusal, reading.origin.as_deref())
    }

    /// The reason is in the body as JSON, because clients of the protocol read the body of an error.
    fn refuse(&self, refusal: ReadRefusal, origin: Option<&str>) -> Response {
        let mut response = self.answer(refusal.status(), origin);
        response.body = Cow::Owned(format!(r#"{{"error":"{refusal}"}}"#).into_bytes());
        response.headers.extend([
            ("Content-Type", Cow::Borrowed(JSON)),
            ("Cache-Control", Cow::Borrowed(NEVER_STORED)),
        ]);
        if refusal == ReadRefusal::BadMethod {
            let methods = Cow::Borrowed("GET, HEAD, OPTIONS");
            response.headers.push(("Allow", methods));
        }
        response
    }

    /// An answer with the headers that all have. They say to a browser which of the protocol's headers a page of another
    /// origin may read: it could not read on without them.
    fn answer(&self, status: u16, origin: Option<&str>) -> Response {
        let allowed_origin = match self.any_origin {
            true => Some(Cow::Borrowed("*")),
            false => origin
                .filter(|origin| self.origins.allows(Some(origin)))
                .map(|origin| Cow::Owned(origin.to_lowercase())),
        };
        let mut headers = Headers::with_capacity(16);
        headers.extend(allowed_origin.map(|origin| ("Access-Control-Allow-Origin", origin)));
        if !self.any_origin {
            headers.push(("Vary", Cow::Borrowed("Origin")));
        }
        let allowed_headers = Cow::Owned(self.allowed_headers.clone());
        headers.extend([
            (
                "Access-Control-Allow-Methods",
                Cow::Borrowed("GET, HEAD, OPTIONS"),
            ),
            ("Access-Control-Allow-Credentials", Cow::Borrowed("true")),
            ("Access-Control-Allow-Headers", allowed_headers),
            (
                "Access-Control-Expose-Headers",
                Cow::Borrowed(EXPOSED_HEADERS),
            ),
            (
                "X-AnyCable-Version",
                Cow::Borrowed(crate::COMPATIBLE_VERSION),
            ),
            ("X-Content-Type-Options", Cow::Borrowed("nosniff")),
            (
                "Cross-Origin-Resource-Policy",
                Cow::Borrowed("cross-origin"),
            ),
        ]);
        Response {
            headers,
            ..Response::empty(status)
        }
    }
}

impl StreamReading {
    /// Bytes of its texts and of itself.
    pub fn held_bytes(&self) -> usize {
        let texts =
            [&self.known_tags, &self.origin].map(|text| text.as_ref().map_or(0, |it| it.len()));
        size_of::<Self>() + self.stream.len() + texts.iter().sum::<usize>()
    }

    /// Whether the client has what it asks for. Only who asks again for what is there can know that.
    fn knows(&self, tag: &str) -> bool {
        let known = self.known_tags.as_deref().unwrap_or_default();
        let mut known = known.split(',').map(str::trim);
        self.mode == ReadMode::CatchUp
            && known.any(|known| known == "*" || known.trim_start_matches("W/") == tag)
    }
}

/// Equal for equal bodies: the first and the last message name all that are between them.
fn entity_tag(found: Found) -> String {
    let first = found.first.map_or(0, |first| first.offset);
    format!("\"{first}:{}\"", offset_text(found.last))
}

fn up_to_date(found: Found, cursor: Cursor) -> [(&'static str, Cow<'static, str>); 3] {
    [
        ("Stream-Next-Offset", Cow::Owned(offset_text(found.last))),
        ("Stream-Cursor", Cow::Owned(cursor.to_string())),
        ("Stream-Up-To-Date", Cow::Borrowed("true")),
    ]
}

#[cfg(test)]
mod tests;

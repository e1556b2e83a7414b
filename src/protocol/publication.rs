//! What the app posts: the body of a broadcast request to publications or a remote command.
//!
//! Owns recognition and the encoding of `data` into the `message` of a delivery, done once per publication. Must not
//! know who listens. Called by `endpoints::broadcast`, and by `session` for whispers.
//!
//! Source: `contract/broadcast.md` §4, §5 and §7, `contract/extended.md` §3.5.

use std::borrow::Cow;

use thiserror::Error;

use super::command::Data;
use super::json::{JsonError, Kind, Reader, escape_into, is_valid_json};

/// One message for one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Empty only inside a batch; nobody listens to it then.
    pub stream: Box<str>,
    /// JSON value ready to splice, see [`encode_message`].
    pub message: Box<[u8]>,
    /// The sid that gets nothing of this.
    pub exclude_socket: Option<Box<str>>,
    /// The `type` of the deliveries.
    pub broadcast_type: Option<Box<str>>,
}

/// What one request holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// At least one publication, in the order given.
    Publications(Vec<Publication>),
    Disconnect(RemoteDisconnect),
    /// A remote command this server does not know; accepted, counted, ignored.
    UnknownCommand(String),
    /// A remote command it knows, with a payload it cannot use; accepted, counted, ignored.
    InvalidCommand(InvalidCommand),
}

/// Close the sessions of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDisconnect {
    /// Connection identifiers, compared as bytes.
    pub identifiers: Box<str>,
    /// Whether the clients are told to come back.
    pub reconnect: bool,
}

/// Why the payload of a known remote command is of no use.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("payload of `{command}`: {cause}")]
pub struct InvalidCommand {
    pub command: &'static str,
    pub cause: PayloadError,
}

/// See [`InvalidCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PayloadError {
    #[error("expected an object, found nothing")]
    Missing,
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// Why a body is no broadcast at all.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    #[error("not a publication, a batch or a command: {0}")]
    Body(#[from] JsonError),
    #[error(
        "expected a publication with a stream, a batch that starts with one, or a command; found none of their members"
    )]
    Unrecognized,
}

/// Recognizes the body of a broadcast request: a publication, else a batch, else a remote command.
///
/// `null` elements of a batch are skipped (the reference crashes on them).
///
/// # Errors
/// [`PublishError`] when the body is none of the three. The answer is 201 all the same.
pub fn decode_broadcast(body: &[u8]) -> Result<Broadcast, PublishError> {
    if Reader::new(body).kind()? == Kind::Array {
        return decode_batch(body);
    }
    // A body that is a command too counts as a publication if it has a stream; one that fails here may still be a command.
    if let Ok(publication) = decode_publication(body)
        && !publication.stream.is_empty()
    {
        return Ok(Broadcast::Publications(vec![publication]));
    }
    decode_remote_command(body)
}

/// Encodes `data` as the `message` of a delivery.
///
/// A complete JSON text is spliced as written, without the whitespace around it, so numbers keep all their digits. Any
/// other text becomes a JSON string, and so do `null` and a lone number that no double can hold, as in the reference.
pub fn encode_message(data: &str) -> Box<[u8]> {
    let value = data.trim_matches([' ', '\t', '\n', '\r']);
    if value != "null" && is_valid_json(value) && !is_too_big_number(value) {
        return value.as_bytes().into();
    }
    quoted(data)
}

/// A client's whisper: `data` for everybody on `stream` except the session `sid`.
pub fn whisper(stream: &str, data: &Data<'_>, sid: &str) -> Publication {
    let message = match data {
        Data::Absent => quoted("null"),
        Data::Text(text) => quoted(text),
        Data::Json(json) => json.as_bytes().into(),
    };
    Publication {
        stream: stream.into(),
        message,
        exclude_socket: Some(sid.into()),
        broadcast_type: None,
    }
}

fn quoted(text: &str) -> Box<[u8]> {
    let mut out = Vec::with_capacity(text.len() + 2);
    escape_into(&mut out, text);
    out.into_boxed_slice()
}

fn is_too_big_number(value: &str) -> bool {
    // Words such as `inf` are no JSON and never get here; only digits can overflow.
    value.parse::<f64>().is_ok_and(f64::is_infinite)
}

fn decode_publication(body: &[u8]) -> Result<Publication, JsonError> {
    let mut reader = Reader::new(body);
    let publication = read_publication(&mut reader)?;
    reader.finish()?;
    Ok(publication)
}

fn decode_batch(body: &[u8]) -> Result<Broadcast, PublishError> {
    let mut reader = Reader::new(body);
    let mut batch = Vec::new();
    reader.array(|reader| {
        if !reader.take_null()? {
            batch.push(read_publication(reader)?);
        }
        Ok::<_, JsonError>(())
    })?;
    reader.finish()?;
    match batch.first() {
        Some(first) if !first.stream.is_empty() => Ok(Broadcast::Publications(batch)),
        _ => Err(PublishError::Unrecognized),
    }
}

fn decode_remote_command(body: &[u8]) -> Result<Broadcast, PublishError> {
    let mut reader = Reader::new(body);
    if reader.take_null()? {
        return Err(PublishError::Unrecognized);
    }
    let mut command = Cow::Borrowed("");
    let mut payload = None;
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("command") {
            command = reader.string()?;
        } else if name.eq_ignore_ascii_case("payload") {
            payload = Some(reader.raw_value()?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    reader.finish()?;
    Ok(match &*command {
        "" => return Err(PublishError::Unrecognized),
        "disconnect" => match decode_disconnect(payload) {
            Ok(disconnect) => Broadcast::Disconnect(disconnect),
            Err(cause) => Broadcast::InvalidCommand(InvalidCommand {
                command: "disconnect",
                cause,
            }),
        },
        _ => Broadcast::UnknownCommand(command.into_owned()),
    })
}

fn decode_disconnect(payload: Option<&[u8]>) -> Result<RemoteDisconnect, PayloadError> {
    let mut identifiers = Cow::Borrowed("");
    let mut reconnect = false;
    Reader::new(payload.ok_or(PayloadError::Missing)?).object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("identifier") {
            identifiers = reader.string()?;
        } else if name.eq_ignore_ascii_case("reconnect") {
            reconnect = reader.boolean()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(RemoteDisconnect {
        identifiers: identifiers.into(),
        reconnect,
    })
}

fn read_publication(reader: &mut Reader<'_>) -> Result<Publication, JsonError> {
    let mut stream = Cow::Borrowed("");
    let mut data = Cow::Borrowed("");
    let mut meta = Meta::default();
    reader.object(|reader, name| {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if reader.take_null()? {
            return Ok(());
        }
        if is("stream") {
            stream = reader.string()?;
        } else if is("data") {
            data = reader.string()?;
        } else if is("meta") {
            meta = read_meta(reader)?;
        } else if is("epoch") {
            // A position means something only inside the broker; it is checked and not believed.
            reader.string()?;
        } else if is("offset") {
            reader.unsigned()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(Publication {
        stream: stream.into(),
        message: encode_message(&data),
        exclude_socket: meta.exclude_socket,
        broadcast_type: meta.broadcast_type,
    })
}

#[derive(Default)]
struct Meta {
    exclude_socket: Option<Box<str>>,
    broadcast_type: Option<Box<str>>,
}

fn read_meta(reader: &mut Reader<'_>) -> Result<Meta, JsonError> {
    let mut meta = Meta::default();
    reader.object(|reader, name| {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if reader.take_null()? {
            return Ok(());
        }
        if is("exclude_socket") {
            meta.exclude_socket = filled(reader.string()?);
        } else if is("broadcast_type") {
            meta.broadcast_type = filled(reader.string()?);
        } else if is("transient") {
            reader.boolean()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(meta)
}

fn filled(text: Cow<'_, str>) -> Option<Box<str>> {
    if text.is_empty() {
        None
    } else {
        Some(text.into())
    }
}

//! The WebSocket opening handshake: whether a request may become a WebSocket, and the bytes of both answers.
//!
//! This file does not look at the path and does not authenticate, so it never answers 401. Bytes after the head already
//! belong to the WebSocket and are left to the caller (the reference drops such clients; this server serves them). Called by
//! the shard's HTTP phase.
//!
//! Source: RFC 6455 §4, `contract/websocket.md` §3.

use base64::Engine;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use ring::digest::{self, SHA1_FOR_LEGACY_USE_ONLY};
use thiserror::Error;

use super::http_request::RequestHead;
use super::http_response::reason_phrase;
use super::origins::AllowedOrigins;
use super::websocket::extensions::{self, DeflateAgreement};

const KEY_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;
const TOKEN_PREFIX: &str = "anycable-token.";

/// Go's decoder ignores the unused bits of the last character, so there may be clients that set them.
const KEY_DECODER: GeneralPurpose = GeneralPurpose::new(
    &STANDARD_ALPHABET,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The application protocols of this server, in its order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subprotocol {
    /// `actioncable-v1-json`, what Rails clients offer.
    V1Json,
    /// `actioncable-v1-ext-json`: the extended protocol.
    V1ExtJson,
}

impl Subprotocol {
    const PREFERENCE: [Subprotocol; 2] = [Subprotocol::V1Json, Subprotocol::V1ExtJson];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Subprotocol::V1Json => "actioncable-v1-json",
            Subprotocol::V1ExtJson => "actioncable-v1-ext-json",
        }
    }
}

/// What client and server have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// `Sec-WebSocket-Accept`.
    pub accept: [u8; 28],
    /// `None`: the client offered no known protocol, so the session speaks the base protocol.
    pub subprotocol: Option<Subprotocol>,
    /// The text after `anycable-token.` in the first such entry of the subprotocol list; it may be empty.
    pub token: Option<String>,
    /// Messages may be compressed in both directions, within the parameters of the answer.
    pub deflate: Option<DeflateAgreement>,
}

/// Why a request cannot become a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UpgradeError {
    #[error("'upgrade' token not found in 'Connection' header")]
    NoConnectionUpgrade,
    #[error("'websocket' token not found in 'Upgrade' header")]
    NoWebSocketUpgrade,
    #[error("request method is not GET")]
    MethodNotGet,
    #[error("unsupported version: 13 not found in 'Sec-WebSocket-Version' header")]
    UnsupportedVersion,
    #[error("request origin not allowed")]
    OriginNotAllowed,
    #[error("'Sec-WebSocket-Key' header must be Base64 encoded value of 16 bytes")]
    BadKey,
}

impl UpgradeError {
    /// 400, 403 or 405.
    pub fn status(self) -> u16 {
        match self {
            UpgradeError::NoConnectionUpgrade
            | UpgradeError::NoWebSocketUpgrade
            | UpgradeError::UnsupportedVersion
            | UpgradeError::BadKey => 400,
            UpgradeError::OriginNotAllowed => 403,
            UpgradeError::MethodNotGet => 405,
        }
    }
}

/// Checks an upgrade request. The error is the first rule that fails, in the reference's order.
///
/// `compression` is the server's option: permessage-deflate is then agreed to if the client offers it with parameters that
/// this server can keep.
///
/// Lists may be split over several lines. Other fields that decide must not be repeated: `Host` is checked before this,
/// `Sec-WebSocket-Key` and `Sec-WebSocket-Version` here, and each `Origin` must be allowed.
///
/// # Errors
/// See [`UpgradeError`]; answer with [`encode_refusal`].
pub fn upgrade(
    head: &RequestHead,
    origins: &AllowedOrigins,
    compression: bool,
) -> Result<Upgrade, UpgradeError> {
    if !head.header_has_token("connection", "upgrade") {
        return Err(UpgradeError::NoConnectionUpgrade);
    }
    if !head.header_has_token("upgrade", "websocket") {
        return Err(UpgradeError::NoWebSocketUpgrade);
    }
    if head.method() != "GET" {
        return Err(UpgradeError::MethodNotGet);
    }
    let version = "sec-websocket-version";
    if head.is_repeated(version) || !head.header_has_token(version, "13") {
        return Err(UpgradeError::UnsupportedVersion);
    }
    if !origins.allows_all(head.header_values("origin")) {
        return Err(UpgradeError::OriginNotAllowed);
    }
    let key = head
        .header("sec-websocket-key")
        .filter(|key| is_key(key) && !head.is_repeated("sec-websocket-key"))
        .ok_or(UpgradeError::BadKey)?;
    Ok(Upgrade {
        accept: accept(key),
        subprotocol: subprotocol(head),
        token: token(head),
        deflate: compression
            .then(|| extensions::accept(head.header_values("sec-websocket-extensions")))
            .flatten(),
    })
}

/// Appends the answer to a refused upgrade. `date` is an HTTP date. With `keep` the connection stays open for another
/// request.
///
/// For a `HEAD` request call [`encode_refusal_head`]: the client would read a body as the next response.
///
/// Source: `contract/websocket.md` §3, "Error format".
pub fn encode_refusal(error: UpgradeError, date: &str, keep: bool, out: &mut Vec<u8>) {
    encode_refusal_head(error, date, keep, out);
    out.extend_from_slice(reason_phrase(error.status()).as_bytes());
    out.push(b'\n');
}

/// Appends the answer to a refused upgrade without its body.
pub fn encode_refusal_head(error: UpgradeError, date: &str, keep: bool, out: &mut Vec<u8>) {
    let status = error.status();
    let reason = reason_phrase(status);
    let closing = if keep { "" } else { "Connection: close\r\n" };
    // The body is the phrase and a line feed.
    let body_bytes = reason.len() + 1;
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} {reason}\r\n\
             Content-Type: text/plain; charset=utf-8\r\n\
             Sec-Websocket-Version: 13\r\n\
             X-Content-Type-Options: nosniff\r\n\
             Date: {date}\r\n\
             Content-Length: {body_bytes}\r\n\
             {closing}\r\n"
        )
        .as_bytes(),
    );
}

/// Appends the `101 Switching Protocols` head, with the fields in the reference's order.
pub fn encode_switching_protocols(upgrade: &Upgrade, out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\n\
          Upgrade: websocket\r\n\
          Connection: Upgrade\r\n\
          Sec-WebSocket-Accept: ",
    );
    out.extend_from_slice(&upgrade.accept);
    if let Some(subprotocol) = upgrade.subprotocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(subprotocol.as_str().as_bytes());
    }
    if let Some(deflate) = upgrade.deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        out.extend_from_slice(deflate.answer().as_bytes());
    }
    out.extend_from_slice(b"\r\nX-AnyCable-Version: ");
    out.extend_from_slice(crate::COMPATIBLE_VERSION.as_bytes());
    out.extend_from_slice(b"\r\n\r\n");
}

fn is_key(key: &str) -> bool {
    // Room for the bytes of 24 characters. A longer text does not fit and is not a key.
    let mut decoded = [0; KEY_BYTES + 2];
    KEY_DECODER.decode_slice(key, &mut decoded) == Ok(KEY_BYTES)
}

fn accept(key: &str) -> [u8; 28] {
    let mut digest = digest::Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(KEY_GUID);
    let mut accept = [0; 28];
    STANDARD
        .encode_slice(digest.finish(), &mut accept)
        .expect("20 bytes are 28 characters of base64");
    accept
}

fn subprotocol(head: &RequestHead) -> Option<Subprotocol> {
    Subprotocol::PREFERENCE.into_iter().find(|known| {
        head.items("sec-websocket-protocol")
            .any(|offered| offered == known.as_str())
    })
}

fn token(head: &RequestHead) -> Option<String> {
    head.items("sec-websocket-protocol")
        .find_map(|offered| offered.strip_prefix(TOKEN_PREFIX))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http_head::HeadLimits;
    use proptest::prelude::*;

    const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\
                           Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    fn head(method: &str, fields: &str) -> RequestHead {
        let text = format!("{method} /cable HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .unwrap()
            .unwrap()
            .0
    }

    fn agree(fields: &str) -> Upgrade {
        let head = head("GET", &format!("{UPGRADE}{fields}"));
        upgrade(&head, &AllowedOrigins::default(), true).expect(fields)
    }

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        // RFC 6455 §1.3.
        assert_eq!(&agree("").accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn rules_are_checked_in_the_order_of_the_reference() {
        fn check(method: &str, fields: &str, expected: UpgradeError, status: u16) {
            let origins = AllowedOrigins::new(&["ok.example".to_owned()]);
            let got = upgrade(&head(method, fields), &origins, false);
            assert_eq!(got, Err(expected), "{fields}");
            assert_eq!(expected.status(), status);
        }
        use UpgradeError as E;
        let connection = "Connection: upgrade\r\n";
        let both = format!("{connection}Upgrade: websocket\r\n");
        let version = format!("{both}Sec-WebSocket-Version: 8, 13\r\n");
        let origin = format!("{version}Origin: http://ok.example\r\n");
        check(
            "POST",
            "Upgrade: websocket\r\n",
            E::NoConnectionUpgrade,
            400,
        );
        check("POST", connection, E::NoWebSocketUpgrade, 400);
        check("POST", &both, E::MethodNotGet, 405);
        check("GET", &both, E::UnsupportedVersion, 400);
        check("GET", &version, E::OriginNotAllowed, 403);
        check("GET", &origin, E::BadKey, 400);
        for key in [
            "",
            "abc",
            "MDAwMDAwMDAwMDAwMDAw",
            "MDAwMDAwMDAwMDAwMDAwMDA=",
            "MDAwMDAwMDAwMDAwMDAwMA",
            "!!!!",
        ] {
            check(
                "GET",
                &format!("{origin}Sec-WebSocket-Key: {key}\r\n"),
                E::BadKey,
                400,
            );
        }
        let key = format!("{origin}Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\n");
        let origins = AllowedOrigins::new(&["ok.example".to_owned()]);
        assert!(upgrade(&head("GET", &key), &origins, false).is_ok());
    }

    #[test]
    fn the_first_protocol_of_the_server_that_is_offered_wins() {
        fn check(offer: &str, expected: Option<Subprotocol>) {
            let upgrade = agree(&format!("Sec-WebSocket-Protocol: {offer}\r\n"));
            assert_eq!(upgrade.subprotocol, expected, "{offer}");
        }
        check("actioncable-v1-json", Some(Subprotocol::V1Json));
        check("actioncable-v1-ext-json", Some(Subprotocol::V1ExtJson));
        check(
            "actioncable-v1-ext-json, actioncable-v1-json",
            Some(Subprotocol::V1Json),
        );
        check(
            "actioncable-v1-json, actioncable-unsupported",
            Some(Subprotocol::V1Json),
        );
        check("foo", None);
        check("actioncable-v1-msgpack", None);
        check("ACTIONCABLE-V1-JSON", None);
        let line = "\r\nSec-WebSocket-Protocol:";
        check(
            &format!("foo{line} actioncable-v1-json"),
            Some(Subprotocol::V1Json),
        );
        check(
            &format!("{line}{line} foo ,{line} , actioncable-v1-ext-json"),
            Some(Subprotocol::V1ExtJson),
        );
        check(
            &format!("actioncable-v1-ext-json{line} actioncable-v1-json"),
            Some(Subprotocol::V1Json),
        );
        check(&format!("foo{line} bar"), None);
        assert_eq!(agree("").subprotocol, None);
    }

    #[test]
    fn the_token_entry_is_found_and_not_chosen() {
        let upgrade = agree(
            "Sec-WebSocket-Protocol: actioncable-v1-json, anycable-token.ey.J.x,anycable-token.no\r\n",
        );
        assert_eq!(upgrade.token.as_deref(), Some("ey.J.x"));
        assert_eq!(upgrade.subprotocol, Some(Subprotocol::V1Json));
        let upgrade = agree(
            "Sec-WebSocket-Protocol: actioncable-v1-json\r\nsec-websocket-protocol: anycable-token.x\r\n",
        );
        assert_eq!(upgrade.token.as_deref(), Some("x"));
        assert_eq!(agree("").token, None);
    }

    #[test]
    fn fields_that_are_no_lists_may_not_be_doubted() {
        fn check(fields: &str, expected: Result<(), UpgradeError>) {
            let origins = AllowedOrigins::new(&["ok.example".to_owned()]);
            let fields = format!("{UPGRADE}{fields}");
            let got = upgrade(&head("GET", &fields), &origins, false);
            assert_eq!(got.map(|_| ()), expected, "{fields}");
        }
        let origin = "Origin: http://ok.example\r\n";
        check(origin, Ok(()));
        check(&origin.repeat(2), Ok(()));
        let other = "Origin: http://evil.example\r\n";
        check(
            &format!("{origin}{other}"),
            Err(UpgradeError::OriginNotAllowed),
        );
        check(
            &format!("{other}{origin}"),
            Err(UpgradeError::OriginNotAllowed),
        );
        check(
            &format!("{origin}Origin:\r\n"),
            Err(UpgradeError::OriginNotAllowed),
        );
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        check(&format!("{origin}{key}"), Err(UpgradeError::BadKey));
        let version = "Sec-WebSocket-Version: 13\r\n";
        check(
            &format!("{origin}{version}"),
            Err(UpgradeError::UnsupportedVersion),
        );
    }

    #[test]
    fn upgrade_tokens_may_stand_in_any_line() {
        let fields = UPGRADE
            .replace(
                "Connection: keep-alive, Upgrade",
                "Connection: keep-alive\r\nConnection: Upgrade",
            )
            .replace("Upgrade: WebSocket", "Upgrade: h2c\r\nUpgrade: WebSocket");
        assert!(upgrade(&head("GET", &fields), &AllowedOrigins::default(), false).is_ok());
    }

    #[test]
    fn compression_needs_both_sides() {
        let offer = format!(
            "{UPGRADE}Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        );
        for compression in [true, false] {
            let got = upgrade(
                &head("GET", &offer),
                &AllowedOrigins::default(),
                compression,
            )
            .unwrap();
            assert_eq!(got.deflate.is_some(), compression);
        }
        assert_eq!(agree("").deflate, None);
    }

    #[test]
    fn refusals_have_the_exact_bytes() {
        fn check(error: UpgradeError, status_line: &str, length: usize, body: &str) {
            let mut out = Vec::new();
            encode_refusal(error, "Thu, 01 Jan 1970 00:00:00 GMT", true, &mut out);
            let expected = format!(
                "HTTP/1.1 {status_line}\r\nContent-Type: text/plain; charset=utf-8\r\nSec-Websocket-Version: 13\r\n\
                 X-Content-Type-Options: nosniff\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            assert_eq!(String::from_utf8(out).unwrap(), expected);
            let mut head = Vec::new();
            encode_refusal_head(error, "Thu, 01 Jan 1970 00:00:00 GMT", true, &mut head);
            assert_eq!(String::from_utf8(head).unwrap() + body, expected);
            let mut closing = Vec::new();
            encode_refusal(error, "Thu, 01 Jan 1970 00:00:00 GMT", false, &mut closing);
            let (head, _) = expected.split_once("\r\n\r\n").unwrap();
            let expected = format!("{head}\r\nConnection: close\r\n\r\n{body}");
            assert_eq!(String::from_utf8(closing).unwrap(), expected);
        }
        check(UpgradeError::BadKey, "400 Bad Request", 12, "Bad Request\n");
        check(
            UpgradeError::MethodNotGet,
            "405 Method Not Allowed",
            19,
            "Method Not Allowed\n",
        );
        check(
            UpgradeError::OriginNotAllowed,
            "403 Forbidden",
            10,
            "Forbidden\n",
        );
    }

    #[test]
    fn the_switch_has_the_exact_bytes() {
        fn check(upgrade: &Upgrade, middle: &str) {
            let mut out = Vec::new();
            encode_switching_protocols(upgrade, &mut out);
            let expected = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n{middle}X-AnyCable-Version: 1.6.16\r\n\r\n"
            );
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        check(&agree(""), "");
        check(
            &agree(
                "Sec-WebSocket-Protocol: actioncable-v1-json\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
            ),
            "Sec-WebSocket-Protocol: actioncable-v1-json\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n",
        );
    }

    proptest! {
        #[test]
        fn any_key_is_judged_without_panic(key in "[A-Za-z0-9+/=]{0,40}") {
            let fields = UPGRADE.replace("dGhlIHNhbXBsZSBub25jZQ==", &key);
            let got = upgrade(&head("GET", &fields), &AllowedOrigins::default(), false);
            prop_assert!(got.is_ok() || got == Err(UpgradeError::BadKey));
        }
    }
}

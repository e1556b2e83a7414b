//! The endpoint of server-sent events: what a request asks for.
//!
//! A request becomes a session whose commands are the lines that this file returns: one JSON object a line, and each of them
//! subscribes. `shard::http` reads the request and hands the lines to the session table, which answers. Pure.
//!
//! Source: `contract/http_transports.md` §1.

use std::borrow::Cow;

use thiserror::Error;

use crate::endpoints::Response;
use crate::endpoints::response::Headers;
use crate::protocol::command::{CommandError, decode_command};
use crate::protocol::json::escape_into;
use crate::wire::http_request::RequestHead;
use crate::wire::query::query_param_first;

/// The largest body of a POST, in bytes, after chunk decoding.
pub const SSE_BODY_BYTES_MAX: usize = 64 << 10;

/// The parameters that name what a GET subscribes to, and the identifier around their value. The first that is not empty
/// counts.
const SUBSCRIPTIONS: [(&str, &str, &str); 5] = [
    ("identifier", "", ""),
    ("channel", r#"{"channel":"#, "}"),
    ("stream", r#"{"channel":"$pubsub","stream_name":"#, "}"),
    (
        "signed_stream",
        r#"{"channel":"$pubsub","signed_stream_name":"#,
        "}",
    ),
    (
        "turbo_signed_stream_name",
        r#"{"channel":"Turbo::StreamsChannel","signed_stream_name":"#,
        "}",
    ),
];

/// What to do with a request, decided from its head.
#[derive(Debug, PartialEq, Eq)]
pub enum SseVerdict {
    /// Answer with this status and an empty body. The body of the request, if any, has not been read.
    Refuse(u16),
    /// A POST: read the body; its lines are the commands if [`check_lines`] finds nothing wrong.
    ReadBody,
    /// A GET: its command.
    Subscribe(Vec<u8>),
}

/// Why a request for events cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SseError {
    #[error(
        "expected identifier, channel, stream, signed_stream or turbo_signed_stream_name in the query, found none of them"
    )]
    NoSubscription,
    #[error("expected seconds since 1970 in history_since, found {0:?}")]
    Since(String),
    #[error("expected <offset>/<epoch>/<stream> in Last-Event-ID, found {0:?}")]
    LastEventId(String),
    #[error("line {number} of the body: {cause}")]
    Line { number: usize, cause: CommandError },
    #[error("line {number} of the body: expected an object, found null")]
    NullLine { number: usize },
}

/// Decides about a request from its head. A preflight and a wrong method are refused here; the headers of CORS belong to
/// every answer.
///
/// # Errors
/// Why the answer is 400.
pub fn check(head: &RequestHead) -> Result<SseVerdict, SseError> {
    Ok(match head.method() {
        "GET" => SseVerdict::Subscribe(line_of_get(head)?),
        "POST" => SseVerdict::ReadBody,
        "OPTIONS" => SseVerdict::Refuse(200),
        _ => SseVerdict::Refuse(405),
    })
}

/// Whether the client wants no event with a type.
pub fn wants_raw(head: &RequestHead) -> bool {
    let raw = query_param_first(head.query().unwrap_or_default(), "raw");
    raw.is_some_and(|raw| {
        ["true", "1", "t", "y"]
            .iter()
            .any(|yes| raw.eq_ignore_ascii_case(yes))
    })
}

/// The headers of every answer but those to a preflight and to a wrong method.
pub fn headers() -> Headers {
    [
        ("X-Anycable-Version", crate::COMPATIBLE_VERSION),
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        // nginx sends each event at once then.
        ("X-Accel-Buffering", "no"),
        (
            "Cache-Control",
            "private, no-cache, no-store, must-revalidate, max-age=0",
        ),
        ("Pragma", "no-cache"),
        // The spelling of the reference.
        ("Expire", "0"),
    ]
    .map(|(name, value)| (name, Cow::Borrowed(value)))
    .into()
}

/// The answer to a request that cannot be served. The body may not have been read.
pub fn bad_request() -> Response {
    Response::empty(400).with_headers(headers())
}

/// Checks the body of a POST: each line that is not empty must be a command. The reference looks at nothing but the
/// subscription, so neither does this server.
///
/// # Errors
/// The first line that is no command.
pub fn check_lines(body: &[u8]) -> Result<(), SseError> {
    for (at, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        let number = at + 1;
        if line.is_empty() {
            continue;
        }
        let command = decode_command(line).map_err(|cause| SseError::Line { number, cause })?;
        if command.is_none() {
            return Err(SseError::NullLine { number });
        }
    }
    Ok(())
}

/// The command of a GET.
fn line_of_get(head: &RequestHead) -> Result<Vec<u8>, SseError> {
    let query = head.query().unwrap_or_default();
    let identifier = identifier(query).ok_or(SseError::NoSubscription)?;
    let since = since(query)?;
    let last = last_event_id(head.header("last-event-id"))?;
    let mut line = br#"{"command":"subscribe","identifier":"#.to_vec();
    escape_into(&mut line, &identifier);
    if since.is_some() || last.is_some() {
        line.extend_from_slice(br#","history":{"since":"#);
        line.extend_from_slice(since.unwrap_or(0).to_string().as_bytes());
        if let Some(last) = last {
            line.extend_from_slice(br#","streams":{"#);
            escape_into(&mut line, last.stream);
            line.extend_from_slice(br#":{"epoch":"#);
            escape_into(&mut line, last.epoch);
            line.extend_from_slice(br#","offset":"#);
            line.extend_from_slice(last.offset.to_string().as_bytes());
            line.extend_from_slice(b"}}");
        }
        line.push(b'}');
    }
    line.push(b'}');
    Ok(line)
}

fn identifier(query: &str) -> Option<String> {
    SUBSCRIPTIONS.iter().find_map(|(name, before, after)| {
        let value = query_param_first(query, name).filter(|value| !value.is_empty())?;
        if before.is_empty() {
            return Some(value.into_owned());
        }
        let mut identifier = before.as_bytes().to_vec();
        escape_into(&mut identifier, &value);
        identifier.extend_from_slice(after.as_bytes());
        Some(String::from_utf8_lossy(&identifier).into_owned())
    })
}

fn since(query: &str) -> Result<Option<i64>, SseError> {
    let Some(text) = query_param_first(query, "history_since").filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    match text.parse() {
        Ok(since) => Ok(Some(since)),
        Err(_) => Err(SseError::Since(text.into_owned())),
    }
}

/// What a client has received last.
struct LastEvent<'a> {
    offset: u64,
    epoch: &'a str,
    stream: &'a str,
}

/// Fewer than three parts are not an id of this server, and are ignored. The name of the stream may have slashes.
fn last_event_id(value: Option<&str>) -> Result<Option<LastEvent<'_>>, SseError> {
    let Some(value) = value else { return Ok(None) };
    let mut parts = value.splitn(3, '/');
    let (Some(offset), Some(epoch), Some(stream)) = (parts.next(), parts.next(), parts.next())
    else {
        return Ok(None);
    };
    let Ok(offset) = offset.parse() else {
        return Err(SseError::LastEventId(value.to_owned()));
    };
    Ok(Some(LastEvent {
        offset,
        epoch,
        stream,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::position::{Epoch, Position};
    use crate::wire::http_head::HeadLimits;

    fn head(method: &str, target: &str, fields: &str) -> RequestHead {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        head
    }

    #[track_caller]
    fn check_get(query: &str, fields: &str, expected: Result<&str, SseError>) {
        let verdict = check(&head("GET", &format!("/events{query}"), fields));
        let expected = expected.map(|line| SseVerdict::Subscribe(line.to_owned().into_bytes()));
        assert_eq!(verdict, expected, "{query} {fields}");
    }

    #[test]
    fn the_method_comes_first() {
        let of = |method: &str| check(&head(method, "/events", ""));
        assert_eq!(of("OPTIONS"), Ok(SseVerdict::Refuse(200)));
        for method in ["HEAD", "PUT", "get", "DELETE"] {
            assert_eq!(of(method), Ok(SseVerdict::Refuse(405)), "{method}");
        }
        assert_eq!(of("POST"), Ok(SseVerdict::ReadBody));
        assert_eq!(of("GET"), Err(SseError::NoSubscription));
    }

    #[test]
    fn the_first_parameter_with_a_value_is_what_a_get_subscribes_to() {
        let check = |query: &str, identifier: &str| {
            let identifier = serde_json::Value::from(identifier);
            let line = format!(r#"{{"command":"subscribe","identifier":{identifier}}}"#);
            check_get(query, "", Ok(&line));
        };
        check(
            "?identifier=%7B%22channel%22%3A%22A%22%7D&stream=x",
            r#"{"channel":"A"}"#,
        );
        check("?identifier=any+text", "any text");
        check("?identifier=&channel=Chat", r#"{"channel":"Chat"}"#);
        check("?channel=a%22b", r#"{"channel":"a\"b"}"#);
        check(
            "?stream=z&signed_stream=y",
            r#"{"channel":"$pubsub","stream_name":"z"}"#,
        );
        check(
            "?stream=z&stream=y",
            r#"{"channel":"$pubsub","stream_name":"z"}"#,
        );
        check(
            "?signed_stream=y",
            r#"{"channel":"$pubsub","signed_stream_name":"y"}"#,
        );
        check(
            "?turbo_signed_stream_name=t",
            r#"{"channel":"Turbo::StreamsChannel","signed_stream_name":"t"}"#,
        );
        // A parameter that cannot be decoded is none.
        check(
            "?identifier=%zz&stream=s",
            r#"{"channel":"$pubsub","stream_name":"s"}"#,
        );
        for query in ["", "?", "?stream=", "?streams=x", "?stream=%zz"] {
            check_get(query, "", Err(SseError::NoSubscription));
        }
    }

    #[test]
    fn a_get_may_ask_for_history() {
        let line = |history: &str| {
            format!(r#"{{"command":"subscribe","identifier":"A","history":{history}}}"#)
        };
        let check = |query: &str, fields: &str, history: &str| {
            check_get(&format!("?identifier=A{query}"), fields, Ok(&line(history)));
        };
        check("&history_since=5", "", r#"{"since":5}"#);
        check("&history_since=-5", "", r#"{"since":-5}"#);
        check("&history_since=%2B5", "", r#"{"since":5}"#);
        check(
            "",
            "Last-Event-ID: 7/AbCdEfGh/chat/1\r\n",
            r#"{"since":0,"streams":{"chat/1":{"epoch":"AbCdEfGh","offset":7}}}"#,
        );
        check(
            "&history_since=5",
            "Last-Event-ID: 0//\r\n",
            r#"{"since":5,"streams":{"":{"epoch":"","offset":0}}}"#,
        );
        let plain = r#"{"command":"subscribe","identifier":"A"}"#;
        for id in ["", "7", "7/e", "x/e"] {
            check_get(
                "?identifier=A",
                &format!("Last-Event-ID: {id}\r\n"),
                Ok(plain),
            );
        }
        check_get("?identifier=A&history_since=", "", Ok(plain));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for since in ["x", "1.5", "9223372036854775808"] {
            let query = format!("?identifier=A&history_since={since}");
            check_get(&query, "", Err(SseError::Since(since.to_owned())));
        }
        for id in [
            "/e/s",
            "-1/e/s",
            "1.0/e/s",
            "18446744073709551616/e/s",
            "x/e/s/t",
        ] {
            let fields = format!("Last-Event-ID: {id}\r\n");
            let error = SseError::LastEventId(id.to_owned());
            check_get("?identifier=A", &fields, Err(error));
        }
    }

    #[test]
    fn raw_is_on_with_four_words() {
        for (query, expected) in [
            ("?raw=true", true),
            ("?raw=T", true),
            ("?raw=1", true),
            ("?raw=Y", true),
            ("?raw=yes", false),
            ("?raw=0", false),
            ("?raw", false),
            ("", false),
        ] {
            assert_eq!(
                wants_raw(&head("POST", &format!("/events{query}"), "")),
                expected,
                "{query}"
            );
        }
    }

    #[test]
    fn every_line_of_a_body_must_be_a_command() {
        for body in [
            "",
            "\n\r\n \n",
            "{}",
            "{\"identifier\":\"A\"}\r\n\n{\"command\":\"x\",\"identifier\":\"B\"}",
        ] {
            assert_eq!(check_lines(body.as_bytes()), Ok(()), "{body:?}");
        }
        for (body, number) in [
            ("x", 1),
            ("{}\n[]", 2),
            ("{}\n\n{\"identifier\":5}", 3),
            ("5", 1),
        ] {
            let found = check_lines(body.as_bytes());
            assert!(
                matches!(found, Err(SseError::Line { number: at, .. }) if at == number),
                "{body:?} {found:?}"
            );
        }
        assert_eq!(
            check_lines(b"{}\nnull"),
            Err(SseError::NullLine { number: 2 })
        );
    }

    proptest! {
        #[test]
        fn a_get_subscribes_to_what_its_query_says(identifier in ".+", since: i64, offset: u64, epoch: u64, stream in ".*") {
            let escaped = |text: &str| -> String {
                text.bytes().map(|byte| format!("%{byte:02X}")).collect()
            };
            let target = format!("/events?identifier={}&history_since={since}", escaped(&identifier));
            let epoch = Epoch::from_bits(epoch);
            // A field cannot have control characters, and blanks at its ends do not count.
            let stream: String = stream.chars().filter(|c| !c.is_control()).collect();
            let stream = stream.trim();
            let fields = format!("Last-Event-ID: {offset}/{epoch}/{stream}\r\n");
            let Ok(SseVerdict::Subscribe(line)) = check(&head("GET", &target, &fields)) else {
                panic!("{target} {fields}");
            };
            let command = decode_command(&line).expect("JSON").expect("a command");
            prop_assert_eq!(&*command.identifier, identifier);
            let history = command.history.expect("it is asked for");
            prop_assert_eq!(history.since, since);
            let positions = history.streams.expect("one is named");
            prop_assert_eq!(positions.of(stream), Some(Position { epoch, offset }));
        }
    }
}

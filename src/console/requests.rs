//! Decodes the bodies of the page's requests.

use super::streams::{StreamOrder, StreamQuery};
use crate::protocol::json::{JsonError, Reader};
use crate::protocol::publication::{Broadcast, Publication, decode_broadcast};

/// The longest text that a search may have.
pub const QUERY_BYTES_MAX: usize = 256;

/// Which session to end, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisconnectRequest {
    pub shard: usize,
    pub slot: u32,
    pub generation: u32,
    /// Compared with the sid of the session in that slot, so that a wrong request ends no other session.
    pub sid: String,
    /// Whether the client is told to reconnect.
    pub reconnect: bool,
}

/// Why a request cannot be served; the page shows the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the request is not what the page sends: {0}")]
    Json(#[from] JsonError),
    #[error("the request is not what the page sends: {0} is too large")]
    TooLarge(&'static str),
    #[error("search for at most {QUERY_BYTES_MAX} bytes")]
    QueryTooLong,
    #[error("streams cannot be sorted so")]
    NoOrder,
    #[error("a test message needs the name of a stream")]
    NoStream,
}

/// `{"query": "…"}`; an empty text finds every session.
pub fn search(body: &[u8]) -> Result<String, RequestError> {
    let mut query = String::new();
    members(body, |reader, name| {
        if name == "query" {
            query = reader.string()?.into_owned();
            return Ok(true);
        }
        Ok(false)
    })?;
    Ok(checked_query(&query)?.to_owned())
}

fn checked_query(query: &str) -> Result<&str, RequestError> {
    let query = query.trim();
    match query.len() {
        0..=QUERY_BYTES_MAX => Ok(query),
        _ => Err(RequestError::QueryTooLong),
    }
}

/// `{"query": "…", "order": "listeners"}`; an empty text finds every stream.
pub fn streams(body: &[u8]) -> Result<StreamQuery, RequestError> {
    let (mut query, mut order) = (String::new(), Some(StreamOrder::default()));
    members(body, |reader, name| {
        match name {
            "query" => query = reader.string()?.into_owned(),
            "order" => order = StreamOrder::named(&reader.string()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let order = order.ok_or(RequestError::NoOrder)?;
    Ok(StreamQuery::new(checked_query(&query)?, order))
}

/// `{"stream": "…"}`: the whole name.
pub fn stream(body: &[u8]) -> Result<String, RequestError> {
    let mut stream = String::new();
    members(body, |reader, name| {
        if name == "stream" {
            stream = reader.string()?.into_owned();
            return Ok(true);
        }
        Ok(false)
    })?;
    Ok(stream)
}

/// `{"shard": 0, "slot": 1, "generation": 2, "sid": "…", "reconnect": false}`.
pub fn disconnect(body: &[u8]) -> Result<DisconnectRequest, RequestError> {
    let (mut shard, mut slot, mut generation) = (u64::MAX, u64::MAX, u64::MAX);
    let (mut sid, mut reconnect) = (String::new(), false);
    members(body, |reader, name| {
        match name {
            "shard" => shard = reader.unsigned()?,
            "slot" => slot = reader.unsigned()?,
            "generation" => generation = reader.unsigned()?,
            "sid" => sid = reader.string()?.into_owned(),
            "reconnect" => reconnect = reader.boolean()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(DisconnectRequest {
        shard: usize::try_from(shard).map_err(|_| RequestError::TooLarge("shard"))?,
        slot: u32::try_from(slot).map_err(|_| RequestError::TooLarge("slot"))?,
        generation: u32::try_from(generation).map_err(|_| RequestError::TooLarge("generation"))?,
        sid,
        reconnect,
    })
}

/// One publication as an app would post it: `{"stream": "…", "data": "…"}`. Batches and remote commands are refused here.
pub fn publication(body: &[u8]) -> Result<Publication, RequestError> {
    match decode_broadcast(body) {
        Ok(Broadcast::Publications(mut publications)) if publications.len() == 1 => {
            publications.pop().ok_or(RequestError::NoStream)
        }
        _ => Err(RequestError::NoStream),
    }
}

/// Reads an object; `member` returns whether it knows the name and has read the value.
fn members<'a>(
    body: &'a [u8],
    mut member: impl FnMut(&mut Reader<'a>, &str) -> Result<bool, JsonError>,
) -> Result<(), JsonError> {
    let mut reader = Reader::new(body);
    reader.object(|reader, name| {
        if !member(reader, name)? {
            reader.skip_value()?;
        }
        Ok::<(), JsonError>(())
    })?;
    reader.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn searches_are_trimmed_and_bounded() {
        let check = |body: &str, expected: Option<&str>| {
            assert_eq!(search(body.as_bytes()).ok().as_deref(), expected, "{body}");
        };
        check(r#"{"query":" User/1 "}"#, Some("User/1"));
        check(r#"{"other":[1],"query":""}"#, Some(""));
        check("{}", Some(""));
        check(r#"{"query":1}"#, None);
        check("", None);
        check("{} x", None);
        let long = "x".repeat(QUERY_BYTES_MAX + 1);
        check(&format!(r#"{{"query":"{long}"}}"#), None);
        check(
            &format!(r#"{{"query":"{}"}}"#, &long[1..]),
            Some(&long[1..]),
        );
    }

    #[test]
    fn streams_are_asked_for_by_a_text_and_an_order() {
        let check = |body: &str, expected: Option<StreamOrder>| {
            let query = streams(body.as_bytes()).ok();
            assert_eq!(query.map(|query| query.order), expected, "{body}");
        };
        check("{}", Some(StreamOrder::Listeners));
        check(
            r#"{"query":" chat/ ","order":"bytes"}"#,
            Some(StreamOrder::Bytes),
        );
        check(r#"{"order":"messages"}"#, Some(StreamOrder::Messages));
        check(r#"{"order":"size"}"#, None);
        check(r#"{"order":1}"#, None);
        check(r#"{"query":1}"#, None);
        let query = streams(br#"{"query":" chat/ "}"#).expect("good");
        assert!(query.is_in("a/chat/1") && !query.is_in("chat"));
        let long = "x".repeat(QUERY_BYTES_MAX + 1);
        check(&format!(r#"{{"query":"{long}"}}"#), None);
    }

    #[test]
    fn one_stream_is_asked_for_by_its_name_as_it_is() {
        assert_eq!(stream(br#"{"stream":" a "}"#).ok().as_deref(), Some(" a "));
        assert_eq!(stream(b"{}").ok().as_deref(), Some(""));
        assert!(stream(br#"{"stream":null}"#).is_err());
    }

    #[test]
    fn a_disconnect_names_one_session() {
        let body = br#"{"shard":1,"slot":2,"generation":3,"sid":"s","reconnect":true}"#;
        let expected = DisconnectRequest {
            shard: 1,
            slot: 2,
            generation: 3,
            sid: "s".to_owned(),
            reconnect: true,
        };
        assert_eq!(disconnect(body), Ok(expected));
        assert_eq!(
            disconnect(br#"{"shard":1}"#),
            Err(RequestError::TooLarge("slot"))
        );
        assert!(disconnect(br#"{"shard":-1}"#).is_err());
    }

    #[test]
    fn a_test_message_is_one_publication() {
        let sent = publication(br#"{"stream":"a","data":"{\"x\":1}"}"#).expect("good");
        assert_eq!((&*sent.stream, &*sent.message), ("a", &br#"{"x":1}"#[..]));
        for body in [
            r#"{"stream":"","data":"1"}"#,
            r#"{"data":"1"}"#,
            r#"[{"stream":"a","data":"1"},{"stream":"b","data":"1"}]"#,
            r#"{"command":"disconnect","payload":{"identifier":"x"}}"#,
            "nonsense",
        ] {
            assert_eq!(
                publication(body.as_bytes()),
                Err(RequestError::NoStream),
                "{body}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in any::<Vec<u8>>()) {
            let _ = (search(&body), streams(&body), stream(&body), disconnect(&body), publication(&body));
        }
    }
}

//! Answers of the app: HTTP responses that arrive in pieces, and the JSON in them.

use std::mem;

use serde_json::Value;

use super::Input;
use super::serde_values::{Members, is_grammatical};
use crate::protocol::json::NESTING_MAX;
use crate::protocol::rpc::{RpcStatus, decode_answer};
use crate::rpc::response::{End, RPC_RESPONSE_BYTES_MAX, Response, ResponseDecoder, ResponseError};

/// The input is a piece size, how the connection ends, then what the app sends: a response, or the body of one. A response
/// must be the same for every piece size; a body must mean what `serde_json` reads in it.
pub fn rpc_answer(data: &[u8]) {
    let mut input = Input(data);
    let piece_bytes = input.piece_bytes();
    let choice = input.byte();
    if choice & 2 != 0 {
        return check_body(input.0);
    }
    let end = match choice & 1 {
        0 => End::Closed,
        _ => End::Broken,
    };
    let whole = exchange(input.0, input.0.len().max(1), end);
    let pieces = exchange(input.0, piece_bytes, end);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole, pieces);
            assert!(whole.body.len() <= RPC_RESPONSE_BYTES_MAX);
            assert!(whole.status == 200 || whole.body.is_empty());
            check_body(&whole.body);
        }
        (Err(whole), Err(pieces)) => assert_eq!(kind(&whole), kind(&pieces)),
        (whole, pieces) => panic!("whole {whole:?}, in pieces {pieces:?}"),
    }
}

fn exchange(bytes: &[u8], piece_bytes: usize, end: End) -> Result<Response, ResponseError> {
    let mut decoder = ResponseDecoder::new();
    let mut complete = false;
    for piece in bytes.chunks(piece_bytes) {
        let now = decoder.push(piece)?;
        assert!(now || !complete, "a complete response stays complete");
        assert!(decoder.started());
        assert!(!(now && decoder.in_head()));
        complete = now;
    }
    if !complete {
        decoder.end(end)?;
    }
    decoder.finish().map_err(ResponseError::Bad)
}

/// The kind of error, without the text: the pieces may decide whether a head is first found too large or malformed.
fn kind(error: &ResponseError) -> impl PartialEq + std::fmt::Debug + use<> {
    let cause = match error {
        ResponseError::Bad(cause) => Some(mem::discriminant(cause)),
        ResponseError::Closed | ResponseError::NotHttp(_) => None,
    };
    (mem::discriminant(error), cause)
}

/// The decoder must find in a body what `serde_json` finds.
fn check_body(body: &[u8]) {
    if body.len() > NESTING_MAX {
        return;
    }
    let Ok(answer) = decode_answer(body) else {
        return;
    };
    assert!(is_grammatical(body));
    let Ok(members) = serde_json::from_slice::<Members>(body) else {
        return;
    };
    assert_eq!(answer.status, status(&members));
    assert_eq!(answer.identifiers, members.last_text("identifiers"));
    assert_eq!(answer.error_msg, members.last_text("error_msg"));
    assert_eq!(answer.streams, texts(&members, "streams"));
    assert_eq!(answer.stopped_streams, texts(&members, "stopped_streams"));
    assert_eq!(answer.transmissions, texts(&members, "transmissions"));
    assert_eq!(answer.disconnect, is_true(&members, "disconnect"));
    assert_eq!(answer.stop_streams, is_true(&members, "stop_streams"));
}

fn status(members: &Members) -> RpcStatus {
    match members.last("status") {
        Some(Value::String(name)) if name == "SUCCESS" => RpcStatus::Success,
        Some(Value::String(name)) if name == "FAILURE" => RpcStatus::Failure,
        Some(Value::Number(number)) if number.as_i64() == Some(1) => RpcStatus::Success,
        Some(Value::Number(number)) if number.as_i64() == Some(2) => RpcStatus::Failure,
        _ => RpcStatus::Error,
    }
}

fn texts<'a>(members: &'a Members, name: &str) -> Vec<&'a str> {
    let list = members.last(name).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn is_true(members: &Members, name: &str) -> bool {
    members.last(name) == Some(&Value::Bool(true))
}

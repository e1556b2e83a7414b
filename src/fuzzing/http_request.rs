//! Requests: heads that arrive in pieces, their meaning, their bodies, and the answers to an upgrade.

use super::Input;
use crate::wire::handshake::{UpgradeError, encode_refusal, encode_switching_protocols, upgrade};
use crate::wire::http_body::{BodyFraming, ChunkedDecoder};
use crate::wire::http_head::{HeadLimits, HeadScanner, HttpError};
use crate::wire::http_request::RequestHead;
use crate::wire::origins::AllowedOrigins;
use crate::wire::query::query_param_last;

const SMALL: HeadLimits = HeadLimits {
    head_bytes_max: 200,
    headers_max: 5,
};

/// The input is a piece size, a choice of limits, then what a client sends. A head in pieces must end where the whole head
/// ends, within its limits. A chunked body must be the same for any pieces, and never larger than allowed. An answer must be
/// exactly one answer.
pub fn http_request(data: &[u8]) {
    let mut input = Input(data);
    let piece_bytes = input.piece_bytes();
    let (limits, body_bytes_max) = match input.byte() % 2 {
        0 => (HeadLimits::default(), 1 << 16),
        _ => (SMALL, 64),
    };
    let bytes = input.0;
    let whole = RequestHead::decode(bytes, &limits);
    let end = find_end_in_pieces(bytes, piece_bytes, &limits);
    let (head, taken) = match (whole, end) {
        (Ok(Some(head)), Ok(Some(end))) => {
            assert_eq!(head.1, end, "head and scanner disagree about the end");
            head
        }
        (Ok(None), Ok(None)) => return assert!(!is_complete(bytes), "the end was not seen"),
        (Err(whole), Err(pieces)) => return assert_eq!(whole, pieces),
        (Err(HttpError::HeadTooLarge { .. }), end) | (Ok(_), end @ Err(_)) => {
            panic!("pieces make a difference: {end:?}")
        }
        (Err(error), Ok(Some(_))) => return assert!((400..600).contains(&error.status())),
        (whole, end) => panic!("whole {whole:?}, in pieces {end:?}"),
    };
    assert!(taken <= limits.head_bytes_max);
    check_fields(&head, &limits);
    check_upgrade(&head);
    check_body(&head, &bytes[taken..], piece_bytes, body_bytes_max);
}

fn find_end_in_pieces(
    bytes: &[u8],
    piece_bytes: usize,
    limits: &HeadLimits,
) -> Result<Option<usize>, HttpError> {
    let mut scanner = HeadScanner::default();
    let mut arrived = 0;
    loop {
        arrived = bytes.len().min(arrived + piece_bytes);
        match scanner.find_end(&bytes[..arrived], limits)? {
            None if arrived < bytes.len() => {}
            end => return Ok(end),
        }
    }
}

fn is_complete(bytes: &[u8]) -> bool {
    let mut slots = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut slots);
    matches!(request.parse(bytes), Ok(httparse::Status::Complete(_)))
}

fn check_fields(head: &RequestHead, limits: &HeadLimits) {
    assert!(head.headers().count() <= limits.headers_max);
    for (name, value) in head.headers() {
        assert!(!name.is_empty() && !name.contains([' ', ':', '\r', '\n', '\0']));
        assert!(!value.contains(['\r', '\n', '\0']));
        assert!(head.header_values(name).any(|other| other == value));
    }
    assert!(!head.method().is_empty() && !head.path().is_empty());
    assert!(!head.target().contains([' ', '\r', '\n', '\0']));
    assert!(!head.path().contains('?'));
    if let Some(query) = head.query() {
        let _ = query_param_last(query, "jid");
    }
    let _ = (head.host(), head.keep_alive(), head.expects_continue());
}

/// For any request, the answer is one head, and of the client's bytes it contains only the hash of the key.
fn check_upgrade(head: &RequestHead) {
    let mut answer = Vec::new();
    match upgrade(head, &AllowedOrigins::new(&[]), true) {
        Ok(agreed) => {
            encode_switching_protocols(&agreed, &mut answer);
            assert_eq!(parse_answer(&answer), (101, answer.len()));
            assert_eq!(head.method(), "GET");
        }
        Err(error) => {
            encode_refusal(error, "Sun, 06 Nov 1994 08:49:37 GMT", false, &mut answer);
            let (status, head_bytes) = parse_answer(&answer);
            assert_eq!(status, error.status());
            assert!(head_bytes < answer.len());
            assert_ne!(error, UpgradeError::OriginNotAllowed);
        }
    }
}

fn parse_answer(answer: &[u8]) -> (u16, usize) {
    let mut slots = [httparse::EMPTY_HEADER; 8];
    let mut response = httparse::Response::new(&mut slots);
    match response.parse(answer) {
        Ok(httparse::Status::Complete(bytes)) => (response.code.unwrap_or(0), bytes),
        other => panic!("not a head: {other:?}"),
    }
}

fn check_body(head: &RequestHead, bytes: &[u8], piece_bytes: usize, body_bytes_max: usize) {
    let has = |name| head.header(name).is_some();
    match head.body_framing() {
        Ok(BodyFraming::None) => {
            assert!(!has("content-length") && !has("transfer-encoding"));
        }
        Ok(BodyFraming::Length(_)) => assert!(!has("transfer-encoding")),
        Ok(BodyFraming::Chunked) => assert!(!has("content-length")),
        Err(error) => assert!((400..600).contains(&error.status())),
    }
    let whole = decode_chunks(bytes, bytes.len().max(1), body_bytes_max);
    assert_eq!(whole, decode_chunks(bytes, piece_bytes, body_bytes_max));
    let chunked = encode_chunks(bytes, piece_bytes);
    let decoded = decode_chunks(&chunked, piece_bytes, bytes.len());
    assert_eq!(decoded, Ok(Some((bytes.to_vec(), chunked.len()))));
}

/// The body and the number of bytes it took, or `None` while its end is missing.
fn decode_chunks(
    bytes: &[u8],
    piece_bytes: usize,
    body_bytes_max: usize,
) -> Result<Option<(Vec<u8>, usize)>, HttpError> {
    let mut decoder = ChunkedDecoder::default();
    let (mut body, mut taken) = (Vec::new(), 0);
    for piece in bytes.chunks(piece_bytes) {
        let (consumed, done) = decoder.decode(piece, &mut body, body_bytes_max)?;
        assert!(body.len() <= body_bytes_max);
        taken += consumed;
        if done {
            return Ok(Some((body, taken)));
        }
        assert_eq!(consumed, piece.len(), "an unfinished body takes everything");
    }
    Ok(None)
}

fn encode_chunks(body: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for chunk in body.chunks(chunk_bytes) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

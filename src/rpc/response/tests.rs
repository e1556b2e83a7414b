use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;

use super::*;

/// Feeds `input` in pieces of `size` bytes, then the end of the connection if the response is not complete without it.
fn decode(input: &[u8], size: usize) -> Result<Response, String> {
    let mut decoder = ResponseDecoder::new();
    for piece in input.chunks(size) {
        decoder.push(piece).map_err(|error| format!("{error:?}"))?;
    }
    if !decoder.is_done() {
        decoder
            .end(End::Closed)
            .map_err(|error| format!("{error:?}"))?;
    }
    decoder.finish().map_err(|error| format!("{error:?}"))
}

/// The result must not depend on the pieces. `Err` is the start of the debug text.
fn check(input: impl AsRef<[u8]>, expected: Result<(u16, &str, bool), &str>) {
    let input = input.as_ref();
    for size in [1, 2, 3, 7, 64, usize::MAX] {
        let shown = String::from_utf8_lossy(&input[..input.len().min(200)]);
        match (decode(input, size), &expected) {
            (Ok(response), Ok((status, body, keep_alive))) => {
                let got = (
                    response.status,
                    String::from_utf8_lossy(&response.body).into_owned(),
                    response.keep_alive,
                );
                assert_eq!(
                    got,
                    (*status, (*body).to_owned(), *keep_alive),
                    "{size}: {shown}"
                );
            }
            (Err(error), Err(start)) => assert!(error.starts_with(start), "{size}: {error}"),
            (got, _) => panic!("pieces of {size}: {got:?} instead of {expected:?} for {shown}"),
        }
    }
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bodies_end_where_the_head_says() {
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        Ok((200, "hello", true)),
    );
    check(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nContent-Length:5\r\n\r\nhello",
        Ok((200, "hello", true)),
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        Ok((200, "", true)),
    );
    check(
        "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        Ok((200, "ok", true)),
    );
    check(
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        Ok((200, "until the end", false)),
    );
    check("HTTP/1.0 200 OK\r\n\r\nold", Ok((200, "old", false)));
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nB;x=\"y\"\r\n, chunked w\r\n0\r\n\r\n",
        Ok((200, "hello, chunked w", true)),
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n000\r\nTrailer: x\r\nOther: y\r\n\r\n",
        Ok((200, "a", true)),
    );
    check("HTTP/1.1 204 No Content\r\n\r\n", Ok((204, "", true)));
}

#[test]
fn the_connection_is_kept_only_when_both_sides_agree() {
    let with = |headers: &str, version: &str| {
        format!("HTTP/{version} 200 OK\r\n{headers}Content-Length: 2\r\n\r\nok")
    };
    check(with("Connection: close\r\n", "1.1"), Ok((200, "ok", false)));
    check(
        with("connection: foo, CLOSE\r\n", "1.1"),
        Ok((200, "ok", false)),
    );
    check(with("", "1.0"), Ok((200, "ok", false)));
    check(
        with("Connection: Keep-Alive\r\n", "1.0"),
        Ok((200, "ok", true)),
    );
    check(
        with("", "1.1") + "HTTP/1.1 408 x\r\n",
        Ok((200, "ok", false)),
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Ok((200, "a", false)),
    );
}

#[test]
fn interim_responses_are_skipped() {
    check(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na",
        Ok((200, "a", true)),
    );
    check(
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        Ok((101, "", false)),
    );
    check(
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(3_000),
        Err("NotHttp"),
    );
}

#[test]
fn the_body_of_a_failed_call_is_skipped_and_not_kept() {
    check(
        "HTTP/1.1 500 Oops\r\nContent-Length: 5\r\n\r\n<html",
        Ok((500, "", true)),
    );
    check(
        "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        Ok((302, "", true)),
    );
    check(
        "HTTP/1.1 401 Unauthorized\r\n\r\nUnauthorized",
        Ok((401, "", false)),
    );
    check(
        "HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\ncut",
        Ok((500, "", false)),
    );
    check(
        "HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        Ok((500, "", false)),
    );
    check(
        "HTTP/1.1 500 Oops\r\nContent-Length: 99999999999999\r\n\r\n",
        Ok((500, "", false)),
    );
    check(
        "HTTP/1.1 500 Oops\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        Ok((500, "", true)),
    );
}

#[test]
fn what_is_not_http_is_a_transport_error() {
    check("SSH-2.0-OpenSSH_9.9\r\n", Err("NotHttp"));
    check("HTTP/2.0 200 OK\r\n\r\n", Err("NotHttp"));
    check("HTTP/1.1 abc\r\n\r\n", Err("NotHttp"));
    check("HTTP/1.1 200 OK\r\nbad header\r\n\r\n", Err("NotHttp"));
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        Err("NotHttp"),
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        Err("NotHttp"),
    );
    check(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        Err("NotHttp"),
    );
    check(
        format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(RPC_HEAD_BYTES_MAX)),
        Err("NotHttp"),
    );
    check(
        format!(
            "HTTP/1.1 200 OK\r\n{}\r\n",
            "X: y\r\n".repeat(HEADERS_MAX + 1)
        ),
        Err("NotHttp"),
    );
    check("", Err("Closed"));
    check("HTTP/1.1 200 OK\r\nContent-Le", Err("Closed"));
}

#[test]
fn a_200_that_cannot_be_read_to_its_end_is_a_bad_response() {
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        Err("Bad(Truncated { received: 3 })"),
    );
    let chunked =
        |rest: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    check(chunked("5\r\nhel"), Err("Bad(Truncated { received: 3 })"));
    check(
        chunked("1\r\na\r\n0\r\n"),
        Err("Bad(Truncated { received: 1 })"),
    );
    check(chunked("g\r\n"), Err("Bad(BadChunk)"));
    check(chunked("\r\n"), Err("Bad(BadChunk)"));
    check(chunked("1\na\r\n"), Err("Bad(BadChunk)"));
    check(chunked("fffffffffffffffff\r\n"), Err("Bad(BadChunk)"));
    check(chunked("1\r\nab\r\n"), Err("Bad(BadChunk)"));
    check(
        chunked(&format!("1;{}", "x".repeat(CHUNK_LINE_BYTES_MAX as usize))),
        Err("Bad(BadChunk)"),
    );
    check(
        chunked(&format!("0\r\n{}", "X: y\r\n".repeat(20_000))),
        Err("Bad(BadChunk)"),
    );
    check(chunked("2000000\r\n"), Err("Bad(Truncated"));
    let over = RPC_RESPONSE_BYTES_MAX + 1;
    check(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {over}\r\n\r\n"),
        Err("Bad(TooLarge)"),
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        Err("UnknownEncoding"),
    );
}

#[test]
fn chunk_lines_and_trailers_may_be_longer_than_those_of_requests() {
    let line = "x".repeat(CHUNK_LINE_BYTES_MAX as usize - 10);
    let trailers = "X: y\r\n".repeat(10_000);
    check(
        format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;{line}\r\na\r\n0\r\n{trailers}\r\n"
        ),
        Ok((200, "a", true)),
    );
}

#[test]
fn gzip_bodies_are_unpacked_within_the_limit() {
    let with = |body: &[u8]| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    check(
        with(&gzip(b"{\"status\":1}")),
        Ok((200, "{\"status\":1}", true)),
    );
    check(with(b"not gzip at all"), Err("BadGzip"));
    let packed = gzip(b"{\"status\":1}");
    check(with(&packed[..packed.len() - 4]), Err("BadGzip"));
    let bomb = with(&gzip(&vec![0; RPC_RESPONSE_BYTES_MAX + 1]));
    assert_eq!(decode(&bomb, usize::MAX).unwrap_err(), "TooLarge");
    let large = with(&gzip(&vec![b'x'; RPC_RESPONSE_BYTES_MAX]));
    assert_eq!(
        decode(&large, usize::MAX).unwrap().body.len(),
        RPC_RESPONSE_BYTES_MAX
    );
}

#[test]
fn a_body_without_a_length_is_limited_too() {
    let mut decoder = ResponseDecoder::new();
    decoder.push(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let piece = vec![0; RPC_RESPONSE_BYTES_MAX];
    assert!(!decoder.push(&piece).unwrap());
    assert!(matches!(
        decoder.push(b"x"),
        Err(ResponseError::Bad(BadResponse::TooLarge))
    ));
}

fn valid() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    (
        proptest::collection::vec(any::<u8>(), 0..200),
        0..3,
        1..50_usize,
    )
        .prop_map(|(body, framing, size)| {
            let mut wire = b"HTTP/1.1 200 OK\r\nServer: x\r\n".to_vec();
            match framing {
                0 => wire.extend(
                    format!("Content-Length: {}\r\n\r\n", body.len())
                        .bytes()
                        .chain(body.clone()),
                ),
                1 => wire.extend(b"\r\n".iter().copied().chain(body.clone())),
                _ => {
                    wire.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                    for piece in body.chunks(size) {
                        wire.extend(
                            format!("{:x}\r\n", piece.len())
                                .bytes()
                                .chain(piece.iter().copied()),
                        );
                        wire.extend(b"\r\n");
                    }
                    wire.extend(b"0\r\n\r\n");
                }
            }
            (wire, body)
        })
}

proptest! {
    #[test]
    fn every_cut_gives_the_same_body((wire, body) in valid(), cut in any::<prop::sample::Index>()) {
        let at = cut.index(wire.len());
        let mut decoder = ResponseDecoder::new();
        let mut complete = decoder.push(&wire[..at]).unwrap();
        complete |= decoder.push(&wire[at..]).unwrap();
        if !complete {
            decoder.end(End::Closed).unwrap();
        }
        prop_assert_eq!(decoder.finish().unwrap().body, body);
    }

    #[test]
    fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..300), size in 1..20_usize) {
        let _ = decode(&garbage, size);
        let _ = decode(&[b"HTTP/1.1 200 OK\r\n", garbage.as_slice()].concat(), size);
        let _ = decode(&[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", garbage.as_slice()].concat(), size);
    }
}

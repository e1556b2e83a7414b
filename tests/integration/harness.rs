//! The tests' own tools, where a mistake would make other tests pass for nothing.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::http::HttpConnection;
use crate::support::{Rails, keys};

/// A connect call as `contract/rpc.md` §11 E1 has it.
const CONNECT: &str =
    r#"{"env":{"url":"http://localhost/cable","headers":{"REMOTE_ADDR":"127.0.0.1"}}}"#;

/// Sends `body` to a fresh app; true when the app has nothing to complain about at its end.
fn app_is_content(target: &str, token: &str, extra: &[(&str, &str)], body: &str) -> bool {
    let rails = Rails::start();
    let address: SocketAddr = rails
        .url()
        .trim_start_matches("http://")
        .trim_end_matches("/_anycable")
        .parse()
        .expect("an address");
    let mut connection = HttpConnection::open(address).expect("accepted");
    let authorization = format!("Bearer {token}");
    let mut headers = vec![
        ("User-Agent", "Go-http-client/1.1"),
        ("Authorization", authorization.as_str()),
        ("Content-Type", "application/json"),
        ("X-Anycable-Meta-Protov", "v1"),
        ("X-Anycable-Meta-Sid", "sid"),
        ("Accept-Encoding", "gzip"),
    ];
    headers.extend_from_slice(extra);
    connection
        .request("POST", target, &headers, body.as_bytes())
        .expect("an answer");
    catch_unwind(AssertUnwindSafe(|| drop(rails))).is_ok()
}

#[test]
fn derived_tokens_are_the_check_values_of_the_contract() {
    let table = [
        (
            keys::rpc_token("S"),
            "7a1e9430150f91797f7c5a217896f7b0def9f52b0987e04fe1793fd69d9e92f9",
        ),
        (
            keys::rpc_token("s3cr3t"),
            "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d",
        ),
        (
            keys::broadcast_token("S"),
            "b015d1a3c08cf2fec39f3014255191ef020d4ac845ac9ee7ab068b97234c62c8",
        ),
        (
            keys::api_token("qwerty"),
            "bdd0244b3664404d03b7d0c2f1b946dc4fc6c13fdcbfa2be62a4a28deb04d096",
        ),
    ];
    for (derived, expected) in table {
        assert_eq!(derived, expected);
    }
    let signed = keys::signed_stream_name("s3Krit", "chat/2023");
    assert_eq!(
        signed,
        "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c"
    );
    assert_eq!(
        keys::verified_stream_name("s3Krit", &signed).as_deref(),
        Some("chat/2023")
    );
    assert_eq!(keys::verified_stream_name("other", &signed), None);
}

#[test]
fn app_accepts_the_calls_of_the_contract() {
    let token = keys::rpc_token(keys::SECRET);
    assert!(app_is_content("/_anycable/connect", &token, &[], CONNECT));
    let command = r#"{"command":"message","identifier":"A","connection_identifiers":"i","data":"{\"a\": 1}","env":{"url":"u","headers":{"REMOTE_ADDR":"1"},"istate":{"a":"1"}}}"#;
    assert!(app_is_content("/_anycable/command", &token, &[], command));
    let disconnect = r#"{"identifiers":"i","subscriptions":["A"],"env":{"url":"u","headers":{"REMOTE_ADDR":"1"},"cstate":{"a":"1"}}}"#;
    assert!(app_is_content(
        "/_anycable/disconnect",
        &token,
        &[],
        disconnect
    ));
}

#[test]
fn app_complains_about_every_deviation() {
    let token = keys::rpc_token(keys::SECRET);
    let connect = "/_anycable/connect";
    assert!(!app_is_content(connect, "wrong", &[], CONNECT), "token");
    assert!(!app_is_content("/connect", &token, &[], CONNECT), "path");
    assert!(
        !app_is_content("/_anycable/perform", &token, &[], CONNECT),
        "method"
    );
    assert!(
        !app_is_content(connect, &token, &[("X-Extra", "1")], CONNECT),
        "header"
    );
    assert!(
        !app_is_content(connect, &token, &[("Accept-Encoding", "gzip")], CONNECT),
        "repeated header"
    );
    let bodies = [
        CONNECT.replace(r#""env""#, r#""sid":"x","env""#),
        CONNECT.replace(r#""url""#, r#""cstate":{},"url""#),
        CONNECT.replace(r#""url""#, r#""cstate":{"a":1},"url""#),
        CONNECT.replace(r#""url""#, r#""istate":{"a":"1"},"url""#),
        CONNECT.replace(r#""url""#, r#""unknown":"1","url""#),
        CONNECT.replace("REMOTE_ADDR", "remote_addr"),
        CONNECT.replace(",", ", "),
        CONNECT.replace("}}}", "}}"),
        String::new(),
    ];
    for body in bodies {
        assert!(!app_is_content(connect, &token, &[], &body), "{body}");
    }
    let unknown =
        r#"{"command":"whisper","identifier":"A","env":{"url":"u","headers":{"REMOTE_ADDR":"1"}}}"#;
    assert!(
        !app_is_content("/_anycable/command", &token, &[], unknown),
        "command"
    );
}

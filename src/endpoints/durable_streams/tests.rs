//! Requests of readers, and the answers to them.

use super::*;
use crate::config::{Startup, load};
use crate::protocol::position::Epoch;
use crate::wire::http_head::HeadLimits;

/// `chat/2023` signed with `s3Krit`.
const SIGNED: &str =
    "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c";
const STREAM: &str = "chat/2023";

fn policy(args: &[&str], skips_authentication: bool) -> ReadPolicy {
    let all = ["--norpc", "--ignore-config-path", "--streams_secret=s3Krit"];
    let all = all.iter().chain(args).map(|arg| (*arg).to_owned());
    match load(&all.collect::<Vec<_>>(), &[]) {
        Ok(Startup::Run(config)) => ReadPolicy::new(&config, skips_authentication),
        other => panic!("{other:?}"),
    }
}

fn public() -> ReadPolicy {
    policy(&["--public_streams"], true)
}

fn head(method: &str, query: &str, fields: &str) -> RequestHead {
    let text = format!("{method} /ds/x{query} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
        .expect("a good head")
        .expect("a whole head");
    head
}

fn ask(policy: &ReadPolicy, method: &str, query: &str, fields: &str) -> ReadVerdict {
    check(
        &head(method, query, fields),
        Some(STREAM.to_owned()),
        policy,
    )
}

fn read(policy: &ReadPolicy, method: &str, query: &str, fields: &str) -> StreamReading {
    match ask(policy, method, query, fields) {
        ReadVerdict::Read(reading) => *reading,
        ReadVerdict::Answer(answer) => panic!("{method} {query}: {answer:?}"),
    }
}

#[track_caller]
fn check_status(verdict: ReadVerdict, expected: u16) -> Response {
    let ReadVerdict::Answer(response) = verdict else {
        panic!("not refused: {verdict:?}");
    };
    assert_eq!(response.status, expected, "{response:?}");
    response
}

#[test]
fn parameters_say_how_to_read_from_where() {
    fn check(method: &str, query: &str, mode: ReadMode, offset: Offset, cursor: Option<Cursor>) {
        let reading = read(&public(), method, query, "");
        assert_eq!(
            (reading.mode, reading.offset, reading.cursor),
            (mode, offset, cursor),
            "{method} {query}"
        );
    }
    let after = |offset, epoch| {
        Offset::After(Position {
            offset,
            epoch: Epoch::decode(epoch),
        })
    };
    check("GET", "", ReadMode::CatchUp, Offset::Beginning, None);
    check(
        "GET",
        "?live=&offset=-1",
        ReadMode::CatchUp,
        Offset::Beginning,
        None,
    );
    check(
        "GET",
        "?offset=now&x=1",
        ReadMode::CatchUp,
        Offset::Now,
        None,
    );
    check(
        "GET",
        "?offset=7::abcdefgh",
        ReadMode::CatchUp,
        after(7, "abcdefgh"),
        None,
    );
    check(
        "GET",
        "?offset=7%3A%3Aabcdefgh",
        ReadMode::CatchUp,
        after(7, "abcdefgh"),
        None,
    );
    check(
        "GET",
        "?live=long-poll&offset=0&cursor=5",
        ReadMode::LongPoll,
        Offset::Beginning,
        Some(5),
    );
    check(
        "GET",
        "?live=sse&offset=now&cursor=x&cursor=5",
        ReadMode::Events,
        Offset::Now,
        None,
    );
    check("HEAD", "", ReadMode::Head, Offset::Beginning, None);
    check(
        "HEAD",
        "?live=sse&offset=now",
        ReadMode::Head,
        Offset::Now,
        None,
    );
}

#[test]
fn parameters_are_checked_before_the_method_and_that_before_access() {
    let closed = policy(&[], true);
    for query in [
        "?live=true",
        "?live=long-poll",
        "?live=sse",
        "?offset=",
        "?offset=0,1",
        "?offset=-1&offset=-1",
        "?offset=%zz",
        "?a;b",
    ] {
        for method in ["GET", "HEAD", "POST"] {
            let answer = check_status(ask(&closed, method, query, ""), 400);
            assert!(answer.body.starts_with(b"{\"error\":\""), "{query}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "get"] {
        let answer = check_status(ask(&closed, method, "", ""), 405);
        assert_eq!(answer.header("Allow"), Some("GET, HEAD, OPTIONS"));
    }
    check_status(ask(&closed, "GET", "", ""), 401);
    check_status(ask(&closed, "OPTIONS", "?live=true", ""), 200);
    for name in [
        None,
        Some(String::new()),
        Some("a".repeat(READ_NAME_BYTES_MAX + 1)),
    ] {
        check_status(check(&head("GET", "", ""), name, &public()), 400);
    }
    let longest = Some("a".repeat(READ_NAME_BYTES_MAX));
    let verdict = check(&head("GET", "", ""), longest, &public());
    assert!(matches!(verdict, ReadVerdict::Read(_)));
}

#[test]
fn a_signed_name_opens_its_own_stream_only() {
    fn check(policy: &ReadPolicy, stream: &str, query: &str, fields: &str, expected: bool) {
        let verdict = super::check(&head("GET", query, fields), Some(stream.to_owned()), policy);
        let is_read = matches!(verdict, ReadVerdict::Read(_));
        assert_eq!(is_read, expected, "{stream} {query} {fields}");
    }
    let closed = policy(&[], false);
    let query = &format!("?signed={}", SIGNED.replace('=', "%3D"));
    let header = &format!("X-Signed: {SIGNED}\r\n");
    check(&closed, STREAM, query, "", true);
    check(&closed, STREAM, "", header, true);
    check(&closed, STREAM, "?signed=", header, true);
    check(&closed, STREAM, query, "X-Signed: x\r\n", true);
    check(&closed, STREAM, "?signed=x", header, false);
    check(&closed, "chat/2024", query, "", false);
    check(&closed, "chat/2024", "", header, false);
    check(&closed, STREAM, "", "", false);
    // A name that is public is not read with a signed name that is another's.
    check(&public(), "chat/2024", query, "", false);
    check(&public(), "chat/2024", "", "", true);
    let without_secret = policy(&["--streams_secret=none", "--public_streams"], true);
    check(&without_secret, STREAM, query, "", false);
}

fn found(first: u64, last: u64) -> Found {
    let at = |offset| {
        Some(Position {
            offset,
            epoch: Epoch::decode("abcdefgh"),
        })
    };
    Found {
        first: at(first),
        last: at(last),
    }
}

fn fields(response: &Response, names: &[&str]) -> Vec<Option<String>> {
    let field = |name: &&str| response.header(name).map(str::to_owned);
    names.iter().map(field).collect()
}

#[test]
fn an_answer_with_messages_says_where_to_read_on() {
    let policy = public();
    let answer = |query: &str, fields: &str| {
        policy.messages(&read(&policy, "GET", query, fields), found(3, 9), 77)
    };
    let first = answer("", "");
    assert_eq!(first.status, 200);
    let names = [
        "Content-Type",
        "Cache-Control",
        "ETag",
        "Stream-Next-Offset",
        "Stream-Cursor",
        "Stream-Up-To-Date",
    ];
    let expected = [
        "application/json",
        "public, max-age=60, stale-while-revalidate=300",
        "\"3:0000000000000009::abcdefgh\"",
        "0000000000000009::abcdefgh",
        "77",
        "true",
    ];
    assert_eq!(
        fields(&first, &names),
        expected.map(|text| Some(text.to_owned()))
    );
    let tag = expected[2];
    for known in [tag.to_owned(), format!("\"x\", W/{tag}"), "*".to_owned()] {
        let field = format!("If-None-Match: {known}\r\n");
        assert_eq!(answer("", &field).status, 304, "{known}");
        assert_eq!(
            answer("?live=long-poll&offset=-1", &field).status,
            200,
            "{known}"
        );
        let now = answer("?offset=now", &field);
        assert_eq!((now.status, now.header("ETag")), (200, None));
        assert_eq!(now.header("Cache-Control"), Some("no-store"));
    }
    assert_eq!(answer("", "If-None-Match: \"4:x\"\r\n").status, 200);
    let unknown = policy.messages(&read(&policy, "GET", "", ""), Found::default(), 0);
    assert_eq!(unknown.header("Stream-Next-Offset"), Some("0"));
    assert_eq!(unknown.header("ETag"), Some("\"0:0\""));
}

#[test]
fn only_what_the_url_alone_opens_is_for_shared_caches() {
    fn check(policy: &ReadPolicy, query: &str, fields: &str, expected: &str) {
        let answer = policy.messages(&read(policy, "GET", query, fields), found(1, 1), 0);
        let cache_control = answer.header("Cache-Control").expect("a header");
        assert!(
            cache_control.starts_with(expected),
            "{cache_control} {query} {fields}"
        );
    }
    let query = &format!("?signed={SIGNED}");
    let header = &format!("X-Signed: {SIGNED}\r\n");
    check(&public(), "", "", "public,");
    check(&public(), query, "", "public,");
    check(&public(), "", header, "private,");
    let authenticated = policy(&["--public_streams"], false);
    check(&authenticated, "", "", "private,");
    check(
        &policy(&["--public_streams", "--noauth"], false),
        "",
        "",
        "public,",
    );
    let tokens = [
        "--public_streams",
        "--noauth",
        "--jwt_secret=k",
        "--enforce_jwt",
    ];
    check(&policy(&tokens, false), "", "", "private,");
}

#[test]
fn other_answers_are_never_stored() {
    let policy = public();
    let reading = read(&policy, "GET", "", "");
    let metadata = policy.metadata(&reading, found(0, 9));
    let nothing = policy.nothing_came(&reading, found(0, 9), 5);
    assert_eq!((metadata.status, nothing.status), (200, 204));
    for answer in [&metadata, &nothing] {
        let expected = [
            Some("0000000000000009::abcdefgh".to_owned()),
            Some("no-store".to_owned()),
        ];
        assert_eq!(
            fields(answer, &["Stream-Next-Offset", "Cache-Control"]),
            expected
        );
    }
    assert_eq!(nothing.header("Stream-Cursor"), Some("5"));
    assert_eq!(nothing.header("Stream-Up-To-Date"), Some("true"));
    let gone = policy.refusal(&reading, ReadRefusal::Gone);
    assert_eq!(
        (gone.status, gone.header("Content-Type")),
        (410, Some(JSON))
    );
    assert_eq!(
        &*gone.body,
        br#"{"error":"what follows this offset is not kept, read from -1 or now"}"#
    );
    assert_eq!(gone.header("Cache-Control"), Some("no-store"));
    let events = policy.events(&reading);
    assert_eq!(events.header("Content-Type"), Some("text/event-stream"));
}

#[test]
fn every_answer_has_the_headers_for_browsers() {
    let policy = policy(
        &[
            "--allowed_origins=a.example",
            "--jwt_secret=k",
            "--public_streams",
        ],
        true,
    );
    let check = |origin: &str, expected: Option<&str>| {
        let field = format!("Origin: {origin}\r\n");
        let refused = check_status(ask(&policy, "GET", "?live=x", &field), 400);
        let preflight = check_status(ask(&policy, "OPTIONS", "", &field), 200);
        let reading = read(&policy, "GET", "", &field);
        let answered = policy.messages(&reading, found(1, 1), 0);
        for answer in [refused, preflight, answered] {
            assert_eq!(answer.header("Access-Control-Allow-Origin"), expected);
            assert_eq!(answer.header("Vary"), Some("Origin"));
            assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
            assert_eq!(
                answer.header("Cross-Origin-Resource-Policy"),
                Some("cross-origin")
            );
            let allowed = answer
                .header("Access-Control-Allow-Headers")
                .expect("headers");
            assert!(
                allowed.ends_with("If-None-Match, X-Signed, X-jid"),
                "{allowed}"
            );
            let exposed = answer
                .header("Access-Control-Expose-Headers")
                .expect("headers");
            assert!(
                exposed.starts_with("Stream-Next-Offset, Stream-Cursor"),
                "{exposed}"
            );
        }
    };
    check("https://A.example", Some("https://a.example"));
    check("https://b.example", None);
    let any = public().answer(200, None);
    assert_eq!(
        (
            any.header("Access-Control-Allow-Origin"),
            any.header("Vary")
        ),
        (Some("*"), None)
    );
}

//! Durable streams as their readers see them. Source: `contract/http_transports.md` §4.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{HttpConnection, Response, request};
use crate::support::rails::Answer;
use crate::support::wait::{PATIENCE, until};
use crate::support::{Driver, Stage, keys};

/// A server with public streams whose readers need no authentication.
fn stage(driver: Driver, args: &[&str]) -> Stage {
    let all = [
        &[
            "--ds",
            "--ds_skip_auth",
            "--public_streams",
            "--broker=memory",
        ],
        args,
    ]
    .concat();
    Stage::with(driver, &all)
}

fn ask(stage: &Stage, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    request(stage.server.address(), method, target, headers, b"").expect("an answer")
}

fn read(stage: &Stage, target: &str) -> Response {
    ask(stage, "GET", target, &[])
}

fn offset(response: &Response) -> &str {
    response.header("Stream-Next-Offset").expect("an offset")
}

fn messages(response: &Response) -> Vec<Value> {
    assert_eq!(response.status, 200, "{response:?}");
    serde_json::from_slice(&response.body).expect("a JSON array")
}

fn publish(stage: &Stage, stream: &str, numbers: std::ops::RangeInclusive<u64>) {
    numbers.for_each(|number| stage.publish(stream, &number.to_string()));
}

#[track_caller]
fn check_refused(response: &Response, status: u16) {
    assert_eq!(response.status, status, "{response:?}");
    let body: Value = serde_json::from_slice(&response.body).expect("JSON");
    assert!(body["error"].is_string(), "{body}");
    assert_eq!(response.header("Content-Type"), Some("application/json"));
    assert_eq!(response.header("Cache-Control"), Some("no-store"));
    assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"));
}

/// A request that has been sent, and not been answered.
fn begin(stage: &Stage, target: &str) -> HttpConnection {
    let mut connection = HttpConnection::open(stage.server.address()).expect("it accepts");
    let head = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.write(head.as_bytes()).expect("it reads");
    connection
}

/// A long poll that waits on the server.
fn begin_poll(stage: &Stage, target: &str) -> HttpConnection {
    let before = stage.server.metric("ds_poll_clients_num");
    let connection = begin(stage, target);
    stage
        .server
        .wait_for_metric("ds_poll_clients_num", before + 1);
    connection
}

/// The events of an answer, as type and data.
struct Events {
    socket: TcpStream,
    received: String,
}

impl Events {
    fn open(stage: &Stage, target: &str) -> Self {
        let mut socket = TcpStream::connect(stage.server.address()).expect("it accepts");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        // Without chunks the events come as they are.
        write!(socket, "GET {target} HTTP/1.0\r\n\r\n").expect("it reads");
        let mut events = Self {
            socket,
            received: String::new(),
        };
        let head = events.take_until("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("\r\nContent-Type: text/event-stream\r\n"),
            "{head}"
        );
        events
    }

    /// `None` at the end.
    fn take_until(&mut self, end: &str) -> Option<String> {
        let mut buffer = [0; 65_536];
        loop {
            if let Some(at) = self.received.find(end) {
                let rest = self.received.split_off(at + end.len());
                return Some(std::mem::replace(&mut self.received, rest));
            }
            match self.socket.read(&mut buffer).expect("more in time") {
                0 => return None,
                bytes => {
                    let text = std::str::from_utf8(&buffer[..bytes]).expect("ASCII here");
                    self.received.push_str(text);
                }
            }
        }
    }

    fn next(&mut self) -> Option<(String, Value)> {
        let event = self.take_until("\n\n")?;
        let mut lines = event.trim_end().lines();
        let kind = lines.next().expect("a line");
        let kind = kind.strip_prefix("event: ").expect("a type").to_owned();
        let data: Vec<&str> = lines
            .map(|line| line.strip_prefix("data:").expect("data"))
            .collect();
        let data = serde_json::from_str(&data.join("\n")).expect("JSON");
        Some((kind, data))
    }

    /// The messages of a data event, and the offset of the control event behind it.
    fn batch(&mut self) -> (Value, String) {
        let (kind, data) = self.next().expect("an event");
        assert_eq!(kind, "data");
        (data, self.control())
    }

    fn control(&mut self) -> String {
        let (kind, control) = self.next().expect("an event");
        assert_eq!(kind, "control", "{control}");
        assert_eq!(control["upToDate"], true);
        assert!(
            control["streamCursor"]
                .as_str()
                .expect("a text")
                .parse::<u64>()
                .is_ok()
        );
        control["streamNextOffset"]
            .as_str()
            .expect("a text")
            .to_owned()
    }
}

on_both_drivers! {
    fn what_is_there_is_read_and_then_what_follows(driver: Driver) {
        let stage = stage(driver, &[]);
        let empty = read(&stage, "/ds/chat/42");
        assert_eq!((messages(&empty), offset(&empty)), (vec![], "0"));
        publish(&stage, "chat/42", 1..=3);
        let first = read(&stage, "/ds/chat/42?offset=-1");
        assert_eq!(messages(&first), [1, 2, 3]);
        assert_eq!(first.header("Content-Type"), Some("application/json"));
        assert_eq!(first.header("Stream-Up-To-Date"), Some("true"));
        assert_eq!(first.header("Cache-Control"), Some("public, max-age=60, stale-while-revalidate=300"));
        assert_eq!(first.header("X-AnyCable-Version"), Some("1.6.16"));
        assert!(first.header("Stream-Cursor").expect("a cursor").parse::<u64>().is_ok());
        assert_eq!(read(&stage, "/ds/chat%2F42?offset=0").body, first.body);
        assert_eq!(read(&stage, "/ds/chat/42").body, first.body);
        let at = offset(&first).to_owned();
        let (number, epoch) = at.split_once("::").expect("an epoch");
        assert_eq!((number.parse(), epoch.len()), (Ok(3), 8));
        let nothing = read(&stage, &format!("/ds/chat/42?offset={at}"));
        assert_eq!((messages(&nothing), offset(&nothing)), (vec![], at.as_str()));
        let now = read(&stage, "/ds/chat/42?offset=now");
        assert_eq!((messages(&now), offset(&now), now.header("Cache-Control")), (vec![], at.as_str(), Some("no-store")));
        publish(&stage, "chat/42", 4..=5);
        for from in [&at, &format!("3::{epoch}")] {
            assert_eq!(messages(&read(&stage, &format!("/ds/chat/42?offset={from}"))), [4, 5]);
        }
        stage.publish("text", "no JSON \"at\" all");
        assert_eq!(messages(&read(&stage, "/ds/text")), ["no JSON \"at\" all"]);
    }

    fn a_client_that_has_it_gets_it_not_again(driver: Driver) {
        let stage = stage(driver, &[]);
        publish(&stage, "a", 1..=2);
        let first = read(&stage, "/ds/a");
        let tag = first.header("ETag").expect("a tag").to_owned();
        let again = ask(&stage, "GET", "/ds/a", &[("If-None-Match", &tag)]);
        assert_eq!((again.status, again.body.len(), again.header("ETag")), (304, 0, Some(&*tag)));
        publish(&stage, "a", 3..=3);
        let changed = ask(&stage, "GET", "/ds/a", &[("If-None-Match", &tag)]);
        assert_eq!(messages(&changed), [1, 2, 3]);
        assert_ne!(changed.header("ETag"), Some(&*tag));
    }

    fn a_position_that_cannot_be_continued_is_gone(driver: Driver) {
        let stage = stage(driver, &["--history_limit=2"]);
        publish(&stage, "a", 1..=5);
        let at = offset(&read(&stage, "/ds/a")).to_owned();
        let (_, epoch) = at.split_once("::").expect("an epoch");
        assert_eq!(messages(&read(&stage, "/ds/a")), [4, 5]);
        assert_eq!(messages(&read(&stage, &format!("/ds/a?offset=3::{epoch}"))), [4, 5]);
        let gone = [
            format!("2::{epoch}"),
            format!("0::{epoch}"),
            format!("6::{epoch}"),
            format!("18446744073709551615::{epoch}"),
            "5::abcdefgh".to_owned(),
            "5::Abcd".to_owned(),
            "5".to_owned(),
            "5::".to_owned(),
        ];
        for from in gone {
            for live in ["", "&live=long-poll", "&live=sse"] {
                check_refused(&read(&stage, &format!("/ds/a?offset={from}{live}")), 410);
            }
        }
        check_refused(&read(&stage, &format!("/ds/unknown?offset={at}")), 410);
    }

    fn what_is_no_request_for_a_stream_is_refused(driver: Driver) {
        let stage = stage(driver, &[]);
        let long = "a".repeat(4097);
        let huge = "a".repeat(30_000);
        for target in [
            "/ds/", "/ds/%ff", "/ds/a?live=x", "/ds/a?live=sse", "/ds/a?live=long-poll", "/ds/a?offset=",
            "/ds/a?offset=x", "/ds/a?offset=1,2", "/ds/a?offset=-1&offset=-1", "/ds/a?offset=%g1", "/ds/a?offset=-2",
            "/ds/a?offset=99999999999999999999::abcdefgh", &format!("/ds/{long}"), &format!("/ds/{huge}"),
        ] {
            check_refused(&read(&stage, target), 400);
        }
        let huge = "a".repeat(1 << 20);
        let mut connection = HttpConnection::open(stage.server.address()).expect("it accepts");
        // The server may end the connection before it has read all of it.
        let _ = connection.write(format!("GET /ds/{huge} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        assert!(connection.read_response(false).map_or(true, |answer| answer.status == 431));
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let answer = ask(&stage, method, "/ds/a", &[]);
            check_refused(&answer, 405);
            assert_eq!(answer.header("Allow"), Some("GET, HEAD, OPTIONS"));
        }
        let preflight = ask(&stage, "OPTIONS", "/ds/a", &[("Origin", "http://a.b")]);
        assert_eq!((preflight.status, preflight.header("Access-Control-Allow-Origin")), (200, Some("*")));
        assert_eq!(read(&stage, "/ds").status, 404);
        assert_eq!(read(&stage, "/dsx/a").status, 404);
        assert_eq!(stage.server.metric("ds_requests_total"), 0);
    }

    fn head_says_where_a_stream_ends(driver: Driver) {
        let stage = stage(driver, &[]);
        let unknown = ask(&stage, "HEAD", "/ds/a", &[]);
        assert_eq!((unknown.status, offset(&unknown)), (200, "0"));
        publish(&stage, "a", 1..=2);
        let known = ask(&stage, "HEAD", "/ds/a?offset=-1", &[]);
        assert_eq!(offset(&known), offset(&read(&stage, "/ds/a")));
        assert_eq!(known.header("Cache-Control"), Some("no-store"));
        assert_eq!(known.header("Content-Type"), Some("application/json"));
    }

    fn a_long_poll_is_answered_at_once_when_something_is_there(driver: Driver) {
        let stage = stage(driver, &[]);
        publish(&stage, "a", 1..=2);
        let answer = read(&stage, "/ds/a?offset=-1&live=long-poll");
        assert_eq!(messages(&answer), [1, 2]);
        let cursor: u64 = answer.header("Stream-Cursor").expect("a cursor").parse().expect("a number");
        let again = read(&stage, &format!("/ds/a?offset=-1&live=long-poll&cursor={cursor}"));
        let next: u64 = again.header("Stream-Cursor").expect("a cursor").parse().expect("a number");
        assert!((cursor + 1..=cursor + 60).contains(&next), "{cursor} {next}");
    }

    fn a_long_poll_waits_for_the_next_message(driver: Driver) {
        let stage = stage(driver, &["--ds_poll_interval=60"]);
        publish(&stage, "a", 1..=1);
        let at = offset(&read(&stage, "/ds/a")).to_owned();
        let targets = ["/ds/a?offset=now&live=long-poll".to_owned(), format!("/ds/a?offset={at}&live=long-poll")];
        let mut polls: Vec<_> = targets.iter().map(|target| begin_poll(&stage, target)).collect();
        let mut other = begin_poll(&stage, "/ds/b?offset=-1&live=long-poll");
        // What has no position is nothing for a durable stream.
        let transient = json!({ "stream": "a", "data": "0", "meta": { "transient": true } });
        stage.broadcaster().post(&transient.to_string());
        let batch = json!([{ "stream": "a", "data": "2" }, { "stream": "a", "data": "3" }]);
        stage.broadcaster().post(&batch.to_string());
        for poll in &mut polls {
            let answer = poll.read_response(false).expect("an answer");
            assert_eq!(messages(&answer), [2]);
            assert_eq!(answer.header("Stream-Up-To-Date"), Some("true"));
            let rest = read(&stage, &format!("/ds/a?offset={}", offset(&answer)));
            assert_eq!(messages(&rest), [3]);
        }
        stage.publish("b", "{\"first\":\n true}");
        assert_eq!(messages(&other.read_response(false).expect("an answer")), [json!({ "first": true })]);
        stage.server.wait_for_metric("ds_poll_clients_num", 0);
    }

    fn a_long_poll_ends_without_a_message(driver: Driver) {
        let stage = stage(driver, &["--ds_poll_interval=1"]);
        publish(&stage, "a", 1..=1);
        let at = offset(&read(&stage, "/ds/a")).to_owned();
        let begun = Instant::now();
        let nothing = read(&stage, "/ds/a?offset=now&live=long-poll");
        assert!(begun.elapsed() >= Duration::from_millis(900));
        assert_eq!((nothing.status, offset(&nothing), nothing.body.len()), (204, at.as_str(), 0));
        assert_eq!(nothing.header("Stream-Up-To-Date"), Some("true"));
        assert_eq!(nothing.header("Cache-Control"), Some("no-store"));
        assert!(nothing.header("Stream-Cursor").is_some());
        let unknown = read(&stage, "/ds/unknown?offset=-1&live=long-poll");
        assert_eq!((unknown.status, offset(&unknown)), (204, "0"));
        stage.server.wait_for_metric("ds_poll_clients_num", 0);
    }

    fn events_say_what_was_there_and_what_follows(driver: Driver) {
        let stage = stage(driver, &[]);
        publish(&stage, "a", 1..=2);
        let at = offset(&read(&stage, "/ds/a")).to_owned();
        let mut all = Events::open(&stage, "/ds/a?offset=-1&live=sse");
        assert_eq!(all.batch(), (json!([1, 2]), at.clone()));
        let mut now = Events::open(&stage, "/ds/a?offset=now&live=sse");
        assert_eq!(now.control(), at);
        let mut unknown = Events::open(&stage, "/ds/b?offset=0&live=sse");
        assert_eq!(unknown.control(), "0");
        for text in ["3", "{\"k\":\r\n[1,\n2]}", "\"a\\nb\""] {
            stage.publish("a", text);
        }
        for events in [&mut all, &mut now] {
            assert_eq!(events.batch().0, json!([3]));
            assert_eq!(events.batch().0, json!([{ "k": [1, 2] }]));
            let (data, last) = events.batch();
            assert_eq!((data, last.split_once("::").expect("an epoch").0), (json!(["a\nb"]), "0000000000000005"));
        }
        let long = "x".repeat(100_000);
        stage.publish("b", &format!("\"{long}\""));
        assert_eq!(unknown.batch().0, json!([long]));
        stage.server.wait_for_metric("ds_sse_clients_num", 3);
        drop((all, now, unknown));
        stage.server.wait_for_metric("ds_sse_clients_num", 0);
    }

    fn events_end_after_their_time(driver: Driver) {
        let stage = stage(driver, &["--ds_sse_ttl=1"]);
        publish(&stage, "a", 1..=1);
        let mut connection = begin(&stage, "/ds/a?offset=-1&live=sse");
        // It reads the chunks up to the last one.
        let answer = connection.read_response(false).expect("an answer");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert!(answer.text().starts_with("event: data\ndata:[1]\n\nevent: control\ndata:{"), "{answer:?}");
        assert!(connection.is_at_end());
        let mut events = Events::open(&stage, "/ds/a?offset=-1&live=sse");
        assert_eq!(events.batch().0, json!([1]));
        assert_eq!(events.next(), None);
    }

    fn a_signed_name_is_good_for_its_own_stream_only(driver: Driver) {
        let stage = Stage::with(driver, &["--ds", "--ds_skip_auth", "--broker=memory"]);
        publish(&stage, "a", 1..=1);
        publish(&stage, "b", 2..=2);
        let signed = keys::signed_stream_name(keys::SECRET, "a");
        let query = signed.replace('=', "%3D").replace('+', "%2B");
        assert_eq!(messages(&read(&stage, &format!("/ds/a?signed={query}"))), [1]);
        let header = [("X-Signed", signed.as_str())];
        let answer = ask(&stage, "GET", "/ds/a", &header);
        assert_eq!(messages(&answer), [1]);
        assert_eq!(answer.header("Cache-Control"), Some("private, max-age=60, stale-while-revalidate=300"));
        for live in ["", "&live=long-poll", "&live=sse"] {
            check_refused(&read(&stage, &format!("/ds/b?offset=-1{live}&signed={query}")), 401);
            check_refused(&ask(&stage, "GET", &format!("/ds/b?offset=-1{live}"), &header), 401);
            check_refused(&read(&stage, &format!("/ds/a?offset=-1{live}")), 401);
            check_refused(&read(&stage, &format!("/ds/a?offset=-1{live}&signed=x--y")), 401);
        }
        assert_eq!(ask(&stage, "HEAD", "/ds/b", &header).status, 401);
        let forged = keys::signed_stream_name("other", "a");
        check_refused(&ask(&stage, "GET", "/ds/a", &[("X-Signed", &forged)]), 401);
    }

    fn readers_are_authenticated_as_other_clients_are(driver: Driver) {
        let stage = Stage::with(driver, &["--ds", "--public_streams", "--broker=memory", "--headers=cookie"]);
        publish(&stage, "a", 1..=1);
        let answer = ask(&stage, "GET", "/ds/a?x=1", &[("Cookie", "user=5")]);
        assert_eq!(messages(&answer), [1]);
        assert_eq!(answer.header("Cache-Control"), Some("private, max-age=60, stale-while-revalidate=300"));
        let calls = stage.rails.wait_for_calls("connect", 1);
        let call = &calls[0];
        assert_eq!(call.body["env"]["headers"]["cookie"], "user=5", "{call:?}");
        stage.rails.wait_for_calls("disconnect", 1);
        stage.rails.on_connect(Answer::json(&json!({ "status": 2, "transmissions": [r#"{"type":"disconnect"}"#] })));
        for live in ["", "&live=long-poll", "&live=sse"] {
            check_refused(&read(&stage, &format!("/ds/a?offset=-1{live}")), 401);
        }
        assert_eq!(ask(&stage, "HEAD", "/ds/a", &[]).status, 401);
    }

    fn a_token_authenticates_a_reader(driver: Driver) {
        let args = ["--ds", "--public_streams", "--broker=memory", "--jwt_secret=k", "--enforce_jwt"];
        let stage = Stage::with(driver, &args);
        publish(&stage, "a", 1..=1);
        let token = keys::jwt("k", r#"{"ext":"{\"id\":5}","exp":4102444800}"#);
        assert_eq!(messages(&ask(&stage, "GET", "/ds/a", &[("X-JID", &token)])), [1]);
        assert_eq!(messages(&read(&stage, &format!("/ds/a?jid={token}"))), [1]);
        check_refused(&read(&stage, "/ds/a"), 401);
        check_refused(&read(&stage, "/ds/a?jid=x"), 401);
        assert!(stage.rails.calls_to("connect").is_empty());
    }

    fn without_authentication_the_app_is_not_asked(driver: Driver) {
        let stage = stage(driver, &[]);
        publish(&stage, "a", 1..=1);
        assert_eq!(messages(&read(&stage, "/ds/a")), [1]);
        let mut poll = begin_poll(&stage, "/ds/a?offset=now&live=long-poll");
        stage.publish("a", "2");
        assert_eq!(messages(&poll.read_response(false).expect("an answer")), [2]);
        stage.server.wait_for_metric("clients_num", 0);
        assert!(stage.rails.calls_to("connect").is_empty());
        assert!(stage.rails.calls_to("disconnect").is_empty());
        let metrics = ["ds_requests_total", "ds_poll_requests_total", "ds_sse_requests_total"];
        assert_eq!(metrics.map(|name| stage.server.metric(name)), [2, 1, 0]);
    }

    fn a_large_history_is_answered_in_full(driver: Driver) {
        let stage = stage(driver, &["--history_limit=40", "--broker_bytes_max=0", "--memory_bytes_max=0"]);
        let text = |number: u64| format!("{number}{}", "x".repeat(300_000 + number as usize));
        (1..=40).for_each(|number| stage.publish("a", &json!(text(number)).to_string()));
        let expected: Vec<Value> = (1..=40).map(|number| json!(text(number))).collect();
        assert!(messages(&read(&stage, "/ds/a")) == expected);
        assert!(messages(&read(&stage, "/ds/a?offset=-1&live=long-poll")) == expected);
        let mut events = Events::open(&stage, "/ds/a?offset=-1&live=sse");
        assert!(events.batch().0 == Value::from(expected));
        stage.publish("a", "41");
        assert_eq!(events.batch().0, json!([41]));
    }

    fn without_memory_a_history_is_refused_and_not_cut(driver: Driver) {
        let stage = stage(driver, &["--history_limit=40", "--broker_bytes_max=0", "--memory_bytes_max=4000000"]);
        let text = json!("x".repeat(300_000)).to_string();
        (1..=40).for_each(|_| stage.publish("a", &text));
        let answer = read(&stage, "/ds/a");
        assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("1")));
        stage.publish("b", "1");
        assert_eq!(messages(&read(&stage, "/ds/b")), [1]);
    }

    fn a_stop_ends_readers_with_an_answer(driver: Driver) {
        let stage = stage(driver, &["--ds_poll_interval=60"]);
        publish(&stage, "a", 1..=1);
        let mut poll = begin_poll(&stage, "/ds/a?offset=now&live=long-poll");
        let mut events = begin(&stage, "/ds/a?offset=-1&live=sse");
        stage.server.wait_for_metric("ds_sse_clients_num", 1);
        stage.server.terminate();
        check_refused(&poll.read_response(false).expect("an answer"), 410);
        let answer = events.read_response(false).expect("all chunks");
        assert!(answer.text().contains("data:[1]"));
        assert!(stage.server.wait_exit().success());
    }

    fn a_reader_misses_nothing_and_gets_nothing_twice(driver: Driver) {
        const LAST: u64 = 300;
        let stage = stage(driver, &["--history_limit=1000"]);
        let address = stage.server.address();
        let reader = |live: bool| {
            move || {
                let (mut from, mut got) = ("-1".to_owned(), Vec::new());
                while got.last() != Some(&LAST) {
                    let live = if live { "&live=long-poll" } else { "" };
                    let target = format!("/ds/a?offset={from}{live}");
                    let answer = request(address, "GET", &target, &[], b"").expect("an answer");
                    let batch = messages(&answer);
                    got.extend(batch.iter().map(|it| it.as_u64().expect("a number")));
                    from = offset(&answer).to_owned();
                }
                got
            }
        };
        let readers: Vec<_> = (0..4).map(|it| std::thread::spawn(reader(it % 2 == 0))).collect();
        let mut events = Events::open(&stage, "/ds/a?offset=-1&live=sse");
        let mut publisher = stage.broadcaster().keep_alive();
        (1..=LAST).for_each(|number| publisher.publish("a", &number.to_string()));
        let expected: Vec<u64> = (1..=LAST).collect();
        for reader in readers {
            assert_eq!(reader.join().expect("a reader"), expected);
        }
        let mut got = Vec::new();
        while got.last() != Some(&LAST) {
            if let (_, Value::Array(batch)) = events.next().expect("an event") {
                got.extend(batch.iter().map(|it| it.as_u64().expect("a number")));
            }
        }
        assert_eq!(got, expected);
    }

    fn a_reader_that_leaves_takes_nothing_with_it(driver: Driver) {
        let stage = stage(driver, &["--ds_poll_interval=60"]);
        let polls: Vec<_> = (0..10).map(|_| begin_poll(&stage, "/ds/a?offset=now&live=long-poll")).collect();
        drop(polls);
        stage.server.wait_for_metric("ds_poll_clients_num", 0);
        until("all sessions to end", || (stage.server.metric("clients_num") == 0).then_some(()));
        stage.publish("a", "1");
        assert_eq!(messages(&read(&stage, "/ds/a")), [1]);
    }
}

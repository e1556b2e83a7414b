//! Server-sent events as clients see them. Source: `contract/http_transports.md` §1.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use crate::support::events::{Event, EventRequest, Events};
use crate::support::http::{Response, request};
use crate::support::rails::{WELCOME, confirmation};
use crate::support::tls::Scene;
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Gate, PATIENCE, Stage, keys};

const PATH: &str = "/events";
/// The server welcomes its clients itself and confirms public streams; no pings.
const PUBLIC: [&str; 4] = ["--sse", "--noauth", "--public_streams", "--ping_interval=0"];
const BROKER: &str = "--broker=memory";

fn public_stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, &[&PUBLIC, args].concat())
}

/// With an app that welcomes clients.
fn app_stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, &[&["--sse", "--ping_interval=0"], args].concat())
}

fn get(stage: &Stage, query: &str) -> EventRequest {
    EventRequest::get(stage.server.address(), &format!("{PATH}?{query}"))
}

fn post(stage: &Stage, query: &str, body: &str) -> EventRequest {
    EventRequest::post(stage.server.address(), &format!("{PATH}?{query}"), body)
}

fn public(stream: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": stream }).to_string()
}

fn line(identifier: &str) -> String {
    json!({ "identifier": identifier }).to_string()
}

/// A client that has got its welcome and one confirmation.
fn subscribed(request: EventRequest) -> Events {
    let mut events = request.open();
    events.expect("welcome");
    events.expect("confirm_subscription");
    events
}

/// One publication of any kind.
fn publish(stage: &Stage, body: Value) {
    stage.broadcaster().post(&body.to_string());
}

fn status(request: EventRequest) -> u16 {
    request.refused().status
}

/// Sends too much. The answer has this status, unless the connection is reset first.
fn answers_or_resets(stage: &Stage, request: &str, status: u16) {
    let mut socket = TcpStream::connect(stage.server.address()).expect("the server accepts");
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&socket, Some(PATIENCE)).expect("an option of every socket");
    }
    let (mut answer, _) = (Vec::new(), socket.write_all(request.as_bytes()));
    let _ = socket.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let expected = format!("HTTP/1.1 {status} ");
    assert!(
        answer.is_empty() || answer.starts_with(&expected),
        "{answer}"
    );
}

on_both_drivers! {
    fn a_get_listens_to_one_stream(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let mut events = get(&stage, "stream=z").header("X-Request-ID", "sid-1").open();
        assert_eq!(events.next().data, r#"{"type":"welcome","sid":"sid-1"}"#);
        let confirmed = events.expect("confirm_subscription");
        assert_eq!(confirmed["identifier"], public("z"));
        stage.publish("z", r#"{"n":5}"#);
        stage.publish("y", "0");
        stage.publish("z", r#""line1\nline2""#);
        assert_eq!(events.message(), r#"{"n":5}"#);
        assert_eq!(events.message(), "line1\nline2");
        assert_eq!(stage.server.metric("sse_clients_num"), 1);
        assert_eq!(stage.server.metric("clients_num"), 1);
        drop(events);
        stage.server.wait_for_metric("sse_clients_num", 0);
        stage.server.wait_for_metric("clients_num", 0);
    }

    fn a_post_listens_to_what_its_lines_say(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let body = format!(
            "{}\r\n\n{}\n",
            line(&public("a")),
            json!({ "command": "message", "identifier": public("b"), "data": "x" })
        );
        let mut events = post(&stage, "", &body).open();
        events.expect("welcome");
        for stream in ["a", "b"] {
            assert_eq!(events.expect("confirm_subscription")["identifier"], public(stream));
        }
        stage.publish("b", r#""x\ny""#);
        stage.publish("a", "1");
        let whole = |stream: &str, message: &str| {
            format!(r#"{{"identifier":{},"message":{message}}}"#, json!(public(stream)))
        };
        assert_eq!(events.message(), whole("b", r#""x\ny""#));
        assert_eq!(events.message(), whole("a", "1"));
        // Nothing but the welcome.
        let mut idle = post(&stage, "", "").open();
        idle.expect("welcome");
        assert_eq!(stage.server.metric("sse_clients_num"), 2);
    }

    fn each_client_gets_the_form_that_it_asked_for(driver: Driver) {
        let stage = public_stage(driver, &["--cores=1"]);
        let identifier = public("z");
        let old = |line: &str| EventRequest::new(stage.server.address(), line);
        let mut cable = stage.client();
        cable.command("subscribe", &identifier);
        assert_eq!(cable.next_json()["type"], "confirm_subscription");
        let mut plain = subscribed(get(&stage, "stream=z"));
        let mut old_plain = subscribed(old("GET /events?stream=z HTTP/1.0"));
        let mut whole = subscribed(post(&stage, "", &line(&identifier)));
        let mut raw = get(&stage, "stream=z&raw=1").open();
        let mut raw_whole = post(&stage, "raw=T", &line(&identifier)).open();
        assert_eq!(old_plain.response.header("transfer-encoding"), None);
        assert_eq!(old_plain.response.header("connection"), Some("close"));
        for number in 0..3 {
            publish(&stage, json!({ "stream": "z", "data": "1", "meta": { "broadcast_type": "t" } }));
            stage.publish("z", &format!(r#""text {number}""#));
            let text = format!("text {number}");
            let reply = format!(r#"{{"identifier":{},"message":"{text}"}}"#, json!(identifier));
            let typed = format!(r#"{{"type":"t","identifier":{},"message":1}}"#, json!(identifier));
            for events in [&mut plain, &mut old_plain] {
                assert_eq!(events.next(), Event { kind: "t".into(), data: typed.clone(), id: String::new() });
                assert_eq!(events.message(), text);
            }
            assert_eq!(whole.next().data, typed);
            assert_eq!(whole.message(), reply);
            assert_eq!(raw.message(), text);
            assert_eq!(raw_whole.message(), reply);
            assert_eq!(cable.next_text(), typed);
            assert_eq!(cable.next_text(), reply);
        }
        assert_eq!(stage.server.metric("sse_clients_num"), 5);
    }

    fn long_messages_arrive_whole_in_every_form(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let identifier = public("z");
        let mut plain = subscribed(get(&stage, "stream=z"));
        let mut old = subscribed(EventRequest::new(stage.server.address(), "GET /events?stream=z HTTP/1.0"));
        let mut whole = subscribed(post(&stage, "", &line(&identifier)));
        let long = "x".repeat(300_000);
        let messages = [
            json!([long]).to_string(),
            json!(long).to_string(),
            json!(format!("{long}\n{long}")).to_string(),
            format!("{{\"a\":\n\"{long}\"}}"),
        ];
        for message in &messages {
            stage.publish("z", message);
            let value: Value = serde_json::from_str(message).expect("JSON");
            let expected = value.as_str().map_or(message.clone(), str::to_owned);
            for events in [&mut plain, &mut old] {
                assert!(events.message() == expected);
            }
            let reply: Value = serde_json::from_str(&whole.message()).expect("JSON");
            assert!(reply == json!({ "identifier": identifier, "message": value }));
        }
    }

    fn the_app_decides_as_for_a_websocket(driver: Driver) {
        let stage = app_stage(driver, &["--headers=x-tenant,cookie"]);
        let identifier = r#"{"channel":"Chat"}"#;
        let transmission = json!({ "identifier": identifier, "message": "from the app\nline 2" });
        stage.rails.on_command("subscribe", identifier, Answer::json(&json!({
            "status": 1,
            "streams": ["chat"],
            "transmissions": [confirmation(identifier), transmission.to_string(), "no JSON"],
            "env": {},
        })));
        let request = get(&stage, "channel=Chat").header("X-Tenant", "t").header("Cookie", "a=1");
        let mut events = request.open();
        assert_eq!(events.next().data, WELCOME);
        events.expect("confirm_subscription");
        assert_eq!(events.message(), "from the app\nline 2");
        stage.publish("chat", "1");
        assert_eq!(events.message(), "1");
        let calls = stage.rails.calls();
        let authority = stage.server.address();
        assert_eq!(calls[0].url(), format!("http://{authority}/events?channel=Chat"));
        assert_eq!((calls[0].forwarded("x-tenant"), calls[0].forwarded("cookie")), (Some("t"), Some("a=1")));
        drop(events);
        let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(call.body["subscriptions"], json!([identifier]));
    }

    fn nothing_is_answered_before_the_app_has_decided_everything(driver: Driver) {
        let stage = app_stage(driver, &[]);
        let gate = Gate::new();
        stage.rails.on_command("subscribe", "B", Answer::confirm("B", &["b"]).behind(&gate));
        stage.rails.streams("A", &["a"]);
        let mut socket = post(&stage, "", &[line("A"), line("B")].join("\n")).send();
        stage.rails.wait_for_command("subscribe", "B");
        stage.publish("a", "1");
        stage.server.wait_for_log(&["incoming broadcast message"]);
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("an option of every socket");
        assert!(socket.read(&mut [0]).is_err(), "nothing is written yet");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option of every socket");
        gate.open();
        let mut events = Events::read(socket);
        events.expect("welcome");
        assert_eq!(events.expect("confirm_subscription")["identifier"], "A");
        let (mut kinds, mut data) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let event = events.next();
            kinds.push(event.kind);
            data.push(event.data);
        }
        assert_eq!(kinds, ["message", "confirm_subscription"], "{data:?}");
        assert_eq!(data[0], r#"{"identifier":"A","message":1}"#);
    }

    fn a_refusal_has_a_status_and_no_body(driver: Driver) {
        let stage = app_stage(driver, &["--public_streams"]);
        let at = |line: &str| EventRequest::new(stage.server.address(), line);
        // Decided without the app.
        for method in ["HEAD", "PUT", "DELETE", "PATCH"] {
            assert_eq!(status(at(&format!("{method} /events?stream=z HTTP/1.1"))), 405, "{method}");
        }
        for query in ["", "stream=", "stream=z&history_since=x", "streams=z"] {
            assert_eq!(status(get(&stage, query)), 400, "{query}");
        }
        assert_eq!(status(get(&stage, "stream=z").header("Last-Event-ID", "x/e/z")), 400);
        for body in ["x", "[]", "5", "null", "{\"identifier\":5}", "{}\n{\"history\":[]}"] {
            assert_eq!(status(post(&stage, "", body)), 400, "{body}");
        }
        assert_eq!(stage.rails.calls().len(), 0);
        // Subscriptions that are rejected, fail, or come twice.
        stage.rails.on_command("subscribe", "no", Answer::reject("no"));
        stage.rails.on_command("subscribe", "oops", Answer::status(500, ""));
        for lines in [
            vec!["no"],
            vec!["A", "no"],
            vec!["oops"],
            vec!["A", "A"],
        ] {
            let body: Vec<String> = lines.iter().map(|identifier| line(identifier)).collect();
            let response = post(&stage, "", &body.join("\n")).refused();
            assert_eq!(response.status, 400, "{lines:?}");
            assert_eq!(response.header("content-type"), Some("text/event-stream; charset=utf-8"));
        }
        // A signed stream without a key.
        assert_eq!(status(get(&stage, "signed_stream=x--y")), 400);
        // Clients that the app does not let in, or does not know.
        stage.rails.on_connect(Answer::unauthorized());
        assert_eq!(status(get(&stage, "stream=z")), 401);
        stage.rails.on_connect(Answer::status(500, ""));
        assert_eq!(status(get(&stage, "stream=z")), 400);
        stage.server.wait_for_metric("clients_num", 0);
        assert_eq!(stage.server.metric("sse_clients_num"), 0);
        until("all sockets to be closed", || (stage.server.sessions_open() == 0).then_some(()));
    }

    fn tokens_are_checked_as_for_a_websocket(driver: Driver) {
        let args = ["--enforce_jwt", "--public_streams", "--jwt_secret=s3Krit"];
        let stage = app_stage(driver, &args);
        let good = keys::jwt("s3Krit", r#"{"ext":"{\"user\":1}","exp":4102444800}"#);
        let old = keys::jwt("s3Krit", r#"{"ext":"{\"user\":1}","exp":1000000000}"#);
        let without_ext = keys::jwt("s3Krit", r#"{"exp":4102444800}"#);
        let foreign = keys::jwt("other", r#"{"ext":"{\"user\":1}","exp":4102444800}"#);
        subscribed(get(&stage, &format!("stream=z&jid={good}")));
        subscribed(get(&stage, "stream=z").header("X-JID", &good));
        assert_eq!(status(get(&stage, "stream=z")), 401);
        assert_eq!(status(get(&stage, &format!("stream=z&jid={old}"))), 401);
        assert_eq!(status(get(&stage, &format!("stream=z&jid={foreign}"))), 401);
        assert_eq!(status(get(&stage, &format!("stream=z&jid={without_ext}"))), 400);
        assert_eq!(stage.rails.calls().len(), 0);
    }

    fn streams_may_be_signed(driver: Driver) {
        let args = ["--turbo_streams", "--streams_secret=s3Krit", "--turbo_streams_secret=s3Krit"];
        let stage = Stage::with(driver, &[&["--sse", "--noauth", "--ping_interval=0"], &args[..]].concat());
        let signed = keys::signed_stream_name("s3Krit", "chat/1").replace('=', "%3D");
        for parameter in ["signed_stream", "turbo_signed_stream_name"] {
            let mut events = subscribed(get(&stage, &format!("{parameter}={signed}")));
            stage.publish("chat/1", "1");
            assert_eq!(events.message(), "1", "{parameter}");
            assert_eq!(status(get(&stage, &format!("{parameter}={signed}0"))), 400);
        }
        // A stream without a signature is not public here.
        assert_eq!(status(get(&stage, "stream=chat%2F1")), 400);
    }

    fn browsers_are_told_who_may_read(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let of = |response: &Response| response.header("access-control-allow-origin").map(str::to_owned);
        let preflight = |stage: &Stage, origin: &str| {
            let headers = [("Origin", origin)];
            let answer = request(stage.server.address(), "OPTIONS", PATH, &headers, b"");
            answer.expect("an answer")
        };
        let answer = preflight(&stage, "http://a.com");
        assert_eq!((answer.status, of(&answer).as_deref()), (200, Some("*")));
        assert_eq!(answer.header("access-control-allow-methods"), Some("POST, OPTIONS"));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert!(answer.header("access-control-allow-headers").is_some_and(|names| names.contains("Authorization")));
        assert!(answer.body.is_empty());
        let events = subscribed(get(&stage, "stream=z").header("Origin", "http://a.com"));
        assert_eq!(of(&events.response).as_deref(), Some("*"));

        let stage = public_stage(driver, &["--allowed_origins=a.com:3000,*.b.com"]);
        for (origin, allowed) in [
            ("http://A.com:3000", Some("http://a.com:3000")),
            ("https://x.b.com", Some("https://x.b.com")),
            ("http://a.com", None),
            ("http://c.com", None),
            ("null", None),
        ] {
            let answer = preflight(&stage, origin);
            assert_eq!((answer.status, of(&answer).as_deref()), (200, allowed), "{origin}");
            let refused = get(&stage, "").header("Origin", origin).refused();
            assert_eq!((refused.status, of(&refused).as_deref()), (400, allowed), "{origin}");
            let wrong = EventRequest::new(stage.server.address(), "PUT /events HTTP/1.1");
            assert_eq!(of(&wrong.header("Origin", origin).refused()).as_deref(), allowed);
            // It is advice to browsers: a client that is none is served.
            let events = subscribed(get(&stage, "stream=z").header("Origin", origin));
            assert_eq!(of(&events.response).as_deref(), allowed, "{origin}");
            assert_eq!(events.response.header("access-control-allow-credentials"), Some("true"));
        }
    }

    fn an_answer_is_not_cached_and_not_buffered(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let events = subscribed(get(&stage, "stream=z"));
        for (name, value) in [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            ("x-accel-buffering", "no"),
            ("cache-control", "private, no-cache, no-store, must-revalidate, max-age=0"),
            ("pragma", "no-cache"),
            ("expire", "0"),
            ("connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("x-anycable-version", "1.6.16"),
        ] {
            assert_eq!(events.response.header(name), Some(value), "{name}");
        }
        assert!(events.response.header("date").is_some());
    }

    fn a_remote_disconnect_is_the_last_event(driver: Driver) {
        let stage = app_stage(driver, &["--public_streams"]);
        let identifiers = r#"{"user":7}"#;
        stage.rails.on_connect(Answer::welcome(identifiers, &[WELCOME]));
        let command = |reconnect: bool| json!({
            "command": "disconnect",
            "payload": { "identifier": identifiers, "reconnect": reconnect },
        });
        let mut old = subscribed(EventRequest::new(stage.server.address(), "GET /events?stream=z HTTP/1.0"));
        let mut events = subscribed(get(&stage, "stream=z"));
        let mut raw = get(&stage, "stream=z&raw=1").open();
        stage.server.wait_for_metric("clients_num", 3);
        publish(&stage, command(false));
        let text = r#"{"type":"disconnect","reason":"remote","reconnect":false}"#;
        for events in [&mut events, &mut old] {
            assert_eq!(events.next().data, text);
            assert_eq!(events.retry, Some(2_147_483_647));
            events.expect_end();
        }
        raw.expect_end();
        let mut events = subscribed(get(&stage, "stream=z"));
        publish(&stage, command(true));
        assert_eq!(events.expect("disconnect")["reconnect"], true);
        assert_eq!(events.retry, None);
        events.expect_end();
        stage.server.wait_for_metric("sse_clients_num", 0);
        let page = stage.server.get("/metrics").text();
        let closed = page.lines().filter(|line| line.starts_with("ringcable_closed_total") && line.contains("remote"));
        let closed: u32 = closed.filter_map(|line| line.rsplit(' ').next()?.parse::<u32>().ok()).sum();
        assert_eq!(closed, 4, "{page}");
    }

    fn a_shutdown_is_the_last_event(driver: Driver) {
        let stage = app_stage(driver, &["--public_streams"]);
        let gate = Gate::new();
        stage.rails.on_command("subscribe", "slow", Answer::confirm("slow", &[]).behind(&gate));
        let mut events = subscribed(get(&stage, "stream=z"));
        let waiting = post(&stage, "", &line("slow")).send();
        stage.rails.wait_for_command("subscribe", "slow");
        stage.server.terminate();
        let text = r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#;
        assert_eq!(events.next().data, text);
        events.expect_end();
        // A client whose request is not decided learns the same, so that it comes back.
        let mut events = Events::read(waiting);
        events.expect("welcome");
        assert_eq!(events.next().data, text);
        events.expect_end();
        gate.open();
        assert!(stage.server.wait_exit().success());
    }

    fn pings_are_events_and_for_raw_clients_comments(driver: Driver) {
        let stage = public_stage(driver, &["--ping_interval=1"]);
        let mut events = get(&stage, "stream=z&pi=3600&ptp=ms").open();
        let mut raw = get(&stage, "stream=z&raw=1").open();
        let ping = loop {
            let event = events.next_of_all().expect("a ping");
            if event.kind == "ping" {
                break event;
            }
        };
        assert!(ping.json()["message"].as_u64().is_some_and(|secs| secs < 100_000_000_000));
        // A comment is no event, so something must follow it to be read.
        until("two comments", || {
            stage.publish("z", "1");
            assert_eq!(raw.message(), "1");
            (raw.comments >= 2).then_some(())
        });
    }

    fn native_pings_are_for_websockets(driver: Driver) {
        let stage = public_stage(driver, &["--ping_interval=1", "--enable_native_pings", "--pong_timeout=1"]);
        let mut events = get(&stage, "stream=z").open();
        let begun = Instant::now();
        let mut pings = 0;
        while pings < 3 {
            let event = events.next_of_all().expect("the client is not asked for pongs");
            pings += usize::from(event.kind == "ping");
        }
        assert!(begun.elapsed() > Duration::from_secs(2));
    }

    fn a_client_goes_on_where_it_was(driver: Driver) {
        let stage = public_stage(driver, &[BROKER]);
        let mut events = subscribed(get(&stage, "stream=a%2Fb"));
        let mut ids = Vec::new();
        for number in 1..=5 {
            stage.publish("a/b", &format!("\"{number}\""));
            let event = events.next();
            assert_eq!(event.data, number.to_string());
            assert!(event.id.starts_with(&format!("{number}/")) && event.id.ends_with("/a/b"), "{event:?}");
            ids.push(event.id);
        }
        drop(events);
        let replay = |request: EventRequest| {
            let mut events = subscribed(request);
            let mut messages = Vec::new();
            loop {
                let event = events.next();
                match &*event.kind {
                    "message" => messages.push((event.data, event.id)),
                    kind => return (messages, kind.to_owned()),
                }
            }
        };
        let last = |id: &str| get(&stage, "stream=a%2Fb").header("Last-Event-ID", id);
        let expected = |from: usize| -> Vec<_> {
            (from..=5).map(|number| (number.to_string(), ids[number - 1].clone())).collect()
        };
        assert_eq!(replay(last(&ids[1])), (expected(3), "confirm_history".to_owned()));
        assert_eq!(replay(last(&ids[4])), (vec![], "confirm_history".to_owned()));
        let since = get(&stage, "stream=a%2Fb&history_since=1");
        assert_eq!(replay(since), (expected(1), "confirm_history".to_owned()));
        // A browser that comes back sends both; its position counts.
        let both = get(&stage, "stream=a%2Fb&history_since=1").header("Last-Event-ID", &ids[3]);
        assert_eq!(replay(both), (expected(5), "confirm_history".to_owned()));
        assert_eq!(replay(last("1/other/a/b")), (vec![], "reject_history".to_owned()));
        assert_eq!(replay(last("9/other/c")), (vec![], "confirm_history".to_owned()));
        // Refused history does not end the stream.
        let mut events = subscribed(last("1/other/a/b"));
        events.expect("reject_history");
        stage.publish("a/b", "6");
        assert_eq!(events.message(), "6");
    }

    fn a_long_history_of_many_streams_comes_whole_and_in_order(driver: Driver) {
        let stage = public_stage(driver, &[BROKER, "--history_limit=500", "--ws_max_pending_size=100000"]);
        let streams = ["a", "b", "c"];
        let text = "x".repeat(10_000);
        let mut publisher = stage.broadcaster().keep_alive();
        for number in 0..300 {
            for stream in streams {
                publisher.publish(stream, &json!([number, text]).to_string());
            }
        }
        let line = |stream: &&str| json!({ "identifier": public(stream), "history": { "since": 1 } }).to_string();
        let body: Vec<String> = streams.iter().map(line).collect();
        let mut events = post(&stage, "", &body.join("\n")).open();
        events.expect("welcome");
        // Live ones that come meanwhile follow.
        for stream in streams {
            publisher.publish(stream, &json!([300, text]).to_string());
        }
        let mut next = [0; 3];
        let mut confirmed = (0, 0);
        while confirmed != (3, 3) || next != [301; 3] {
            let event = events.next();
            match &*event.kind {
                "confirm_subscription" => confirmed.0 += 1,
                "confirm_history" => confirmed.1 += 1,
                "message" => {
                    let reply = event.json();
                    let at = streams.iter().position(|stream| reply["stream_id"] == *stream);
                    let at = at.expect("a stream");
                    assert_eq!(reply["message"][0], next[at], "{}", streams[at]);
                    next[at] += 1;
                }
                kind => panic!("{kind}"),
            }
        }
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 0);
    }

    fn a_client_may_be_present(driver: Driver) {
        let stage = public_stage(driver, &[BROKER, "--streams_presence"]);
        let identifier = public("room");
        let join = |id: &str| json!({ "identifier": identifier, "presence": { "id": id, "info": { "n": id } } });
        let mut one = subscribed(post(&stage, "", &join("1").to_string()));
        assert_eq!(one.expect("presence")["message"]["id"], "1");
        let mut two = subscribed(post(&stage, "", &join("2").to_string()));
        assert_eq!(two.expect("presence")["message"]["id"], "2");
        let joined = one.expect("presence");
        assert_eq!(joined["message"], json!({ "type": "join", "id": "2", "info": { "n": "2" } }));
    }

    fn what_a_client_sends_after_its_request_is_thrown_away(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let mut socket = get(&stage, "stream=z").send();
        let mut events = Events::read(socket.try_clone().expect("a descriptor"));
        events.expect("welcome");
        events.expect("confirm_subscription");
        let rubbish = vec![b'{'; 200_000];
        for _ in 0..50 {
            socket.write_all(&rubbish).expect("the server reads");
        }
        stage.publish("z", "1");
        assert_eq!(events.message(), "1");
        until("everything to be read", || stage.server.has_read_all(&socket).then_some(()));
        SockRef::from(&socket).shutdown(std::net::Shutdown::Write).expect("an open socket");
        stage.server.wait_for_metric("sse_clients_num", 0);
    }

    fn bad_input_gets_a_clear_answer_and_others_notice_nothing(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let mut bystander = subscribed(get(&stage, "stream=z"));
        let body = |bytes: usize| {
            let line = line(&public("a"));
            format!("{line}{}", "\n".repeat(bytes - line.len()))
        };
        subscribed(post(&stage, "", &body(65_536)));
        assert_eq!(status(post(&stage, "", &body(65_537))), 400);
        // Far too much: the connection may be reset while the client still sends.
        let many: Vec<String> = (0..100_000).map(|number| line(&public(&number.to_string()))).collect();
        for body in [line(&"i".repeat(1 << 20)), many.join("\n")] {
            answers_or_resets(&stage, &format!("POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()), 400);
        }
        answers_or_resets(&stage, &format!("GET {PATH}?identifier={} HTTP/1.1\r\nHost: a\r\n\r\n", "i".repeat(1 << 20)), 431);
        // As many subscriptions as fit into a body.
        let most: Vec<String> = (0..800).map(|number| line(&public(&number.to_string()))).collect();
        let mut events = post(&stage, "", &most.join("\n")).open();
        events.expect("welcome");
        for _ in 0..most.len() {
            events.expect("confirm_subscription");
        }
        // A body that never comes is given up without a session.
        let unfinished = EventRequest::new(stage.server.address(), "POST /events HTTP/1.1");
        let unfinished = unfinished.header("Content-Length", "10").send();
        drop(unfinished);
        stage.publish("z", "1");
        assert_eq!(bystander.message(), "1");
        stage.server.wait_for_metric("sse_clients_num", 2);
    }

    fn a_client_that_does_not_read_goes_alone(driver: Driver) {
        let stage = public_stage(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("an option of every socket");
        socket.connect(&stage.server.address().into()).expect("the server accepts");
        let mut stuck = TcpStream::from(socket);
        stuck.write_all(b"GET /events?stream=z HTTP/1.1\r\nHost: a\r\n\r\n").expect("the server reads");
        stuck.set_read_timeout(Some(PATIENCE)).expect("an option of every socket");
        let mut fast = subscribed(get(&stage, "stream=z"));
        stage.server.wait_for_metric("sse_clients_num", 2);
        let text = "x".repeat(20_000);
        let mut publisher = stage.broadcaster().keep_alive();
        let mut published = 0;
        while stage.server.metric("disconnected_slow_clients_total") == 0 {
            assert!(published < 2_000, "the client is not slow");
            publisher.publish("z", &format!("\"{published} {text}\""));
            assert!(fast.message().starts_with(&format!("{published} ")));
            published += 1;
        }
        stage.server.wait_for_metric("sse_clients_num", 1);
        // It reads again: what it gets is whole and in order, then it is told why.
        let mut stuck = Events::read(stuck);
        stuck.expect("welcome");
        stuck.expect("confirm_subscription");
        for number in 0.. {
            let event = stuck.next();
            if event.kind == "disconnect" {
                assert_eq!(event.json()["reason"], "too_slow");
                break;
            }
            assert!(event.data == format!("{number} {text}"), "{number}");
        }
        stuck.expect_end();
    }

    fn events_go_over_tls(driver: Driver) {
        let scene = Scene::new(driver, &[&PUBLIC[..3], &["--ping_interval=1"]].concat());
        let mut stream = scene.over(scene.tcp());
        write!(stream, "GET /events?stream=z HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the server reads");
        let mut events = Events::read(stream);
        events.expect("welcome");
        events.expect("confirm_subscription");
        let long = json!(["x".repeat(200_000)]).to_string();
        for _ in 0..5 {
            scene.publish("z", &long);
            assert!(events.message() == long);
        }
        let mut stream = scene.over(scene.tcp());
        write!(stream, "GET /events?signed_stream=z HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("a proper end");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        drop(events);
        scene.wait_for_sample("anycable_go_sse_clients_num", 0);
    }

    fn the_path_can_be_chosen_and_is_served_only_when_asked_for(driver: Driver) {
        let stage = public_stage(driver, &["--sse_path=/live"]);
        subscribed(EventRequest::get(stage.server.address(), "/live?stream=z"));
        stage.server.wait_for_log(&["Handle SSE requests at", "/live"]);
        for path in [PATH, "/live/", "/live/x"] {
            assert_eq!(stage.server.get(path).status, 404, "{path}");
        }
        let without = Stage::with(driver, &["--noauth", "--public_streams"]);
        assert_eq!(without.server.get("/events?stream=z").status, 404);
    }

    fn a_websocket_and_events_of_one_client_do_not_mix(driver: Driver) {
        let stage = public_stage(driver, &[]);
        let mut cable = Cable::to(&stage.server).header("X-Request-ID", "s1").welcomed();
        cable.command("subscribe", &public("z"));
        assert_eq!(cable.next_json()["type"], "confirm_subscription");
        let mut events = subscribed(get(&stage, "stream=z").header("X-Request-ID", "s2"));
        publish(&stage, json!({ "stream": "z", "data": "1", "meta": { "exclude_socket": "s2" } }));
        publish(&stage, json!({ "stream": "z", "data": "2", "meta": { "exclude_socket": "s1" } }));
        assert_eq!(events.message(), "2");
        assert_eq!(cable.next_json()["message"], 1);
    }
}

//! Calls to the app: their exact bytes, every way to answer them, retries, timeouts, breaker, pool, concurrency.
//! Source: `contract/rpc.md`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::rails::{CURRENT_USER, Framing, WELCOME, confirmation, echo};
use crate::support::raw::{Raw, close_frame, handshake};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Gate, Rails, Stage, keys};

/// The request headers of `contract/rpc.md` §11.
const RECORDED_HEADERS: [&str; 3] = [
    "Cookie: session_token=abc",
    "Origin: http://localhost:3000",
    "X-Request-ID: req-1",
];

const ROOM: &str = r#"{"channel":"RoomChannel","room_id":1}"#;
const TYPING: &str = r#"{"channel":"TypingChannel","room_id":1}"#;

/// `"env":{…}` of the recorded requests, up to where the states are.
const RECORDED_ENV: &str = r#""env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}"#;

/// The connection identifiers as a JSON string.
const RECORDED_USER: &str = r#""{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}""#;

/// A client that sends what the recorded client sent.
fn recorded_client(stage: &Stage) -> Raw {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(
        handshake("/cable", &RECORDED_HEADERS)
            .replace("Host: localhost", "Host: localhost:18080")
            .as_bytes(),
    );
    assert_eq!(raw.read_head().status(), 101);
    raw
}

/// The body of the newest call, once `count` calls are there.
fn newest_body(stage: &Stage, count: usize) -> String {
    stage.rails.wait_for(&format!("{count} calls"), |calls| {
        (calls.len() >= count).then(|| calls[count - 1].raw.clone())
    })
}

fn command_body(command: &str, identifier: &str, data: &str, states: &str) -> String {
    let identifier = json!(identifier);
    format!(
        r#"{{"command":"{command}","identifier":{identifier},"connection_identifiers":{RECORDED_USER},{data}{RECORDED_ENV}{states}}}}}"#
    )
}

fn perform(raw: &mut Raw, identifier: &str, data: &str) {
    raw.send_text(
        &json!({ "command": "message", "identifier": identifier, "data": data }).to_string(),
    );
}

/// The forwarded request headers of a connect made with `lines`.
fn forwarded(stage: &Stage, lines: &[&str]) -> Value {
    let seen = stage.rails.calls_to("connect").len();
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable", lines).as_bytes());
    assert_eq!(raw.read_head().status(), 101);
    stage.rails.wait_for_calls("connect", seen + 1)[seen].body["env"]["headers"].clone()
}

on_both_drivers! {
    fn recorded_exchange_is_reproduced_byte_for_byte(driver: Driver) {
        let stage = Stage::with(driver, &["--headers=cookie,origin"]);
        let rails = &stage.rails;
        let mut raw = recorded_client(&stage);

        // E1
        assert_eq!(newest_body(&stage, 1), format!("{{{RECORDED_ENV}}}}}"));
        assert_eq!(newest_body(&stage, 1).len(), 146);
        assert_eq!(raw.next_text(), WELCOME);
        let connect = &rails.calls()[0];
        assert_eq!(connect.sid, "req-1");
        let authorization = "Bearer 4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d";
        assert_eq!(connect.header("authorization"), Some(authorization));
        let names: Vec<&str> = connect.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [
            "Host", "User-Agent", "Content-Length", "Authorization", "Content-Type", "X-Anycable-Meta-Protov",
            "X-Anycable-Meta-Sid", "Accept-Encoding",
        ]);

        // E2
        rails.streams(ROOM, &["room:Z2lk:1"]);
        raw.subscribe(ROOM);
        assert_eq!(newest_body(&stage, 2), command_body("subscribe", ROOM, "", ""));
        assert_eq!(newest_body(&stage, 2).len(), 306);

        // E3
        rails.on_command("subscribe", TYPING, Answer::json(&json!({
            "status": 1, "streams": ["typing:1"], "transmissions": [confirmation(TYPING)],
            "env": { "istate": { "user": "\"Ann\"", "$w": "typing:1" }, "cstate": { "__ltags__": "[\"x\"]" } },
        })));
        raw.subscribe(TYPING);
        assert_eq!(newest_body(&stage, 3), command_body("subscribe", TYPING, "", ""));

        // E4 and E5: the connection state of E3 is sent from now on.
        let cstate = r#","cstate":{"__ltags__":"[\"x\"]"}"#;
        let foreign = r#"{"channel":"RoomChannel","room_id":404}"#;
        rails.on_command("subscribe", foreign, Answer::reject(foreign));
        raw.command("subscribe", foreign);
        assert_eq!(raw.next_text(), crate::support::rails::rejection(foreign));
        assert_eq!(newest_body(&stage, 4), command_body("subscribe", foreign, "", cstate));
        let nope = r#"{"channel":"Nope"}"#;
        rails.on_command("subscribe", nope, Answer::json(&json!({ "error_msg": "Channel not found: Nope" })));
        raw.command("subscribe", nope);
        raw.expect_nothing_before_pong();
        assert_eq!(newest_body(&stage, 5), command_body("subscribe", nope, "", cstate));

        // E6
        let ok = format!(r#"{{"identifier":{},"message":{{"ok":true}}}}"#, json!(TYPING));
        let swap = json!({
            "status": 1, "streams": ["typing:1:extra"], "transmissions": [ok],
            "env": { "istate": { "count": "2", "user": "" } }, "stopped_streams": ["typing:1"],
        });
        rails.on_command("message", TYPING, Answer::json(&swap));
        perform(&mut raw, TYPING, r#"{"action":"start","body":"<b>"}"#);
        assert_eq!(raw.next_text(), ok);
        let states = format!(r#"{cstate},"istate":{{"$w":"typing:1","user":"\"Ann\""}}"#);
        let data = r#""data":"{\"action\":\"start\",\"body\":\"\u003cb\u003e\"}","#;
        assert_eq!(newest_body(&stage, 6), command_body("message", TYPING, data, &states));
        assert_eq!(newest_body(&stage, 6).len(), 442);

        // E7: `user` was deleted, `count` added.
        rails.on_command("message", TYPING, Answer::status(500, "<html>Internal Server Error</html>"));
        perform(&mut raw, TYPING, r#"{"action":"boom"}"#);
        raw.expect_nothing_before_pong();
        let states = format!(r#"{cstate},"istate":{{"$w":"typing:1","count":"2"}}"#);
        let data = r#""data":"{\"action\":\"boom\"}","#;
        assert_eq!(newest_body(&stage, 7), command_body("message", TYPING, data, &states));

        // E8
        raw.command("unsubscribe", ROOM);
        raw.expect_nothing_before_pong();
        assert_eq!(newest_body(&stage, 8), command_body("unsubscribe", ROOM, "", cstate));

        // E9
        raw.send(&close_frame(1000, ""));
        raw.expect_close(1000, "");
        let istate = r#""istate":{"{\"channel\":\"TypingChannel\",\"room_id\":1}":"{\"$w\":\"typing:1\",\"count\":\"2\"}"}"#;
        let expected = format!(
            r#"{{"identifiers":{RECORDED_USER},"subscriptions":[{}],{RECORDED_ENV}{cstate},{istate}}}}}"#,
            json!(TYPING)
        );
        assert_eq!(newest_body(&stage, 9), expected);
        assert_eq!(expected.len(), 412);
    }

    fn state_that_became_empty_is_sent_as_an_empty_object_at_disconnect(driver: Driver) {
        let stage = Stage::new(driver);
        let with_state = json!({ "status": 1, "transmissions": [confirmation("A")], "env": { "istate": { "a": "1" } } });
        stage.rails.on_command("subscribe", "A", Answer::json(&with_state));
        stage.rails.on_command("message", "A", Answer::json(&json!({ "status": 1, "env": { "istate": { "a": "" } } })));
        let mut client = stage.client();
        client.subscribe("A");
        client.subscribe("B");
        client.perform("A", "clear");
        client.expect_nothing_before_pong();
        client.close();
        let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(call.body["env"]["istate"], json!({ "A": "{}" }));
        let mut subscriptions: Vec<&str> =
            call.body["subscriptions"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        subscriptions.sort_unstable();
        assert_eq!(subscriptions, ["A", "B"]);
    }

    fn connection_state_of_connect_is_sent_with_every_later_call(driver: Driver) {
        let stage = Stage::new(driver);
        let connect = json!({
            "status": 1, "identifiers": "i d", "transmissions": [WELCOME],
            "env": { "cstate": { "b": "2", "a": "1", "gone": "" }, "istate": { "ignored": "1" } },
        });
        stage.rails.on_connect(Answer::json(&connect));
        let mut client = stage.client();
        client.subscribe("A");
        client.close();
        let cstate = json!({ "a": "1", "b": "2" });
        let command = &stage.rails.wait_for_calls("command", 1)[0];
        assert_eq!((&command.body["env"]["cstate"], &command.body["connection_identifiers"]), (&cstate, &json!("i d")));
        assert!(command.body["env"].get("istate").is_none());
        let disconnect = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!((&disconnect.body["env"]["cstate"], &disconnect.body["identifiers"]), (&cstate, &json!("i d")));
    }

    fn url_is_what_the_client_asked_for_with_html_characters_escaped(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let request = handshake("/cable?a=1&b=<x>", &[]).replace("Host: localhost", "Host: Chat.Example:8443");
        raw.send(request.replace("Upgrade: websocket", "Upgrade: websocket\r\nX-Forwarded-Proto: https").as_bytes());
        assert_eq!(raw.read_head().status(), 101);
        let call = &stage.rails.wait_for_calls("connect", 1)[0];
        assert!(call.raw.contains(r#""url":"http://Chat.Example:8443/cable?a=1\u0026b=\u003cx\u003e""#), "{}", call.raw);
    }

    fn only_listed_headers_are_forwarded_with_all_their_lines(driver: Driver) {
        let stage = Stage::with(driver, &["--headers=Cookie, X-Api-Token,origin"]);
        let lines = ["Cookie: a=1", "Cookie: b=2", "X-API-TOKEN: t", "User-Agent: secret", "X-Forwarded-For: 1.2.3.4"];
        let expected = json!({ "REMOTE_ADDR": "127.0.0.1", "cookie": "a=1; b=2", "x-api-token": "t" });
        assert_eq!(forwarded(&stage, &lines), expected);
        assert_eq!(forwarded(&stage, &["Cookie:"]), json!({ "REMOTE_ADDR": "127.0.0.1" }));
    }

    fn forwarded_for_reaches_the_app_only_when_listed(driver: Driver) {
        let stage = Stage::with(driver, &["--headers=x-forwarded-for"]);
        let expected = json!({ "REMOTE_ADDR": "127.0.0.1", "x-forwarded-for": "1.2.3.4, 5.6.7.8" });
        assert_eq!(forwarded(&stage, &["X-Forwarded-For: 1.2.3.4, 5.6.7.8", "Cookie: a=1"]), expected);
    }

    fn cookie_filter_keeps_the_named_cookies_whole(driver: Driver) {
        let stage = Stage::with(driver, &["--proxy-cookies=b, c"]);
        let cookie = |line| forwarded(&stage, &[line])["cookie"].clone();
        assert_eq!(cookie("Cookie: a=1; b=2; c=x=y"), "b=2; c=x=y");
        assert_eq!(cookie("Cookie: c=x==; d=1"), "c=x==");
        assert_eq!(cookie("Cookie: a=1"), Value::Null);
    }

    fn rpc_token_is_explicit_derived_or_absent(driver: Driver) {
        let table: [(&[&str], Option<&str>); 4] = [
            (&["--secret=S"], Some("7a1e9430150f91797f7c5a217896f7b0def9f52b0987e04fe1793fd69d9e92f9")),
            (&["--secret=S", "--http_rpc_secret=R"], Some("R")),
            (&["--secret=S", "--http_rpc_secret=none"], None),
            (&["--secret=", "--broadcast_key=k"], None),
        ];
        for (args, token) in table {
            let rails = Rails::start_with("/_anycable", token);
            let server = Stage::launch(driver, &rails).args(args.iter().copied()).start();
            Cable::to(&server).welcomed();
        }
    }

    fn base_url_may_have_any_path(driver: Driver) {
        for (base, suffix) in [("/_anycable", "/"), ("/deep/er", ""), ("", ""), ("", "/")] {
            let rails = Rails::start_with(base, Some(&keys::rpc_token(keys::SECRET)));
            let server = Stage::launch(driver, &rails).arg(format!("--rpc_host={}{suffix}", rails.url())).start();
            Cable::to(&server).welcomed().subscribe("A");
        }
    }

    fn every_framing_of_an_answer_is_understood(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        let answer = |identifier: &str| Answer::confirm(identifier, &["s"]);
        stage.rails.on_command("subscribe", "chunked", answer("chunked").framed(Framing::Chunked));
        stage.rails.on_command("subscribe", "close", answer("close").framed(Framing::CloseDelimited));
        stage.rails.on_command("subscribe", "gzip", answer("gzip").gzipped());
        stage.rails.on_command("subscribe", "both", answer("both").gzipped().framed(Framing::Chunked));
        stage.rails.on_command("subscribe", "closing", answer("closing").closing());
        for identifier in ["chunked", "close", "gzip", "both", "closing", "plain"] {
            client.subscribe(identifier);
        }
        assert_eq!(stage.server.metric("rpc_error_total"), 0);
        assert_eq!(stage.server.metric("rpc_retries_total"), 0);
    }

    fn large_answer_is_relayed_whole(driver: Driver) {
        let stage = Stage::new(driver);
        let large = format!(r#"{{"history":"{}"}}"#, "x".repeat(700_000));
        stage.rails.on_command("subscribe", "A", Answer::transmit(&[large.clone(), confirmation("A")]).framed(Framing::Chunked));
        let mut client = stage.client();
        client.command("subscribe", "A");
        assert_eq!(client.next_text(), large);
        assert_eq!(client.next_text(), confirmation("A"));
    }

    fn connections_to_the_app_are_kept_and_reused(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        for number in 0..30 {
            client.subscribe(&number.to_string());
        }
        assert_eq!(stage.rails.connections_opened(), 1);
        assert!(stage.rails.calls().iter().all(|call| call.connection == 0));
    }

    fn pooled_connection_that_the_app_closed_costs_nothing_but_a_new_one(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        for number in 0..5 {
            stage.rails.close_connections();
            client.subscribe(&number.to_string());
        }
        assert_eq!(stage.server.metric("rpc_retries_total"), 0);
        assert_eq!(stage.rails.calls().len(), 6);
    }

    fn concurrency_limit_is_exact_over_all_shards(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_concurrency=3"]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        let mut clients: Vec<Cable> = (0..12).map(|_| Cable::to(&stage.server).open()).collect();
        stage.rails.wait_for_calls("connect", 3);
        stage.server.wait_for_metric("rpc_pending_num", 9);
        assert_eq!(stage.rails.calls().len(), 3);
        gate.open();
        for client in &mut clients {
            assert_eq!(client.next_text(), WELCOME);
        }
        assert_eq!(stage.rails.parallel_calls_max(), 3);
        stage.server.wait_for_metric("rpc_pending_num", 0);
    }

    fn calls_whose_clients_have_left_are_not_made(driver: Driver) {
        const LEAVE: usize = 150;
        let stage = Stage::with(driver, &["--rpc_concurrency=1", "--cores=1"]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        let mut clients: Vec<Cable> = (0..LEAVE + 10).map(|_| Cable::to(&stage.server).open()).collect();
        stage.server.wait_for_metric("rpc_pending_num", LEAVE as i64 + 9);
        drop(clients.drain(5..LEAVE + 5));
        stage.server.wait_for_metric("rpc_pending_num", 9);
        assert_eq!(stage.server.metric("rpc_canceled_total"), LEAVE as i64);
        gate.open();
        for client in &mut clients {
            assert_eq!(client.next_text(), WELCOME);
        }
        assert_eq!(stage.rails.calls_to("connect").len(), 10);
        assert_eq!(stage.rails.parallel_calls_max(), 1);
        stage.server.wait_for_metric("rpc_pending_num", 0);
    }

    fn non_positive_concurrency_falls_back_to_the_default_with_a_warning(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_concurrency=0"]);
        stage.server.wait_for_log(&["WRN", "RPC concurrency must be positive, reverted to the default value"]);
        stage.server.wait_for_log(&["(concurrency: 28,"]);
        stage.client();
    }

    fn absent_app_is_tried_five_times_in_three_seconds(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.stop();
        let started = Instant::now();
        let mut raw = Raw::upgrade(stage.server.address(), "/cable?pi=0");
        raw.expect_close(1011, "Auth Error");
        let took = started.elapsed().as_secs_f64();
        assert!((2.7..4.5).contains(&took), "gave up after {took} s");
        assert_eq!(stage.server.metric("rpc_retries_total"), 5);
        assert_eq!(stage.server.metric("rpc_error_total"), 1);
        assert_eq!(stage.server.metric("rpc_call_total"), 1);
    }

    fn broken_connection_is_retried_with_growing_pauses(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on(|call| (call.method == "connect" && call.number == 0).then(Answer::hang_up));
        stage.rails.on(|call| (call.number == 1).then(|| Answer::raw("no HTTP at all\r\n\r\n")));
        stage.client();
        let calls = stage.rails.calls_to("connect");
        let pauses: Vec<f64> =
            calls.windows(2).map(|pair| (pair[1].started - pair[0].started).as_secs_f64()).collect();
        assert_eq!(pauses.len(), 2);
        assert!((0.09..0.6).contains(&pauses[0]) && (0.19..0.8).contains(&pauses[1]), "{pauses:?}");
        assert_eq!(stage.server.metric("rpc_retries_total"), 2);
        assert_eq!(stage.server.metric("rpc_error_total"), 0);
    }

    fn call_beyond_its_timeout_is_given_up_and_not_retried(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_request_timeout=400"]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        let started = Instant::now();
        Raw::upgrade(stage.server.address(), "/cable?pi=0").expect_close(1011, "Auth Error");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(390) && took < Duration::from_secs(3), "{took:?}");
        until("the app to see the end of the connection", || stage.rails.calls()[0].aborted.then_some(()));
        assert_eq!(stage.rails.calls().len(), 1);
        assert_eq!(stage.server.metric("rpc_timeout_total"), 1);
        assert_eq!(stage.server.metric("rpc_error_total"), 1);
    }

    fn command_beyond_its_timeout_sends_nothing_and_the_session_goes_on(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_command_timeout=400"]);
        stage.rails.on_command("message", "A", Answer::success().behind(&Gate::new()));
        let mut client = stage.client();
        client.subscribe("A");
        client.perform("A", "x");
        client.expect_nothing_before_pong();
        client.subscribe("B");
        assert_eq!(stage.server.metric("rpc_timeout_total"), 1);
    }

    fn default_timeout_of_a_call_is_three_seconds(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_connect(Answer::success().behind(&Gate::new()));
        let started = Instant::now();
        Raw::upgrade(stage.server.address(), "/cable?pi=0").expect_close(1011, "Auth Error");
        let took = started.elapsed().as_secs_f64();
        assert!((2.9..5.0).contains(&took), "{took} s");
    }

    fn redirects_are_failed_calls(driver: Driver) {
        let stage = Stage::new(driver);
        for status in [301, 302, 307, 308] {
            stage.rails.on_connect(Answer::status(status, "").with_header("Location", &stage.rails.url()));
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        assert_eq!(stage.rails.calls().len(), 4);
    }

    fn answers_are_read_leniently(driver: Driver) {
        let stage = Stage::new(driver);
        let lenient = format!(
            r#" {{"Status": 1, "unknown":[{{}}], "IDENTIFIERS":"i", "transmissions":[{}], "env":null, "error_msg":null}} "#,
            json!(WELCOME)
        );
        stage.rails.on_connect(Answer::status(200, lenient).with_header("Content-Type", "text/weird"));
        stage.client();
    }

    fn breaker_opens_when_the_app_is_gone_and_closes_when_it_is_back(driver: Driver) {
        let stage = Stage::new(driver);
        let mut survivor = stage.client();
        survivor.subscribe("A");
        stage.rails.stop();
        let mut crowd: Vec<Raw> = (0..12).map(|_| Raw::upgrade(stage.server.address(), "/cable?pi=0")).collect();
        for raw in &mut crowd {
            raw.expect_close(1011, "Auth Error");
        }
        stage.server.wait_for_log(&["WRN", "circuit breaker is open", "httrpc"]);
        let opened = Instant::now();
        Raw::upgrade(stage.server.address(), "/cable?pi=0").expect_close(1011, "Auth Error");
        assert!(opened.elapsed() < Duration::from_secs(1), "an open breaker fails at once");
        stage.rails.restart();
        // While half-open it lets five calls through and refuses others at once, so not every attempt succeeds.
        until("the breaker to close", || {
            Raw::upgrade(stage.server.address(), "/cable?pi=0").next_frame();
            let closed = |line: &String| line.contains("circuit breaker is closed");
            stage.server.log().iter().any(closed).then_some(())
        });
        stage.server.wait_for_log(&["INF", "circuit breaker is closed", "httrpc"]);
        survivor.subscribe("B");
        stage.client();
    }

    fn remote_disconnect_cancels_the_running_call(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_command("message", "A", Answer::transmit(&[echo("A", "late")]).behind(&Gate::new()));
        let mut raw = stage.raw();
        raw.subscribe("A");
        perform(&mut raw, "A", "x");
        stage.rails.wait_for_command("message", "A");
        let command = json!({ "command": "disconnect", "payload": { "identifier": CURRENT_USER, "reconnect": false } });
        stage.broadcaster().post(&command.to_string());
        assert_eq!(raw.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":false}"#);
        raw.expect_close(1000, "Closed remotely");
        until("the call to be aborted", || {
            stage.rails.calls().iter().any(|call| call.command() == "message" && call.aborted).then_some(())
        });
    }

    fn late_answer_for_a_closed_session_reaches_nobody(driver: Driver) {
        let stage = Stage::with(driver, &["--cores=1"]);
        let gate = Gate::new();
        stage.rails.on_command("message", "A", Answer::transmit(&[echo("A", "late")]).behind(&gate));
        let mut gone = stage.client();
        gone.subscribe("A");
        gone.perform("A", "x");
        stage.rails.wait_for_command("message", "A");
        drop(gone);
        // Takes over whatever slot the first session had.
        let mut next: Vec<Cable> = (0..4).map(|_| stage.client()).collect();
        gate.open();
        until("the call to end", || (stage.rails.calls_running() == 0).then_some(()));
        for client in &mut next {
            client.expect_nothing_before_pong();
        }
        stage.rails.wait_for_calls("disconnect", 1);
    }

    fn app_that_restarts_is_found_again_and_sessions_survive(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        stage.rails.stop();
        client.command("subscribe", "B");
        until("a retry", || (stage.server.metric("rpc_retries_total") >= 1).then_some(()));
        stage.publish("stream:A", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
        stage.rails.restart();
        assert_eq!(client.next_text(), confirmation("B"));
    }
}

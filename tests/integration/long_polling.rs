//! Long polling: sessions whose clients ask for their messages. Source: `contract/http_transports.md` §3.

use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{HttpConnection, request};
use crate::support::poller::{POLL_ID, messages, try_open};
use crate::support::rails::{CURRENT_USER, confirmation, rejection};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Gate, Poller, Stage, keys};

mod bad_input;
mod exactness;

const UNAUTHORIZED: &str = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
const EXPIRED: &str = r#"{"type":"disconnect","reason":"session_expired","reconnect":true}"#;
const RESTART: &str = r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#;

/// The server counts time in these.
const TICK: Duration = Duration::from_millis(50);

const SUBSCRIBE_A: &str = r#"{"command":"subscribe","identifier":"A"}"#;

/// The server answers at once, so that the tests need not wait.
fn stage(driver: Driver, args: &[&str]) -> Stage {
    let all = [
        &["--poll", "--poll_flush_interval=0", "--poll_interval=600"],
        args,
    ]
    .concat();
    Stage::with(driver, &all)
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

fn welcome() -> Value {
    json!({ "type": "welcome" })
}

fn data(number: u64) -> Value {
    json!({ "identifier": "A", "message": number })
}

/// A client that listens to `stream:A`.
fn subscribed(stage: &Stage) -> Poller {
    let (client, got) = Poller::open(&stage.server, SUBSCRIBE_A);
    assert_eq!(got, [welcome(), parsed(&confirmation("A"))]);
    client
}

fn publish(stage: &Stage, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        stage.publish("stream:A", &number.to_string());
    }
}

fn stale(stage: &Stage) -> i64 {
    stage.server.metric("long_poll_stale_requests_total")
}

/// Waits until a poll has reached its session: the shard has read the request.
fn wait_until_read(stage: &Stage, waiting: &mut crate::support::poller::Waiting) {
    let stream = waiting
        .connection()
        .stream()
        .try_clone()
        .expect("a descriptor");
    until("the poll to be read", || {
        stage.server.has_read_all(&stream).then_some(())
    });
}

on_both_drivers! {
    fn a_session_is_opened_and_polled(driver: Driver) {
        let stage = stage(driver, &[]);
        let (client, got) = Poller::open(&stage.server, "");
        assert_eq!(got, [welcome()]);
        assert_eq!(stage.server.metric("long_poll_clients_num"), 1);
        assert_eq!(stage.server.metric("clients_num"), 1);
        assert_eq!(client.poll(SUBSCRIBE_A), [parsed(&confirmation("A"))]);
        let waiting = client.start("");
        stage.publish("stream:A", r#"{"text":"hi"}"#);
        let answer = waiting.answer();
        assert_eq!(answer.text(), "{\"identifier\":\"A\",\"message\":{\"text\":\"hi\"}}\n");
        assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header(POLL_ID), None);
        // The app sees a client like any other.
        let connect = &stage.rails.calls_to("connect")[0];
        assert!(connect.url().ends_with("/lp"), "{connect:?}");
    }

    fn commands_of_the_first_request_are_answered_with_it(driver: Driver) {
        let stage = stage(driver, &[]);
        stage.rails.on_command("subscribe", "B", Answer::reject("B"));
        let commands = format!("{SUBSCRIBE_A}\n\n  \r\n{}\r\n", r#"{"command":"subscribe","identifier":"B"}"#);
        let (client, got) = Poller::open(&stage.server, &commands);
        assert_eq!(got, [welcome(), parsed(&confirmation("A")), parsed(&rejection("B"))]);
        // The last line needs no end.
        let perform = r#"{"command":"message","identifier":"A","data":"{\"n\":1}"}"#;
        let got = client.poll(&format!("{perform}\n{perform}"));
        assert_eq!(got.len() + if got.len() < 2 { client.poll("").len() } else { 0 }, 2);
        assert_eq!(stage.rails.calls_to("command").len(), 4);
    }

    fn messages_wait_in_order_while_nobody_polls(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        publish(&stage, 1..=20);
        let expected: Vec<Value> = (1..=20).map(data).collect();
        assert_eq!(client.poll_for(20), expected);
    }

    fn messages_are_gathered_before_a_poll_is_answered(driver: Driver) {
        let stage = stage(driver, &["--poll_flush_interval=500"]);
        let client = subscribed(&stage);
        let started = Instant::now();
        let waiting = client.start("");
        publish(&stage, 1..=3);
        assert_eq!(waiting.messages(), [data(1), data(2), data(3)]);
        assert!(started.elapsed() >= Duration::from_millis(500) - TICK);
    }

    fn a_poll_without_messages_has_an_empty_answer_after_its_time(driver: Driver) {
        let stage = stage(driver, &["--poll_interval=1"]);
        let client = subscribed(&stage);
        let started = Instant::now();
        let answer = client.answer("");
        assert_eq!((answer.status, answer.text()), (200, String::new()));
        assert_eq!(answer.header("content-length"), Some("0"));
        assert!(started.elapsed() >= Duration::from_secs(1) - TICK);
        publish(&stage, 1..=1);
        assert_eq!(client.poll(""), [data(1)]);
    }

    fn a_poll_that_was_given_up_loses_nothing(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        for number in 1..=5 {
            let mut given_up = client.start("");
            wait_until_read(&stage, &mut given_up);
            drop(given_up);
            publish(&stage, number..=number);
            assert_eq!(client.poll(""), [data(number)]);
        }
    }

    fn a_newer_poll_sends_the_older_one_away(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let mut older = client.start("");
        wait_until_read(&stage, &mut older);
        let newer = client.start("");
        let answer = older.answer();
        assert_eq!((answer.status, answer.text()), (200, String::new()));
        assert_eq!(stale(&stage), 1);
        publish(&stage, 1..=1);
        assert_eq!(newer.messages(), [data(1)]);
    }

    fn a_poll_may_come_to_any_shard(driver: Driver) {
        let stage = stage(driver, &["--cores=3"]);
        let clients: Vec<Poller> = (0..12).map(|_| subscribed(&stage)).collect();
        // The id begins with the shard.
        let shards: std::collections::BTreeSet<&str> = clients.iter().map(|client| &client.id[..2]).collect();
        assert!(shards.len() > 1, "{shards:?}");
        for round in 1..=4 {
            let polls: Vec<_> = clients.iter().map(|client| client.start("")).collect();
            publish(&stage, round..=round);
            for poll in polls {
                assert_eq!(poll.messages(), [data(round)]);
            }
        }
    }

    fn a_connection_goes_on_after_an_answer(driver: Driver) {
        let stage = stage(driver, &["--cores=3"]);
        let clients: Vec<Poller> = (0..6).map(|_| subscribed(&stage)).collect();
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        for round in 1..=3 {
            publish(&stage, round..=round);
            for client in &clients {
                client.send(&mut connection, "");
                let answer = connection.read_response(false).expect("an answer");
                assert_eq!(messages(&answer), [data(round)]);
            }
        }
        let health = connection.request("GET", "/health", &[], b"").expect("an answer");
        assert_eq!(health.status, 200);
    }

    fn requests_behind_a_poll_wait_for_its_answer(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        client.send(&mut connection, "");
        connection.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /he").expect("written");
        publish(&stage, 1..=1);
        assert_eq!(messages(&connection.read_response(false).expect("an answer")), [data(1)]);
        assert_eq!(connection.read_response(false).expect("an answer").status, 200);
        connection.write(b"alth HTTP/1.1\r\nHost: a\r\n\r\n").expect("written");
        assert_eq!(connection.read_response(false).expect("an answer").status, 200);
    }

    fn an_http_1_0_client_gets_its_answer_and_the_end(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        publish(&stage, 1..=1);
        let poll = |more: &str| {
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            let head = format!("POST /lp HTTP/1.0\r\n{POLL_ID}: {}\r\n{more}\r\n", client.id);
            connection.write(head.as_bytes()).expect("written");
            let answer = connection.read_response(false).expect("an answer");
            (answer, connection)
        };
        let (answer, mut connection) = poll("");
        assert_eq!(messages(&answer), [data(1)]);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.is_at_end());
        publish(&stage, 2..=2);
        let (answer, _connection) = poll("Connection: keep-alive\r\n");
        assert_eq!(messages(&answer), [data(2)]);
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }

    fn a_session_without_a_poll_ends(driver: Driver) {
        let stage = stage(driver, &["--poll_keepalive_timeout=1"]);
        let client = subscribed(&stage);
        stage.rails.wait_for_calls("disconnect", 1);
        stage.server.wait_for_metric("long_poll_clients_num", 0);
        let answer = client.answer("");
        assert_eq!((answer.status, answer.text()), (401, format!("{EXPIRED}\n")));
        assert_eq!(stale(&stage), 1);
        // The time counts from the last answer, not from the last poll.
        let client = subscribed(&stage);
        let waiting = client.start("");
        std::thread::sleep(Duration::from_millis(1500));
        publish(&stage, 1..=1);
        assert_eq!(waiting.messages(), [data(1)]);
        // Nor does a poll that was given up end the session at once.
        let mut given_up = client.start("");
        wait_until_read(&stage, &mut given_up);
        drop(given_up);
        publish(&stage, 2..=2);
        assert_eq!(client.poll(""), [data(2)]);
    }

    fn with_a_broker_an_expired_session_is_restored_without_the_app(driver: Driver) {
        let args = ["--broker=memory", "--noauth", "--poll_keepalive_timeout=1"];
        let stage = stage(driver, &args);
        let (client, got) = Poller::open(&stage.server, SUBSCRIBE_A);
        assert_eq!(got[1], parsed(&confirmation("A")));
        let sid = got[0]["sid"].as_str().expect("a sid").to_owned();
        publish(&stage, 1..=1);
        let got = client.poll("");
        let epoch = got[0]["epoch"].clone();
        assert_eq!((&got[0]["message"], &got[0]["offset"]), (&json!(1), &json!(1)));
        stage.server.wait_for_metric("long_poll_clients_num", 0);
        publish(&stage, 2..=3);
        // No message: it would make the client forget its session.
        let answer = client.answer("");
        assert_eq!((answer.status, answer.text()), (401, String::new()));
        let calls = stage.rails.calls_begun();
        let history = json!({
            "command": "history", "identifier": "A",
            "history": { "streams": { "stream:A": { "epoch": epoch, "offset": 1 } } },
        });
        let answer = try_open(stage.server.address(), &format!("/lp?sid={sid}"), &[], &history.to_string());
        let got = messages(&answer);
        assert_eq!((answer.status, &got[0]["restored"], &got[0]["restored_ids"]), (200, &json!(true), &json!(["A"])));
        let numbers: Vec<&Value> = got[1..3].iter().map(|message| &message["message"]).collect();
        assert_eq!(numbers, [2, 3]);
        assert_eq!(got[3]["type"], "confirm_history");
        assert_eq!(stage.rails.calls_begun(), calls);
    }

    fn presence_of_a_polling_client_lasts_as_long_as_its_session(driver: Driver) {
        let args = ["--broker=memory", "--noauth", "--poll_keepalive_timeout=1", "--presence_ttl=1"];
        let stage = stage(driver, &args);
        let confirmed = json!({
            "status": 1, "streams": ["stream:A"], "transmissions": [confirmation("A")],
            "env": { "istate": { "$p": "stream:A" } },
        });
        stage.rails.on_command("subscribe", "A", Answer::json(&confirmed));
        let (client, _) = Poller::open(&stage.server, SUBSCRIBE_A);
        let mut other = Cable::at(&stage.server, "/cable").subprotocols("actioncable-v1-ext-json").open();
        assert_eq!(other.next_json()["type"], "welcome");
        other.subscribe("A");
        let join = r#"{"command":"join","identifier":"A","presence":{"id":"u1","info":{"n":1}}}"#;
        let mut got = client.poll(join);
        assert_eq!(got.remove(0)["message"]["type"], "join");
        assert_eq!(other.next_json()["message"]["type"], "join");
        // It stays while it polls, for longer than its time to live.
        let waiting = client.start("");
        std::thread::sleep(Duration::from_millis(2500));
        other.send(r#"{"command":"presence","identifier":"A"}"#);
        assert_eq!(other.next_json()["message"]["total"], 1);
        drop(waiting);
        assert_eq!(other.next_json()["message"]["type"], "leave");
    }

    fn tokens_come_in_the_query_or_in_a_header(driver: Driver) {
        let stage = stage(driver, &["--jwt_secret=qwerty", "--enforce_jwt"]);
        let token = keys::jwt("qwerty", r#"{"ext":"{\"user\":1}"}"#);
        let open = |target: &str, headers: &[(&str, &str)]| try_open(stage.server.address(), target, headers, "");
        let answer = open(&format!("/lp?jid={token}"), &[]);
        assert_eq!(answer.status, 200);
        assert_eq!(messages(&answer)[0]["type"], "welcome");
        assert_eq!(open("/lp", &[("X-JID", &token)]).status, 200);
        for target in ["/lp", "/lp?jid=wrong"] {
            let answer = open(target, &[]);
            assert_eq!((answer.status, answer.text()), (401, format!("{UNAUTHORIZED}\n")), "{target}");
            assert_eq!(answer.header(POLL_ID), None);
        }
        assert!(stage.rails.calls_to("connect").is_empty());
        stage.server.wait_for_metric("long_poll_clients_num", 2);
    }

    fn a_client_that_the_app_refuses_gets_a_401_with_its_message(driver: Driver) {
        let stage = stage(driver, &[]);
        stage.rails.on_connect(Answer::unauthorized());
        let answer = try_open(stage.server.address(), "/lp", &[], SUBSCRIBE_A);
        assert_eq!((answer.status, answer.text()), (401, format!("{UNAUTHORIZED}\n")));
        stage.rails.on_connect(Answer::status(500, "no"));
        let answer = try_open(stage.server.address(), "/lp", &[], "");
        assert_eq!((answer.status, answer.text()), (503, String::new()));
        assert!(stage.rails.calls_to("command").is_empty());
        stage.server.wait_for_metric("long_poll_clients_num", 0);
    }

    fn a_client_that_leaves_before_it_is_welcome_leaves_nothing(driver: Driver) {
        let stage = stage(driver, &[]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[]).behind(&gate));
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        connection.write(b"POST /lp HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").expect("written");
        stage.server.wait_for_metric("long_poll_clients_num", 1);
        drop(connection);
        stage.server.wait_for_metric("long_poll_clients_num", 0);
        gate.open();
    }

    fn a_remote_disconnect_reaches_a_client_that_polls_now_or_later(driver: Driver) {
        let stage = stage(driver, &[]);
        let command = json!({ "command": "disconnect", "payload": { "identifier": CURRENT_USER, "reconnect": false } });
        let expected = json!({ "type": "disconnect", "reason": "remote", "reconnect": false });
        let client = subscribed(&stage);
        let mut waiting = client.start("");
        wait_until_read(&stage, &mut waiting);
        stage.broadcaster().post(&command.to_string());
        let answer = waiting.answer();
        assert_eq!((answer.status, messages(&answer)), (200, vec![expected.clone()]));
        assert_eq!(client.answer("").status, 401);
        // Between two polls: what came before is not lost either.
        let client = subscribed(&stage);
        publish(&stage, 1..=1);
        stage.broadcaster().post(&command.to_string());
        stage.server.wait_for_metric("long_poll_clients_num", 0);
        let answer = client.answer(SUBSCRIBE_A);
        assert_eq!((answer.status, messages(&answer)), (200, vec![data(1), expected]));
        assert_eq!(client.answer("").status, 401);
        stage.rails.wait_for_calls("disconnect", 2);
    }

    fn clients_are_told_when_the_server_stops(driver: Driver) {
        let stage = stage(driver, &["--cores=3"]);
        let clients: Vec<Poller> = (0..6).map(|_| subscribed(&stage)).collect();
        let mut waiting: Vec<_> = clients.iter().map(|client| client.start("")).collect();
        waiting.iter_mut().for_each(|poll| wait_until_read(&stage, poll));
        // One that does not poll now is not waited for.
        let _away = subscribed(&stage);
        let started = Instant::now();
        stage.server.terminate();
        for poll in waiting {
            let answer = poll.answer();
            assert_eq!((answer.status, answer.text()), (200, format!("{RESTART}\n")));
            assert_eq!(answer.header("connection"), Some("close"));
        }
        assert!(stage.server.wait_exit().success());
        assert!(started.elapsed() < Duration::from_secs(5));
        stage.rails.wait_for_calls("disconnect", 7);
    }

    fn whispers_reach_polling_clients_and_come_from_them(driver: Driver) {
        let stage = stage(driver, &[]);
        let confirmed = json!({
            "status": 1, "streams": ["stream:A"], "transmissions": [confirmation("A")],
            "env": { "istate": { "$w": "stream:A" } },
        });
        stage.rails.on_command("subscribe", "A", Answer::json(&confirmed));
        let (one, other) = (subscribed(&stage), subscribed(&stage));
        let waiting = other.start("");
        let whisper = one.start(r#"{"command":"whisper","identifier":"A","data":{"typing":true}}"#);
        assert_eq!(waiting.messages(), [json!({ "identifier": "A", "message": { "typing": true } })]);
        publish(&stage, 1..=1);
        assert_eq!(whisper.messages(), [data(1)]);
    }

    fn a_message_with_line_ends_is_one_line(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let text = "{\n \"a\":\r\n1}";
        stage.broadcaster().post(&json!({ "stream": "stream:A", "data": text }).to_string());
        assert_eq!(client.poll(""), [json!({ "identifier": "A", "message": { "a": 1 } })]);
        // A long one is shared with other clients; this one gets a copy.
        let long = format!("[\n\"{}\"]", "x".repeat(100_000));
        stage.broadcaster().post(&json!({ "stream": "stream:A", "data": long }).to_string());
        let got = client.poll("");
        assert_eq!(got[0]["message"][0].as_str().map(str::len), Some(100_000));
        stage.rails.on_command("subscribe", "B", Answer::transmit(&["{\n\"b\":\r2}".to_owned()]));
        assert_eq!(client.poll(r#"{"command":"subscribe","identifier":"B"}"#), [json!({ "b": 2 })]);
    }

    fn a_long_queue_is_sent_in_several_answers(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let text = json!("x".repeat(300_000)).to_string();
        let bodies = [1, 2, 3, 4, 5, 6].map(|_| json!({ "stream": "stream:A", "data": text }));
        stage.broadcaster().post(&json!(bodies).to_string());
        let sizes: Vec<usize> = std::iter::from_fn(|| Some(client.poll("").len())).take(2).collect();
        assert_eq!(sizes, [3, 3]);
        // One message is sent however long it is.
        let text = json!("x".repeat(3_000_000)).to_string();
        stage.broadcaster().post(&json!({ "stream": "stream:A", "data": text }).to_string());
        let got = client.poll("");
        assert_eq!(got[0]["message"].as_str().map(str::len), Some(3_000_000));
    }

    fn a_client_that_does_not_come_for_its_messages_is_slow(driver: Driver) {
        let stage = stage(driver, &["--session_bytes_max=300000"]);
        let client = subscribed(&stage);
        let text = json!("x".repeat(60_000)).to_string();
        for _ in 0..6 {
            stage.publish("stream:A", &text);
        }
        stage.server.wait_for_metric("disconnected_slow_clients_total", 1);
        let expected = json!({ "type": "disconnect", "reason": "too_slow", "reconnect": true });
        assert_eq!(client.poll(""), [expected]);
        assert_eq!(client.answer("").status, 401);
    }

    fn commands_that_wait_for_the_app_are_bounded(driver: Driver) {
        let stage = stage(driver, &["--session_bytes_max=200000"]);
        let client = subscribed(&stage);
        let gate = Gate::new();
        stage.rails.on_command("message", "A", Answer::success().behind(&gate));
        let perform = json!({ "command": "message", "identifier": "A", "data": "x".repeat(50_000) }).to_string();
        let mut polls = vec![client.start(&perform)];
        stage.rails.wait_for_command("message", "A");
        polls.extend((0..6).map(|_| client.start(&perform)));
        let messages = polls.into_iter().flat_map(|poll| poll.messages());
        let reasons: Vec<Value> = messages.map(|message| message["reason"].clone()).collect();
        gate.open();
        let slow = reasons.iter().filter(|reason| *reason == "too_slow").count();
        assert!(slow == 1, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason == "too_slow" || reason == "session_expired"), "{reasons:?}");
    }

    fn sessions_are_bounded_as_connections_are(driver: Driver) {
        let stage = stage(driver, &["--max-conn=4"]);
        let clients: Vec<_> = (0..4).map(|_| Poller::open(&stage.server, "")).collect();
        let answer = try_open(stage.server.address(), "/lp", &[], "");
        assert_eq!((answer.status, answer.text()), (503, String::new()));
        drop(clients);
    }

    fn polling_is_off_unless_it_is_switched_on(driver: Driver) {
        let stage = Stage::with(driver, &[]);
        assert_eq!(try_open(stage.server.address(), "/lp", &[], "").status, 404);
        let other = self::stage(driver, &["--poll_path=/poll/here"]);
        other.server.wait_for_log(&["Handle long-polling requests at", "/poll/here"]);
        assert_eq!(try_open(other.server.address(), "/lp", &[], "").status, 404);
        assert_eq!(try_open(other.server.address(), "/poll/here", &[], "").status, 200);
    }

    fn browsers_may_call_from_allowed_origins(driver: Driver) {
        let any = stage(driver, &[]);
        let origin = [("Origin", "https://Page.example")];
        let answer = try_open(any.server.address(), "/lp", &origin, "");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-expose-headers"), Some(POLL_ID));
        let some = stage(driver, &["--allowed_origins=page.example"]);
        let address = some.server.address();
        let preflight = request(address, "OPTIONS", "/lp", &origin, b"").expect("an answer");
        assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (200, Some("https://page.example")));
        let allowed = preflight.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("access-control-allow-headers"));
        assert!(allowed.into_iter().any(|(_, value)| value == POLL_ID), "{preflight:?}");
        let answer = try_open(address, "/lp", &origin, "");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("https://page.example")));
        let answer = try_open(address, "/lp", &[("Origin", "https://evil.example")], SUBSCRIBE_A);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (403, None));
        // The headers are also on the answers to polls.
        let id = try_open(address, "/lp", &origin, SUBSCRIBE_A);
        let id = id.header(POLL_ID).expect("an id").to_owned();
        publish(&some, 1..=1);
        let answer = try_open(address, "/lp", &[origin[0], (POLL_ID, &id)], "");
        assert_eq!(messages(&answer), [data(1)]);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://page.example"));
    }

    fn polls_work_over_tls(driver: Driver) {
        let scene = crate::support::tls::Scene::new(driver, &["--poll", "--poll_flush_interval=0", "--cores=3"]);
        let mut connections: Vec<_> = (0..4).map(|_| scene.over(scene.tcp())).collect();
        let mut send = |at: usize, id: Option<&str>, commands: &str| {
            let id = id.map(|id| format!("{POLL_ID}: {id}\r\n")).unwrap_or_default();
            let bytes = commands.len();
            let text = format!("POST /lp HTTP/1.1\r\nHost: localhost\r\n{id}Content-Length: {bytes}\r\n\r\n{commands}");
            crate::support::poller::over_tls(&mut connections[at], &text)
        };
        let answer = send(0, None, SUBSCRIBE_A);
        assert_eq!(answer.status, 200);
        let id = answer.header(POLL_ID).expect("an id").to_owned();
        // The same connections again and again, and most of them come from another shard.
        for round in 1..=8 {
            scene.publish("stream:A", &round.to_string());
            let answer = send(round as usize % 4, Some(&id), "");
            assert_eq!(messages(&answer), [data(round)]);
        }
    }

    fn a_half_closed_connection_counts_as_given_up(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let mut waiting = client.start("");
        wait_until_read(&stage, &mut waiting);
        waiting.connection().stream().shutdown(Shutdown::Write).expect("a connection");
        assert!(waiting.connection().is_at_end());
        publish(&stage, 1..=1);
        assert_eq!(client.poll(""), [data(1)]);
    }
}

//! Publications: the endpoint, what is recognised, what clients get, order, remote disconnects.
//! Source: `contract/broadcast.md`.

use std::thread;

use serde_json::{Value, json};

use crate::support::http::{self, HttpConnection, publication};
use crate::support::ports::free_port;
use crate::support::raw::Raw;
use crate::support::{Answer, Cable, Driver, Launch, Rails, Stage, keys};

/// Enough clients that both shards have some.
const CLIENTS: usize = 12;

/// The stage of `contract/broadcast.md` §10.
struct Replay {
    stage: Stage,
    first: Cable,
    second: Cable,
}

impl Replay {
    fn new(driver: Driver) -> Self {
        let stage = Stage::new(driver);
        stage.rails.streams("A", &["x"]);
        stage.rails.streams("B", &["x", "y"]);
        let mut first = Cable::to(&stage.server)
            .header("X-Request-ID", "sidA")
            .welcomed();
        first.subscribe("A");
        first.subscribe("B");
        let mut second = Cable::to(&stage.server)
            .header("X-Request-ID", "sidB")
            .welcomed();
        second.subscribe("A");
        Self {
            stage,
            first,
            second,
        }
    }

    /// Posts `body` and compares what both clients get, in any order.
    fn check(&mut self, body: &str, first: &[Value], second: &[Value]) {
        self.stage.broadcaster().post(body);
        for (client, expected) in [(&mut self.first, first), (&mut self.second, second)] {
            let mut got: Vec<String> = expected
                .iter()
                .map(|_| client.next_json().to_string())
                .collect();
            let mut expected: Vec<String> = expected.iter().map(Value::to_string).collect();
            got.sort_unstable();
            expected.sort_unstable();
            assert_eq!(got, expected, "after {body}");
            client.expect_nothing_before_pong();
        }
    }
}

fn subscribed_clients(stage: &Stage, identifier: &str) -> Vec<Cable> {
    let mut clients: Vec<Cable> = (0..CLIENTS).map(|_| stage.client()).collect();
    clients
        .iter_mut()
        .for_each(|client| client.subscribe(identifier));
    clients
}

fn status(stage: &Stage, method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
    let body = if method == "POST" {
        publication("x", "1")
    } else {
        String::new()
    };
    http::request(
        stage.server.address(),
        method,
        target,
        headers,
        body.as_bytes(),
    )
    .expect("an answer")
    .status
}

/// The port, the authorization text of the start-up line and whether a POST without a key is accepted.
fn endpoint(driver: Driver, args: &[&str]) -> (bool, bool) {
    let rails = Rails::start_with("/_anycable", None);
    let server = Launch::new(driver)
        .arg(format!("--rpc_host={}", rails.url()))
        .arg("--http_rpc_secret=none")
        .args(args.iter().copied())
        .start();
    let line = server.wait_for_log(&[
        "Accept broadcast requests at http://127.0.0.1:",
        "/_broadcast (",
    ]);
    let port = server.port_in_log("Accept broadcast requests at ");
    let open = http::request(
        ([127, 0, 0, 1], port).into(),
        "POST",
        "/_broadcast",
        &[],
        b"{}",
    )
    .expect("an answer");
    assert_eq!(
        line.contains("(no authorization"),
        open.status == 201,
        "{line}"
    );
    assert_eq!(
        line.contains("(authorization required"),
        open.status == 401,
        "{line}"
    );
    (port == server.port(), open.status == 201)
}

on_both_drivers! {
    fn publications_reach_sessions_as_the_contract_replays_them(driver: Driver) {
        let mut replay = Replay::new(driver);
        let to = |identifier: &str, message: Value| json!({ "identifier": identifier, "message": message });
        let typed = |identifier: &str| json!({ "type": "whisper", "identifier": identifier, "message": 4 });
        replay.check(r#"{"stream":"x","data":"1"}"#, &[to("A", json!(1)), to("B", json!(1))], &[to("A", json!(1))]);
        replay.check(r#"{"stream":"y","data":"2"}"#, &[to("B", json!(2))], &[]);
        replay.check(r#"{"stream":"x","data":"3","meta":{"exclude_socket":"sidA"}}"#, &[], &[to("A", json!(3))]);
        replay.check(
            r#"{"stream":"x","data":"4","meta":{"broadcast_type":"whisper","transient":true}}"#,
            &[typed("A"), typed("B")],
            &[typed("A")],
        );
        let html = json!("<b>");
        replay.check(r#"{"stream":"x","data":"\"<b>\""}"#, &[to("A", html.clone()), to("B", html.clone())], &[to("A", html)]);
        replay.check(
            r#"[{"stream":"x","data":"13"},{"stream":"y","data":"14"}]"#,
            &[to("A", json!(13)), to("B", json!(13)), to("B", json!(14))],
            &[to("A", json!(13))],
        );
        replay.check(r#"{"stream":"nosuch","data":"1"}"#, &[], &[]);
        replay.check("nope", &[], &[]);
        replay.check(r#"{"command":"subscribe","payload":{"identifier":"i"}}"#, &[], &[]);
    }

    fn only_well_formed_publications_are_delivered(driver: Driver) {
        let mut replay = Replay::new(driver);
        let one = [json!({ "identifier": "B", "message": 1 })];
        let empty = [json!({ "identifier": "B", "message": "" })];
        let delivered: [(&str, &[Value]); 7] = [
            (r#"{"stream":"y"}"#, &empty),
            (r#"{"stream":"y","data":null}"#, &empty),
            (r#"{"Stream":"y","DATA":"1"}"#, &one),
            (r#"{"stream":"y","data":"1","command":"disconnect","payload":{}}"#, &one),
            (r#"{"stream":"y","data":"2","data":"1","more":{"a":[]}}"#, &one),
            (r#"[{"stream":"y","data":"1"},{"command":"disconnect","payload":{}}]"#, &one),
            (r#"[{"stream":"y","data":"1"},null]"#, &one),
        ];
        for (body, expected) in delivered {
            replay.check(body, expected, &[]);
        }
        for body in [
            r#"{"stream":"y","data":{"a":1}}"#, r#"{"stream":"y","data":5}"#, r#"{"stream":"","data":"1"}"#,
            r#"{"stream":"y","data":"1","meta":"zz"}"#, r#"[{"stream":"y","data":"1"},{"stream":"y","data":2}]"#,
            r#"[{"data":"1"},{"stream":"y","data":"1"}]"#, "[]", "{}", "null", "", "text", "[null]",
            r#"{"stream":"y","data":"1"} x"#, r#"{"stream":5,"data":"1"}"#, "\u{feff}{}",
        ] {
            replay.check(body, &[], &[]);
        }
        replay.stage.server.assert_running();
    }

    fn data_becomes_the_message_as_the_contract_says(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        let table = [
            (r#"{"b":1,"a":2}"#, json!({ "a": 2, "b": 1 })), (r#""str""#, json!("str")), ("12", json!(12)),
            ("false", json!(false)), ("0", json!(0)), ("[]", json!([])), ("{}", json!({})), ("null", json!("null")),
            ("", json!("")), ("plain", json!("plain")), (r#"{"a":1} x"#, json!(r#"{"a":1} x"#)),
            (r#"{"a":1,}"#, json!(r#"{"a":1,}"#)), ("01", json!("01")), ("NaN", json!("NaN")),
            ("\u{feff}1", json!("\u{feff}1")), (" [1 , 2]\n", json!([1, 2])), (r#""<turbo-stream>&""#, json!("<turbo-stream>&")),
            (r#""\u003cb\u003e\u2028 é 🚃""#, json!("<b>\u{2028} é 🚃")),
        ];
        for (data, message) in table {
            stage.publish("stream:A", data);
            assert_eq!(client.next_json(), json!({ "identifier": "A", "message": message }), "data {data:?}");
        }
    }

    fn valid_json_is_passed_through_untouched(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        for data in ["12345678901234567890", "1.50", "-0.0", "1e21", r#"{"z":1,"a":"\u003cb\u003e","z":2}"#, r#"[9007199254740993]"#] {
            stage.publish("stream:A", data);
            assert_eq!(client.next_text(), format!(r#"{{"identifier":"A","message":{data}}}"#));
        }
    }

    fn deeply_nested_data_harms_nobody(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        stage.publish("stream:A", &("[".repeat(200_000) + &"]".repeat(200_000)));
        client.next_text();
        stage.broadcaster().post(&("[".repeat(300_000)));
        stage.publish("stream:A", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
    }

    fn invalid_utf8_is_replaced(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        let authorization = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        let body = b"{\"stream\":\"stream:A\",\"data\":\"\\\"a\xffb\\\"\"}";
        let headers = [("Authorization", authorization.as_str())];
        let answer = http::request(stage.server.address(), "POST", "/_broadcast", &headers, body).expect("an answer");
        assert_eq!(answer.status, 201);
        assert_eq!(client.next_json()["message"], "a\u{fffd}b");
    }

    fn large_publication_reaches_everybody_whole(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        let data = format!("\"{}\"", "0123456789abcdef".repeat(40_000));
        stage.publish("stream:A", &data);
        for client in &mut clients {
            assert_eq!(client.next_text(), format!(r#"{{"identifier":"A","message":{data}}}"#));
        }
    }

    fn three_hundred_publications_arrive_in_order_at_every_client(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        let mut publisher = stage.broadcaster().keep_alive();
        for number in 0..300 {
            publisher.publish("stream:A", &number.to_string());
        }
        for client in &mut clients {
            for number in 0..300 {
                assert_eq!(client.next_text(), format!(r#"{{"identifier":"A","message":{number}}}"#));
            }
            client.expect_nothing_before_pong();
        }
    }

    fn publications_over_new_connections_arrive_in_order_too(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        for number in 0..60 {
            stage.publish("stream:A", &number.to_string());
        }
        for client in &mut clients {
            for number in 0..60 {
                assert_eq!(client.next_json()["message"], number);
            }
        }
    }

    fn what_was_posted_after_an_answer_is_behind_it_for_everybody(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        // Two publishers take turns; their connections may well be on different shards.
        let mut publishers: Vec<_> = (0..4).map(|_| stage.broadcaster().keep_alive()).collect();
        for number in 0..80 {
            publishers[number % 4].publish("stream:A", &number.to_string());
        }
        for client in &mut clients {
            for number in 0..80 {
                assert_eq!(client.next_json()["message"], number);
            }
        }
    }

    fn concurrent_publishers_are_seen_in_one_order_each(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        thread::scope(|scope| {
            for publisher in 0..4 {
                let mut connection = stage.broadcaster().keep_alive();
                scope.spawn(move || {
                    for number in 0..50 {
                        connection.publish("stream:A", &json!([publisher, number]).to_string());
                    }
                });
            }
        });
        for client in &mut clients {
            let mut next = [0; 4];
            for _ in 0..200 {
                let message = client.next_json()["message"].clone();
                let publisher = message[0].as_u64().expect("a number") as usize;
                assert_eq!(message[1], next[publisher], "publisher {publisher}");
                next[publisher] += 1;
            }
        }
    }

    fn elements_of_a_batch_keep_their_order_per_stream(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = subscribed_clients(&stage, "A");
        let batch: Vec<Value> =
            (0..100).map(|number| json!({ "stream": "stream:A", "data": number.to_string() })).collect();
        stage.broadcaster().post(&Value::from(batch).to_string());
        for client in &mut clients {
            for number in 0..100 {
                assert_eq!(client.next_json()["message"], number);
            }
        }
    }

    fn any_number_of_shards_delivers_to_everybody(driver: Driver) {
        for cores in ["--cores=1", "--cores=3"] {
            let stage = Stage::with(driver, &[cores]);
            let mut clients = subscribed_clients(&stage, "A");
            let mut publisher = stage.broadcaster().keep_alive();
            for number in 0..20 {
                publisher.publish("stream:A", &number.to_string());
            }
            for client in &mut clients {
                for number in 0..20 {
                    assert_eq!(client.next_json()["message"], number, "{cores}");
                }
                client.expect_nothing_before_pong();
            }
        }
    }

    fn stream_attached_twice_to_one_identifier_gives_one_frame(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.streams("A", &["x", "x"]);
        let mut client = stage.client();
        client.subscribe("A");
        stage.publish("x", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
        client.expect_nothing_before_pong();
    }

    fn publication_before_the_subscription_is_not_kept(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        stage.publish("stream:A", "1");
        client.subscribe("A");
        client.expect_nothing_before_pong();
    }

    fn status_codes_follow_the_order_of_checks(driver: Driver) {
        let stage = Stage::new(driver);
        let key = keys::broadcast_token(keys::SECRET);
        let (good, lower, wrong) = (format!("Bearer {key}"), format!("bearer {key}"), format!("Bearer {key}x"));
        let auth = |value| [("Authorization", value)];
        assert_eq!(status(&stage, "POST", "/_broadcast", &[]), 401);
        assert_eq!(status(&stage, "POST", "/_broadcast", &auth(lower.as_str())), 401);
        assert_eq!(status(&stage, "POST", "/_broadcast", &auth(wrong.as_str())), 401);
        assert_eq!(status(&stage, "POST", "/_broadcast", &[("Authorization", &key)]), 401);
        for method in ["GET", "PUT", "OPTIONS", "HEAD", "DELETE"] {
            assert_eq!(status(&stage, method, "/_broadcast", &[]), 422, "{method}");
            assert_eq!(status(&stage, method, "/_broadcast", &auth(good.as_str())), 422, "{method} with the key");
        }
        assert_eq!(status(&stage, "POST", "/_broadcast/", &auth(good.as_str())), 404);
        assert_eq!(status(&stage, "POST", "/_broadcast?x=1", &auth(good.as_str())), 201);
        assert_eq!(status(&stage, "POST", "/_broadcast", &[("aUTHORIZATION", good.as_str())]), 201);
    }

    fn answers_have_no_body_and_keep_the_connection(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let good = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        let attempts = [("POST", good.as_str(), 201), ("POST", "no", 401), ("GET", good.as_str(), 422), ("POST", good.as_str(), 201)];
        for (method, authorization, status) in attempts {
            let answer = connection.request(method, "/_broadcast", &[("Authorization", authorization)], b"{}");
            let answer = answer.expect("the connection is kept alive");
            assert_eq!((answer.status, answer.header("content-length"), answer.body.len()), (status, Some("0"), 0));
        }
    }

    fn chunked_bodies_and_expect_continue_are_understood(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        let good = format!("Authorization: Bearer {}", keys::broadcast_token(keys::SECRET));
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let head = format!("POST /_broadcast HTTP/1.1\r\nHost: a\r\n{good}\r\n");
        connection.write(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).expect("open");
        for chunk in publication("stream:A", "1").as_bytes().chunks(5) {
            let chunk = format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
            connection.write(chunk.as_bytes()).expect("open");
        }
        connection.write(b"0\r\n\r\n").expect("open");
        assert_eq!(connection.read_response(false).expect("an answer").status, 201);
        assert_eq!(client.next_json()["message"], 1);

        let body = publication("stream:A", "2");
        let expect = format!("{head}Content-Length: {}\r\nExpect: 100-continue\r\n\r\n", body.len());
        connection.write(expect.as_bytes()).expect("open");
        assert_eq!(connection.read_response(false).expect("a go-ahead").status, 100);
        connection.write(body.as_bytes()).expect("open");
        assert_eq!(connection.read_response(false).expect("an answer").status, 201);
        assert_eq!(client.next_json()["message"], 2);
    }

    fn port_and_key_follow_the_secrets(driver: Driver) {
        // (shares the main port, is open to everybody)
        assert_eq!(endpoint(driver, &["--secret=S"]), (true, false));
        assert_eq!(endpoint(driver, &["--broadcast_key=K"]), (true, false));
        assert_eq!(endpoint(driver, &["--secret=S", "--http_broadcast_secret=K"]), (true, false));
        assert_eq!(endpoint(driver, &["--secret=S", "--public"]), (true, true));
        let port = || format!("--http_broadcast_port={}", free_port());
        assert_eq!(endpoint(driver, &["--secret=S", &port()]), (false, false));
        assert_eq!(endpoint(driver, &[&port()]), (false, true));
        assert_eq!(endpoint(driver, &["--secret=S", "--broadcast_key=none", &port()]), (false, true));
    }

    fn separate_broadcast_port_serves_nothing_else(driver: Driver) {
        let port = free_port();
        let stage = Stage::with(driver, &[&format!("--http_broadcast_port={port}")]);
        let mut broadcaster = stage.broadcaster();
        broadcaster.address.set_port(port);
        let mut clients = subscribed_clients(&stage, "A");
        broadcaster.publish("stream:A", "1");
        for client in &mut clients {
            assert_eq!(client.next_json()["message"], 1);
        }
        assert_eq!(http::get(broadcaster.address, "/health").status, 404);
        assert_eq!(http::get(broadcaster.address, "/cable").status, 404);
        assert_eq!(status(&stage, "POST", "/_broadcast", &[]), 404);
    }

    fn explicit_key_and_path_are_used(driver: Driver) {
        let stage = Stage::with(driver, &["--broadcast_key=K", "--http_broadcast_path=/pub"]);
        assert_eq!(status(&stage, "POST", "/pub", &[("Authorization", "Bearer K")]), 201);
        assert_eq!(status(&stage, "POST", "/pub", &[]), 401);
        assert_eq!(status(&stage, "POST", "/_broadcast", &[("Authorization", "Bearer K")]), 404);
    }

    fn cors_headers_are_sent_when_switched_on(driver: Driver) {
        let stage = Stage::with(driver, &["--http_broadcast_cors"]);
        stage.server.wait_for_log(&["/_broadcast (authorization required, CORS enabled)"]);
        let address = stage.server.address();
        for (method, status) in [("OPTIONS", 200), ("POST", 401), ("GET", 422)] {
            let answer = http::request(address, method, "/_broadcast", &[("Origin", "http://a.b")], b"").expect("an answer");
            assert_eq!(answer.status, status, "{method}");
            assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
            assert_eq!(answer.header("Access-Control-Allow-Methods"), Some("POST, OPTIONS"));
            assert_eq!(answer.header("Access-Control-Allow-Credentials"), Some("true"));
        }
    }

    fn remote_disconnect_closes_every_session_of_the_identifiers(driver: Driver) {
        let stage = Stage::new(driver);
        let mut banned: Vec<Raw> = (0..CLIENTS).map(|_| stage.raw()).collect();
        stage.rails.on_connect(Answer::welcome(r#"{"current_user":"other"}"#, &[r#"{"type":"welcome"}"#]));
        let mut other = stage.client();
        let identifier = crate::support::rails::CURRENT_USER;
        let command = json!({ "command": "disconnect", "payload": { "identifier": identifier, "reconnect": false } });
        stage.broadcaster().post(&command.to_string());
        for raw in &mut banned {
            assert_eq!(raw.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":false}"#);
            raw.expect_close(1000, "Closed remotely");
        }
        stage.rails.wait_for_calls("disconnect", CLIENTS);
        other.expect_nothing_before_pong();
        stage.server.wait_for_metric("clients_num", 1);
    }

    fn remote_disconnect_tells_whether_to_reconnect(driver: Driver) {
        let stage = Stage::new(driver);
        let identifier = json!(crate::support::rails::CURRENT_USER);
        for (flag, reconnect) in [(r#","reconnect":true"#, true), (r#","reconnect":false"#, false), ("", false)] {
            let mut client = stage.client();
            let command = format!(r#"{{"command":"disconnect","payload":{{"identifier":{identifier}{flag}}}}}"#);
            stage.broadcaster().post(&command);
            let expected = format!(r#"{{"type":"disconnect","reason":"remote","reconnect":{reconnect}}}"#);
            assert_eq!(client.next_text(), expected);
        }
    }

    fn malformed_or_unknown_commands_change_nothing(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        for body in [
            r#"{"command":"disconnect"}"#, r#"{"command":"disconnect","payload":5}"#,
            r#"{"command":"disconnect","payload":{"identifier":5}}"#, r#"{"command":"disconnect","payload":{"identifier":"x"}}"#,
            r#"{"command":"unsubscribe","payload":{}}"#, r#"{"command":"","payload":{}}"#,
        ] {
            stage.broadcaster().post(body);
        }
        client.expect_nothing_before_pong();
    }

    fn counters_follow_the_table(driver: Driver) {
        let stage = Stage::new(driver);
        let metrics = || {
            ["publications_total", "failed_broadcast_msg_total", "broadcast_msg_total", "remote_commands_total"]
                .map(|name| stage.server.metric(name))
        };
        stage.publish("x", "1");
        assert_eq!(metrics(), [1, 0, 1, 0]);
        stage.broadcaster().post(r#"[{"stream":"x","data":"1"},{"stream":"y","data":"1"}]"#);
        assert_eq!(metrics(), [2, 0, 3, 0]);
        stage.broadcaster().post("nope");
        assert_eq!(metrics(), [2, 1, 3, 0]);
        stage.broadcaster().post(r#"{"command":"disconnect","payload":{"identifier":"x"}}"#);
        assert_eq!(metrics(), [3, 1, 4, 1]);
    }

    fn api_publish_works_with_its_own_token(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        let token = format!("Bearer {}", keys::api_token(keys::SECRET));
        let headers = [("Authorization", token.as_str())];
        let body = publication("stream:A", "1");
        let answer = http::request(stage.server.address(), "POST", "/api/publish", &headers, body.as_bytes());
        assert_eq!(answer.expect("an answer").status, 201);
        assert_eq!(client.next_json()["message"], 1);
        let refused = http::request(stage.server.address(), "POST", "/api/publish", &[], body.as_bytes());
        assert_eq!(refused.expect("an answer").status, 401);
    }
}

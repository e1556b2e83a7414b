//! `--console` from outside: who gets in, what is shown, what can be done. The page itself is tested in a browser.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::http::{self, HttpConnection, Response};
use crate::support::ports::free_port;
use crate::support::raw::{Raw, handshake};
use crate::support::wait::PATIENCE;
use crate::support::{Cable, Driver, Launch, Rails, Server, Stage, keys};

const CHANNEL: &str = r#"{"channel":"ringcable:console"}"#;
const ACTION: (&str, &str) = ("X-Ringcable-Console", "1");
const OWN_PAGE: (&str, &str) = ("Sec-Fetch-Site", "same-origin");

fn console(driver: Driver) -> Stage {
    Stage::with(driver, &["--console"])
}

/// Bound to every interface, so that loopback is nothing special.
fn behind_a_login(driver: Driver) -> Stage {
    Stage::with(driver, &["--console", "--host=0.0.0.0"])
}

/// Sends exactly these header lines.
fn ask(server: &Server, request: &str, lines: &[&str], body: &str) -> Response {
    let mut connection = HttpConnection::open(server.address()).expect("accepted");
    let mut head = format!("{request} HTTP/1.1\r\n");
    for line in lines {
        head.push_str(line);
        head.push_str("\r\n");
    }
    if request.starts_with("POST") {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    connection
        .write((head + "\r\n" + body).as_bytes())
        .expect("open");
    connection.read_response(false).expect("an answer")
}

fn status(server: &Server, request: &str, lines: &[&str]) -> u16 {
    ask(server, request, lines, "").status
}

/// What the page asks for, on loopback.
pub fn act(server: &Server, path: &str, body: &Value) -> (u16, Value) {
    let headers = [ACTION, OWN_PAGE];
    let answer = http::request(
        server.address(),
        "POST",
        path,
        &headers,
        body.to_string().as_bytes(),
    )
    .expect("an answer");
    (
        answer.status,
        serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
    )
}

fn search(server: &Server, query: &str) -> Vec<Value> {
    let (status, answer) = act(server, "/_console/search", &json!({ "query": query }));
    assert_eq!(
        (status, &answer["more"], &answer["incomplete"]),
        (200, &json!(false), &json!(false)),
        "{answer}"
    );
    answer["sessions"].as_array().expect("a list").clone()
}

/// A connection of the console, subscribed.
fn watch(server: &Server) -> Cable {
    let mut console = Cable::at(server, "/_console/cable")
        .header("Origin", &format!("http://{}", server.address()))
        .subprotocols("actioncable-v1-json")
        .welcomed();
    listen(&mut console, CHANNEL);
    console
}

/// Subscribes where the server itself confirms.
fn listen(client: &mut Cable, identifier: &str) {
    client.command("subscribe", identifier);
    let answer = client.next_json();
    assert_eq!(
        (&answer["type"], &answer["identifier"]),
        (&json!("confirm_subscription"), &json!(identifier))
    );
}

fn next_snapshot(console: &mut Cable, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = console.next_json();
        assert_eq!(text["identifier"], CHANNEL, "{text}");
        if wanted(&text["message"]) {
            return text["message"].clone();
        }
        assert!(Instant::now() < deadline, "the last snapshot: {text}");
    }
}

fn sum(snapshot: &Value, name: &str) -> i64 {
    let shards = snapshot["shards"].as_array().expect("a list");
    shards
        .iter()
        .map(|shard| shard[name].as_i64().expect("a number"))
        .sum()
}

fn records(server: &Server) -> Vec<Value> {
    let answer: Value =
        serde_json::from_slice(&server.get("/_console/records").body).expect("JSON");
    answer["records"].as_array().expect("a list").clone()
}

fn log_in(server: &Server, word: &str) -> Response {
    let body = format!("token={word}");
    ask(
        server,
        "POST /_console/login",
        &[
            "Host: a",
            "Origin: http://a",
            "Content-Type: application/x-www-form-urlencoded",
        ],
        &body,
    )
}

fn cookie_of(answer: &Response) -> String {
    let cookie = answer.header("Set-Cookie").expect("a cookie");
    format!("Cookie: {}", cookie.split(';').next().expect("a pair"))
}

fn upgrade_status(server: &Server, lines: &[&str]) -> u16 {
    let mut raw = Raw::connect(server.address());
    raw.send(handshake("/_console/cable", lines).as_bytes());
    raw.read_head().status()
}

on_both_drivers! {
    fn without_the_option_there_is_no_console(driver: Driver) {
        let stage = Stage::new(driver);
        for path in ["/_console", "/_console/login", "/_console/console.js", "/_console/cable"] {
            assert_eq!(stage.server.get(path).status, 404, "{path}");
        }
        assert_eq!(upgrade_status(&stage.server, &["Origin: http://localhost"]), 404);
    }

    fn this_machine_needs_no_login(driver: Driver) {
        let stage = console(driver);
        for host in ["localhost", "localhost:8080", "127.0.0.1", "[::1]:80"] {
            assert_eq!(status(&stage.server, "GET /_console", &[&format!("Host: {host}")]), 200, "{host}");
        }
        let page = stage.server.get("/_console");
        assert!(page.header("Content-Security-Policy").is_some_and(|policy| policy.starts_with("default-src 'none'")));
        assert_eq!((page.header("Cache-Control"), page.header("X-Content-Type-Options")), (Some("no-store"), Some("nosniff")));
        for file in ["console.css", "console.js", "cable.js", "charts.js", "figures.js", "sessions.js", "streams.js", "icon.svg"] {
            assert_eq!(stage.server.get(&format!("/_console/{file}")).status, 200, "{file}");
        }
        assert_eq!(stage.server.get("/_console/nothing.js").status, 404);
        assert_eq!(upgrade_status(&stage.server, &["Origin: http://localhost"]), 101);
        stage.server.wait_for_log(&["Serve the console at", "/_console (no login from this machine)"]);
    }

    fn whoever_comes_through_a_proxy_or_by_another_name_has_to_log_in(driver: Driver) {
        let stage = console(driver);
        let closed = |lines: &[&str]| {
            let answer = ask(&stage.server, "GET /_console", lines, "");
            assert_eq!((answer.status, answer.header("Location")), (303, Some("/_console/login")), "{lines:?}");
            assert_eq!(status(&stage.server, "GET /_console/records", lines), 401, "{lines:?}");
        };
        closed(&["Host: rebound.example"]);
        closed(&["Host: localhost", "X-Forwarded-For: 1.2.3.4"]);
        closed(&["Host: localhost", "Forwarded: for=1.2.3.4"]);
        closed(&["Host: localhost", "Via: 1.1 proxy"]);
        let mut old = HttpConnection::open(stage.server.address()).expect("accepted");
        old.write(b"GET /_console HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("open");
        assert_eq!(old.read_response(false).expect("an answer").status, 303);
        assert_eq!(upgrade_status(&stage.server, &["Origin: http://localhost", "X-Forwarded-For: 1.2.3.4"]), 401);
    }

    fn a_login_opens_the_console_and_a_logout_closes_it(driver: Driver) {
        let stage = behind_a_login(driver);
        let server = &stage.server;
        assert_eq!(status(server, "GET /_console", &["Host: localhost"]), 303);
        assert_eq!(status(server, "GET /_console/login", &["Host: localhost"]), 200);
        assert_eq!(upgrade_status(server, &["Origin: http://localhost"]), 401);
        for word in [keys::SECRET, &keys::hmac_hex(keys::SECRET, "console-cable")] {
            let answer = log_in(server, word);
            assert_eq!((answer.status, answer.header("Location")), (303, Some("/_console")));
            let set = answer.header("Set-Cookie").expect("a cookie");
            for part in ["; Path=/_console", "; HttpOnly", "; SameSite=Strict", "; Max-Age=43200"] {
                assert!(set.contains(part) && !set.contains("Secure"), "{set}");
            }
            let cookie = cookie_of(&answer);
            assert_eq!(status(server, "GET /_console", &["Host: a", &cookie]), 200);
            assert_eq!(status(server, "GET /_console/records", &["Host: a", &cookie]), 200);
            assert_eq!(upgrade_status(server, &["Origin: http://localhost", &cookie]), 101);
            assert_eq!(upgrade_status(server, &["Origin: http://evil.example", &cookie]), 403);
            let out = ask(server, "POST /_console/logout", &["Host: a", "Origin: http://a", &cookie], "");
            assert!(out.header("Set-Cookie").is_some_and(|set| set.starts_with("ringcable_console=; ") && set.contains("Max-Age=0")));
        }
        server.wait_for_log(&["(login required)"]);
        server.wait_for_log(&["somebody has logged in to the console"]);
    }

    fn wrong_words_and_forged_cookies_open_nothing(driver: Driver) {
        let stage = behind_a_login(driver);
        let server = &stage.server;
        let started = Instant::now();
        let answer = log_in(server, "wrong");
        assert_eq!((answer.status, answer.header("Set-Cookie")), (403, None));
        assert!(answer.text().contains("role=\"alert\""));
        assert_eq!(log_in(server, &"x".repeat(5_000)).status, 413);
        assert!(started.elapsed().as_millis() >= 900, "a wrong word costs a second");
        assert_eq!(server.get("/metrics").text().matches("ringcable_console_logins_failed_total{").count(), 2);
        server.wait_for_log(&["a login to the console has failed"]);
        assert!(server.log().iter().all(|line| !line.contains("wrong")), "the word is in the log");

        let good = cookie_of(&log_in(server, keys::SECRET));
        let (_, value) = good.split_once('=').expect("a value");
        let (end, signature) = value.split_once('.').expect("two parts");
        let end: u64 = end.parse().expect("a time");
        let another_key = keys::hmac_hex("another", "x");
        for forged in [
            format!("{}.{signature}", end + 1),
            format!("{end}.{another_key}"),
            format!("1.{signature}"),
            signature.to_owned(),
            String::new(),
        ] {
            let cookie = format!("Cookie: ringcable_console={forged}");
            assert_eq!(status(server, "GET /_console", &["Host: a", &cookie]), 303, "{forged}");
        }
        // Signed by us, and over: the signature says until when.
        let over = signed_until(1_700_000_000);
        assert_eq!(status(server, "GET /_console", &["Host: a", &over]), 303);
        assert_eq!(status(server, "GET /_console", &["Host: a", &signed_until(end)]), 200);
    }

    fn guesses_are_slow_and_few_at_once(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(["--console", "--host=0.0.0.0", "--cores=1"]).start();
        let tries: Vec<u16> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..12).map(|_| scope.spawn(|| log_in(&server, "guess").status)).collect();
            threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
        });
        assert!(tries.iter().all(|status| [403, 429].contains(status)), "{tries:?}");
        assert!(tries.contains(&429), "{tries:?}");
        assert_eq!(log_in(&server, keys::SECRET).status, 303);
        assert!(server.own_metric("console_refused_total") >= 1);
    }

    fn other_pages_can_neither_watch_nor_act(driver: Driver) {
        let stage = console(driver);
        let server = &stage.server;
        let body = json!({ "stream": "x", "data": "1" }).to_string();
        let publish = |lines: &[&str]| ask(server, "POST /_console/publish", lines, &body).status;
        let action = "X-Ringcable-Console: 1";
        assert_eq!(publish(&["Host: localhost", action, "Origin: http://evil.example"]), 403);
        assert_eq!(publish(&["Host: localhost", action, "Sec-Fetch-Site: cross-site"]), 403);
        assert_eq!(publish(&["Host: localhost", action, "Sec-Fetch-Site: same-site", "Origin: http://localhost"]), 403);
        assert_eq!(publish(&["Host: localhost", action, "Origin: null"]), 403);
        assert_eq!(publish(&["Host: localhost", action]), 403);
        assert_eq!(publish(&["Host: localhost", "Origin: http://localhost"]), 403, "a form has no header of its own");
        assert_eq!(publish(&["Host: localhost", action, "Origin: http://localhost"]), 200);
        for origin in ["http://evil.example", "null", "http://localhost:1"] {
            assert_eq!(upgrade_status(server, &[&format!("Origin: {origin}")]), 403, "{origin}");
        }
        assert_eq!(upgrade_status(server, &[]), 403);
        assert_eq!(status(server, "GET /_console/publish", &["Host: localhost", action]), 405);
    }

    fn snapshots_follow_what_happens(driver: Driver) {
        let stage = console(driver);
        let mut console = watch(&stage.server);
        let first = next_snapshot(&mut console, |_| true);
        assert_eq!((sum(&first, "sessions"), first["shards"].as_array().map(Vec::len)), (0, Some(2)));
        assert!(first["private_bytes"].as_u64().is_some_and(|bytes| bytes > 100_000), "{first}");
        let mut client = stage.client();
        client.subscribe(r#"{"channel":"ChatChannel","id":"1"}"#);
        let streams = search(&stage.server, "")[0]["subscriptions"][0]["streams"].clone();
        let stream = streams[0].as_str().expect("a stream").to_owned();
        stage.publish(&stream, "1");
        client.next_text();
        let snapshot = next_snapshot(&mut console, |snapshot| sum(snapshot, "deliveries") == 1 && snapshot["streams"] != 0);
        // The console itself is no client, asks nothing of the app, and listens to no stream.
        assert_eq!((sum(&snapshot, "sessions"), &snapshot["streams"], &snapshot["users"]), (1, &json!(1), &json!(1)));
        assert_eq!(snapshot["rpc"]["calls"], 2);
        assert_eq!(stage.server.metric("clients_num"), 1);
        drop(client);
        next_snapshot(&mut console, |snapshot| sum(snapshot, "sessions") == 0 && sum(snapshot, "closed") == 1);
    }

    fn snapshots_say_what_the_broker_keeps(driver: Driver) {
        let without = console(driver);
        assert_eq!(next_snapshot(&mut watch(&without.server), |_| true)["broker"], Value::Null);
        let stage = Stage::with(driver, &["--console", "--broker=memory", "--broker_bytes_max=1000000"]);
        let mut console = watch(&stage.server);
        stage.publish("room", "1");
        let snapshot = next_snapshot(&mut console, |snapshot| snapshot["broker"]["messages"] == 1);
        let broker = &snapshot["broker"];
        assert_eq!((&broker["streams"], &broker["bytes_max"], &broker["evicted"]), (&json!(1), &json!(1_000_000), &json!(0)));
        assert!(broker["bytes"].as_u64().is_some_and(|bytes| bytes > 100), "{broker}");
        let has_bound = |server: &Server, bound: &str| {
            let page = server.get("/metrics").text();
            assert!(page.contains(&format!("\nringcable_broker_bytes_max {bound}\n")), "{page}");
        };
        has_bound(&stage.server, "1000000");
        has_bound(&without.server, "0");
    }

    fn snapshots_stop_when_nobody_looks_and_start_again(driver: Driver) {
        let stage = console(driver);
        let mut console = watch(&stage.server);
        next_snapshot(&mut console, |_| true);
        console.command("unsubscribe", CHANNEL);
        // Time for two snapshots, if there were any.
        std::thread::sleep(Duration::from_millis(2500));
        console.command("subscribe", CHANNEL);
        // The snapshot that was under way may have come before the end of the subscription; then nothing until now.
        let mut texts = Vec::new();
        loop {
            let text = console.next_json();
            if text["type"] == "confirm_subscription" {
                break;
            }
            texts.push(text);
        }
        assert!(texts.len() <= 1, "{texts:?}");
        next_snapshot(&mut console, |_| true);
    }

    fn console_connection_is_out_of_reach_of_app_and_clients(driver: Driver) {
        let stage = console(driver);
        let mut console = watch(&stage.server);
        next_snapshot(&mut console, |_| true);
        for stream in [CHANNEL, "ringcable:console"] {
            stage.publish(stream, r#"{"spoofed":true}"#);
        }
        stage.broadcaster().post(r#"{"command":"disconnect","payload":{"identifier":"","reconnect":false}}"#);
        // Ordinary clients ask the app, on whatever path.
        let mut client = stage.client();
        client.command("subscribe", CHANNEL);
        assert_eq!(client.next_json()["identifier"], CHANNEL);
        for _ in 0..2 {
            let snapshot = next_snapshot(&mut console, |_| true);
            assert_eq!(snapshot["spoofed"], Value::Null);
        }
        client.expect_nothing_before_pong();
        console.command("subscribe", r#"{"channel":"ChatChannel"}"#);
        let rejected = loop {
            let text = console.next_json();
            if text["type"] == "reject_subscription" {
                break text;
            }
        };
        assert_eq!(rejected["identifier"], r#"{"channel":"ChatChannel"}"#);
    }

    fn console_beats_a_wildcard_path_only_when_it_is_on(driver: Driver) {
        let rails = Rails::start();
        let with = Stage::launch(driver, &rails).args(["--path=/*", "--console"]).start();
        assert_eq!(http::get(with.address(), "/_console").status, 200);
        assert_eq!(upgrade_status(&with, &[]), 403);
        assert_eq!(Cable::at(&with, "/_consoles").welcomed().response_header("X-AnyCable-Version"), Some("1.6.16"));
        drop(with);
        let without = Stage::launch(driver, &rails).arg("--path=/*").start();
        Cable::at(&without, "/_console/cable").welcomed();
    }

    fn sessions_are_found_by_sid_and_by_identifiers(driver: Driver) {
        let server = Launch::new(driver).args(["--console", "--norpc", "--noauth", "--public_streams", "--secret=S"]).start();
        let clients: Vec<Cable> = (0..60).map(|number| {
            let mut client = Cable::to(&server).header("X-Request-ID", &format!("client-{number:02}")).open();
            assert_eq!(client.next_json()["type"], "welcome");
            listen(&mut client, &format!(r#"{{"channel":"$pubsub","stream_name":"room:{number}"}}"#));
            client
        }).collect();
        let found = search(&server, "client-07");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((&found[0]["sid"], &found[0]["identifiers"]), (&json!("client-07"), &json!(r#"{"sid":"client-07"}"#)));
        assert_eq!(found[0]["subscriptions"], json!([{ "identifier": r#"{"channel":"$pubsub","stream_name":"room:7"}"#, "streams": ["room:7"] }]));
        assert_eq!(search(&server, r#""client-1"#).len(), 10);
        assert_eq!(search(&server, "nobody").len(), 0);
        let (_, all) = act(&server, "/_console/search", &json!({ "query": "" }));
        assert_eq!((all["sessions"].as_array().map(Vec::len), &all["more"]), (Some(50), &json!(true)));
        let shards: Vec<u64> = all["sessions"].as_array().expect("a list").iter().map(|session| session["shard"].as_u64().expect("a number")).collect();
        assert!(shards.is_sorted());
        let (status, refusal) = act(&server, "/_console/search", &json!({ "query": "x".repeat(300) }));
        assert_eq!((status, &refusal["error"]), (422, &json!("search for at most 256 bytes")));
        assert_eq!(act(&server, "/_console/search", &json!(1)).0, 422);
        let large = json!({ "query": "x".repeat(70_000) });
        assert_eq!(act(&server, "/_console/search", &large).0, 413);
        drop(clients);
    }

    fn a_session_is_disconnected_as_by_the_app(driver: Driver) {
        let stage = console(driver);
        let (mut wanted, mut other) = (Cable::to(&stage.server).header("X-Request-ID", "wanted").welcomed(), stage.client());
        let found = search(&stage.server, "wanted");
        let mut order = json!({ "shard": found[0]["shard"], "slot": found[0]["slot"], "generation": found[0]["generation"], "sid": "wanted", "reconnect": false });
        let mut mistaken = order.clone();
        mistaken["sid"] = json!("another");
        assert_eq!(act(&stage.server, "/_console/disconnect", &mistaken).0, 404);
        mistaken = order.clone();
        mistaken["shard"] = json!(99);
        assert_eq!(act(&stage.server, "/_console/disconnect", &mistaken).0, 404);
        assert_eq!(act(&stage.server, "/_console/disconnect", &json!({})).0, 422);

        assert_eq!(act(&stage.server, "/_console/disconnect", &order).0, 200);
        assert_eq!(wanted.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":false}"#);
        wanted.expect_close(1000, "Closed remotely");
        stage.server.wait_for_log(&["the console has disconnected a session", "sid=wanted", "peer=127.0.0.1"]);
        stage.server.wait_for_metric("clients_num", 1);
        assert_eq!(stage.server.own_metric("console_actions_total"), 1);
        order["reconnect"] = json!(true);
        assert_eq!(act(&stage.server, "/_console/disconnect", &order).0, 404, "it has ended already");
        other.expect_nothing_before_pong();
    }

    fn a_test_message_takes_the_way_of_a_publication(driver: Driver) {
        let server = Launch::new(driver).args(["--console", "--norpc", "--noauth", "--public_streams", "--secret=S", "--metrics_http=/metrics"]).start();
        let identifier = r#"{"channel":"$pubsub","stream_name":"room:1"}"#;
        let mut clients: Vec<Cable> = (0..6).map(|_| Cable::to(&server).welcomed()).collect();
        for client in &mut clients {
            listen(client, identifier);
        }
        let (status, answer) = act(&server, "/_console/publish", &json!({ "stream": "room:1", "data": "{\"body\": 1.50}" }));
        assert_eq!((status, &answer["listeners"]), (200, &json!(6)));
        for client in &mut clients {
            assert!(client.next_text().ends_with(r#""message":{"body": 1.50}}"#));
        }
        assert_eq!(act(&server, "/_console/publish", &json!({ "stream": "nobody", "data": "hi" })).1["listeners"], 0);
        assert_eq!(act(&server, "/_console/publish", &json!({ "stream": "", "data": "hi" })).0, 422);
        assert_eq!(act(&server, "/_console/publish", &json!({ "command": "disconnect", "payload": { "identifier": "x" } })).0, 422);
        assert_eq!(server.metric("publications_total"), 2);
        assert_eq!(server.own_metric("console_actions_total"), 2);
        server.wait_for_log(&["the console has published a test message", "stream=room:1", "listeners=6"]);
    }

    fn warnings_are_kept_without_payloads_whatever_the_log_level(driver: Driver) {
        let rails = Rails::start();
        let port = free_port();
        let server = Stage::launch(driver, &rails).args(["--console", "--log_level=error"]).arg(format!("--port={port}")).start_at(port);
        let mut client = Cable::to(&server).header("X-Request-ID", "troublemaker").welcomed();
        client.send(r#"{"command":"message","identifier":"an-unknown-one","data":"secret-of-a-client"}"#);
        client.expect_nothing_before_pong();
        let records = records(&server);
        assert_eq!((&records[0]["level"], &records[0]["message"]), (&json!("WARN"), &json!("failed to handle incoming message")));
        let fields = records[0]["fields"].to_string();
        assert!(fields.contains("troublemaker") && fields.contains("an-unknown-one"), "{fields}");
        assert!(!fields.contains("secret-of-a-client"), "{fields}");
        assert!(server.log().iter().all(|line| !line.contains("failed to handle")), "the log itself keeps its level");
    }

    fn slow_clients_are_kept(driver: Driver) {
        let stage = Stage::with(driver, &["--console", "--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("an option of every socket");
        socket.connect(&stage.server.address().into()).expect("the server accepts");
        let mut stuck = Raw::over(TcpStream::from(socket));
        stuck.send(handshake("/cable?pi=0", &["X-Request-ID: tortoise"]).as_bytes());
        assert_eq!(stuck.read_head().status(), 101);
        stuck.next_text();
        stuck.subscribe("A");
        let mut publisher = stage.broadcaster().keep_alive();
        let message = format!("\"{}\"", "x".repeat(20_000));
        let record = (0..2_000).find_map(|_| {
            publisher.publish("stream:A", &message);
            records(&stage.server).into_iter().find(|record| record["level"] == "SLOW")
        });
        let record = record.expect("the client is dropped at its limit");
        assert_eq!(record["message"], "slow client dropped: its outbox passed ws_max_pending_size");
        assert!(record["fields"].to_string().contains("tortoise"), "{record}");
    }

    fn the_drain_tells_the_console_too(driver: Driver) {
        let stage = Stage::with(driver, &["--console", "--shutdown_delay=2"]);
        let mut console = watch(&stage.server);
        next_snapshot(&mut console, |_| true);
        let started = Instant::now();
        stage.server.terminate();
        loop {
            let text = console.next_json();
            if text["type"] == "disconnect" {
                assert_eq!(text["reason"], "server_restart");
                break;
            }
        }
        // Snapshots go on during the delay, and do not cut it short.
        assert!(started.elapsed().as_millis() >= 1900, "{:?}", started.elapsed());
        console.expect_close(1001, "Server restart");
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }
}

#[test]
fn console_without_a_secret_is_refused_unless_it_is_on_loopback() {
    for args in [
        &["--console", "--norpc", "--host=0.0.0.0"][..],
        &["--console", "--norpc", "--host="],
        &["--console", "--demo", "--host=0.0.0.0"],
        &["--console", "--norpc", "--host=0.0.0.0", "--secret=none"],
    ] {
        let finished = Launch::bare().args(args.iter().copied()).run();
        assert_eq!(finished.status.code(), Some(1), "{finished}");
        assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
        assert!(
            finished.stderr.contains("--console") && finished.stderr.contains("set --secret"),
            "{finished}"
        );
    }
}

/// A cookie that is good until `end`, made as `docs/console.md` says.
fn signed_until(end: u64) -> String {
    let token = keys::hmac_hex(keys::SECRET, "console-cable");
    let signed = [&b"console login until "[..], &end.to_be_bytes()].concat();
    let signature = keys::hmac_hex(&token, signed);
    format!("Cookie: ringcable_console={end}.{signature}")
}

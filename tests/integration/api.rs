//! The REST API: who may ask, in which order a request is checked, CORS, an address of its own. Source:
//! `contract/http_transports.md` §2.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::http::{HttpConnection, Response, publication, request};
use crate::support::ports::free_port;
use crate::support::{Cable, Driver, Launch, Stage, keys};

const PUBLISH: &str = "/api/publish";
const EXTENDED: &str = "actioncable-v1-ext-json";

/// A server with a broker and public streams that admits everybody, so that tests need no app.
fn broker_stage(driver: Driver, args: &[&str]) -> Stage {
    let all = [
        &[
            "--broker=memory",
            "--noauth",
            "--public_streams",
            "--ping_interval=0",
        ],
        args,
    ]
    .concat();
    Stage::with(driver, &all)
}

/// A server whose file has a table `[api]` with these lines.
fn stage_with_file(driver: Driver, lines: &str, args: &[&str]) -> (Stage, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ringcable.toml");
    std::fs::write(&path, format!("[api]\n{lines}\n")).expect("a file");
    let path = format!("--config-path={}", path.display());
    let stage = Stage::with(driver, &[&[path.as_str()], args].concat());
    (stage, directory)
}

fn bearer() -> String {
    format!("Bearer {}", keys::api_token(keys::SECRET))
}

fn ask(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    let body = publication("stream:A", "1");
    let body = if method == "POST" { &*body } else { "" };
    request(address, method, target, headers, body.as_bytes()).expect("an answer")
}

fn asked(stage: &Stage, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    ask(stage.server.address(), method, target, headers)
}

#[track_caller]
fn check_empty(
    stage: &Stage,
    method: &str,
    target: &str,
    authorization: Option<&str>,
    status: u16,
) {
    let headers: Vec<_> = authorization
        .map(|value| ("Authorization", value))
        .into_iter()
        .collect();
    let answer = asked(stage, method, target, &headers);
    assert_eq!(answer.status, status, "{method} {target} {authorization:?}");
    assert!(answer.body.is_empty(), "{answer:?}");
}

fn members(stage: &Stage, path: &str) -> Response {
    asked(stage, "GET", path, &[("Authorization", &bearer())])
}

/// Subscribes to a channel that the server itself confirms.
fn subscribe(client: &mut Cable, identifier: &str) {
    client.command("subscribe", identifier);
    assert_eq!(client.next_json()["type"], "confirm_subscription");
}

/// A client that is present in a public stream under an id.
fn member(stage: &Stage, stream: &str, id: &str) -> Cable {
    let mut client = Cable::to(&stage.server).subprotocols(EXTENDED).open();
    assert_eq!(client.next_json()["type"], "welcome");
    let identifier = json!({ "channel": "$pubsub", "stream_name": stream }).to_string();
    subscribe(&mut client, &identifier);
    let presence = json!({ "id": id, "info": { "name": id } });
    let join = json!({ "command": "join", "identifier": identifier, "presence": presence });
    client.send(&join.to_string());
    assert_eq!(client.next_json()["message"]["type"], "join");
    client
}

fn cors_headers(answer: &Response) -> [Option<&str>; 4] {
    ["Origin", "Methods", "Credentials", "Headers"]
        .map(|name| answer.header(&format!("Access-Control-Allow-{name}")))
}

on_both_drivers! {
    fn publishing_checks_method_then_token_then_body(driver: Driver) {
        let stage = Stage::new(driver);
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post"] {
            check_empty(&stage, method, PUBLISH, None, 422);
            check_empty(&stage, method, PUBLISH, Some(&bearer()), 422);
        }
        let broadcast_key = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        for authorization in [None, Some(""), Some("Bearer"), Some(bearer().replace("Bearer", "bearer").as_str()), Some(&broadcast_key)] {
            check_empty(&stage, "POST", PUBLISH, authorization, 401);
        }
        check_empty(&stage, "POST", PUBLISH, Some(&bearer()), 201);
        assert_eq!(stage.server.metric("publications_total"), 1);
    }

    fn what_is_no_publication_is_accepted_and_counted(driver: Driver) {
        let stage = Stage::new(driver);
        let authorization = bearer();
        let headers = [("Authorization", authorization.as_str())];
        for body in ["", "[]", "nope", "{}", r#"{"stream":5}"#] {
            let answer = request(stage.server.address(), "POST", PUBLISH, &headers, body.as_bytes());
            assert_eq!(answer.expect("an answer").status, 201, "{body:?}");
        }
        assert_eq!(stage.server.metric("failed_broadcast_msg_total"), 5);
        assert_eq!(stage.server.metric("publications_total"), 0);
    }

    fn a_body_that_ends_too_early_is_refused(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("it accepts");
        let head = format!("POST {PUBLISH} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\nTransfer-Encoding: chunked\r\n\r\n", bearer());
        connection.write(head.as_bytes()).expect("it reads");
        connection.write(b"zz\r\n").expect("it reads");
        assert_eq!(connection.read_response(false).expect("an answer").status, 422);
        assert!(connection.is_at_end());
    }

    fn publications_batches_and_remote_disconnects_are_published(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        let authorization = bearer();
        let headers = [("Authorization", authorization.as_str())];
        let disconnect = json!({ "command": "disconnect", "payload": { "identifier": crate::support::rails::CURRENT_USER } });
        let batch = json!([{ "stream": "stream:A", "data": "1" }, { "stream": "stream:A", "data": "2" }]);
        for body in [batch, disconnect] {
            let answer = request(stage.server.address(), "POST", PUBLISH, &headers, body.to_string().as_bytes());
            assert_eq!(answer.expect("an answer").status, 201);
        }
        assert_eq!(client.next_json()["message"], 1);
        assert_eq!(client.next_json()["message"], 2);
        assert_eq!(client.next_json()["reason"], "remote");
    }

    fn a_repeated_request_with_a_key_is_published_once(driver: Driver) {
        let stage = broker_stage(driver, &[]);
        let mut client = Cable::to(&stage.server).subprotocols(EXTENDED).open();
        assert_eq!(client.next_json()["type"], "welcome");
        subscribe(&mut client, &json!({ "channel": "$pubsub", "stream_name": "stream:A" }).to_string());
        let authorization = bearer();
        for key in ["one", "one", "two"] {
            let headers = [("Authorization", authorization.as_str()), ("Idempotency-Key", key)];
            assert_eq!(asked(&stage, "POST", PUBLISH, &headers).status, 201);
        }
        assert_eq!([client.next_json()["offset"].clone(), client.next_json()["offset"].clone()], [1, 2]);
        client.expect_nothing_before_pong();
    }

    fn presence_checks_method_then_token_then_path_then_broker(driver: Driver) {
        let stage = Stage::new(driver);
        let users = "/api/presence/chat/users";
        for method in ["POST", "HEAD", "OPTIONS", "PUT"] {
            check_empty(&stage, method, users, None, 422);
            check_empty(&stage, method, "/api/presence/chat", Some(&bearer()), 422);
        }
        for path in [users, "/api/presence/chat"] {
            check_empty(&stage, "GET", path, None, 401);
            check_empty(&stage, "GET", path, Some("Bearer x"), 401);
        }
        for path in ["/api/presence/", "/api/presence/chat", "/api/presence/a/b/users", "/api/presence/chat/users/", "/api/presence/%ff/users"] {
            check_empty(&stage, "GET", path, Some(&bearer()), 404);
        }
        check_empty(&stage, "GET", users, Some(&bearer()), 501);
        for path in ["/api", "/api/", "/api/presence", "/api/publish/", "/api/users"] {
            let answer = members(&stage, path);
            assert_eq!((answer.status, answer.text().as_str()), (404, "404 page not found\n"), "{path}");
        }
    }

    fn the_members_of_a_stream_are_told(driver: Driver) {
        let stage = broker_stage(driver, &[]);
        let nobody = members(&stage, "/api/presence/chat/users");
        assert_eq!((nobody.status, nobody.text().as_str()), (200, r#"{"type":"info","total":0}"#));
        assert_eq!(nobody.header("Content-Type"), Some("application/json"));
        let _one = member(&stage, "chat", "15");
        let one = members(&stage, "/api/presence/chat/users?x=1");
        assert_eq!(one.text(), r#"{"type":"info","total":1,"records":[{"info":{"name":"15"},"id":"15"}]}"#);
        let _two = member(&stage, "chat", "16");
        let two: Value = serde_json::from_str(&members(&stage, "/api/presence/chat/users").text()).expect("JSON");
        let mut ids: Vec<&str> = two["records"].as_array().expect("records").iter().filter_map(|it| it["id"].as_str()).collect();
        ids.sort_unstable();
        assert_eq!((two["total"].as_i64(), ids), (Some(2), vec!["15", "16"]));
    }

    fn a_stream_is_named_by_one_percent_encoded_segment(driver: Driver) {
        let stage = broker_stage(driver, &[]);
        let table = [("chat/1", "chat%2F1"), ("a b", "a%20b"), ("größe", "gr%C3%B6%C3%9Fe"), ("users", "users"), ("a+b?", "a+b%3F")];
        for (stream, segment) in table {
            let _member = member(&stage, stream, "1");
            let answer = members(&stage, &format!("/api/presence/{segment}/users"));
            assert!(answer.text().starts_with(r#"{"type":"info","total":1,"#), "{stream}: {answer:?}");
        }
    }

    fn cors_is_off_unless_it_is_asked_for(driver: Driver) {
        let stage = Stage::with(driver, &["--http_broadcast_cors"]);
        for (method, status) in [("OPTIONS", 422), ("POST", 401)] {
            let answer = asked(&stage, method, PUBLISH, &[("Origin", "http://a.b")]);
            assert_eq!((answer.status, cors_headers(&answer)), (status, [None; 4]), "{method}");
        }
    }

    fn cors_headers_are_on_every_answer_of_publish(driver: Driver) {
        let (stage, _file) = stage_with_file(driver, "cors_headers = true", &[]);
        stage.server.wait_for_log(&["/api (authorization required, CORS enabled)"]);
        let authorization = bearer();
        let origin = ("Origin", "http://a.b");
        let token = ("Authorization", authorization.as_str());
        let expected = [
            Some("*"),
            Some("POST, OPTIONS"),
            Some("true"),
            Some("Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization"),
        ];
        for (method, headers, status) in [
            ("OPTIONS", &[origin][..], 200),
            ("OPTIONS", &[], 200),
            ("POST", &[origin], 401),
            ("GET", &[origin], 422),
            ("POST", &[origin, token], 201),
        ] {
            let answer = asked(&stage, method, PUBLISH, headers);
            assert_eq!((answer.status, cors_headers(&answer)), (status, expected), "{method}");
            assert!(answer.body.is_empty());
        }
        let presence = asked(&stage, "OPTIONS", "/api/presence/chat/users", &[origin]);
        assert_eq!((presence.status, cors_headers(&presence)), (422, [None; 4]));
        let broadcast = asked(&stage, "OPTIONS", "/_broadcast", &[origin]);
        assert_eq!((broadcast.status, cors_headers(&broadcast)), (422, [None; 4]));
    }

    fn cors_names_the_origins_of_its_own_list(driver: Driver) {
        let lines = "cors_headers = true\ncors_hosts = 'app.example:3000,*.other.example'";
        let (stage, _file) = stage_with_file(driver, lines, &["--allowed_origins=cable.example"]);
        for (origin, expected) in [
            ("http://App.Example:3000", Some("http://app.example:3000")),
            ("https://a.other.example", Some("https://a.other.example")),
            ("http://app.example", None),
            ("http://cable.example", None),
        ] {
            let answer = asked(&stage, "OPTIONS", PUBLISH, &[("Origin", origin)]);
            assert_eq!((answer.status, cors_headers(&answer)[0]), (200, expected), "{origin}");
            assert_eq!(cors_headers(&answer)[1], Some("POST, OPTIONS"));
        }
    }

    fn an_address_of_its_own_serves_nothing_else(driver: Driver) {
        let port = free_port();
        let (stage, _file) = stage_with_file(driver, "host = '127.0.0.2'", &[&format!("--api_port={port}"), "--api_path=/v1"]);
        stage.server.wait_for_log(&[&format!("Handle API requests at http://127.0.0.2:{port}/v1 (authorization required)")]);
        let api = SocketAddr::from(([127, 0, 0, 2], port));
        let mut client = stage.client();
        client.subscribe("A");
        assert_eq!(ask(api, "POST", "/v1/publish", &[("Authorization", &bearer())]).status, 201);
        assert_eq!(client.next_json()["message"], 1);
        assert_eq!(ask(api, "POST", "/v1/publish", &[]).status, 401);
        assert_eq!(ask(api, "GET", "/v1/presence/x/users", &[("Authorization", &bearer())]).status, 501);
        for path in ["/health", "/cable", "/_broadcast", "/metrics", "/api/publish"] {
            assert_eq!(ask(api, "GET", path, &[]).status, 404, "{path}");
        }
        assert_eq!(asked(&stage, "POST", "/v1/publish", &[("Authorization", &bearer())]).status, 404);
        assert!(HttpConnection::open(SocketAddr::from(([127, 0, 0, 1], port))).is_err());
    }

    fn the_api_is_there_when_something_asks_for_it(driver: Driver) {
        let launch = || {
            let broadcasts = format!("--http_broadcast_port={}", free_port());
            Launch::new(driver).args(["--norpc".to_owned(), broadcasts])
        };
        let absent = launch().start();
        assert_eq!(ask(absent.address(), "POST", PUBLISH, &[]).status, 404);
        let port = free_port();
        let open = launch().arg(format!("--api_port={port}")).start();
        open.wait_for_log(&["API server is running without authentication"]);
        assert_eq!(ask(SocketAddr::from(([127, 0, 0, 1], port)), "POST", PUBLISH, &[]).status, 201);
        let own = Stage::with(driver, &["--api_secret=own"]);
        assert_eq!(asked(&own, "POST", PUBLISH, &[("Authorization", "Bearer own")]).status, 201);
        assert_eq!(asked(&own, "POST", PUBLISH, &[("Authorization", &bearer())]).status, 401);
        let public = Stage::with(driver, &["--public"]);
        assert_eq!(asked(&public, "POST", PUBLISH, &[]).status, 401, "a secret stays with --public");
    }
}

//! The upgrade: paths, checks in their order, origins, subprotocols, session ids. Source: `contract/websocket.md` §2 and §3.

use crate::support::raw::{KEY, frame, handshake};
use crate::support::{Cable, PATIENCE, Raw, Stage};

/// `Sec-WebSocket-Accept` for [`KEY`]: base64 of SHA-1 over the key and the GUID of RFC 6455 §1.3.
fn accept_for_key() -> String {
    use base64::Engine as _;
    use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
    let text = format!("{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// Sends a handshake and gives the status, then checks the refusal's exact head and body.
fn refusal(stage: &Stage, request: &str, status: u16, line: &str, body: &str) {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(request.as_bytes());
    let head = raw.read_head();
    assert_eq!(
        head.lines[0],
        format!("HTTP/1.1 {status} {line}"),
        "{request}"
    );
    assert_eq!(
        head.header("Content-Type"),
        Some("text/plain; charset=utf-8")
    );
    assert_eq!(head.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(
        head.header("Content-Length"),
        Some(body.len().to_string().as_str())
    );
    assert!(
        head.lines
            .iter()
            .any(|line| line == "Sec-Websocket-Version: 13"),
        "{head:?}"
    );
    assert!(
        head.header("Date")
            .is_some_and(|date| date.ends_with(" GMT")),
        "{head:?}"
    );
    assert_eq!(raw.read_exact(body.len()), body.as_bytes());
}

fn status_of(stage: &Stage, target: &str, extra: &[&str]) -> u16 {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake(target, extra).as_bytes());
    raw.read_head().status()
}

fn subprotocol_of(stage: &Stage, offered: &str) -> Option<String> {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable", &[&format!("Sec-WebSocket-Protocol: {offered}")]).as_bytes());
    let head = raw.read_head();
    assert_eq!(head.status(), 101, "offered {offered}");
    head.header("Sec-WebSocket-Protocol").map(str::to_owned)
}

on_both_drivers! {
    fn switching_protocols_has_exactly_the_headers_of_the_contract(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let offer = "Sec-WebSocket-Protocol: actioncable-v1-json, actioncable-unsupported";
        raw.send(handshake("/cable", &[offer]).as_bytes());
        assert_eq!(raw.read_head().lines, [
            "HTTP/1.1 101 Switching Protocols".to_owned(),
            "Upgrade: websocket".to_owned(),
            "Connection: Upgrade".to_owned(),
            format!("Sec-WebSocket-Accept: {}", accept_for_key()),
            "Sec-WebSocket-Protocol: actioncable-v1-json".to_owned(),
            "X-AnyCable-Version: 1.6.16".to_owned(),
        ]);
    }

    fn subprotocol_is_the_first_of_ours_that_the_client_offers(driver: Driver) {
        let stage = Stage::new(driver);
        let table = [
            ("actioncable-v1-json", Some("actioncable-v1-json")),
            ("actioncable-v1-ext-json", Some("actioncable-v1-ext-json")),
            ("actioncable-v1-ext-json, actioncable-v1-json", Some("actioncable-v1-json")),
            ("actioncable-v1-json,actioncable-v1-ext-json", Some("actioncable-v1-json")),
            ("actioncable-v1-json, actioncable-unsupported", Some("actioncable-v1-json")),
            ("foo", None),
            ("actioncable-v1-msgpack", None),
            ("ACTIONCABLE-V1-JSON", None),
        ];
        for (offered, expected) in table {
            assert_eq!(subprotocol_of(&stage, offered).as_deref(), expected, "offered {offered}");
        }
    }

    fn client_without_subprotocol_is_accepted_and_welcomed(driver: Driver) {
        let stage = Stage::new(driver);
        let cable = Cable::to(&stage.server).welcomed();
        assert_eq!(cable.response_header("sec-websocket-protocol"), None);
        assert_eq!(cable.response_header("x-anycable-version"), Some("1.6.16"));
    }

    fn checks_fail_in_the_order_of_the_contract(driver: Driver) {
        let stage = Stage::with(driver, &["--allowed_origins=good.example"]);
        let good = handshake("/cable", &["Origin: http://good.example"]);
        let key = format!("Sec-WebSocket-Key: {KEY}");
        refusal(&stage, &good.replace("Connection: keep-alive, Upgrade", "Connection: keep-alive"), 400, "Bad Request", "Bad Request\n");
        refusal(&stage, &good.replace("Upgrade: websocket", "Upgrade: h2c"), 400, "Bad Request", "Bad Request\n");
        refusal(&stage, &good.replace("GET ", "PUT "), 405, "Method Not Allowed", "Method Not Allowed\n");
        refusal(&stage, &good.replace("Version: 13", "Version: 8"), 400, "Bad Request", "Bad Request\n");
        refusal(&stage, &good.replace("good.example", "evil.example"), 403, "Forbidden", "Forbidden\n");
        refusal(&stage, &good.replace(&key, "Sec-WebSocket-Key: c2hvcnQ="), 400, "Bad Request", "Bad Request\n");
        // Two things wrong: the earlier check answers.
        refusal(&stage, &good.replace("GET ", "PUT ").replace("good.example", "evil.example"), 405, "Method Not Allowed", "Method Not Allowed\n");
        refusal(&stage, &good.replace("good.example", "evil.example").replace(&key, "X: y"), 403, "Forbidden", "Forbidden\n");
        assert_eq!(status_of(&stage, "/cable", &["Origin: http://good.example"]), 101);
    }

    fn plain_get_of_the_cable_path_is_a_bad_request(driver: Driver) {
        let stage = Stage::new(driver);
        let response = stage.server.get("/cable");
        assert_eq!((response.status, response.text().as_str()), (400, "Bad Request\n"));
    }

    fn refused_head_request_has_no_body_and_the_connection_goes_on(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        raw.send(b"HEAD /cable HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = raw.read_head();
        assert_eq!(head.lines[0], "HTTP/1.1 400 Bad Request");
        assert_eq!(head.header("Content-Length"), Some("12"));
        assert_eq!(raw.read_head().lines[0], "HTTP/1.1 200 OK");
    }

    fn refused_upgrade_leaves_the_connection_usable(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        raw.send(handshake("/cable", &[]).replace("Version: 13", "Version: 7").as_bytes());
        let head = raw.read_head();
        assert_eq!(head.status(), 400);
        raw.read_exact(12);
        raw.send(handshake("/cable", &[]).as_bytes());
        assert_eq!(raw.read_head().status(), 101);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    }

    fn header_tokens_are_compared_without_case(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let request = handshake("/cable", &[]).replace("Upgrade: websocket", "upgrade: WebSocket");
        raw.send(request.replace("Connection: keep-alive, Upgrade", "connection: Keep-Alive,UPGRADE").as_bytes());
        assert_eq!(raw.read_head().status(), 101);
    }

    fn frame_sent_together_with_the_handshake_is_not_lost(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let mut bytes = handshake("/cable", &[]).into_bytes();
        bytes.extend(frame(1, br#"{"command":"subscribe","identifier":"early"}"#));
        raw.send(&bytes);
        assert_eq!(raw.read_head().status(), 101);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
        assert_eq!(raw.next_text(), r#"{"identifier":"early","type":"confirm_subscription"}"#);
    }

    fn handshake_that_arrives_byte_by_byte_is_understood(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        for byte in handshake("/cable", &["Cookie: a=b"]).bytes() {
            raw.send(&[byte]);
        }
        assert_eq!(raw.read_head().status(), 101);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    }

    fn exact_path_is_matched_byte_by_byte(driver: Driver) {
        let stage = Stage::new(driver);
        for target in ["/cable/", "//cable", "/CABLE", "/%63able", "/", "/cabl", "/cable/a"] {
            assert_eq!(status_of(&stage, target, &[]), 404, "{target}");
        }
        for target in ["/cable", "/cable?a=1", "/cable?"] {
            assert_eq!(status_of(&stage, target, &[]), 101, "{target}");
        }
    }

    fn path_lists_wildcards_and_placeholders_match_as_documented(driver: Driver) {
        let stage = Stage::with(driver, &["--path=/ws, /cable/*,/rooms/{id:[0-9]+},/any/{name}"]);
        let table = [
            ("/ws", 101), ("/ws/", 404), ("/cable", 404), ("/cable/", 101), ("/cable/a/b", 101),
            ("/rooms/5", 101), ("/rooms/x", 404), ("/rooms/5/", 404), ("/any/thing", 101), ("/any/", 404),
            ("/any/a/b", 404),
        ];
        for (target, status) in table {
            assert_eq!(status_of(&stage, target, &[]), status, "{target}");
        }
    }

    fn health_wins_over_a_wildcard_path(driver: Driver) {
        let stage = Stage::with(driver, &["--path=/*"]);
        assert_eq!(stage.server.get("/health").status, 200);
        assert_eq!(status_of(&stage, "/", &[]), 101);
        assert_eq!(status_of(&stage, "/anything/at/all", &[]), 101);
    }

    fn root_path_of_kamal_serves_only_the_root(driver: Driver) {
        let stage = Stage::with(driver, &["--path=/"]);
        assert_eq!(status_of(&stage, "/", &[]), 101);
        assert_eq!(status_of(&stage, "/?jwt=none", &[]), 101);
        assert_eq!(status_of(&stage, "/cable", &[]), 404);
    }

    fn every_origin_is_accepted_without_a_list(driver: Driver) {
        let stage = Stage::new(driver);
        for origin in ["Origin: http://anything.example", "Origin: null", "X-Nothing: here"] {
            assert_eq!(status_of(&stage, "/cable", &[origin]), 101, "{origin}");
        }
    }

    fn origin_list_compares_hosts_with_ports_and_suffixes(driver: Driver) {
        let stage = Stage::with(driver, &["--allowed_origins=Example.com, *.wild.example,*suffix.test,"]);
        let table = [
            ("http://example.com", 101), ("https://EXAMPLE.com", 101), ("http://example.com:3000", 403),
            ("http://a.wild.example", 101), ("http://wild.example", 403), ("http://badsuffix.test", 101),
            ("null", 403), ("file://", 403), ("example.com", 403), ("http://other.example", 403),
        ];
        for (origin, status) in table {
            assert_eq!(status_of(&stage, "/cable", &[&format!("Origin: {origin}")]), status, "{origin}");
        }
        assert_eq!(status_of(&stage, "/cable", &[]), 403, "no Origin");
    }

    fn request_id_becomes_the_session_id(driver: Driver) {
        let stage = Stage::new(driver);
        let _client = Cable::to(&stage.server).header("X-Request-ID", "4b1f7b0e-0c57-4d4b").welcomed();
        assert_eq!(stage.rails.wait_for_calls("connect", 1)[0].sid, "4b1f7b0e-0c57-4d4b");
    }

    fn session_id_is_21_url_safe_characters_without_a_request_id(driver: Driver) {
        let stage = Stage::new(driver);
        let _clients = [stage.client(), stage.client()];
        let calls = stage.rails.wait_for_calls("connect", 2);
        for call in &calls {
            assert_eq!(call.sid.len(), 21, "{}", call.sid);
            assert!(call.sid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{}", call.sid);
        }
        assert_ne!(calls[0].sid, calls[1].sid);
    }

    fn incomplete_head_is_closed_without_a_byte_after_five_seconds(driver: Driver) {
        let stage = Stage::new(driver);
        let started = std::time::Instant::now();
        let mut silent = Raw::connect(stage.server.address());
        let mut half = Raw::connect(stage.server.address());
        half.send(b"GET /cable HTTP/1.1\r\nHost: a\r\n");
        half.expect_end();
        silent.expect_end();
        let waited = started.elapsed().as_secs_f64();
        assert!((4.0..PATIENCE.as_secs_f64()).contains(&waited), "closed after {waited} s");
    }
}

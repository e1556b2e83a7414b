//! Ordinary HTTP on the main listener: routes, keep-alive, limits, requests that break the rules.
//! Source: `contract/websocket.md` §1, `contract/operations.md` §11 and §12.

use crate::support::http::{self, HttpConnection};
use crate::support::raw::{Raw, handshake};
use crate::support::{Launch, Stage};

const HEALTH_BODY: &str = "Ah, ha, ha, ha, stayin' alive, stayin' alive.";

/// Sends bytes and gives the status line's code, or 0 when the connection just ends.
fn answer_to(stage: &Stage, request: &[u8]) -> u16 {
    let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
    // The server may refuse and close while we are still sending.
    let _closed_early = connection.write(request);
    connection
        .read_response(false)
        .map_or(0, |response| response.status)
}

on_both_drivers! {
    fn health_answers_every_method_with_the_same_text(driver: Driver) {
        let stage = Stage::new(driver);
        for method in ["GET", "POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = http::request(stage.server.address(), method, "/health?x=1", &[], b"").expect("an answer");
            assert_eq!((answer.status, answer.text().as_str()), (200, HEALTH_BODY), "{method}");
            assert_eq!(answer.header("Content-Length"), Some("45"));
            assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"));
            assert!(answer.header("Date").is_some() && answer.header("Server").is_none());
        }
    }

    fn head_of_health_has_the_headers_and_no_body(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let answer = connection.request("HEAD", "/health", &[], b"").expect("an answer");
        assert_eq!((answer.status, answer.header("Content-Length")), (200, Some("45")));
        // A body would be taken for the next status line.
        assert_eq!(connection.request("GET", "/health", &[], b"").expect("an answer").text(), HEALTH_BODY);
    }

    fn health_path_can_be_changed(driver: Driver) {
        let rails = crate::support::Rails::start();
        let server = Stage::launch(driver, &rails).args(["--health-path=/up", "--path=/health"]).spawn_without_health();
        assert_eq!(server.get("/up").status, 200);
        assert_eq!(server.get("/health").status, 400);
    }

    fn unknown_path_is_not_found(driver: Driver) {
        let stage = Stage::new(driver);
        for path in ["/", "/nope", "/health/", "/Health", "/favicon.ico"] {
            let answer = stage.server.get(path);
            assert_eq!((answer.status, answer.text().as_str()), (404, "404 page not found\n"), "{path}");
            assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"));
            assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
        }
    }

    fn many_requests_share_a_connection(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        for round in 0..50 {
            let path = if round % 2 == 0 { "/health" } else { "/nope" };
            let expected = if round % 2 == 0 { 200 } else { 404 };
            assert_eq!(connection.request("GET", path, &[], b"").expect("kept alive").status, expected);
        }
    }

    fn pipelined_requests_are_answered_in_order(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let one = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.write((one("/health") + &one("/a") + &one("/health")).as_bytes()).expect("open");
        let statuses: Vec<u16> = (0..3).map(|_| connection.read_response(false).expect("an answer").status).collect();
        assert_eq!(statuses, [200, 404, 200]);
    }

    fn connection_close_and_http_1_0_end_the_connection(driver: Driver) {
        let stage = Stage::new(driver);
        for request in ["GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "GET /health HTTP/1.0\r\n\r\n"] {
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            connection.write(request.as_bytes()).expect("open");
            assert_eq!(connection.read_response(false).expect("an answer").text(), HEALTH_BODY);
            assert!(connection.is_at_end(), "{request}");
        }
    }

    fn request_before_an_upgrade_on_the_same_connection_is_fine(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        raw.send(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(raw.read_head().status(), 200);
        raw.read_exact(45);
        raw.send(handshake("/cable", &[]).as_bytes());
        assert_eq!(raw.read_head().status(), 101);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    }

    fn host_must_be_there_exactly_once_in_http_1_1(driver: Driver) {
        let stage = Stage::new(driver);
        assert_eq!(answer_to(&stage, b"GET /health HTTP/1.1\r\n\r\n"), 400);
        assert_eq!(answer_to(&stage, b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), 400);
        assert_eq!(answer_to(&stage, b"GET /health HTTP/1.0\r\n\r\n"), 200);
    }

    fn malformed_requests_get_a_4xx_and_a_closed_connection(driver: Driver) {
        let stage = Stage::new(driver);
        let requests: [&[u8]; 10] = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nno colon here\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
            b"POST /_broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
            b"POST /_broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /_broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        ];
        for request in requests {
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            connection.write(request).expect("open");
            let text = String::from_utf8_lossy(request).into_owned();
            let answer = connection.read_response(false).unwrap_or_else(|error| panic!("{error} after {text}"));
            assert!((400..=505).contains(&answer.status), "{} after {text}", answer.status);
            assert!(connection.is_at_end(), "still open after {text}");
        }
        stage.client().subscribe("A");
    }

    fn oversized_head_is_refused_with_431(driver: Driver) {
        let stage = Stage::new(driver);
        let fat = format!("GET /health HTTP/1.1\r\nHost: a\r\nX-Fat: {}\r\n\r\n", "x".repeat(1_200_000));
        assert_eq!(answer_to(&stage, fat.as_bytes()), 431);
        let many = format!("GET /health HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-Many: 1\r\n".repeat(2_000));
        assert_eq!(answer_to(&stage, many.as_bytes()), 431);
        let large = format!("GET /health HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n", "x".repeat(60_000));
        assert_eq!(answer_to(&stage, large.as_bytes()), 200);
    }

    fn random_bytes_never_harm_the_server(driver: Driver) {
        let stage = Stage::new(driver);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..100 {
            let bytes: Vec<u8> = (0..300).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            }).collect();
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            let _closed_early = connection.write(&bytes);
        }
        stage.server.assert_running();
        stage.client().subscribe("A");
    }

    fn connection_limit_lets_the_next_client_in_when_a_slot_is_free(driver: Driver) {
        let rails = crate::support::Rails::start();
        let server = Stage::launch(driver, &rails).arg("--max-conn=3").start();
        let mut inside: Vec<Raw> = (0..3).map(|_| Raw::welcomed(server.address())).collect();
        let mut waiting = Raw::connect(server.address());
        waiting.send(handshake("/cable?pi=0", &[]).as_bytes());
        for raw in &mut inside {
            raw.expect_nothing_before_pong();
        }
        assert_eq!(rails.calls_to("connect").len(), 3);
        drop(inside.pop());
        assert_eq!(waiting.read_head().status(), 101);
        assert_eq!(waiting.next_text(), r#"{"type":"welcome"}"#);
    }

    fn idle_keep_alive_connection_is_not_closed_by_the_head_timeout(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        assert_eq!(connection.request("GET", "/health", &[], b"").expect("an answer").status, 200);
        // The head timeout is five seconds; another connection shows when that has passed.
        Raw::connect(stage.server.address()).expect_end();
        assert_eq!(connection.request("GET", "/health", &[], b"").expect("kept alive").status, 200);
    }

    fn server_listens_only_where_it_was_told(driver: Driver) {
        let rails = crate::support::Rails::start();
        let server = Launch::bare()
            .args(["--port=0", "--cores=2", driver.flag(), "--host=localhost"])
            .arg(format!("--rpc_host={}", rails.url()))
            .arg(format!("--secret={}", crate::support::keys::SECRET))
            .start();
        let line = server.wait_for_log(&["Handle health requests at http://localhost:"]);
        assert!(line.contains("/health"), "{line}");
        let elsewhere = std::net::SocketAddr::from(([127, 0, 0, 2], server.port()));
        assert!(std::net::TcpStream::connect(elsewhere).is_err(), "localhost is 127.0.0.1 only");
    }
}

//! What a client can hold by HTTP alone, and for how long: times, sizes, places. Source: `docs/limits.md`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::http::{self, HttpConnection};
use crate::support::raw::Raw;
use crate::support::wait::until;
use crate::support::{Cable, Rails, Stage, keys};

/// How a connection of a slow sender ended.
struct Ended {
    after: Duration,
    answer: String,
}

/// Sends `start`, then `part` again and again with `pause` between, until the server closes.
fn drip(address: SocketAddr, start: &str, part: &str, pause: Duration) -> Ended {
    let mut stream = TcpStream::connect(address).expect("accepted");
    stream.set_read_timeout(Some(pause)).expect("an option");
    stream.write_all(start.as_bytes()).expect("open");
    let started = Instant::now();
    let mut answer = Vec::new();
    loop {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "still open after {:?}",
            started.elapsed()
        );
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => answer.extend_from_slice(&buffer[..bytes]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stream.write_all(part.as_bytes()).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Ended {
        after: started.elapsed(),
        answer: String::from_utf8_lossy(&answer).into_owned(),
    }
}

fn post(path: &str, framing: &str) -> String {
    let token = keys::broadcast_token(keys::SECRET);
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{framing}\r\n\r\n")
}

fn metric(stage: &Stage, name: &str) -> f64 {
    let page = stage.server.get("/metrics").text();
    page.lines()
        .filter(|line| line.starts_with(name) && line[name.len()..].starts_with('{'))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

on_both_drivers! {
    /// Each of them sends a byte so often that no single wait is long.
    fn a_body_that_drips_ends_after_the_grace(driver: Driver) {
        let stage = Stage::new(driver);
        let address = stage.server.address();
        let chunked = post("/_broadcast", "Transfer-Encoding: chunked");
        let slow = [
            ("a sized body", post("/_broadcast", "Content-Length: 60000"), "x"),
            ("chunks of one byte", chunked.clone(), "1\r\nx\r\n"),
            ("an extension of a chunk", format!("{chunked}5;a="), "x"),
            ("a chunk size", format!("{chunked}5"), ";"),
            ("a trailer", format!("{chunked}1\r\nx\r\n0\r\nT: "), "x"),
            ("a login to nowhere", post("/api/publish", "Content-Length: 60000"), "x"),
        ];
        let running = slow.map(|(what, start, part)| {
            thread::spawn(move || (what, drip(address, &start, part, Duration::from_millis(900))))
        });
        for thread in running {
            let (what, ended) = thread.join().expect("no panic");
            let secs = ended.after.as_secs_f64();
            let refused = ended.answer.starts_with("HTTP/1.1 401");
            assert!(refused || ended.answer.starts_with("HTTP/1.1 422"), "{what}: {}", ended.answer);
            assert!(refused || (9.0..25.0).contains(&secs), "{what} ended after {secs} s");
        }
        stage.server.wait_for_log(&["WRN", "gave up a request whose body comes too slowly: 16 KiB per second are the least"]);
        assert!(metric(&stage, "ringcable_http_timeouts_total") >= 5.0);
    }

    fn an_honest_slow_body_is_taken(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        // Beyond the grace: 13 seconds with 40 KB in each.
        let body = http::publication("stream:A", &"x".repeat(520_000));
        let mut stream = TcpStream::connect(stage.server.address()).expect("accepted");
        stream.write_all(post("/_broadcast", &format!("Content-Length: {}", body.len())).as_bytes()).expect("open");
        for part in body.as_bytes().chunks(20_000) {
            stream.write_all(part).expect("open");
            thread::sleep(Duration::from_millis(500));
        }
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 201");
        assert!(client.next_text().contains("xxxx"));
    }

    fn an_answer_that_is_known_does_not_wait_for_a_body(driver: Driver) {
        let stage = Stage::new(driver);
        let address = stage.server.address();
        for framing in ["Content-Length: 60000", "Transfer-Encoding: chunked"] {
            for (request, status) in [
                (post("/health", framing), 200),
                (post("/metrics", framing), 200),
                (post("/nope", framing), 404),
                (post("/cable", framing), 400),
                (post("/_broadcast", framing).replace("Bearer ", "Bearer no"), 401),
                (post("/api/publish", framing), 401),
            ] {
                let ended = drip(address, &request, "1", Duration::from_millis(200));
                assert!(ended.answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}{}", ended.answer);
                assert!(ended.answer.to_lowercase().contains("connection: close"), "{}", ended.answer);
                assert!(ended.after < Duration::from_secs(8), "{request}: {:?}", ended.after);
            }
        }
    }

    /// The usual client sends head and body at once: its connection stays.
    fn a_body_that_is_there_already_does_not_end_the_connection(driver: Driver) {
        let stage = Stage::new(driver);
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let requests = [
            (post("/nope", "Content-Length: 5") + "12345", 404),
            (post("/health", "Transfer-Encoding: chunked") + "5\r\n12345\r\n0\r\n\r\n", 200),
            (post("/_broadcast", "Content-Length: 5").replace("Bearer ", "Bearer no") + "12345", 401),
            (post("/cable", "Content-Length: 5") + "12345", 400),
            (post("/health", "Content-Length: 0"), 200),
        ];
        for (request, status) in requests {
            connection.write(request.as_bytes()).expect("kept alive");
            assert_eq!(connection.read_response(false).expect("an answer").status, status, "{request}");
        }
    }

    fn drippers_and_resting_connections_give_their_places_back(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).arg("--max-conn=6").start();
        let address = server.address();
        // Each takes a place and never gives it back by itself.
        let mut resting: Vec<HttpConnection> = (0..3)
            .map(|_| {
                let mut connection = HttpConnection::open(address).expect("accepted");
                assert_eq!(connection.request("GET", "/health", &[], b"").expect("an answer").status, 200);
                connection
            })
            .collect();
        let drippers: Vec<_> = (0..3)
            .map(|_| {
                let request = post("/health", "Content-Length: 60000");
                thread::spawn(move || drip(address, &request, "x", Duration::from_millis(300)))
            })
            .collect();
        let mut clients: Vec<Raw> = (0..6).map(|_| Raw::welcomed(address)).collect();
        clients.iter_mut().for_each(Raw::expect_nothing_before_pong);
        assert!(resting.iter_mut().all(HttpConnection::is_at_end));
        for dripper in drippers {
            dripper.join().expect("no panic");
        }
    }

    fn a_resting_connection_stays_while_nobody_wants_its_place(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).arg("--max-conn=5").start();
        let mut connection = HttpConnection::open(server.address()).expect("accepted");
        for _ in 0..2 {
            assert_eq!(connection.request("GET", "/health", &[], b"").expect("kept alive").status, 200);
            // The head timeout of another connection: five seconds.
            Raw::connect(server.address()).expect_end();
        }
    }

    fn a_stop_does_not_wait_for_a_dripping_request(driver: Driver) {
        let stage = Stage::new(driver);
        let address = stage.server.address();
        let request = post("/_broadcast", "Content-Length: 60000");
        let dripper = thread::spawn(move || drip(address, &request, "x", Duration::from_millis(100)));
        until("the request to be under way", || (metric(&stage, "ringcable_http_requests_total") >= 2.0).then_some(()));
        let started = Instant::now();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        // Without a bound it would be the 30 s of --shutdown_timeout.
        assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
        dripper.join().expect("no panic");
    }

    fn heads_have_64_kib_and_an_option(driver: Driver) {
        let head = |bytes: usize| {
            let fixed = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nCookie: ";
            format!("{fixed}{}\r\n\r\n", "x".repeat(bytes - fixed.len() - 4))
        };
        let status = |stage: &Stage, bytes: usize| {
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            let _closed_early = connection.write(head(bytes).as_bytes());
            connection.read_response(false).expect("an answer").status
        };
        let stage = Stage::new(driver);
        assert_eq!(status(&stage, 65_535), 200);
        assert_eq!(status(&stage, 66_000), 431);
        stage.server.wait_for_log(&[
            "WRN",
            "refused a request with 431, the head is longer than 65536 bytes: raise --max_head_size (ANYCABLE_MAX_HEAD_SIZE)",
        ]);
        let wide = Stage::with(driver, &["--max_head_size=1048576"]);
        assert_eq!(status(&wide, 1_000_000), 200);
        assert_eq!(status(&wide, 1_100_000), 431);
        let narrow = Stage::with(driver, &["--max_head_size=4096"]);
        assert_eq!((status(&narrow, 4000), status(&narrow, 5000)), (200, 431));
    }

    fn a_session_id_has_128_bytes_at_most(driver: Driver) {
        let stage = Stage::new(driver);
        let longest = "i".repeat(128);
        let _client = Cable::to(&stage.server).header("X-Request-ID", &longest).welcomed();
        assert_eq!(stage.rails.wait_for_calls("connect", 1)[0].sid, longest);
        let _client = Cable::to(&stage.server).header("X-Request-ID", &"i".repeat(129)).welcomed();
        assert_eq!(stage.rails.wait_for_calls("connect", 2)[1].sid.len(), 21);
        stage.server.wait_for_log(&["WRN", "an X-Request-ID of 129 bytes is not taken as session id"]);
        assert!(stage.server.log().iter().all(|line| line.len() < 2000), "no line is long");
    }

    fn with_the_memory_used_up_requests_get_503_and_the_others_live_on(driver: Driver) {
        let stage = Stage::with(driver, &["--memory_bytes_max=2000000", "--max_head_size=1048576"]);
        let mut old = stage.raw();
        let broadcaster = stage.broadcaster();
        let large = http::publication("x", &"y".repeat(3_000_000));
        for framing in [format!("Content-Length: {}", large.len()), "Transfer-Encoding: chunked".to_owned()] {
            let mut raw = Raw::connect(stage.server.address());
            raw.send(post("/_broadcast", &framing).as_bytes());
            let mut body = large.clone();
            if framing.contains("chunked") {
                body = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            }
            let _closed_early = raw.try_send(body.as_bytes());
            assert_eq!(raw.read_head().status(), 503, "{framing}");
        }
        // Unfinished heads, two megabytes of them.
        let mut holders: Vec<Raw> = (0..8).map(|_| Raw::connect(stage.server.address())).collect();
        for holder in &mut holders {
            let _refused = holder.try_send(format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(900_000)).as_bytes());
        }
        stage.server.wait_for_log(&["WRN", "the memory for clients and requests is used up"]);
        until("a head to be refused", || {
            (metric(&stage, "ringcable_http_overload_total") >= 3.0).then_some(())
        });
        old.expect_nothing_before_pong();
        drop(holders);
        until("small requests to be taken again", || broadcaster.try_post(&http::publication("x", "1")).ok().filter(|answer| answer.status == 201));
        until("everything to be given back", || (metric(&stage, "ringcable_memory_bytes") < 100_000.0).then_some(()));
        drop(old);
    }

    fn heads_of_strangers_have_a_bound_of_their_own(driver: Driver) {
        let stage = Stage::with(driver, &["--cores=1", "--max_head_size=16384"]);
        // 256 of the largest heads fit; a buffer holds 16 KiB when 9 KB have come.
        let half = format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(9_000));
        let started = Instant::now();
        let mut holders: Vec<Raw> = Vec::new();
        for _ in 0..300 {
            let mut raw = Raw::connect(stage.server.address());
            raw.send(half.as_bytes());
            holders.push(raw);
        }
        assert!(started.elapsed() < Duration::from_secs(4), "the machine is too slow for this test: {:?}", started.elapsed());
        stage.server.wait_for_log(&["WRN", "refused a request with 503: too many large heads are under way at once"]);
        assert_eq!(stage.server.get("/health").status, 200, "small heads are no matter");
        let mut refused = 0;
        for raw in &mut holders {
            let _ = raw.stream().shutdown(Shutdown::Write);
            let mut answer = String::new();
            let _ended = raw.stream().read_to_string(&mut answer);
            refused += usize::from(answer.starts_with("HTTP/1.1 503 "));
        }
        assert!((30..=60).contains(&refused), "{refused} of 300 refused");
    }

    /// A client that sends requests faster than they are answered leaves the shard to the others.
    fn pipelined_requests_do_not_hold_the_others_up(driver: Driver) {
        let stage = Stage::with(driver, &["--cores=1", "--log_level=info"]);
        let address = stage.server.address();
        let mut other = stage.raw();
        let flood = TcpStream::connect(address).expect("accepted");
        let mut reader = flood.try_clone().expect("a descriptor");
        let reading = thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while matches!(reader.read(&mut buffer), Ok(bytes) if bytes > 0) {}
        });
        let mut writer = flood.try_clone().expect("a descriptor");
        let writing = thread::spawn(move || {
            let many = "GET /health HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
            while writer.write_all(many.as_bytes()).is_ok() {}
        });
        until("the flood to run", || (metric(&stage, "ringcable_http_requests_total") > 5000.0).then_some(()));
        let answered = Instant::now();
        for _ in 0..50 {
            other.expect_nothing_before_pong();
            assert_eq!(http::get(address, "/health").status, 200);
        }
        let mean = answered.elapsed() / 100;
        flood.shutdown(Shutdown::Both).expect("open");
        reading.join().expect("no panic");
        writing.join().expect("no panic");
        assert!(mean < Duration::from_millis(250), "an answer took {mean:?}");
    }

    fn a_client_that_takes_no_answer_is_let_go(driver: Driver) {
        let stage = Stage::new(driver);
        let mut stream = TcpStream::connect(stage.server.address()).expect("accepted");
        stream.set_write_timeout(Some(Duration::from_secs(1))).expect("an option");
        let many = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(200);
        // Until the answers fill the way back, and the requests the way there.
        while stream.write_all(many.as_bytes()).is_ok() {}
        assert_eq!(stage.server.sessions_open(), 1);
        until("the server to give it up", || (stage.server.sessions_open() == 0).then_some(()));
    }

    /// A hello of 64 KiB in records of one byte is 65,000 records: they are taken in turns with what others want.
    fn a_tls_handshake_in_crumbs_holds_nobody_up(driver: Driver) {
        let certificate = crate::support::tls::Certificate::new();
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(certificate.args()).arg("--cores=1").spawn_without_health();
        let address = server.address();
        let hello = [&[1, 0, 0xff, 0xf0][..], &[3; 0xfff0 - 1]].concat();
        let crumbs: Vec<u8> = hello.iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect();
        let holders: Vec<_> = (0..4)
            .map(|_| {
                let crumbs = crumbs.clone();
                thread::spawn(move || {
                    let mut stream = TcpStream::connect(address).expect("accepted");
                    // The server may have had enough before the end.
                    let _refused = stream.write_all(&crumbs);
                    let mut rest = Vec::new();
                    let _ended = stream.read_to_end(&mut rest);
                })
            })
            .collect();
        let config = std::sync::Arc::new(certificate.client_config(&[&rustls::version::TLS13]));
        for _ in 0..5 {
            let started = Instant::now();
            let mut other = crate::support::tls::tls(&config, TcpStream::connect(address).expect("accepted"));
            other.write_all(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n").expect("open");
            let mut status = [0; 12];
            other.read_exact(&mut status).expect("an answer");
            assert_eq!(&status, b"HTTP/1.1 200");
            assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        }
        // And they end: refused, or with the time for a head.
        for holder in holders {
            holder.join().expect("no panic");
        }
    }

    fn a_tls_handshake_that_drips_ends(driver: Driver) {
        let certificate = crate::support::tls::Certificate::new();
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(certificate.args()).spawn_without_health();
        // The head of a ClientHello, then byte by byte.
        let mut stream = TcpStream::connect(server.address()).expect("accepted");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("an option");
        let started = Instant::now();
        let _sent = stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
        let mut byte = [0];
        while !matches!(stream.read(&mut byte), Ok(0)) && stream.write_all(&[7]).is_ok() {
            assert!(started.elapsed() < Duration::from_secs(20), "still open");
        }
        let secs = started.elapsed().as_secs_f64();
        assert!((3.0..15.0).contains(&secs), "ended after {secs} s");
    }
}

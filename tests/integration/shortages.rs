//! What the server itself runs out of: clients wait, calls to the app go on, and the app is not blamed.

use std::net::TcpStream;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::http::{HttpConnection, publication};
use crate::support::ports::free_port;
use crate::support::raw::{Raw, handshake};
use crate::support::tls::Scene;
use crate::support::wait::until;
use crate::support::{Cable, Driver, Launch, Rails, Server, Stage, keys};

/// A scrape and a publisher that have come before the others and stay.
struct Insider(HttpConnection);

impl Insider {
    fn of(server: &Server) -> Self {
        Self(HttpConnection::open(server.address()).expect("accepted"))
    }

    /// The sum over all shards.
    fn metric(&mut self, name: &str) -> i64 {
        let answer = self
            .0
            .request("GET", "/metrics", &[], b"")
            .expect("an answer");
        let prefix = format!("{name}{{");
        let text = answer.text();
        let samples: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .collect();
        assert!(!samples.is_empty(), "no metric {name} in\n{text}");
        let value = |line: &&str| {
            line.rsplit(' ')
                .next()
                .and_then(|value| value.parse::<i64>().ok())
        };
        samples
            .iter()
            .map(|line| value(line).expect("an integer"))
            .sum()
    }

    fn publish(&mut self, stream: &str, data: &str) {
        let token = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        let body = publication(stream, data);
        let answer = self.0.request(
            "POST",
            "/_broadcast",
            &[("Authorization", &token)],
            body.as_bytes(),
        );
        assert_eq!(answer.expect("an answer").status, 201);
    }
}

fn small_server(driver: Driver, rails: &Rails, args: &[&str], open_files: u32) -> Server {
    let port = free_port();
    let launch = Stage::launch(driver, rails)
        .args(args.iter().copied())
        .arg(format!("--port={port}"));
    let server = launch.open_files_max(open_files).start_at(port);
    server.wait_for_log(&["ringcable is ready"]);
    until("the look at the port to be over", || {
        (server.sessions_open() == 0).then_some(())
    });
    server
}

/// The limit on open files of a running server; gives the one before.
pub fn limit_files(server: &Server, max: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(server.pid()).expect("a pid fits"));
    let own = getrlimit(Resource::Nofile);
    let limit = Rlimit {
        current: max,
        maximum: own.maximum,
    };
    prlimit(pid, Resource::Nofile, limit)
        .expect("our child")
        .current
}

fn breaker_opened(server: &Server) -> bool {
    server
        .log()
        .iter()
        .any(|line| line.contains("circuit breaker is open"))
}

/// What one more shard holds when nobody is connected.
fn files_of_a_shard(driver: Driver, args: &[&str]) -> usize {
    let files = |shards: usize| {
        let launch = Launch::bare().args(["--norpc", "--secret=s", "--host=127.0.0.1", "--port=0"]);
        let launch = launch.args([driver.flag(), &format!("--cores={shards}")]);
        let server = launch.args(args.iter().copied()).start();
        server.wait_for_log(&["ringcable is ready"]);
        until("the look at /health to be over", || {
            (server.sessions_open() == 0).then_some(())
        });
        server.open_files()
    };
    let (few, many) = (files(1), files(5));
    assert_eq!((many - few) % 4, 0, "{few} {many}");
    (many - few) / 4
}

on_both_drivers! {
    /// `os/limits.rs` keeps so many from clients.
    fn a_shard_holds_the_descriptors_that_are_reserved_for_it(driver: Driver) {
        let of_shard = match driver {
            Driver::IoUring => 9,
            Driver::Epoll => 8,
        };
        let of_listener = 2;
        assert_eq!(files_of_a_shard(driver, &[]), of_shard + of_listener);
        let metrics = ["--metrics_http=/metrics", &format!("--metrics_port={}", free_port())];
        assert_eq!(files_of_a_shard(driver, &metrics), of_shard + 2 * of_listener);
    }

    fn clients_leave_descriptors_for_calls_and_broadcasts(driver: Driver) {
        let rails = Rails::start();
        let server = small_server(driver, &rails, &[], 300);
        let mut insider = Insider::of(&server);
        insider.metric("ringcable_accepted_total");
        let mut crowd: Vec<Raw> = (0..400).map(|_| Raw::connect(server.address())).collect();
        for raw in &mut crowd {
            raw.send(handshake("/cable?pi=0", &[]).as_bytes());
        }
        // 300 files, of which 128 are not for clients and one is the insider's.
        until("all that may to be welcomed", || (insider.metric("ringcable_clients_num") == 171).then_some(()));
        server.wait_for_log(&["WRN", "172 clients are connected, the other 128 of 300 open files are kept for calls to the app"]);
        let (mut inside, outside): (Vec<Raw>, Vec<Raw>) = crowd.into_iter().partition(|raw| {
            raw.stream().set_nonblocking(true).expect("an option of every socket");
            let answered = raw.stream().peek(&mut [0]).is_ok();
            raw.stream().set_nonblocking(false).expect("an option of every socket");
            answered
        });
        assert_eq!((inside.len(), outside.len()), (171, 229));
        // A connection that is idle between requests gives its place to a client that waits, so the insider keeps asking.
        for raw in &mut inside {
            assert_eq!(raw.read_head().status(), 101);
            assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
            insider.metric("ringcable_accepted_total");
        }
        // The connections of the calls must be new.
        rails.close_connections();
        for raw in &mut inside {
            raw.subscribe("A");
            insider.metric("ringcable_accepted_total");
        }
        insider.publish("stream:A", "1");
        for raw in &mut inside {
            assert_eq!(raw.next_json()["message"], 1);
        }
        assert!(!breaker_opened(&server));
        assert_eq!(insider.metric("ringcable_rpc_shortages_total"), 0);
        assert_eq!(insider.metric("ringcable_accept_errors_total"), 0);
        assert!(insider.metric("ringcable_accept_waits_total") > 0);
        drop((inside, outside));
        Raw::welcomed(server.address()).subscribe("B");
    }

    fn those_who_wait_are_served_as_others_leave(driver: Driver) {
        let rails = Rails::start();
        let server = small_server(driver, &rails, &["--cores=1", "--log_level=info"], 300);
        let mut inside: Vec<Raw> = (0..172).map(|_| Raw::welcomed(server.address())).collect();
        let mut outside: Vec<Raw> = (0..20).map(|_| Raw::connect(server.address())).collect();
        for raw in &mut outside {
            raw.send(handshake("/cable?pi=0", &[]).as_bytes());
        }
        server.wait_for_log(&["WRN", "new clients wait without an answer until others leave"]);
        inside.truncate(152);
        for raw in &mut outside {
            assert_eq!(raw.read_head().status(), 101);
            assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
        }
    }

    fn listener_of_broadcasts_alone_has_a_part_of_the_reserve(driver: Driver) {
        let rails = Rails::start();
        let broadcasts = free_port();
        let port = format!("--http_broadcast_port={broadcasts}");
        let server = small_server(driver, &rails, &[&port, "--log_level=info"], 300);
        let _crowd: Vec<TcpStream> =
            (0..200).map(|_| TcpStream::connect(server.address()).expect("the kernel queues it")).collect();
        server.wait_for_log(&["WRN", "172 clients are connected"]);
        let token = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        let body = publication("stream:A", "1");
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], broadcasts));
        for _ in 0..20 {
            let headers = [("Authorization", token.as_str())];
            let answer = crate::support::http::request(address, "POST", "/_broadcast", &headers, body.as_bytes());
            assert_eq!(answer.expect("an answer").status, 201);
        }
    }

    fn shortage_of_descriptors_is_no_fault_of_the_app(driver: Driver) {
        let stage = Stage::with(driver, &["--log_level=info"]);
        let mut insider = Insider::of(&stage.server);
        insider.metric("ringcable_rpc_shortages_total");
        let mut clients: Vec<Cable> = (0..20).map(|_| stage.client()).collect();
        // No kept connection is left, and no new one can be opened.
        let before = limit_files(&stage.server, Some(3));
        stage.rails.close_connections();
        for client in &mut clients {
            client.command("subscribe", "A");
        }
        until("every call to meet the shortage", || (insider.metric("ringcable_rpc_shortages_total") >= 20).then_some(()));
        let line = stage.server.wait_for_log(&["WRN", "RPC calls wait, this server has not what they need", "Too many open files"]);
        assert!(line.contains("ulimit -n"), "{line}");
        limit_files(&stage.server, before);
        for client in &mut clients {
            client.next_text();
        }
        assert!(!breaker_opened(&stage.server));
        assert_eq!(stage.server.metric("rpc_error_total"), 0);
        assert!(!stage.server.log().iter().any(|line| line.contains("RPC calls fail")));
        stage.client();
    }

    fn certificate_stays_when_its_files_cannot_be_opened(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        scene.client().expect_pong();
        let before = limit_files(&scene.stage.server, Some(3));
        scene.stage.server.hang_up();
        let line = ["ERR", "failed to reload SSL certificate: the one in use stays", "Too many open files"];
        scene.stage.server.wait_for_log(&line);
        limit_files(&scene.stage.server, before);
        scene.client().expect_pong();
        scene.renew();
        scene.trust_renewed();
        scene.client().expect_pong();
    }

    fn call_that_finds_no_descriptor_in_its_time_fails_by_name(driver: Driver) {
        let stage = Stage::with(driver, &["--log_level=info", "--rpc_command_timeout=500"]);
        let mut raw = stage.raw();
        let before = limit_files(&stage.server, Some(3));
        stage.rails.close_connections();
        for _ in 0..12 {
            raw.command("subscribe", "A");
        }
        raw.expect_nothing_before_pong();
        limit_files(&stage.server, before);
        assert!(!breaker_opened(&stage.server));
        raw.subscribe("A");
    }
}

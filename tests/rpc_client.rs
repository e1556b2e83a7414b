//! The RPC client alone, against a scripted app on a real socket. Every test runs on both monoio drivers.
//!
//! Source of all expected bytes and numbers: `contract/rpc.md` §2, §5, §7.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io::{self, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringcable::{
    config::{RpcConfig, RpcEndpoint, RpcTlsConfig},
    net::Timeouts,
    rpc::{
        BadResponse, CallTimes, Method, Priority, RpcClient, RpcError, RpcObserver, RpcShared,
        StartError,
    },
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"status\":1}";
const STATUS_1: &[u8] = b"{\"status\":1}";

// ---------------------------------------------------------------------------------------------- the requests themselves

#[test]
fn a_request_is_the_one_of_the_contract() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::Send(OK.into()));
        let token = "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d";
        let mut config = config(&format!("http://127.0.0.1:{}/_anycable", app.port));
        config.token = Some(token.to_owned());
        let shard = Shard::new(&config);
        let body = b"{\"env\":{}}".to_vec();
        let answer = shard
            .client
            .call(Method::Connect, "req-1", body, Priority::Live)
            .await;
        assert_eq!(answer.unwrap(), STATUS_1);
        let expected = [
            "POST /_anycable/connect HTTP/1.1",
            &format!("Host: 127.0.0.1:{}", app.port),
            "User-Agent: Go-http-client/1.1",
            "Content-Length: 10",
            &format!("Authorization: Bearer {token}"),
            "Content-Type: application/json",
            "X-Anycable-Meta-Protov: v1",
            "X-Anycable-Meta-Sid: req-1",
            "Accept-Encoding: gzip",
            "",
            "{\"env\":{}}",
        ];
        assert_eq!(app.requests()[0].text, expected.join("\r\n"));
        assert_eq!(
            shard.counts(),
            Counts {
                ran: 1,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn a_host_name_is_resolved_and_every_address_is_tried() {
    on_both_drivers(async || {
        // The app listens on 127.0.0.1 only; where localhost is ::1 first, that one refuses.
        let app = App::start(|_| Reply::Send(OK.into()));
        let shard = Shard::new(&config(&format!("http://localhost:{}/", app.port)));
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(shard.counts().retries, 0);
    });
}

#[test]
fn a_large_request_arrives_whole() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::Send(OK.into()));
        let shard = Shard::new(&config(&app.url()));
        let body = vec![b'x'; 3_000_000];
        let answer = shard
            .client
            .call(Method::Command, "s", body, Priority::Live)
            .await;
        assert_eq!(answer.unwrap(), STATUS_1);
        assert!(app.requests()[0].text.ends_with(&"x".repeat(3_000_000)));
    });
}

// ------------------------------------------------------------------------------------------------------ warm connections

#[test]
fn a_connection_is_used_again() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::Send(OK.into()));
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..5 {
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
        }
        assert_eq!(app.connections(), [0, 0, 0, 0, 0]);
    });
}

#[test]
fn as_many_connections_as_calls_stay_warm() {
    on_both_drivers(async || {
        let app = App::start(|_| {
            thread::sleep(Duration::from_millis(50));
            Reply::Send(OK.into())
        });
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..3 {
            let calls: Vec<_> = (0..8).map(|_| shard.spawn_call()).collect();
            for call in calls {
                assert_eq!(call.await.unwrap(), STATUS_1);
            }
        }
        assert_eq!(app.connections().iter().max(), Some(&7));
    });
}

#[test]
fn a_connection_the_app_wants_closed_is_not_used_again() {
    on_both_drivers(async || {
        let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        let app = App::start(move |_| Reply::Send(answer.into()));
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..2 {
            assert_eq!(shard.call().await.unwrap(), b"{}");
        }
        assert_eq!(app.connections(), [0, 1]);
    });
}

#[test]
fn a_warm_connection_that_the_app_closed_is_noticed_before_it_is_used() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::SendAndClose(OK.into()));
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..3 {
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
            app.wait_for_end().await;
            // The end is on its way through loopback.
            monoio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(app.connections(), [0, 1, 2]);
        assert_eq!(
            shard.counts(),
            Counts {
                ran: 3,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn an_idle_connection_that_the_app_closed_is_closed_here_too() {
    on_both_drivers(async || {
        let app = App::start_raw(|mut stream| {
            read_request(&mut stream);
            stream.write_all(OK.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // Comes to its end when the client has closed, too.
            io::copy(&mut stream, &mut io::sink()).unwrap();
        });
        let shard = Shard::new(&config(&app.url()));
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        app.wait_for_end().await;
    });
}

#[test]
fn a_request_lost_on_a_warm_connection_is_sent_again_once_and_is_no_retry() {
    on_both_drivers(async || {
        // Every connection answers once and is closed at its second request.
        let app = App::start(|request| match request.number {
            0 => Reply::Send(OK.into()),
            _ => Reply::SendAndClose(String::new()),
        });
        let shard = Shard::new(&config(&app.url()));
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(app.connections(), [0, 0, 1]);
        let requests = app.requests();
        assert_eq!(requests[1].text, requests[2].text);
        assert_eq!(
            shard.counts(),
            Counts {
                ran: 2,
                ..Counts::default()
            }
        );
    });
}

/// An app whose connections up to one moment are frozen then, and one at the same place that serves all that come later.
struct LostApp {
    app: App,
    config: RpcConfig,
    /// Connections that are warm.
    warm: usize,
    frozen: Arc<std::sync::atomic::AtomicBool>,
}

impl LostApp {
    /// `last_words` is what a frozen connection answers.
    fn new(tls: bool, warm: usize, last_words: Reply) -> LostApp {
        let frozen = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let freeze = Arc::clone(&frozen);
        let script = move |request: &Request| {
            if freeze.load(Ordering::SeqCst) && request.connection < warm {
                return last_words.clone();
            }
            if request.connection < warm {
                // Long enough for all of them to be needed.
                thread::sleep(Duration::from_millis(100));
            }
            Reply::Send(OK.into())
        };
        let (app, mut config) = if tls {
            let (app, root) = App::start_tls(script);
            let mut config = config(&format!("https://localhost:{}", app.port));
            config.tls.root_ca = root;
            (app, config)
        } else {
            let app = App::start(script);
            let config = config(&app.url());
            (app, config)
        };
        config.request_timeout = Duration::from_millis(500);
        LostApp {
            app,
            config,
            warm,
            frozen,
        }
    }

    /// Two shards with half of the warm connections each, and the app is lost.
    async fn warmed_up(&self) -> [Shard; 2] {
        let shared = RpcShared::new(&self.config).unwrap();
        let shards = [(); 2].map(|()| Shard::sharing(Arc::clone(&shared)));
        let calls: Vec<_> = (0..self.warm)
            .map(|number| shards[number % 2].spawn_call())
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), STATUS_1);
        }
        assert_eq!(self.app.connections().iter().max(), Some(&(self.warm - 1)));
        self.frozen.store(true, Ordering::SeqCst);
        shards
    }
}

#[test]
fn warm_connections_to_a_lost_app_cost_one_call_on_all_shards_together() {
    on_both_drivers(async || {
        for tls in [false, true] {
            let lost = LostApp::new(tls, 8, Reply::Silence);
            let shards = lost.warmed_up().await;
            let mut failed = 0;
            for number in 0..12 {
                match shards[number % 2].call().await {
                    Ok(body) => assert_eq!(body, STATUS_1),
                    Err(error) => {
                        assert!(matches!(error, RpcError::Timeout { .. }), "{error}");
                        failed += 1;
                    }
                }
            }
            assert_eq!(failed, 1, "tls: {tls}");
        }
    });
}

#[test]
fn calls_that_come_while_one_waits_in_vain_open_connections_of_their_own() {
    on_both_drivers(async || {
        let lost = LostApp::new(false, 8, Reply::Silence);
        let shards = lost.warmed_up().await;
        // Long enough for the last answer to prove nothing.
        monoio::time::sleep(Duration::from_millis(1100)).await;
        let calls: Vec<_> = (0..8)
            .map(|number| shards[number % 2].spawn_call())
            .collect();
        let mut failed = 0;
        for call in calls {
            failed += usize::from(call.await.is_err());
        }
        assert_eq!(failed, 1);
    });
}

#[test]
fn warm_connections_on_which_garbage_comes_cost_one_retry() {
    on_both_drivers(async || {
        let lost = LostApp::new(false, 8, Reply::Send(b"?????\r\n\r\n".to_vec()));
        let shards = lost.warmed_up().await;
        for number in 0..8 {
            assert_eq!(shards[number % 2].call().await.unwrap(), STATUS_1);
        }
        assert_eq!(shards[0].counts().retries + shards[1].counts().retries, 1);
    });
}

#[test]
fn warm_connections_that_break_under_a_request_cost_no_call_and_no_retry() {
    on_both_drivers(async || {
        let lost = LostApp::new(false, 8, Reply::SendAndClose(String::new()));
        let shards = lost.warmed_up().await;
        for number in 0..8 {
            assert_eq!(shards[number % 2].call().await.unwrap(), STATUS_1);
        }
        assert_eq!(shards[0].counts().retries + shards[1].counts().retries, 0);
        // Eight to warm up, one that was lost and sent again, and one new connection for each shard.
        assert_eq!(lost.app.requests().len(), 8 + 1 + 8);
    });
}

// ---------------------------------------------------------------------------------------------------------------- answers

#[test]
fn bodies_of_every_framing_are_read() {
    on_both_drivers(async || {
        let head = "HTTP/1.1 200 OK\r\n";
        let chunked = "Transfer-Encoding: chunked\r\n\r\n4\r\n{\"st\r\n8\r\natus\":1}\r\n0\r\n\r\n";
        let packed = gzip(STATUS_1);
        let packed_head = format!(
            "{head}Content-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            packed.len()
        );
        let mut packed_chunks =
            format!("{head}Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
                .into_bytes();
        for piece in packed.chunks(5) {
            write!(packed_chunks, "{:x}\r\n", piece.len()).unwrap();
            packed_chunks.extend(piece.iter().chain(b"\r\n"));
        }
        packed_chunks.extend(b"0\r\n\r\n");
        let answers = [
            Reply::Send(format!("{head}{chunked}").into()),
            Reply::SendAndClose(format!("{head}\r\n{{\"status\":1}}")),
            Reply::SendAndClose("HTTP/1.0 200 OK\r\n\r\n{\"status\":1}".to_owned()),
            Reply::Send([packed_head.as_bytes(), &packed].concat()),
            Reply::Send(packed_chunks),
            Reply::Send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}").into()),
            Reply::SendSlowly(format!("{head}{chunked}").into()),
        ];
        for answer in answers {
            let app = App::start(move |_| answer.clone());
            let shard = Shard::new(&config(&app.url()));
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
        }
    });
}

#[test]
fn a_large_answer_is_read_whole_and_one_over_the_limit_is_refused() {
    on_both_drivers(async || {
        let body = "x".repeat(2_000_000);
        let large = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let app = App::start(move |_| Reply::Send(large.clone().into()));
        assert_eq!(
            Shard::new(&config(&app.url())).call().await.unwrap(),
            body.as_bytes()
        );
        let app = App::start(|_| {
            Reply::Send("HTTP/1.1 200 OK\r\nContent-Length: 16777217\r\n\r\n".into())
        });
        let error = Shard::new(&config(&app.url())).call().await.unwrap_err();
        assert!(
            matches!(
                error,
                RpcError::BadResponse {
                    cause: BadResponse::TooLarge,
                    ..
                }
            ),
            "{error}"
        );
    });
}

#[test]
fn the_check_is_a_connect_without_a_body_that_leaves_no_trace() {
    on_both_drivers(async || {
        let app = App::start(|request| match request.number {
            0 if request.text.ends_with("\r\n\r\n") => {
                Reply::Send("HTTP/1.1 422 X\r\nContent-Length: 18\r\n\r\nEmpty request body".into())
            }
            _ => Reply::Send(OK.into()),
        });
        let shard = Shard::new(&config(&format!("{}/_anycable", app.url())));
        // Many more than the breaker takes before it opens would count.
        for _ in 0..20 {
            shard.client.check().await;
        }
        assert_eq!(shard.counts(), Counts::default());
        let request = &app.requests()[0].text;
        assert!(
            request.starts_with("POST /_anycable/connect?ringcable=start-check HTTP/1.1\r\n")
                && request.contains("\r\nContent-Length: 0\r\n")
                && request.contains("\r\nX-Anycable-Meta-Sid: ringcable-check\r\n")
                && request.ends_with("\r\n\r\n"),
            "{request}"
        );
        // Each had a connection of its own, and none is kept for calls.
        shard.call().await.expect("an answer");
        assert_eq!(app.connections(), (0..21).collect::<Vec<_>>());
    });
}

#[test]
fn a_call_for_which_there_is_no_memory_fails_and_gives_its_slot_back() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::Send(OK.into()));
        let mut config = config(&app.url());
        config.concurrency = 1;
        let shard = Shard::new(&config);
        for (error, errors, canceled) in [(RpcError::NoMemory, 1, 0), (RpcError::Canceled, 0, 1)] {
            let times = CallTimes::since(Instant::now());
            let expected = error.to_string();
            let body = || Err(error);
            let call =
                shard
                    .client
                    .call_timed(Method::Command, "sid", body, Priority::Live, &times);
            assert_eq!(call.await.unwrap_err().to_string(), expected);
            assert!(!times.is_sent());
            let counts = shard.counts();
            assert_eq!((counts.errors, counts.canceled), (errors, canceled));
        }
        assert!(app.requests().is_empty());
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
    });
}

#[test]
fn a_failed_check_fails_no_call() {
    on_both_drivers(async || {
        let app = App::start(|request| match request.text.ends_with("\r\n\r\n") {
            true => Reply::SendAndClose(String::new()),
            false => Reply::Send(OK.into()),
        });
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..20 {
            shard.client.check().await;
        }
        assert_eq!(shard.call().await.expect("no breaker is open"), STATUS_1);
    });
}

#[test]
fn only_status_200_is_a_success_and_no_other_is_tried_again() {
    on_both_drivers(async || {
        for expected in [201, 204, 302, 400, 401, 404, 422, 500, 503] {
            let app = App::start(move |_| {
                let location = if expected == 302 {
                    "Location: /elsewhere\r\n"
                } else {
                    ""
                };
                Reply::Send(
                    format!("HTTP/1.1 {expected} X\r\n{location}Content-Length: 0\r\n\r\n").into(),
                )
            });
            let shard = Shard::new(&config(&app.url()));
            for _ in 0..2 {
                let error = shard.call().await.unwrap_err();
                assert!(
                    matches!(error, RpcError::Status { status } if status == expected),
                    "{error}"
                );
            }
            assert_eq!(
                app.connections(),
                [0, 0],
                "{expected}: the connection stays warm"
            );
            assert_eq!(
                shard.counts(),
                Counts {
                    errors: 2,
                    unauthorized: if expected == 401 { 2 } else { 0 },
                    ran: 2,
                    ..Counts::default()
                }
            );
        }
    });
}

#[test]
fn a_body_that_is_cut_off_is_an_error_and_not_tried_again() {
    on_both_drivers(async || {
        let app = App::start(|_| {
            Reply::SendAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"st".to_owned())
        });
        let shard = Shard::new(&config(&app.url()));
        let error = shard.call().await.unwrap_err();
        assert!(
            matches!(
                error,
                RpcError::BadResponse {
                    cause: BadResponse::Truncated { received: 4 },
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(app.requests().len(), 1);
    });
}

// --------------------------------------------------------------------------------------------- timeouts, retries, breaker

#[test]
fn a_timeout_ends_the_call_and_closes_the_connection() {
    on_both_drivers(async || {
        let app = App::start(|_| Reply::Silence);
        for (request_millis, command_millis) in [(200, 0), (200, 3_000), (3_000, 200), (0, 200)] {
            let mut config = config(&app.url());
            config.request_timeout = Duration::from_millis(request_millis);
            config.command_timeout = Duration::from_millis(command_millis);
            let shard = Shard::new(&config);
            let started = Instant::now();
            let error = shard.call().await.unwrap_err();
            assert!(matches!(error, RpcError::Timeout { .. }), "{error}");
            assert!((200..2_000).contains(&started.elapsed().as_millis()));
            assert_eq!(
                shard.counts(),
                Counts {
                    errors: 1,
                    timeouts: 1,
                    ran: 1,
                    ..Counts::default()
                }
            );
            app.wait_for_end().await;
        }
        assert_eq!(app.requests().len(), 4);
    });
}

#[test]
fn an_app_that_refuses_is_tried_again_until_the_command_limit() {
    on_both_drivers(async || {
        let mut config = config(&format!("http://127.0.0.1:{}", free_port()));
        config.command_timeout = Duration::from_millis(600);
        let shard = Shard::new(&config);
        let started = Instant::now();
        let error = shard.call().await.unwrap_err();
        // Attempts at 0, 100 and 300 ms; the pause before the one at 700 ms is cut short.
        assert!(
            matches!(error, RpcError::Unreachable { attempts: 3, .. }),
            "{error}"
        );
        assert!((600..2_000).contains(&started.elapsed().as_millis()));
        assert_eq!(
            shard.counts(),
            Counts {
                retries: 3,
                errors: 1,
                ran: 1,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn a_connection_lost_or_misused_before_an_answer_is_tried_again() {
    on_both_drivers(async || {
        for first in ["", "HTTP/1.1 200", "SSH-2.0-OpenSSH_9.9\r\n"] {
            let app = App::start(move |request| match request.connection {
                0 => Reply::SendAndClose(first.to_owned()),
                _ => Reply::Send(OK.into()),
            });
            let shard = Shard::new(&config(&app.url()));
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
            assert_eq!(app.connections(), [0, 1]);
            assert_eq!(
                shard.counts(),
                Counts {
                    retries: 1,
                    ran: 1,
                    ..Counts::default()
                }
            );
        }
    });
}

#[test]
fn after_ten_failures_the_breaker_ends_calls_at_once() {
    on_both_drivers(async || {
        let shard = Shard::new(&config(&format!("http://127.0.0.1:{}", free_port())));
        let started = Instant::now();
        let calls: Vec<_> = (0..10).map(|_| shard.spawn_call()).collect();
        for call in calls {
            let error = call.await.unwrap_err();
            assert!(matches!(error, RpcError::BreakerOpen), "{error}");
        }
        let error = shard.call().await.unwrap_err();
        assert!(matches!(error, RpcError::BreakerOpen), "{error}");
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "well before the command limit of 3 s"
        );
        assert_eq!(
            shard.counts(),
            Counts {
                retries: 10,
                errors: 11,
                ran: 11,
                ..Counts::default()
            }
        );
    });
}

// ------------------------------------------------------------------------------------------- cancellation, concurrency

#[test]
fn dropping_a_running_call_closes_its_connection_and_frees_its_slot() {
    on_both_drivers(async || {
        let app = App::start(|request| match request.connection {
            0 => Reply::Silence,
            _ => Reply::Send(OK.into()),
        });
        let mut config = config(&app.url());
        config.concurrency = 1;
        let shard = Shard::new(&config);
        shard.call_until(app.next_request()).await;
        app.wait_for_end().await;
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(
            shard.counts(),
            Counts {
                canceled: 1,
                ran: 1,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn dropping_a_waiting_call_leaves_the_queue_and_sends_nothing() {
    on_both_drivers(async || {
        let app = App::start(|_| {
            thread::sleep(Duration::from_millis(200));
            Reply::Send(OK.into())
        });
        let mut config = config(&app.url());
        config.concurrency = 1;
        let shard = Shard::new(&config);
        let running = shard.spawn_call();
        monoio::time::sleep(Duration::from_millis(20)).await;
        shard
            .call_until(monoio::time::sleep(Duration::from_millis(50)))
            .await;
        assert_eq!(running.await.unwrap(), STATUS_1);
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(app.requests().len(), 2);
        assert_eq!(
            shard.counts(),
            Counts {
                canceled: 1,
                pending_max: 1,
                ran: 2,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn a_disconnect_call_waits_until_no_live_call_does() {
    on_both_drivers(async || {
        let app = App::start(|_| {
            thread::sleep(Duration::from_millis(30));
            Reply::Send(OK.into())
        });
        let mut config = config(&app.url());
        config.concurrency = 1;
        let shard = Shard::new(&config);
        let order = [
            (Method::Connect, Priority::Live),
            (Method::Disconnect, Priority::Disconnect),
            (Method::Command, Priority::Live),
        ];
        let calls = order.map(|(method, priority)| {
            let client = Rc::clone(&shard.client);
            monoio::spawn(async move { client.call(method, "s", b"{}".to_vec(), priority).await })
        });
        for call in calls {
            call.await.unwrap();
        }
        let paths: Vec<_> = app
            .requests()
            .iter()
            .map(|request| request.text.split(' ').nth(1).unwrap().to_owned())
            .collect();
        assert_eq!(paths, ["/connect", "/command", "/disconnect"]);
    });
}

#[test]
fn the_concurrency_limit_is_exact_over_two_shards() {
    for driver in drivers() {
        let running = Arc::new(AtomicUsize::new(0));
        let running_max = Arc::new(AtomicUsize::new(0));
        let (now, max) = (Arc::clone(&running), Arc::clone(&running_max));
        let app = App::start(move |_| {
            max.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(2));
            now.fetch_sub(1, Ordering::SeqCst);
            Reply::Send(OK.into())
        });
        let mut config = config(&app.url());
        config.concurrency = 3;
        let shared = RpcShared::new(&config).unwrap();
        let shards = [(); 2].map(|()| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                run_on(driver, async || {
                    let shard = Shard::sharing(Arc::clone(&shared));
                    let calls: Vec<_> = (0..150).map(|_| shard.spawn_call()).collect();
                    for call in calls {
                        assert_eq!(call.await.unwrap(), STATUS_1);
                    }
                    assert_eq!(shard.observer.pending.get(), 0);
                });
            })
        });
        for shard in shards {
            shard.join().unwrap();
        }
        assert_eq!(app.requests().len(), 300);
        assert_eq!(running_max.load(Ordering::SeqCst), 3, "{driver:?}");
        assert_eq!(shared.running(), 0);
    }
}

// ------------------------------------------------------------------------------------------------------------------ https

#[test]
fn https_with_a_private_root_is_trusted_and_kept_alive() {
    on_both_drivers(async || {
        let (app, root) = App::start_tls(|_| Reply::Send(OK.into()));
        let mut config = config(&format!("https://localhost:{}", app.port));
        config.tls.root_ca = root;
        let shard = Shard::new(&config);
        for _ in 0..3 {
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
        }
        assert_eq!(app.connections(), [0, 0, 0]);
    });
}

#[test]
fn a_large_exchange_over_https_arrives_whole() {
    on_both_drivers(async || {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
            "y".repeat(1_000_000)
        );
        let (app, root) = App::start_tls(move |_| Reply::Send(answer.clone().into()));
        let mut config = config(&format!("https://localhost:{}", app.port));
        config.tls.root_ca = root;
        let shard = Shard::new(&config);
        let body = vec![b'x'; 1_000_000];
        let answer = shard
            .client
            .call(Method::Command, "s", body, Priority::Live)
            .await;
        assert_eq!(answer.unwrap(), "y".repeat(1_000_000).as_bytes());
        assert!(app.requests()[0].text.ends_with(&"x".repeat(1_000_000)));
    });
}

#[test]
fn an_untrusted_certificate_ends_the_call_without_a_retry() {
    on_both_drivers(async || {
        let (app, _) = App::start_tls(|_| Reply::Send(OK.into()));
        let (_, other_root) = certificate();
        let mut config = config(&format!("https://localhost:{}", app.port));
        config.tls.root_ca = other_root;
        let shard = Shard::new(&config);
        let error = shard.call().await.unwrap_err();
        assert!(matches!(error, RpcError::Tls { .. }), "{error}");
        assert_eq!(
            shard.counts(),
            Counts {
                errors: 1,
                ran: 1,
                ..Counts::default()
            }
        );
        assert!(app.requests().is_empty());
    });
}

#[test]
fn without_verification_any_certificate_will_do() {
    on_both_drivers(async || {
        let (app, _) = App::start_tls(|_| Reply::Send(OK.into()));
        let mut config = config(&format!("https://127.0.0.1:{}", app.port));
        config.tls.verify = false;
        assert_eq!(Shard::new(&config).call().await.unwrap(), STATUS_1);
    });
}

#[test]
fn https_to_an_app_that_speaks_http_is_an_error_without_a_retry() {
    on_both_drivers(async || {
        let app = App::start_raw(|mut stream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
            drain(&mut stream);
        });
        let mut config = config(&format!("https://127.0.0.1:{}", app.port));
        config.tls.verify = false;
        let error = Shard::new(&config).call().await.unwrap_err();
        assert!(matches!(error, RpcError::Tls { .. }), "{error}");
    });
}

#[test]
fn an_address_that_can_never_work_is_refused_at_start() {
    let check = |endpoint: RpcEndpoint, expected: &str| {
        let mut config = config("http://app");
        config.endpoint = endpoint;
        let error = RpcShared::new(&config).err().expect("refused");
        assert_eq!(error.to_string(), expected);
    };
    check(
        RpcEndpoint::Http("http://user:secret@a b?key=1".to_owned()),
        "invalid RPC URL \"http://***@a b\": invalid host \"a b\"",
    );
    check(RpcEndpoint::None, &StartError::NoEndpoint.to_string());
}

// ------------------------------------------------------------------------------------------------------- the calling side

/// What the observer was told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    retries: u32,
    timeouts: u32,
    errors: u32,
    unauthorized: u32,
    canceled: u32,
    pending_max: i64,
    ran: u32,
}

#[derive(Default)]
struct Observer {
    counts: RefCell<Counts>,
    pending: Cell<i64>,
}

impl RpcObserver for Observer {
    fn retry(&self) {
        self.counts.borrow_mut().retries += 1;
    }
    fn timeout(&self) {
        self.counts.borrow_mut().timeouts += 1;
    }
    fn error(&self) {
        self.counts.borrow_mut().errors += 1;
    }
    fn unauthorized(&self) {
        self.counts.borrow_mut().unauthorized += 1;
    }
    fn canceled(&self) {
        self.counts.borrow_mut().canceled += 1;
    }
    fn pending(&self, delta: i64) {
        self.pending.set(self.pending.get() + delta);
        let mut counts = self.counts.borrow_mut();
        counts.pending_max = counts.pending_max.max(self.pending.get());
    }
    fn waited(&self, _wait: Duration) {}
    fn ran(&self, _run: Duration) {
        self.counts.borrow_mut().ran += 1;
    }
}

struct Shard {
    client: Rc<RpcClient>,
    observer: Rc<Observer>,
}

impl Shard {
    fn new(config: &RpcConfig) -> Shard {
        Shard::sharing(RpcShared::new(config).unwrap())
    }

    fn sharing(shared: Arc<RpcShared>) -> Shard {
        let observer = Rc::new(Observer::default());
        Shard {
            client: RpcClient::new(
                shared,
                Rc::clone(&observer) as Rc<dyn RpcObserver>,
                Timeouts::start(),
            ),
            observer,
        }
    }

    async fn call(&self) -> Result<Vec<u8>, RpcError> {
        self.spawn_call().await
    }

    fn spawn_call(&self) -> monoio::task::JoinHandle<Result<Vec<u8>, RpcError>> {
        let client = Rc::clone(&self.client);
        monoio::spawn(async move {
            client
                .call(Method::Command, "sid", b"{}".to_vec(), Priority::Live)
                .await
        })
    }

    /// Starts a call and drops it when `end` resolves, which it must do first.
    async fn call_until(&self, end: impl Future<Output = ()> + 'static) {
        let client = Rc::clone(&self.client);
        monoio::spawn(async move {
            let mut call =
                pin!(client.call(Method::Command, "sid", b"{}".to_vec(), Priority::Live));
            let mut end = pin!(end);
            poll_fn(|context| {
                assert!(
                    call.as_mut().poll(context).is_pending(),
                    "the call ended first"
                );
                end.as_mut().poll(context)
            })
            .await
        })
        .await;
    }

    /// What was counted, with no call left waiting.
    fn counts(&self) -> Counts {
        assert_eq!(self.observer.pending.get(), 0);
        std::mem::take(&mut self.observer.counts.borrow_mut())
    }
}

fn config(url: &str) -> RpcConfig {
    RpcConfig {
        endpoint: RpcEndpoint::Http(url.to_owned()),
        concurrency: 28,
        request_timeout: Duration::from_secs(3),
        command_timeout: Duration::from_secs(3),
        slow_call: Duration::ZERO,
        headers: vec!["cookie".to_owned()],
        cookies: Vec::new(),
        token: None,
        token_derived: false,
        tls: RpcTlsConfig {
            enabled: false,
            verify: true,
            root_ca: String::new(),
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    IoUring,
    Epoll,
}

/// Both, where the kernel lets us; where it refuses io_uring the server runs on epoll only, and so do the tests.
fn drivers() -> Vec<Driver> {
    let uring = RuntimeBuilder::<IoUringDriver>::new().build().is_ok();
    if uring {
        vec![Driver::IoUring, Driver::Epoll]
    } else {
        vec![Driver::Epoll]
    }
}

fn on_both_drivers(test: impl AsyncFn()) {
    for driver in drivers() {
        run_on(driver, &test);
    }
}

fn run_on(driver: Driver, test: impl AsyncFn()) {
    match driver {
        Driver::IoUring => {
            RuntimeBuilder::<IoUringDriver>::new()
                .enable_timer()
                .build()
                .unwrap()
                .block_on(test());
        }
        Driver::Epoll => {
            RuntimeBuilder::<LegacyDriver>::new()
                .enable_timer()
                .build()
                .unwrap()
                .block_on(test());
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A port where nobody listens.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

// ------------------------------------------------------------------------------------------------------- the scripted app

/// A request as it came, head and body.
#[derive(Debug, Clone)]
struct Request {
    /// Connections are numbered as they are accepted.
    connection: usize,
    /// Its place on the connection.
    number: usize,
    text: String,
}

#[derive(Debug, Clone)]
enum Reply {
    Send(Vec<u8>),
    SendSlowly(Vec<u8>),
    SendAndClose(String),
    /// No answer; waits for the client to close.
    Silence,
}

struct App {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    /// One message for each connection that ended, whoever ended it.
    ended: mpsc::Receiver<()>,
}

impl App {
    fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> App {
        App::serve(script, |stream| stream)
    }

    /// Also returns the PEM text of the root certificate.
    fn start_tls(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (App, String) {
        let (server, root) = certificate();
        let app = App::serve(script, move |stream| {
            StreamOwned::new(ServerConnection::new(Arc::clone(&server)).unwrap(), stream)
        });
        (app, root)
    }

    fn serve<S: Read + Write>(
        script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> S + Send + Sync + 'static,
    ) -> App {
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let connections = AtomicUsize::new(0);
        let mut app = App::start_raw(move |stream| {
            let connection = connections.fetch_add(1, Ordering::SeqCst);
            let socket = stream.try_clone().unwrap();
            let mut stream = wrap(stream);
            let mut number = 0;
            while let Some(text) = read_request(&mut stream) {
                let request = Request {
                    connection,
                    number,
                    text,
                };
                number += 1;
                seen.lock().unwrap().push(request.clone());
                match script(&request) {
                    Reply::Send(bytes) => stream.write_all(&bytes).unwrap_or(()),
                    Reply::SendSlowly(bytes) => {
                        for byte in bytes {
                            stream.write_all(&[byte]).unwrap();
                            stream.flush().unwrap();
                        }
                    }
                    Reply::SendAndClose(text) => {
                        stream.write_all(text.as_bytes()).unwrap();
                        socket.shutdown(Shutdown::Write).unwrap();
                        return;
                    }
                    Reply::Silence => {
                        drain(&mut stream);
                        return;
                    }
                }
                if stream.flush().is_err() {
                    return;
                }
            }
        });
        app.requests = requests;
        app
    }

    /// Each connection is handed to `serve` on a thread of its own.
    fn start_raw(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> App {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, ended) = mpsc::channel();
        let serve = Arc::new(serve);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (serve, sender, stream) = (Arc::clone(&serve), sender.clone(), stream.unwrap());
                stream.set_nodelay(true).unwrap();
                thread::spawn(move || {
                    serve(stream);
                    sender.send(()).ok();
                });
            }
        });
        App {
            port,
            requests: Arc::default(),
            ended,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The connection of each request.
    fn connections(&self) -> Vec<usize> {
        self.requests()
            .iter()
            .map(|request| request.connection)
            .collect()
    }

    /// Resolves when one more request has come.
    fn next_request(&self) -> impl Future<Output = ()> + 'static {
        let requests = Arc::clone(&self.requests);
        let before = requests.lock().unwrap().len();
        async move {
            let started = Instant::now();
            while requests.lock().unwrap().len() == before {
                assert!(started.elapsed() < PATIENCE);
                monoio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Resolves when one more connection has ended.
    async fn wait_for_end(&self) {
        let started = Instant::now();
        while self.ended.try_recv().is_err() {
            assert!(started.elapsed() < PATIENCE, "the connection ends");
            // The client's runtime must run for its connections to be closed.
            monoio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// Head and body, or `None` at the end of the connection.
fn read_request(stream: &mut impl Read) -> Option<String> {
    let mut bytes = Vec::new();
    let mut piece = [0; 64 << 10];
    loop {
        let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&piece[..count]);
        let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            continue;
        };
        let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "))?
            .parse::<usize>()
            .unwrap();
        while bytes.len() < head + 4 + length {
            let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
            bytes.extend_from_slice(&piece[..count]);
        }
        assert_eq!(bytes.len(), head + 4 + length, "no pipelining");
        return Some(String::from_utf8(bytes).unwrap());
    }
}

/// Reads until the client closes.
fn drain(stream: &mut impl Read) {
    io::copy(stream, &mut io::sink()).ok();
}

/// A root, and a server for `localhost` signed by it.
fn certificate() -> (Arc<ServerConfig>, String) {
    let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_key = rcgen::KeyPair::generate().unwrap();
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(root, root_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    (Arc::new(server), root_pem)
}

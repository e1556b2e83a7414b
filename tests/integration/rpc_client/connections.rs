//! Warm connections, and what happens to them.

use super::*;

#[test]
fn a_connection_is_used_again() {
    on_both_drivers(async || {
        let app = Scripted::start(|_| Reply::Send(OK.into()));
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
        let together = Together::new(8);
        let app = Scripted::start(move |_| {
            together.arrive();
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
        let app = Scripted::start(move |_| Reply::Send(answer.into()));
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
        let app = Scripted::start(|_| Reply::SendAndClose(OK.into()));
        let shard = Shard::new(&config(&app.url()));
        for _ in 0..3 {
            assert_eq!(shard.call().await.unwrap(), STATUS_1);
            app.wait_for_end().await;
            // The end is on its way through loopback, where nobody can be asked whether it has come.
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
        let app = Scripted::start_raw(|mut stream| {
            Request::read(&mut stream, 0, 0).expect("a request");
            stream.write_all(OK.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // Comes to its end when the client has closed, too.
            drain(&mut stream);
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
        let app = Scripted::start(|request| match request.number {
            0 => Reply::Send(OK.into()),
            _ => Reply::SendAndClose(Vec::new()),
        });
        let shard = Shard::new(&config(&app.url()));
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(app.connections(), [0, 0, 1]);
        let requests = app.requests();
        assert_eq!(requests[1].text(), requests[2].text());
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
    app: Scripted,
    config: RpcConfig,
    /// Connections that are warm.
    warm: usize,
    frozen: Arc<AtomicBool>,
}

impl LostApp {
    /// `last_words` is what a frozen connection answers.
    fn new(tls: bool, warm: usize, last_words: Reply) -> LostApp {
        let frozen = Arc::new(AtomicBool::new(false));
        let freeze = Arc::clone(&frozen);
        let together = Together::new(warm);
        let script = move |request: &Request| {
            if freeze.load(Ordering::SeqCst) && request.connection < warm {
                return last_words.clone();
            }
            if request.connection < warm {
                // So that all of them are needed.
                together.arrive();
            }
            Reply::Send(OK.into())
        };
        let (app, mut config) = if tls {
            let (app, root) = Scripted::start_tls(script);
            let mut config = config(&format!("https://localhost:{}", app.port()));
            config.tls.root_ca = root;
            (app, config)
        } else {
            let app = Scripted::start(script);
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
        // The time after which the last answer proves nothing.
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
        let lost = LostApp::new(false, 8, Reply::SendAndClose(Vec::new()));
        let shards = lost.warmed_up().await;
        for number in 0..8 {
            assert_eq!(shards[number % 2].call().await.unwrap(), STATUS_1);
        }
        assert_eq!(shards[0].counts().retries + shards[1].counts().retries, 0);
        // Eight to warm up, one that was lost and sent again, and one new connection for each shard.
        assert_eq!(lost.app.requests().len(), 8 + 1 + 8);
    });
}

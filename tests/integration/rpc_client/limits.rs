//! Timeouts, retries, the breaker, cancellation and the limit on calls at a time.

use super::*;

#[test]
fn a_timeout_ends_the_call_and_closes_the_connection() {
    on_both_drivers(async || {
        let app = Scripted::start(|_| Reply::Silence);
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
            let app = Scripted::start(move |request| match request.connection {
                0 => Reply::SendAndClose(first.into()),
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

#[test]
fn dropping_a_running_call_closes_its_connection_and_frees_its_slot() {
    on_both_drivers(async || {
        let app = Scripted::start(|request| match request.connection {
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
        let gate = Gate::new();
        let app = Scripted::start(behind(&gate));
        let mut config = config(&app.url());
        config.concurrency = 1;
        let shard = Shard::new(&config);
        let arrived = app.next_request();
        let running = shard.spawn_call();
        arrived.await;
        shard.call_until(shard.waiting(1)).await;
        gate.open();
        assert_eq!(running.await.unwrap(), STATUS_1);
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(app.requests().len(), 2);
        assert_eq!(
            shard.counts(),
            Counts {
                canceled: 1,
                ran: 2,
                ..Counts::default()
            }
        );
    });
}

#[test]
fn a_disconnect_call_waits_until_no_live_call_does() {
    on_both_drivers(async || {
        let gate = Gate::new();
        let app = Scripted::start(behind(&gate));
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
            monoio::spawn(async move { ask(&client, method, "s", b"{}".to_vec(), priority).await })
        });
        shard.waiting(2).await;
        gate.open();
        for call in calls {
            call.await.unwrap();
        }
        let paths: Vec<_> = app
            .requests()
            .iter()
            .map(|request| request.text().split(' ').nth(1).unwrap().to_owned())
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
        let app = Scripted::start(move |_| {
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
                    assert_eq!(shard.metrics.shards[0].rpc_pending_num.value(), 0);
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

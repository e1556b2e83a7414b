use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener},
    sync::Mutex,
    thread,
};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::*;
use crate::config::RpcTlsConfig;

/// Two addresses with the same port. At the first the kernel accepts connections and nothing answers; at the second an app
/// answers.
fn frozen_and_good() -> ([SocketAddr; 2], TcpListener) {
    loop {
        let frozen = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).expect("a free port");
        let port = frozen.local_addr().expect("bound").port();
        let Ok(good) = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 3), port)) else {
            continue;
        };
        thread::spawn(move || {
            for stream in good.incoming() {
                let mut stream = stream.expect("accepted");
                thread::spawn(move || {
                    // The loop ends when the client closes.
                    while stream.read(&mut [0; 4096]).is_ok_and(|bytes| bytes > 0) {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                        stream.write_all(answer).expect("open");
                    }
                });
            }
        });
        let address = |last| SocketAddr::new(IpAddr::from([127, 0, 0, last]), port);
        return ([address(2), address(3)], frozen);
    }
}

/// The outcomes of `calls` calls to a name that first resolves to `names`, and after the first call to `later`.
async fn outcomes(names: Vec<SocketAddr>, later: Vec<SocketAddr>, calls: usize) -> Vec<bool> {
    let config = RpcConfig {
        endpoint: RpcEndpoint::Http(format!("http://web:{}", names[0].port())),
        concurrency: 28,
        request_timeout: Duration::from_millis(400),
        command_timeout: Duration::from_secs(3),
        slow_call: Duration::ZERO,
        headers: Vec::new(),
        cookies: Vec::new(),
        token: None,
        token_derived: false,
        tls: RpcTlsConfig {
            enabled: false,
            verify: true,
            root_ca: String::new(),
        },
    };
    let mut shared = RpcShared::new(&config).expect("a good URL");
    let known = Arc::new(Mutex::new(names));
    let asked = Arc::clone(&known);
    let ask = move |_: &str, _| Ok(asked.lock().expect("not poisoned").clone());
    let resolver = Resolver::asking("web", 0, Box::new(ask));
    Arc::get_mut(&mut shared)
        .expect("nobody else has it")
        .resolver = resolver;
    let client = RpcClient::new(shared, Arc::new(Metrics::new(1)), 0, Timeouts::start());
    let mut outcomes = Vec::new();
    for _ in 0..calls {
        let times = CallTimes::since(Instant::now());
        let body = || Ok(b"{}".to_vec());
        let call = client.call_timed(Method::Command, "s", body, Priority::Live, &times);
        outcomes.push(call.await.is_ok());
        *known.lock().expect("not poisoned") = later.clone();
    }
    outcomes
}

fn on_both_drivers(test: impl AsyncFn()) {
    if let Ok(mut runtime) = RuntimeBuilder::<IoUringDriver>::new()
        .enable_timer()
        .build()
    {
        runtime.block_on(test());
    }
    let runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build();
    runtime.expect("epoll is always there").block_on(test());
}

#[test]
fn without_a_place_a_connection_is_kept_only_for_a_call_that_has_its_slot() {
    on_both_drivers(async || {
        let ([_, good], _frozen) = frozen_and_good();
        let policy = IdlePolicy::new(1);
        let pool = Pool::new(8, Arc::clone(&policy), Timeouts::start());
        let places_of_others = Vec::from_iter(std::iter::from_fn(|| policy.place()));
        let put = async || {
            let connection = Connection::open(good, 0, None).await;
            pool.put(connection.expect("the app accepts"), Instant::now());
        };
        for _ in 0..3 {
            put().await;
        }
        pool.settle(1);
        let take = || pool.take(Instant::now());
        assert!(take().is_some() && take().is_none());
        drop(places_of_others);
        policy.answered(0, Instant::now());
        put().await;
        pool.settle(0);
        assert!(take().is_some(), "now it has a place");
    });
}

#[test]
fn a_name_that_points_elsewhere_is_found_there_after_one_lost_call() {
    on_both_drivers(async || {
        let ([frozen, good], _listener) = frozen_and_good();
        assert_eq!(
            outcomes(vec![frozen], vec![good], 5).await,
            [false, true, true, true, true]
        );
    });
}

#[test]
fn of_two_addresses_the_one_that_does_not_answer_is_tried_last() {
    on_both_drivers(async || {
        let ([frozen, good], _listener) = frozen_and_good();
        let both = vec![frozen, good];
        assert_eq!(
            outcomes(both.clone(), both, 4).await,
            [false, true, true, true]
        );
    });
}

#[test]
fn pauses_double_from_a_tenth_of_a_second() {
    let millis: Vec<_> = (1..=6)
        .map(|attempts| retry_delay(attempts).as_millis())
        .collect();
    assert_eq!(millis, [100, 200, 400, 800, 1600, 3200]);
    assert_eq!(retry_delay(u32::MAX), RETRY_DELAY_MAX);
}

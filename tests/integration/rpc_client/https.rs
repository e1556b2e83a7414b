//! TLS to the app.

use super::*;

#[test]
fn https_with_a_private_root_is_trusted_and_kept_alive() {
    on_both_drivers(async || {
        let (app, root) = Scripted::start_tls(|_| Reply::Send(OK.into()));
        let mut config = config(&format!("https://localhost:{}", app.port()));
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
        let (app, root) = Scripted::start_tls(move |_| Reply::Send(answer.clone().into()));
        let mut config = config(&format!("https://localhost:{}", app.port()));
        config.tls.root_ca = root;
        let shard = Shard::new(&config);
        let body = vec![b'x'; 1_000_000];
        let answer = ask(&shard.client, Method::Command, "s", body, Priority::Live).await;
        assert_eq!(answer.unwrap(), "y".repeat(1_000_000).as_bytes());
        assert!(app.requests()[0].text().ends_with(&"x".repeat(1_000_000)));
    });
}

#[test]
fn an_untrusted_certificate_ends_the_call_without_a_retry() {
    on_both_drivers(async || {
        let (app, _) = Scripted::start_tls(|_| Reply::Send(OK.into()));
        let (_, other_root) = certificate();
        let mut config = config(&format!("https://localhost:{}", app.port()));
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
        let (app, _) = Scripted::start_tls(|_| Reply::Send(OK.into()));
        let mut config = config(&format!("https://127.0.0.1:{}", app.port()));
        config.tls.verify = false;
        assert_eq!(Shard::new(&config).call().await.unwrap(), STATUS_1);
    });
}

#[test]
fn https_to_an_app_that_speaks_http_is_an_error_without_a_retry() {
    on_both_drivers(async || {
        let app = Scripted::start_raw(|mut stream| {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
            drain(&mut stream);
        });
        let mut config = config(&format!("https://127.0.0.1:{}", app.port()));
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

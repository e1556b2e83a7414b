//! The requests themselves.

use super::*;

#[test]
fn a_request_is_the_one_of_the_contract() {
    on_both_drivers(async || {
        let app = Scripted::start(|_| Reply::Send(OK.into()));
        let token = "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d";
        let mut config = config(&format!("http://127.0.0.1:{}/_anycable", app.port()));
        config.token = Some(token.to_owned());
        let shard = Shard::new(&config);
        let body = b"{\"env\":{}}".to_vec();
        let answer = ask(
            &shard.client,
            Method::Connect,
            "req-1",
            body,
            Priority::Live,
        )
        .await;
        assert_eq!(answer.unwrap(), STATUS_1);
        let expected = [
            "POST /_anycable/connect HTTP/1.1",
            &format!("Host: 127.0.0.1:{}", app.port()),
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
        assert_eq!(app.requests()[0].text(), expected.join("\r\n"));
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
        let app = Scripted::start(|_| Reply::Send(OK.into()));
        let shard = Shard::new(&config(&format!("http://localhost:{}/", app.port())));
        assert_eq!(shard.call().await.unwrap(), STATUS_1);
        assert_eq!(shard.counts().retries, 0);
    });
}

#[test]
fn a_large_request_arrives_whole() {
    on_both_drivers(async || {
        let app = Scripted::start(|_| Reply::Send(OK.into()));
        let shard = Shard::new(&config(&app.url()));
        let body = vec![b'x'; 3_000_000];
        let answer = ask(&shard.client, Method::Command, "s", body, Priority::Live).await;
        assert_eq!(answer.unwrap(), STATUS_1);
        assert!(app.requests()[0].text().ends_with(&"x".repeat(3_000_000)));
    });
}

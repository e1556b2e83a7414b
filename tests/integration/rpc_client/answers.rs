//! Answers of every kind.

use super::*;

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
            Reply::SendAndClose(format!("{head}\r\n{{\"status\":1}}").into()),
            Reply::SendAndClose("HTTP/1.0 200 OK\r\n\r\n{\"status\":1}".into()),
            Reply::Send([packed_head.as_bytes(), &packed].concat()),
            Reply::Send(packed_chunks),
            Reply::Send(format!("HTTP/1.1 100 Continue\r\n\r\n{OK}").into()),
            Reply::SendSlowly(format!("{head}{chunked}").into()),
        ];
        for answer in answers {
            let app = Scripted::start(move |_| answer.clone());
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
        let app = Scripted::start(move |_| Reply::Send(large.clone().into()));
        assert_eq!(
            Shard::new(&config(&app.url())).call().await.unwrap(),
            body.as_bytes()
        );
        let app = Scripted::start(|_| {
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
        let app = Scripted::start(|request| match request.number {
            0 if request.text().ends_with("\r\n\r\n") => {
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
        let request = &app.requests()[0].text();
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
        let app = Scripted::start(|_| Reply::Send(OK.into()));
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
        let app = Scripted::start(|request| match request.text().ends_with("\r\n\r\n") {
            true => Reply::SendAndClose(Vec::new()),
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
            let app = Scripted::start(move |_| {
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
        let app = Scripted::start(|_| {
            Reply::SendAndClose("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"st".into())
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

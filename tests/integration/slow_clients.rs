//! Clients that do not read: they go, alone, and nothing of them stays. Source: `contract/websocket.md` §11.

use std::net::TcpStream;

use socket2::{Domain, Socket, Type};

use crate::support::raw::{Raw, handshake};
use crate::support::wait::until;
use crate::support::{Cable, Stage};

/// About what one Campfire message weighs.
const MESSAGE_BYTES: usize = 20_000;

/// More than any kernel buffers for one socket.
const MESSAGES_MAX: usize = 2_000;

/// A subscribed client with a tiny receive buffer, which from now on is not read.
fn stuck_client(stage: &Stage) -> Raw {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(4096)
        .expect("an option of every socket");
    socket
        .connect(&stage.server.address().into())
        .expect("the server accepts");
    let mut raw = Raw::over(TcpStream::from(socket));
    raw.send(handshake("/cable?pi=0", &[]).as_bytes());
    assert_eq!(raw.read_head().status(), 101);
    assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    raw.subscribe("A");
    raw
}

fn message(number: usize) -> String {
    format!("\"{number:06}{}\"", "x".repeat(MESSAGE_BYTES))
}

/// Publishes to `A` and reads it with `fast` in step, until `done`. Gives the number of publications.
fn publish_until(stage: &Stage, fast: &mut Cable, mut done: impl FnMut() -> bool) -> usize {
    let mut publisher = stage.broadcaster().keep_alive();
    for number in 0..MESSAGES_MAX {
        if done() {
            return number;
        }
        publisher.publish("stream:A", &message(number));
        let text = fast.next_text();
        assert!(
            text.contains(&format!("\"message\":\"{number:06}x")),
            "{}",
            &text[..60]
        );
    }
    panic!("nothing happened in {MESSAGES_MAX} publications");
}

on_both_drivers! {
    fn client_over_its_pending_limit_is_disconnected_and_others_do_not_notice(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let mut stuck = stuck_client(&stage);
        let mut fast = stage.client();
        fast.subscribe("A");
        publish_until(&stage, &mut fast, || stage.server.metric("disconnected_slow_clients_total") == 1);
        // Its disconnect call does not wait for the socket.
        stage.rails.wait_for_calls("disconnect", 1);
        // Reading again within the write timeout: what the kernel held, then the notice.
        let notice = loop {
            let text = stuck.next_text();
            if !text.starts_with(r#"{"identifier":"A""#) {
                break text;
            }
        };
        assert_eq!(notice, r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#);
        stuck.expect_close(1000, "");
        fast.expect_nothing_before_pong();
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 1);
        stage.server.wait_for_log(&["DBG slow client detected, disconnecting", "context=node", "sid=", "shard=", "max=100000"]);
    }

    fn deliveries_before_the_overflow_are_in_order_and_whole(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let mut stuck = stuck_client(&stage);
        let mut fast = stage.client();
        fast.subscribe("A");
        publish_until(&stage, &mut fast, || stage.server.metric("disconnected_slow_clients_total") == 1);
        for number in 0.. {
            let text = stuck.next_text();
            if text.contains("too_slow") {
                break;
            }
            assert_eq!(text, format!(r#"{{"identifier":"A","message":{}}}"#, message(number)));
        }
    }

    fn overflowed_client_that_never_reads_is_closed_by_the_write_deadline(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=1"]);
        let _stuck = stuck_client(&stage);
        let mut fast = stage.client();
        fast.subscribe("A");
        publish_until(&stage, &mut fast, || {
            stage.server.metric("disconnected_slow_clients_total") + stage.server.metric("timeout_server_msg_total") >= 1
        });
        until("only the fast client's socket to be left", || (stage.server.sessions_open() == 1).then_some(()));
        fast.expect_nothing_before_pong();
    }

    fn blocked_write_is_given_up_after_the_write_timeout(driver: Driver) {
        // However fast the machine is: no other limit comes before the timeout.
        let args = ["--ws_max_pending_size=0", "--session_bytes_max=0", "--ws_write_timeout=1"];
        let stage = Stage::with(driver, &args);
        let _stuck = stuck_client(&stage);
        let mut fast = stage.client();
        fast.subscribe("A");
        publish_until(&stage, &mut fast, || stage.server.metric("timeout_server_msg_total") >= 1);
        assert_eq!(stage.server.metric("timeout_server_msg_total"), 1);
        assert_eq!(stage.server.metric("failed_server_msg_total"), 1);
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 0);
        stage.rails.wait_for_calls("disconnect", 1);
        until("only the fast client's socket to be left", || (stage.server.sessions_open() == 1).then_some(()));
    }

    fn one_message_larger_than_the_limit_fits_into_an_empty_queue(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=1000"]);
        let mut client = stage.client();
        client.subscribe("A");
        for number in 0..20 {
            stage.publish("stream:A", &message(number));
            assert_eq!(client.next_json()["message"].as_str().map(str::len), Some(MESSAGE_BYTES + 6));
        }
    }

    fn client_that_pauses_within_the_limits_loses_nothing(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=0", "--ws_write_timeout=30"]);
        let mut stuck = stuck_client(&stage);
        let mut publisher = stage.broadcaster().keep_alive();
        for number in 0..200 {
            publisher.publish("stream:A", &message(number));
        }
        for number in 0..200 {
            assert_eq!(stuck.next_text(), format!(r#"{{"identifier":"A","message":{}}}"#, message(number)));
        }
        stuck.expect_nothing_before_pong();
    }
}

//! Fan-out, gathered writes, and clients that do not receive what is sent.

use super::*;
use crate::protocol::position::{Epoch, Position};
use crate::shard::outbox::frame::SHARED_MESSAGE_BYTES_MIN;

/// Source: contract/broadcast.md §10.
#[test]
fn a_publication_reaches_everybody_once_per_identifier() {
    on_both(WITH_RPC, |bench| {
        let mut first = bench.welcomed("u1");
        let mut second = bench.welcomed("u2");
        bench.subscribe(&mut first, "A", &["x"]);
        bench.subscribe(&mut first, "B", &["x", "y"]);
        bench.subscribe(&mut second, "A", &["x"]);

        bench.broadcast(&message("x", "1"));
        let mut got = [first.next(), first.next()];
        got.sort();
        assert_eq!(got, [delivery("A", "1"), delivery("B", "1")]);
        assert_eq!(second.next(), delivery("A", "1"));

        bench.broadcast(&message("y", "2"));
        assert_eq!(first.next(), delivery("B", "2"));

        bench.broadcast(&Publication {
            exclude_socket: Some("s1".into()),
            ..message("x", "3")
        });
        assert_eq!(second.next(), delivery("A", "3"));

        bench.broadcast(&Publication {
            broadcast_type: Some("whisper".into()),
            ..message("x", "4")
        });
        assert_eq!(
            second.next(),
            r#"{"type":"whisper","identifier":"A","message":4}"#
        );
        assert!(
            first
                .next()
                .starts_with(r#"{"type":"whisper","identifier":"#)
        );
        first.next();

        bench.broadcast(&message("nosuch", "5"));
        assert!(first.got_nothing() && second.got_nothing());
        assert_eq!(bench.counters().deliveries_total.value(), 3 + 1 + 1 + 3);
    });
}

#[test]
fn a_whisper_is_handed_out_and_its_sender_gets_nothing() {
    on_both(PUBLIC, |bench| {
        let mut sender = bench.open(|_| ());
        let identifier = bench.listen(&mut sender, "x");
        let mut other = bench.listener("x");
        sender.command("whisper", &identifier);
        bench.until("publication", |bench| !bench.actions.is_empty());
        let Some(Action::Publish(whisper)) = bench.actions.pop_front() else {
            panic!("{}: no publication", bench.driver);
        };
        bench.broadcast(&whisper);
        assert_eq!(other.next(), delivery(&identifier, r#""d""#));
        assert!(sender.got_nothing());
    });
}

#[test]
fn a_burst_is_gathered_into_one_write_per_client() {
    on_both(PUBLIC, |bench| {
        let mut clients: Vec<Client> = (0..3).map(|_| bench.listener("x")).collect();
        let before = bench.counters().writes_total.value();
        bench.turn(|sessions| {
            for number in 0..50 {
                fan_out(sessions, &[message("x", &number.to_string())]);
            }
        });
        for client in &mut clients {
            for number in 0..50 {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
        assert_eq!(bench.counters().deliveries_total.value(), 150);
        assert_eq!(bench.counters().writes_total.value() - before, 3);
    });
}

#[test]
fn more_frames_than_one_write_takes_keep_their_order() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.listener("x");
        bench.turn(|sessions| {
            for number in 0..1000 {
                fan_out(sessions, &[message("x", &number.to_string())]);
            }
        });
        bench.flush();
        for number in 0..1000 {
            assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
        }
        assert_eq!(bench.outbox_bytes(), 0);
        assert_eq!(bench.counters().server_msg_total.value(), 2 + 1000);
    });
}

#[test]
fn a_turn_with_very_many_deliveries_is_flushed_in_between() {
    on_both(PUBLIC, |bench| {
        let mut clients: Vec<Client> = (0..100).map(|_| bench.listener("x")).collect();
        let count = BATCH_DELIVERIES_MAX / 100 + 50;
        let publications: Vec<Publication> = (0..count)
            .map(|number| message("x", &number.to_string()))
            .collect();
        assert!(!bench.turn(|sessions| fan_out(sessions, &publications)));
        while bench.sessions.is_fanning_out() {
            bench.flush();
            bench.turn(|sessions| sessions.go_on_fan_out(TimeSlice::new(PATIENCE)));
        }
        bench.flush();
        for client in &mut clients {
            for number in 0..count {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
    });
}

#[test]
fn large_frames_for_few_sessions_are_written_before_they_fill_the_memory() {
    on_both(PUBLIC, |bench| {
        let _client = bench.listener("x");
        let text = format!("\"{}\"", "x".repeat(BATCH_FRAME_BYTES_MAX / 4));
        let publications = vec![message("x", &text); 4];
        assert!(bench.turn(|sessions| fan_out(sessions, &publications[..3])));
        assert!(!bench.turn(|sessions| fan_out(sessions, &publications)));
    });
}

#[test]
fn what_comes_while_many_sessions_are_written_is_gathered_with_it() {
    on_both(PUBLIC, |bench| {
        const MORE: usize = 40;
        let mut clients: Vec<Client> = (0..FLUSHES_PER_TURN_MAX + MORE)
            .map(|_| bench.listener("x"))
            .collect();
        let before = bench.counters().writes_total.value();
        let writes = |bench: &Bench| (bench.counters().writes_total.value() - before) as usize;
        bench.turn(|sessions| fan_out(sessions, &[message("x", "1")]));
        assert!(bench.sessions.has_unflushed());
        let first = writes(bench);
        assert!((1..=FLUSHES_PER_TURN_MAX).contains(&first), "{first}");
        bench.turn(|sessions| fan_out(sessions, &[message("x", "2")]));
        bench.flush();
        // The clients that had to wait got both messages with one write.
        assert_eq!(writes(bench), first + FLUSHES_PER_TURN_MAX + MORE);
        for client in &mut clients {
            for number in 1..=2 {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
    });
}

#[test]
fn who_asked_for_compression_gets_it_and_others_do_not() {
    on_both(PUBLIC, |bench| {
        let mut deflated = bench.open(|new| new.transport = COMPRESSING);
        assert_eq!(deflated.next(), r#"deflated {"type":"welcome","sid":"s1"}"#);
        let identifier = r#"{"channel":"$pubsub","stream_name":"x"}"#;
        deflated.command("subscribe", identifier);
        bench.until_count(|counters| &counters.server_msg_total, 2);
        assert!(deflated.next().starts_with("deflated {\"type\":\"confirm"));
        let mut plain = bench.listener("x");
        bench.broadcast(&message("x", "1"));
        assert_eq!(
            deflated.next(),
            format!("deflated {}", delivery(identifier, "1"))
        );
        assert_eq!(plain.next(), delivery(identifier, "1"));
    });
}

/// Source: contract/extended.md §2.
#[test]
fn a_position_is_in_every_frame_of_its_publication() {
    on_both(PUBLIC, |bench| {
        let identifier = r#"{"channel":"$pubsub","stream_name":"x"}"#;
        let mut deflated = bench.open(|new| new.transport = COMPRESSING);
        deflated.next();
        deflated.command("subscribe", identifier);
        bench.until_count(|counters| &counters.server_msg_total, 2);
        deflated.next();
        let mut plain = bench.listener("x");
        let stored = |text: &str, offset: u64| Publication {
            position: Some(Position {
                epoch: Epoch::from_bits(1),
                offset,
            }),
            ..message("x", text)
        };
        let delivery_at = |text: &str, offset: u64| {
            let plain = delivery(identifier, text);
            let open = plain.strip_suffix('}').expect("an object");
            format!(r#"{open},"stream_id":"x","epoch":"-_______","offset":{offset}}}"#)
        };
        // Copied into the frame, not compressed, shared by the frames.
        for (offset, bytes) in [(1, 10), (2, SHARED_MESSAGE_BYTES_MIN), (3, 300 << 10)] {
            let text = format!("\"{}\"", "7".repeat(bytes));
            bench.broadcast(&stored(&text, offset));
            let expected = delivery_at(&text, offset);
            assert!(plain.next() == expected, "{bytes} bytes");
            let got = deflated.next();
            assert!(got.strip_prefix("deflated ").unwrap_or(&got) == expected);
        }
        // One message of the inbox with several: each has its own position, or none.
        bench.turn(|sessions| {
            fan_out(
                sessions,
                &[stored("1", 4), message("x", "2"), stored("3", 5)],
            );
        });
        bench.flush();
        for expected in [
            delivery_at("1", 4),
            delivery(identifier, "2"),
            delivery_at("3", 5),
        ] {
            assert_eq!(plain.next(), expected);
            assert_eq!(deflated.next(), format!("deflated {expected}"));
        }
    });
}

const NARROW: &[&str] = &[
    "--norpc",
    "--public",
    "--ping_interval=0",
    "--ws_max_pending_size=100000",
];

#[test]
fn a_client_beyond_its_limit_is_told_so_and_others_are_not_held_up() {
    on_both(NARROW, |bench| {
        let mut slow = bench.open_narrow();
        let identifier = bench.listen(&mut slow, "x");
        let mut fast = bench.listener("x");
        let mut sent = 0;
        while bench.counters().disconnected_slow_clients_total.value() == 0 {
            sent += 1;
            assert!(sent < 1000, "the socket takes everything");
            bench.broadcast(&big_message(sent));
            bench.flush();
            assert!(
                fast.next().contains(&format!("\"{sent}0")),
                "{}",
                bench.driver
            );
        }
        assert_eq!(bench.counters().closed_too_slow_total.value(), 1);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (1, 1));
        bench.broadcast(&big_message(sent + 1));
        bench.flush();
        fast.next();

        let reader = std::thread::spawn(move || slow.rest());
        bench.until("empty outbox", |bench| bench.outbox_bytes() == 0);
        let got = reader.join().expect("reader");
        let [deliveries @ .., notice, close, end] = got.as_slice() else {
            panic!("{got:?}")
        };
        assert_eq!(
            [&**notice, close, end],
            [TOO_SLOW, "close 1000 ", "end"],
            "{}",
            bench.driver
        );
        // 100 kB were queued: one frame that may be half written, four whole ones, and the one that exceeded the limit.
        assert!(!deliveries.is_empty(), "{}", bench.driver);
        assert!(
            deliveries.len() + 5 <= sent,
            "{}: what was queued is dropped",
            bench.driver
        );
        for (index, frame) in deliveries.iter().enumerate() {
            let Publication { message, .. } = big_message(index + 1);
            let message = String::from_utf8(message.to_vec()).expect("UTF-8");
            assert!(
                *frame == delivery(&identifier, &message),
                "{} frame {index}",
                bench.driver
            );
        }
    });
}

/// Publishes more than may wait, and one message that is being written.
fn overfill(bench: &mut Bench) {
    let sent = bench.broadcast_until_blocked();
    for number in sent + 1..=sent + 8 {
        bench.broadcast(&big_message(number));
    }
    assert!(bench.outbox_bytes() > 120_000);
}

#[test]
fn a_client_that_takes_nothing_is_slow_after_a_while_and_not_at_once() {
    on_both(NARROW, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        overfill(bench);
        bench.wait(Duration::from_millis(1450));
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(200));
        let counters = bench.counters();
        assert_eq!(counters.disconnected_slow_clients_total.value(), 1);
        assert_eq!(counters.closed_too_slow_total.value(), 1);
        assert_eq!(counters.session_bytes_exceeded_total.value(), 0);
    });
}

/// The client reads all the time, but the shard is too busy to serve its socket.
#[test]
fn a_busy_shard_does_not_take_its_own_delay_for_the_clients() {
    on_both(NARROW, |bench| {
        // Only the server's buffer is small: a small buffer of the client would drop segments and wait for them to be sent
        // again.
        let mut eager = bench.open(|new| {
            let socket = SockRef::from(new.socket.as_ref().expect("a socket"));
            socket
                .set_send_buffer_size(8 << 10)
                .expect("an option of every socket");
        });
        bench.listen(&mut eager, "x");
        overfill(bench);
        eager.socket.set_nonblocking(true).expect("nonblocking");
        let mut buffer = [0; 1 << 16];
        let deadline = Instant::now() + PATIENCE;
        while bench.outbox_bytes() > 0 && bench.clients() == 1 {
            assert!(
                Instant::now() < deadline,
                "{}: it stands still",
                bench.driver
            );
            while eager.socket.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
            // The client's kernel needs time to acknowledge what was read.
            std::thread::sleep(Duration::from_millis(20));
            // Ticks come, events do not.
            bench.wait(Duration::from_millis(100));
        }
        assert_eq!(
            bench.counters().disconnected_slow_clients_total.value(),
            0,
            "{}",
            bench.driver
        );
        assert_eq!((bench.clients(), bench.outbox_bytes()), (1, 0));
    });
}

#[test]
fn a_session_that_holds_all_it_may_is_dropped_at_once() {
    let args = [NARROW, &["--session_bytes_max=200000"]].concat();
    on_both(&args, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        let mut number = 0;
        while bench.counters().disconnected_slow_clients_total.value() == 0 {
            number += 1;
            assert!(number < 1000 && bench.outbox_bytes() < 225_000);
            bench.broadcast(&big_message(number));
        }
        assert_eq!(bench.counters().session_bytes_exceeded_total.value(), 1);
    });
}

#[test]
fn a_slow_client_that_never_reads_loses_its_socket_at_the_write_deadline() {
    on_both(NARROW, |bench| {
        let mut slow = bench.open_narrow();
        bench.listen(&mut slow, "x");
        for number in 1..1000 {
            bench.broadcast(&big_message(number));
            if bench.counters().disconnected_slow_clients_total.value() == 1 {
                break;
            }
        }
        assert!(
            bench.outbox_bytes() > 0,
            "a half written frame and the notice"
        );
        bench.wait(Duration::from_millis(2200));
        assert_eq!(bench.outbox_bytes(), 0, "{}", bench.driver);
        assert_eq!(bench.counters().closed_too_slow_total.value(), 1);
        assert_eq!(
            bench.counters().closed_write_timeout_total.value(),
            0,
            "one close, one cause"
        );
        bench.close_all();
        assert!(bench.sessions.take_drained().is_some(), "no socket is left");
    });
}

#[test]
fn a_client_that_takes_nothing_gets_no_pings_on_top() {
    on_both(&["--norpc", "--public", "--ping_interval=1"], |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        let before = bench.outbox_bytes();
        bench.wait(Duration::from_millis(1900));
        assert_eq!((bench.clients(), bench.outbox_bytes()), (1, before));
    });
}

#[test]
fn a_client_that_takes_nothing_is_closed_at_the_write_deadline_and_not_before() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        bench.wait(Duration::from_millis(1950));
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(150));
        let counters = bench.counters();
        assert_eq!(bench.clients(), 0, "{}", bench.driver);
        assert_eq!(counters.closed_write_timeout_total.value(), 1);
        assert_eq!(counters.timeout_server_msg_total.value(), 1);
        assert_eq!(counters.failed_server_msg_total.value(), 1);
        assert_eq!(counters.disconnected_slow_clients_total.value(), 0);
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn a_client_that_takes_a_message_in_time_gets_more_time() {
    on_both(PUBLIC, |bench| {
        let mut lazy = bench.open_narrow();
        bench.listen(&mut lazy, "x");
        let sent = bench.broadcast_until_blocked();
        let mut read = 0;
        for number in sent + 1..=sent + 5 {
            bench.wait(Duration::from_millis(1500));
            bench.broadcast(&big_message(number));
            while read < number - 1 {
                read += 1;
                assert!(lazy_next(bench, &mut lazy).contains(&format!("\"{read}0")));
            }
        }
        assert_eq!(
            (
                bench.clients(),
                bench.counters().closed_write_timeout_total.value()
            ),
            (1, 0)
        );
    });
}

/// The next frame of a client whose messages do not fit into its socket: the server must write while it reads.
fn lazy_next(bench: &mut Bench, client: &mut Client) -> String {
    client.socket.set_nonblocking(true).expect("nonblocking");
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    let (head, payload) = loop {
        if let Some(frame) = client.take_frame() {
            break frame;
        }
        assert!(Instant::now() < deadline, "{}: nothing came", bench.driver);
        match client.socket.read(&mut buffer) {
            Ok(bytes) => client.unread.extend_from_slice(&buffer[..bytes]),
            Err(_) => bench.harvest(),
        }
    };
    client.socket.set_nonblocking(false).expect("blocking");
    shown(head, payload)
}

#[test]
fn a_client_that_asks_and_does_not_read_is_slow_too() {
    let args = [
        "--norpc",
        "--public",
        "--ping_interval=0",
        "--ws_max_pending_size=1000",
    ];
    on_both(&args, |bench| {
        let mut client = bench.open_narrow();
        let ping = masked(0x81, br#"{"command":"ping"}"#).repeat(100);
        client.socket.set_nonblocking(true).expect("nonblocking");
        for _ in 0..10_000 {
            // A full socket only means that the server must read first.
            let _ = client.socket.write(&ping);
            bench.harvest();
        }
        // The server stops reading from it long before it has sent a million requests.
        assert!(bench.outbox_bytes() < 20_000, "{}", bench.driver);
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(1700));
        assert_eq!(
            bench.counters().disconnected_slow_clients_total.value(),
            1,
            "{}",
            bench.driver
        );
        bench.wait(Duration::from_millis(2200));
        assert_eq!((bench.clients(), bench.outbox_bytes()), (0, 0));
    });
}

#[test]
fn a_client_that_breaks_off_with_messages_queued_leaves_nothing_behind() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        assert!(bench.outbox_bytes() > 0);
        drop(stuck);
        bench.until("closed session", |bench| bench.clients() == 0);
        bench.until("empty outbox", |bench| bench.outbox_bytes() == 0);
        assert_eq!(bench.counters().closed_client_total.value(), 1);
        assert_eq!(bench.survey().streams.len(), 0);
    });
}

//! What clients can make the server hold, in bytes: each bound is reached, what happens there is as `docs/security.md` says,
//! and everybody else goes on. Memory is what the kernel says about the process.

use std::io::Write as _;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::memory::Memory;
use crate::support::raw::{CONTINUATION, PING, Raw, TEXT, fragment, frame, frame_with, handshake};
use crate::support::tls::Scene;
use crate::support::wait::until;
use crate::support::{Answer, Driver, Rails, Stage};

/// The default of `session_bytes_max`.
const SESSION_BYTES_MAX: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

/// The server itself answers: clients need no app, and streams no signature. One shard, so that attackers and the others
/// meet. A debug record for each of some hundred thousand messages would take longer than the messages.
const OPEN: &[&str] = &[
    "--public",
    "--cores=1",
    "--ping_interval=0",
    "--log_level=info",
];

fn open_stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, &[OPEN, args].concat())
}

/// An identifier of `bytes` bytes for a stream that everybody may listen to.
fn identifier(stream: &str, number: usize, bytes: usize) -> String {
    let text = |pad: &str| {
        json!({ "channel": "$pubsub", "stream_name": stream, "n": number, "pad": pad }).to_string()
    };
    let bare = text("").len();
    text(&"x".repeat(bytes.saturating_sub(bare)))
}

/// Subscribes until the server says no more, at most `count` times; gives the number of subscriptions that it took.
fn subscribe_many(client: &mut Raw, stream: &str, count: usize, bytes: usize) -> usize {
    for number in 0..count {
        client.command("subscribe", &identifier(stream, number, bytes));
        let answer = client.next_json();
        match answer["type"].as_str() {
            Some("confirm_subscription") => {}
            Some("reject_subscription") => return number,
            other => panic!("{other:?}"),
        }
    }
    count
}

/// Sends `unit` again and again without reading, about `total` bytes or until the server takes nothing for a second.
fn flood(client: &Raw, unit: &[u8], total: usize) {
    let unit = unit.repeat(4096 / unit.len() + 1);
    let mut socket = client.stream();
    socket
        .set_write_timeout(Some(Duration::from_secs(1)))
        .expect("an option of every socket");
    let (mut sent, mut at) = (0, 0);
    while sent < total {
        match socket.write(&unit[at..]) {
            Ok(bytes) => {
                sent += bytes;
                at = (at + bytes) % unit.len();
            }
            Err(_) => return,
        }
    }
}

fn flood_from_all(clients: &[Raw], unit: &[u8], total: usize) {
    thread::scope(|scope| {
        for client in clients {
            scope.spawn(move || flood(client, unit, total));
        }
    });
}

/// A connection whose kernel takes little at a time.
fn narrow_socket(stage: &Stage) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_recv_buffer_size(64 << 10)
        .expect("an option of every socket");
    socket
        .connect(&stage.server.address().into())
        .expect("the server accepts");
    TcpStream::from(socket)
}

/// A count per shard, over all shards.
fn sample(stage: &Stage, name: &str) -> i64 {
    let page = stage.server.get("/metrics").text();
    let of_name = page
        .lines()
        .filter(|line| line.starts_with(&format!("{name}{{")));
    of_name
        .filter_map(|line| line.rsplit(' ').next()?.parse::<i64>().ok())
        .sum()
}

fn assert_lives(client: &mut Raw) {
    client.expect_nothing_before_pong();
}

on_both_drivers! {
    fn a_flood_of_pings_that_is_never_answered_to_costs_next_to_nothing(driver: Driver) {
        const ATTACKERS: usize = 4;
        let stage = open_stage(driver, &[]);
        let mut other = stage.raw();
        let attackers: Vec<Raw> = (0..ATTACKERS).map(|_| stage.raw()).collect();
        let memory = Memory::of(stage.server.pid());
        flood_from_all(&attackers, &frame(PING, b""), 1_500_000);
        assert_lives(&mut other);
        // One for each ping would be 25 MiB and more for each attacker.
        let grown = memory.grown_bytes();
        assert!(grown < 8 * MIB, "{grown} bytes");
    }

    fn of_pings_that_come_faster_than_they_are_read_the_newest_is_answered(driver: Driver) {
        let stage = open_stage(driver, &["--ws_write_timeout=20"]);
        let mut client = stage.raw();
        let pings: Vec<u8> = (0..50_000u32).flat_map(|number| frame(PING, &number.to_be_bytes())).collect();
        client.send(&pings);
        client.send_text(r#"{"command":"ping"}"#);
        let (mut pongs, mut last) = (0, None);
        loop {
            let frame = client.next_frame();
            if frame.opcode == TEXT {
                break;
            }
            let number = u32::from_be_bytes(frame.payload.as_slice().try_into().expect("four bytes"));
            assert!(last < Some(number), "{last:?} {number}");
            (pongs, last) = (pongs + 1, Some(number));
        }
        assert_eq!(last, Some(49_999), "of {pongs}");
        assert!(pongs < 50_000, "none was left out");
    }

    fn pings_that_are_few_are_all_answered(driver: Driver) {
        let stage = open_stage(driver, &[]);
        let mut client = stage.raw();
        let pings: Vec<u8> = (0..100u8).flat_map(|number| frame(PING, &[number])).collect();
        client.send(&pings);
        for number in 0..100u8 {
            assert_eq!(client.next_frame().payload, [number]);
        }
    }

    fn a_client_that_asks_and_never_reads_holds_no_more_than_a_session_may(driver: Driver) {
        const ATTACKERS: u64 = 2;
        let stage = open_stage(driver, &[]);
        let mut other = stage.raw();
        let attackers: Vec<Raw> = (0..ATTACKERS).map(|_| stage.raw()).collect();
        let memory = Memory::of(stage.server.pid());
        flood_from_all(&attackers, &frame(TEXT, br#"{"command":"ping"}"#), 6_000_000);
        assert_lives(&mut other);
        let grown = memory.grown_bytes();
        assert!(grown < ATTACKERS * 4 * MIB, "{grown} bytes");
        // Both are found: as slow, or by the write deadline.
        stage.server.wait_for_metric("clients_num", 1);
        assert_lives(&mut other);
    }

    fn subscriptions_are_bounded_in_bytes_and_the_client_is_told(driver: Driver) {
        let stage = open_stage(driver, &[]);
        let mut client = stage.raw();
        let memory = Memory::of(stage.server.pid());
        let taken = subscribe_many(&mut client, "s", 4096, 60_000);
        assert!((60..=70).contains(&taken), "{taken} of 60 kB each, a quarter of 16 MiB");
        let grown = memory.grown_bytes();
        assert!(grown < 2 * SESSION_BYTES_MAX, "{grown} bytes");
        assert_eq!(sample(&stage, "ringcable_session_bytes_exceeded_total"), 1);
        stage.server.wait_for_log(&["WRN a session holds as much as session_bytes_max allows", "sid=", "max=16777216"]);
        // A small one does not fit by chance only: what it gives back can be used again.
        client.command("unsubscribe", &identifier("s", 0, 60_000));
        assert_eq!(subscribe_many(&mut client, "s", 1, 60_000), 1);
        assert_lives(&mut client);
    }

    fn the_subscription_beyond_the_last_is_rejected(driver: Driver) {
        let stage = open_stage(driver, &[]);
        let mut client = stage.raw();
        assert_eq!(subscribe_many(&mut client, "s", 4096, 0), 4096);
        client.command("subscribe", &identifier("s", 4096, 0));
        let answer = client.next_json();
        assert_eq!(answer["type"], "reject_subscription");
        assert_eq!(answer["identifier"], identifier("s", 4096, 0).as_str());
        client.command("unsubscribe", &identifier("s", 7, 0));
        client.command("subscribe", &identifier("s", 4096, 0));
        assert_eq!(client.next_json()["type"], "confirm_subscription");
    }

    fn one_message_to_thousands_of_subscriptions_of_one_session_is_bounded(driver: Driver) {
        let stage = open_stage(driver, &[]);
        let mut client = stage.raw();
        let taken = subscribe_many(&mut client, "s", 4000, 1000);
        assert!(taken > 3000, "{taken}");
        let memory = Memory::of(stage.server.pid());
        stage.publish("s", "1");
        let mut seen = 0;
        while seen < taken {
            assert_eq!(client.next_json()["message"], 1);
            seen += 1;
        }
        let grown = memory.grown_bytes();
        assert!(grown < 2 * SESSION_BYTES_MAX, "{grown} bytes");
        let memory = Memory::of(stage.server.pid());
        drop(client);
        stage.server.wait_for_metric("clients_num", 0);
        let grown = memory.grown_bytes();
        assert!(grown < 2 * SESSION_BYTES_MAX, "{grown} bytes for the close");
    }

    fn the_limit_on_messages_holds_after_inflating(driver: Driver) {
        let stage = open_stage(driver, &["--enable_ws_compression"]);
        let client = || {
            let mut raw = Raw::connect(stage.server.address());
            let offer = "Sec-WebSocket-Extensions: permessage-deflate";
            raw.send(handshake("/cable?pi=0", &[offer]).as_bytes());
            assert_eq!(raw.read_head().status(), 101);
            raw.next_frame();
            raw
        };
        let compressed = |bytes: usize| {
            let text = json!({ "command": "subscribe", "identifier": identifier("s", 0, bytes) }).to_string();
            let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(text.as_bytes()).expect("memory takes bytes");
            encoder.flush().expect("memory takes bytes");
            let bytes = encoder.get_ref().clone();
            let bytes = bytes.strip_suffix(&[0, 0, 0xff, 0xff]).expect("a flush ends so");
            frame_with(0xc1, Some([1, 2, 3, 4]), bytes)
        };
        let mut honest = client();
        honest.send(&compressed(60_000));
        honest.next_frame();
        let memory = Memory::of(stage.server.pid());
        for _ in 0..20 {
            let mut attacker = client();
            attacker.send(&compressed(16_000_000));
            attacker.expect_close(1009, "");
        }
        let grown = memory.grown_bytes();
        assert!(grown < 4 * MIB, "{grown} bytes");
    }

    fn an_unfinished_message_is_bounded_by_the_session(driver: Driver) {
        let stage = open_stage(driver, &["--max_message_size=0", "--session_bytes_max=1000000"]);
        let mut client = stage.raw();
        let memory = Memory::of(stage.server.pid());
        client.send(&fragment(TEXT, &[b'x'; 300_000]));
        client.send(&fragment(CONTINUATION, &[b'x'; 300_000]));
        let _ = client.try_send(&fragment(CONTINUATION, &[b'x'; 500_000]));
        client.expect_close(1009, "");
        let grown = memory.grown_bytes();
        assert!(grown < 3 * MIB, "{grown} bytes");
    }

    fn state_of_the_app_is_bounded_by_the_session(driver: Driver) {
        let stage = Stage::with(driver, &["--session_bytes_max=500000"]);
        let state = json!({ "k": "v".repeat(600_000) }).to_string();
        let answer: Value = json!({ "status": 1, "transmissions": [], "streams": [], "env": { "istate": { "k": state } } });
        stage.rails.on_command("message", "A", Answer::json(&answer));
        let mut client = stage.raw();
        client.subscribe("A");
        client.send_text(r#"{"command":"message","identifier":"A","data":"x"}"#);
        client.expect_close(1008, "session_bytes_max");
        stage.rails.wait_for_calls("disconnect", 1);
    }

    fn readers_are_not_slow_because_of_a_burst_of_large_messages(driver: Driver) {
        const READERS: usize = 20;
        const MESSAGES: usize = 30;
        const MESSAGE_BYTES: usize = 400_000;
        let stage = open_stage(driver, &[]);
        let readers: Vec<Raw> = (0..READERS).map(|_| stage.raw()).collect();
        let readers: Vec<_> = readers.into_iter().map(|mut reader| {
            assert_eq!(subscribe_many(&mut reader, "s", 1, 0), 1);
            thread::spawn(move || {
                for number in 0..MESSAGES {
                    let text = reader.next_text();
                    assert!(text.contains(&format!("\"message\":\"{number:02}x")), "{text:.100}");
                }
                reader
            })
        }).collect();
        let mut publisher = stage.broadcaster().keep_alive();
        for number in 0..MESSAGES {
            publisher.publish("s", &format!("\"{number:02}{}\"", "x".repeat(MESSAGE_BYTES)));
        }
        for reader in readers {
            assert_lives(&mut reader.join().expect("a reader gets everything"));
        }
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 0);
        assert_eq!(sample(&stage, "ringcable_outbox_bytes"), 0);
    }

    fn readers_are_not_slow_because_of_a_burst_in_one_request(driver: Driver) {
        let stage = open_stage(driver, &[]);
        let mut reader = stage.raw();
        subscribe_many(&mut reader, "s", 1, 0);
        let large: Vec<Value> = (0..20)
            .map(|_| json!({ "stream": "s", "data": format!("\"{}\"", "x".repeat(400_000)) }))
            .collect();
        let small: Vec<Value> = (0..20_000).map(|_| json!({ "stream": "s", "data": "\"small\"" })).collect();
        for (batch, count) in [(Value::from(large), 20), (Value::from(small), 20_000)] {
            stage.broadcaster().post(&batch.to_string());
            for _ in 0..count {
                reader.next_text();
            }
        }
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 0);
    }

    fn readers_over_tls_are_not_slow_because_of_a_burst(driver: Driver) {
        let scene = Scene::new(driver, &["--ping_interval=0"]);
        let readers: Vec<_> = (0..4).map(|_| {
            let mut reader = scene.client();
            reader.subscribe("A");
            thread::spawn(move || {
                for number in 0..30 {
                    let data = reader.next_data();
                    assert!(data.as_str().is_some_and(|data| data.starts_with(&format!("{number:02}x"))));
                }
            })
        }).collect();
        let batch: Vec<Value> = (0..30)
            .map(|number| json!({ "stream": "stream:A", "data": format!("\"{number:02}{}\"", "x".repeat(300_000)) }))
            .collect();
        scene.broadcast(&Value::from(batch));
        for reader in readers {
            reader.join().expect("a reader gets everything");
        }
        assert_eq!(scene.metric("disconnected_slow_clients_total"), 0);
    }

    /// Slower than what it is sent, but never at a standstill: everything is there in the end.
    fn a_reader_on_a_slow_line_gets_a_large_message_in_its_own_time(driver: Driver) {
        let stage = open_stage(driver, &["--ws_write_timeout=1"]);
        let mut reader = Raw::over(narrow_socket(&stage));
        reader.send(handshake("/cable?pi=0", &[]).as_bytes());
        assert_eq!(reader.read_head().status(), 101);
        reader.next_text();
        subscribe_many(&mut reader, "s", 1, 0);
        stage.publish("s", &format!("\"{}\"", "x".repeat(3_000_000)));
        // The server's write takes several times its timeout.
        let end = Instant::now() + Duration::from_secs(4);
        let mut bytes = 0;
        while Instant::now() < end {
            bytes += reader.fill_some();
            thread::sleep(Duration::from_millis(50));
        }
        assert!(bytes < 2_500_000, "it was no slow line: {bytes}");
        assert!(reader.next_text().len() > 3_000_000);
        assert_lives(&mut reader);
    }

    fn who_takes_nothing_is_found_without_another_message(driver: Driver) {
        let stage = open_stage(driver, &["--ws_write_timeout=30"]);
        let mut stuck = stage.raw();
        subscribe_many(&mut stuck, "s", 1, 0);
        let batch: Vec<Value> = (0..24)
            .map(|_| json!({ "stream": "s", "data": format!("\"{}\"", "x".repeat(400_000)) }))
            .collect();
        stage.broadcaster().post(&Value::from(batch).to_string());
        stage.server.wait_for_metric("disconnected_slow_clients_total", 1);
        stage.server.wait_for_metric("clients_num", 0);
    }

    fn who_takes_nothing_never_holds_more_than_a_session_may(driver: Driver) {
        let stage = open_stage(driver, &["--ws_write_timeout=30", "--session_bytes_max=3000000", "--ws_max_pending_size=0"]);
        let mut stuck = stage.raw();
        subscribe_many(&mut stuck, "s", 1, 0);
        let mut publisher = stage.broadcaster().keep_alive();
        let mut most = 0;
        until("the client to be dropped", || {
            publisher.publish("s", &format!("\"{}\"", "x".repeat(400_000)));
            most = most.max(sample(&stage, "ringcable_outbox_bytes"));
            (stage.server.metric("disconnected_slow_clients_total") == 1).then_some(())
        });
        assert!((2_000_000..3_500_000).contains(&most), "{most}");
        assert_eq!(sample(&stage, "ringcable_session_bytes_exceeded_total"), 1);
    }

    fn with_the_memory_used_up_new_work_is_refused_and_sessions_live_on(driver: Driver) {
        let stage = open_stage(driver, &["--memory_bytes_max=6000000"]);
        let mut old = stage.raw();
        subscribe_many(&mut old, "old", 1, 0);
        let before = sample(&stage, "ringcable_memory_bytes");
        let mut attackers: Vec<Raw> = (0..3).map(|_| stage.raw()).collect();
        let taken: usize = attackers.iter_mut().enumerate()
            .map(|(number, attacker)| subscribe_many(attacker, &format!("s{number}"), 200, 60_000))
            .sum();
        // Less than the three might hold by themselves.
        assert!((80..110).contains(&taken), "{taken}");
        assert!(sample(&stage, "ringcable_memory_bytes") <= 6_100_000);
        let mut refused = Raw::connect(stage.server.address());
        refused.send(handshake("/cable?pi=0", &[]).as_bytes());
        assert_eq!(refused.read_head().status(), 503);
        assert!(sample(&stage, "ringcable_memory_refusals_total") > 0);
        stage.server.wait_for_log(&["WRN the memory for clients and requests is used up (memory_bytes_max)", "shard=0", "max=6000000"]);
        stage.publish("old", "1");
        assert_eq!(old.next_json()["message"], 1);
        assert_lives(&mut old);
        assert_lives(&mut attackers[0]);
        drop(attackers);
        until("the memory to be free", || {
            (sample(&stage, "ringcable_memory_bytes") <= before + 1000).then_some(())
        });
        let mut new = stage.raw();
        assert_eq!(subscribe_many(&mut new, "s", 1, 60_000), 1);
    }

    fn attackers_do_not_end_a_process_whose_memory_is_limited(driver: Driver) {
        let rails = Rails::start();
        let launch = Stage::launch(driver, &rails).args(OPEN.iter().copied());
        let server = launch.data_bytes_max(120 << 20).start();
        let stage = Stage { server, rails };
        let mut old = stage.raw();
        subscribe_many(&mut old, "old", 1, 0);
        let mut subscribers: Vec<Raw> = (0..20).filter_map(|_| {
            let mut raw = Raw::connect(stage.server.address());
            raw.send(handshake("/cable?pi=0", &[]).as_bytes());
            (raw.read_head().status() == 101).then(|| {
                raw.next_text();
                raw
            })
        }).collect();
        let flooders: Vec<Raw> = (0..11).map(|_| stage.raw()).collect();
        for (number, subscriber) in subscribers.iter_mut().enumerate() {
            subscribe_many(subscriber, &format!("s{number}"), 4096, 60_000);
        }
        stage.server.assert_running();
        assert_lives(&mut old);
        flood_from_all(&flooders, &frame(PING, b""), 400_000);
        flood_from_all(&flooders, &frame(TEXT, br#"{"command":"ping"}"#), 400_000);
        stage.publish("old", "1");
        assert_eq!(old.next_json()["message"], 1);
        assert_lives(&mut old);
        assert!(sample(&stage, "ringcable_memory_refusals_total") > 0);
        stage.server.assert_running();
    }
}

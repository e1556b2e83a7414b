//! Many clients at once: every delivery arrives, whole, in order, once. Source: `contract/campfire.md` §7 and §11.19.

use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use serde_json::json;

use crate::support::campfire::{channel, gid_of_k6_room, rails_json, turbo_channel};
use crate::support::fleet::{Expected, Fleet, raise_open_files};
use crate::support::http::Broadcaster;
use crate::support::rails::{CURRENT_USER, WELCOME};
use crate::support::{Answer, Driver, Rails, Stage};

/// Clients of the large test; each holds six subscriptions.
const CLIENTS: usize = 15_000;

/// Files that the large test opens besides the clients' sockets.
const OTHER_FILES: usize = 1_000;

/// Posted messages; each makes an append of 21 kB and a badge.
const MESSAGES: usize = 100;

/// What one append frame of Campfire weighs.
const APPEND_BYTES: usize = 21_000;

/// Publications that may be on their way at once, so that nobody gets near the limit for slow clients.
const WINDOW: usize = 2;

/// The identifiers of the k6 script, spaces included, and their streams.
fn k6_subscriptions() -> Vec<(String, Vec<String>)> {
    let (room, user) = (gid_of_k6_room(), crate::support::keys::gid("User/1"));
    let turbo = |stream: &str| {
        (
            turbo_channel(stream).replace(",\"", ", \""),
            vec![stream.to_owned()],
        )
    };
    vec![
        (
            r#"{"channel":"PresenceChannel", "room_id":1}"#.to_owned(),
            vec![format!("presence:{room}")],
        ),
        (
            channel("UnreadRoomsChannel"),
            vec!["unread_rooms".to_owned()],
        ),
        (channel("HeartbeatChannel"), Vec::new()),
        turbo("rooms"),
        turbo(&format!("{room}:messages")),
        turbo(&format!("{user}:rooms")),
    ]
}

/// An app that confirms these subscriptions with answers made once.
fn stub_app(subscriptions: &[(String, Vec<String>)]) -> Rails {
    let rails = Rails::start();
    rails.forget_calls();
    rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]));
    for (identifier, streams) in subscriptions {
        let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
        rails.streams(identifier, &streams);
    }
    rails
}

/// A thread that publishes what it is told to, in order, over one kept connection.
fn publisher(broadcaster: &Broadcaster) -> mpsc::Sender<(String, String)> {
    let (sender, receiver) = mpsc::channel::<(String, String)>();
    let mut connection = broadcaster.keep_alive();
    thread::spawn(move || {
        for (stream, data) in receiver {
            connection.publish(&stream, &data);
        }
    });
    sender
}

fn append(number: usize) -> String {
    let body = "Hello from k6 &amp; friends é ".repeat(APPEND_BYTES / 30);
    rails_json(&json!(format!(
        "<turbo-stream action=\"append\" target=\"{number:06}\">{body}</turbo-stream>"
    )))
}

fn badge(number: usize) -> String {
    json!({ "roomId": 1, "roomSize": 10_000, "roomUpdatedAt": number }).to_string()
}

fn stage(driver: Driver, rails: Rails) -> Stage {
    let server = Stage::launch(driver, &rails)
        .arg("--log_level=info")
        .start();
    Stage { server, rails }
}

alone_on_both_drivers! {
    fn every_append_reaches_fifteen_thousand_clients_in_order(driver: Driver) {
        let open_files = usize::try_from(raise_open_files()).unwrap_or(usize::MAX);
        let clients = CLIENTS.min(open_files.saturating_sub(OTHER_FILES));
        let subscriptions = k6_subscriptions();
        let identifiers: Vec<String> = subscriptions.iter().map(|(identifier, _)| identifier.clone()).collect();
        let stage = stage(driver, stub_app(&subscriptions));
        let lines = vec![
            Expected::new(&identifiers[4], (0..MESSAGES).map(append)),
            Expected::new(&identifiers[1], (0..MESSAGES).map(badge)),
        ];
        let mut fleet = Fleet::new(stage.server.address(), clients, &identifiers, lines);

        let started = Instant::now();
        fleet.join();
        let joined = started.elapsed();
        assert_eq!(stage.rails.calls_begun(), clients * 7, "one connect and six commands each, none repeated");
        stage.server.wait_for_metric("clients_num", clients as i64);

        let publisher = publisher(&stage.broadcaster());
        let started = Instant::now();
        for number in 0..MESSAGES {
            if number >= WINDOW {
                fleet.receive(number - WINDOW);
            }
            publisher.send((format!("{}:messages", gid_of_k6_room()), append(number))).expect("the publisher runs");
            publisher.send(("unread_rooms".to_owned(), badge(number))).expect("the publisher runs");
        }
        fleet.receive(MESSAGES - 1);
        let delivered = started.elapsed();
        for name in ["disconnected_slow_clients_total", "failed_server_msg_total", "timeout_server_msg_total", "rpc_error_total"] {
            assert_eq!(stage.server.metric(name), 0, "{name}");
        }
        eprintln!(
            "{driver:?}: {clients} clients joined in {joined:?}, {} deliveries in {delivered:?}, {} pings",
            2 * MESSAGES * clients, fleet.pings
        );
    }

    fn five_thousand_rapid_messages_reach_fifty_clients_in_order(driver: Driver) {
        const RAPID: usize = 5_000;
        let subscriptions = vec![("A".to_owned(), vec!["a".to_owned()])];
        let stage = stage(driver, stub_app(&subscriptions));
        let data = |number: usize| json!({ "n": number }).to_string();
        let lines = vec![Expected::new("A", (0..RAPID).map(data))];
        let mut fleet = Fleet::new(stage.server.address(), 50, &["A".to_owned()], lines);
        fleet.join();
        let publisher = publisher(&stage.broadcaster());
        for number in 0..RAPID {
            publisher.send(("a".to_owned(), data(number))).expect("the publisher runs");
        }
        fleet.receive(RAPID - 1);
        assert_eq!(stage.server.metric("broadcast_msg_total"), RAPID as i64);
        assert_eq!(stage.server.metric("disconnected_slow_clients_total"), 0);
    }
}

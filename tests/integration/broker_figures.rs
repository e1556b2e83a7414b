//! What the broker counts, and its bound in bytes, as the metrics page shows them. `docs/reliable-streams.md` tells
//! operators to watch these.

use serde_json::{Value, json};

use crate::support::{Cable, Driver, Stage, wait};

const EXTENDED: &str = "actioncable-v1-ext-json";
const ROOM: &str = r#"{"channel":"$pubsub","stream_name":"room"}"#;

fn stage(driver: Driver, args: &[&str]) -> Stage {
    let all = ["--broker=memory", "--noauth", "--public_streams"];
    Stage::with(driver, &[&all, args].concat())
}

/// A client of the room, and its sid.
fn enter(stage: &Stage) -> (Cable, String) {
    let mut client = Cable::to(&stage.server).subprotocols(EXTENDED).open();
    let sid = client.next_json()["sid"]
        .as_str()
        .expect("a sid")
        .to_owned();
    client.command("subscribe", ROOM);
    assert_eq!(client.next_json()["type"], "confirm_subscription");
    (client, sid)
}

fn post(stage: &Stage, data: &str, meta: Value) {
    let body = json!({ "stream": "room", "data": data, "meta": meta });
    stage.broadcaster().post(&body.to_string());
}

fn command(name: &str, key: &str, value: Value) -> String {
    json!({ "command": name, "identifier": ROOM, key: value }).to_string()
}

/// Figures of the broker are brought up to date once a second.
fn wait_for(stage: &Stage, name: &str, is_enough: impl Fn(i64) -> bool) -> i64 {
    wait::until(name, || {
        Some(stage.server.own_metric(name)).filter(|value| is_enough(*value))
    })
}

on_both_drivers! {
    fn repetitions_refusals_and_returns_are_counted(driver: Driver) {
        let stage = stage(driver, &["--cores=2"]);
        let (mut client, sid) = enter(&stage);
        for _ in 0..3 {
            post(&stage, "1", json!({ "idempotency_key": "one" }));
        }
        let position = client.next_json();
        assert_eq!(stage.server.own_metric("publications_repeated_total"), 2);

        client.send(&command("join", "presence", json!({ "id": "5" })));
        assert_eq!(client.next_json()["message"]["type"], "join");
        client.send(&command("join", "presence", json!({ "id": "6" })));
        client.expect_nothing_before_pong();
        assert_eq!(stage.server.own_metric("joins_refused_total"), 1);

        let ask = |epoch: &Value| {
            let streams = json!({ "room": { "epoch": epoch, "offset": 0 } });
            command("history", "history", json!({ "streams": streams }))
        };
        client.send(&ask(&position["epoch"]));
        assert_eq!(client.next_json(), position);
        assert_eq!(client.next_json()["type"], "confirm_history");
        client.send(&ask(&json!("________")));
        assert_eq!(client.next_json()["type"], "reject_history");
        let replays = ["history_confirmed_total", "history_messages_total", "history_refused_total"];
        assert_eq!(replays.map(|name| stage.server.own_metric(name)), [1, 1, 1]);

        for (earlier, restored) in [(&*sid, json!(true)), ("somebody else's", Value::Null)] {
            let mut again = Cable::to(&stage.server)
                .subprotocols(EXTENDED)
                .header("x-anycable-restore-sid", earlier)
                .open();
            assert_eq!(again.next_json()["restored"], restored);
        }
        assert_eq!(["restores_total", "restores_unknown_total"].map(|name| stage.server.own_metric(name)), [1, 1]);
        for (gauge, value) in [("broker_streams_num", 1), ("broker_messages_num", 1), ("presence_members_num", 1)] {
            wait_for(&stage, gauge, |it| it == value);
        }
    }

    /// 48 KiB are for history, 16 KiB for everything else.
    fn at_its_bound_the_broker_gives_up_what_is_oldest_and_counts_it(driver: Driver) {
        let stage = stage(driver, &["--cores=1", "--broker_bytes_max=65536"]);
        let (mut client, _) = enter(&stage);
        let text = format!("{:01000}", 0);
        for _ in 0..100 {
            post(&stage, &text, json!({}));
        }
        let epoch = (0..100).map(|_| client.next_json()["epoch"].clone()).last();
        // A report may have come in between.
        let (evicted, kept) = wait::until("figures of all messages", || {
            let [evicted, kept] = ["broker_evictions_total", "broker_messages_num"]
                .map(|name| stage.server.own_metric(name));
            (evicted > 0 && kept + evicted == 100).then_some((evicted, kept))
        });
        // In full, or not at all.
        for (offset, end) in [(evicted, "confirm_history"), (evicted - 1, "reject_history")] {
            let streams = json!({ "room": { "epoch": epoch, "offset": offset } });
            client.send(&command("history", "history", json!({ "streams": streams })));
            let replayed = if end == "confirm_history" { kept } else { 0 };
            for _ in 0..replayed {
                assert_eq!(client.next_json()["stream_id"], "room");
            }
            assert_eq!(client.next_json()["type"], end);
        }

        let info = "x".repeat(16 << 10);
        client.send(&command("join", "presence", json!({ "id": "5", "info": info })));
        client.expect_nothing_before_pong();
        assert_eq!(stage.server.own_metric("joins_refused_total"), 1);

        for _ in 0..100 {
            drop(enter(&stage));
        }
        wait_for(&stage, "session_evictions_total", |it| it > 0);
        wait_for(&stage, "sessions_kept_num", |it| it > 0);

        for number in 0..300 {
            post(&stage, "1", json!({ "transient": true, "idempotency_key": number.to_string() }));
        }
        wait_for(&stage, "idempotency_keys_forgotten_total", |it| it > 0);
        assert!(stage.server.own_metric("broker_bytes") <= 65_536);
    }
}

//! Commands with wrong types, a megabyte where a word is expected, positions that cannot be, a hundred thousand streams,
//! and the sids of others: each has a clear answer, nobody else loses anything, and memory is bounded.
//! `docs/reliable-streams.md` and `docs/limits.md` say what the answers are.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::memory::Memory;
use crate::support::raw::{TEXT, frame, handshake};
use crate::support::{Answer, Cable, Driver, Raw, Stage, wait};

const EXTENDED: &str = "actioncable-v1-ext-json";
const MIB: usize = 1 << 20;

/// Frames that are no commands: of a wrong type, or no JSON.
pub const UNDECODABLE: &[&str] = &[
    r#"{"command":"join","identifier":"A","presence":{"id":5}}"#,
    r#"{"command":"join","identifier":"A","presence":{"id":["5"]}}"#,
    r#"{"command":"join","identifier":"A","presence":{"id":{"a":1}}}"#,
    r#"{"command":"join","identifier":"A","presence":{"id":true}}"#,
    r#"{"command":"join","identifier":"A","presence":[]}"#,
    r#"{"command":"join","identifier":"A","presence":"5"}"#,
    r#"{"command":"join","identifier":"A","presence":5}"#,
    r#"{"command":"join","identifier":"A","presence":{"id":"5","type":5}}"#,
    r#"{"command":"leave","identifier":"A","presence":[]}"#,
    r#"{"command":"subscribe","identifier":"A","presence":true}"#,
    r#"{"command":"subscribe","identifier":"A","history":true}"#,
    r#"{"command":"history","identifier":"A","history":[]}"#,
    r#"{"command":"history","identifier":"A","history":"1"}"#,
    r#"{"command":"history","identifier":"A","history":1}"#,
    r#"{"command":"history","identifier":"A","history":{"since":"1"}}"#,
    r#"{"command":"history","identifier":"A","history":{"since":1.5}}"#,
    r#"{"command":"history","identifier":"A","history":{"since":true}}"#,
    r#"{"command":"history","identifier":"A","history":{"since":[]}}"#,
    r#"{"command":"history","identifier":"A","history":{"since":99999999999999999999}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":[]}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":"stream:A"}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":1}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":[]}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"epoch":1}}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"epoch":"a","offset":-1}}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"epoch":"a","offset":1.5}}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"epoch":"a","offset":"1"}}}}"#,
    r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"epoch":"a","offset":18446744073709551616}}}}"#,
    r#"{"command":1,"identifier":"A"}"#,
    r#"{"command":["history"],"identifier":"A"}"#,
    r#"{"command":"history","identifier":5}"#,
    r#"{"command":"subscribe","identifier":{"channel":"A"}}"#,
    r#"{"command":"subscribe","identifier":"A""#,
    r#"["subscribe"]"#,
    "1",
    "",
];

fn stage(driver: Driver, args: &[&str]) -> Stage {
    let all = [
        "--broker=memory",
        "--noauth",
        "--public_streams",
        "--ping_interval=0",
        "--log_level=info",
    ];
    let stage = Stage::with(driver, &[&all, args].concat());
    let confirmed = json!({
        "status": 1,
        "streams": ["stream:A"],
        "transmissions": [crate::support::rails::confirmation("A")],
        "env": { "istate": { "$p": "stream:A", "$w": "stream:A" } },
    });
    stage
        .rails
        .on_command("subscribe", "A", Answer::json(&confirmed));
    stage
}

/// An extended client of `A`, and its sid.
fn subscribed(stage: &Stage) -> (Cable, String) {
    let mut client = Cable::to(&stage.server).subprotocols(EXTENDED).open();
    let welcome = client.next_json();
    client.subscribe("A");
    (client, welcome["sid"].as_str().expect("a sid").to_owned())
}

/// Somebody else: gets every message once and in order, and nothing more.
struct Witness {
    client: Cable,
    number: u64,
}

impl Witness {
    fn of(stage: &Stage) -> Self {
        Self {
            client: subscribed(stage).0,
            number: 0,
        }
    }

    /// The next message reaches the witness as the next one, and those who lived through the test. Gives it.
    fn assert_unharmed(&mut self, stage: &Stage, others: &mut [&mut Cable]) -> Value {
        self.number += 1;
        stage.publish("stream:A", &self.number.to_string());
        let got = self.client.next_json();
        assert_eq!(
            (&got["message"], &got["offset"]),
            (&json!(self.number), &json!(self.number))
        );
        for other in others {
            assert_eq!(other.next_json()["message"], self.number);
        }
        got
    }
}

fn command(name: &str, key: &str, value: Value) -> String {
    json!({ "command": name, "identifier": "A", key: value }).to_string()
}

fn public(stream: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": stream }).to_string()
}

/// The first message of a client that wants to be the session of `sid`.
fn pretend(stage: &Stage, target: &str, headers: &[(&str, &str)]) -> Value {
    let request = Cable::at(&stage.server, target).subprotocols(EXTENDED);
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(name, value)
    });
    request.open().next_json()
}

on_both_drivers! {
    fn wrong_types_are_dropped_and_counted(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut witness = Witness::of(&stage);
        let (mut client, _) = subscribed(&stage);
        let failed = || stage.server.metric("failed_client_msg_total");
        for (index, wrong) in UNDECODABLE.iter().enumerate() {
            client.send(wrong);
            client.expect_nothing_before_pong();
            assert_eq!(failed(), 1 + index as i64, "{wrong}");
        }
        // They have left no trace: neither a member nor a question.
        client.send(r#"{"command":"presence","identifier":"A"}"#);
        assert_eq!(client.next_json()["message"], json!({ "type": "info", "total": 0 }));
        witness.assert_unharmed(&stage, &mut [&mut client]);
    }

    fn times_and_positions_that_cannot_be(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut witness = Witness::of(&stage);
        let (mut client, _) = subscribed(&stage);
        let here = witness.assert_unharmed(&stage, &mut [&mut client]);
        // A real epoch of this server, of another stream.
        client.command("subscribe", &public("other"));
        assert_eq!(client.next_json()["type"], "confirm_subscription");
        stage.publish("other", "1");
        let foreign = client.next_json()["epoch"].clone();
        assert_ne!(foreign, here["epoch"]);
        let at = |epoch: &Value, offset: u64| json!({ "streams": { "stream:A": { "epoch": epoch, "offset": offset } } });
        let table = [
            (at(&foreign, 0), "reject_history"),
            (at(&foreign, 1), "reject_history"),
            (at(&foreign, u64::MAX), "reject_history"),
            (at(&here["epoch"], 2), "reject_history"),
            (at(&here["epoch"], u64::MAX), "reject_history"),
            (at(&here["epoch"], 1), "confirm_history"),
            (json!({ "since": i64::MAX }), "confirm_history"),
            (json!({ "since": -1 }), "confirm_history"),
            (json!({ "since": i64::MIN }), "confirm_history"),
            (json!({ "since": i64::MIN, "streams": {} }), "confirm_history"),
            (json!({ "since": -1, "streams": at(&here["epoch"], 1)["streams"] }), "confirm_history"),
        ];
        for (request, expected) in table {
            client.send(&command("history", "history", request.clone()));
            assert_eq!(client.next_json()["type"], expected, "{request}");
        }
        witness.assert_unharmed(&stage, &mut [&mut client]);
    }

    fn a_megabyte_where_a_word_is_expected(driver: Driver) {
        let stage = stage(driver, &["--max_message_size=4194304"]);
        let mut witness = Witness::of(&stage);
        let (mut client, _) = subscribed(&stage);
        let long = "x".repeat(MIB);
        let memory = Memory::of(stage.server.pid());
        let unanswered = [
            command("join", "presence", json!({ "id": long })),
            command("join", "presence", json!({ "id": "1", "info": long })),
            json!({ "command": long, "identifier": "A" }).to_string(),
            json!({ "command": "history", "identifier": long, "history": { "since": 1 } }).to_string(),
            json!({ "command": "unsubscribe", "identifier": long }).to_string(),
        ];
        for text in &unanswered {
            client.send(text);
            client.expect_nothing_before_pong();
        }
        assert_eq!(stage.server.own_metric("joins_refused_total"), 2);
        for (streams, expected) in [
            (json!({ long.as_str(): { "epoch": "a", "offset": 1 } }), "confirm_history"),
            (json!({ "stream:A": { "epoch": long, "offset": 1 } }), "reject_history"),
        ] {
            client.send(&command("history", "history", json!({ "streams": streams })));
            assert_eq!(client.next_json()["type"], expected);
        }
        client.command("subscribe", &public(&long));
        assert_eq!(client.next_json()["type"], "confirm_subscription");
        client.command("unsubscribe", &public(&long));
        witness.assert_unharmed(&stage, &mut [&mut client]);
        let grown = memory.grown_bytes();
        assert!(grown < 32 * MIB as u64, "{grown} bytes");
    }

    fn a_megabyte_of_presence_from_the_app_is_refused(driver: Driver) {
        let stage = stage(driver, &[]);
        let long = "x".repeat(MIB);
        for (identifier, presence) in [
            ("id", json!({ "type": "join", "id": long })),
            ("info", json!({ "type": "join", "id": "1", "info": json!(long).to_string() })),
        ] {
            let answer = json!({
                "status": 1, "streams": ["stream:A"], "presence": presence, "env": { "istate": { "$p": "stream:A" } },
                "transmissions": [crate::support::rails::confirmation(identifier)],
            });
            stage.rails.on_command("subscribe", identifier, Answer::json(&answer));
        }
        let mut witness = Witness::of(&stage);
        let mut client = Cable::to(&stage.server).subprotocols(EXTENDED).welcomed();
        client.subscribe("id");
        client.subscribe("info");
        client.send(r#"{"command":"presence","identifier":"id"}"#);
        assert_eq!(client.next_json()["message"], json!({ "type": "info", "total": 0 }));
        assert_eq!(stage.server.own_metric("joins_refused_total"), 2);
        witness.assert_unharmed(&stage, &mut []);
    }

    fn a_restored_client_that_asks_for_nothing_waits_for_nothing(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut witness = Witness::of(&stage);
        let (client, sid) = subscribed(&stage);
        drop(client);
        let mut client = Cable::at(&stage.server, &format!("/cable?sid={sid}")).subprotocols(EXTENDED).open();
        assert_eq!(client.next_json()["restored"], true);
        let asked = Instant::now();
        client.send(&command("history", "history", json!({ "streams": {} })));
        assert_eq!(client.next_json()["type"], "confirm_history");
        witness.assert_unharmed(&stage, &mut [&mut client]);
        // Not after the two seconds of a client that never asks.
        assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    }

    fn a_message_that_is_too_long_ends_the_connection_and_not_the_session(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut witness = Witness::of(&stage);
        let mut client = Raw::connect(stage.server.address());
        client.send(handshake("/cable", &[&format!("Sec-WebSocket-Protocol: {EXTENDED}")]).as_bytes());
        assert_eq!(client.read_head().status(), 101);
        let welcome = client.next_json();
        client.subscribe("A");
        let join = command("join", "presence", json!({ "id": "1", "info": "x".repeat(MIB) }));
        // The server stops reading in the middle.
        let _reset = client.try_send(&frame(TEXT, join.as_bytes()));
        assert_eq!(client.next_frame().close().0, Some(1009));
        witness.assert_unharmed(&stage, &mut []);
        let target = format!("/cable?sid={}", welcome["sid"].as_str().expect("a sid"));
        let restored = pretend(&stage, &target, &[]);
        assert_eq!((&restored["restored"], &restored["restored_ids"]), (&json!(true), &json!(["A"])));
    }

    fn a_hundred_thousand_streams_of_one_client_are_bounded(driver: Driver) {
        const STREAMS: usize = 100_000;
        const SUBSCRIPTIONS_MAX: usize = 4_096;
        let stage = stage(driver, &["--session_bytes_max=268435456"]);
        let answer = json!({
            "status": 1, "streams": (0..STREAMS).map(|number| format!("many:{number}")).collect::<Vec<_>>(),
            "transmissions": [crate::support::rails::confirmation("many")], "env": {},
        });
        stage.rails.on_command("subscribe", "many", Answer::json(&answer));
        let mut witness = Witness::of(&stage);
        let (mut client, _) = subscribed(&stage);
        let memory = Memory::of(stage.server.pid());
        let positions: serde_json::Map<String, Value> =
            (0..STREAMS / 100).map(|number| (format!("many:{number}"), json!({ "epoch": "a", "offset": 1 }))).collect();
        client.send(&command("history", "history", json!({ "streams": positions })));
        assert_eq!(client.next_json()["type"], "confirm_history");

        let mut confirmed = 0;
        let numbers: Vec<usize> = (0..STREAMS).collect();
        for together in numbers.chunks(500) {
            for number in together {
                client.command("subscribe", &public(&format!("many:{number}")));
            }
            for _ in together {
                confirmed += usize::from(client.next_json()["type"] == "confirm_subscription");
            }
        }
        // `A` is one of them.
        assert_eq!(confirmed, SUBSCRIPTIONS_MAX - 1);
        // What the app has said holds; then there is no room for more.
        let (mut other, _) = subscribed(&stage);
        other.subscribe("many");
        other.command("subscribe", &public("one more"));
        assert_eq!(other.next_json()["type"], "reject_subscription");
        stage.publish("many:99999", "1");
        assert_eq!(other.next_json()["message"], 1);
        witness.assert_unharmed(&stage, &mut [&mut client, &mut other]);
        let grown = memory.grown_bytes();
        assert!(grown < 64 * MIB as u64, "{grown} bytes");
    }

    fn streams_that_come_and_go_leave_nothing(driver: Driver) {
        const STREAMS: usize = 2_000;
        let stage = stage(driver, &["--session_bytes_max=0"]);
        let mut witness = Witness::of(&stage);
        let (mut client, _) = subscribed(&stage);
        let memory = Memory::of(stage.server.pid());
        for number in 0..STREAMS {
            let identifier = public(&format!("many:{number}"));
            let request = json!({
                "command": "subscribe", "identifier": identifier, "history": { "since": 1 }, "presence": { "id": "1", "info": "x".repeat(1000) },
            });
            client.send(&request.to_string());
            let kinds: Vec<Value> = (0..3).map(|_| client.next_json()["type"].clone()).collect();
            assert_eq!(kinds, ["confirm_subscription", "confirm_history", "presence"]);
            client.command("unsubscribe", &identifier);
        }
        witness.assert_unharmed(&stage, &mut [&mut client]);
        // Only the stream of the witness has a message.
        wait::until("one stream, and no member", || {
            let figures = ["broker_streams_num", "presence_members_num"].map(|name| stage.server.own_metric(name));
            (figures == [1, 0]).then_some(())
        });
        let grown = memory.grown_bytes();
        assert!(grown < 16 * MIB as u64, "{grown} bytes");
    }

    fn a_sid_that_is_almost_right_restores_nothing(driver: Driver) {
        let stage = stage(driver, &["--cores=2"]);
        let mut witness = Witness::of(&stage);
        let (mut client, sid) = subscribed(&stage);
        let (random, shard) = sid.split_at(21);
        let other = |character: &str| if character == "a" { "b" } else { "a" };
        let mut guesses: Vec<String> = (0..sid.len())
            .map(|at| format!("{}{}{}", &sid[..at], other(&sid[at..=at]), &sid[at + 1..]))
            .collect();
        guesses.extend([
            random.to_owned(),
            format!("{random}__"),
            format!("{random}ZZ"),
            format!("{random}%00{shard}"),
            format!("{sid}%00"),
            format!("{sid}%20"),
            format!("%20{sid}"),
            format!("{sid}_"),
            sid.to_uppercase(),
            sid.to_lowercase(),
            "*".to_owned(),
            "x".repeat(128),
            "x".repeat(129),
            "x".repeat(60_000),
        ]);
        guesses.retain(|guess| *guess != sid);
        for guess in &guesses {
            let welcome = pretend(&stage, &format!("/cable?sid={guess}"), &[]);
            assert_eq!((&welcome["type"], &welcome["restored"]), (&json!("welcome"), &json!(null)), "{guess}");
        }
        let mut too_long = Raw::connect(stage.server.address());
        let _reset = too_long.try_send(handshake(&format!("/cable?sid={}", "x".repeat(MIB)), &[]).as_bytes());
        assert_eq!(too_long.read_head().status(), 431);
        assert!(stage.server.own_metric("restores_unknown_total") > 0);
        witness.assert_unharmed(&stage, &mut [&mut client]);
    }

    /// Two clients with one `X-Request-ID` have one sid; each of them has been authenticated for itself.
    fn a_sid_that_somebody_else_has_chosen_gives_no_rights(driver: Driver) {
        let stage = stage(driver, &["--noauth=false"]);
        stage.rails.on(|call| (call.method == "connect" && call.forwarded("cookie").is_none()).then(Answer::unauthorized));
        let open = |target: &str, cookie: Option<&str>| {
            let request = Cable::at(&stage.server, target).subprotocols(EXTENDED).header("X-Request-ID", "chosen");
            cookie.iter().fold(request, |request, cookie| request.header("Cookie", cookie)).open()
        };
        let mut stranger = open("/cable", None);
        assert_eq!(stranger.next_json()["reason"], "unauthorized");
        // Nothing that a refused client has said about itself can be restored, also when others use the same sid.
        let mut again = open("/cable?sid=chosen", None);
        assert_eq!(again.next_json()["reason"], "unauthorized");
        let mut client = open("/cable", Some("session=1"));
        assert_eq!(client.next_json(), json!({ "type": "welcome" }));
        client.subscribe("A");
        let mut refused = open("/cable", None);
        assert_eq!(refused.next_json()["reason"], "unauthorized");
        stage.publish("stream:A", "1");
        assert_eq!(client.next_json()["message"], 1);
    }

    fn a_sid_is_not_in_what_others_see(driver: Driver) {
        let stage = stage(driver, &["--log_level=info", "--presence_ttl=1"]);
        let (mut watches, _) = subscribed(&stage);
        let (mut client, sid) = subscribed(&stage);
        client.send(&command("join", "presence", json!({ "id": "1" })));
        client.send(&command("whisper", "data", json!("hi")));
        let mut seen: Vec<String> = (0..2).map(|_| watches.next_text()).collect();
        watches.send(r#"{"command":"presence","identifier":"A"}"#);
        seen.push(watches.next_text());
        drop(client);
        seen.push(watches.next_text());
        assert!(seen[3].contains("leave"), "{seen:?}");
        seen.push(stage.server.get("/metrics").text());
        for text in seen {
            assert!(!text.contains(&sid), "{text}");
        }
        assert!(!stage.server.log().iter().any(|line| line.contains(&sid)), "nothing went wrong, so nothing is logged at this level");
    }
}

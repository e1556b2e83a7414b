//! What the console says about streams: lists in an order, and one stream in detail. Source: `docs/console.md`.

use serde_json::{Value, json};

use crate::console::act;
use crate::support::{Cable, Driver, Launch, Server, Stage, wait};

const ARGS: [&str; 4] = ["--console", "--noauth", "--public_streams", "--cores=2"];

fn stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, &[&ARGS, args].concat())
}

fn with_broker(driver: Driver) -> Stage {
    stage(driver, &["--broker=memory", "--history_limit=3"])
}

fn identifier(stream: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": stream }).to_string()
}

/// A client that listens to these streams.
fn listener(stage: &Stage, sid: &str, streams: &[&str]) -> Cable {
    let mut client = Cable::to(&stage.server)
        .subprotocols("actioncable-v1-ext-json")
        .header("X-Request-ID", sid)
        .open();
    assert_eq!(client.next_json()["type"], "welcome");
    for stream in streams {
        client.command("subscribe", &identifier(stream));
        assert_eq!(client.next_json()["type"], "confirm_subscription");
    }
    client
}

fn join(client: &mut Cable, stream: &str, id: &str, info: Value) {
    let presence = json!({ "id": id, "info": info });
    let command =
        json!({ "command": "join", "identifier": identifier(stream), "presence": presence });
    client.send(&command.to_string());
    assert_eq!(client.next_json()["message"]["type"], "join");
}

fn streams(server: &Server, query: &str, order: &str) -> Value {
    let body = json!({ "query": query, "order": order });
    let (status, answer) = act(server, "/_console/streams", &body);
    assert_eq!(
        (status, &answer["incomplete"]),
        (200, &json!(false)),
        "{answer}"
    );
    answer
}

/// The streams with the figure that they are sorted by.
fn listed(server: &Server, query: &str, order: &str) -> Vec<(String, u64)> {
    let answer = streams(server, query, order);
    let list = answer["streams"].as_array().expect("a list").iter();
    let named = list.map(|stream| {
        let name = stream["name"].as_str().expect("a name").to_owned();
        (name, stream[order].as_u64().expect("a number"))
    });
    named.collect()
}

fn stream(server: &Server, name: &str) -> Value {
    let (status, answer) = act(server, "/_console/stream", &json!({ "stream": name }));
    assert_eq!(
        (status, &answer["incomplete"]),
        (200, &json!(false)),
        "{answer}"
    );
    answer
}

fn list(streams: &[(&str, u64)]) -> Vec<(String, u64)> {
    let owned = streams
        .iter()
        .map(|(name, figure)| ((*name).to_owned(), *figure));
    owned.collect()
}

on_both_drivers! {
    fn streams_are_sorted_by_what_is_asked_for(driver: Driver) {
        let stage = with_broker(driver);
        let server = &stage.server;
        let mut clients: Vec<Cable> = (0..6).map(|number| listener(&stage, &format!("c{number}"), &["crowd"])).collect();
        clients.push(listener(&stage, "loner", &["quiet", "busy"]));
        join(clients.last_mut().expect("a client"), "quiet", "1", Value::Null);
        (0..5).for_each(|number| stage.publish("busy", &number.to_string()));
        stage.publish("long", &format!("\"{}\"", "x".repeat(500)));
        (0..2).for_each(|_| stage.publish("crowd", "1"));

        assert_eq!(listed(server, "", "listeners"), list(&[("crowd", 6), ("busy", 1), ("quiet", 1), ("long", 0)]));
        assert_eq!(listed(server, "", "messages"), list(&[("busy", 3), ("crowd", 2), ("long", 1), ("quiet", 0)]));
        assert_eq!(listed(server, "", "bytes"), list(&[("long", 502), ("busy", 3), ("crowd", 2), ("quiet", 0)]));
        assert_eq!(listed(server, "", "members")[0], ("quiet".to_owned(), 1));
        assert_eq!(listed(server, " ui ", "listeners"), list(&[("quiet", 1)]));
        assert_eq!(listed(server, "nothing", "listeners"), []);
        let all = &streams(server, "crowd", "listeners")["streams"][0];
        assert_eq!(*all, json!({ "name": "crowd", "is_cut": false, "listeners": 6, "messages": 2, "bytes": 2, "members": 0 }));

        for body in [json!({ "order": "size" }), json!({ "query": "x".repeat(300) }), json!([])] {
            assert_eq!(act(server, "/_console/streams", &body).0, 422, "{body}");
        }
        drop(clients);
    }

    fn a_stream_is_shown_with_its_history_members_and_listeners(driver: Driver) {
        let stage = with_broker(driver);
        let mut clients: Vec<Cable> = ["ann", "bob"].iter().map(|sid| listener(&stage, sid, &["room"])).collect();
        for message in ["1", "2", r#"{"text":"three"}"#, &format!("\"{}\"", "y".repeat(200))] {
            stage.publish("room", message);
            clients[0].next_json();
        }
        join(&mut clients[0], "room", "15", json!({ "name": "Ann" }));
        let room = stream(&stage.server, "room");
        assert_eq!(room["listeners"], 2);
        let listening = room["listening"].as_array().expect("a list");
        let mut sids: Vec<&str> = listening.iter().map(|listener| listener["sid"].as_str().expect("a sid")).collect();
        sids.sort_unstable();
        assert_eq!(sids, ["ann", "bob"]);
        assert_eq!(listening[0]["identifier"], identifier("room"));

        let history = &room["kept"]["history"];
        assert_eq!([&history["last"], &history["messages"], &history["messages_max"], &history["ttl_secs"]], [4, 3, 3, 300]);
        assert_eq!(history["bytes"], 1 + 16 + 202);
        assert_eq!(history["epoch"].as_str().map(str::len), Some(8));
        let newest = history["newest"].as_array().expect("a list");
        let shown: Vec<_> = newest.iter().map(|message| (message["offset"].as_u64(), message["bytes"].as_u64())).collect();
        assert_eq!(shown, [(Some(4), Some(202)), (Some(3), Some(16)), (Some(2), Some(1))]);
        assert_eq!(newest[1]["text"], r#"{"text":"three"}"#);
        assert!(newest[0]["text"].as_str().is_some_and(|text| text.ends_with("...(102)")), "{}", newest[0]);
        assert!(newest[0]["stored_unix_ms"].as_u64().is_some_and(|at| at > 1_700_000_000_000), "{}", newest[0]);
        assert_eq!(room["kept"]["members"], json!({ "total": 1, "records": [{ "id": "15", "info": r#"{"name":"Ann"}"# }] }));

        let nothing = stream(&stage.server, "nothing");
        assert_eq!(nothing, json!({
            "listeners": 0, "listening": [], "incomplete": false,
            "kept": { "history": null, "members": { "total": 0, "records": [] } }
        }));
    }

    fn what_does_not_fit_into_an_answer_is_counted(driver: Driver) {
        let stage = stage(driver, &["--broker=memory"]);
        for number in 0..60 {
            stage.publish("full", &number.to_string());
            stage.publish(&format!("one of many/{number}"), "1");
        }
        let answer = streams(&stage.server, "", "messages");
        assert_eq!((answer["streams"].as_array().map(Vec::len), &answer["more"], &answer["uncertain"]), (Some(50), &json!(true), &json!(false)));
        assert_eq!(answer["streams"][0]["name"], "full");
        let full = &stream(&stage.server, "full")["kept"]["history"];
        assert_eq!((full["newest"].as_array().map(Vec::len), &full["messages"]), (Some(50), &json!(60)));
        let long = "n".repeat(600);
        stage.publish(&long, "1");
        let cut = &streams(&stage.server, "nnn", "messages")["streams"][0];
        assert_eq!(cut["is_cut"], true);
        assert_eq!(stream(&stage.server, &long)["kept"]["history"]["last"], 1);
    }

    fn without_a_broker_there_are_listeners(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = listener(&stage, "ann", &["room"]);
        stage.publish("room", "1");
        stage.publish("nobody", "1");
        assert_eq!(listed(&stage.server, "", "listeners"), list(&[("room", 1)]));
        assert_eq!(listed(&stage.server, "", "bytes"), list(&[("room", 0)]));
        let room = stream(&stage.server, "room");
        assert_eq!((&room["listeners"], &room["kept"]), (&json!(1), &Value::Null));
        drop(client);
        wait::until("the stream is gone", || listed(&stage.server, "", "listeners").is_empty().then_some(()));
    }

    fn other_pages_learn_nothing_of_streams(driver: Driver) {
        let server = Launch::new(driver).args(["--console", "--norpc", "--secret=S", "--broker=memory"]).start();
        for path in ["/_console/streams", "/_console/stream"] {
            let of_another = [("X-Ringcable-Console", "1"), ("Sec-Fetch-Site", "cross-site")];
            let answer = crate::support::http::request(server.address(), "POST", path, &of_another, b"{}");
            assert_eq!(answer.expect("an answer").status, 403, "{path}");
            assert_eq!(server.get(path).status, 405, "{path}");
            assert_eq!(act(&server, path, &json!({})).0, 200, "{path}");
        }
    }
}

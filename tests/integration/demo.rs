//! `--demo`: the server with its built-in app, nothing else installed. The page itself is tested in browsers.

use serde_json::{Value, json};

use crate::support::{Cable, Driver, Launch, Server};

fn demo(driver: Driver) -> Server {
    Launch::new(driver).arg("--demo").start()
}

/// The next message for `identifier`, whatever else arrives meanwhile.
fn next_for(client: &mut Cable, identifier: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let value = client.next_json();
        if value["identifier"] == identifier && wanted(&value) {
            return value;
        }
    }
}

on_both_drivers! {
    fn page_and_its_parts_are_served(driver: Driver) {
        let server = demo(driver);
        let page = server.get("/");
        assert_eq!(page.status, 200);
        assert!(page.header("Content-Type").is_some_and(|value| value.starts_with("text/html")));
        for path in ["/demo/app.js", "/demo/app.css", "/demo/cable.js"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.get("/demo/nothing.js").status, 404);
    }

    fn stranger_is_refused_and_two_names_see_each_other_type(driver: Driver) {
        let server = demo(driver);
        let mut stranger = Cable::to(&server).open();
        assert_eq!(stranger.next_json()["reason"], "unauthorized");
        let mut ann = Cable::at(&server, "/cable?name=Ann").welcomed();
        let mut bob = Cable::at(&server, "/cable?name=Bob").welcomed();
        let typing = json!({ "channel": "TypingNotificationsChannel", "room_id": 1 }).to_string();
        for client in [&mut ann, &mut bob] {
            client.command("subscribe", &typing);
            next_for(client, &typing, |value| value["type"] == "confirm_subscription");
        }
        ann.perform(&typing, r#"{"action":"start"}"#);
        let seen = next_for(&mut bob, &typing, |value| value.get("message").is_some());
        assert_eq!(seen["message"]["action"], "start");
        assert_eq!(seen["message"]["user"]["name"], "Ann");
    }

    fn whoever_was_offline_gets_what_was_missed_without_the_app(driver: Driver) {
        let server = demo(driver);
        let room = json!({ "channel": "RoomChannel", "room_id": 1 }).to_string();
        let enter = |target: &str| {
            let mut client = Cable::at(&server, target).subprotocols("actioncable-v1-ext-json").open();
            let welcome = client.next_json();
            assert_eq!(welcome["type"], "welcome", "{welcome}");
            (client, welcome)
        };
        let speak = |client: &mut Cable, text: &str| {
            client.perform(&room, &json!({ "action": "speak", "body": text, "client_id": text }).to_string());
            next_for(client, &room, |value| value["message"]["message"]["body"] == text)
        };
        let (mut ann, welcome) = enter("/cable?name=Ann");
        let (mut bob, _) = enter("/cable?name=Bob");
        for client in [&mut ann, &mut bob] {
            client.command("subscribe", &room);
            next_for(client, &room, |value| value["type"] == "confirm_subscription");
        }
        speak(&mut bob, "hello");
        let last = next_for(&mut ann, &room, |value| value["message"]["message"]["body"] == "hello");
        drop(ann);
        speak(&mut bob, "are you there?");
        // What a page says twice, because it does not know what has arrived, is said once.
        bob.perform(&room, &json!({ "action": "speak", "body": "are you there?", "client_id": "are you there?" }).to_string());

        let sid = welcome["sid"].as_str().expect("a sid");
        let (mut ann, welcome) = enter(&format!("/cable?name=Ann&sid={sid}"));
        assert_eq!((&welcome["restored"], &welcome["restored_ids"]), (&json!(true), &json!([room])));
        let position = json!({ "epoch": last["epoch"], "offset": last["offset"] });
        let mut streams = serde_json::Map::new();
        streams.insert(last["stream_id"].as_str().expect("a stream").to_owned(), position);
        ann.send(&json!({ "command": "history", "identifier": room, "history": { "streams": streams } }).to_string());
        assert_eq!(ann.next_json()["message"]["message"]["body"], "are you there?");
        assert_eq!(ann.next_json()["type"], "confirm_history");
    }

    fn who_is_in_a_room_is_told_by_the_broker(driver: Driver) {
        let server = demo(driver);
        let presence = json!({ "channel": "PresenceChannel", "room_id": 1 }).to_string();
        let mut clients = ["Ann", "Bob"].map(|name| Cable::at(&server, &format!("/cable?name={name}")).welcomed());
        for client in &mut clients {
            client.command("subscribe", &presence);
            next_for(client, &presence, |value| value["type"] == "confirm_subscription");
        }
        let [ann, bob] = &mut clients;
        ann.send(&json!({ "command": "join", "identifier": presence, "presence": { "id": "a", "info": { "name": "Ann" } } }).to_string());
        let event = next_for(bob, &presence, |value| value["type"] == "presence");
        assert_eq!(event["message"], json!({ "id": "a", "info": { "name": "Ann" }, "type": "join" }));
        bob.command("presence", &presence);
        assert_eq!(next_for(bob, &presence, |value| value["type"] == "presence")["message"]["total"], 1);
        ann.command("unsubscribe", &presence);
        assert_eq!(next_for(bob, &presence, |value| value["type"] == "presence")["message"], json!({ "id": "a", "type": "leave" }));
    }

    fn demo_ends_cleanly(driver: Driver) {
        let server = demo(driver);
        let mut client = Cable::at(&server, "/cable?name=Ann").welcomed();
        server.terminate();
        assert_eq!(client.next_json()["reason"], "server_restart");
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}

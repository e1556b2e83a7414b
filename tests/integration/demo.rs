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
        for path in ["/demo/app.js", "/demo/app.css", "/demo/actioncable.js"] {
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

    fn demo_ends_cleanly(driver: Driver) {
        let server = demo(driver);
        let mut client = Cable::at(&server, "/cable?name=Ann").welcomed();
        server.terminate();
        assert_eq!(client.next_json()["reason"], "server_restart");
        assert_eq!(server.wait_exit().code(), Some(0));
    }
}

//! Campfire's day: the checklist of `contract/campfire.md` §11, with its 12 channels and Turbo behind a scripted Rails.
//!
//! Points 1, 2, 17 and 18 are in `cli`, `logs` and `metrics`; point 19 is in `load`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::campfire::{
    CLOSED_ROOM, Campfire, ROOM, channel, current_user, page_identifiers, rails_json, room_channel,
    room_gid, turbo_channel,
};
use crate::support::http;
use crate::support::rails::{confirmation, rejection};
use crate::support::raw::{Raw, handshake};
use crate::support::wait::until;
use crate::support::{Cable, Driver, Gate, Launch, Rails, Stage, keys};

/// What stock Rails clients offer.
const SUBPROTOCOLS: &str = "actioncable-v1-json, actioncable-unsupported";

/// The app, a server with exactly Campfire's variables, and a way for the app to broadcast.
struct Scene {
    stage: Stage,
    app: Campfire,
}

impl Scene {
    fn new(driver: Driver) -> Self {
        Self::with(driver, &[])
    }

    fn with(driver: Driver, variables: &[(&str, &str)]) -> Self {
        let rails = Rails::start();
        let app = Campfire::install(&rails);
        let mut launch = Launch::bare()
            .args([
                "--cores=2",
                driver.flag(),
                "--metrics_http=/metrics",
                "--stats_refresh_interval=1",
            ])
            .env("ANYCABLE_HOST", "127.0.0.1")
            .env("ANYCABLE_PORT", "0")
            .env("ANYCABLE_RPC_HOST", rails.url())
            .env("ANYCABLE_BROADCAST_ADAPTER", "http")
            .env("ANYCABLE_SECRET", keys::SECRET)
            .env("ANYCABLE_LOG_LEVEL", "debug");
        for (name, value) in variables {
            launch = launch.env(name, *value);
        }
        let stage = Stage {
            server: launch.start(),
            rails,
        };
        app.broadcasts_to(stage.broadcaster());
        Self { stage, app }
    }

    /// A browser tab of `user`, connected.
    fn tab(&self, user: u32) -> Cable {
        Cable::to(&self.stage.server)
            .user(user)
            .subprotocols(SUBPROTOCOLS)
            .welcomed()
    }

    /// A tab with the room page open: 14 subscriptions.
    fn room_page(&self, user: u32, room: u32) -> Cable {
        self.room_page_at("/cable", user, room)
    }

    fn room_page_at(&self, target: &str, user: u32, room: u32) -> Cable {
        let mut tab = Cable::at(&self.stage.server, target)
            .user(user)
            .subprotocols(SUBPROTOCOLS)
            .welcomed();
        for identifier in page_identifiers(user, room) {
            tab.command("subscribe", &identifier);
        }
        let mut confirmed: Vec<String> = (0..page_identifiers(user, room).len())
            .map(|_| next_reply(&mut tab))
            .collect();
        confirmed.sort_unstable();
        let mut expected: Vec<String> = page_identifiers(user, room)
            .iter()
            .map(|it| confirmation(it))
            .collect();
        expected.sort_unstable();
        assert_eq!(confirmed, expected);
        tab
    }
}

/// The next reply that is not a broadcast to `user_<id>_reads`, which Campfire sends whenever somebody looks at a room.
fn next_reply(tab: &mut Cable) -> String {
    loop {
        let text = tab.next_text();
        if !is_read_mark(&text) {
            return text;
        }
    }
}

fn is_read_mark(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    value["message"].get("room_id").is_some() && value["identifier"] == channel("ReadRoomsChannel")
}

fn next_delivery(tab: &mut Cable, identifier: &str) -> Value {
    let text = next_reply(tab);
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["identifier"], identifier, "{text}");
    value["message"].clone()
}

on_both_drivers! {
    fn points_3_and_4_health_and_broadcast_answer_as_the_stack_expects(driver: Driver) {
        let scene = Scene::new(driver);
        let health = scene.stage.server.get("/health");
        assert_eq!((health.status, health.body.len()), (200, 45));
        let address = scene.stage.server.address();
        let status = |method: &str, token: &str| {
            http::request(address, method, "/_broadcast", &[("Authorization", token), ("Connection", "close")], b"{}").expect("an answer").status
        };
        let good = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        assert_eq!((status("POST", &good), status("POST", "Bearer x"), status("GET", &good)), (201, 401, 422));
        scene.stage.publish("nobody:listens", "1");
        scene.stage.broadcaster().post("unparsable");
    }

    fn points_5_and_7_a_known_cookie_is_welcomed_and_no_cookie_is_not(driver: Driver) {
        let scene = Scene::new(driver);
        let _tab = scene.tab(1);
        let call = &scene.stage.rails.wait_for_calls("connect", 1)[0];
        assert!(call.forwarded("cookie").is_some_and(|cookie| cookie.starts_with("theme=dark; session_token=")));
        assert_eq!(call.url(), format!("http://{}/cable", scene.stage.server.address()));
        let mut stranger = Raw::upgrade(scene.stage.server.address(), "/cable");
        assert_eq!(stranger.next_text(), r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#);
        stranger.expect_close(1000, "Auth Failed");
    }

    fn point_6_kamal_strips_the_prefix_and_names_the_session(driver: Driver) {
        let scene = Scene::with(driver, &[("ANYCABLE_PATH", "/")]);
        let server = &scene.stage.server;
        let _tab = Cable::at(server, "/").user(1).header("X-Request-ID", "0b5e5f0e-uuid").welcomed();
        let call = &scene.stage.rails.wait_for_calls("connect", 1)[0];
        assert_eq!((call.sid.as_str(), call.url()), ("0b5e5f0e-uuid", format!("http://{}/", server.address()).as_str()));
        let mut wrong = Raw::connect(server.address());
        wrong.send(handshake("/cable", &[]).as_bytes());
        assert_eq!(wrong.read_head().status(), 404);
        let other = Scene::new(driver);
        let mut root = Raw::connect(other.stage.server.address());
        root.send(handshake("/", &[]).as_bytes());
        assert_eq!(root.read_head().status(), 404);
    }

    fn point_8_subprotocol_is_selected_or_may_be_missing(driver: Driver) {
        let scene = Scene::new(driver);
        let tab = scene.tab(1);
        assert_eq!(tab.response_header("sec-websocket-protocol"), Some("actioncable-v1-json"));
        assert_eq!(tab.response_header("x-anycable-version"), Some("1.6.16"));
        let k6 = Cable::to(&scene.stage.server).user(1).header("Origin", "http://localhost").welcomed();
        assert_eq!(k6.response_header("sec-websocket-protocol"), None);
    }

    fn point_9_all_page_subscriptions_confirm_and_foreign_ones_reject(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tab = scene.room_page(3, ROOM);
        assert_eq!(scene.stage.rails.calls_to("command").len(), 14);
        let mut tampered = turbo_channel("rooms");
        tampered.replace_range(tampered.len() - 4..tampered.len() - 2, "zz");
        let foreign = [
            room_channel("PresenceChannel", CLOSED_ROOM), room_channel("TypingNotificationsChannel", 999), tampered,
            channel("NoSuchChannel"),
        ];
        for identifier in foreign {
            tab.command("subscribe", &identifier);
            assert_eq!(next_reply(&mut tab), rejection(&identifier));
        }
        // k6 writes a space after the comma, and it must come back.
        let spaced = r#"{"channel":"PresenceChannel", "room_id":1}"#;
        tab.command("subscribe", spaced);
        assert_eq!(next_reply(&mut tab), confirmation(spaced));
        for name in ["InboxMentionsChannel", "InboxThreadsChannel"] {
            tab.command("subscribe", &channel(name));
            assert_eq!(next_reply(&mut tab), confirmation(&channel(name)));
        }
        tab.command("subscribe", &room_channel("RoomChannel", ROOM));
        assert_eq!(next_reply(&mut tab), confirmation(&room_channel("RoomChannel", ROOM)));
    }

    fn point_10_two_browsers_chat_and_a_third_sees_its_badge(driver: Driver) {
        let scene = Scene::new(driver);
        let mut ann = scene.room_page(1, ROOM);
        let mut bob = scene.room_page(2, ROOM);
        let mut cid = scene.tab(3);
        cid.subscribe(&channel("UnreadRoomsChannel"));
        let messages = turbo_channel(&format!("{}:messages", room_gid(ROOM)));

        scene.app.post_message(ROOM, "Hello <b>&amp;</b> \"you\" é");
        for tab in [&mut ann, &mut bob] {
            let html = next_delivery(tab, &messages);
            let expected = "<turbo-stream action=\"append\"><template>Hello <b>&amp;</b> \"you\" é</template></turbo-stream>";
            assert_eq!(html, expected);
            assert_eq!(next_delivery(tab, &channel("UnreadRoomsChannel"))["roomId"], ROOM);
        }
        assert_eq!(next_delivery(&mut cid, &channel("UnreadRoomsChannel"))["roomId"], ROOM);
        cid.expect_nothing_before_pong();

        let typing = room_channel("TypingNotificationsChannel", ROOM);
        for action in ["start", "stop"] {
            ann.perform(&typing, &json!({ "action": action }).to_string());
            for tab in [&mut ann, &mut bob] {
                let message = next_delivery(tab, &typing);
                assert_eq!(message, json!({ "action": action, "user": { "id": 1, "name": "User 1" } }));
            }
        }

        for action in ["replace", "remove", "update"] {
            let html = format!("<turbo-stream action=\"{action}\" target=\"message_1\"></turbo-stream>");
            scene.app.broadcast(&format!("{}:messages", room_gid(ROOM)), &rails_json(&json!(html)));
            for tab in [&mut ann, &mut bob] {
                assert_eq!(next_delivery(tab, &messages), html);
            }
        }
    }

    fn point_10_turbo_html_passes_through_byte_for_byte(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tab = scene.tab(1);
        let rooms = turbo_channel("rooms");
        tab.subscribe(&rooms);
        let data = rails_json(&json!(format!("<turbo-stream>&{}</turbo-stream>", "é<br>".repeat(4_000))));
        scene.app.broadcast("rooms", &data);
        assert_eq!(tab.next_text(), format!(r#"{{"identifier":{},"message":{data}}}"#, json!(rooms)));
    }

    fn broadcast_from_inside_a_subscribe_call_is_accepted_and_delivered(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tab = scene.tab(1);
        tab.subscribe(&channel("ReadRoomsChannel"));
        tab.command("subscribe", &room_channel("PresenceChannel", ROOM));
        // The app published it before it answered the call, so it is here first.
        assert!(is_read_mark(&tab.next_text()));
        assert_eq!(tab.next_text(), confirmation(&room_channel("PresenceChannel", ROOM)));
        assert!(scene.app.is_present(ROOM, 1));
    }

    fn point_11_switching_rooms_keeps_one_socket(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tab = scene.room_page(1, ROOM);
        let bound = |room: u32| {
            vec![
                turbo_channel(&format!("{}:messages", room_gid(room))),
                room_channel("PresenceChannel", room),
                room_channel("TypingNotificationsChannel", room),
                channel("HeartbeatChannel"),
            ]
        };
        for identifier in bound(ROOM) {
            tab.command("unsubscribe", &identifier);
        }
        for identifier in bound(CLOSED_ROOM) {
            tab.command("subscribe", &identifier);
            assert_eq!(next_reply(&mut tab), confirmation(&identifier));
        }
        assert!(scene.app.is_present(CLOSED_ROOM, 1) && !scene.app.is_present(ROOM, 1));
        scene.app.broadcast(&format!("{}:messages", room_gid(ROOM)), "\"old room\"");
        scene.app.broadcast(&format!("{}:messages", room_gid(CLOSED_ROOM)), "\"new room\"");
        assert_eq!(next_delivery(&mut tab, &bound(CLOSED_ROOM)[0]), "new room");
        assert_eq!(scene.stage.rails.calls_to("connect").len(), 1);
    }

    fn point_12_repeated_subscribes_make_one_call_one_confirmation_one_delivery(driver: Driver) {
        let scene = Scene::new(driver);
        let unread = channel("UnreadRoomsChannel");
        let answer = crate::support::Answer::confirm(&unread, &["unread_rooms"]).after(Duration::from_millis(1200));
        scene.stage.rails.on_command("subscribe", &unread, answer);
        let mut tab = scene.tab(1);
        // The client's guarantor repeats every 500 ms; the clock is the test's input here, not its synchronisation.
        for _ in 0..3 {
            tab.command("subscribe", &unread);
            std::thread::sleep(Duration::from_millis(500));
        }
        assert_eq!(tab.next_text(), confirmation(&unread));
        tab.expect_nothing_before_pong();
        scene.stage.publish("unread_rooms", r#"{"roomId":1}"#);
        assert_eq!(next_delivery(&mut tab, &unread), json!({ "roomId": 1 }));
        tab.expect_nothing_before_pong();
        assert_eq!(scene.stage.rails.calls_to("command").len(), 1);
        assert_eq!(scene.stage.server.metric("failed_client_msg_total"), 2);
    }

    fn point_13_closing_a_tab_ends_presence_with_one_call(driver: Driver) {
        let scene = Scene::new(driver);
        let tab = scene.room_page(1, ROOM);
        assert!(scene.app.is_present(ROOM, 1));
        tab.close();
        let call = &scene.stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(call.body["identifiers"], current_user(1));
        let mut subscriptions: Vec<&str> =
            call.body["subscriptions"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        subscriptions.sort_unstable();
        let mut expected = page_identifiers(1, ROOM);
        expected.sort_unstable();
        assert_eq!(subscriptions, expected);
        until("presence to end", || (!scene.app.is_present(ROOM, 1)).then_some(()));
    }

    fn point_13_many_closing_tabs_are_reported_a_hundred_per_second(driver: Driver) {
        let scene = Scene::new(driver);
        let tabs: Vec<Cable> = (1..=150).map(|user| scene.tab(user)).collect();
        drop(tabs);
        let calls = scene.stage.rails.wait_for_calls("disconnect", 150);
        let took = (calls[149].started - calls[0].started).as_secs_f64();
        assert!((1.3..6.0).contains(&took), "150 calls in {took} s");
    }

    fn point_14_ban_closes_all_tabs_of_that_user_and_of_nobody_else(driver: Driver) {
        let scene = Scene::new(driver);
        let mut banned: Vec<Cable> = (0..5).map(|_| scene.tab(7)).collect();
        let mut other = scene.tab(8);
        let ban = json!({ "command": "disconnect", "payload": { "identifier": current_user(7), "reconnect": false } });
        scene.stage.broadcaster().post(&ban.to_string());
        for tab in &mut banned {
            assert_eq!(tab.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":false}"#);
            tab.expect_close(1000, "Closed remotely");
        }
        other.expect_nothing_before_pong();
        scene.stage.rails.wait_for_calls("disconnect", 5);
    }

    fn point_15_sockets_survive_a_rails_restart_and_new_ones_come_back(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tab = scene.room_page_at("/cable?pi=1", 1, ROOM);
        scene.stage.rails.stop();
        let mut refused = Raw::upgrade(scene.stage.server.address(), "/cable");
        assert_eq!(refused.next_frame().close(), (Some(1011), "Auth Error".to_owned()));
        // Three seconds have passed: pings went on, and so do broadcasts.
        let mut pinged = false;
        tab.send(r#"{"command":"ping"}"#);
        loop {
            match tab.next_message() {
                tungstenite::Message::Text(text) if text.starts_with(r#"{"type":"ping""#) => pinged = true,
                tungstenite::Message::Text(text) if text.as_str() == r#"{"type":"pong"}"# => break,
                tungstenite::Message::Text(text) if is_read_mark(&text) => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(pinged, "no ping while the app was away");
        scene.stage.publish("unread_rooms", r#"{"roomId":9}"#);
        assert_eq!(next_delivery(&mut tab, &channel("UnreadRoomsChannel"))["roomId"], 9);
        scene.stage.rails.restart();
        until("a new tab to be welcomed", || {
            let mut raw = Raw::connect(scene.stage.server.address());
            let cookie = format!("Cookie: session_token={}", crate::support::campfire::session_token(2));
            raw.send(handshake("/cable?pi=0", &[&cookie]).as_bytes());
            assert_eq!(raw.read_head().status(), 101);
            (raw.next_frame().opcode == 1).then_some(())
        });
        tab.perform(&room_channel("TypingNotificationsChannel", ROOM), r#"{"action":"start"}"#);
        let typing = next_delivery(&mut tab, &room_channel("TypingNotificationsChannel", ROOM));
        assert_eq!(typing["action"], "start");
    }

    fn point_16_docker_stop_of_a_few_hundred_tabs_is_over_in_ten_seconds(driver: Driver) {
        let scene = Scene::new(driver);
        let mut tabs: Vec<Cable> = (1..=200).map(|user| scene.tab(user)).collect();
        let started = Instant::now();
        scene.stage.server.terminate();
        for tab in &mut tabs {
            assert_eq!(tab.next_text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
            tab.expect_close(1001, "Server restart");
        }
        assert_eq!(scene.stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        assert_eq!(scene.stage.rails.calls_to("disconnect").len(), 200);
    }

    fn five_puma_threads_and_many_tabs_still_get_everybody_in(driver: Driver) {
        let scene = Scene::new(driver);
        // Every connect waits until 28 are inside at once: the default limit, far more than Rails has threads.
        let gate = Gate::new();
        let held = gate.clone();
        scene.stage.rails.on(move |call| {
            let welcome = crate::support::Answer::welcome(&current_user(1), &[r#"{"type":"welcome"}"#]);
            (call.method == "connect").then(|| welcome.behind(&held))
        });
        let mut tabs: Vec<Cable> = (0..60).map(|_| Cable::to(&scene.stage.server).user(1).open()).collect();
        scene.stage.rails.wait_for_calls("connect", 28);
        scene.stage.server.wait_for_metric("rpc_pending_num", 32);
        gate.open();
        for tab in &mut tabs {
            assert_eq!(tab.next_text(), r#"{"type":"welcome"}"#);
        }
        assert_eq!(scene.stage.rails.parallel_calls_max(), 28);
    }
}

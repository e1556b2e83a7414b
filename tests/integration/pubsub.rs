//! Signed and public streams, served without the app. Source: `contract/auth_streams.md` §5 to §7, §9.1 and §9.3.

use serde_json::json;

use crate::support::{Cable, Driver, Rails, Server, Stage, keys};

const SECRET: &str = "s3Krit";

/// J2 of the contract.
const TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.-TcgDHbNTFGwcSMcFEHvmNtgJjatYZ6iGw-QYUaIJrg";

/// S1 of the contract: the stream `chat/2023`.
const SIGNED: &str =
    "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c";

/// S1 to S17 and the stream when the name is accepted. S6 is accepted and S14 refused, as the contract recommends.
const VECTORS: [(&str, &str, Option<&str>); 17] = [
    ("S1", SIGNED, Some("chat/2023")),
    (
        "S2",
        "Im5vdGlmaWNhdGlvbnMvMTci--c62400386f163b04d299833afb1dc07263d6c8c534fd223de19177e92de231ed",
        Some("notifications/17"),
    ),
    (
        "S3",
        "ImNhZsOpLzEi--5bb1eea7346d4d5da83ff8d072fc2f572ada875a55905b767d66d27b9fa0b3de",
        Some("café/1"),
    ),
    (
        "S4",
        "ImNhZlx1MDBlOS8xIg==--afe43c37f71e157b22312e75eb00f2e2b05f0316502dff16444c0f3c2f6055d2",
        Some("café/1"),
    ),
    (
        "S5",
        "ImE/Yj5jfiI=--4de6ed71e89f22abab791291154d858a234cc739786309dd7d554e200e717df6",
        Some("a?b>c~"),
    ),
    (
        "S6",
        "ImE_Yj5jfiI=--071ba877f4f8b66ca09c037f7b90ff9dc7b0f0341b025ab43d8ca7d2d8b7e008",
        Some("a?b>c~"),
    ),
    ("S7", SIGNED, Some("chat/2023")),
    (
        "S8",
        "ImNoYXQvMjAyMyI=--2B2E054B6413BF3BC7E8BBAD2F68962AA2BA19821800CCBD8DE6FD7314E8320C",
        None,
    ),
    (
        "S9",
        "ImNoYXQvMSI--a6f77399284af6429d8a5a03b486e370c1b51d9da30e109b2379dc200ac1a61f",
        None,
    ),
    (
        "S10",
        "ImNoYXQvMjAyMyI=--d62670fccb54ef166ae2d10fd1bc3d65705c7e04ac699c52899e969b26c07994",
        None,
    ),
    (
        "S11",
        "ImNoYXQvMjAyMyI=--03f5fc02d1df23911d39c85d53c5109d96b4036ea81a5d868b4cfcf281dd2f50",
        None,
    ),
    (
        "S12",
        "NDI=--2d53b38533171491dd1a58c191944702e1782607fc51394999267fb18def0fc6",
        None,
    ),
    (
        "S13",
        "WyJhIl0=--e7d945d1d982a9df75295fa3971e14f7c652afa26ba2f89093541a8ee8a48e2b",
        None,
    ),
    (
        "S14",
        "IiI=--2a111c4d4ce3ca2bb84d8d2af6d29fa8ff12419ac99d7c5b7cb8099e54504dd4",
        None,
    ),
    (
        "S15",
        "Y2hhdC8x--cde340361a096c22e77ca956414735079215450fdad68c84201bcd42d4728bce",
        None,
    ),
    (
        "S16",
        "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c--x",
        None,
    ),
    (
        "S17",
        "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e83200",
        None,
    ),
];

fn stage(driver: Driver, args: &[&str]) -> Stage {
    let rails = Rails::start_with("/_anycable", Some(&keys::rpc_token(SECRET)));
    let server = Stage::launch(driver, &rails)
        .arg(format!("--secret={SECRET}"))
        .args(args.iter().copied())
        .start();
    Stage { server, rails }
}

fn client(server: &Server) -> Cable {
    Cable::at(server, &format!("/cable?jid={TOKEN}")).welcomed()
}

fn publish(stage: &Stage, stream: &str, data: &str) {
    let mut broadcaster = stage.broadcaster();
    broadcaster.token = Some(keys::broadcast_token(SECRET));
    broadcaster.publish(stream, data);
}

fn signed(name: &str) -> String {
    json!({ "channel": "$pubsub", "signed_stream_name": name }).to_string()
}

fn public(name: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": name }).to_string()
}

/// The server's own confirmation or rejection: type first.
fn verdict(identifier: &str, accepted: bool) -> String {
    let kind = if accepted {
        "confirm_subscription"
    } else {
        "reject_subscription"
    };
    format!(r#"{{"type":"{kind}","identifier":{}}}"#, json!(identifier))
}

fn check(client: &mut Cable, identifier: &str, accepted: bool, what: &str) {
    client.command("subscribe", identifier);
    assert_eq!(client.next_text(), verdict(identifier, accepted), "{what}");
}

on_both_drivers! {
    fn full_exchange_of_the_contract(driver: Driver) {
        let stage = stage(driver, &["--norpc", "--noauth=false"]);
        let mut client = client(&stage.server);
        let identifier = format!(r#"{{"channel":"$pubsub","signed_stream_name":"{SIGNED}"}}"#);
        check(&mut client, &identifier, true, "S1");
        publish(&stage, "chat/2023", r#"{"text":"hi"}"#);
        let expected = format!(r#"{{"identifier":{},"message":{{"text":"hi"}}}}"#, json!(identifier));
        assert_eq!(client.next_text(), expected);
        assert!(stage.rails.calls().is_empty());
    }

    fn every_signed_name_vector_has_its_verdict_and_its_stream(driver: Driver) {
        let stage = stage(driver, &["--norpc"]);
        for (id, name, stream) in VECTORS {
            let mut client = client(&stage.server);
            check(&mut client, &signed(name), stream.is_some(), id);
            if let Some(stream) = stream {
                publish(&stage, stream, "1");
                assert_eq!(client.next_json(), json!({ "identifier": signed(name), "message": 1 }), "{id}");
            }
        }
    }

    fn plain_names_need_public_streams(driver: Driver) {
        let closed = stage(driver, &["--norpc"]);
        let mut client_of_closed = client(&closed.server);
        check(&mut client_of_closed, &public("chat"), false, "public streams are off");
        let open = stage(driver, &["--norpc", "--public_streams"]);
        let mut client_of_open = client(&open.server);
        check(&mut client_of_open, &public("chat"), true, "public streams are on");
        check(&mut client_of_open, &public(""), false, "no name");
        check(&mut client_of_open, r#"{"channel":"$pubsub"}"#, false, "no name at all");
        check(&mut client_of_open, r#"{"channel":"$pubsub","stream_name":5}"#, false, "wrong type");
        let both = json!({ "channel": "$pubsub", "stream_name": "chat", "signed_stream_name": "bad--sig" }).to_string();
        check(&mut client_of_open, &both, false, "a signed name that is wrong is final");
        publish(&open, "chat", "1");
        assert_eq!(client_of_open.next_json()["message"], 1);
    }

    fn signed_streams_never_touch_the_app_except_for_messages(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = client(&stage.server);
        check(&mut client, &signed(SIGNED), true, "S1");
        client.command("unsubscribe", &signed(SIGNED));
        client.expect_nothing_before_pong();
        publish(&stage, "chat/2023", "1");
        client.expect_nothing_before_pong();
        assert!(stage.rails.calls().is_empty());
        check(&mut client, &signed(SIGNED), true, "again");
        client.perform(&signed(SIGNED), "x");
        client.next_text();
        assert_eq!(stage.rails.summaries(), [format!("message {}", signed(SIGNED))]);
    }

    fn token_session_with_signed_streams_has_no_disconnect_call(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = client(&stage.server);
        check(&mut client, &signed(SIGNED), true, "S1");
        check(&mut client, &signed("bad"), false, "bad");
        client.close();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(stage.rails.calls().is_empty());
    }

    fn without_a_streams_secret_every_signed_name_is_rejected(driver: Driver) {
        let stage = stage(driver, &["--streams_secret=none"]);
        let mut client = client(&stage.server);
        for (id, name, _) in VECTORS {
            check(&mut client, &signed(name), false, id);
        }
    }

    fn streams_secret_of_its_own_is_used(driver: Driver) {
        let stage = stage(driver, &["--streams_secret=other"]);
        let mut client = client(&stage.server);
        check(&mut client, &signed(SIGNED), false, "signed with the application secret");
        check(&mut client, &signed(&keys::signed_stream_name("other", "a b")), true, "signed with its own");
    }

    fn turbo_goes_to_the_app_unless_it_is_switched_on(driver: Driver) {
        let turbo = json!({ "channel": "Turbo::StreamsChannel", "signed_stream_name": SIGNED }).to_string();
        let off = stage(driver, &[]);
        client(&off.server).subscribe(&turbo);
        assert_eq!(off.rails.calls_to("command").len(), 1);
        let on = stage(driver, &["--turbo_streams"]);
        let mut client = client(&on.server);
        check(&mut client, &turbo, true, "turbo");
        check(&mut client, &turbo.replace("8320c", "00000"), false, "tampered");
        publish(&on, "chat/2023", "\"<turbo-stream>\"");
        assert_eq!(client.next_json()["message"], "<turbo-stream>");
        assert!(on.rails.calls().is_empty());
    }

    fn cable_ready_works_the_same_way(driver: Driver) {
        let identifier = json!({ "channel": "CableReady::Stream", "identifier": SIGNED }).to_string();
        let on = stage(driver, &["--cable_ready"]);
        let mut client = client(&on.server);
        check(&mut client, &identifier, true, "cable ready");
        publish(&on, "chat/2023", "1");
        assert_eq!(client.next_json()["message"], 1);
    }

    fn whisper_on_public_streams_reaches_the_others(driver: Driver) {
        let stage = stage(driver, &["--norpc", "--public_streams"]);
        let mut clients: Vec<Cable> = (0..6).map(|_| client(&stage.server)).collect();
        for client in &mut clients {
            check(client, &public("chat"), true, "public");
        }
        clients[0].send(&json!({ "command": "whisper", "identifier": public("chat"), "data": { "typing": true } }).to_string());
        clients[0].expect_nothing_before_pong();
        for client in &mut clients[1..] {
            assert_eq!(client.next_json(), json!({ "identifier": public("chat"), "message": { "typing": true } }));
        }
    }

    fn whisper_on_signed_streams_needs_its_option(driver: Driver) {
        for (args, allowed) in [(&["--norpc"][..], false), (&["--norpc", "--streams_whisper"][..], true)] {
            let stage = stage(driver, args);
            let (mut sender, mut receiver) = (client(&stage.server), client(&stage.server));
            check(&mut sender, &signed(SIGNED), true, "sender");
            check(&mut receiver, &signed(SIGNED), true, "receiver");
            sender.send(&json!({ "command": "whisper", "identifier": signed(SIGNED), "data": 1 }).to_string());
            sender.expect_nothing_before_pong();
            publish(&stage, "chat/2023", "\"marker\"");
            if allowed {
                assert_eq!(receiver.next_json()["message"], 1);
            }
            assert_eq!(receiver.next_json()["message"], "marker");
        }
    }

    fn public_mode_needs_no_keys_at_all(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(["--public", "--norpc"]).start();
        server.wait_for_log(&["WRN", "Server is running in the public mode"]);
        let mut client = Cable::to(&server).welcomed();
        check(&mut client, &public("chat"), true, "public");
        let broadcaster = crate::support::http::Broadcaster {
            address: server.address(), path: "/_broadcast".to_owned(), token: None,
        };
        broadcaster.publish("chat", "1");
        assert_eq!(client.next_json()["message"], 1);
    }
}

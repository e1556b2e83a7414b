//! Who may connect: JWT, `noauth`, `norpc` and their combinations. Source: `contract/auth_streams.md` §1, §3, §4 and §9.2.

use serde_json::{Value, json};

use crate::support::raw::{Raw, handshake};
use crate::support::{Cable, Driver, Rails, Server, Stage, keys};

/// The secret of the vectors.
const SECRET: &str = "s3Krit";

const VALID: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.-TcgDHbNTFGwcSMcFEHvmNtgJjatYZ6iGw-QYUaIJrg";
const EXPIRED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.RK1sfmRVVWzNcucJpP3-xJlFOdUbT0sZ5A-8eIJU-7M";

const UNAUTHORIZED: &str = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
const TOKEN_EXPIRED: &str = r#"{"type":"disconnect","reason":"token_expired","reconnect":false}"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Welcome,
    Unauthorized,
    Expired,
    /// Close 1011 without a message.
    Error,
}

use Outcome::{Error, Expired, Unauthorized, Welcome};

/// J1 to J23.
const VECTORS: [(&str, &str, Outcome); 23] = [
    (
        "J1",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.jLskgCJzIKBN9nOZRH4-1sX6NDWD3CeevYySwiWAdzI",
        Welcome,
    ),
    ("J2", VALID, Welcome),
    (
        "J3",
        "eyJhbGciOiJIUzM4NCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.QqeVKbvn3lPJb-KMNf01fnJ5ITH39iAfq8GaQV0qe7QEdgbLUOVHat7WqP69oxyH",
        Welcome,
    ),
    (
        "J4",
        "eyJhbGciOiJIUzUxMiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.pPR2WtE8rR5QXg_aHRDRcEUeS76IwTA5gvYAZ9gccPFPolAoWhpqLzVvmsDpySgNfEMKITXHzEOYD4uL0tRANw",
        Welcome,
    ),
    ("J5", EXPIRED, Expired),
    (
        "J6",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.gB0jjo3lLdBp-a1uQfzYc71gx0LgrAEsyi8rAYsG_lw",
        Unauthorized,
    ),
    (
        "J7",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ._s1k_CMdPZDzRlhZguoceOr6RLAbygvHp2tbz_CV5LQ",
        Unauthorized,
    ),
    (
        "J8",
        "eyJhbGciOiJub25lIn0.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.",
        Unauthorized,
    ),
    (
        "J9",
        "eyJhbGciOiJSUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.V3SGdobmZH8umP6sTNMoVZW7gvcThmqJw0aerRv2sEg",
        Unauthorized,
    ),
    (
        "J10",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjowfQ.fVflVAGnXe4Lklac9rBEikkatCfbrBKq6nKHLQRtoZk",
        Welcome,
    ),
    (
        "J11",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoiNDEwMjQ0NDgwMCJ9.sr8pTF_CgvDW0c0f-jTyxa-yXxcn9Jh6OeSoyDVV6SE",
        Unauthorized,
    ),
    (
        "J12",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjpudWxsfQ.oUEuJ45ZMleSIu7RJcbtoZJn8Ai7IQ-kzXvXI405WUQ",
        Unauthorized,
    ),
    (
        "J13",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwLjV9.NPNItTl4ZXCwvuS0DKzzMcTlv2vy1X0FiRIR-svUBrs",
        Welcome,
    ),
    (
        "J14",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwibmJmIjo0MTAyNDQ0ODAwfQ.SsbCZugH7zdptKqPQUb8RufAc197TCWTZXEjhV6h2iw",
        Unauthorized,
    ),
    (
        "J15",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwibmJmIjo0MTAyNDQ0ODAwLCJleHAiOjEwMDAwMDAwMDB9.a1kGTUrYVVAmJtUe6m2CMRtbN5HOGDLjtSrMxuIYWXA",
        Expired,
    ),
    (
        "J16",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiaWF0Ijo0MTAyNDQ0ODAwfQ.NRUfMN-pY6OWdwR3wXemAzNu6s3Amb89Bi8kTTJeZFk",
        Welcome,
    ),
    (
        "J17",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxNSIsImV4cCI6NDEwMjQ0NDgwMH0.AfYrt7j54MoBPoaZm0sNV5ln7qiwSrmWOoGNV-mh7_g",
        Error,
    ),
    (
        "J18",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOnsidXNlcl9pZCI6MTV9LCJleHAiOjQxMDI0NDQ4MDB9.zNA_x1BHBkj-HLb0CfFsdrqFtpjiZRcMCwuFqutqtVQ",
        Error,
    ),
    (
        "J19",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiIiLCJleHAiOjQxMDI0NDQ4MDB9.AqfV75blZ16MYjbwY3GFCXRp2aAbvO5SMeDjC292JL4",
        Welcome,
    ),
    (
        "J20",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ1c2VyLTE1IiwiZXhwIjo0MTAyNDQ0ODAwfQ.tNzkoq1SrF3jY1Iyv1WukLDKgtupAE9iVPj9bZfe3Ks",
        Welcome,
    ),
    ("J21", "secret-token-not-a-jwt-at-all", Unauthorized),
    (
        "J22",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjEwMDAwMDAwMDB9.2bDxrvw9gwCS9hhjubbVLJXrTJ4coyUN3a8onQILQNY",
        Expired,
    ),
    (
        "J23",
        "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjotMX0.KnsA3gMEB8dNGm7kcOoAF1Gtteo5OEAOPgIN4BQdXls",
        Expired,
    ),
];

/// The app and a server that knows [`SECRET`].
fn stage(driver: Driver, args: &[&str]) -> Stage {
    let rails = Rails::start_with("/_anycable", Some(&keys::rpc_token(SECRET)));
    let server = Stage::launch(driver, &rails)
        .arg(format!("--secret={SECRET}"))
        .args(args.iter().copied())
        .start();
    Stage { server, rails }
}

/// Connects and checks what comes; gives the welcome.
fn connect(
    server: &Server,
    target: &str,
    headers: &[&str],
    expected: Outcome,
    what: &str,
) -> Value {
    let mut raw = Raw::connect(server.address());
    raw.send(handshake(target, headers).as_bytes());
    assert_eq!(raw.read_head().status(), 101, "{what}");
    match expected {
        Welcome => {
            let welcome = raw.next_json();
            assert_eq!(welcome["type"], "welcome", "{what}");
            return welcome;
        }
        Unauthorized => assert_eq!(raw.next_text(), UNAUTHORIZED, "{what}"),
        Expired => assert_eq!(raw.next_text(), TOKEN_EXPIRED, "{what}"),
        Error => {}
    }
    if expected == Error {
        raw.expect_close(1011, "Auth Error");
    } else {
        raw.expect_close(1000, "Auth Failed");
    }
    Value::Null
}

on_both_drivers! {
    fn every_vector_of_the_contract_has_its_outcome(driver: Driver) {
        let stage = stage(driver, &[]);
        for (id, token, outcome) in VECTORS {
            connect(&stage.server, &format!("/cable?jid={token}"), &[], outcome, id);
            connect(&stage.server, "/cable", &[&format!("X-JID: {token}")], outcome, id);
        }
        let refused = VECTORS.iter().filter(|vector| matches!(vector.2, Unauthorized | Expired)).count();
        stage.server.wait_for_metric("failed_auths_total", 2 * refused as i64);
        assert!(stage.rails.calls().is_empty(), "a token that is present is final");
    }

    fn welcome_of_the_server_names_the_session(driver: Driver) {
        let stage = stage(driver, &[]);
        let target = format!("/cable?jid={VALID}");
        let welcome = connect(&stage.server, &target, &["X-Request-ID: a\"b"], Welcome, "quoted sid");
        assert_eq!(welcome, json!({ "type": "welcome", "sid": "a\"b" }));
        let welcome = connect(&stage.server, &target, &[], Welcome, "own sid");
        assert_eq!(welcome["sid"].as_str().map(str::len), Some(21));
    }

    fn token_is_looked_for_in_header_then_subprotocol_then_query(driver: Driver) {
        let stage = stage(driver, &[]);
        let (good, bad) = (VALID, "bad");
        let header = |token: &str| format!("X-JID: {token}");
        let protocol = |token: &str| format!("Sec-WebSocket-Protocol: actioncable-v1-json, anycable-token.{token}");
        let query = |token: &str| format!("/cable?jid={token}");
        let check = |target: &str, lines: &[&str], outcome, what| connect(&stage.server, target, lines, outcome, what);
        check("/cable", &[&protocol(good)], Welcome, "subprotocol");
        check(&query(good), &[&header(bad)], Unauthorized, "header before query");
        check(&query(bad), &[&header(good)], Welcome, "header before query");
        check("/cable", &[&header(bad), &protocol(good)], Unauthorized, "header before subprotocol");
        check(&query(bad), &[&protocol(good)], Welcome, "subprotocol before query");
        check(&format!("/cable?jid={good}&jid={bad}"), &[], Welcome, "first of a repeated parameter");
        check("/cable", &[&header(&format!("Bearer {good}"))], Unauthorized, "no Bearer prefix");
        check("/cable?a=1;b=2", &[], Error, "a semicolon makes the query unparsable");
        assert!(stage.rails.calls().is_empty());
    }

    fn subprotocol_token_is_not_echoed(driver: Driver) {
        let stage = stage(driver, &[]);
        let offer = format!("actioncable-v1-json, anycable-token.{VALID}");
        let client = Cable::to(&stage.server).subprotocols(&offer).open();
        assert_eq!(client.response_header("sec-websocket-protocol"), Some("actioncable-v1-json"));
    }

    fn parameter_name_can_be_changed(driver: Driver) {
        let stage = stage(driver, &["--jwt_param=token"]);
        connect(&stage.server, &format!("/cable?token={VALID}"), &[], Welcome, "query");
        connect(&stage.server, "/cable", &[&format!("X-Token: {VALID}")], Welcome, "header");
        stage.server.wait_for_log(&["JWT authentication is enabled (param: token, enforced: false)"]);
    }

    fn table_of_combinations_holds(driver: Driver) {
        // (arguments, no token, valid token, bad token, RPC connects made)
        let rows: [(&[&str], Outcome, Outcome, Outcome, usize); 6] = [
            (&[], Welcome, Welcome, Unauthorized, 1),
            (&["--enforce_jwt"], Unauthorized, Welcome, Unauthorized, 0),
            (&["--enforce_jwt", "--noauth"], Unauthorized, Welcome, Unauthorized, 0),
            (&["--noauth"], Welcome, Welcome, Unauthorized, 0),
            (&["--norpc"], Unauthorized, Welcome, Unauthorized, 0),
            (&["--norpc", "--noauth"], Welcome, Welcome, Unauthorized, 0),
        ];
        for (args, without, valid, bad, connects) in rows {
            let stage = stage(driver, args);
            let what = args.join(" ");
            connect(&stage.server, "/cable", &[], without, &what);
            connect(&stage.server, &format!("/cable?jid={VALID}"), &[], valid, &what);
            connect(&stage.server, "/cable?jid=bad", &[], bad, &what);
            assert_eq!(stage.rails.calls_to("connect").len(), connects, "{what}");
        }
    }

    fn without_a_secret_a_token_is_just_a_parameter(driver: Driver) {
        let stage = stage(driver, &["--jwt_secret=none"]);
        connect(&stage.server, "/cable?jid=bad", &[], Welcome, "RPC decides");
        assert!(stage.rails.wait_for_calls("connect", 1)[0].url().ends_with("/cable?jid=bad"));
    }

    fn token_identity_is_sent_to_the_app_and_found_by_remote_disconnects(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = Cable::at(&stage.server, &format!("/cable?jid={VALID}&x=1")).header("Cookie", "a=b").welcomed();
        client.subscribe("A");
        let call = stage.rails.wait_for_command("subscribe", "A");
        assert_eq!(call.body["connection_identifiers"], r#"{"user_id":15}"#);
        assert_eq!(call.forwarded("cookie"), Some("a=b"));
        assert!(call.url().contains("&x=1"));
        assert!(call.body["env"].get("cstate").is_none());
        let mut broadcaster = stage.broadcaster();
        broadcaster.token = Some(keys::broadcast_token(SECRET));
        broadcaster.post(r#"{"command":"disconnect","payload":{"identifier":"{\"user_id\":15}","reconnect":true}}"#);
        assert_eq!(client.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":true}"#);
        client.expect_close(1000, "Closed remotely");
        stage.rails.wait_for_calls("disconnect", 1);
    }

    fn token_of_header_or_subprotocol_reaches_the_app_as_header(driver: Driver) {
        let stage = stage(driver, &[]);
        let offer = format!("actioncable-v1-json, anycable-token.{VALID}");
        Cable::to(&stage.server).subprotocols(&offer).welcomed().subscribe("A");
        assert_eq!(stage.rails.wait_for_command("subscribe", "A").forwarded("x-jid"), Some(VALID));
        Cable::to(&stage.server).header("X-JID", VALID).welcomed().subscribe("B");
        assert_eq!(stage.rails.wait_for_command("subscribe", "B").forwarded("x-jid"), Some(VALID));
    }

    fn tokens_are_never_logged(driver: Driver) {
        let stage = stage(driver, &["--log_level=info"]);
        connect(&stage.server, &format!("/cable?jid={VALID}"), &[], Welcome, "good");
        connect(&stage.server, &format!("/cable?jid={EXPIRED}"), &[], Expired, "expired");
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        let log = stage.server.log().join("\n");
        assert!(!log.contains(VALID) && !log.contains(EXPIRED) && !log.contains(SECRET), "{log}");
    }

    fn noauth_gives_each_session_an_identity_of_its_own(driver: Driver) {
        let stage = stage(driver, &["--noauth"]);
        let mut client = Cable::to(&stage.server).header("X-Request-ID", "me").welcomed();
        client.subscribe("A");
        let call = stage.rails.wait_for_command("subscribe", "A");
        assert_eq!(call.body["connection_identifiers"], r#"{"sid":"me"}"#);
        assert!(stage.rails.calls_to("connect").is_empty());
    }

    fn without_rpc_nobody_subscribes_to_a_channel_of_the_app(driver: Driver) {
        let stage = stage(driver, &["--norpc", "--noauth"]);
        let mut client = Cable::to(&stage.server).welcomed();
        client.command("subscribe", "A");
        assert_eq!(client.next_text(), r#"{"type":"reject_subscription","identifier":"A"}"#);
        client.perform("A", "x");
        client.command("unsubscribe", "A");
        client.expect_nothing_before_pong();
    }
}

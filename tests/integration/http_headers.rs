//! Header lines that come several times. Proxies for HTTP/2 split cookies, and a list may come in any number of lines.
//! Source: RFC 9110 §5.3, RFC 9113 §8.2.3, RFC 6455 §11.3.

use crate::support::rails::Call;
use crate::support::raw::{Head, KEY, Raw, handshake};
use crate::support::{Driver, Stage, keys};

/// The head of the answer to an upgrade with these lines.
fn answer(stage: &Stage, lines: &[&str]) -> Head {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable?pi=0", lines).as_bytes());
    raw.read_head()
}

/// What the app is asked at a Connect with these lines.
fn connect(stage: &Stage, lines: &[&str]) -> Call {
    let before = stage.rails.calls_to("connect").len();
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable?pi=0", lines).as_bytes());
    assert_eq!(raw.read_head().status(), 101, "{lines:?}");
    assert!(raw.next_text().contains("welcome"));
    stage
        .rails
        .wait_for_calls("connect", before + 1)
        .remove(before)
}

fn stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, args)
}

on_both_drivers! {
    fn cookies_of_several_lines_reach_the_app_together(driver: Driver) {
        let stage = stage(driver, &[]);
        let table: [(&[&str], Option<&str>); 6] = [
            (&["cookie: theme=dark", "cookie: session_token=abc--def"], Some("theme=dark; session_token=abc--def")),
            (&["Cookie: a=1; b=2", "X-Between: x", "cookie: c=3", "COOKIE: d=x,y=z"], Some("a=1; b=2; c=3; d=x,y=z")),
            (&["Cookie:", "Cookie: a=1"], Some("a=1")),
            (&["Cookie: a=1"], Some("a=1")),
            (&["Cookie:"], None),
            (&[], None),
        ];
        for (lines, expected) in table {
            assert_eq!(connect(&stage, lines).forwarded("cookie"), expected, "{lines:?}");
        }
        let many: Vec<String> = (0..240).map(|number| format!("cookie: name{number}=value{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let expected: Vec<&str> = many.iter().map(|line| &line["cookie: ".len()..]).collect();
        assert_eq!(connect(&stage, &many).forwarded("cookie"), Some(expected.join("; ").as_str()));
    }

    fn the_cookie_filter_sees_all_lines(driver: Driver) {
        let stage = stage(driver, &["--proxy-cookies=session_token,second"]);
        let lines = ["Cookie: theme=dark", "Cookie: session_token=abc--def; other=1", "Cookie: third=3", "Cookie: second=2"];
        assert_eq!(connect(&stage, &lines).forwarded("cookie"), Some("session_token=abc--def; second=2"));
        assert_eq!(connect(&stage, &["Cookie: a=1", "Cookie: b=2"]).forwarded("cookie"), None);
    }

    fn lists_are_forwarded_whole_and_single_values_are_not_mixed(driver: Driver) {
        let names = "cookie,x-forwarded-for,x-forwarded-proto,forwarded,x-own,accept-language,authorization,origin,user-agent";
        let stage = stage(driver, &[&format!("--headers={names}")]);
        let lines = [
            "X-Forwarded-For: 203.0.113.7",
            "x-forwarded-for: 198.51.100.2, 10.0.0.1",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Proto: http",
            "Forwarded: for=203.0.113.7;proto=https",
            "Forwarded: for=\"[2001:db8::1]\"",
            "X-Own: one",
            "X-Own: two",
            "Accept-Language: de",
            "Accept-Language: en;q=0.5",
            "Authorization: Bearer first",
            "Authorization: Bearer second",
            "Origin: http://first.example",
            "Origin: http://second.example",
            "User-Agent: first",
            "User-Agent: second",
        ];
        let call = connect(&stage, &lines);
        for (name, expected) in [
            ("x-forwarded-for", "203.0.113.7, 198.51.100.2, 10.0.0.1"),
            ("x-forwarded-proto", "https, http"),
            ("forwarded", "for=203.0.113.7;proto=https, for=\"[2001:db8::1]\""),
            ("x-own", "one, two"),
            ("accept-language", "de, en;q=0.5"),
            ("authorization", "Bearer first"),
            ("origin", "http://first.example"),
            ("user-agent", "first"),
        ] {
            assert_eq!(call.forwarded(name), Some(expected), "{name}");
        }
    }

    fn subprotocols_of_several_lines_are_one_list(driver: Driver) {
        let stage = stage(driver, &[]);
        let table: [(&[&str], Option<&str>); 5] = [
            (&["actioncable-unsupported", "actioncable-v1-json"], Some("actioncable-v1-json")),
            (&["actioncable-v1-ext-json", "actioncable-v1-json"], Some("actioncable-v1-json")),
            (&["foo", "bar, actioncable-v1-ext-json"], Some("actioncable-v1-ext-json")),
            (&["", "actioncable-v1-json"], Some("actioncable-v1-json")),
            (&["foo", "bar"], None),
        ];
        for (values, expected) in table {
            let lines: Vec<String> = values.iter().map(|value| format!("Sec-WebSocket-Protocol: {value}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let head = answer(&stage, &lines);
            assert_eq!((head.status(), head.header("Sec-WebSocket-Protocol")), (101, expected), "{values:?}");
        }
    }

    fn a_token_is_found_in_any_line(driver: Driver) {
        let stage = stage(driver, &["--enforce_jwt"]);
        let token = keys::jwt(keys::SECRET, r#"{"ext":"{\"user\":1}"}"#);
        let as_protocol = format!("Sec-WebSocket-Protocol: anycable-token.{token}");
        let as_header = format!("X-Jid: {token}");
        let table: [&[&str]; 4] = [
            &["Sec-WebSocket-Protocol: actioncable-v1-json", &as_protocol],
            &[&as_protocol, "sec-websocket-protocol: actioncable-v1-json"],
            &["X-JID:", &as_header],
            // No list: the first counts, the other is not glued to it.
            &[&as_header, "X-Jid: another"],
        ];
        for lines in table {
            let mut raw = Raw::connect(stage.server.address());
            raw.send(handshake("/cable?pi=0", lines).as_bytes());
            assert_eq!(raw.read_head().status(), 101);
            assert!(raw.next_text().contains("welcome"), "{lines:?}");
        }
    }

    fn the_upgrade_itself_may_be_split(driver: Driver) {
        let stage = stage(driver, &[]);
        let split = handshake("/cable", &[])
            .replace("Connection: keep-alive, Upgrade", "Connection: keep-alive\r\nConnection: Upgrade")
            .replace("Upgrade: websocket", "Upgrade: h2c\r\nUpgrade: websocket");
        let mut raw = Raw::connect(stage.server.address());
        raw.send(split.as_bytes());
        assert_eq!(raw.read_head().status(), 101);
    }

    fn what_may_come_once_may_not_come_twice(driver: Driver) {
        let stage = stage(driver, &["--allowed_origins=good.example"]);
        let good = "Origin: http://good.example";
        let key = format!("Sec-WebSocket-Key: {KEY}");
        let table: [(&[&str], u16); 6] = [
            (&[good], 101),
            (&[good, "Host: other"], 400),
            (&[good, &key], 400),
            (&[good, "Sec-WebSocket-Version: 13"], 400),
            (&[good, "Origin: http://evil.example"], 403),
            (&["Origin: http://evil.example", good], 403),
        ];
        for (lines, status) in table {
            assert_eq!(answer(&stage, lines).status(), status, "{lines:?}");
        }
    }
}

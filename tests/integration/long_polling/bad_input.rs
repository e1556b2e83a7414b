//! What no client should send: each gets a clear answer, and the session or the server goes on.

use serde_json::json;

use super::{SUBSCRIBE_A, confirmation, data, parsed, publish, stage, subscribed};
use crate::support::Poller;
use crate::support::http::{HttpConnection, request};
use crate::support::poller::{POLL_ID, messages, try_open};

on_both_drivers! {
    fn other_methods_are_refused(driver: Driver) {
        let stage = stage(driver, &[]);
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH"] {
            let answer = request(stage.server.address(), method, "/lp", &[], b"").expect("an answer");
            assert_eq!((answer.status, answer.header("allow")), (405, Some("POST, OPTIONS")), "{method}");
        }
        assert_eq!(stage.server.metric("long_poll_clients_num"), 0);
    }

    fn an_id_that_was_not_given_out_is_refused(driver: Driver) {
        let stage = stage(driver, &["--cores=2"]);
        let client = subscribed(&stage);
        let other_end = if client.id.ends_with('a') { "b" } else { "a" };
        let changed = format!("{}{other_end}", &client.id[..34]);
        let ids = [
            // A slot, a generation, a shard, a secret of another.
            client.id.replacen(&client.id[2..4], "zz", 1),
            format!("{}zz{}", &client.id[..8], &client.id[10..]),
            format!("ZZ{}", &client.id[2..]),
            changed,
            "undefined".to_owned(),
            "x".repeat(60_000),
            "%00".to_owned(),
        ];
        for id in &ids {
            let answer = client.with_id(id).answer(SUBSCRIBE_A);
            assert_eq!(answer.status, 401, "{id:.50}");
            let expected = json!({ "type": "disconnect", "reason": "session_expired", "reconnect": true });
            assert_eq!(messages(&answer), [expected], "{id:.50}");
        }
        assert_eq!(stage.server.metric("long_poll_stale_requests_total"), ids.len() as i64);
        // The session itself was not touched, and one shard's ids mean nothing on another.
        publish(&stage, 1..=1);
        assert_eq!(client.poll(""), [data(1)]);
        // An empty header is none.
        let answer = try_open(stage.server.address(), "/lp", &[(POLL_ID, "")], "");
        assert_eq!(answer.status, 200);
    }

    fn a_request_has_a_largest_size(driver: Driver) {
        let stage = stage(driver, &["--poll_max_request_size=1000"]);
        let client = subscribed(&stage);
        for commands in ["x".repeat(1001), "\n".repeat(100_000)] {
            assert_eq!(client.answer(&commands).status, 413);
            assert_eq!(try_open(stage.server.address(), "/lp", &[], &commands).status, 413);
        }
        let chunked = |bytes: usize| {
            let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
            let head = format!("POST /lp HTTP/1.1\r\nHost: a\r\n{POLL_ID}: {}\r\nTransfer-Encoding: chunked\r\n\r\n", client.id);
            let body = format!("{bytes:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(bytes));
            connection.write((head + &body).as_bytes()).expect("written");
            connection
        };
        assert_eq!(chunked(1001).read_response(false).expect("an answer").status, 413);
        let mut waiting = chunked(1000);
        publish(&stage, 1..=1);
        assert_eq!(messages(&waiting.read_response(false).expect("an answer")), [data(1)]);
    }

    fn a_line_that_is_no_command_is_dropped(driver: Driver) {
        let stage = stage(driver, &[]);
        let lines = [
            "{", "null", "5", "\"x\"", "[]", "{}", "\u{0}\u{1}", r#"{"command":5}"#, r#"{"command":"subscribe"}"#,
            r#"{"command":"nothing","identifier":"A"}"#, r#"{"command":"subscribe","identifier":{"a":1}}"#,
            r#"{"command":"message","identifier":"unknown","data":"{}"}"#, r#"{"command":"pong"}"#,
            r#"{"command":"history","identifier":"unknown","history":{"since":"x"}}"#,
        ];
        let nested = "[".repeat(60_000);
        let all = [&lines[..], &[&nested[..5_000], SUBSCRIBE_A]].concat().join("\n");
        let (client, got) = Poller::open(&stage.server, &all);
        assert_eq!(got.last(), Some(&parsed(&confirmation("A"))), "{got:?}");
        for line in lines.iter().copied().chain([&nested[..]]) {
            let waiting = client.start(line);
            publish(&stage, 1..=1);
            assert_eq!(waiting.messages(), [data(1)], "{line:.50}");
        }
        // Bytes that are no text.
        let mut connection = HttpConnection::open(stage.server.address()).expect("accepted");
        let head = format!("POST /lp HTTP/1.1\r\nHost: a\r\n{POLL_ID}: {}\r\nContent-Length: 4\r\n\r\n", client.id);
        connection.write(&[head.as_bytes(), &[0xff, 0xfe, b'\n', 0xc0]].concat()).expect("written");
        publish(&stage, 2..=2);
        assert_eq!(messages(&connection.read_response(false).expect("an answer")), [data(2)]);
    }

    fn too_much_behind_a_poll_ends_its_connection(driver: Driver) {
        let stage = stage(driver, &[]);
        let client = subscribed(&stage);
        let mut waiting = client.start("");
        // The server may close before all of it is written.
        let _ = waiting.connection().write(&vec![b'x'; 1 << 20]);
        assert!(waiting.try_answer().is_err());
        publish(&stage, 1..=1);
        assert_eq!(client.poll(""), [data(1)]);
    }

    fn very_many_commands_are_done_one_after_the_other(driver: Driver) {
        let stage = stage(driver, &["--poll_max_request_size=1048576", "--norpc", "--public", "--broker=memory"]);
        let commands: String = (0..3_000)
            .map(|number| format!("{{\"command\":\"subscribe\",\"identifier\":\"{{\\\"channel\\\":\\\"$pubsub\\\",\\\"stream_name\\\":\\\"s{number}\\\"}}\"}}\n"))
            .collect();
        let (client, mut got) = Poller::open(&stage.server, &commands);
        while got.len() < 3_001 {
            got.extend(client.poll(""));
        }
        assert!(got[1..].iter().all(|message| message["type"] == "confirm_subscription"));
    }
}

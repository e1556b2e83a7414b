//! Clients of server-sent events in the table: what waits before the answer, and what stays after it.

use super::*;
use crate::protocol::event_stream::{View, read};
use crate::shard::sessions::{EventForm, EventRequest};

/// A client whose request has these lines, and whose answer has chunks.
fn ask(bench: &mut Bench, lines: &str) -> TcpStream {
    let form = EventForm {
        view: View::default(),
        chunked: true,
    };
    let client = bench.open(|new| {
        let headers = vec![("Content-Type", "text/event-stream".into())];
        new.transport = Transport::Events(EventRequest { form, headers });
        new.early_input = lines.into();
    });
    client.socket
}

fn line(identifier: &str) -> String {
    json!({ "identifier": identifier }).to_string()
}

fn public(stream: &str) -> String {
    json!({ "channel": "$pubsub", "stream_name": stream }).to_string()
}

/// Everything that comes until the end: the head, and the kinds of the events.
fn rest(mut socket: TcpStream) -> (String, Vec<String>) {
    let mut bytes = Vec::new();
    socket
        .read_to_end(&mut bytes)
        .expect("an end without a reset");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, mut body) = text.split_once("\r\n\r\n").expect("a head");
    let mut events = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        events.push_str(&rest[..size]);
        assert_eq!(&rest[size..size + 2], "\r\n");
        body = &rest[size + 2..];
    }
    let kinds = read(&events).into_iter().map(|event| event.kind);
    (head.to_owned(), kinds.collect())
}

fn used_bytes(bench: &Bench) -> usize {
    bench.sessions.common.budget.used_bytes()
}

fn events_num(bench: &Bench) -> i64 {
    bench.counters().sse_clients_num.value()
}

#[test]
fn what_waits_for_the_answer_is_bounded_and_the_client_is_told() {
    let args = [WITH_RPC, &["--session_bytes_max=1048576"]].concat();
    on_both(&args, |bench| {
        let before = used_bytes(bench);
        let socket = ask(bench, &[line("A"), line("B")].join("\n"));
        let call = bench.call();
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": [WELCOME] }),
        );
        let call = bench.call();
        bench.answer(
            call,
            json!({ "status": 1, "streams": ["x"], "transmissions": [] }),
        );
        // The app does not answer for B.
        let _ = bench.call();
        let mut published = 0;
        while bench.counters().closed_too_slow_total.value() == 0 {
            published += 1;
            assert!(published < 1000, "everything is queued");
            bench.broadcast(&big_message(published));
            assert!(used_bytes(bench) < before + (3 << 20), "{published}");
        }
        bench.until_empty();
        let (head, kinds) = rest(socket);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"));
        assert_eq!(kinds, ["disconnect"]);
        assert_eq!(
            (events_num(bench), bench.clients(), bench.outbox_bytes()),
            (0, 0, 0)
        );
        bench.actions.clear();
        assert_eq!(used_bytes(bench), before);
    });
}

#[test]
fn a_client_that_leaves_before_it_is_known_leaves_nothing() {
    on_both(WITH_RPC, |bench| {
        let before = used_bytes(bench);
        let socket = ask(bench, &line("A"));
        let call = bench.call();
        drop(socket);
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(call.is_canceled() && bench.disconnect_jobs().is_empty());
        bench.until_empty();
        assert_eq!((events_num(bench), bench.outbox_bytes()), (0, 0));
        assert_eq!(used_bytes(bench), before);
    });
}

#[test]
fn a_refusal_goes_out_alone() {
    on_both(WITH_RPC, |bench| {
        let before = used_bytes(bench);
        let refused = |bench: &mut Bench, answers: &[Value], status: &str| {
            let socket = ask(bench, &line("A"));
            for answer in answers {
                let call = bench.call();
                bench.answer(call, answer.clone());
            }
            bench.until_empty();
            let (head, kinds) = rest(socket);
            assert!(
                head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{head}"
            );
            assert!(
                head.ends_with("Content-Length: 0\r\nConnection: close"),
                "{head}"
            );
            assert!(kinds.is_empty());
            bench.actions.clear();
            assert_eq!((events_num(bench), used_bytes(bench)), (0, before));
        };
        let welcome = json!({ "status": 1, "identifiers": "u", "transmissions": [WELCOME] });
        let failure = json!({ "status": 2, "transmissions": ["{\"type\":\"disconnect\"}"] });
        let rejection =
            json!({ "status": 2, "transmissions": ["{\"type\":\"reject_subscription\"}"] });
        refused(bench, &[failure], "401 Unauthorized");
        refused(bench, &[json!({ "status": 0 })], "400 Bad Request");
        refused(bench, &[welcome.clone(), rejection], "400 Bad Request");
        refused(bench, &[welcome, json!({ "status": 0 })], "400 Bad Request");
    });
}

#[test]
fn nothing_but_its_entry_stays_of_a_client_that_is_answered() {
    on_both(PUBLIC, |bench| {
        // More lines than one share of a turn.
        let lines: Vec<String> = (0..300)
            .map(|number| line(&public(&number.to_string())))
            .collect();
        let _socket = ask(bench, &lines.join("\n"));
        bench.until("answer", |bench| events_num(bench) == 1);
        bench.flush();
        let connections = &bench.sessions.table.connections;
        let (_, connection) = connections.iter().next().expect("one client");
        assert!(connection.held.is_none() && connection.outbox.is_none());
        assert_eq!(bench.counters().server_msg_total.value(), 301);
    });
}

//! Random events in random order: at the end the table must be empty and nothing still charged.

use super::*;

/// One event per turn, and a number that chooses the client and the variant.
fn any_turns() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..10u8, any::<u8>()), 0..80)
}

fn name(number: u8, names: u8) -> &'static str {
    ["A", "B", "C"][usize::from(number % names)]
}

/// Clients that never read, and an app that answers in any order.
#[derive(Default)]
struct Crowd {
    clients: Vec<Client>,
    calls: Vec<Call>,
    registered: usize,
    disconnect_calls: usize,
}

impl Crowd {
    fn turn(&mut self, bench: &mut Bench, what: u8, number: u8) {
        match what {
            0 | 1 => self.clients.push(bench.open_narrow()),
            2..=4 if !self.clients.is_empty() => {
                let command = ["subscribe", "message", "unsubscribe"][usize::from(what - 2)];
                let text =
                    json!({ "command": command, "identifier": name(number, 3), "data": "d" })
                        .to_string();
                let index = usize::from(number) % self.clients.len();
                // The server may have closed it.
                let _ = self.clients[index]
                    .socket
                    .write_all(&masked(0x81, text.as_bytes()));
            }
            5 | 6 if !self.calls.is_empty() => {
                let call = self
                    .calls
                    .swap_remove(usize::from(number) % self.calls.len());
                self.answer(bench, call, number);
            }
            7 => bench.broadcast(&big_message(number.into())),
            8 if !self.clients.is_empty() => {
                self.clients
                    .swap_remove(usize::from(number) % self.clients.len());
            }
            8 => bench.disconnect_remotely(name(number, 2), true),
            9 => bench.wait(Duration::from_millis(u64::from(number) * 4)),
            _ => {}
        }
        if what == 6 {
            bench.disconnect_remotely(name(number, 2), true);
        }
        bench.harvest();
        self.sort(bench);
    }

    fn answer(&mut self, bench: &mut Bench, call: Call, number: u8) {
        let connects = matches!(call.question, Question::Connect);
        // Most clients get in.
        let status = if connects && !number.is_multiple_of(8) {
            1
        } else {
            number % 3
        };
        let late = bench.counters().late_results_total.value();
        bench.answer(
            call,
            json!({
                "status": status,
                "identifiers": name(number, 2),
                "streams": ["x", "y"],
                "stop_streams": number.is_multiple_of(5),
                "disconnect": number.is_multiple_of(11),
                "transmissions": ["t"],
            }),
        );
        let heard = bench.counters().late_results_total.value() == late;
        self.registered += usize::from(connects && status == 1 && heard);
    }

    fn sort(&mut self, bench: &mut Bench) {
        for action in bench.actions.drain(..) {
            match action {
                Action::Call(call) => self.calls.push(Call {
                    session: call.session,
                    question: call.question,
                    body: Value::Null,
                    sid: Box::default(),
                    handle: call.handle,
                }),
                Action::Canceled(_) => {}
                Action::Disconnect(_) => self.disconnect_calls += 1,
                Action::Publish(_) => panic!("nobody whispers"),
                Action::Watch | Action::AnswerPoll(_) => panic!("nobody watches"),
                Action::Tell { .. } | Action::TellHome { .. } => panic!("there is no broker"),
            }
        }
    }
}

fn closed(counters: &ShardMetrics) -> u64 {
    [
        &counters.closed_client_total,
        &counters.closed_remote_total,
        &counters.closed_no_pong_total,
        &counters.closed_too_slow_total,
        &counters.closed_write_timeout_total,
        &counters.closed_protocol_error_total,
        &counters.closed_auth_total,
        &counters.closed_shutdown_total,
        &counters.closed_error_total,
    ]
    .into_iter()
    .map(Counter::value)
    .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_nothing_is_left_behind(turns in any_turns()) {
        let args = [WITH_RPC[0], "--ping_interval=1", "--ws_max_pending_size=50000"];
        on_both(&args, |bench| {
            let mut crowd = Crowd::default();
            for &(what, number) in &turns {
                crowd.turn(bench, what, number);
                assert!(bench.clients() >= 0 && bench.outbox_bytes() >= 0, "{}", bench.driver);
            }
            let _drained = bench.close_all();
            bench.wait(Duration::from_millis(2200));
            crowd.sort(bench);
            while let Some(call) = crowd.calls.pop() {
                bench.answer(call, json!({ "status": 1, "streams": ["x"] }));
            }
            let survey = bench.survey();
            assert_eq!((bench.clients(), bench.outbox_bytes()), (0, 0), "{}", bench.driver);
            assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
            assert_eq!((survey.identities.len(), survey.streams.len()), (0, 0), "{}", bench.driver);
            assert_eq!(closed(bench.counters()), bench.opened as u64, "{}", bench.driver);
            assert_eq!(crowd.disconnect_calls, crowd.registered, "{}", bench.driver);
            assert!(bench.sessions.take_drained().is_some() && bench.actions.is_empty());
        });
    }
}

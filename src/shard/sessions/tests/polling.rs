//! Sessions over long polling: when a poll is answered, and that nothing is lost or sent twice in any order of events.

use super::*;
use crate::protocol::poll_id::PollId;
use crate::shard::polls::{NewPolling, PassedPoll, Poll, PollAnswer, PollContent, PollMessages};
use crate::shard::sessions::polling::{POLL_ANSWER_BYTES_MAX, POLL_UNREAD_BYTES_MAX};

const POLLING: &[&str] = &[
    "--norpc",
    "--public",
    "--poll",
    "--poll_flush_interval=200",
    "--poll_interval=10",
    "--poll_keepalive_timeout=5",
];
const SUBSCRIBE_X: &str =
    r#"{"command":"subscribe","identifier":"{\"channel\":\"$pubsub\",\"stream_name\":\"x\"}"}"#;
const FLUSH: Duration = Duration::from_millis(250);

/// An answer that the HTTP phase would write now.
struct Answer {
    poll: Poll,
    messages: PollMessages,
}

impl Answer {
    fn lines(&self) -> Vec<String> {
        let frames = self.messages.frames.iter();
        let bytes: Vec<u8> = frames.flat_map(|frame| frame.pieces().concat()).collect();
        let text = String::from_utf8(bytes).expect("UTF-8");
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }
}

impl Bench {
    fn poll_with(&self) -> (Poll, TcpStream) {
        let (socket, client) = self.pair();
        let poll = Poll {
            socket,
            tls: None,
            permit: None,
            keep_alive: true,
            version_minor: 1,
            rest: None,
        };
        (poll, client)
    }

    /// Opens a session with these commands. Returns its first answer.
    fn open_polling(&mut self, lines: &str) -> (Answer, TcpStream) {
        self.opened += 1;
        let (poll, client) = self.poll_with();
        let new = NewPolling {
            admission: Admission {
                sid: format!("s{}", self.opened),
                ..Admission::default()
            },
            poll,
            lines: lines.to_owned().into_bytes(),
        };
        self.turn(|sessions| sessions.open_polling(new));
        self.flush();
        (self.next_answer(), client)
    }

    /// A client that listens to `x` and has got its id.
    fn polling_listener(&mut self) -> PollId {
        let (answer, _client) = self.open_polling(SUBSCRIBE_X);
        let id = answer.messages.id.expect("the id");
        let lines = answer.lines();
        assert!(
            lines.len() == 2 && lines[1].contains("confirm"),
            "{lines:?}"
        );
        self.end(answer, true);
        id
    }

    fn poll(&mut self, id: PollId, lines: &str) -> TcpStream {
        let (poll, client) = self.poll_with();
        let lines = lines.to_owned().into_bytes();
        let passed = PassedPoll { id, poll, lines };
        self.turn(|sessions| sessions.poll(passed));
        client
    }

    fn answers(&mut self) -> Vec<Answer> {
        let (answers, others) = self
            .actions
            .drain(..)
            .partition(|action| matches!(action, Action::AnswerPoll(_)));
        self.actions = others;
        let answers: VecDeque<Action> = answers;
        let answers = answers.into_iter().filter_map(|action| match action {
            Action::AnswerPoll(answer) => {
                let PollAnswer { poll, content } = *answer;
                match content {
                    PollContent::Messages(messages) => Some(Answer { poll, messages }),
                    PollContent::Expired => None,
                }
            }
            _ => None,
        });
        answers.collect()
    }

    #[track_caller]
    fn next_answer(&mut self) -> Answer {
        let mut answers = self.answers();
        assert_eq!(answers.len(), 1, "{}: one answer", self.driver);
        answers.remove(0)
    }

    fn no_answer(&mut self) {
        assert!(self.answers().is_empty(), "{}: no answer", self.driver);
    }

    /// The HTTP phase has written an answer, or could not.
    fn end(&mut self, answer: Answer, written: bool) {
        drop(answer.poll);
        if let Some(session) = answer.messages.session {
            self.turn(|sessions| sessions.on_poll_answered(session, written));
        }
    }

    fn publish(&mut self, number: usize) {
        self.broadcast(&message("x", &number.to_string()));
    }

    fn polls(&self) -> i64 {
        self.counters().long_poll_clients_num.value()
    }
}

/// The numbers of publications among the lines of an answer.
fn numbers(lines: &[String]) -> Vec<usize> {
    let parsed = lines.iter().map(|line| {
        let message: Value = serde_json::from_str(line).expect("JSON");
        message["message"].as_u64().expect("a number") as usize
    });
    parsed.collect()
}

#[test]
fn messages_answer_a_poll_when_they_have_been_gathered() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        let _client = bench.poll(id, "");
        bench.publish(1);
        bench.no_answer();
        bench.wait(Duration::from_millis(100));
        bench.publish(2);
        bench.no_answer();
        bench.wait(FLUSH);
        let answer = bench.next_answer();
        assert_eq!(answer.messages.status, 200);
        assert!(answer.messages.id.is_none());
        assert_eq!(numbers(&answer.lines()), [1, 2]);
        bench.end(answer, true);
        // The time counts from the message, and not from the poll.
        bench.publish(3);
        bench.wait(FLUSH);
        let _client = bench.poll(id, "");
        assert_eq!(numbers(&bench.next_answer().lines()), [3]);
    });
}

#[test]
fn a_poll_without_messages_is_answered_in_time() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        let _client = bench.poll(id, "");
        bench.wait(Duration::from_millis(9_900));
        bench.no_answer();
        bench.wait(Duration::from_millis(200));
        let answer = bench.next_answer();
        assert!(answer.lines().is_empty());
        bench.end(answer, true);
        assert_eq!(bench.polls(), 1);
    });
}

#[test]
fn an_answer_that_was_not_taken_is_given_again() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        let _client = bench.poll(id, "");
        bench.publish(1);
        bench.wait(FLUSH);
        let answer = bench.next_answer();
        // While it is being written, the client polls again and more comes.
        let _newer = bench.poll(id, "");
        bench.publish(2);
        bench.wait(FLUSH);
        bench.no_answer();
        bench.end(answer, false);
        let answer = bench.next_answer();
        assert_eq!(numbers(&answer.lines()), [1, 2]);
        bench.end(answer, true);
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn an_answer_is_bounded_and_one_message_is_not() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
        for bytes in [
            POLL_ANSWER_BYTES_MAX / 2,
            POLL_ANSWER_BYTES_MAX / 2,
            10,
            2 * POLL_ANSWER_BYTES_MAX,
        ] {
            bench.broadcast(&message("x", &text(bytes)));
        }
        bench.wait(FLUSH);
        for expected in [1, 2, 1] {
            let _client = bench.poll(id, "");
            let answer = bench.next_answer();
            assert_eq!(answer.messages.frames.len(), expected);
            bench.end(answer, true);
        }
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn a_session_ends_when_nobody_polls_and_leaves_nothing() {
    on_both(POLLING, |bench| {
        let before = bench.sessions.common.budget.used_bytes();
        let id = bench.polling_listener();
        bench.publish(1);
        bench.wait(Duration::from_millis(4_900));
        assert_eq!(bench.polls(), 1);
        bench.wait(Duration::from_millis(200));
        assert_eq!((bench.polls(), bench.outbox_bytes()), (0, 0));
        assert!(bench.sessions.is_empty());
        assert_eq!(bench.sessions.common.budget.used_bytes(), before);
        let _client = bench.poll(id, "");
        assert_eq!(bench.counters().long_poll_stale_requests_total.value(), 1);
    });
}

#[test]
fn the_first_answer_that_is_not_taken_ends_the_session() {
    on_both(POLLING, |bench| {
        let (answer, _client) = bench.open_polling("");
        bench.end(answer, false);
        assert!(bench.sessions.is_empty() && bench.polls() == 0);
    });
}

#[test]
fn what_comes_behind_a_poll_goes_on_with_its_socket() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        let mut client = bench.poll(id, "");
        client.write_all(b"GET /next").expect("room");
        let slot = id.slot;
        bench.until("bytes behind the poll", |bench| {
            let polling = bench.sessions.table.polls.find(slot);
            let poll = polling.and_then(|polling| polling.waiting.as_ref());
            poll.is_some_and(|poll| poll.unread_bytes() == b"GET /next".len())
        });
        bench.publish(1);
        bench.wait(FLUSH);
        let answer = bench.next_answer();
        let unread = answer.poll.rest.as_ref().map(|rest| &rest.unread[..]);
        assert_eq!(unread, Some(&b"GET /next"[..]));
        bench.end(answer, true);
        // Too much of it ends the connection, and not the session.
        let mut client = bench.poll(id, "");
        client
            .write_all(&vec![b'x'; POLL_UNREAD_BYTES_MAX + 1])
            .expect("room");
        bench.until("end of the poll", |bench| {
            let polling = bench.sessions.table.polls.find(slot);
            polling.is_some_and(|polling| polling.waiting.is_none())
        });
        assert_eq!(bench.polls(), 1);
    });
}

#[test]
fn a_session_that_ends_gives_its_last_messages_to_the_next_poll() {
    on_both(POLLING, |bench| {
        let id = bench.polling_listener();
        bench.publish(1);
        let identifiers = r#"{"sid":"s1"}"#;
        bench.disconnect_remotely(identifiers, false);
        assert_eq!((bench.polls(), bench.clients()), (0, 0));
        let _client = bench.poll(id, SUBSCRIBE_X);
        let answer = bench.next_answer();
        let lines = answer.lines();
        assert_eq!((answer.messages.status, lines.len()), (200, 2));
        assert!(lines[1].contains(r#""reason":"remote""#));
        bench.end(answer, true);
        assert!(bench.sessions.is_empty());
    });
}

/// Random numbers (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// What one client and the HTTP phase know.
#[derive(Default)]
struct Model {
    published: usize,
    received: usize,
    /// The client's end of the poll that waits.
    waiting: Option<TcpStream>,
    /// Answers that are being written. Only one of them has messages.
    under_way: Vec<Answer>,
}

impl Model {
    fn take_answers(&mut self, bench: &mut Bench) {
        for answer in bench.answers() {
            let numbers = numbers(&answer.lines());
            if !numbers.is_empty() {
                let busy = self.under_way.iter().any(|other| !other.lines().is_empty());
                assert!(!busy, "two answers with messages");
                let next = self.received + 1;
                let expected: Vec<usize> = (next..next + numbers.len()).collect();
                assert_eq!(numbers, expected);
                self.waiting = None;
            }
            self.under_way.push(answer);
        }
    }

    fn act(&mut self, bench: &mut Bench, id: PollId, random: &mut Random) {
        match random.below(8) {
            0 | 1 => {
                self.published += 1;
                bench.publish(self.published);
            }
            2 | 3 => self.waiting = Some(bench.poll(id, "")),
            // The client closes its end. The server may notice that before the next step, or later.
            4 => self.waiting = None,
            5 => bench.harvest(),
            6 if !self.under_way.is_empty() => {
                let at = random.below(self.under_way.len());
                let answer = self.under_way.swap_remove(at);
                let written = random.below(3) > 0;
                let count = answer.lines().len();
                self.received += if written { count } else { 0 };
                bench.end(answer, written);
            }
            _ => bench.wait(TICK * random.below(6) as u32),
        }
        self.take_answers(bench);
    }

    /// Everything is received in the end.
    fn finish(&mut self, bench: &mut Bench, id: PollId) {
        while self.received < self.published || !self.under_way.is_empty() {
            for answer in std::mem::take(&mut self.under_way) {
                self.received += answer.lines().len();
                bench.end(answer, true);
            }
            if self.received < self.published {
                self.waiting = Some(bench.poll(id, ""));
                bench.wait(FLUSH);
            }
            self.take_answers(bench);
        }
    }
}

#[test]
fn in_any_order_of_events_each_message_comes_once_and_in_order() {
    on_both(POLLING, |bench| {
        let before = bench.sessions.common.budget.used_bytes();
        // The same rounds in every run, so the number of the round is all that a failure has to say.
        for round in 0..60_u64 {
            let mut random = Random((round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let id = bench.polling_listener();
            let mut model = Model::default();
            for _ in 0..120 {
                model.act(bench, id, &mut random);
                assert_eq!(bench.polls(), 1, "round {round}");
            }
            model.finish(bench, id);
            assert_eq!(bench.outbox_bytes(), 0, "round {round}");
            drop(model);
            bench.wait(Duration::from_secs(20));
            let answers = bench.answers();
            answers
                .into_iter()
                .for_each(|answer| bench.end(answer, false));
            bench.wait(Duration::from_secs(6));
            assert!(bench.sessions.is_empty(), "round {round}");
            bench.actions.clear();
        }
        assert_eq!(bench.sessions.common.budget.used_bytes(), before);
    });
}

//! Clients that give up polls, start newer ones and go silent at random moments while numbered messages go out: each message
//! comes once and in order. What a socket has taken of an answer counts as received if it is the whole answer, so a client
//! that gives up a poll closes its side and reads what is still there.

use std::net::Shutdown;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{SUBSCRIBE_A, stage};
use crate::support::poller::{Waiting, messages};
use crate::support::{PATIENCE, Poller};

const CLIENTS: u64 = 16;
const MESSAGES: u64 = 1_000;
/// Publications of one request.
const BATCH: u64 = 5;

/// Random numbers from a printed seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pause(&mut self, millis_max: u64) {
        thread::sleep(Duration::from_millis(self.below(millis_max)));
    }
}

/// Counts what comes, and that nothing is missing.
struct Receiver {
    expected: u64,
    answers: u64,
    given_up: u64,
}

impl Receiver {
    /// Takes the answers to polls that were there at once. Either may have come to the session first.
    fn take<const N: usize>(&mut self, polls: [Waiting; N]) {
        let mut all = Vec::new();
        for poll in polls {
            match poll.try_answer() {
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    self.answers += 1;
                    all.push(messages(&answer));
                }
                Err(_) => self.given_up += 1,
            }
        }
        all.sort_by_key(|messages| messages.first().and_then(|first| first["message"].as_u64()));
        for message in all.concat() {
            assert_eq!(message["message"], self.expected, "{message}");
            self.expected += 1;
        }
    }
}

/// Polls until all messages have come.
fn receive(client: &Poller, mut random: Random, published: &AtomicU64) -> Receiver {
    let mut receiver = Receiver {
        expected: 0,
        answers: 0,
        given_up: 0,
    };
    let mut deadline = Instant::now() + PATIENCE;
    let mut before = 0;
    while receiver.expected < MESSAGES {
        if receiver.expected > before {
            (before, deadline) = (receiver.expected, Instant::now() + PATIENCE);
        }
        let published = published.load(Ordering::SeqCst);
        assert!(Instant::now() < deadline, "{before} of {published}");
        let mut waiting = client.start("");
        match random.below(5) {
            0 | 1 => receiver.take([waiting]),
            2 | 3 => {
                random.pause(12);
                let stream = waiting.connection().stream();
                stream.shutdown(Shutdown::Write).expect("a connection");
                if random.below(2) == 0 {
                    // The next poll comes before the server has seen the end of this one.
                    let newer = client.start("");
                    receiver.take([waiting, newer]);
                } else {
                    receiver.take([waiting]);
                }
            }
            _ => {
                random.pause(12);
                let newer = client.start("");
                receiver.take([waiting, newer]);
            }
        }
        random.pause(8);
    }
    receiver
}

alone_on_both_drivers! {
    fn polls_that_are_given_up_at_any_moment_lose_and_double_nothing(driver: Driver) {
        let seed = std::env::var("RINGCABLE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()) * 7919 + 1);
        eprintln!("RINGCABLE_SEED={seed}");
        let stage = stage(driver, &["--cores=3", "--poll_flush_interval=10", "--poll_interval=1"]);
        let clients: Vec<Poller> = (0..CLIENTS).map(|_| Poller::open(&stage.server, SUBSCRIBE_A).0).collect();
        let published = AtomicU64::new(0);
        let receivers: Vec<Receiver> = thread::scope(|scope| {
            let receivers: Vec<_> = clients
                .iter()
                .zip(1..)
                .map(|(client, number)| {
                    let random = Random(seed.wrapping_mul(number) | 1);
                    let published = &published;
                    scope.spawn(move || receive(client, random, published))
                })
                .collect();
            let mut random = Random(seed);
            let broadcaster = stage.broadcaster();
            for first in (0..MESSAGES).step_by(BATCH as usize) {
                let batch: Vec<_> = (first..first + BATCH)
                    .map(|number| json!({ "stream": "stream:A", "data": number.to_string() }))
                    .collect();
                broadcaster.post(&json!(batch).to_string());
                published.store(first + BATCH, Ordering::SeqCst);
                random.pause(10);
            }
            receivers.into_iter().map(|receiver| receiver.join().expect("all came")).collect()
        });
        let sum = |of: fn(&Receiver) -> u64| receivers.iter().map(of).sum::<u64>();
        eprintln!("{} answers, {} polls given up", sum(|it| it.answers), sum(|it| it.given_up));
        assert!(sum(|it| it.given_up) > 0, "no poll was given up in time");
        assert_eq!(stage.server.metric("long_poll_clients_num"), CLIENTS as i64);
        drop(clients);
        stage.server.wait_for_metric("long_poll_clients_num", 0);
        let held: i64 = stage.server.own_metric("outbox_bytes");
        assert_eq!(held, 0, "what waited is gone with its sessions");
    }
}

//! The steps of the broker for each publication that is stored, and for a client that comes back.

use std::cell::{Cell, RefCell};
use std::hint::black_box;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use ahash::RandomState;
use ringcable::broker::history::{Classes, Epochs, History};
use ringcable::broker::idempotency::SeenKeys;
use ringcable::broker::presence::{Join, PresenceTable, Stay};
use ringcable::broker::{Budget, StreamKey};
use ringcable::config::{BrokerAdapter, BrokerConfig, HistoryLimits, MemoryBound};
use ringcable::hub::{Interest, LocalInterest};
use ringcable::mesh::{Lease, ProcessBudget};
use ringcable::metrics::Metrics;
use ringcable::protocol::presence::PresenceRecord;
use ringcable::protocol::publication::{Message, Publication};
use ringcable::shard::message::{PublishMessage, ShardMesh};
use ringcable::shard::publisher::{Broker, BrokerLeases, Home, Publisher};

use super::Step;

const STREAMS: usize = 10_000;
/// Messages that each stream keeps.
const MESSAGES: usize = 20;
const MESSAGE: [u8; 200] = [b'x'; 200];
/// Seconds since 1970 when the step begins.
const UNIX_NOW: u64 = 1_800_000_000;

/// Counts as a shard does, without a bound.
#[derive(Default)]
struct Unbounded(Cell<usize>);

impl Budget for Unbounded {
    fn try_charge(&self, bytes: usize) -> bool {
        self.0.set(self.0.get() + bytes);
        true
    }

    fn release(&self, bytes: usize) {
        self.0.set(self.0.get() - bytes);
    }
}

/// Any numbers that differ, in all their bits.
fn hash(number: usize) -> u64 {
    (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The stream that the steps use.
const STREAM: usize = STREAMS / 2;

/// All streams with as many messages as they keep.
fn filled(now: Instant) -> History<Unbounded> {
    let limits = HistoryLimits {
        messages: MESSAGES,
        ttl: Duration::from_secs(300),
    };
    let classes = Classes::new(limits, &[]);
    let mut history = History::new(Unbounded::default(), classes, Epochs::new(7, 0, 1), now);
    for number in (0..STREAMS).flat_map(|number| [number; MESSAGES]) {
        let name = format!("room:{number}");
        let stream = StreamKey {
            name: &name,
            hash: hash(number),
        };
        history.append(stream, &Message::from(MESSAGE), now);
    }
    history
}

fn stream(name: &str) -> StreamKey<'_> {
    StreamKey {
        name,
        hash: hash(STREAM),
    }
}

/// The oldest message of the stream makes way.
pub fn append() -> Step {
    let now = Instant::now();
    let mut history = filled(now);
    let name = format!("room:{STREAM}");
    Step::new(move || {
        let message = Message::from(MESSAGE);
        black_box(history.append(black_box(stream(&name)), &message, now));
    })
}

pub fn replay() -> Step {
    let history = filled(Instant::now());
    let name = format!("room:{STREAM}");
    let mut position = history
        .newest(stream(&name), 0)
        .ok()
        .and_then(|part| part.last())
        .expect("it has messages");
    position.offset = 0;
    Step::new(move || {
        let part = history.from(black_box(stream(&name)), position);
        assert_eq!(part.expect("all are kept").entries().len(), MESSAGES);
    })
    .per(MESSAGES as u32)
}

pub fn replay_since() -> Step {
    let now = Instant::now();
    let history = filled(now);
    let name = format!("room:{STREAM}");
    Step::new(move || {
        let since = UNIX_NOW as i64 - 10;
        let unix_now = Duration::from_secs(UNIX_NOW);
        let part = history.since(black_box(stream(&name)), since, now, unix_now);
        assert_eq!(part.expect("all are kept").entries().len(), MESSAGES);
    })
    .per(MESSAGES as u32)
}

/// A new key every time, beside a thousand others.
pub fn see_key() -> Step {
    let now = Instant::now();
    let mut keys = SeenKeys::new(Unbounded::default());
    for number in 0..1_000 {
        keys.see("room:1", &number.to_string(), now);
    }
    let mut number = 0_u64;
    Step::new(move || {
        number += 1;
        let mut text = [b'k'; 17];
        for (digit, byte) in text[1..].iter_mut().enumerate() {
            *byte = b'a' + (number >> (4 * digit)) as u8 % 16;
        }
        let key = std::str::from_utf8(&text).expect("ASCII");
        black_box(keys.see("room:1", black_box(key), now));
    })
}

pub fn publish_stored() -> Step {
    publish(|interest| {
        let limits = HistoryLimits {
            messages: MESSAGES,
            ttl: Duration::from_secs(300),
        };
        let config = BrokerConfig {
            adapter: BrokerAdapter::Memory,
            history: limits,
            history_by_prefix: Vec::new(),
            sessions_ttl: limits.ttl,
            presence_ttl: limits.ttl,
            memory: MemoryBound::Bytes(0),
        };
        let lease = || Rc::new(Lease::new(ProcessBudget::new(None, 1)));
        let leases = BrokerLeases {
            history: lease(),
            others: lease(),
        };
        let home = Home::new(&config, Arc::clone(interest), leases, Epochs::new(7, 0, 1));
        Broker::Memory(Box::new(RefCell::new(home)))
    })
}

pub fn publish_transient() -> Step {
    publish(|_| Broker::None)
}

/// From a decoded publication to the inbox of the one shard, and out of it.
fn publish(broker: impl FnOnce(&Arc<Interest>) -> Broker) -> Step {
    let (mesh, mut inboxes) = ShardMesh::new(1);
    let inbox = inboxes.remove(0);
    let interest = Arc::new(Interest::new(1, RandomState::with_seeds(1, 2, 3, 4)));
    let mut local = LocalInterest::new(Arc::clone(&interest), 0);
    let name = format!("room:{STREAM}");
    local.add(0, local.hasher().hash_one(&*name));
    let broker = broker(&interest);
    let publisher = Publisher::new(0, mesh, interest, Arc::new(Metrics::new(1)), broker);
    Step::new(move || {
        let publication = Publication {
            stream: black_box(&*name).into(),
            message: Message::from(MESSAGE),
            ..Publication::default()
        };
        let published = publisher.publish(PublishMessage::Deliver([publication].into()));
        let mut context = Context::from_waker(Waker::noop());
        let sent = pin!(published.into_inboxes()).poll(&mut context);
        assert!(sent.is_ready(), "there is room");
        black_box(inbox.pop()).expect("the message");
        black_box(&local);
    })
}

/// One of ten thousand members of a stream leaves and joins again.
pub fn join_and_leave() -> Step {
    let now = Instant::now();
    let ttl = Duration::from_secs(15);
    let mut presence = PresenceTable::new(Unbounded::default(), ttl, now);
    let join = move |presence: &mut PresenceTable<Unbounded>, id: &str| {
        let join = Join {
            stream: "room",
            sid: id,
            record: PresenceRecord {
                id,
                info: Some(r#"{"name":"A name of usual length"}"#),
            },
            stay: Stay::Connected,
        };
        black_box(presence.join(&join, now)).is_ok()
    };
    let ids: Vec<String> = (0..STREAMS).map(|it| format!("{it:021}")).collect();
    assert!(ids.iter().all(|id| join(&mut presence, id)));
    let mut next = 0;
    Step::new(move || {
        let id = &ids[next % ids.len()];
        next += 1;
        drop(black_box(presence.leave("room", id)).expect("a member"));
        assert!(join(&mut presence, id));
    })
    .per(2)
}

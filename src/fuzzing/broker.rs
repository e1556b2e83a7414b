//! Commands of a client and broadcasts of the app, one after the other, and what the broker keeps because of them.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ahash::RandomState;
use serde_json::Value;

use super::Input;
use super::serde_values::is_grammatical;
use crate::broker::StreamKey;
use crate::broker::history::{Classes, Epochs, History, Part};
use crate::broker::idempotency::{KEY_WINDOW, Seen, SeenKeys};
use crate::broker::presence::{Join, PresenceTable, Stay};
use crate::broker::sessions::KeptSessions;
use crate::config::{Config, HistoryLimits, Startup, load};
use crate::hub::Hub;
use crate::mesh::{Lease, ProcessBudget};
use crate::protocol::command::decode_command;
use crate::protocol::json::NESTING_MAX;
use crate::protocol::position::{Epoch, Position};
use crate::protocol::presence::PresenceRecord;
use crate::protocol::publication::{Broadcast, Publication, decode_broadcast};
use crate::protocol::sid::{SID_BYTES_MAX, encode_sid_of_shard, shard_of};
use crate::session::{
    BrokerQuestion, Context, Credentials, Deadlines, HistoryStart, Session, SessionSettings, Step,
};

const SID: &str = "s1";
const SLOT: u32 = 1;
/// Of the session that continues the first one.
const OTHER_SLOT: u32 = 2;
const LINES_MAX: usize = 64;
/// All times to live.
const TTL: Duration = Duration::from_secs(100);

/// The input is two choices, then lines. A line is a command, a broadcast, or the sid under which the session is kept; time
/// passes with each. Every answer must be complete, replies and events must be JSON, a session that is restored must be the
/// one that was kept, memory must stay within its bound, and at the end nothing may be charged.
pub fn broker(data: &[u8]) {
    let mut input = Input(data);
    // Small, so that inputs reach the bound.
    let bytes_max = 512 << (input.byte() % 8);
    let history_limit = usize::from(input.byte() % 8);
    let mut stage = Stage::new(bytes_max, history_limit);
    for line in input.0.split(|byte| *byte == b'\n').take(LINES_MAX) {
        if line.len() <= NESTING_MAX {
            stage.take(line);
            assert!(stage.lease.used_bytes() <= bytes_max);
        }
    }
    stage.end();
}

struct Stage {
    lease: Rc<Lease>,
    history: History<Rc<Lease>>,
    presence: PresenceTable<Rc<Lease>>,
    seen: SeenKeys<Rc<Lease>>,
    kept: KeptSessions<Rc<Lease>>,
    hub: Hub,
    session: Session,
    hasher: RandomState,
    start: Instant,
    now: Instant,
    /// The last position of each stream.
    last: HashMap<Box<str>, Position>,
}

impl Stage {
    fn new(bytes_max: usize, history_limit: usize) -> Self {
        let lease = Rc::new(Lease::new(ProcessBudget::new(Some(bytes_max), 1)));
        let limits = HistoryLimits {
            messages: history_limit,
            ttl: TTL,
        };
        let classes = Classes::new(limits, &[]);
        let now = Instant::now();
        let budget = || Rc::clone(&lease);
        let mut stage = Self {
            history: History::new(budget(), classes, Epochs::new(1, 0, 1), now),
            presence: PresenceTable::new(budget(), TTL, now),
            seen: SeenKeys::new(budget()),
            kept: KeptSessions::new(budget(), TTL, now),
            lease,
            hub: Hub::default(),
            session: session(SID),
            hasher: RandomState::with_seeds(1, 2, 3, 4),
            start: now,
            now,
            last: HashMap::new(),
        };
        let mut steps = Vec::new();
        let context = context(&mut stage.hub, SLOT);
        let authenticated =
            stage
                .session
                .authenticate(&context, &Credentials::default(), 0.0, &mut steps);
        authenticated.expect("everybody is let in");
        stage.carry_out(steps);
        stage
    }

    fn take(&mut self, line: &[u8]) {
        self.now += Duration::from_millis(line.len() as u64);
        if let Ok(Broadcast::Publications(publications)) = decode_broadcast(line) {
            for publication in &publications {
                self.publish(publication);
            }
        }
        match decode_command(line) {
            Ok(Some(command)) => {
                let mut steps = Vec::new();
                let mut context = context(&mut self.hub, SLOT);
                let refused = self.session.on_command(&mut context, command, &mut steps);
                assert!(
                    refused.is_ok() || steps.len() <= 1,
                    "{refused:?}: {steps:?}"
                );
                self.carry_out(steps);
            }
            Ok(None) => {}
            Err(_) => {
                self.keep(&String::from_utf8_lossy(line));
                self.sweep();
            }
        }
    }

    fn publish(&mut self, publication: &Publication) {
        let key = publication.idempotency_key.as_deref();
        if let Some(key) = key {
            let seen = self.seen.see(&publication.stream, key, self.now);
            if seen == Seen::Again {
                return;
            }
        }
        if publication.transient {
            return;
        }
        let stream = self.key(&publication.stream);
        let position = self.history.append(stream, &publication.message, self.now);
        let before = self.last.insert(publication.stream.clone(), position);
        let follows = before.is_some_and(|before| {
            before.epoch == position.epoch && before.offset + 1 == position.offset
        });
        assert!(follows || position.offset == 1, "{before:?}, {position:?}");
        let newest = self.history.newest(self.key(&publication.stream), 1);
        if let Some((at, message)) = newest.ok().as_ref().and_then(|part| part.entry(0)) {
            assert_eq!((at, &**message), (position, &*publication.message));
        }
    }

    fn carry_out(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Send(reply) => assert!(is_grammatical(&reply.json())),
                Step::AskBroker(question) => self.answer(question),
                Step::Publish(whisper) => {
                    assert!(whisper.transient && is_grammatical(&whisper.message));
                    assert_eq!(whisper.exclude_socket.as_deref(), Some(SID));
                }
                Step::Register => assert!(self.session.is_authenticated()),
                Step::Ask(_) | Step::Close(_) => panic!("there is no app: {step:?}"),
            }
        }
    }

    fn answer(&mut self, question: BrokerQuestion) {
        match question {
            BrokerQuestion::History {
                identifier,
                streams,
            } => {
                let own = self.hub.streams_of(SLOT, &identifier);
                for asked in &streams {
                    assert!(own.contains(&&*asked.stream), "the stream of another");
                    self.check_history(&asked.stream, asked.start);
                }
            }
            BrokerQuestion::Join { stream, id, info } => self.join(&stream, &id, info.as_deref()),
            BrokerQuestion::Leave { stream } => {
                if let Ok(Some(departure)) = self.presence.leave(&stream, SID) {
                    assert!(is_grammatical(&departure.event().message()));
                }
                self.check_members(&stream);
            }
            BrokerQuestion::Members { stream, .. } => self.check_members(&stream),
        }
    }

    fn check_history(&self, stream: &str, start: HistoryStart) {
        match start {
            HistoryStart::After(after) => {
                let Ok(part) = self.history.from(self.key(stream), after) else {
                    return;
                };
                assert_ne!(after.epoch, Epoch::FOREIGN);
                let last = self.check_part(stream, &part).expect("a known stream");
                assert_eq!(last.epoch, after.epoch);
                assert_eq!(last.offset - after.offset, part.entries().len() as u64);
            }
            HistoryStart::Oldest | HistoryStart::Next => panic!("no command asks for this"),
            HistoryStart::Since(secs) => {
                assert!(secs > 0, "a time before 1970 is none");
                let passed = self.now - self.start;
                let part = self.history.since(self.key(stream), secs, self.now, passed);
                part.iter()
                    .for_each(|part| _ = self.check_part(stream, part));
            }
        }
    }

    /// The messages end with the stream's last one, without a gap. Returns its position.
    fn check_part(&self, stream: &str, part: &Part) -> Option<Position> {
        let last = part.last()?;
        assert_eq!(Some(&last), self.last.get(stream));
        let first = last.offset + 1 - part.entries().len() as u64;
        let offsets = part.entries().map(|(at, _)| at.offset);
        assert!(offsets.eq(first..=last.offset), "a gap");
        Some(last)
    }

    fn join(&mut self, stream: &str, id: &str, info: Option<&str>) {
        assert!(info.is_none_or(|info| is_grammatical(info.as_bytes())));
        let join = Join {
            stream,
            sid: SID,
            record: PresenceRecord { id, info },
            stay: Stay::Connected,
        };
        let joined = self.presence.join(&join, self.now);
        if let Ok(Some(event)) = joined {
            let message = event.message();
            assert!(is_grammatical(&message));
            if let Ok(message) = serde_json::from_slice::<Value>(&message) {
                assert_eq!(
                    (&message["id"], &message["type"]),
                    (&id.into(), &"join".into())
                );
            }
        }
        self.check_members(stream);
    }

    fn check_members(&self, stream: &str) {
        for with_records in [false, true] {
            let answer = self.presence.info(stream, with_records);
            let answer = answer.expect("a short answer");
            assert!(is_grammatical(&answer));
            if let Ok(answer) = serde_json::from_slice::<Value>(&answer) {
                assert_eq!(answer["total"], self.presence.total(stream));
            }
        }
    }

    /// Keeps the session under this sid, and continues it.
    fn keep(&mut self, text: &str) {
        check_sid(text);
        let snapshot = self.session.snapshot(&self.hub, SLOT);
        if self.kept.keep(text, &snapshot, self.now).is_err() {
            assert_eq!(self.kept.restore(text, self.now), None);
            return;
        }
        let found = self.kept.restore(text, self.now).expect("it was kept");
        assert_eq!(found, snapshot);
        let mut other = session("s2");
        let mut steps = Vec::new();
        let mut context = context(&mut self.hub, OTHER_SLOT);
        other.restore(&mut context, found, &mut steps);
        self.carry_out(steps);
        assert_eq!(other.snapshot(&self.hub, OTHER_SLOT), snapshot);
        self.hub.remove_session(OTHER_SLOT);
    }

    fn sweep(&mut self) {
        let mut departures = Vec::new();
        while self.history.sweep(self.now, 8)
            || self.seen.sweep(self.now, 8)
            || self.kept.sweep(self.now, 8)
            || self.presence.sweep(self.now, 8, &mut departures)
        {}
    }

    fn end(mut self) {
        self.hub.remove_session(SLOT);
        assert_eq!(self.hub.held_bytes(), 0);
        self.presence.ended(SID, self.now);
        self.now += KEY_WINDOW + TTL * 20;
        self.sweep();
        assert_eq!(self.lease.used_bytes(), 0);
    }

    fn key<'a>(&self, name: &'a str) -> StreamKey<'a> {
        let hash = self.hasher.hash_one(name);
        StreamKey { name, hash }
    }
}

/// Every client is accepted, and may listen to every stream.
fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let args = ["--norpc", "--public", "--broker=memory"].map(str::to_owned);
        match load(&args, &[]) {
            Ok(Startup::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    })
}

fn context(hub: &mut Hub, slot: u32) -> Context<'_> {
    Context {
        auth: &config().auth,
        hub,
        slot,
        disconnect_mode: config().disconnect.mode,
        has_rpc: false,
        has_broker: true,
        room_bytes: usize::MAX,
        memory_is_full: false,
    }
}

fn session(sid: &str) -> Session {
    Session::new(&SessionSettings {
        sid,
        env: "",
        deadlines: Deadlines::new(1, 0, 0, 0),
        extended: true,
    })
}

/// Any text names a shard that a sid can have, or none.
fn check_sid(text: &str) {
    if text.len() > SID_BYTES_MAX {
        return;
    }
    if let Some(shard) = shard_of(text) {
        let sid = encode_sid_of_shard([0; 21], shard);
        assert_eq!(shard_of(&sid), Some(shard));
        assert_eq!(sid[21..], text[21..]);
    }
    let epoch = Epoch::decode(text);
    assert!(epoch == Epoch::FOREIGN || epoch.to_string() == text);
}

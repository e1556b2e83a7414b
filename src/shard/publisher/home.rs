//! What one shard keeps for the streams that are at home on it: their history, their presence, and the keys of repeated
//! broadcasts. Answers the questions of all shards about them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::broker::history::{Classes, Epochs, History, Part, Refusal};
use crate::broker::idempotency::{Seen, SeenKeys};
use crate::broker::presence::{Join, LongAnswer, PresenceTable};
use crate::broker::{Budget, StreamKey};
use crate::config::BrokerConfig;
use crate::hub::Interest;
use crate::mesh::Lease;
use crate::metrics::ShardMetrics;
use crate::protocol::presence::PresenceRecord;
use crate::protocol::publication::Publication;
use crate::session::HistoryStart;
use crate::shard::message::{BrokerAnswer, HomeQuestion};

/// Steps of one sweep: what is left is removed by the next one, so that a sweep takes less than a millisecond.
const SWEEP_STEPS: usize = 1024;

impl Budget for Rc<Lease> {
    fn try_charge(&self, bytes: usize) -> bool {
        Lease::try_charge(self, bytes)
    }

    fn release(&self, bytes: usize) {
        Lease::release(self, bytes);
    }
}

/// What is kept for the streams at home here.
pub struct Home {
    interest: Arc<Interest>,
    history: History<Rc<Lease>>,
    presence: PresenceTable<Rc<Lease>>,
    seen: SeenKeys<Rc<Lease>>,
    leases: BrokerLeases,
}

/// What one shard may hold for the broker.
#[derive(Clone)]
pub struct BrokerLeases {
    pub history: Rc<Lease>,
    /// Presence, sessions that may come back, keys of repeated broadcasts. They have a part of their own, so that a flood of
    /// messages does not make clients leave.
    pub others: Rc<Lease>,
}

impl Home {
    pub fn new(
        config: &BrokerConfig,
        interest: Arc<Interest>,
        leases: BrokerLeases,
        epochs: Epochs,
    ) -> Self {
        let now = Instant::now();
        let classes = Classes::new(config.history, &config.history_by_prefix);
        let others = || Rc::clone(&leases.others);
        Self {
            interest,
            history: History::new(Rc::clone(&leases.history), classes, epochs, now),
            presence: PresenceTable::new(others(), config.presence_ttl, now),
            seen: SeenKeys::new(others()),
            leases,
        }
    }

    /// Gives publications their places in their streams and keeps them. Repeated ones are left out. Returns what has to be
    /// delivered.
    pub fn sequence(&mut self, publications: Arc<[Publication]>) -> Arc<[Publication]> {
        let now = Instant::now();
        let mut publications = self.without_repeated(publications, now);
        for publication in Arc::make_mut(&mut publications) {
            if !publication.transient {
                let key = self.key(&publication.stream);
                let position = self.history.append(key, &publication.message, now);
                publication.position = Some(position);
            }
        }
        publications
    }

    fn without_repeated(
        &mut self,
        publications: Arc<[Publication]>,
        now: Instant,
    ) -> Arc<[Publication]> {
        if publications.iter().all(|it| it.idempotency_key.is_none()) {
            return publications;
        }
        let is_new = |publication: &&Publication| {
            let key = publication.idempotency_key.as_deref();
            key.is_none_or(|key| self.seen.see(&publication.stream, key, now) == Seen::New)
        };
        publications.iter().filter(is_new).cloned().collect()
    }

    /// Answers a question of a session. Appends what has to be published to the stream.
    pub fn answer(
        &mut self,
        stream: &str,
        question: HomeQuestion,
        events: &mut Vec<Publication>,
    ) -> BrokerAnswer {
        match question {
            HomeQuestion::History { place, start } => BrokerAnswer::History {
                place,
                part: self.missed(stream, start).ok(),
            },
            HomeQuestion::Join {
                sid,
                id,
                info,
                stay,
            } => {
                let record = PresenceRecord {
                    id: &id,
                    info: info.as_deref(),
                };
                let join = Join {
                    stream,
                    sid: &sid,
                    record,
                    stay,
                };
                let joined = self.presence.join(&join, Instant::now());
                if let Ok(Some(event)) = &joined {
                    events.push(event.publication(stream));
                }
                BrokerAnswer::Joined(joined.map(drop))
            }
            HomeQuestion::Leave { sid } => {
                // The session may have expired, and then its member has left before.
                let left = self.presence.leave(stream, &sid);
                if let Ok(Some(departure)) = &left {
                    events.push(departure.event().publication(stream));
                }
                BrokerAnswer::Left
            }
            HomeQuestion::Members { with_records } => {
                BrokerAnswer::Members(self.members(stream, with_records))
            }
        }
    }

    /// The text about a stream's members.
    pub fn members(&self, stream: &str, with_records: bool) -> Result<Bytes, LongAnswer> {
        self.presence.info(stream, with_records)
    }

    fn missed(&self, stream: &str, start: HistoryStart) -> Result<Part, Refusal> {
        let key = self.key(stream);
        match start {
            HistoryStart::After(position) => self.history.from(key, position),
            HistoryStart::Since(unix_secs) => {
                let unix_now = SystemTime::now().duration_since(UNIX_EPOCH);
                let unix_now = unix_now.unwrap_or_default();
                self.history.since(key, unix_secs, Instant::now(), unix_now)
            }
            HistoryStart::Oldest => Ok(self.newest(key, usize::MAX)),
            HistoryStart::Next => Ok(self.newest(key, 0)),
        }
    }

    /// An empty answer about a stream that is not known.
    fn newest(&self, key: StreamKey<'_>, messages_max: usize) -> Part {
        self.history.newest(key, messages_max).unwrap_or_default()
    }

    /// The session with this sid has ended: it is present for a while from now on.
    pub fn ended(&mut self, sid: &str) {
        self.presence.ended(sid, Instant::now());
    }

    /// Removes what is too old. Appends the events of members that leave. True: there is more to do at once.
    pub fn sweep(&mut self, now: Instant, events: &mut Vec<Publication>) -> bool {
        let mut departures = Vec::new();
        let more = [
            self.history.sweep(now, SWEEP_STEPS),
            self.seen.sweep(now, SWEEP_STEPS),
            self.presence.sweep(now, SWEEP_STEPS, &mut departures),
        ];
        events.extend(
            departures
                .iter()
                .map(|it| it.event().publication(&it.stream)),
        );
        more.contains(&true)
    }

    /// Sets the gauges and counters.
    pub fn report(&self, counters: &ShardMetrics) {
        let totals = self.history.totals();
        let bytes = self.leases.history.used_bytes() + self.leases.others.used_bytes();
        counters.broker_bytes.set(bytes as i64);
        counters.broker_streams_num.set(totals.streams as i64);
        counters.broker_messages_num.set(totals.messages as i64);
        let members = self.presence.totals().members;
        counters.presence_members_num.set(members as i64);
        let evictions = &counters.broker_evictions_total;
        evictions.add(totals.evicted_messages - evictions.value());
        let forgotten = &counters.idempotency_keys_forgotten_total;
        forgotten.add(self.seen.forgotten() - forgotten.value());
    }

    pub fn history(&self) -> &History<Rc<Lease>> {
        &self.history
    }

    pub fn presence(&self) -> &PresenceTable<Rc<Lease>> {
        &self.presence
    }

    pub fn key<'a>(&self, stream: &'a str) -> StreamKey<'a> {
        StreamKey {
            name: stream,
            hash: self.interest.hasher().hash_one(stream),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;

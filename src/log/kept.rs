//! The last warnings, errors and slow clients, kept in memory for the console. Off unless [`start`] was called.
//!
//! A slow client is no log record above debug level, because a bad network makes many of them; they have a place of their
//! own, so that they push no error out. Payloads are left out: the log may be protected otherwise than the console.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level};

use super::record::clipped;
use super::{level_names, shortened};

/// Records kept of each kind; the oldest goes when another one comes.
pub const RECORDS_KEPT_MAX: usize = 100;
const MESSAGE_BYTES_MAX: usize = 300;
const FIELDS_MAX: usize = 8;
const VALUE_BYTES_MAX: usize = 300;
/// What a client or the app has sent.
const PAYLOAD_FIELDS: [&str; 2] = ["data", "payload"];
/// How many records like this one were not written.
const LEFT_OUT: &str = "left_out";
/// What tells records with one message apart. The others, such as the sid, differ each time.
const CAUSE: &str = "error";

static KEPT: OnceLock<Mutex<Kept>> = OnceLock::new();

/// Keeps records from now on. To be called before [`super::init`].
pub fn start() {
    KEPT.get_or_init(Mutex::default);
}

/// The records that are kept, the newest first.
pub fn records() -> Vec<KeptRecord> {
    lock().map_or_else(Vec::new, |kept| kept.newest_first())
}

/// The number of the newest record; 0 = there is none.
pub fn last_number() -> u64 {
    lock().map_or(0, |kept| kept.last_number)
}

/// A client was dropped because it took its messages too slowly.
pub fn slow_client(sid: &str, shard: usize, why: &str, pending_bytes: usize) {
    if let Some(mut kept) = lock() {
        let record = KeptRecord {
            level: "SLOW",
            message: format!("slow client dropped: {why}"),
            fields: vec![
                ("sid", shortened(sid, VALUE_BYTES_MAX)),
                ("shard", shard.to_string()),
                ("pending_bytes", pending_bytes.to_string()),
            ],
            ..KeptRecord::at(SystemTime::now())
        };
        kept.push(record, Kind::SlowClient);
    }
}

/// The level that has to reach the subscriber for this.
pub(super) fn level() -> LevelFilter {
    match KEPT.get() {
        Some(_) => LevelFilter::WARN,
        None => LevelFilter::OFF,
    }
}

pub(super) fn keep(now: SystemTime, event: &Event<'_>) {
    if *event.metadata().level() > Level::WARN || KEPT.get().is_none() {
        return;
    }
    let record = KeptRecord::of(now, event);
    if let Some(mut kept) = lock() {
        kept.push(record, Kind::Log);
    }
}

/// A poisoned lock still guards whole records.
fn lock() -> Option<MutexGuard<'static, Kept>> {
    let kept = KEPT.get()?;
    Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A record as the console shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeptRecord {
    /// Counts from 1, over all kinds.
    pub number: u64,
    pub unix_ms: u64,
    /// `WARN`, `ERROR` or `SLOW`.
    pub level: &'static str,
    pub message: String,
    /// How many records like it came since the oldest that is kept; those that the log has left out are among them.
    pub times: u64,
    /// Of the newest of them.
    pub fields: Vec<(&'static str, String)>,
}

impl KeptRecord {
    fn at(now: SystemTime) -> Self {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            unix_ms: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            times: 1,
            ..Self::default()
        }
    }

    fn of(now: SystemTime, event: &Event<'_>) -> Self {
        let (level, _) = level_names(*event.metadata().level());
        let mut record = Self {
            level,
            ..Self::at(now)
        };
        event.record(&mut record);
        record
    }

    fn note(&mut self, field: &Field, value: &str) {
        let name = field.name();
        if name == "message" {
            self.message = shortened(value, MESSAGE_BYTES_MAX);
        } else if name == LEFT_OUT {
            self.times += value.parse().unwrap_or(0);
        } else if self.fields.len() < FIELDS_MAX && !PAYLOAD_FIELDS.contains(&name) {
            self.fields.push((name, shortened(value, VALUE_BYTES_MAX)));
        }
    }
}

impl KeptRecord {
    /// The same happened again.
    fn repeats(&self, earlier: &Self) -> bool {
        (self.level, &self.message) == (earlier.level, &earlier.message)
            && self.cause() == earlier.cause()
    }

    fn cause(&self) -> Option<&str> {
        let (_, cause) = self.fields.iter().find(|(name, _)| *name == CAUSE)?;
        Some(cause)
    }
}

impl Visit for KeptRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // One byte more than is kept of a text, so that it shows that something is missing.
        let bytes_max = MESSAGE_BYTES_MAX.max(VALUE_BYTES_MAX) + 1;
        self.note(field, &clipped(format_args!("{value:?}"), bytes_max));
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Log,
    SlowClient,
}

#[derive(Default)]
struct Kept {
    last_number: u64,
    /// By [`Kind`].
    records: [VecDeque<KeptRecord>; 2],
}

impl Kept {
    /// What repeats takes the place of what it repeats, so that the one record that explains the others is not pushed out.
    fn push(&mut self, mut record: KeptRecord, kind: Kind) {
        self.last_number += 1;
        let records = &mut self.records[kind as usize];
        let earlier = records.iter().position(|earlier| record.repeats(earlier));
        if let Some(earlier) = earlier.and_then(|at| records.remove(at)) {
            record.times = record.times.saturating_add(earlier.times);
        } else if records.len() >= RECORDS_KEPT_MAX {
            records.pop_front();
        }
        records.push_back(KeptRecord {
            number: self.last_number,
            ..record
        });
    }

    fn newest_first(&self) -> Vec<KeptRecord> {
        let mut records: Vec<KeptRecord> = self.records.iter().flatten().cloned().collect();
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.number));
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> KeptRecord {
        KeptRecord {
            message: message.to_owned(),
            times: 1,
            ..KeptRecord::default()
        }
    }

    #[test]
    fn what_repeats_is_one_record_with_a_number() {
        let failed = |error: &str, times: u64| KeptRecord {
            times,
            fields: vec![("sid", "differs".to_owned()), ("error", error.to_owned())],
            ..record("WebSocket session failed")
        };
        let mut kept = Kept::default();
        kept.push(failed("circuit breaker is open", 1), Kind::Log);
        kept.push(record("RPC check: could not reach the app"), Kind::Log);
        kept.push(failed("no route", 1), Kind::Log);
        kept.push(failed("circuit breaker is open", 40), Kind::Log);
        let shown: Vec<(u64, u64, String)> = kept
            .newest_first()
            .into_iter()
            .map(|record| {
                (
                    record.number,
                    record.times,
                    format!("{} {:?}", record.message, record.cause()),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    4,
                    41,
                    "WebSocket session failed Some(\"circuit breaker is open\")".to_owned()
                ),
                (
                    3,
                    1,
                    "WebSocket session failed Some(\"no route\")".to_owned()
                ),
                (2, 1, "RPC check: could not reach the app None".to_owned()),
            ]
        );
    }

    #[test]
    fn the_newest_of_each_kind_are_kept() {
        let mut kept = Kept::default();
        kept.push(record("an error"), Kind::Log);
        for number in 0..RECORDS_KEPT_MAX + 5 {
            kept.push(record(&format!("slow {number}")), Kind::SlowClient);
        }
        let records = kept.newest_first();
        assert_eq!(records.len(), RECORDS_KEPT_MAX + 1);
        assert_eq!(records[0].message, "slow 104");
        assert_eq!(records[RECORDS_KEPT_MAX - 1].message, "slow 5");
        assert_eq!(
            (
                records[RECORDS_KEPT_MAX].number,
                records[RECORDS_KEPT_MAX].message.as_str()
            ),
            (1, "an error")
        );
    }

    /// The only test that switches the process-wide place on: others see `WARN` records being kept, and nothing else.
    #[test]
    fn warnings_are_kept_without_payloads_and_cut() {
        struct Keeper;
        impl tracing::Subscriber for Keeper {
            fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
                true
            }
            fn event(&self, event: &Event<'_>) {
                keep(UNIX_EPOCH + std::time::Duration::from_millis(1_234), event);
            }
            fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                tracing::span::Id::from_u64(1)
            }
            fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
            fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
            fn enter(&self, _: &tracing::span::Id) {}
            fn exit(&self, _: &tracing::span::Id) {}
        }
        start();
        assert_eq!(level(), LevelFilter::WARN);
        let long = "é".repeat(MESSAGE_BYTES_MAX);
        tracing::subscriber::with_default(Keeper, || {
            tracing::info!("kept-test: nobody needs this");
            tracing::warn!(
                sid = "s1",
                shard = 3,
                data = "a password",
                payload = "another",
                left_out = Some(7_u64),
                "kept-test: {long}"
            );
        });
        slow_client("s2", 1, "kept-test", 99);
        let records: Vec<KeptRecord> = records()
            .into_iter()
            .filter(|record| record.message.contains("kept-test"))
            .collect();
        assert_eq!(records.len(), 2);
        assert_eq!(
            (records[0].level, records[0].fields[0].1.as_str()),
            ("SLOW", "s2")
        );
        let warning = &records[1];
        assert_eq!(
            (warning.level, warning.unix_ms, warning.times),
            ("WARN", 1_234, 8)
        );
        assert_eq!(
            warning.fields,
            [("sid", "s1".to_owned()), ("shard", "3".to_owned())]
        );
        assert!(
            warning.message.ends_with('…')
                && warning.message.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8()
        );
        assert!(last_number() >= 2);
    }
}

//! The most recent warnings, errors and slow clients, kept in memory for the console. Off unless [`start`] was called.
//!
//! A slow client makes no log record above debug level, because a bad network causes many of them. Slow clients have their
//! own list here, so that they do not push out errors. Payloads are left out, because access to the log may be restricted
//! otherwise than access to the console.

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

/// Records of each kind; at this number the oldest goes when another one comes.
pub const RECENT_RECORDS_MAX: usize = 100;
const MESSAGE_BYTES_MAX: usize = 300;
const FIELDS_MAX: usize = 8;
const VALUE_BYTES_MAX: usize = 300;
/// The fields that hold what a client or the app has sent.
const PAYLOAD_FIELDS: [&str; 2] = ["data", "payload"];
/// The field that says how many records like this one were not written.
const LEFT_OUT: &str = "left_out";
/// The field that separates two records with the same message. Other fields, such as the sid, differ each time and are not
/// compared.
const CAUSE: &str = "error";

static RECENT: OnceLock<Mutex<Recent>> = OnceLock::new();

/// Keeps records from now on. Must be called before [`super::init`].
pub fn start() {
    RECENT.get_or_init(Mutex::default);
}

/// All records, the newest first.
pub fn records() -> Vec<RecentRecord> {
    lock().map_or_else(Vec::new, |recent| recent.newest_first())
}

/// The number of the newest record; 0 = there is none.
pub fn last_number() -> u64 {
    lock().map_or(0, |recent| recent.last_number)
}

/// Keeps a record of a client that was dropped because it took its messages too slowly.
pub fn slow_client(sid: &str, shard: usize, why: &str, pending_bytes: usize) {
    if let Some(mut recent) = lock() {
        let record = RecentRecord {
            level: "SLOW",
            message: format!("slow client dropped: {why}"),
            fields: vec![
                ("sid", shortened(sid, VALUE_BYTES_MAX)),
                ("shard", shard.to_string()),
                ("pending_bytes", pending_bytes.to_string()),
            ],
            ..RecentRecord::at(SystemTime::now())
        };
        recent.push(record, RecordKind::SlowClient);
    }
}

/// The level that the subscriber must let through for these records.
pub(super) fn level() -> LevelFilter {
    match RECENT.get() {
        Some(_) => LevelFilter::WARN,
        None => LevelFilter::OFF,
    }
}

pub(super) fn keep(now: SystemTime, event: &Event<'_>) {
    if *event.metadata().level() > Level::WARN || RECENT.get().is_none() {
        return;
    }
    let record = RecentRecord::of(now, event);
    if let Some(mut recent) = lock() {
        recent.push(record, RecordKind::Log);
    }
}

/// A panic cannot leave a record half written, so a poisoned lock is still usable.
fn lock() -> Option<MutexGuard<'static, Recent>> {
    let recent = RECENT.get()?;
    Some(recent.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A record as the console shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RecentRecord {
    /// Counts from 1, over all kinds.
    pub number: u64,
    pub unix_ms: u64,
    /// `WARN`, `ERROR` or `SLOW`.
    pub level: &'static str,
    pub message: String,
    /// How often this record came since the oldest one that is still here. Includes those that the log has left out.
    pub times: u64,
    /// The fields of the newest one.
    pub fields: Vec<(&'static str, String)>,
}

impl RecentRecord {
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

impl RecentRecord {
    /// Whether this record says the same as an earlier one.
    fn repeats(&self, earlier: &Self) -> bool {
        (self.level, &self.message) == (earlier.level, &earlier.message)
            && self.cause() == earlier.cause()
    }

    fn cause(&self) -> Option<&str> {
        let (_, cause) = self.fields.iter().find(|(name, _)| *name == CAUSE)?;
        Some(cause)
    }
}

impl Visit for RecentRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // One byte more than the longest text that is stored, so that `shortened` sees the cut and marks it.
        let bytes_max = MESSAGE_BYTES_MAX.max(VALUE_BYTES_MAX) + 1;
        self.note(field, &clipped(format_args!("{value:?}"), bytes_max));
    }
}

#[derive(Clone, Copy)]
enum RecordKind {
    Log,
    SlowClient,
}

#[derive(Default)]
struct Recent {
    last_number: u64,
    /// Indexed by [`RecordKind`].
    records: [VecDeque<RecentRecord>; 2],
}

impl Recent {
    /// A repeated record replaces the earlier one instead of being added. So many repetitions do not push out the one record
    /// that explains them.
    fn push(&mut self, mut record: RecentRecord, kind: RecordKind) {
        self.last_number += 1;
        let records = &mut self.records[kind as usize];
        let earlier = records.iter().position(|earlier| record.repeats(earlier));
        if let Some(earlier) = earlier.and_then(|at| records.remove(at)) {
            record.times = record.times.saturating_add(earlier.times);
        } else if records.len() >= RECENT_RECORDS_MAX {
            records.pop_front();
        }
        records.push_back(RecentRecord {
            number: self.last_number,
            ..record
        });
    }

    fn newest_first(&self) -> Vec<RecentRecord> {
        let mut records: Vec<RecentRecord> = self.records.iter().flatten().cloned().collect();
        records.sort_unstable_by_key(|record| std::cmp::Reverse(record.number));
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(message: &str) -> RecentRecord {
        RecentRecord {
            message: message.to_owned(),
            times: 1,
            ..RecentRecord::default()
        }
    }

    #[test]
    fn what_repeats_is_one_record_with_a_number() {
        let failed = |error: &str, times: u64| RecentRecord {
            times,
            fields: vec![("sid", "differs".to_owned()), ("error", error.to_owned())],
            ..record("WebSocket session failed")
        };
        let mut recent = Recent::default();
        recent.push(failed("circuit breaker is open", 1), RecordKind::Log);
        recent.push(
            record("RPC check: could not reach the app"),
            RecordKind::Log,
        );
        recent.push(failed("no route", 1), RecordKind::Log);
        recent.push(failed("circuit breaker is open", 40), RecordKind::Log);
        let shown: Vec<(u64, u64, String)> = recent
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
        let mut recent = Recent::default();
        recent.push(record("an error"), RecordKind::Log);
        for number in 0..RECENT_RECORDS_MAX + 5 {
            recent.push(record(&format!("slow {number}")), RecordKind::SlowClient);
        }
        let records = recent.newest_first();
        assert_eq!(records.len(), RECENT_RECORDS_MAX + 1);
        assert_eq!(records[0].message, "slow 104");
        assert_eq!(records[RECENT_RECORDS_MAX - 1].message, "slow 5");
        assert_eq!(
            (
                records[RECENT_RECORDS_MAX].number,
                records[RECENT_RECORDS_MAX].message.as_str()
            ),
            (1, "an error")
        );
    }

    /// Only this test switches on the process-wide list, because all tests of the process share it.
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
        let records: Vec<RecentRecord> = records()
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

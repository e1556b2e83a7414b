//! All orders of the atomic steps of the table of interest, tried by loom: no publication that begins after the confirmation
//! of a subscription misses its shard, also while the table grows.
//!
//! The files of `src/hub/interest/` are compiled here with the atomics of loom.

mod atomics {
    use loom::sync::atomic::AtomicBool;
    pub use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    /// Loom has none. The flag orders memory as that of the standard library does.
    #[derive(Default)]
    pub struct OnceLock<T> {
        cell: std::sync::OnceLock<T>,
        is_set: AtomicBool,
    }

    impl<T> OnceLock<T> {
        pub fn get(&self) -> Option<&T> {
            let is_set = self.is_set.load(Ordering::Acquire);
            self.cell.get().filter(|_| is_set)
        }

        pub fn set(&self, value: T) -> Result<(), T> {
            self.cell.set(value).inspect_err(|_| {
                while self.get().is_none() {
                    loom::thread::yield_now();
                }
            })?;
            self.is_set.store(true, Ordering::Release);
            Ok(())
        }
    }
}
#[allow(dead_code, reason = "the model uses a part of it")]
#[path = "../src/hub/interest/local.rs"]
mod local;
#[allow(dead_code, reason = "the model uses a part of it")]
#[path = "../src/hub/interest/shard_set.rs"]
mod shard_set;
#[allow(dead_code, reason = "the model uses a part of it")]
#[path = "../src/hub/interest/table.rs"]
mod table;

use std::sync::Arc;

use ahash::RandomState;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use self::local::LocalInterest;
use self::table::Interest;

/// A table that grows when a shard has more than one stream.
fn table() -> Arc<Interest> {
    // Loom repeats a run, so nothing may be random.
    let hasher = RandomState::with_seeds(1, 2, 3, 4);
    Arc::new(Interest::with_streams(2, hasher, 1))
}

/// One of the two shards, with its streams by number.
struct Shard {
    table: Arc<Interest>,
    local: LocalInterest,
    streams: Vec<Option<&'static str>>,
}

impl Shard {
    fn new(table: &Arc<Interest>, shard: usize, streams: &[&'static str]) -> Self {
        let mut shard = Self {
            local: LocalInterest::new(Arc::clone(table), shard),
            table: Arc::clone(table),
            streams: Vec::new(),
        };
        streams.iter().for_each(|stream| shard.add(stream));
        shard
    }

    fn add(&mut self, stream: &'static str) {
        let number = self.streams.iter().position(Option::is_none);
        let number = number.unwrap_or(self.streams.len());
        self.streams
            .resize(self.streams.len().max(number + 1), None);
        self.streams[number] = Some(stream);
        let hash = self.table.hasher().hash_one(stream);
        self.local.add(number as u32, hash);
    }

    fn remove(&mut self, stream: &'static str) {
        let number = self.streams.iter().position(|it| *it == Some(stream));
        let number = number.expect("the shard has this stream");
        self.streams[number] = None;
        let hash = self.table.hasher().hash_one(stream);
        self.local.remove(number as u32, hash);
    }

    fn keep_up(&mut self) {
        let (streams, hasher) = (&self.streams, self.table.hasher());
        self.local.keep_up(streams.len() as u32, |number| {
            Some(hasher.hash_one(streams[number as usize]?))
        });
    }
}

fn is_listening(table: &Interest, shard: usize, stream: &str) -> bool {
    let mut listeners = table.listeners([stream].into_iter());
    let all = listeners.clone();
    listeners.remove(shard);
    listeners != all
}

/// A confirmation on its way: the client learns of it, and publishes after that.
#[derive(Default)]
struct Confirmation(AtomicBool);

impl Confirmation {
    fn send(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_come(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Tries every order with at most this many switches from a thread that could go on.
fn model(switches_max: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches_max);
    builder.check(run);
}

/// The bits of both shards are in one word.
#[test]
fn shards_that_change_one_word_do_not_disturb_each_other() {
    model(4, || {
        let table = table();
        let confirmed = Arc::new(Confirmation::default());
        let mut first = Shard::new(&table, 0, &["old"]);
        let mut second = Shard::new(&table, 1, &["a", "old"]);
        let one = thread::spawn({
            let confirmed = Arc::clone(&confirmed);
            move || {
                first.add("a");
                confirmed.send();
                first.remove("old");
                first
            }
        });
        let other = thread::spawn(move || {
            second.remove("a");
            second.add("b");
            second
        });
        if confirmed.has_come() {
            assert!(is_listening(&table, 0, "a"));
        }
        let first = one.join().expect("ends well");
        let mut second = other.join().expect("ends well");
        assert!(is_listening(&table, 0, "a") && is_listening(&table, 1, "b"));
        assert!(is_listening(&table, 1, "old"));
        drop(first);
        second.remove("old");
        second.remove("b");
        assert!(!is_listening(&table, 1, "b"));
    });
}

/// With three switches there are too many orders, because a stream has two bits.
#[test]
fn nothing_is_missed_while_the_table_grows() {
    model(2, || {
        let table = table();
        let confirmed = Arc::new(Confirmation::default());
        let mut first = Shard::new(&table, 0, &["old", "other"]);
        let mut second = Shard::new(&table, 1, &["old"]);
        let growing = thread::spawn({
            let confirmed = Arc::clone(&confirmed);
            move || {
                first.keep_up();
                first.remove("other");
                first.add("new");
                first.keep_up();
                confirmed.send();
                first
            }
        });
        let following = thread::spawn(move || {
            second.keep_up();
            second.keep_up();
            second
        });
        let has_come = confirmed.has_come();
        assert!(is_listening(&table, 0, "old") && is_listening(&table, 1, "old"));
        assert!(!has_come || is_listening(&table, 0, "new"));
        let mut first = growing.join().expect("ends well");
        let mut second = following.join().expect("ends well");
        for _ in 0..2 {
            first.keep_up();
            second.keep_up();
        }
        assert!(table.is_read(1), "the growth has come to its end");
        assert!(is_listening(&table, 0, "new") && is_listening(&table, 1, "old"));
    });
}

/// Each of the shards asks for a larger table, and publishes what the other one must get.
#[test]
fn nothing_is_missed_when_both_shards_want_a_larger_table() {
    model(2, || {
        let table = table();
        let confirmed = Arc::new([Confirmation::default(), Confirmation::default()]);
        let run = |number: usize, stream: &'static str, others: &'static str| {
            let (table, confirmed) = (Arc::clone(&table), Arc::clone(&confirmed));
            let mut shard = Shard::new(&table, number, &["old", stream]);
            move || {
                shard.keep_up();
                shard.remove(stream);
                shard.add(stream);
                confirmed[number].send();
                if confirmed[1 - number].has_come() {
                    assert!(is_listening(&table, 1 - number, others));
                }
                shard.keep_up();
                shard
            }
        };
        let (first, second) = (run(0, "a", "b"), run(1, "b", "a"));
        let second = thread::spawn(second);
        let mut first = first();
        let mut second = second.join().expect("ends well");
        first.keep_up();
        second.keep_up();
        assert!(is_listening(&table, 0, "a") && is_listening(&table, 1, "b"));
    });
}

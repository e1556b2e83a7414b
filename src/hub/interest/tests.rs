//! The table with one thread. `tests/interest_model.rs` has all orders of several.

use std::collections::BTreeSet;
use std::sync::Arc;

use ahash::RandomState;
use proptest::prelude::*;

use super::table::INTEREST_BYTES_MAX;
use super::{Interest, LocalInterest, ShardSet};

/// A table that grows after a few streams, and the parts of its shards.
struct Shards {
    table: Arc<Interest>,
    locals: Vec<LocalInterest>,
    /// By shard, the names of its streams by number.
    streams: Vec<Vec<Option<String>>>,
}

impl Shards {
    fn new(shards: usize, streams_at_first: usize) -> Self {
        let table = Interest::with_streams(shards, RandomState::new(), streams_at_first);
        let table = Arc::new(table);
        let local = |shard| LocalInterest::new(Arc::clone(&table), shard);
        Self {
            locals: (0..shards).map(local).collect(),
            streams: vec![Vec::new(); shards],
            table,
        }
    }

    fn add(&mut self, shard: usize, stream: &str) {
        let streams = &mut self.streams[shard];
        let number = streams.iter().position(Option::is_none);
        let number = number.unwrap_or(streams.len());
        streams.resize(streams.len().max(number + 1), None);
        streams[number] = Some(stream.to_owned());
        let hash = self.table.hasher().hash_one(stream);
        self.locals[shard].add(number as u32, hash);
    }

    fn remove(&mut self, shard: usize, stream: &str) {
        let streams = &mut self.streams[shard];
        let number = streams.iter().position(|it| it.as_deref() == Some(stream));
        let number = number.expect("the shard has this stream");
        streams[number] = None;
        let hash = self.table.hasher().hash_one(stream);
        self.locals[shard].remove(number as u32, hash);
    }

    fn keep_up(&mut self, shard: usize) {
        let (streams, hasher) = (&self.streams[shard], self.table.hasher());
        self.locals[shard].keep_up(streams.len() as u32, |number| {
            Some(hasher.hash_one(streams[number as usize].as_deref()?))
        });
    }

    fn listeners(&self, stream: &str) -> Vec<usize> {
        shards(self.table.listeners([stream].into_iter()))
    }
}

fn shards(mut set: ShardSet) -> Vec<usize> {
    std::iter::from_fn(|| {
        let first = set.first()?;
        set.remove(first);
        Some(first)
    })
    .collect()
}

#[test]
fn sets_name_their_shards_in_order() {
    for count in [1, 2, 64, 65, 1024] {
        assert_eq!(shards(ShardSet::all(count)), Vec::from_iter(0..count));
        assert!(ShardSet::none(count).is_empty());
    }
}

#[test]
fn a_stream_is_found_on_the_shards_that_have_it_and_on_no_other() {
    for count in [1, 2, 3, 16, 33, 64, 65, 130] {
        let mut scene = Shards::new(count, 64);
        let last = count - 1;
        scene.add(last, "a");
        assert_eq!(scene.listeners("a"), [last]);
        scene.add(0, "a");
        assert_eq!(scene.listeners("a").last(), Some(&last));
        assert_eq!(scene.listeners("a").len(), count.min(2));
        scene.remove(0, "a");
        assert_eq!(scene.listeners("a"), [last]);
        scene.remove(last, "a");
        assert!(scene.listeners("a").is_empty(), "{count} shards");
    }
}

#[test]
fn the_sizes_are_those_of_the_page() {
    let bytes = |shards| Interest::new(shards, RandomState::new()).held_bytes();
    assert_eq!(bytes(1), 2 << 10);
    assert_eq!(bytes(2), 4 << 10);
    assert_eq!(bytes(32), 128 << 10);
    assert_eq!(bytes(64), 512 << 10);
    assert_eq!(bytes(1024), INTEREST_BYTES_MAX);
}

#[test]
fn at_its_largest_size_the_table_does_not_grow() {
    let mut scene = Shards::new(1024, 2048);
    for stream in 0..2049 {
        scene.add(7, &stream.to_string());
    }
    (0..1024).for_each(|shard| scene.keep_up(shard));
    assert_eq!(scene.table.held_bytes(), INTEREST_BYTES_MAX);
    assert!(scene.listeners("2048").contains(&7));
}

#[test]
fn the_table_grows_when_every_shard_has_announced_its_streams() {
    const STREAMS: usize = 20_000;
    let mut scene = Shards::new(2, 64);
    scene.add(0, "of the first");
    for stream in 0..STREAMS {
        scene.add(1, &stream.to_string());
    }
    let at_first = scene.table.held_bytes();
    scene.keep_up(1);
    let grown = scene.table.held_bytes();
    assert_eq!(grown, at_first * 5, "the next level is there");
    // It takes several turns to announce so many.
    for _ in 0..STREAMS / 4096 {
        assert!(!scene.locals[1].has_announced());
        scene.keep_up(1);
    }
    assert!(scene.locals[1].has_announced());
    assert!(!scene.table.is_read(1), "the other shard has not");
    scene.remove(1, "77");
    scene.add(1, "78 again");
    scene.keep_up(0);
    assert!(scene.table.is_read(1));
    while scene.table.wanted() < 4 || !scene.table.is_read(4) {
        scene.keep_up(0);
        scene.keep_up(1);
    }
    assert!(
        (0..STREAMS)
            .filter(|&it| it != 77)
            .all(|it| scene.listeners(&it.to_string()).contains(&1))
    );
    let needless = (0..STREAMS)
        .filter(|it| !scene.listeners(&format!("nobody's {it}")).is_empty())
        .count();
    // About 7 % are expected; with one bucket for each stream it would be 26 %.
    assert!(needless < STREAMS / 10, "{needless} of {STREAMS}");
}

proptest! {
    #[test]
    fn no_listener_is_missing_while_the_table_grows_and_all_bits_go_with_the_streams(
        count in prop_oneof![Just(1usize), Just(2), Just(5), Just(70)],
        acts in prop::collection::vec((0usize..70, 0u32..60, 0u32..4), 1..200),
    ) {
        let mut scene = Shards::new(count, 2);
        let mut model: BTreeSet<(usize, u32)> = BTreeSet::new();
        for (shard, stream, act) in acts {
            let shard = shard % count;
            match act {
                0 => scene.keep_up(shard),
                _ if model.remove(&(shard, stream)) => scene.remove(shard, &stream.to_string()),
                _ => {
                    model.insert((shard, stream));
                    scene.add(shard, &stream.to_string());
                }
            }
            for &(shard, stream) in &model {
                prop_assert!(scene.listeners(&stream.to_string()).contains(&shard));
            }
        }
        for (shard, stream) in model {
            scene.remove(shard, &stream.to_string());
        }
        prop_assert_eq!(scene.table.bits_set(), 0);
        prop_assert!(scene.locals.iter().all(|local| local.held_bytes() == 0));
    }
}

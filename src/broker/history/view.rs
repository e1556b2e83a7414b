//! What an operator sees of the history. Nothing here is on the way of a message.

use std::time::{Duration, Instant};

use super::{History, Stream, StreamKey};
use crate::broker::Budget;
use crate::config::HistoryLimits;
use crate::protocol::position::Position;
use crate::protocol::publication::Message;

/// What a stream keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamTotals {
    pub messages: usize,
    /// Bytes of these messages, without what is charged beside them.
    pub message_bytes: usize,
}

/// A stream in detail.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamView {
    /// Of the last message, kept or not.
    pub last: Position,
    pub limits: HistoryLimits,
    pub totals: StreamTotals,
    /// The newest messages, the last one first.
    pub newest: Vec<KeptMessage>,
}

/// A message in a [`StreamView`].
#[derive(Debug, PartialEq, Eq)]
pub struct KeptMessage {
    pub offset: u64,
    pub message: Message,
    /// Time since it was stored.
    pub age: Duration,
}

impl<B: Budget> History<B> {
    /// Places of streams, from 0 on. A stream keeps its place; some places are empty.
    pub fn places(&self) -> usize {
        self.streams.capacity()
    }

    /// The stream at a place.
    pub fn name_at(&self, place: usize) -> Option<&str> {
        self.streams.get(place).map(|stream| &*stream.name)
    }

    pub fn is_known(&self, stream: StreamKey<'_>) -> bool {
        self.known(stream).is_some()
    }

    /// Messages that a stream keeps.
    pub fn messages_of(&self, stream: StreamKey<'_>) -> usize {
        self.known(stream).map_or(0, |stream| stream.ring.len())
    }

    /// What a stream keeps. Takes about a nanosecond for each of its messages.
    pub fn totals_of(&self, stream: StreamKey<'_>) -> StreamTotals {
        self.known(stream)
            .map_or_else(StreamTotals::default, Stream::totals)
    }

    /// A stream with its newest messages, `messages_max` at most. `None`: it is not known.
    pub fn view(
        &self,
        stream: StreamKey<'_>,
        messages_max: usize,
        now: Instant,
    ) -> Option<StreamView> {
        let now = self.millis(now);
        let stream = self.known(stream)?;
        let newest = stream.ring.entries().rev().take(messages_max);
        let newest = newest.zip(0..).map(|(entry, behind)| KeptMessage {
            offset: stream.last - behind,
            message: entry.message.clone(),
            age: Duration::from_millis(now.saturating_sub(entry.stored_at)),
        });
        Some(StreamView {
            last: stream.position(),
            limits: self.classes.limits(stream.class as usize),
            totals: stream.totals(),
            newest: newest.collect(),
        })
    }
}

impl Stream {
    fn totals(&self) -> StreamTotals {
        let entries = self.ring.entries();
        StreamTotals {
            messages: self.ring.len(),
            message_bytes: entries.map(|entry| entry.message.len()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Classes, Epochs};
    use super::*;
    use crate::broker::budget::FixedBudget;

    fn key(name: &str) -> StreamKey<'_> {
        StreamKey {
            name,
            hash: name.len() as u64,
        }
    }

    fn limits(messages: usize) -> HistoryLimits {
        HistoryLimits {
            messages,
            ttl: Duration::from_secs(60),
        }
    }

    fn history(start: Instant) -> History<FixedBudget> {
        let classes = Classes::new(limits(3), &[("few/".to_owned(), limits(1))]);
        let budget = FixedBudget::new(usize::MAX);
        History::new(budget, classes, Epochs::new(1, 0, 1), start)
    }

    #[test]
    fn a_view_shows_the_newest_messages_with_their_places() {
        let start = Instant::now();
        let mut history = history(start);
        for (secs, text) in (1..).zip(["a", "bb", "ccc", "dddd", "eeeee"]) {
            let now = start + Duration::from_secs(secs);
            history.append(key("room"), &text.as_bytes().into(), now);
        }
        let now = start + Duration::from_secs(7);
        let view = history.view(key("room"), 2, now).expect("known");
        let totals = StreamTotals {
            messages: 3,
            message_bytes: 3 + 4 + 5,
        };
        assert_eq!(
            (view.totals, view.limits, view.last.offset),
            (totals, limits(3), 5)
        );
        let newest: Vec<_> = view
            .newest
            .iter()
            .map(|it| (it.offset, &*it.message, it.age.as_secs()))
            .collect();
        assert_eq!(newest, [(5, &b"eeeee"[..], 2), (4, &b"dddd"[..], 3)]);
        assert_eq!(history.messages_of(key("room")), 3);
        assert_eq!(history.totals_of(key("room")), totals);
        assert_eq!(history.view(key("nothing"), 2, now), None);
        assert_eq!(history.totals_of(key("nothing")), StreamTotals::default());
    }

    #[test]
    fn every_stream_has_a_place() {
        let start = Instant::now();
        let mut history = history(start);
        for name in ["a", "few/b", "cc"] {
            history.append(key(name), &Message::from(*b"1"), start);
            history.append(key(name), &Message::from(*b"2"), start);
        }
        let names = (0..history.places()).filter_map(|place| history.name_at(place));
        assert_eq!(names.collect::<Vec<_>>(), ["a", "few/b", "cc"]);
        assert_eq!(history.messages_of(key("few/b")), 1);
        assert!(history.is_known(key("cc")) && !history.is_known(key("ddd")));
    }
}

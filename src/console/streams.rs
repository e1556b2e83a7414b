//! Streams as the page shows them: lists in an order, and one stream in detail.
//!
//! A stream has listeners on any shard, and history and members on its home. So a list is made in two steps: each shard
//! proposes the streams that come first there ([`Candidates`]), then every shard adds its figures of all proposed ones
//! ([`StreamList::of`]).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ops::AddAssign;

use serde::Serialize;

use super::search::{Query, TEXT_SHOWN_BYTES_MAX};
use crate::log::shortened;

/// Most streams in one list.
pub const STREAMS_SHOWN_MAX: usize = 50;
/// Most streams that one shard proposes. More than are shown, because a stream that is nowhere among the first may have the
/// most listeners in all.
pub const CANDIDATES_MAX: usize = 128;
/// Most messages, members and listeners of a stream that are shown, each.
pub const DETAILS_SHOWN_MAX: usize = 50;

/// What a list is sorted by, the largest figure first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamOrder {
    #[default]
    Listeners,
    /// Messages in the history.
    Messages,
    /// Bytes of these messages.
    Bytes,
    /// Members of the presence.
    Members,
}

impl StreamOrder {
    /// By its name in a request.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "listeners" => Self::Listeners,
            "messages" => Self::Messages,
            "bytes" => Self::Bytes,
            "members" => Self::Members,
            _ => return None,
        })
    }

    fn figure(self, figures: &StreamFigures) -> u64 {
        match self {
            Self::Listeners => figures.listeners,
            Self::Messages => figures.messages,
            Self::Bytes => figures.bytes,
            Self::Members => figures.members,
        }
    }
}

/// Which streams are wanted, and in which order.
#[derive(Debug)]
pub struct StreamQuery {
    query: Query,
    pub order: StreamOrder,
}

impl StreamQuery {
    /// An empty text matches every stream.
    pub fn new(text: &str, order: StreamOrder) -> Self {
        Self {
            query: Query::new(text),
            order,
        }
    }

    /// Looks into the name, and into the global ids in it.
    pub fn is_in(&self, name: &str) -> bool {
        self.query.is_in("", name)
    }
}

/// What is known of a stream: on one shard, or in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StreamFigures {
    /// Subscriptions that listen.
    pub listeners: u64,
    pub messages: u64,
    pub bytes: u64,
    pub members: u64,
}

impl AddAssign for StreamFigures {
    fn add_assign(&mut self, other: Self) {
        self.listeners += other.listeners;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.members += other.members;
    }
}

/// The streams that come first on one shard.
#[derive(Debug, Default)]
pub struct Candidates {
    /// The last of them is on top. Equal figures are sorted by name.
    kept: BinaryHeap<Reverse<(u64, Reverse<Box<str>>)>>,
    /// The largest figure among the others; `None` when there are no others.
    left_out: Option<u64>,
}

impl Candidates {
    pub fn add(&mut self, figure: u64, name: &str) {
        let is_behind = |last: &(u64, Reverse<Box<str>>)| {
            (figure, Reverse(name)) < (last.0, Reverse(&*last.1.0))
        };
        if self.kept.len() == CANDIDATES_MAX
            && self
                .kept
                .peek()
                .is_some_and(|Reverse(last)| is_behind(last))
        {
            return self.leave_out(figure);
        }
        self.kept.push(Reverse((figure, Reverse(name.into()))));
        if self.kept.len() > CANDIDATES_MAX
            && let Some(Reverse((last, _))) = self.kept.pop()
        {
            self.leave_out(last);
        }
    }

    fn leave_out(&mut self, figure: u64) {
        self.left_out = self.left_out.max(Some(figure));
    }

    pub fn into_proposal(self) -> Proposal {
        let kept = self.kept.into_iter();
        Proposal {
            names: kept.map(|Reverse((_, Reverse(name)))| name).collect(),
            left_out: self.left_out,
        }
    }
}

/// What one shard proposes for a list.
#[derive(Debug, Default)]
pub struct Proposal {
    names: Vec<Box<str>>,
    left_out: Option<u64>,
}

/// All that was proposed.
#[derive(Debug)]
pub struct Proposed {
    /// Each name once.
    pub names: Vec<Box<str>>,
    /// Streams were left out.
    more: bool,
    /// No stream that was left out everywhere has a larger figure.
    left_out_max: u64,
}

impl Proposed {
    pub fn by_all(proposals: Vec<Proposal>) -> Self {
        let left_out = || proposals.iter().filter_map(|proposal| proposal.left_out);
        let (more, left_out_max) = (left_out().next().is_some(), left_out().sum());
        let names: BTreeSet<Box<str>> = proposals.into_iter().flat_map(|it| it.names).collect();
        Self {
            names: names.into_iter().collect(),
            more,
            left_out_max,
        }
    }
}

/// A list of streams.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamList {
    pub streams: Vec<ListedStream>,
    /// There are more than these.
    pub more: bool,
    /// A stream that is not in the list may have a larger figure than the last one: its listeners are spread so evenly that
    /// no shard has proposed it.
    pub uncertain: bool,
    /// A shard has not answered in time, so streams may be missing, and figures may be too small.
    pub incomplete: bool,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListedStream {
    pub name: String,
    /// Only the beginning of the name is shown, so its details cannot be asked for.
    pub is_cut: bool,
    #[serde(flatten)]
    pub figures: StreamFigures,
}

impl StreamList {
    /// `figures`: of each shard, in the order of the proposed names.
    pub fn of(
        proposed: Proposed,
        figures: Vec<Vec<StreamFigures>>,
        order: StreamOrder,
        complete: bool,
    ) -> Self {
        let mut totals = vec![StreamFigures::default(); proposed.names.len()];
        for of_shard in figures {
            for (total, of_stream) in totals.iter_mut().zip(of_shard) {
                *total += of_stream;
            }
        }
        let mut streams: Vec<_> = proposed.names.iter().zip(totals).collect();
        streams.sort_by_key(|(name, total)| (Reverse(order.figure(total)), *name));
        let more = proposed.more || streams.len() > STREAMS_SHOWN_MAX;
        streams.truncate(STREAMS_SHOWN_MAX);
        let last = streams.last().map_or(0, |(_, total)| order.figure(total));
        Self {
            streams: streams
                .into_iter()
                .map(|(name, figures)| ListedStream::new(name, figures))
                .collect(),
            more,
            // Only listeners are on several shards. Of the others the first ones at their homes are the first ones in all.
            uncertain: order == StreamOrder::Listeners && proposed.left_out_max > last,
            incomplete: !complete,
        }
    }
}

impl ListedStream {
    fn new(name: &str, figures: StreamFigures) -> Self {
        Self {
            name: shortened(name, TEXT_SHOWN_BYTES_MAX),
            is_cut: name.len() > TEXT_SHOWN_BYTES_MAX,
            figures,
        }
    }
}

/// What one shard knows of one stream.
#[derive(Debug, Default)]
pub struct StreamPart {
    /// Subscriptions that listen.
    pub listeners: u64,
    /// Some of them.
    pub listening: Vec<ListenerReport>,
    /// Only of the home: `None` elsewhere, and without a broker.
    pub kept: Option<KeptReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ListenerReport {
    pub shard: usize,
    pub sid: String,
    /// The connection identifiers.
    pub identifiers: String,
    /// The identifier of the subscription.
    pub identifier: String,
}

/// What the broker keeps for a stream.
#[derive(Debug, Default, Serialize)]
pub struct KeptReport {
    /// `None`: the stream has had no message, or is forgotten.
    pub history: Option<HistoryReport>,
    pub members: MembersReport,
}

#[derive(Debug, Default, Serialize)]
pub struct HistoryReport {
    pub epoch: String,
    /// The offset of the last message.
    pub last: u64,
    pub messages: usize,
    /// Bytes of these messages.
    pub bytes: usize,
    pub messages_max: usize,
    pub ttl_secs: u64,
    /// The newest ones, the last one first.
    pub newest: Vec<MessageReport>,
}

#[derive(Debug, Default, Serialize)]
pub struct MessageReport {
    pub offset: u64,
    pub stored_unix_ms: u64,
    pub bytes: usize,
    /// As in log records.
    pub text: String,
}

#[derive(Debug, Default, Serialize)]
pub struct MembersReport {
    pub total: usize,
    /// Some of them.
    pub records: Vec<MemberReport>,
}

#[derive(Debug, Serialize)]
pub struct MemberReport {
    pub id: String,
    pub info: Option<String>,
}

/// One stream in detail.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    pub listeners: u64,
    pub listening: Vec<ListenerReport>,
    /// `None` without a broker, or when its home has not answered.
    pub kept: Option<KeptReport>,
    /// A shard has not answered in time.
    pub incomplete: bool,
}

impl StreamReport {
    pub fn merged(parts: Vec<StreamPart>, complete: bool) -> Self {
        let mut report = Self {
            listeners: 0,
            listening: Vec::new(),
            kept: None,
            incomplete: !complete,
        };
        for part in parts {
            report.listeners += part.listeners;
            report.listening.extend(part.listening);
            report.kept = report.kept.or(part.kept);
        }
        report.listening.sort_unstable();
        report.listening.truncate(DETAILS_SHOWN_MAX);
        report
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proposal(streams: &[(&str, u64)]) -> Proposal {
        let mut candidates = Candidates::default();
        for (name, figure) in streams {
            candidates.add(*figure, name);
        }
        candidates.into_proposal()
    }

    fn listeners(list: &StreamList) -> Vec<(&str, u64)> {
        let streams = list.streams.iter();
        streams
            .map(|stream| (&*stream.name, stream.figures.listeners))
            .collect()
    }

    /// The list that shards with these listeners make.
    fn list_of(shards: &[Vec<(String, u64)>]) -> StreamList {
        let proposals = shards.iter().map(|shard| {
            let mut candidates = Candidates::default();
            for (name, figure) in shard {
                candidates.add(*figure, name);
            }
            candidates.into_proposal()
        });
        let proposed = Proposed::by_all(proposals.collect());
        let listeners_of = |shard: &[(String, u64)], wanted: &str| {
            let found = shard.iter().find(|(name, _)| name == wanted);
            StreamFigures {
                listeners: found.map_or(0, |(_, figure)| *figure),
                ..StreamFigures::default()
            }
        };
        let figures = |shard: &Vec<(String, u64)>| {
            let names = proposed.names.iter();
            names.map(|name| listeners_of(shard, name)).collect()
        };
        let figures = shards.iter().map(figures).collect();
        StreamList::of(proposed, figures, StreamOrder::Listeners, true)
    }

    #[test]
    fn orders_have_the_names_of_the_figures() {
        let figures = StreamFigures {
            listeners: 1,
            messages: 2,
            bytes: 3,
            members: 4,
        };
        let check = |name: &str, expected: Option<u64>| {
            let order = StreamOrder::named(name);
            assert_eq!(
                order.map(|order| order.figure(&figures)),
                expected,
                "{name}"
            );
        };
        check("listeners", Some(1));
        check("messages", Some(2));
        check("bytes", Some(3));
        check("members", Some(4));
        check("Listeners", None);
        check("", None);
    }

    #[test]
    fn names_are_searched_with_their_global_ids() {
        let check = |text: &str, expected: bool| {
            let query = StreamQuery::new(text, StreamOrder::default());
            let name = "room:Z2lkOi8vYS9Sb29tLzQy";
            assert_eq!(query.is_in(name), expected, "{text}");
        };
        check("", true);
        check("room:Z2", true);
        check("Room/42", true);
        check("Room/43", false);
    }

    #[test]
    fn a_list_adds_what_the_shards_have() {
        let shard = |streams: &[(&str, u64)]| {
            let owned = streams
                .iter()
                .map(|(name, figure)| ((*name).to_owned(), *figure));
            owned.collect::<Vec<_>>()
        };
        let list = list_of(&[shard(&[("a", 1), ("b", 5)]), shard(&[("a", 5), ("c", 0)])]);
        assert_eq!(listeners(&list), [("a", 6), ("b", 5), ("c", 0)]);
        assert!(!list.more && !list.uncertain && !list.incomplete);
    }

    #[test]
    fn only_the_first_streams_are_proposed() {
        let many: Vec<(String, u64)> = (0..1_000)
            .map(|number| (format!("s{number:04}"), number % 500))
            .collect();
        let streams: Vec<_> = many.iter().map(|(name, it)| (&**name, *it)).collect();
        let proposal = proposal(&streams);
        // Two streams have each figure: 64 figures fill the proposal.
        assert_eq!(proposal.names.len(), CANDIDATES_MAX);
        assert_eq!(proposal.left_out, Some(499 - 64));
        let list = list_of(&[many]);
        assert_eq!(list.streams.len(), STREAMS_SHOWN_MAX);
        assert_eq!(listeners(&list)[..2], [("s0499", 499), ("s0999", 499)]);
        assert!(list.more && !list.uncertain);
    }

    #[test]
    fn a_list_says_when_a_stream_may_be_missing() {
        let shard = |of_shard: char| {
            let own = (0..CANDIDATES_MAX).map(|number| (format!("{of_shard}{number}"), 10));
            own.chain([("even".to_owned(), 9)]).collect::<Vec<_>>()
        };
        // 18 listeners, and no shard has proposed it.
        let list = list_of(&[shard('a'), shard('b')]);
        assert!(
            listeners(&list)
                .iter()
                .all(|(_, listeners)| *listeners == 10)
        );
        assert!(list.uncertain && list.more);
    }

    #[test]
    fn long_names_are_cut_and_the_list_says_so() {
        let long = "x".repeat(TEXT_SHOWN_BYTES_MAX + 1);
        let list = list_of(&[vec![(long.clone(), 1), (long[1..].to_owned(), 2)]]);
        let cut: Vec<bool> = list.streams.iter().map(|stream| stream.is_cut).collect();
        assert_eq!(cut, [false, true]);
        assert!(list.streams[1].name.len() < long.len() + "…".len());
    }

    #[test]
    fn parts_of_a_stream_become_one_report() {
        let listener = |shard: usize, sid: usize| ListenerReport {
            shard,
            sid: format!("{sid:02}"),
            identifiers: String::new(),
            identifier: String::new(),
        };
        let part = |shard: usize| StreamPart {
            listeners: 100,
            listening: (0..40).map(|sid| listener(shard, sid)).collect(),
            kept: (shard == 1).then(KeptReport::default),
        };
        let report = StreamReport::merged(vec![part(1), part(0)], false);
        assert_eq!(report.listeners, 200);
        assert_eq!(report.listening.len(), DETAILS_SHOWN_MAX);
        assert_eq!(report.listening[0], listener(0, 0));
        assert!(report.kept.is_some() && report.incomplete);
    }

    proptest! {
        /// Unless the list says so, no stream that is missing has more listeners than the last one.
        #[test]
        fn a_list_that_is_certain_is_right(
            figures in prop::collection::vec(prop::collection::vec(0u64..6, 300), 1..4)
        ) {
            let shards: Vec<Vec<(String, u64)>> = figures
                .iter()
                .map(|shard| (0..).zip(shard).map(|(number, it)| (format!("s{number:03}"), *it)).collect())
                .collect();
            let list = list_of(&shards);
            let mut totals: Vec<u64> = (0..300).map(|at| figures.iter().map(|shard| shard[at]).sum()).collect();
            totals.sort_unstable_by_key(|total| Reverse(*total));
            let shown: Vec<u64> = list.streams.iter().map(|stream| stream.figures.listeners).collect();
            if !list.uncertain {
                prop_assert_eq!(&shown[..], &totals[..STREAMS_SHOWN_MAX]);
            }
            prop_assert!(shown.is_sorted_by_key(|total| Reverse(*total)));
        }
    }
}

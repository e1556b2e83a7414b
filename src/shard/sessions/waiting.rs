//! What a session waits for from the broker, and what of the answer has not been sent yet.

use std::collections::VecDeque;

use crate::broker::history::Part;
use crate::mesh::Charge;
use crate::protocol::position::Position;
use crate::protocol::publication::{Message, Publication};
use crate::session::{BrokerQuestion, Credentials, StreamHistory};

/// The questions of one session. Exists only while one is under way.
#[derive(Default)]
pub(super) struct BrokerWait {
    pub open: Option<OpenQuestion>,
    /// For the texts of the question under way.
    pub charge: Option<Charge>,
    /// Asked when the one under way is done, in order.
    pub later: VecDeque<(BrokerQuestion, Charge)>,
}

/// The question under way.
pub(super) enum OpenQuestion {
    History(HistoryWait),
    Replay(Replay),
    Join {
        stream: Box<str>,
    },
    Leave {
        stream: Box<str>,
    },
    Members {
        identifier: Box<str>,
    },
    /// So many shards have not said whether they know the client's earlier session.
    Resume {
        credentials: Box<Credentials>,
        missing: usize,
        /// The remote disconnects that this shard had seen before.
        disconnects_seen: u64,
    },
}

/// A question for history that has not been answered completely.
pub(super) struct HistoryWait {
    identifier: Box<str>,
    streams: Vec<StreamHistory>,
    /// What has come, in the order of `streams`.
    parts: Vec<Option<Part>>,
    /// Streams without an answer.
    missing: usize,
}

impl HistoryWait {
    pub fn new(identifier: Box<str>, streams: Vec<StreamHistory>) -> Self {
        Self {
            identifier,
            parts: streams.iter().map(|_| None).collect(),
            missing: streams.len(),
            streams,
        }
    }

    /// Notes the answer for the stream at this place in the question; `None` = refused. True when all streams are answered.
    pub fn note(&mut self, place: usize, part: Option<Part>) -> bool {
        self.parts[place] = part;
        self.missing -= 1;
        self.missing == 0
    }

    /// What has to be replayed. When one stream was refused there is no partial answer, and the identifier is returned.
    pub fn into_replay(self) -> Result<Replay, Box<str>> {
        let parts = self.streams.into_iter().zip(self.parts);
        let parts: Option<Vec<_>> = parts
            .map(|(asked, part)| Some((asked.stream, part?)))
            .collect();
        match parts {
            Some(parts) => Ok(Replay::new(self.identifier, parts)),
            None => Err(self.identifier),
        }
    }
}

/// What a client has missed and gets now.
pub(super) struct Replay {
    identifier: Box<str>,
    parts: Vec<(Box<str>, Part)>,
    /// The next message: its part, and its place in that.
    next_part: usize,
    next_message: usize,
}

impl Replay {
    fn new(identifier: Box<str>, parts: Vec<(Box<str>, Part)>) -> Self {
        Self {
            identifier,
            parts,
            next_part: 0,
            next_message: 0,
        }
    }

    pub fn identifier(&self) -> &str {
        &self.identifier
    }

    /// The number of messages.
    pub fn len(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|(_, part)| part.entries().len()).sum()
    }

    /// Bytes of all messages.
    pub fn message_bytes(&self) -> usize {
        let parts = self.parts.iter();
        parts.map(|(_, part)| part.message_bytes()).sum()
    }

    /// The position of the first message.
    pub fn first(&self) -> Option<Position> {
        let mut parts = self.parts.iter();
        parts.find_map(|(_, part)| part.entry(0).map(|(position, _)| position))
    }

    /// Where the last stream ends; `None`: nothing is known of it.
    pub fn last(&self) -> Option<Position> {
        self.parts.last()?.1.last()
    }

    /// Takes the next message, as the publication that it was.
    pub fn next(&mut self) -> Option<Publication> {
        while let Some((stream, part)) = self.parts.get(self.next_part) {
            if let Some((position, message)) = part.entry(self.next_message) {
                self.next_message += 1;
                return Some(Publication {
                    stream: stream.clone(),
                    message: Message::clone(message),
                    position: Some(position),
                    ..Publication::default()
                });
            }
            self.next_part += 1;
            self.next_message = 0;
        }
        None
    }

    /// Whether this publication was part of the answer.
    pub fn covers(&self, publication: &Publication) -> bool {
        let mut parts = self.parts.iter();
        let part = parts.find(|(stream, _)| **stream == *publication.stream);
        let last = part.and_then(|(_, part)| part.last());
        last.zip(publication.position)
            .is_some_and(|(last, position)| {
                last.epoch == position.epoch && last.offset >= position.offset
            })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::broker::history::{Classes, Epochs, History};
    use crate::broker::{Budget, StreamKey};
    use crate::config::HistoryLimits;
    use crate::protocol::position::Epoch;
    use crate::session::HistoryStart;

    struct Unbounded;

    impl Budget for Unbounded {
        fn try_charge(&self, _bytes: usize) -> bool {
            true
        }

        fn release(&self, _bytes: usize) {}
    }

    /// The last messages of a stream with three, and their epoch.
    fn part(messages: usize) -> Part {
        let limits = HistoryLimits {
            messages: 10,
            ttl: Duration::from_secs(10),
        };
        let classes = Classes::new(limits, &[]);
        let now = Instant::now();
        let mut history = History::new(Unbounded, classes, Epochs::new(1, 0, 1), now);
        let key = || StreamKey { name: "a", hash: 1 };
        for message in ["1", "2", "3"] {
            history.append(key(), &message.as_bytes().into(), now);
        }
        history.newest(key(), messages).expect("a known stream")
    }

    fn wait(streams: &[&str]) -> HistoryWait {
        let asked = |stream: &&str| StreamHistory {
            stream: (*stream).into(),
            start: HistoryStart::Since(1),
        };
        HistoryWait::new("A".into(), streams.iter().map(asked).collect())
    }

    fn live(stream: &str, epoch: Epoch, offset: u64) -> Publication {
        Publication {
            stream: stream.into(),
            position: Some(Position { epoch, offset }),
            ..Publication::default()
        }
    }

    #[test]
    fn parts_are_replayed_in_the_order_of_the_question() {
        let mut wait = wait(&["a", "b", "c"]);
        assert!(!wait.note(2, Some(part(1))));
        assert!(!wait.note(0, Some(part(2))));
        assert!(wait.note(1, Some(Part::default())));
        let mut replay = wait.into_replay().expect("all parts");
        assert_eq!(replay.identifier(), "A");
        let mut replayed = Vec::new();
        while let Some(publication) = replay.next() {
            let offset = publication.position.expect("a stored message").offset;
            assert_eq!(*publication.message, *offset.to_string().as_bytes());
            replayed.push((publication.stream.to_string(), offset));
        }
        let expected = [("a", 2), ("a", 3), ("c", 3)];
        assert_eq!(
            replayed,
            expected.map(|(stream, offset)| (stream.to_owned(), offset))
        );
        assert!(replay.next().is_none());
    }

    #[test]
    fn one_refused_part_refuses_all() {
        let mut wait = wait(&["a", "b"]);
        assert!(!wait.note(1, None));
        assert!(wait.note(0, Some(part(1))));
        assert_eq!(wait.into_replay().err().as_deref(), Some("A"));
    }

    #[test]
    fn an_answer_covers_what_is_not_newer_in_its_epoch() {
        let mut wait = wait(&["a", "b"]);
        let answer = part(0);
        let epoch = answer.last().expect("a position").epoch;
        wait.note(0, Some(answer));
        wait.note(1, Some(Part::default()));
        let replay = wait.into_replay().expect("all parts");
        let table = [
            (live("a", epoch, 2), true),
            (live("a", epoch, 3), true),
            (live("a", epoch, 4), false),
            (live("a", Epoch::from_bits(99), 1), false),
            (live("b", epoch, 1), false),
            (live("c", epoch, 1), false),
            (
                Publication {
                    position: None,
                    ..live("a", epoch, 1)
                },
                false,
            ),
        ];
        for (publication, covered) in table {
            assert_eq!(replay.covers(&publication), covered, "{publication:?}");
        }
    }
}

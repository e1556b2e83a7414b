//! What a session waits for from the broker, and what of the answer has not been sent yet.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::broker::history::Part;
use crate::mesh::Charge;
use crate::protocol::publication::Publication;
use crate::session::{BrokerQuestion, Credentials, StreamHistory};

/// The questions of one session. Exists only while one is under way.
#[derive(Default)]
pub(super) struct BrokerWait {
    pub open: Option<OpenQuestion>,
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

    /// Takes the next message, as the publication that it was.
    pub fn next(&mut self) -> Option<Publication> {
        while let Some((stream, part)) = self.parts.get(self.next_part) {
            if let Some((position, message)) = part.entry(self.next_message) {
                self.next_message += 1;
                return Some(Publication {
                    stream: stream.clone(),
                    message: Bytes::copy_from_slice(message),
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

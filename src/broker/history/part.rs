//! Answers about the history of a stream.

use thiserror::Error;

use crate::protocol::position::Position;
use crate::protocol::publication::Message;

/// The last messages of a stream, up to the moment of the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    messages: Vec<Message>,
    last: Option<Position>,
}

impl Part {
    pub(super) fn new<'a>(messages: impl Iterator<Item = &'a Message>, last: Position) -> Self {
        Self {
            messages: messages.cloned().collect(),
            last: Some(last),
        }
    }

    /// The position of the stream's last message, whether or not it is in the answer. What comes later has a greater offset
    /// or another epoch. `None`: the stream is not known, so everything comes later.
    pub fn last(&self) -> Option<Position> {
        self.last
    }

    /// The message at this place of the answer, from 0 on.
    pub fn entry(&self, at: usize) -> Option<(Position, &Message)> {
        let (message, last) = self.messages.get(at).zip(self.last)?;
        let later = self.messages.len() - 1 - at;
        let offset = last.offset - later as u64;
        Some((Position { offset, ..last }, message))
    }

    /// The messages in order.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (Position, &Message)> {
        (0..self.messages.len()).map(|at| self.entry(at).expect("within the answer"))
    }

    /// Bytes of all messages.
    pub fn message_bytes(&self) -> usize {
        self.messages.iter().map(|message| message.len()).sum()
    }
}

/// Why a question about the history of a stream is not answered. The client has to load its state anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("nothing was published to the stream, or it was forgotten since")]
    UnknownStream,
    #[error("the position is of another life of the stream, or of another server")]
    ForeignEpoch,
    #[error("the position is after the last message of the stream")]
    InTheFuture,
    #[error("messages after the position are not kept any more")]
    NotKept,
}

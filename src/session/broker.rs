//! What a session asks the broker: history and presence of its streams. Pure, as the rest of the session.

use crate::protocol::command::{ClientCommand, HistoryRequest, PresencePayload};
use crate::protocol::position::Position;
use crate::protocol::reply::Reply;
use crate::session::Session;
use crate::session::step::{CommandRefusal, Context, PRESENCE_KEY, Step, no_room};

/// A question to the broker. A session has one under way at a time, and its client's next command waits for the answer, as
/// it does for an answer of the app.
#[derive(Debug)]
pub enum BrokerQuestion {
    /// What the client has missed on streams of this subscription. The answer is replayed. Source: contract/extended.md §4.
    History {
        identifier: Box<str>,
        streams: Vec<StreamHistory>,
    },
    /// The client becomes a member of the stream's presence. Source for this and the next two: contract/extended.md §7.
    Join {
        stream: Box<str>,
        id: Box<str>,
        /// JSON.
        info: Option<Box<str>>,
    },
    /// The client leaves the presence of the stream.
    Leave { stream: Box<str> },
    /// Who is present. The answer goes to the client.
    Members {
        identifier: Box<str>,
        stream: Box<str>,
        /// Without it, the client gets only their number.
        with_records: bool,
    },
}

/// The history that a client asks for, of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamHistory {
    pub stream: Box<str>,
    pub start: HistoryStart,
}

/// Where the answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryStart {
    /// After the last message that the client knows.
    After(Position),
    /// At this time, in seconds since 1970.
    Since(i64),
    /// The oldest message that is kept.
    Oldest,
    /// The next message: the answer has none, and says where the stream ends.
    Next,
}

impl BrokerQuestion {
    /// Bytes of its texts, held while it waits and runs.
    pub fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::History {
                identifier,
                streams,
            } => {
                let streams = streams.iter();
                identifier.len()
                    + streams
                        .map(|it| size_of::<StreamHistory>() + it.stream.len())
                        .sum::<usize>()
            }
            Self::Join { stream, id, info } => {
                stream.len() + id.len() + info.as_ref().map_or(0, |info| info.len())
            }
            Self::Leave { stream } => stream.len(),
            Self::Members {
                identifier, stream, ..
            } => identifier.len() + stream.len(),
        };
        size_of::<Self>() + texts
    }
}

impl Session {
    /// Listens to a stream for a reader, who gets no confirmation.
    ///
    /// # Errors
    /// There is no room for one more subscription.
    pub fn listen(
        &mut self,
        context: &mut Context<'_>,
        identifier: &str,
        stream: &str,
    ) -> Result<(), CommandRefusal> {
        if let Some(refusal) = no_room(context, identifier) {
            return Err(refusal);
        }
        self.change(context, identifier, |_, context| {
            context.hub.subscribe(context.slot, identifier);
            context.hub.attach(context.slot, identifier, stream);
        });
        Ok(())
    }
}

/// Answers a client's wish for history. Without a broker, a request that would have to fetch something is rejected; one that
/// asks for nothing is confirmed at once. Source: contract/extended.md §4.
pub(super) fn ask_history(
    context: &Context<'_>,
    identifier: &str,
    request: Option<&HistoryRequest>,
    steps: &mut Vec<Step>,
) {
    let Some(request) = request else { return };
    if request.since == 0 && request.streams.is_none() {
        return;
    }
    let streams = context.hub.streams_of(context.slot, identifier);
    let wanted: Vec<StreamHistory> = streams
        .into_iter()
        .filter_map(|stream| {
            Some(StreamHistory {
                stream: stream.into(),
                start: start_of(request, stream)?,
            })
        })
        .collect();
    let identifier = identifier.into();
    steps.push(if wanted.is_empty() {
        Step::Send(Reply::ConfirmHistory { identifier })
    } else if context.has_broker {
        Step::AskBroker(BrokerQuestion::History {
            identifier,
            streams: wanted,
        })
    } else {
        Step::Send(Reply::RejectHistory { identifier })
    });
}

/// Where the history of one stream begins; `None` when the client does not ask for it.
fn start_of(request: &HistoryRequest, stream: &str) -> Option<HistoryStart> {
    let position = request
        .streams
        .as_ref()
        .and_then(|positions| positions.of(stream));
    match position {
        Some(position) => Some(HistoryStart::After(position)),
        None => (request.since > 0).then_some(HistoryStart::Since(request.since)),
    }
}

impl Session {
    /// A client asks who is present. Without presence on its subscription it gets no answer.
    pub(super) fn ask_members(
        &self,
        context: &Context<'_>,
        command: &ClientCommand<'_>,
        steps: &mut Vec<Step>,
    ) {
        let Some(stream) = self.reserved_stream(context, &command.identifier, PRESENCE_KEY) else {
            return;
        };
        let identifier = command.identifier.as_ref().into();
        steps.push(if context.has_broker {
            Step::AskBroker(BrokerQuestion::Members {
                identifier,
                stream: stream.into(),
                with_records: command.data.wants_records(),
            })
        } else {
            Step::Send(Reply::PresenceError { identifier })
        });
    }

    /// The client becomes present, if presence is there and its subscription has it.
    pub(super) fn join(
        &self,
        context: &Context<'_>,
        identifier: &str,
        presence: Option<PresencePayload>,
        steps: &mut Vec<Step>,
    ) {
        if context.has_broker
            && let Some(PresencePayload { id, info }) = presence
            && let Some(stream) = self.reserved_stream(context, identifier, PRESENCE_KEY)
        {
            let stream = stream.into();
            steps.push(Step::AskBroker(BrokerQuestion::Join { stream, id, info }));
        }
    }

    /// The client is not present under this subscription any more.
    pub(super) fn leave(&self, context: &Context<'_>, identifier: &str, steps: &mut Vec<Step>) {
        if context.has_broker
            && let Some(stream) = self.reserved_stream(context, identifier, PRESENCE_KEY)
        {
            let stream = stream.into();
            steps.push(Step::AskBroker(BrokerQuestion::Leave { stream }));
        }
    }
}

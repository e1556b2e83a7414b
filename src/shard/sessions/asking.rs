//! What sessions ask the broker, one question after the other. Nothing is read from a client until all of its questions are
//! answered.

use super::waiting::{HistoryWait, OpenQuestion};
use super::{Action, Sessions};
use crate::broker::presence::Stay;
use crate::mesh::SessionRef;
use crate::protocol::sid;
use crate::session::{BrokerQuestion, Credentials, StreamHistory};
use crate::shard::message::{HomeMessage, HomeQuestion, ResumeMessage, ShardMessage};

impl Sessions {
    /// Asks the broker, after what the session has asked before. Nothing is read from the client until all is answered.
    pub(super) fn ask_broker(&mut self, slot: u32, question: BrokerQuestion) {
        let charge = self.common.budget.hold_anyway(question.held_bytes());
        if let BrokerQuestion::History { identifier, .. } = &question {
            // From now on, and not only when its turn comes: what is delivered meanwhile would come again with the answer.
            self.hold_back(slot, identifier);
        }
        let connection = &mut self.table.connections[slot as usize];
        let wait = connection
            .held
            .get_or_insert_default()
            .broker
            .get_or_insert_default();
        wait.later.push_back((question, charge));
        if wait.open.is_none() {
            connection.session.deadlines.command_started();
            self.ask_next(slot);
        }
    }

    /// Asks the next question of a session, or ends its wait when there is none.
    pub(super) fn ask_next(&mut self, slot: u32) {
        while let Some(wait) = self.table.broker_wait(slot) {
            let Some((question, charge)) = wait.later.pop_front() else {
                return self.end_wait(slot);
            };
            wait.charge = Some(charge);
            if let Some(open) = self.begin_question(slot, question)
                && let Some(wait) = self.table.broker_wait(slot)
            {
                wait.open = Some(open);
                return;
            }
        }
    }

    pub(super) fn end_wait(&mut self, slot: u32) {
        let connection = &mut self.table.connections[slot as usize];
        if let Some(held) = &mut connection.held {
            held.broker = None;
        }
        connection.session.deadlines.command_ended();
        self.table.set_timer(slot);
    }

    /// Sends a question to the home of its stream. `None` when there is nothing to ask.
    fn begin_question(&mut self, slot: u32, question: BrokerQuestion) -> Option<OpenQuestion> {
        let session = self.table.session_ref(slot);
        let connection = &self.table.connections[slot as usize];
        Some(match question {
            BrokerQuestion::History {
                identifier,
                streams,
            } => OpenQuestion::History(self.ask_for_history(session, identifier, streams)),
            BrokerQuestion::Join { stream, id, info } => {
                let question = HomeQuestion::Join {
                    sid: connection.session.sid().into(),
                    id,
                    info,
                    stay: match connection.session.is_extended() {
                        true => Stay::Connected,
                        false => Stay::Expiring,
                    },
                };
                self.ask_home(session, &stream, question);
                OpenQuestion::Join { stream }
            }
            BrokerQuestion::Leave { stream } if self.memberships.contains(slot, &stream) => {
                let sid = connection.session.sid().into();
                self.ask_home(session, &stream, HomeQuestion::Leave { sid });
                OpenQuestion::Leave { stream }
            }
            BrokerQuestion::Leave { .. } => return None,
            BrokerQuestion::Members {
                identifier,
                stream,
                with_records,
            } => {
                self.ask_home(session, &stream, HomeQuestion::Members { with_records });
                OpenQuestion::Members { identifier }
            }
        })
    }

    fn ask_home(&mut self, session: SessionRef, stream: &str, question: HomeQuestion) {
        let stream: Box<str> = stream.into();
        self.actions.push(Action::TellHome {
            stream: stream.clone(),
            message: HomeMessage::Ask {
                session,
                stream,
                question,
            },
        });
    }

    /// Asks the homes of the streams. The subscription holds back what they send until the answers are replayed.
    fn ask_for_history(
        &mut self,
        session: SessionRef,
        identifier: Box<str>,
        streams: Vec<StreamHistory>,
    ) -> HistoryWait {
        for (place, asked) in streams.iter().enumerate() {
            let question = HomeQuestion::History {
                place,
                start: asked.start,
            };
            self.ask_home(session, &asked.stream, question);
        }
        HistoryWait::new(identifier, streams)
    }

    /// A subscription holds back what has a position from now on.
    pub(super) fn hold_back(&mut self, slot: u32, identifier: &str) {
        self.holdbacks.begin(slot, identifier);
        self.hub.hold_back(slot, identifier);
    }

    /// Asks for an earlier session. Until the answer is there the client is not authenticated.
    pub(super) fn ask_for_earlier(&mut self, slot: u32, earlier: &str, credentials: Credentials) {
        let session = self.table.session_ref(slot);
        let shards = match sid::shard_of(earlier) {
            Some(shard) if shard < self.common.shards => shard..shard + 1,
            _ => 0..self.common.shards,
        };
        let missing = shards.len();
        for shard in shards {
            let sid = earlier.into();
            let message = ResumeMessage::Find { session, sid };
            self.actions.push(Action::Tell {
                shard,
                message: ShardMessage::Resume(Box::new(message)),
            });
        }
        let disconnects_seen = self.disconnects_seen();
        let token_bytes = credentials.token.as_ref().map_or(0, String::len);
        let charge = self.common.budget.hold_anyway(token_bytes);
        let connection = &mut self.table.connections[slot as usize];
        let held = connection.held.get_or_insert_default();
        let wait = held.broker.get_or_insert_default();
        wait.charge = Some(charge);
        wait.open = Some(OpenQuestion::Resume {
            credentials: Box::new(credentials),
            missing,
            disconnects_seen,
        });
        connection.session.deadlines.command_started();
    }
}

//! The broker's answers to the questions of sessions.

use bytes::Bytes;

use super::Sessions;
use super::share::Share;
use super::waiting::{HistoryWait, OpenQuestion};
use crate::broker::history::Part;
use crate::broker::presence::{JoinRefusal, LongAnswer};
use crate::mesh::SessionRef;
use crate::protocol::reply::Reply;
use crate::shard::message::BrokerAnswer;
use crate::shard::notices::Notice;

impl Sessions {
    /// The broker has answered.
    pub fn on_broker_answer(&mut self, session: SessionRef, answer: BrokerAnswer) {
        let slot = session.slot;
        if self.table.live(session).is_none() {
            return;
        }
        let Some(open) = self.table.take_open_question(slot) else {
            return;
        };
        match (open, answer) {
            (OpenQuestion::History(wait), BrokerAnswer::History { place, part }) => {
                self.on_history(slot, wait, place, part);
            }
            (OpenQuestion::Join { stream }, BrokerAnswer::Joined(Ok(()))) => {
                self.memberships.add(slot, stream);
            }
            (OpenQuestion::Join { .. }, BrokerAnswer::Joined(Err(refusal))) => {
                self.log_refused_join(slot, &refusal);
            }
            (OpenQuestion::Leave { stream }, BrokerAnswer::Left) => {
                self.memberships.remove(slot, &stream);
            }
            (OpenQuestion::Members { identifier }, BrokerAnswer::Members(members)) => {
                self.send_reply(slot, &members_reply(identifier, members));
            }
            (open, answer) => {
                debug_assert!(false, "{answer:?} answers another question");
                self.table.put_open_question(slot, open);
            }
        }
        self.go_on_asking(session);
    }

    /// Goes on when a question may be done: with the next one, or with what the client has sent meanwhile.
    fn go_on_asking(&mut self, session: SessionRef) {
        let wait = self.table.broker_wait(session.slot);
        if wait.is_some_and(|wait| wait.open.is_none()) {
            self.ask_next(session.slot);
        }
        self.go_on_after_answer(session);
    }

    /// Serves what a session's client has sent while it waited.
    pub(super) fn go_on_after_answer(&mut self, session: SessionRef) {
        let slot = session.slot;
        if self.table.live(session).is_some_and(|it| !it.waits()) {
            self.read(slot, &mut Share::new());
        }
        if self.table.live(session).is_some() {
            self.table.schedule_rest(slot);
        }
    }

    fn on_history(&mut self, slot: u32, mut wait: HistoryWait, place: usize, part: Option<Part>) {
        if !wait.note(place, part) {
            return self
                .table
                .put_open_question(slot, OpenQuestion::History(wait));
        }
        if self.table.reading(slot).is_some() {
            return self.on_read(slot, wait.into_replay());
        }
        match wait.into_replay() {
            Ok(replay) => {
                self.table
                    .put_open_question(slot, OpenQuestion::Replay(replay));
                self.go_on_replay(slot);
            }
            Err(identifier) => {
                self.common.counters().history_refused_total.add(1);
                let reply = Reply::RejectHistory {
                    identifier: identifier.clone(),
                };
                self.send_reply(slot, &reply);
                self.release_held_back(slot, &identifier, None);
            }
        }
    }

    fn log_refused_join(&self, slot: u32, refusal: &JoinRefusal) {
        let counters = self.common.counters();
        counters.joins_refused_total.add(1);
        counters.failed_client_msg_total.add(1);
        if let Some(admitted) = self.common.notices.admit(Notice::JoinRefused) {
            tracing::warn!(
                context = "node",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                error = %refusal,
                left_out = admitted.left_out(),
                "failed to handle incoming message"
            );
        }
    }
}

/// The reply to a client that asks who is present.
fn members_reply(identifier: Box<str>, members: Result<Bytes, LongAnswer>) -> Reply {
    match members {
        Ok(info) => Reply::PresenceInfo { identifier, info },
        Err(_) => Reply::PresenceError { identifier },
    }
}

//! A client that comes back: its session goes on where the earlier one has ended.
//!
//! A session is kept on the shard on which it has ended. That shard answers for it before and after its end, so whoever asks
//! finds it, whenever the server learns that the old connection is broken.

use std::time::Duration;

use super::Sessions;
use super::waiting::OpenQuestion;
use crate::broker::sessions::SessionSnapshot;
use crate::mesh::SessionRef;
use crate::session::Tick;
use crate::shard::timers::TICK;

/// How long the subscriptions of a restored session wait for its client to ask for history before they deliver what has
/// come since. The clients ask at once.
pub const RESUME_HOLD_MAX: Duration = Duration::from_secs(2);
pub(super) const RESUME_HOLD_TICKS: Tick = (RESUME_HOLD_MAX.as_millis() / TICK.as_millis()) as Tick;

impl Sessions {
    /// A shard has answered whether it knows the earlier session.
    pub fn on_earlier(&mut self, session: SessionRef, found: Option<SessionSnapshot>) {
        let slot = session.slot;
        if self.table.live(session).is_none() {
            return;
        }
        let Some(wait) = self.table.broker_wait(slot) else {
            return;
        };
        let Some(OpenQuestion::Resume { missing, .. }) = &mut wait.open else {
            return;
        };
        *missing -= 1;
        if found.is_none() && *missing > 0 {
            return;
        }
        let Some(OpenQuestion::Resume {
            credentials,
            disconnects_seen,
            ..
        }) = wait.open.take()
        else {
            return;
        };
        self.end_wait(slot);
        let found = found
            .filter(|found| !self.disconnected_since(disconnects_seen, &found.identifiers))
            .filter(|found| self.common.budget.admits(found.held_bytes()));
        match found {
            Some(snapshot) => self.restore(session, snapshot),
            None => {
                self.common.counters().restores_unknown_total.add(1);
                self.begin_authentication(slot, &credentials);
            }
        }
        self.go_on_after_answer(session);
    }

    fn restore(&mut self, session: SessionRef, snapshot: SessionSnapshot) {
        let slot = session.slot;
        self.common.counters().restores_total.add(1);
        self.with_session(slot, true, |session, context, steps| {
            session.restore(context, snapshot, steps);
        });
        let identifiers = self.hub.identifiers(slot).into_iter().map(Into::into);
        for identifier in identifiers.collect::<Vec<Box<str>>>() {
            self.hold_back(slot, &identifier);
        }
        let until = self.table.now + RESUME_HOLD_TICKS;
        self.holdbacks.expire_at(until, session);
    }
}

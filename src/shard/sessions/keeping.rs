//! What stays of a session that ends: it may come back, and it is present for a while.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::closing::Cause;
use super::waiting::OpenQuestion;
use super::{Action, Sessions};
use crate::broker::sessions::{KeptSessions, SessionSnapshot};
use crate::mesh::Lease;
use crate::protocol::publication::RemoteDisconnect;
use crate::session::Tick;
use crate::shard::message::HomeMessage;
use crate::shard::timers::TICK;

/// Steps of one sweep: what is left is removed by the next one.
const KEPT_SWEEP_STEPS: usize = 1024;

/// Remote disconnects that a shard remembers. A session whose answer is awaited while more than these come is not restored.
const REMEMBERED_DISCONNECTS_MAX: usize = 1024;
/// A remote disconnect is on its way into the inboxes of the other shards for this long at most, unless they stand still.
pub(super) const DISCONNECT_LASTS: Duration = Duration::from_secs(10);
const DISCONNECT_LASTS_TICKS: Tick = (DISCONNECT_LASTS.as_millis() / TICK.as_millis()) as Tick;

/// The sessions that have ended here and may come back.
pub struct Kept {
    sessions: KeptSessions<Rc<Lease>>,
    disconnects: RemoteDisconnects,
}

/// The last remote disconnects. They reach the shards one after the other. So one may come here before a session is
/// restored here, and to the shard that knows the earlier session after it has answered. Neither shard would end the
/// restored session.
#[derive(Default)]
struct RemoteDisconnects {
    /// All so far.
    count: u64,
    /// Of the last ones: the hash of the identifiers, and the time.
    last: VecDeque<(u64, Tick)>,
}

impl RemoteDisconnects {
    fn note(&mut self, identifiers: u64, now: Tick) {
        if self.last.len() == REMEMBERED_DISCONNECTS_MAX {
            self.last.pop_front();
        }
        self.last.push_back((identifiers, now));
        self.count += 1;
    }

    /// False only when none of those after the first `seen`, and of those that are on their way, is for these identifiers.
    fn may_concern(&self, identifiers: u64, seen: u64, now: Tick) -> bool {
        let later = (self.count - seen) as usize;
        let mut newest_first = self.last.iter().rev().enumerate();
        later > self.last.len()
            || newest_first.any(|(place, &(hash, at))| {
                hash == identifiers && (place < later || now - at <= DISCONNECT_LASTS_TICKS)
            })
    }
}

impl Kept {
    /// Sessions can come back for `ttl` after their end.
    pub fn new(ttl: Duration, lease: Rc<Lease>) -> Self {
        Self {
            sessions: KeptSessions::new(lease, ttl, Instant::now()),
            disconnects: RemoteDisconnects::default(),
        }
    }
}

impl Sessions {
    /// None of the sessions with these connection identifiers can come back.
    pub(super) fn forget_kept(&mut self, command: &RemoteDisconnect) {
        if let Some(kept) = &mut self.kept {
            kept.sessions.drop_all_of(&command.identifiers);
            let hash = self.table.identities.hash(&command.identifiers);
            kept.disconnects.note(hash, self.table.now);
        }
    }

    /// The remote disconnects that this shard has seen.
    pub(super) fn disconnects_seen(&self) -> u64 {
        self.kept.as_ref().map_or(0, |kept| kept.disconnects.count)
    }

    /// True when a session may have been disconnected remotely while it was being restored here. This shard had seen `seen`
    /// remote disconnects before.
    pub(super) fn disconnected_since(&self, seen: u64, identifiers: &str) -> bool {
        let hash = self.table.identities.hash(identifiers);
        let kept = self.kept.as_ref();
        kept.is_some_and(|kept| kept.disconnects.may_concern(hash, seen, self.table.now))
    }

    /// The session with this sid, if it can be restored: it is connected here, or it has ended here.
    pub fn find_earlier(&self, sid: &str) -> Option<SessionSnapshot> {
        let live = self.sids.find(sid, |slot| self.table.sid(slot));
        match live {
            Some(slot) => {
                let session = &self.table.connections[slot as usize].session;
                session
                    .is_authenticated()
                    .then(|| session.snapshot(&self.hub, slot))
            }
            None => self
                .kept
                .as_ref()?
                .sessions
                .restore(sid, self.table.instant),
        }
    }

    /// Keeps a session that ends, if its client may come back. Called before its subscriptions go.
    pub(super) fn keep_session(&mut self, slot: u32, cause: Cause) {
        let connection = &self.table.connections[slot as usize];
        let Some(kept) = &mut self.kept else { return };
        self.sids.remove(slot, connection.session.sid());
        let may_return = connection.session.is_extended()
            && connection.session.is_authenticated()
            && !matches!(cause, Cause::Remote | Cause::Auth | Cause::Shutdown);
        if may_return {
            let snapshot = connection.session.snapshot(&self.hub, slot);
            let sid = connection.session.sid();
            let now = self.table.instant;
            if let Err(refusal) = kept.sessions.keep(sid, &snapshot, now) {
                tracing::debug!(
                    context = "node",
                    sid,
                    shard = self.common.shard,
                    %refusal,
                    "a session that has ended cannot come back"
                );
            }
        }
    }

    /// Removes kept sessions whose time is over. True: there is more to do at once.
    pub fn sweep_kept(&mut self, now: Instant) -> bool {
        let Some(kept) = &mut self.kept else {
            return false;
        };
        let more = kept.sessions.sweep(now, KEPT_SWEEP_STEPS);
        let totals = kept.sessions.totals();
        let counters = self.common.counters();
        counters.sessions_kept_num.set(totals.restorable as i64);
        let evictions = &counters.session_evictions_total;
        evictions.add(totals.evicted - evictions.value());
        more
    }

    /// Tells the homes of the streams in which an ending session is present, or may become present. Called once per session.
    /// Members of the base protocol expire some time after they have joined, whether they are connected or not.
    pub(super) fn end_presence(&mut self, slot: u32) {
        let mut streams = self.memberships.forget(slot);
        if !self.table.connections[slot as usize].session.is_extended() {
            return;
        }
        if let Some(OpenQuestion::Join { stream }) = self.table.take_open_question(slot) {
            streams.push(stream);
        }
        for stream in streams {
            let sid = self.table.sid(slot).into();
            let message = HomeMessage::Ended { sid };
            self.actions.push(Action::TellHome { stream, message });
        }
    }
}

//! The console's view of the session table: snapshots, searches, listeners, and the disconnect of one session.

use std::sync::Arc;

use super::closing::Cause;
use super::formats::{Encoding, console_frame};
use super::{Action, Sessions};
use crate::console::IDENTIFIER;
use crate::console::search::{HITS_MAX, Query, SessionReport, TEXT_SHOWN_BYTES_MAX, subscriptions};
use crate::console::streams::ListenerReport;
use crate::log::shortened;
use crate::mesh::SessionRef;
use crate::protocol::command::{CommandKind, decode_command};
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::reply::{self, Reply};

/// Matches found in one look at most. Each is described at once.
const HITS_PER_LOOK_MAX: usize = 8;

/// A search in progress.
pub struct Scan {
    query: Arc<Query>,
    next_slot: usize,
    pub found: Vec<SessionReport>,
}

impl Scan {
    pub fn new(query: Arc<Query>) -> Self {
        Self {
            query,
            next_slot: 0,
            found: Vec::new(),
        }
    }
}

impl Sessions {
    pub fn console_is_full(&self) -> bool {
        self.watchers.is_full()
    }

    #[cfg(test)]
    pub fn console_connections(&self) -> usize {
        self.watchers.len()
    }

    #[cfg(test)]
    pub fn console_watchers(&self) -> usize {
        self.watchers.watching().len()
    }

    /// There is one channel, and a client of the console can ask for nothing else.
    pub(super) fn on_console_message(&mut self, slot: u32, payload: &[u8]) {
        let Ok(Some(command)) = decode_command(payload) else {
            return;
        };
        match command.kind {
            CommandKind::Subscribe if command.identifier == IDENTIFIER => {
                let identifier = IDENTIFIER.into();
                self.send_reply(slot, &Reply::ConfirmSubscription { identifier });
                self.watchers.set_watching(slot, true);
                self.actions.push(Action::Watch);
            }
            CommandKind::Subscribe => {
                let identifier = command.identifier.into();
                self.send_reply(slot, &Reply::RejectSubscription { identifier });
            }
            CommandKind::Unsubscribe => self.watchers.set_watching(slot, false),
            _ => {}
        }
    }

    /// Sends a snapshot to the connections that watch, and returns their number.
    pub fn show_snapshot(&mut self, snapshot: &[u8]) -> usize {
        let watchers = self.watchers.watching();
        let mut text = Vec::new();
        reply::data_message(IDENTIFIER, snapshot, None, &mut text);
        for &slot in &watchers {
            self.send(slot, console_frame(&text));
        }
        watchers.len()
    }

    /// Examines the next `slots_max` slots; true when the search is done. A session that opens or ends between two looks may
    /// be missed, or may be gone when the answer is read.
    pub fn look(&self, scan: &mut Scan, slots_max: usize) -> bool {
        let slots = self.table.identities.slots();
        let end = slots.min(scan.next_slot + slots_max);
        let hits_before = scan.found.len();
        while scan.next_slot < end && scan.found.len() < hits_before + HITS_PER_LOOK_MAX {
            let slot = scan.next_slot;
            scan.next_slot += 1;
            // An unregistered session has no identifiers yet, or belongs to the console.
            if !self.table.identities.contains(slot as u32) {
                continue;
            }
            let session = &self.table.connections[slot].session;
            if scan.query.is_in(session.sid(), session.identifiers()) {
                scan.found.push(self.report(slot as u32));
            }
            // Finds one more than is shown, so that the answer can say that there are more.
            if scan.found.len() > HITS_MAX {
                return true;
            }
        }
        scan.next_slot >= slots
    }

    fn report(&self, slot: u32) -> SessionReport {
        let connection = &self.table.connections[slot as usize];
        let (subscriptions, subscriptions_left_out) =
            subscriptions(&self.hub.identifiers(slot), |identifier| {
                self.hub.streams_of(slot, identifier)
            });
        SessionReport {
            shard: self.common.shard,
            slot,
            generation: connection.generation,
            sid: shortened(connection.session.sid(), TEXT_SHOWN_BYTES_MAX),
            identifiers: shortened(connection.session.identifiers(), TEXT_SHOWN_BYTES_MAX),
            outbox_bytes: connection
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.pending_bytes()),
            waits_for_app: connection.has_call(),
            compressed: connection.format.encoding == Encoding::DEFLATED,
            encrypted: connection.tls.is_some(),
            subscriptions,
            subscriptions_left_out,
        }
    }

    /// Subscriptions of this shard that listen to `stream`, and the number of their identifiers.
    pub fn listeners(&self, stream: &str) -> (u64, usize) {
        let receivers = self.hub.receivers(stream);
        receivers.fold((0, 0), |(listeners, identifiers), (_, members)| {
            (listeners + members.len() as u64, identifiers + 1)
        })
    }

    pub fn has_listener(&self, stream: &str) -> bool {
        self.hub.receivers(stream).next().is_some()
    }

    /// Some of the subscriptions that listen to `stream`, `max` at most.
    pub fn listening(&self, stream: &str, max: usize) -> Vec<ListenerReport> {
        let receivers = self.hub.receivers(stream);
        let listeners = receivers
            .flat_map(|(identifier, slots)| slots.iter().map(move |slot| (identifier, *slot)));
        let shown = |text: &str| shortened(text, TEXT_SHOWN_BYTES_MAX);
        let report = |(identifier, slot): (&str, u32)| {
            let session = &self.table.connections[slot as usize].session;
            ListenerReport {
                shard: self.common.shard,
                sid: shown(session.sid()),
                identifiers: shown(session.identifiers()),
                identifier: shown(identifier),
            }
        };
        listeners.take(max).map(report).collect()
    }

    /// See [`crate::hub::Hub::stream_places`].
    pub fn stream_places(&self) -> usize {
        self.hub.stream_places()
    }

    /// See [`crate::hub::Hub::stream_at`].
    pub fn stream_at(&self, place: usize) -> Option<&str> {
        self.hub.stream_at(place)
    }

    /// Ends one session. Returns false when the session with this sid has ended already.
    pub fn disconnect_one(&mut self, session: SessionRef, sid: &str, reconnect: bool) -> bool {
        let has_this_sid = self.table.live(session).is_some_and(|connection| {
            shortened(connection.session.sid(), TEXT_SHOWN_BYTES_MAX) == sid
        });
        let is_there = has_this_sid && self.table.identities.contains(session.slot);
        if is_there {
            self.disconnect(
                session.slot,
                DisconnectReason::Remote,
                reconnect,
                Close::REMOTE,
                Cause::Remote,
            );
        }
        is_there
    }
}

//! The console's part of the session table: connections that watch, and what is looked up or done for the page.
//!
//! A connection of the console is in the table like any other, with pings, write deadlines and the drain. What makes it one is
//! in a list of its own, so that ordinary sessions carry nothing of it. It is no session of the app: it is not authenticated,
//! not counted, has no identifiers and no subscription in the hub.

use std::sync::Arc;

use super::frames::message_frame;
use super::{Action, Cause, NewConnection, Sessions};
use crate::console::IDENTIFIER;
use crate::console::search::{
    HITS_MAX, Needle, SessionReport, TEXT_SHOWN_BYTES_MAX, subscriptions,
};
use crate::log::shortened;
use crate::mesh::SessionRef;
use crate::protocol::command::{CommandKind, decode_command};
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::reply::{self, Reply};
use crate::shard::outbox::frame::FrameKind;

/// Connections of the console on one shard.
pub const CONSOLE_CONNECTIONS_MAX: usize = 16;
/// Sessions found in one look; each is described at once.
const HITS_PER_LOOK_MAX: usize = 8;

/// Which connections are the console's.
#[derive(Default)]
pub(super) struct ConsoleConnections {
    connections: Vec<ConsoleConnection>,
}

struct ConsoleConnection {
    slot: u32,
    /// It has subscribed to the snapshots.
    watches: bool,
}

impl ConsoleConnections {
    pub(super) fn contains(&self, slot: u32) -> bool {
        self.connections.iter().any(|other| other.slot == slot)
    }

    /// True: it was one.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        let before = self.connections.len();
        self.connections.retain(|other| other.slot != slot);
        self.connections.len() < before
    }

    fn is_full(&self) -> bool {
        self.connections.len() >= CONSOLE_CONNECTIONS_MAX
    }

    fn set_watching(&mut self, slot: u32, watches: bool) {
        if let Some(connection) = self.connections.iter_mut().find(|other| other.slot == slot) {
            connection.watches = watches;
        }
    }

    fn watchers(&self) -> Vec<u32> {
        self.connections
            .iter()
            .filter(|connection| connection.watches)
            .map(|connection| connection.slot)
            .collect()
    }
}

/// A search under way.
pub struct Scan {
    needle: Arc<Needle>,
    next_slot: usize,
    pub found: Vec<SessionReport>,
}

impl Scan {
    pub fn new(needle: Arc<Needle>) -> Self {
        Self {
            needle,
            next_slot: 0,
            found: Vec::new(),
        }
    }
}

impl Sessions {
    pub fn console_is_full(&self) -> bool {
        self.console.is_full()
    }

    #[cfg(test)]
    pub fn console_connections(&self) -> usize {
        self.console.connections.len()
    }

    #[cfg(test)]
    pub fn console_watchers(&self) -> usize {
        self.console.watchers().len()
    }

    /// Takes over a client of the console, whose right to be one has been checked.
    pub fn open_console(&mut self, mut new: NewConnection) {
        if self.console.is_full() {
            self.counters().console_refused_total.add(1);
            return;
        }
        // Nobody asks the app about it.
        new.env = Box::default();
        let sid = new.sid.as_str().into();
        let mut early_input = std::mem::take(&mut new.early_input);
        let Some(slot) = self.admit(new) else {
            return;
        };
        self.console.connections.push(ConsoleConnection {
            slot,
            watches: false,
        });
        self.send_reply(slot, &Reply::Welcome { sid });
        if !early_input.is_empty() {
            self.take_early_input(slot, &mut early_input);
        }
    }

    /// There is one channel, and nothing else that a client of the console could want.
    pub(super) fn on_console_message(&mut self, slot: u32, payload: &[u8]) {
        let Ok(Some(command)) = decode_command(payload) else {
            return;
        };
        match command.kind {
            CommandKind::Subscribe if command.identifier == IDENTIFIER => {
                let identifier = IDENTIFIER.into();
                self.send_reply(slot, &Reply::ConfirmSubscription { identifier });
                self.console.set_watching(slot, true);
                self.actions.push(Action::Watch);
            }
            CommandKind::Subscribe => {
                let identifier = command.identifier.into();
                self.send_reply(slot, &Reply::RejectSubscription { identifier });
            }
            CommandKind::Unsubscribe => self.console.set_watching(slot, false),
            _ => {}
        }
    }

    /// Sends a snapshot to those who watch, and says how many they are.
    pub fn show_snapshot(&mut self, snapshot: &[u8]) -> usize {
        let watchers = self.console.watchers();
        let mut text = Vec::new();
        reply::data_message(IDENTIFIER, snapshot, None, &mut text);
        for &slot in &watchers {
            let frame = message_frame(&text, false, FrameKind::Message, &mut self.deflater);
            self.send(slot, frame);
        }
        watchers.len()
    }

    /// Looks at the next `slots_max` slots; true when the search is over. Sessions that come and go between two looks may be missed or
    /// may be gone when the answer is read.
    pub fn look(&self, scan: &mut Scan, slots_max: usize) -> bool {
        let slots = self.identity_hashes.len();
        let end = slots.min(scan.next_slot + slots_max);
        let hits_before = scan.found.len();
        while scan.next_slot < end && scan.found.len() < hits_before + HITS_PER_LOOK_MAX {
            let slot = scan.next_slot;
            scan.next_slot += 1;
            // Who is not registered has no identifiers yet, or is the console's.
            if self.identity_hashes[slot] == 0 {
                continue;
            }
            let session = &self.connections[slot].session;
            if scan.needle.is_in(session.sid(), session.identifiers()) {
                scan.found.push(self.report(slot as u32));
            }
            // One more than is shown, so that the answer can say that there are more.
            if scan.found.len() > HITS_MAX {
                return true;
            }
        }
        scan.next_slot >= slots
    }

    fn report(&self, slot: u32) -> SessionReport {
        let connection = &self.connections[slot as usize];
        let (subscriptions, subscriptions_left_out) =
            subscriptions(&self.hub.identifiers(slot), |identifier| {
                self.hub.streams_of(slot, identifier)
            });
        SessionReport {
            shard: self.shard,
            slot,
            generation: connection.generation,
            sid: shortened(connection.session.sid(), TEXT_SHOWN_BYTES_MAX),
            identifiers: shortened(connection.session.identifiers(), TEXT_SHOWN_BYTES_MAX),
            outbox_bytes: connection
                .outbox
                .as_ref()
                .map_or(0, |outbox| outbox.pending_bytes()),
            waits_for_app: connection.has_call(),
            compressed: connection.deflate,
            encrypted: connection.tls.is_some(),
            subscriptions,
            subscriptions_left_out,
        }
    }

    /// Subscriptions that listen to `stream` here.
    pub fn listeners(&self, stream: &str) -> u64 {
        self.hub
            .receivers(stream)
            .map(|(_, members)| members.len() as u64)
            .sum()
    }

    /// Ends one session. False: the one that is meant is gone.
    pub fn disconnect_one(&mut self, session: SessionRef, sid: &str, reconnect: bool) -> bool {
        let has_this_sid = self.live(session).is_some_and(|connection| {
            shortened(connection.session.sid(), TEXT_SHOWN_BYTES_MAX) == sid
        });
        let is_there = has_this_sid && self.is_registered(session.slot);
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

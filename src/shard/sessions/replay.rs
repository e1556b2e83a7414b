//! The replay of what a client has missed, as fast as the client takes it, and of what was held back meanwhile.

use super::Sessions;
use super::connection::Life;
use super::formats::GroupFrames;
use super::waiting::{OpenQuestion, Replay};
use crate::protocol::publication::Publication;
use crate::protocol::reply::Reply;

/// Messages that are replayed to one session in a row, before others are served. Large ones end the row earlier.
const REPLAYED_IN_A_ROW: usize = 64;

impl Sessions {
    /// Sends what a client has missed, as far as it takes it now.
    pub(super) fn go_on_replay(&mut self, slot: u32) {
        let Some(mut replay) = self.table.take_replay(slot) else {
            return;
        };
        // What is queued in this turn reaches the outbox at its end, so it is counted here.
        let mut room_bytes = self.common.bounds.reading_stops_at();
        for _ in 0..REPLAYED_IN_A_ROW {
            if room_bytes == 0 || !self.takes_replay(slot) {
                break;
            }
            let Some(publication) = replay.next() else {
                return self.end_replay(slot, replay);
            };
            room_bytes = room_bytes.saturating_sub(publication.message.len());
            self.common.counters().history_messages_total.add(1);
            if !self.replay_to_reader(slot, &publication) {
                self.deliver_to(slot, replay.identifier(), &publication);
            }
        }
        self.table
            .put_open_question(slot, OpenQuestion::Replay(replay));
    }

    fn takes_replay(&self, slot: u32) -> bool {
        let connection = self.table.connections.get(slot as usize);
        let takes = connection.is_some_and(|connection| {
            connection.life == Life::Open && !connection.is_backed_up(&self.common.bounds)
        });
        takes && !self.writer.is_full()
    }

    /// Everything has been replayed: says so, and goes on with what was held back meanwhile.
    fn end_replay(&mut self, slot: u32, replay: Replay) {
        self.common.counters().history_confirmed_total.add(1);
        self.end_replay_to_reader(slot, &replay);
        let identifier = replay.identifier().into();
        self.send_reply(slot, &Reply::ConfirmHistory { identifier });
        self.release_held_back(slot, replay.identifier(), Some(&replay));
        self.ask_next(slot);
    }

    /// The subscription does not hold back any more. It gets what it has held back and not been replayed.
    pub(super) fn release_held_back(
        &mut self,
        slot: u32,
        identifier: &str,
        replay: Option<&Replay>,
    ) {
        // The app may have ended one of the streams meanwhile.
        let streams = self.hub.held_back_streams(slot, identifier);
        self.hub.end_hold_back(slot, identifier);
        let Some(released) = self.holdbacks.end(slot, identifier) else {
            return;
        };
        self.common.budget.release(released.bytes);
        for held_back in &released.publications {
            let publication = held_back.publication();
            if streams.contains(&publication.stream)
                && replay.is_none_or(|replay| !replay.covers(publication))
            {
                self.deliver_to(slot, identifier, publication);
            }
        }
    }

    /// Drops what was held back for subscriptions of the session that have ended.
    pub(super) fn drop_held_back_of_ended(&mut self, slot: u32) {
        for identifier in self.holdbacks.identifiers(slot) {
            if !self.hub.holds_something_back(slot, &identifier)
                && let Some(dropped) = self.holdbacks.end(slot, &identifier)
            {
                self.common.budget.release(dropped.bytes);
            }
        }
    }

    /// Delivers a publication to one session.
    fn deliver_to(&mut self, slot: u32, identifier: &str, publication: &Publication) {
        let Some(connection) = self.table.connections.get_mut(slot as usize) else {
            return;
        };
        if !connection.is_open() {
            return;
        }
        if connection.is_over(&self.common.bounds, &self.common.budget) {
            return self.drop_slow_client(slot);
        }
        let mut frames = GroupFrames::new(identifier, publication);
        let delivered = self.writer.deliver(slot, connection, &mut frames);
        self.common
            .counters()
            .deliveries_total
            .add(u64::from(delivered));
    }
}

//! From a publication to the queues of the sessions that listen on this shard.

use std::sync::Arc;

use super::common::Common;
use super::formats::GroupFrames;
use super::holdbacks::Holdbacks;
use super::share::TimeSlice;
use super::table::Table;
use super::writer::Writer;
use crate::hub::Hub;
use crate::protocol::publication::Publication;

/// Groups that get the publication between two checks of the clock.
const GROUPS_PER_LOOK: usize = 16;

/// The publications that are being delivered. A fan-out too large for one turn stays here until the next.
#[derive(Default)]
pub(super) struct FanOut {
    message: Option<Message>,
    /// Sessions that get no more because they have too much waiting.
    slow: Vec<u32>,
}

/// One message of the inbox.
struct Message {
    publications: Arc<[Publication]>,
    /// The message's number among all that have arrived.
    number: u64,
    /// The publication that is being delivered, and the number of its receivers so far.
    next: usize,
    delivered: u64,
}

impl FanOut {
    pub fn is_under_way(&self) -> bool {
        self.message.is_some()
    }

    /// Begins with a message of the inbox.
    ///
    /// # Panics
    /// When an earlier one is not done yet.
    pub fn begin(&mut self, hub: &mut Hub, publications: Arc<[Publication]>, number: u64) {
        assert!(self.message.is_none(), "one message after the other");
        if let Some(first) = publications.first() {
            hub.walk(&first.stream);
            self.message = Some(Message {
                publications,
                number,
                next: 0,
                delivered: 0,
            });
        }
    }

    /// Delivers until everything is done (true) or the turn has done enough: `time` is over, or the batch must be written
    /// first. [`Self::take_slow`] returns the sessions that could get nothing.
    pub fn go_on(
        &mut self,
        common: &Common,
        hub: &mut Hub,
        table: &mut Table,
        writer: &mut Writer,
        holdbacks: &mut Holdbacks,
        time: TimeSlice,
    ) -> bool {
        let Some(mut message) = self.message.take() else {
            return true;
        };
        let mut groups = 0;
        while let Some(publication) = message.publications.get(message.next) {
            while let Some(group) = hub.next_group() {
                let receivers = Receivers {
                    common,
                    hub,
                    group,
                    message: &message,
                    publication,
                };
                let slow = &mut self.slow;
                message.delivered += receivers.deliver(table, writer, holdbacks, slow);
                groups += 1;
                if writer.is_full() || (groups % GROUPS_PER_LOOK == 0 && time.is_over()) {
                    self.message = Some(message);
                    return false;
                }
            }
            note_delivered(common, publication, message.delivered);
            message.delivered = 0;
            message.next += 1;
            if let Some(next) = message.publications.get(message.next) {
                hub.walk(&next.stream);
            }
        }
        hub.set_handled(message.number);
        !time.is_over()
    }

    /// Sessions that have too much waiting. A session may be in the list twice, with two identifiers, or may have ended.
    pub fn take_slow(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.slow)
    }
}

/// The receivers of a publication under one identifier.
struct Receivers<'a> {
    common: &'a Common,
    hub: &'a Hub,
    group: u32,
    message: &'a Message,
    publication: &'a Publication,
}

impl Receivers<'_> {
    /// Queues a publication for the group. The frame is encoded once. Returns the number of receivers.
    fn deliver(
        &self,
        table: &mut Table,
        writer: &mut Writer,
        holdbacks: &mut Holdbacks,
        slow: &mut Vec<u32>,
    ) -> u64 {
        let has_latecomers = self.hub.has_latecomers();
        let (identifier, members) = self.hub.group(self.group);
        let mut frames = GroupFrames::new(identifier, self.publication);
        let excluded_sid = self.publication.exclude_socket.as_deref();
        let mut delivered = 0;
        for &slot in members {
            let connection = &mut table.connections[slot as usize];
            let excluded = excluded_sid.is_some_and(|sid| sid == connection.session.sid());
            if excluded || (has_latecomers && self.is_kept_from(slot, holdbacks, slow)) {
                continue;
            }
            if connection.is_over(&self.common.bounds, &self.common.budget) {
                slow.push(slot);
                continue;
            }
            delivered += u64::from(writer.deliver(slot, connection, &mut frames));
        }
        delivered
    }

    /// True when this session does not get the publication now: it has subscribed later, or its subscription holds back.
    fn is_kept_from(&self, slot: u32, holdbacks: &mut Holdbacks, slow: &mut Vec<u32>) -> bool {
        if self.hub.is_late_for(self.group, slot, self.message.number) {
            return true;
        }
        let holds_back =
            self.publication.position.is_some() && self.hub.holds_back(self.group, slot);
        if holds_back {
            let (identifier, _) = self.hub.group(self.group);
            let (publications, index) = (&self.message.publications, self.message.next);
            let bytes = holdbacks.keep(slot, identifier, publications, index);
            self.common.budget.charge(bytes);
            if holdbacks.bytes(slot) > self.common.bounds.session_bytes_max {
                slow.push(slot);
            }
        }
        holds_back
    }
}

fn note_delivered(common: &Common, publication: &Publication, delivered: u64) {
    if delivered == 0 {
        tracing::debug!(
            component = "hub",
            shard = common.shard,
            stream = &*publication.stream,
            "no sessions"
        );
    }
    common.counters().deliveries_total.add(delivered);
}

//! One subscription of a session on one stream, in 12 bytes.

use super::intern::TextId;

/// "No group": the edge of a subscription without a stream, and the end of a list of groups.
pub(super) const NONE: u32 = u32::MAX;

/// Bytes that one (subscription, stream) pair takes in its session's row.
pub const EDGE_BYTES: usize = 12;

/// What a locally confirmed subscription may do on its stream. Stored as two bits of its edge: as channel state they would
/// take more memory than the rest of the subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// The stream to which whispers go.
    pub whisper: bool,
    /// The stream of the client's presence.
    pub presence: bool,
}

/// One subscription of a session on one stream. A subscription without streams has one edge with no group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Edge {
    /// The identifier, and the marks in the two highest bits.
    subscription: u32,
    pub group: u32,
    /// The session's index in the group's members.
    pub index: u32,
}

const _: () = assert!(size_of::<Edge>() == EDGE_BYTES);

const WHISPER_BIT: u32 = 1 << 31;
const PRESENCE_BIT: u32 = 1 << 30;

impl Edge {
    pub fn new(identifier: TextId, group: u32, index: u32) -> Self {
        debug_assert!(
            identifier < PRESENCE_BIT,
            "the interner hands out small ids"
        );
        Self {
            subscription: identifier,
            group,
            index,
        }
    }

    pub fn identifier(&self) -> TextId {
        self.subscription & !(WHISPER_BIT | PRESENCE_BIT)
    }

    pub fn marks(&self) -> Marks {
        Marks {
            whisper: self.subscription & WHISPER_BIT != 0,
            presence: self.subscription & PRESENCE_BIT != 0,
        }
    }

    pub fn set_marks(&mut self, marks: Marks) {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        self.subscription =
            self.identifier() | bit(marks.whisper, WHISPER_BIT) | bit(marks.presence, PRESENCE_BIT);
    }
}

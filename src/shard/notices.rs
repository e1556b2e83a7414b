//! Warnings that clients and the app can cause at any rate: each kind is written at once the first time, then rarely.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::log::{Admitted, Sparse};

/// The kinds of warnings, each with a rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An upgrade of a path that is not served.
    UnknownPath,
    /// A WebSocket request whose upgrade a proxy has eaten.
    UpgradeLost,
    OriginRefused,
    UnknownSubprotocol,
    BadPingInterval,
    /// A query that cannot be searched for a token.
    BadQuery,
    BroadcastUnauthorized,
    ApiUnauthorized,
    /// A broadcast to a port or path that takes none.
    BroadcastMisplaced,
    /// A head beyond the limits.
    HeadTooLarge,
    /// Too many heads larger than most at once.
    LargeHeads,
    /// A body that comes too slowly.
    SlowBody,
    RequestIdTooLong,
    AcceptFailed,
    ConnectionLimit,
    /// The descriptors for clients are used up.
    DescriptorLimit,
    /// A publication came when nobody could get it any more.
    PublicationRefused,
    TokenInvalid,
    TokenExpired,
    TokenWithoutIdentifiers,
    TokenMissing,
    NobodyToAsk,
    /// A message that is no command.
    MessageUnreadable,
    /// Clients of Action Cable subscribe again when a confirmation is late, so this is no sign of anything wrong.
    AlreadySubscribed,
    CommandRefused,
    /// A command's call to the app.
    CommandFailed,
    /// A client that got no welcome for no fault of its own.
    SessionFailed,
    NoPong,
    SocketUnwatched,
    PublicationUnreadable,
    RemoteCommandUnknown,
    DisconnectFailed,
    DisconnectQueueFull,
    ConsoleLogin,
    ConsoleLoginFailed,
    ConsoleDisconnect,
    ConsolePublication,
    /// A session is at `session_bytes_max`.
    SessionFull,
}

const NOTICES: usize = Notice::SessionFull as usize + 1;

/// Between two records of what an operator does: every single one, at the pace of a human.
const OFTEN: Duration = Duration::from_secs(1);

/// The rates of one shard.
#[derive(Debug)]
pub struct Notices([RefCell<Sparse>; NOTICES]);

impl Default for Notices {
    fn default() -> Self {
        Self(std::array::from_fn(|_| RefCell::default()))
    }
}

impl Notices {
    /// Asks for one record of this kind. `None`: it is left out.
    pub fn admit(&self, notice: Notice) -> Option<Admitted> {
        self.0[notice as usize].borrow_mut().admit(Instant::now())
    }

    /// The same for what people do by hand.
    pub fn admit_often(&self, notice: Notice) -> Option<Admitted> {
        let mut sparse = self.0[notice as usize].borrow_mut();
        sparse.admit_every(OFTEN, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_rate_of_its_own() {
        let notices = Notices::default();
        assert!(notices.admit(Notice::OriginRefused).is_some());
        assert!(notices.admit(Notice::OriginRefused).is_none());
        assert!(notices.admit(Notice::UnknownPath).is_some());
        assert!(notices.admit(Notice::NobodyToAsk).is_some());
    }
}

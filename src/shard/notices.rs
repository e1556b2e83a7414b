//! Warnings that clients and the app can cause at any rate: the first of each kind is written at once, later ones rarely.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::log::{Admitted, Sparse};

/// The kinds of warnings. Each kind has its own rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An upgrade of a path that is not served.
    UnknownPath,
    /// A WebSocket request whose upgrade headers a proxy has removed.
    UpgradeLost,
    OriginRefused,
    UnknownSubprotocol,
    BadPingInterval,
    /// A query that cannot be searched for a token.
    BadQuery,
    BroadcastUnauthorized,
    ApiUnauthorized,
    /// A broadcast to a port or path that takes no broadcasts.
    BroadcastMisplaced,
    /// A head larger than the limits allow.
    HeadTooLarge,
    /// Too many larger-than-usual heads at one time.
    LargeHeads,
    /// A body that arrives too slowly.
    SlowBody,
    RequestIdTooLong,
    AcceptFailed,
    ConnectionLimit,
    /// The file descriptors for clients are used up.
    DescriptorLimit,
    /// A publication arrived when no session could get it any more.
    PublicationRefused,
    TokenInvalid,
    TokenExpired,
    TokenWithoutIdentifiers,
    TokenMissing,
    NoAuthenticator,
    /// A message that is not a command.
    MessageUnreadable,
    /// Action Cable clients repeat a subscribe when its confirmation is late, so this is not a sign of an error.
    AlreadySubscribed,
    CommandRefused,
    /// The call to the app for a command has failed.
    CommandFailed,
    JoinRefused,
    /// A client that got no welcome although it did nothing wrong.
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
    /// A session has reached `session_bytes_max`.
    SessionFull,
}

const NOTICES: usize = Notice::SessionFull as usize + 1;

/// Time between two records about actions of an operator. A human works slowly enough that each action is written.
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
    /// Asks whether a record of this kind may be written; `None` when it is left out.
    pub fn admit(&self, notice: Notice) -> Option<Admitted> {
        self.0[notice as usize].borrow_mut().admit(Instant::now())
    }

    /// The same for actions that people do by hand.
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
        assert!(notices.admit(Notice::NoAuthenticator).is_some());
    }
}

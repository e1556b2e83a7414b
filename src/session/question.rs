//! What a session asks the app.

use crate::protocol::command::HistoryRequest;

/// What the app is asked, and so what its answer is for. A waiting question holds only this: its request is built when it is
/// sent, mostly from what the session has anyway.
#[derive(Debug)]
pub enum Question {
    Connect,
    Subscribe {
        identifier: Box<str>,
        /// Boxed, because few clients ask for history, and many subscribe at once after a restart of the app.
        history: Option<Box<HistoryRequest>>,
    },
    Unsubscribe {
        identifier: Box<str>,
    },
    Message {
        identifier: Box<str>,
        data: Box<str>,
    },
}

impl Question {
    /// Bytes that it takes while the call waits and runs.
    pub fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::Connect => 0,
            Self::Subscribe {
                identifier,
                history,
            } => identifier.len() + history.as_ref().map_or(0, |history| history.held_bytes()),
            Self::Unsubscribe { identifier } => identifier.len(),
            Self::Message { identifier, data } => identifier.len() + data.len(),
        };
        size_of::<Self>() + texts
    }

    /// True when the app does something for the session that only a Disconnect call ends. The answer is then needed even
    /// when the session has ended.
    pub fn outlives_session(&self) -> bool {
        matches!(self, Self::Connect | Self::Subscribe { .. })
    }

    /// The client's command and its identifier; `None` for Connect.
    pub fn command(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::Connect => None,
            Self::Subscribe { identifier, .. } => Some(("subscribe", identifier)),
            Self::Unsubscribe { identifier } => Some(("unsubscribe", identifier)),
            Self::Message { identifier, .. } => Some(("message", identifier)),
        }
    }

    /// The client's data; only a message has some.
    pub fn data(&self) -> Option<&str> {
        match self {
            Self::Message { data, .. } => Some(data),
            _ => None,
        }
    }
}

//! What a session asks the app.

use crate::protocol::command::HistoryRequest;

/// What the app is asked, and what its answer is for. A question that waits is no more than this: its request is made when
/// it is sent, mostly from what the session has anyway.
#[derive(Debug)]
pub enum Question {
    Connect,
    Subscribe {
        identifier: Box<str>,
        history: Option<HistoryRequest>,
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
    /// What its texts take while the call waits and runs.
    pub fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::Connect => 0,
            Self::Subscribe { identifier, .. } | Self::Unsubscribe { identifier } => {
                identifier.len()
            }
            Self::Message { identifier, data } => identifier.len() + data.len(),
        };
        size_of::<Self>() + texts
    }

    /// The app does something for the session that ends only with a Disconnect call: its answer is wanted even when the
    /// session has ended.
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

    /// The client's data; of a message only.
    pub fn data(&self) -> Option<&str> {
        match self {
            Self::Message { data, .. } => Some(data),
            _ => None,
        }
    }
}

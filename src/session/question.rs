//! What a session asks the app.

use crate::protocol::command::{HistoryRequest, PresencePayload};

/// What the app is asked, and so what its answer is for. A waiting question holds only this: its request is built when it is
/// sent, mostly from what the session has anyway.
#[derive(Debug)]
pub enum Question {
    Connect,
    Subscribe {
        identifier: Box<str>,
        /// Boxed, because few clients ask for more, and many subscribe at once after a restart of the app.
        extras: Option<Box<SubscribeExtras>>,
    },
    Unsubscribe {
        identifier: Box<str>,
    },
    Message {
        identifier: Box<str>,
        data: Box<str>,
    },
}

/// What a client wants when it is subscribed.
#[derive(Debug, Default)]
pub struct SubscribeExtras {
    pub history: Option<HistoryRequest>,
    pub presence: Option<PresencePayload>,
}

impl SubscribeExtras {
    /// `None` when the client wants nothing else.
    pub fn new(
        history: Option<HistoryRequest>,
        presence: Option<PresencePayload>,
    ) -> Option<Box<Self>> {
        let wanted = history.is_some() || presence.is_some();
        wanted.then(|| Box::new(Self { history, presence }))
    }

    fn held_bytes(&self) -> usize {
        let history = self.history.as_ref();
        let presence = self.presence.as_ref();
        size_of::<Self>()
            + history.map_or(0, HistoryRequest::held_bytes)
            + presence.map_or(0, |it| {
                it.id.len() + it.info.as_ref().map_or(0, |info| info.len())
            })
    }
}

impl Question {
    /// Bytes that it takes while the call waits and runs.
    pub fn held_bytes(&self) -> usize {
        let texts = match self {
            Self::Connect => 0,
            Self::Subscribe { identifier, extras } => {
                identifier.len() + extras.as_ref().map_or(0, |extras| extras.held_bytes())
            }
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

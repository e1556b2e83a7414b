//! What a session keeps while it rests.

use std::collections::BTreeMap;

use crate::protocol::rpc::State;
use crate::session::Deadlines;

/// The most that a resting session may take in the shard's table, beside its texts and subscriptions.
pub const SESSION_BYTES_MAX: usize = 64;
const _: () = assert!(size_of::<Session>() <= SESSION_BYTES_MAX);

/// What is known about a client when its upgrade has been answered.
#[derive(Debug)]
pub struct SessionSettings<'a> {
    /// The session id: from `X-Request-ID`, else random.
    pub sid: &'a str,
    /// The pre-encoded url and headers of the RPC env.
    pub env: &'a str,
    pub deadlines: Deadlines,
}

/// Channel and connection state that the app has set; most sessions have none.
#[derive(Debug, Default)]
pub(super) struct AppState {
    /// Connection state.
    pub cstate: State,
    /// Channel state, by identifier.
    pub istates: BTreeMap<Box<str>, State>,
}

/// One client's protocol state.
#[derive(Debug)]
pub struct Session {
    /// sid, connection identifiers and RPC env, one after the other: one allocation of the exact size.
    text: Box<str>,
    sid_bytes: u32,
    identifiers_bytes: u32,
    pub(super) app_state: Option<Box<AppState>>,
    pub deadlines: Deadlines,
    /// Connect has succeeded.
    pub(super) authenticated: bool,
    /// A Disconnect call is owed when the session ends; sticky.
    pub(super) wants_disconnect: bool,
}

impl Session {
    pub fn new(settings: &SessionSettings<'_>) -> Self {
        Self {
            text: [settings.sid, settings.env].concat().into(),
            sid_bytes: settings.sid.len() as u32,
            identifiers_bytes: 0,
            app_state: None,
            deadlines: settings.deadlines,
            authenticated: false,
            wants_disconnect: false,
        }
    }

    pub fn sid(&self) -> &str {
        &self.text[..self.sid_bytes as usize]
    }

    /// Who the user is, as Connect has said; empty before that.
    pub fn identifiers(&self) -> &str {
        &self.text[self.sid_bytes as usize..][..self.identifiers_bytes as usize]
    }

    /// The pre-encoded url and headers of the RPC env.
    pub fn env(&self) -> &str {
        &self.text[(self.sid_bytes + self.identifiers_bytes) as usize..]
    }

    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    pub(super) fn set_identifiers(&mut self, identifiers: &str) {
        self.text = [self.sid(), identifiers, self.env()].concat().into();
        self.identifiers_bytes = identifiers.len() as u32;
    }

    pub(super) fn cstate(&self) -> &State {
        static EMPTY: State = State::new();
        self.app_state
            .as_ref()
            .map_or(&EMPTY, |state| &state.cstate)
    }

    pub(super) fn istate(&self, identifier: &str) -> Option<&State> {
        self.app_state.as_ref()?.istates.get(identifier)
    }

    /// The stream that the app (or a signed stream) has reserved under `key` for an identifier: `$w` or `$p`.
    pub(super) fn reserved_stream(&self, identifier: &str, key: &str) -> Option<&str> {
        self.istate(identifier)?
            .get(key)
            .map(|stream| &**stream)
            .filter(|stream| !stream.is_empty())
    }
}

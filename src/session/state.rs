//! What a session keeps while it rests.

use std::sync::LazyLock;

use crate::protocol::state::State;
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
///
/// The streams that a locally confirmed subscription whispers to or is present in are not here: the hub keeps them as two
/// bits ([`crate::hub::Marks`]).
#[derive(Debug, Default)]
pub(super) struct AppState {
    /// Connection state.
    pub cstate: State,
    /// Channel state by identifier, sorted; also of subscriptions whose state is empty again.
    istates: Vec<(Box<str>, State)>,
}

impl AppState {
    fn position(&self, identifier: &str) -> Result<usize, usize> {
        self.istates
            .binary_search_by(|(other, _)| (**other).cmp(identifier))
    }

    fn istate(&self, identifier: &str) -> Option<&State> {
        let position = self.position(identifier).ok()?;
        Some(&self.istates[position].1)
    }

    fn istate_mut(&mut self, identifier: &str) -> &mut State {
        let position = self.position(identifier).unwrap_or_else(|position| {
            self.istates.reserve_exact(1);
            self.istates
                .insert(position, (identifier.into(), State::default()));
            position
        });
        &mut self.istates[position].1
    }

    fn forget(&mut self, identifier: &str) {
        if let Ok(position) = self.position(identifier) {
            self.istates.remove(position);
            self.istates.shrink_to_fit();
        }
    }
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

    /// Gives the memory of the env back. Call when nothing can ask the app about this session any more.
    pub(super) fn drop_env(&mut self) {
        let kept = self.text.len() - self.env().len();
        self.text = self.text[..kept].into();
    }

    pub(super) fn cstate(&self) -> &State {
        static EMPTY: LazyLock<State> = LazyLock::new(State::default);
        self.app_state
            .as_ref()
            .map_or(&EMPTY, |state| &state.cstate)
    }

    pub(super) fn istate(&self, identifier: &str) -> Option<&State> {
        self.app_state.as_ref()?.istate(identifier)
    }

    /// Every identifier that ever had state, with what it has now.
    pub(super) fn istates(&self) -> impl Iterator<Item = (&str, &State)> {
        self.app_state
            .iter()
            .flat_map(|state| &state.istates)
            .map(|(identifier, state)| (&**identifier, state))
    }

    pub(super) fn merge_cstate(&mut self, changes: &[(String, String)]) {
        if !changes.is_empty() {
            self.app_state_mut().cstate.merge(changes);
        }
    }

    pub(super) fn merge_istate(&mut self, identifier: &str, changes: &[(String, String)]) {
        if !changes.is_empty() {
            self.app_state_mut().istate_mut(identifier).merge(changes);
        }
    }

    pub(super) fn forget_istate(&mut self, identifier: &str) {
        let Some(state) = &mut self.app_state else {
            return;
        };
        state.forget(identifier);
        if state.istates.is_empty() && state.cstate.is_empty() {
            self.app_state = None;
        }
    }

    fn app_state_mut(&mut self) -> &mut AppState {
        self.app_state.get_or_insert_default()
    }
}

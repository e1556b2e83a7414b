//! What a session stores while it is idle.

use std::sync::LazyLock;

use crate::protocol::rpc::RpcRequest;
use crate::protocol::state::State;
use crate::session::Deadlines;

/// Bytes that an idle session may take in the shard's table. Its texts and subscriptions are not included.
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
    /// The client speaks the extended protocol.
    pub extended: bool,
}

/// Channel and connection state that the app has set. Most sessions have none.
///
/// For a locally confirmed subscription, the streams for whispers and presence are not here: the hub stores them as two bits
/// ([`crate::hub::Marks`]).
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct AppState {
    /// Connection state.
    pub cstate: State,
    /// Channel state by identifier, sorted. Includes subscriptions whose state has become empty again.
    istates: Vec<(Box<str>, State)>,
    /// Bytes of the states and their identifiers.
    bytes: usize,
}

/// Memory of one entry of channel state in addition to the identifier's text and the state.
const ISTATE_BYTES: usize = 48;

impl AppState {
    /// `None` when there is no state.
    fn new(cstate: State, mut istates: Vec<(Box<str>, State)>) -> Option<Self> {
        istates.sort_by(|(one, _), (other, _)| one.cmp(other));
        let of_channel = |(identifier, state): &(Box<str>, State)| {
            identifier.len() + ISTATE_BYTES + state.bytes()
        };
        let bytes = cstate.bytes() + istates.iter().map(of_channel).sum::<usize>();
        let is_empty = cstate.is_empty() && istates.is_empty();
        (!is_empty).then_some(Self {
            cstate,
            istates,
            bytes,
        })
    }

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
            self.bytes += identifier.len() + ISTATE_BYTES;
            self.istates.reserve_exact(1);
            self.istates
                .insert(position, (identifier.into(), State::default()));
            position
        });
        &mut self.istates[position].1
    }

    fn forget(&mut self, identifier: &str) {
        if let Ok(position) = self.position(identifier) {
            let (identifier, state) = self.istates.remove(position);
            self.bytes -= identifier.len() + ISTATE_BYTES + state.bytes();
            self.istates.shrink_to_fit();
        }
    }

    fn merge_cstate(&mut self, changes: &[(String, String)]) {
        let before = self.cstate.bytes();
        self.cstate.merge(changes);
        self.bytes = self.bytes - before + self.cstate.bytes();
    }

    fn merge_istate(&mut self, identifier: &str, changes: &[(String, String)]) {
        let state = self.istate_mut(identifier);
        let before = state.bytes();
        state.merge(changes);
        let after = state.bytes();
        self.bytes = self.bytes - before + after;
    }
}

/// One client's protocol state.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Session {
    /// sid, connection identifiers and RPC env, one after the other: one allocation of the exact size.
    text: Box<str>,
    sid_bytes: u32,
    identifiers_bytes: u32,
    pub(super) app_state: Option<Box<AppState>>,
    pub deadlines: Deadlines,
    /// Bytes of its subscriptions, whether other sessions share their texts or not.
    pub(super) subscribed_bytes: u32,
    /// Connect has succeeded.
    pub(super) authenticated: bool,
    /// The session must end with a Disconnect call. Once set, this stays set.
    pub(super) wants_disconnect: bool,
    extended: bool,
}

impl Session {
    pub fn new(settings: &SessionSettings<'_>) -> Self {
        Self {
            text: [settings.sid, settings.env].concat().into(),
            sid_bytes: settings.sid.len() as u32,
            identifiers_bytes: 0,
            app_state: None,
            deadlines: settings.deadlines,
            subscribed_bytes: 0,
            authenticated: false,
            wants_disconnect: false,
            extended: settings.extended,
        }
    }

    pub fn sid(&self) -> &str {
        self.texts().0
    }

    /// The connection identifiers that Connect has returned; empty before that.
    pub fn identifiers(&self) -> &str {
        self.texts().1
    }

    /// The pre-encoded url and headers of the RPC env.
    pub fn env(&self) -> &str {
        self.texts().2
    }

    fn texts(&self) -> (&str, &str, &str) {
        split(&self.text, self.sid_bytes, self.identifiers_bytes)
    }

    /// The client speaks the extended protocol.
    pub fn is_extended(&self) -> bool {
        self.extended
    }

    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// Bytes of its texts and state. Its entry in the table is not included.
    pub fn own_bytes(&self) -> usize {
        self.text.len() + state_bytes(&self.app_state)
    }

    /// Bytes of its subscriptions, whether other sessions share their texts or not.
    pub fn subscribed_bytes(&self) -> usize {
        self.subscribed_bytes as usize
    }

    /// Both together.
    pub fn held_bytes(&self) -> usize {
        self.own_bytes() + self.subscribed_bytes()
    }

    pub(super) fn set_identifiers(&mut self, identifiers: &str) {
        self.text = [self.sid(), identifiers, self.env()].concat().into();
        self.identifiers_bytes = identifiers.len() as u32;
    }

    /// Frees the memory of the env. Call when no further call can be made for this session.
    pub(super) fn drop_env(&mut self) {
        let kept = self.text.len() - self.env().len();
        self.text = self.text[..kept].into();
    }

    pub(super) fn cstate(&self) -> &State {
        cstate(&self.app_state)
    }

    /// All channel state, sorted by identifier.
    pub(super) fn istates(&self) -> &[(Box<str>, State)] {
        self.app_state.as_ref().map_or(&[], |state| &state.istates)
    }

    /// Takes over the states of an earlier session.
    pub(super) fn restore_states(&mut self, cstate: State, istates: Vec<(Box<str>, State)>) {
        let app_state = AppState::new(cstate, istates);
        self.app_state = app_state.map(Box::new);
    }

    pub(super) fn istate(&self, identifier: &str) -> Option<&State> {
        self.app_state.as_ref()?.istate(identifier)
    }

    /// Moves the texts and the state out. The sid stays, for the log.
    pub(super) fn part(&mut self, subscriptions: Box<[u8]>) -> DisconnectCall {
        let sid = self.sid().into();
        DisconnectCall {
            text: std::mem::replace(&mut self.text, sid),
            sid_bytes: self.sid_bytes,
            identifiers_bytes: std::mem::take(&mut self.identifiers_bytes),
            subscriptions,
            app_state: self.app_state.take(),
        }
    }

    pub(super) fn merge_cstate(&mut self, changes: &[(String, String)]) {
        if !changes.is_empty() {
            self.app_state_mut().merge_cstate(changes);
        }
    }

    pub(super) fn merge_istate(&mut self, identifier: &str, changes: &[(String, String)]) {
        if !changes.is_empty() {
            self.app_state_mut().merge_istate(identifier, changes);
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

/// What is left of a session until the app has been told that it has ended. It takes over the session's own memory. A copy
/// would lie between the texts of living sessions, and freeing it after the call would fragment the heap.
#[derive(Debug)]
pub struct DisconnectCall {
    text: Box<str>,
    sid_bytes: u32,
    identifiers_bytes: u32,
    /// JSON; empty without subscriptions.
    subscriptions: Box<[u8]>,
    app_state: Option<Box<AppState>>,
}

impl DisconnectCall {
    pub fn sid(&self) -> &str {
        self.texts().0
    }

    /// Bytes that it holds.
    pub fn bytes_held(&self) -> usize {
        size_of::<Self>()
            + self.text.len()
            + self.subscriptions.len()
            + state_bytes(&self.app_state)
    }

    /// The request of the Disconnect call.
    pub fn request(&self) -> RpcRequest<'_> {
        let (_, identifiers, env) = self.texts();
        let istates = self.app_state.iter().flat_map(|state| &state.istates);
        RpcRequest::Disconnect {
            identifiers,
            subscriptions: &self.subscriptions,
            env,
            cstate: cstate(&self.app_state),
            istates: istates
                .map(|(identifier, state)| (&**identifier, state))
                .collect(),
        }
    }

    fn texts(&self) -> (&str, &str, &str) {
        split(&self.text, self.sid_bytes, self.identifiers_bytes)
    }
}

/// sid, connection identifiers, env.
fn split(text: &str, sid_bytes: u32, identifiers_bytes: u32) -> (&str, &str, &str) {
    let (sid, rest) = text.split_at(sid_bytes as usize);
    let (identifiers, env) = rest.split_at(identifiers_bytes as usize);
    (sid, identifiers, env)
}

fn cstate(app_state: &Option<Box<AppState>>) -> &State {
    static EMPTY: LazyLock<State> = LazyLock::new(State::default);
    app_state.as_ref().map_or(&EMPTY, |state| &state.cstate)
}

fn state_bytes(app_state: &Option<Box<AppState>>) -> usize {
    app_state
        .as_ref()
        .map_or(0, |state| size_of::<AppState>() + state.bytes)
}

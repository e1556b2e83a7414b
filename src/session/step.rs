//! The events of a session: each function takes what arrived and appends the steps that the shard must carry out.

use std::borrow::Cow;

use crate::auth::channels::{self, LocalSubscribe, Route};
use crate::auth::jwt::{self, JwtVerdict};
use crate::config::{AuthConfig, DisconnectMode};
use crate::hub::{self, Hub, Marks};
use crate::protocol::command::{ClientCommand, CommandKind, Data};
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::publication::{self, Publication};
use crate::protocol::reply::{self, Reply};
use crate::protocol::rpc::{self, PresenceChange, RpcAnswer, RpcRequest, RpcStatus};
use crate::protocol::state::State;
use crate::session::broker::{BrokerQuestion, ask_history};
use crate::session::question::{Question, SubscribeExtras};
use crate::session::{DisconnectCall, Session};

/// Key in the channel state for the stream that whispers go to.
const WHISPER_KEY: &str = "$w";
/// Key in the channel state for the stream of the client's presence.
pub(super) const PRESENCE_KEY: &str = "$p";

/// Subscriptions of one client, each counted once for every stream it listens to. The reference has no limit, so a client
/// could fill the memory.
pub const SUBSCRIPTIONS_MAX: usize = 4096;

/// With no memory left for clients, a message with more data than this is refused; a smaller one is performed.
const LARGE_DATA_BYTES: usize = 4096;

/// What the shard must do next for a session, in order. Carried out by `shard::sessions`.
#[derive(Debug)]
pub enum Step {
    /// Queue this reply.
    Send(Reply),
    /// Ask the app, then feed the answer to [`Session::on_connect_answer`] or [`Session::on_command_answer`]. Always the
    /// last step.
    Ask(Question),
    /// Ask the broker, after what it was asked before.
    AskBroker(BrokerQuestion),
    /// Hand this to every shard.
    Publish(Publication),
    /// The session is authenticated: count it, and let remote disconnects reach it.
    Register,
    /// Queue the close frame after everything that is queued, then close. Always the last step.
    Close(Close),
}

/// Why a client's command had no effect. The shard logs and counts it. The client is told only that a subscription is
/// rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandRefusal {
    #[error("already subscribed to {0}")]
    AlreadySubscribed(String),
    #[error("unknown subscription {0}")]
    UnknownSubscription(String),
    #[error("unknown command {0:?}")]
    UnknownCommand(String),
    #[error("the data of a message must be a string")]
    DataNotText,
    #[error("no RPC is configured, the command cannot be performed")]
    NoRpc,
    #[error("{SUBSCRIPTIONS_MAX} subscriptions are open, no more are accepted")]
    TooManySubscriptions,
    #[error(
        "the session's subscriptions take as many bytes as they may (session_bytes_max), no more are accepted"
    )]
    NoRoomInSession,
    #[error("the memory for clients is used up (memory_bytes_max)")]
    NoMemory,
}

/// Why this server refuses a client without having asked the app. The client gets a reason of the protocol; this text is for
/// the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthRefusal {
    #[error("the query of the URL cannot be parsed, there may be a token in it")]
    BadQuery,
    #[error(
        "its signature does not fit, or it is no token at all: the app must sign with the secret of this server \
         (ANYCABLE_SECRET, or ANYCABLE_JWT_SECRET) and HS256, HS384 or HS512"
    )]
    TokenInvalid,
    #[error(
        "it has expired: the client is told to fetch a new one; if new ones are refused too, compare the clocks of app and \
         server"
    )]
    TokenExpired,
    #[error("it has no \"ext\" with the connection identifiers: make it with AnyCable's helpers")]
    TokenWithoutIdentifiers,
    #[error(
        "--enforce_jwt is on: the token must come in the query, in the header x-<jwt_param> or as subprotocol \
         anycable-token.<token>"
    )]
    TokenMissing,
    #[error("no RPC is configured (--norpc), so only a token or --noauth could let it in")]
    NoAuthenticator,
}

/// What a session needs from its shard to make a decision.
pub struct Context<'a> {
    pub auth: &'a AuthConfig,
    pub hub: &'a mut Hub,
    /// The session's slot in the hub.
    pub slot: u32,
    pub disconnect_mode: DisconnectMode,
    /// False: `--norpc`.
    pub has_rpc: bool,
    /// False: history and presence are not kept.
    pub has_broker: bool,
    /// Bytes by which the session's subscriptions may grow.
    pub room_bytes: usize,
    /// The process holds as much as it may: refuse anything large.
    pub memory_is_full: bool,
}

/// What the upgrade request says about the identity of the client.
#[derive(Debug, Default)]
pub struct Credentials {
    /// The JWT, from the header, the sub-protocol or the query.
    pub token: Option<String>,
    /// The query could not be parsed and JWT is on.
    pub bad_query: bool,
}

impl Session {
    /// Decides who authenticates the client. Source: contract/auth_streams.md §1.
    ///
    /// # Errors
    /// Why this server refused the client itself. The steps already tell the client.
    pub fn authenticate(
        &mut self,
        context: &Context<'_>,
        credentials: &Credentials,
        now_unix_secs: f64,
        steps: &mut Vec<Step>,
    ) -> Result<(), AuthRefusal> {
        if credentials.bad_query {
            steps.push(Step::Close(Close::AUTH_ERROR));
            return Err(AuthRefusal::BadQuery);
        }
        if let Some(config) = &context.auth.jwt {
            match &credentials.token {
                Some(token) => {
                    return self.authenticate_by_jwt(
                        context,
                        jwt::verify(token, &config.secret, now_unix_secs),
                        steps,
                    );
                }
                None if config.enforce => {
                    refuse(DisconnectReason::Unauthorized, steps);
                    return Err(AuthRefusal::TokenMissing);
                }
                None => {}
            }
        }
        if context.auth.noauth {
            let identifiers = reply::sid_identifiers(self.sid());
            self.accept_locally(context, &identifiers, steps);
        } else if context.has_rpc {
            self.call(Question::Connect, steps);
        } else {
            refuse(DisconnectReason::Unauthorized, steps);
            return Err(AuthRefusal::NoAuthenticator);
        }
        Ok(())
    }

    /// Lets in a reader of a durable stream that nobody has to authenticate. Source: contract/http_transports.md §4.
    pub fn admit_reader(&mut self, steps: &mut Vec<Step>) {
        let identifiers = format!("ds::{}", self.sid());
        self.set_identifiers(&identifiers);
        self.authenticated = true;
        self.drop_env();
        steps.push(Step::Register);
    }

    fn authenticate_by_jwt(
        &mut self,
        context: &Context<'_>,
        verdict: JwtVerdict,
        steps: &mut Vec<Step>,
    ) -> Result<(), AuthRefusal> {
        match verdict {
            JwtVerdict::Valid { identifiers } => {
                self.accept_locally(context, &identifiers, steps);
                Ok(())
            }
            JwtVerdict::Expired => {
                refuse(DisconnectReason::TokenExpired, steps);
                Err(AuthRefusal::TokenExpired)
            }
            JwtVerdict::Unauthorized => {
                refuse(DisconnectReason::Unauthorized, steps);
                Err(AuthRefusal::TokenInvalid)
            }
            JwtVerdict::MissingExt => {
                steps.push(Step::Close(Close::AUTH_ERROR));
                Err(AuthRefusal::TokenWithoutIdentifiers)
            }
        }
    }

    /// JWT and noauth: the server itself sends the welcome, and no Disconnect call is owed unless the mode is `always`.
    fn accept_locally(&mut self, context: &Context<'_>, identifiers: &str, steps: &mut Vec<Step>) {
        self.set_identifiers(identifiers);
        self.authenticated = true;
        self.wants_disconnect = context.disconnect_mode == DisconnectMode::Always;
        if !context.has_rpc {
            self.drop_env();
        }
        steps.push(Step::Register);
        let sid = self.sid().into();
        steps.push(Step::Send(Reply::Welcome { sid }));
    }

    /// The app has answered Connect. Source: contract/rpc.md §6.1.
    pub fn on_connect_answer(
        &mut self,
        context: &Context<'_>,
        answer: RpcAnswer,
        steps: &mut Vec<Step>,
    ) {
        match answer.status {
            RpcStatus::Error => {
                steps.push(Step::Close(Close::AUTH_ERROR));
                return;
            }
            RpcStatus::Success => {
                self.set_identifiers(&answer.identifiers);
                self.authenticated = true;
                self.note_rpc_answer(context.disconnect_mode);
                steps.push(Step::Register);
            }
            RpcStatus::Failure => {}
        }
        self.merge_cstate(&answer.cstate);
        send_all(answer.transmissions, steps);
        if answer.status == RpcStatus::Failure {
            steps.push(Step::Close(Close::AUTH_FAILED));
        }
    }

    /// A client's command.
    ///
    /// # Errors
    /// Why the command has no effect. The only step is then a rejection, if the command was a subscribe that could have
    /// succeeded.
    pub fn on_command(
        &mut self,
        context: &mut Context<'_>,
        command: ClientCommand<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<(), CommandRefusal> {
        let subscribed = context.hub.is_subscribed(context.slot, &command.identifier);
        match command.kind {
            CommandKind::Ping => steps.push(Step::Send(Reply::Pong)),
            CommandKind::Pong => {}
            CommandKind::Unknown => {
                return Err(CommandRefusal::UnknownCommand(command.name.into_owned()));
            }
            CommandKind::Whisper => self.whisper(context, &command, steps),
            CommandKind::Subscribe if subscribed => {
                return Err(CommandRefusal::AlreadySubscribed(
                    command.identifier.into_owned(),
                ));
            }
            CommandKind::Subscribe => self.subscribe(context, command, steps)?,
            _ if !subscribed => {
                return Err(CommandRefusal::UnknownSubscription(
                    command.identifier.into_owned(),
                ));
            }
            CommandKind::Unsubscribe => self.unsubscribe(context, command, steps)?,
            CommandKind::Message => self.message(context, command, steps)?,
            CommandKind::History => {
                ask_history(
                    context,
                    &command.identifier,
                    command.history.as_ref(),
                    steps,
                );
            }
            CommandKind::Presence => self.ask_members(context, &command, steps),
            CommandKind::Join => {
                self.join(context, &command.identifier, command.presence, steps);
            }
            CommandKind::Leave => self.leave(context, &command.identifier, steps),
        }
        Ok(())
    }

    fn subscribe(
        &mut self,
        context: &mut Context<'_>,
        command: ClientCommand<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<(), CommandRefusal> {
        if let Some(refusal) = no_room(context, &command.identifier) {
            // Without an answer the client would wait for ever.
            steps.push(reject(&command.identifier));
            return Err(refusal);
        }
        match channels::route_subscribe(&command.identifier, &context.auth.streams) {
            Route::Local(LocalSubscribe::Confirm {
                stream,
                whisper,
                presence,
            }) => {
                self.confirm_locally(
                    context,
                    &command.identifier,
                    &stream,
                    whisper,
                    presence,
                    steps,
                );
                let history = command.history.as_ref();
                ask_history(
                    context,
                    &command.identifier,
                    history.filter(|it| it.asks_beside_subscribe()),
                    steps,
                );
                self.join(context, &command.identifier, command.presence, steps);
            }
            Route::Local(LocalSubscribe::Reject) => {
                steps.push(reject(&command.identifier));
            }
            Route::Rpc if !context.has_rpc => {
                steps.push(reject(&command.identifier));
            }
            Route::Rpc => {
                let question = Question::Subscribe {
                    identifier: command.identifier.into(),
                    extras: SubscribeExtras::new(command.history, command.presence),
                };
                self.call(question, steps);
            }
        }
        Ok(())
    }

    fn confirm_locally(
        &mut self,
        context: &mut Context<'_>,
        identifier: &str,
        stream: &str,
        whisper: bool,
        presence: bool,
        steps: &mut Vec<Step>,
    ) {
        self.change(context, identifier, |_, context| {
            context.hub.subscribe(context.slot, identifier);
            context.hub.attach(context.slot, identifier, stream);
            let marks = Marks { whisper, presence };
            context.hub.mark(context.slot, identifier, marks);
        });
        let identifier = identifier.into();
        steps.push(Step::Send(Reply::ConfirmSubscription { identifier }));
    }

    fn unsubscribe(
        &mut self,
        context: &mut Context<'_>,
        command: ClientCommand<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<(), CommandRefusal> {
        if channels::is_local_channel(&command.identifier, &context.auth.streams) {
            self.leave(context, &command.identifier, steps);
            self.forget(context, &command.identifier);
            return Ok(());
        }
        if !context.has_rpc {
            return Err(CommandRefusal::NoRpc);
        }
        let question = Question::Unsubscribe {
            identifier: command.identifier.into(),
        };
        self.call(question, steps);
        Ok(())
    }

    fn message(
        &mut self,
        context: &Context<'_>,
        command: ClientCommand<'_>,
        steps: &mut Vec<Step>,
    ) -> Result<(), CommandRefusal> {
        let Data::Text(data) = &command.data else {
            return Err(CommandRefusal::DataNotText);
        };
        if !context.has_rpc {
            return Err(CommandRefusal::NoRpc);
        }
        if context.memory_is_full && data.len() > LARGE_DATA_BYTES {
            return Err(CommandRefusal::NoMemory);
        }
        let question = Question::Message {
            identifier: command.identifier.into(),
            data: data.as_ref().into(),
        };
        self.call(question, steps);
        Ok(())
    }

    fn whisper(&self, context: &Context<'_>, command: &ClientCommand<'_>, steps: &mut Vec<Step>) {
        if let Some(stream) = self.reserved_stream(context, &command.identifier, WHISPER_KEY) {
            steps.push(Step::Publish(publication::whisper(
                stream,
                &command.data,
                self.sid(),
            )));
        }
    }

    /// The app has answered a command. Source: contract/rpc.md §6.2 for the order of effects.
    pub fn on_command_answer(
        &mut self,
        context: &mut Context<'_>,
        question: Question,
        answer: RpcAnswer,
        steps: &mut Vec<Step>,
    ) {
        if answer.status == RpcStatus::Error {
            return;
        }
        let success = answer.status == RpcStatus::Success;
        let close = answer
            .disconnect
            .then_some(Step::Close(Close::COMMAND_FAILED));
        match question {
            Question::Subscribe { identifier, extras } => {
                self.note_rpc_answer(context.disconnect_mode);
                if success {
                    self.change(context, &identifier, |_, context| {
                        context.hub.subscribe(context.slot, &identifier);
                    });
                    self.apply(context, &identifier, answer, steps);
                    let extras = extras.map(|extras| *extras).unwrap_or_default();
                    let history = extras.history.as_ref();
                    let history = history.filter(|it| it.asks_beside_subscribe());
                    ask_history(context, &identifier, history, steps);
                    self.join(context, &identifier, extras.presence, steps);
                } else {
                    // A rejected subscription gets neither streams nor state: the reference leaks both (§6.2, DECIDE).
                    self.merge_cstate(&answer.cstate);
                    send_all(answer.transmissions, steps);
                }
            }
            Question::Unsubscribe { identifier } => {
                self.leave(context, &identifier, steps);
                self.forget(context, &identifier);
                self.merge_cstate(&answer.cstate);
                send_all(answer.transmissions, steps);
            }
            Question::Message { identifier, .. } => self.apply(context, &identifier, answer, steps),
            Question::Connect => {}
        }
        steps.extend(close);
    }

    /// Applies the streams, states and transmissions of an answer, in the contract's order.
    fn apply(
        &mut self,
        context: &mut Context<'_>,
        identifier: &str,
        answer: RpcAnswer,
        steps: &mut Vec<Step>,
    ) {
        self.change(context, identifier, |session, context| {
            session.apply_streams(context, identifier, &answer);
        });
        self.merge_istate(identifier, &answer.istate);
        self.merge_cstate(&answer.cstate);
        send_all(answer.transmissions, steps);
        match answer.presence {
            Some(PresenceChange::Join(presence)) => {
                self.join(context, identifier, Some(presence), steps);
            }
            Some(PresenceChange::Leave) => self.leave(context, identifier, steps),
            None => {}
        }
    }

    fn apply_streams(&mut self, context: &mut Context<'_>, identifier: &str, answer: &RpcAnswer) {
        let touches_marks =
            answer.stop_streams || !(answer.stopped_streams.is_empty() && answer.istate.is_empty());
        if touches_marks {
            self.write_marks_out(context, identifier);
        }
        if answer.stop_streams {
            context.hub.detach_all(context.slot, identifier);
        } else {
            for stream in &answer.stopped_streams {
                context.hub.detach(context.slot, identifier, stream);
            }
        }
        // The subscription may have ended while a message was performed. Then there is nothing to attach streams to.
        if context.hub.is_subscribed(context.slot, identifier) {
            for stream in &answer.streams {
                context.hub.attach(context.slot, identifier, stream);
            }
        }
    }

    fn forget(&mut self, context: &mut Context<'_>, identifier: &str) {
        self.change(context, identifier, |_, context| {
            context.hub.unsubscribe(context.slot, identifier);
        });
        self.forget_istate(identifier);
    }

    /// Changes one subscription in the hub and updates the byte count of all subscriptions.
    pub(super) fn change(
        &mut self,
        context: &mut Context<'_>,
        identifier: &str,
        change: impl FnOnce(&mut Self, &mut Context<'_>),
    ) {
        let before = context.hub.subscription_bytes(context.slot, identifier);
        change(self, context);
        let after = context.hub.subscription_bytes(context.slot, identifier);
        let bytes = self.subscribed_bytes() - before + after;
        self.subscribed_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// Turns marks into ordinary channel state, before the app changes that state or the streams.
    fn write_marks_out(&mut self, context: &mut Context<'_>, identifier: &str) {
        if let Some((marks, stream)) = context.hub.take_marks(context.slot, identifier) {
            self.merge_istate(identifier, &changes(marks, &stream));
        }
    }

    /// Ends the session. Returns the Disconnect call, if one is owed. Source: contract/rpc.md §8.
    pub fn take_disconnect_call(&mut self, hub: &Hub, slot: u32) -> Option<DisconnectCall> {
        if !self.owes_disconnect() {
            return None;
        }
        self.write_all_marks_out(hub, slot);
        let subscriptions = rpc::encode_subscriptions(&hub.identifiers(slot));
        Some(self.part(subscriptions))
    }

    /// True when the app has accepted the client and must be told when the session ends.
    pub(super) fn owes_disconnect(&self) -> bool {
        self.authenticated && self.wants_disconnect
    }

    pub(super) fn write_all_marks_out(&mut self, hub: &Hub, slot: u32) {
        for (identifier, marks, stream) in hub.marked(slot) {
            self.merge_istate(identifier, &changes(marks, stream));
        }
    }

    /// Asks the app. Nothing is read from the client until the answer is there.
    fn call(&mut self, question: Question, steps: &mut Vec<Step>) {
        self.deadlines.command_started();
        steps.push(Step::Ask(question));
    }

    /// The request for a question. The values it is made of do not change while the call is under way.
    pub fn request<'a>(
        &'a self,
        hub: &'a Hub,
        slot: u32,
        question: &'a Question,
    ) -> RpcRequest<'a> {
        let Some((command, identifier)) = question.command() else {
            return RpcRequest::Connect { env: self.env() };
        };
        RpcRequest::Command {
            command,
            identifier,
            connection_identifiers: self.identifiers(),
            data: question.data(),
            env: self.env(),
            cstate: self.cstate(),
            istate: self.channel_state(hub, slot, identifier),
        }
    }

    /// After any RPC answer, success or failure, the app must be told when the session ends.
    pub(super) fn note_rpc_answer(&mut self, mode: DisconnectMode) {
        self.wants_disconnect |= mode != DisconnectMode::Never;
    }

    /// The channel state of a subscription as the app gets it back.
    fn channel_state(&self, hub: &Hub, slot: u32, identifier: &str) -> Option<Cow<'_, State>> {
        if let Some(state) = self.istate(identifier) {
            return Some(Cow::Borrowed(state));
        }
        let (marks, stream) = hub.marks(slot, identifier)?;
        Some(Cow::Owned(reserved_entries(marks, stream).collect()))
    }

    /// The stream that the app (or a signed stream) has set for an identifier under `key`: `$w` or `$p`.
    pub(super) fn reserved_stream<'a>(
        &'a self,
        context: &'a Context<'_>,
        identifier: &str,
        key: &str,
    ) -> Option<&'a str> {
        if let Some(state) = self.istate(identifier) {
            return state.get(key).filter(|stream| !stream.is_empty());
        }
        let (marks, stream) = context.hub.marks(context.slot, identifier)?;
        reserved_entries(marks, stream)
            .find(|(other, _)| *other == key)
            .map(|(_, stream)| stream)
    }
}

/// The entries of channel state that the marks stand for.
fn reserved_entries(marks: Marks, stream: &str) -> impl Iterator<Item = (&'static str, &str)> {
    [(PRESENCE_KEY, marks.presence), (WHISPER_KEY, marks.whisper)]
        .into_iter()
        .filter(|(_, set)| *set)
        .map(move |(key, _)| (key, stream))
}

/// The changes that turn marks into channel state.
fn changes(marks: Marks, stream: &str) -> Vec<(String, String)> {
    reserved_entries(marks, stream)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// Why there is no room for one more subscription; `None` when there is.
pub(super) fn no_room(context: &Context<'_>, identifier: &str) -> Option<CommandRefusal> {
    if context.hub.edges_len(context.slot) >= SUBSCRIPTIONS_MAX {
        Some(CommandRefusal::TooManySubscriptions)
    } else if hub::identifier_bytes(identifier) > context.room_bytes {
        Some(CommandRefusal::NoRoomInSession)
    } else if context.memory_is_full {
        Some(CommandRefusal::NoMemory)
    } else {
        None
    }
}

fn reject(identifier: &str) -> Step {
    Step::Send(Reply::RejectSubscription {
        identifier: identifier.into(),
    })
}

fn refuse(reason: DisconnectReason, steps: &mut Vec<Step>) {
    steps.push(Step::Send(Reply::Disconnect {
        reason,
        reconnect: false,
    }));
    steps.push(Step::Close(Close::AUTH_FAILED));
}

fn send_all(transmissions: Vec<String>, steps: &mut Vec<Step>) {
    let replies = transmissions.into_iter().map(Reply::Transmission);
    steps.extend(replies.map(Step::Send));
}

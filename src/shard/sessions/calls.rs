//! Obeys what a session decides, and brings the app's answers back to it.

use std::fmt::Display;
use std::rc::Rc;

use super::share::Share;
use super::{Action, Cause, Connection, PendingCall, Sessions, identity_hash};
use crate::config::RpcEndpoint;
use crate::log::cut;
use crate::mesh::SessionRef;
use crate::protocol::disconnect::Close;
use crate::protocol::json;
use crate::protocol::reply::Reply;
use crate::protocol::rpc::{RpcAnswer, RpcRequest, RpcStatus};
use crate::rpc::RpcError;
use crate::session::{Context, Departed, Question, Session, Step};
use crate::shard::calls::{Call, CallHandle};
use crate::shard::notices::Notice;

impl Sessions {
    /// Lets the session decide, then obeys its steps.
    pub(super) fn with_session<R>(
        &mut self,
        slot: u32,
        decide: impl FnOnce(&mut Session, &mut Context<'_>, &mut Vec<Step>) -> R,
    ) -> R {
        let mut steps = std::mem::take(&mut self.steps);
        self.hub.set_arrived(self.inbox.arrived());
        let room_bytes = self.subscription_room(slot);
        let mut context = Context {
            room_bytes,
            memory_is_full: self.budget.is_full(),
            auth: &self.config.auth,
            hub: &mut self.hub,
            slot,
            disconnect_mode: self.config.disconnect.mode,
            has_rpc: self.config.rpc.endpoint != RpcEndpoint::None,
        };
        let session = &mut self.connections[slot as usize].session;
        let before = session.own_bytes();
        let result = decide(session, &mut context, &mut steps);
        let after = session.own_bytes();
        self.recharge(before, after);
        self.charge_hub();
        for step in steps.drain(..) {
            self.obey(slot, step);
        }
        self.steps = steps;
        result
    }

    pub(super) fn obey(&mut self, slot: u32, step: Step) {
        match step {
            Step::Send(reply) => self.send_reply(slot, &reply),
            Step::Ask(question) => self.start_call(slot, question),
            Step::Publish(publication) => self.actions.push(Action::Publish(publication)),
            Step::Register => self.register(slot),
            Step::Close(close) => {
                let cause = self.close_cause(&close);
                self.begin_close(slot, Some(close), cause);
            }
        }
    }

    pub(super) fn close_cause(&self, close: &Close) -> Cause {
        if *close == Close::AUTH_FAILED {
            self.counters().failed_auths_total.add(1);
            Cause::Auth
        } else {
            Cause::Error
        }
    }

    pub(super) fn register(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        self.identity_hashes[slot as usize] =
            identity_hash(&self.hasher, connection.session.identifiers());
        self.counters().clients_num.add(1);
    }

    pub(super) fn is_registered(&self, slot: u32) -> bool {
        self.identity_hashes[slot as usize] != 0
    }

    pub(super) fn start_call(&mut self, slot: u32, question: Question) {
        if matches!(question, Question::Connect) {
            self.counters().rpc_call_total.add(1);
        }
        let session = self.session_ref(slot);
        let handle = CallHandle::new(&question);
        let charge = self.budget.hold_anyway(question.held_bytes());
        let connection = &mut self.connections[slot as usize];
        connection.held.get_or_insert_default().call = Some(PendingCall {
            handle: Rc::clone(&handle),
            charge,
        });
        self.actions.push(Action::Call(Call {
            session,
            question,
            handle,
        }));
    }

    /// The sid of the session that waits for a call; `None` when it has ended.
    pub fn call_sid(&self, session: SessionRef) -> Option<Box<str>> {
        Some(self.calling(session)?.session.sid().into())
    }

    /// What a call asks; `None` when its session has ended.
    pub fn request<'a>(
        &'a self,
        session: SessionRef,
        question: &'a Question,
    ) -> Option<RpcRequest<'a>> {
        let protocol = &self.calling(session)?.session;
        Some(protocol.request(&self.hub, session.slot, question))
    }

    fn calling(&self, session: SessionRef) -> Option<&Connection> {
        let connection = self.connections.get(session.slot as usize)?;
        (connection.generation == session.generation && connection.is_open()).then_some(connection)
    }

    /// The answer of a call whose session has ended meanwhile, for what the app must be told about that.
    pub fn on_late_result(
        &mut self,
        departed: Departed,
        question: &Question,
        result: Result<RpcAnswer, RpcError>,
    ) {
        self.departed -= 1;
        self.counters().late_results_total.add(1);
        self.count_unreadable(&result);
        let mode = self.config.disconnect.mode;
        let farewell = match (question, result) {
            (Question::Connect, Ok(answer)) => {
                let refused = answer.status == RpcStatus::Failure;
                self.counters().failed_auths_total.add(u64::from(refused));
                departed.after_connect(&answer, mode)
            }
            (Question::Connect, Err(_)) => None,
            (Question::Subscribe { identifier, .. }, result) => {
                self.counters().rpc_call_total.add(1);
                match result {
                    Ok(answer) => departed.after_subscribe(identifier, &answer, mode),
                    Err(_) => departed.farewell(),
                }
            }
            (Question::Unsubscribe { .. } | Question::Message { .. }, _) => departed.farewell(),
        };
        self.actions.extend(farewell.map(Action::Disconnect));
    }

    /// The answer of a call, or why there is none.
    pub fn on_call_result(
        &mut self,
        session: SessionRef,
        question: Question,
        result: Result<RpcAnswer, RpcError>,
    ) {
        let slot = session.slot;
        let canceled = matches!(result, Err(RpcError::Canceled));
        if !matches!(question, Question::Connect) && !canceled {
            self.counters().rpc_call_total.add(1);
        }
        let Some(connection) = self.live(session) else {
            self.counters().late_results_total.add(u64::from(!canceled));
            return;
        };
        if let Some(held) = &mut connection.held {
            held.call = None;
        }
        connection.session.deadlines.command_ended();
        self.count_unreadable(&result);
        self.set_timer(slot);
        self.apply_result(slot, question, result);
        self.close_if_too_large(slot);
        if self.live(session).is_some() {
            self.read(slot, &mut Share::new());
        }
        if self.live(session).is_some() {
            self.schedule_rest(slot);
        }
    }

    /// A 200 that cannot be read is an RPC error too.
    fn count_unreadable(&self, result: &Result<RpcAnswer, RpcError>) {
        let unreadable = matches!(result, Err(RpcError::Unreadable(_)));
        self.counters().rpc_error_total.add(u64::from(unreadable));
    }

    fn apply_result(&mut self, slot: u32, question: Question, result: Result<RpcAnswer, RpcError>) {
        match question {
            Question::Connect => self.apply_connect(slot, result),
            question => self.apply_command(slot, question, result),
        }
    }

    fn apply_connect(&mut self, slot: u32, result: Result<RpcAnswer, RpcError>) {
        match accepted(result) {
            Ok(answer) => self.with_session(slot, |session, context, steps| {
                session.on_connect_answer(context, answer, steps);
            }),
            Err(failure) => {
                self.log_failed_session(slot, &failure);
                self.begin_close(slot, Some(Close::AUTH_ERROR), Cause::Error);
            }
        }
    }

    fn apply_command(
        &mut self,
        slot: u32,
        question: Question,
        result: Result<RpcAnswer, RpcError>,
    ) {
        if let (Question::Subscribe { identifier, .. }, Err(RpcError::NoMemory)) =
            (&question, &result)
        {
            // The app has not been asked: the client can be told.
            let identifier = identifier.clone();
            self.send_reply(slot, &Reply::RejectSubscription { identifier });
        }
        match accepted(result) {
            Ok(answer) => self.with_session(slot, |session, context, steps| {
                session.on_command_answer(context, question, answer, steps);
            }),
            Err(failure) => {
                self.counters().failed_client_msg_total.add(1);
                self.log_failed_command(slot, &question, &failure);
            }
        }
    }

    /// The session gets no welcome, for no fault of the client.
    pub(super) fn log_failed_session(&self, slot: u32, error: &dyn Display) {
        if let Some(admitted) = self.notices.admit(Notice::SessionFailed) {
            tracing::error!(
                context = "ws",
                sid = self.sid(slot),
                shard = self.shard,
                %error,
                left_out = admitted.left_out(),
                "WebSocket session failed"
            );
        }
    }

    fn log_failed_command(&self, slot: u32, question: &Question, error: &CallFailure) {
        if let Some(admitted) = self.notices.admit(Notice::CommandFailed) {
            tracing::warn!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                data = %cut(&message_text(question)),
                %error,
                left_out = admitted.left_out(),
                "failed to handle incoming message"
            );
        }
    }
}

/// Why a call changed nothing.
#[derive(Debug, thiserror::Error)]
enum CallFailure {
    #[error(transparent)]
    Call(RpcError),
    /// The app's own words.
    #[error("{0}")]
    App(String),
}

/// The answer unless the app says that it has failed.
fn accepted(result: Result<RpcAnswer, RpcError>) -> Result<RpcAnswer, CallFailure> {
    match result {
        Ok(answer) if answer.status == RpcStatus::Error => Err(CallFailure::App(answer.error_msg)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(CallFailure::Call(error)),
    }
}

/// The client's message, near enough for the log: what was read is gone when the answer comes.
fn message_text(question: &Question) -> String {
    let (command, identifier) = question.command().unwrap_or_default();
    let mut text = format!("{{\"command\":\"{command}\",\"identifier\":").into_bytes();
    json::escape_into(&mut text, identifier);
    if let Question::Message { data, .. } = question {
        text.extend_from_slice(b",\"data\":");
        json::escape_into(&mut text, data);
    }
    text.push(b'}');
    String::from_utf8_lossy(&text).into_owned()
}

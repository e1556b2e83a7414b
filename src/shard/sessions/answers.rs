//! The app's answers: what a call asks, and what its result means for the session.

use super::closing::Cause;
use super::share::Share;
use super::{Action, Sessions};
use crate::log::cut;
use crate::mesh::SessionRef;
use crate::protocol::disconnect::Close;
use crate::protocol::json;
use crate::protocol::reply::Reply;
use crate::protocol::rpc::{RpcAnswer, RpcRequest, RpcStatus};
use crate::rpc::RpcError;
use crate::session::{Departed, Question};
use crate::shard::notices::Notice;

impl Sessions {
    /// The sid of the session that waits for a call; `None` when it has ended.
    pub fn call_sid(&self, session: SessionRef) -> Option<Box<str>> {
        Some(self.table.live(session)?.session.sid().into())
    }

    /// The request of a call; `None` when its session has ended.
    pub fn request<'a>(
        &'a self,
        session: SessionRef,
        question: &'a Question,
    ) -> Option<RpcRequest<'a>> {
        let protocol = &self.table.live(session)?.session;
        Some(protocol.request(&self.hub, session.slot, question))
    }

    /// The answer to a call whose session has ended meanwhile. It decides whether the app gets a Disconnect call.
    pub fn on_late_result(
        &mut self,
        departed: Departed,
        question: &Question,
        result: Result<RpcAnswer, RpcError>,
    ) {
        self.departed -= 1;
        self.common.counters().late_results_total.add(1);
        self.count_unreadable(&result);
        let mode = self.common.config.disconnect.mode;
        let disconnect_call = match (question, result) {
            (Question::Connect, Ok(answer)) => {
                let refused = answer.status == RpcStatus::Failure;
                self.common
                    .counters()
                    .failed_auths_total
                    .add(u64::from(refused));
                departed.after_connect(&answer, mode)
            }
            (Question::Connect, Err(_)) => None,
            (Question::Subscribe { identifier, .. }, result) => {
                self.common.counters().rpc_call_total.add(1);
                match result {
                    Ok(answer) => departed.after_subscribe(identifier, &answer, mode),
                    Err(_) => departed.disconnect_call(),
                }
            }
            (Question::Unsubscribe { .. } | Question::Message { .. }, _) => {
                departed.disconnect_call()
            }
        };
        self.actions.extend(disconnect_call.map(Action::Disconnect));
    }

    /// The answer to a call, or the error that stands in its place.
    pub fn on_call_result(
        &mut self,
        session: SessionRef,
        question: Question,
        result: Result<RpcAnswer, RpcError>,
    ) {
        let slot = session.slot;
        let canceled = matches!(result, Err(RpcError::Canceled));
        if !matches!(question, Question::Connect) && !canceled {
            self.common.counters().rpc_call_total.add(1);
        }
        let Some(connection) = self.table.live_mut(session) else {
            self.common
                .counters()
                .late_results_total
                .add(u64::from(!canceled));
            return;
        };
        if let Some(held) = &mut connection.held {
            held.call = None;
        }
        connection.session.deadlines.command_ended();
        self.count_unreadable(&result);
        self.table.set_timer(slot);
        let asked = self.asked_in_request(slot, &question);
        self.apply_result(slot, question, result);
        self.close_if_too_large(slot);
        if let Some(identifier) = asked {
            self.refuse_if_rejected(slot, &identifier);
        }
        if self.table.live(session).is_some() {
            self.read(slot, &mut Share::new());
        }
        if self.table.live(session).is_some() {
            self.table.schedule_rest(slot);
        }
    }

    /// A 200 with an unreadable body counts as an RPC error too.
    fn count_unreadable(&self, result: &Result<RpcAnswer, RpcError>) {
        let unreadable = matches!(result, Err(RpcError::Unreadable(_)));
        self.common
            .counters()
            .rpc_error_total
            .add(u64::from(unreadable));
    }

    fn apply_result(&mut self, slot: u32, question: Question, result: Result<RpcAnswer, RpcError>) {
        match question {
            Question::Connect => self.apply_connect(slot, result),
            question => self.apply_command(slot, question, result),
        }
    }

    fn apply_connect(&mut self, slot: u32, result: Result<RpcAnswer, RpcError>) {
        match accepted(result) {
            Ok(answer) => self.with_session(slot, false, |session, context, steps| {
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
            // The app was not asked, so the server itself can reject the subscription.
            let identifier = identifier.clone();
            self.send_reply(slot, &Reply::RejectSubscription { identifier });
        }
        match accepted(result) {
            Ok(answer) => self.with_session(slot, true, |session, context, steps| {
                session.on_command_answer(context, question, answer, steps);
            }),
            Err(failure) => {
                self.common.counters().failed_client_msg_total.add(1);
                self.log_failed_command(slot, &question, &failure);
            }
        }
    }

    /// Closes a session that exceeds its limit because of state that the app has set. State cannot be refused, unlike a
    /// subscription.
    fn close_if_too_large(&mut self, slot: u32) {
        let session_bytes_max = self.common.bounds.session_bytes_max;
        let connection = self.table.connections.get(slot as usize);
        let too_large = connection.is_some_and(|connection| {
            connection.is_open() && connection.session.held_bytes() >= session_bytes_max
        });
        if too_large {
            self.note_full_session(slot, "it is closed: the app has set too much state");
            self.begin_close(slot, Some(Close::TOO_LARGE), Cause::Error);
        }
    }

    fn log_failed_command(&self, slot: u32, question: &Question, error: &CallFailure) {
        if let Some(admitted) = self.common.notices.admit(Notice::CommandFailed) {
            tracing::warn!(
                context = "node",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                data = %cut(&message_text(question)),
                %error,
                left_out = admitted.left_out(),
                "failed to handle incoming message"
            );
        }
    }
}

/// Why a call had no effect.
#[derive(Debug, thiserror::Error)]
enum CallFailure {
    #[error(transparent)]
    Call(RpcError),
    /// The app's own text.
    #[error("{0}")]
    App(String),
}

/// Returns the answer unless its status is an error.
fn accepted(result: Result<RpcAnswer, RpcError>) -> Result<RpcAnswer, CallFailure> {
    match result {
        Ok(answer) if answer.status == RpcStatus::Error => Err(CallFailure::App(answer.error_msg)),
        Ok(answer) => Ok(answer),
        Err(error) => Err(CallFailure::Call(error)),
    }
}

/// The client's message rebuilt for the log: its original bytes are gone when the answer comes.
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

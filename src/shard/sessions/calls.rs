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
use crate::protocol::rpc::{
    CommandResponse, ConnectResponse, RpcDecodeError, RpcStatus, decode_command_response,
    decode_connect_response,
};
use crate::rpc::RpcError;
use crate::session::{CallPurpose, Context, Departed, Session, Step};
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
            Step::Call(purpose) => self.start_call(slot, purpose),
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

    pub(super) fn start_call(&mut self, slot: u32, purpose: CallPurpose) {
        if matches!(purpose, CallPurpose::Connect) {
            self.counters().rpc_call_total.add(1);
        }
        let session = self.session_ref(slot);
        let handle = CallHandle::new(&purpose);
        let charge = self.budget.hold_anyway(purpose.held_bytes());
        let connection = &mut self.connections[slot as usize];
        connection.held.get_or_insert_default().call = Some(PendingCall {
            handle: Rc::clone(&handle),
            charge,
        });
        self.actions.push(Action::Call(Call {
            session,
            purpose,
            handle,
        }));
    }

    /// The sid of the session that waits for a call; `None` when it has ended.
    pub fn call_sid(&self, session: SessionRef) -> Option<Box<str>> {
        Some(self.calling(session)?.session.sid().into())
    }

    /// The whole body of a call; `None` when its session has ended.
    pub fn call_body(&self, session: SessionRef, purpose: &CallPurpose) -> Option<Vec<u8>> {
        let protocol = &self.calling(session)?.session;
        Some(protocol.call_body(&self.hub, session.slot, purpose))
    }

    fn calling(&self, session: SessionRef) -> Option<&Connection> {
        let connection = self.connections.get(session.slot as usize)?;
        (connection.generation == session.generation && connection.is_open()).then_some(connection)
    }

    /// The answer of a call whose session has ended meanwhile, for what the app must be told about that.
    pub fn on_late_result(
        &mut self,
        departed: Departed,
        purpose: &CallPurpose,
        result: Result<Vec<u8>, RpcError>,
    ) {
        self.departed -= 1;
        self.counters().late_results_total.add(1);
        let mode = self.config.disconnect.mode;
        let sid = departed.sid();
        let farewell = match purpose {
            CallPurpose::Connect => {
                match self.decoded(sid, purpose, result, decode_connect_response) {
                    Ok(response) => {
                        let refused = response.status == RpcStatus::Failure;
                        self.counters().failed_auths_total.add(u64::from(refused));
                        departed.after_connect(&response, mode)
                    }
                    Err(_) => None,
                }
            }
            CallPurpose::Subscribe { identifier, .. } => {
                self.counters().rpc_call_total.add(1);
                match self.decoded(sid, purpose, result, decode_command_response) {
                    Ok(response) => departed.after_subscribe(identifier, &response, mode),
                    Err(_) => departed.farewell(),
                }
            }
            CallPurpose::Unsubscribe { .. } | CallPurpose::Message { .. } => departed.farewell(),
        };
        self.actions.extend(farewell.map(Action::Disconnect));
    }

    /// The answer of a call, or why there is none.
    pub fn on_call_result(
        &mut self,
        session: SessionRef,
        purpose: CallPurpose,
        result: Result<Vec<u8>, RpcError>,
    ) {
        let slot = session.slot;
        let canceled = matches!(result, Err(RpcError::Canceled));
        if !matches!(purpose, CallPurpose::Connect) && !canceled {
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
        self.set_timer(slot);
        self.apply_result(slot, purpose, result);
        self.close_if_too_large(slot);
        if self.live(session).is_some() {
            self.read(slot, &mut Share::new());
        }
        if self.live(session).is_some() {
            self.schedule_rest(slot);
        }
    }

    fn apply_result(&mut self, slot: u32, purpose: CallPurpose, result: Result<Vec<u8>, RpcError>) {
        match (purpose, result) {
            (CallPurpose::Connect, result) => self.apply_connect(slot, result),
            (purpose, result) => self.apply_command(slot, purpose, result),
        }
    }

    fn apply_connect(&mut self, slot: u32, result: Result<Vec<u8>, RpcError>) {
        let response: Result<ConnectResponse, String> = self.decoded(
            self.sid(slot),
            &CallPurpose::Connect,
            result,
            decode_connect_response,
        );
        match response {
            Ok(response) if response.status != RpcStatus::Error => {
                self.with_session(slot, |session, context, steps| {
                    session.on_connect_response(context, response, steps);
                });
            }
            Ok(ConnectResponse {
                error_msg: error, ..
            })
            | Err(error) => {
                self.log_failed_session(slot, &error);
                self.begin_close(slot, Some(Close::AUTH_ERROR), Cause::Error);
            }
        }
    }

    fn apply_command(
        &mut self,
        slot: u32,
        purpose: CallPurpose,
        result: Result<Vec<u8>, RpcError>,
    ) {
        if let (CallPurpose::Subscribe { identifier, .. }, Err(RpcError::NoMemory)) =
            (&purpose, &result)
        {
            // The app has not been asked: the client can be told.
            let identifier = identifier.clone();
            self.send_reply(slot, &Reply::RejectSubscription { identifier });
        }
        let response: Result<CommandResponse, String> =
            self.decoded(self.sid(slot), &purpose, result, decode_command_response);
        match response {
            Ok(response) if response.status != RpcStatus::Error => {
                self.with_session(slot, |session, context, steps| {
                    session.on_command_response(context, purpose, response, steps);
                });
            }
            Ok(CommandResponse {
                error_msg: error, ..
            })
            | Err(error) => {
                self.counters().failed_client_msg_total.add(1);
                self.log_failed_command(slot, &purpose, &error);
            }
        }
    }

    /// The answer, or what to log in place of it. A 200 that cannot be read is an RPC error too.
    fn decoded<T>(
        &self,
        sid: &str,
        purpose: &CallPurpose,
        result: Result<Vec<u8>, RpcError>,
        decode: impl FnOnce(&[u8]) -> Result<T, RpcDecodeError>,
    ) -> Result<T, String> {
        let body = result.map_err(|error| error.to_string());
        let answer = body.as_deref().map_err(String::clone).and_then(|body| {
            decode(body).map_err(|error| {
                self.counters().rpc_error_total.add(1);
                error.to_string()
            })
        });
        // As it came: who looks for a field greps JSON.
        tracing::debug!(
            context = "node",
            sid,
            shard = self.shard,
            response = body.as_deref().ok().map(String::from_utf8_lossy).as_deref(),
            err = answer.as_ref().err(),
            "{}",
            controller_record(purpose)
        );
        answer
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

    fn log_failed_command(&self, slot: u32, purpose: &CallPurpose, error: &str) {
        if let Some(admitted) = self.notices.admit(Notice::CommandFailed) {
            tracing::warn!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                data = %cut(&message_text(purpose)),
                error,
                left_out = admitted.left_out(),
                "failed to handle incoming message"
            );
        }
    }
}

/// The client's message, near enough for the log: what was read is gone when the answer comes.
fn message_text(purpose: &CallPurpose) -> String {
    let (command, identifier) = purpose.command().unwrap_or_default();
    let mut text = format!("{{\"command\":\"{command}\",\"identifier\":").into_bytes();
    json::escape_into(&mut text, identifier);
    if let CallPurpose::Message { data, .. } = purpose {
        text.extend_from_slice(b",\"data\":");
        json::escape_into(&mut text, data);
    }
    text.push(b'}');
    String::from_utf8_lossy(&text).into_owned()
}

fn controller_record(purpose: &CallPurpose) -> &'static str {
    match purpose {
        CallPurpose::Connect => "controller authenticate",
        CallPurpose::Subscribe { .. } => "controller subscribe",
        CallPurpose::Unsubscribe { .. } => "controller unsubscribe",
        CallPurpose::Message { .. } => "controller perform",
    }
}

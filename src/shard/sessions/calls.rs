//! Obeys what a session decides, and brings the app's answers back to it.

use std::fmt::Debug;
use std::rc::Rc;
use std::time::Instant;

use super::{Action, Cause, PendingCall, Sessions, identity_hash};
use crate::config::RpcEndpoint;
use crate::mesh::SessionRef;
use crate::protocol::disconnect::Close;
use crate::protocol::rpc::{
    CommandResponse, ConnectResponse, RpcDecodeError, RpcStatus, decode_command_response,
    decode_connect_response,
};
use crate::rpc::RpcError;
use crate::session::{CallPurpose, Context, Session, Step};
use crate::shard::calls::{Call, CallHandle};

impl Sessions {
    /// Lets the session decide, then obeys its steps.
    pub(super) fn with_session<R>(
        &mut self,
        slot: u32,
        decide: impl FnOnce(&mut Session, &mut Context<'_>, &mut Vec<Step>) -> R,
    ) -> R {
        let mut steps = std::mem::take(&mut self.steps);
        let mut context = Context {
            auth: &self.config.auth,
            hub: &mut self.hub,
            slot,
            disconnect_mode: self.config.disconnect.mode,
            has_rpc: self.config.rpc.endpoint != RpcEndpoint::None,
        };
        let session = &mut self.connections[slot as usize].session;
        let result = decide(session, &mut context, &mut steps);
        for step in steps.drain(..) {
            self.obey(slot, step);
        }
        self.steps = steps;
        result
    }

    pub(super) fn obey(&mut self, slot: u32, step: Step) {
        match step {
            Step::Send(text) => self.send_text(slot, text),
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
        let connection = &mut self.connections[slot as usize];
        connection.registered = true;
        self.identity_hashes[slot as usize] =
            identity_hash(&self.hasher, connection.session.identifiers());
        self.counters().clients_num.add(1);
    }

    pub(super) fn start_call(&mut self, slot: u32, purpose: CallPurpose) {
        if matches!(purpose, CallPurpose::Connect) {
            self.counters().rpc_call_total.add(1);
        }
        let session = self.session_ref(slot);
        let handle = Rc::new(CallHandle::default());
        self.connections[slot as usize].call = Some(Box::new(PendingCall {
            handle: Rc::clone(&handle),
            unread: Vec::new(),
        }));
        self.actions.push(Action::Call(Call {
            session,
            purpose,
            handle,
            queued: Instant::now(),
        }));
    }

    /// What to send for a call: the sid and the whole body; `None` when its session has ended.
    pub fn call_request(
        &self,
        session: SessionRef,
        purpose: &CallPurpose,
    ) -> Option<(Box<str>, Vec<u8>)> {
        let connection = self.connections.get(session.slot as usize)?;
        if connection.generation != session.generation || !connection.is_open() {
            return None;
        }
        let protocol = &connection.session;
        let body = protocol.call_body(&self.hub, session.slot, purpose);
        Some((protocol.sid().into(), body))
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
        let unread = connection
            .call
            .take()
            .map_or_else(Vec::new, |call| call.unread);
        connection.session.deadlines.command_ended();
        self.set_timer(slot);
        self.apply_result(slot, purpose, result);
        self.resume_input(slot, unread);
    }

    fn apply_result(&mut self, slot: u32, purpose: CallPurpose, result: Result<Vec<u8>, RpcError>) {
        let record = controller_record(&purpose);
        let answered = match (&purpose, result) {
            (_, Err(error)) => Err(error.to_string()),
            (CallPurpose::Connect, Ok(body)) => self.apply_connect(slot, &body),
            (_, Ok(body)) => self.apply_command(slot, purpose, &body),
        };
        match (answered, record) {
            (Ok(()), _) => {}
            (Err(error), CONNECT_RECORD) => self.fail_connect(slot, &error),
            (Err(error), _) => {
                self.counters().failed_client_msg_total.add(1);
                tracing::warn!(
                    context = "node",
                    sid = self.sid(slot),
                    shard = self.shard,
                    error,
                    "failed to handle incoming message"
                );
            }
        }
    }

    /// `Err`: what to log when the answer says ERROR or cannot be read.
    fn apply_connect(&mut self, slot: u32, body: &[u8]) -> Result<(), String> {
        let response: ConnectResponse = self.decoded(decode_connect_response(body))?;
        self.log_response(slot, CONNECT_RECORD, &response);
        if response.status == RpcStatus::Error {
            return Err(response.error_msg);
        }
        self.with_session(slot, |session, context, steps| {
            session.on_connect_response(context, response, steps);
        });
        Ok(())
    }

    fn apply_command(
        &mut self,
        slot: u32,
        purpose: CallPurpose,
        body: &[u8],
    ) -> Result<(), String> {
        let response: CommandResponse = self.decoded(decode_command_response(body))?;
        self.log_response(slot, controller_record(&purpose), &response);
        if response.status == RpcStatus::Error {
            return Err(response.error_msg);
        }
        self.with_session(slot, |session, context, steps| {
            session.on_command_response(context, purpose, response, steps);
        });
        Ok(())
    }

    /// A 200 that cannot be read is an RPC error too.
    fn decoded<T>(&self, decoded: Result<T, RpcDecodeError>) -> Result<T, String> {
        decoded.map_err(|error| {
            self.counters().rpc_error_total.add(1);
            error.to_string()
        })
    }

    fn fail_connect(&mut self, slot: u32, error: &str) {
        tracing::error!(
            context = "ws",
            sid = self.sid(slot),
            shard = self.shard,
            error,
            "WebSocket session failed"
        );
        self.begin_close(slot, Some(Close::AUTH_ERROR), Cause::Error);
    }

    fn log_response(&self, slot: u32, record: &'static str, response: &dyn Debug) {
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            ?response,
            "{record}"
        );
    }
}

/// The log record of an answer to Connect.
const CONNECT_RECORD: &str = "controller authenticate";

fn controller_record(purpose: &CallPurpose) -> &'static str {
    match purpose {
        CallPurpose::Connect => CONNECT_RECORD,
        CallPurpose::Subscribe { .. } => "controller subscribe",
        CallPurpose::Unsubscribe { .. } => "controller unsubscribe",
        CallPurpose::Message { .. } => "controller perform",
    }
}

//! Carries out what a session decides: replies, calls to the app, publications, the end.

use std::fmt::Display;
use std::rc::Rc;

use super::closing::Cause;
use super::connection::PendingCall;
use super::{Action, Sessions};
use crate::config::{BrokerAdapter, RpcEndpoint};
use crate::protocol::disconnect::Close;
use crate::protocol::reply::Reply;
use crate::session::{Context, Question, Session, Step};
use crate::shard::calls::{Call, CallHandle};
use crate::shard::notices::Notice;

impl Sessions {
    /// Lets the session decide, then carries out its steps. Only a decision that may add subscriptions needs the room for
    /// them and the number of messages that arrived before them.
    pub(super) fn with_session<R>(
        &mut self,
        slot: u32,
        may_subscribe: bool,
        decide: impl FnOnce(&mut Session, &mut Context<'_>, &mut Vec<Step>) -> R,
    ) -> R {
        let mut steps = std::mem::take(&mut self.steps);
        let connection = &mut self.table.connections[slot as usize];
        let mut room_bytes = 0;
        if may_subscribe {
            self.hub.set_arrived(self.inbox.arrived());
            room_bytes = connection.subscription_room(&self.common.bounds);
        }
        let mut context = Context {
            room_bytes,
            memory_is_full: self.common.budget.is_full(),
            auth: &self.common.config.auth,
            hub: &mut self.hub,
            slot,
            disconnect_mode: self.common.config.disconnect.mode,
            has_rpc: self.common.config.rpc.endpoint != RpcEndpoint::None,
            has_broker: self.common.config.broker.adapter != BrokerAdapter::None,
        };
        let session = &mut connection.session;
        let before = session.own_bytes();
        let result = decide(session, &mut context, &mut steps);
        let after = session.own_bytes();
        self.common.recharge(before, after);
        if may_subscribe {
            self.charge_hub();
        }
        if !self.holdbacks.is_empty() {
            self.drop_held_back_of_ended(slot);
        }
        for step in steps.drain(..) {
            self.carry_out(slot, step);
        }
        self.steps = steps;
        result
    }

    /// Carries out one step.
    fn carry_out(&mut self, slot: u32, step: Step) {
        match step {
            Step::Send(reply) => {
                self.send_reply(slot, &reply);
                // The client has asked for nothing. A restored one waits for no more history of this subscription.
                if let Reply::ConfirmHistory { identifier } = &reply {
                    self.release_held_back(slot, identifier, None);
                }
            }
            Step::Ask(question) => self.start_call(slot, question),
            Step::AskBroker(question) => self.ask_broker(slot, question),
            Step::Publish(publication) => self.actions.push(Action::Publish(publication)),
            Step::Register => self.register(slot),
            Step::Close(close) => {
                let cause = self.close_cause(&close);
                self.begin_close(slot, Some(close), cause);
            }
        }
    }

    fn close_cause(&self, close: &Close) -> Cause {
        if *close == Close::AUTH_FAILED {
            self.common.counters().failed_auths_total.add(1);
            Cause::Auth
        } else {
            Cause::Error
        }
    }

    /// Counts the session as authenticated and registers its connection identifiers.
    fn register(&mut self, slot: u32) {
        let connection = &self.table.connections[slot as usize];
        let identifiers = connection.session.identifiers();
        self.table.identities.register(slot, identifiers);
        if connection.session.is_extended() && self.kept.is_some() {
            self.sids.add(slot, |slot| self.table.sid(slot));
        }
        self.common.counters().clients_num.add(1);
    }

    /// Begins a call to the app. Nothing is read from the client until the answer is there.
    fn start_call(&mut self, slot: u32, question: Question) {
        if matches!(question, Question::Connect) {
            self.common.counters().rpc_call_total.add(1);
        }
        let session = self.table.session_ref(slot);
        let handle = CallHandle::new(&question);
        let charge = self.common.budget.hold_anyway(question.held_bytes());
        let connection = &mut self.table.connections[slot as usize];
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

    /// Adjusts the charge for the hub after subscriptions may have changed. Whether there was room was checked for each
    /// subscription before.
    pub(super) fn charge_hub(&mut self) {
        let held = self.hub.held_bytes();
        self.common.recharge(self.hub_charged, held);
        self.hub_charged = held;
    }

    /// Logs a session that gets no welcome although its client did nothing wrong.
    pub(super) fn log_failed_session(&self, slot: u32, error: &dyn Display) {
        if let Some(admitted) = self.common.notices.admit(Notice::SessionFailed) {
            tracing::error!(
                context = "ws",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                %error,
                left_out = admitted.left_out(),
                "{} session failed",
                self.table.connections[slot as usize].format.transport()
            );
        }
    }
}

//! What continues when a client has left while a call about it was under way.
//!
//! The app may still have accepted or subscribed the client, and then it must be told that the session has ended. So the
//! server waits for the answer, and the Disconnect call contains what it would contain if the session had lived until then.

use crate::config::DisconnectMode;
use crate::hub::Hub;
use crate::protocol::rpc::{self, RpcAnswer, RpcStatus};
use crate::session::{DisconnectCall, Session};

/// A session without a client, kept until the call that is under way has its answer.
#[derive(Debug)]
pub struct Departed {
    session: Session,
    subscriptions: Vec<Box<str>>,
}

impl Session {
    /// Takes the session out. Its sid stays behind, for the log.
    pub fn depart(&mut self, hub: &Hub, slot: u32) -> Departed {
        self.write_all_marks_out(hub, slot);
        let left = Session::new(&super::SessionSettings {
            sid: self.sid(),
            env: "",
            deadlines: self.deadlines,
            extended: self.is_extended(),
        });
        Departed {
            session: std::mem::replace(self, left),
            subscriptions: hub.identifiers(slot).into_iter().map(Into::into).collect(),
        }
    }
}

impl Departed {
    /// Connect was answered. Source: contract/websocket.md §4.
    pub fn after_connect(
        mut self,
        answer: &RpcAnswer,
        mode: DisconnectMode,
    ) -> Option<DisconnectCall> {
        if answer.status == RpcStatus::Success {
            self.session.set_identifiers(&answer.identifiers);
            self.session.authenticated = true;
            self.session.note_rpc_answer(mode);
            self.session.merge_cstate(&answer.cstate);
        }
        self.disconnect_call()
    }

    /// A subscribe was answered.
    pub fn after_subscribe(
        mut self,
        identifier: &str,
        answer: &RpcAnswer,
        mode: DisconnectMode,
    ) -> Option<DisconnectCall> {
        if answer.status != RpcStatus::Error {
            self.session.note_rpc_answer(mode);
            self.session.merge_cstate(&answer.cstate);
        }
        if answer.status == RpcStatus::Success {
            self.subscriptions.push(identifier.into());
            self.session.merge_istate(identifier, &answer.istate);
        }
        self.disconnect_call()
    }

    /// The Disconnect call for the state that the session has now, if one is owed.
    pub fn disconnect_call(mut self) -> Option<DisconnectCall> {
        if !self.session.owes_disconnect() {
            return None;
        }
        let identifiers: Vec<&str> = self.subscriptions.iter().map(|it| &**it).collect();
        Some(self.session.part(rpc::encode_subscriptions(&identifiers)))
    }
}

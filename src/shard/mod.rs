//! One pinned thread and everything it owns: listeners, sessions, subscriptions, RPC connections.
//!
//! The tasks of a shard share it as `Rc<Shard>`. They borrow state for one turn and never across an await.

mod answers;
mod broadcasts;
mod calls;
mod console;
mod disconnects;
pub(crate) mod http;
mod inbox;
mod long_work;
/// Public because the benches use it too.
pub mod message;
mod notices;
mod polls;
// Public because the benches measure it.
pub mod outbox;
/// Public because the benches measure it.
pub mod publisher;
mod reclaim;
mod run;
pub(crate) mod sampling;
/// Public because the benches make turns themselves.
pub mod sessions;
mod shutdown;
mod signal;
mod slow_calls;
mod spread;
mod sweeping;
mod timers;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::config::Config;
use crate::hub::Interest;
use crate::mesh::{ShardBudget, ShardId};
use crate::metrics::{Metrics, ShardMetrics};
use crate::net::tls::ServerTls;
use crate::net::{TcpSocket, Timeouts, Yields};
use crate::rpc::RpcClient;
use crate::shard::answers::SentAnswer;
use crate::shard::calls::CallQueue;
use crate::shard::console::Console;
use crate::shard::disconnects::{DisconnectQueue, Forwarding};
use crate::shard::http::listener::ListenerRules;
use crate::shard::long_work::LongWork;
use crate::shard::message::{ControlEvent, PublishMessage, ShardInbox, ShardMesh};
use crate::shard::notices::Notices;
use crate::shard::publisher::Publisher;
pub use crate::shard::run::{BrokerSetup, ShardSetup, run};
use crate::shard::sessions::{Action, Sessions};
pub use crate::shard::shutdown::PublicationsEnd;
use crate::shard::shutdown::Shutdown;
use crate::shard::signal::{Signal, Stop};
use crate::shard::slow_calls::SlowCalls;

/// What the tasks of a shard share.
pub struct Shard {
    pub id: ShardId,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub mesh: ShardMesh,
    pub interest: Arc<Interest>,
    pub rpc: Option<Rc<RpcClient>>,
    pub tls: Option<Arc<ServerTls>>,
    pub timeouts: Rc<Timeouts>,
    /// Memory charged for clients and requests.
    pub budget: Rc<ShardBudget>,
    inbox: Rc<ShardInbox>,
    control: Sender<ControlEvent>,
    yields: Rc<Yields>,
    sessions: RefCell<Sessions>,
    calls: CallQueue,
    disconnects: DisconnectQueue,
    console: Console,
    publisher: Publisher,
    long_work: LongWork,
    /// For warnings about clients that have no session yet.
    notices: Notices,
    slow_calls: SlowCalls,
    /// The rules of the main listener, for clients that come back from the session table into the HTTP phase.
    main_rules: OnceCell<Rc<ListenerRules>>,
    /// HTTP requests that have begun to arrive and have not been answered completely.
    requests: Cell<usize>,
    /// Disconnect calls that wait for room in the inbox of shard 0.
    forwarding: Forwarding,
    /// A turn has left sessions that wait for a write.
    unflushed: Signal,
    /// A turn has left sessions that can be served at once, an answer waits for one, or there are messages again.
    unserved: Signal,
    /// Until when the task of the timers sleeps; `None` while it runs.
    timer_at: Cell<Option<Instant>>,
    /// A turn has set a timer that is due before that.
    earlier_timer: Signal,
    accept_stop: Stop,
    shutdown: Rc<Shutdown>,
}

impl Shard {
    pub fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.id]
    }

    fn tell_control(&self, event: ControlEvent) {
        // The control thread outlives the shards.
        let _ = self.control.send(event);
    }

    /// Makes one turn of the sessions. It begins with the messages that wait in the inbox.
    fn turn<R>(self: &Rc<Self>, change: impl FnOnce(&mut Sessions) -> R) -> R {
        let mut sessions = self.sessions.borrow_mut();
        // What arrives from here on is taken by this turn, or by the next one without a wake-up.
        self.inbox.stay_awake();
        let result = sessions.turn(
            Instant::now(),
            |sessions| {
                inbox::drain(self, sessions);
                let result = change(sessions);
                self.deliver_whispers(sessions);
                result
            },
            |action| self.perform(action),
        );
        if sessions.has_unflushed() {
            self.unflushed.notify();
        }
        if !self.inbox.rest() || sessions.has_more() || sessions.is_fanning_out() {
            self.unserved.notify();
        }
        if let Some(timer_at) = self.timer_at.get()
            && sessions.next_tick_at().is_some_and(|at| at < timer_at)
        {
            self.timer_at.set(None);
            self.earlier_timer.notify();
        }
        drop(sessions);
        self.report_drained();
        result
    }

    /// Publishes what clients have whispered in this turn, and takes it from the inbox at once if it is for this shard too.
    /// So it is heard with the writes of this turn, without another one.
    fn deliver_whispers(self: &Rc<Self>, sessions: &mut Sessions) {
        if sessions.has_whispers() {
            let actions = sessions.take_actions();
            actions.into_iter().for_each(|action| self.perform(action));
            inbox::drain(self, sessions);
        }
    }

    /// Has the next turn write an answer. Tells what became of it.
    fn send_answer(
        &self,
        socket: TcpSocket,
        bytes: Vec<u8>,
    ) -> impl Future<Output = SentAnswer> + use<> {
        let sent = self.sessions.borrow().send_answer(socket, bytes);
        self.unserved.notify();
        sent
    }

    /// True when a turn has left deliveries for the next ones.
    fn has_deliveries_waiting(&self) -> bool {
        let sessions = self.sessions.borrow();
        sessions.has_unflushed() || sessions.is_fanning_out()
    }

    /// True when there is something to do for sessions without waiting.
    fn has_work(&self) -> bool {
        let sessions = self.sessions.borrow();
        sessions.has_more() || sessions.is_fanning_out() || self.inbox.depth() > 0
    }

    /// When the next timer is due, `latest` at the latest. A turn that sets an earlier one says so.
    fn next_timer_at(&self, latest: Instant) -> Instant {
        let tick = self.sessions.borrow().next_tick_at();
        let at = tick.map_or(latest, |tick| tick.min(latest));
        self.timer_at.set(Some(at));
        at
    }

    /// Counts a request until the guard is dropped; the drain waits for it.
    fn begin_request(self: &Rc<Self>) -> RequestGuard {
        self.requests.set(self.requests.get() + 1);
        RequestGuard {
            shard: Rc::clone(self),
        }
    }

    /// Answers the control thread when the last session has ended, its Disconnect call has been handed to shard 0, and no
    /// HTTP request waits for its answer.
    fn report_drained(&self) {
        if self.forwarding.is_idle()
            && self.requests.get() == 0
            && let Some(done) = self.sessions.borrow_mut().take_drained()
        {
            // The control thread no longer listens when the drain has run out of time.
            let _ = done.send(self.id);
        }
    }

    /// Does what the sessions ask for in a turn. They are borrowed during the turn, so nothing here may access them.
    fn perform(self: &Rc<Self>, action: Action) {
        match action {
            Action::Call(call) => self.calls.push(self, call),
            Action::Canceled(handle) => self.calls.on_canceled(self, &handle),
            Action::Watch => console::watch(self),
            Action::Publish(whisper) => {
                let message = PublishMessage::Deliver(Arc::new([whisper]));
                self.publisher.publish(message).or_queued();
            }
            Action::Tell { shard, message } => self.publisher.tell(shard, message),
            Action::TellHome { stream, message } => self.publisher.tell_home(&stream, message),
            Action::AnswerPoll(answer) => http::polling::answer(self, *answer),
            Action::Disconnect(job) if self.id == 0 => self.disconnects.push(self, job),
            Action::Disconnect(job) => self.forwarding.send(self, job),
        }
    }
}

/// An HTTP request under way.
struct RequestGuard {
    shard: Rc<Shard>,
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.shard.requests.set(self.shard.requests.get() - 1);
        self.shard.report_drained();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of the future that a function of five arguments returns.
    fn future_bytes<A, B, C, D, E, F>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// Thousands of these exist at once when all clients reconnect.
    #[test]
    fn what_waits_is_small() {
        assert!(size_of::<calls::Call>() <= 112);
        let bytes = future_bytes(http::serve);
        assert!(bytes <= 1152, "{bytes}");
    }
}

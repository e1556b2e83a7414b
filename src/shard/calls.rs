//! The calls to the app that sessions of this shard wait for.
//!
//! The limiter of the process has a number of slots. This queue runs at most twice as many calls as tasks, each with its
//! body and its timers: one task per slot that holds it, and one that waits for it. So a slot that becomes free always finds
//! a live call waiting, and goes to a Disconnect call only when there is none.
//!
//! All other calls wait here in order, and such a call holds only its question. After a restart of the app the calls of all
//! sessions wait at once; so many tasks would fragment the heap, because their memory lies between allocations that live
//! longer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use crate::mesh::SessionRef;
use crate::protocol::rpc::{RpcAnswer, decode_answer};
use crate::rpc::{CallTimes, Method, Priority, RpcError};
use crate::session::{Departed, Question};
use crate::shard::Shard;
use crate::shard::signal::{Signal, unless};
use crate::shard::slow_calls::FinishedCall;

/// The queue may hold this many cancelled calls, or half of its length if that is more, before they are removed.
const CANCELED_KEPT: usize = 64;

/// What a session and its call share.
pub struct CallHandle {
    times: CallTimes,
    /// The answer is needed even when the session has ended.
    outlives_session: bool,
    canceled: Cell<bool>,
    cancellation: Signal,
    /// The call is in the queue and has no task yet.
    waits: Cell<bool>,
    /// The session, if it ended before the call did.
    departed: Cell<Option<Box<Departed>>>,
}

impl CallHandle {
    /// For a call that is requested now.
    pub fn new(question: &Question) -> Rc<Self> {
        Rc::new(Self {
            times: CallTimes::since(Instant::now()),
            outlives_session: question.outlives_session(),
            canceled: Cell::new(false),
            cancellation: Signal::default(),
            waits: Cell::new(false),
            departed: Cell::new(None),
        })
    }

    /// The app may be working on the call already, so it must get a Disconnect call in the end.
    pub fn must_end(&self) -> bool {
        self.outlives_session && self.times.is_sent()
    }

    /// The session has ended; the call continues for what is left of it.
    pub fn leave_behind(&self, departed: Departed) {
        self.departed.set(Some(Box::new(departed)));
    }

    /// As if the request had been sent.
    #[cfg(test)]
    pub fn note_sent(&self) {
        self.times.note_sent();
    }

    /// What is left of the session, if it ended before its call.
    pub fn take_departed(&self) -> Option<Departed> {
        self.departed.take().map(|departed| *departed)
    }

    /// The session has ended and does not need the answer.
    pub fn cancel(&self) {
        self.canceled.set(true);
        self.cancellation.notify();
    }

    pub fn is_canceled(&self) -> bool {
        self.canceled.get()
    }
}

/// A call that has to be made.
pub struct Call {
    pub session: SessionRef,
    pub question: Question,
    pub handle: Rc<CallHandle>,
}

/// After a restart of the app one waits for each session.
const CALL_BYTES: usize = 64;
const _: () = assert!(size_of::<Call>() == CALL_BYTES);

/// One shard's calls.
pub struct CallQueue {
    waiting: RefCell<VecDeque<Call>>,
    /// Cancelled calls among the waiting ones.
    canceled: Cell<usize>,
    /// Tasks that make calls.
    tasks: Cell<usize>,
    tasks_max: usize,
}

/// Tasks for each slot of the limiter: one call that holds the slot and one that waits for it.
const TASKS_PER_SLOT: usize = 2;

impl CallQueue {
    /// For a limit of `slots` concurrent calls.
    pub fn new(slots: usize) -> Self {
        Self {
            waiting: RefCell::default(),
            canceled: Cell::new(0),
            tasks: Cell::new(0),
            tasks_max: slots * TASKS_PER_SLOT,
        }
    }

    /// Makes a call as soon as its turn comes.
    pub fn push(&self, shard: &Rc<Shard>, call: Call) {
        if self.tasks.get() < self.tasks_max {
            self.tasks.set(self.tasks.get() + 1);
            monoio::spawn(work(Rc::clone(shard), call));
            return;
        }
        call.handle.waits.set(true);
        shard.counters().rpc_pending_num.add(1);
        self.waiting.borrow_mut().push_back(call);
    }

    /// Notes that a call's session has ended.
    pub fn on_canceled(&self, shard: &Shard, handle: &CallHandle) {
        if !handle.waits.take() {
            return;
        }
        let counters = shard.counters();
        counters.rpc_pending_num.sub(1);
        counters.rpc_canceled_total.add(1);
        self.canceled.set(self.canceled.get() + 1);
        let mut waiting = self.waiting.borrow_mut();
        if self.canceled.get() > CANCELED_KEPT.max(waiting.len() / 2) {
            waiting.retain(|call| !call.handle.is_canceled());
            self.canceled.set(0);
        }
    }

    fn pop(&self, shard: &Shard) -> Option<Call> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(call) = waiting.pop_front() {
            if waiting.is_empty() {
                waiting.shrink_to_fit();
            }
            if call.handle.is_canceled() {
                self.canceled.set(self.canceled.get() - 1);
                continue;
            }
            call.handle.waits.set(false);
            shard.counters().rpc_pending_num.sub(1);
            return Some(call);
        }
        None
    }
}

/// Makes one call after the other while calls wait.
async fn work(shard: Rc<Shard>, first: Call) {
    let mut next = Some(first);
    while let Some(call) = next {
        make(&shard, call).await;
        next = shard.calls.pop(&shard);
    }
    shard.calls.tasks.set(shard.calls.tasks.get() - 1);
}

async fn make(shard: &Rc<Shard>, call: Call) {
    let Call {
        session,
        question,
        handle,
    } = call;
    let sid = shard.sessions.borrow().call_sid(session);
    // A session requests calls only when RPC is configured, and one that has ended meanwhile needs no answer.
    let (Some(rpc), Some(sid)) = (&shard.rpc, sid) else {
        return;
    };
    let method = match question {
        Question::Connect => Method::Connect,
        _ => Method::Command,
    };
    let result = {
        let charge = Cell::new(None);
        let body = || {
            let sessions = shard.sessions.borrow();
            let request = sessions.request(session, &question);
            let body = request.ok_or(RpcError::Canceled)?.json();
            let charged = shard.budget.hold(body.len()).ok_or(RpcError::NoMemory)?;
            charge.set(Some(charged));
            Ok(body)
        };
        let answer = pin!(rpc.call_timed(method, &sid, body, Priority::Live, &handle.times));
        unless(pin!(handle.cancellation.notified()), answer).await
    };
    shard.slow_calls.note(&FinishedCall {
        times: &handle.times,
        method,
        sid: &sid,
        command: question.command(),
    });
    let result = result.unwrap_or(Err(RpcError::Canceled));
    let result = decoded(shard, &sid, &question, result);
    match handle.take_departed() {
        Some(departed) => {
            shard.turn(|sessions| sessions.on_late_result(departed, &question, result))
        }
        None => shard.turn(|sessions| sessions.on_call_result(session, question, result)),
    }
}

/// The answer, or the error that stands in its place.
fn decoded(
    shard: &Shard,
    sid: &str,
    question: &Question,
    result: Result<Vec<u8>, RpcError>,
) -> Result<RpcAnswer, RpcError> {
    let (body, answer) = match result {
        Ok(body) => {
            let answer = decode_answer(&body).map_err(RpcError::from);
            (Some(body), answer)
        }
        Err(error) => (None, Err(error)),
    };
    // Logged exactly as it came: operators search the log for a JSON field.
    tracing::debug!(
        context = "node",
        sid,
        shard = shard.id,
        response = body.as_deref().map(String::from_utf8_lossy).as_deref(),
        err = answer.as_ref().err().map(tracing::field::display),
        "{}",
        controller_record(question)
    );
    answer
}

fn controller_record(question: &Question) -> &'static str {
    match question {
        Question::Connect => "controller authenticate",
        Question::Subscribe { .. } => "controller subscribe",
        Question::Unsubscribe { .. } => "controller unsubscribe",
        Question::Message { .. } => "controller perform",
    }
}

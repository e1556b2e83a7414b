//! Work that would block a shard for milliseconds, such as decoding a publication of many megabytes.
//!
//! A thread is started for each piece of work. It runs on the shard's CPU with a lower priority, so it mostly uses the time
//! that the clients leave. One piece runs at a time; the others wait.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;

use crate::os;

/// With this niceness the thread gets about a tenth of the shard's CPU time while both want the CPU.
const NICENESS: i32 = 10;

/// The long work of one shard.
#[derive(Default)]
pub struct LongWork {
    /// A thread is running.
    busy: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// What a thread leaves behind when it is done.
struct Outcome<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl LongWork {
    /// Waits for earlier work, then until the thread is done.
    ///
    /// # Errors
    /// When no thread can be started.
    ///
    /// # Cancel safety
    /// When the caller drops this future, the work still runs to its end and its result is dropped.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let _turn = self.turn().await;
        let outcome = Arc::new(Mutex::new(Outcome {
            value: None,
            waker: None,
        }));
        let result = Arc::clone(&outcome);
        thread::Builder::new()
            .name("long-work".to_owned())
            .spawn(move || {
                // If this fails, the work is done all the same, with the shard's own priority.
                let _ = os::cpu::make_way(NICENESS);
                let value = work();
                let waker = {
                    let mut outcome = lock(&result);
                    outcome.value = Some(value);
                    outcome.waker.take()
                };
                waker.inspect(Waker::wake_by_ref);
            })?;
        let value = poll_fn(|context| {
            let mut outcome = lock(&outcome);
            match outcome.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    outcome.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        });
        Ok(value.await)
    }

    async fn turn(&self) -> Turn<'_> {
        poll_fn(|context| {
            if self.busy.replace(true) {
                self.waiting.borrow_mut().push(context.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Turn(self))
        })
        .await
    }
}

/// The right to run a thread.
struct Turn<'a>(&'a LongWork);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // One of them gets the turn and the others wait again. Waking all is cheap: few publications of this size come at
        // one time.
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(outcome: &Mutex<Outcome<T>>) -> std::sync::MutexGuard<'_, Outcome<T>> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

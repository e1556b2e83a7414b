//! Work that would keep a shard busy for milliseconds, such as decoding a publication of many megabytes.
//!
//! It is done on a thread that exists for this one piece of work, at the shard's CPU and behind the shard: as much of it as
//! the clients leave time for. One piece at a time; who comes meanwhile waits.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;

use crate::os;

/// The thread gets a tenth of what the shard gets while both want the CPU.
const NICENESS: i32 = 10;

/// The long work of one shard.
#[derive(Default)]
pub struct LongWork {
    /// A thread is at work.
    busy: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

/// What a thread leaves when it is done.
struct Outcome<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl LongWork {
    /// Waits for the work before it, and until the thread is done.
    ///
    /// # Errors
    /// When no thread can be started.
    ///
    /// # Cancel safety
    /// Work whose waiter is gone is done to its end, and what it gives is thrown away.
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
                // Without it the work is done all the same, and the shard shares its CPU.
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

/// The right to have a thread at work.
struct Turn<'a>(&'a LongWork);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // One of them gets the turn, the others wait again: there are as many as publications of this size at one time.
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

fn lock<T>(outcome: &Mutex<Outcome<T>>) -> std::sync::MutexGuard<'_, Outcome<T>> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The limit on accepted sockets (`--max-conn`), shared by the shards that listen on one port.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Counts the sockets of one listener over all shards.
///
/// A shard asks for a permit only when a connection waits in its own queue, so that no shard sits on one.
pub struct ConnectionLimit {
    max: usize,
    used: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl ConnectionLimit {
    /// At most `max` sockets at once.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: AtomicUsize::new(0),
            waiting: Mutex::new(Vec::new()),
        })
    }

    /// Takes a permit if one is free.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let taken = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                (used < self.max).then_some(used + 1)
            });
        taken.ok().map(|_| Permit {
            limit: Arc::clone(self),
        })
    }

    /// Waits for a permit.
    ///
    /// # Cancel safety
    /// A permit is taken only by the poll that returns it.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        poll_fn(|context| {
            if let Some(permit) = self.try_acquire() {
                return Poll::Ready(permit);
            }
            self.wakers().push(context.waker().clone());
            // One may have come back between the look and the registration.
            match self.try_acquire() {
                Some(permit) => Poll::Ready(permit),
                None => Poll::Pending,
            }
        })
        .await
    }

    fn wakers(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to hold one socket; dropping it gives the right back.
pub struct Permit {
    limit: Arc<ConnectionLimit>,
}

impl Permit {
    /// Whether all places are taken, so that clients may wait for this one.
    pub fn is_wanted(&self) -> bool {
        self.limit.used.load(Ordering::SeqCst) >= self.limit.max
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.used.fetch_sub(1, Ordering::SeqCst);
        for waker in self.limit.wakers().drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_run_out_and_come_back() {
        let limit = ConnectionLimit::new(2);
        let first = limit.try_acquire().expect("free");
        assert!(!first.is_wanted());
        let second = limit.try_acquire().expect("free");
        assert!(first.is_wanted() && second.is_wanted());
        assert!(limit.try_acquire().is_none());
        drop(first);
        let third = limit.try_acquire().expect("came back");
        assert!(limit.try_acquire().is_none());
        drop((second, third));
        assert_eq!(limit.used.load(Ordering::SeqCst), 0);
    }
}

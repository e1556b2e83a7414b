//! How many client sockets may exist: on one listener (`--max-conn`), and in the whole process (its limit on open files).
//!
//! Clients must not use up all descriptors: calls to the app, name lookups and files always need some. So no connection is
//! accepted while fewer descriptors than the reserve are free, and clients wait in the kernel's queue.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Counts the sockets of all listeners of the process.
#[derive(Default)]
pub struct ClientSockets {
    used: AtomicUsize,
    /// A shard waits for a permit. Most sockets are closed while none waits, and then no lock is taken.
    has_waiting: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

/// Counts the sockets of one listener over all shards.
///
/// A shard asks for a permit only when a connection waits in its own queue, so no shard holds a permit that it does not use.
pub struct ConnectionLimit {
    /// Of this listener.
    max: usize,
    used: AtomicUsize,
    process: Arc<ClientSockets>,
    /// Of the process, as far as this listener may use them.
    process_max: usize,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `--max-conn` is reached.
    Listener,
    /// The descriptors for clients are used up.
    Process,
}

impl ClientSockets {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if self.has_waiting.swap(false, Ordering::SeqCst) {
            for waker in self.waiting().drain(..) {
                waker.wake();
            }
        }
    }
}

impl ConnectionLimit {
    /// At most `max` sockets at a time (0 = no limit), and none while the process has `process_max`.
    pub fn new(max: usize, process: Arc<ClientSockets>, process_max: usize) -> Arc<Self> {
        Arc::new(Self {
            max: if max == 0 { usize::MAX } else { max },
            used: AtomicUsize::new(0),
            process,
            process_max,
        })
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn try_acquire(self: &Arc<Self>) -> Result<Permit, Full> {
        if !take(&self.used, self.max) {
            return Err(Full::Listener);
        }
        if !take(&self.process.used, self.process_max) {
            self.used.fetch_sub(1, Ordering::SeqCst);
            return Err(Full::Process);
        }
        Ok(Permit {
            limit: Arc::clone(self),
        })
    }

    /// Waits for a permit.
    ///
    /// # Cancel safety
    /// A permit is taken only by the poll that returns it.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        poll_fn(|context| {
            if let Ok(permit) = self.try_acquire() {
                return Poll::Ready(permit);
            }
            self.process.waiting().push(context.waker().clone());
            self.process.has_waiting.store(true, Ordering::SeqCst);
            // A permit may have come back after the first try and before the registration.
            match self.try_acquire() {
                Ok(permit) => Poll::Ready(permit),
                Err(_) => Poll::Pending,
            }
        })
        .await
    }
}

fn take(used: &AtomicUsize, max: usize) -> bool {
    used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
        (used < max).then_some(used + 1)
    })
    .is_ok()
}

/// The right to hold one socket; dropping it gives the right back.
pub struct Permit {
    limit: Arc<ConnectionLimit>,
}

impl Permit {
    /// True when all permits are taken, so that clients may wait for this one.
    pub fn is_wanted(&self) -> bool {
        let limit = &self.limit;
        limit.used.load(Ordering::SeqCst) >= limit.max
            || limit.process.used.load(Ordering::SeqCst) >= limit.process_max
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let process = &self.limit.process;
        self.limit.used.fetch_sub(1, Ordering::SeqCst);
        process.used.fetch_sub(1, Ordering::SeqCst);
        process.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicU32;
    use std::task::{Context, Wake};

    use super::*;

    #[test]
    fn permits_run_out_and_come_back() {
        let limit = ConnectionLimit::new(2, Arc::default(), 100);
        let first = limit.try_acquire().expect("free");
        assert!(!first.is_wanted());
        let second = limit.try_acquire().expect("free");
        assert!(first.is_wanted() && second.is_wanted());
        assert_eq!(limit.try_acquire().err(), Some(Full::Listener));
        drop(first);
        let third = limit.try_acquire().expect("came back");
        assert_eq!(limit.try_acquire().err(), Some(Full::Listener));
        drop((second, third));
        assert_eq!(limit.used.load(Ordering::SeqCst), 0);
        assert_eq!(limit.process.used.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn listeners_share_what_the_process_has() {
        let process = Arc::new(ClientSockets::default());
        let clients = ConnectionLimit::new(0, Arc::clone(&process), 2);
        let requests = ConnectionLimit::new(0, Arc::clone(&process), 3);
        let held = [clients.try_acquire(), clients.try_acquire()];
        assert_eq!(clients.try_acquire().err(), Some(Full::Process));
        let request = requests.try_acquire().expect("its share is larger");
        assert_eq!(requests.try_acquire().err(), Some(Full::Process));
        drop((request, held));
        assert!(clients.try_acquire().is_ok());
        assert_eq!(clients.used.load(Ordering::SeqCst), 0);
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_for_either_limit_is_woken_by_any_socket_that_goes() {
        let process = Arc::new(ClientSockets::default());
        let small = ConnectionLimit::new(1, Arc::clone(&process), 2);
        let other = ConnectionLimit::new(0, Arc::clone(&process), 2);
        let (mine, theirs) = (small.try_acquire(), other.try_acquire());
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut waiting = pin!(small.acquire());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(theirs);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            waiting.as_mut().poll(&mut context).is_pending(),
            "its own limit"
        );
        drop(mine);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        assert_eq!(process.used.load(Ordering::SeqCst), 0, "dropped at once");
    }
}

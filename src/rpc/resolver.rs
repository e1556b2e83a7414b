//! Finds the app's addresses without ever blocking a shard: lookups run on a thread of their own.
//!
//! One per process. All shards that ask while a lookup runs get its answer. The answer is kept for a moment only, because a
//! restarted container may come back under another address; connections are kept much longer, so lookups are rare anyway.

use std::{
    future::Future,
    io,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

/// How long an answer is used again.
const ADDRESSES_KEPT_FOR: Duration = Duration::from_secs(1);

/// The addresses of one host and port.
#[derive(Debug)]
pub(super) struct Resolver {
    host: String,
    port: u16,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Lookups that have ended.
    finished: u64,
    /// The last one's outcome.
    outcome: Option<(Instant, Outcome)>,
    running: bool,
    waiting: Vec<Waker>,
}

/// `io::Error` is not `Clone`, and all who wait get the same answer.
type Outcome = Result<Arc<[SocketAddr]>, (io::ErrorKind, String)>;

/// Resolves to the addresses. Dropping it leaves the lookup to the others.
#[derive(Debug)]
pub(super) struct Lookup {
    resolver: Arc<Resolver>,
    /// The answer is good once this many lookups have ended.
    finished_min: u64,
}

impl Resolver {
    /// For a host that is a name, or for addresses that need no lookup.
    pub fn new(host: &str, port: u16) -> Arc<Resolver> {
        Arc::new(Resolver {
            host: host.to_owned(),
            port,
            state: Mutex::new(State::default()),
        })
    }

    /// The addresses if they are known at `now`.
    pub fn known(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        match &self.lock().outcome {
            Some((at, Ok(addresses)))
                if now.saturating_duration_since(*at) < ADDRESSES_KEPT_FOR =>
            {
                Some(Arc::clone(addresses))
            }
            _ => None,
        }
    }

    /// Joins the running lookup or starts one.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn lookup(self: &Arc<Self>) -> io::Result<Lookup> {
        let mut state = self.lock();
        if !state.running {
            let resolver = Arc::clone(self);
            thread::Builder::new()
                .name("rpc-resolver".to_owned())
                .spawn(move || resolver.run())?;
            state.running = true;
        }
        Ok(Lookup {
            resolver: Arc::clone(self),
            finished_min: state.finished + 1,
        })
    }

    /// The lookup itself, on its own thread.
    fn run(&self) {
        let outcome = match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(addresses) => Ok(addresses.collect()),
            Err(error) => Err((error.kind(), error.to_string())),
        };
        let waiting = {
            let mut state = self.lock();
            state.finished += 1;
            state.running = false;
            state.outcome = Some((Instant::now(), outcome));
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Lookup {
    type Output = io::Result<Arc<[SocketAddr]>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.resolver.lock();
        match &state.outcome {
            Some((_, outcome)) if state.finished >= self.finished_min => Poll::Ready(
                outcome
                    .clone()
                    .map_err(|(kind, text)| io::Error::new(kind, text)),
            ),
            _ => {
                if !state
                    .waiting
                    .iter()
                    .any(|waker| waker.will_wake(context.waker()))
                {
                    state.waiting.push(context.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, task::Wake};

    use super::*;

    struct Notify(mpsc::Sender<()>);

    impl Wake for Notify {
        fn wake(self: Arc<Self>) {
            self.0.send(()).expect("the test waits for it");
        }
    }

    fn wait(mut lookup: Lookup) -> io::Result<Arc<[SocketAddr]>> {
        let (sender, receiver) = mpsc::channel();
        let waker = Waker::from(Arc::new(Notify(sender)));
        loop {
            if let Poll::Ready(result) =
                Pin::new(&mut lookup).poll(&mut Context::from_waker(&waker))
            {
                return result;
            }
            receiver
                .recv_timeout(Duration::from_secs(30))
                .expect("a lookup ends");
        }
    }

    #[test]
    fn a_name_is_looked_up_once_and_kept_for_a_moment() {
        let resolver = Resolver::new("localhost", 3000);
        assert!(resolver.known(Instant::now()).is_none());
        let second = resolver.lookup().unwrap();
        let addresses = wait(resolver.lookup().unwrap()).unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.port() == 3000));
        assert_eq!(wait(second).unwrap(), addresses);
        assert_eq!(resolver.known(Instant::now()), Some(addresses));
        assert!(
            resolver
                .known(Instant::now() + ADDRESSES_KEPT_FOR)
                .is_none()
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_and_is_not_kept() {
        let resolver = Resolver::new("name.invalid", 1);
        assert!(wait(resolver.lookup().unwrap()).is_err());
        assert!(resolver.known(Instant::now()).is_none());
    }
}

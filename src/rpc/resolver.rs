//! Finds the app's addresses without blocking a shard: lookups run on a thread of their own.
//!
//! One instance per process. All shards that ask while a lookup runs get its answer. The answer is kept for a short time
//! only, because a restarted container may come back under another address. Connections are kept much longer, so lookups are
//! rare. After a failed call the answer is not used again, and the address of that call is tried after the others for some
//! time.

use std::{
    future::Future,
    io,
    net::{SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use crate::os::limits::{self, Shortage};

/// How long an answer is used again.
const ADDRESSES_KEPT_FOR: Duration = Duration::from_secs(1);
/// How long an address at which a call failed is tried after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(30);
/// Addresses at which calls failed, at most; one more replaces the oldest.
const SUSPECTS_MAX: usize = 16;

/// Asks for the addresses of a host and port. Blocks.
type Ask = Box<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync>;

/// The addresses of one host and port.
pub(super) struct Resolver {
    host: String,
    port: u16,
    ask: Ask,
    state: Mutex<State>,
    /// True when there are suspects. While it is false an answer need not take the lock.
    has_suspects: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Lookups that have ended.
    finished: u64,
    /// The outcome of the last lookup.
    outcome: Option<(Instant, Outcome)>,
    /// A call has failed since the last outcome.
    doubtful: bool,
    /// Addresses at which calls have failed, and when; the newest is the last.
    suspects: Vec<(SocketAddr, Instant)>,
    running: bool,
    waiting: Vec<Waker>,
}

type Outcome = Result<Arc<[SocketAddr]>, Failure>;

/// `io::Error` is not `Clone`, but several waiters get the same answer.
#[derive(Debug, Clone)]
enum Failure {
    Errno(i32),
    Other(io::ErrorKind, String),
}

impl Failure {
    fn of(error: &io::Error) -> Failure {
        match error.raw_os_error() {
            Some(errno) => Failure::Errno(errno),
            None => Failure::Other(error.kind(), error.to_string()),
        }
    }

    fn is_shortage(&self) -> bool {
        matches!(self, Failure::Errno(errno) if Shortage::of(&io::Error::from_raw_os_error(*errno)).is_some())
    }

    fn into_error(self) -> io::Error {
        match self {
            Failure::Errno(errno) => io::Error::from_raw_os_error(errno),
            Failure::Other(kind, text) => io::Error::new(kind, text),
        }
    }
}

fn ask_the_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// Resolves to the addresses. Dropping it does not stop the lookup, which other calls may wait for.
pub(super) struct Lookup {
    resolver: Arc<Resolver>,
    /// The answer is there when this number of lookups have ended.
    finished_min: u64,
}

impl Resolver {
    /// For a host name, or for an address, which needs no lookup.
    pub fn new(host: &str, port: u16) -> Arc<Resolver> {
        Resolver::asking(host, port, Box::new(ask_the_system))
    }

    /// As [`Self::new`], with another function that looks up names.
    pub fn asking(host: &str, port: u16, ask: Ask) -> Arc<Resolver> {
        Arc::new(Resolver {
            host: host.to_owned(),
            port,
            ask,
            state: Mutex::new(State::default()),
            has_suspects: AtomicBool::new(false),
        })
    }

    /// The addresses if they are known and still valid at `now`.
    pub fn known(&self, now: Instant) -> Option<Arc<[SocketAddr]>> {
        let state = self.lock();
        match &state.outcome {
            Some((at, Ok(addresses)))
                if !state.doubtful && now.saturating_duration_since(*at) < ADDRESSES_KEPT_FOR =>
            {
                Some(Arc::clone(addresses))
            }
            _ => None,
        }
    }

    /// A call has failed, at `address` if it was known: the name must be looked up before the next use.
    pub fn note_failure(&self, address: Option<SocketAddr>, now: Instant) {
        let mut state = self.lock();
        state.doubtful = true;
        if let Some(address) = address {
            state.suspects.retain(|(other, _)| *other != address);
            if state.suspects.len() == SUSPECTS_MAX {
                state.suspects.remove(0);
            }
            state.suspects.push((address, now));
            self.has_suspects.store(true, Ordering::Relaxed);
        }
    }

    /// An app has answered at `address`.
    pub fn note_answer(&self, address: SocketAddr) {
        if !self.has_suspects.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        state.suspects.retain(|(other, _)| *other != address);
        self.has_suspects
            .store(!state.suspects.is_empty(), Ordering::Relaxed);
    }

    /// The addresses in the order in which to try them: those at which calls have failed lately come last, the newest
    /// failure at the end.
    pub fn ordered(&self, addresses: &[SocketAddr], now: Instant) -> Vec<SocketAddr> {
        let mut state = self.lock();
        let suspects = &mut state.suspects;
        suspects.retain(|(_, since)| now.saturating_duration_since(*since) < SUSPECT_FOR);
        let mut ordered = addresses.to_vec();
        ordered.sort_by_key(|address| suspects.iter().position(|(other, _)| other == address));
        ordered
    }

    /// Joins the running lookup or starts one.
    ///
    /// # Errors
    /// No thread can be started, and there is no older answer.
    pub fn lookup(self: &Arc<Self>) -> io::Result<Lookup> {
        let mut state = self.lock();
        let mut finished_min = state.finished + 1;
        if !state.running {
            let resolver = Arc::clone(self);
            let started = thread::Builder::new()
                .name("rpc-resolver".to_owned())
                .spawn(move || resolver.run());
            match started {
                Ok(_) => state.running = true,
                // No thread can be started, so the older answer is used.
                Err(_) if matches!(&state.outcome, Some((_, Ok(_)))) => {
                    finished_min = state.finished;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Lookup {
            resolver: Arc::clone(self),
            finished_min,
        })
    }

    /// The lookup itself, on its own thread.
    fn run(&self) {
        let outcome = match (self.ask)(&self.host, self.port) {
            Ok(addresses) => Ok(addresses.into()),
            // The C library may report an unknown name when it could not open its files.
            Err(error) => Err(Failure::of(
                &limits::shortage_of_descriptors().unwrap_or(error),
            )),
        };
        let waiting = {
            let mut state = self.lock();
            state.finished += 1;
            state.running = false;
            // This server could not ask, so the older answer is better than none.
            let keeps_last = matches!(&outcome, Err(failure) if failure.is_shortage())
                && matches!(&state.outcome, Some((_, Ok(_))));
            if !keeps_last {
                state.doubtful = false;
                state.outcome = Some((Instant::now(), outcome));
            }
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
            Some((_, outcome)) if state.finished >= self.finished_min => {
                Poll::Ready(outcome.clone().map_err(Failure::into_error))
            }
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
    fn after_a_failed_call_the_name_is_looked_up_again() {
        let moved = Arc::new(Mutex::new(1));
        let octet = Arc::clone(&moved);
        let ask = move |_: &str, port| Ok(vec![([127, 0, 0, *octet.lock().unwrap()], port).into()]);
        let resolver = Resolver::asking("web", 80, Box::new(ask));
        let before = wait(resolver.lookup().unwrap()).unwrap();
        *moved.lock().unwrap() = 2;
        assert_eq!(resolver.known(Instant::now()), Some(before));
        resolver.note_failure(None, Instant::now());
        assert_eq!(resolver.known(Instant::now()), None);
        let after = wait(resolver.lookup().unwrap()).unwrap();
        assert_eq!(after[..], [([127, 0, 0, 2], 80).into()]);
        assert_eq!(resolver.known(Instant::now()), Some(after));
    }

    #[test]
    fn what_was_known_is_used_while_this_server_cannot_ask() {
        let short = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&short);
        let ask = move |_: &str, port| match asked.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(libc::EMFILE)),
            false => Ok(vec![([127, 0, 0, 1], port).into()]),
        };
        let resolver = Resolver::asking("web", 80, Box::new(ask));
        short.store(true, Ordering::SeqCst);
        let error = wait(resolver.lookup().unwrap()).unwrap_err();
        assert_eq!(Shortage::of(&error), Some(Shortage::ProcessFiles));
        short.store(false, Ordering::SeqCst);
        let known = wait(resolver.lookup().unwrap()).unwrap();
        short.store(true, Ordering::SeqCst);
        resolver.note_failure(None, Instant::now());
        assert_eq!(wait(resolver.lookup().unwrap()).unwrap(), known);
        assert_eq!(resolver.known(Instant::now()), None, "it is asked again");
    }

    #[test]
    fn addresses_where_calls_have_failed_are_tried_last_for_a_while() {
        let resolver = Resolver::new("web", 80);
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let all: Vec<SocketAddr> = (1..=3).map(address).collect();
        let start = Instant::now();
        let order = |now| {
            let ordered = resolver.ordered(&all, now).into_iter();
            ordered
                .map(|it| all.iter().position(|other| *other == it).unwrap() + 1)
                .collect::<Vec<_>>()
        };
        assert_eq!(order(start), [1, 2, 3]);
        resolver.note_failure(Some(address(2)), start);
        resolver.note_failure(Some(address(1)), start + Duration::from_secs(1));
        assert_eq!(order(start + Duration::from_secs(1)), [3, 2, 1]);
        resolver.note_answer(address(1));
        assert_eq!(order(start + Duration::from_secs(1)), [1, 3, 2]);
        assert_eq!(order(start + SUSPECT_FOR), [1, 2, 3]);
        for last in 4..=255 {
            resolver.note_failure(Some(address(last)), start);
        }
        assert_eq!(resolver.lock().suspects.len(), SUSPECTS_MAX);
    }

    #[test]
    fn an_unknown_name_is_an_error_and_is_not_kept() {
        let resolver = Resolver::new("name.invalid", 1);
        assert!(wait(resolver.lookup().unwrap()).is_err());
        assert!(resolver.known(Instant::now()).is_none());
    }
}

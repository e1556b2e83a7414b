//! A call from start to end: one slot, attempts that the breaker must admit, pauses between them, one result.
//!
//! This file does not look into bodies. `shard` calls it with the bodies that `protocol` has written.
//!
//! Source: `contract/rpc.md` §5 and §7.

use std::{
    cell::Cell,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};

use super::{
    CallTimes, Method, Priority,
    breaker::{Breaker, BreakerStatus},
    connection::{Connection, ExchangeError},
    diagnosis::{TokenSource, Trouble, diagnose},
    error::{ConnectFailure, RpcError, StartError, TlsFailure, TransportError},
    guards::{AdmittedAttempt, Pending, Unfinished},
    health::Health,
    idle::{Age, IdlePolicy},
    limiter::{Limiter, Permit},
    pool::Pool,
    probe::{Finding, PROBE_SID, judge},
    resolver::Resolver,
    response::Response,
    target::{RpcTarget, UrlError, without_secrets},
    tls::{self, TlsError},
};
use crate::{
    config::{RpcConfig, RpcEndpoint},
    metrics::{Metrics, ShardMetrics},
    net::Timeouts,
    os::limits::Shortage,
};

/// Pause before the second attempt; doubled before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Longest pause, reached only when there is no command limit.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(60);
/// Longest time for the check at the start; it has less time if calls have a shorter limit.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(10);

/// What all shards share.
pub struct RpcShared {
    target: RpcTarget,
    limiter: Arc<Limiter>,
    breaker: Breaker,
    health: Health,
    token_source: TokenSource,
    resolver: Arc<Resolver>,
    idle: Arc<IdlePolicy>,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    concurrency: usize,
    /// `None` = no limit.
    request_timeout: Option<Duration>,
    /// `None` = no limit.
    command_timeout: Option<Duration>,
}

impl RpcShared {
    /// Checks the settings. Nothing is sent and no name is looked up yet: the app may start later than this server.
    ///
    /// # Errors
    /// [`StartError`] for a URL or certificate that can never work.
    pub fn new(config: &RpcConfig) -> Result<Arc<RpcShared>, StartError> {
        let RpcEndpoint::Http(url) = &config.endpoint else {
            return Err(StartError::NoEndpoint);
        };
        let bad_url = |cause| StartError::BadUrl {
            url: without_secrets(url),
            cause,
        };
        let token = config.token.as_deref();
        if token.is_some_and(|token| token.bytes().any(|byte| byte.is_ascii_control())) {
            return Err(StartError::BadToken);
        }
        let target = RpcTarget::parse(url, token).map_err(bad_url)?;
        let tls = if target.tls {
            let name = ServerName::try_from(target.host.clone())
                .map_err(|_| bad_url(UrlError::Host(target.host.clone())))?;
            Some((tls::client_config(&config.tls)?, name))
        } else {
            None
        };
        Ok(Arc::new(RpcShared {
            limiter: Limiter::new(config.concurrency),
            breaker: Breaker::new(Instant::now()),
            health: Health::default(),
            token_source: match (token, config.token_derived) {
                (None, _) => TokenSource::Absent,
                (Some(_), true) => TokenSource::Secret,
                (Some(_), false) => TokenSource::Own,
            },
            resolver: Resolver::new(&target.host, target.port),
            idle: IdlePolicy::new(config.concurrency.max(1)),
            tls,
            concurrency: config.concurrency.max(1),
            request_timeout: limit(config.request_timeout),
            command_timeout: limit(config.command_timeout),
            target,
        }))
    }

    /// Calls that may have a slot at a time, over all shards.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Calls that have a slot now, over all shards.
    pub fn running(&self) -> usize {
        self.limiter.running()
    }

    /// The state of the circuit breaker.
    pub fn breaker_status(&self) -> BreakerStatus {
        self.breaker.status(Instant::now())
    }

    /// The URL of `method`, without credentials and query.
    pub fn display_url(&self, method: Method) -> String {
        self.target.display_url(method)
    }
}

/// The calling side of one shard.
pub struct RpcClient {
    shared: Arc<RpcShared>,
    metrics: Arc<Metrics>,
    /// The shard whose counters are used.
    shard: usize,
    timeouts: Rc<Timeouts>,
    pool: Rc<Pool>,
    /// Calls that have begun to use their slots.
    begun: Cell<usize>,
}

/// The slot of a call that has begun.
struct Slot<'a> {
    client: &'a RpcClient,
    permit: Option<Permit>,
}

/// The connection on which an attempt has sent its request; `None` before that.
type InUse = Cell<Option<(Age, SocketAddr)>>;

/// Why an attempt has no body to return.
enum AttemptError {
    /// The call may try again.
    Transport(TransportError),
    /// The call ends with this error.
    Final(RpcError),
}

impl RpcClient {
    /// A client without connections; calls open them. It counts in the metrics of its shard.
    pub fn new(
        shared: Arc<RpcShared>,
        metrics: Arc<Metrics>,
        shard: usize,
        timeouts: Rc<Timeouts>,
    ) -> Rc<RpcClient> {
        shared.idle.add_shard();
        let policy = Arc::clone(&shared.idle);
        let pool = Pool::new(shared.concurrency, policy, Rc::clone(&timeouts));
        Rc::new(RpcClient {
            shared,
            metrics,
            shard,
            timeouts,
            pool,
            begun: Cell::new(0),
        })
    }

    /// What this shard shares with the others.
    pub fn shared(&self) -> &RpcShared {
        &self.shared
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }

    /// Posts `body` to `<base>/<method>` and returns the body of the 200.
    ///
    /// Waits for a slot without a time limit, first come, first served over all shards. Then the command limit begins:
    /// within it, attempts that got no HTTP answer are repeated. `body` is called only when the call has its slot, so a
    /// waiting call holds no body. `times` begins when the call was asked for, and is complete when the call has ended.
    ///
    /// # Errors
    /// [`RpcError`]; also the error that `body` returns.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the call: the slot is given back, the connection is closed if a request was under way,
    /// and the call counts as canceled.
    pub async fn call_timed(
        &self,
        method: Method,
        sid: &str,
        body: impl FnOnce() -> Result<Vec<u8>, RpcError>,
        priority: Priority,
        times: &CallTimes,
    ) -> Result<Vec<u8>, RpcError> {
        let unfinished = Unfinished::new(self.counters());
        let slot = self.slot(priority).await;
        let started = Instant::now();
        let waited = started.saturating_duration_since(times.queued);
        times.waited.set(Some(waited));
        self.counters().rpc_slot_wait_seconds.observe(waited);
        let result = match body() {
            Err(RpcError::Canceled) => return Err(RpcError::Canceled),
            Err(error) => Err(error),
            Ok(body) => {
                let request = self.shared.target.request(method, sid, &body);
                drop(body);
                // The future of the attempts is large, so it is boxed: a call that waits for its slot stays small.
                Box::pin(self.attempts(method, request, started, times)).await
            }
        };
        drop(slot);
        unfinished.finish();
        let ran = started.elapsed();
        times.ran.set(Some(ran));
        self.counters().rpc_duration_seconds.observe(ran);
        match &result {
            Ok(_) => self.note_success(method),
            Err(error) => self.note_failure(method, error),
        }
        result
    }

    /// Asks the app once whether calls can work, and logs the result. This is one request on a connection of its own,
    /// outside of the limiter and the breaker: it delays no client's call and makes none fail.
    pub async fn check(&self) {
        let result = self.probe().await;
        let url = self.shared.display_url(Method::Connect);
        match judge(&result, &url, self.shared.token_source) {
            Finding::Good(text) | Finding::Answers(text) => {
                tracing::info!(context = "rpc", "RPC check: {text}");
            }
            Finding::Trouble(diagnosis) => {
                let health = &self.shared.health;
                health.check_failed(diagnosis.trouble, Instant::now());
                let hope = if diagnosis.may_pass {
                    "; every call of a client tries again"
                } else {
                    ""
                };
                tracing::warn!(context = "rpc", "RPC check: {}{hope}", diagnosis.text);
            }
        }
    }

    /// The status of the app's answer to the check.
    async fn probe(&self) -> Result<u16, RpcError> {
        let shared = &self.shared;
        let request = shared.target.check_request(PROBE_SID);
        let limits = [shared.request_timeout, shared.command_timeout];
        let limit = limits
            .into_iter()
            .flatten()
            .fold(PROBE_TIMEOUT_MAX, Duration::min);
        let exchange = pin!(async {
            let deadline = Instant::now() + limit;
            let mut connection = self.open(Some(deadline)).await?;
            connection.exchange(&request).await
        });
        let url = || shared.display_url(Method::Connect);
        Err(match self.timeouts.within(limit, exchange).await {
            Some(Ok(response)) => return Ok(response.status),
            Some(Err(ExchangeError::Bad(cause))) => RpcError::BadResponse { url: url(), cause },
            Some(Err(ExchangeError::Tls(cause))) => RpcError::Tls { url: url(), cause },
            Some(Err(ExchangeError::NothingReceived(cause) | ExchangeError::Transport(cause))) => {
                RpcError::Unreachable {
                    url: url(),
                    attempts: 1,
                    cause,
                }
            }
            None => RpcError::Timeout { url: url(), limit },
        })
    }

    fn note_success(&self, method: Method) {
        let health = &self.shared.health;
        if !health.is_troubled() {
            return;
        }
        if let Some(recovery) = health.call_succeeded(Instant::now()) {
            tracing::info!(
                context = "rpc",
                failed_calls = recovery.failed_calls,
                seconds = recovery.lasted.as_secs(),
                "RPC calls work: {} answers",
                self.shared.display_url(method)
            );
        }
    }

    fn note_failure(&self, method: Method, error: &RpcError) {
        self.counters().rpc_error_total.add(1);
        let shared = &self.shared;
        let url = shared.display_url(method);
        let Some(diagnosis) = diagnose(error, &url, shared.token_source) else {
            return;
        };
        if diagnosis.trouble == Trouble::Unauthorized {
            self.counters().rpc_unauthorized_total.add(1);
        }
        let health = &shared.health;
        if let Some(admitted) = health.call_failed(diagnosis.trouble, Instant::now()) {
            tracing::warn!(
                context = "rpc",
                left_out = admitted.left_out(),
                "RPC calls fail: {}",
                diagnosis.text
            );
        }
    }

    /// An attempt failed because of this server. The breaker must not count that, but the operator must see it.
    fn note_shortage(&self, cause: &TransportError) {
        self.counters().rpc_shortages_total.add(1);
        let Some(admitted) = self.shared.health.shortage(Instant::now()) else {
            return;
        };
        let advice = cause.shortage().map(Shortage::advice).unwrap_or_default();
        tracing::warn!(
            context = "rpc",
            left_out = admitted.left_out(),
            "RPC calls wait, this server has not what they need: {cause}; {advice}"
        );
    }

    async fn slot(&self, priority: Priority) -> Slot<'_> {
        let limiter = &self.shared.limiter;
        let permit = match limiter.try_acquire(self.shard, priority) {
            Some(permit) => permit,
            None => {
                let waiting = limiter.wait(self.shard, priority);
                let _pending = Pending::new(self.counters());
                waiting.await
            }
        };
        self.begun.set(self.begun.get() + 1);
        Slot {
            client: self,
            permit: Some(permit),
        }
    }

    async fn attempts(
        &self,
        method: Method,
        request: Vec<u8>,
        started: Instant,
        times: &CallTimes,
    ) -> Result<Vec<u8>, RpcError> {
        let deadline = self.shared.command_timeout.map(|limit| started + limit);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let cause = match self.attempt(method, &request, deadline, times).await {
                Ok(body) => return Ok(body),
                Err(AttemptError::Final(error)) => return Err(error),
                Err(AttemptError::Transport(cause)) => cause,
            };
            self.counters().rpc_retries_total.add(1);
            // The resource that this server lacks may be free again soon, so the pause does not grow with the attempts.
            let delay = match cause.shortage() {
                Some(_) => RETRY_DELAY,
                None => retry_delay(attempts),
            };
            if !self.back_off(delay, deadline).await {
                let url = self.shared.display_url(method);
                return Err(RpcError::Unreachable {
                    url,
                    attempts,
                    cause,
                });
            }
        }
    }

    async fn attempt(
        &self,
        method: Method,
        request: &[u8],
        deadline: Option<Instant>,
        times: &CallTimes,
    ) -> Result<Vec<u8>, AttemptError> {
        let now = Instant::now();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let limit = self.shared.request_timeout.into_iter().chain(left).min();
        let attempt =
            AdmittedAttempt::start(&self.shared.breaker, now).map_err(AttemptError::Final)?;
        let in_use = InUse::default();
        let exchange = pin!(self.exchange(request, limit.map(|limit| now + limit), &in_use, times));
        let outcome = self.within(limit, exchange).await;
        self.learn(outcome.as_ref(), in_use.take());

        let url = || self.shared.display_url(method);
        Err(AttemptError::Final(match outcome {
            Some(Ok(response)) => {
                attempt.succeeded();
                if response.status == 200 {
                    return Ok(response.body);
                }
                RpcError::Status {
                    status: response.status,
                }
            }
            Some(Err(ExchangeError::Bad(cause))) => {
                attempt.succeeded();
                RpcError::BadResponse { url: url(), cause }
            }
            Some(Err(ExchangeError::NothingReceived(cause) | ExchangeError::Transport(cause))) => {
                match cause.shortage() {
                    Some(_) => self.note_shortage(&cause),
                    None => attempt.failed(),
                }
                return Err(AttemptError::Transport(cause));
            }
            Some(Err(ExchangeError::Tls(cause))) => {
                attempt.failed();
                RpcError::Tls { url: url(), cause }
            }
            None => {
                attempt.failed();
                self.counters().rpc_timeout_total.add(1);
                RpcError::Timeout {
                    url: url(),
                    limit: limit.unwrap_or_default(),
                }
            }
        }))
    }

    /// Passes on what the outcome of an attempt says about the connections of the same age and about the addresses of the
    /// name.
    fn learn(
        &self,
        outcome: Option<&Result<Response, ExchangeError>>,
        in_use: Option<(Age, SocketAddr)>,
    ) {
        let shared = &self.shared;
        let now = Instant::now();
        let answered = match outcome {
            Some(Err(ExchangeError::NothingReceived(cause) | ExchangeError::Transport(cause)))
                if cause.shortage().is_some() =>
            {
                return;
            }
            Some(Ok(_)) => true,
            Some(Err(ExchangeError::Bad(cause))) => !cause.is_cut(),
            Some(Err(_)) | None => false,
        };
        match in_use {
            Some((age, address)) if answered => {
                shared.idle.answered(age, now);
                shared.resolver.note_answer(address);
            }
            Some((age, address)) => {
                shared.idle.failed(age);
                shared.resolver.note_failure(Some(address), now);
            }
            None => shared.resolver.note_failure(None, now),
        }
    }

    /// One exchange, on an idle connection if there is one. The app may close an idle connection at any time. If it has, the
    /// request is sent again on a new connection, and that does not count as a retry.
    async fn exchange(
        &self,
        request: &[u8],
        deadline: Option<Instant>,
        in_use: &InUse,
        times: &CallTimes,
    ) -> Result<Response, ExchangeError> {
        let use_it = async |mut connection: Connection| {
            in_use.set(Some((connection.age(), connection.address())));
            times.note_sent();
            let result = connection.exchange(request).await;
            if matches!(&result, Ok(response) if response.keep_alive) {
                self.pool.put(connection, Instant::now());
            }
            result
        };
        if let Some(connection) = self.pool.take(Instant::now()) {
            match use_it(connection).await {
                Err(failure @ ExchangeError::NothingReceived(_)) => {
                    self.learn(Some(&Err(failure)), in_use.take());
                }
                result => return result,
            }
        }
        // Connecting is rare and its future is large, so it is boxed.
        let connection = Box::pin(self.open(deadline)).await?;
        use_it(connection).await
    }

    /// Connects to the first address that answers. While more addresses are left, each attempt gets only a share of the
    /// time, so that an address that never answers does not use up the time of the others.
    async fn open(&self, deadline: Option<Instant>) -> Result<Connection, ExchangeError> {
        let shared = &self.shared;
        let age = shared.idle.age();
        let addresses = self.addresses().await?;
        let addresses = shared.resolver.ordered(&addresses, Instant::now());
        let mut failure = None;
        for (index, address) in addresses.iter().enumerate() {
            let others = addresses.len() - index - 1;
            let share = deadline.filter(|_| others > 0).map(|deadline| {
                deadline.saturating_duration_since(Instant::now()) / (others as u32 + 1)
            });
            let opening = pin!(Connection::open(*address, age, shared.tls.clone()));
            let cause = match self.within(share, opening).await {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(TlsError::Protocol(error))) => {
                    return Err(ExchangeError::Tls(TlsFailure::Protocol(error)));
                }
                Some(Err(TlsError::Io(cause))) => cause,
                None => std::io::ErrorKind::TimedOut.into(),
            };
            if Shortage::of(&cause).is_none() {
                shared.resolver.note_failure(Some(*address), Instant::now());
            }
            failure = Some(ConnectFailure {
                address: *address,
                cause,
            });
        }
        let cause = match failure {
            Some(failure) => TransportError::Connect(failure),
            None => self.unresolved(std::io::ErrorKind::NotFound.into()),
        };
        Err(ExchangeError::Transport(cause))
    }

    async fn addresses(&self) -> Result<Arc<[SocketAddr]>, ExchangeError> {
        let shared = &self.shared;
        if let Some(ip) = shared.target.ip() {
            return Ok(Arc::new([SocketAddr::new(ip, shared.target.port)]));
        }
        if let Some(addresses) = shared.resolver.known(Instant::now()) {
            return Ok(addresses);
        }
        let unresolved = |cause| ExchangeError::Transport(self.unresolved(cause));
        shared
            .resolver
            .lookup()
            .map_err(unresolved)?
            .await
            .map_err(unresolved)
    }

    /// `None`: the time limit has passed.
    async fn within<T>(
        &self,
        limit: Option<Duration>,
        work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        match limit {
            Some(limit) => self.timeouts.within(limit, work).await,
            None => Some(work.await),
        }
    }

    /// Sleeps before the next attempt. False: the deadline comes first, so there is no next attempt.
    async fn back_off(&self, delay: Duration, deadline: Option<Instant>) -> bool {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let pause = left.map_or(delay, |left| left.min(delay));
        self.timeouts.sleep(pause).await;
        left.is_none_or(|left| delay < left)
    }

    fn unresolved(&self, cause: std::io::Error) -> TransportError {
        TransportError::Resolve {
            host: self.shared.target.host.clone(),
            cause,
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let client = self.client;
        let begun = client.begun.get() - 1;
        client.begun.set(begun);
        if let Some(permit) = self.permit.take() {
            client.pool.settle(permit.give_back() - begun);
        }
    }
}

/// 0 in the configuration means no limit.
fn limit(configured: Duration) -> Option<Duration> {
    (!configured.is_zero()).then_some(configured)
}

/// The pause after this number of attempts.
fn retry_delay(attempts: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (RETRY_DELAY * (1 << doublings)).min(RETRY_DELAY_MAX)
}

#[cfg(test)]
mod tests;

//! The RPC client alone, against scripted apps that do everything wrong. Every test runs on both monoio drivers.
//!
//! Source of all expected bytes and numbers: `contract/rpc.md` §2, §5, §7.

mod answers;
mod connections;
mod https;
mod limits;
mod requests;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compression, write::GzEncoder};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use ringcable::config::{RpcConfig, RpcEndpoint, RpcTlsConfig};
use ringcable::metrics::{Metrics, ShardMetrics};
use ringcable::net::Timeouts;
use ringcable::rpc::{
    BadResponse, CallTimes, Method, Priority, RpcClient, RpcError, RpcShared, StartError,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::support::app::{App, Caller, Reply, Request, drain};
use crate::support::{Gate, PATIENCE, machine};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"status\":1}";
const STATUS_1: &[u8] = b"{\"status\":1}";

/// What the client has counted.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    retries: u64,
    timeouts: u64,
    errors: u64,
    unauthorized: u64,
    canceled: u64,
    ran: u64,
}

impl Counts {
    fn of(counters: &ShardMetrics) -> Counts {
        Counts {
            retries: counters.rpc_retries_total.value(),
            timeouts: counters.rpc_timeout_total.value(),
            errors: counters.rpc_error_total.value(),
            unauthorized: counters.rpc_unauthorized_total.value(),
            canceled: counters.rpc_canceled_total.value(),
            ran: counters
                .rpc_duration_seconds
                .snapshot()
                .buckets
                .iter()
                .sum(),
        }
    }

    fn since(self, earlier: Counts) -> Counts {
        Counts {
            retries: self.retries - earlier.retries,
            timeouts: self.timeouts - earlier.timeouts,
            errors: self.errors - earlier.errors,
            unauthorized: self.unauthorized - earlier.unauthorized,
            canceled: self.canceled - earlier.canceled,
            ran: self.ran - earlier.ran,
        }
    }
}

struct Shard {
    client: Rc<RpcClient>,
    metrics: Arc<Metrics>,
    /// As of the last look.
    seen: Cell<Counts>,
}

/// One call that was asked for when it is first polled.
async fn ask(
    client: &RpcClient,
    method: Method,
    sid: &str,
    body: Vec<u8>,
    priority: Priority,
) -> Result<Vec<u8>, RpcError> {
    let times = CallTimes::since(Instant::now());
    let body = || Ok(body);
    client.call_timed(method, sid, body, priority, &times).await
}

impl Shard {
    fn new(config: &RpcConfig) -> Shard {
        Shard::sharing(RpcShared::new(config).unwrap())
    }

    fn sharing(shared: Arc<RpcShared>) -> Shard {
        let metrics = Arc::new(Metrics::new(1));
        Shard {
            client: RpcClient::new(shared, Arc::clone(&metrics), 0, Timeouts::start()),
            metrics,
            seen: Cell::default(),
        }
    }

    async fn call(&self) -> Result<Vec<u8>, RpcError> {
        self.spawn_call().await
    }

    fn spawn_call(&self) -> monoio::task::JoinHandle<Result<Vec<u8>, RpcError>> {
        let client = Rc::clone(&self.client);
        monoio::spawn(async move {
            ask(
                &client,
                Method::Command,
                "sid",
                b"{}".to_vec(),
                Priority::Live,
            )
            .await
        })
    }

    /// Starts a call and drops it when `end` resolves, which it must do first.
    async fn call_until(&self, end: impl Future<Output = ()> + 'static) {
        let client = Rc::clone(&self.client);
        monoio::spawn(async move {
            let mut call = pin!(ask(
                &client,
                Method::Command,
                "sid",
                b"{}".to_vec(),
                Priority::Live
            ));
            let mut end = pin!(end);
            poll_fn(|context| {
                assert!(
                    call.as_mut().poll(context).is_pending(),
                    "the call ended first"
                );
                end.as_mut().poll(context)
            })
            .await
        })
        .await;
    }

    /// Resolves when so many calls wait for a slot.
    fn waiting(&self, count: i64) -> impl Future<Output = ()> + 'static {
        let metrics = Arc::clone(&self.metrics);
        until("calls without a slot", move || {
            metrics.shards[0].rpc_pending_num.value() == count
        })
    }

    /// What was counted since the last look, with no call left waiting.
    fn counts(&self) -> Counts {
        assert_eq!(self.metrics.shards[0].rpc_pending_num.value(), 0);
        let now = Counts::of(&self.metrics.shards[0]);
        now.since(self.seen.replace(now))
    }
}

fn config(url: &str) -> RpcConfig {
    RpcConfig {
        endpoint: RpcEndpoint::Http(url.to_owned()),
        concurrency: 28,
        request_timeout: Duration::from_secs(3),
        command_timeout: Duration::from_secs(3),
        slow_call: Duration::ZERO,
        headers: vec!["cookie".to_owned()],
        cookies: Vec::new(),
        token: None,
        token_derived: false,
        tls: RpcTlsConfig {
            enabled: false,
            verify: true,
            root_ca: String::new(),
        },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    IoUring,
    Epoll,
}

/// Both, where the kernel lets us; where it refuses io_uring the server runs on epoll only, and so do the tests.
fn drivers() -> Vec<Driver> {
    let uring = RuntimeBuilder::<IoUringDriver>::new().build().is_ok();
    if uring {
        vec![Driver::IoUring, Driver::Epoll]
    } else {
        vec![Driver::Epoll]
    }
}

fn on_both_drivers(test: impl AsyncFn()) {
    let _machine = machine::shared();
    for driver in drivers() {
        run_on(driver, &test);
    }
}

fn run_on(driver: Driver, test: impl AsyncFn()) {
    match driver {
        Driver::IoUring => {
            RuntimeBuilder::<IoUringDriver>::new()
                .enable_timer()
                .build()
                .unwrap()
                .block_on(test());
        }
        Driver::Epoll => {
            RuntimeBuilder::<LegacyDriver>::new()
                .enable_timer()
                .build()
                .unwrap()
                .block_on(test());
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A port where nobody listens.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// An app that remembers its requests.
struct Scripted {
    app: App,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let requests = Arc::default();
        let app = App::start(remembering(&requests, script));
        Self { app, requests }
    }

    /// Also returns the PEM text of the root certificate.
    fn start_tls(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Self, String) {
        let (server, root) = certificate();
        let requests = Arc::default();
        let app = App::start_tls(server, remembering(&requests, script));
        (Self { app, requests }, root)
    }

    /// Each connection is handed to `serve` on a thread of its own.
    fn start_raw(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let app = App::start_raw(move |_, stream| serve(stream));
        Self {
            app,
            requests: Arc::default(),
        }
    }

    fn url(&self) -> String {
        self.app.url()
    }

    fn port(&self) -> u16 {
        self.app.address().port()
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The connection of each request.
    fn connections(&self) -> Vec<usize> {
        self.requests()
            .iter()
            .map(|request| request.connection)
            .collect()
    }

    /// Resolves when one more request has come.
    fn next_request(&self) -> impl Future<Output = ()> + 'static {
        let requests = Arc::clone(&self.requests);
        let before = requests.lock().unwrap().len();
        until("a request", move || requests.lock().unwrap().len() > before)
    }

    /// Resolves when one more connection has ended.
    async fn wait_for_end(&self) {
        until("the end of a connection", || self.app.take_end()).await;
    }
}

fn remembering(
    requests: &Arc<Mutex<Vec<Request>>>,
    script: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, &Caller<'_>) -> Reply + Send + Sync + 'static {
    let requests = Arc::clone(requests);
    move |request, _| {
        requests.lock().unwrap().push(request.clone());
        script(request)
    }
}

/// A success, once the gate is open.
fn behind(gate: &Gate) -> impl Fn(&Request) -> Reply + Send + Sync + 'static {
    let gate = gate.clone();
    move |_| {
        gate.wait();
        Reply::Send(OK.into())
    }
}

/// Looks until it is so. The runtime runs meanwhile, and the client with it.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < PATIENCE,
            "waited {PATIENCE:?} in vain for {what}"
        );
        monoio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Holds requests until so many are there at one time.
struct Together {
    needed: usize,
    arrived: Mutex<usize>,
    changed: Condvar,
}

impl Together {
    fn new(needed: usize) -> Self {
        Self {
            needed,
            arrived: Mutex::new(0),
            changed: Condvar::new(),
        }
    }

    /// Returns when all of a round are there.
    fn arrive(&self) {
        let mut arrived = self.arrived.lock().unwrap();
        *arrived += 1;
        let round_end = arrived.next_multiple_of(self.needed);
        self.changed.notify_all();
        let waited = self
            .changed
            .wait_timeout_while(arrived, PATIENCE, |arrived| *arrived < round_end);
        assert!(
            !waited.unwrap().1.timed_out(),
            "{} requests at one time",
            self.needed
        );
    }
}

/// A root, and a server for `localhost` signed by it.
fn certificate() -> (Arc<ServerConfig>, String) {
    let mut root = rcgen::CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_key = rcgen::KeyPair::generate().unwrap();
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(root, root_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let chain = vec![CertificateDer::from(leaf.der().to_vec())];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    (Arc::new(server), root_pem)
}

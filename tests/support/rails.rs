//! The scripted Rails app: a strict HTTP/1.1 server that answers RPC calls, remembers every one and complains about each
//! deviation from `contract/rpc.md` §2–§4 when the test ends.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::keys;
use super::wait::PATIENCE;

/// The `identifiers` of the default app's connect answer. Source: `contract/rpc.md` §11.
pub const CURRENT_USER: &str = r#"{"current_user":"Z2lkOi8vY2FtcGZpcmUvVXNlci8x"}"#;

/// The default app's welcome, as Rails sends it over HTTP RPC.
pub const WELCOME: &str = r#"{"type":"welcome"}"#;

/// By which the app's log tells the check at the start from a client. The Ruby side looks at the path alone.
const CHECK_QUERY: &str = "?ringcable=start-check";

/// How often a held answer looks whether the caller has gone.
const CALLER_LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Pending connections of the listener: more than any test opens at once.
const BACKLOG: i32 = 1024;

/// One RPC call as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    pub number: usize,
    /// Which TCP connection carried it, counted from 0.
    pub connection: usize,
    /// `connect`, `command` or `disconnect`.
    pub method: String,
    pub sid: String,
    pub headers: Vec<(String, String)>,
    pub raw: String,
    pub body: Value,
    pub started: Instant,
    /// When the answer was written, or the caller went away.
    pub ended: Option<Instant>,
    /// The caller closed the connection before the answer.
    pub aborted: bool,
}

impl Call {
    /// `subscribe`, `unsubscribe`, `message`; empty for connect and disconnect.
    pub fn command(&self) -> &str {
        self.body["command"].as_str().unwrap_or_default()
    }

    pub fn identifier(&self) -> &str {
        self.body["identifier"].as_str().unwrap_or_default()
    }

    pub fn data(&self) -> &str {
        self.body["data"].as_str().unwrap_or_default()
    }

    pub fn url(&self) -> &str {
        self.body["env"]["url"].as_str().unwrap_or_default()
    }

    /// A forwarded header of the client.
    pub fn forwarded(&self, name: &str) -> Option<&str> {
        self.body["env"]["headers"][name].as_str()
    }

    /// A header of the RPC request itself.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// `connect`, `disconnect`, or the command and its identifier: enough to compare whole sequences.
    pub fn summary(&self) -> String {
        match self.method.as_str() {
            "command" => format!("{} {}", self.command(), self.identifier()),
            other => other.to_owned(),
        }
    }
}

/// Keeps answers back until the test lets them go.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    open: Arc<Mutex<bool>>,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        *self.open.lock().expect("not poisoned") = true;
    }

    /// Returns when it is open.
    pub fn wait(&self) {
        while !self.is_open() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_open(&self) -> bool {
        *self.open.lock().expect("not poisoned")
    }
}

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
    /// HTTP/1.0 style: the end of the connection ends the body.
    CloseDelimited,
}

/// What the app does with one call.
#[derive(Debug, Clone)]
pub struct Answer {
    gate: Option<Gate>,
    delay: Duration,
    reply: Reply,
}

#[derive(Debug, Clone)]
enum Reply {
    Http {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        framing: Framing,
        gzip: bool,
        close: bool,
    },
    /// These bytes and nothing else, then the connection ends.
    Raw(Vec<u8>),
    /// The connection ends without a byte.
    HangUp,
}

impl Answer {
    pub fn json(body: &Value) -> Self {
        Self::status(200, body.to_string())
    }

    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::from(Reply::Http {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::ContentLength,
            gzip: false,
            close: false,
        })
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::from(Reply::Raw(bytes.into()))
    }

    pub fn hang_up() -> Self {
        Self::from(Reply::HangUp)
    }

    /// A plain success of connect with these identifiers and transmissions.
    pub fn welcome(identifiers: &str, transmissions: &[&str]) -> Self {
        Self::json(
            &json!({ "status": 1, "identifiers": identifiers, "transmissions": transmissions, "env": {} }),
        )
    }

    /// The refusal of a connection as Rails words it.
    pub fn unauthorized() -> Self {
        let message = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
        Self::json(&json!({ "status": 2, "transmissions": [message] }))
    }

    /// A confirmed subscription to `streams`.
    pub fn confirm(identifier: &str, streams: &[&str]) -> Self {
        let mut body =
            json!({ "status": 1, "transmissions": [confirmation(identifier)], "env": {} });
        if !streams.is_empty() {
            body["streams"] = json!(streams);
        }
        Self::json(&body)
    }

    /// A rejected subscription.
    pub fn reject(identifier: &str) -> Self {
        let body = json!({ "status": 2, "stop_streams": true, "transmissions": [rejection(identifier)], "env": {} });
        Self::json(&body)
    }

    /// A successful command with nothing but these transmissions.
    pub fn transmit(transmissions: &[String]) -> Self {
        Self::json(&json!({ "status": 1, "transmissions": transmissions, "env": {} }))
    }

    /// Nothing to send, nothing to change.
    pub fn success() -> Self {
        Self::json(&json!({ "status": 1, "env": {} }))
    }

    pub fn behind(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn framed(mut self, wanted: Framing) -> Self {
        if let Reply::Http { framing, .. } = &mut self.reply {
            *framing = wanted;
        }
        self
    }

    pub fn gzipped(mut self) -> Self {
        if let Reply::Http { gzip, .. } = &mut self.reply {
            *gzip = true;
        }
        self
    }

    /// Announces `Connection: close` and does it.
    pub fn closing(mut self) -> Self {
        if let Reply::Http { close, .. } = &mut self.reply {
            *close = true;
        }
        self
    }

    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Reply::Http { headers, .. } = &mut self.reply {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self {
            gate: None,
            delay: Duration::ZERO,
            reply,
        }
    }
}

/// `{"identifier":"…","type":"confirm_subscription"}`, in Rails' key order.
pub fn confirmation(identifier: &str) -> String {
    format!(
        r#"{{"identifier":{},"type":"confirm_subscription"}}"#,
        json!(identifier)
    )
}

/// `{"identifier":"…","type":"reject_subscription"}`, in Rails' key order.
pub fn rejection(identifier: &str) -> String {
    format!(
        r#"{{"identifier":{},"type":"reject_subscription"}}"#,
        json!(identifier)
    )
}

type Rule = Box<dyn Fn(&Call) -> Option<Answer> + Send + Sync>;

/// The app. Dropping it fails the test when a call was not as the contract says.
pub struct Rails {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Mutex<Socket>,
}

struct Shared {
    base_path: String,
    token: Option<String>,
    authority: String,
    rules: Mutex<Vec<Arc<Rule>>>,
    check_answer: Mutex<Answer>,
    state: Mutex<State>,
    changed: Condvar,
    /// Accepted; names them in `State::open`.
    sockets: AtomicUsize,
    /// Those that carried a call.
    connections_opened: AtomicUsize,
    /// Sockets before this one are read no more and never answered.
    frozen_before: AtomicUsize,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    violations: Vec<String>,
    running: usize,
    running_max: usize,
    open: HashMap<usize, TcpStream>,
    /// Checks that servers made at their start; they are no calls.
    checks: usize,
    /// Calls are checked and counted but not kept: for load tests.
    forgetful: bool,
    begun: usize,
}

impl Rails {
    /// The simple app at `/_anycable`, behind the token that [`keys::SECRET`] gives.
    pub fn start() -> Self {
        Self::start_with("/_anycable", Some(&keys::rpc_token(keys::SECRET)))
    }

    pub fn start_with(base_path: &str, token: Option<&str>) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket());
        let address = address.expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            base_path: base_path.trim_end_matches('/').to_owned(),
            token: token.map(str::to_owned),
            authority: address.to_string(),
            rules: Mutex::new(Vec::new()),
            check_answer: Mutex::new(Answer::status(422, "Empty request body")),
            state: Mutex::default(),
            changed: Condvar::new(),
            sockets: AtomicUsize::new(0),
            connections_opened: AtomicUsize::new(0),
            frozen_before: AtomicUsize::new(0),
        });
        let rails = Self {
            shared,
            address,
            listener: Mutex::new(listener),
        };
        rails.listen();
        rails
    }

    /// What `--rpc_host` gets.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.address, self.shared.base_path)
    }

    /// Answers calls for which `rule` gives something; the newest rule is asked first, the simple app last.
    pub fn on(&self, rule: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) {
        self.shared
            .rules
            .lock()
            .expect("not poisoned")
            .push(Arc::new(Box::new(rule)));
    }

    pub fn on_connect(&self, answer: Answer) {
        self.on(move |call| (call.method == "connect").then(|| answer.clone()));
    }

    /// The answer to the check at the start of a server. By default that of the Ruby side when path and token are right.
    pub fn on_check(&self, answer: Answer) {
        *self.shared.check_answer.lock().expect("not poisoned") = answer;
    }

    pub fn on_disconnect(&self, answer: Answer) {
        self.on(move |call| (call.method == "disconnect").then(|| answer.clone()));
    }

    pub fn on_command(&self, command: &'static str, identifier: &str, answer: Answer) {
        let identifier = identifier.to_owned();
        self.on(move |call| {
            (call.command() == command && call.identifier() == identifier).then(|| answer.clone())
        });
    }

    /// Confirms subscribes to `identifier` with these streams.
    pub fn streams(&self, identifier: &str, streams: &[&str]) {
        self.on_command(
            "subscribe",
            identifier,
            Answer::confirm(identifier, streams),
        );
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }

    /// [`Call::summary`] of every call so far, in the order they arrived.
    pub fn summaries(&self) -> Vec<String> {
        self.shared
            .state()
            .calls
            .iter()
            .map(Call::summary)
            .collect()
    }

    pub fn calls_to(&self, method: &str) -> Vec<Call> {
        self.shared
            .state()
            .calls
            .iter()
            .filter(|call| call.method == method)
            .cloned()
            .collect()
    }

    /// Waits until `probe` finds what it looks for among the calls.
    pub fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&[Call]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        loop {
            if let Some(found) = probe(&state.calls) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let seen: Vec<String> = state.calls.iter().map(Call::summary).collect();
            assert!(
                !left.is_zero(),
                "waited {PATIENCE:?} in vain for {what}; calls: {seen:?}"
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .expect("not poisoned")
                .0;
        }
    }

    /// Waits for `count` calls of `method` and gives them.
    pub fn wait_for_calls(&self, method: &str, count: usize) -> Vec<Call> {
        self.wait_for(&format!("{count} {method} calls"), |calls| {
            let found: Vec<Call> = calls
                .iter()
                .filter(|call| call.method == method)
                .cloned()
                .collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits for the call of `command` for `identifier`.
    pub fn wait_for_command(&self, command: &str, identifier: &str) -> Call {
        self.wait_for(&format!("{command} {identifier}"), |calls| {
            calls
                .iter()
                .find(|call| call.command() == command && call.identifier() == identifier)
                .cloned()
        })
    }

    /// From now on calls are checked and counted, but not kept.
    pub fn forget_calls(&self) {
        self.shared.state().forgetful = true;
    }

    /// How many calls have arrived, kept or not.
    pub fn calls_begun(&self) -> usize {
        self.shared.state().begun
    }

    /// The largest number of calls that were being answered at one time.
    pub fn parallel_calls_max(&self) -> usize {
        self.shared.state().running_max
    }

    pub fn calls_running(&self) -> usize {
        self.shared.state().running
    }

    /// How many servers have checked this app at their start.
    pub fn checks(&self) -> usize {
        self.shared.state().checks
    }

    /// Connections that carried a call.
    pub fn connections_opened(&self) -> usize {
        self.shared.connections_opened.load(Ordering::SeqCst)
    }

    /// Closes every connection and refuses new ones, but keeps the port.
    pub fn stop(&self) {
        let mut listener = self.listener.lock().expect("not poisoned");
        // Wakes the accepting thread: its accept fails from now on.
        listener
            .shutdown(Shutdown::Both)
            .expect("a listening socket can be shut down");
        self.close_connections();
        // Bound but not listening: connections are refused and nobody else can take the port meanwhile.
        *listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        *listener = bind(self.address);
    }

    /// Listens again on the same port.
    pub fn restart(&self) {
        self.listen();
    }

    /// Ends every connection, as an app does that is being restarted behind a keep-alive pool.
    pub fn close_connections(&self) {
        for stream in self.shared.state().open.values() {
            // Fails only when the far end was quicker.
            let _closed_by_peer = stream.shutdown(Shutdown::Both);
        }
    }

    /// All connections that are open now stay open, and nobody is there any more: what a frozen process looks like while the
    /// name points to another one already, which serves every new connection.
    pub fn freeze_connections(&self) {
        let sockets = self.shared.sockets.load(Ordering::SeqCst);
        self.shared.frozen_before.store(sockets, Ordering::SeqCst);
    }

    /// Ends every connection with a reset.
    pub fn reset_connections(&self) {
        for stream in self.shared.state().open.values() {
            let option = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
            option.expect("an option of every socket");
            // Fails only when the far end was quicker.
            let _closed_by_peer = stream.shutdown(Shutdown::Read);
        }
    }

    fn listen(&self) {
        let listener = self.listener.lock().expect("not poisoned");
        listener.listen(BACKLOG).expect("the port is ours");
        let (socket, shared) = (
            listener.try_clone().expect("a descriptor"),
            Arc::clone(&self.shared),
        );
        thread::spawn(move || accept(&socket, &shared));
    }
}

impl Drop for Rails {
    fn drop(&mut self) {
        let listener = self
            .listener
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Fails when the app was stopped already.
        let _not_listening = listener.shutdown(Shutdown::Both);
        self.close_connections();
        let state = self.shared.state();
        if thread::panicking() {
            let calls: Vec<&String> = state.calls.iter().map(|call| &call.raw).collect();
            eprintln!(
                "--- calls of the app\n{calls:#?}\n--- violations\n{:#?}",
                state.violations
            );
        } else {
            assert!(
                state.violations.is_empty(),
                "calls that break the contract: {:#?}",
                state.violations
            );
        }
    }
}

fn bind(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_reuse_address(true)
        .expect("an option of every socket");
    socket.bind(&address.into()).expect("the port is free");
    socket
}

fn accept(listener: &Socket, shared: &Arc<Shared>) {
    while let Ok((socket, _)) = listener.accept() {
        let stream = TcpStream::from(socket);
        let number = shared.sockets.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let Ok(copy) = stream.try_clone() else { return };
            shared.state().open.insert(number, copy);
            // An error here is the far end's end of the connection.
            let _ended = serve(&stream, number, &shared);
            shared.state().open.remove(&number);
        });
    }
}

fn serve(stream: &TcpStream, number: usize, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut connection = None;
    while let Some(request) = read_request(&mut reader)? {
        if number < shared.frozen_before.load(Ordering::SeqCst) {
            // Until the caller gives up.
            let _waited = reader.read_to_end(&mut Vec::new());
            return Ok(());
        }
        if request.is_check() {
            let answer = shared.note_check(&request);
            hold(stream, &answer)?;
            let (bytes, keep) = answer.reply.encode();
            (&*stream).write_all(&bytes)?;
            if !keep {
                return stream.shutdown(Shutdown::Both);
            }
            continue;
        }
        let connection = *connection
            .get_or_insert_with(|| shared.connections_opened.fetch_add(1, Ordering::SeqCst));
        let call = shared.begin(request, connection);
        let answer = shared.answer(&call);
        let aborted = !hold(stream, &answer)?;
        if aborted {
            shared.end(&call, true);
            return Ok(());
        }
        let (bytes, keep) = answer.reply.encode();
        let written = (&*stream).write_all(&bytes);
        shared.end(&call, written.is_err());
        written?;
        if !keep {
            return stream.shutdown(Shutdown::Both);
        }
    }
    Ok(())
}

/// Waits as the answer wants. False when the caller has closed meanwhile.
fn hold(stream: &TcpStream, answer: &Answer) -> io::Result<bool> {
    let until = Instant::now() + answer.delay;
    stream.set_read_timeout(Some(CALLER_LOOK_INTERVAL))?;
    let mut caller_is_there = true;
    while caller_is_there
        && (Instant::now() < until || answer.gate.as_ref().is_some_and(|gate| !gate.is_open()))
    {
        match stream.peek(&mut [0]) {
            Ok(0) => caller_is_there = false,
            Ok(_) => thread::sleep(CALLER_LOOK_INTERVAL),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) => {}
            Err(_) => caller_is_there = false,
        }
    }
    stream.set_read_timeout(None)?;
    Ok(caller_is_there)
}

struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// The check that a server makes at its start: a Connect without a body.
    fn is_check(&self) -> bool {
        self.body.is_empty() && self.header("x-anycable-meta-sid") == Some("ringcable-check")
    }
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut request = Request {
        line: line.trim_end().to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        request.headers.push((name.to_owned(), value.to_owned()));
    }
    let length = request
        .header("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    request.body.resize(length, 0);
    reader.read_exact(&mut request.body)?;
    Ok(Some(request))
}

impl Reply {
    /// The bytes, and whether the connection goes on.
    fn encode(self) -> (Vec<u8>, bool) {
        match self {
            Self::HangUp => (Vec::new(), false),
            Self::Raw(bytes) => (bytes, false),
            Self::Http {
                status,
                headers,
                body,
                framing,
                gzip,
                close,
            } => encode_http(status, headers, body, framing, gzip, close),
        }
    }
}

fn encode_http(
    status: u16,
    mut headers: Vec<(String, String)>,
    mut body: Vec<u8>,
    framing: Framing,
    gzip: bool,
    close: bool,
) -> (Vec<u8>, bool) {
    if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&body).expect("memory takes bytes");
        body = encoder.finish().expect("memory takes bytes");
        headers.push(("Content-Encoding".to_owned(), "gzip".to_owned()));
    }
    let version = if framing == Framing::CloseDelimited {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let mut head = format!("{version} {status} Whatever\r\n");
    match framing {
        Framing::ContentLength => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
        Framing::Chunked => {
            head.push_str("Transfer-Encoding: chunked\r\n");
            body = chunked(&body);
        }
        Framing::CloseDelimited => {}
    }
    if close {
        head.push_str("Connection: close\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(&body);
    (bytes, !close && framing != Framing::CloseDelimited)
}

/// Small chunks, so that sizes and data get split.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(7) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A check must be like a call in everything but its body.
    fn note_check(&self, request: &Request) -> Answer {
        let violations = self.check_request(request, "connect", CHECK_QUERY);
        let mut state = self.state();
        state.violations.extend(violations);
        state.checks += 1;
        drop(state);
        self.changed.notify_all();
        self.check_answer.lock().expect("not poisoned").clone()
    }

    fn begin(&self, request: Request, connection: usize) -> Call {
        let raw = String::from_utf8_lossy(&request.body).into_owned();
        let method = request
            .line
            .split(' ')
            .nth(1)
            .and_then(|target| target.rsplit('/').next())
            .unwrap_or_default();
        let method = method.split('?').next().unwrap_or_default().to_owned();
        let body = serde_json::from_str(&raw).unwrap_or(Value::Null);
        let mut violations = self.check_request(&request, &method, "");
        violations.extend(check_body(&method, &raw, &body));
        let mut state = self.state();
        let call = Call {
            number: state.begun,
            connection,
            sid: request
                .header("x-anycable-meta-sid")
                .unwrap_or_default()
                .to_owned(),
            method,
            headers: request.headers,
            raw,
            body,
            started: Instant::now(),
            ended: None,
            aborted: false,
        };
        state.violations.extend(
            violations
                .into_iter()
                .map(|text| format!("{text} in {} {}", request.line, call.raw)),
        );
        state.running += 1;
        state.running_max = state.running_max.max(state.running);
        state.begun += 1;
        if !state.forgetful {
            state.calls.push(call.clone());
        }
        drop(state);
        self.changed.notify_all();
        call
    }

    fn end(&self, call: &Call, aborted: bool) {
        let mut state = self.state();
        state.running -= 1;
        if let Some(kept) = state.calls.get_mut(call.number) {
            kept.ended = Some(Instant::now());
            kept.aborted = aborted;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn answer(&self, call: &Call) -> Answer {
        let rules: Vec<Arc<Rule>> = self
            .rules
            .lock()
            .expect("not poisoned")
            .iter()
            .rev()
            .cloned()
            .collect();
        rules
            .iter()
            .find_map(|rule| rule(call))
            .unwrap_or_else(|| simple_app(call))
    }

    /// Source: `contract/rpc.md` §2 and §3.
    fn check_request(&self, request: &Request, method: &str, query: &str) -> Vec<String> {
        let mut violations = Vec::new();
        let expected_line = format!("POST {}/{method}{query} HTTP/1.1", self.base_path);
        if request.line != expected_line || !["connect", "command", "disconnect"].contains(&method)
        {
            violations.push(format!("request line is not {expected_line:?}"));
        }
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let length = request.body.len().to_string();
        let expected = [
            ("host", Some(self.authority.as_str())),
            ("user-agent", Some("Go-http-client/1.1")),
            ("content-length", Some(length.as_str())),
            ("authorization", authorization.as_deref()),
            ("content-type", Some("application/json")),
            ("x-anycable-meta-protov", Some("v1")),
            ("accept-encoding", Some("gzip")),
        ];
        for (name, value) in expected {
            if request.header(name) != value {
                violations.push(format!(
                    "header {name} is {:?}, not {value:?}",
                    request.header(name)
                ));
            }
        }
        if request
            .header("x-anycable-meta-sid")
            .is_none_or(str::is_empty)
        {
            violations.push("no x-anycable-meta-sid".to_owned());
        }
        let mut seen = Vec::new();
        for (name, _) in &request.headers {
            let name = name.to_ascii_lowercase();
            let known = name == "x-anycable-meta-sid"
                || expected.iter().any(|(expected, _)| *expected == name);
            if !known || seen.contains(&name) {
                violations.push(format!("unexpected or repeated header {name}"));
            }
            seen.push(name);
        }
        violations
    }
}

/// What `contract/rpc.md` §4 allows in a body: known fields, right types, nothing empty, compact.
fn check_body(method: &str, raw: &str, body: &Value) -> Vec<String> {
    let fields: &[(&str, Kind)] = match method {
        "connect" => &[("env", Kind::Env)],
        "command" => &[
            ("command", Kind::Text),
            ("identifier", Kind::Text),
            ("connection_identifiers", Kind::Text),
            ("data", Kind::Text),
            ("env", Kind::Env),
        ],
        _ => &[
            ("identifiers", Kind::Text),
            ("subscriptions", Kind::Texts),
            ("env", Kind::Env),
        ],
    };
    let mut violations = Vec::new();
    check_object("body", body, fields, &mut violations);
    let env: &[(&str, Kind)] = &[
        ("url", Kind::Text),
        ("headers", Kind::Map),
        ("cstate", Kind::Map),
        ("istate", Kind::Map),
    ];
    check_object("env", &body["env"], env, &mut violations);
    if method == "connect" && body["env"].get("istate").is_some() {
        violations.push("a connect call carries istate".to_owned());
    }
    if body["env"]["url"].as_str().is_none()
        || body["env"]["headers"]["REMOTE_ADDR"].as_str().is_none()
    {
        violations.push("env without url or REMOTE_ADDR".to_owned());
    }
    if method == "command"
        && !["subscribe", "unsubscribe", "message"]
            .contains(&body["command"].as_str().unwrap_or(""))
    {
        violations.push(format!("command {}", body["command"]));
    }
    if has_space_outside_strings(raw) {
        violations.push("the JSON is not compact".to_owned());
    }
    violations
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Texts,
    Map,
    Env,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Texts => value
                .as_array()
                .is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string)),
            Self::Map => value
                .as_object()
                .is_some_and(|map| !map.is_empty() && map.values().all(Value::is_string)),
            Self::Env => value.is_object(),
        }
    }
}

fn check_object(name: &str, value: &Value, fields: &[(&str, Kind)], violations: &mut Vec<String>) {
    let Some(object) = value.as_object() else {
        violations.push(format!("{name} is not an object"));
        return;
    };
    for (key, value) in object {
        match fields.iter().find(|(field, _)| field == key) {
            Some((_, kind)) if kind.fits(value) => {}
            Some(_) => violations.push(format!(
                "{name}.{key} is empty or of the wrong type: {value}"
            )),
            None => violations.push(format!("unknown field {name}.{key}")),
        }
    }
}

fn has_space_outside_strings(raw: &str) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\n' | b'\t' if !in_string => return true,
            _ => {}
        }
    }
    false
}

/// Welcomes everybody, confirms every subscribe with the stream `stream:<identifier>`, echoes what is performed.
fn simple_app(call: &Call) -> Answer {
    let identifier = call.identifier();
    match (call.method.as_str(), call.command()) {
        ("connect", _) => Answer::welcome(CURRENT_USER, &[WELCOME]),
        ("command", "subscribe") => Answer::confirm(identifier, &[&format!("stream:{identifier}")]),
        ("command", "unsubscribe") => {
            Answer::json(&json!({ "status": 1, "stop_streams": true, "env": {} }))
        }
        ("command", _) => Answer::transmit(&[echo(identifier, call.data())]),
        _ => Answer::json(&json!({ "status": 1 })),
    }
}

/// What the simple app transmits for a performed `data`.
pub fn echo(identifier: &str, data: &str) -> String {
    format!(
        r#"{{"identifier":{},"message":{{"echo":{}}}}}"#,
        json!(identifier),
        json!(data)
    )
}

//! The session table with real sockets and both reactors, without a runtime: the test makes every turn and sets the time.

mod answers;
mod any_turns;
mod asking;
mod closing;
mod drain;
mod events;
mod fairness;
mod input;
mod keeping;
mod many_shards;
mod opening;
mod output;
pub(super) mod parts;
mod pings;
mod polling;
mod replay;
mod resuming;
mod watchers;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ahash::RandomState;
use proptest::prelude::*;
use serde_json::{Value, json};
use socket2::SockRef;

use crate::config::{Config, PingPrecision, Startup, load};
use crate::hub::Interest;
use crate::mesh::{ConnectionLimit, ProcessBudget, SessionRef, ShardBudget, ShardId};
use crate::metrics::{Counter, Metrics, ShardMetrics};
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::protocol::rpc::{RpcAnswer, decode_answer};
use crate::reactor::Reactor;
use crate::rpc::RpcError;
use crate::session::{Admission, Question};
use crate::shard::calls;
use crate::shard::message::{PublishMessage, ShardInbox, ShardMesh, ShardMessage, Survey};
use crate::shard::outbox::batch::{BATCH_DELIVERIES_MAX, BATCH_FRAME_BYTES_MAX};
use crate::shard::sessions::{
    Action, FLUSHES_PER_TURN_MAX, NewConnection, Sessions, TimeSlice, Transport,
};
use crate::shard::timers::TICK;
use crate::wire::websocket::deflate::Inflater;

/// The app decides about clients, and there are no pings.
const WITH_RPC: &[&str] = &["--rpc_host=http://localhost:1/", "--ping_interval=0"];
/// Every client is accepted without the app.
const PUBLIC: &[&str] = &["--norpc", "--public", "--ping_interval=0"];

/// Time that anything expected may take.
const PATIENCE: Duration = Duration::from_secs(5);
const WELCOME: &str = r#"{"type":"welcome"}"#;

/// Runs a test on both reactors.
fn on_both(args: &[&str], test: impl Fn(&mut Bench)) {
    on_both_reactors(|driver, reactor| test(&mut Bench::new(args, driver, reactor)));
}

fn on_both_reactors(test: impl Fn(&'static str, Reactor)) {
    let uring = Reactor::uring().expect("io_uring on the test machine");
    test("io_uring", uring);
    test("epoll", Reactor::epoll().expect("epoll"));
}

/// Both ends of a connection as they are after the HTTP phase.
fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().expect("bound");
    let client = TcpStream::connect(address).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    server.set_nonblocking(true).expect("nonblocking");
    server.set_nodelay(true).expect("nodelay");
    client.set_nodelay(true).expect("nodelay");
    client.set_read_timeout(Some(PATIENCE)).expect("timeout");
    client.set_write_timeout(Some(PATIENCE)).expect("timeout");
    (server, client)
}

fn config(args: &[&str]) -> Config {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    match load(&args, &[]) {
        Ok(Startup::Run(config)) => *config,
        other => panic!("{args:?} should start the server: {other:?}"),
    }
}

/// Delivers publications to all sessions, as far as the batch has room. Returns true when that was all.
fn fan_out(sessions: &mut Sessions, publications: &[Publication]) -> bool {
    sessions.fan_out(publications.into(), 0);
    sessions.go_on_fan_out(TimeSlice::new(PATIENCE))
}

/// One shard's table, its clock, and the actions it has asked for.
struct Bench {
    driver: &'static str,
    sessions: Sessions,
    mesh: ShardMesh,
    inbox: Rc<ShardInbox>,
    metrics: Arc<Metrics>,
    listener: TcpListener,
    now: Instant,
    actions: VecDeque<Action>,
    opened: usize,
}

/// A client of the extended protocol.
const EXTENDED: Transport = Transport::WebSocket {
    extended: true,
    deflate: false,
};

/// A client that has negotiated permessage-deflate.
const COMPRESSING: Transport = Transport::WebSocket {
    extended: false,
    deflate: true,
};

impl Bench {
    fn new(args: &[&str], driver: &'static str, reactor: Reactor) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let now = Instant::now();
        let (mesh, mut inboxes) = ShardMesh::new(1);
        let inbox = Rc::new(inboxes.remove(0));
        let process = ProcessBudget::new(None, 1);
        let budget = ShardBudget::new(process, Arc::clone(&metrics), 0);
        let sessions = Sessions::new(
            0,
            Arc::new(config(args)),
            budget,
            Arc::new(Interest::new(1, RandomState::new())),
            reactor,
            Rc::clone(&inbox),
            now,
        );
        Self {
            driver,
            sessions,
            mesh,
            inbox,
            metrics,
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
            now,
            actions: VecDeque::new(),
            opened: 0,
        }
    }

    fn turn<R>(&mut self, change: impl FnOnce(&mut Sessions) -> R) -> R {
        let actions = &mut self.actions;
        self.sessions
            .turn(self.now, change, |action| actions.push_back(action))
    }

    /// Writes everything that waits, as far as the sockets take it.
    fn flush(&mut self) {
        while self.sessions.has_unflushed() || self.sessions.has_more() {
            self.harvest();
        }
    }

    fn harvest(&mut self) {
        self.turn(Sessions::harvest).expect("a healthy reactor");
    }

    /// Serves events until `done` is true.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "{}: no {what}", self.driver);
            self.harvest();
            std::thread::yield_now();
        }
    }

    fn until_count(&mut self, counter: fn(&ShardMetrics) -> &Counter, value: u64) {
        let reached = |bench: &Self| counter(bench.counters()).value() >= value;
        self.until("counter that reaches its value", reached);
        assert_eq!(counter(self.counters()).value(), value, "{}", self.driver);
    }

    /// Lets time pass, tick by tick.
    fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.now = end.min(self.now + TICK);
            self.turn(Sessions::on_tick);
        }
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[0]
    }

    fn clients(&self) -> i64 {
        self.counters().clients_num.value()
    }

    fn outbox_bytes(&self) -> i64 {
        self.counters().outbox_bytes.value()
    }

    fn survey(&self) -> Survey {
        self.sessions.survey()
    }

    fn pair(&self) -> (TcpStream, TcpStream) {
        pair(&self.listener)
    }

    /// A client whose upgrade has just been answered, and its far end.
    fn upgraded(&mut self, sid: &str) -> (NewConnection, Client) {
        let (socket, client) = self.pair();
        let new = NewConnection {
            socket: Some(socket),
            admission: Admission {
                sid: sid.to_owned(),
                env: r#""url":"u""#.into(),
                ..Admission::default()
            },
            transport: Transport::WebSocket {
                extended: false,
                deflate: false,
            },
            early_input: Vec::new(),
            permit: None,
            tls: None,
        };
        (new, Client::new(client))
    }

    /// A client that has been taken over. The sids are `s1`, `s2`, … in the order of opening.
    fn open(&mut self, change: impl FnOnce(&mut NewConnection)) -> Client {
        self.opened += 1;
        let (mut new, client) = self.upgraded(&format!("s{}", self.opened));
        change(&mut new);
        self.turn(|sessions| sessions.open(new));
        client
    }

    /// A client with little room in its socket, so that a few messages fill it.
    fn open_narrow(&mut self) -> Client {
        let client = self.open(|new| {
            let socket = SockRef::from(new.socket.as_ref().expect("a socket"));
            socket
                .set_send_buffer_size(8 << 10)
                .expect("an option of every socket");
        });
        let socket = SockRef::from(&client.socket);
        socket
            .set_recv_buffer_size(8 << 10)
            .expect("an option of every socket");
        client
    }

    /// A client that the app has welcomed as `identifiers`.
    fn welcomed(&mut self, identifiers: &str) -> Client {
        let mut client = self.open(|_| ());
        let call = self.call();
        self.answer(
            call,
            json!({ "status": 1, "identifiers": identifiers, "transmissions": [WELCOME] }),
        );
        assert_eq!(client.next(), WELCOME);
        client
    }

    /// Subscribes through the app.
    fn subscribe(&mut self, client: &mut Client, identifier: &str, streams: &[&str]) {
        client.command("subscribe", identifier);
        let call = self.call();
        self.answer(
            call,
            json!({ "status": 1, "streams": streams, "transmissions": ["confirm"] }),
        );
        assert_eq!(client.next(), "confirm");
    }

    /// Reads the welcome of a public client and makes it listen to `stream`. Returns the identifier.
    fn listen(&mut self, client: &mut Client, stream: &str) -> String {
        assert!(client.next().contains("welcome"));
        let identifier = format!(r#"{{"channel":"$pubsub","stream_name":"{stream}"}}"#);
        client.command("subscribe", &identifier);
        let before = self.counters().server_msg_total.value();
        self.until("confirmation", |bench| {
            bench.counters().server_msg_total.value() > before
        });
        assert!(client.next().contains("confirm_subscription"));
        identifier
    }

    fn listener(&mut self, stream: &str) -> Client {
        let mut client = self.open(|_| ());
        self.listen(&mut client, stream);
        client
    }

    /// The next call to the app. When there is none yet, waits for the client's command.
    fn call(&mut self) -> Call {
        self.until("action", |bench| {
            let told = |action: &Action| !matches!(action, Action::Canceled(_));
            bench.actions.iter().any(told)
        });
        self.actions
            .retain(|action| !matches!(action, Action::Canceled(_)));
        match self.actions.pop_front() {
            Some(Action::Call(call)) => self.asked(call),
            _ => panic!("{}: the next action is no call", self.driver),
        }
    }

    fn asked(&self, call: calls::Call) -> Call {
        let sid = self.sessions.call_sid(call.session);
        let sid = sid.expect("the session lives");
        let request = self.sessions.request(call.session, &call.question);
        let body = request.expect("the session lives").json();
        Call {
            session: call.session,
            question: call.question,
            body: serde_json::from_slice(&body).expect("JSON"),
            sid,
            handle: call.handle,
        }
    }

    fn result(&mut self, call: Call, result: Result<RpcAnswer, RpcError>) {
        let departed = call.handle.take_departed();
        self.turn(|sessions| match departed {
            Some(departed) => sessions.on_late_result(departed, &call.question, result),
            None => sessions.on_call_result(call.session, call.question, result),
        });
    }

    fn answer(&mut self, call: Call, answer: Value) {
        self.result(call, answered(answer.to_string().as_bytes()));
    }

    /// The sids for which a Disconnect call is owed.
    fn disconnect_jobs(&mut self) -> Vec<String> {
        let sids = self.actions.drain(..).filter_map(|action| match action {
            Action::Disconnect(disconnect_call) => Some(disconnect_call.sid().to_string()),
            Action::Canceled(_) => None,
            Action::Call(_) => panic!("a call"),
            Action::Publish(_) => panic!("a publication"),
            Action::Watch => panic!("the console"),
            Action::AnswerPoll(_) => panic!("a poll"),
            Action::Tell { .. } | Action::TellHome { .. } => panic!("there is no broker"),
        });
        sids.collect()
    }

    fn broadcast(&mut self, publication: &Publication) {
        self.turn(|sessions| fan_out(sessions, std::slice::from_ref(publication)));
        // A turn writes for two milliseconds at most, which are soon over on a busy machine.
        while self.sessions.has_unflushed() {
            self.turn(|_| ());
        }
    }

    /// Broadcasts big messages to `x` until a socket takes no more. Returns their number.
    fn broadcast_until_blocked(&mut self) -> usize {
        for count in 1..1000 {
            self.broadcast(&big_message(count));
            if self.counters().write_blocked_total.value() > 0 {
                return count;
            }
        }
        panic!("{}: the socket takes everything", self.driver);
    }

    /// Begins a drain at once.
    fn close_all(&mut self) -> mpsc::Receiver<ShardId> {
        let (done, drained) = mpsc::channel();
        self.turn(|sessions| {
            sessions.close_all();
            sessions.report_closed(done);
        });
        drained
    }

    /// Begins a drain that takes `time`.
    fn close_slowly(&mut self, time: Duration) -> mpsc::Receiver<ShardId> {
        let (done, drained) = mpsc::channel();
        let end = self.now + time;
        self.turn(|sessions| {
            sessions.close_slowly(end);
            sessions.report_closed(done);
        });
        drained
    }

    /// Serves events until no socket is left.
    fn until_empty(&mut self) {
        self.until("empty table", |bench| bench.sessions.is_empty());
    }

    fn told(&self) -> u64 {
        self.counters().closed_shutdown_total.value()
    }

    fn disconnect_remotely(&mut self, identifiers: &str, reconnect: bool) {
        let identifiers = identifiers.into();
        let command = RemoteDisconnect {
            identifiers,
            reconnect,
        };
        self.turn(|sessions| sessions.remote_disconnect(&command));
    }
}

/// The result of a call that is answered with this body.
fn answered(body: &[u8]) -> Result<RpcAnswer, RpcError> {
    Ok(decode_answer(body)?)
}

struct Call {
    session: SessionRef,
    question: Question,
    body: Value,
    sid: Box<str>,
    handle: std::rc::Rc<calls::CallHandle>,
}

impl Call {
    fn is_canceled(&self) -> bool {
        self.handle.is_canceled()
    }
}

/// The client's side of a connection.
struct Client {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            unread: Vec::new(),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("room for a command");
    }

    fn say(&mut self, text: &str) {
        self.send(&masked(0x81, text.as_bytes()));
    }

    fn command(&mut self, command: &str, identifier: &str) {
        self.say(&json!({ "command": command, "identifier": identifier, "data": "d" }).to_string());
    }

    /// The next frame: a text as it is, other frames after their kind; `end` when the server has closed.
    fn next(&mut self) -> String {
        loop {
            if let Some((head, payload)) = self.take_frame() {
                return shown(head, payload);
            }
            let mut buffer = [0; 64 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.unread.is_empty(), "the server stopped inside a frame");
                    return "end".into();
                }
                Ok(bytes) => self.unread.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return "reset".into(),
                // This thread's ring has something to report.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// As [`Self::next`]; `None` when nothing has come.
    fn next_now(&mut self) -> Option<String> {
        loop {
            if let Some((head, payload)) = self.take_frame() {
                return Some(shown(head, payload));
            }
            self.socket.set_nonblocking(true).expect("nonblocking");
            let mut buffer = [0; 64 << 10];
            let read = self.socket.read(&mut buffer);
            self.socket.set_nonblocking(false).expect("blocking");
            match read {
                Ok(0) => return Some("end".into()),
                Ok(bytes) => self.unread.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Some("reset".into());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    fn take_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let (start, bytes) = match *self.unread.get(1)? {
            126 => (
                4,
                u16::from_be_bytes(self.unread.get(2..4)?.try_into().ok()?) as usize,
            ),
            127 => (
                10,
                u64::from_be_bytes(self.unread.get(2..10)?.try_into().ok()?) as usize,
            ),
            short => (2, usize::from(short)),
        };
        let payload = self.unread.get(start..start + bytes)?.to_vec();
        let head = self.unread[0];
        self.unread.drain(..start + bytes);
        Some((head, payload))
    }

    /// Everything that arrives until the end.
    fn rest(&mut self) -> Vec<String> {
        let mut frames = Vec::new();
        while frames
            .last()
            .is_none_or(|frame| frame != "end" && frame != "reset")
        {
            frames.push(self.next());
        }
        frames
    }

    fn got_nothing(&mut self) -> bool {
        self.socket.set_nonblocking(true).expect("nonblocking");
        let nothing = self.socket.peek(&mut [0]);
        self.socket.set_nonblocking(false).expect("blocking");
        self.unread.is_empty() && nothing.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }
}

fn shown(head: u8, payload: Vec<u8>) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    match (head, payload.as_slice()) {
        (0x81, payload) => text(payload),
        (0xc1, payload) => {
            let mut plain = Vec::new();
            Inflater::default()
                .inflate(payload, 1 << 20, &mut plain)
                .expect("deflated");
            format!("deflated {}", text(&plain))
        }
        (0x88, [high, low, reason @ ..]) => {
            format!(
                "close {} {}",
                u16::from_be_bytes([*high, *low]),
                text(reason)
            )
        }
        (0x88, []) => "close".into(),
        (0x89, payload) => format!("ping {}", text(payload)),
        (0x8a, payload) => format!("pong {}", text(payload)),
        other => panic!("unexpected frame {other:?}"),
    }
}

fn masked(head: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![head];
    match payload.len() {
        short @ ..126 => bytes.push(0x80 | short as u8),
        long => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&u16::try_from(long).expect("up to 64 KiB").to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

fn message(stream: &str, message: &str) -> Publication {
    Publication {
        stream: stream.into(),
        message: message.as_bytes().into(),
        ..Publication::default()
    }
}

/// 20 kB that begin with the message's number.
fn big_message(number: usize) -> Publication {
    message("x", &format!("\"{number:0<20000}\""))
}

fn delivery(identifier: &str, message: &str) -> String {
    format!(
        r#"{{"identifier":{},"message":{message}}}"#,
        json!(identifier)
    )
}

const TOO_SLOW: &str = r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#;

//! The session table with real sockets and both reactors, without a runtime: every turn is made by the test, and so is time.

mod console;
mod fairness;

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
use crate::mesh::{
    ConnectionLimit, Inbox, Mesh, ProcessBudget, SessionRef, ShardBudget, ShardId, ShardMessage,
    Survey,
};
use crate::metrics::{Counter, Metrics, ShardMetrics};
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::reactor::Reactor;
use crate::rpc::RpcError;
use crate::session::{CallPurpose, Credentials};
use crate::shard::calls;
use crate::shard::outbox::{BATCH_DELIVERIES_MAX, BATCH_FRAME_BYTES_MAX};
use crate::shard::sessions::{Action, FLUSHES_PER_TURN_MAX, NewConnection, Sessions, TimeSlice};
use crate::shard::timers::TICK;
use crate::wire::websocket::deflate::Inflater;

/// The app decides; nobody pings.
const WITH_RPC: &[&str] = &["--rpc_host=http://localhost:1/", "--ping_interval=0"];
/// Nobody is asked anything.
const PUBLIC: &[&str] = &["--norpc", "--public", "--ping_interval=0"];

/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(5);
const WELCOME: &str = r#"{"type":"welcome"}"#;

/// Runs a test on both reactors.
fn on_both(args: &[&str], test: impl Fn(&mut Bench)) {
    let uring = Reactor::uring().expect("io_uring on the test machine");
    let epoll = Reactor::epoll().expect("epoll");
    for (driver, reactor) in [("io_uring", uring), ("epoll", epoll)] {
        test(&mut Bench::new(args, driver, reactor));
    }
}

fn config(args: &[&str]) -> Config {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    match load(&args, &[]) {
        Ok(Startup::Run(config)) => *config,
        other => panic!("{args:?} should start the server: {other:?}"),
    }
}

/// Delivers a publication to everybody, as far as the batch has room.
fn fan_out(sessions: &mut Sessions, publication: &Publication) {
    sessions.fan_out([publication.clone()].into(), 0);
    sessions.go_on_fan_out(TimeSlice::new(PATIENCE));
}

/// Delivers a publication to everybody, and writes only when the batch has no room.
fn fan_out_in_turns(bench: &mut Bench, publication: &Publication) {
    bench.sessions.begin_turn(bench.now);
    fan_out(&mut bench.sessions, publication);
    while bench.sessions.is_fanning_out() {
        bench.flush();
        bench.sessions.go_on_fan_out(TimeSlice::new(PATIENCE));
    }
}

/// One shard's table, its clock, and what it wants done.
struct Bench {
    driver: &'static str,
    sessions: Sessions,
    mesh: Mesh,
    inbox: Rc<Inbox>,
    metrics: Arc<Metrics>,
    listener: TcpListener,
    now: Instant,
    actions: VecDeque<Action>,
    opened: usize,
}

impl Bench {
    fn new(args: &[&str], driver: &'static str, reactor: Reactor) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let now = Instant::now();
        let (mesh, mut inboxes) = Mesh::new(1);
        let inbox = Rc::new(inboxes.remove(0));
        let process = ProcessBudget::new(None, 1);
        let budget = ShardBudget::new(process, Arc::clone(&metrics), 0);
        let sessions = Sessions::new(
            0,
            Arc::new(config(args)),
            budget,
            RandomState::new(),
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
        self.sessions.begin_turn(self.now);
        let result = change(&mut self.sessions);
        self.sessions.end_turn();
        self.actions.extend(self.sessions.take_actions());
        result
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

    /// Serves events until something is so.
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
        let address = self.listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connect");
        let (server, _) = self.listener.accept().expect("accept");
        server.set_nonblocking(true).expect("nonblocking");
        server.set_nodelay(true).expect("nodelay");
        client.set_nodelay(true).expect("nodelay");
        client.set_read_timeout(Some(PATIENCE)).expect("timeout");
        client.set_write_timeout(Some(PATIENCE)).expect("timeout");
        (server, client)
    }

    /// A client whose upgrade has just been answered; its sid is `s1`, `s2`, … in the order of opening.
    fn open(&mut self, change: impl FnOnce(&mut NewConnection)) -> Client {
        let (socket, client) = self.pair();
        self.opened += 1;
        let mut new = NewConnection {
            socket,
            sid: format!("s{}", self.opened),
            env: r#""url":"u""#.into(),
            credentials: Credentials::default(),
            extended: false,
            deflate: false,
            ping_interval_secs: None,
            ping_precision: None,
            early_input: Vec::new(),
            permit: None,
            tls: None,
        };
        change(&mut new);
        self.turn(|sessions| sessions.open(new));
        Client::new(client)
    }

    /// A client with little room in its socket, so that a few messages fill it.
    fn open_narrow(&mut self) -> Client {
        let client = self.open(|new| {
            let socket = SockRef::from(&new.socket);
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

    /// Subscribes over the app.
    fn subscribe(&mut self, client: &mut Client, identifier: &str, streams: &[&str]) {
        client.command("subscribe", identifier);
        let call = self.call();
        self.answer(
            call,
            json!({ "status": 1, "streams": streams, "transmissions": ["confirm"] }),
        );
        assert_eq!(client.next(), "confirm");
    }

    /// Reads the welcome of a public client and lets it listen to `stream`. Returns the identifier.
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

    /// The next call to the app; waits for the client's command when there is none yet.
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
        let body = self.sessions.call_body(call.session, &call.purpose);
        let body = body.expect("the session lives");
        Call {
            session: call.session,
            purpose: call.purpose,
            body: serde_json::from_slice(&body).expect("JSON"),
            sid,
            handle: call.handle,
        }
    }

    fn result(&mut self, call: Call, result: Result<Vec<u8>, RpcError>) {
        let departed = call.handle.take_departed();
        self.turn(|sessions| match departed {
            Some(departed) => sessions.on_late_result(departed, &call.purpose, result),
            None => sessions.on_call_result(call.session, call.purpose, result),
        });
    }

    fn answer(&mut self, call: Call, answer: Value) {
        self.result(call, Ok(answer.to_string().into_bytes()));
    }

    /// The sids that a Disconnect call is owed for.
    fn disconnect_jobs(&mut self) -> Vec<String> {
        let sids = self.actions.drain(..).filter_map(|action| match action {
            Action::Disconnect(farewell) => Some(farewell.sid().to_string()),
            Action::Canceled(_) => None,
            Action::Call(_) => panic!("a call"),
            Action::Publish(_) => panic!("a publication"),
            Action::Watch => panic!("the console"),
        });
        sids.collect()
    }

    fn broadcast(&mut self, publication: &Publication) {
        self.turn(|sessions| fan_out(sessions, publication));
    }

    /// Broadcasts big messages to `x` until a socket takes no more. Returns how many.
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

struct Call {
    session: SessionRef,
    purpose: CallPurpose,
    body: Value,
    sid: Box<str>,
    handle: std::rc::Rc<calls::CallHandle>,
}

impl Call {
    fn is_canceled(&self) -> bool {
        self.handle.is_canceled()
    }
}

/// The far end.
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

    /// The next frame: a text as it is, others with their kind in front; `end` when the server has closed.
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

    /// Everything that comes, to the end.
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
            Inflater::new()
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
        exclude_socket: None,
        broadcast_type: None,
    }
}

/// 20 kB that begin with their number.
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

// ---- opening -------------------------------------------------------------------------------------------------------

#[test]
fn the_app_welcomes_a_client() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|_| ());
        let call = bench.call();
        assert!(matches!(call.purpose, CallPurpose::Connect));
        assert_eq!(
            (&*call.sid, &call.body),
            ("s1", &json!({ "env": { "url": "u" } }))
        );
        assert!(client.got_nothing());
        assert_eq!((bench.clients(), bench.survey().identities.len()), (0, 0));
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": [WELCOME, "more"] }),
        );
        assert_eq!(
            (client.next(), client.next()),
            (WELCOME.into(), "more".into())
        );
        assert_eq!((bench.clients(), bench.survey().identities.len()), (1, 1));
        assert_eq!(bench.counters().rpc_call_total.value(), 1);
        assert_eq!(bench.counters().server_msg_total.value(), 2);
        assert!(bench.actions.is_empty());
    });
}

#[test]
fn a_refused_client_hears_why_and_is_gone() {
    type Answered = fn() -> Result<Vec<u8>, RpcError>;
    fn check(answer: Answered, frames: &[&str], auths: u64, errors: u64, rpc_errors: u64) {
        on_both(WITH_RPC, |bench| {
            let mut client = bench.open(|_| ());
            let call = bench.call();
            bench.result(call, answer());
            assert_eq!(client.rest(), frames);
            let counters = bench.counters();
            assert_eq!(counters.failed_auths_total.value(), auths);
            assert_eq!(counters.closed_auth_total.value(), auths);
            assert_eq!(counters.closed_error_total.value(), errors);
            assert_eq!(counters.rpc_error_total.value(), rpc_errors);
            assert_eq!(bench.clients(), 0);
            assert!(bench.disconnect_jobs().is_empty());
        });
    }
    check(
        || Ok(br#"{"status":2,"transmissions":["no"]}"#.into()),
        &["no", "close 1000 Auth Failed", "end"],
        1,
        0,
        0,
    );
    let failed = &["close 1011 Auth Error", "end"];
    check(
        || Ok(br#"{"status":0,"transmissions":["no"]}"#.into()),
        failed,
        0,
        1,
        0,
    );
    check(|| Ok(b"<html>".into()), failed, 0, 1, 1);
    check(|| Err(RpcError::Status { status: 500 }), failed, 0, 1, 0);
    check(|| Err(RpcError::BreakerOpen), failed, 0, 1, 0);
}

#[test]
fn a_permit_is_held_as_long_as_the_socket() {
    on_both(PUBLIC, |bench| {
        let limit = ConnectionLimit::new(1, Arc::default(), usize::MAX);
        let client = bench.open(|new| new.permit = limit.try_acquire().ok());
        assert!(limit.try_acquire().is_err());
        drop(client);
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(limit.try_acquire().is_ok());
        let mut refused = bench.open(|new| new.permit = limit.try_acquire().ok());
        bench.disconnect_remotely(r#"{"sid":"s2"}"#, false);
        assert_eq!(refused.rest().last().map(String::as_str), Some("end"));
        assert!(limit.try_acquire().is_ok());
    });
}

// ---- commands ------------------------------------------------------------------------------------------------------

/// Source: contract/websocket.md §14.
#[test]
fn commands_that_arrive_before_the_welcome_wait_and_keep_their_order() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|new| {
            new.early_input = masked(0x81, br#"{"command":"subscribe","identifier":"A"}"#);
        });
        let connect = bench.call();
        let commands = [
            ("subscribe", "A"),
            ("message", "A"),
            ("unsubscribe", "A"),
            ("message", "A"),
            ("subscribe", "B"),
            ("ping", ""),
        ];
        for (command, identifier) in commands {
            client.command(command, identifier);
        }
        bench.harvest();
        assert!(client.got_nothing() && bench.actions.is_empty());
        bench.answer(
            connect,
            json!({ "status": 1, "transmissions": ["welcome"] }),
        );
        for (command, identifier) in [
            ("subscribe", "A"),
            ("message", "A"),
            ("unsubscribe", "A"),
            ("subscribe", "B"),
        ] {
            let call = bench.call();
            assert_eq!(
                (&call.body["command"], &call.body["identifier"]),
                (&json!(command), &json!(identifier))
            );
            bench.harvest();
            assert!(bench.actions.is_empty(), "one call of a session at a time");
            bench.answer(
                call,
                json!({ "status": 1, "transmissions": [format!("{command} {identifier}")] }),
            );
        }
        for frame in [
            "welcome",
            "subscribe A",
            "message A",
            "unsubscribe A",
            "subscribe B",
            r#"{"type":"pong"}"#,
        ] {
            assert_eq!(client.next(), frame, "{}", bench.driver);
        }
        assert_eq!(bench.counters().client_msg_total.value(), 7);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 2);
        assert_eq!(bench.counters().rpc_call_total.value(), 5);
        client.send(&masked(0x88, b"\x0f\xa1bye"));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(client.rest(), ["close 4001 ", "end"]);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
    });
}

#[test]
fn a_command_may_arrive_in_any_two_pieces() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        let frame = masked(0x81, br#"{"command":"ping"}"#);
        for cut in 1..frame.len() {
            client.send(&frame[..cut]);
            bench.harvest();
            client.send(&frame[cut..]);
            bench.until_count(|counters| &counters.server_msg_total, 1 + cut as u64);
            assert_eq!(client.next(), r#"{"type":"pong"}"#);
        }
    });
}

#[test]
fn more_input_than_one_turn_may_read_is_served_to_the_last_byte() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        let ignored = masked(0x81, format!("null{}", " ".repeat(60_000)).as_bytes());
        let mut writer = client.socket.try_clone().expect("dup");
        let flood = std::thread::spawn(move || {
            for _ in 0..20 {
                writer.write_all(&ignored).expect("the server reads");
            }
            writer
                .write_all(&masked(0x81, br#"{"command":"ping"}"#))
                .expect("the server reads");
        });
        bench.until_count(|counters| &counters.server_msg_total, 2);
        flood.join().expect("writer");
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        assert_eq!(bench.counters().data_rcvd_total.value(), 20 * 60_004 + 18);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 0);
    });
}

#[test]
fn a_message_that_is_no_command_is_counted_and_the_session_lives() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        for text in [
            "",
            "[]",
            "nope",
            r#"{"command":5}"#,
            "null",
            r#"{"command":"dance"}"#,
            r#"{"command":"ping"}"#,
        ] {
            client.say(text);
        }
        bench.until_count(|counters| &counters.server_msg_total, 2);
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 5);
        assert_eq!(bench.counters().client_msg_total.value(), 2);
    });
}

#[test]
fn a_failed_call_is_counted_and_the_next_command_runs() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        type Failure = fn() -> Result<Vec<u8>, RpcError>;
        let failures: [Failure; 3] = [
            || Err(RpcError::Status { status: 500 }),
            || Ok(b"nope".into()),
            || Ok(br#"{"error_msg":"no"}"#.into()),
        ];
        for failure in failures {
            client.command("subscribe", "A");
            let call = bench.call();
            bench.result(call, failure());
        }
        bench.subscribe(&mut client, "A", &["x"]);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 3);
        assert_eq!(bench.counters().rpc_call_total.value(), 5);
        assert_eq!(
            bench.counters().rpc_error_total.value(),
            1,
            "the unreadable one"
        );
    });
}

#[test]
fn what_an_answer_says_comes_before_the_close_it_asks_for() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        bench.subscribe(&mut client, "A", &["x"]);
        client.command("message", "A");
        client.command("ping", "");
        let call = bench.call();
        bench.answer(
            call,
            json!({ "status": 1, "disconnect": true, "transmissions": ["bye"] }),
        );
        assert_eq!(client.rest(), ["bye", "close 1006 Command Failed", "end"]);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (0, 0));
    });
}

#[test]
fn native_pings_are_echoed_and_violations_close_the_connection() {
    fn check(bytes: &[u8], expected: &str) {
        on_both(PUBLIC, |bench| {
            let mut client = bench.open(|_| ());
            client.next();
            client.send(&masked(0x89, b"hi"));
            client.send(bytes);
            bench.until_count(|counters| &counters.closed_protocol_error_total, 1);
            assert_eq!(
                client.rest(),
                ["pong hi", expected, "end"],
                "{}",
                bench.driver
            );
            assert_eq!(bench.clients(), 0);
        });
    }
    check(b"\x81\x02{}", "close 1002 bad MASK");
    check(&masked(0x83, b""), "close 1002 bad opcode 3");
    check(
        b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00",
        "close 1009 ",
    );
}

// ---- late answers and stale events ---------------------------------------------------------------------------------

#[test]
fn a_late_answer_for_a_slot_that_was_used_again_falls_on_the_floor() {
    on_both(WITH_RPC, |bench| {
        drop(bench.open(|_| ()));
        let late = bench.call();
        assert!(!late.is_canceled());
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(late.is_canceled());
        let mut client = bench.open(|_| ());
        let call = bench.call();
        assert_eq!(call.session.slot, late.session.slot);
        assert_ne!(call.session.generation, late.session.generation);
        bench.answer(
            late,
            json!({ "status": 1, "identifiers": "other", "transmissions": ["not yours"] }),
        );
        assert_eq!(bench.counters().late_results_total.value(), 1);
        assert_eq!((bench.clients(), client.got_nothing()), (0, true));
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["yours"] }),
        );
        assert_eq!(client.next(), "yours");
        assert!(
            bench.disconnect_jobs().is_empty(),
            "the first was never authenticated"
        );
    });
}

#[test]
fn an_answer_for_a_session_that_is_closing_falls_on_the_floor() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", "A");
        let call = bench.call();
        bench.disconnect_remotely("u", false);
        assert!(call.is_canceled());
        bench.answer(
            call,
            json!({ "status": 1, "streams": ["x"], "transmissions": ["late"] }),
        );
        assert_eq!(client.rest().len(), 3, "notice, close and end");
        assert_eq!(bench.counters().late_results_total.value(), 1);
        assert_eq!(bench.survey().streams.len(), 0);
    });
}

#[test]
fn a_stale_event_does_nothing_to_the_next_session_in_the_slot() {
    on_both(PUBLIC, |bench| {
        let mut first = bench.open(|_| ());
        first.next();
        // The event is in the completion queue when the session ends.
        first.say(r#"{"command":"ping"}"#);
        bench.disconnect_remotely(r#"{"sid":"s1"}"#, false);
        let mut second = bench.open(|_| ());
        bench.harvest();
        if bench.driver == "io_uring" {
            assert!(bench.counters().stale_events_total.value() > 0);
        }
        assert!(second.next().contains("welcome"));
        assert_eq!(bench.counters().client_msg_total.value(), 0);
        second.say(r#"{"command":"ping"}"#);
        bench.until_count(|counters| &counters.client_msg_total, 1);
        assert_eq!(second.next(), r#"{"type":"pong"}"#);
        assert!(
            first
                .rest()
                .contains(&"close 1000 Closed remotely".to_string())
        );
    });
}

// ---- the client goes -----------------------------------------------------------------------------------------------

#[test]
fn a_client_that_leaves_during_a_command_is_noticed_when_the_answer_is_there() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", "A");
        let call = bench.call();
        drop(client);
        for _ in 0..10 {
            bench.harvest();
        }
        assert_eq!((bench.clients(), call.is_canceled()), (1, false));
        bench.answer(call, json!({ "status": 1, "streams": ["x"] }));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (0, 0));
    });
}

#[test]
fn a_connect_that_was_sent_comes_to_its_end_without_its_client() {
    on_both(WITH_RPC, |bench| {
        drop(bench.open(|_| ()));
        let call = bench.call();
        call.handle.note_sent();
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(!call.is_canceled());
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["late"] }),
        );
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!(bench.clients(), 0);
    });
}

#[test]
fn a_drain_waits_for_the_calls_that_sessions_have_left_behind() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|_| ());
        let call = bench.call();
        call.handle.note_sent();
        bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        drop(client);
        bench.until_empty();
        assert!(bench.sessions.take_drained().is_none());
        bench.answer(call, json!({ "status": 1, "identifiers": "u" }));
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert!(bench.sessions.take_drained().is_some());
    });
}

#[test]
fn two_sessions_may_have_the_same_sid() {
    on_both(WITH_RPC, |bench| {
        let mut twins: Vec<Client> = (0..2)
            .map(|_| {
                let mut client = bench.open(|new| new.sid = "twin".into());
                let call = bench.call();
                bench.answer(
                    call,
                    json!({ "status": 1, "identifiers": "u", "transmissions": ["welcome"] }),
                );
                assert_eq!(client.next(), "welcome");
                bench.subscribe(&mut client, "A", &["x"]);
                client
            })
            .collect();
        bench.broadcast(&message("x", "1"));
        for twin in &mut twins {
            assert_eq!(twin.next(), delivery("A", "1"));
        }
        drop(twins.remove(0));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(bench.clients(), 1);
        bench.broadcast(&message("x", "2"));
        bench.disconnect_remotely("u", true);
        let notice = r#"{"type":"disconnect","reason":"remote","reconnect":true}"#;
        let expected = [
            &*delivery("A", "2"),
            notice,
            "close 1000 Closed remotely",
            "end",
        ];
        assert_eq!(twins[0].rest(), expected);
        assert_eq!(bench.disconnect_jobs(), ["twin", "twin"]);
    });
}

// ---- fan-out -------------------------------------------------------------------------------------------------------

/// Source: contract/broadcast.md §10.
#[test]
fn a_publication_reaches_everybody_once_per_identifier() {
    on_both(WITH_RPC, |bench| {
        let mut first = bench.welcomed("u1");
        let mut second = bench.welcomed("u2");
        bench.subscribe(&mut first, "A", &["x"]);
        bench.subscribe(&mut first, "B", &["x", "y"]);
        bench.subscribe(&mut second, "A", &["x"]);

        bench.broadcast(&message("x", "1"));
        let mut got = [first.next(), first.next()];
        got.sort();
        assert_eq!(got, [delivery("A", "1"), delivery("B", "1")]);
        assert_eq!(second.next(), delivery("A", "1"));

        bench.broadcast(&message("y", "2"));
        assert_eq!(first.next(), delivery("B", "2"));

        bench.broadcast(&Publication {
            exclude_socket: Some("s1".into()),
            ..message("x", "3")
        });
        assert_eq!(second.next(), delivery("A", "3"));

        bench.broadcast(&Publication {
            broadcast_type: Some("whisper".into()),
            ..message("x", "4")
        });
        assert_eq!(
            second.next(),
            r#"{"type":"whisper","identifier":"A","message":4}"#
        );
        assert!(
            first
                .next()
                .starts_with(r#"{"type":"whisper","identifier":"#)
        );
        first.next();

        bench.broadcast(&message("nosuch", "5"));
        assert!(first.got_nothing() && second.got_nothing());
        assert_eq!(bench.counters().deliveries_total.value(), 3 + 1 + 1 + 3);
    });
}

#[test]
fn a_whisper_is_handed_out_and_its_sender_gets_nothing() {
    on_both(PUBLIC, |bench| {
        let mut sender = bench.open(|_| ());
        let identifier = bench.listen(&mut sender, "x");
        let mut other = bench.listener("x");
        sender.command("whisper", &identifier);
        bench.until("publication", |bench| !bench.actions.is_empty());
        let Some(Action::Publish(whisper)) = bench.actions.pop_front() else {
            panic!("{}: no publication", bench.driver);
        };
        bench.broadcast(&whisper);
        assert_eq!(other.next(), delivery(&identifier, r#""d""#));
        assert!(sender.got_nothing());
    });
}

#[test]
fn a_burst_is_gathered_into_one_write_per_client() {
    on_both(PUBLIC, |bench| {
        let mut clients: Vec<Client> = (0..3).map(|_| bench.listener("x")).collect();
        let before = bench.counters().writes_total.value();
        bench.turn(|sessions| {
            for number in 0..50 {
                fan_out(sessions, &message("x", &number.to_string()));
            }
        });
        for client in &mut clients {
            for number in 0..50 {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
        assert_eq!(bench.counters().deliveries_total.value(), 150);
        assert_eq!(bench.counters().writes_total.value() - before, 3);
    });
}

#[test]
fn more_frames_than_one_write_takes_keep_their_order() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.listener("x");
        bench.turn(|sessions| {
            for number in 0..1000 {
                fan_out(sessions, &message("x", &number.to_string()));
            }
        });
        bench.flush();
        for number in 0..1000 {
            assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
        }
        assert_eq!(bench.outbox_bytes(), 0);
        assert_eq!(bench.counters().server_msg_total.value(), 2 + 1000);
    });
}

#[test]
fn a_turn_with_very_many_deliveries_is_flushed_in_between() {
    on_both(PUBLIC, |bench| {
        let mut clients: Vec<Client> = (0..100).map(|_| bench.listener("x")).collect();
        let before = bench.counters().writes_total.value();
        let count = BATCH_DELIVERIES_MAX / 100 + 50;
        for number in 0..count {
            fan_out_in_turns(bench, &message("x", &number.to_string()));
        }
        assert!(
            bench.counters().writes_total.value() > before,
            "{}",
            bench.driver
        );
        bench.flush();
        for client in &mut clients {
            for number in 0..count {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
    });
}

#[test]
fn large_frames_for_few_sessions_are_written_before_they_fill_the_memory() {
    on_both(PUBLIC, |bench| {
        let _client = bench.listener("x");
        let text = format!("\"{}\"", "x".repeat(BATCH_FRAME_BYTES_MAX / 4));
        let before = bench.counters().writes_total.value();
        for _ in 0..3 {
            fan_out_in_turns(bench, &message("x", &text));
        }
        assert_eq!(bench.counters().writes_total.value(), before);
        fan_out_in_turns(bench, &message("x", &text));
        assert!(bench.counters().writes_total.value() > before);
    });
}

#[test]
fn what_comes_while_many_sessions_are_written_is_gathered_with_it() {
    on_both(PUBLIC, |bench| {
        const MORE: usize = 40;
        let mut clients: Vec<Client> = (0..FLUSHES_PER_TURN_MAX + MORE)
            .map(|_| bench.listener("x"))
            .collect();
        let before = bench.counters().writes_total.value();
        let writes = |bench: &Bench| (bench.counters().writes_total.value() - before) as usize;
        bench.turn(|sessions| fan_out(sessions, &message("x", "1")));
        assert!(bench.sessions.has_unflushed());
        let first = writes(bench);
        assert!((1..=FLUSHES_PER_TURN_MAX).contains(&first), "{first}");
        bench.turn(|sessions| fan_out(sessions, &message("x", "2")));
        bench.flush();
        // Those who had to wait got both messages with one write.
        assert_eq!(writes(bench), first + FLUSHES_PER_TURN_MAX + MORE);
        for client in &mut clients {
            for number in 1..=2 {
                assert!(client.next().ends_with(&format!(r#""message":{number}}}"#)));
            }
        }
    });
}

#[test]
fn who_asked_for_compression_gets_it_and_others_do_not() {
    on_both(PUBLIC, |bench| {
        let mut deflated = bench.open(|new| new.deflate = true);
        assert_eq!(deflated.next(), r#"deflated {"type":"welcome","sid":"s1"}"#);
        let identifier = r#"{"channel":"$pubsub","stream_name":"x"}"#;
        deflated.command("subscribe", identifier);
        bench.until_count(|counters| &counters.server_msg_total, 2);
        assert!(deflated.next().starts_with("deflated {\"type\":\"confirm"));
        let mut plain = bench.listener("x");
        bench.broadcast(&message("x", "1"));
        assert_eq!(
            deflated.next(),
            format!("deflated {}", delivery(identifier, "1"))
        );
        assert_eq!(plain.next(), delivery(identifier, "1"));
    });
}

// ---- slow clients --------------------------------------------------------------------------------------------------

const NARROW: &[&str] = &[
    "--norpc",
    "--public",
    "--ping_interval=0",
    "--ws_max_pending_size=100000",
];

#[test]
fn a_client_beyond_its_limit_is_told_so_and_others_are_not_held_up() {
    on_both(NARROW, |bench| {
        let mut slow = bench.open_narrow();
        let identifier = bench.listen(&mut slow, "x");
        let mut fast = bench.listener("x");
        let mut sent = 0;
        while bench.counters().disconnected_slow_clients_total.value() == 0 {
            sent += 1;
            assert!(sent < 1000, "the socket takes everything");
            bench.broadcast(&big_message(sent));
            bench.flush();
            assert!(
                fast.next().contains(&format!("\"{sent}0")),
                "{}",
                bench.driver
            );
        }
        assert_eq!(bench.counters().closed_too_slow_total.value(), 1);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (1, 1));
        bench.broadcast(&big_message(sent + 1));
        bench.flush();
        fast.next();

        let reader = std::thread::spawn(move || slow.rest());
        bench.until("empty outbox", |bench| bench.outbox_bytes() == 0);
        let got = reader.join().expect("reader");
        let [deliveries @ .., notice, close, end] = got.as_slice() else {
            panic!("{got:?}")
        };
        assert_eq!(
            [&**notice, close, end],
            [TOO_SLOW, "close 1000 ", "end"],
            "{}",
            bench.driver
        );
        // 100 kB were queued: beside one frame that may be half written, four whole ones, and the one that was too much.
        assert!(!deliveries.is_empty(), "{}", bench.driver);
        assert!(
            deliveries.len() + 5 <= sent,
            "{}: what was queued is dropped",
            bench.driver
        );
        for (index, frame) in deliveries.iter().enumerate() {
            let Publication { message, .. } = big_message(index + 1);
            let message = String::from_utf8(message.into()).expect("UTF-8");
            assert!(
                *frame == delivery(&identifier, &message),
                "{} frame {index}",
                bench.driver
            );
        }
    });
}

/// Publishes more than may wait, and a message that is being written.
fn overfill(bench: &mut Bench) {
    let sent = bench.broadcast_until_blocked();
    for number in sent + 1..=sent + 8 {
        bench.broadcast(&big_message(number));
    }
    assert!(bench.outbox_bytes() > 120_000);
}

#[test]
fn a_client_that_takes_nothing_is_slow_after_a_while_and_not_at_once() {
    on_both(NARROW, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        overfill(bench);
        bench.wait(Duration::from_millis(1450));
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(200));
        let counters = bench.counters();
        assert_eq!(counters.disconnected_slow_clients_total.value(), 1);
        assert_eq!(counters.closed_too_slow_total.value(), 1);
        assert_eq!(counters.session_bytes_exceeded_total.value(), 0);
    });
}

/// The client reads all the time, but the shard does not come to look at its sockets.
#[test]
fn a_busy_shard_does_not_take_its_own_delay_for_the_clients() {
    on_both(NARROW, |bench| {
        // Only the server's side is narrow: a client's tiny buffer would drop segments, and wait for them to come again.
        let mut eager = bench.open(|new| {
            let socket = SockRef::from(&new.socket);
            socket
                .set_send_buffer_size(8 << 10)
                .expect("an option of every socket");
        });
        bench.listen(&mut eager, "x");
        overfill(bench);
        eager.socket.set_nonblocking(true).expect("nonblocking");
        let mut buffer = [0; 1 << 16];
        let deadline = Instant::now() + PATIENCE;
        while bench.outbox_bytes() > 0 && bench.clients() == 1 {
            assert!(
                Instant::now() < deadline,
                "{}: it stands still",
                bench.driver
            );
            while eager.socket.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
            // The client's kernel takes its time to acknowledge what has been read.
            std::thread::sleep(Duration::from_millis(20));
            // Time passes and ticks come, events do not.
            bench.wait(Duration::from_millis(100));
        }
        assert_eq!(
            bench.counters().disconnected_slow_clients_total.value(),
            0,
            "{}",
            bench.driver
        );
        assert_eq!((bench.clients(), bench.outbox_bytes()), (1, 0));
    });
}

#[test]
fn a_session_that_holds_all_it_may_is_dropped_at_once() {
    let args = [NARROW, &["--session_bytes_max=200000"]].concat();
    on_both(&args, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        let mut number = 0;
        while bench.counters().disconnected_slow_clients_total.value() == 0 {
            number += 1;
            assert!(number < 1000 && bench.outbox_bytes() < 225_000);
            bench.broadcast(&big_message(number));
        }
        assert_eq!(bench.counters().session_bytes_exceeded_total.value(), 1);
    });
}

#[test]
fn a_slow_client_that_never_reads_loses_its_socket_at_the_write_deadline() {
    on_both(NARROW, |bench| {
        let mut slow = bench.open_narrow();
        bench.listen(&mut slow, "x");
        for number in 1..1000 {
            bench.broadcast(&big_message(number));
            if bench.counters().disconnected_slow_clients_total.value() == 1 {
                break;
            }
        }
        assert!(
            bench.outbox_bytes() > 0,
            "a half written frame and the notice"
        );
        bench.wait(Duration::from_millis(2200));
        assert_eq!(bench.outbox_bytes(), 0, "{}", bench.driver);
        assert_eq!(bench.counters().closed_too_slow_total.value(), 1);
        assert_eq!(
            bench.counters().closed_write_timeout_total.value(),
            0,
            "one close, one cause"
        );
        bench.close_all();
        assert!(bench.sessions.take_drained().is_some(), "no socket is left");
    });
}

#[test]
fn a_client_that_takes_nothing_gets_no_pings_on_top() {
    on_both(&["--norpc", "--public", "--ping_interval=1"], |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        let before = bench.outbox_bytes();
        bench.wait(Duration::from_millis(1900));
        assert_eq!((bench.clients(), bench.outbox_bytes()), (1, before));
    });
}

#[test]
fn a_client_that_takes_nothing_is_closed_at_the_write_deadline_and_not_before() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        bench.wait(Duration::from_millis(1950));
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(150));
        let counters = bench.counters();
        assert_eq!(bench.clients(), 0, "{}", bench.driver);
        assert_eq!(counters.closed_write_timeout_total.value(), 1);
        assert_eq!(counters.timeout_server_msg_total.value(), 1);
        assert_eq!(counters.failed_server_msg_total.value(), 1);
        assert_eq!(counters.disconnected_slow_clients_total.value(), 0);
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn a_client_that_takes_a_message_in_time_gets_more_time() {
    on_both(PUBLIC, |bench| {
        let mut lazy = bench.open_narrow();
        bench.listen(&mut lazy, "x");
        let sent = bench.broadcast_until_blocked();
        let mut read = 0;
        for number in sent + 1..=sent + 5 {
            bench.wait(Duration::from_millis(1500));
            bench.broadcast(&big_message(number));
            while read < number - 1 {
                read += 1;
                assert!(lazy_next(bench, &mut lazy).contains(&format!("\"{read}0")));
            }
        }
        assert_eq!(
            (
                bench.clients(),
                bench.counters().closed_write_timeout_total.value()
            ),
            (1, 0)
        );
    });
}

/// The next frame of a client whose messages do not fit into its socket: the server has to write while it reads.
fn lazy_next(bench: &mut Bench, client: &mut Client) -> String {
    client.socket.set_nonblocking(true).expect("nonblocking");
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 4096];
    let (head, payload) = loop {
        if let Some(frame) = client.take_frame() {
            break frame;
        }
        assert!(Instant::now() < deadline, "{}: nothing came", bench.driver);
        match client.socket.read(&mut buffer) {
            Ok(bytes) => client.unread.extend_from_slice(&buffer[..bytes]),
            Err(_) => bench.harvest(),
        }
    };
    client.socket.set_nonblocking(false).expect("blocking");
    shown(head, payload)
}

#[test]
fn a_client_that_asks_and_does_not_read_is_slow_too() {
    let args = [
        "--norpc",
        "--public",
        "--ping_interval=0",
        "--ws_max_pending_size=1000",
    ];
    on_both(&args, |bench| {
        let mut client = bench.open_narrow();
        let ping = masked(0x81, br#"{"command":"ping"}"#).repeat(100);
        client.socket.set_nonblocking(true).expect("nonblocking");
        for _ in 0..10_000 {
            // A full socket only means that the server has to read first.
            let _ = client.socket.write(&ping);
            bench.harvest();
        }
        // It is not read any more long before it has asked a million times.
        assert!(bench.outbox_bytes() < 20_000, "{}", bench.driver);
        assert_eq!(bench.clients(), 1, "{}", bench.driver);
        bench.wait(Duration::from_millis(1700));
        assert_eq!(
            bench.counters().disconnected_slow_clients_total.value(),
            1,
            "{}",
            bench.driver
        );
        bench.wait(Duration::from_millis(2200));
        assert_eq!((bench.clients(), bench.outbox_bytes()), (0, 0));
    });
}

#[test]
fn a_client_that_breaks_off_with_messages_queued_leaves_nothing_behind() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        assert!(bench.outbox_bytes() > 0);
        drop(stuck);
        bench.until("closed session", |bench| bench.clients() == 0);
        bench.until("empty outbox", |bench| bench.outbox_bytes() == 0);
        assert_eq!(bench.counters().closed_client_total.value(), 1);
        assert_eq!(bench.survey().streams.len(), 0);
    });
}

// ---- pings and pongs -----------------------------------------------------------------------------------------------

/// Lets time pass and returns the ticks at which each client got something.
fn ticks_with_input(bench: &mut Bench, clients: &mut [Client], ticks: u32) -> Vec<Vec<u32>> {
    let mut seen = vec![Vec::new(); clients.len()];
    for tick in 1..=ticks {
        bench.wait(TICK);
        for (client, seen) in clients.iter_mut().zip(&mut seen) {
            if !client.got_nothing() {
                assert!(client.next().starts_with(r#"{"type":"ping","message":"#));
                seen.push(tick);
            }
        }
    }
    seen
}

/// Source: contract/websocket.md §10.
#[test]
fn pings_begin_at_random_and_then_keep_their_interval() {
    on_both(&["--norpc", "--public", "--ping_interval=2"], |bench| {
        let mut clients: Vec<Client> = (0..30).map(|_| bench.open(|_| ())).collect();
        clients
            .iter_mut()
            .for_each(|client| assert!(client.next().contains("welcome")));
        let sent = bench.counters().data_sent_total.value();
        let seen = ticks_with_input(bench, &mut clients, 200);
        let first: Vec<u32> = seen.iter().map(|ticks| ticks[0]).collect();
        assert!(
            first.iter().all(|tick| (19..=62).contains(tick)),
            "{first:?}"
        );
        assert!(first.iter().min() < first.iter().max(), "spread: {first:?}");
        for ticks in &seen {
            assert!(
                ticks.windows(2).all(|pair| pair[1] - pair[0] == 40),
                "{ticks:?}"
            );
            assert!(ticks.len() >= 4);
        }
        let pings: usize = seen.iter().map(Vec::len).sum();
        assert_eq!(
            bench.counters().server_msg_total.value(),
            30,
            "pings are no messages"
        );
        let ping_bytes = r#"{"type":"ping","message":1700000000}"#.len();
        assert_eq!(
            bench.counters().data_sent_total.value() - sent,
            (pings * ping_bytes) as u64
        );
    });
}

#[test]
fn a_client_chooses_its_interval_and_precision() {
    fn check(secs: Option<i64>, precision: Option<PingPrecision>, digits: Option<usize>) {
        on_both(&["--norpc", "--public", "--ping_interval=1"], |bench| {
            let mut client = bench.open(|new| {
                new.ping_interval_secs = secs;
                new.ping_precision = precision;
            });
            client.next();
            bench.wait(Duration::from_secs(2));
            match digits {
                None => assert!(client.got_nothing()),
                Some(digits) => {
                    let bytes = r#"{"type":"ping","message":}"#.len() + digits;
                    assert_eq!(client.next().len(), bytes);
                }
            }
        });
    }
    check(None, None, Some(10));
    check(None, Some(PingPrecision::Seconds), Some(10));
    check(None, Some(PingPrecision::Milliseconds), Some(13));
    check(Some(1), Some(PingPrecision::Nanoseconds), Some(19));
    check(Some(0), None, None);
    check(Some(-1), None, None);
    check(Some(i64::MAX), None, None);
}

#[test]
fn native_pings_follow_the_ping_message() {
    on_both(
        &[
            "--norpc",
            "--public",
            "--ping_interval=1",
            "--enable_native_pings",
        ],
        |bench| {
            let mut client = bench.open(|_| ());
            client.next();
            bench.wait(Duration::from_millis(1600));
            assert!(client.next().starts_with(r#"{"type":"ping""#));
            assert_eq!(client.next(), "ping ");
        },
    );
}

const PONGS: &[&str] = &[
    "--norpc",
    "--public",
    "--ping_interval=1",
    "--pong_timeout=2",
];
const NO_PONG: &[&str] = &[
    r#"{"type":"disconnect","reason":"no_pong","reconnect":true}"#,
    "close 1000 No Pong",
    "end",
];

#[test]
fn a_silent_client_is_closed_when_pongs_are_required() {
    on_both(PONGS, |bench| {
        let mut silent = bench.open(|new| new.extended = true);
        let mut talker = bench.open(|new| new.extended = true);
        let base = bench.open(|_| ());
        for second in 1..=6 {
            bench.wait(Duration::from_secs(1));
            talker.say(r#"{"command":"pong"}"#);
            bench.until_count(|counters| &counters.client_msg_total, second);
        }
        assert_eq!(bench.clients(), 2, "{}", bench.driver);
        assert_eq!(bench.counters().closed_no_pong_total.value(), 1);
        let frames = silent.rest();
        assert_eq!(frames[frames.len() - 3..], *NO_PONG);
        drop(base);
    });
}

#[test]
fn no_pong_is_asked_of_a_client_that_is_not_read() {
    let args = [
        "--rpc_host=http://localhost:1/",
        "--ping_interval=1",
        "--pong_timeout=1",
    ];
    on_both(&args, |bench| {
        let mut client = bench.open(|new| new.extended = true);
        let call = bench.call();
        // The answers to the pings wait in the socket behind the command.
        bench.wait(Duration::from_secs(4));
        client.say(r#"{"command":"pong"}"#);
        bench.answer(call, json!({ "status": 1, "identifiers": "u" }));
        client.command("subscribe", "A");
        let call = bench.call();
        bench.wait(Duration::from_secs(4));
        assert_eq!(
            bench.counters().closed_no_pong_total.value(),
            0,
            "{}",
            bench.driver
        );
        bench.answer(call, json!({ "status": 1 }));
        bench.wait(Duration::from_millis(900));
        assert_eq!(
            bench.clients(),
            1,
            "{}: a whole timeout from the answer on",
            bench.driver
        );
        bench.wait(Duration::from_secs(3));
        assert_eq!(bench.counters().closed_no_pong_total.value(), 1);
        let frames = client.rest();
        assert_eq!(frames[frames.len() - 3..], *NO_PONG);
    });
}

// ---- remote disconnect and drain -----------------------------------------------------------------------------------

#[test]
fn a_remote_disconnect_closes_every_session_of_the_user_and_nobody_else() {
    on_both(WITH_RPC, |bench| {
        let mut tabs = [bench.welcomed("u"), bench.welcomed("u")];
        let mut other = bench.welcomed("v");
        let mut waiting = bench.open(|_| ());
        let connect = bench.call();
        for identifiers in ["", "U", "u "] {
            bench.disconnect_remotely(identifiers, true);
        }
        assert_eq!(bench.clients(), 3);
        bench.disconnect_remotely("u", false);
        let notice = r#"{"type":"disconnect","reason":"remote","reconnect":false}"#;
        for tab in &mut tabs {
            assert_eq!(tab.rest(), [notice, "close 1000 Closed remotely", "end"]);
        }
        assert_eq!(
            (
                bench.clients(),
                bench.counters().closed_remote_total.value()
            ),
            (1, 2)
        );
        assert_eq!(bench.disconnect_jobs(), ["s1", "s2"]);
        bench.subscribe(&mut other, "A", &["x"]);
        bench.answer(
            connect,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["welcome"] }),
        );
        assert_eq!(waiting.next(), "welcome");
        bench.disconnect_remotely("u", true);
        assert!(waiting.next().ends_with(r#""reconnect":true}"#));
    });
}

const NOTICE: &[&str] = &[
    r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#,
    "close 1001 Server restart",
    "end",
];

#[test]
fn a_drain_tells_everybody_and_reports_when_the_last_socket_is_closed() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        let mut waiting = bench.open(|_| ());
        let connect = bench.call();
        let drained = bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        assert_eq!(waiting.rest(), NOTICE);
        assert!(connect.is_canceled());
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!(bench.counters().closed_shutdown_total.value(), 2);
        // Who was upgraded just now is told as well; nothing is asked about it.
        let mut late = bench.open(|new| new.early_input = masked(0x81, br#"{"command":"ping"}"#));
        assert_eq!(late.rest(), NOTICE);
        assert!(bench.actions.is_empty());
        drop((client, waiting, late));
        bench.until_empty();
        let done = bench.sessions.take_drained().expect("nobody is left");
        done.send(0).expect("the test listens");
        assert_eq!(drained.recv(), Ok(0));
        assert!(bench.sessions.take_drained().is_none(), "once");
    });
}

#[test]
fn a_drain_waits_for_a_client_that_does_not_read_until_its_deadline() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        let _drained = bench.close_all();
        assert!(bench.sessions.take_drained().is_none());
        bench.wait(Duration::from_millis(2200));
        assert!(bench.sessions.take_drained().is_some(), "{}", bench.driver);
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn a_drain_waits_a_moment_for_the_ends_of_its_clients() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        assert!(client.next().contains("welcome"));
        let _drained = bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        // What it still says is thrown away and does not reset the connection.
        client.say(r#"{"command":"ping"}"#);
        bench.wait(Duration::from_millis(900));
        bench.harvest();
        client.say(r#"{"command":"ping"}"#);
        assert!(bench.sessions.take_drained().is_none(), "{}", bench.driver);
        bench.wait(Duration::from_millis(200));
        assert!(bench.sessions.take_drained().is_some(), "{}", bench.driver);
    });
}

#[test]
fn a_slow_drain_tells_one_after_another_and_serves_the_others() {
    const CLIENTS: usize = 40;
    on_both(WITH_RPC, |bench| {
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| {
                let mut client = bench.welcomed("u");
                bench.subscribe(&mut client, "A", &["x"]);
                client
            })
            .collect();
        let _drained = bench.close_slowly(Duration::from_secs(4));
        assert_eq!(bench.told(), 0, "{}", bench.driver);
        bench.wait(Duration::from_secs(2));
        let told = bench.told() as usize;
        assert!((15..=25).contains(&told), "{}: {told}", bench.driver);
        assert_eq!(bench.disconnect_jobs().len(), told);
        bench.broadcast(&message("x", "1"));
        // It would be told in a moment anyway: the app is not asked.
        let mut late = bench.open(|_| ());
        assert_eq!(late.rest(), NOTICE);
        assert!(bench.actions.is_empty());
        bench.wait(Duration::from_secs(2));
        assert_eq!(bench.told() as usize, CLIENTS + 1, "{}", bench.driver);
        assert_eq!(bench.disconnect_jobs().len(), CLIENTS - told);
        let mut served = 0;
        for client in &mut clients {
            let heard = client.rest();
            let notice = heard.len() - NOTICE.len();
            assert_eq!(heard[notice..], *NOTICE);
            served += notice;
        }
        assert_eq!(
            served,
            CLIENTS - told,
            "one delivery for each who was there"
        );
        drop((clients, late));
        bench.until_empty();
        assert!(bench.sessions.take_drained().is_some());
    });
}

#[test]
fn a_slow_drain_does_not_begin_with_the_same_client_every_time() {
    let mut first = std::collections::HashSet::new();
    for _ in 0..12 {
        let reactor = Reactor::epoll().expect("epoll");
        let mut bench = Bench::new(PUBLIC, "epoll", reactor);
        let mut clients: Vec<Client> = (0..8).map(|_| bench.open(|_| ())).collect();
        let _drained = bench.close_slowly(Duration::from_secs(8));
        while bench.told() == 0 {
            bench.wait(TICK);
        }
        let told = |client: &mut Client| client.next().contains("welcome") && !client.got_nothing();
        first.insert(clients.iter_mut().position(told));
    }
    assert!(first.len() > 1, "{first:?}");
}

// ---- any order of anything -----------------------------------------------------------------------------------------

/// One turn each: what happens, and a number that says to whom and how.
fn any_turns() -> impl Strategy<Value = Vec<(u8, u8)>> {
    prop::collection::vec((0..10u8, any::<u8>()), 0..80)
}

fn name(number: u8, names: u8) -> &'static str {
    ["A", "B", "C"][usize::from(number % names)]
}

/// Clients that never read, and an app that answers in any order.
#[derive(Default)]
struct Crowd {
    clients: Vec<Client>,
    calls: Vec<Call>,
    registered: usize,
    disconnect_calls: usize,
}

impl Crowd {
    fn turn(&mut self, bench: &mut Bench, what: u8, number: u8) {
        match what {
            0 | 1 => self.clients.push(bench.open_narrow()),
            2..=4 if !self.clients.is_empty() => {
                let command = ["subscribe", "message", "unsubscribe"][usize::from(what - 2)];
                let text =
                    json!({ "command": command, "identifier": name(number, 3), "data": "d" })
                        .to_string();
                let index = usize::from(number) % self.clients.len();
                // The server may have closed it.
                let _ = self.clients[index]
                    .socket
                    .write_all(&masked(0x81, text.as_bytes()));
            }
            5 | 6 if !self.calls.is_empty() => {
                let call = self
                    .calls
                    .swap_remove(usize::from(number) % self.calls.len());
                self.answer(bench, call, number);
            }
            7 => bench.broadcast(&big_message(number.into())),
            8 if !self.clients.is_empty() => {
                self.clients
                    .swap_remove(usize::from(number) % self.clients.len());
            }
            8 => bench.disconnect_remotely(name(number, 2), true),
            9 => bench.wait(Duration::from_millis(u64::from(number) * 4)),
            _ => {}
        }
        if what == 6 {
            bench.disconnect_remotely(name(number, 2), true);
        }
        bench.harvest();
        self.sort(bench);
    }

    fn answer(&mut self, bench: &mut Bench, call: Call, number: u8) {
        let connects = matches!(call.purpose, CallPurpose::Connect);
        // Most clients get in.
        let status = if connects && !number.is_multiple_of(8) {
            1
        } else {
            number % 3
        };
        let late = bench.counters().late_results_total.value();
        bench.answer(
            call,
            json!({
                "status": status,
                "identifiers": name(number, 2),
                "streams": ["x", "y"],
                "stop_streams": number.is_multiple_of(5),
                "disconnect": number.is_multiple_of(11),
                "transmissions": ["t"],
            }),
        );
        let heard = bench.counters().late_results_total.value() == late;
        self.registered += usize::from(connects && status == 1 && heard);
    }

    fn sort(&mut self, bench: &mut Bench) {
        for action in bench.actions.drain(..) {
            match action {
                Action::Call(call) => self.calls.push(Call {
                    session: call.session,
                    purpose: call.purpose,
                    body: Value::Null,
                    sid: Box::default(),
                    handle: call.handle,
                }),
                Action::Canceled(_) => {}
                Action::Disconnect(_) => self.disconnect_calls += 1,
                Action::Publish(_) => panic!("nobody whispers"),
                Action::Watch => panic!("nobody watches"),
            }
        }
    }
}

fn closed(counters: &ShardMetrics) -> u64 {
    [
        &counters.closed_client_total,
        &counters.closed_remote_total,
        &counters.closed_no_pong_total,
        &counters.closed_too_slow_total,
        &counters.closed_write_timeout_total,
        &counters.closed_protocol_error_total,
        &counters.closed_auth_total,
        &counters.closed_shutdown_total,
        &counters.closed_error_total,
    ]
    .into_iter()
    .map(Counter::value)
    .sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn whatever_happens_nothing_is_left_behind(turns in any_turns()) {
        let args = [WITH_RPC[0], "--ping_interval=1", "--ws_max_pending_size=50000"];
        on_both(&args, |bench| {
            let mut crowd = Crowd::default();
            for &(what, number) in &turns {
                crowd.turn(bench, what, number);
                assert!(bench.clients() >= 0 && bench.outbox_bytes() >= 0, "{}", bench.driver);
            }
            let _drained = bench.close_all();
            bench.wait(Duration::from_millis(2200));
            crowd.sort(bench);
            while let Some(call) = crowd.calls.pop() {
                bench.answer(call, json!({ "status": 1, "streams": ["x"] }));
            }
            let survey = bench.survey();
            assert_eq!((bench.clients(), bench.outbox_bytes()), (0, 0), "{}", bench.driver);
            assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
            assert_eq!((survey.identities.len(), survey.streams.len()), (0, 0), "{}", bench.driver);
            assert_eq!(closed(bench.counters()), bench.opened as u64, "{}", bench.driver);
            assert_eq!(crowd.disconnect_calls, crowd.registered, "{}", bench.driver);
            assert!(bench.sessions.take_drained().is_some() && bench.actions.is_empty());
        });
    }
}

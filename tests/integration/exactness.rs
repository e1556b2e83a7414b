//! Clients that are cut at random moments and come back while numbered messages go out: each of them gets every message of
//! its streams once and in order.
//!
//! `RINGCABLE_LONG=200000` makes it 1,000 clients and so many messages.

use std::env;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use socket2::SockRef;

use crate::support::http::Broadcaster;
use crate::support::raw::{TEXT, frame, handshake};
use crate::support::{Driver, PATIENCE, Stage};

const STREAMS: usize = 8;
/// Streams of one client.
const OWN_STREAMS: usize = 2;
/// Publications of one request.
const BATCH: usize = 20;
const WORKERS: usize = 2;
const PUBLISHERS: usize = 2;
/// A restored client is promised everything if its questions are there within two seconds. One whose busy worker has needed
/// longer comes back once more.
const ASKS_WITHIN: Duration = Duration::from_secs(1);
/// Bytes of one read: few, so that all clients of a worker are served often.
const READ_BYTES: usize = 4 << 10;
/// Half-open connections that are kept per worker; the oldest is closed for one more.
const HALF_OPEN: usize = 50;

struct Size {
    clients: usize,
    /// For each stream.
    messages: u64,
    /// A client is cut after this many messages at the latest.
    cut_after_max: u64,
    /// No client gets anything for this long: the test has failed.
    patience: Duration,
}

fn size() -> Size {
    let long = env::var("RINGCABLE_LONG");
    match long.map(|messages| messages.parse::<u64>().expect("a number of messages")) {
        Ok(messages) => Size {
            clients: 1_000,
            messages: messages / STREAMS as u64,
            cut_after_max: messages / 30,
            patience: PATIENCE * 6,
        },
        Err(_) => Size {
            clients: 40,
            messages: 400,
            cut_after_max: 250,
            patience: PATIENCE,
        },
    }
}

/// Random numbers from a printed seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    cuts: AtomicU64,
    restored: AtomicU64,
    new: AtomicU64,
    replayed: AtomicU64,
    closed_by_server: AtomicU64,
    late: AtomicU64,
}

impl Counts {
    fn check(&self, size: &Size, time: Duration) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        println!(
            "{} clients, {} messages in {:?}: {} cuts, {} restored, {} new, {} replays, {} closed by the server, {} late",
            size.clients,
            count(&self.messages),
            time,
            count(&self.cuts),
            count(&self.restored),
            count(&self.new),
            count(&self.replayed),
            count(&self.closed_by_server),
            count(&self.late),
        );
        assert_eq!(
            count(&self.messages),
            size.clients as u64 * OWN_STREAMS as u64 * size.messages
        );
        assert!(
            count(&self.cuts) >= size.clients as u64,
            "the clients were cut"
        );
        assert!(count(&self.restored) > 0);
    }
}

/// A stream of a client, and the position of the last message.
struct Line {
    stream: usize,
    epoch: String,
    offset: u64,
    /// What the client has asked for it after its return, and when.
    asked: Option<(&'static str, Instant)>,
    /// Its history has been confirmed since.
    confirmed: bool,
}

struct Client {
    socket: Option<TcpStream>,
    unread: Vec<u8>,
    upgraded: bool,
    sid: Option<String>,
    lines: Vec<Line>,
    /// Messages until the next cut.
    left: u64,
    /// When it comes back, or has come back.
    back_at: Instant,
}

/// What all clients of a worker use.
struct Worker<'a> {
    address: SocketAddr,
    size: &'a Size,
    counts: &'a Counts,
    random: Random,
    half_open: Vec<TcpStream>,
    buffer: Vec<u8>,
}

fn identifier(stream: usize) -> String {
    json!({ "channel": "$pubsub", "stream_name": format!("s{stream}") }).to_string()
}

impl Client {
    fn new(number: usize, random: &mut Random, size: &Size) -> Self {
        let line = |own| Line {
            stream: (number + own * 3) % STREAMS,
            epoch: String::new(),
            offset: 0,
            asked: None,
            confirmed: false,
        };
        Self {
            socket: None,
            unread: Vec::new(),
            upgraded: false,
            sid: None,
            lines: (0..OWN_STREAMS).map(line).collect(),
            left: 1 + random.below(size.cut_after_max),
            back_at: Instant::now(),
        }
    }

    fn is_done(&self, size: &Size) -> bool {
        self.lines.iter().all(|line| line.offset == size.messages)
    }

    fn connect(&mut self, address: SocketAddr) {
        // Before the server can have restored anything.
        self.back_at = Instant::now();
        let mut socket =
            TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts");
        socket.set_nodelay(true).expect("an option of every socket");
        let target = match &self.sid {
            Some(sid) => format!("/cable?sid={sid}"),
            None => "/cable".to_owned(),
        };
        let head = handshake(
            &target,
            &["Sec-WebSocket-Protocol: actioncable-v1-ext-json"],
        );
        socket
            .write_all(head.as_bytes())
            .expect("room for a request");
        socket
            .set_nonblocking(true)
            .expect("an option of every socket");
        self.socket = Some(socket);
        self.unread.clear();
        self.upgraded = false;
        for line in &mut self.lines {
            (line.asked, line.confirmed) = (None, false);
        }
    }

    /// A command fits into the buffer of a socket that has nothing to send. The server may have closed.
    fn say(&mut self, command: &Value) {
        if let Some(socket) = &mut self.socket {
            let _ = socket.write_all(&frame(TEXT, command.to_string().as_bytes()));
        }
    }

    /// The text of the next frame.
    fn take_text(&mut self, at: &mut usize) -> Option<String> {
        let input = &self.unread[*at..];
        let (start, bytes) = match *input.get(1)? {
            126 => (
                4,
                u16::from_be_bytes(input.get(2..4)?.try_into().ok()?) as usize,
            ),
            127 => (
                10,
                u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize,
            ),
            short => (2, usize::from(short)),
        };
        let payload = input.get(start..start + bytes)?;
        let is_text = input[0] == 0x80 | TEXT;
        let text = is_text.then(|| String::from_utf8(payload.to_vec()).expect("UTF-8"));
        *at += start + bytes;
        Some(text.unwrap_or_default())
    }
}

impl Worker<'_> {
    /// Reads what has come for a client. True: something has.
    fn serve(&mut self, client: &mut Client) -> bool {
        let Some(socket) = &mut client.socket else {
            if !client.is_done(self.size) && Instant::now() >= client.back_at {
                client.connect(self.address);
            }
            return false;
        };
        match socket.read(&mut self.buffer) {
            Ok(0) => self.lose(client),
            Ok(bytes) => {
                client.unread.extend_from_slice(&self.buffer[..bytes]);
                self.take_frames(client);
                return true;
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.lose(client),
        }
        false
    }

    /// The server has closed, because the client was too slow.
    fn lose(&mut self, client: &mut Client) {
        self.counts.closed_by_server.fetch_add(1, Ordering::Relaxed);
        client.socket = None;
        client.back_at = Instant::now() + Duration::from_millis(self.random.below(300));
    }

    fn take_frames(&mut self, client: &mut Client) {
        let mut at = 0;
        if !client.upgraded {
            let Some(end) = client.unread.windows(4).position(|it| it == b"\r\n\r\n") else {
                return;
            };
            assert!(
                client.unread.starts_with(b"HTTP/1.1 101"),
                "the upgrade is refused"
            );
            client.upgraded = true;
            at = end + 4;
        }
        while client.socket.is_some()
            && let Some(text) = client.take_text(&mut at)
        {
            self.hear(client, &text);
        }
        client.unread.drain(..at);
    }

    fn hear(&mut self, client: &mut Client, text: &str) {
        if text.starts_with(r#"{"identifier""#) {
            return self.on_data(client, text);
        }
        if text.is_empty() {
            return;
        }
        let text: Value = serde_json::from_str(text).expect("JSON");
        match text["type"].as_str() {
            Some("welcome") => self.on_welcome(client, &text),
            Some("confirm_subscription") => {}
            Some("confirm_history") => {
                self.counts.replayed.fetch_add(1, Ordering::Relaxed);
                let mut lines = client.lines.iter_mut();
                let line = lines.find(|line| text["identifier"] == identifier(line.stream));
                line.expect("one of its streams").confirmed = true;
            }
            Some("disconnect") if text["reason"] == "too_slow" => {}
            _ => panic!("unexpected {text}"),
        }
    }

    fn on_welcome(&mut self, client: &mut Client, text: &Value) {
        client.sid = Some(text["sid"].as_str().expect("a sid").to_owned());
        let restored = text["restored"] == true;
        let count = if restored {
            &self.counts.restored
        } else {
            &self.counts.new
        };
        count.fetch_add(1, Ordering::Relaxed);
        let ids = text["restored_ids"].as_array().cloned().unwrap_or_default();
        for place in 0..client.lines.len() {
            let line = &client.lines[place];
            let id = identifier(line.stream);
            let history = match line.offset {
                0 => json!({ "since": 1 }),
                offset => {
                    let stream = format!("s{}", line.stream);
                    json!({ "streams": { stream: { "epoch": line.epoch, "offset": offset } } })
                }
            };
            let command = if ids.contains(&json!(id)) {
                "history"
            } else {
                "subscribe"
            };
            client.say(&json!({ "command": command, "identifier": id, "history": history }));
            client.lines[place].asked = Some((command, Instant::now()));
        }
        // Now, because this thread may have been stopped at any place before.
        if restored && client.back_at.elapsed() > ASKS_WITHIN {
            self.counts.late.fetch_add(1, Ordering::Relaxed);
            client.socket = None;
        }
    }

    fn on_data(&mut self, client: &mut Client, text: &str) {
        let stream: usize = field(text, r#""stream_id":"s"#).parse().expect("a stream");
        let number: u64 = field(text, r#""message":"#).parse().expect("a number");
        let offset: u64 = field(text, r#""offset":"#).parse().expect("an offset");
        let epoch = field(text, r#""epoch":""#);
        let back_for = client.back_at.elapsed();
        let line = client
            .lines
            .iter_mut()
            .find(|line| line.stream == stream)
            .expect("one of its streams");
        let asked = line.asked.map(|(command, at)| (command, at.elapsed()));
        assert_eq!(
            (number, offset),
            (line.offset + 1, line.offset + 1),
            "{text} after {}; back for {back_for:?}, asked before {asked:?}, confirmed: {}, unread: {}",
            line.offset,
            line.confirmed,
            client.unread.len(),
        );
        if line.offset == 0 {
            epoch.clone_into(&mut line.epoch);
        }
        assert_eq!(line.epoch, epoch, "{text}");
        line.offset = offset;
        self.counts.messages.fetch_add(1, Ordering::Relaxed);
        client.left -= 1;
        if client.left == 0 {
            self.cut(client);
        }
    }

    fn cut(&mut self, client: &mut Client) {
        self.counts.cuts.fetch_add(1, Ordering::Relaxed);
        client.left = 1 + self.random.below(self.size.cut_after_max);
        client.back_at = Instant::now() + Duration::from_millis(self.random.below(300));
        let Some(socket) = client.socket.take() else {
            return;
        };
        match self.random.below(3) {
            0 => drop(socket),
            1 => SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .expect("an option of every socket"),
            _ => {
                if self.half_open.len() == HALF_OPEN {
                    self.half_open.remove(0);
                }
                self.half_open.push(socket);
            }
        }
    }

    /// Until every client has everything.
    fn run(mut self, mut clients: Vec<Client>) {
        let mut last = Instant::now();
        loop {
            let mut progress = false;
            for client in &mut clients {
                progress |= self.serve(client);
            }
            if clients.iter().all(|client| client.is_done(self.size)) {
                break;
            }
            if progress {
                last = Instant::now();
            } else {
                thread::sleep(Duration::from_millis(1));
            }
            let missing = clients
                .iter()
                .filter(|client| !client.is_done(self.size))
                .count();
            assert!(
                last.elapsed() < self.size.patience,
                "{missing} clients get nothing more"
            );
        }
        self.expect_nothing_more(&mut clients);
    }

    /// A client that has everything gets nothing more; a message that comes twice fails in `on_data`.
    fn expect_nothing_more(&mut self, clients: &mut [Client]) {
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until {
            for client in &mut *clients {
                self.serve(client);
            }
        }
    }
}

/// The text from behind `name` to the end of the value.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let start = text
        .find(name)
        .unwrap_or_else(|| panic!("no {name} in {text}"))
        + name.len();
    let end = text[start..]
        .find(['"', ',', '}'])
        .expect("an end of the value");
    &text[start..start + end]
}

/// Publishes the messages of the streams whose number has this remainder, in order.
fn publish(broadcaster: &Broadcaster, remainder: usize, size: &Size, stopped: &AtomicBool) {
    let mut connection = broadcaster.keep_alive();
    let streams: Vec<usize> = (0..STREAMS)
        .filter(|stream| stream % PUBLISHERS == remainder)
        .collect();
    let mut batch = Vec::new();
    for number in 1..=size.messages {
        for stream in &streams {
            batch.push(json!({ "stream": format!("s{stream}"), "data": number.to_string() }));
        }
        if batch.len() >= BATCH || number == size.messages {
            connection.post(&Value::from(std::mem::take(&mut batch)).to_string());
        }
        if stopped.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn run(driver: Driver) {
    let size = size();
    let history_limit = format!("--history_limit={}", size.messages);
    let stage = Stage::with(
        driver,
        &[
            "--cores=4",
            "--norpc",
            "--public",
            "--broker=memory",
            "--ping_interval=0",
            "--log_level=info",
            // So that nothing expires in the longest run.
            "--history_ttl=3600",
            "--sessions_ttl=3600",
            &history_limit,
        ],
    );
    let (server, broadcaster) = (&stage.server, stage.broadcaster());
    let address = server.address();
    let seed = u64::from(std::process::id()) << 20 | u64::from(server.port());
    println!("seed {seed}");
    let (counts, stopped, started) = (Counts::default(), AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let mut random = Random(seed + worker as u64);
            let numbers = (worker..size.clients).step_by(WORKERS);
            let clients = numbers
                .map(|number| Client::new(number, &mut random, &size))
                .collect();
            let worker = Worker {
                address,
                size: &size,
                counts: &counts,
                random,
                half_open: Vec::new(),
                buffer: vec![0; READ_BYTES],
            };
            workers.push(scope.spawn(move || worker.run(clients)));
        }
        for remainder in 0..PUBLISHERS {
            let (broadcaster, size, stopped) = (&broadcaster, &size, &stopped);
            scope.spawn(move || publish(broadcaster, remainder, size, stopped));
        }
        let failed = workers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .any(|it| it.is_err());
        stopped.store(true, Ordering::Relaxed);
        assert!(!failed, "a client has not got what it must get");
    });
    counts.check(&size, started.elapsed());
}

alone_on_both_drivers! {
    fn clients_that_are_cut_get_every_message_once_and_in_order(driver: Driver) {
        run(driver);
    }
}

//! The session table of one shard: established connections, what arrives on them and what leaves.
//!
//! Everything here is synchronous. A *turn* is one call from the shard (events, a message of the inbox, an RPC answer, a
//! tick): it changes state, notes deliveries, and ends with one flush. What has to wait (RPC calls, publishing,
//! Disconnect calls) is handed back as [`Action`]s.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use slab::Slab;

use crate::config::{Config, PingPrecision, RpcEndpoint};
use crate::hub::Hub;
use crate::log::cut;
use crate::mesh::{DisconnectJob, Permit, SessionRef, ShardId, Survey};
use crate::metrics::{Counter, Metrics, ShardMetrics};
use crate::protocol::command::decode_command;
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::protocol::{reply, rpc as rpc_json};
use crate::reactor::{GENERATION_MASK, Reactor, Readiness, Token};
use crate::rpc::RpcError;
use crate::session::{
    CallPurpose, Context, Credentials, Deadlines, RpcCall, Session, SessionSettings, Step, Tick,
};
use crate::shard::outbox::{Batch, BatchList, Frame, FrameKind, Outbox, Written};
use crate::shard::signal::Signal;
use crate::shard::timers::{TICK, TimerWheel};
use crate::wire::deflate::Deflater;
use crate::wire::frame;
use crate::wire::message::{Incoming, MessageDecoder, MessageLimits};

/// Bytes read from a socket at once, into one buffer that all sessions of the shard share. Also the most that a session
/// keeps unread while a call is under way.
const READ_BUFFER_BYTES: usize = 64 << 10;
/// Full reads from one socket in one turn; what is left is read in the next turn, after the others.
const READS_PER_TURN_MAX: usize = 4;
/// A compressed message may grow to this size; the limit on messages counts compressed bytes.
const INFLATED_BYTES_MAX: u64 = 16 << 20;
/// Input thrown away when the server closes, so that the kernel sends FIN and not RST, which could overtake the reason.
const DISCARDED_BYTES_MAX: usize = 256 << 10;

/// The most that a resting connection takes in the table, session included, beside its texts and subscriptions.
pub const CONNECTION_BYTES_MAX: usize = 144;
const _: () = assert!(size_of::<Connection>() <= CONNECTION_BYTES_MAX);

/// What the HTTP phase knows about a client whose upgrade has been answered.
pub struct NewConnection {
    pub socket: TcpStream,
    pub sid: String,
    pub env: Box<str>,
    pub credentials: Credentials,
    /// `actioncable-v1-ext-json`.
    pub extended: bool,
    /// permessage-deflate was negotiated.
    pub deflate: bool,
    /// `None`: the server's default.
    pub ping_interval_secs: Option<i64>,
    pub ping_precision: Option<PingPrecision>,
    /// Bytes that came behind the request head.
    pub early_input: Vec<u8>,
    /// With `--max-conn`: the socket's right to exist.
    pub permit: Option<Permit>,
}

/// What the shard has to do after a turn, in order.
pub enum Action {
    /// Make this call, then bring the answer to [`Sessions::on_call_result`].
    Call {
        session: SessionRef,
        call: RpcCall,
        sid: Box<str>,
        canceled: Rc<Signal>,
    },
    /// Hand this to every shard.
    Publish(Publication),
    /// Put this into the disconnect queue.
    Disconnect(DisconnectJob),
}

/// A call under way, and what the client has sent behind the command that made it.
struct PendingCall {
    canceled: Rc<Signal>,
    unread: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The close frame is queued; the socket goes when the outbox is empty or its deadline has passed.
    Closing,
}

/// One client's socket and wire state.
struct Connection {
    session: Session,
    decoder: MessageDecoder,
    outbox: Option<Box<Outbox>>,
    call: Option<Box<PendingCall>>,
    #[expect(dead_code, reason = "held until the socket is closed, for its drop")]
    permit: Option<Permit>,
    deliveries: BatchList,
    socket: TcpStream,
    generation: u32,
    life: Life,
    precision: PingPrecision,
    deflate: bool,
    /// The kernel has (or may have) input that was not read because a call is under way.
    input_waiting: bool,
    /// A `writable` event has been asked for.
    write_watched: bool,
    registered: bool,
}

impl Connection {
    fn is_open(&self) -> bool {
        self.life == Life::Open
    }

    fn is_over(&self, pending_bytes_max: u64) -> bool {
        match &self.outbox {
            Some(outbox) => {
                pending_bytes_max > 0 && outbox.pending_bytes() as u64 >= pending_bytes_max
            }
            None => false,
        }
    }
}

/// Why a session ends, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Client,
    Remote,
    NoPong,
    TooSlow,
    WriteTimeout,
    ProtocolError,
    Auth,
    Shutdown,
    Error,
}

/// The session table and all it needs to serve a turn.
pub struct Sessions {
    shard: ShardId,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    hasher: RandomState,
    connections: Slab<Connection>,
    /// Hash of the connection identifiers by slot, 0 = not registered: what a remote disconnect looks through.
    identity_hashes: Vec<u64>,
    last_generation: u32,
    hub: Hub,
    batch: Batch,
    reactor: Reactor,
    wheel: TimerWheel,
    now: Instant,
    now_tick: Tick,
    events: Vec<Readiness>,
    /// Sessions whose socket had more than their share of input.
    unfinished: VecDeque<Token>,
    more_events: bool,
    read_buffer: Vec<u8>,
    inflate_buffer: Vec<u8>,
    deflater: Deflater,
    due: Vec<u32>,
    slow: Vec<u32>,
    steps: Vec<Step>,
    actions: Vec<Action>,
    limits: MessageLimits,
    /// The drain has begun: whoever still gets in is told to leave.
    draining: bool,
    drained: Option<mpsc::Sender<ShardId>>,
}

impl Sessions {
    pub fn new(
        shard: ShardId,
        config: Arc<Config>,
        metrics: Arc<Metrics>,
        hasher: RandomState,
        reactor: Reactor,
        now: Instant,
    ) -> Self {
        let limits = MessageLimits {
            message_bytes_max: config.websocket.message_bytes_max,
            deflate: false,
            inflated_bytes_max: INFLATED_BYTES_MAX,
        };
        Self {
            shard,
            config,
            metrics,
            hasher,
            connections: Slab::new(),
            identity_hashes: Vec::new(),
            last_generation: 0,
            hub: Hub::default(),
            batch: Batch::default(),
            reactor,
            // Tick 0 means "no deadline": the wheel starts in the past.
            wheel: TimerWheel::new(now.checked_sub(TICK).unwrap_or(now)),
            now,
            now_tick: 1,
            events: Vec::new(),
            unfinished: VecDeque::new(),
            more_events: false,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            inflate_buffer: Vec::new(),
            deflater: Deflater::new(),
            due: Vec::new(),
            slow: Vec::new(),
            steps: Vec::new(),
            actions: Vec::new(),
            limits,
            draining: false,
            drained: None,
        }
    }

    /// Starts a turn.
    pub fn begin_turn(&mut self, now: Instant) {
        self.now = now;
        self.now_tick = self.wheel.tick_of(now);
    }

    /// Ends a turn: writes what was queued and returns what the shard has to do.
    pub fn end_turn(&mut self) -> Vec<Action> {
        self.flush();
        self.rearm();
        self.reactor.flush();
        std::mem::take(&mut self.actions)
    }

    /// Who waits for the last session to end, once it has.
    pub fn take_drained(&mut self) -> Option<mpsc::Sender<ShardId>> {
        if self.connections.is_empty() {
            self.drained.take()
        } else {
            None
        }
    }

    /// True when the next harvest has work at once, without a new wake-up.
    pub fn has_more(&self) -> bool {
        self.more_events || !self.unfinished.is_empty()
    }

    /// When the wheel wants its next turn.
    pub fn next_tick_at(&self) -> Instant {
        self.wheel.next_instant()
    }

    /// What this shard has, for the gauges that count distinct things over all shards.
    pub fn survey(&self) -> Survey {
        Survey {
            identities: self
                .identity_hashes
                .iter()
                .copied()
                .filter(|&hash| hash != 0)
                .collect(),
            streams: self
                .hub
                .streams()
                .map(|name| self.hasher.hash_one(name))
                .collect(),
        }
    }

    // ---- opening -------------------------------------------------------------------------------------------------

    /// Takes over a client whose upgrade has been answered.
    pub fn open(&mut self, new: NewConnection) {
        let deadlines = self.deadlines(&new);
        self.last_generation = (self.last_generation + 1) & GENERATION_MASK;
        let session = Session::new(&SessionSettings {
            sid: &new.sid,
            env: &new.env,
            deadlines,
        });
        let slot = self.connections.insert(Connection {
            session,
            decoder: MessageDecoder::default(),
            outbox: None,
            call: None,
            permit: new.permit,
            deliveries: BatchList::default(),
            socket: new.socket,
            generation: self.last_generation,
            life: Life::Open,
            precision: new.ping_precision.unwrap_or(self.config.ping.precision),
            deflate: new.deflate,
            input_waiting: false,
            write_watched: false,
            registered: false,
        }) as u32;
        if self.identity_hashes.len() <= slot as usize {
            self.identity_hashes.resize(slot as usize + 1, 0);
        }
        tracing::debug!(
            sid = new.sid,
            shard = self.shard,
            "WebSocket session established"
        );
        let token = self.token(slot);
        if let Err(error) = self
            .reactor
            .add(self.connections[slot as usize].socket.as_fd(), token)
        {
            tracing::warn!(sid = new.sid, shard = self.shard, %error, "cannot watch a session's socket, closing it");
            return self.abort(slot, Cause::Error);
        }
        if self.draining {
            return self.close_for_shutdown(slot);
        }
        self.set_timer(slot);
        self.authenticate(slot, &new.credentials);
        let mut early_input = new.early_input;
        if !early_input.is_empty() {
            self.process_input(slot, &mut early_input);
        }
    }

    /// The first ping comes after a random part of the interval, so that pings of many sessions spread evenly.
    fn deadlines(&self, new: &NewConnection) -> Deadlines {
        let ping = &self.config.ping;
        let interval = match new.ping_interval_secs {
            Some(secs) => Duration::from_secs(secs.max(0) as u64),
            None => ping.interval,
        };
        let ping_ticks = ticks(interval);
        let first = ping_ticks / 2 + random_below(ping_ticks.max(1));
        let wants_pongs = new.extended || ping.native;
        let pong_ticks = if wants_pongs {
            ticks(ping.pong_timeout)
        } else {
            0
        };
        Deadlines::new(self.now_tick, first, ping_ticks, pong_ticks)
    }

    fn authenticate(&mut self, slot: u32, credentials: &Credentials) {
        let now_unix_secs = unix_time().as_secs_f64();
        self.with_session(slot, |session, context, steps| {
            session.authenticate(context, credentials, now_unix_secs, steps);
        });
    }

    // ---- steps ---------------------------------------------------------------------------------------------------

    /// Lets the session decide, then obeys its steps.
    fn with_session<R>(
        &mut self,
        slot: u32,
        decide: impl FnOnce(&mut Session, &mut Context<'_>, &mut Vec<Step>) -> R,
    ) -> R {
        let mut steps = std::mem::take(&mut self.steps);
        let mut context = Context {
            auth: &self.config.auth,
            hub: &mut self.hub,
            slot,
            disconnect_mode: self.config.disconnect.mode,
            has_rpc: self.config.rpc.endpoint != RpcEndpoint::None,
        };
        let session = &mut self.connections[slot as usize].session;
        let result = decide(session, &mut context, &mut steps);
        for step in steps.drain(..) {
            self.obey(slot, step);
        }
        self.steps = steps;
        result
    }

    fn obey(&mut self, slot: u32, step: Step) {
        match step {
            Step::Send(text) => self.send_text(slot, text),
            Step::Call(call) => self.start_call(slot, call),
            Step::Publish(publication) => self.actions.push(Action::Publish(publication)),
            Step::Register => self.register(slot),
            Step::Close(close) => {
                let cause = self.close_cause(&close);
                self.begin_close(slot, Some(close), cause);
            }
        }
    }

    fn close_cause(&self, close: &Close) -> Cause {
        if *close == Close::AUTH_FAILED {
            self.counters().failed_auths_total.add(1);
            Cause::Auth
        } else {
            Cause::Error
        }
    }

    fn register(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.registered = true;
        self.identity_hashes[slot as usize] =
            identity_hash(&self.hasher, connection.session.identifiers());
        self.counters().clients_num.add(1);
    }

    fn start_call(&mut self, slot: u32, call: RpcCall) {
        if matches!(call.purpose, CallPurpose::Connect) {
            self.counters().rpc_call_total.add(1);
        }
        let session = self.session_ref(slot);
        let connection = &mut self.connections[slot as usize];
        let canceled = Rc::new(Signal::default());
        connection.call = Some(Box::new(PendingCall {
            canceled: Rc::clone(&canceled),
            unread: Vec::new(),
        }));
        self.actions.push(Action::Call {
            session,
            call,
            sid: connection.session.sid().into(),
            canceled,
        });
    }

    /// The answer of a call, or why there is none.
    pub fn on_call_result(
        &mut self,
        session: SessionRef,
        purpose: CallPurpose,
        result: Result<Vec<u8>, RpcError>,
    ) {
        let slot = session.slot;
        let counters = self.counters();
        if !matches!(purpose, CallPurpose::Connect) && !matches!(result, Err(RpcError::Canceled)) {
            counters.rpc_call_total.add(1);
        }
        let Some(connection) = self.live(session) else {
            self.counters().late_results_total.add(1);
            return;
        };
        let unread = connection
            .call
            .take()
            .map_or_else(Vec::new, |call| call.unread);
        connection.session.deadlines.command_ended();
        self.set_timer(slot);
        self.apply_result(slot, purpose, result);
        self.resume_input(slot, unread);
    }

    fn apply_result(&mut self, slot: u32, purpose: CallPurpose, result: Result<Vec<u8>, RpcError>) {
        if matches!(purpose, CallPurpose::Connect) {
            return self.apply_connect_result(slot, result);
        }
        let decoded = match result {
            Ok(body) => rpc_json::decode_command_response(&body).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let failure = match decoded {
            Ok(response) => {
                tracing::debug!(
                    context = "node",
                    sid = self.sid(slot),
                    shard = self.shard,
                    response = ?response,
                    "{}",
                    controller_record(&purpose)
                );
                let failed = (response.status == rpc_json::RpcStatus::Error)
                    .then(|| response.error_msg.clone());
                self.with_session(slot, |session, context, steps| {
                    session.on_command_response(context, purpose, response, steps);
                });
                failed
            }
            Err(reason) => {
                self.counters()
                    .rpc_error_total
                    .add(u64::from(reason.starts_with(UNREADABLE)));
                Some(reason)
            }
        };
        if let Some(error) = failure {
            self.counters().failed_client_msg_total.add(1);
            tracing::warn!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                error,
                "failed to handle incoming message"
            );
        }
    }

    fn apply_connect_result(&mut self, slot: u32, result: Result<Vec<u8>, RpcError>) {
        let decoded = match result {
            Ok(body) => rpc_json::decode_connect_response(&body).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let failure = match decoded {
            Ok(response) => {
                tracing::debug!(
                    context = "node",
                    sid = self.sid(slot),
                    shard = self.shard,
                    response = ?response,
                    "controller authenticate"
                );
                let failed = (response.status == rpc_json::RpcStatus::Error)
                    .then(|| response.error_msg.clone());
                self.with_session(slot, |session, context, steps| {
                    session.on_connect_response(context, response, steps);
                });
                failed
            }
            Err(reason) => {
                self.begin_close(slot, Some(Close::AUTH_ERROR), Cause::Error);
                Some(reason)
            }
        };
        if let Some(error) = failure {
            tracing::error!(
                context = "ws",
                sid = self.sid(slot),
                shard = self.shard,
                error,
                "WebSocket session failed"
            );
        }
    }

    // ---- input ---------------------------------------------------------------------------------------------------

    /// Takes the reactor's events and serves them.
    pub fn harvest(&mut self) -> io::Result<()> {
        for token in std::mem::take(&mut self.unfinished) {
            if let Some(slot) = self.slot_of(token) {
                self.read(slot);
            }
        }
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.more_events = self.reactor.harvest(&mut events)?;
        for event in &events {
            self.on_event(*event);
        }
        self.events = events;
        let counts = self.reactor.take_counts();
        self.counters().cq_overflows_total.add(counts.overflows);
        self.counters().poll_rearms_total.add(counts.rearms);
        Ok(())
    }

    fn on_event(&mut self, event: Readiness) {
        let Some(slot) = self.slot_of(event.token) else {
            self.counters().stale_events_total.add(1);
            return;
        };
        if event.writable {
            self.connections[slot as usize].write_watched = false;
            self.write_outbox(slot);
        }
        if (event.readable || event.closed) && self.slot_of(event.token).is_some() {
            self.on_input(slot, event.closed);
        }
    }

    fn on_input(&mut self, slot: u32, closed: bool) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_open() {
            return;
        }
        if connection.call.is_none() {
            return self.read(slot);
        }
        connection.input_waiting = true;
        if closed && !connection.session.is_authenticated() {
            // Nobody is left to be welcomed: the app need not be asked.
            self.begin_close(slot, None, Cause::Client);
        }
    }

    /// Reads until the kernel has no more, the session has to wait for a call, or it had its share.
    fn read(&mut self, slot: u32) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut reads = 0;
        while let Some(connection) = self.connections.get_mut(slot as usize) {
            if !connection.is_open() {
                break;
            }
            if connection.call.is_some() {
                connection.input_waiting = true;
                break;
            }
            if reads == READS_PER_TURN_MAX {
                let token = self.token(slot);
                self.unfinished.push_back(token);
                break;
            }
            match (&connection.socket).read(&mut buffer) {
                Ok(0) => {
                    self.begin_close(slot, None, Cause::Client);
                    break;
                }
                Ok(bytes) => self.process_input(slot, &mut buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.begin_close(slot, None, Cause::Client);
                    break;
                }
            }
            reads += 1;
        }
        self.read_buffer = buffer;
    }

    /// Goes on with what came while a call was under way: first what had been read, then what the kernel holds.
    fn resume_input(&mut self, slot: u32, mut unread: Vec<u8>) {
        self.process_input(slot, &mut unread);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.is_open()
            && connection.call.is_none()
            && std::mem::take(&mut connection.input_waiting)
        {
            self.read(slot);
        }
    }

    fn process_input(&mut self, slot: u32, input: &mut [u8]) {
        let mut inflated = std::mem::take(&mut self.inflate_buffer);
        let mut offset = 0;
        while offset < input.len() {
            let connection = &mut self.connections[slot as usize];
            if !connection.is_open() {
                break;
            }
            if let Some(call) = &mut connection.call {
                call.unread.extend_from_slice(&input[offset..]);
                break;
            }
            // The decoder is taken out so that its borrow does not last while the event is handled.
            let mut decoder = std::mem::take(&mut connection.decoder);
            self.limits.deflate = connection.deflate;
            let limits = self.limits;
            match decoder.next(&mut input[offset..], &limits, &mut inflated) {
                Ok((consumed, event)) => {
                    offset += consumed;
                    if let Some(event) = event {
                        self.on_incoming(slot, event);
                    }
                }
                Err(error) => {
                    tracing::debug!(sid = self.sid(slot), shard = self.shard, %error, "closing after a protocol violation");
                    self.send_control(
                        slot,
                        frame::close_frame(Some(error.close_code()), &error.close_reason()),
                    );
                    self.begin_close(slot, None, Cause::ProtocolError);
                    break;
                }
            }
            match self.connections.get_mut(slot as usize) {
                Some(connection) => connection.decoder = decoder,
                None => break,
            }
        }
        inflated.clear();
        self.inflate_buffer = inflated;
    }

    fn on_incoming(&mut self, slot: u32, event: Incoming<'_>) {
        match event {
            Incoming::Message(payload) => self.on_message(slot, payload),
            Incoming::Ping(payload) => self.send_control(slot, frame::pong_frame(payload)),
            Incoming::Pong(_) => self.connections[slot as usize]
                .session
                .deadlines
                .native_pong(),
            Incoming::Close(code) => {
                self.send_control(slot, frame::close_frame(code, ""));
                self.begin_close(slot, None, Cause::Client);
            }
        }
    }

    fn on_message(&mut self, slot: u32, payload: &[u8]) {
        self.counters().data_rcvd_total.add(payload.len() as u64);
        let command = match decode_command(payload) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(error) => return self.refuse_message(slot, payload, &error),
        };
        self.counters().client_msg_total.add(1);
        self.connections[slot as usize]
            .session
            .deadlines
            .sign_of_life();
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut(&String::from_utf8_lossy(payload)),
            "incoming message"
        );
        let result = self.with_session(slot, |session, context, steps| {
            session.on_command(context, command, steps)
        });
        if let Err(error) = result {
            self.refuse_message(slot, payload, &error);
        }
    }

    fn refuse_message(&self, slot: u32, payload: &[u8], error: &dyn std::error::Error) {
        self.counters().failed_client_msg_total.add(1);
        tracing::warn!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut(&String::from_utf8_lossy(payload)),
            %error,
            "failed to handle incoming message"
        );
    }

    // ---- output --------------------------------------------------------------------------------------------------

    fn send_text(&mut self, slot: u32, text: Vec<u8>) {
        let bytes = if self.connections[slot as usize].deflate {
            deflated_frame(&mut self.deflater, &text)
        } else {
            frame::text_frame(&text)
        };
        self.send(slot, Frame::new(bytes, FrameKind::Message));
    }

    fn send_control(&mut self, slot: u32, bytes: Vec<u8>) {
        self.send(slot, Frame::new(bytes, FrameKind::Control));
    }

    fn send(&mut self, slot: u32, frame: Frame) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_open() {
            return;
        }
        if connection.is_over(self.config.websocket.pending_bytes_max) {
            return self.drop_slow_client(slot);
        }
        let frame = self.batch.add_frame(frame);
        self.batch.deliver(slot, &mut connection.deliveries, frame);
    }

    /// Delivers one publication to everybody who listens on this shard. The frame is encoded once per identifier.
    pub fn fan_out(&mut self, publication: &Publication) {
        let pending_bytes_max = self.config.websocket.pending_bytes_max;
        let mut delivered = 0;
        for (identifier, members) in self.hub.receivers(&publication.stream) {
            let mut frames = GroupFrames::new(identifier, publication);
            for &slot in members {
                let connection = &mut self.connections[slot as usize];
                if publication.exclude_socket.as_deref() == Some(connection.session.sid()) {
                    continue;
                }
                if connection.is_over(pending_bytes_max) {
                    self.slow.push(slot);
                    continue;
                }
                let frame = frames.get(connection.deflate, &mut self.batch, &mut self.deflater);
                self.batch.deliver(slot, &mut connection.deliveries, frame);
                delivered += 1;
            }
        }
        if delivered == 0 {
            tracing::debug!(
                component = "hub",
                shard = self.shard,
                stream = &*publication.stream,
                "no sessions"
            );
        }
        self.counters().deliveries_total.add(delivered);
        for slot in std::mem::take(&mut self.slow) {
            // A session may be in the list twice, by two identifiers.
            if self
                .connections
                .get(slot as usize)
                .is_some_and(Connection::is_open)
            {
                self.drop_slow_client(slot);
            }
        }
        if self.batch.is_full() {
            self.flush();
        }
    }

    /// Writes what the running batch has for each session.
    fn flush(&mut self) {
        let dirty = self.batch.take_dirty();
        for &slot in &dirty {
            self.flush_slot(slot);
        }
        self.batch.finish(dirty);
    }

    fn flush_slot(&mut self, slot: u32) {
        let deadline = self.write_deadline();
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.deliveries.is_empty() {
            return;
        }
        let counters = &self.metrics.shards[self.shard];
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes();
            self.batch.drain_into(&mut connection.deliveries, outbox);
            counters
                .outbox_bytes
                .add((outbox.pending_bytes() - before) as i64);
            if !connection.write_watched {
                self.write_outbox(slot);
            }
            return;
        }
        counters.writes_total.add(1);
        match self
            .batch
            .write(&mut connection.deliveries, &connection.socket)
        {
            Ok((written, None)) => {
                count_written(counters, &written);
                if connection.life == Life::Closing {
                    self.finish_close(slot);
                }
            }
            Ok((written, Some(mut outbox))) => {
                count_written(counters, &written);
                counters.outbox_bytes.add(outbox.pending_bytes() as i64);
                outbox.deadline = deadline;
                connection.outbox = Some(Box::new(outbox));
                if written.blocked {
                    self.wait_for_room(slot);
                } else {
                    self.write_outbox(slot);
                }
            }
            Err(_) => self.write_failed(slot, 1),
        }
    }

    /// Writes an outbox until it is empty or the kernel takes no more.
    fn write_outbox(&mut self, slot: u32) {
        let deadline = self.write_deadline();
        loop {
            let connection = &mut self.connections[slot as usize];
            let Some(outbox) = &mut connection.outbox else {
                return;
            };
            let counters = &self.metrics.shards[self.shard];
            counters.writes_total.add(1);
            let written = match outbox.write(&connection.socket) {
                Ok(written) => written,
                Err(_) => {
                    let messages = outbox.messages() as u64;
                    return self.write_failed(slot, messages);
                }
            };
            count_written(counters, &written);
            counters.outbox_bytes.sub(written.bytes as i64);
            if outbox.is_empty() {
                connection.outbox = None;
                if connection.life == Life::Closing {
                    self.finish_close(slot);
                }
                return;
            }
            if written.frames > 0 {
                outbox.deadline = deadline;
            }
            if written.blocked {
                return self.wait_for_room(slot);
            }
        }
    }

    fn wait_for_room(&mut self, slot: u32) {
        self.counters().write_blocked_total.add(1);
        let token = self.token(slot);
        let connection = &mut self.connections[slot as usize];
        match self.reactor.watch_write(connection.socket.as_fd(), token) {
            Ok(()) => {
                connection.write_watched = true;
                self.set_timer(slot);
            }
            Err(_) => self.write_failed(slot, 1),
        }
    }

    fn write_deadline(&self) -> Tick {
        self.wheel
            .deadline(self.now, self.config.websocket.write_timeout)
    }

    fn write_failed(&mut self, slot: u32, messages: u64) {
        self.counters().failed_server_msg_total.add(messages);
        self.abort(slot, Cause::Client);
    }

    /// The outbox has passed its limit. Source: contract/websocket.md §11.
    fn drop_slow_client(&mut self, slot: u32) {
        let max = self.config.websocket.pending_bytes_max;
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            max,
            "slow client detected, disconnecting"
        );
        self.counters().disconnected_slow_clients_total.add(1);
        self.clear_queue(slot);
        self.disconnect(
            slot,
            DisconnectReason::TooSlow,
            true,
            Close::SLOW,
            Cause::TooSlow,
        );
    }

    fn clear_queue(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.deliveries = BatchList::default();
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes();
            outbox.clear_unstarted();
            let gone = before - outbox.pending_bytes();
            self.metrics.shards[self.shard]
                .outbox_bytes
                .sub(gone as i64);
        }
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// Serves what has come due.
    pub fn on_tick(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(self.now_tick, &mut due);
        let mut pings = PingFrames::default();
        for slot in due.drain(..) {
            self.on_due(slot, &mut pings);
        }
        self.due = due;
    }

    fn on_due(&mut self, slot: u32, pings: &mut PingFrames) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if let Some(outbox) = &connection.outbox
            && outbox.deadline <= self.now_tick
        {
            let messages = outbox.messages() as u64;
            let counters = self.counters();
            counters.timeout_server_msg_total.add(messages.min(1));
            counters.failed_server_msg_total.add(messages.min(1));
            return self.abort(slot, Cause::WriteTimeout);
        }
        if !connection.is_open() {
            return self.set_timer(slot);
        }
        let due = connection.session.deadlines.take_due(self.now_tick);
        if due.no_pong {
            tracing::warn!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                "disconnecting session due to no pongs"
            );
            let close = Close::NO_PONG;
            return self.disconnect(slot, DisconnectReason::NoPong, true, close, Cause::NoPong);
        }
        // A client that does not take what is queued gets no pings on top: the write deadline decides about it.
        if due.ping && connection.outbox.is_none() {
            let native = self.config.ping.native;
            pings.deliver(
                slot,
                connection,
                native,
                &mut self.batch,
                &mut self.deflater,
            );
        }
        self.set_timer(slot);
    }

    fn set_timer(&mut self, slot: u32) {
        let connection = &self.connections[slot as usize];
        let write = connection.outbox.as_ref().map(|outbox| outbox.deadline);
        let session = if connection.is_open() {
            connection.session.deadlines.next()
        } else {
            None
        };
        match write.into_iter().chain(session).min() {
            Some(tick) => self.wheel.set(slot, tick),
            None => self.wheel.clear(slot),
        }
    }

    // ---- closing -------------------------------------------------------------------------------------------------

    /// Closes every session with these connection identifiers. Source: contract/broadcast.md §7 (DECIDE: all of them).
    pub fn remote_disconnect(&mut self, command: &RemoteDisconnect) {
        let hash = identity_hash(&self.hasher, &command.identifiers);
        let slots: Vec<usize> = (0..self.identity_hashes.len())
            .filter(|&slot| self.identity_hashes[slot] == hash)
            .collect();
        for slot in slots {
            if self.connections[slot].session.identifiers() == &*command.identifiers {
                let close = Close::REMOTE;
                self.disconnect(
                    slot as u32,
                    DisconnectReason::Remote,
                    command.reconnect,
                    close,
                    Cause::Remote,
                );
            }
        }
    }

    /// Tells every session that the server goes, and answers on `done` when the last socket is closed.
    pub fn close_all(&mut self, done: mpsc::Sender<ShardId>) {
        self.draining = true;
        self.drained = Some(done);
        let slots: Vec<u32> = self
            .connections
            .iter()
            .map(|(slot, _)| slot as u32)
            .collect();
        for slot in slots {
            self.close_for_shutdown(slot);
        }
    }

    fn close_for_shutdown(&mut self, slot: u32) {
        let close = Close::SERVER_RESTART;
        self.disconnect(
            slot,
            DisconnectReason::ServerRestart,
            true,
            close,
            Cause::Shutdown,
        );
    }

    /// Queues the disconnect message and the close frame. The limit on pending bytes does not hold for these two.
    fn disconnect(
        &mut self,
        slot: u32,
        reason: DisconnectReason,
        reconnect: bool,
        close: Close,
        cause: Cause,
    ) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_open() {
            return;
        }
        let text = reply::disconnect(reason, reconnect);
        let bytes = if connection.deflate {
            deflated_frame(&mut self.deflater, &text)
        } else {
            frame::text_frame(&text)
        };
        let frame = self.batch.add_frame(Frame::new(bytes, FrameKind::Message));
        self.batch.deliver(slot, &mut connection.deliveries, frame);
        self.begin_close(slot, Some(close), cause);
    }

    /// The session ends here; its socket goes when everything queued, the close frame last, has been written.
    fn begin_close(&mut self, slot: u32, close: Option<Close>, cause: Cause) {
        if !self.connections[slot as usize].is_open() {
            return;
        }
        if let Some(close) = close {
            let bytes = frame::close_frame(Some(close.code), close.reason);
            let frame = self.batch.add_frame(Frame::new(bytes, FrameKind::Control));
            let connection = &mut self.connections[slot as usize];
            self.batch.deliver(slot, &mut connection.deliveries, frame);
        }
        self.end_session(slot, cause);
        let connection = &self.connections[slot as usize];
        if connection.deliveries.is_empty() && connection.outbox.is_none() {
            self.finish_close(slot);
        } else {
            self.set_timer(slot);
        }
    }

    /// Takes the session out of everything that knows it; the socket stays. Happens once.
    fn end_session(&mut self, slot: u32, cause: Cause) {
        let connection = &mut self.connections[slot as usize];
        connection.life = Life::Closing;
        if let Some(call) = connection.call.take() {
            call.canceled.notify();
        }
        if let Some(body) = connection.session.disconnect_body(&self.hub, slot) {
            self.actions.push(Action::Disconnect(DisconnectJob {
                sid: connection.session.sid().into(),
                body: body.into(),
            }));
        }
        let registered = std::mem::take(&mut connection.registered);
        self.hub.remove_session(slot);
        self.identity_hashes[slot as usize] = 0;
        let counters = self.counters();
        counters.clients_num.sub(i64::from(registered));
        close_counter(counters, cause).add(1);
        tracing::debug!(
            sid = self.sid(slot),
            shard = self.shard,
            "WebSocket session completed"
        );
    }

    /// The connection is broken or out of time: nothing more can be said to the client.
    fn abort(&mut self, slot: u32, cause: Cause) {
        if self.connections[slot as usize].is_open() {
            self.end_session(slot, cause);
        }
        self.release(slot);
    }

    fn finish_close(&mut self, slot: u32) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        discard_input(&self.connections[slot as usize].socket, &mut buffer);
        self.read_buffer = buffer;
        self.release(slot);
    }

    fn release(&mut self, slot: u32) {
        let token = self.token(slot);
        self.wheel.clear(slot);
        let connection = self.connections.remove(slot as usize);
        if let Some(outbox) = &connection.outbox {
            self.counters()
                .outbox_bytes
                .sub(outbox.pending_bytes() as i64);
        }
        let socket = connection.socket;
        self.reactor
            .remove(socket.as_fd(), token, connection.write_watched);
        // The poll keeps the file open for a moment; the far end shall see the end now.
        let _ = socket.shutdown(Shutdown::Both);
        if self.connections.is_empty() {
            self.connections.shrink_to_fit();
        }
    }

    // ---- small things --------------------------------------------------------------------------------------------

    /// Polls that the kernel has ended are armed again.
    fn rearm(&mut self) {
        for token in self.reactor.take_ended() {
            if let Some(slot) = self.slot_of(token) {
                let connection = &self.connections[slot as usize];
                if connection.is_open()
                    && self.reactor.add(connection.socket.as_fd(), token).is_err()
                {
                    self.abort(slot, Cause::Error);
                }
            }
        }
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }

    fn sid(&self, slot: u32) -> &str {
        self.connections
            .get(slot as usize)
            .map_or("", |connection| connection.session.sid())
    }

    fn token(&self, slot: u32) -> Token {
        Token {
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    fn session_ref(&self, slot: u32) -> SessionRef {
        SessionRef {
            shard: self.shard,
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    fn slot_of(&self, token: Token) -> Option<u32> {
        let connection = self.connections.get(token.slot as usize)?;
        (connection.generation == token.generation).then_some(token.slot)
    }

    /// The connection that `session` names, if that very one is still open.
    fn live(&mut self, session: SessionRef) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(session.slot as usize)?;
        (connection.generation == session.generation && connection.is_open()).then_some(connection)
    }
}

/// Start of the messages of [`rpc_json::RpcDecodeError`]: an answer that cannot be read is an RPC error too.
const UNREADABLE: &str = "unreadable";

/// The frames of one publication for one identifier, each encoded when its first receiver comes.
struct GroupFrames<'a> {
    identifier: &'a str,
    publication: &'a Publication,
    plain: Option<u32>,
    deflated: Option<u32>,
}

impl<'a> GroupFrames<'a> {
    fn new(identifier: &'a str, publication: &'a Publication) -> Self {
        Self {
            identifier,
            publication,
            plain: None,
            deflated: None,
        }
    }

    fn get(&mut self, deflate: bool, batch: &mut Batch, deflater: &mut Deflater) -> u32 {
        let made = if deflate {
            &mut self.deflated
        } else {
            &mut self.plain
        };
        *made.get_or_insert_with(|| {
            let mut text =
                Vec::with_capacity(self.identifier.len() + self.publication.message.len() + 64);
            let broadcast_type = self.publication.broadcast_type.as_deref();
            reply::data_message(
                self.identifier,
                &self.publication.message,
                broadcast_type,
                &mut text,
            );
            let bytes = if deflate {
                deflated_frame(deflater, &text)
            } else {
                frame::text_frame(&text)
            };
            batch.add_frame(Frame::new(bytes, FrameKind::Message))
        })
    }
}

/// The ping frames of one tick, made once for all sessions.
#[derive(Default)]
struct PingFrames {
    /// By precision, plain and deflated.
    frames: [[Option<u32>; 2]; 3],
    native: Option<u32>,
}

impl PingFrames {
    fn deliver(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        native: bool,
        batch: &mut Batch,
        deflater: &mut Deflater,
    ) {
        let (precision, deflate) = (connection.precision, connection.deflate);
        let made = &mut self.frames[precision as usize][usize::from(deflate)];
        let ping = *made.get_or_insert_with(|| {
            let text = reply::ping(timestamp(precision));
            let bytes = if deflate {
                deflated_frame(deflater, &text)
            } else {
                frame::text_frame(&text)
            };
            batch.add_frame(Frame::new(bytes, FrameKind::Ping))
        });
        batch.deliver(slot, &mut connection.deliveries, ping);
        if native {
            let made = &mut self.native;
            let ping = *made.get_or_insert_with(|| {
                batch.add_frame(Frame::new(frame::ping_frame(b""), FrameKind::Control))
            });
            batch.deliver(slot, &mut connection.deliveries, ping);
        }
    }
}

fn deflated_frame(deflater: &mut Deflater, text: &[u8]) -> Vec<u8> {
    frame::compressed_text_frame(&deflater.compress(text))
}

fn timestamp(precision: PingPrecision) -> i128 {
    let now = unix_time();
    match precision {
        PingPrecision::Seconds => now.as_secs().into(),
        PingPrecision::Milliseconds => now.as_millis() as i128,
        PingPrecision::Nanoseconds => now.as_nanos() as i128,
    }
}

/// A clock before 1970 reads as 1970.
fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn ticks(duration: Duration) -> Tick {
    let ticks = duration.as_millis().div_ceil(TICK.as_millis());
    // A quarter of the range leaves room to add deadlines.
    ticks.min(u128::from(Tick::MAX / 4)) as Tick
}

fn random_below(bound: Tick) -> Tick {
    let mut bytes = [0; 4];
    // Without entropy pings are merely less evenly spread.
    let _ = getrandom::fill(&mut bytes);
    u32::from_ne_bytes(bytes) % bound
}

/// Never 0, which means "not registered".
fn identity_hash(hasher: &RandomState, identifiers: &str) -> u64 {
    hasher.hash_one(identifiers) | 1
}

fn count_written(counters: &ShardMetrics, written: &Written) {
    counters.server_msg_total.add(written.messages);
    counters.data_sent_total.add(written.payload_bytes);
}

fn close_counter(counters: &ShardMetrics, cause: Cause) -> &Counter {
    match cause {
        Cause::Client => &counters.closed_client_total,
        Cause::Remote => &counters.closed_remote_total,
        Cause::NoPong => &counters.closed_no_pong_total,
        Cause::TooSlow => &counters.closed_too_slow_total,
        Cause::WriteTimeout => &counters.closed_write_timeout_total,
        Cause::ProtocolError => &counters.closed_protocol_error_total,
        Cause::Auth => &counters.closed_auth_total,
        Cause::Shutdown => &counters.closed_shutdown_total,
        Cause::Error => &counters.closed_error_total,
    }
}

fn controller_record(purpose: &CallPurpose) -> &'static str {
    match purpose {
        CallPurpose::Connect => "controller authenticate",
        CallPurpose::Subscribe { .. } => "controller subscribe",
        CallPurpose::Unsubscribe { .. } => "controller unsubscribe",
        CallPurpose::Message { .. } => "controller perform",
    }
}

fn discard_input(mut socket: &TcpStream, buffer: &mut [u8]) {
    let mut discarded = 0;
    while discarded < DISCARDED_BYTES_MAX {
        match socket.read(buffer) {
            Ok(bytes) if bytes > 0 => discarded += bytes,
            _ => return,
        }
    }
}

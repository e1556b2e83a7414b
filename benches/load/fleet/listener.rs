//! What a worker does with the events of a client: counts them, answers them, and changes the client's state.

use std::time::Instant;

use rustix::net::SendFlags;
use rustls::ClientConnection;
use serde_json::json;

use super::client::{Client, Event, Order, Phase, client_frame};
use super::message::Message;
use super::worker::Turn;
use super::{Figures, Plan};
use crate::tls;

/// The close code of a server that shuts down.
const GOING_AWAY: u16 = 1001;

/// The data that a worker needs for the events of one client, borrowed apart from the client itself.
pub struct Listener<'a> {
    pub plan: &'a Plan,
    pub started: Instant,
    pub read_nanos: u64,
    pub figures: &'a mut Figures,
    pub turn: &'a mut Turn,
    pub unfinished: &'a mut usize,
    /// Present when the client uses TLS.
    pub tls: Option<&'a mut ClientConnection>,
    /// The client must be removed.
    pub lost: bool,
}

impl Listener<'_> {
    /// Handles what the client has just read.
    pub fn on(&mut self, client: &mut Client, event: Event) {
        match event {
            Event::Upgraded => self.on_upgraded(client),
            Event::Said(message) => self.on_message(client, message),
            Event::Delivered {
                published_nanos,
                payload_bytes,
            } => {
                self.figures.deliveries += 1;
                self.figures.delivered_bytes += u64::from(payload_bytes);
                self.figures
                    .latency
                    .record(self.read_nanos.saturating_sub(published_nanos));
                self.turn.delivered += 1;
            }
            Event::NativePing => {
                let mut pong = Vec::new();
                client_frame(0xa, b"", &mut pong);
                self.send(client, &pong);
            }
            Event::Close { code } => {
                self.figures.sent_away += u64::from(client.told && code == GOING_AWAY);
                self.lost = true;
            }
            Event::Refused => self.lost = true,
        }
    }

    fn on_upgraded(&mut self, client: &mut Client) {
        self.figures
            .upgrade
            .record(self.micros_since_opened(client));
        client.phase = Phase::Upgraded;
        if self.plan.pipelined {
            self.subscribe(client);
        }
    }

    fn on_message(&mut self, client: &mut Client, message: Message) {
        match message {
            Message::Ping => {
                self.figures.pings += 1;
                self.turn.pings += 1;
            }
            Message::Delivery(mark) => match self.plan.clients.stream(client.index) {
                Some(stream) if stream != mark.stream => self.figures.misdirected += 1,
                Some(_) => self.on_order(client.order(mark)),
                None => {}
            },
            Message::Welcome => self.on_welcome(client),
            Message::Confirmation => self.on_answer(client),
            Message::Rejection => {
                self.figures.rejected += 1;
                self.on_answer(client);
            }
            Message::Disconnect => {
                client.told = true;
                let now = self.started.elapsed().as_micros() as u64;
                self.figures.told_micros.push(now);
            }
            Message::Unmarked => self.figures.unmarked += 1,
            Message::Unknown => self.figures.unknown += 1,
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Next => {}
            Order::Gap(gap) => self.figures.lost += u64::from(gap),
            Order::Late => {
                self.figures.lost -= 1;
                self.figures.reordered += 1;
            }
            Order::Duplicate => self.figures.duplicates += 1,
        }
    }

    fn on_welcome(&mut self, client: &mut Client) {
        self.figures
            .welcome
            .record(self.micros_since_opened(client));
        client.phase = Phase::Subscribing;
        if !self.plan.pipelined {
            self.subscribe(client);
        }
        self.check_ready(client);
    }

    fn on_answer(&mut self, client: &mut Client) {
        client.awaited = client.awaited.saturating_sub(1);
        self.check_ready(client);
    }

    fn subscribe(&mut self, client: &mut Client) {
        let mut frames = Vec::new();
        for identifier in self.plan.clients.identifiers(client.index) {
            let command = json!({"command": "subscribe", "identifier": identifier}).to_string();
            client_frame(0x1, command.as_bytes(), &mut frames);
        }
        self.send(client, &frames);
    }

    fn send(&mut self, client: &Client, bytes: &[u8]) {
        self.lost |= !send(client, self.tls.as_deref_mut(), bytes);
    }

    fn check_ready(&mut self, client: &mut Client) {
        if client.phase != Phase::Subscribing || client.awaited > 0 {
            return;
        }
        client.phase = Phase::Ready;
        self.figures.ready.record(self.micros_since_opened(client));
        self.turn.ready += 1;
        *self.unfinished -= 1;
    }

    fn micros_since_opened(&self, client: &Client) -> u64 {
        let now = self.started.elapsed().as_micros() as u64;
        now.saturating_sub(u64::from(client.opened_micros))
    }
}

/// Sends a few bytes to a socket that has room for them, encrypted if the client uses TLS; false when the connection is
/// gone.
pub fn send(client: &Client, tls: Option<&mut ClientConnection>, bytes: &[u8]) -> bool {
    let Some(connection) = tls else {
        return send_raw(client, bytes);
    };
    let mut records = Vec::new();
    tls::seal(connection, bytes, &mut records);
    send_raw(client, &records)
}

/// Sends bytes without encryption.
pub fn send_raw(client: &Client, bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    let sent = rustix::net::send(&client.socket, bytes, SendFlags::NOSIGNAL);
    sent == Ok(bytes.len())
}

//! From a request that becomes a session to an authenticated session: timers, tokens, the first call.

use std::io;
use std::time::Duration;

use super::answering::{EventRequest, Opening};
use super::closing::Cause;
use super::common::ticks;
use super::connection::{Connection, Held, Life};
use super::formats::{Encoding, Format, unix_time};
use super::readers::OpenReading;
use super::schedule::Place;
use super::{NewConnection, Sessions, Transport};
use crate::os::random;
use crate::protocol::reply::Reply;
use crate::session::{AuthRefusal, Credentials, Deadlines, Session, SessionSettings, Tick};
use crate::shard::notices::Notice;
use crate::shard::outbox::batch::BatchList;
use crate::shard::polls::Poll;
use crate::wire::websocket::message::MessageDecoder;

impl Sessions {
    /// Takes over a client whose upgrade has been answered, or whose request over plain HTTP has not.
    pub fn open(&mut self, mut new: NewConnection) {
        let credentials = std::mem::take(&mut new.admission.credentials);
        let may_continue = new.transport.is_extended() && self.kept.is_some();
        let earlier = new.admission.earlier.take().filter(|_| may_continue);
        let mut early_input = std::mem::take(&mut new.early_input);
        let Some(slot) = self.admit(new) else {
            return;
        };
        match earlier {
            Some(earlier) => self.ask_for_earlier(slot, &earlier, credentials),
            None if self.skips_authentication(slot) => {
                self.with_session(slot, false, |session, _, steps| session.admit_reader(steps));
            }
            None => self.begin_authentication(slot, &credentials),
        }
        self.take_early_input(slot, &mut early_input);
        self.answer_if_decided(slot);
        self.go_on_polling(slot);
    }

    /// Whether the client need not say who it is (`--ds_skip_auth`).
    fn skips_authentication(&mut self, slot: u32) -> bool {
        let durable_streams = self.common.config.durable_streams.as_ref();
        let skips = durable_streams.is_some_and(|it| it.skips_authentication);
        skips && self.table.reading(slot).is_some()
    }

    pub(super) fn begin_authentication(&mut self, slot: u32, credentials: &Credentials) {
        if let Err(refusal) = self.authenticate(slot, credentials) {
            self.note_refusal(slot, refusal);
        }
    }

    /// Takes over a client of the console, which has been authorized before.
    pub fn open_console(&mut self, mut new: NewConnection) {
        if self.watchers.is_full() {
            self.common.counters().console_refused_total.add(1);
            return;
        }
        // The app is never asked about it, so it needs no env.
        new.admission.env = Box::default();
        let sid = new.admission.sid.as_str().into();
        let mut early_input = std::mem::take(&mut new.early_input);
        let Some(slot) = self.admit(new) else {
            return;
        };
        self.watchers.add(slot);
        self.send_reply(slot, &Reply::Welcome { sid });
        self.take_early_input(slot, &mut early_input);
    }

    /// Gives a client its slot, its place in the reactor and its timer. `None` when it is being closed already.
    fn admit(&mut self, new: NewConnection) -> Option<u32> {
        let session = Session::new(&SessionSettings {
            sid: &new.admission.sid,
            env: &new.admission.env,
            deadlines: self.deadlines(&new),
            extended: new.transport.is_extended(),
        });
        let precision = new.admission.ping_precision;
        let (encoding, held, poll) = self.begin(new.transport);
        let is_opening = held.is_some();
        let slot = self.table.insert(Connection {
            session,
            decoder: MessageDecoder::default(),
            // What comes before the answer waits in it.
            outbox: is_opening.then(Box::default),
            tls: new.tls,
            held,
            permit: new.permit,
            deliveries: BatchList::default(),
            socket: new.socket,
            generation: 0,
            life: if is_opening {
                Life::Opening
            } else {
                Life::Open
            },
            format: Format {
                precision: precision.unwrap_or(self.common.config.ping.precision),
                encoding,
            },
            input_waiting: false,
            end_seen: false,
            write_watched: false,
            write_ready: false,
            place: Place::Resting,
        });
        if let Some(poll) = poll {
            self.begin_polling(slot, poll);
        }
        tracing::debug!(
            sid = new.admission.sid,
            shard = self.common.shard,
            "{} session established",
            self.table.connections[slot as usize].format.transport()
        );
        if let Err(error) = self.table.watch(slot) {
            self.log_unwatched(slot, &error);
            self.abort(slot, Cause::Error);
            return None;
        }
        if self.drain.has_begun {
            self.close_for_shutdown(slot);
            return None;
        }
        self.table.set_timer(slot);
        Some(slot)
    }

    /// How the client gets its messages, and what is kept of a request that is not answered yet.
    fn begin(&self, transport: Transport) -> (Encoding, Option<Box<Held>>, Option<Poll>) {
        match transport {
            Transport::WebSocket { deflate: false, .. } => (Encoding::PLAIN, None, None),
            Transport::WebSocket { deflate: true, .. } => (Encoding::DEFLATED, None, None),
            Transport::Polling(first) => (Encoding::LINES, None, Some(first)),
            Transport::Reading(request) => {
                let reading = OpenReading::new(request, unix_time().as_secs(), &self.common.budget);
                let encoding = Encoding::reader(reading.form.chunked);
                let held = Held {
                    reading: Some(Box::new(reading)),
                    ..Held::default()
                };
                (encoding, Some(Box::new(held)), None)
            }
            Transport::Events(EventRequest { form, headers }) => {
                let opening = Opening::new(headers, &self.common.budget);
                let held = Held {
                    opening: Some(Box::new(opening)),
                    ..Held::default()
                };
                (Encoding::events(form), Some(Box::new(held)), None)
            }
        }
    }

    /// The first ping comes after a random part of the interval, so that the pings of many sessions are spread evenly.
    fn deadlines(&self, new: &NewConnection) -> Deadlines {
        let ping = &self.common.config.ping;
        let interval = match new.admission.ping_interval_secs {
            // Its polls say that it is there.
            _ if matches!(new.transport, Transport::Polling(_)) => Duration::ZERO,
            Some(secs) => Duration::from_secs(secs.max(0) as u64),
            None => ping.interval,
        };
        let ping_ticks = match new.transport {
            // Its times begin later.
            Transport::Reading(_) => 0,
            _ => ticks(interval),
        };
        let first = ping_ticks / 2 + random_below(ping_ticks.max(1));
        let wants_pongs = match new.transport {
            Transport::WebSocket { extended, .. } => extended || ping.native,
            // It has no way to answer.
            Transport::Events(_) | Transport::Reading(_) | Transport::Polling(_) => false,
        };
        let pong_ticks = if wants_pongs {
            ticks(ping.pong_timeout)
        } else {
            0
        };
        Deadlines::new(self.table.now, first, ping_ticks, pong_ticks)
    }

    fn authenticate(&mut self, slot: u32, credentials: &Credentials) -> Result<(), AuthRefusal> {
        let now_unix_secs = unix_time().as_secs_f64();
        self.with_session(slot, false, |session, context, steps| {
            session.authenticate(context, credentials, now_unix_secs, steps)
        })
    }

    pub(super) fn log_unwatched(&self, slot: u32, error: &io::Error) {
        if let Some(admitted) = self.common.notices.admit(Notice::SocketUnwatched) {
            tracing::warn!(
                sid = self.table.sid(slot),
                shard = self.common.shard,
                %error,
                left_out = admitted.left_out(),
                "cannot watch a session's socket, closing it"
            );
        }
    }

    /// Every refusal is counted, and the log has a few of each kind. A query that cannot be parsed and a token without
    /// identifiers are logged as failed sessions.
    fn note_refusal(&self, slot: u32, refusal: AuthRefusal) {
        let (notice, what) = match refusal {
            AuthRefusal::BadQuery => return self.log_failed_session(slot, &refusal),
            AuthRefusal::TokenInvalid => (Notice::TokenInvalid, "a JWT"),
            AuthRefusal::TokenExpired => (Notice::TokenExpired, "a JWT"),
            AuthRefusal::TokenWithoutIdentifiers => {
                self.log_failed_session(slot, &refusal);
                (Notice::TokenWithoutIdentifiers, "a JWT")
            }
            AuthRefusal::TokenMissing => (Notice::TokenMissing, "a client without a JWT"),
            AuthRefusal::NoAuthenticator => (Notice::NoAuthenticator, "a client"),
        };
        let Some(admitted) = self.common.notices.admit(notice) else {
            return;
        };
        let left_out = admitted.left_out();
        let (sid, shard) = (self.table.sid(slot), self.common.shard);
        if refusal == AuthRefusal::TokenExpired {
            // This is normal: clients come back with an old token and then fetch a new one.
            tracing::info!(
                context = "jwt",
                sid,
                shard,
                left_out,
                "refused {what}: {refusal}"
            );
        } else {
            tracing::warn!(
                context = "jwt",
                sid,
                shard,
                left_out,
                "refused {what}: {refusal}"
            );
        }
    }
}

fn random_below(bound: Tick) -> Tick {
    u32::from_ne_bytes(random::bytes()) % bound
}

//! A table with real sockets for the unit tests of one part: no session decides about anything here.

use super::*;
use crate::session::{Deadlines, Session, SessionSettings};
use crate::shard::outbox::batch::BatchList;
use crate::shard::sessions::common::Common;
use crate::shard::sessions::connection::{Connection, Life};
use crate::shard::sessions::formats::{Encoding, Format};
use crate::shard::sessions::schedule::Place;
use crate::shard::sessions::table::Table;
use crate::wire::websocket::message::MessageDecoder;

pub(in crate::shard::sessions) struct Parts {
    pub common: Rc<Common>,
    pub table: Table,
}

impl Parts {
    /// Runs a test on both reactors.
    pub fn on_both(args: &[&str], test: impl Fn(&mut Self)) {
        on_both_reactors(|_, reactor| test(&mut Self::new(args, reactor)));
    }

    fn new(args: &[&str], reactor: Reactor) -> Self {
        let budget = ShardBudget::new(ProcessBudget::new(None, 1), Metrics::new(1).into(), 0);
        let args: Vec<&str> = PUBLIC.iter().chain(args).copied().collect();
        let common = Rc::new(Common::new(0, 1, Arc::new(config(&args)), budget));
        let hasher = RandomState::new();
        Self {
            table: Table::new(Rc::clone(&common), hasher, reactor, Instant::now()),
            common,
        }
    }

    /// An open connection that the reactor watches, and its far end.
    pub fn connect(&mut self) -> (u32, TcpStream) {
        let (socket, client) = pair(&TcpListener::bind("127.0.0.1:0").expect("bind"));
        let slot = self.table.insert(Connection {
            session: Session::new(&SessionSettings {
                sid: "s",
                env: "",
                deadlines: Deadlines::new(1, 0, 0, 0),
                extended: false,
            }),
            decoder: MessageDecoder::default(),
            outbox: None,
            tls: None,
            held: None,
            permit: None,
            deliveries: BatchList::default(),
            socket: Some(socket),
            generation: 0,
            life: Life::Open,
            format: Format {
                precision: PingPrecision::Seconds,
                encoding: Encoding::PLAIN,
            },
            input_waiting: false,
            end_seen: false,
            write_watched: false,
            write_ready: false,
            place: Place::Resting,
        });
        self.table.watch(slot).expect("a healthy reactor");
        self.table.reactor.flush();
        (slot, client)
    }

    pub fn connection(&mut self, slot: u32) -> &mut Connection {
        &mut self.table.connections[slot as usize]
    }

    pub fn counters(&self) -> &ShardMetrics {
        self.common.counters()
    }

    /// Takes events until `done` is true.
    pub fn take_events_until(&mut self, done: impl Fn(&Table) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(&self.table) {
            assert!(Instant::now() < deadline, "no event");
            self.table.take_events().expect("a healthy reactor");
            std::thread::yield_now();
        }
    }
}

//! What the console asks about streams: which ones there are, and what is known of one of them.

use std::cell::Ref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::broker::history::StreamView;
use crate::console::search::TEXT_SHOWN_BYTES_MAX;
use crate::console::streams::{
    Candidates, DETAILS_SHOWN_MAX, HistoryReport, KeptReport, MemberReport, MembersReport,
    MessageReport, Proposal, StreamFigures, StreamOrder, StreamPart, StreamQuery,
};
use crate::log::{cut_bytes, shortened};
use crate::mesh::Reply;
use crate::shard::Shard;
use crate::shard::publisher::Home;
use crate::shard::sessions::Sessions;

/// Steps between two pauses of a scan. A step takes a fraction of a microsecond: a place of a table, or one of the parts
/// that a figure is added up from.
const STREAM_STEPS_MAX: usize = 1024;
/// Messages whose bytes are added up in one step.
const MESSAGES_PER_STEP: usize = 64;

/// Where a shard has streams. A stream may be in all of them; it counts in the first one.
const TABLES: [Table; 3] = [Table::Listened, Table::Stored, Table::Attended];

#[derive(Clone, Copy)]
enum Table {
    /// With a listener here.
    Listened,
    /// With a history here.
    Stored,
    /// With members here.
    Attended,
}

/// All that a shard knows of streams.
struct Known<'a> {
    sessions: &'a Sessions,
    home: Option<Ref<'a, Home>>,
}

impl<'a> Known<'a> {
    fn by(shard: &'a Shard, sessions: &'a Sessions) -> Self {
        Self {
            sessions,
            home: shard.publisher.home(),
        }
    }

    fn places(&self, table: Table) -> usize {
        let home = self.home.as_deref();
        match table {
            Table::Listened => self.sessions.stream_places(),
            Table::Stored => home.map_or(0, |home| home.history().places()),
            Table::Attended => home.map_or(0, |home| home.presence().places()),
        }
    }

    fn name_at(&self, table: Table, place: usize) -> Option<&str> {
        let home = self.home.as_deref();
        match table {
            Table::Listened => self.sessions.stream_at(place),
            Table::Stored => home?.history().name_at(place),
            Table::Attended => home?.presence().name_at(place),
        }
    }

    fn is_in_an_earlier_table(&self, table: Table, name: &str) -> bool {
        let is_stored = |home: &Home| home.history().is_known(home.key(name));
        match table {
            Table::Listened => false,
            Table::Stored => self.sessions.has_listener(name),
            Table::Attended => {
                self.sessions.has_listener(name) || self.home.as_deref().is_some_and(is_stored)
            }
        }
    }

    /// A stream's figure, and the steps that it took.
    fn figure(&self, order: StreamOrder, name: &str) -> (u64, usize) {
        let home = self.home.as_deref();
        match order {
            StreamOrder::Listeners => self.sessions.listeners(name),
            StreamOrder::Messages => {
                let messages = home.map_or(0, |home| home.history().messages_of(home.key(name)));
                (messages as u64, 1)
            }
            StreamOrder::Bytes => {
                let totals = home.map(|home| home.history().totals_of(home.key(name)));
                let totals = totals.unwrap_or_default();
                let steps = totals.messages / MESSAGES_PER_STEP;
                (totals.message_bytes as u64, steps)
            }
            StreamOrder::Members => {
                let members = home.map_or(0, |home| home.presence().total(name));
                (members as u64, 1)
            }
        }
    }

    /// All figures of a stream, and the steps that they took.
    fn figures(&self, name: &str) -> (StreamFigures, usize) {
        let mut steps = 0;
        let mut figure = |order| {
            let (figure, of_figure) = self.figure(order, name);
            steps += of_figure;
            figure
        };
        let figures = StreamFigures {
            listeners: figure(StreamOrder::Listeners),
            messages: figure(StreamOrder::Messages),
            bytes: figure(StreamOrder::Bytes),
            members: figure(StreamOrder::Members),
        };
        (figures, steps)
    }
}

/// A search for streams in progress. A stream that begins or ends meanwhile may be missing.
struct StreamScan {
    query: Arc<StreamQuery>,
    /// Index into [`TABLES`].
    table: usize,
    next_place: usize,
    found: Candidates,
}

impl StreamScan {
    /// Examines the next places; true when the scan is done.
    fn look(&mut self, known: &Known<'_>) -> bool {
        let mut steps = 0;
        while steps < STREAM_STEPS_MAX {
            let Some(&table) = TABLES.get(self.table) else {
                return true;
            };
            if self.next_place >= known.places(table) {
                self.table += 1;
                self.next_place = 0;
                continue;
            }
            steps += 1 + self.examine(known, table, self.next_place);
            self.next_place += 1;
        }
        false
    }

    /// Returns the steps that the figure took.
    fn examine(&mut self, known: &Known<'_>, table: Table, place: usize) -> usize {
        let name = known.name_at(table, place);
        let wanted = name
            .filter(|name| self.query.is_in(name) && !known.is_in_an_earlier_table(table, name));
        wanted.map_or(0, |name| {
            let (figure, steps) = known.figure(self.query.order, name);
            self.found.add(figure, name);
            steps
        })
    }
}

/// Proposes the streams of this shard that come first. Other tasks run between two looks: there may be a million streams.
pub(super) async fn propose(shard: Rc<Shard>, query: Arc<StreamQuery>, reply: Reply<Proposal>) {
    let mut scan = StreamScan {
        query,
        table: 0,
        next_place: 0,
        found: Candidates::default(),
    };
    while !reply.is_abandoned() {
        if scan.look(&Known::by(&shard, &shard.sessions.borrow())) {
            return reply.send(scan.found.into_proposal());
        }
        shard.yields.yield_now().await;
    }
}

/// Sends this shard's figures of these streams, in their order.
pub(super) async fn count(
    shard: Rc<Shard>,
    names: Arc<[Box<str>]>,
    reply: Reply<Vec<StreamFigures>>,
) {
    let mut figures = Vec::with_capacity(names.len());
    while !reply.is_abandoned() {
        count_some(
            &Known::by(&shard, &shard.sessions.borrow()),
            &names,
            &mut figures,
        );
        if figures.len() == names.len() {
            return reply.send(figures);
        }
        shard.yields.yield_now().await;
    }
}

fn count_some(known: &Known<'_>, names: &[Box<str>], figures: &mut Vec<StreamFigures>) {
    let mut steps = 0;
    for name in &names[figures.len()..] {
        if steps >= STREAM_STEPS_MAX {
            break;
        }
        let (of_stream, of_figures) = known.figures(name);
        figures.push(of_stream);
        steps += 1 + of_figures;
    }
}

/// What this shard knows of one stream.
pub(super) fn part(shard: &Shard, sessions: &Sessions, stream: &str) -> StreamPart {
    let is_home = shard.publisher.home_of(stream) == shard.id;
    let home = shard.publisher.home().filter(|_| is_home);
    StreamPart {
        listeners: sessions.listeners(stream).0,
        listening: sessions.listening(stream, DETAILS_SHOWN_MAX),
        kept: home.map(|home| kept(&home, stream)),
    }
}

fn kept(home: &Home, stream: &str) -> KeptReport {
    let presence = home.presence();
    let records = presence.records(stream).take(DETAILS_SHOWN_MAX);
    let history = home.history();
    let view = history.view(home.key(stream), DETAILS_SHOWN_MAX, Instant::now());
    let unix_now = SystemTime::now().duration_since(UNIX_EPOCH);
    let unix_now = unix_now.unwrap_or_default();
    KeptReport {
        history: view.map(|view| history_report(view, unix_now)),
        members: MembersReport {
            total: presence.total(stream),
            records: records
                .map(|record| MemberReport {
                    id: shortened(record.id, TEXT_SHOWN_BYTES_MAX),
                    info: record.info.map(|it| shortened(it, TEXT_SHOWN_BYTES_MAX)),
                })
                .collect(),
        },
    }
}

fn history_report(view: StreamView, unix_now: Duration) -> HistoryReport {
    let newest = view.newest.into_iter().map(|kept| MessageReport {
        offset: kept.offset,
        stored_unix_ms: unix_now.saturating_sub(kept.age).as_millis() as u64,
        bytes: kept.message.len(),
        text: cut_bytes(&kept.message),
    });
    HistoryReport {
        epoch: view.last.epoch.to_string(),
        last: view.last.offset,
        messages: view.totals.messages,
        bytes: view.totals.message_bytes,
        messages_max: view.limits.messages,
        ttl_secs: view.limits.ttl.as_secs(),
        newest: newest.collect(),
    }
}

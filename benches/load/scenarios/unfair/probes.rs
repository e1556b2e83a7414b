//! What healthy clients see while others attack: each probe asks again and again at fixed times.
//!
//! Questions whose time comes while an answer is waited for are not asked, but counted as if they had been, and had been
//! answered together with that one: so a server that stands still for a second is seen by every question of that second and
//! not by one alone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Scene;
use super::floods::public_identifier;
use crate::histogram::Histogram;
use crate::sys;
use crate::websocket::{
    OPCODE_PING, OPCODE_PONG, OPCODE_TEXT, Stream, WebSocket, command, dial, exchange,
    upgrade_request,
};

/// Longer than any flood: what was not answered then never will be.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients whose WebSocket pings are timed, and those whose Action Cable pings are.
const PINGERS: usize = 4;
const WATCHERS: usize = 3;
/// What the watchers ask for with `pi=1`.
const WATCHED_INTERVAL: Duration = Duration::from_secs(1);
/// Between the watchers' arrivals, so that they are not told in one turn.
const STAGGER: Duration = Duration::from_millis(150);
const STREAM: &str = "healthy";

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// WebSocket ping to pong.
    Ping,
    /// Subscribe to its confirmation.
    Subscribe,
    /// `GET /health` on a connection that is kept, and on a new one.
    Health,
    FreshHealth,
    /// A publication to its 201, and to its delivery.
    Taken,
    Delivered,
    /// From the connect to the welcome.
    Welcome,
    /// Nothing: how late the probes themselves are.
    Nothing,
}

pub const FIGURES: [Figure; 8] = [
    Figure::Ping,
    Figure::Subscribe,
    Figure::Health,
    Figure::FreshHealth,
    Figure::Taken,
    Figure::Delivered,
    Figure::Welcome,
    Figure::Nothing,
];

type Session = WebSocket<Box<dyn Stream>>;

/// One question and the wait for its answers, of which `tell` hears as they come.
type Ask = Box<dyn FnMut(&mut dyn FnMut(Figure)) -> io::Result<()> + Send>;

struct Probe {
    interval: Duration,
    /// What `ask` tells of.
    figures: &'static [Figure],
    ask: Ask,
}

/// Clients that are in before the attack begins.
pub struct Probes {
    scene: Scene,
    probes: Vec<Probe>,
    watchers: Vec<Watcher>,
}

/// What the probes saw.
pub struct Seen {
    /// In nanoseconds, in the order of [`FIGURES`].
    times: Vec<Histogram>,
    /// Probes that lost their connection or got a wrong answer.
    pub failures: usize,
    /// Of Action Cable pings: the largest distance from their time.
    pub ping_deviation: Duration,
}

impl Seen {
    pub fn of(&self, figure: Figure) -> &Histogram {
        &self.times[figure as usize]
    }
}

impl Probes {
    /// Opens all connections that probes keep.
    ///
    /// # Panics
    /// When the server does not let them in: there is nothing to measure then.
    pub fn connect(scene: &Scene) -> Self {
        use Figure::{Delivered, FreshHealth, Health, Nothing, Ping, Subscribe, Taken, Welcome};
        let ready = || -> io::Result<(Vec<Probe>, Vec<Watcher>)> {
            let mut watchers = Vec::new();
            for _ in 0..WATCHERS {
                watchers.push(Watcher::start(scene)?);
                thread::sleep(STAGGER);
            }
            let mut probes = vec![
                probe(10, &[Nothing], nothing()),
                probe(25, &[Subscribe], subscribe(scene)?),
                probe(20, &[Health], health(scene)?),
                probe(50, &[FreshHealth], fresh_health(scene)),
                probe(50, &[Taken, Delivered], broadcast(scene)?),
                probe(100, &[Welcome], newcomer(scene)),
            ];
            for _ in 0..PINGERS {
                probes.push(probe(10, &[Ping], ping(scene)?));
            }
            Ok((probes, watchers))
        };
        let (probes, watchers) = ready().expect("healthy clients get in");
        Self {
            scene: scene.clone(),
            probes,
            watchers,
        }
    }

    /// Asks for `time`, does what `at_the_end` says, then waits until everything that was asked is answered.
    pub fn measure(self, time: Duration, at_the_end: impl FnOnce()) -> Seen {
        let mut seen = Seen {
            times: vec![Histogram::default(); FIGURES.len()],
            failures: 0,
            ping_deviation: Duration::ZERO,
        };
        let begun = Instant::now();
        let end = begun + time;
        let cpus = self.scene.cpus.clone();
        let pacers: Vec<JoinHandle<Paced>> = self
            .probes
            .into_iter()
            .map(|probe| {
                let cpus = cpus.clone();
                thread::spawn(move || {
                    sys::pin(&cpus).expect("the CPUs exist");
                    pace(probe, begun, end)
                })
            })
            .collect();
        thread::sleep(end.saturating_duration_since(Instant::now()));
        at_the_end();
        for pacer in pacers {
            let paced = pacer.join().expect("a probe does not panic");
            for (sum, times) in seen.times.iter_mut().zip(&paced.times) {
                sum.merge(times);
            }
            seen.failures += usize::from(paced.failed);
        }
        for watcher in self.watchers {
            let noted = watcher.finish();
            seen.ping_deviation = seen.ping_deviation.max(noted.deviation(begun));
            seen.failures += usize::from(noted.failed);
        }
        seen
    }
}

struct Paced {
    times: Vec<Histogram>,
    failed: bool,
}

/// Asks at its times between `begun` and `end`. A probe that fails asks no more; its last question counts as answered then.
fn pace(mut probe: Probe, begun: Instant, end: Instant) -> Paced {
    let mut paced = Paced {
        times: vec![Histogram::default(); FIGURES.len()],
        failed: false,
    };
    let mut due = begun;
    while due < end && !paced.failed {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let times = &mut paced.times;
        let mut tell = |figure: Figure| {
            record_with_omitted(&mut times[figure as usize], due.elapsed(), probe.interval);
        };
        if let Err(error) = (probe.ask)(&mut tell) {
            eprintln!("a probe of {:?} failed: {error}", probe.figures);
            paced.failed = true;
            for figure in probe.figures {
                let times = &mut paced.times[*figure as usize];
                record_with_omitted(times, due.elapsed(), probe.interval);
            }
        }
        while due <= Instant::now() {
            due += probe.interval;
        }
    }
    paced
}

/// Records a time, and those of the questions that were due meanwhile.
fn record_with_omitted(times: &mut Histogram, mut waited: Duration, interval: Duration) {
    times.record(waited.as_nanos() as u64);
    while waited > interval {
        waited -= interval;
        times.record(waited.as_nanos() as u64);
    }
}

fn probe(interval_millis: u64, figures: &'static [Figure], ask: Ask) -> Probe {
    Probe {
        figures,
        interval: Duration::from_millis(interval_millis),
        ask,
    }
}

fn nothing() -> Ask {
    Box::new(|tell| {
        tell(Figure::Nothing);
        Ok(())
    })
}

fn welcomed(scene: &Scene, target: &str) -> io::Result<Session> {
    let stream = dial(scene.address, scene.tls.as_ref(), PATIENCE)?;
    let mut session = WebSocket::open(stream, &upgrade_request(scene.address, target, ""))?;
    session.wait_for(OPCODE_TEXT, b"welcome")?;
    Ok(session)
}

fn ping(scene: &Scene) -> io::Result<Ask> {
    let mut session = welcomed(scene, "/cable")?;
    let mut number = 0_u64;
    Ok(Box::new(move |tell| {
        number += 1;
        let payload = number.to_be_bytes();
        session.send(OPCODE_PING, &payload)?;
        session.wait_for(OPCODE_PONG, &payload)?;
        tell(Figure::Ping);
        Ok(())
    }))
}

fn subscribe(scene: &Scene) -> io::Result<Ask> {
    let mut session = welcomed(scene, "/cable")?;
    let mut number = 0;
    Ok(Box::new(move |tell| {
        number += 1;
        let identifier = public_identifier("a healthy client's", number);
        session.send(OPCODE_TEXT, command("subscribe", &identifier).as_bytes())?;
        session.wait_for(OPCODE_TEXT, b"confirm_subscription")?;
        tell(Figure::Subscribe);
        session.send(OPCODE_TEXT, command("unsubscribe", &identifier).as_bytes())
    }))
}

fn health_request(scene: &Scene) -> Vec<u8> {
    format!("GET /health HTTP/1.1\r\nHost: {}\r\n\r\n", scene.address).into_bytes()
}

fn health(scene: &Scene) -> io::Result<Ask> {
    let request = health_request(scene);
    let mut stream = dial(scene.address, scene.tls.as_ref(), PATIENCE)?;
    exchange(&mut *stream, &request)?;
    Ok(Box::new(move |tell| {
        expect(exchange(&mut *stream, &request)?, 200)?;
        tell(Figure::Health);
        Ok(())
    }))
}

fn fresh_health(scene: &Scene) -> Ask {
    let (request, scene) = (health_request(scene), scene.clone());
    Box::new(move |tell| {
        let mut stream = dial(scene.address, scene.tls.as_ref(), PATIENCE)?;
        expect(exchange(&mut *stream, &request)?, 200)?;
        tell(Figure::FreshHealth);
        Ok(())
    })
}

/// Publishes to a subscriber of its own. The delivery is looked for when the 201 is there, so it counts as at least as late.
fn broadcast(scene: &Scene) -> io::Result<Ask> {
    let mut session = welcomed(scene, "/cable")?;
    let identifier = public_identifier(STREAM, 0);
    session.send(OPCODE_TEXT, command("subscribe", &identifier).as_bytes())?;
    session.wait_for(OPCODE_TEXT, b"confirm_subscription")?;
    let (scene, mut number, mut publisher) = (scene.clone(), 0, None);
    Ok(Box::new(move |tell| {
        number += 1;
        let word = format!("number {number}.");
        let body = json!({ "stream": STREAM, "data": json!(word).to_string() }).to_string();
        let request = format!(
            "POST /_broadcast HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            scene.broadcast_address,
            body.len()
        );
        let stream = match &mut publisher {
            Some(stream) => stream,
            empty => empty.insert(dial(scene.broadcast_address, scene.tls.as_ref(), PATIENCE)?),
        };
        expect(exchange(&mut **stream, request.as_bytes())?, 201)?;
        tell(Figure::Taken);
        session.wait_for(OPCODE_TEXT, word.as_bytes())?;
        tell(Figure::Delivered);
        Ok(())
    }))
}

fn newcomer(scene: &Scene) -> Ask {
    let scene = scene.clone();
    Box::new(move |tell| {
        welcomed(&scene, "/cable")?;
        tell(Figure::Welcome);
        Ok(())
    })
}

fn expect(status: u16, wanted: u16) -> io::Result<()> {
    if status == wanted {
        Ok(())
    } else {
        Err(io::Error::other(format!("{status} instead of {wanted}")))
    }
}

/// Notes when the Action Cable pings of one client come.
struct Watcher {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<Noted>,
}

impl Watcher {
    fn start(scene: &Scene) -> io::Result<Self> {
        let target = format!("/cable?pi={}", WATCHED_INTERVAL.as_secs());
        let stream = dial(scene.address, scene.tls.as_ref(), PATIENCE)?;
        let request = upgrade_request(scene.address, &target, "");
        let session = WebSocket::open(stream, &request)?;
        let stopping = Arc::<AtomicBool>::default();
        let (stop, cpus) = (Arc::clone(&stopping), scene.cpus.clone());
        let thread = thread::spawn(move || {
            sys::pin(&cpus).expect("the CPUs exist");
            note_pings(session, &stop)
        });
        Ok(Self { stopping, thread })
    }

    fn finish(self) -> Noted {
        self.stopping.store(true, Relaxed);
        self.thread.join().expect("a watcher does not panic")
    }
}

/// What a watcher noted.
#[derive(Default)]
struct Noted {
    /// When pings came, and when the watcher failed.
    moments: Vec<Instant>,
    failed: bool,
}

impl Noted {
    /// The largest distance of a ping from its time, of those since `begun`.
    fn deviation(&self, begun: Instant) -> Duration {
        let pairs = self.moments.windows(2).filter(|pair| pair[1] > begun);
        let deviation = |pair: &[Instant]| (pair[1] - pair[0]).abs_diff(WATCHED_INTERVAL);
        pairs.map(deviation).max().unwrap_or_default()
    }
}

/// Until the first ping after the stop: that one says how long nothing had come.
fn note_pings(mut session: Session, stopping: &AtomicBool) -> Noted {
    let mut noted = Noted::default();
    loop {
        noted.failed = session.wait_for(OPCODE_TEXT, br#""ping""#).is_err();
        noted.moments.push(Instant::now());
        if noted.failed || stopping.load(Relaxed) {
            return noted;
        }
    }
}

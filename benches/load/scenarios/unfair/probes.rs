//! What healthy clients see while others attack: each probe repeats its question at fixed times.
//!
//! While a probe waits for an answer, further questions come due and are not sent. They are counted as if they had been sent
//! and answered together with that one. So if a server stops for a second, all questions of that second show it and not only
//! one.

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

/// Longer than any flood: an answer that has not come by then will never come.
const PATIENCE: Duration = Duration::from_secs(30);
/// Clients whose WebSocket pings are timed, and also the number of those whose Action Cable pings are timed.
const PINGERS: usize = 4;
const WATCHERS: usize = 3;
/// The ping interval of the watchers, requested with `pi=1`.
const WATCHED_INTERVAL: Duration = Duration::from_secs(1);
/// Time between the watchers' connects, so that the server does not ping them all in one turn.
const STAGGER: Duration = Duration::from_millis(150);
const STREAM: &str = "healthy";

/// The thing that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// WebSocket ping to pong.
    Ping,
    /// From a subscribe to its confirmation.
    Subscribe,
    /// `GET /health` on a keep-alive connection, and on a new one.
    Health,
    FreshHealth,
    /// From a publication to its 201, and to its delivery.
    Taken,
    Delivered,
    /// From the connect to the welcome.
    Welcome,
    /// Measures no answer but how late the probes themselves are.
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

/// Sends one question and waits for its answers; calls `tell` for each of them.
type Ask = Box<dyn FnMut(&mut dyn FnMut(Figure)) -> io::Result<()> + Send>;

struct Probe {
    interval: Duration,
    /// The figures that `ask` reports.
    figures: &'static [Figure],
    ask: Ask,
}

/// Clients that are connected before the attack begins.
pub struct Probes {
    scene: Scene,
    probes: Vec<Probe>,
    watchers: Vec<Watcher>,
}

/// The results of the probes.
pub struct Seen {
    /// In nanoseconds, in the order of [`FIGURES`].
    times: Vec<Histogram>,
    /// Probes that lost their connection or got a wrong answer.
    pub failures: usize,
    /// The largest deviation of an Action Cable ping from its time.
    pub ping_deviation: Duration,
}

impl Seen {
    pub fn of(&self, figure: Figure) -> &Histogram {
        &self.times[figure as usize]
    }
}

impl Probes {
    /// Opens all connections that probes use.
    ///
    /// # Panics
    /// When the server does not accept them, because then nothing can be measured.
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

    /// Asks for `time`, calls `at_the_end`, then waits until all questions are answered.
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

/// Asks at fixed times between `begun` and `end`. A probe that fails stops; its last question counts as answered at the time
/// of the failure.
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

/// Records a time, and the times of the questions that came due during it.
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

/// Publishes to its own subscriber. The delivery is read only after the 201, so its time is never below that of the 201.
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

/// Records when the Action Cable pings of one client come.
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

/// The records of a watcher.
#[derive(Default)]
struct Noted {
    /// The times of the pings, and the time when the watcher failed.
    moments: Vec<Instant>,
    failed: bool,
}

impl Noted {
    /// The largest deviation of a ping from its time, among the pings since `begun`.
    fn deviation(&self, begun: Instant) -> Duration {
        let pairs = self.moments.windows(2).filter(|pair| pair[1] > begun);
        let deviation = |pair: &[Instant]| (pair[1] - pair[0]).abs_diff(WATCHED_INTERVAL);
        pairs.map(deviation).max().unwrap_or_default()
    }
}

/// Runs until the first ping after the stop, because that ping ends the last gap.
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

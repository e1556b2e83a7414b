//! What one client can make the server hold: memory per connection for each way of doing so, at the peak and later.
//!
//! A client sends bytes until the server reads no more, then stays. Peaks are the kernel's own high-water mark, so none is
//! missed. Where the server has a limit per session (`--session_bytes_max`), the bar is twice that limit.

mod client;
mod ways;

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::app::App;
use crate::options::Options;
use crate::peer::Peer;
use crate::process;
use crate::report::{Report, number};
use crate::sys;
use crate::tables;
use crate::target::{Target, public_flags};
use client::{Greedy, offer};
use ways::{After, WAYS, Way};

/// How long clients stay after the server reads no more. Shorter than the time limit of a request head.
const HOLD: Duration = Duration::from_secs(2);
/// Pause after what happens next.
const REST: Duration = Duration::from_millis(1_500);
/// The app does not answer while anything is measured.
const HANGS: Duration = Duration::from_secs(600);

pub fn run(options: &Options) {
    let mut report = Report::new("greedy", &options.shown);
    for run in 0..options.runs {
        for way in WAYS.iter().filter(|way| options.wants(way.name)) {
            for target in options.targets() {
                let (run, of, server) = (run + 1, options.runs, target.name);
                eprintln!("greedy: run {run} of {of}, {}, {server}", way.name);
                // Its own thread, because a pinned thread stays pinned.
                thread::scope(|scope| {
                    scope.spawn(|| {
                        sys::pin(&target.client_cpus()).expect("the CPUs exist");
                        measure(&target, way, &mut report);
                    });
                });
            }
        }
    }
    print!("\n{}", tables::by_case(report.rows(), ""));
    tell_missed(&report, options);
    report.finish();
}

fn measure(target: &Target, way: &Way, report: &mut Report) {
    let delay = if way.app_hangs { HANGS } else { Duration::ZERO };
    let app = way
        .app
        .then(|| App::start(delay, target.client_cpus()).expect("the app starts"));
    let mut flags = way.flags.iter().map(|flag| (*flag).to_owned()).collect();
    match &app {
        None => {
            let mut public = public_flags();
            public.append(&mut flags);
            flags = public;
        }
        Some(app) => flags.push(app.flag()),
    }
    let peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    let before = process::rss(peer.pid());
    process::reset_peak(peer.pid());
    let each = |bytes: u64| bytes.saturating_sub(before) as f64 / way.clients as f64 / 1e3;
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, way.name, metric, unit, value)
    };
    let mut clients = Greedy::enter_all(&peer, way);
    offer(&mut clients, HOLD);
    let sent: u64 = clients.iter().map(|client| client.sent_bytes).sum();
    say("clients", "", way.clients as f64);
    say("sent", "kB each", sent as f64 / way.clients as f64 / 1e3);
    say("peak", "kB each", each(process::peak_rss(peer.pid())));
    say("held", "kB each", each(process::rss(peer.pid())));
    let open = clients.iter().filter(|client| client.is_open()).count();
    say("still open", "", open as f64);
    for after in way.then {
        process::reset_peak(peer.pid());
        match after {
            After::Publish { times, bytes } => client::publish(&peer, *times, *bytes),
            After::Leave => clients.clear(),
        }
        thread::sleep(REST);
        let peak = process::peak_rss(peer.pid());
        say(&format!("peak, {}", after.name()), "kB each", each(peak));
        say(
            &format!("held, {}", after.name()),
            "kB each",
            each(process::rss(peer.pid())),
        );
    }
}

/// Prints the ways that took more than twice the limit of a session.
fn tell_missed(report: &Report, options: &Options) {
    println!();
    for target in options.targets() {
        let Some(budget) = session_budget(&target) else {
            println!("{}: has no budget for a session", target.name);
            continue;
        };
        let most = 2.0 * budget / 1e3;
        let rows = report
            .rows()
            .iter()
            .filter(|row| row.server == target.name && row.unit == "kB each");
        for row in rows.filter(|row| row.metric != "sent" && row.median() > most) {
            println!(
                "missed: {}, {}: {} is {} kB for each, at most {}",
                row.case,
                row.server,
                row.metric,
                number(row.median()),
                number(most)
            );
        }
    }
}

/// Bytes that a session may hold, according to the server.
fn session_budget(target: &Target) -> Option<f64> {
    let output = Command::new(&target.binary).arg("--print-config").output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    let config: toml::Table = text.parse().ok()?;
    let bytes = config.get("ws")?.get("session_bytes_max")?.as_integer()?;
    Some(bytes as f64)
}

//! Ten thousand members of one stream: how fast they join and leave, and how long the answer takes that names them all.
//!
//! Each member is a client with one subscription through the app, which names the stream of its presence and lets it listen
//! to none: ten thousand listeners would get ten thousand events each, which is a fan-out and no measure of presence.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::app::App;
use crate::crowd::{Crowd, Members, Plan, Saying};
use crate::names::case::{MEMBERS, MEMBERS_ASKED};
use crate::names::presence::{ANSWER, RATE};
use crate::options::Options;
use crate::peer::Peer;
use crate::report::Report;
use crate::scenarios::profiles::cookie_line;
use crate::target::Target;

const CLIENTS: usize = 10_000;
const CORES: usize = 2;
/// Times that all join and leave.
const ROUNDS: usize = 3;
/// Questions in a row.
const QUESTIONS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Members of one stream.
struct OneRoom;

fn identifier(index: u32) -> String {
    format!(r#"{{"channel":"MemberChannel","member":{index},"presence":"room"}}"#)
}

impl Members for OneRoom {
    fn subscriptions(&self, index: u32) -> Vec<(String, u32)> {
        vec![(identifier(index), 0)]
    }

    fn header_lines(&self, index: u32) -> String {
        cookie_line(index)
    }
}

pub fn run(options: &Options) {
    let options = &Options {
        cores: CORES,
        ..options.clone()
    };
    let mut report = Report::new("presence", &options.shown);
    report.name_peer_of(options);
    for run in 0..options.runs {
        for target in options.targets() {
            eprintln!(
                "presence: run {} of {}, {}",
                run + 1,
                options.runs,
                target.name
            );
            measure(options, &target, &mut report);
        }
    }
    report.finish();
}

/// Neither a join nor a leave has an answer, so a ping follows, which is answered when they have been handled.
fn handled(command: String) -> Option<Vec<String>> {
    Some(vec![command, r#"{"command":"ping"}"#.to_owned()])
}

fn join() -> Saying {
    Arc::new(|index| {
        let presence = json!({ "id": format!("{index:08}"), "info": { "name": format!("Somebody {index:06}") } });
        let command =
            json!({ "command": "join", "identifier": identifier(index), "presence": presence });
        handled(command.to_string())
    })
}

fn leave() -> Saying {
    Arc::new(|index| {
        handled(json!({ "command": "leave", "identifier": identifier(index) }).to_string())
    })
}

/// One member asks who is there.
fn ask() -> Saying {
    Arc::new(|index| {
        let data = json!({ "return_records": true });
        let command =
            json!({ "command": "presence", "identifier": identifier(index), "data": data });
        (index == 0).then(|| vec![command.to_string()])
    })
}

fn measure(options: &Options, target: &Target, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let app = App::start(Duration::ZERO, Vec::new()).expect("the app starts");
    let flags = [
        app.flag(),
        "--broker=memory".to_owned(),
        "--disconnect_mode=never".to_owned(),
        "--ping_interval=3600".to_owned(),
    ];
    let peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    let crowd = Crowd::start(&Plan {
        address: peer.address,
        members: Arc::new(OneRoom),
        clients,
        threads: CORES,
        cpus: Vec::new(),
    });
    assert!(
        crowd.connect(0, PATIENCE).is_some(),
        "{} of {clients} clients are subscribed",
        crowd.done()
    );
    let mut say = |case: &str, metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case, metric, unit, value);
    };
    come_and_go(&peer, &crowd, clients, &mut say);
    name_all(&peer, &crowd, clients, &mut say);
    let figures = crowd.take_figures();
    let faults = figures.refused + figures.closed + figures.unknown;
    say(
        MEMBERS_ASKED,
        "strange messages, lost connections",
        "",
        faults as f64,
    );
}

type Say<'a> = dyn FnMut(&str, &str, &str, f64) + 'a;

fn time(crowd: &Crowd, saying: &Saying) -> Duration {
    crowd.say(saying, PATIENCE).expect("the server answers")
}

/// All join and leave, some times.
fn come_and_go(peer: &Peer, crowd: &Crowd, clients: usize, say: &mut Say<'_>) {
    let (join, leave) = (join(), leave());
    for _ in 0..ROUNDS {
        let cpu = peer.cpu();
        let (joined, left) = (time(crowd, &join), time(crowd, &leave));
        let cpu = peer.cpu().since(cpu).total().as_secs_f64() * 1e6;
        let clients = clients as f64;
        let rate = |took: Duration| clients / took.as_secs_f64();
        say(MEMBERS, "joins/s", "1/s", rate(joined));
        say(MEMBERS, "leaves/s", "1/s", rate(left));
        say(MEMBERS, RATE, "1/s", 2.0 * rate(joined + left));
        let each = cpu / (2.0 * clients);
        say(MEMBERS, "server CPU per join or leave", "µs", each);
    }
}

/// All join, and one asks some times who is there.
fn name_all(peer: &Peer, crowd: &Crowd, clients: usize, say: &mut Say<'_>) {
    time(crowd, &join());
    let ask = ask();
    let cpu = peer.cpu();
    for _ in 0..QUESTIONS {
        let took = time(crowd, &ask).as_secs_f64() * 1e3;
        say(MEMBERS_ASKED, ANSWER, "ms", took);
    }
    let cpu = peer.cpu().since(cpu).total().as_secs_f64() * 1e3;
    let each = cpu / QUESTIONS as f64;
    say(MEMBERS_ASKED, "server CPU per question", "ms", each);
    let members = || peer.metric("ringcable_presence_members_num");
    // The gauge is set once a second.
    let deadline = Instant::now() + PATIENCE;
    while members().is_some_and(|members| members < clients as f64) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    say(MEMBERS_ASKED, "members", "", members().unwrap_or(f64::NAN));
}

//! Whispers in groups of three: one member whispers, the other two hear it.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;

use crate::app::epoll::{EVENT, EVENTS_MAX, Epoll};
use crate::fleet::client_frame;
use crate::limit::identifier;
use crate::peer::Peer;
use crate::sys;
use crate::target::public_flags;
use crate::websocket::{OPCODE_TEXT, command, upgrade_request};

use super::{HANDED, PUBLISHED, Scene, micros_each};

pub const NAME: &str = "whispers";
pub const PER_WHISPER: &str = "server CPU per whisper";
const GROUP: usize = 3;
const SESSIONS: usize = 6_000;
/// Groups in which a whisper is on its way.
const WINDOW: usize = 64;
/// Clients that connect together.
const CONNECTING: usize = 300;
const WARM_UP: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(10);
/// What only a whisper contains.
const WHISPERED: &[u8] = b"typing";

pub fn measure(scene: &mut Scene<'_>) {
    let cpus = scene.target.client_cpus();
    let mut flags = public_flags();
    flags.push("--ping_interval=3600".to_owned());
    let peer = Peer::start(&scene.target, &flags, None);
    let groups = scene.options.clients.unwrap_or(SESSIONS) / GROUP;
    // Its own thread, because a pinned thread stays pinned.
    thread::scope(|scope| {
        scope.spawn(|| {
            sys::pin(&cpus).expect("the CPUs exist");
            let groups = Groups::connect(peer.address, groups);
            let mut groups = groups.expect("the clients subscribe");
            groups.whisper(WARM_UP).expect("whispers arrive");
            let count = |name| peer.metric(name);
            let (handed, published) = (count(HANDED), count(PUBLISHED));
            let (begun, cpu) = (Instant::now(), peer.cpu());
            let whispers = groups.whisper(scene.time).expect("whispers arrive") as f64;
            let (elapsed, cpu) = (begun.elapsed(), peer.cpu().since(cpu).total());
            scene.say("whispers/s", "1/s", whispers / elapsed.as_secs_f64());
            scene.say(PER_WHISPER, "µs", micros_each(cpu, whispers));
            let grown = |name, before: Option<f64>| Some(peer.metric(name)? - before?);
            if let (Some(handed), Some(published)) =
                (grown(HANDED, handed), grown(PUBLISHED, published))
            {
                scene.say("handed to shards per whisper", "", handed / published);
            }
        });
    });
}

struct Member {
    socket: TcpStream,
    /// What came since the last whisper.
    heard: Vec<u8>,
}

/// Clients on one thread; member `i` belongs to group `i / GROUP`, and the first member of each whispers.
struct Groups {
    epoll: Epoll,
    members: Vec<Member>,
    /// By group: members that have not heard its whisper.
    missing: Vec<usize>,
    next: usize,
}

impl Groups {
    fn connect(address: SocketAddrV4, groups: usize) -> io::Result<Self> {
        let mut all = Self {
            epoll: Epoll::new()?,
            members: Vec::new(),
            missing: vec![0; groups],
            next: 0,
        };
        let hello = upgrade_request(address, "/cable", "");
        while all.members.len() < groups * GROUP {
            let first = all.members.len();
            let last = (first + CONNECTING).min(groups * GROUP);
            for _ in first..last {
                let mut socket = TcpStream::connect(address)?;
                socket.set_nodelay(true)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.write_all(hello.as_bytes())?;
                all.members.push(Member {
                    socket,
                    heard: Vec::new(),
                });
            }
            for (number, member) in all.members.iter_mut().enumerate().skip(first) {
                member.hear_until(b"welcome")?;
                member.say(&command("subscribe", &identifier((number / GROUP) as u32)))?;
            }
            for (number, member) in all.members.iter_mut().enumerate().skip(first) {
                member.hear_until(b"confirm_subscription")?;
                all.epoll.watch(member.socket.as_raw_fd(), number as u64)?;
            }
        }
        Ok(all)
    }

    /// Whispers in all groups in turns for `time`, then waits until all have heard; returns how many whispers there were.
    fn whisper(&mut self, time: Duration) -> io::Result<u64> {
        let begun = Instant::now();
        let (mut whispers, mut under_way) = (0, 0);
        let mut events = [EVENT; EVENTS_MAX];
        loop {
            while under_way < WINDOW.min(self.missing.len()) && begun.elapsed() < time {
                self.start_one()?;
                whispers += 1;
                under_way += 1;
            }
            if under_way == 0 {
                return Ok(whispers);
            }
            let ready = self.epoll.wait(&mut events, Some(PATIENCE));
            if ready.is_empty() {
                let text = format!("{under_way} whispers did not come");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            for event in ready {
                let number = event.u64 as usize;
                if self.members[number].hear(WHISPERED)? {
                    let missing = &mut self.missing[number / GROUP];
                    *missing = missing.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
                    under_way -= usize::from(*missing == 0);
                }
            }
        }
    }

    /// A whisper in the next group that has heard its last one.
    fn start_one(&mut self) -> io::Result<()> {
        let group = (self.next..self.missing.len())
            .chain(0..self.next)
            .find(|group| self.missing[*group] == 0)
            .expect("the window is not larger than the number of groups");
        self.next = (group + 1) % self.missing.len();
        self.missing[group] = GROUP - 1;
        let whisper = json!({
            "command": "whisper",
            "identifier": identifier(group as u32),
            "data": { "typing": true },
        });
        self.members[group * GROUP].say(&whisper.to_string())
    }
}

impl Member {
    fn say(&mut self, text: &str) -> io::Result<()> {
        let mut frame = Vec::new();
        client_frame(OPCODE_TEXT, text.as_bytes(), &mut frame);
        self.socket.write_all(&frame)
    }

    /// Reads what is there (or waits for it once); returns whether `text` has come, and forgets it then.
    fn hear(&mut self, text: &[u8]) -> io::Result<bool> {
        let mut buffer = [0; 1024];
        match self.socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => self.heard.extend_from_slice(&buffer[..read]),
        }
        let found = memmem::find(&self.heard, text).is_some();
        if found {
            self.heard.clear();
        }
        Ok(found)
    }

    fn hear_until(&mut self, text: &[u8]) -> io::Result<()> {
        while !self.hear(text)? {}
        Ok(())
    }
}

//! What is saved by storing each identifier only once: bytes of all sessions, and the cost of making a subscription.

use std::collections::HashMap;
use std::rc::Rc;

use super::Bench;
use super::cost::Cost;
use crate::fleet::Clients;
use crate::scenarios::profiles::{OneChannel, RoomPage};

const SESSIONS: usize = 15_000;

pub fn run(bench: &mut Bench) {
    let profiles: [(&str, &(dyn Clients + Sync)); 2] =
        [("1 subscription", &OneChannel), ("campfire", &RoomPage)];
    let ways: [(&str, Keep); 3] = [
        ("a text each", texts),
        ("interned, Rc<str>", shared_texts),
        ("interned, u32", handles),
    ];
    for (profile_name, profile) in profiles {
        for (name, keep) in ways {
            bench.measure(
                &format!("interning: {profile_name}, {name}"),
                |setting, notes| {
                    let sessions = setting.count(SESSIONS) as u32;
                    let identifiers: Vec<Vec<String>> = (0..sessions)
                        .map(|index| profile.identifiers(index))
                        .collect();
                    let kept = keep(&identifiers);
                    let subscriptions: usize = identifiers.iter().map(Vec::len).sum();
                    notes.say(
                        "bytes per session",
                        "B",
                        kept.bytes as f64 / f64::from(sessions),
                    );
                    notes.say(
                        "CPU per subscription",
                        "ns",
                        kept.cost.micros_each(subscriptions as u64) * 1e3,
                    );
                },
            );
        }
    }
}

/// Stores the identifiers of all sessions.
type Keep = fn(&[Vec<String>]) -> Kept;

struct Kept {
    bytes: usize,
    cost: Cost,
}

/// Calls `keep` and counts the cost.
fn count<T>(keep: impl FnOnce() -> T) -> Kept {
    let before = allocated_bytes();
    let mut cost = Cost::default();
    let kept = cost.count(keep);
    let bytes = allocated_bytes() - before;
    drop(kept);
    Kept { bytes, cost }
}

fn texts(sessions: &[Vec<String>]) -> Kept {
    let keep = |identifiers: &Vec<String>| -> Box<[Box<str>]> {
        identifiers
            .iter()
            .map(|text| text.as_str().into())
            .collect()
    };
    count(|| sessions.iter().map(keep).collect::<Box<[_]>>())
}

/// All texts in use; the position of a text is its handle.
#[derive(Default)]
struct Interner {
    places: HashMap<Rc<str>, u32>,
    texts: Vec<Rc<str>>,
}

impl Interner {
    fn place(&mut self, text: &str) -> u32 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.texts.len() as u32;
        let text: Rc<str> = text.into();
        self.texts.push(text.clone());
        self.places.insert(text, place);
        place
    }
}

fn shared_texts(sessions: &[Vec<String>]) -> Kept {
    count(|| {
        let mut interner = Interner::default();
        let mut keep = |identifiers: &Vec<String>| -> Box<[Rc<str>]> {
            let texts = identifiers.iter().map(|text| {
                let place = interner.place(text);
                interner.texts[place as usize].clone()
            });
            texts.collect()
        };
        let sessions: Box<[_]> = sessions.iter().map(&mut keep).collect();
        (sessions, interner)
    })
}

fn handles(sessions: &[Vec<String>]) -> Kept {
    count(|| {
        let mut interner = Interner::default();
        let mut keep = |identifiers: &Vec<String>| -> Box<[u32]> {
            identifiers
                .iter()
                .map(|text| interner.place(text))
                .collect()
        };
        let sessions: Box<[_]> = sessions.iter().map(&mut keep).collect();
        (sessions, interner)
    })
}

/// The bytes allocated by this program, according to the system allocator.
fn allocated_bytes() -> usize {
    // SAFETY: the call has no preconditions; it locks what it reads.
    let figures = unsafe { libc::mallinfo2() };
    figures.uordblks + figures.hblkhd
}

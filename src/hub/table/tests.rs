use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn receivers(hub: &Hub, stream: &str) -> Vec<(String, Vec<u32>)> {
    let mut found: Vec<_> = hub
        .receivers(stream)
        .map(|(identifier, slots)| {
            let mut slots = slots.to_vec();
            slots.sort_unstable();
            (identifier.to_string(), slots)
        })
        .collect();
    found.sort();
    found
}

#[test]
fn two_identifiers_on_one_stream_are_two_groups() {
    let mut hub = Hub::default();
    for (slot, identifier) in [(1, "A"), (1, "B"), (2, "A")] {
        hub.subscribe(slot, identifier);
        hub.attach(slot, identifier, "x");
    }
    assert_eq!(
        receivers(&hub, "x"),
        [("A".into(), vec![1, 2]), ("B".into(), vec![1])]
    );
    assert_eq!(receivers(&hub, "y"), []);
}

#[test]
fn a_stream_attached_twice_to_one_subscription_delivers_once() {
    let mut hub = Hub::default();
    hub.subscribe(1, "A");
    hub.attach(1, "A", "x");
    hub.attach(1, "A", "x");
    assert_eq!(receivers(&hub, "x"), [("A".into(), vec![1])]);
}

#[test]
fn a_subscription_outlives_its_streams() {
    let mut hub = Hub::default();
    hub.subscribe(3, "A");
    hub.attach(3, "A", "x");
    hub.attach(3, "A", "y");
    hub.detach_all(3, "A");
    assert!(hub.is_subscribed(3, "A"));
    assert_eq!((hub.streams_len(), hub.streams_of(3, "A").len()), (0, 0));
    hub.attach(3, "A", "z");
    assert_eq!(hub.streams_of(3, "A"), ["z"]);
    hub.unsubscribe(3, "A");
    assert!(!hub.is_subscribed(3, "A"));
    assert_eq!(receivers(&hub, "z"), []);
}

#[test]
fn identifiers_are_listed_once_and_in_order() {
    let mut hub = Hub::default();
    hub.subscribe(1, "A");
    hub.subscribe(1, "B");
    hub.attach(1, "A", "x");
    hub.attach(1, "A", "y");
    assert_eq!(hub.identifiers(1), ["A", "B"]);
    assert_eq!(hub.identifiers(99), Vec::<&str>::new());
}

#[test]
fn a_walk_goes_on_when_groups_come_and_go_between_its_steps() {
    let mut hub = Hub::default();
    for (slot, identifier) in [(1, "A"), (2, "B"), (3, "C"), (4, "D")] {
        hub.subscribe(slot, identifier);
        hub.attach(slot, identifier, "x");
    }
    hub.walk("x");
    let mut met = Vec::new();
    let mut step = |hub: &mut Hub| {
        let group = hub.next_group();
        met.extend(group.map(|group| hub.group(group).0.to_string()));
        group.is_some()
    };
    assert!(step(&mut hub));
    // After the first group comes the one that was added last.
    hub.remove_session(4);
    hub.subscribe(5, "E");
    hub.attach(5, "E", "x");
    while step(&mut hub) {}
    met.sort();
    assert_eq!(met, ["A", "B", "C"]);
    hub.walk("nobody listens");
    assert_eq!(hub.next_group(), None);
}

#[test]
fn a_subscription_is_late_for_what_had_arrived_before_it() {
    let mut hub = Hub::default();
    let join = |hub: &mut Hub, slot| {
        hub.subscribe(slot, "A");
        hub.attach(slot, "A", "x");
    };
    join(&mut hub, 1);
    hub.set_handled(5);
    hub.set_arrived(7);
    join(&mut hub, 2);
    hub.walk("x");
    let group = hub.next_group().expect("a group");
    let late = |hub: &Hub, slot| [6, 7, 8].map(|number| hub.is_late_for(group, slot, number));
    assert_eq!(late(&hub, 1), [false; 3]);
    assert_eq!(late(&hub, 2), [true, true, false]);
    hub.set_handled(6);
    assert!(hub.has_latecomers());
    hub.set_handled(7);
    assert!(!hub.has_latecomers());
    join(&mut hub, 3);
    assert!(!hub.has_latecomers(), "nothing waits");
}

#[derive(Debug, Clone)]
enum Act {
    Subscribe(u32, usize),
    Attach(u32, usize, usize),
    Detach(u32, usize, usize),
    DetachAll(u32, usize),
    Unsubscribe(u32, usize),
    Remove(u32),
}

fn act() -> impl Strategy<Value = Act> {
    let (slot, identifier, stream) = (0u32..6, 0usize..4, 0usize..4);
    prop_oneof![
        (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::Subscribe(s, i)),
        (slot.clone(), identifier.clone(), stream.clone())
            .prop_map(|(s, i, t)| Act::Attach(s, i, t)),
        (slot.clone(), identifier.clone(), stream.clone())
            .prop_map(|(s, i, t)| Act::Detach(s, i, t)),
        (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::DetachAll(s, i)),
        (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::Unsubscribe(s, i)),
        slot.prop_map(Act::Remove),
    ]
}

/// The simple model: subscription → set of streams.
type Model = BTreeMap<(u32, usize), BTreeSet<usize>>;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn apply(hub: &mut Hub, model: &mut Model, act: Act) {
    match act {
        Act::Subscribe(slot, id) => {
            hub.subscribe(slot, NAMES[id]);
            model.entry((slot, id)).or_default();
        }
        Act::Attach(slot, id, stream) => {
            if let Some(streams) = model.get_mut(&(slot, id)) {
                streams.insert(stream);
                hub.attach(slot, NAMES[id], NAMES[stream]);
            }
        }
        Act::Detach(slot, id, stream) => {
            hub.detach(slot, NAMES[id], NAMES[stream]);
            model
                .get_mut(&(slot, id))
                .map(|streams| streams.remove(&stream));
        }
        Act::DetachAll(slot, id) => {
            hub.detach_all(slot, NAMES[id]);
            model.entry((slot, id)).and_modify(BTreeSet::clear);
        }
        Act::Unsubscribe(slot, id) => {
            hub.unsubscribe(slot, NAMES[id]);
            model.remove(&(slot, id));
        }
        Act::Remove(slot) => {
            hub.remove_session(slot);
            model.retain(|&(owner, _), _| owner != slot);
        }
    }
}

fn compare(hub: &Hub, model: &Model) {
    for (stream, name) in NAMES.iter().enumerate() {
        let mut expected: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for (&(slot, id), streams) in model {
            if streams.contains(&stream) {
                expected.entry(NAMES[id].into()).or_default().push(slot);
            }
        }
        assert_eq!(
            receivers(hub, name),
            expected.into_iter().collect::<Vec<_>>()
        );
    }
    for slot in 0..6 {
        for (id, name) in NAMES.iter().enumerate() {
            assert_eq!(
                hub.is_subscribed(slot, name),
                model.contains_key(&(slot, id))
            );
        }
    }
    let streams: BTreeSet<_> = model.values().flatten().collect();
    assert_eq!(hub.streams_len(), streams.len());
    let edges: usize = model.values().map(|streams| streams.len().max(1)).sum();
    assert_eq!(hub.edges, edges);
    assert_eq!(hub.held_bytes() == 0, model.is_empty());
    if model.is_empty() {
        assert_eq!(
            (
                hub.identifiers.len(),
                hub.groups.len(),
                hub.crowds.len(),
                hub.group_index.len()
            ),
            (0, 0, 0, 0)
        );
    }
}

/// Events around publications that are delivered in pieces, all on one stream.
#[derive(Debug, Clone)]
enum Event {
    Arrive,
    /// Delivers to this many groups.
    Deliver(usize),
    Subscribe(u32, usize),
    Unsubscribe(u32, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (slot, identifier) = (0u32..5, 0usize..4);
    prop_oneof![
        Just(Event::Arrive),
        (1usize..4).prop_map(Event::Deliver),
        (slot.clone(), identifier.clone()).prop_map(|(s, i)| Event::Subscribe(s, i)),
        (slot, identifier).prop_map(|(s, i)| Event::Unsubscribe(s, i)),
    ]
}

/// A shard that takes its inbox in pieces, and a simple model of what must come out.
#[derive(Default)]
struct Pieces {
    hub: Hub,
    arrived: u64,
    handled: u64,
    /// The message that is being delivered.
    walking: bool,
    /// By subscription: the number of messages that had arrived when it was made.
    since: BTreeMap<(u32, usize), u64>,
    got: BTreeMap<(u32, usize, u64), usize>,
    /// The sessions that must get a message: those that listened when it arrived and have not left.
    owed: BTreeMap<u64, BTreeSet<(u32, usize)>>,
}

impl Pieces {
    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                self.arrived += 1;
                self.owed
                    .insert(self.arrived, self.since.keys().copied().collect());
            }
            Event::Deliver(groups) => (0..groups).for_each(|_| self.deliver()),
            Event::Subscribe(slot, id) if !self.since.contains_key(&(slot, id)) => {
                self.since.insert((slot, id), self.arrived);
                self.hub.set_arrived(self.arrived);
                self.hub.subscribe(slot, NAMES[id]);
                self.hub.attach(slot, NAMES[id], "x");
            }
            Event::Subscribe(..) => {}
            Event::Unsubscribe(slot, id) => {
                self.hub.unsubscribe(slot, NAMES[id]);
                self.since.remove(&(slot, id));
                for owed in self.owed.values_mut() {
                    owed.remove(&(slot, id));
                }
            }
        }
    }

    /// Delivers one group of the next message.
    fn deliver(&mut self) {
        let number = self.handled + 1;
        if number > self.arrived {
            return;
        }
        if !std::mem::replace(&mut self.walking, true) {
            self.hub.walk("x");
        }
        let Some(group) = self.hub.next_group() else {
            self.handled = number;
            self.walking = false;
            self.hub.set_handled(number);
            let owed = self.owed.remove(&number).unwrap_or_default();
            for (slot, id) in owed {
                assert_eq!(self.got.get(&(slot, id, number)), Some(&1), "missed");
            }
            return;
        };
        let (identifier, members) = self.hub.group(group);
        let id = NAMES.iter().position(|name| *name == identifier);
        for &slot in members {
            if !self.hub.is_late_for(group, slot, number) {
                let id = id.expect("one of the names");
                assert!(self.since[&(slot, id)] < number, "too old for it");
                *self.got.entry((slot, id, number)).or_default() += 1;
            }
        }
    }
}

proptest! {
    #[test]
    fn pieces_of_a_fan_out_meet_who_listened_once_and_nobody_who_came_later(
        events in prop::collection::vec(event(), 1..200),
    ) {
        let mut pieces = Pieces::default();
        for event in events {
            pieces.happen(event);
        }
        while pieces.handled < pieces.arrived {
            pieces.deliver();
        }
        assert!(pieces.got.values().all(|&times| times == 1), "doubled");
        assert!(!pieces.hub.has_latecomers());
    }

    #[test]
    fn the_table_agrees_with_a_simple_model(acts in prop::collection::vec(act(), 1..120)) {
        let (mut hub, mut model) = (Hub::default(), Model::default());
        for act in acts {
            apply(&mut hub, &mut model, act);
            compare(&hub, &model);
        }
        for slot in 0..6 {
            apply(&mut hub, &mut model, Act::Remove(slot));
        }
        compare(&hub, &model);
    }
}

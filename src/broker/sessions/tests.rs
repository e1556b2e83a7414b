use proptest::prelude::*;

use super::*;
use crate::broker::budget::FixedBudget;

const TTL: Duration = Duration::from_secs(300);

/// Kept sessions with their budget and time.
struct Stage {
    sessions: KeptSessions<FixedBudget>,
    now: Instant,
}

impl Stage {
    fn new() -> Self {
        Self::with_budget(usize::MAX)
    }

    fn with_budget(bytes_max: usize) -> Self {
        let now = Instant::now();
        Self {
            sessions: KeptSessions::new(FixedBudget::new(bytes_max), TTL, now),
            now,
        }
    }

    fn keep(&mut self, sid: &str, session: &SessionSnapshot) -> Result<(), KeepRefusal> {
        let kept = self.sessions.keep(sid, session, self.now);
        self.held_bytes();
        kept
    }

    fn restore(&self, sid: &str) -> Option<SessionSnapshot> {
        self.sessions.restore(sid, self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        while self.sessions.sweep(self.now, 3) {}
        self.held_bytes();
    }

    fn held_bytes(&self) -> usize {
        let held_bytes = self.sessions.totals().held_bytes;
        assert_eq!(self.sessions.budget.used(), held_bytes);
        held_bytes
    }

    fn evicted(&self) -> usize {
        self.sessions.totals().evicted as usize
    }

    fn assert_empty(&self) {
        let sessions = &self.sessions;
        assert_eq!(self.held_bytes(), 0);
        assert_eq!(sessions.totals().restorable, 0);
        assert_eq!(
            (sessions.texts.len(), sessions.identity_texts.len()),
            (0, 0)
        );
        assert!(sessions.sessions.is_empty());
        assert_eq!(sessions.expiry.oldest(), None);
    }
}

fn of(identifiers: &str) -> SessionSnapshot {
    SessionSnapshot {
        identifiers: identifiers.into(),
        ..SessionSnapshot::default()
    }
}

fn marks(whisper: bool, presence: bool) -> Marks {
    Marks { whisper, presence }
}

fn full() -> SessionSnapshot {
    let subscription = |identifier: &str, streams: &[(&str, Marks)]| SubscriptionSnapshot {
        identifier: identifier.into(),
        streams: streams
            .iter()
            .map(|&(stream, marks)| (stream.into(), marks))
            .collect(),
    };
    SessionSnapshot {
        identifiers: r#"{"current_user":"Z2lkOi8vYXBwL1VzZXIvMQ"}"#.into(),
        cstate: [("a", "1"), ("b", "")].into_iter().collect(),
        istates: vec![
            ("A".into(), [("$w", "x"), ("$p", "y")].into_iter().collect()),
            ("B".into(), State::default()),
        ],
        subscriptions: vec![
            subscription("A", &[("x", Marks::default()), ("y", Marks::default())]),
            subscription("B", &[]),
            subscription("C", &[("z", marks(true, false)), ("x", marks(false, true))]),
            subscription("D", &[("x", marks(true, true))]),
        ],
        wants_disconnect: true,
    }
}

#[test]
fn a_restore_gives_the_whole_session_back_as_often_as_it_is_asked_for() {
    let mut stage = Stage::new();
    assert_eq!(stage.keep("s1", &full()), Ok(()));
    assert_eq!(stage.keep("s2", &of("other")), Ok(()));
    for _ in 0..3 {
        assert_eq!(stage.restore("s1"), Some(full()));
        assert_eq!(stage.restore("s2"), Some(of("other")));
    }
    assert_eq!((stage.restore("s"), stage.restore("")), (None, None));
    assert_eq!(stage.sessions.totals().restorable, 2);
    stage.pass(TTL);
    stage.assert_empty();
}

#[test]
fn a_session_can_be_restored_until_its_time_is_over_and_a_restore_does_not_extend_it() {
    let mut stage = Stage::new();
    stage.keep("s1", &full()).unwrap();
    stage.now += TTL - Duration::from_millis(1);
    assert!(stage.restore("s1").is_some());
    stage.now += Duration::from_millis(1);
    assert_eq!(
        stage.restore("s1"),
        None,
        "though nothing has swept it away"
    );
    stage.pass(Duration::ZERO);
    stage.assert_empty();
}

#[test]
fn a_second_end_of_a_sid_replaces_the_first() {
    let mut stage = Stage::new();
    stage.keep("s1", &full()).unwrap();
    stage.pass(TTL / 2);
    stage.keep("s1", &of("later")).unwrap();
    assert_eq!(stage.sessions.totals().restorable, 1);
    stage.pass(TTL / 2);
    assert_eq!(stage.restore("s1"), Some(of("later")));
    stage.pass(TTL / 2);
    stage.assert_empty();
}

#[test]
fn sessions_of_dropped_identifiers_are_not_restored_and_later_ones_are() {
    let mut stage = Stage::new();
    for sid in ["s1", "s2"] {
        stage.keep(sid, &of("ada")).unwrap();
    }
    stage.keep("s3", &of("bob")).unwrap();
    assert_eq!(stage.sessions.drop_all_of("nobody"), 0);
    assert_eq!(stage.sessions.drop_all_of("ada"), 2);
    assert_eq!(stage.sessions.drop_all_of("ada"), 0);
    assert_eq!((stage.restore("s1"), stage.restore("s2")), (None, None));
    assert!(stage.restore("s3").is_some());
    stage.keep("s4", &of("ada")).unwrap();
    stage.keep("s1", &of("ada")).unwrap();
    assert!(stage.restore("s4").is_some() && stage.restore("s1").is_some());
    assert_eq!(stage.sessions.totals().restorable, 3);
    assert_eq!(stage.sessions.drop_all_of("ada"), 2);
    stage.pass(TTL);
    stage.keep("s1", &of("ada")).unwrap();
    assert!(stage.restore("s1").is_some(), "nothing is left of the drop");
    stage.pass(TTL);
    stage.assert_empty();
}

#[test]
fn at_the_bound_the_session_that_ended_first_goes_first() {
    let mut stage = Stage::with_budget(2_000);
    let sids: Vec<String> = (0..100).map(|it| format!("s{it}")).collect();
    for (sid, kept) in sids.iter().zip(1..) {
        stage.keep(sid, &of(sid)).unwrap();
        let evicted = stage.evicted();
        let found = sids.iter().filter(|sid| stage.restore(sid).is_some());
        assert_eq!(found.count(), kept - evicted);
        assert_eq!(stage.sessions.totals().restorable, kept - evicted);
        assert!(stage.restore(sid).is_some());
        let oldest_left = sids.get(evicted).expect("the last is there");
        assert!(stage.restore(oldest_left).is_some(), "{oldest_left}");
    }
    assert!(stage.evicted() > 80, "{}", stage.evicted());
    assert!(
        stage.sessions.budget.used() > 1_500,
        "no more than necessary went"
    );
    stage.pass(TTL);
    stage.assert_empty();
}

#[test]
fn texts_that_an_evicted_session_shares_with_the_new_one_stay() {
    let mut stage = Stage::new();
    stage.keep("s1", &full()).unwrap();
    stage.sessions.budget.set_max(stage.sessions.budget.used());
    assert_eq!(stage.keep("s2", &full()), Ok(()));
    assert_eq!(stage.evicted(), 1);
    assert_eq!(
        (stage.restore("s1"), stage.restore("s2")),
        (None, Some(full()))
    );
    stage.pass(TTL);
    stage.assert_empty();
}

#[test]
fn what_does_not_fit_is_refused_with_a_reason_and_leaves_nothing_behind() {
    let mut stage = Stage::with_budget(200);
    assert_eq!(stage.keep("s1", &full()), Err(KeepRefusal::NoMemory));
    stage.assert_empty();
    stage.sessions.budget.set_max(usize::MAX);
    let long = "x".repeat(KEPT_SESSION_BYTES_MAX);
    let mut large = full();
    large.subscriptions[0].identifier = long.clone().into();
    stage.keep("s1", &full()).unwrap();
    let bytes = stage.sessions.budget.used();
    assert!(matches!(
        stage.keep("s2", &large),
        Err(KeepRefusal::TooLarge(_))
    ));
    assert_eq!(stage.sessions.budget.used(), bytes);
    assert!(matches!(
        stage.keep(&long, &full()),
        Err(KeepRefusal::TooLarge(_))
    ));
    assert!(matches!(
        stage.keep("s1", &large),
        Err(KeepRefusal::TooLarge(_))
    ));
    assert_eq!(
        stage.restore("s1"),
        None,
        "an older state of it would be wrong"
    );
    stage.assert_empty();
}

#[test]
fn texts_of_sessions_given_up_in_vain_go_too() {
    let mut stage = Stage::new();
    stage.keep("s1", &full()).unwrap();
    stage.sessions.budget.set_max(0);
    let mut larger = full();
    larger.subscriptions[1].identifier = "new".into();
    let refused = Err(KeepRefusal::NoMemory);
    assert_eq!(stage.keep("s2", &larger), refused);
    stage.assert_empty();
}

#[test]
fn no_more_than_a_bound_is_given_up_for_one_session() {
    let mut stage = Stage::new();
    for number in 0..EVICTED_AT_ONCE_MAX + 10 {
        stage.keep(&format!("s{number}"), &of("ada")).unwrap();
    }
    stage.sessions.budget.set_max(0);
    let refused = Err(KeepRefusal::NoMemory);
    assert_eq!(stage.keep("new", &of("ada")), refused);
    assert_eq!(stage.evicted(), EVICTED_AT_ONCE_MAX + 1, "with the new one");
    assert_eq!(stage.sessions.totals().restorable, 10);
    stage.pass(TTL);
    stage.assert_empty();
}

#[test]
fn a_sweep_takes_its_steps_and_says_when_more_is_due() {
    let mut stage = Stage::new();
    for sid in ["1", "2", "3"] {
        stage.keep(sid, &of("ada")).unwrap();
    }
    stage.now += TTL;
    let mut sweep = |steps_max| stage.sessions.sweep(stage.now, steps_max);
    assert!(sweep(0) && sweep(2) && !sweep(1));
    stage.assert_empty();
    let mut large = of("ada");
    large.cstate = [("key", "x".repeat(2 * STEP_BYTES))].into_iter().collect();
    stage.keep("1", &large).unwrap();
    stage.keep("2", &of("ada")).unwrap();
    stage.now += TTL;
    let mut sweep = |steps_max| stage.sessions.sweep(stage.now, steps_max);
    assert!(sweep(3), "the large one takes three steps");
    assert!(!sweep(1));
    stage.assert_empty();
}

#[derive(Debug, Clone)]
enum Act {
    Keep(u8, SessionSnapshot),
    Drop(u8),
    Pass(u64),
    /// Sets the budget.
    Room(usize),
}

fn state() -> impl Strategy<Value = State> {
    prop::collection::vec(("[a-c]", "[a-c]{0,3}"), 0..3)
        .prop_map(|entries| entries.into_iter().collect())
}

fn session() -> impl Strategy<Value = SessionSnapshot> {
    let stream = ("[x-z]", any::<bool>(), any::<bool>())
        .prop_map(|(stream, whisper, presence)| (stream.into(), marks(whisper, presence)));
    let subscription =
        ("[A-C]", prop::collection::vec(stream, 0..3)).prop_map(|(identifier, streams)| {
            SubscriptionSnapshot {
                identifier: identifier.into(),
                streams,
            }
        });
    let istate = ("[A-C]", state()).prop_map(|(identifier, state)| (identifier.into(), state));
    (
        0u8..3,
        state(),
        prop::collection::vec(istate, 0..3),
        prop::collection::vec(subscription, 0..4),
        any::<bool>(),
    )
        .prop_map(
            |(identity, cstate, istates, subscriptions, wants_disconnect)| SessionSnapshot {
                identifiers: identity.to_string().into(),
                cstate,
                istates,
                subscriptions,
                wants_disconnect,
            },
        )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0u8..6, session()).prop_map(|(sid, session)| Act::Keep(sid, session)),
        1 => (0u8..3).prop_map(Act::Drop),
        3 => (0u64..200).prop_map(Act::Pass),
        1 => (0usize..1_500).prop_map(Act::Room),
    ]
}

/// In the order of their ends: sid, session, deadline, whether it can be restored.
type Model = Vec<(u8, SessionSnapshot, Instant, bool)>;

proptest! {
    #[test]
    fn kept_sessions_are_what_the_model_says(acts in prop::collection::vec(act(), 1..120)) {
        let mut stage = Stage::with_budget(1_500);
        let mut model = Model::new();
        for act in acts {
            match act {
                Act::Keep(sid, session) => {
                    model.retain(|it| it.0 != sid);
                    let evicted = stage.evicted();
                    let kept = stage.keep(&sid.to_string(), &session);
                    let evicted = stage.evicted() - evicted;
                    match kept {
                        Ok(()) => {
                            model.drain(..evicted);
                            model.push((sid, session, stage.now + TTL, true));
                        }
                        Err(KeepRefusal::NoMemory) => {
                            prop_assert_eq!(evicted, model.len() + 1, "all others went first");
                            model.clear();
                        }
                        Err(refusal) => panic!("{refusal}"),
                    }
                }
                Act::Drop(identity) => {
                    let identifiers = identity.to_string();
                    let of_identity = model.iter_mut().filter(|it| it.3 && *it.1.identifiers == *identifiers);
                    let dropped = of_identity.map(|it| it.3 = false).count();
                    prop_assert_eq!(stage.sessions.drop_all_of(&identifiers), dropped);
                }
                Act::Pass(secs) => {
                    stage.pass(Duration::from_secs(secs));
                    model.retain(|it| it.2 > stage.now);
                }
                Act::Room(bytes_max) => stage.sessions.budget.set_max(bytes_max),
            }
            for sid in 0..6 {
                let expected = model.iter().find(|it| it.0 == sid && it.3).map(|it| &it.1);
                let restored = stage.restore(&sid.to_string());
                prop_assert_eq!(restored.as_ref(), expected);
            }
            prop_assert_eq!(stage.sessions.totals().restorable, model.iter().filter(|it| it.3).count());
            prop_assert_eq!(stage.sessions.sessions.len(), model.len());
        }
        stage.pass(TTL);
        stage.assert_empty();
    }
}

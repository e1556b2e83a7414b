//! Who connects again and again, and what it hears.

use super::*;

/// Who connects again and again, always as itself.
#[derive(Default)]
pub struct Person {
    pub client: Option<Client>,
    pub sid: Option<String>,
    /// The connection identifiers of its session.
    pub identity: String,
    /// The restore that it waits for: whether it must succeed, and whether it must not.
    pub coming_back: Option<(bool, bool)>,
    /// After a restore it asks for what it has missed.
    pub asks: bool,
    /// When the session of `sid` has ended at the earliest, and when its shard knew it at the latest.
    pub ended: Option<Instant>,
    pub known_to_have_ended: Option<Instant>,
    /// True from the moment in which a remote disconnect is published until the person begins anew.
    pub revoked: bool,
    pub subscribed: BTreeSet<usize>,
    /// Subscribes and unsubscribes without an answer.
    pub commands: Vec<usize>,
    /// By stream: epoch and offset of the last message.
    pub positions: BTreeMap<usize, (String, u64)>,
    /// By stream: the largest offset that may be the first.
    pub first_max: BTreeMap<usize, u64>,
    /// Streams of which it may not get everything from the first message on: it has asked for nothing, or for what is not
    /// kept any more.
    pub without_history: BTreeSet<usize>,
    /// Questions for history without an answer: the offset after which, and whether live messages go on until the question
    /// is read.
    pub questions: BTreeMap<usize, (u64, bool)>,
    pub transient: BTreeSet<u64>,
    pub presence: Presence,
}

/// What a person knows of members, by stream and id.
#[derive(Default)]
pub struct Presence {
    /// Where it is a member itself.
    pub joined: BTreeSet<usize>,
    /// Whether the last event was a join.
    heard: BTreeMap<(usize, String), bool>,
    /// Subscriptions that may still get an event from before them, without those behind it.
    young: BTreeSet<usize>,
}

impl Presence {
    fn listens_anew(&mut self, stream: usize) {
        self.heard.retain(|(other, _), _| *other != stream);
        self.young.insert(stream);
    }

    /// Nothing is under way. What young subscriptions have heard may be from before them.
    pub fn settled(&mut self) {
        for stream in std::mem::take(&mut self.young) {
            self.heard.retain(|(other, _), _| *other != stream);
        }
    }

    /// What has been heard last, by id.
    pub fn heard(&self, stream: usize) -> impl Iterator<Item = (&String, bool)> {
        let of_stream = self
            .heard
            .iter()
            .filter(move |((other, _), _)| *other == stream);
        of_stream.map(|((_, id), is_join)| (id, *is_join))
    }

    /// Joins and leaves of one member take turns.
    fn hear(&mut self, stream: usize, message: &Value) {
        let id = message["id"].as_str().expect("an id").to_owned();
        let is_join = match message["type"].as_str() {
            Some("join") => true,
            Some("leave") => false,
            _ => panic!("unexpected {message}"),
        };
        let before = self.heard.insert((stream, id), is_join);
        assert!(
            before != Some(is_join) || self.young.remove(&stream),
            "twice in {stream}: {message}"
        );
    }
}

impl Person {
    pub fn say(&mut self, text: &str) {
        // The server may have closed.
        let client = self.client.as_mut().expect("a client");
        let _ = client.socket.write_all(&masked(0x81, text.as_bytes()));
    }

    /// Its session has been welcomed, and so has a sid that it knows.
    pub fn is_welcomed(&self) -> bool {
        self.client.is_some() && self.sid.is_some() && self.coming_back.is_none()
    }

    /// The last offset that it knows of a stream.
    pub fn last(&self, stream: usize) -> u64 {
        self.positions.get(&stream).map_or(0, |last| last.1)
    }

    /// Its question for the history of a stream; `None` of the position when it knows none.
    pub fn history(&self, stream: usize) -> Value {
        match self.positions.get(&stream) {
            Some((epoch, offset)) => {
                json!({ "streams": { STREAMS[stream]: { "epoch": epoch, "offset": offset } } })
            }
            None => json!({ "since": 1 }),
        }
    }

    /// It gets what comes from now on, and perhaps something older.
    fn begin_without_history(&mut self, stream: usize, stored: u64) {
        self.positions.remove(&stream);
        self.without_history.insert(stream);
        self.first_max.insert(stream, stored + 1);
    }

    fn forget_subscriptions(&mut self) {
        self.subscribed.clear();
        self.first_max.clear();
        self.without_history.clear();
    }
}

impl Scene {
    pub fn read(&mut self, person: usize) {
        loop {
            let Some(client) = &mut self.people[person].client else {
                return;
            };
            match client.next_now().as_deref() {
                None => return,
                Some("end" | "reset") => {
                    let one = &mut self.people[person];
                    assert!(one.revoked, "a client is closed without a reason");
                    one.client = None;
                    one.commands.clear();
                }
                Some(text) if text.starts_with("close") => {}
                Some(text) => {
                    let text: Value = serde_json::from_str(text).expect("JSON");
                    self.hear(person, &text);
                }
            }
        }
    }

    fn hear(&mut self, person: usize, text: &Value) {
        let stream = text["identifier"].as_str().map(stream_of);
        match (text["type"].as_str(), stream) {
            (Some("welcome"), None) => self.on_welcome(person, text),
            (Some("confirm_subscription"), Some(stream)) => self.on_confirmation(person, stream),
            (Some("pong"), None) => {
                let one = &mut self.people[person];
                let left = one
                    .commands
                    .iter()
                    .position(|it| one.subscribed.contains(it));
                let left = one.commands.remove(left.expect("an unsubscribe"));
                one.subscribed.remove(&left);
                one.first_max.remove(&left);
                one.without_history.remove(&left);
            }
            (Some("confirm_history"), Some(stream)) => {
                self.people[person].questions.remove(&stream);
            }
            (Some("reject_history"), Some(stream)) => self.on_refusal(person, stream),
            (Some("presence"), Some(stream)) => {
                let one = &mut self.people[person];
                assert!(one.subscribed.contains(&stream), "{text}");
                one.presence.hear(stream, &text["message"]);
            }
            (Some("disconnect"), None) => assert!(self.people[person].revoked, "{text}"),
            (None, Some(stream)) => self.on_data(person, stream, text),
            _ => panic!("unexpected {text}"),
        }
    }

    fn on_confirmation(&mut self, person: usize, stream: usize) {
        let first_max = self.stored(stream) + 1;
        let one = &mut self.people[person];
        one.commands.retain(|it| *it != stream);
        one.subscribed.insert(stream);
        one.first_max.insert(stream, first_max);
        one.presence.listens_anew(stream);
    }

    /// It has to load its state anew, and gets what comes from then on.
    fn on_refusal(&mut self, person: usize, stream: usize) {
        let stored = self.stored(stream);
        let one = &mut self.people[person];
        let (after, _) = one.questions.remove(&stream).expect("a question");
        assert!(
            after > 0 && stored - after > self.history_limit as u64,
            "person {person} is refused what came after {after} of {stored}"
        );
        one.begin_without_history(stream, stored);
        self.seen.refusals += 1;
    }

    fn on_welcome(&mut self, person: usize, text: &Value) {
        let one = &mut self.people[person];
        let new_sid = text["sid"].as_str().expect("a sid").to_owned();
        let restored = text["restored"] == true;
        let coming_back = one.coming_back.take();
        let (must, must_not) = coming_back.unwrap_or((false, true));
        assert!(restored || !must, "person {person} is not restored");
        assert!(
            !(must_not && restored),
            "person {person} must not be restored"
        );
        one.sid = Some(new_sid.clone());
        (one.ended, one.known_to_have_ended) = (None, None);
        one.questions.clear();
        one.presence.joined.clear();
        if restored {
            self.seen.restores += 1;
            self.on_restored(person, text);
        } else {
            self.seen.not_restored += u64::from(coming_back.is_some() && must_not);
            one.forget_subscriptions();
            one.revoked = false;
            one.identity = json!({ "sid": new_sid }).to_string();
        }
    }

    fn on_restored(&mut self, person: usize, text: &Value) {
        let ids = text["restored_ids"].as_array().cloned().unwrap_or_default();
        let ids = ids.iter().map(|id| stream_of(id.as_str().expect("a text")));
        let ids: BTreeSet<usize> = ids.collect();
        let one = &mut self.people[person];
        // A command whose answer has not been read may have been carried out.
        assert!(
            one.subscribed.is_subset(&ids),
            "person {person} had {:?}: {text}",
            one.subscribed
        );
        one.subscribed = ids.clone();
        for stream in ids {
            let stored = self.stored.get(&stream).copied().unwrap_or(0);
            one.presence.listens_anew(stream);
            one.first_max.entry(stream).or_insert(stored + 1);
            if !one.asks {
                one.begin_without_history(stream, stored);
                continue;
            }
            one.questions.insert(stream, (one.last(stream), false));
            let history = one.history(stream);
            let command = json!({ "command": "history", "identifier": identifier(stream), "history": history });
            one.say(&command.to_string());
        }
    }

    fn on_data(&mut self, person: usize, stream: usize, text: &Value) {
        let one = &mut self.people[person];
        assert!(
            one.subscribed.contains(&stream),
            "person {person} is not subscribed: {text}"
        );
        let number = text["message"].as_u64().expect("a number");
        let Some(offset) = text["offset"].as_u64() else {
            assert!(
                one.transient.insert(number),
                "person {person} gets {text} twice"
            );
            return;
        };
        let epoch = text["epoch"].as_str().expect("an epoch");
        let last = one.last(stream);
        let known_epoch = one
            .positions
            .get(&stream)
            .map_or(epoch, |(epoch, _)| &**epoch);
        // A message that was published before the subscription, and that waited for room in the inbox, may come without
        // those behind it. The client was promised none of them.
        let is_before = one.without_history.contains(&stream)
            && (last + 1..=one.first_max[&stream]).contains(&offset);
        // By time it gets what is kept.
        let is_short = self.history_limit < usize::MAX;
        let is_by_time = is_short
            && last == 0
            && one
                .questions
                .get(&stream)
                .is_some_and(|(after, _)| *after == 0);
        // It has asked while live messages went on, and gets them again.
        let is_again = match one.questions.get_mut(&stream) {
            Some((after, goes_on)) if *goes_on && offset <= last && offset == *after + 1 => {
                *goes_on = false;
                self.seen.replays_again += 1;
                true
            }
            _ => false,
        };
        assert_eq!(epoch, known_epoch, "person {person}: {text}");
        assert!(
            offset == last + 1 || is_before || is_by_time || is_again,
            "person {person} had {last}: {text}"
        );
        one.positions.insert(stream, (epoch.to_owned(), offset));
        let known = *self.sequence.entry((stream, offset)).or_insert(number);
        assert_eq!(known, number, "two messages in one place");
    }
}

pub fn identifier(stream: usize) -> String {
    format!(
        r#"{{"channel":"$pubsub","stream_name":"{}"}}"#,
        STREAMS[stream]
    )
}

fn stream_of(identifier: &str) -> usize {
    let parsed: Value = serde_json::from_str(identifier).expect("JSON");
    let name = STREAMS
        .iter()
        .position(|name| parsed["stream_name"] == **name);
    name.expect("one of the names")
}

//! Sessions, publishers and homes of several shards with real sockets, in random order, against a simple model: no gap, no
//! double, no message in another order, no restore that should be refused, and no memory left at the end.

mod acts;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use self::acts::{Act, How, act};
use super::*;
use crate::broker::history::Epochs;
use crate::mesh::Lease;
use crate::protocol::sid;
use crate::shard::message::{ControlMessage, ResumeMessage};
use crate::shard::publisher::{Broker, BrokerLeases, Home, Publisher};
use crate::shard::sessions::Kept;
use crate::shard::sessions::resuming::RESUME_HOLD_MAX;

const SHARDS: usize = 3;
const PEOPLE: usize = 4;
const STREAMS: [&str; 4] = ["a", "b", "c", "d"];
const ARGS: &[&str] = &[
    "--norpc",
    "--public",
    "--broker=memory",
    "--history_limit=10000",
    "--ping_interval=0",
];

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct OneShard {
    sessions: Sessions,
    inbox: Rc<ShardInbox>,
    publisher: Rc<Publisher>,
    leases: BrokerLeases,
    /// Sends what waits for room.
    sender: Task,
}

impl OneShard {
    fn turn<R>(&mut self, now: Instant, change: impl FnOnce(&mut Sessions, &Publisher) -> R) -> R {
        let publisher = &*self.publisher;
        let perform = |action| match action {
            Action::Tell { shard, message } => publisher.tell(shard, message),
            Action::TellHome { stream, message } => publisher.tell_home(&stream, message),
            Action::Disconnect(_) => {}
            _ => panic!("there is no app, and nobody whispers"),
        };
        self.sessions
            .turn(now, |sessions| change(sessions, publisher), perform)
    }

    /// Takes up to so many messages. Returns their number.
    fn take(&mut self, now: Instant, messages: usize) -> usize {
        let inbox = Rc::clone(&self.inbox);
        self.turn(now, |sessions, publisher| {
            for taken in 0..messages {
                let Some((number, message)) = sessions
                    .go_on_fan_out(TimeSlice::new(PATIENCE))
                    .then(|| inbox.pop())
                    .flatten()
                else {
                    return taken;
                };
                take(sessions, publisher, number, message);
                sessions.note_handled(number);
            }
            sessions.go_on_fan_out(TimeSlice::new(PATIENCE));
            messages
        })
    }
}

fn take(sessions: &mut Sessions, publisher: &Publisher, number: u64, message: ShardMessage) {
    match message {
        ShardMessage::Publish(PublishMessage::Deliver(publications)) => {
            sessions.fan_out(publications, number);
        }
        ShardMessage::Publish(PublishMessage::RemoteDisconnect(command)) => {
            sessions.remote_disconnect(&command);
        }
        ShardMessage::Home(message) => publisher.take_home(*message),
        ShardMessage::Answer(answer) => sessions.on_broker_answer(answer.0, answer.1),
        ShardMessage::Resume(message) => match *message {
            ResumeMessage::Find { session, sid } => {
                let snapshot = sessions.find_earlier(&sid);
                let found = Box::new(ResumeMessage::Found { session, snapshot });
                publisher.tell(session.shard, ShardMessage::Resume(found));
            }
            ResumeMessage::Found { session, snapshot } => sessions.on_earlier(session, snapshot),
        },
        ShardMessage::Control(ControlMessage::CheckRpc) => {}
        other => panic!("nobody has sent {other:?}"),
    }
}

/// Who connects again and again, always as itself.
#[derive(Default)]
struct Person {
    client: Option<Client>,
    sid: Option<String>,
    /// The connection identifiers of its session.
    identity: String,
    /// The restore that it waits for: whether it must succeed, and whether it must not.
    coming_back: Option<(bool, bool)>,
    /// True from the moment in which a remote disconnect is published until the person begins anew.
    revoked: bool,
    subscribed: BTreeSet<usize>,
    /// Subscribes and unsubscribes without an answer.
    commands: Vec<usize>,
    /// By stream: epoch and offset of the last message.
    positions: BTreeMap<usize, (String, u64)>,
    /// By stream: the largest offset that may be the first.
    first_max: BTreeMap<usize, u64>,
    /// Streams to which it has subscribed without a wish for history.
    without_history: BTreeSet<usize>,
    transient: BTreeSet<u64>,
}

struct Scene {
    now: Instant,
    mesh: ShardMesh,
    interest: Arc<Interest>,
    shards: Vec<OneShard>,
    people: Vec<Person>,
    listener: TcpListener,
    /// Connections whose clients have forgotten them.
    half_open: Vec<Client>,
    publishing: Vec<Task>,
    identities: BTreeSet<String>,
    expiring: bool,
    published: u64,
    /// By stream: the stored messages so far, and which message has which offset.
    stored: BTreeMap<usize, u64>,
    sequence: BTreeMap<(usize, u64), u64>,
    sids: usize,
}

fn one_shard(
    shard: ShardId,
    inbox: ShardInbox,
    mesh: &ShardMesh,
    interest: &Arc<Interest>,
    metrics: &Arc<Metrics>,
    (ttl, now): (Duration, Instant),
) -> OneShard {
    let config = Arc::new(config(ARGS));
    let process = ProcessBudget::new(None, SHARDS);
    let lease = || Rc::new(Lease::new(Arc::clone(&process)));
    let leases = BrokerLeases {
        history: lease(),
        others: lease(),
    };
    let epochs = Epochs::new(7, shard, SHARDS);
    let home = Home::new(&config.broker, Arc::clone(interest), leases.clone(), epochs);
    let broker = Broker::Memory(Box::new(RefCell::new(home)));
    let publisher = Publisher::new(
        shard,
        mesh.clone(),
        Arc::clone(interest),
        Arc::clone(metrics),
        broker,
    );
    let (publisher, inbox) = (Rc::new(publisher), Rc::new(inbox));
    let sending = Rc::clone(&publisher);
    let budget = ShardBudget::new(Arc::clone(&process), Arc::clone(metrics), shard);
    let reactor = match shard {
        0 => Reactor::uring().expect("io_uring on the test machine"),
        _ => Reactor::epoll().expect("epoll"),
    };
    let sessions = Sessions::new(
        shard,
        config,
        budget,
        Arc::clone(interest),
        reactor,
        Rc::clone(&inbox),
        now,
    )
    .keeping(Some(Kept::new(ttl, Rc::clone(&leases.others))));
    OneShard {
        sessions,
        inbox,
        publisher,
        leases,
        sender: Box::pin(async move { sending.send_waiting().await }),
    }
}

impl Scene {
    fn new(expiring: bool) -> Self {
        let (mesh, inboxes) = ShardMesh::new(SHARDS);
        let interest = Arc::new(Interest::with_streams(SHARDS, RandomState::new(), 1));
        let metrics = Arc::new(Metrics::new(SHARDS));
        let now = Instant::now();
        let ttl = if expiring {
            Duration::ZERO
        } else {
            Duration::from_secs(300)
        };
        let inboxes = inboxes.into_iter().enumerate();
        let shards = inboxes
            .map(|(shard, inbox)| one_shard(shard, inbox, &mesh, &interest, &metrics, (ttl, now)));
        Self {
            now,
            shards: shards.collect(),
            mesh,
            interest,
            people: (0..PEOPLE).map(|_| Person::default()).collect(),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
            half_open: Vec::new(),
            publishing: Vec::new(),
            identities: BTreeSet::new(),
            expiring,
            published: 0,
            stored: BTreeMap::new(),
            sequence: BTreeMap::new(),
            sids: 0,
        }
    }

    fn happen(&mut self, act: Act) {
        match act {
            Act::Connect(person, shard) => self.connect(person, shard),
            Act::Drop(person, how) => self.drop_client(person, how),
            Act::Subscribe(person, stream) => self.subscribe(person, stream),
            Act::Unsubscribe(person, stream) => self.unsubscribe(person, stream),
            Act::Publish(shard, streams, stored) => self.publish(shard, &streams, stored),
            Act::Disconnect(shard, person) => self.disconnect(shard, person),
            Act::Fill(shard) => {
                let mailbox = self.mesh.mailbox(shard);
                while mailbox.try_send(ControlMessage::CheckRpc.into()).is_ok() {}
            }
            Act::Turn(shard, messages) => {
                self.harvest(shard);
                self.shards[shard].take(self.now, messages);
            }
            Act::Read(person) => self.read(person),
            Act::Wait => self.wait(),
        }
        self.poll();
    }

    fn harvest(&mut self, shard: ShardId) {
        let shard = &mut self.shards[shard];
        shard
            .turn(self.now, |sessions, _| sessions.harvest())
            .expect("a healthy reactor");
        while shard.sessions.has_unflushed() || shard.sessions.has_more() {
            shard
                .turn(self.now, |sessions, _| sessions.harvest())
                .expect("a healthy reactor");
        }
    }

    /// Lets publishers and senders go on.
    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        self.publishing
            .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        for shard in &mut self.shards {
            let _never_ends = shard.sender.as_mut().poll(&mut context);
        }
    }

    fn connect(&mut self, person: usize, shard: ShardId) {
        let one = &mut self.people[person];
        if one.client.is_some() {
            return;
        }
        self.sids += 1;
        let mut entropy = [0; sid::SID_LENGTH];
        entropy[0] = (self.sids & 63) as u8;
        entropy[1] = (self.sids >> 6) as u8;
        let new_sid = sid::encode_sid_of_shard(entropy, shard);
        // What its session has as identifiers if it begins anew, whether or not the client reads that.
        self.identities
            .insert(json!({ "sid": new_sid }).to_string());
        let (socket, client) = pair(&self.listener);
        // A remote disconnect counts when it is in all inboxes. Until then the restore may succeed, but not for long.
        let must_not = self.expiring || one.revoked && self.publishing.is_empty();
        let must = !self.expiring && !one.revoked;
        one.coming_back = one.sid.as_ref().map(|_| (must, must_not));
        one.client = Some(Client::new(client));
        let admission = Admission {
            sid: new_sid,
            earlier: one.sid.clone(),
            env: r#""url":"u""#.into(),
            ..Admission::default()
        };
        let new = NewConnection {
            socket,
            admission,
            transport: EXTENDED,
            early_input: Vec::new(),
            permit: None,
            tls: None,
        };
        self.shards[shard].turn(self.now, |sessions, _| sessions.open(new));
    }

    fn drop_client(&mut self, person: usize, how: How) {
        let one = &mut self.people[person];
        let Some(client) = one.client.take() else {
            return;
        };
        // A command without an answer may have been carried out or not.
        one.subscribed.retain(|it| !one.commands.contains(it));
        one.commands.clear();
        match how {
            How::Closed => drop(client),
            How::Reset => {
                SockRef::from(&client.socket)
                    .set_linger(Some(Duration::ZERO))
                    .expect("an option");
                drop(client);
            }
            // A session that lives does not expire.
            How::HalfOpen if self.expiring => drop(client),
            How::HalfOpen => self.half_open.push(client),
        }
        if self.expiring {
            // The end of a client is seen when its questions are answered.
            self.settle();
        }
    }

    /// Whether the person can give a command about the stream, which has no answer yet.
    fn begin_command(&mut self, person: usize, stream: usize) -> bool {
        let one = &mut self.people[person];
        let can = one.client.is_some()
            && one.sid.is_some()
            && one.coming_back.is_none()
            && !one.commands.contains(&stream);
        if can {
            one.commands.push(stream);
        }
        can
    }

    fn subscribe(&mut self, person: usize, stream: usize) {
        if self.people[person].subscribed.contains(&stream) || !self.begin_command(person, stream) {
            return;
        }
        let one = &mut self.people[person];
        let mut command = json!({ "command": "subscribe", "identifier": identifier(stream) });
        if let Some((epoch, offset)) = one.positions.get(&stream) {
            command["history"] =
                json!({ "streams": { STREAMS[stream]: { "epoch": epoch, "offset": offset } } });
        } else if stream.is_multiple_of(2) {
            command["history"] = json!({ "since": 1 });
        } else {
            one.without_history.insert(stream);
        }
        one.say(&command.to_string());
    }

    fn unsubscribe(&mut self, person: usize, stream: usize) {
        if !self.people[person].subscribed.contains(&stream) || !self.begin_command(person, stream)
        {
            return;
        }
        let one = &mut self.people[person];
        one.say(&json!({ "command": "unsubscribe", "identifier": identifier(stream) }).to_string());
        // Its answer comes when the subscription has ended.
        one.say(&json!({ "command": "ping" }).to_string());
    }

    fn publish(&mut self, shard: ShardId, streams: &[usize], stored: bool) {
        let mut publications = Vec::new();
        for &stream in streams {
            self.published += 1;
            *self.stored.entry(stream).or_default() += u64::from(stored);
            publications.push(Publication {
                transient: !stored,
                ..message(STREAMS[stream], &self.published.to_string())
            });
        }
        self.send(shard, PublishMessage::Deliver(publications.into()));
    }

    fn disconnect(&mut self, shard: ShardId, person: usize) {
        let one = &mut self.people[person];
        if one.identity.is_empty() {
            return;
        }
        one.revoked = true;
        let identity = one.identity.clone();
        // What is under way may succeed, but not for long.
        if let Some((must, _)) = &mut one.coming_back {
            *must = false;
        }
        self.send_disconnect(shard, &identity);
    }

    fn send_disconnect(&mut self, shard: ShardId, identity: &str) {
        let command = RemoteDisconnect {
            identifiers: identity.into(),
            reconnect: true,
        };
        self.send(shard, PublishMessage::RemoteDisconnect(Arc::new(command)));
    }

    fn send(&mut self, shard: ShardId, message: PublishMessage) {
        let publisher = Rc::clone(&self.shards[shard].publisher);
        self.publishing.push(Box::pin(async move {
            publisher.publish(message).into_inboxes().await
        }));
    }

    /// Time passes in which restored subscriptions stop to wait; the clients have asked for their history before.
    fn wait(&mut self) {
        (0..SHARDS).for_each(|shard| self.harvest(shard));
        (0..PEOPLE).for_each(|person| self.read(person));
        (0..SHARDS).for_each(|shard| self.harvest(shard));
        let end = self.now + RESUME_HOLD_MAX + TICK;
        while self.now < end {
            self.now += TICK;
            for shard in &mut self.shards {
                shard.turn(self.now, |sessions, _| sessions.on_tick());
            }
        }
    }

    fn read(&mut self, person: usize) {
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
        let one = &mut self.people[person];
        match (text["type"].as_str(), stream) {
            (Some("welcome"), None) => self.on_welcome(person, text),
            (Some("confirm_subscription"), Some(stream)) => {
                one.commands.retain(|it| *it != stream);
                one.subscribed.insert(stream);
                let first_max = self.stored.get(&stream).copied().unwrap_or(0) + 1;
                one.first_max.entry(stream).or_insert(first_max);
            }
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
            (Some("confirm_history"), Some(_)) => {}
            (Some("reject_history"), Some(stream)) => {
                assert_eq!(
                    self.stored.get(&stream).copied().unwrap_or(0),
                    0,
                    "nothing was evicted"
                );
            }
            (Some("disconnect"), None) => assert!(one.revoked, "{text}"),
            (None, Some(stream)) => self.on_data(person, stream, text),
            _ => panic!("unexpected {text}"),
        }
    }

    fn on_welcome(&mut self, person: usize, text: &Value) {
        let one = &mut self.people[person];
        let new_sid = text["sid"].as_str().expect("a sid").to_owned();
        let restored = text["restored"] == true;
        let (must, must_not) = one.coming_back.take().unwrap_or((false, true));
        assert!(restored || !must, "person {person} is not restored");
        assert!(
            !(must_not && restored),
            "person {person} must not be restored"
        );
        one.sid = Some(new_sid.clone());
        if !restored {
            one.subscribed.clear();
            one.first_max.clear();
            one.without_history.clear();
            one.revoked = false;
            one.identity = json!({ "sid": new_sid }).to_string();
            return;
        }
        let ids = text["restored_ids"].as_array().cloned().unwrap_or_default();
        // A command whose answer has not been read may have been carried out.
        let ids = ids
            .iter()
            .map(|id| stream_of(id.as_str().expect("a text")))
            .collect();
        assert!(
            one.subscribed.is_subset(&ids),
            "person {person} had {:?}: {text}",
            one.subscribed
        );
        one.subscribed = ids;
        for stream in one.subscribed.clone() {
            let history = match one.positions.get(&stream) {
                Some((epoch, offset)) => {
                    json!({ "streams": { STREAMS[stream]: { "epoch": epoch, "offset": offset } } })
                }
                None => json!({ "since": 1 }),
            };
            let first_max = self.stored.get(&stream).copied().unwrap_or(0) + 1;
            one.first_max.entry(stream).or_insert(first_max);
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
        let (known_epoch, last) = match one.positions.get(&stream) {
            Some((epoch, offset)) => (&**epoch, *offset),
            None => (epoch, 0),
        };
        // A message that was published before the subscription, and that waited for room in the inbox, may come without
        // those behind it. The client was promised none of them.
        let is_before = one.without_history.contains(&stream)
            && (last + 1..=one.first_max[&stream]).contains(&offset);
        assert_eq!(epoch, known_epoch, "person {person}: {text}");
        assert!(
            offset == last + 1 || is_before,
            "person {person} had {last}: {text}"
        );
        one.positions.insert(stream, (epoch.to_owned(), offset));
        let known = *self.sequence.entry((stream, offset)).or_insert(number);
        assert_eq!(known, number, "two messages in one place");
    }

    /// Lets everything happen that is under way.
    fn settle(&mut self) {
        let mut quiet = 0;
        while quiet < 3 {
            self.poll();
            let mut taken = 0;
            for shard in 0..SHARDS {
                self.harvest(shard);
                taken += self.shards[shard].take(self.now, usize::MAX);
            }
            (0..PEOPLE).for_each(|person| self.read(person));
            // On a busy machine a turn may be over before it has taken anything.
            let is_idle = |shard: &OneShard| {
                let sessions = &shard.sessions;
                let has_work = sessions.has_unflushed() || sessions.has_more();
                shard.inbox.depth() == 0 && !sessions.is_fanning_out() && !has_work
            };
            let all_idle = self.shards.iter().all(is_idle);
            quiet = if taken == 0 && all_idle && self.publishing.is_empty() {
                quiet + 1
            } else {
                0
            };
        }
    }

    fn finish(mut self) {
        self.settle();
        self.wait();
        self.settle();
        for (number, one) in self.people.iter().enumerate() {
            assert!(
                one.client.is_none() || !one.revoked,
                "person {number} lives on after a remote disconnect"
            );
            for stream in one.subscribed.iter().filter(|_| one.client.is_some()) {
                let stored = self.stored.get(stream).copied().unwrap_or(0);
                let last = one.positions.get(stream).map_or(0, |last| last.1);
                let nothing_came_since = last == 0 && stored < one.first_max[stream];
                assert!(
                    last == stored || nothing_came_since,
                    "person {number}, {stream}: {last} of {stored}"
                );
            }
        }
        let numbers: BTreeSet<u64> = self.sequence.values().copied().collect();
        assert_eq!(
            numbers.len(),
            self.sequence.len(),
            "a message has one place"
        );
        self.end();
    }

    /// Everybody goes. Nothing may be left.
    fn end(mut self) {
        self.people.iter_mut().for_each(|one| one.client = None);
        self.half_open.clear();
        self.settle();
        for identity in std::mem::take(&mut self.identities) {
            self.send_disconnect(0, &identity);
        }
        self.settle();
        // What is kept no longer than now is removed in the next millisecond.
        std::thread::sleep(Duration::from_millis(2));
        for (number, shard) in self.shards.iter_mut().enumerate() {
            assert!(shard.sessions.is_empty(), "shard {number} has sessions");
            assert_eq!(shard.sessions.hub.held_bytes(), 0, "shard {number}");
            assert!(shard.sessions.holdbacks.is_empty(), "shard {number}");
            assert_eq!(
                shard.sessions.common.budget.used_bytes(),
                0,
                "shard {number}"
            );
            shard.sessions.sweep_kept();
            assert_eq!(
                shard.sessions.common.counters().sessions_kept_num.value(),
                0,
                "shard {number}"
            );
            assert!(
                !self.expiring || shard.leases.others.used_bytes() == 0,
                "shard {number}"
            );
            assert_eq!(shard.inbox.depth(), 0, "shard {number}");
        }
        assert_eq!(self.interest.bits_set(), 0);
    }
}

impl Person {
    fn say(&mut self, text: &str) {
        // The server may have closed.
        let client = self.client.as_mut().expect("a client");
        let _ = client.socket.write_all(&masked(0x81, text.as_bytes()));
    }
}

fn identifier(stream: usize) -> String {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn clients_that_come_back_get_everything_once_and_in_order(
        expiring in prop::bool::weighted(0.2),
        acts in prop::collection::vec(act(), 1..150),
    ) {
        let mut scene = Scene::new(expiring);
        acts.into_iter().for_each(|act| scene.happen(act));
        scene.finish();
    }
}

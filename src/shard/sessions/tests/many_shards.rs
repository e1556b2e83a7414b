//! Sessions, publishers and homes of several shards with real sockets, in random order, against a simple model: no gap, no
//! double, no message in another order, no restore that should be refused, everybody present who should be, and no memory
//! left at the end.

mod acts;
mod people;
mod shards;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use proptest::test_runner::TestRunner;

use self::acts::{Act, How, act};
use self::people::{Person, identifier};
use self::shards::{OneShard, Task, one_shard};
use super::*;
use crate::broker::history::Epochs;
use crate::mesh::Lease;
use crate::protocol::sid;
use crate::shard::message::{ControlMessage, ResumeMessage};
use crate::shard::publisher::{Broker, BrokerLeases, Home, Publisher};
use crate::shard::sessions::Kept;
use crate::shard::sessions::keeping::DISCONNECT_LASTS;
use crate::shard::sessions::resuming::RESUME_HOLD_MAX;

const SHARDS: usize = 3;
const PEOPLE: usize = 4;
const STREAMS: [&str; 4] = ["a", "b", "c", "d"];
/// A member leaves with the first sweep after the end of its session.
const ARGS: &[&str] = &[
    "--norpc",
    "--public",
    "--broker=memory",
    "--presence_ttl=0",
    "--ping_interval=0",
];
/// `history_limit`, where the limit is reached.
const SHORT: usize = 3;
/// How long a session can come back.
const TTL: Duration = Duration::from_secs(300);

struct Scene {
    now: Instant,
    mesh: ShardMesh,
    interest: Arc<Interest>,
    shards: Vec<OneShard>,
    people: Vec<Person>,
    listener: TcpListener,
    half_open: Vec<HalfOpen>,
    publishing: Vec<Task>,
    /// Messages of a stream that are kept.
    history_limit: usize,
    /// By stream: the idempotency keys so far.
    keys: BTreeSet<(usize, u8)>,
    published: u64,
    /// By stream: the stored messages so far, and which message has which offset.
    stored: BTreeMap<usize, u64>,
    sequence: BTreeMap<(usize, u64), u64>,
    sids: usize,
    seen: Seen,
}

/// How often something has happened that the model must not be blind to.
#[derive(Debug, Default)]
struct Seen {
    restores: u64,
    /// Restores that had to be refused.
    not_restored: u64,
    /// Refused questions for history.
    refusals: u64,
    /// Replays of what a client had got already.
    replays_again: u64,
    /// Members of whom somebody knows the last event.
    members_heard: u64,
    /// Messages that found no room.
    waited: u64,
}

/// A connection whose client has forgotten it.
struct HalfOpen {
    /// Open until the end.
    _client: Client,
    person: usize,
    identity: String,
    joined: BTreeSet<usize>,
}

impl Scene {
    fn new(history_limit: usize) -> Self {
        let (mesh, inboxes) = ShardMesh::new(SHARDS);
        let interest = Arc::new(Interest::with_streams(SHARDS, RandomState::new(), 1));
        let metrics = Arc::new(Metrics::new(SHARDS));
        let now = Instant::now();
        let limit = format!("--history_limit={}", history_limit.min(10_000));
        let config = Arc::new(config(&[ARGS, &[&limit]].concat()));
        let inboxes = inboxes.into_iter().enumerate();
        let shards = inboxes.map(|(shard, inbox)| {
            one_shard(shard, inbox, &config, &mesh, &interest, &metrics, now)
        });
        Self {
            now,
            shards: shards.collect(),
            mesh,
            interest,
            people: (0..PEOPLE).map(|_| Person::default()).collect(),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
            half_open: Vec::new(),
            publishing: Vec::new(),
            history_limit,
            keys: BTreeSet::new(),
            published: 0,
            stored: BTreeMap::new(),
            sequence: BTreeMap::new(),
            sids: 0,
            seen: Seen::default(),
        }
    }

    fn happen(&mut self, act: Act) {
        match act {
            Act::Connect {
                person,
                shard,
                asks,
            } => self.connect(person, shard, asks),
            Act::Drop(person, how) => self.drop_client(person, how),
            Act::Subscribe(person, stream) => self.subscribe(person, stream),
            Act::Unsubscribe(person, stream) => self.unsubscribe(person, stream),
            Act::Ask(person, stream) => self.ask(person, stream),
            Act::Join(person, stream) => self.join_or_leave(person, stream, true),
            Act::Leave(person, stream) => self.join_or_leave(person, stream, false),
            Act::Publish {
                shard,
                streams,
                stored,
                key,
            } => self.publish(shard, &streams, stored, key),
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
            Act::Sweep(shard) => while self.shards[shard].publisher.sweep(Instant::now()) {},
            Act::Send(shard) => self.send_waiting(shard),
            Act::Settle => self.settle(),
            Act::Wait(duration) => self.wait(duration),
            Act::Expire { settled } => self.expire(settled),
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

    /// Lets publishers go on.
    fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        self.publishing
            .retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
    }

    fn send_waiting(&mut self, shard: ShardId) {
        let mut context = Context::from_waker(Waker::noop());
        let _never_ends = self.shards[shard].sender.as_mut().poll(&mut context);
    }

    /// Stored messages of a stream so far.
    fn stored(&self, stream: usize) -> u64 {
        self.stored.get(&stream).copied().unwrap_or(0)
    }

    /// Some sids do not name a shard, as those that a proxy chooses.
    fn new_sid(&mut self, shard: ShardId) -> String {
        self.sids += 1;
        if self.sids.is_multiple_of(3) {
            return format!("request-{}", self.sids);
        }
        let mut entropy = [0; sid::SID_LENGTH];
        entropy[0] = (self.sids & 63) as u8;
        entropy[1] = (self.sids >> 6) as u8;
        sid::encode_sid_of_shard(entropy, shard)
    }

    fn connect(&mut self, person: usize, shard: ShardId, asks: bool) {
        if self.people[person].client.is_some() {
            return;
        }
        let new_sid = self.new_sid(shard);
        let (socket, client) = pair(&self.listener);
        let one = &mut self.people[person];
        let is_over = |ended: Option<Instant>| ended.is_some_and(|at| at + TTL <= self.now);
        // A remote disconnect counts when it is in all inboxes. Until then the restore may succeed, but not for long.
        let must_not =
            is_over(one.known_to_have_ended) || one.revoked && self.publishing.is_empty();
        let must = !is_over(one.ended) && !one.revoked;
        one.coming_back = one.sid.as_ref().map(|_| (must, must_not));
        one.asks = asks;
        one.client = Some(Client::new(client));
        let admission = Admission {
            sid: new_sid,
            earlier: one.sid.clone(),
            env: r#""url":"u""#.into(),
            ..Admission::default()
        };
        let new = NewConnection {
            socket: Some(socket),
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
        if one.sid.is_some() && one.coming_back.is_none() && !matches!(how, How::HalfOpen) {
            one.ended = Some(self.now);
        }
        // A command without an answer may have been carried out or not.
        one.subscribed.retain(|it| !one.commands.contains(it));
        one.commands.clear();
        one.questions.clear();
        let joined = std::mem::take(&mut one.presence.joined);
        match how {
            How::Closed => drop(client),
            How::Reset => {
                SockRef::from(&client.socket)
                    .set_linger(Some(Duration::ZERO))
                    .expect("an option");
                drop(client);
            }
            How::HalfOpen => self.half_open.push(HalfOpen {
                _client: client,
                person,
                identity: one.identity.clone(),
                joined: joined.into_iter().filter(|_| !one.revoked).collect(),
            }),
        }
    }

    /// Whether the person can give a command about the stream, which has no answer yet.
    fn begin_command(&mut self, person: usize, stream: usize) -> bool {
        let one = &mut self.people[person];
        let can = one.is_welcomed() && !one.commands.contains(&stream);
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
        if one.last(stream) > 0 || stream.is_multiple_of(2) {
            command["history"] = one.history(stream);
            one.questions.insert(stream, (one.last(stream), false));
            one.without_history.remove(&stream);
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
        one.presence.joined.remove(&stream);
        one.say(&json!({ "command": "unsubscribe", "identifier": identifier(stream) }).to_string());
        // Its answer comes when the subscription has ended.
        one.say(&json!({ "command": "ping" }).to_string());
    }

    /// Whether the person listens to the stream and knows it.
    fn listens(&self, person: usize, stream: usize) -> bool {
        let one = &self.people[person];
        one.is_welcomed() && one.subscribed.contains(&stream) && !one.commands.contains(&stream)
    }

    fn ask(&mut self, person: usize, stream: usize) {
        let listens = self.listens(person, stream);
        let one = &mut self.people[person];
        let last = one.last(stream);
        if listens && last > 0 && !one.questions.contains_key(&stream) {
            one.questions.insert(stream, (last, true));
            let history = one.history(stream);
            let command = json!({ "command": "history", "identifier": identifier(stream), "history": history });
            one.say(&command.to_string());
        }
    }

    fn join_or_leave(&mut self, person: usize, stream: usize, joins: bool) {
        if !self.listens(person, stream) {
            return;
        }
        let one = &mut self.people[person];
        let command = match joins {
            true => {
                one.presence.joined.insert(stream);
                "join"
            }
            false => {
                one.presence.joined.remove(&stream);
                "leave"
            }
        };
        let presence = json!({ "id": member_id(person) });
        let command =
            json!({ "command": command, "identifier": identifier(stream), "presence": presence });
        one.say(&command.to_string());
    }

    fn publish(&mut self, shard: ShardId, streams: &[usize], stored: bool, key: Option<u8>) {
        let mut publications = Vec::new();
        for &stream in streams {
            self.published += 1;
            let is_new = key.is_none_or(|key| self.keys.insert((stream, key)));
            *self.stored.entry(stream).or_default() += u64::from(stored && is_new);
            publications.push(Publication {
                transient: !stored,
                idempotency_key: key.map(|key| key.to_string().into()),
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
        let ended = self.half_open.iter_mut();
        ended
            .filter(|it| it.identity == identity)
            .for_each(|it| it.joined.clear());
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

    /// The clients that have come back ask for their history before more time passes.
    fn let_clients_ask(&mut self) {
        (0..SHARDS).for_each(|shard| self.harvest(shard));
        (0..PEOPLE).for_each(|person| self.read(person));
        (0..SHARDS).for_each(|shard| self.harvest(shard));
    }

    fn tick(&mut self, passed: Duration) {
        self.now += passed;
        for shard in &mut self.shards {
            shard.turn(self.now, |sessions, _| sessions.on_tick());
        }
    }

    fn wait(&mut self, duration: Duration) {
        self.let_clients_ask();
        let end = self.now + duration;
        while self.now < end {
            self.tick(TICK);
        }
    }

    /// Time passes in which sessions that have ended are kept no longer. Those whose end is not known yet are.
    fn expire(&mut self, settled: bool) {
        if settled {
            self.settle();
            for one in &mut self.people {
                one.known_to_have_ended = one.known_to_have_ended.or(one.ended);
            }
        }
        self.let_clients_ask();
        for one in &mut self.people {
            if let Some((must, _)) = &mut one.coming_back {
                *must = false;
            }
        }
        self.tick(TTL + TICK * 2);
    }

    /// Lets everything happen that is under way.
    fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut quiet = 0;
        while quiet < 3 || !self.all_ends_are_seen() {
            assert!(Instant::now() < deadline, "nothing settles");
            self.poll();
            (0..SHARDS).for_each(|shard| self.send_waiting(shard));
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
        for one in &mut self.people {
            one.presence.settled();
        }
    }

    /// Whether the shards know of every client that has gone. A busy kernel brings the end of a connection a moment later.
    fn all_ends_are_seen(&self) -> bool {
        let connected = self.people.iter().filter(|one| one.client.is_some());
        let shards = self.shards.iter();
        let open: usize = shards.map(|it| it.sessions.table.open_sessions).sum();
        open <= connected.count() + self.half_open.len()
    }

    fn finish(mut self) -> Seen {
        self.settle();
        self.wait(RESUME_HOLD_MAX + TICK);
        self.settle();
        for (number, one) in self.people.iter().enumerate() {
            assert!(
                one.client.is_none() || !one.revoked,
                "person {number} lives on after a remote disconnect"
            );
            for &stream in one.subscribed.iter().filter(|_| one.client.is_some()) {
                let (stored, last) = (self.stored(stream), one.last(stream));
                // What was published before it, and waited for room, may have come without those behind it.
                let nothing_came_since =
                    one.without_history.contains(&stream) && stored < one.first_max[&stream];
                assert!(
                    last == stored || nothing_came_since,
                    "person {number}, {stream}: {last} of {stored}"
                );
                assert!(
                    one.questions.is_empty(),
                    "person {number} waits for an answer"
                );
            }
        }
        let numbers: BTreeSet<u64> = self.sequence.values().copied().collect();
        assert_eq!(
            numbers.len(),
            self.sequence.len(),
            "a message has one place"
        );
        self.check_presence();
        self.end()
    }

    /// Present are those whose session lives and who have joined last.
    fn check_presence(&mut self) {
        for shard in &self.shards {
            while shard.publisher.sweep(Instant::now()) {}
        }
        for stream in 0..STREAMS.len() {
            let present = self.people.iter().enumerate();
            let present = present.filter(|(_, one)| one.client.is_some());
            let present = present.map(|(person, one)| (person, &one.presence.joined));
            let half_open = self.half_open.iter().map(|it| (it.person, &it.joined));
            let joined = present
                .chain(half_open)
                .filter(|(_, joined)| joined.contains(&stream));
            let expected: BTreeSet<String> = joined.map(|(person, _)| member_id(person)).collect();
            assert_eq!(self.members(stream), expected, "of {stream}");
            for one in self.people.iter().filter(|one| one.client.is_some()) {
                if !one.subscribed.contains(&stream) {
                    continue;
                }
                for (id, is_present) in one.presence.heard(stream) {
                    assert_eq!(is_present, expected.contains(id), "{id} of {stream}");
                    self.seen.members_heard += 1;
                }
            }
        }
    }

    fn members(&mut self, stream: usize) -> BTreeSet<String> {
        let publisher = Rc::clone(&self.shards[0].publisher);
        let answer = Rc::new(RefCell::new(None));
        let to = Rc::clone(&answer);
        self.publishing.push(Box::pin(async move {
            *to.borrow_mut() = publisher.members(STREAMS[stream]).await;
        }));
        self.settle();
        let answer = answer.take().expect("a broker").expect("a short answer");
        let answer: Value = serde_json::from_slice(&answer).expect("JSON");
        let records = answer["records"].as_array().into_iter().flatten();
        records
            .map(|it| it["id"].as_str().expect("an id").to_owned())
            .collect()
    }

    /// Everybody goes. Nothing may be left.
    fn end(mut self) -> Seen {
        self.people.iter_mut().for_each(|one| one.client = None);
        self.half_open.clear();
        self.settle();
        // After this time nothing is young enough to be kept.
        let later = Instant::now() + TTL * 20;
        for (number, shard) in self.shards.iter_mut().enumerate() {
            assert!(shard.sessions.is_empty(), "shard {number} has sessions");
            assert_eq!(shard.sessions.hub.held_bytes(), 0, "shard {number}");
            assert!(shard.sessions.holdbacks.is_empty(), "shard {number}");
            assert_eq!(
                shard.sessions.common.budget.used_bytes(),
                0,
                "shard {number}"
            );
            while shard.sessions.sweep_kept(self.now + TTL * 2) || shard.publisher.sweep(later) {}
            assert_eq!(
                shard.sessions.common.counters().sessions_kept_num.value(),
                0,
                "shard {number}"
            );
            let leases = [&shard.leases.history, &shard.leases.others];
            assert_eq!(
                leases.map(|lease| lease.used_bytes()),
                [0, 0],
                "shard {number}"
            );
            assert_eq!(shard.inbox.depth(), 0, "shard {number}");
            self.seen.waited += shard.sessions.common.counters().inbox_waits_total.value();
        }
        assert_eq!(self.interest.bits_set(), 0);
        self.seen
    }
}

/// Two people have the same id.
fn member_id(person: usize) -> String {
    (person / 2).to_string()
}

#[test]
fn clients_that_come_back_get_everything_once_and_in_order() {
    let mut runner = TestRunner::new(ProptestConfig {
        source_file: Some(file!()),
        ..ProptestConfig::with_cases(256)
    });
    let history_limit = prop::sample::select(vec![usize::MAX, SHORT]);
    let acts = prop::collection::vec(act(), 1..300);
    let seen = RefCell::new(Vec::new());
    let outcome = runner.run(&(history_limit, acts), |(history_limit, acts)| {
        let mut scene = Scene::new(history_limit);
        acts.into_iter().for_each(|act| scene.happen(act));
        seen.borrow_mut().push(scene.finish());
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let seen = seen.into_inner();
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let sums = [
        sum(|seen| seen.restores),
        sum(|seen| seen.not_restored),
        sum(|seen| seen.refusals),
        sum(|seen| seen.replays_again),
        sum(|seen| seen.members_heard),
        sum(|seen| seen.waited),
    ];
    assert!(
        sums.iter().all(|sum| *sum > 0),
        "the model is blind: {sums:?}"
    );
}

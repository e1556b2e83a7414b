//! One shard with its sessions, its publisher and its home, without a runtime.

use super::*;

pub type Task = Pin<Box<dyn Future<Output = ()>>>;

pub struct OneShard {
    pub sessions: Sessions,
    pub inbox: Rc<ShardInbox>,
    pub publisher: Rc<Publisher>,
    pub leases: BrokerLeases,
    /// Sends what waits for room.
    pub sender: Task,
}

impl OneShard {
    pub fn turn<R>(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Sessions, &Publisher) -> R,
    ) -> R {
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
    pub fn take(&mut self, now: Instant, messages: usize) -> usize {
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

pub fn one_shard(
    shard: ShardId,
    inbox: ShardInbox,
    config: &Arc<Config>,
    mesh: &ShardMesh,
    interest: &Arc<Interest>,
    metrics: &Arc<Metrics>,
    now: Instant,
) -> OneShard {
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
        Arc::clone(config),
        budget,
        Arc::clone(interest),
        reactor,
        Rc::clone(&inbox),
        now,
    )
    .keeping(Some(Kept::new(TTL, Rc::clone(&leases.others))));
    OneShard {
        sessions,
        inbox,
        publisher,
        leases,
        sender: Box::pin(async move { sending.send_waiting().await }),
    }
}

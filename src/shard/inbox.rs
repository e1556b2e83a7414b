//! Takes the messages that other threads send to this shard, in batches, so that a burst leads to few writes.

use std::rc::Rc;
use std::time::Duration;

use crate::log::cut_bytes;
use crate::shard::Shard;
use crate::shard::console;
use crate::shard::message::{ControlMessage, PublishMessage, ResumeMessage, ShardMessage};
use crate::shard::sessions::{Sessions, TimeSlice};

/// How long one turn takes messages; the rest waits for the next turn. A publication with very many receivers is interrupted
/// and continued.
const TAKING_TIME_MAX: Duration = Duration::from_millis(1);

/// Takes the messages that are there now, before anything else in the turn and for at most [`TAKING_TIME_MAX`]. All their
/// deliveries to one session go out with one write. When a command comes while older messages still wait, its subscription
/// does not receive them ([`crate::hub::Hub::set_arrived`]), because they were published before it.
pub fn drain(shard: &Rc<Shard>, sessions: &mut Sessions) {
    let time = TimeSlice::new(TAKING_TIME_MAX);
    while !time.is_over()
        && let Some(message) = shard.inbox.pop_first()
    {
        take(shard, sessions, 0, message);
    }
    // Counted once, so that publishers that never pause cannot hold the turn here. The last pass only delivers what the
    // pass before it has taken.
    for _ in 0..=shard.inbox.depth() {
        if !sessions.go_on_fan_out(time) {
            break;
        }
        let Some((number, message)) = shard.inbox.pop() else {
            break;
        };
        take(shard, sessions, number, message);
        sessions.note_handled(number);
    }
}

fn take(shard: &Rc<Shard>, sessions: &mut Sessions, number: u64, message: ShardMessage) {
    match message {
        ShardMessage::Publish(PublishMessage::Deliver(publications)) => {
            for publication in publications.iter() {
                tracing::debug!(
                    context = "node",
                    shard = shard.id,
                    stream = &*publication.stream,
                    payload = %cut_bytes(publication.message.as_ref()),
                    "incoming broadcast message"
                );
            }
            sessions.fan_out(publications, number);
        }
        ShardMessage::Publish(PublishMessage::RemoteDisconnect(command)) => {
            sessions.remote_disconnect(&command);
        }
        ShardMessage::Home(message) => shard.publisher.take_home(*message),
        ShardMessage::Answer(answer) => {
            let (session, answer) = *answer;
            sessions.on_broker_answer(session, answer);
        }
        ShardMessage::Resume(message) => take_resume(shard, sessions, *message),
        ShardMessage::Poll(passed) => sessions.poll(*passed),
        ShardMessage::Disconnect(job) => shard.disconnects.push(shard, *job),
        ShardMessage::Console(question) => console::answer(shard, sessions, *question),
        ShardMessage::Control(message) => execute(shard, sessions, message),
    }
}

fn take_resume(shard: &Shard, sessions: &mut Sessions, message: ResumeMessage) {
    match message {
        ResumeMessage::Find { session, sid } => {
            let snapshot = sessions.find_earlier(&sid);
            let message = ResumeMessage::Found { session, snapshot };
            let message = ShardMessage::Resume(Box::new(message));
            shard.publisher.tell(session.shard, message);
        }
        ResumeMessage::Found { session, snapshot } => sessions.on_earlier(session, snapshot),
    }
}

fn execute(shard: &Rc<Shard>, sessions: &mut Sessions, message: ControlMessage) {
    match message {
        // The control thread may have given up waiting.
        ControlMessage::Survey(reply) => drop(reply.send(sessions.survey())),
        ControlMessage::CheckRpc => {
            if let Some(rpc) = shard.rpc.clone() {
                monoio::spawn(async move { rpc.check().await });
            }
        }
        ControlMessage::BeginShutdown => shard.shutdown.begin(),
        ControlMessage::StopAccepting => shard.accept_stop.stop(),
        ControlMessage::FinishPublications(done) => shard.shutdown.finish_publications(done),
        ControlMessage::CloseSessions { slowly_until } => {
            shard.shutdown.begin_drain();
            match slowly_until {
                Some(end) => sessions.close_slowly(end),
                None => sessions.close_all(),
            }
        }
        ControlMessage::ReportClosed(done) => sessions.report_closed(done),
        ControlMessage::HurryDisconnects { parallel } => shard.disconnects.hurry(parallel),
        ControlMessage::FinishDisconnects { deadline, done } => {
            shard.disconnects.finish(deadline, done);
        }
    }
}

//! What other threads ask of this shard, taken in batches so that bursts are gathered into few writes.

use std::rc::Rc;
use std::time::Duration;

use crate::log::cut_bytes;
use crate::shard::console;
use crate::shard::message::{ControlMessage, PublishMessage, ShardMessage};
use crate::shard::sessions::{Sessions, TimeSlice};
use crate::shard::{Shard, Stage};

/// How long a turn may take messages; the others wait for the next one. A publication with very many receivers is left in
/// the middle.
const TAKING_TIME_MAX: Duration = Duration::from_millis(1);

/// Serves the inbox for the life of the shard.
pub async fn run(shard: Rc<Shard>) {
    loop {
        if !shard.sessions.borrow().is_fanning_out() {
            shard.inbox.ready().await;
        }
        // The turn itself takes the messages.
        shard.turn(|_| ());
        // A publisher that never pauses must not starve the sockets.
        shard.yields.yield_now().await;
    }
}

/// Takes the messages that are there now, before anything else happens in the turn, as far as one turn may. What they
/// deliver to one session goes out with one write. A command that comes while others still wait makes a subscription which
/// those pass by ([`crate::hub::Hub::set_arrived`]): they were published before it.
pub fn drain(shard: &Rc<Shard>, sessions: &mut Sessions) {
    let time = TimeSlice::new(TAKING_TIME_MAX);
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
        ShardMessage::Disconnect(job) => shard.disconnects.push(shard, *job),
        ShardMessage::Console(question) => console::answer(shard, sessions, *question),
        ShardMessage::Control(message) => execute(shard, sessions, message),
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
        ControlMessage::BeginShutdown => shard.stage.set(Stage::Stopping),
        ControlMessage::StopAccepting => shard.accept_stop.stop(),
        ControlMessage::FinishPublications(done) => shard.publications.finish(shard.id, done),
        ControlMessage::CloseSessions { slowly_until } => {
            shard.stage.set(Stage::Draining);
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

//! What other threads ask of this shard, taken in batches so that bursts are gathered into few writes.

use std::rc::Rc;

use crate::log::cut;
use crate::mesh::{Inbox, ShardMessage};
use crate::shard::Shard;
use crate::shard::sessions::Sessions;

/// Messages taken in one turn: what they deliver to one session goes out with one write.
const MESSAGES_PER_TURN_MAX: usize = 64;

/// Serves the inbox for the life of the shard.
pub async fn run(shard: Rc<Shard>, inbox: Inbox) {
    loop {
        inbox.ready().await;
        shard.turn(|sessions| {
            for _ in 0..MESSAGES_PER_TURN_MAX {
                let Some(message) = inbox.pop() else { break };
                take(&shard, sessions, message);
            }
        });
        shard.counters().inbox_depth.set(inbox.depth() as i64);
        // A publisher that never pauses must not starve the sockets.
        crate::shard::yield_now().await;
    }
}

fn take(shard: &Rc<Shard>, sessions: &mut Sessions, message: ShardMessage) {
    match message {
        ShardMessage::Deliver(publications) => {
            for publication in publications.iter() {
                tracing::debug!(
                    context = "node",
                    shard = shard.id,
                    stream = &*publication.stream,
                    payload = %cut(&String::from_utf8_lossy(&publication.message)),
                    "incoming broadcast message"
                );
                sessions.fan_out(publication);
            }
        }
        ShardMessage::RemoteDisconnect(command) => sessions.remote_disconnect(&command),
        ShardMessage::Disconnect(job) => shard.disconnects.push(shard, job),
        // The control thread may have given up waiting for either.
        ShardMessage::Survey(reply) => drop(reply.send(sessions.survey())),
        ShardMessage::StopAccepting => shard.accept_stop.stop(),
        ShardMessage::CloseSessions(done) => sessions.close_all(done),
        ShardMessage::FinishDisconnects {
            parallel,
            deadline,
            done,
        } => shard.disconnects.finish(parallel, deadline, done),
    }
}

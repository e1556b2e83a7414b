//! What other threads ask of this shard, taken in batches so that bursts are gathered into few writes.

use std::rc::Rc;

use crate::log::cut;
use crate::mesh::ShardMessage;
use crate::shard::Shard;
use crate::shard::console;
use crate::shard::sessions::Sessions;

/// Serves the inbox for the life of the shard.
pub async fn run(shard: Rc<Shard>) {
    loop {
        shard.inbox.ready().await;
        // The turn itself takes the messages.
        shard.turn(|_| ());
        // A publisher that never pauses must not starve the sockets.
        crate::shard::yield_now().await;
    }
}

/// Takes the messages that are there now, before anything else happens in the turn: what was published before a client's
/// command must not reach a subscription that the command makes. What they deliver to one session goes out with one write.
pub fn drain(shard: &Rc<Shard>, sessions: &mut Sessions) {
    let waiting = shard.inbox.depth();
    for _ in 0..waiting {
        let Some(message) = shard.inbox.pop() else {
            break;
        };
        take(shard, sessions, message);
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
        ShardMessage::Disconnect(job) => shard.disconnects.push(shard, *job),
        // The control thread may have given up waiting for either.
        ShardMessage::Survey(reply) => drop(reply.send(sessions.survey())),
        ShardMessage::CheckRpc => {
            if let Some(rpc) = shard.rpc.clone() {
                monoio::spawn(async move { rpc.check().await });
            }
        }
        ShardMessage::Console(question) => console::answer(shard, sessions, *question),
        ShardMessage::StopAccepting => shard.accept_stop.stop(),
        ShardMessage::CloseSessions(done) => sessions.close_all(done),
        ShardMessage::FinishDisconnects {
            parallel,
            deadline,
            done,
        } => shard.disconnects.finish(parallel, deadline, done),
    }
}

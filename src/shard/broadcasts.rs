//! Broadcasts of the app as they arrive: how long the shard accepts them, and what their bodies contain. What they publish
//! goes through [`Publisher`](crate::shard::publisher::Publisher).

use std::rc::Rc;
use std::sync::Arc;

use crate::log::cut_bytes;
use crate::protocol::publication::{self, Broadcast, PublishError, decode_broadcast};
use crate::shard::Shard;
use crate::shard::http::body::Body;
use crate::shard::message::PublishMessage;
use crate::shard::notices::Notice;

/// A longer body is joined and decoded by another thread, so that the shard can serve its other clients meanwhile.
pub const DECODED_HERE_BYTES_MAX: usize = 256 << 10;
/// Copies of a long body that exist at most while it is decoded: the joined body, `data` without its escapes, and the
/// message.
pub const DECODING_COPIES_MAX: usize = 3;

/// Parses a broadcast and hands it to the shards. When this returns, every shard that may have a listener has it in its
/// inbox. A body that cannot be parsed is logged and counted; the app is not told. Source: contract/broadcast.md §3, §4, §9.
pub async fn publish_body(shard: &Rc<Shard>, body: &[u8], key: Option<&str>) {
    note_arrival(shard, || cut_bytes(body));
    carry_out(shard, decode_broadcast(body), key, || cut_bytes(body)).await;
}

/// The same for a body longer than [`DECODED_HERE_BYTES_MAX`]. Returns false when no thread could be started to decode it.
pub async fn publish_long_body(shard: &Rc<Shard>, body: Body, key: Option<&str>) -> bool {
    let decoded = shard.long_work.run(move || {
        let body = body.into_bytes();
        (cut_bytes(&body), decode_broadcast(&body))
    });
    let Ok((shown, broadcast)) = decoded.await else {
        return false;
    };
    note_arrival(shard, || shown.clone());
    carry_out(shard, broadcast, key, || shown.clone()).await;
    true
}

fn note_arrival(shard: &Shard, shown: impl Fn() -> String) {
    tracing::debug!(
        context = "node",
        shard = shard.id,
        payload = %shown(),
        "handle broadcast message"
    );
}

/// `shown` gives the body as the log shows it.
async fn carry_out(
    shard: &Rc<Shard>,
    broadcast: Result<Broadcast, PublishError>,
    key: Option<&str>,
    shown: impl Fn() -> String,
) {
    let counters = shard.counters();
    let broadcast = match broadcast {
        Ok(broadcast) => broadcast,
        Err(error) => {
            counters.failed_broadcast_msg_total.add(1);
            if let Some(admitted) = shard.notices.admit(Notice::PublicationUnreadable) {
                tracing::warn!(
                    context = "node",
                    shard = shard.id,
                    data = %shown(),
                    %error,
                    left_out = admitted.left_out(),
                    "failed to parse pubsub message"
                );
            }
            return;
        }
    };
    counters.publications_total.add(1);
    match broadcast {
        Broadcast::Publications(mut publications) => {
            if let Some(key) = key {
                publication::give_keys(&mut publications, key);
            }
            let message = PublishMessage::Deliver(publications.into());
            shard.publisher.publish(message).into_inboxes().await;
        }
        Broadcast::Disconnect(command) => {
            counters.remote_commands_total.add(1);
            let message = PublishMessage::RemoteDisconnect(Arc::new(command));
            shard.publisher.publish(message).into_inboxes().await;
        }
        Broadcast::UnknownCommand(_) | Broadcast::InvalidCommand(_) => {
            counters.remote_commands_total.add(1);
            if let Some(admitted) = shard.notices.admit(Notice::RemoteCommandUnknown) {
                tracing::warn!(
                    context = "node",
                    shard = shard.id,
                    data = %shown(),
                    left_out = admitted.left_out(),
                    "unknown or malformed remote command, ignored"
                );
            }
        }
    }
}

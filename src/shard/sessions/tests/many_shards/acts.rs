//! What may happen.

use super::*;

#[derive(Debug, Clone)]
pub enum Act {
    /// Comes, or comes back. After a restore it asks for what it has missed, or for nothing.
    Connect {
        person: usize,
        shard: ShardId,
        asks: bool,
    },
    /// Goes without a word, by a closed or a broken connection, or by one that stays open.
    Drop(usize, How),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    /// Asks for the history of a stream to which it listens.
    Ask(usize, usize),
    Join(usize, usize),
    Leave(usize, usize),
    Publish {
        shard: ShardId,
        streams: Vec<usize>,
        stored: bool,
        /// An idempotency key.
        key: Option<u8>,
    },
    Disconnect(ShardId, usize),
    /// Fills an inbox.
    Fill(ShardId),
    /// Reads commands, then takes so many messages.
    Turn(ShardId, usize),
    /// A client reads.
    Read(usize),
    /// Removes what is old.
    Sweep(ShardId),
    /// A shard sends what waits for room.
    Send(ShardId),
    /// Everything happens that is under way.
    Settle,
    /// Restored subscriptions wait no longer, or a remote disconnect is not on its way any more.
    Wait(Duration),
    /// Sessions that have ended cannot come back any more. Before that everything that is under way happens, or not.
    Expire {
        settled: bool,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum How {
    Closed,
    Reset,
    HalfOpen,
}

pub fn act() -> impl Strategy<Value = Act> {
    let (person, shard, stream) = (0..PEOPLE, 0..SHARDS, 0..STREAMS.len());
    let both = (person.clone(), stream.clone());
    let how = prop_oneof![Just(How::Closed), Just(How::Reset), Just(How::HalfOpen)];
    let connect = (person.clone(), shard.clone(), prop::bool::weighted(0.8));
    let connect = connect.prop_map(|(person, shard, asks)| Act::Connect {
        person,
        shard,
        asks,
    });
    let waits = prop::sample::select(vec![RESUME_HOLD_MAX + TICK, DISCONNECT_LASTS + TICK]);
    let messages = prop_oneof![3 => 0..4usize, 1 => Just(5000)];
    prop_oneof![
        8 => connect,
        4 => (person.clone(), how).prop_map(|(person, how)| Act::Drop(person, how)),
        8 => both.clone().prop_map(|(person, stream)| Act::Subscribe(person, stream)),
        1 => both.clone().prop_map(|(person, stream)| Act::Unsubscribe(person, stream)),
        4 => both.clone().prop_map(|(person, stream)| Act::Ask(person, stream)),
        4 => both.clone().prop_map(|(person, stream)| Act::Join(person, stream)),
        2 => both.prop_map(|(person, stream)| Act::Leave(person, stream)),
        8 => publish(),
        1 => (shard.clone(), person.clone()).prop_map(|(shard, person)| Act::Disconnect(shard, person)),
        1 => shard.clone().prop_map(Act::Fill),
        12 => (shard.clone(), messages).prop_map(|(shard, messages)| Act::Turn(shard, messages)),
        4 => person.prop_map(Act::Read),
        1 => shard.clone().prop_map(Act::Sweep),
        4 => shard.prop_map(Act::Send),
        5 => Just(Act::Settle),
        1 => waits.prop_map(Act::Wait),
        1 => any::<bool>().prop_map(|settled| Act::Expire { settled }),
    ]
}

fn publish() -> impl Strategy<Value = Act> {
    let streams = prop::collection::vec(0..STREAMS.len(), 1..4);
    let key = prop::option::weighted(0.2, 0..3u8);
    (0..SHARDS, streams, prop::bool::weighted(0.8), key).prop_map(
        |(shard, streams, stored, key)| Act::Publish {
            shard,
            streams,
            stored,
            key: key.filter(|_| stored),
        },
    )
}

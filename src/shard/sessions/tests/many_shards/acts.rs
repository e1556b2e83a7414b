//! What may happen.

use super::*;

#[derive(Debug, Clone)]
pub enum Act {
    /// Comes, or comes back.
    Connect(usize, ShardId),
    /// Goes without a word, by a closed or a broken connection, or by one that stays open.
    Drop(usize, How),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    /// The streams of a batch, and whether it is stored.
    Publish(ShardId, Vec<usize>, bool),
    Disconnect(ShardId, usize),
    /// Fills an inbox.
    Fill(ShardId),
    /// Reads commands, then takes so many messages.
    Turn(ShardId, usize),
    /// A client reads.
    Read(usize),
    Wait,
}

#[derive(Debug, Clone, Copy)]
pub enum How {
    Closed,
    Reset,
    HalfOpen,
}

pub fn act() -> impl Strategy<Value = Act> {
    let (person, shard, stream) = (0..PEOPLE, 0..SHARDS, 0..STREAMS.len());
    let how = prop_oneof![Just(How::Closed), Just(How::Reset), Just(How::HalfOpen)];
    let streams = prop::collection::vec(stream.clone(), 1..4);
    prop_oneof![
        4 => (person.clone(), shard.clone()).prop_map(|(person, shard)| Act::Connect(person, shard)),
        2 => (person.clone(), how).prop_map(|(person, how)| Act::Drop(person, how)),
        4 => (person.clone(), stream.clone()).prop_map(|(person, stream)| Act::Subscribe(person, stream)),
        1 => (person.clone(), stream).prop_map(|(person, stream)| Act::Unsubscribe(person, stream)),
        8 => (shard.clone(), streams, prop::bool::weighted(0.8))
            .prop_map(|(shard, streams, stored)| Act::Publish(shard, streams, stored)),
        1 => (shard.clone(), person.clone()).prop_map(|(shard, person)| Act::Disconnect(shard, person)),
        1 => shard.clone().prop_map(Act::Fill),
        12 => (shard, prop_oneof![3 => 0..4usize, 1 => Just(5000)]).prop_map(|(shard, messages)| Act::Turn(shard, messages)),
        4 => person.prop_map(Act::Read),
        1 => Just(Act::Wait),
    ]
}

//! Streams of one class by age, to find what is the oldest.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::Millis;

/// A heap with more room than this is shrunk when it is three quarters empty.
const KEPT_STREAMS: usize = 64;

/// At most one time for each stream. A time may be older than that of the stream: who takes the oldest compares it with the
/// stream, and renews it where it is too old. So a stream whose time changes with every message needs no work here until
/// its old time is the oldest.
#[derive(Default)]
pub(super) struct Ages {
    heap: BinaryHeap<Reverse<(Millis, u32)>>,
}

impl Ages {
    /// Adds a stream, which is not here.
    pub fn add(&mut self, time: Millis, stream: u32) {
        if self.heap.len() == self.heap.capacity() {
            self.heap.reserve_exact((self.heap.len() / 4).max(8));
        }
        self.heap.push(Reverse((time, stream)));
    }

    /// The oldest time, and its stream.
    pub fn oldest(&self) -> Option<(Millis, u32)> {
        self.heap.peek().map(|Reverse(oldest)| *oldest)
    }

    /// Gives the stream with the oldest time a newer one.
    pub fn renew_oldest(&mut self, time: Millis) {
        if let Some(mut oldest) = self.heap.peek_mut() {
            oldest.0.0 = time;
        }
    }

    /// Removes the stream with the oldest time.
    pub fn remove_oldest(&mut self) {
        if let Some(oldest) = self.heap.peek_mut() {
            PeekMut::pop(oldest);
        }
    }

    /// Frees memory after many streams have been removed.
    pub fn shrink(&mut self) {
        let wanted = self.heap.len().max(KEPT_STREAMS);
        if self.heap.capacity() > 4 * wanted {
            self.heap.shrink_to(2 * wanted);
        }
    }
}

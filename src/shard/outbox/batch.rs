//! Deliveries of all sessions of a shard that have not been passed to the kernel yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::rc::Rc;

use super::frame::{FRAMES_PER_WRITE_MAX, Frame, FrameKind, Gathered};
use super::{Outbox, Written, write_slices};
use crate::mesh::ShardBudget;

/// Deliveries in a batch before it has to be written out completely: 4 MiB.
pub const BATCH_DELIVERIES_MAX: usize = 512 << 10;
/// The same limit when few sessions have very many deliveries each.
pub const BATCH_DELIVERIES_DEEP: usize = 32 << 10;
/// Bytes of frames in a batch, with their overhead, before it has to be written out completely.
pub const BATCH_FRAME_BYTES_MAX: usize = 4 << 20;
/// With more frames than this in a batch, a session gets only the newest of its pongs.
pub(super) const PONGS_APART_MAX: usize = 256;
/// Deliveries and frames for which an empty batch keeps its memory.
const BATCH_ROOM_KEPT: usize = 4096;
/// A larger frame buffer is freed instead of kept.
const SCRATCH_BYTES_KEPT: usize = 16 << 10;

/// "No node": the end of a session's list.
const NONE: u32 = u32::MAX;

/// A session's deliveries in the current batch: a list inside `Batch::nodes`.
#[derive(Debug, Clone, Copy)]
pub struct BatchList {
    first: u32,
    last: u32,
}

impl Default for BatchList {
    fn default() -> Self {
        Self {
            first: NONE,
            last: NONE,
        }
    }
}

impl BatchList {
    pub fn is_empty(&self) -> bool {
        self.first == NONE
    }
}

pub(super) struct Node {
    frame: u32,
    next: u32,
}

/// Deliveries of all sessions that have not been passed to the kernel yet.
pub struct Batch {
    budget: Rc<ShardBudget>,
    frames: Vec<Rc<Frame>>,
    /// Bytes of the frames, including the messages that they share.
    frame_bytes: usize,
    /// The same without the shared messages.
    own_bytes: usize,
    pub(super) nodes: Vec<Node>,
    /// Slots whose first delivery is a reply or a ping, in the order in which they got it.
    prompt: VecDeque<u32>,
    /// Slots whose first delivery is a publication, in the same order.
    bulk: VecDeque<u32>,
    /// Lists begun since the batch was empty.
    lists: usize,
    /// Prompt slots taken since the last bulk one.
    prompt_taken: usize,
    /// Buffer in which frames are put together.
    scratch: Vec<u8>,
}

/// How urgent a delivery is: a client that asked for something must not wait behind all publications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    Prompt,
    Bulk,
}

/// While both kinds wait, this many sessions with replies are written before one with publications.
const PROMPT_IN_A_ROW_MAX: usize = 4;

impl Batch {
    /// An empty batch. Its frames are charged to `budget`.
    pub fn new(budget: Rc<ShardBudget>) -> Self {
        Self {
            budget,
            frames: Vec::new(),
            frame_bytes: 0,
            own_bytes: 0,
            nodes: Vec::new(),
            prompt: VecDeque::new(),
            bulk: VecDeque::new(),
            lists: 0,
            prompt_taken: 0,
            scratch: Vec::new(),
        }
    }

    /// Takes an empty buffer to put a frame together. Give it back with [`Self::keep_scratch`].
    pub fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    /// Keeps the buffer for the next frame, unless it has become large.
    pub fn keep_scratch(&mut self, mut scratch: Vec<u8>) {
        if scratch.capacity() <= SCRATCH_BYTES_KEPT {
            scratch.clear();
            self.scratch = scratch;
        }
    }

    /// Adds a frame and returns the number by which deliveries refer to it.
    pub fn add_frame(&mut self, frame: Frame) -> u32 {
        self.frame_bytes += frame.held_bytes();
        self.own_bytes += frame.own_bytes();
        self.frames.push(frame.charged(&self.budget));
        self.frames.len() as u32 - 1
    }

    /// Replaces the last frame of `list` by a pong when that frame is a pong too, and the batch has many frames or the
    /// session's socket is full (`blocked`). Returns the pong otherwise.
    pub fn replace_pong(&mut self, list: BatchList, pong: Frame, blocked: bool) -> Option<Frame> {
        let may_replace = blocked || self.frames.len() > PONGS_APART_MAX;
        let Some(node) = self.nodes.get(list.last as usize) else {
            return Some(pong);
        };
        let frame = &mut self.frames[node.frame as usize];
        if frame.kind != FrameKind::Pong || !may_replace {
            return Some(pong);
        }
        self.frame_bytes = self.frame_bytes - frame.held_bytes() + pong.held_bytes();
        self.own_bytes = self.own_bytes - frame.own_bytes() + pong.own_bytes();
        *frame = pong.charged(&self.budget);
        None
    }

    /// Notes that the session in `slot` gets `frame`.
    pub fn deliver(&mut self, slot: u32, list: &mut BatchList, frame: u32, urgency: Urgency) {
        let node = self.nodes.len() as u32;
        self.nodes.push(Node { frame, next: NONE });
        if list.first == NONE {
            list.first = node;
            self.lists += 1;
            match urgency {
                Urgency::Prompt => self.prompt.push_back(slot),
                Urgency::Bulk => self.bulk.push_back(slot),
            }
        } else {
            self.nodes[list.last as usize].next = node;
        }
        list.last = node;
    }

    /// True when the batch should be written before more is published: it has reached its limits, or its sessions have more
    /// frames than one write takes, so that gathering more saves no writes.
    pub fn is_full(&self) -> bool {
        let deep = self.lists * FRAMES_PER_WRITE_MAX;
        self.nodes.len() >= BATCH_DELIVERIES_MAX.min(deep.max(BATCH_DELIVERIES_DEEP))
            || self.frame_bytes >= BATCH_FRAME_BYTES_MAX
    }

    /// True when not even replies may be added, because the reserve that a full batch has for them is used up. A shared
    /// message does not count, however long it is: otherwise replies would wait until all its receivers have been written.
    pub fn has_no_room(&self) -> bool {
        self.nodes.len() >= 2 * BATCH_DELIVERIES_MAX || self.own_bytes >= 2 * BATCH_FRAME_BYTES_MAX
    }

    /// True when no session waits for a write.
    pub fn is_empty(&self) -> bool {
        self.dirty_len() == 0
    }

    /// Slots that wait for a write.
    pub fn dirty_len(&self) -> usize {
        self.prompt.len() + self.bulk.len()
    }

    /// The next slot to write. Since it was noted, its list may have been emptied, or another session may have taken the
    /// slot.
    pub fn next_dirty(&mut self) -> Option<u32> {
        if self.prompt_taken < PROMPT_IN_A_ROW_MAX
            && let Some(slot) = self.prompt.pop_front()
        {
            self.prompt_taken += 1;
            return Some(slot);
        }
        self.prompt_taken = 0;
        self.bulk.pop_front().or_else(|| self.prompt.pop_front())
    }

    /// Drops the frames when no session waits for a write. Every list into this batch is empty then.
    pub fn finish(&mut self) {
        debug_assert!(self.is_empty(), "everybody has been written");
        self.frames.clear();
        self.frames.shrink_to(BATCH_ROOM_KEPT);
        self.frame_bytes = 0;
        self.own_bytes = 0;
        self.nodes.clear();
        self.nodes.shrink_to(BATCH_ROOM_KEPT);
        self.lists = 0;
        self.prompt.shrink_to(BATCH_ROOM_KEPT);
        self.bulk.shrink_to(BATCH_ROOM_KEPT);
    }

    /// Moves a session's deliveries into its outbox. A frame without bytes only causes a flush, so it is left out.
    pub fn drain_into(&self, list: &mut BatchList, outbox: &mut Outbox) {
        for frame in self.frames_of(std::mem::take(list)) {
            if !frame.is_empty() {
                outbox.push_or_replace(Rc::clone(frame));
            }
        }
    }

    /// Writes a session's deliveries directly to its socket. Returns what the kernel did not take as an outbox.
    ///
    /// # Errors
    /// Those of writev(2).
    pub fn write(
        &self,
        list: &mut BatchList,
        socket: &TcpStream,
    ) -> io::Result<(Written, Option<Outbox>)> {
        let list = std::mem::take(list);
        // The usual case, without filling an array.
        if list.first == list.last {
            let frame = &self.frames[self.nodes[list.first as usize].frame as usize];
            if let Some(bytes) = frame.contiguous() {
                let taken = write_slices(socket, &[IoSlice::new(bytes)])?;
                return Ok(account_one(frame, taken));
            }
        }
        let (bytes, offered, more) = self.write_many(list, socket)?;
        Ok(self.account(list, bytes, offered, more))
    }

    /// The frame of a list that has exactly one, whose bytes are in one piece; `None` otherwise.
    pub fn only_frame(&self, list: BatchList) -> Option<u32> {
        let node = self.nodes.get(list.first as usize)?;
        let only = list.first == list.last;
        (only && self.frames[node.frame as usize].contiguous().is_some()).then_some(node.frame)
    }

    /// The bytes of an [`Self::only_frame`].
    pub fn bytes(&self, frame: u32) -> &[u8] {
        self.frames[frame as usize].contiguous().unwrap_or_default()
    }

    /// Accounts for an [`Self::only_frame`] of which the kernel took `bytes`.
    pub fn account_only_frame(&self, frame: u32, bytes: usize) -> (Written, Option<Outbox>) {
        account_one(&self.frames[frame as usize], bytes)
    }

    #[inline]
    fn account(
        &self,
        list: BatchList,
        bytes: usize,
        offered: usize,
        more: bool,
    ) -> (Written, Option<Outbox>) {
        let mut written = Written {
            bytes,
            blocked: bytes < offered,
            ..Written::default()
        };
        if !written.blocked && !more {
            self.frames_of(list).for_each(|frame| written.count(frame));
            return (written, None);
        }
        left_over(self.frames_of(list), written)
    }

    /// Gathers as many frames as one write takes. Returns bytes written, bytes offered, and whether there is more.
    fn write_many(&self, list: BatchList, socket: &TcpStream) -> io::Result<(usize, usize, bool)> {
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE_MAX];
        let (mut count, mut offered) = (0, 0);
        let mut frames = self.frames_of(list);
        for frame in frames.by_ref().take(FRAMES_PER_WRITE_MAX) {
            let Some(bytes) = frame.contiguous() else {
                return self.write_pieces(list, socket);
            };
            slices[count] = IoSlice::new(bytes);
            offered += bytes.len();
            count += 1;
        }
        let bytes = write_slices(socket, &slices[..count])?;
        Ok((bytes, offered, frames.next().is_some()))
    }

    /// The same when the bytes of a frame are not in one piece.
    fn write_pieces(
        &self,
        list: BatchList,
        socket: &TcpStream,
    ) -> io::Result<(usize, usize, bool)> {
        let mut gathered = Gathered::new();
        let more = self.frames_of(list).any(|frame| !gathered.add(frame));
        let bytes = write_slices(socket, gathered.slices())?;
        Ok((bytes, gathered.offered, more))
    }

    fn frames_of(&self, list: BatchList) -> impl Iterator<Item = &Rc<Frame>> {
        let mut next = list.first;
        std::iter::from_fn(move || {
            let node = self.nodes.get(next as usize)?;
            next = node.next;
            Some(&self.frames[node.frame as usize])
        })
    }
}

/// Accounts for a frame of which the kernel took `bytes`, when nothing else was offered.
#[inline]
fn account_one(frame: &Rc<Frame>, bytes: usize) -> (Written, Option<Outbox>) {
    let mut written = Written {
        bytes,
        blocked: bytes < frame.len(),
        ..Written::default()
    };
    if !written.blocked {
        written.count(frame);
        return (written, None);
    }
    left_over([frame], written)
}

/// What of these frames the kernel did not take. The whole frames among the written bytes are counted.
fn left_over<'a>(
    frames: impl IntoIterator<Item = &'a Rc<Frame>>,
    mut written: Written,
) -> (Written, Option<Outbox>) {
    let mut outbox = Outbox::default();
    for frame in frames {
        outbox.push(Rc::clone(frame));
    }
    outbox.consume(written.bytes, &mut written);
    (written, Some(outbox))
}

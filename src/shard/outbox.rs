//! Frames on their way into sockets.
//!
//! A frame is encoded once and shared by all receivers. Deliveries are noted in the [`Batch`] (8 bytes each, no allocation
//! per receiver); then each session that got something is written once, with one gathered call. A large batch is written
//! over several turns, and what is published meanwhile is gathered with it. Only what the kernel does not take moves into an
//! [`Outbox`] of the session.
//!
//! The bytes of a frame are charged to the shard's budget once, however many sessions wait for them.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::rc::Rc;

use crate::mesh::{Charge, ShardBudget};
use crate::net::tls::TlsSession;
use crate::session::Tick;

/// Frames gathered in one write at most.
pub const FRAMES_PER_WRITE_MAX: usize = 64;
/// Deliveries noted in a batch before it has to be written out whole: 4 MiB.
pub const BATCH_DELIVERIES_MAX: usize = 512 << 10;
/// The same when few sessions have very many each.
pub const BATCH_DELIVERIES_DEEP: usize = 32 << 10;
/// Bytes of frames in a batch, with their overhead, before it has to be written out whole.
pub const BATCH_FRAME_BYTES_MAX: usize = 4 << 20;
/// Frames in a batch from which on a session gets only the newest of its pongs.
const PONGS_APART_MAX: usize = 256;
/// What a frame takes beside its bytes: counts and length, its charge, a place in the batch or in an outbox, and what the
/// allocator rounds up. A pong of two bytes is no less.
pub const FRAME_OVERHEAD_BYTES: usize = 96;
const _: () = assert!(size_of::<Frame>() + 16 + size_of::<Rc<Frame>>() <= FRAME_OVERHEAD_BYTES);
/// Deliveries and frames that an empty batch keeps room for.
const BATCH_ROOM_KEPT: usize = 4096;
/// Bytes encrypted ahead of what the kernel takes: a few records.
const SEALED_BYTES_MAX: usize = 64 << 10;

/// What a frame counts as when it has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A text message: counts as message and its payload as data.
    Message,
    /// A ping of Action Cable: its payload counts as data.
    Ping,
    /// A WebSocket control frame: counts as nothing.
    Control,
    /// A control frame that a newer one may replace while it waits. Source: RFC 6455 §5.5.3.
    Pong,
}

/// Encoded WebSocket bytes, shared by reference count; or the TLS records that carry such a frame to one client.
#[derive(Debug)]
pub struct Frame {
    pub bytes: Box<[u8]>,
    pub kind: FrameKind,
    /// Bytes without frame header and encryption: what the counters count.
    payload_bytes: u32,
    /// Set when the frame is put into a batch or an outbox.
    charge: Option<Charge>,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, kind: FrameKind) -> Self {
        Self {
            payload_bytes: payload_bytes(&bytes),
            bytes: bytes.into_boxed_slice(),
            kind,
            charge: None,
        }
    }

    /// What it takes in memory.
    pub fn held_bytes(&self) -> usize {
        self.bytes.len() + FRAME_OVERHEAD_BYTES
    }

    /// Cannot be refused: whoever gets a frame has been looked at before it was encoded.
    fn charged(mut self, budget: &Rc<ShardBudget>) -> Rc<Self> {
        self.charge = Some(budget.hold_anyway(self.held_bytes()));
        Rc::new(self)
    }

    /// Nothing to send, but a reason to flush: TLS has records of its own.
    pub fn flush_only() -> Self {
        Self::new(Vec::new(), FrameKind::Control)
    }

    /// The same frame in the records that carry it. They have a place in the client's order: none may be dropped.
    fn sealed(&self, records: Vec<u8>) -> Self {
        Self {
            bytes: records.into_boxed_slice(),
            kind: self.kind,
            payload_bytes: self.payload_bytes,
            charge: None,
        }
    }
}

/// Source: RFC 6455 §5.2, for unmasked frames.
fn payload_bytes(frame: &[u8]) -> u32 {
    let header = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    u32::try_from(frame.len().saturating_sub(header)).unwrap_or(u32::MAX)
}

/// Frames that the kernel has not taken yet. Exists only while there are some.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Rc<Frame>>,
    /// Bytes of the first frame that are written already.
    head_written: usize,
    /// Unsent bytes, the first frame's rest included.
    pending_bytes: usize,
    /// Bytes of all its frames with their overhead, written ones of the first frame included.
    held_bytes: usize,
    /// With TLS: frames at the front that are encrypted already, and their unsent bytes. Without it 0.
    sealed: usize,
    sealed_bytes: usize,
    /// When the kernel must have taken something.
    pub deadline: Tick,
    /// When it took something last, or the outbox began.
    pub progress: Tick,
}

impl Outbox {
    /// Empty at `now`; something of what comes must have gone out at `deadline`.
    pub fn due(now: Tick, deadline: Tick) -> Self {
        Self {
            deadline,
            progress: now,
            ..Self::default()
        }
    }

    pub fn push(&mut self, frame: Rc<Frame>) {
        self.pending_bytes += frame.bytes.len();
        self.held_bytes += frame.held_bytes();
        self.frames.push_back(frame);
    }

    /// As [`Self::push`]; a pong takes the place of one that waits at the end and has not been started.
    fn push_or_replace(&mut self, frame: Rc<Frame>) {
        let waits = self.frames.len() > self.started();
        if frame.kind == FrameKind::Pong
            && let Some(last) = self.frames.back()
            && last.kind == FrameKind::Pong
            && waits
        {
            self.pending_bytes -= last.bytes.len();
            self.held_bytes -= last.held_bytes();
            self.frames.pop_back();
        }
        self.push(frame);
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// What the frames behind the one that is being written take in memory. Source: `contract/websocket.md` §11.
    pub fn queued_bytes(&self) -> usize {
        let first = self.frames.front().map_or(0, |frame| frame.held_bytes());
        self.held_bytes - first
    }

    /// What it takes in memory.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Unsent frames that count as messages.
    pub fn messages(&self) -> usize {
        self.frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Message)
            .count()
    }

    /// Encrypts frames at the front, behind the records that TLS itself has to send, until a few records wait for the socket:
    /// what is encrypted is the client's own copy, and cannot be dropped any more.
    pub fn seal(&mut self, tls: &mut TlsSession, budget: &Rc<ShardBudget>) {
        let mut records = Vec::new();
        tls.take_output(&mut records);
        if !records.is_empty() {
            let frame = Frame::flush_only().sealed(std::mem::take(&mut records));
            let place = self.sealed;
            self.note_sealed(&frame);
            self.frames.insert(place, frame.charged(budget));
        }
        while self.sealed_bytes < SEALED_BYTES_MAX
            && let Some(frame) = self.frames.get(self.sealed).cloned()
        {
            tls.encrypt(&frame.bytes, &mut records);
            let sealed = frame.sealed(std::mem::take(&mut records));
            self.pending_bytes -= frame.bytes.len();
            self.held_bytes -= frame.held_bytes();
            let place = self.sealed;
            self.note_sealed(&sealed);
            self.frames[place] = sealed.charged(budget);
        }
    }

    fn note_sealed(&mut self, frame: &Frame) {
        self.pending_bytes += frame.bytes.len();
        self.held_bytes += frame.held_bytes();
        self.sealed += 1;
        self.sealed_bytes += frame.bytes.len();
    }

    /// Frames at the front that must go out: one that is half written, or else the client could not read on; with TLS all that
    /// are encrypted, or else it could not decrypt what follows.
    fn started(&self) -> usize {
        self.sealed.max(usize::from(self.head_written > 0))
    }

    /// Drops what has not been started.
    pub fn clear_unstarted(&mut self) {
        self.frames.truncate(self.started());
        self.pending_bytes = self
            .frames
            .iter()
            .map(|frame| frame.bytes.len())
            .sum::<usize>()
            - self.head_written;
        self.held_bytes = self.frames.iter().map(|frame| frame.held_bytes()).sum();
    }

    /// Writes as much as the kernel takes, with one call. Returns what went out.
    ///
    /// # Errors
    /// Those of writev(2) other than "would block", which is an empty [`Written`].
    pub fn write(&mut self, socket: &TcpStream) -> io::Result<Written> {
        if self.is_empty() {
            return Ok(Written::default());
        }
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE_MAX];
        let mut count = 0;
        let mut offered = 0;
        let ready = match self.sealed {
            0 => self.frames.len(),
            sealed => sealed,
        };
        for frame in self.frames.iter().take(ready.min(FRAMES_PER_WRITE_MAX)) {
            let skip = if count == 0 { self.head_written } else { 0 };
            slices[count] = IoSlice::new(&frame.bytes[skip..]);
            offered += frame.bytes.len() - skip;
            count += 1;
        }
        let bytes = write_slices(socket, &slices[..count])?;
        let mut written = Written {
            bytes,
            blocked: bytes < offered,
            ..Written::default()
        };
        self.consume(bytes, &mut written);
        Ok(written)
    }

    fn consume(&mut self, bytes: usize, written: &mut Written) {
        self.pending_bytes -= bytes;
        self.sealed_bytes = self.sealed_bytes.saturating_sub(bytes);
        let mut left = self.head_written + bytes;
        while let Some(first) = self.frames.front() {
            if left < first.bytes.len() {
                break;
            }
            left -= first.bytes.len();
            self.held_bytes -= first.held_bytes();
            written.count(first);
            self.sealed = self.sealed.saturating_sub(1);
            self.frames.pop_front();
        }
        self.head_written = left;
    }
}

/// What one write achieved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub bytes: usize,
    /// Whole frames that count as messages.
    pub messages: u64,
    /// Whole frames of any kind.
    pub frames: u64,
    /// Payload bytes of whole messages and pings.
    pub payload_bytes: u64,
    /// The kernel took less than it was offered.
    pub blocked: bool,
}

impl Written {
    fn count(&mut self, frame: &Frame) {
        self.frames += 1;
        self.messages += u64::from(frame.kind == FrameKind::Message);
        if matches!(frame.kind, FrameKind::Message | FrameKind::Ping) {
            self.payload_bytes += u64::from(frame.payload_bytes);
        }
    }
}

/// One call; "would block" is 0 bytes.
fn write_slices(mut socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        let result = match slices {
            [one] => socket.write(one),
            many => socket.write_vectored(many),
        };
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// "No node": the end of a session's list.
const NONE: u32 = u32::MAX;

/// A session's deliveries in the running batch: a list inside [`Batch::nodes`].
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

struct Node {
    frame: u32,
    next: u32,
}

/// Deliveries of all sessions that have not been handed to the kernel yet.
pub struct Batch {
    budget: Rc<ShardBudget>,
    frames: Vec<Rc<Frame>>,
    frame_bytes: usize,
    nodes: Vec<Node>,
    /// Slots whose first delivery is a reply or a ping, in the order in which they got it.
    prompt: VecDeque<u32>,
    /// Slots whose first delivery is a publication, likewise.
    bulk: VecDeque<u32>,
    /// Lists that were begun since the batch was empty.
    lists: usize,
    /// Slots taken since the last one of the bulk.
    prompt_taken: usize,
}

/// What a delivery is: whoever asked for something is not to wait behind all that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    Prompt,
    Bulk,
}

/// So many sessions with replies are written before one with publications, while there are both.
const PROMPT_IN_A_ROW_MAX: usize = 4;

impl Batch {
    /// Empty; its frames are charged to `budget`.
    pub fn new(budget: Rc<ShardBudget>) -> Self {
        Self {
            budget,
            frames: Vec::new(),
            frame_bytes: 0,
            nodes: Vec::new(),
            prompt: VecDeque::new(),
            bulk: VecDeque::new(),
            lists: 0,
            prompt_taken: 0,
        }
    }

    /// Adds a frame that deliveries can name.
    pub fn add_frame(&mut self, frame: Frame) -> u32 {
        self.frame_bytes += frame.held_bytes();
        self.frames.push(frame.charged(&self.budget));
        self.frames.len() as u32 - 1
    }

    /// Puts a pong in the place of the last frame of `list`, when that is a pong and the batch has many frames or the session
    /// takes nothing now (`blocked`). Gives the pong back otherwise.
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

    /// True when the batch should be written before more is published: it is as large as it may be, or its sessions have more
    /// than one write takes, so that nothing is gained by gathering more.
    pub fn is_full(&self) -> bool {
        let deep = self.lists * FRAMES_PER_WRITE_MAX;
        self.nodes.len() >= BATCH_DELIVERIES_MAX.min(deep.max(BATCH_DELIVERIES_DEEP))
            || self.frame_bytes >= BATCH_FRAME_BYTES_MAX
    }

    /// True when not even replies may be added: what a full batch keeps for them is used up, too.
    pub fn has_no_room(&self) -> bool {
        self.nodes.len() >= 2 * BATCH_DELIVERIES_MAX
            || self.frame_bytes >= 2 * BATCH_FRAME_BYTES_MAX
    }

    /// True when nobody waits for a write.
    pub fn is_empty(&self) -> bool {
        self.dirty_len() == 0
    }

    /// Slots that wait for a write.
    pub fn dirty_len(&self) -> usize {
        self.prompt.len() + self.bulk.len()
    }

    /// The next slot to write. It may have been emptied, or used by another session, since it was noted.
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

    /// Forgets the frames once nobody waits for a write; every list made of them is empty then.
    pub fn finish(&mut self) {
        debug_assert!(self.is_empty(), "everybody has been written");
        self.frames.clear();
        self.frames.shrink_to(BATCH_ROOM_KEPT);
        self.frame_bytes = 0;
        self.nodes.clear();
        self.nodes.shrink_to(BATCH_ROOM_KEPT);
        self.lists = 0;
        self.prompt.shrink_to(BATCH_ROOM_KEPT);
        self.bulk.shrink_to(BATCH_ROOM_KEPT);
    }

    /// Moves a session's deliveries into its outbox. A frame without bytes was only a reason to flush.
    pub fn drain_into(&self, list: &mut BatchList, outbox: &mut Outbox) {
        for frame in self.frames_of(std::mem::take(list)) {
            if !frame.bytes.is_empty() {
                outbox.push_or_replace(Rc::clone(frame));
            }
        }
    }

    /// Writes a session's deliveries straight into its socket. What the kernel does not take is returned as an outbox.
    ///
    /// # Errors
    /// Those of writev(2).
    pub fn write(
        &self,
        list: &mut BatchList,
        socket: &TcpStream,
    ) -> io::Result<(Written, Option<Outbox>)> {
        let list = std::mem::take(list);
        let (bytes, offered, more) = if list.first == list.last {
            self.write_one(list, socket)?
        } else {
            self.write_many(list, socket)?
        };
        Ok(self.account(list, bytes, offered, more))
    }

    /// The only frame of a list; `None` when there are more, or none.
    pub fn single(&self, list: BatchList) -> Option<&Frame> {
        let node = self.nodes.get(list.first as usize)?;
        (list.first == list.last).then(|| &*self.frames[node.frame as usize])
    }

    /// What became of a [`Self::single`] frame of which the kernel took `bytes`.
    pub fn account_single(&self, list: BatchList, bytes: usize) -> (Written, Option<Outbox>) {
        let offered = self.single(list).map_or(0, |frame| frame.bytes.len());
        self.account(list, bytes, offered, false)
    }

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
        let mut outbox = Outbox::default();
        self.frames_of(list)
            .for_each(|frame| outbox.push(Rc::clone(frame)));
        outbox.consume(bytes, &mut written);
        (written, Some(outbox))
    }

    /// The usual case, without an array to be filled. Returns bytes written, bytes offered, and that there is no more.
    fn write_one(&self, list: BatchList, socket: &TcpStream) -> io::Result<(usize, usize, bool)> {
        let frame = &self.frames[self.nodes[list.first as usize].frame as usize];
        let bytes = write_slices(socket, &[IoSlice::new(&frame.bytes)])?;
        Ok((bytes, frame.bytes.len(), false))
    }

    /// Gathers up to [`FRAMES_PER_WRITE_MAX`] frames. Returns bytes written, bytes offered, and whether there is more.
    fn write_many(&self, list: BatchList, socket: &TcpStream) -> io::Result<(usize, usize, bool)> {
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE_MAX];
        let (mut count, mut offered) = (0, 0);
        let mut frames = self.frames_of(list);
        for frame in frames.by_ref().take(FRAMES_PER_WRITE_MAX) {
            slices[count] = IoSlice::new(&frame.bytes);
            offered += frame.bytes.len();
            count += 1;
        }
        let bytes = write_slices(socket, &slices[..count])?;
        Ok((bytes, offered, frames.next().is_some()))
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use super::*;
    use crate::mesh::ProcessBudget;
    use crate::metrics::Metrics;
    use crate::wire::websocket::frame;

    fn budget() -> Rc<ShardBudget> {
        let metrics = Metrics::new(1).into();
        ShardBudget::new(ProcessBudget::new(None, 1), metrics, 0)
    }

    fn batch() -> Batch {
        Batch::new(budget())
    }

    fn shared(text: &str) -> Rc<Frame> {
        message(text).into()
    }

    fn pong(payload: &str) -> Frame {
        Frame::new(frame::pong_frame(payload.as_bytes()), FrameKind::Pong)
    }

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (server, _) = listener.accept().expect("accept");
        server.set_nonblocking(true).expect("nonblocking");
        (server, client)
    }

    fn message(text: &str) -> Frame {
        Frame::new(frame::text_frame(text.as_bytes()), FrameKind::Message)
    }

    #[test]
    fn a_batch_goes_out_in_order_with_one_write() {
        let (server, mut client) = sockets();
        let mut batch = batch();
        let mut list = BatchList::default();
        for text in ["a", "bb", "ccc"] {
            let frame = batch.add_frame(message(text));
            batch.deliver(5, &mut list, frame, Urgency::Bulk);
        }
        assert_eq!((batch.next_dirty(), batch.next_dirty()), (Some(5), None));
        let (written, rest) = batch.write(&mut list, &server).expect("write");
        assert!(rest.is_none() && list.is_empty());
        assert_eq!(
            (written.messages, written.payload_bytes, written.blocked),
            (3, 6, false)
        );
        let mut bytes = vec![0; written.bytes];
        client.read_exact(&mut bytes).expect("read");
        assert_eq!(bytes, b"\x81\x01a\x81\x02bb\x81\x03ccc");
    }

    #[test]
    fn what_does_not_fit_waits_in_order_and_nothing_is_lost() {
        let (server, mut client) = sockets();
        let mut batch = batch();
        let mut list = BatchList::default();
        let texts: Vec<String> = (0..200).map(|index| format!("{index:0>65000}")).collect();
        for text in &texts {
            let frame = batch.add_frame(message(text));
            batch.deliver(0, &mut list, frame, Urgency::Bulk);
        }
        let expected: Vec<u8> = texts
            .iter()
            .flat_map(|text| frame::text_frame(text.as_bytes()))
            .collect();
        let (written, rest) = batch.write(&mut list, &server).expect("write");
        let mut outbox = rest.expect("13 MB do not fit");
        assert_eq!(outbox.pending_bytes(), expected.len() - written.bytes);
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            client.read_to_end(&mut bytes).expect("read");
            bytes
        });
        let mut messages = written.messages;
        while !outbox.is_empty() {
            messages += outbox.write(&server).expect("write").messages;
        }
        drop(server);
        assert_eq!(messages, 200);
        assert_eq!(outbox.pending_bytes(), 0);
        assert!(reader.join().expect("reader") == expected);
    }

    #[test]
    fn clearing_keeps_a_frame_that_is_half_written() {
        let mut outbox = Outbox::default();
        outbox.push(shared("first"));
        outbox.push(shared("second"));
        let mut written = Written::default();
        outbox.consume(3, &mut written);
        outbox.clear_unstarted();
        assert_eq!((outbox.messages(), outbox.pending_bytes()), (1, 4));
        outbox.consume(4, &mut written);
        assert!(outbox.is_empty());
        outbox.push(shared("third"));
        outbox.clear_unstarted();
        assert_eq!((outbox.is_empty(), outbox.pending_bytes()), (true, 0));
    }

    #[test]
    fn payload_bytes_leave_the_header_out() {
        for bytes in [0, 125, 126, 65_535, 65_536] {
            let frame = Frame::new(
                frame::text_frame(&vec![b'x'; bytes as usize]),
                FrameKind::Message,
            );
            assert_eq!(frame.payload_bytes, bytes);
        }
    }

    #[test]
    fn the_frame_that_is_being_written_is_pending_and_not_queued() {
        let mut outbox = Outbox::default();
        assert_eq!((outbox.queued_bytes(), outbox.held_bytes()), (0, 0));
        outbox.push(shared("first"));
        assert_eq!((outbox.pending_bytes(), outbox.queued_bytes()), (7, 0));
        outbox.push(shared("second"));
        outbox.consume(3, &mut Written::default());
        assert_eq!(outbox.pending_bytes(), 12);
        assert_eq!(outbox.queued_bytes(), 8 + FRAME_OVERHEAD_BYTES);
        assert_eq!(outbox.held_bytes(), 15 + 2 * FRAME_OVERHEAD_BYTES);
        outbox.consume(12, &mut Written::default());
        assert_eq!((outbox.queued_bytes(), outbox.held_bytes()), (0, 0));
    }

    #[test]
    fn a_frame_is_charged_once_and_until_its_last_receiver_has_it() {
        let budget = budget();
        let mut batch = Batch::new(Rc::clone(&budget));
        let frame = batch.add_frame(message("shared"));
        let held = 8 + FRAME_OVERHEAD_BYTES;
        assert_eq!(budget.used_bytes(), held);
        let mut outboxes = [Outbox::default(), Outbox::default()];
        for (slot, outbox) in outboxes.iter_mut().enumerate() {
            let mut list = BatchList::default();
            batch.deliver(slot as u32, &mut list, frame, Urgency::Bulk);
            batch.next_dirty();
            batch.drain_into(&mut list, outbox);
        }
        batch.finish();
        let [mut first, second] = outboxes;
        first.consume(8, &mut Written::default());
        assert_eq!(budget.used_bytes(), held);
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn of_many_pongs_that_wait_only_the_newest_is_kept() {
        let mut batch = batch();
        let mut list = BatchList::default();
        let deliver = |batch: &mut Batch, list: &mut BatchList, frame| {
            let frame = batch.add_frame(frame);
            batch.deliver(1, list, frame, Urgency::Bulk);
        };
        assert!(
            batch.replace_pong(list, pong("a"), true).is_some(),
            "nothing is there"
        );
        deliver(&mut batch, &mut list, pong("a"));
        assert!(
            batch.replace_pong(list, pong("b"), false).is_some(),
            "few are all sent"
        );
        assert!(batch.replace_pong(list, pong("b"), true).is_none());
        deliver(&mut batch, &mut list, message("text"));
        assert!(
            batch.replace_pong(list, pong("c"), true).is_some(),
            "the order stays"
        );
        let mut outbox = Outbox::default();
        batch.drain_into(&mut list, &mut outbox);
        for newer in ["c", "d"] {
            deliver(&mut batch, &mut list, pong(newer));
            batch.drain_into(&mut list, &mut outbox);
        }
        let kept: Vec<&[u8]> = outbox
            .frames
            .iter()
            .map(|frame| &frame.bytes[2..])
            .collect();
        assert_eq!(kept, [b"b" as &[u8], b"text", b"d"]);
        assert_eq!(outbox.pending_bytes(), 3 + 6 + 3);
    }

    #[test]
    fn a_pong_that_is_half_written_is_not_replaced() {
        let mut outbox = Outbox::default();
        outbox.push_or_replace(pong("a").into());
        outbox.consume(1, &mut Written::default());
        outbox.push_or_replace(pong("b").into());
        outbox.push_or_replace(pong("c").into());
        assert_eq!(outbox.frames.len(), 2);
        assert_eq!(outbox.pending_bytes(), 5);
    }

    #[test]
    fn pongs_of_a_full_batch_are_merged_for_everybody() {
        let mut batch = batch();
        let mut list = BatchList::default();
        let mut kept = 0;
        for _ in 0..10_000 {
            if let Some(pong) = batch.replace_pong(list, pong(""), false) {
                let frame = batch.add_frame(pong);
                batch.deliver(1, &mut list, frame, Urgency::Bulk);
                kept += 1;
            }
        }
        assert_eq!(kept, PONGS_APART_MAX + 1);
    }

    #[test]
    fn replies_are_written_before_publications_and_both_come_to_their_turn() {
        let mut batch = batch();
        let frame = batch.add_frame(message("x"));
        let mut lists = [BatchList::default(); 20];
        for (slot, list) in lists.iter_mut().enumerate() {
            let urgency = match slot {
                0..10 => Urgency::Bulk,
                _ => Urgency::Prompt,
            };
            batch.deliver(slot as u32, list, frame, urgency);
        }
        let order: Vec<u32> = std::iter::from_fn(|| batch.next_dirty()).collect();
        assert_eq!(order[..10], [10, 11, 12, 13, 0, 14, 15, 16, 17, 1]);
        assert_eq!(order[10..13], [18, 19, 2]);
        assert_eq!(order.len(), 20);
    }

    #[test]
    fn a_batch_is_full_when_few_sessions_have_very_much() {
        let deliveries = |sessions: usize| {
            let mut batch = batch();
            let frame = batch.add_frame(message("x"));
            let mut lists = vec![BatchList::default(); sessions];
            for slot in (0..sessions).cycle() {
                if batch.is_full() {
                    break;
                }
                batch.deliver(slot as u32, &mut lists[slot], frame, Urgency::Bulk);
            }
            assert!(!batch.has_no_room(), "there is room for replies");
            batch.nodes.len()
        };
        assert_eq!(deliveries(1), BATCH_DELIVERIES_DEEP);
        assert_eq!(deliveries(1000), 1000 * FRAMES_PER_WRITE_MAX);
        assert_eq!(deliveries(20_000), BATCH_DELIVERIES_MAX);
    }
}

//! Frames on their way into sockets.
//!
//! A frame is encoded once and shared by all receivers. Deliveries are noted in the [`Batch`] (8 bytes each, no allocation
//! per receiver); then each session that got something is written once, with one gathered call. A large batch is written
//! over several turns, and what is published meanwhile is gathered with it. Only what the kernel does not take moves into an
//! [`Outbox`] of the session.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::rc::Rc;

use crate::net::tls::TlsSession;
use crate::session::Tick;

/// Frames gathered in one write at most.
pub const FRAMES_PER_WRITE_MAX: usize = 64;
/// Deliveries noted in a batch before it has to be written out whole: 4 MiB.
pub const BATCH_DELIVERIES_MAX: usize = 512 << 10;
/// Bytes of frames in a batch before it has to be written out whole.
pub const BATCH_FRAME_BYTES_MAX: usize = 16 << 20;
/// Deliveries and frames that an empty batch keeps room for.
const BATCH_ROOM_KEPT: usize = 4096;
/// Bytes encrypted ahead of what the kernel takes: a few records.
pub const SEALED_BYTES_MAX: usize = 64 << 10;

/// What a frame counts as when it has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A text message: counts as message and its payload as data.
    Message,
    /// A ping of Action Cable: its payload counts as data.
    Ping,
    /// A WebSocket control frame: counts as nothing.
    Control,
}

/// Encoded WebSocket bytes, shared; or the TLS records that carry such a frame to one client.
#[derive(Debug, Clone)]
pub struct Frame {
    pub bytes: Rc<[u8]>,
    pub kind: FrameKind,
    /// Bytes without frame header and encryption: what the counters count.
    payload_bytes: u32,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, kind: FrameKind) -> Self {
        Self {
            payload_bytes: payload_bytes(&bytes),
            bytes: bytes.into(),
            kind,
        }
    }

    /// Nothing to send, but a reason to flush: TLS has records of its own.
    pub fn flush_only() -> Self {
        Self::new(Vec::new(), FrameKind::Control)
    }

    /// The same frame in the records that carry it. They have a place in the client's order: none may be dropped.
    fn sealed(&self, records: Vec<u8>) -> Self {
        Self {
            bytes: records.into(),
            kind: self.kind,
            payload_bytes: self.payload_bytes,
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
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are written already.
    head_written: usize,
    /// Unsent bytes, the first frame's rest included.
    pending_bytes: usize,
    /// When the first frame must be through.
    pub deadline: Tick,
}

impl Outbox {
    /// Empty; what comes first must be through at `deadline`.
    pub fn due(deadline: Tick) -> Self {
        Self {
            deadline,
            ..Self::default()
        }
    }

    pub fn push(&mut self, frame: Frame) {
        self.pending_bytes += frame.bytes.len();
        self.frames.push_back(frame);
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Unsent frames that count as messages.
    pub fn messages(&self) -> usize {
        self.frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Message)
            .count()
    }

    /// Drops what has not been started. A frame that is half written has to be finished, or the client could not read on.
    pub fn clear_unstarted(&mut self) {
        self.frames.truncate(usize::from(self.head_written > 0));
        self.pending_bytes = self
            .frames
            .iter()
            .map(|frame| frame.bytes.len())
            .sum::<usize>()
            - self.head_written;
    }

    /// Writes as much as the kernel takes, with one call. Returns what went out.
    ///
    /// # Errors
    /// Those of writev(2) other than "would block", which is an empty [`Written`].
    pub fn write(&mut self, socket: &TcpStream) -> io::Result<Written> {
        let mut slices = [IoSlice::new(&[]); FRAMES_PER_WRITE_MAX];
        let mut count = 0;
        let mut offered = 0;
        for frame in self.frames.iter().take(FRAMES_PER_WRITE_MAX) {
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
        let mut left = self.head_written + bytes;
        while let Some(first) = self.frames.front() {
            if left < first.bytes.len() {
                break;
            }
            left -= first.bytes.len();
            written.count(first);
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
        if frame.kind != FrameKind::Control {
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
#[derive(Default)]
pub struct Batch {
    frames: Vec<Frame>,
    frame_bytes: usize,
    nodes: Vec<Node>,
    /// Slots that have deliveries, in the order in which they got the first one.
    dirty: VecDeque<u32>,
}

impl Batch {
    /// Adds a frame that deliveries can name.
    pub fn add_frame(&mut self, frame: Frame) -> u32 {
        self.frame_bytes += frame.bytes.len();
        self.frames.push(frame);
        self.frames.len() as u32 - 1
    }

    /// Notes that the session in `slot` gets `frame`.
    pub fn deliver(&mut self, slot: u32, list: &mut BatchList, frame: u32) {
        let node = self.nodes.len() as u32;
        self.nodes.push(Node { frame, next: NONE });
        if list.first == NONE {
            list.first = node;
            self.dirty.push_back(slot);
        } else {
            self.nodes[list.last as usize].next = node;
        }
        list.last = node;
    }

    /// True when the batch must be written out before more is noted.
    pub fn is_full(&self) -> bool {
        self.nodes.len() >= BATCH_DELIVERIES_MAX || self.frame_bytes >= BATCH_FRAME_BYTES_MAX
    }

    /// True when nobody waits for a write.
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty()
    }

    /// Slots that wait for a write.
    pub fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// The next slot to write. It may have been emptied, or used by another session, since it was noted.
    pub fn next_dirty(&mut self) -> Option<u32> {
        self.dirty.pop_front()
    }

    /// A session has not got all of its deliveries: it is written again, behind the others.
    pub fn put_back(&mut self, slot: u32) {
        self.dirty.push_back(slot);
    }

    /// Forgets the frames once nobody waits for a write; every list made of them is empty then.
    pub fn finish(&mut self) {
        debug_assert!(self.dirty.is_empty(), "everybody has been written");
        self.frames.clear();
        self.frames.shrink_to(BATCH_ROOM_KEPT);
        self.frame_bytes = 0;
        self.nodes.clear();
        self.nodes.shrink_to(BATCH_ROOM_KEPT);
        self.dirty.shrink_to(BATCH_ROOM_KEPT);
    }

    /// Moves a session's deliveries into its outbox.
    pub fn drain_into(&self, list: &mut BatchList, outbox: &mut Outbox) {
        for frame in self.frames_of(std::mem::take(list)) {
            outbox.push(frame.clone());
        }
    }

    /// Encrypts a session's deliveries into its outbox, behind the records that TLS itself has to send, until the outbox
    /// holds `bytes_max` or more. What is left stays in the list.
    pub fn seal_into(
        &self,
        list: &mut BatchList,
        tls: &mut TlsSession,
        outbox: &mut Outbox,
        bytes_max: usize,
    ) {
        let mut records = Vec::new();
        tls.take_output(&mut records);
        if !records.is_empty() {
            outbox.push(Frame::flush_only().sealed(std::mem::take(&mut records)));
        }
        while outbox.pending_bytes() < bytes_max
            && let Some(frame) = self.take_first(list)
        {
            if !frame.bytes.is_empty() {
                tls.encrypt(&frame.bytes, &mut records);
                outbox.push(frame.sealed(std::mem::take(&mut records)));
            }
        }
    }

    fn take_first(&self, list: &mut BatchList) -> Option<&Frame> {
        let node = self.nodes.get(list.first as usize)?;
        list.first = node.next;
        Some(&self.frames[node.frame as usize])
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
        (list.first == list.last).then(|| &self.frames[node.frame as usize])
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
            .for_each(|frame| outbox.push(frame.clone()));
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

    fn frames_of(&self, list: BatchList) -> impl Iterator<Item = &Frame> {
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
    use crate::wire::frame;

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
        let mut batch = Batch::default();
        let mut list = BatchList::default();
        for text in ["a", "bb", "ccc"] {
            let frame = batch.add_frame(message(text));
            batch.deliver(5, &mut list, frame);
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
        let mut batch = Batch::default();
        let mut list = BatchList::default();
        let texts: Vec<String> = (0..200).map(|index| format!("{index:0>65000}")).collect();
        for text in &texts {
            let frame = batch.add_frame(message(text));
            batch.deliver(0, &mut list, frame);
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
        outbox.push(message("first"));
        outbox.push(message("second"));
        let mut written = Written::default();
        outbox.consume(3, &mut written);
        outbox.clear_unstarted();
        assert_eq!((outbox.messages(), outbox.pending_bytes()), (1, 4));
        outbox.consume(4, &mut written);
        assert!(outbox.is_empty());
        outbox.push(message("third"));
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
}

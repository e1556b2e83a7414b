//! Frames on their way into sockets.
//!
//! A frame ([`frame`]) is encoded once and shared by all receivers. Deliveries are noted in the batch ([`batch`]: 8 bytes
//! each, no allocation per receiver). Then each session with deliveries is written once, with one gathered call. A large
//! batch is written over several turns, and publications that arrive meanwhile are added to it. Only what the kernel does
//! not take moves into the session's [`Outbox`].

pub mod batch;
pub mod frame;

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpStream;
use std::rc::Rc;

use self::frame::{Frame, FrameKind, Gathered};
use crate::mesh::ShardBudget;
use crate::net::tls::TlsSession;
use crate::session::Tick;

/// Bytes that are encrypted before the kernel takes them: a few records.
const SEALED_BYTES_MAX: usize = 64 << 10;

/// Frames that the kernel has not taken yet. A session has an outbox only while there are some.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Rc<Frame>>,
    /// Bytes of the first frame that have been written.
    head_written: usize,
    /// Unsent bytes, including the rest of the first frame.
    pending_bytes: usize,
    /// Bytes of all its frames with their overhead, including the written bytes of the first frame.
    held_bytes: usize,
    /// With TLS: the number of frames at the front that are encrypted, and their unsent bytes. Without TLS 0.
    sealed: usize,
    sealed_bytes: usize,
    /// Encrypted bytes of the first frame behind them.
    part_sealed: usize,
    /// By this time the kernel must have taken something.
    pub deadline: Tick,
    /// When the kernel last took something, or when the outbox began.
    pub progress: Tick,
}

impl Outbox {
    /// An empty outbox that begins at `now`. Some of its bytes must have gone out by `deadline`.
    pub fn due(now: Tick, deadline: Tick) -> Self {
        Self {
            deadline,
            progress: now,
            ..Self::default()
        }
    }

    pub fn push(&mut self, frame: Rc<Frame>) {
        self.pending_bytes += frame.len();
        self.held_bytes += frame.held_bytes();
        self.frames.push_back(frame);
    }

    /// Puts the head of an HTTP answer before everything that waits for it.
    pub fn push_head(&mut self, head: Frame, budget: &Rc<ShardBudget>) {
        debug_assert!(head.kind == FrameKind::Head && self.started() == 0);
        self.pending_bytes += head.len();
        self.held_bytes += head.held_bytes();
        self.frames.push_front(head.charged(budget));
    }

    /// The frames from the front on that have `bytes_max` together, or the first one if it is longer.
    pub fn first(&self, bytes_max: usize) -> Vec<Rc<Frame>> {
        let mut bytes = 0;
        let fits = |frame: &&Rc<Frame>| {
            bytes += frame.len();
            bytes == frame.len() || bytes <= bytes_max
        };
        self.frames.iter().take_while(fits).cloned().collect()
    }

    /// Drops so many frames at the front. They were sent on another way, so they count as written.
    pub fn drop_first(&mut self, frames: usize) -> Written {
        let frames = self.frames.iter().take(frames);
        let bytes = frames.map(|frame| frame.len()).sum();
        let mut written = Written {
            bytes,
            ..Written::default()
        };
        self.consume(bytes, &mut written);
        written
    }

    /// As [`Self::push`], but a pong replaces a pong that waits at the end and has not been started.
    fn push_or_replace(&mut self, frame: Rc<Frame>) {
        let waits = self.frames.len() > self.started();
        if frame.kind == FrameKind::Pong
            && let Some(last) = self.frames.back()
            && last.kind == FrameKind::Pong
            && waits
        {
            self.pending_bytes -= last.len();
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

    /// Memory of the frames behind the one that is being written. Source: `contract/websocket.md` §11.
    pub fn queued_bytes(&self) -> usize {
        let first = self.frames.front().map_or(0, |frame| frame.held_bytes());
        self.held_bytes - first
    }

    /// Bytes that the outbox takes in memory.
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

    /// Encrypts frames from the front, after the records that TLS itself has to send, until a few records wait for the
    /// socket. It stops there because encrypted bytes are a copy for this client alone and can no longer be dropped. A long
    /// frame is encrypted in parts.
    pub fn seal(&mut self, tls: &mut TlsSession, budget: &Rc<ShardBudget>) {
        let mut records = Vec::new();
        tls.take_output(&mut records);
        if !records.is_empty() {
            let frame = Frame::flush_only().sealed(std::mem::take(&mut records), true);
            self.insert_sealed(frame, budget);
        }
        while self.sealed_bytes < SEALED_BYTES_MAX
            && let Some(frame) = self.frames.get(self.sealed).cloned()
        {
            let part = encrypt_part(&frame, self.part_sealed, tls, &mut records);
            self.part_sealed += part;
            self.pending_bytes -= part;
            let is_last = self.part_sealed == frame.len();
            if is_last {
                self.frames.remove(self.sealed);
                self.held_bytes -= frame.held_bytes();
                self.part_sealed = 0;
            }
            let sealed = frame.sealed(std::mem::take(&mut records), is_last);
            self.insert_sealed(sealed, budget);
        }
    }

    /// Inserts records behind the encrypted frames that are there.
    fn insert_sealed(&mut self, frame: Frame, budget: &Rc<ShardBudget>) {
        self.pending_bytes += frame.len();
        self.held_bytes += frame.held_bytes();
        self.sealed_bytes += frame.len();
        self.frames.insert(self.sealed, frame.charged(budget));
        self.sealed += 1;
    }

    /// Frames at the front that must be sent completely. Without TLS this is a half-written frame, or the head of an answer:
    /// the client could not parse what follows it. With TLS these are all encrypted frames, also partly encrypted ones: the
    /// client could not decrypt what follows.
    fn started(&self) -> usize {
        let sealed = self.sealed + usize::from(self.part_sealed > 0);
        let first = self.frames.front();
        let is_head = first.is_some_and(|first| first.kind == FrameKind::Head);
        sealed.max(usize::from(self.head_written > 0 || is_head))
    }

    /// Drops the frames that have not been started.
    pub fn clear_unstarted(&mut self) {
        self.frames.truncate(self.started());
        self.pending_bytes = self.frames.iter().map(|frame| frame.len()).sum::<usize>()
            - self.head_written
            - self.part_sealed;
        self.held_bytes = self.frames.iter().map(|frame| frame.held_bytes()).sum();
    }

    /// Writes as much as the kernel takes, with one call. Returns what went out.
    ///
    /// # Errors
    /// Those of writev(2), except "would block", which is an empty [`Written`].
    pub fn write(&mut self, socket: &TcpStream) -> io::Result<Written> {
        if self.is_empty() {
            return Ok(Written::default());
        }
        let ready = match self.sealed {
            0 => self.frames.len(),
            sealed => sealed,
        };
        let mut gathered = Gathered::new();
        let mut frames = self.frames.iter().take(ready);
        let first = frames.next();
        if first.is_some_and(|first| gathered.add_from(first, self.head_written)) {
            frames
                .take_while(|frame| gathered.add(frame))
                .for_each(drop);
        }
        let bytes = write_slices(socket, gathered.slices())?;
        let mut written = Written {
            bytes,
            blocked: bytes < gathered.offered,
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
            if left < first.len() {
                break;
            }
            left -= first.len();
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
            self.payload_bytes += u64::from(frame.payload_bytes());
        }
    }
}

/// Encrypts at most [`SEALED_BYTES_MAX`] bytes of one piece of a frame, from `start` on. Returns how many.
fn encrypt_part(frame: &Frame, start: usize, tls: &mut TlsSession, records: &mut Vec<u8>) -> usize {
    let mut skip = start;
    for piece in frame.pieces() {
        if skip < piece.len() {
            let part = &piece[skip..piece.len().min(skip + SEALED_BYTES_MAX)];
            tls.encrypt(part, records);
            return part.len();
        }
        skip -= piece.len();
    }
    0
}

/// One system call; "would block" is 0 bytes.
#[inline]
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

#[cfg(test)]
mod tests;

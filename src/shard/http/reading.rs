//! What a client of the HTTP phase sends: heads, bodies, and until when they must have come.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::endpoints::Response;
use crate::net::Received;
use crate::shard::http::client::Client;
use crate::shard::http::refusals;
use crate::wire::http_body::{BodyFraming, ChunkedDecoder};
use crate::wire::http_head::{HeadLimits, HeadScanner, HttpError};
use crate::wire::http_request::RequestHead;

/// Time for a whole request head, counted from the connection or from the head's first byte.
/// Source: contract/websocket.md §1.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Room made for each read of a head.
pub(super) const HEAD_BUFFER_BYTES: usize = 2048;
/// Room made for a read at most.
pub(super) const READ_BYTES_MAX: usize = 64 << 10;
/// Heads beyond this are counted together, see [`LargeHeads`](crate::shard::http::listener::LargeHeads).
const LARGE_HEAD_BYTES: usize = 4 * HEAD_BUFFER_BYTES;

/// Why a head is not taken.
pub enum HeadRefusal {
    Bytes(HttpError),
    /// The process, or the share of those who have not said who they are, holds as much as it may.
    NoMemory,
}

impl From<HttpError> for HeadRefusal {
    fn from(error: HttpError) -> Self {
        Self::Bytes(error)
    }
}

/// How a read has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Something has come.
    Bytes,
    /// The client has closed, or its connection is broken.
    End,
    TooLate,
}

impl Client {
    /// The next head; `None` when the client has closed or was too slow (nothing is sent then).
    pub(super) async fn read_head(
        &mut self,
        first_byte_timeout: Duration,
    ) -> Result<Option<RequestHead>, HeadRefusal> {
        if self.input.is_empty() {
            // Who rests between requests holds no buffer.
            self.input = Vec::new();
            let deadline = Instant::now() + first_byte_timeout;
            let read = self.read_some(deadline, HEAD_BUFFER_BYTES).await;
            self.count_timeout(read);
            if read != Read::Bytes {
                return Ok(None);
            }
        }
        self.is_kept = false;
        self.pace.begin(self.shard.begin_request());
        let limits = HeadLimits {
            head_bytes_max: self.shard.config.server.head_bytes_max,
            ..HeadLimits::default()
        };
        let mut scanner = HeadScanner::default();
        if scanner.find_end(&self.input, &limits)?.is_none() {
            // In a box of its own: most heads come whole, and a task that waits for the first byte is to be small.
            let is_whole = Box::pin(self.read_rest_of_head(scanner, &limits)).await?;
            if !is_whole {
                return Ok(None);
            }
        }
        let Some((head, consumed)) = RequestHead::decode(&self.input, &limits)? else {
            return Err(HttpError::Malformed("the head ends too early").into());
        };
        // The head is a copy, which lives as long as its request.
        if !self.has_memory(self.input.capacity() + consumed) {
            return Err(HeadRefusal::NoMemory);
        }
        self.input.drain(..consumed);
        Ok(Some(head))
    }

    /// False: the client has closed or was too slow.
    async fn read_rest_of_head(
        &mut self,
        mut scanner: HeadScanner,
        limits: &HeadLimits,
    ) -> Result<bool, HeadRefusal> {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        let mut large = None;
        while scanner.find_end(&self.input, limits)?.is_none() {
            let room = self.room(limits.head_bytes_max);
            let bytes = self.capacity_with(room);
            if bytes > LARGE_HEAD_BYTES {
                // The old guard first: the head is counted once.
                large.take();
                large = self.rules.large_heads.admit(bytes);
                if large.is_none() {
                    refusals::too_many_large_heads(&self.shard, self.peer);
                    return Err(HeadRefusal::NoMemory);
                }
            }
            if !self.has_memory(bytes) {
                return Err(HeadRefusal::NoMemory);
            }
            let read = self.read_some(deadline, room).await;
            self.count_timeout(read);
            if read != Read::Bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Charges what the request holds, until it is over. False: the process has no more.
    pub(super) fn has_memory(&mut self, bytes: usize) -> bool {
        match &mut self.held {
            Some(held) => {
                let more = bytes.saturating_sub(held.bytes());
                more == 0 || held.grow(more)
            }
            None => {
                self.held = self.shard.budget.hold(bytes);
                self.held.is_some()
            }
        }
    }

    /// Room for the next read of an input that need not be longer than `length_max`.
    fn room(&self, length_max: usize) -> usize {
        let length = self.input.len();
        let left = length_max.saturating_sub(length).max(1);
        length.clamp(HEAD_BUFFER_BYTES, READ_BYTES_MAX).min(left)
    }

    /// What the input buffer will have when room has been made for a read.
    pub(super) fn capacity_with(&self, room: usize) -> usize {
        let (length, capacity) = (self.input.len(), self.input.capacity());
        if capacity - length >= room {
            capacity
        } else {
            (2 * capacity).max(length + room)
        }
    }

    pub(super) fn count_timeout(&self, read: Read) {
        if read == Read::TooLate {
            self.shard.counters().http_timeouts_total.add(1);
        }
    }

    /// Appends what arrives before `deadline`. A kept connection that rests between requests gives its place to a client
    /// that waits for one (`--max-conn`).
    pub(super) async fn read_some(&mut self, deadline: Instant, room: usize) -> Read {
        loop {
            let place = self.is_kept.then_some(&self.permit);
            let read = {
                let read = pin!(self.socket.read(&mut self.input, room));
                self.pace.wait(&self.shard, place, deadline, read).await
            };
            self.pace.let_others_run(&self.shard).await;
            return match read {
                // They come as fast as the client likes.
                Some(Ok(Received::Nothing)) if Instant::now() < deadline => continue,
                Some(Ok(Received::Nothing)) | None => Read::TooLate,
                Some(Ok(Received::Bytes)) => Read::Bytes,
                Some(Ok(Received::End)) => Read::End,
                Some(Err(error)) => self.broken(&error),
            };
        }
    }

    fn broken(&self, error: &io::Error) -> Read {
        if error.kind() == io::ErrorKind::InvalidData {
            self.shard.counters().tls_errors_total.add(1);
            tracing::debug!(context = "http", shard = self.shard.id, peer = %self.peer, %error, "closing after a TLS error");
        }
        Read::End
    }

    pub(super) fn no_memory(&self) -> Response {
        self.shard.counters().http_overload_total.add(1);
        Response::no_memory()
    }

    /// Throws away the body of a request as far as it has come together with its head. False: that was not all of it, and
    /// nobody knows where the next request begins.
    pub(super) fn skip_arrived_body(&mut self, head: &RequestHead) -> bool {
        let arrived = match head.body_framing() {
            Ok(BodyFraming::None) => Some(0),
            Ok(BodyFraming::Length(bytes)) => usize::try_from(bytes)
                .ok()
                .filter(|bytes| *bytes <= self.input.len()),
            Ok(BodyFraming::Chunked) => {
                let mut body = Vec::new();
                let decoded =
                    ChunkedDecoder::default().decode(&self.input, &mut body, self.input.len());
                decoded
                    .ok()
                    .and_then(|(consumed, done)| done.then_some(consumed))
            }
            Err(_) => None,
        };
        if let Some(bytes) = arrived {
            self.input.drain(..bytes);
        }
        arrived.is_some()
    }
}

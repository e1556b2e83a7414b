//! What a client of the HTTP phase sends: heads, bodies, and until when they must have come.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::endpoints::Response;
use crate::endpoints::broadcast;
use crate::net::Received;
use crate::shard::http::connection::{Client, HEAD_TIMEOUT};
use crate::shard::http::refusals;
use crate::wire::http_body::{BodyFraming, ChunkedDecoder};
use crate::wire::http_head::{HeadLimits, HeadScanner, HttpError};
use crate::wire::http_request::RequestHead;

/// Room made for each read of a head.
pub(super) const HEAD_BUFFER_BYTES: usize = 2048;
/// Heads beyond this are counted together, see [`LargeHeads`](crate::shard::http::listener::LargeHeads).
const LARGE_HEAD_BYTES: usize = 4 * HEAD_BUFFER_BYTES;
/// Room made for each read of a body.
const BODY_READ_BYTES: usize = 64 << 10;
/// Time in which some more of a request body must arrive.
const BODY_PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for any body, whatever its size; each part that has come earns more, see [`BODY_BYTES_PER_SEC_MIN`].
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The least rate of a body beyond [`BODY_GRACE`]. With it the largest body, 64 MiB, has 69 minutes at most. What is no data,
/// such as extensions and trailers of chunks, earns nothing.
const BODY_BYTES_PER_SEC_MIN: u64 = 16 << 10;
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
    fn has_memory(&mut self, bytes: usize) -> bool {
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
        length.clamp(HEAD_BUFFER_BYTES, BODY_READ_BYTES).min(left)
    }

    /// What the input buffer will have when room has been made for a read.
    fn capacity_with(&self, room: usize) -> usize {
        let (length, capacity) = (self.input.len(), self.input.capacity());
        if capacity - length >= room {
            capacity
        } else {
            (2 * capacity).max(length + room)
        }
    }

    fn count_timeout(&self, read: Read) {
        if read == Read::TooLate {
            self.shard.counters().http_timeouts_total.add(1);
        }
    }

    /// Appends what arrives before `deadline`. A kept connection that rests between requests gives its place to a client that
    /// waits for one (`--max-conn`).
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

    /// The whole body, or the answer that says why not.
    pub(super) async fn read_body(
        &mut self,
        head: &RequestHead,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Response> {
        match head.body_framing() {
            Err(_) => Err(broadcast::unreadable_body()),
            Ok(BodyFraming::None) => Ok(Vec::new()),
            Ok(BodyFraming::Length(bytes)) if bytes > bytes_max as u64 => {
                Err(broadcast::body_too_large())
            }
            Ok(BodyFraming::Length(bytes)) => self.read_sized_body(bytes as usize).await,
            Ok(BodyFraming::Chunked) => self.read_chunked_body(bytes_max).await,
        }
    }

    async fn read_sized_body(&mut self, bytes: usize) -> Result<Vec<u8>, Response> {
        let started = Instant::now();
        while self.input.len() < bytes {
            self.read_body_part(started, self.input.len(), 0).await?;
        }
        let rest = self.input.split_off(bytes);
        Ok(std::mem::replace(&mut self.input, rest))
    }

    async fn read_chunked_body(&mut self, bytes_max: usize) -> Result<Vec<u8>, Response> {
        let started = Instant::now();
        let mut decoder = ChunkedDecoder::default();
        let mut body = Vec::new();
        loop {
            // What is decoded next is at most what has come.
            let body_bytes = body.capacity().max(2 * (body.len() + self.input.len()));
            if !self.has_memory(self.input.capacity() + body_bytes) {
                return Err(self.no_memory());
            }
            let (consumed, done) = match decoder.decode(&self.input, &mut body, bytes_max) {
                Ok(progress) => progress,
                Err(HttpError::BodyTooLarge { .. }) => return Err(broadcast::body_too_large()),
                Err(_) => return Err(broadcast::unreadable_body()),
            };
            self.input.drain(..consumed);
            if done {
                return Ok(body);
            }
            self.read_body_part(started, body.len(), body.capacity())
                .await?;
        }
    }

    /// Some more of a body of which `data_bytes` have come, and which holds `body_bytes` beside the input.
    async fn read_body_part(
        &mut self,
        started: Instant,
        data_bytes: usize,
        body_bytes: usize,
    ) -> Result<(), Response> {
        let room = self.room(usize::MAX);
        if !self.has_memory(self.capacity_with(room) + body_bytes) {
            return Err(self.no_memory());
        }
        let deadline = body_deadline(started, data_bytes, Instant::now());
        let read = self.read_some(deadline, room).await;
        self.count_timeout(read);
        if read == Read::TooLate {
            refusals::slow_body(&self.shard, self.peer, data_bytes);
        }
        match read {
            Read::Bytes => Ok(()),
            Read::End | Read::TooLate => Err(broadcast::unreadable_body()),
        }
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

/// Until when the next part of a body must come.
fn body_deadline(started: Instant, data_bytes: usize, now: Instant) -> Instant {
    let earned = Duration::from_micros(data_bytes as u64 * 1_000_000 / BODY_BYTES_PER_SEC_MIN);
    (started + BODY_GRACE + earned).min(now + BODY_PROGRESS_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_a_grace_and_earns_time_by_its_data() {
        let started = Instant::now();
        let secs = Duration::from_secs;
        let check = |data_bytes: usize, at: u64, expected: u64| {
            let deadline = body_deadline(started, data_bytes, started + secs(at));
            assert_eq!(
                deadline,
                started + secs(expected),
                "{data_bytes} bytes at {at} s"
            );
        };
        check(0, 0, 10);
        // A byte every nine seconds: no time beyond the grace, less than a second of it in a minute.
        check(0, 9, 10);
        let one = body_deadline(started, 1, started + secs(9));
        assert!(one < started + secs(11));
        // Who is as fast as asked for always has ten seconds for the next part.
        check(16 << 10, 1, 11);
        check(60 * (16 << 10), 60, 70);
        // A large part that came early is no right to be silent.
        check(64 << 20, 5, 15);
        check(64 << 20, 4090, 4100);
        check(64 << 20, 4105, 4106);
    }
}

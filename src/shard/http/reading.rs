//! Reads what a client of the HTTP phase sends, and sets the deadlines for it: heads and bodies.

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
/// Buffer space made for each read of a head.
pub(super) const HEAD_BUFFER_BYTES: usize = 2048;
/// Buffer space made for one read at most.
pub(super) const READ_BYTES_MAX: usize = 64 << 10;
/// A request that holds no more may use the memory that is kept for requests.
const SMALL_REQUEST_BYTES_MAX: usize = 64 << 10;
/// Larger heads are counted together, see [`LargeHeads`](crate::shard::http::listener::LargeHeads).
const LARGE_HEAD_BYTES: usize = 4 * HEAD_BUFFER_BYTES;

/// Why a head is refused.
pub enum HeadRefusal {
    Bytes(HttpError),
    /// The process holds as much memory as it may, or clients that are not identified hold their share of it.
    NoMemory,
}

impl From<HttpError> for HeadRefusal {
    fn from(error: HttpError) -> Self {
        Self::Bytes(error)
    }
}

/// How a read has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadEnd {
    /// Bytes have arrived.
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
            // An idle keep-alive connection keeps no read buffer.
            self.input = Vec::new();
            let deadline = Instant::now() + first_byte_timeout;
            let read = self.read_some(deadline, HEAD_BUFFER_BYTES).await;
            self.count_timeout(read);
            if read != ReadEnd::Bytes {
                return Ok(None);
            }
        }
        self.is_kept = false;
        self.time.begin(self.shard.begin_request());
        let limits = HeadLimits {
            head_bytes_max: self.shard.config.server.head_bytes_max,
            ..HeadLimits::default()
        };
        let mut scanner = HeadScanner::default();
        if scanner.find_end(&self.input, &limits)?.is_none() {
            // Boxed: most heads arrive whole, and a task that waits for the first byte must stay small.
            let is_whole = Box::pin(self.read_rest_of_head(scanner, &limits)).await?;
            if !is_whole {
                return Ok(None);
            }
        }
        let Some((head, consumed)) = RequestHead::decode(&self.input, &limits)? else {
            return Err(HttpError::Malformed("the head ends too early").into());
        };
        // The parsed head is a copy, which lives as long as its request.
        if !self.has_memory(self.input.capacity() + consumed) {
            return Err(HeadRefusal::NoMemory);
        }
        self.input.drain(..consumed);
        Ok(Some(head))
    }

    /// Returns false when the client has closed or was too slow.
    async fn read_rest_of_head(
        &mut self,
        mut scanner: HeadScanner,
        limits: &HeadLimits,
    ) -> Result<bool, HeadRefusal> {
        let deadline = Instant::now() + HEAD_TIMEOUT;
        let mut large = None;
        while scanner.find_end(&self.input, limits)?.is_none() {
            let room = head_room(self.input.len(), limits.head_bytes_max);
            let bytes = capacity_with(&self.input, room);
            if bytes > LARGE_HEAD_BYTES {
                // The old guard is dropped first, so that the head is not counted twice.
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
            if read != ReadEnd::Bytes {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Charges the memory of the request until it is over. Returns false when the process has none left. A small request may
    /// use the memory that is kept for small requests.
    pub(super) fn has_memory(&mut self, bytes: usize) -> bool {
        let is_small = bytes <= SMALL_REQUEST_BYTES_MAX;
        let Some(held) = &mut self.held else {
            let budget = &self.shard.budget;
            self.held = match is_small {
                true => budget.hold_for_request(bytes),
                false => budget.hold(bytes),
            };
            return self.held.is_some();
        };
        let more = bytes.saturating_sub(held.bytes());
        match is_small {
            _ if more == 0 => true,
            true => held.grow_for_request(more),
            false => held.grow(more),
        }
    }

    pub(super) fn count_timeout(&self, read: ReadEnd) {
        if read == ReadEnd::TooLate {
            self.shard.counters().http_timeouts_total.add(1);
        }
    }

    /// Appends what arrives before `deadline`. A connection that is idle between requests gives its place to a client that
    /// waits for one (`--max-conn`).
    pub(super) async fn read_some(&mut self, deadline: Instant, room: usize) -> ReadEnd {
        loop {
            let place = self.is_kept.then_some(&self.permit);
            let read = {
                let read = pin!(self.socket.read(&mut self.input, room));
                self.time.wait(&self.shard, place, deadline, read).await
            };
            self.time.let_others_run(&self.shard).await;
            return match read {
                // TLS records without data. A client can send these at any rate.
                Some(Ok(Received::Nothing)) if Instant::now() < deadline => continue,
                Some(Ok(Received::Nothing)) | None => ReadEnd::TooLate,
                Some(Ok(Received::Bytes)) => ReadEnd::Bytes,
                Some(Ok(Received::End)) => ReadEnd::End,
                Some(Err(error)) => self.broken(&error),
            };
        }
    }

    fn broken(&self, error: &io::Error) -> ReadEnd {
        if error.kind() == io::ErrorKind::InvalidData {
            self.shard.counters().tls_errors_total.add(1);
            tracing::debug!(context = "http", shard = self.shard.id, peer = %self.peer, %error, "closing after a TLS error");
        }
        ReadEnd::End
    }

    pub(super) fn no_memory(&self) -> Response {
        self.shard.counters().http_overload_total.add(1);
        Response::no_memory()
    }

    /// Discards the request body that arrived together with its head. Returns false when that was not all of it: then it is
    /// unknown where the next request begins.
    pub(super) fn skip_arrived_body(&mut self, head: &RequestHead) -> bool {
        let arrived = arrived_body_bytes(head, &self.input);
        if let Some(bytes) = arrived {
            self.input.drain(..bytes);
        }
        arrived.is_some()
    }
}

/// Bytes of the body on the wire, if `input`, which follows the head, contains all of it.
fn arrived_body_bytes(head: &RequestHead, input: &[u8]) -> Option<usize> {
    match head.body_framing().ok()? {
        BodyFraming::None => Some(0),
        BodyFraming::Length(bytes) => {
            let bytes = usize::try_from(bytes).ok()?;
            (bytes <= input.len()).then_some(bytes)
        }
        BodyFraming::Chunked => {
            let mut body = Vec::new();
            let decoded = ChunkedDecoder::default().decode(input, &mut body, input.len());
            let (consumed, done) = decoded.ok()?;
            done.then_some(consumed)
        }
    }
}

/// Buffer space for the next read of a head of which `length` bytes have arrived. It doubles, so that a large head takes few
/// reads.
fn head_room(length: usize, length_max: usize) -> usize {
    let left = length_max.saturating_sub(length).max(1);
    length.clamp(HEAD_BUFFER_BYTES, READ_BYTES_MAX).min(left)
}

/// The capacity that `input` will have after space for a read is made. Memory is charged before it is allocated.
pub(super) fn capacity_with(input: &Vec<u8>, room: usize) -> usize {
    let (length, capacity) = (input.len(), input.capacity());
    if capacity - length >= room {
        capacity
    } else {
        (2 * capacity).max(length + room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_arrived_when_all_of_it_is_there() {
        fn check(fields: &str, input: &str, expected: Option<usize>) {
            let text = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
                .expect("a good head")
                .expect("a whole head");
            let arrived = arrived_body_bytes(&head, input.as_bytes());
            assert_eq!(arrived, expected, "{fields:?} {input:?}");
        }
        let next = "GET / HTTP/1.1\r\n";
        check("", next, Some(0));
        let three = "Content-Length: 3\r\n";
        check(three, "", None);
        check(three, "ab", None);
        check(three, "abc", Some(3));
        check(three, "abcGET", Some(3));
        check("Content-Length: 18446744073709551615\r\n", "abc", None);
        check("Content-Length: many\r\n", "abc", None);
        let chunked = "Transfer-Encoding: chunked\r\n";
        check(chunked, "", None);
        check(chunked, "3\r\nabc\r\n", None);
        check(chunked, "3\r\nabc\r\n0\r\n\r\nGET", Some(13));
        check(chunked, "no chunk\r\n", None);
        check(&format!("{three}{chunked}"), "abc", None);
    }

    #[test]
    fn a_head_gets_room_for_as_much_again_up_to_its_limit() {
        let check = |length: usize, expected: usize| {
            assert_eq!(head_room(length, 100_000), expected, "{length}");
        };
        check(0, HEAD_BUFFER_BYTES);
        check(HEAD_BUFFER_BYTES, HEAD_BUFFER_BYTES);
        check(10_000, 10_000);
        check(60_000, 40_000);
        check(99_999, 1);
        // A head at its limit is refused before the next read, because a read with no buffer space looks like the end of the
        // stream.
        check(100_000, 1);
        assert_eq!(head_room(100_000, 1 << 20), READ_BYTES_MAX);
    }

    #[test]
    fn the_capacity_that_is_charged_is_the_one_that_is_taken() {
        for (capacity, length, room) in [
            (0, 0, 2048),
            (2048, 2048, 2048),
            (4096, 2048, 2048),
            (4096, 2049, 2048),
            (2048, 100, 65_536),
            (100_000, 99_999, 2048),
        ] {
            let mut input = Vec::with_capacity(capacity);
            input.resize(length, 0);
            let charged = capacity_with(&input, room);
            input.reserve(room);
            assert_eq!(charged, input.capacity(), "{capacity} {length} {room}");
        }
    }
}

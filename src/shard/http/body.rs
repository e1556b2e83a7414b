//! Request bodies: read in parts of bounded size, with a deadline for the whole.

use std::time::{Duration, Instant};

use crate::endpoints::Response;
use crate::endpoints::broadcast;
use crate::shard::http::client::Client;
use crate::shard::http::reading::{HEAD_BUFFER_BYTES, READ_BYTES_MAX, ReadEnd, capacity_with};
use crate::shard::http::refusals;
use crate::wire::http_body::{BodyFraming, ChunkedDecoder};
use crate::wire::http_head::HttpError;
use crate::wire::http_request::RequestHead;

/// Time in which more of a request body must arrive.
const BODY_PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for any body, whatever its size. Each part that has arrived adds more, see [`BODY_BYTES_PER_SEC_MIN`].
const BODY_GRACE: Duration = Duration::from_secs(10);
/// The lowest rate accepted beyond [`BODY_GRACE`]. It gives the largest body, 64 MiB, 69 minutes at most. Bytes that are no
/// data, such as chunk extensions and trailers, add no time.
const BODY_BYTES_PER_SEC_MIN: u64 = 16 << 10;
/// A part of this size is complete. A longer buffer would be copied as it grows, which takes the shard's time.
const BODY_PART_BYTES: usize = 256 << 10;

/// A request body in the parts in which it came. The shard does not join a long one, because the copy would take too long.
#[derive(Debug, Default)]
pub struct Body {
    parts: Vec<Vec<u8>>,
    bytes: usize,
}

impl Body {
    fn push(&mut self, part: Vec<u8>) {
        self.bytes += part.len();
        self.parts.push(part);
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    /// The bytes it takes in memory.
    fn held_bytes(&self) -> usize {
        self.parts.iter().map(Vec::capacity).sum()
    }

    /// Joins the parts. A short body has a single part, which is not copied.
    pub fn into_bytes(mut self) -> Vec<u8> {
        match self.parts.len() {
            0 | 1 => self.parts.pop().unwrap_or_default(),
            _ => self.parts.concat(),
        }
    }
}

impl Client {
    /// Returns the whole body, or the answer that refuses it.
    pub(super) async fn read_body(
        &mut self,
        head: &RequestHead,
        bytes_max: usize,
    ) -> Result<Body, Response> {
        match head.body_framing() {
            Err(_) => Err(broadcast::unreadable_body()),
            Ok(BodyFraming::None) => Ok(Body::default()),
            Ok(BodyFraming::Length(bytes)) if bytes > bytes_max as u64 => {
                Err(broadcast::body_too_large())
            }
            Ok(BodyFraming::Length(bytes)) => self.read_sized_body(bytes as usize).await,
            Ok(BodyFraming::Chunked) => self.read_chunked_body(bytes_max).await,
        }
    }

    async fn read_sized_body(&mut self, bytes: usize) -> Result<Body, Response> {
        let started = Instant::now();
        let mut body = Body::default();
        loop {
            let missing = bytes - body.len();
            if self.input.len() >= missing {
                let rest = self.input.split_off(missing);
                body.push(std::mem::replace(&mut self.input, rest));
                return Ok(body);
            }
            if self.input.len() >= BODY_PART_BYTES {
                let room = BODY_PART_BYTES + READ_BYTES_MAX;
                let next = Vec::with_capacity((missing - self.input.len()).min(room));
                body.push(std::mem::replace(&mut self.input, next));
            }
            let arrived = body.len() + self.input.len();
            self.read_body_part(started, arrived, body.held_bytes())
                .await?;
        }
    }

    async fn read_chunked_body(&mut self, bytes_max: usize) -> Result<Body, Response> {
        let started = Instant::now();
        let mut decoder = ChunkedDecoder::default();
        let mut body = Body::default();
        let mut part = Vec::new();
        loop {
            // Decoding yields at most as many bytes as have arrived.
            let part_bytes = part.capacity().max(2 * (part.len() + self.input.len()));
            let held = self.input.capacity() + body.held_bytes() + part_bytes;
            if !self.has_memory(held) {
                return Err(self.no_memory());
            }
            let decoded = decoder.decode(&self.input, &mut part, bytes_max - body.len());
            let (consumed, done) = match decoded {
                Ok(progress) => progress,
                Err(HttpError::BodyTooLarge { .. }) => return Err(broadcast::body_too_large()),
                Err(_) => return Err(broadcast::unreadable_body()),
            };
            self.input.drain(..consumed);
            if done {
                body.push(part);
                return Ok(body);
            }
            if part.len() >= BODY_PART_BYTES {
                body.push(std::mem::take(&mut part));
            }
            let arrived = body.len() + part.len();
            self.read_body_part(started, arrived, body.held_bytes() + part.capacity())
                .await?;
        }
    }

    /// Reads more of a body of which `data_bytes` have arrived. It holds `body_bytes` in memory, the input not included.
    async fn read_body_part(
        &mut self,
        started: Instant,
        data_bytes: usize,
        body_bytes: usize,
    ) -> Result<(), Response> {
        let room = data_bytes.max(self.input.len());
        let room = room.clamp(HEAD_BUFFER_BYTES, READ_BYTES_MAX);
        if !self.has_memory(capacity_with(&self.input, room) + body_bytes) {
            return Err(self.no_memory());
        }
        let deadline = body_deadline(started, data_bytes, Instant::now());
        let read = self.read_some(deadline, room).await;
        self.count_timeout(read);
        if read == ReadEnd::TooLate {
            refusals::slow_body(&self.shard, self.peer, data_bytes);
        }
        match read {
            ReadEnd::Bytes => Ok(()),
            ReadEnd::End | ReadEnd::TooLate => Err(broadcast::unreadable_body()),
        }
    }
}

/// The deadline for the next part of a body.
fn body_deadline(started: Instant, data_bytes: usize, now: Instant) -> Instant {
    let earned = Duration::from_micros(data_bytes as u64 * 1_000_000 / BODY_BYTES_PER_SEC_MIN);
    (started + BODY_GRACE + earned).min(now + BODY_PROGRESS_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_many_parts_is_put_together_in_order() {
        let mut body = Body::default();
        assert_eq!((body.len(), Body::default().into_bytes()), (0, Vec::new()));
        for part in ["ab", "", "c"] {
            body.push(part.into());
        }
        assert_eq!((body.len(), body.into_bytes()), (3, b"abc".to_vec()));
    }

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
        // One byte every nine seconds earns next to nothing: less than a second a minute.
        check(0, 9, 10);
        let one = body_deadline(started, 1, started + secs(9));
        assert!(one < started + secs(11));
        // A client at the lowest rate always has ten seconds for the next part.
        check(16 << 10, 1, 11);
        check(60 * (16 << 10), 60, 70);
        // A large part that came early adds time, but ten seconds without data still end the request.
        check(64 << 20, 5, 15);
        check(64 << 20, 4090, 4100);
        check(64 << 20, 4105, 4106);
    }
}

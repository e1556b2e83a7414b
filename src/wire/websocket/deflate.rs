//! permessage-deflate without context takeover: every message is compressed on its own.
//!
//! Contains the compressor and the decompressor. It does not know frames; `extensions` does the negotiation. Called by
//! `message` (incoming) and the shard (outgoing).
//!
//! Source: RFC 7692, `contract/websocket.md` §3 and §11.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use thiserror::Error;

/// Bytes that the sender has removed from the end of a message.
const SYNC_TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];
/// [`SYNC_TAIL`] and an empty final block: with it, a complete message has an end, and a truncated one has none.
const FINISHING_TAIL: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];
/// Speed is preferred to size, as in the reference.
const LEVEL: u32 = 1;
/// Smallest growth of the output buffer.
const GROWTH_BYTES_MIN: usize = 512;

/// Compresses messages. After the first one it keeps about 300 KiB, so there is one per shard, never one per session.
#[derive(Debug, Default)]
pub struct Deflater {
    state: Option<Compress>,
}

impl Deflater {
    pub fn new() -> Self {
        Self::default()
    }

    /// The payload of a frame with RSV1 set. Nothing is remembered between calls.
    pub fn compress(&mut self, payload: &[u8]) -> Vec<u8> {
        let state = self
            .state
            .get_or_insert_with(|| Compress::new(Compression::new(LEVEL), false));
        state.reset();
        let mut out = Vec::with_capacity(compressed_bytes_max(payload.len()));
        let mut rest = payload;
        loop {
            let before = state.total_in();
            state
                .compress_vec(rest, &mut out, FlushCompress::Sync)
                .expect("raw deflate with a fresh state accepts any input");
            rest = &rest[(state.total_in() - before) as usize..];
            // Free room in `out` means that `out` has all output, that of the flush included.
            if rest.is_empty() && out.len() < out.capacity() {
                break;
            }
            out.reserve(GROWTH_BYTES_MIN);
        }
        if out.ends_with(&SYNC_TAIL) {
            out.truncate(out.len() - SYNC_TAIL.len());
        }
        out
    }
}

/// The worst case: deflate uses stored blocks, with 5 bytes for each 16 KiB or more, and a flush takes a few bytes.
fn compressed_bytes_max(payload_bytes: usize) -> usize {
    payload_bytes + payload_bytes / 2048 + 64
}

/// Why a compressed message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InflateError {
    #[error("not a whole deflate stream")]
    Invalid,
    #[error("more than {bytes_max} bytes when decompressed")]
    TooLong { bytes_max: u64 },
}

/// Decompresses messages. After the first one it keeps about 40 KiB, so there is one per shard, never one per session.
#[derive(Debug, Default)]
pub struct Inflater {
    state: Option<Decompress>,
}

impl Inflater {
    /// Replaces `out` with the decompressed payload of one message, at most `bytes_max` bytes (0 = no limit). Nothing is
    /// remembered between calls.
    ///
    /// `out` grows with the real output of the stream, to at most one byte more than `bytes_max`.
    ///
    /// # Errors
    /// See [`InflateError`]; then `out` contains a part of the message.
    pub fn inflate(
        &mut self,
        data: &[u8],
        bytes_max: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), InflateError> {
        let state = self.state.get_or_insert_with(|| Decompress::new(false));
        state.reset(false);
        out.clear();
        grow(out, data.len(), bytes_max);
        for part in [data, FINISHING_TAIL.as_slice()] {
            if inflate_part(state, part, bytes_max, out)? == Progress::Finished {
                return Ok(());
            }
        }
        Err(InflateError::Invalid)
    }
}

fn inflate_part(
    state: &mut Decompress,
    part: &[u8],
    bytes_max: u64,
    out: &mut Vec<u8>,
) -> Result<Progress, InflateError> {
    let mut rest = part;
    loop {
        if out.len() == out.capacity() {
            grow(out, out.len(), bytes_max);
        }
        let (consumed, produced) = (state.total_in(), out.len());
        let status = state
            .decompress_vec(rest, out, FlushDecompress::None)
            .map_err(|_| InflateError::Invalid)?;
        rest = &rest[(state.total_in() - consumed) as usize..];
        if bytes_max > 0 && out.len() as u64 > bytes_max {
            return Err(InflateError::TooLong { bytes_max });
        }
        if status == Status::StreamEnd {
            return Ok(Progress::Finished);
        }
        // `out` has free room, so the decoder stopped because its input ended.
        if out.len() < out.capacity() {
            if rest.is_empty() {
                return Ok(Progress::NeedsInput);
            }
            if state.total_in() == consumed && out.len() == produced {
                return Err(InflateError::Invalid);
            }
        }
    }
}

/// Makes room for about `bytes` more, but for no more than is needed to see that the message is too long.
fn grow(out: &mut Vec<u8>, bytes: usize, bytes_max: u64) {
    let wanted = bytes + GROWTH_BYTES_MIN;
    let useful = match bytes_max {
        0 => wanted,
        max => usize::try_from(max + 1 - out.len() as u64).unwrap_or(wanted),
    };
    out.reserve_exact(wanted.min(useful));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    NeedsInput,
    Finished,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_rfc_decompress() {
        fn check(data: &[u8], expected: &str) {
            let mut out = Vec::new();
            Inflater::default()
                .inflate(data, 100, &mut out)
                .expect(expected);
            assert_eq!(out, expected.as_bytes());
        }
        // The examples of RFC 7692 §7.2.3: one block, no compression, a final block, two blocks, and the empty message.
        check(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], "Hello");
        check(
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ],
            "Hello",
        );
        check(&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], "Hello");
        check(
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
            "Hello",
        );
        check(&[0x00], "");
    }

    #[test]
    fn broken_and_truncated_streams_are_refused() {
        fn check(data: &[u8]) {
            let got = Inflater::default().inflate(data, 100, &mut Vec::new());
            assert_eq!(got, Err(InflateError::Invalid), "{data:?}");
        }
        check(&[0xff, 0xff, 0xff]);
        check(&[0xf2, 0x48, 0xcd]);
        check(&[]);
    }

    #[test]
    fn the_limit_is_exact_and_stops_a_bomb_early() {
        let bomb = Deflater::new().compress(&vec![b'a'; 10_000_000]);
        assert!(bomb.len() < 100_000);
        let mut out = Vec::new();
        let got = Inflater::default().inflate(&bomb, 100_000, &mut out);
        assert_eq!(got, Err(InflateError::TooLong { bytes_max: 100_000 }));
        assert!(out.capacity() < 500_000, "{}", out.capacity());
        let mut inflater = Inflater::default();
        let ten = Deflater::new().compress(b"0123456789");
        assert_eq!(inflater.inflate(&ten, 10, &mut out), Ok(()));
        assert_eq!(
            inflater.inflate(&ten, 9, &mut out),
            Err(InflateError::TooLong { bytes_max: 9 })
        );
        assert_eq!(inflater.inflate(&ten, 0, &mut out), Ok(()));
    }

    #[test]
    fn messages_do_not_depend_on_earlier_ones() {
        let mut deflater = Deflater::new();
        let first = deflater.compress(b"the same text, the same text");
        assert_eq!(deflater.compress(b"the same text, the same text"), first);
        let mut out = Vec::new();
        Inflater::default().inflate(&first, 0, &mut out).unwrap();
        assert_eq!(out, b"the same text, the same text");
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_back(payload in proptest::collection::vec(any::<u8>(), 0..3000), times in 1usize..40) {
            let payload = payload.repeat(times);
            let compressed = Deflater::new().compress(&payload);
            let mut out = Vec::new();
            Inflater::default().inflate(&compressed, 0, &mut out).unwrap();
            prop_assert_eq!(out, payload);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Inflater::default().inflate(&data, 10_000, &mut Vec::new());
        }
    }
}

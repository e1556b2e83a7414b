//! Text as a JSON string.

/// Appends `text` to `out` as a JSON string, quotes included.
///
/// `<`, `>`, `&`, U+2028 and U+2029 become `\u…` escapes, so the bytes equal those of the reference.
///
/// An identifier is JSON text with an escape in nearly every word. So there is no branch for each escape: a table says what
/// is written for a byte, and only blocks without an escape are copied as they are.
///
/// sonic-rs is not used: it first reserves six bytes for each byte of the text, and the body of a call would keep this
/// memory until the call has ended.
///
/// Source: `contract/websocket.md` §5.1.
pub fn escape_into(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    let mut escaped = Escaped::default();
    escaped.push(QUOTE);
    while !rest.is_empty() {
        if !escaped.has_room() {
            escaped.move_to(out);
        }
        let taken = match rest.first_chunk() {
            Some(block) if is_plain(block) => escaped.copy(block),
            Some(block) => escaped.push_all(block, rest),
            None => escaped.push_all(rest, rest),
        };
        rest = &rest[taken..];
    }
    escaped.push(QUOTE);
    escaped.move_to(out);
}

/// Bytes that [`escape_into`] appends for `text`. It may be a few too many.
pub fn escaped_bytes(text: &str) -> usize {
    // A byte that may begin a line separator has two more behind it, which are replaced by six in all.
    let bytes = text.bytes().map(|byte| match OUTPUTS[usize::from(byte)] {
        output if output & MAY_BE_SEPARATOR != 0 => 4,
        output => output_bytes(output),
    });
    bytes.sum::<usize>() + 2
}

const BLOCK_BYTES: usize = 16;
/// The longest output: for one byte, or for a line separator.
const OUTPUT_BYTES: usize = 6;
/// Bytes that [`Escaped`] holds: a power of two.
const PIECE_BYTES: usize = 256;

/// A piece of the escaped text, written here first because `out` may have no room for the longest escapes.
struct Escaped {
    bytes: [u8; PIECE_BYTES + BLOCK_BYTES],
    len: usize,
}

impl Default for Escaped {
    fn default() -> Self {
        Self {
            bytes: [0; _],
            len: 0,
        }
    }
}

impl Escaped {
    /// Whether there is room for a block and the last quote.
    fn has_room(&self) -> bool {
        self.len < PIECE_BYTES - OUTPUT_BYTES * BLOCK_BYTES
    }

    fn move_to(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes[..self.len]);
        self.len = 0;
    }

    /// Writes the whole of `output` and counts its first bytes; the next output is written over the others.
    #[inline(always)]
    fn push(&mut self, output: u64) {
        self.write(output.to_le_bytes());
        self.len += output_bytes(output);
    }

    #[inline(always)]
    fn copy(&mut self, block: &[u8; BLOCK_BYTES]) -> usize {
        self.write(*block);
        self.len += BLOCK_BYTES;
        BLOCK_BYTES
    }

    #[inline(always)]
    fn write<const BYTES: usize>(&mut self, bytes: [u8; BYTES]) {
        debug_assert!(self.len < PIECE_BYTES, "has_room left enough");
        // The mask changes nothing. Without it the compiler checks each index, and the loop takes twice as long.
        let start = self.len & (PIECE_BYTES - 1);
        self.bytes[start..start + BYTES].copy_from_slice(&bytes);
    }

    /// Pushes `bytes`, with which `rest` begins. Returns how many bytes of `rest` were pushed.
    #[inline(always)]
    fn push_all(&mut self, bytes: &[u8], rest: &[u8]) -> usize {
        let len = self.len;
        let mut outputs = 0;
        for &byte in bytes {
            let output = OUTPUTS[usize::from(byte)];
            outputs |= output;
            self.push(output);
        }
        if outputs & MAY_BE_SEPARATOR == 0 {
            return bytes.len();
        }
        self.len = len;
        self.push_with_separators(bytes.len(), rest)
    }

    /// Pushes at least `bytes` bytes of `rest`, and the rest of a line separator that begins in them.
    #[cold]
    fn push_with_separators(&mut self, bytes: usize, rest: &[u8]) -> usize {
        let mut pushed = 0;
        while pushed < bytes {
            let (output, width) = match rest[pushed..] {
                [0xE2, 0x80, last @ (0xA8 | 0xA9), ..] => (
                    output([b'\\', b'u', b'2', b'0', b'2', last - 0xA8 + b'8']),
                    3,
                ),
                [byte, ..] => (OUTPUTS[usize::from(byte)], 1),
                [] => break,
            };
            self.push(output);
            pushed += width;
        }
        pushed
    }
}

/// Whether every byte of a block is written as it is. The compiler turns this form into vector instructions: each term is
/// zero for a byte that needs a check.
#[inline(always)]
fn is_plain(block: &[u8; BLOCK_BYTES]) -> bool {
    let lowest = block.iter().fold(u8::MAX, |lowest, &byte| {
        lowest
            .min(byte.saturating_sub(0x1F))
            .min(byte ^ b'\\')
            // `"` and `&` differ in one bit, and so do `<` and `>`.
            .min((byte | (b'"' ^ b'&')) ^ b'&')
            .min((byte | (b'<' ^ b'>')) ^ b'>')
            .min(byte ^ 0xE2)
    });
    lowest != 0
}

/// What is written for each byte: up to [`OUTPUT_BYTES`] bytes from the lowest on, and their number in the highest byte.
static OUTPUTS: [u64; 256] = {
    let mut outputs = [0; 256];
    let mut byte = 0;
    while byte < outputs.len() {
        outputs[byte] = output_of(byte as u8);
        byte += 1;
    }
    outputs
};
/// Of the characters that start with this byte, E2, only the two line separators need an escape.
const MAY_BE_SEPARATOR: u64 = 1 << 48;
/// The quotes around a string.
const QUOTE: u64 = output([b'"']);

const fn output_of(byte: u8) -> u64 {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' | b'\\' => output([b'\\', byte]),
        0x08 => output(*b"\\b"),
        0x0C => output(*b"\\f"),
        b'\n' => output(*b"\\n"),
        b'\r' => output(*b"\\r"),
        b'\t' => output(*b"\\t"),
        0..0x20 | b'<' | b'>' | b'&' => {
            let (high, low) = (HEX[byte as usize >> 4], HEX[byte as usize & 15]);
            output([b'\\', b'u', b'0', b'0', high, low])
        }
        0xE2 => output([byte]) | MAY_BE_SEPARATOR,
        _ => output([byte]),
    }
}

const fn output<const BYTES: usize>(text: [u8; BYTES]) -> u64 {
    assert!(BYTES <= OUTPUT_BYTES);
    let mut bytes = [0; 8];
    bytes[7] = BYTES as u8;
    let (start, _) = bytes.split_at_mut(BYTES);
    start.copy_from_slice(&text);
    u64::from_le_bytes(bytes)
}

const fn output_bytes(output: u64) -> usize {
    (output >> 56) as usize
}

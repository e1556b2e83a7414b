//! Text as a JSON string.

/// Appends `text` to `out` as a JSON string, quotes included.
///
/// `<`, `>`, `&`, U+2028 and U+2029 become `\u…` escapes, so the bytes equal those of the reference. One pass over the text.
/// The text between two escapes is copied at once, and a whole block of it is checked in one step.
///
/// sonic-rs is not used, although its writer is as fast: it first reserves six bytes for each byte of the text, and the body
/// of a call would keep this memory until the call has ended.
///
/// Source: `contract/websocket.md` §5.1.
pub fn escape_into(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    match bytes.len() < LONG_TEXT_BYTES {
        true => push_escaped(out, bytes, |_| 0),
        false => push_escaped(out, bytes, plain_blocks),
    }
    out.push(b'"');
}

/// Blocks are tried only for texts of at least this length.
const LONG_TEXT_BYTES: usize = 128;
const BLOCK_BYTES: usize = 32;

/// `skip` is called at the end of each block. It returns how many of the next bytes need no check.
#[inline(always)]
fn push_escaped(out: &mut Vec<u8>, bytes: &[u8], skip: impl Fn(&[u8]) -> usize) {
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if !NEEDS_ESCAPE[usize::from(bytes[at])] {
            at += 1;
            if at.is_multiple_of(BLOCK_BYTES) {
                at += skip(&bytes[at..]);
            }
            continue;
        }
        let width = match bytes[at] {
            // Of the characters that start with E2, only the two line separators need an escape.
            0xE2 => match bytes.get(at + 1..at + 3) {
                Some([0x80, 0xA8 | 0xA9]) => 3,
                _ => {
                    at += 3;
                    continue;
                }
            },
            _ => 1,
        };
        out.extend_from_slice(&bytes[copied..at]);
        push_escape(out, &bytes[at..at + width]);
        at += width;
        copied = at;
    }
    out.extend_from_slice(&bytes[copied..]);
}

/// Bytes that [`escape_into`] appends for `text`. It may be a few too many.
pub fn escaped_bytes(text: &str) -> usize {
    let escapes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' => 1,
        // The three bytes may be a line separator, whose escape has six bytes.
        0xE2 => 3,
        _ if NEEDS_ESCAPE[usize::from(byte)] => 5,
        _ => 0,
    });
    text.len() + 2 + escapes.sum::<usize>()
}

/// How many bytes at the start of `bytes` are in blocks without a byte that needs a check.
///
/// Not inlined: its registers would make the loop over short runs slower.
#[inline(never)]
fn plain_blocks(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
    BLOCK_BYTES * blocks.iter().take_while(|block| is_plain(block)).count()
}

/// The compiler turns this form into vector instructions: each term is zero for a byte that needs a check.
fn is_plain(block: &[u8; BLOCK_BYTES]) -> bool {
    let lowest = block.iter().fold(u8::MAX, |lowest, &byte| {
        lowest
            .min(byte.saturating_sub(0x1F))
            .min(byte ^ b'"')
            .min(byte ^ b'\\')
            .min(byte ^ b'<')
            .min(byte ^ b'>')
            .min(byte ^ b'&')
            .min(byte ^ 0xE2)
    });
    lowest != 0
}

/// Bytes that [`escape_into`] must check.
const NEEDS_ESCAPE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[b'<' as usize] = true;
    table[b'>' as usize] = true;
    table[b'&' as usize] = true;
    table[0xE2] = true;
    table
};

#[inline(always)]
fn push_escape(out: &mut Vec<u8>, character: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match *character {
        [b'"'] => out.extend_from_slice(b"\\\""),
        [b'\\'] => out.extend_from_slice(b"\\\\"),
        [0x08] => out.extend_from_slice(b"\\b"),
        [0x0C] => out.extend_from_slice(b"\\f"),
        [b'\n'] => out.extend_from_slice(b"\\n"),
        [b'\r'] => out.extend_from_slice(b"\\r"),
        [b'\t'] => out.extend_from_slice(b"\\t"),
        [byte] => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
        [.., 0xA8] => out.extend_from_slice(b"\\u2028"),
        _ => out.extend_from_slice(b"\\u2029"),
    }
}

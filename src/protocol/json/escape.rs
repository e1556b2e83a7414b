//! Text as a JSON string.

/// Appends `text` to `out` as a JSON string, quotes included.
///
/// `<`, `>`, `&`, U+2028 and U+2029 become `\u…` escapes, so the bytes equal those of the reference. One pass; text
/// between two escapes is copied as a run.
///
/// Source: `contract/websocket.md` §5.1.
pub fn escape_into(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    out.reserve(bytes.len() + 2);
    out.push(b'"');
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if !NEEDS_ESCAPE[usize::from(bytes[at])] {
            at += 1;
            continue;
        }
        let width = match bytes[at] {
            // Of the characters that start with E2 only the two line separators need an escape.
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
    out.push(b'"');
}

/// Bytes that [`escape_into`] appends for `text`, or a few more.
pub fn escaped_bytes(text: &str) -> usize {
    let escapes = text.bytes().map(|byte| match byte {
        b'"' | b'\\' => 1,
        // Of three bytes that may be a line separator, six are made.
        0xE2 => 3,
        _ if NEEDS_ESCAPE[usize::from(byte)] => 5,
        _ => 0,
    });
    text.len() + 2 + escapes.sum::<usize>()
}

/// Bytes that [`escape_into`] must look at.
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

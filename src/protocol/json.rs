//! JSON text: escaping, validity, and a pull reader that does not recurse while it skips.
//!
//! This file has the rules that all other codecs of this folder and `auth` share. It knows no message.
//!
//! No ready-made decoder is used, because untrusted clients write most of this text. sonic-rs 0.5 skips unknown values by
//! recursion without a limit, so a megabyte of `[` overflows the stack and ends the process. serde_json stops at 128 levels
//! and refuses documents that the reference accepts. This reader skips without recursion and tolerates what the reference
//! tolerates: invalid UTF-8 and lone surrogates are replaced.
//!
//! Source: `contract/websocket.md` §5.1 and §6, `contract/broadcast.md` §5, RFC 8259.

mod escape;

use std::borrow::Cow;
use std::fmt;

use thiserror::Error;

pub use escape::{escape_into, escaped_bytes};

/// Containers that may be open at the same time; a text that nests deeper is refused as invalid.
///
/// Source: `contract/broadcast.md` §5 (the reference's decoder has this limit).
pub const NESTING_MAX: usize = 10_000;

/// Whether `text` is one complete JSON value with nothing but whitespace around it.
///
/// Checks the grammar and [`NESTING_MAX`]; uses no stack for nesting. UTF-8 inside strings is not checked.
pub fn is_valid_json(text: impl AsRef<[u8]>) -> bool {
    let mut reader = Reader::new(text.as_ref());
    reader.skip_value().is_ok() && reader.finish().is_ok()
}

/// The decoded string when all of `json` is one JSON string; `None` for anything else.
pub fn decode_string(json: &[u8]) -> Option<String> {
    let mut reader = Reader::new(json);
    let text = reader.string().ok()?.into_owned();
    reader.finish().ok().map(|()| text)
}

/// `bytes` as text, with U+FFFD in place of each invalid UTF-8 sequence. It borrows when nothing had to be replaced.
pub fn lossy_text(bytes: &[u8]) -> Cow<'_, str> {
    match simdutf8::basic::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => String::from_utf8_lossy(bytes),
    }
}

/// Why a text could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JsonError {
    /// The text breaks the grammar at byte `at`.
    #[error("not JSON at byte {at}: expected {expected}")]
    Syntax { expected: &'static str, at: usize },
    /// The grammar is correct, but another kind of value is expected here.
    #[error("expected {expected}, found {found} at byte {at}")]
    WrongKind {
        expected: &'static str,
        found: JsonKind,
        at: usize,
    },
    /// More than [`NESTING_MAX`] containers are open at byte `at`.
    #[error("expected at most {NESTING_MAX} nested containers, found one more at byte {at}")]
    TooDeep { at: usize },
}

/// The kinds of JSON values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonKind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JsonKind::Null => "null",
            JsonKind::Boolean => "a boolean",
            JsonKind::Number => "a number",
            JsonKind::String => "a string",
            JsonKind::Array => "an array",
            JsonKind::Object => "an object",
        })
    }
}

/// Reads one JSON text from front to back.
///
/// Each method starts at the next value (whitespace is skipped) and leaves the reader after it. After an error the position
/// of the reader has no meaning.
pub(crate) struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    /// Containers opened by [`Reader::object`] and [`Reader::array`].
    depth: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self {
            input,
            at: 0,
            depth: 0,
        }
    }

    /// The kind of the next value, judged by its first byte.
    pub(crate) fn kind(&mut self) -> Result<JsonKind, JsonError> {
        self.skip_whitespace();
        match self.input.get(self.at) {
            Some(b'{') => Ok(JsonKind::Object),
            Some(b'[') => Ok(JsonKind::Array),
            Some(b'"') => Ok(JsonKind::String),
            Some(b'-' | b'0'..=b'9') => Ok(JsonKind::Number),
            Some(b't' | b'f') => Ok(JsonKind::Boolean),
            Some(b'n') => Ok(JsonKind::Null),
            _ => Err(self.syntax("a value")),
        }
    }

    /// If the next value is `null`, reads it and returns true.
    pub(crate) fn take_null(&mut self) -> Result<bool, JsonError> {
        if self.kind()? != JsonKind::Null {
            return Ok(false);
        }
        self.literal("null")?;
        Ok(true)
    }

    /// If the next value is `false`, reads it and returns true.
    pub(crate) fn take_false(&mut self) -> Result<bool, JsonError> {
        if self.kind()? != JsonKind::Boolean || self.input[self.at] != b'f' {
            return Ok(false);
        }
        self.literal("false")?;
        Ok(true)
    }

    pub(crate) fn boolean(&mut self) -> Result<bool, JsonError> {
        self.expect_kind(JsonKind::Boolean, "a boolean")?;
        let value = self.input[self.at] == b't';
        self.literal(if value { "true" } else { "false" })?;
        Ok(value)
    }

    /// The text of a number, exactly as written.
    pub(crate) fn number(&mut self) -> Result<&'a str, JsonError> {
        self.expect_kind(JsonKind::Number, "a number")?;
        let start = self.at;
        self.scan_number()?;
        // The grammar of numbers is ASCII, so this cannot fail. An error is returned anyway, because it is safer than a
        // panic.
        str::from_utf8(&self.input[start..self.at]).map_err(|_| JsonError::Syntax {
            expected: "a number",
            at: start,
        })
    }

    /// A number without fraction or exponent that fits `i64`.
    pub(crate) fn signed(&mut self) -> Result<i64, JsonError> {
        self.whole_number("a whole number")
    }

    /// A number without sign, fraction or exponent that fits `u64`.
    pub(crate) fn unsigned(&mut self) -> Result<u64, JsonError> {
        self.whole_number("a whole number, zero or more")
    }

    /// A string, unescaped; borrowed when it has no escape and no invalid UTF-8.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.expect_kind(JsonKind::String, "a string")?;
        self.at += 1;
        let start = self.at;
        self.at += plain_run(&self.input[start..]);
        let body = &self.input[start..self.at];
        if self.take_here(b'"') {
            return Ok(lossy_text(body));
        }
        self.escaped_string(body).map(Cow::Owned)
    }

    /// The text of any value, exactly as written, without the whitespace around it.
    pub(crate) fn raw_value(&mut self) -> Result<&'a [u8], JsonError> {
        self.skip_whitespace();
        let start = self.at;
        self.skip_value()?;
        Ok(&self.input[start..self.at])
    }

    /// Reads an object; `member` gets each name and must read the value after it.
    pub(crate) fn object<E: From<JsonError>>(
        &mut self,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect_kind(JsonKind::Object, "an object")?;
        self.open()?;
        if !self.take(b'}') {
            loop {
                let name = self.name()?;
                member(self, &name)?;
                if !self.take(b',') {
                    break;
                }
            }
            self.require(b'}', "`,` or `}`")?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an array; `element` must read one value each time it is called.
    pub(crate) fn array<E: From<JsonError>>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.expect_kind(JsonKind::Array, "an array")?;
        self.open()?;
        if !self.take(b']') {
            loop {
                element(self)?;
                if !self.take(b',') {
                    break;
                }
            }
            self.require(b']', "`,` or `]`")?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads any value, checks its grammar and drops it. The open containers are recorded in a bit stack, not on the call
    /// stack.
    pub(crate) fn skip_value(&mut self) -> Result<(), JsonError> {
        let mut open = OpenContainers::default();
        loop {
            self.skip_start(&mut open)?;
            if self.skip_ends(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Checks that only whitespace is left.
    pub(crate) fn finish(&mut self) -> Result<(), JsonError> {
        self.skip_whitespace();
        if self.at == self.input.len() {
            Ok(())
        } else {
            Err(self.syntax("the end of the text"))
        }
    }

    /// Reads scalars and empty containers whole. Opens containers until it has read one of these.
    fn skip_start(&mut self, open: &mut OpenContainers) -> Result<(), JsonError> {
        loop {
            let container = match self.kind()? {
                JsonKind::Null => return self.literal("null"),
                JsonKind::Boolean => return self.boolean().map(drop),
                JsonKind::Number => return self.scan_number(),
                JsonKind::String => return self.skip_string(),
                JsonKind::Array => Container::Array,
                JsonKind::Object => Container::Object,
            };
            if self.depth + open.depth >= NESTING_MAX {
                return Err(JsonError::TooDeep { at: self.at });
            }
            self.at += 1;
            if self.take(container.closing()) {
                return Ok(());
            }
            open.push(container);
            if container == Container::Object {
                self.skip_name()?;
            }
        }
    }

    /// Closes the containers that end here. `true` when no container is open any more, `false` when another value follows.
    fn skip_ends(&mut self, open: &mut OpenContainers) -> Result<bool, JsonError> {
        while let Some(container) = open.last() {
            if self.take(b',') {
                if container == Container::Object {
                    self.skip_name()?;
                }
                return Ok(false);
            }
            self.require(container.closing(), "`,` or the end of the container")?;
            open.pop();
        }
        Ok(true)
    }

    fn open(&mut self) -> Result<(), JsonError> {
        if self.depth >= NESTING_MAX {
            return Err(JsonError::TooDeep { at: self.at });
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn name(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.skip_whitespace();
        if self.input.get(self.at) != Some(&b'"') {
            return Err(self.syntax("a member name"));
        }
        let name = self.string()?;
        self.require(b':', "`:`")?;
        Ok(name)
    }

    fn skip_name(&mut self) -> Result<(), JsonError> {
        self.skip_whitespace();
        if self.input.get(self.at) != Some(&b'"') {
            return Err(self.syntax("a member name"));
        }
        self.skip_string()?;
        self.require(b':', "`:`")
    }

    fn whole_number<N: std::str::FromStr>(
        &mut self,
        expected: &'static str,
    ) -> Result<N, JsonError> {
        let text = self.number()?;
        let at = self.at - text.len();
        text.parse().map_err(|_| JsonError::WrongKind {
            expected,
            found: JsonKind::Number,
            at,
        })
    }

    fn expect_kind(&mut self, wanted: JsonKind, expected: &'static str) -> Result<(), JsonError> {
        let found = self.kind()?;
        if found == wanted {
            Ok(())
        } else {
            Err(JsonError::WrongKind {
                expected,
                found,
                at: self.at,
            })
        }
    }

    fn literal(&mut self, word: &'static str) -> Result<(), JsonError> {
        if !self.input[self.at..].starts_with(word.as_bytes()) {
            return Err(self.syntax("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    /// Reads the rest of a string that has an escape. `start` is the plain part before it; the result is `start` and the
    /// rest, unescaped in one pass.
    fn escaped_string(&mut self, start: &[u8]) -> Result<String, JsonError> {
        let left = self.input.len() - self.at;
        let mut text = Vec::with_capacity(start.len() + left.min(UNESCAPED_BYTES_FIRST));
        text.extend_from_slice(start);
        while self.is_in_string()? {
            self.unescape(&mut text)?;
            // In text that was escaped twice one escape often follows another, so there is no plain run to look for.
            if self.input.get(self.at) != Some(&b'\\') {
                let run = plain_run(&self.input[self.at..]);
                text.extend_from_slice(&self.input[self.at..self.at + run]);
                self.at += run;
            }
        }
        self.at += 1;
        Ok(match String::from_utf8(text) {
            Ok(text) => text,
            Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned(),
        })
    }

    /// Checks a string from its opening quote.
    fn skip_string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        self.at += plain_run(&self.input[self.at..]);
        while self.is_in_string()? {
            self.scan_escape()?;
            if self.input.get(self.at) != Some(&b'\\') {
                self.at += plain_run(&self.input[self.at..]);
            }
        }
        self.at += 1;
        Ok(())
    }

    /// To be called after a plain run: `true` before an escape, `false` before the closing quote.
    fn is_in_string(&self) -> Result<bool, JsonError> {
        match self.input.get(self.at) {
            Some(b'"') => Ok(false),
            Some(b'\\') => Ok(true),
            Some(_) => Err(self.syntax("an escaped control character")),
            None => Err(self.syntax("the end of a string")),
        }
    }

    /// Reads one escape and appends the character that it stands for.
    fn unescape(&mut self, text: &mut Vec<u8>) -> Result<(), JsonError> {
        if let Some(&letter) = self.input.get(self.at + 1)
            && let meaning @ 1.. = ESCAPES[usize::from(letter)]
        {
            text.push(meaning);
            self.at += 2;
            return Ok(());
        }
        let character = self.unicode_escape()?;
        text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    /// Reads `\uXXXX`, two of them for a surrogate pair. A lone surrogate becomes U+FFFD.
    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let first = self.utf16_unit()?;
        if let Some(character) = char::from_u32(u32::from(first)) {
            return Ok(character);
        }
        let behind_first = self.at;
        if self.input[behind_first..].starts_with(b"\\u") {
            let second = self.utf16_unit()?;
            if let Some(Ok(character)) = char::decode_utf16([first, second]).next() {
                return Ok(character);
            }
            self.at = behind_first;
        }
        Ok(char::REPLACEMENT_CHARACTER)
    }

    /// Reads the four digits of a `\u` escape.
    fn utf16_unit(&mut self) -> Result<u16, JsonError> {
        self.scan_escape()?;
        let digits = &self.input[self.at - 4..self.at];
        Ok(digits.iter().fold(0, |value, &digit| {
            let nibble = char::from(digit).to_digit(16).unwrap_or_default();
            value << 4 | nibble as u16
        }))
    }

    /// Inlined by order, because a third of the characters of a text that was escaped twice are escapes.
    #[inline(always)]
    fn scan_escape(&mut self) -> Result<(), JsonError> {
        match self.input.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => match self.input.get(self.at + 2..self.at + 6) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => self.at += 6,
                _ => return Err(self.syntax("four hexadecimal digits")),
            },
            _ => return Err(self.syntax("a known escape")),
        }
        Ok(())
    }

    fn scan_number(&mut self) -> Result<(), JsonError> {
        self.take_here(b'-');
        if !self.take_here(b'0') {
            self.scan_digits()?;
        }
        if self.take_here(b'.') {
            self.scan_digits()?;
        }
        if self.take_here(b'e') || self.take_here(b'E') {
            if !self.take_here(b'+') {
                self.take_here(b'-');
            }
            self.scan_digits()?;
        }
        Ok(())
    }

    fn scan_digits(&mut self) -> Result<(), JsonError> {
        let count = self.input[self.at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if count == 0 {
            return Err(self.syntax("a digit"));
        }
        self.at += count;
        Ok(())
    }

    fn require(&mut self, byte: u8, expected: &'static str) -> Result<(), JsonError> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.syntax(expected))
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip_whitespace();
        self.take_here(byte)
    }

    fn take_here(&mut self, byte: u8) -> bool {
        let found = self.input.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.input.get(self.at) {
            self.at += 1;
        }
    }

    fn syntax(&self, expected: &'static str) -> JsonError {
        JsonError::Syntax {
            expected,
            at: self.at,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

impl Container {
    fn closing(self) -> u8 {
        match self {
            Container::Array => b']',
            Container::Object => b'}',
        }
    }
}

/// The open containers, one bit each. The innermost 64 are in `recent`, so usual texts need no allocation.
#[derive(Default)]
struct OpenContainers {
    depth: usize,
    recent: u64,
    older: Vec<u64>,
}

impl OpenContainers {
    fn push(&mut self, container: Container) {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.older.push(self.recent);
        }
        self.recent = self.recent << 1 | u64::from(container == Container::Object);
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.recent >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.recent = self
                .older
                .pop()
                .expect("push stored a full word at this depth");
        }
    }

    fn last(&self) -> Option<Container> {
        match (self.depth, self.recent & 1) {
            (0, _) => None,
            (_, 1) => Some(Container::Object),
            _ => Some(Container::Array),
        }
    }
}

/// The character that the letter after a backslash stands for; 0 for `u` and for letters without a meaning.
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table[b'/' as usize] = b'/';
    table[b'b' as usize] = 0x08;
    table[b'f' as usize] = 0x0C;
    table[b'n' as usize] = b'\n';
    table[b'r' as usize] = b'\r';
    table[b't' as usize] = b'\t';
    table
};

/// Largest first allocation for an unescaped string; a longer string makes it grow. The length is not known in advance, and
/// the rest of the text may be a long batch, so it is no measure.
const UNESCAPED_BYTES_FIRST: usize = 4096;

/// How many bytes at the start of `bytes` are neither a quote nor a backslash nor a control character.
///
/// It goes word by word, because most runs are short. After [`SHORT_RUN_BYTES`] it goes by blocks where it can: most bytes
/// of a publication are in long `data` strings.
fn plain_run(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk::<8>() {
        if let Some(run) = plain_run_in_word(*word) {
            return at + run;
        }
        at += word.len();
        if at == SHORT_RUN_BYTES {
            at += plain_blocks(&bytes[at..]);
        }
    }
    at + plain_run_in_tail(&bytes[at..])
}

/// See [`plain_run`]. A multiple of the word size.
const SHORT_RUN_BYTES: usize = 32;

/// How many bytes at the start of `bytes` are in blocks of plain bytes only.
///
/// Not inlined: its registers would make the loops over short runs slower.
#[inline(never)]
fn plain_blocks(bytes: &[u8]) -> usize {
    let (blocks, _) = bytes.as_chunks::<32>();
    32 * blocks.iter().take_while(|block| is_plain(block)).count()
}

/// The compiler turns this form into vector instructions: each term is zero for a byte that is not plain.
fn is_plain(block: &[u8; 32]) -> bool {
    let lowest = block.iter().fold(u8::MAX, |lowest, &byte| {
        lowest
            .min(byte.saturating_sub(0x1F))
            .min(byte ^ b'"')
            .min(byte ^ b'\\')
    });
    lowest != 0
}

/// How many bytes of `word` come before one that is not plain; `None` when all are plain.
///
/// Each of the three tests marks the lowest byte correctly. Carries can only mark wrong bytes above it.
fn plain_run_in_word(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGHS: u64 = ONES << 7;
    let word = u64::from_le_bytes(word);
    let quote = word ^ (ONES * 0x22);
    let backslash = word ^ (ONES * 0x5C);
    let marked = (quote.wrapping_sub(ONES) & !quote)
        | (backslash.wrapping_sub(ONES) & !backslash)
        | (word.wrapping_sub(ONES * 0x20) & !word);
    let marked = marked & HIGHS;
    (marked != 0).then(|| (marked.trailing_zeros() / 8) as usize)
}

fn plain_run_in_tail(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
        .count()
}

#[cfg(test)]
mod tests;

//! The format of one record: fields are collected as `tracing` hands them over, then put behind the header.
//!
//! Every value is cut here, so that callers of the log need not do it: nothing that a client, a peer or the app sends can
//! make a long line. Pure, called by `log` alone. Source: `contract/operations.md` §8.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Level;
use tracing::field::{Field, Visit};

use super::{beginning, level_names};
use crate::os::local_time::{LocalTime, local_time};

/// The part of a record before the attributes, without the message.
pub struct Header<'a> {
    pub now: SystemTime,
    pub level: Level,
    pub node_id: &'a str,
}

impl Header<'_> {
    fn time(&self) -> (LocalTime, Duration) {
        let since_epoch = self.now.duration_since(UNIX_EPOCH).unwrap_or_default();
        (
            local_time(i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)),
            since_epoch,
        )
    }
}

/// Bytes of an attribute that a record shows.
const VALUE_BYTES_MAX: usize = 512;

/// Bytes of a message that a record shows. Callers cut foreign text in a message to a shorter length; this is room for an
/// operator's own lists.
const MESSAGE_BYTES_MAX: usize = 2048;

/// After this many bytes of attributes the other attributes are left out. The limit on each value is not enough, because
/// escapes make a value up to six times as long.
const ATTRIBUTES_BYTES_MAX: usize = 4096;

/// A text that takes at most `bytes_max` bytes and counts the rest, so that a value of megabytes is never copied.
struct Clipped {
    text: String,
    bytes_max: usize,
    left_out: usize,
}

/// The text of `value` cut to `bytes_max` bytes, with `...(<bytes cut>)` where something is missing, as in the reference.
pub fn clipped(value: fmt::Arguments<'_>, bytes_max: usize) -> String {
    let mut clipped = Clipped {
        text: String::new(),
        bytes_max,
        left_out: 0,
    };
    // If the value's `fmt` fails, the record is still written with what came before.
    let _shown = clipped.write_fmt(value);
    if clipped.left_out > 0 {
        write_to(&mut clipped.text, format_args!("...({})", clipped.left_out));
    }
    clipped.text
}

fn bytes_max_of(field: &Field) -> usize {
    match field.name() {
        MESSAGE => MESSAGE_BYTES_MAX,
        _ => VALUE_BYTES_MAX,
    }
}

/// Copies the text only when it is too long.
fn clipped_text<'a>(field: &Field, value: &'a str) -> Cow<'a, str> {
    let bytes_max = bytes_max_of(field);
    if value.len() <= bytes_max {
        return Cow::Borrowed(value);
    }
    Cow::Owned(clipped(format_args!("{value}"), bytes_max))
}

impl Write for Clipped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes_max - self.text.len();
        let shown = match self.left_out {
            0 if text.len() <= room => text,
            0 => beginning(text, room),
            _ => "",
        };
        self.text.push_str(shown);
        self.left_out += text.len() - shown.len();
        Ok(())
    }
}

/// The field that `tracing` uses for the text of a record.
const MESSAGE: &str = "message";
/// Left out when empty, as in the reference.
const CONTEXT: &str = "context";

const FAINT: &str = "\x1b[2m";
const RESET: &str = "\x1b[0m";

/// `2026-11-23 16:23:49.045 INF Starting nodeid=2Tbzkw context=rpc key="a value"`.
pub struct TextRecord {
    message: String,
    /// The attributes, each after a space.
    attributes: String,
    colours: bool,
}

impl TextRecord {
    pub fn new(colours: bool) -> Self {
        Self {
            message: String::new(),
            attributes: String::new(),
            colours,
        }
    }

    /// The whole line with its newline.
    pub fn line(self, header: &Header<'_>) -> Vec<u8> {
        let (time, since_epoch) = header.time();
        let (_, level) = level_names(header.level);
        let LocalTime {
            year,
            month,
            day,
            hour,
            minute,
            second,
            ..
        } = time;
        let stamp = format!(
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}",
            since_epoch.subsec_millis()
        );
        let mut line = String::with_capacity(64 + self.message.len() + self.attributes.len());
        match (self.colours, level_colour(header.level)) {
            (true, Some(colour)) => write_to(
                &mut line,
                format_args!("{FAINT}{stamp}{RESET} {colour}{level}{RESET} "),
            ),
            (true, None) => write_to(&mut line, format_args!("{FAINT}{stamp}{RESET} {level} ")),
            (false, _) => write_to(&mut line, format_args!("{stamp} {level} ")),
        }
        line.push_str(&self.message);
        push_text_attribute(&mut line, self.colours, "nodeid", header.node_id);
        line.push_str(&self.attributes);
        line.push('\n');
        line.into_bytes()
    }

    pub fn push_message(&mut self, message: &str) {
        push_message(&mut self.message, message);
    }

    /// Not cut: numbers are always the server's own.
    pub fn push_number(&mut self, name: &str, number: i64) {
        push_text_attribute(
            &mut self.attributes,
            self.colours,
            name,
            &number.to_string(),
        );
    }

    fn push(&mut self, field: &Field, value: &str) {
        match field.name() {
            MESSAGE => self.push_message(value),
            CONTEXT if value.is_empty() => {}
            _ if self.attributes.len() >= ATTRIBUTES_BYTES_MAX => {}
            key => push_text_attribute(&mut self.attributes, self.colours, key, value),
        }
    }
}

impl Visit for TextRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push(field, &clipped_text(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // `tracing` also passes numbers, booleans and `%` values here; their debug form is the right text.
        self.push(
            field,
            &clipped(format_args!("{value:?}"), bytes_max_of(field)),
        );
    }
}

fn level_colour(level: Level) -> Option<&'static str> {
    match level {
        Level::ERROR => Some("\x1b[91m"),
        Level::WARN => Some("\x1b[93m"),
        Level::INFO => Some("\x1b[92m"),
        Level::DEBUG | Level::TRACE => None,
    }
}

/// The text of a record is not quoted, but a line end in it is escaped: it must not start a line that looks like a record.
fn push_message(out: &mut String, message: &str) {
    for c in message.chars() {
        if c.is_control() {
            push_escaped(out, c);
        } else {
            out.push(c);
        }
    }
}

fn push_text_attribute(out: &mut String, colours: bool, key: &str, value: &str) {
    if colours {
        write_to(out, format_args!(" {FAINT}{key}={RESET}"));
    } else {
        write_to(out, format_args!(" {key}="));
    }
    if needs_quotes(value) {
        push_quoted(out, value)
    } else {
        out.push_str(value)
    }
}

fn needs_quotes(value: &str) -> bool {
    value.is_empty()
        || value
            .chars()
            .any(|c| matches!(c, ' ' | '=' | '"') || !is_printable(c))
}

/// Close enough to Go's `unicode.IsPrint`: Rust's debug form escapes the characters that have no glyph.
fn is_printable(c: char) -> bool {
    match c {
        ' ' => true,
        _ if c.is_ascii() => c.is_ascii_graphic(),
        _ => !c.is_whitespace() && !c.is_control() && c.escape_debug().len() == 1,
    }
}

/// Go's `strconv.Quote`.
fn push_quoted(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        push_escaped(out, c);
    }
    out.push('"');
}

fn push_escaped(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0c' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0b' => out.push_str("\\v"),
        _ if is_printable(c) => out.push(c),
        _ if c.is_ascii() => write_to(out, format_args!("\\x{:02x}", u32::from(c))),
        _ if u32::from(c) <= 0xffff => write_to(out, format_args!("\\u{:04x}", u32::from(c))),
        _ => write_to(out, format_args!("\\U{:08x}", u32::from(c))),
    }
}

/// `{"time":"…","level":"INFO","msg":"…","nodeid":"…","context":"rpc"}`; dots in names become nested objects.
#[derive(Default)]
pub struct JsonRecord {
    message: String,
    /// The attributes, each after a comma.
    attributes: String,
    /// The names of the objects that are still open at the end of `attributes`.
    groups: Vec<&'static str>,
}

impl JsonRecord {
    /// The whole line with its newline.
    pub fn line(mut self, header: &Header<'_>) -> Vec<u8> {
        self.enter_groups(&[]);
        let (level, _) = level_names(header.level);
        let mut line = String::with_capacity(128 + self.message.len() + self.attributes.len());
        line.push_str("{\"time\":\"");
        push_rfc3339(&mut line, header);
        write_to(&mut line, format_args!("\",\"level\":\"{level}\",\"msg\":"));
        push_json_text(&mut line, &self.message);
        line.push_str(",\"nodeid\":");
        push_json_text(&mut line, header.node_id);
        line.push_str(&self.attributes);
        line.push_str("}\n");
        line.into_bytes()
    }

    pub fn push_message(&mut self, message: &str) {
        self.message.push_str(message);
    }

    /// Not cut: numbers are always the server's own.
    pub fn push_number(&mut self, name: &str, number: i64) {
        self.push_key(name);
        write_to(&mut self.attributes, format_args!("{number}"));
    }

    /// Writes the key of `field` and returns the buffer for its value.
    fn place(&mut self, field: &Field) -> &mut String {
        let mut path: Vec<&'static str> = field.name().split('.').collect();
        let key = path.pop().unwrap_or_default();
        self.enter_groups(&path);
        self.push_key(key);
        &mut self.attributes
    }

    /// Closes and opens objects until exactly the objects of `path` are open.
    fn enter_groups(&mut self, path: &[&'static str]) {
        let common = self
            .groups
            .iter()
            .zip(path)
            .take_while(|(open, wanted)| open == wanted)
            .count();
        for _ in common..self.groups.len() {
            self.attributes.push('}');
        }
        self.groups.truncate(common);
        for &name in &path[common..] {
            self.push_key(name);
            self.attributes.push('{');
            self.groups.push(name);
        }
    }

    fn push_key(&mut self, key: &str) {
        if !self.attributes.ends_with('{') {
            self.attributes.push(',');
        }
        push_json_text(&mut self.attributes, key);
        self.attributes.push(':');
    }

    fn push_text(&mut self, field: &Field, value: &str) {
        match field.name() {
            MESSAGE => self.push_message(value),
            CONTEXT if value.is_empty() => {}
            _ if self.attributes.len() >= ATTRIBUTES_BYTES_MAX => {}
            _ => push_json_text(self.place(field), value),
        }
    }
}

impl Visit for JsonRecord {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.push_text(field, &clipped_text(field, value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        write_to(self.place(field), format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        write_to(self.place(field), format_args!("{value}"));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        write_to(self.place(field), format_args!("{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            write_to(self.place(field), format_args!("{value}"));
        } else {
            // JSON has no NaN and no infinity.
            push_json_text(self.place(field), &value.to_string());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_text(
            field,
            &clipped(format_args!("{value:?}"), bytes_max_of(field)),
        );
    }
}

/// RFC 3339 with the local offset; the fraction has as many digits as it needs, up to nanoseconds.
fn push_rfc3339(out: &mut String, header: &Header<'_>) {
    let (time, since_epoch) = header.time();
    let LocalTime {
        year,
        month,
        day,
        hour,
        minute,
        second,
        offset_secs,
    } = time;
    write_to(
        out,
        format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"),
    );
    let nanoseconds = format!("{:09}", since_epoch.subsec_nanos());
    let digits = nanoseconds.trim_end_matches('0');
    if !digits.is_empty() {
        write_to(out, format_args!(".{digits}"));
    }
    if offset_secs == 0 {
        out.push('Z');
    } else {
        let sign = if offset_secs < 0 { '-' } else { '+' };
        let minutes = offset_secs.unsigned_abs() / 60;
        write_to(
            out,
            format_args!("{sign}{:02}:{:02}", minutes / 60, minutes % 60),
        );
    }
}

fn push_json_text(out: &mut String, value: &str) {
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            // JSON allows these two, but JavaScript treats them as line ends; the reference escapes them too.
            '\u{2028}' | '\u{2029}' | '\0'..='\x1f' => {
                write_to(out, format_args!("\\u{:04x}", u32::from(c)))
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

fn write_to(out: &mut String, arguments: fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("a String takes all");
}

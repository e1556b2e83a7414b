//! The log: records on stdout in the reference's `text` and `json` formats, one line each.
//!
//! Owns the `tracing` subscriber of the process. The rest of the code calls `tracing::info!(context = "rpc", "…")` and never
//! formats a record itself. Pure layers do not log at all. `main` calls [`init`] once. The thread that logs makes the record
//! and another thread writes it (`queue`), so a slow reader of the log delays no caller. Every value and every line has a
//! maximum length, whatever its origin (`record`).
//! Source: `contract/operations.md` §8.

mod queue;
pub mod recent;
mod record;
mod sparse;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fmt, panic, thread};

use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

pub use sparse::{Admitted, SPARSE_INTERVAL, Sparse};

use crate::config::{LogConfig, LogFormat, LogLevel};
use crate::os::local_time;
use crate::os::stdio::{self, Stream};
use queue::{Loss, Queue};
use record::{Header, JsonRecord, TextRecord};

/// Bytes of a payload that a record shows.
const PAYLOAD_SHOWN_BYTES_MAX: usize = 100;

/// How long the process waits at its end for the last records to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Small, because the writer makes few and shallow calls.
const WRITER_STACK_BYTES: usize = 128 * 1024;

/// The records that are not yet written to stdout.
static STDOUT: Queue = Queue::new();

/// Installs the log of the process. Must be called once.
///
/// # Errors
/// There is no descriptor or no thread for the log.
pub fn init(config: &LogConfig, node_id: &str) -> io::Result<()> {
    // Read here, because otherwise the first record of a shard would wait for this file.
    local_time::read_zone();
    let log = Log {
        level: match config.level {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
        },
        lines: Arc::new(Lines {
            format: config.format,
            colours: io::stdout().is_terminal(),
            node_id: node_id.to_owned(),
        }),
    };
    let (stdout, lines) = (stdio::open(Stream::Stdout)?, Arc::clone(&log.lines));
    thread::Builder::new()
        .name("log".to_owned())
        .stack_size(WRITER_STACK_BYTES)
        .spawn(move || {
            STDOUT.write_all(stdout, |count, loss| {
                lines.of_loss(SystemTime::now(), count, loss)
            })
        })?;
    tracing::subscriber::set_global_default(log).ok();
    flush_before_panics_end();
    Ok(())
}

/// Returns when all records so far are written, or after a second when nobody reads them. Must be called before the process
/// ends.
pub fn flush() {
    STDOUT.flush(FLUSH_TIMEOUT);
}

/// Records that were lost, because stdout was too slow or the write failed.
pub fn dropped_records() -> u64 {
    STDOUT.dropped_total()
}

/// A release build aborts after the hook. The records from before the panic explain it, so they are written first.
fn flush_before_panics_end() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        flush();
    }));
}

/// A payload as records show it: the first 100 bytes and how many were left out, `...(<bytes cut>)`.
pub fn cut(payload: &str) -> String {
    if payload.len() <= PAYLOAD_SHOWN_BYTES_MAX {
        return payload.to_owned();
    }
    let shown = beginning(payload, PAYLOAD_SHOWN_BYTES_MAX);
    format!("{shown}...({})", payload.len() - shown.len())
}

/// The same for bytes that may not be UTF-8.
pub fn cut_bytes(payload: &[u8]) -> String {
    if payload.len() <= PAYLOAD_SHOWN_BYTES_MAX {
        return String::from_utf8_lossy(payload).into_owned();
    }
    let is_within_a_character = |at: &usize| payload[*at] & 0b1100_0000 == 0b1000_0000;
    let end = (PAYLOAD_SHOWN_BYTES_MAX - 3..=PAYLOAD_SHOWN_BYTES_MAX)
        .rev()
        .find(|at| !is_within_a_character(at))
        .unwrap_or(PAYLOAD_SHOWN_BYTES_MAX);
    let (shown, rest) = payload.split_at(end);
    format!("{}...({})", String::from_utf8_lossy(shown), rest.len())
}

/// A duration as records show it: `10ms`, `1.5s`.
pub fn in_words(duration: Duration) -> impl fmt::Display {
    InWords(duration)
}

struct InWords(Duration);

impl fmt::Display for InWords {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Duration` is one of few types whose debug form is meant for readers.
        write!(formatter, "{:?}", self.0)
    }
}

/// At most `bytes_max` bytes of a text, with an ellipsis where something was left out.
pub fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", beginning(text, bytes_max))
}

/// The longest beginning of `text` within `bytes_max` bytes that ends between two characters.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .expect("0 is always a boundary");
    &text[..end]
}

/// Writes an INFO record without a message whose attributes are these numbers. Their names are known only at run time, and
/// `tracing`'s macros need them at compile time.
pub fn numbers<'a>(mut numbers: impl Iterator<Item = (&'a str, i64)>) {
    tracing::dispatcher::get_default(|dispatch| {
        if let Some(log) = dispatch.downcast_ref::<Log>()
            && log.level >= LevelFilter::INFO
        {
            let now = SystemTime::now();
            STDOUT.push(&log.lines.of_numbers(now, Level::INFO, "", &mut numbers));
        }
    });
}

/// The subscriber. It ignores spans: nothing here uses them, and events alone need no bookkeeping.
struct Log {
    level: LevelFilter,
    lines: Arc<Lines>,
}

/// The format of the records.
struct Lines {
    format: LogFormat,
    /// ANSI colours; only for terminals.
    colours: bool,
    node_id: String,
}

impl Lines {
    fn of_event(&self, now: SystemTime, event: &Event<'_>) -> Vec<u8> {
        let header = self.header(now, *event.metadata().level());
        match self.format {
            LogFormat::Text => {
                let mut record = TextRecord::new(self.colours);
                event.record(&mut record);
                record.line(&header)
            }
            LogFormat::Json => {
                let mut record = JsonRecord::default();
                event.record(&mut record);
                record.line(&header)
            }
        }
    }

    fn of_numbers<'a>(
        &self,
        now: SystemTime,
        level: Level,
        message: &str,
        numbers: impl Iterator<Item = (&'a str, i64)>,
    ) -> Vec<u8> {
        let header = self.header(now, level);
        match self.format {
            LogFormat::Text => {
                let mut record = TextRecord::new(self.colours);
                record.push_message(message);
                numbers.for_each(|(name, number)| record.push_number(name, number));
                record.line(&header)
            }
            LogFormat::Json => {
                let mut record = JsonRecord::default();
                record.push_message(message);
                numbers.for_each(|(name, number)| record.push_number(name, number));
                record.line(&header)
            }
        }
    }

    /// The record that takes the place of the missing ones.
    fn of_loss(&self, now: SystemTime, count: u64, loss: &Loss) -> Vec<u8> {
        let message = match loss {
            Loss::Full => {
                "log records were dropped here: stdout was not read in time; log less, or read it faster".to_owned()
            }
            Loss::Failed(error) => format!("log records were dropped here: stdout could not be written: {error}"),
        };
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.of_numbers(
            now,
            Level::WARN,
            &message,
            [("left_out", count)].into_iter(),
        )
    }

    fn header(&self, now: SystemTime, level: Level) -> Header<'_> {
        Header {
            now,
            level,
            node_id: &self.node_id,
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level.max(recent::level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.max(recent::level()))
    }

    fn event(&self, event: &Event<'_>) {
        let now = SystemTime::now();
        recent::keep(now, event);
        if *event.metadata().level() <= self.level {
            STDOUT.push(&self.lines.of_event(now, event));
        }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// JSON records show the long name, text records show three letters.
fn level_names(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("ERROR", "ERR"),
        Level::WARN => ("WARN", "WRN"),
        Level::INFO => ("INFO", "INF"),
        Level::DEBUG | Level::TRACE => ("DEBUG", "DBG"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;

    /// Collects lines, written at a fixed time, instead of printing them.
    struct Collector {
        log: Log,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl Subscriber for Collector {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            self.log.enabled(metadata)
        }
        fn event(&self, event: &Event<'_>) {
            let now = UNIX_EPOCH + Duration::new(1_795_451_029, 45_600_700);
            let line = String::from_utf8(self.log.lines.of_event(now, event));
            let line = line.expect("records are UTF-8");
            self.lines
                .lock()
                .expect("no test panics while holding it")
                .push(line);
        }
        fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
            self.log.new_span(attributes)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    fn lines(
        level: LevelFilter,
        format: LogFormat,
        colours: bool,
        work: impl FnOnce(),
    ) -> Vec<String> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let log = Log {
            level,
            lines: Arc::new(Lines {
                format,
                colours,
                node_id: "2Tbzkw".to_owned(),
            }),
        };
        tracing::subscriber::with_default(
            Collector {
                log,
                lines: lines.clone(),
            },
            work,
        );
        lines
            .lock()
            .expect("no test panics while holding it")
            .clone()
    }

    /// Records without the time, which depends on the machine's zone.
    fn text(work: impl FnOnce()) -> String {
        let line = lines(LevelFilter::DEBUG, LogFormat::Text, false, work).concat();
        line["2026-11-23 16:23:49.045 ".len()..].to_owned()
    }

    fn json(work: impl FnOnce()) -> String {
        let line = lines(LevelFilter::DEBUG, LogFormat::Json, false, work).concat();
        let (time, rest) =
            line.split_at(line.find(",\"level\"").expect("a level follows the time"));
        assert!(
            time.starts_with("{\"time\":\"2026-11-2") && time.contains(".0456007"),
            "{time}"
        );
        rest.to_owned()
    }

    #[test]
    fn text_records_look_like_those_of_the_reference() {
        assert_eq!(
            text(|| tracing::info!(context = "rpc", key = "value", "Starting {}", 1)),
            "INF Starting 1 nodeid=2Tbzkw context=rpc key=value\n"
        );
        assert_eq!(
            text(|| tracing::warn!(num = 3, ok = true, "")),
            "WRN  nodeid=2Tbzkw num=3 ok=true\n"
        );
        assert_eq!(text(|| tracing::debug!("x")), "DBG x nodeid=2Tbzkw\n");
        assert_eq!(
            text(|| tracing::error!(context = "", "x")),
            "ERR x nodeid=2Tbzkw\n"
        );
        assert_eq!(
            text(|| tracing::info!(data.command = "subscribe", data.n = 1_u64, "x")),
            "INF x nodeid=2Tbzkw data.command=subscribe data.n=1\n"
        );
        let error = std::io::Error::other("went wrong");
        assert_eq!(
            text(|| tracing::info!(error = %error, "x")),
            "INF x nodeid=2Tbzkw error=\"went wrong\"\n"
        );
    }

    #[test]
    fn text_values_are_quoted_where_go_would() {
        let check = |value: &str, expected: &str| {
            assert_eq!(
                text(|| tracing::info!(v = value, "x")),
                format!("INF x nodeid=2Tbzkw v={expected}\n")
            );
        };
        check("plain", "plain");
        check("http://a/b?c", "http://a/b?c");
        check("back\\slash", "back\\slash");
        check("café/1", "café/1");
        check("", "\"\"");
        check("a b", "\"a b\"");
        check("a=b", "\"a=b\"");
        check("{\"a\":1}", "\"{\\\"a\\\":1}\"");
        check("a\nb\t\u{1}", "\"a\\nb\\t\\x01\"");
        check("a\\ b", "\"a\\\\ b\"");
        check("\u{a0}", "\"\\u00a0\"");
        check("\u{200b}", "\"\\u200b\"");
    }

    #[test]
    fn json_records_look_like_those_of_the_reference() {
        assert_eq!(
            json(|| tracing::info!(context = "rpc", n = -1, ok = false, "Say \"hi\"")),
            ",\"level\":\"INFO\",\"msg\":\"Say \\\"hi\\\"\",\"nodeid\":\"2Tbzkw\",\"context\":\"rpc\",\"n\":-1,\"ok\":false}\n"
        );
        assert_eq!(
            json(|| tracing::warn!(a = "\n\u{1}é", "")),
            ",\"level\":\"WARN\",\"msg\":\"\",\"nodeid\":\"2Tbzkw\",\"a\":\"\\n\\u0001é\"}\n"
        );
        assert_eq!(
            json(|| tracing::info!(
                a = 1,
                data.command = "s",
                data.deep.x = 1,
                data.y = 2,
                b = 1.5,
                "x"
            )),
            ",\"level\":\"INFO\",\"msg\":\"x\",\"nodeid\":\"2Tbzkw\",\"a\":1,\
             \"data\":{\"command\":\"s\",\"deep\":{\"x\":1},\"y\":2},\"b\":1.5}\n"
        );
    }

    #[test]
    fn records_of_numbers_have_no_message() {
        let check = |format: LogFormat, expected: &str| {
            let lines = Lines {
                format,
                colours: false,
                node_id: "lDkNav".to_owned(),
            };
            let numbers = [("clients_num", 1), ("rpc_call_total", 3)];
            let line = lines.of_numbers(UNIX_EPOCH, Level::INFO, "", numbers.into_iter());
            let line = String::from_utf8(line).expect("records are UTF-8");
            assert!(line.ends_with(expected), "{line}");
        };
        check(
            LogFormat::Text,
            " INF  nodeid=lDkNav clients_num=1 rpc_call_total=3\n",
        );
        check(
            LogFormat::Json,
            ",\"level\":\"INFO\",\"msg\":\"\",\"nodeid\":\"lDkNav\",\"clients_num\":1,\"rpc_call_total\":3}\n",
        );
    }

    #[test]
    fn json_records_are_valid_json() {
        let line = lines(LevelFilter::INFO, LogFormat::Json, false, || {
            tracing::info!(a.b = "\u{7f}\u{2028}\"\\", a.c.d = f64::NAN, e = ?Some("x"), "m");
        })
        .concat();
        let value: serde_json::Value = serde_json::from_str(&line).expect("one JSON object");
        assert_eq!(value["a"]["b"], "\u{7f}\u{2028}\"\\");
        assert_eq!(value["e"], "Some(\"x\")");
    }

    #[test]
    fn records_below_the_level_are_not_written() {
        let written = lines(LevelFilter::WARN, LogFormat::Text, false, || {
            tracing::debug!("no");
            tracing::info!("no");
            tracing::warn!("yes");
            tracing::error!("yes");
        });
        assert_eq!(written.len(), 2);
    }

    #[test]
    fn terminals_get_colours() {
        let line = lines(LevelFilter::INFO, LogFormat::Text, true, || {
            tracing::warn!(a = 1, "x")
        })
        .concat();
        assert!(
            line.contains("\u{1b}[93mWRN\u{1b}[0m x \u{1b}[2mnodeid=\u{1b}[0m2Tbzkw"),
            "{line:?}"
        );
    }

    #[test]
    fn texts_are_shortened_between_characters() {
        assert_eq!(shortened("short", 5), "short");
        assert_eq!(shortened("aé", 2), "a…");
        assert_eq!(shortened("é", 0), "…");
    }

    #[test]
    fn long_values_are_cut_wherever_they_stand() {
        let long = "x".repeat(1_000_000);
        let shown = format!("{}...(999488)", "x".repeat(512));
        assert_eq!(
            text(|| tracing::info!(v = long, "m")),
            format!("INF m nodeid=2Tbzkw v={shown}\n")
        );
        assert_eq!(
            text(|| tracing::info!(v = %long, "m")),
            format!("INF m nodeid=2Tbzkw v={shown}\n")
        );
        assert_eq!(
            text(|| tracing::info!("m {long}")),
            format!("INF m {}...(997954) nodeid=2Tbzkw\n", "x".repeat(2046))
        );
        let attribute = format!(",\"v\":\"{shown}\"}}\n");
        assert!(json(|| tracing::info!(v = long, "m")).ends_with(&attribute));
        assert!(json(|| tracing::info!(v = %long, "m")).ends_with(&attribute));
    }

    #[test]
    fn no_record_is_a_long_line() {
        const LINE_BYTES_MAX: usize = 24 * 1024;
        let worst = "\u{1}".repeat(5_000);
        let say = || {
            let w = &*worst;
            tracing::info!(
                a = w,
                b.a = w,
                b.b = w,
                c = w,
                d = w,
                e = w,
                f = w,
                g = w,
                h = w,
                "{worst}"
            );
        };
        let (text, json) = (text(say), json(say));
        assert!(
            text.len() < LINE_BYTES_MAX && json.len() < LINE_BYTES_MAX,
            "{} {}",
            text.len(),
            json.len()
        );
        let record = format!("{{{}", json.trim_start_matches(','));
        let _record: serde_json::Value = serde_json::from_str(&record).expect("one JSON object");
    }

    #[test]
    fn bytes_that_are_no_text_are_cut_too() {
        let check = |payload: &[u8], expected: &str| assert_eq!(cut_bytes(payload), expected);
        check(b"short", "short");
        check(b"a\xff", "a\u{fffd}");
        check("x".repeat(350).as_bytes(), &cut(&"x".repeat(350)));
        let text = format!("{}€uro", "x".repeat(98));
        check(text.as_bytes(), &cut(&text));
        check(&[0x80; 200], &format!("{}...(100)", "\u{fffd}".repeat(100)));
    }

    #[test]
    fn durations_are_in_words() {
        let check = |millis: u64, expected: &str| {
            assert_eq!(
                in_words(Duration::from_millis(millis)).to_string(),
                expected
            )
        };
        check(10, "10ms");
        check(1_500, "1.5s");
        check(15_000, "15s");
    }

    #[test]
    fn losses_are_told_in_both_formats() {
        let check = |format: LogFormat, loss: &Loss, expected: &str| {
            let lines = Lines {
                format,
                colours: false,
                node_id: "lDkNav".to_owned(),
            };
            let line =
                String::from_utf8(lines.of_loss(UNIX_EPOCH, 7, loss)).expect("records are UTF-8");
            assert!(line.contains(expected), "{line}");
        };
        check(
            LogFormat::Text,
            &Loss::Full,
            " WRN log records were dropped here: stdout was not read in time; ",
        );
        check(LogFormat::Text, &Loss::Full, " nodeid=lDkNav left_out=7\n");
        let full = Loss::Failed(io::Error::from_raw_os_error(libc::ENOSPC));
        check(
            LogFormat::Json,
            &full,
            "\"log records were dropped here: stdout could not be written: No space left on device",
        );
        check(LogFormat::Json, &full, ",\"left_out\":7}\n");
    }

    #[test]
    fn long_payloads_are_cut() {
        let check = |payload: &str, expected: &str| assert_eq!(cut(payload), expected);
        let hundred = "x".repeat(100);
        check("short", "short");
        check(&hundred, &hundred);
        check(&"x".repeat(350), &format!("{hundred}...(250)"));
        check(
            &format!("{}é", "x".repeat(99)),
            &format!("{}...(2)", "x".repeat(99)),
        );
    }

    proptest! {
        #[test]
        fn a_record_is_one_line_whatever_it_says(value in any::<String>(), message in any::<String>()) {
            let line = text(|| tracing::info!(v = value.as_str(), "{message}"));
            prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
            let line = lines(LevelFilter::INFO, LogFormat::Json, false, || {
                tracing::info!(v = value.as_str(), "{message}");
            })
            .concat();
            let record: serde_json::Value = serde_json::from_str(&line).expect("one JSON object");
            prop_assert_eq!(&record["v"], &serde_json::Value::from(value));
            prop_assert_eq!(&record["msg"], &serde_json::Value::from(message));
        }

        #[test]
        fn cutting_never_panics(payload in "[a-zé€😀]{0,120}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let shown = cut(&payload);
            prop_assert_eq!(&cut_bytes(payload.as_bytes()), &shown);
            prop_assert!(cut_bytes(&bytes).len() <= 3 * PAYLOAD_SHOWN_BYTES_MAX + "...(100)".len());
            prop_assert!(payload.len() <= 100 && shown == payload || shown.contains("...("));
        }
    }
}

//! The log: records on stdout in the reference's `text` and `json` formats, one line and one write each.
//!
//! Owns the `tracing` subscriber of the process; the rest of the code says `tracing::info!(context = "rpc", "…")` and
//! never formats a record itself. Pure layers do not log at all. [`init`] is called once by `main`.
//! Source: `contract/operations.md` §8.

pub mod kept;
mod local_time;
mod record;
mod sparse;

use std::io::{IsTerminal, Write};
use std::sync::LazyLock;
use std::time::SystemTime;

use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

pub use local_time::{LocalTime, local_time};
pub use sparse::{Admitted, SPARSE_INTERVAL, Sparse};

use crate::config::{LogConfig, LogFormat, LogLevel};
use record::{Header, JsonRecord, TextRecord};

/// Bytes of a payload that a record shows.
const PAYLOAD_SHOWN_BYTES_MAX: usize = 100;

/// Installs the log of the process. A second call changes nothing.
pub fn init(config: &LogConfig, node_id: &str) {
    // Read the time zone now: later the first record of some shard would wait for the file.
    LazyLock::force(&local_time::ZONE);
    let log = Log {
        level: match config.level {
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
        },
        format: config.format,
        colours: std::io::stdout().is_terminal(),
        node_id: node_id.to_owned(),
    };
    tracing::subscriber::set_global_default(log).ok();
}

/// A payload as records show it: the first 100 bytes and how many were left out, `...(<bytes cut>)`.
pub fn cut(payload: &str) -> String {
    if payload.len() <= PAYLOAD_SHOWN_BYTES_MAX {
        return payload.to_owned();
    }
    let shown = beginning(payload, PAYLOAD_SHOWN_BYTES_MAX);
    format!("{shown}...({})", payload.len() - shown.len())
}

/// At most `bytes_max` bytes of a text, with an ellipsis where something was left out.
pub fn shortened(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    format!("{}…", beginning(text, bytes_max))
}

/// Ends between two characters.
fn beginning(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .expect("0 is always a boundary");
    &text[..end]
}

/// Writes an INFO record without a message whose attributes are these numbers. Their names are known only when the server
/// runs, which `tracing`'s macros do not do.
pub fn numbers<'a>(mut numbers: impl Iterator<Item = (&'a str, i64)>) {
    tracing::dispatcher::get_default(|dispatch| {
        if let Some(log) = dispatch.downcast_ref::<Log>()
            && log.level >= LevelFilter::INFO
        {
            write(&log.numbers_line(SystemTime::now(), &mut numbers));
        }
    });
}

/// The subscriber. It knows no spans: nothing here uses them, and events alone need no bookkeeping.
struct Log {
    level: LevelFilter,
    format: LogFormat,
    /// ANSI colours, for terminals only.
    colours: bool,
    node_id: String,
}

impl Log {
    fn line(&self, now: SystemTime, event: &Event<'_>) -> Vec<u8> {
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

    fn numbers_line<'a>(
        &self,
        now: SystemTime,
        numbers: impl Iterator<Item = (&'a str, i64)>,
    ) -> Vec<u8> {
        let header = self.header(now, Level::INFO);
        match self.format {
            LogFormat::Text => {
                let mut record = TextRecord::new(self.colours);
                numbers.for_each(|(name, number)| record.push_number(name, number));
                record.line(&header)
            }
            LogFormat::Json => {
                let mut record = JsonRecord::default();
                numbers.for_each(|(name, number)| record.push_number(name, number));
                record.line(&header)
            }
        }
    }

    fn header(&self, now: SystemTime, level: Level) -> Header<'_> {
        Header {
            now,
            level,
            node_id: &self.node_id,
        }
    }
}

fn write(line: &[u8]) {
    // There is nobody left to tell when stdout is gone, and serving goes on without a log.
    std::io::stdout().lock().write_all(line).ok();
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level.max(kept::level())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level.max(kept::level()))
    }

    fn event(&self, event: &Event<'_>) {
        let now = SystemTime::now();
        kept::keep(now, event);
        if *event.metadata().level() <= self.level {
            write(&self.line(now, event));
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

/// Four letters are what JSON records show, three what text records show.
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
            let line = String::from_utf8(self.log.line(now, event)).expect("records are UTF-8");
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
            format,
            colours,
            node_id: "2Tbzkw".to_owned(),
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
            let log = Log {
                level: LevelFilter::INFO,
                format,
                colours: false,
                node_id: "lDkNav".to_owned(),
            };
            let numbers = [("clients_num", 1), ("rpc_call_total", 3)];
            let line = log.numbers_line(UNIX_EPOCH, numbers.into_iter());
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
        fn cutting_never_panics(payload in "[a-zé€😀]{0,120}") {
            let shown = cut(&payload);
            prop_assert!(payload.len() <= 100 && shown == payload || shown.contains("...("));
        }
    }
}

//! The text of `--print-config`: TOML that reads back to the same configuration.
//!
//! Shows the merged values after ports and deprecated options are resolved and before presets are applied. Secrets are
//! readable, as in the reference. Options that are unset, or at their default and without effect, are comments.
//! Source: `contract/operations.md` §3.

use std::fmt::Write;

use super::options::{OptionSpec, Support};
use super::settings::Settings;
use super::stream_limits::StreamLimits;
use super::value::{OptionKind, Value};

/// Tables in the order of the reference; the keys without a table come first, our tables last.
const TABLES: &[&str] = &[
    "",
    "server",
    "server.ssl",
    "logging",
    "rpc",
    "broker",
    "jwt",
    "streams",
    "ws",
    "sse",
    "poll",
    "pusher",
    "ds",
    "api",
    "redis",
    "nats",
    "http_broadcast",
    "redis_stream_broadcast",
    "redis_pubsub_broadcast",
    "nats_broadcast",
    "redis_pubsub",
    "nats_pubsub",
    "metrics",
    "metrics.statsd",
    "app",
    "disconnector",
    "embedded_nats",
    "runtime",
    "console",
];

const FIRST_LINE: &str = "# Configuration of ringcable";

/// The whole text, with a final newline.
pub fn text(settings: &Settings) -> String {
    let mut out = format!("{FIRST_LINE}\n");
    for &table in TABLES {
        if !table.is_empty() {
            writeln!(out, "\n[{table}]").expect("a String takes all");
        }
        for (option, value, _) in settings.iter() {
            let (home, key) = split_key(option.file_key);
            if home == table && !key.is_empty() && option.support != Support::Deprecated {
                let mark = if is_comment(settings, option, value) {
                    "# "
                } else {
                    ""
                };
                writeln!(
                    out,
                    "# {}\n{mark}{key} = {}",
                    option.help,
                    toml_value(option.kind, value)
                )
                .expect("a String takes all");
            }
        }
    }
    out
}

/// Table and key of a dotted path.
fn split_key(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

fn is_comment(settings: &Settings, option: &OptionSpec, value: &Value) -> bool {
    if option.name == "rpc_host" {
        // The default stands for "not set". As an active line it would look like a request for gRPC.
        return !settings.is_given("rpc_host");
    }
    settings.is_default(option.name) && (value.is_empty() || option.support != Support::Works)
}

/// `value` as the TOML file writes it.
pub fn toml_value(kind: OptionKind, value: &Value) -> toml::Value {
    match value {
        Value::Bool(on) => toml::Value::Boolean(*on),
        Value::Int(number) => toml::Value::Integer(*number),
        Value::Text(text) => toml::Value::String(text.clone()),
        Value::List(items) => match kind {
            // An item that contains the separator can only come from an array, so the list is written as an array.
            OptionKind::List {
                array_in_file: false,
                separator,
                ..
            } if !items.iter().any(|item| item.contains(separator)) => {
                toml::Value::String(items.join(&separator.to_string()))
            }
            _ => toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect()),
        },
        Value::Tags(tags) => toml::Value::Table(
            tags.iter()
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect(),
        ),
        Value::StreamLimits(table) => {
            toml::Value::Array(table.iter().map(StreamLimits::to_toml).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::OPTIONS;
    use super::super::settings::Source;
    use super::super::{Config, Startup, file, load};
    use super::*;
    use proptest::prelude::*;

    /// Loads a command line whose words are separated by spaces.
    fn loaded(command_line: &str) -> Startup {
        let args: Vec<String> = command_line.split_whitespace().map(str::to_owned).collect();
        load(&args, &[]).expect("a good command line")
    }

    fn printed(command_line: &str) -> String {
        match loaded(&format!(
            "--ignore-config-path --print-config {command_line}"
        )) {
            Startup::Print(text) => text,
            other => panic!("--print-config prints: {command_line}: {other:?}"),
        }
    }

    /// The configuration without the values that differ between two starts with the same options.
    fn run(command_line: &str) -> Config {
        match loaded(command_line) {
            Startup::Run(config) => Config {
                node_id: String::new(),
                notices: Vec::new(),
                config_file: None,
                ..*config
            },
            other => panic!("{command_line} starts the server: {other:?}"),
        }
    }

    #[test]
    fn every_file_key_has_its_table() {
        for option in OPTIONS {
            let (table, _) = split_key(option.file_key);
            assert!(
                option.support == Support::Deprecated || TABLES.contains(&table),
                "{}",
                option.file_key
            );
        }
    }

    #[test]
    fn unset_keys_are_comments_and_the_rest_is_live() {
        let mut settings = Settings::defaults();
        settings.derive(
            "metrics_tags",
            Value::Tags(vec![("env".to_owned(), "a\"b".to_owned())]),
        );
        settings.derive(
            "allowed_origins",
            Value::List(vec!["a.com".to_owned(), "b.com".to_owned()]),
        );
        let text = text(&settings);
        let lines: Vec<&str> = text.lines().collect();
        for line in [
            "broadcast_adapters = [\"http\"]",
            "# secret = \"\"",
            "# host = \"localhost:50051\"",
            "host = \"localhost\"",
            "paths = [\"/cable\"]",
            "allowed_origins = \"a.com,b.com\"",
            "tags = { env = 'a\"b' }",
            "# adapter = \"\"",
            "# enabled = false",
            "pubsub_channel = \"$pubsub\"",
        ] {
            assert!(lines.contains(&line), "{line} in\n{text}");
        }
    }

    #[test]
    fn printed_configuration_reads_back_to_the_same() {
        for command_line in [
            "--norpc",
            "--rpc_host=http://web:3000/_anycable --secret=S",
            "--rpc_host=http://web --secret=S --jwt_secret=none --streams_secret=none",
            "--rpc_host=http://web --secret=S --http_rpc_secret=none",
            "--norpc --secret=none",
            "--norpc --port=0 --secret=quote\"s'and\\back --host=",
            "--norpc --public --broadcast_key=K --api_port=7 --metrics_http=/metrics",
            "--noauth --path=/a,/{b}/* --headers= --proxy-cookies=x,y --allowed_origins=a.com,*.b",
            "--norpc --metrics_tags=env:dev,rev:1.1 --log_format=json --debug --cores=3 --driver=epoll",
            "--norpc --ssl_cert=c --ssl_key=k --rpc_tls_verify=false --rpc_tls_root_ca=ca",
            "--norpc --shutdown_slowdrain --shutdown_healthy",
            "--norpc --shutdown_slowdrain=7 --shutdown_slowdrain_max_interval=20",
            "--norpc --presets=heroku --shutdown_delay=4 --enable_native_pings --pong_timeout=3",
            "--norpc --disable_disconnect --turbo_rails_key=k --jwt_id_key=j --http_rpc_timeout=7",
            "--norpc --enforce_jwt --disconnect_rate=7 --disconnect_backlog_size=9 --rpc_concurrency=0",
            "--norpc --http_broadcast_cors --ws_max_pending_size=0 --streams_presence=false --node_id=n",
            "--norpc --metrics_log --metrics_log_filter=a,b --metrics_rotate_interval=3 --rpc_slow_call=7",
            "--norpc --statsd_host=h:1 --statsd_prefix=p --statsd_tags_format=influxdb --statsd_max_packet_size=9",
        ] {
            let text = printed(command_line);
            let start = text
                .find(FIRST_LINE)
                .expect("deprecation notices come before it");
            let file = tempfile::NamedTempFile::new().expect("a temporary file");
            std::fs::write(file.path(), &text[start..]).expect("a writable temporary file");
            let reading = format!("--config-path={}", file.path().display());
            let original = run(&format!("--ignore-config-path {command_line}"));
            assert_eq!(run(&reading), original, "{command_line}\n{text}");
        }
    }

    /// All values that an option can get from a word or a file.
    fn values_of(kind: OptionKind) -> BoxedStrategy<Value> {
        let text = "[a-z0-9/:'\"\\\\\n\r\t\u{1}#=\\[\\]{}, é☃]{0,12}";
        let item = "[a-z0-9/:'\"\\\\\n#=é]([a-z \\n]{0,6}[a-z])?"
            .prop_map(|item| item.trim().to_owned())
            .prop_filter("an item", |item| !item.is_empty());
        match kind {
            OptionKind::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
            OptionKind::Int { .. } | OptionKind::SecsOrSwitch => {
                any::<i64>().prop_map(Value::Int).boxed()
            }
            OptionKind::Paths | OptionKind::List { .. } => prop::collection::vec(item, 0..4)
                .prop_map(Value::List)
                .boxed(),
            OptionKind::Tags => prop::collection::btree_map(text, text, 0..4)
                .prop_map(|tags| Value::Tags(tags.into_iter().collect()))
                .boxed(),
            OptionKind::StreamLimits => {
                let entry = (text, any::<Option<i64>>(), any::<Option<i64>>());
                let entry = entry.prop_map(|(prefix, history_limit, history_ttl)| StreamLimits {
                    prefix,
                    history_limit,
                    history_ttl,
                });
                prop::collection::vec(entry, 0..4)
                    .prop_map(Value::StreamLimits)
                    .boxed()
            }
            _ => text.prop_map(Value::Text).boxed(),
        }
    }

    fn all_values() -> impl Strategy<Value = Vec<Value>> {
        OPTIONS
            .iter()
            .map(|option| values_of(option.kind))
            .collect::<Vec<_>>()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_values_read_back_to_the_same(values in all_values()) {
            let mut settings = Settings::defaults();
            for (index, value) in values.into_iter().enumerate() {
                settings.set_at(index, value, Source::Flag);
            }
            let printed = text(&settings);
            let mut read = Settings::defaults();
            let mut problems = Vec::new();
            file::apply_text("a.toml", &printed, &mut read, &mut problems);
            prop_assert!(problems.is_empty(), "{:?}", problems);
            for (option, value, _) in settings.iter() {
                if !option.file_key.is_empty() && option.support != Support::Deprecated {
                    prop_assert_eq!(read.value(option.name), value, "{}", option.name);
                }
            }
        }
    }

    #[test]
    fn ports_secrets_and_notices_are_shown() {
        let text = printed("--secret=S --jwt_id_key=J --port=9000");
        let notice = "DEPRECATION WARNING: jwt_id_key option is deprecated\n";
        assert!(text.starts_with(notice), "{text}");
        for line in ["secret = \"S\"", "secret = \"J\"", "# broadcast_key = \"\""] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        // Main listener, broadcasts and metrics.
        assert_eq!(
            text.lines().filter(|&line| line == "port = 9000").count(),
            3
        );
    }
}

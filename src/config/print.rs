//! The text of `--print-config`: TOML that reads back to the same configuration.
//!
//! Shows the merged values after the derivations of ports and deprecated options, before presets. Secrets are in clear,
//! as in the reference. What is unset, or at its default and without effect, is a comment.
//! Source: `contract/operations.md` §3.

use std::fmt::Write;

use super::options::{OptionSpec, Support};
use super::settings::Settings;
use super::value::{Kind, Value};

/// Tables in the order of the reference, the keys without a table first, ours last.
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
    "pusher",
    "ds",
    "api",
    "redis",
    "nats",
    "http_broadcast",
    "redis_stream_broadcast",
    "redis_pubsub_broadcast",
    "nats_broadcast",
    "metrics",
    "metrics.statsd",
    "app",
    "disconnector",
    "embedded_nats",
    "runtime",
];

/// The whole text, with a final newline.
pub fn text(settings: &Settings) -> String {
    let mut out = "# Configuration of ringcable\n".to_owned();
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
    // The default RPC host stands for "not set": it must not look as if someone had asked for gRPC.
    let says_nothing =
        value.is_empty() || option.support != Support::Works || option.name == "rpc_host";
    says_nothing
        && settings.is_default(option.name)
        && !(option.name == "rpc_host" && settings.is_given("rpc_host"))
}

fn toml_value(kind: Kind, value: &Value) -> toml::Value {
    match value {
        Value::Bool(on) => toml::Value::Boolean(*on),
        Value::Int(number) => toml::Value::Integer(*number),
        Value::Text(text) => toml::Value::String(text.clone()),
        Value::List(items) => match kind {
            Kind::List {
                array_in_file: false,
                separator,
            } => toml::Value::String(items.join(&separator.to_string())),
            _ => toml::Value::Array(items.iter().cloned().map(toml::Value::String).collect()),
        },
        Value::Tags(tags) => toml::Value::Table(
            tags.iter()
                .map(|(name, value)| (name.clone(), value.clone().into()))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::OPTIONS;
    use super::*;

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
}

//! Tests that every option of the reference is known by its names and its default, and that none is silently ignored.
//!
//! `reference.tsv` holds the reference's facts. Where this server differs on purpose, [`DIFFERENCES`] says so.

use super::*;
use crate::config::options::{OPTIONS, OptionSpec, index_of};

const FACTS: &str = include_str!("reference.tsv");

/// Differences on purpose: option, column, the value here, and the reason.
const DIFFERENCES: [(&str, &str, &str, &str); 2] = [
    (
        "broadcast_adapter",
        "default",
        "http",
        "with redis in it, a server without Redis would end within a minute",
    ),
    (
        "ws_max_pending_size",
        "variables",
        "ANYCABLE_WS_MAX_PENDING_SIZE",
        "it was forgotten",
    ),
];

/// One line of `reference.tsv`.
struct Fact {
    name: &'static str,
    columns: [(&'static str, &'static str); 5],
    tier: u8,
}

fn facts() -> Vec<Fact> {
    FACTS
        .lines()
        .filter(|line| !line.starts_with('#') && !line.starts_with("flag\t"))
        .map(|line| {
            let mut fields = line.split('\t');
            let mut next = || fields.next().expect("seven columns");
            let name = next();
            let columns = ["variables", "file_key", "type", "default", "hidden"];
            Fact {
                name,
                columns: columns.map(|column| (column, next())),
                tier: next().parse().expect("a number"),
            }
        })
        .collect()
}

fn column_of(option: &OptionSpec, column: &str) -> String {
    let text = match column {
        "variables" => option.env_names().join(","),
        "file_key" => option.file_key.to_owned(),
        "type" => match option.default_value() {
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Text(_) => "text",
            Value::List(_) => "list",
            Value::Tags(_) => "tags",
            Value::StreamLimits(_) => "limits",
        }
        .to_owned(),
        "default" => option.default_text.to_owned(),
        "hidden" => if option.hidden { "y" } else { "n" }.to_owned(),
        other => panic!("no column {other}"),
    };
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

#[test]
fn every_option_of_the_reference_has_its_names_and_default() {
    let facts = facts();
    assert_eq!(facts.len(), 142);
    for tier in 1..=3 {
        assert!(facts.iter().any(|fact| fact.tier == tier), "tier {tier}");
    }
    let mut differences = 0;
    for fact in &facts {
        let index = options::index_of_flag(fact.name)
            .unwrap_or_else(|| panic!("--{} is not known", fact.name));
        for (column, expected) in fact.columns {
            let difference = DIFFERENCES
                .iter()
                .find(|(name, of, _, _)| (*name, *of) == (fact.name, column));
            let expected = difference.map_or(expected, |(_, _, ours, _)| ours);
            differences += usize::from(difference.is_some());
            assert_eq!(
                column_of(&OPTIONS[index], column),
                expected,
                "{column} of --{}",
                fact.name
            );
        }
    }
    assert_eq!(differences, DIFFERENCES.len());
}

/// Options that must be on before another option matters.
const CONTEXTS: [(&str, &str); 15] = [
    ("turbo_streams_secret", "--turbo_streams"),
    ("cable_ready_secret", "--cable_ready"),
    ("rpc_tls_verify", "--rpc_enable_tls"),
    ("metrics_log_filter", "--metrics_log"),
    ("metrics_rotate_interval", "--metrics_log"),
    ("statsd_prefix", "--statsd_host=localhost:8125"),
    ("statsd_max_packet_size", "--statsd_host=localhost:8125"),
    ("statsd_tags_format", "--statsd_host=localhost:8125"),
    ("history_limit", "--broker=memory"),
    ("history_ttl", "--broker=memory"),
    ("sse_path", "--sse"),
    ("ds_path", "--ds --broker=memory"),
    ("ds_skip_auth", "--ds --broker=memory"),
    ("ds_poll_interval", "--ds --broker=memory"),
    ("ds_sse_ttl", "--ds --broker=memory"),
];

/// Values that differ from the default.
fn other_values(option: &OptionSpec) -> Vec<String> {
    match option.kind {
        value::OptionKind::Word(words) => words
            .iter()
            .filter(|word| **word != option.default_text)
            .map(|&word| word.to_owned())
            .collect(),
        value::OptionKind::Int { .. } => {
            let Value::Int(default) = option.default_value() else {
                panic!("{} has an integer as default", option.name);
            };
            vec![(default + 1).to_string()]
        }
        value::OptionKind::SecsOrSwitch => vec!["7".to_owned()],
        value::OptionKind::Bool => vec![(option.default_value() == Value::Bool(false)).to_string()],
        value::OptionKind::Path { .. } | value::OptionKind::Paths => vec!["/other".to_owned()],
        value::OptionKind::Tags => vec!["name:value".to_owned()],
        _ if option.name == "rpc_host" => vec!["http://other".to_owned()],
        _ => vec!["other".to_owned()],
    }
}

fn started(more: &[&str]) -> Result<Startup, ConfigError> {
    let args = [
        &[
            "--node_id=n",
            "--rpc_host=http://web",
            "--secret=0123456789abcdef",
        ],
        more,
    ]
    .concat();
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    load(&args, &[])
}

#[test]
fn no_option_is_ignored_in_silence() {
    for fact in facts() {
        // This option changes something only if there is a file.
        if fact.name == "ignore-config-path" {
            continue;
        }
        let option = &OPTIONS[index_of(fact.name).expect("in the table")];
        let context = CONTEXTS
            .iter()
            .find(|(name, _)| *name == fact.name)
            .map(|(_, context)| context.split(' ').collect::<Vec<_>>())
            // Leaves out features that are missing, because they cannot be switched on.
            .filter(|context| started(context).is_ok())
            .unwrap_or_default();
        let before = started(&context).expect("a good command line");
        let before = format!("{before:?}");
        let shows = other_values(option).iter().any(|value| {
            let arg = format!("--{}={value}", fact.name);
            let mut args = context.clone();
            args.push(&arg);
            // An option counts as used if it is refused, printed, in the configuration or in a log line.
            started(&args).map_or(true, |after| format!("{after:?}") != before)
        });
        assert!(shows, "--{} changes nothing and nobody is told", fact.name);
    }
}

#[test]
fn what_is_not_there_is_refused_or_mentioned_by_name() {
    let mentions = |arg: &str| match started(&[arg]) {
        Err(error) => error.to_string(),
        Ok(Startup::Run(config)) => [config.warnings, config.remarks, config.notices]
            .concat()
            .join("\n"),
        Ok(other) => panic!("{arg} starts the server or is refused: {other:?}"),
    };
    for option in OPTIONS.iter().filter(|option| option.has_flag) {
        let named = match option.support {
            options::Support::Works => continue,
            // The reference prints no notice for this one either.
            options::Support::Deprecated if option.name == "http_rpc_timeout" => continue,
            _ => option.name,
        };
        let value = other_values(option).remove(0);
        let text = mentions(&format!("--{named}={value}"));
        assert!(text.contains(named), "--{named}={value}: {text:?}");
    }
}

#[test]
fn flag_variable_and_file_give_the_same_value() {
    for option in OPTIONS.iter().filter(|option| option.has_flag) {
        let Some(value) = other_values(option)
            .into_iter()
            .find(|value| !value.is_empty())
        else {
            panic!("{} has another value", option.name);
        };
        let by_flag = {
            let mut settings = Settings::defaults();
            let args = [format!("--{}={value}", option.name)];
            let mut problems = Vec::new();
            Flags::parse(&args, &mut problems).apply(&mut settings);
            assert!(problems.is_empty(), "{problems:?}");
            settings.value(option.name).clone()
        };
        assert_ne!(by_flag, option.default_value(), "{}", option.name);
        for variable in option.env_names() {
            let mut settings = Settings::defaults();
            let env = [(variable.clone(), value.clone())];
            let mut problems = Vec::new();
            environment::apply(&env, &mut settings, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(*settings.value(option.name), by_flag, "{variable}");
        }
        if !option.file_key.is_empty() {
            let mut settings = Settings::defaults();
            let text = format!(
                "{} = {}",
                option.file_key,
                print::toml_value(option.kind, &by_flag)
            );
            let mut problems = Vec::new();
            file::apply_text("a.toml", &text, &mut settings, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(*settings.value(option.name), by_flag, "{text}");
        }
    }
}

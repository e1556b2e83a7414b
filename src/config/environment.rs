//! The environment: `ANYCABLE_*` variables, and `PORT` and `REDIS_URL`.
//!
//! If an option has two variable names, the first one that is set wins, even when it is empty. Empty means: not given for a
//! number, false for a boolean, empty for a text. Source: `contract/operations.md` §2.

use std::net::SocketAddr;

use super::error::ConfigError;
use super::options::{OPTIONS, OptionSpec};
use super::settings::{Settings, Source};
use super::suggest;
use super::value::{OptionKind, Unreadable, Value, quoted};

/// Variables with our prefix that are no options and cause no warning. Source: `contract/operations.md` §19.
const OTHER_VARIABLES: &[&str] = &[
    "ANYCABLE_DISABLE_TELEMETRY",
    "ANYCABLE_TELEMETRY_URL",
    "ANYCABLE_TELEMETRY_DEBUG",
    "ANYCABLE_MEMORY_METRICS",
    "ANYCABLE_FLY_RPC_APP_NAME",
];

/// Applies the environment over the file. Values that cannot be read go into `problems`, see [`ConfigError::EnvValue`].
pub fn apply(env: &[(String, String)], settings: &mut Settings, problems: &mut Vec<ConfigError>) {
    for (index, option) in OPTIONS.iter().enumerate() {
        let mut given = option
            .env_names()
            .into_iter()
            .filter_map(|variable| Some((lookup(env, &variable)?, variable)));
        let Some((text, variable)) = given.next() else {
            continue;
        };
        match read(option, &variable, text) {
            Ok(Some(value)) => settings.set_at(index, value, Source::Env(variable)),
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
}

/// The value of a variable.
pub fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter()
        .find(|(variable, _)| variable == name)
        .map(|(_, value)| value.as_str())
}

/// Log lines about variables that look like mistyped options. Other unknown variables are ignored, as in the reference,
/// because the app's own `ANYCABLE_*` variables are often set for both programs.
pub fn likely_typos(env: &[(String, String)]) -> Vec<String> {
    let known: Vec<String> = OPTIONS.iter().flat_map(OptionSpec::env_names).collect();
    env.iter()
        .map(|(variable, _)| variable)
        .filter(|variable| variable.starts_with("ANY") || variable.contains("CABLE_"))
        .filter(|variable| {
            !known.contains(variable) && !OTHER_VARIABLES.contains(&variable.as_str())
        })
        .filter_map(|variable| Some((variable, suggest::variable_like(variable)?)))
        .map(|(variable, meant)| {
            format!("Unknown environment variable {variable} is ignored (did you mean {meant}?)")
        })
        .collect()
}

/// `None` when the value counts as not set.
fn read(option: &OptionSpec, variable: &str, text: &str) -> Result<Option<Value>, ConfigError> {
    match option.kind {
        OptionKind::Int { .. } | OptionKind::SecsOrSwitch if text.is_empty() => Ok(None),
        OptionKind::Bool if text.is_empty() => Ok(Some(Value::Bool(false))),
        kind => kind
            .parse(text)
            .map(Some)
            .map_err(|cause| unreadable(option, variable, text, cause)),
    }
}

fn unreadable(option: &OptionSpec, variable: &str, text: &str, cause: Unreadable) -> ConfigError {
    let (kind, expected) = match option.kind {
        OptionKind::Bool => ("bool", "write true or false"),
        // In the reference's paid edition this option is a boolean, so the message says "bool".
        OptionKind::SecsOrSwitch => ("bool", "write a whole number of seconds, true or false"),
        OptionKind::Int { .. } => ("int", "write a whole number"),
        _ => ("string", ""),
    };
    let cause = match cause {
        Unreadable::Syntax if is_service_link(text) => format!(
            "Kubernetes sets it for a service of that name; set enableServiceLinks: false in the pod's spec, or give the \
             service another name, and {expected}"
        ),
        Unreadable::Syntax => format!("{expected}{}", quoted(text)),
        Unreadable::Range => "the number is too large".to_owned(),
        Unreadable::TagWithoutColon => format!("{cause}{}", quoted(text)),
    };
    ConfigError::EnvValue {
        name: option.name.to_owned(),
        variable: variable.to_owned(),
        text: text.to_owned(),
        kind,
        cause,
    }
}

/// Whether the value is one that Kubernetes sets. It puts `<SERVICE>_PORT` into the environment of every pod, and a service
/// called `anycable` makes that name one of ours.
fn is_service_link(text: &str) -> bool {
    let address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    address.is_some_and(|address| address.parse::<SocketAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
        env.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn settings(env: &[(&str, &str)]) -> Result<Settings, String> {
        let (mut settings, mut problems) = (Settings::defaults(), Vec::new());
        apply(&pairs(env), &mut settings, &mut problems);
        match problems.first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(settings),
        }
    }

    #[test]
    fn the_first_name_present_wins_even_when_empty() {
        let check = |env: &[(&str, &str)], expected: i64| {
            assert_eq!(
                settings(env).expect("good").int("port"),
                expected,
                "{env:?}"
            );
        };
        check(&[("PORT", "3000")], 3000);
        check(&[("PORT", "3000"), ("ANYCABLE_PORT", "4000")], 4000);
        check(&[("PORT", "3000"), ("ANYCABLE_PORT", "")], 8080);
    }

    #[test]
    fn empty_values_mean_what_the_kind_says() {
        let read = |name: &str, variable: &str| {
            let settings = settings(&[(variable, "")]).expect("empty is readable");
            (settings.value(name).clone(), settings.is_given(name))
        };
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(read("host", "ANYCABLE_HOST"), (text(""), true));
        assert_eq!(
            read("headers", "ANYCABLE_HEADERS"),
            (Value::List(Vec::new()), true)
        );
        assert_eq!(read("log_level", "ANYCABLE_LOG_LEVEL"), (text(""), true));
        assert_eq!(
            read("health-path", "ANYCABLE_HEALTH_PATH"),
            (text(""), true)
        );
        assert_eq!(
            read("streams_presence", "ANYCABLE_STREAMS_PRESENCE"),
            (Value::Bool(false), true)
        );
        assert_eq!(
            read("max-conn", "ANYCABLE_MAX_CONN"),
            (Value::Int(0), false)
        );
        assert_eq!(
            read("path", "ANYCABLE_PATH"),
            (Value::List(vec!["/cable".to_owned()]), false)
        );
        assert_eq!(
            read("presets", "ANYCABLE_PRESETS"),
            (Value::List(Vec::new()), false)
        );
    }

    #[test]
    fn unreadable_values_are_named_with_their_variable() {
        let check = |variable: &str, text: &str, expected: &str| {
            assert_eq!(
                settings(&[(variable, text)])
                    .map(|_| ())
                    .expect_err("unreadable"),
                expected
            );
        };
        check(
            "ANYCABLE_DEBUG",
            "yes",
            "could not parse \"yes\" as bool value from environment variable \"ANYCABLE_DEBUG\" for flag debug: \
             write true or false",
        );
        check(
            "PORT",
            "80a",
            "could not parse \"80a\" as int value from environment variable \"PORT\" for flag port: \
             write a whole number",
        );
        check(
            "ANYCABLE_MAX_CONN",
            "99999999999999999999",
            "could not parse \"99999999999999999999\" as int value from environment variable \"ANYCABLE_MAX_CONN\" for \
             flag max-conn: the number is too large",
        );
        check(
            "ANYCABLE_PORT",
            "\"8080\"",
            "could not parse \"\"8080\"\" as int value from environment variable \"ANYCABLE_PORT\" for flag port: \
             write a whole number, without the quotes (docker --env-file and others keep them as a part of the value)",
        );
        for link in [
            "tcp://1.2.3.4:80",
            "udp://10.0.0.1:8080",
            "tcp://[fd00::1]:80",
        ] {
            check(
                "ANYCABLE_PORT",
                link,
                &format!(
                    "could not parse \"{link}\" as int value from environment variable \"ANYCABLE_PORT\" for flag port: \
                     Kubernetes sets it for a service of that name; set enableServiceLinks: false in the pod's spec, or \
                     give the service another name, and write a whole number"
                ),
            );
        }
    }

    #[test]
    fn only_near_misses_are_mentioned() {
        let env = pairs(&[
            ("ANYCABLE_RPC_HOTS", "x"),
            ("ANYCABLE_DISABLE_TELEMETRY", "true"),
            ("ANYCABLE_WEBSOCKET_URL", "x"),
            ("RPC_HOST", "x"),
        ]);
        assert_eq!(
            likely_typos(&env),
            [
                "Unknown environment variable ANYCABLE_RPC_HOTS is ignored (did you mean ANYCABLE_RPC_HOST?)"
            ]
        );
    }
}

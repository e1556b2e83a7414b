//! The TOML file: where it is searched and how its keys become option values. The only file that this folder reads.
//!
//! Unknown keys are ignored with a warning; keys match without regard to case when none matches exactly; a wrong type is
//! an error.
//! Source: `contract/operations.md` §3.

use std::path::Path;

use super::error::ConfigError;
use super::flags::Flags;
use super::options::OPTIONS;
use super::settings::{self, Settings, Source};
use super::suggest;
use super::value::Value;

/// Searched in this order when no `--config-path` is given.
const DISCOVERED: [&str; 2] = ["./anycable.toml", "/etc/anycable/anycable.toml"];

/// The file to read, if any: the named one, else the first of the usual places that exists.
pub fn locate(flags: &Flags) -> Option<String> {
    if flags.on("ignore-config-path") {
        return None;
    }
    match flags.last("config-path") {
        Some(Value::Text(path)) if !path.is_empty() => Some(path.clone()),
        _ => DISCOVERED
            .iter()
            .find(|path| Path::new(path).exists())
            .map(|&path| path.to_owned()),
    }
}

/// Reads the file at `path` and applies it over the defaults. Returns log lines about unknown keys. Values that cannot be
/// used go into `problems`, as one of the file variants of [`ConfigError`].
pub fn apply(path: &str, settings: &mut Settings, problems: &mut Vec<ConfigError>) -> Vec<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => apply_text(path, &text, settings, problems),
        Err(cause) => {
            problems.push(ConfigError::FileRead {
                path: path.to_owned(),
                cause,
            });
            Vec::new()
        }
    }
}

/// Applies the text of a file over the defaults; `path` is for messages.
pub fn apply_text(
    path: &str,
    text: &str,
    settings: &mut Settings,
    problems: &mut Vec<ConfigError>,
) -> Vec<String> {
    let file: toml::Table = match text.parse() {
        Ok(file) => file,
        Err(error) => {
            problems.push(syntax_error(path, text, &error));
            return Vec::new();
        }
    };
    for (index, option) in OPTIONS.iter().enumerate() {
        if option.file_key.is_empty() {
            continue;
        }
        let Some(found) = find(&file, option.file_key) else {
            continue;
        };
        match option.kind.read_toml(found) {
            Some(value) => settings.set_at(index, value, Source::File),
            None => problems.push(ConfigError::FileType {
                path: path.to_owned(),
                key: option.file_key,
                expected: option.kind.toml_type(),
                found: describe(found),
            }),
        }
    }
    let mut unknown = Vec::new();
    collect_unknown(&file, "", &mut unknown);
    unknown
        .iter()
        .map(|key| {
            let hint = suggest::file_key_like(key)
                .map(|meant| format!(" (did you mean {meant}?)"))
                .unwrap_or_default();
            let key = settings::in_one_line(key);
            format!("Unknown key {key} in {path} is ignored{hint}")
        })
        .collect()
}

/// Collects the dotted paths of unknown keys. A table without any known key is named once, as a whole.
fn collect_unknown(table: &toml::Table, parent: &str, unknown: &mut Vec<String>) {
    for (name, value) in table {
        // A name that contains a dot is quoted, so that it does not look like a path.
        let name = if name.is_empty() || name.contains('.') {
            format!("\"{name}\"")
        } else {
            name.clone()
        };
        let path = if parent.is_empty() {
            name
        } else {
            format!("{parent}.{name}")
        };
        if is_key(&path) {
            continue;
        }
        match value.as_table() {
            Some(inner) if is_table(&path) => collect_unknown(inner, &path, unknown),
            _ => unknown.push(path),
        }
    }
}

fn is_key(path: &str) -> bool {
    OPTIONS
        .iter()
        .any(|option| option.file_key.eq_ignore_ascii_case(path))
}

fn is_table(path: &str) -> bool {
    OPTIONS.iter().any(|option| {
        option
            .file_key
            .get(..path.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(path))
            && option.file_key.as_bytes().get(path.len()) == Some(&b'.')
    })
}

/// Finds the value of a dotted key.
fn find<'a>(table: &'a toml::Table, key: &str) -> Option<&'a toml::Value> {
    let (first, rest) = match key.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (key, None),
    };
    let value = table.get(first).or_else(|| {
        table
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(first))
            .map(|(_, value)| value)
    })?;
    match rest {
        Some(rest) => find(value.as_table()?, rest),
        None => Some(value),
    }
}

fn syntax_error(path: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let offset = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = 1 + text.as_bytes()[..offset]
        .iter()
        .filter(|&&byte| byte == b'\n')
        .count();
    let message = error
        .message()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    ConfigError::FileSyntax {
        path: path.to_owned(),
        line,
        message,
    }
}

/// Names only the type, because the value of a mistyped key may be a secret.
fn describe(value: &toml::Value) -> &'static str {
    match value {
        toml::Value::String(_) => "a string",
        toml::Value::Integer(_) => "an integer",
        toml::Value::Float(_) => "a float",
        toml::Value::Boolean(_) => "a boolean",
        toml::Value::Datetime(_) => "a date",
        toml::Value::Array(_) => "an array of something else",
        toml::Value::Table(_) => "a table of something else",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Settings, String> {
        let (mut settings, mut problems) = (Settings::defaults(), Vec::new());
        apply_text("a.toml", text, &mut settings, &mut problems);
        match problems.first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(settings),
        }
    }

    #[test]
    fn keys_of_all_types_are_read() {
        let check = |text: &str, name: &str, expected: Value| {
            assert_eq!(
                read(text).expect("good file").value(name),
                &expected,
                "{text}"
            );
        };
        let list =
            |items: &[&str]| Value::List(items.iter().map(|&item| item.to_owned()).collect());
        let text = |text: &str| Value::Text(text.to_owned());
        check("secret = 'S'", "secret", text("S"));
        check("[server]\nport = 3000", "port", Value::Int(3000));
        check("[Server]\nPort = 3000", "port", Value::Int(3000));
        check("[server]\nport = 1\nPORT = 2", "port", Value::Int(1));
        check("server.ssl.cert_path = 'c.pem'", "ssl_cert", text("c.pem"));
        check("[ws]\npaths = ['/a', '/b']", "path", list(&["/a", "/b"]));
        check(
            "[rpc]\nproxy_headers = ['cookie', 'x-api']",
            "headers",
            list(&["cookie", "x-api"]),
        );
        check(
            "[server]\nallowed_origins = 'a.com, *.b.com'",
            "allowed_origins",
            list(&["a.com", "*.b.com"]),
        );
        check(
            "[server]\nallowed_origins = ['a.com']",
            "allowed_origins",
            list(&["a.com"]),
        );
        check(
            "[metrics.tags]\nenv = 'dev'",
            "metrics_tags",
            Value::Tags(vec![("env".to_owned(), "dev".to_owned())]),
        );
        check(
            "[metrics]\nLogInterval = 3",
            "metrics_log_interval",
            Value::Int(3),
        );
        check(
            "disconnectordisabled = true",
            "disable_disconnect",
            Value::Bool(true),
        );
        check(
            "[streams]\npubsub_channel = ''",
            "streams.pubsub_channel",
            text(""),
        );
        check(
            "[nowhere]\nx = 1\n[server]\ny = 2",
            "port",
            Value::Int(8080),
        );
        check("server = 3", "port", Value::Int(8080));
    }

    #[test]
    fn unknown_keys_are_named_and_the_rest_counts() {
        let check = |text: &str, expected: &[&str]| {
            let (mut settings, mut problems) = (Settings::defaults(), Vec::new());
            let found = apply_text("a.toml", text, &mut settings, &mut problems);
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(found, expected, "{text}");
        };
        check(
            "public = true\n[server]\nport = 1\n[server.ssl]\ncert_path = 'c'",
            &[],
        );
        check("Public = true\n[SERVER.SSL]\nCERT_PATH = 'c'", &[]);
        check("[metrics.tags]\nenv = 'dev'\nanything = 'x'", &[]);
        check(
            "[server]\nprot = 1",
            &["Unknown key server.prot in a.toml is ignored (did you mean server.port?)"],
        );
        check(
            "[metrics]\nhttp = '/metrics'",
            &["Unknown key metrics.http in a.toml is ignored (did you mean metrics.http_path?)"],
        );
        check(
            "rpc_host = 'http://web'\n[nowhere]\nx = 1\ny = 2",
            &[
                "Unknown key nowhere in a.toml is ignored",
                "Unknown key rpc_host in a.toml is ignored (did you mean rpc.host?)",
            ],
        );
        check("\"a\\nb\" = 1", &["Unknown key a\\nb in a.toml is ignored"]);
        check(
            "\"server.port\" = 1",
            &["Unknown key \"server.port\" in a.toml is ignored (did you mean server.port?)"],
        );
        check("\"\" = 1", &["Unknown key \"\" in a.toml is ignored"]);
        check("server = 3", &["Unknown key server in a.toml is ignored"]);
    }

    #[test]
    fn bad_files_are_named_in_one_line() {
        let check = |text: &str, expected: &str| {
            let message = read(text).map(|_| ()).expect_err("bad file");
            assert_eq!(
                message,
                format!("failed to parse TOML configuration, cause: a.toml{expected}")
            );
        };
        check(
            "[server]\nport = '80'",
            ": server.port must be an integer, not a string",
        );
        check("public = 1", ": public must be a boolean, not an integer");
        check(
            "[ws]\npaths = [1]",
            ": ws.paths must be an array of strings, not an array of something else",
        );
        check(
            "[metrics]\ntags = 'a:b'",
            ": metrics.tags must be a table of strings, not a string",
        );
        let message = read("a = 1\nb = = 2").map(|_| ()).expect_err("bad syntax");
        assert!(
            message.starts_with("failed to parse TOML configuration, cause: a.toml line 2: "),
            "{message}"
        );
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error() {
        let mut problems = Vec::new();
        apply("nope.toml", &mut Settings::defaults(), &mut problems);
        assert_eq!(
            problems[0].to_string(),
            "failed to read config file, cause: open nope.toml: no such file or directory"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "[a-z\\[\\]=.\"'#\n 0-9é]{0,60}") {
            let mut problems = Vec::new();
            let unknown = apply_text("a.toml", &text, &mut Settings::defaults(), &mut problems);
            let errors = problems.iter().map(ToString::to_string);
            for line in unknown.into_iter().chain(errors) {
                prop_assert_eq!(line.lines().count(), 1, "{}", line);
            }
        }
    }
}

//! The merged values of all options, each with its source.
//!
//! `file`, `environment` and `flags` fill it in this order, `deprecated` and `presets` change it, `resolve` reads it.

use super::options::{OPTIONS, OptionSpec, index_of};
use super::stream_limits::StreamLimits;
use super::value::Value;

/// The source of a value; later variants win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    File,
    /// The variable's name.
    Env(String),
    Flag,
    /// Derived from other options.
    Derived,
}

/// One value per row of [`OPTIONS`].
#[derive(Debug, Clone)]
pub struct Settings {
    values: Vec<(Value, Source)>,
}

impl Settings {
    /// Every option at its built-in default.
    pub fn defaults() -> Self {
        Self {
            values: OPTIONS
                .iter()
                .map(|option| (option.default_value(), Source::Default))
                .collect(),
        }
    }

    /// Sets the option at `index` of the table. If empty means "not given" for the option, an empty value changes nothing.
    pub fn set_at(&mut self, index: usize, value: Value, source: Source) {
        if OPTIONS[index].empty_is_unset && value.is_empty() {
            return;
        }
        self.values[index] = (value, source);
    }

    /// Sets an option that follows from others.
    pub fn derive(&mut self, name: &str, value: Value) {
        self.values[index(name)] = (value, Source::Derived);
    }

    /// Sets an option back to its default, as if it had not been given.
    pub fn reset(&mut self, name: &str) {
        let index = index(name);
        self.values[index] = (OPTIONS[index].default_value(), Source::Default);
    }

    pub fn value(&self, name: &str) -> &Value {
        &self.values[index(name)].0
    }

    pub fn source(&self, name: &str) -> &Source {
        &self.values[index(name)].1
    }

    /// True when the file, the environment, a flag or a derivation set it, even to the default.
    pub fn is_given(&self, name: &str) -> bool {
        *self.source(name) != Source::Default
    }

    /// True when the value equals the built-in default, given or not.
    pub fn is_default(&self, name: &str) -> bool {
        let index = index(name);
        self.values[index].0 == OPTIONS[index].default_value()
    }

    pub fn on(&self, name: &str) -> bool {
        matches!(self.value(name), Value::Bool(true))
    }

    /// # Panics
    /// When `name` is no integer in the table.
    pub fn int(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Int(number) => *number,
            other => panic!("{name} is an integer in the table, not {other:?}"),
        }
    }

    /// # Panics
    /// When `name` is no text in the table.
    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(text) => text,
            other => panic!("{name} is a text in the table, not {other:?}"),
        }
    }

    /// # Panics
    /// When `name` is no list in the table.
    pub fn list(&self, name: &str) -> &[String] {
        match self.value(name) {
            Value::List(items) => items,
            other => panic!("{name} is a list in the table, not {other:?}"),
        }
    }

    /// # Panics
    /// When `name` is no tag list in the table.
    pub fn tags(&self, name: &str) -> &[(String, String)] {
        match self.value(name) {
            Value::Tags(tags) => tags,
            other => panic!("{name} is a tag list in the table, not {other:?}"),
        }
    }

    /// # Panics
    /// When `name` is no table of limits in the table of options.
    pub fn stream_limits(&self, name: &str) -> &[StreamLimits] {
        match self.value(name) {
            Value::StreamLimits(table) => table,
            other => panic!("{name} is a table of limits in the table, not {other:?}"),
        }
    }

    /// The options with their values and sources, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = (&'static OptionSpec, &Value, &Source)> {
        OPTIONS
            .iter()
            .zip(&self.values)
            .map(|(option, (value, source))| (option, value, source))
    }

    /// The option as the operator wrote it, for messages: `--port=8080`, `ANYCABLE_PORT=8080` or `server.port = 8080`. A
    /// value that may hold a password is left out.
    pub fn as_given(&self, name: &str) -> String {
        let index = index(name);
        let option = &OPTIONS[index];
        let (value, source) = &self.values[index];
        let (spelling, equals) = match source {
            Source::Env(variable) => (variable.clone(), "="),
            Source::File => (option.file_key.to_owned(), " = "),
            Source::Default | Source::Flag | Source::Derived if option.has_flag => {
                (format!("--{}", option.name), "=")
            }
            Source::Default | Source::Flag | Source::Derived => (option.name.to_owned(), "="),
        };
        if option.sensitive {
            spelling
        } else {
            format!("{spelling}{equals}{}", in_one_line(&value.to_string()))
        }
    }
}

/// Escapes control characters, because a message is one line.
pub fn in_one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn index(name: &str) -> usize {
    index_of(name).expect("options are asked for by the names in the table")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_spelling_the_operator_used() {
        let check = |name: &str, value: Value, source: Source, expected: &str| {
            let mut settings = Settings::defaults();
            settings.set_at(index(name), value, source);
            assert_eq!(settings.as_given(name), expected);
        };
        let env = |name: &str| Source::Env(name.to_owned());
        check("port", Value::Int(1), Source::Flag, "--port=1");
        check("port", Value::Int(1), env("PORT"), "PORT=1");
        check("port", Value::Int(1), Source::File, "server.port = 1");
        let url = Value::Text("redis://:pass@host".to_owned());
        check("redis_url", url.clone(), Source::Flag, "--redis_url");
        check(
            "redis_url",
            url.clone(),
            env("ANYCABLE_REDIS_URL"),
            "ANYCABLE_REDIS_URL",
        );
        check("redis_url", url, Source::File, "redis.url");
        let lines = Value::Text("it's\r\n2".to_owned());
        check("host", lines, Source::Flag, "--host=it's\\r\\n2");
    }

    #[test]
    fn an_empty_list_of_paths_changes_nothing() {
        let mut settings = Settings::defaults();
        settings.set_at(index("path"), Value::List(Vec::new()), Source::Flag);
        assert_eq!(settings.list("path"), ["/cable"]);
        assert!(!settings.is_given("path"));
        settings.set_at(index("headers"), Value::List(Vec::new()), Source::Flag);
        assert!(settings.list("headers").is_empty());
    }
}

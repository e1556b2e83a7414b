//! What an option is, and how one is found by its flag, variable or file key.
//!
//! The list itself is in `table.rs`. Everything that depends on the set of options (flags, environment, file, help,
//! `--print-config`, refusals) reads that one table. Called by the other files of this folder only.

mod table;

pub use table::OPTIONS;

use super::value::{OptionKind, Value};

/// One option in all its spellings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptionSpec {
    /// Name of the flag without dashes, exactly as the reference spells it; the file key for an option of the file alone.
    pub name: &'static str,
    /// Path in the TOML file, empty when a file cannot set it.
    pub file_key: &'static str,
    pub kind: OptionKind,
    /// The built-in default, written as on the command line.
    pub default_text: &'static str,
    pub help: &'static str,
    pub section: Section,
    /// Not shown in `--help`.
    pub hidden: bool,
    pub support: Support,
    /// False for an option that no variable can set.
    pub has_env: bool,
    /// A second variable name, read when the first one is not set.
    pub second_env: Option<&'static str>,
    /// False for an option that only the file can set.
    pub has_flag: bool,
    /// An empty value counts as "not given" instead of as an empty text.
    pub empty_is_unset: bool,
    /// The value may hold a password, so messages never show it.
    pub sensitive: bool,
}

/// What this server does with an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    Works,
    /// Accepted with a warning: it tunes something that this server does not have, so ignoring it changes nothing. The text
    /// says why.
    NoEffect(&'static str),
    /// Replaced by another option; works and prints a notice.
    Deprecated,
    /// Refused by name when it is switched on; the text says why.
    Refused(&'static str),
}

/// Blocks of `--help`. Source: `contract/operations.md` §10.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The block without a title, shown first.
    General,
    Api,
    Broadcasting,
    Broker,
    Disconnector,
    DurableStreams,
    EmbeddedNats,
    HttpBroadcast,
    Jwt,
    Log,
    LongPolling,
    Metrics,
    Misc,
    Nats,
    Ping,
    Pusher,
    RedisX,
    Redis,
    Rpc,
    Runtime,
    Server,
    Sse,
    SignedStreams,
    Ssl,
    Statsd,
    WebSockets,
}

impl Section {
    /// Upper-case title, empty for [`Section::General`].
    pub fn title(self) -> &'static str {
        match self {
            Self::General => "",
            Self::Api => "API",
            Self::Broadcasting => "BROADCASTING",
            Self::Broker => "BROKER",
            Self::Disconnector => "DISCONNECTOR",
            Self::DurableStreams => "DURABLE STREAMS",
            Self::EmbeddedNats => "EMBEDDED NATS",
            Self::HttpBroadcast => "HTTP BROADCAST",
            Self::Jwt => "JWT",
            Self::Log => "LOG",
            Self::LongPolling => "LONG POLLING",
            Self::Metrics => "METRICS",
            Self::Misc => "MISC",
            Self::Nats => "NATS",
            Self::Ping => "PING",
            Self::Pusher => "PUSHER",
            Self::RedisX => "REDIS X BROADCAST",
            Self::Redis => "REDIS",
            Self::Rpc => "RPC",
            Self::Runtime => "RUNTIME",
            Self::Server => "SERVER",
            Self::Sse => "SERVER-SENT EVENTS",
            Self::SignedStreams => "SIGNED STREAMS",
            Self::Ssl => "SSL",
            Self::Statsd => "STATSD",
            Self::WebSockets => "WEBSOCKETS",
        }
    }
}

impl OptionSpec {
    const fn new(
        section: Section,
        name: &'static str,
        file_key: &'static str,
        kind: OptionKind,
        default_text: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            file_key,
            kind,
            default_text,
            help,
            section,
            hidden: false,
            support: Support::Works,
            has_env: true,
            second_env: None,
            has_flag: true,
            empty_is_unset: false,
            sensitive: false,
        }
    }

    const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    const fn no_env(mut self) -> Self {
        self.has_env = false;
        self
    }

    const fn also_env(mut self, name: &'static str) -> Self {
        self.second_env = Some(name);
        self
    }

    const fn only_in_file(mut self) -> Self {
        self.has_flag = false;
        self.has_env = false;
        self.hidden = true;
        self
    }

    const fn empty_is_unset(mut self) -> Self {
        self.empty_is_unset = true;
        self
    }

    const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }

    const fn deprecated(mut self) -> Self {
        self.support = Support::Deprecated;
        self
    }

    const fn unused(mut self, why: &'static str) -> Self {
        self.support = Support::NoEffect(why);
        self
    }

    const fn refused(mut self, why: &'static str) -> Self {
        self.support = Support::Refused(why);
        self
    }

    /// Variables that set this option, the preferred one first. The name is `ANYCABLE_` and the flag in upper case, with `_`
    /// for `-`.
    ///
    /// Source: `contract/operations.md` §2.
    pub fn env_names(&self) -> Vec<String> {
        if !self.has_env {
            return Vec::new();
        }
        let own = format!(
            "ANYCABLE_{}",
            self.name.replace('-', "_").to_ascii_uppercase()
        );
        std::iter::once(own)
            .chain(self.second_env.map(str::to_owned))
            .collect()
    }

    /// The built-in default as a value.
    pub fn default_value(&self) -> Value {
        self.kind
            .parse(self.default_text)
            .expect("every default in the table is valid for its kind")
    }
}

/// Position in [`OPTIONS`] of the option called `name`.
pub fn index_of(name: &str) -> Option<usize> {
    OPTIONS.iter().position(|option| option.name == name)
}

/// Position in [`OPTIONS`] of the option that the flag `name` (without dashes) sets.
pub fn index_of_flag(name: &str) -> Option<usize> {
    let name = match name {
        "h" => "help",
        "v" => "version",
        other => other,
    };
    index_of(name).filter(|&index| OPTIONS[index].has_flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_and_file_keys_are_unique() {
        let mut names = HashSet::new();
        let mut keys = HashSet::new();
        for option in OPTIONS {
            assert!(names.insert(option.name), "{} stands twice", option.name);
            assert!(
                option.file_key.is_empty() || keys.insert(option.file_key),
                "{}",
                option.file_key
            );
        }
    }

    #[test]
    fn every_default_is_valid_and_allowed() {
        for option in OPTIONS {
            let value = option.default_value();
            assert_eq!(option.kind.check(&value), Ok(()), "{}", option.name);
        }
    }

    #[test]
    fn env_names_follow_the_flag_names() {
        let check = |name: &str, expected: &[&str]| {
            let option = &OPTIONS[index_of(name).expect("in the table")];
            assert_eq!(option.env_names(), expected, "{name}");
        };
        check("port", &["ANYCABLE_PORT", "PORT"]);
        check("redis_url", &["ANYCABLE_REDIS_URL", "REDIS_URL"]);
        check("proxy-cookies", &["ANYCABLE_PROXY_COOKIES"]);
        check("ws_max_pending_size", &["ANYCABLE_WS_MAX_PENDING_SIZE"]);
        check("cores", &["ANYCABLE_CORES"]);
        check("config-path", &[]);
        check("streams.pubsub_channel", &[]);
    }

    #[test]
    fn short_forms_exist_for_help_and_version_only() {
        assert_eq!(index_of_flag("h"), index_of("help"));
        assert_eq!(index_of_flag("v"), index_of("version"));
        assert_eq!(index_of_flag("p"), None);
        assert_eq!(index_of_flag("streams.pubsub_channel"), None);
    }
}

//! What can be wrong with the configuration. Every message is one line that names the option and what is allowed.
//!
//! Source: `contract/operations.md` §1, §3, §6.

use std::fmt::Display;
use std::io;
use std::time::SystemTime;

use thiserror::Error;

use crate::os::local_time::local_time;
use crate::os::random;

/// Why the server does not start with this command line, environment and file.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("flag provided but not defined: -{name}{}", did_you_mean(.suggestion))]
    UnknownFlag {
        name: String,
        suggestion: Option<String>,
    },
    #[error("bad flag syntax: {word}")]
    FlagSyntax { word: String },
    #[error("flag needs an argument: -{name}")]
    FlagWithoutValue { name: String },
    #[error("invalid {}value \"{text}\" for flag -{name}: {cause}", if *.boolean { "boolean " } else { "" })]
    FlagValue {
        name: String,
        text: String,
        boolean: bool,
        cause: String,
    },
    #[error("unexpected argument \"{word}\"{}", .hint.as_deref().unwrap_or_default())]
    UnexpectedArgument { word: String, hint: Option<String> },
    #[error(
        "could not parse \"{text}\" as {kind} value from environment variable \"{variable}\" for flag {name}: {cause}"
    )]
    EnvValue {
        name: String,
        variable: String,
        text: String,
        kind: &'static str,
        cause: String,
    },

    #[error("failed to read config file, cause: open {path}: {}", os_error(.cause))]
    FileRead { path: String, cause: io::Error },
    #[error("failed to parse TOML configuration, cause: {path} line {line}: {message}")]
    FileSyntax {
        path: String,
        line: usize,
        message: String,
    },
    #[error(
        "failed to parse TOML configuration, cause: {path}: {key} must be {expected}, not {found}"
    )]
    FileType {
        path: String,
        key: &'static str,
        expected: &'static str,
        found: &'static str,
    },

    #[error("invalid option {given}: expected {expected}")]
    NotAllowed { given: String, expected: String },
    #[error("option {given} is not supported yet by ringcable ({why}); {remedy}")]
    NotSupported {
        given: String,
        why: String,
        remedy: String,
    },
    #[error("option {given} needs {other} too: set both or none of them")]
    Incomplete { given: String, other: &'static str },
    #[error("option {given} needs {other}: {why}")]
    Needs {
        given: String,
        other: &'static str,
        why: &'static str,
    },
    #[error(
        "no RPC host is set (gRPC on localhost:50051, the default of anycable-go, is not supported): set \
         --rpc_host=http://<app>/_anycable or ANYCABLE_RPC_HOST, or start with --norpc; to try ringcable without an app: \
         --demo"
    )]
    RpcHostMissing,
    #[error(
        "option {given} needs a secret, because host is {host:?} and not loopback: set --secret or ANYCABLE_SECRET, or \
         --host=localhost"
    )]
    ConsoleWithoutSecret { given: String, host: String },
    #[error("failed to load configuration presets, cause: {variable} env is missing")]
    PresetVariable { variable: &'static str },
    #[error("no random bytes from the kernel: {0}")]
    Random(random::Error),
}

impl ConfigError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> i32 {
        1
    }

    /// True when stdout gets `Incorrect Usage: <message>` first and the line on stderr points to the help.
    pub fn usage(&self) -> bool {
        matches!(
            self,
            Self::UnknownFlag { .. }
                | Self::FlagSyntax { .. }
                | Self::FlagWithoutValue { .. }
                | Self::FlagValue { .. }
                | Self::UnexpectedArgument { .. }
                | Self::EnvValue { .. }
        )
    }
}

/// The line for stderr: `YYYY/MM/DD HH:MM:SS <message>` in local time, without a newline.
pub fn stderr_line(now: SystemTime, error: &dyn Display) -> String {
    let unix_secs = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let time = local_time(i64::try_from(unix_secs).unwrap_or(i64::MAX));
    format!(
        "{:04}/{:02}/{:02} {:02}:{:02}:{:02} {error}",
        time.year, time.month, time.day, time.hour, time.minute, time.second
    )
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map(|name| format!(" (did you mean --{name}?)"))
        .unwrap_or_default()
}

/// The system's error text in lower case and without its number, as in the reference.
fn os_error(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stderr_line_starts_with_the_date() {
        let line = stderr_line(SystemTime::now(), &ConfigError::RpcHostMissing);
        let (date, message) = line.split_at("2026/11/23 16:23:49 ".len());
        let shape: String = date
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert_eq!(shape, "0000/00/00 00:00:00 ");
        assert!(message.starts_with("no RPC host is set"), "{message}");
        assert!(!message.contains('\n'));
    }
}

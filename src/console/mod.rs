//! `--console`: the pure part of the operator's page at `/_console`: who may use it, what is served, and the texts.
//!
//! Owns the paths, the access rules, the texts of answers and snapshots, and the files of the page. Does no I/O and reads no
//! clock. `shard::http` answers the requests, `shard::sessions` holds the console's connections, and `shard::console` asks
//! the other shards.

pub mod access;
mod decide;
pub mod page;
pub mod requests;
pub mod search;
pub mod snapshot;
pub mod streams;

pub use decide::{Decision, Operation, decide};

/// The path of the page; all paths of the console are below it.
pub const PATH: &str = "/_console";
/// The one channel of a console connection, byte for byte as the page writes it. The name has this meaning only on console
/// connections: no stream has it, and on an ordinary path a subscribe to it goes to the app.
pub const IDENTIFIER: &str = r#"{"channel":"ringcable:console"}"#;

/// Largest body that the page may send. The largest one it sends is a test message.
pub const BODY_BYTES_MAX: usize = 64 << 10;
/// Largest body of the login form, which anybody may send.
pub const LOGIN_BODY_BYTES_MAX: usize = 4 << 10;

/// What a path of the console stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleRoute {
    Page,
    /// The form (GET) and its submission (POST).
    Login,
    Logout,
    Cable,
    /// The recent records: warnings, errors, slow clients.
    Records,
    Search,
    /// A list of streams.
    Streams,
    /// One stream in detail.
    Stream,
    Disconnect,
    Publish,
    /// Style, scripts, icon. No login is needed for them: they are in the public source as well.
    File(page::File),
    Nowhere,
}

/// `None`: the path is not the console's.
pub fn route(path: &str) -> Option<ConsoleRoute> {
    let rest = path.strip_prefix(PATH)?;
    let name = match rest.strip_prefix('/') {
        Some(name) => name,
        None if rest.is_empty() => return Some(ConsoleRoute::Page),
        // For example /_consoles, which may be a WebSocket path of the app.
        None => return None,
    };
    Some(match name {
        "login" => ConsoleRoute::Login,
        "logout" => ConsoleRoute::Logout,
        "cable" => ConsoleRoute::Cable,
        "records" => ConsoleRoute::Records,
        "search" => ConsoleRoute::Search,
        "streams" => ConsoleRoute::Streams,
        "stream" => ConsoleRoute::Stream,
        "disconnect" => ConsoleRoute::Disconnect,
        "publish" => ConsoleRoute::Publish,
        _ => page::file(name).map_or(ConsoleRoute::Nowhere, ConsoleRoute::File),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_console_is_the_console() {
        fn check(path: &str, expected: Option<ConsoleRoute>) {
            assert_eq!(route(path), expected, "{path}");
        }
        check("/_console", Some(ConsoleRoute::Page));
        check("/_console/cable", Some(ConsoleRoute::Cable));
        check("/_console/login", Some(ConsoleRoute::Login));
        check("/_console/", Some(ConsoleRoute::Nowhere));
        check("/_console/../health", Some(ConsoleRoute::Nowhere));
        check("/_console/index.html", Some(ConsoleRoute::Nowhere));
        check("/_consoles", None);
        check("/_Console", None);
        check("/cable", None);
        check("", None);
    }
}

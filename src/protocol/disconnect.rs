//! How a session ends: the reason in the disconnect message, and the close frame after it.
//!
//! The two complete lists are here. These are outcomes with a form on the wire, not errors. Called by `session` and `shard`.
//!
//! Source: `contract/websocket.md` §5 (reasons) and §9 (close codes).

/// The `reason` of a disconnect message that the server itself sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectReason {
    /// The client is not identified: its token is invalid, a required token is missing, or no app can be asked.
    Unauthorized,
    /// The token was valid before and has expired.
    TokenExpired,
    /// The server is shutting down.
    ServerRestart,
    /// The app asked for it.
    Remote,
    /// No sign of life from the client within the pong timeout.
    NoPong,
    /// The client reads its messages more slowly than they arrive.
    TooSlow,
    /// A poll came for a session that has ended.
    SessionExpired,
}

impl DisconnectReason {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            DisconnectReason::Unauthorized => "unauthorized",
            DisconnectReason::TokenExpired => "token_expired",
            DisconnectReason::ServerRestart => "server_restart",
            DisconnectReason::Remote => "remote",
            DisconnectReason::NoPong => "no_pong",
            DisconnectReason::TooSlow => "too_slow",
            DisconnectReason::SessionExpired => "session_expired",
        }
    }
}

/// The content of a close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Close {
    /// WebSocket close code. 1006 is really sent, as in the reference, although RFC 6455 §7.4.1 reserves it.
    pub code: u16,
    /// UTF-8 text after the code, at most 123 bytes, may be empty.
    pub reason: &'static str,
}

impl Close {
    /// The app or a token check refused the connection.
    pub const AUTH_FAILED: Close = Close {
        code: 1000,
        reason: "Auth Failed",
    };
    /// Connect could not be decided: the app gave an error or no answer, or the token has no usable identity.
    pub const AUTH_ERROR: Close = Close {
        code: 1011,
        reason: "Auth Error",
    };
    /// The answer to a command asked to disconnect.
    pub const COMMAND_FAILED: Close = Close {
        code: 1006,
        reason: "Command Failed",
    };
    /// Remote disconnect command.
    pub const REMOTE: Close = Close {
        code: 1000,
        reason: "Closed remotely",
    };
    /// Shutdown.
    pub const SERVER_RESTART: Close = Close {
        code: 1001,
        reason: "Server restart",
    };
    /// Pong timeout.
    pub const NO_PONG: Close = Close {
        code: 1000,
        reason: "No Pong",
    };
    /// Too many unsent bytes. The reason is empty in the reference too.
    pub const SLOW: Close = Close {
        code: 1000,
        reason: "",
    };
    /// The session holds more memory than it may. Source: RFC 6455 §7.4.1.
    pub const TOO_LARGE: Close = Close {
        code: 1008,
        reason: "session_bytes_max",
    };
    /// The server has no memory for what the client sends. Source: the registry of RFC 6455 §11.7.
    pub const NO_MEMORY: Close = Close {
        code: 1013,
        reason: "try again later",
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_close_reason_fits_a_control_frame() {
        let closes = [
            Close::AUTH_FAILED,
            Close::AUTH_ERROR,
            Close::COMMAND_FAILED,
            Close::REMOTE,
            Close::SERVER_RESTART,
            Close::NO_PONG,
            Close::SLOW,
        ];
        for close in closes {
            assert!(close.reason.len() <= 123, "{close:?}");
        }
    }

    #[test]
    fn reasons_are_the_words_of_the_contract() {
        fn check(reason: DisconnectReason, word: &str) {
            assert_eq!(reason.as_str(), word);
        }
        check(DisconnectReason::Unauthorized, "unauthorized");
        check(DisconnectReason::TokenExpired, "token_expired");
        check(DisconnectReason::ServerRestart, "server_restart");
        check(DisconnectReason::Remote, "remote");
        check(DisconnectReason::NoPong, "no_pong");
        check(DisconnectReason::TooSlow, "too_slow");
    }
}

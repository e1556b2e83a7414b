//! The log text about calls that fail because of the setup or the state of the app: what happened, and what to change.
//!
//! Pure. An error that concerns one call only (an exception of the app, a body that is too large) gets no such text: the
//! record of the session and the app's log say enough.

use std::io;

use rustls::{CertificateError, Error as RustlsError};

use super::error::{RpcError, TlsFailure, TransportError};

/// What is wrong between this server and the app. The log limits the lines of each kind by a rate of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No HTTP answer, for any reason.
    Unreachable,
    Timeout,
    /// 401: the tokens differ.
    Unauthorized,
    /// Another status that says that the call came to the wrong place, or that no app is there.
    WrongPlace,
    Tls,
    /// This server lacked a resource: descriptors, ports, memory.
    Shortage,
}

/// How many kinds of [`Trouble`] there are.
pub const TROUBLES: usize = Trouble::Shortage as usize + 1;

/// Where the token that is sent with every call comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// No token is sent.
    Absent,
    /// Derived from `--secret`.
    Secret,
    /// `--http_rpc_secret` itself.
    Own,
}

/// One line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    pub trouble: Trouble,
    /// What happened and what to do.
    pub text: String,
    /// The failure may end without any change: an app that is still starting looks like this.
    pub may_pass: bool,
}

/// The text about `error` of a call to `url`; `None` when the operator cannot change anything.
pub fn diagnose(error: &RpcError, url: &str, token: TokenSource) -> Option<Diagnosis> {
    if let RpcError::Unreachable { cause, .. } = error
        && let Some(shortage) = cause.shortage()
    {
        return Some(Diagnosis {
            trouble: Trouble::Shortage,
            text: format!("{error}; {}", shortage.advice()),
            may_pass: true,
        });
    }
    let (trouble, advice, may_pass) = match error {
        RpcError::Unreachable { cause, .. } => {
            let (advice, may_pass) = unreachable(cause);
            (Trouble::Unreachable, advice, may_pass)
        }
        RpcError::Timeout { .. } => (
            Trouble::Timeout,
            "the app is busy, stuck or still starting: look at its queue of requests (more Puma threads, a lower \
             --rpc_concurrency), or raise --rpc_request_timeout and --rpc_command_timeout",
            true,
        ),
        RpcError::Status { status } => return of_status(*status, url, token),
        RpcError::Tls { cause, .. } => (Trouble::Tls, tls(cause), false),
        RpcError::BadResponse { .. }
        | RpcError::Unreadable(_)
        | RpcError::BreakerOpen
        | RpcError::NoMemory
        | RpcError::Canceled => return None,
    };
    Some(Diagnosis {
        trouble,
        text: format!("{error}; {advice}"),
        may_pass,
    })
}

/// The text about an answer that is not 200.
pub fn of_status(status: u16, url: &str, token: TokenSource) -> Option<Diagnosis> {
    let (trouble, advice, may_pass) = match status {
        401 => (Trouble::Unauthorized, secrets_differ(token), false),
        403 => (
            Trouble::WrongPlace,
            "something in front of the app's RPC refuses it: in Rails, allow the host of this URL in config.hosts",
            false,
        ),
        404 => (
            Trouble::WrongPlace,
            "the app serves no RPC there: --rpc_host must end with its http_rpc_mount_path (such as /_anycable)",
            false,
        ),
        300..=399 => (
            Trouble::WrongPlace,
            "redirects are not followed: set --rpc_host to the URL that it redirects to (force_ssl in Rails redirects \
             http to https)",
            false,
        ),
        502..=504 => (
            Trouble::Unreachable,
            "a proxy answers, but not the app behind it: start the app, or set --rpc_host to the app itself",
            true,
        ),
        _ => return None,
    };
    Some(Diagnosis {
        trouble,
        text: format!("{url} answers HTTP {status}; {advice}"),
        may_pass,
    })
}

fn secrets_differ(token: TokenSource) -> &'static str {
    match token {
        TokenSource::Absent => {
            "the secrets differ: the app asks for a token and this server has none; set --secret (ANYCABLE_SECRET) to \
             the secret of the app's anycable.yml"
        }
        TokenSource::Secret => {
            "the secrets differ: --secret (ANYCABLE_SECRET) must be the same text here and in the app, and \
             http_rpc_secret must not be set on one side only"
        }
        TokenSource::Own => {
            "the secrets differ: --http_rpc_secret (ANYCABLE_HTTP_RPC_SECRET) must be the same text here and in the app"
        }
    }
}

/// The advice, and whether the failure may end without any change.
fn unreachable(cause: &TransportError) -> (&'static str, bool) {
    let cause = match cause {
        TransportError::Resolve { .. } => {
            return (
                "check the name in --rpc_host; in Docker it is the name of the app's service in a network that both \
                 containers share",
                true,
            );
        }
        TransportError::Connect(failure) => &failure.cause,
        TransportError::Broken(_) | TransportError::Closed => {
            return (
                "the app cuts connections off: it may be restarting, or speak HTTPS on that port (then --rpc_host \
                 starts with https://)",
                true,
            );
        }
        TransportError::NotHttp(_) => {
            return (
                "that port does not speak HTTP: an HTTPS port needs https:// in --rpc_host, a gRPC port (50051) cannot \
                 be used",
                false,
            );
        }
    };
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => (
            "nothing listens there: start the app, or correct --rpc_host (inside a container, localhost is the \
             container itself)",
            true,
        ),
        _ => (
            "that address does not answer: check --rpc_host, firewalls and the containers' networks",
            true,
        ),
    }
}

fn tls(TlsFailure::Protocol(cause): &TlsFailure) -> &'static str {
    use CertificateError as Certificate;
    match cause {
        RustlsError::InvalidMessage(_) => {
            "that port does not speak TLS: --rpc_host must start with http://, or name the HTTPS port"
        }
        RustlsError::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => "its certificate is made for another name than the one in --rpc_host",
        RustlsError::InvalidCertificate(
            Certificate::Expired | Certificate::ExpiredContext { .. },
        ) => "its certificate has expired: renew it (or set the clock of this machine)",
        RustlsError::InvalidCertificate(_) => {
            "its certificate is not signed by anybody who is trusted here: set --rpc_tls_root_ca to the CA's \
             certificate"
        }
        _ => "check the TLS settings of the app",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::InvalidMessage;

    use super::super::error::{BadResponse, ConnectFailure};
    use super::*;

    const URL: &str = "http://app/_anycable/connect";

    fn unreachable_by(cause: TransportError) -> RpcError {
        RpcError::Unreachable {
            url: URL.to_owned(),
            attempts: 1,
            cause,
        }
    }

    fn refused(errno: i32) -> RpcError {
        unreachable_by(TransportError::Connect(ConnectFailure {
            address: ([127, 0, 0, 1], 3000).into(),
            cause: io::Error::from_raw_os_error(errno),
        }))
    }

    fn tls_failure(cause: RustlsError) -> RpcError {
        RpcError::Tls {
            url: URL.to_owned(),
            cause: TlsFailure::Protocol(cause),
        }
    }

    /// `words` must occur in the text.
    fn check(error: &RpcError, trouble: Trouble, words: &str, may_pass: bool) {
        let diagnosis = diagnose(error, URL, TokenSource::Secret).expect("advice");
        assert!(diagnosis.text.contains(words), "{}", diagnosis.text);
        assert!(diagnosis.text.contains(URL), "{}", diagnosis.text);
        assert_eq!((diagnosis.trouble, diagnosis.may_pass), (trouble, may_pass));
    }

    #[test]
    fn an_app_that_cannot_be_reached_is_explained_by_its_cause() {
        use Trouble::Unreachable;
        check(
            &refused(libc::ECONNREFUSED),
            Unreachable,
            "nothing listens there",
            true,
        );
        check(
            &refused(libc::EHOSTUNREACH),
            Unreachable,
            "does not answer",
            true,
        );
        for (errno, words) in [
            (libc::EMFILE, "raise it (LimitNOFILE="),
            (libc::ENFILE, "fs.file-max"),
            (libc::EADDRNOTAVAIL, "ip_local_port_range"),
            (libc::ENOBUFS, "no memory"),
        ] {
            check(&refused(errno), Trouble::Shortage, words, true);
        }
        let unknown = TransportError::Resolve {
            host: "app".to_owned(),
            cause: io::Error::other("name not known"),
        };
        check(
            &unreachable_by(unknown),
            Unreachable,
            "check the name in --rpc_host",
            true,
        );
        check(
            &unreachable_by(TransportError::Closed),
            Unreachable,
            "restarting",
            true,
        );
        check(
            &unreachable_by(TransportError::NotHttp("binary")),
            Unreachable,
            "gRPC port",
            false,
        );
        let slow = RpcError::Timeout {
            url: URL.to_owned(),
            limit: Duration::from_secs(3),
        };
        check(&slow, Trouble::Timeout, "--rpc_request_timeout", true);
    }

    #[test]
    fn a_status_that_means_a_wrong_setting_is_explained() {
        let check_status = |status, trouble, words, may_pass| {
            check(&RpcError::Status { status }, trouble, words, may_pass);
        };
        check_status(401, Trouble::Unauthorized, "the secrets differ", false);
        check_status(403, Trouble::WrongPlace, "config.hosts", false);
        check_status(404, Trouble::WrongPlace, "http_rpc_mount_path", false);
        check_status(301, Trouble::WrongPlace, "force_ssl", false);
        check_status(502, Trouble::Unreachable, "a proxy answers", true);
    }

    #[test]
    fn tls_failures_name_the_side_that_is_wrong() {
        let certificate = |cause| tls_failure(RustlsError::InvalidCertificate(cause));
        let check_tls = |error: RpcError, words| check(&error, Trouble::Tls, words, false);
        check_tls(
            certificate(CertificateError::UnknownIssuer),
            "--rpc_tls_root_ca",
        );
        check_tls(
            certificate(CertificateError::NotValidForName),
            "another name",
        );
        check_tls(certificate(CertificateError::Expired), "has expired");
        check_tls(
            tls_failure(RustlsError::InvalidMessage(
                InvalidMessage::InvalidContentType,
            )),
            "does not speak TLS",
        );
        check_tls(
            tls_failure(RustlsError::DecryptError),
            "check the TLS settings",
        );
    }

    #[test]
    fn the_secret_to_look_at_depends_on_where_the_token_comes_from() {
        let text = |token| {
            of_status(401, URL, token)
                .expect("401 is always explained")
                .text
        };
        assert!(text(TokenSource::Absent).contains("this server has none"));
        assert!(text(TokenSource::Secret).contains("ANYCABLE_SECRET"));
        assert!(text(TokenSource::Own).contains("ANYCABLE_HTTP_RPC_SECRET"));
    }

    #[test]
    fn failures_of_one_call_alone_get_no_advice() {
        for error in [
            RpcError::Status { status: 500 },
            RpcError::Status { status: 422 },
            RpcError::BreakerOpen,
            RpcError::Canceled,
            RpcError::BadResponse {
                url: URL.to_owned(),
                cause: BadResponse::TooLarge,
            },
        ] {
            assert_eq!(diagnose(&error, URL, TokenSource::Secret), None, "{error}");
        }
    }
}

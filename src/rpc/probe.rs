//! The check of the app at the start: one call that makes no app do anything, and what its answer means. This file is pure;
//! the client makes the call.
//!
//! The call is a Connect with an empty body. The Rails side looks at the token, then at the path, and then answers 422
//! "Empty request body" before it runs any code of the app. So one answer tells whether the app is there, whether the
//! secrets are equal, and whether the path is right. Source: `contract/rpc.md` §9.

use super::diagnosis::{Diagnosis, TokenSource, diagnose, of_status};
use super::error::RpcError;

/// The sid of the check, for the app's log.
pub const PROBE_SID: &str = "ringcable-check";

/// The status of the Ruby side for an empty Connect when all settings are right.
const EMPTY_BODY: u16 = 422;

/// What the check found.
#[derive(Debug, PartialEq, Eq)]
pub enum Finding {
    /// All settings are right.
    Good(String),
    /// Something answers; only a client's call will show whether it understands RPC.
    Answers(String),
    /// Calls will fail for this reason.
    Trouble(Diagnosis),
}

/// Interprets the outcome of the check of `url`: the status of an answer, or the error.
pub fn judge(result: &Result<u16, RpcError>, url: &str, token: TokenSource) -> Finding {
    let status = match result {
        Ok(status) => *status,
        Err(error) => {
            return match diagnose(error, url, token) {
                Some(diagnosis) => Finding::Trouble(diagnosis),
                // An answer with an unusable body is still an answer.
                None => Finding::Answers(format!("{url} answers ({error})")),
            };
        }
    };
    if let Some(diagnosis) = of_status(status, url, token) {
        return Finding::Trouble(diagnosis);
    }
    if status == EMPTY_BODY {
        let right = match token {
            TokenSource::Absent => "the path is right, and the app asks for no secret",
            TokenSource::Secret | TokenSource::Own => "the path and the secret are right",
        };
        return Finding::Good(format!("{url} answers, {right}"));
    }
    Finding::Answers(format!(
        "{url} answers HTTP {status} to an empty call, not 422 as AnyCable's Ruby side does: if clients cannot connect, \
         check the path of --rpc_host and the log of the app"
    ))
}

#[cfg(test)]
mod tests {
    use super::super::diagnosis::Trouble;
    use super::super::error::{BadResponse, TransportError};
    use super::*;

    const URL: &str = "http://app/_anycable/connect";

    fn finding(status: u16, token: TokenSource) -> Finding {
        judge(&Ok(status), URL, token)
    }

    #[test]
    fn only_the_answer_of_the_rails_side_proves_path_and_secret() {
        let good = |token| match finding(422, token) {
            Finding::Good(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            good(TokenSource::Secret),
            format!("{URL} answers, the path and the secret are right")
        );
        assert!(good(TokenSource::Absent).contains("asks for no secret"));
        for status in [200, 400, 405, 500] {
            let found = finding(status, TokenSource::Secret);
            assert!(matches!(found, Finding::Answers(_)), "{status}: {found:?}");
        }
    }

    #[test]
    fn wrong_settings_are_trouble() {
        for (status, trouble) in [
            (401, Trouble::Unauthorized),
            (404, Trouble::WrongPlace),
            (502, Trouble::Unreachable),
        ] {
            match finding(status, TokenSource::Secret) {
                Finding::Trouble(diagnosis) => assert_eq!(diagnosis.trouble, trouble, "{status}"),
                other => panic!("{status}: {other:?}"),
            }
        }
    }

    #[test]
    fn no_answer_is_trouble_and_a_broken_one_is_an_answer() {
        let closed = RpcError::Unreachable {
            url: URL.to_owned(),
            attempts: 1,
            cause: TransportError::Closed,
        };
        let found = judge(&Err(closed), URL, TokenSource::Secret);
        assert!(matches!(found, Finding::Trouble(_)), "{found:?}");
        let broken = RpcError::BadResponse {
            url: URL.to_owned(),
            cause: BadResponse::BadChunk,
        };
        let found = judge(&Err(broken), URL, TokenSource::Secret);
        assert!(matches!(found, Finding::Answers(_)), "{found:?}");
    }
}

//! The health endpoint.
//!
//! Owns two constant answers. It does not check the app on purpose: if it did, orchestrators would restart a server with
//! 100,000 open sockets because the app behind it restarts. Called by `shard::http` for any method.

use crate::endpoints::Response;

const BODY: &str = "Ah, ha, ha, ha, stayin' alive, stayin' alive.";

impl Response {
    /// The server runs: 200, for any method.
    ///
    /// Source: `contract/operations.md` §12.
    pub fn health() -> Response {
        Response::text(200, BODY)
    }

    /// The server runs but is about to end: a load balancer should send no more clients.
    pub fn shutting_down() -> Response {
        Response::text(503, "shutting down")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_200_with_45_bytes_of_text() {
        let response = Response::health();
        assert_eq!(response.status, 200);
        assert_eq!(
            response.header("Content-Type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(
            response.body.as_ref(),
            b"Ah, ha, ha, ha, stayin' alive, stayin' alive."
        );
        assert_eq!(response.body.len(), 45);
        assert!(!response.close);
    }

    #[test]
    fn shutting_down_is_503_with_a_word_why() {
        let response = Response::shutting_down();
        assert_eq!(response.status, 503);
        assert_eq!(response.body.as_ref(), b"shutting down");
    }
}

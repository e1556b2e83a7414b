//! The Prometheus endpoint.
//!
//! Owns the answer around the text of `metrics::prometheus`. Called by `shard::http` for any method, without
//! authentication, as the reference does.

use std::borrow::Cow;

use crate::endpoints::Response;
use crate::metrics::{Metrics, prometheus};

impl Response {
    /// All metrics as Prometheus text; `tags` are constant labels.
    ///
    /// Source: `contract/operations.md` §13.
    pub fn metrics(metrics: &Metrics, tags: &[(String, String)]) -> Response {
        let mut text = String::new();
        prometheus::render(metrics, tags, &mut text);
        Response {
            headers: vec![("Content-Type", Cow::Borrowed(prometheus::CONTENT_TYPE))],
            body: Cow::Owned(text.into_bytes()),
            ..Response::empty(200)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_served_as_prometheus_text() {
        let metrics = Metrics::new(1);
        metrics.shards[0].client_msg_total.add(3);
        let response = Response::metrics(&metrics, &[("env".to_owned(), "dev".to_owned())]);
        assert_eq!(response.status, 200);
        assert_eq!(
            response.header("Content-Type"),
            Some("text/plain; version=0.0.4; charset=utf-8")
        );
        let text = String::from_utf8(response.body.into_owned()).expect("the text is UTF-8");
        assert!(
            text.contains("\nanycable_go_client_msg_total{env=\"dev\"} 3\n"),
            "{text}"
        );
    }
}

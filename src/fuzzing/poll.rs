//! Polls: their ids, what a head asks for, and the commands of a body.

use super::Input;
use crate::endpoints::polling::{self, PollPolicy, PollRequest};
use crate::protocol::poll_id::PollId;
use crate::wire::http_head::HeadLimits;
use crate::wire::http_request::RequestHead;

/// The input is a choice of origins, then what a client sends. An id must be the only text of its value, and a request has
/// one meaning.
pub fn poll(data: &[u8]) {
    let mut input = Input(data);
    let origins: &[&str] = match input.byte() % 3 {
        0 => &[],
        1 => &["a.com", "*.b.com"],
        _ => &["*"],
    };
    let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
    let policy = PollPolicy::new(&origins);
    if let Ok(text) = std::str::from_utf8(input.0)
        && let Some(id) = PollId::decode(text)
    {
        assert_eq!(id.encode(), text, "two texts are one id");
    }
    let Ok(Some((head, _))) = RequestHead::decode(input.0, &HeadLimits::default()) else {
        return;
    };
    let (poll_id, origin) = (head.filled(polling::POLL_ID), head.header("origin"));
    let is_post = head.method() == "POST";
    match polling::check(head.method(), poll_id, origin, &policy) {
        PollRequest::Open => assert!(is_post && poll_id.is_none()),
        PollRequest::Poll(id) => assert_eq!(Some(&*id.encode()), poll_id),
        PollRequest::Unknown => assert!(is_post && poll_id.is_some()),
        PollRequest::Refused(response) => {
            assert!([200, 403, 405].contains(&response.status));
            let has_line_end = |value: &str| value.contains(['\r', '\n']);
            assert!(
                !response
                    .headers
                    .iter()
                    .any(|(_, value)| has_line_end(value))
            );
        }
    }
}

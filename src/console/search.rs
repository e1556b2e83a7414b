//! What a search looks for, and what the answer says about a session that was found.
//!
//! Rails names its records by global ids in base64 (`Z2lkOi8v…` is `gid://…`). Operators search for the decoded text, so the
//! search decodes these ids as well.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem;
use serde::Serialize;

use crate::log::shortened;

/// Most sessions in one answer.
pub const HITS_MAX: usize = 50;
/// Most edges (one subscription with one stream) in the answer about one session.
pub const SUBSCRIPTIONS_SHOWN_MAX: usize = 32;
pub const TEXT_SHOWN_BYTES_MAX: usize = 512;

/// `gid://` in base64.
const GLOBAL_ID: &str = "Z2lkOi8v";
/// Lenient, because padding is often cut off and the last character of a cut text may hold unused bits.
const DECODER: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// A text to look for, in any part of a session's sid or connection identifiers.
#[derive(Debug)]
pub struct Query {
    finder: memmem::Finder<'static>,
}

impl Query {
    /// An empty text matches every session.
    pub fn new(text: &str) -> Self {
        Self {
            finder: memmem::Finder::new(text.as_bytes()).into_owned(),
        }
    }

    pub fn is_in(&self, sid: &str, identifiers: &str) -> bool {
        self.finder.find(sid.as_bytes()).is_some()
            || self.finder.find(identifiers.as_bytes()).is_some()
            || global_ids(identifiers).any(|id| self.finder.find(&id).is_some())
    }
}

fn global_ids(identifiers: &str) -> impl Iterator<Item = Vec<u8>> {
    let mut rest = identifiers;
    std::iter::from_fn(move || {
        let start = rest.find(GLOBAL_ID)?;
        let text = &rest[start..];
        let end = text
            .find(|character: char| {
                !(character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '='))
            })
            .unwrap_or(text.len());
        rest = &text[end.max(GLOBAL_ID.len())..];
        Some(DECODER.decode(&text[..end]).unwrap_or_default())
    })
}

/// What is known about a session without storing anything for the console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SessionReport {
    pub shard: usize,
    pub slot: u32,
    pub generation: u32,
    pub sid: String,
    pub identifiers: String,
    /// Bytes that the client has not taken yet.
    pub outbox_bytes: usize,
    /// The app is working on a command of this session.
    pub waits_for_app: bool,
    pub compressed: bool,
    pub encrypted: bool,
    pub subscriptions: Vec<SubscriptionReport>,
    /// Number of subscriptions that the answer leaves out.
    pub subscriptions_left_out: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SubscriptionReport {
    pub identifier: String,
    pub streams: Vec<String>,
}

/// The sessions that the shards found.
#[derive(Debug, Default, Serialize)]
pub struct SearchAnswer {
    pub sessions: Vec<SessionReport>,
    /// There are more than these.
    pub more: bool,
    /// A shard has not answered in time, so sessions may be missing.
    pub incomplete: bool,
}

impl SearchAnswer {
    /// Merges the answers of all shards into one, in the order of shards and slots.
    pub fn merged(found: Vec<Vec<SessionReport>>, complete: bool) -> Self {
        let mut sessions: Vec<SessionReport> = found.into_iter().flatten().collect();
        sessions.sort_unstable_by_key(|session| (session.shard, session.slot));
        let more = sessions.len() > HITS_MAX;
        sessions.truncate(HITS_MAX);
        Self {
            sessions,
            more,
            incomplete: !complete,
        }
    }
}

/// A session's subscriptions as the page shows them, from their identifiers and streams; a subscription counts once per
/// stream.
pub fn subscriptions<'a>(
    identifiers: &[&str],
    streams_of: impl Fn(&str) -> Vec<&'a str>,
) -> (Vec<SubscriptionReport>, usize) {
    let mut room = SUBSCRIPTIONS_SHOWN_MAX;
    let mut shown = Vec::new();
    for identifier in identifiers {
        if room == 0 {
            break;
        }
        let streams = streams_of(identifier);
        let told = streams.len().min(room);
        room -= told.max(1);
        shown.push(SubscriptionReport {
            identifier: shortened(identifier, TEXT_SHOWN_BYTES_MAX),
            streams: streams[..told]
                .iter()
                .map(|stream| shortened(stream, TEXT_SHOWN_BYTES_MAX))
                .collect(),
        });
    }
    let left_out = identifiers.len() - shown.len();
    (shown, left_out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sid_identifiers_and_global_ids_are_searched() {
        let identifiers = r#"{"current_user":"Z2lkOi8vY2FtcGZpcmUvVXNlci80Mg","room":7}"#;
        let check = |text: &str, expected: bool| {
            assert_eq!(
                Query::new(text).is_in("Ab-_9", identifiers),
                expected,
                "{text}"
            );
        };
        check("", true);
        check("b-_", true);
        check("current_user", true);
        check(r#""room":7"#, true);
        check("campfire/User/42", true);
        check("User/4", true);
        check("User/43", false);
        check("ab", false);
        check("gid://campfire/User/422", false);
    }

    #[test]
    fn every_global_id_is_looked_into() {
        let identifiers = r#"{"a":"Z2lkOi8vYS9Vc2VyLzE=","b":"Z2lkOi8vYS9Sb29tLzI"}"#;
        assert!(Query::new("User/1").is_in("", identifiers));
        assert!(Query::new("Room/2").is_in("", identifiers));
        assert!(!Query::new("Room/1").is_in("", identifiers));
    }

    #[test]
    fn answers_of_all_shards_become_one_bounded_list() {
        let session = |shard, slot| SessionReport {
            shard,
            slot,
            ..SessionReport::default()
        };
        let of_shard = |shard, count| {
            (0..count)
                .rev()
                .map(|slot| session(shard, slot))
                .collect::<Vec<_>>()
        };
        let answer = SearchAnswer::merged(vec![of_shard(1, 30), of_shard(0, 20)], true);
        assert_eq!(
            (answer.sessions.len(), answer.more, answer.incomplete),
            (HITS_MAX, false, false)
        );
        assert_eq!((answer.sessions[0].shard, answer.sessions[0].slot), (0, 0));
        let answer = SearchAnswer::merged(vec![of_shard(1, 31), of_shard(0, 20)], false);
        assert_eq!(
            (answer.sessions.len(), answer.more, answer.incomplete),
            (HITS_MAX, true, true)
        );
    }

    #[test]
    fn a_session_with_very_many_streams_is_told_in_part() {
        let names: Vec<String> = (0..100).map(|number| format!("s{number}")).collect();
        let streams = |count: usize| {
            names[..count]
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
        };
        let count = |reports: &[SubscriptionReport]| {
            reports
                .iter()
                .map(|report| report.streams.len())
                .collect::<Vec<_>>()
        };
        let (shown, left_out) = subscriptions(&["a", "b", "c"], |identifier| {
            streams(if identifier == "b" { 100 } else { 1 })
        });
        assert_eq!((count(&shown), left_out), (vec![1, 31], 1));
        let (shown, left_out) = subscriptions(&["a", "b"], |_| Vec::new());
        assert_eq!((count(&shown), left_out), (vec![0, 0], 0));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), identifiers in "[\"a-zZ2lkOi8v+/=é]{0,60}") {
            let query = Query::new(&text);
            let _ = query.is_in("sid", &identifiers);
            prop_assert!(query.is_in(&text, ""));
            let around = ["x", &text, "y"].concat();
            prop_assert!(query.is_in("", &around));
        }
    }
}

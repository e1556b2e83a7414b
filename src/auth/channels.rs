//! The channels the server answers itself: `$pubsub`, and Turbo and CableReady streams when they are switched on.
//!
//! Owns the routing of subscribe and unsubscribe by identifier. A `message` is never routed here: it goes to the app
//! whatever the channel. Called by `session`.
//!
//! A local answer, confirmed or rejected, is no reason for a Disconnect call later. The reference makes this needless call
//! after rejections.
//!
//! Source: `contract/auth_streams.md` §1, §5, §6, §7 and §8.

use super::signed_stream;
use crate::protocol::json::{JsonError, JsonKind, Reader};

const TURBO_CHANNEL: &str = "Turbo::StreamsChannel";
const CABLE_READY_CHANNEL: &str = "CableReady::Stream";

/// Which channels the server answers itself, and with which secrets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamsConfig {
    /// Name of the signed/public streams channel, `$pubsub`; empty removes it.
    pub pubsub_channel: String,
    /// `None`: every signed name is rejected.
    pub secret: Option<String>,
    pub public: bool,
    pub whisper: bool,
    pub presence: bool,
    /// Secret of `Turbo::StreamsChannel` when the server serves it itself.
    pub turbo_secret: Option<String>,
    /// Secret of `CableReady::Stream` when the server serves it itself.
    pub cable_ready_secret: Option<String>,
}

/// Who answers a subscribe command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The app.
    Rpc,
    /// The server, and this is the answer.
    Local(LocalSubscribe),
}

/// The server's own answer to a subscribe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalSubscribe {
    Confirm {
        /// The one stream of the subscription.
        stream: String,
        /// Whether the stream is also the subscription's `$w` state.
        whisper: bool,
        /// Whether the stream is also the subscription's `$p` state.
        presence: bool,
    },
    Reject,
}

/// Decides a subscribe to `identifier`.
pub fn route_subscribe(identifier: &str, streams: &StreamsConfig) -> Route {
    let Some(params) = Params::decode(identifier) else {
        return Route::Rpc;
    };
    match LocalChannel::find(&params.channel, streams) {
        Some(LocalChannel::Pubsub) => Route::Local(subscribe_pubsub(&params, streams)),
        Some(LocalChannel::Turbo { secret }) => {
            Route::Local(subscribe_signed(&params.signed_stream_name, secret))
        }
        Some(LocalChannel::CableReady { secret }) => {
            Route::Local(subscribe_signed(&params.identifier, secret))
        }
        None => Route::Rpc,
    }
}

/// Whether `identifier` names a channel that the server answers itself. Then unsubscribe needs no call either.
pub fn is_local_channel(identifier: &str, streams: &StreamsConfig) -> bool {
    Params::decode(identifier)
        .is_some_and(|params| LocalChannel::find(&params.channel, streams).is_some())
}

enum LocalChannel<'a> {
    Pubsub,
    Turbo { secret: &'a str },
    CableReady { secret: &'a str },
}

impl<'a> LocalChannel<'a> {
    fn find(channel: &str, streams: &'a StreamsConfig) -> Option<Self> {
        let secret_of =
            |secret: &'a Option<String>| secret.as_deref().filter(|secret| !secret.is_empty());
        match channel {
            "" => None,
            name if name == streams.pubsub_channel => Some(LocalChannel::Pubsub),
            TURBO_CHANNEL => {
                secret_of(&streams.turbo_secret).map(|secret| LocalChannel::Turbo { secret })
            }
            CABLE_READY_CHANNEL => secret_of(&streams.cable_ready_secret)
                .map(|secret| LocalChannel::CableReady { secret }),
            _ => None,
        }
    }
}

fn subscribe_pubsub(params: &Params, streams: &StreamsConfig) -> LocalSubscribe {
    // If there is a signed name, only it counts: a plain name beside it is not tried after the signature fails.
    match (&params.signed_stream_name, &params.stream_name) {
        (Param::Invalid, _) | (_, Param::Invalid) => LocalSubscribe::Reject,
        (Param::Text(signed), _) => {
            match signed_stream::verify(signed, streams.secret.as_deref().unwrap_or_default()) {
                Some(stream) => LocalSubscribe::Confirm {
                    stream,
                    whisper: streams.whisper,
                    presence: streams.presence,
                },
                None => LocalSubscribe::Reject,
            }
        }
        (Param::Unset, Param::Text(stream)) if streams.public => LocalSubscribe::Confirm {
            stream: stream.clone(),
            whisper: true,
            presence: true,
        },
        _ => LocalSubscribe::Reject,
    }
}

fn subscribe_signed(signed: &Param, secret: &str) -> LocalSubscribe {
    let stream = match signed {
        Param::Text(signed) => signed_stream::verify(signed, secret),
        Param::Unset | Param::Invalid => None,
    };
    match stream {
        Some(stream) => LocalSubscribe::Confirm {
            stream,
            whisper: false,
            presence: false,
        },
        None => LocalSubscribe::Reject,
    }
}

/// The members of an identifier that the routing reads.
#[derive(Default)]
struct Params {
    channel: String,
    signed_stream_name: Param,
    stream_name: Param,
    identifier: Param,
}

impl Params {
    /// `None` when the identifier is no JSON object or names no channel. Such an identifier goes to the app.
    fn decode(identifier: &str) -> Option<Self> {
        let mut params = Self::default();
        let mut channel = Param::Unset;
        let mut reader = Reader::new(identifier.as_bytes());
        let read = reader.object(|reader, name| {
            let param = match name {
                "channel" => &mut channel,
                "signed_stream_name" => &mut params.signed_stream_name,
                "stream_name" => &mut params.stream_name,
                "identifier" => &mut params.identifier,
                _ => return reader.skip_value(),
            };
            *param = Param::read(reader)?;
            Ok::<_, JsonError>(())
        });
        read.and_then(|()| reader.finish()).ok()?;
        match channel {
            Param::Text(channel) => Some(Self { channel, ..params }),
            Param::Unset | Param::Invalid => None,
        }
    }
}

#[derive(Default)]
enum Param {
    /// Missing, `null` or empty.
    #[default]
    Unset,
    Text(String),
    /// Not a string.
    Invalid,
}

impl Param {
    fn read(reader: &mut Reader<'_>) -> Result<Self, JsonError> {
        if reader.take_null()? {
            return Ok(Param::Unset);
        }
        if reader.kind()? != JsonKind::String {
            return reader.skip_value().map(|()| Param::Invalid);
        }
        let text = reader.string()?;
        Ok(if text.is_empty() {
            Param::Unset
        } else {
            Param::Text(text.into_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `chat/2023` signed with `s3Krit`.
    const SIGNED: &str =
        "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c";
    /// The same signed with `qwerty`.
    const SIGNED_OTHERWISE: &str =
        "ImNoYXQvMjAyMyI=--d62670fccb54ef166ae2d10fd1bc3d65705c7e04ac699c52899e969b26c07994";
    /// The same signed with the empty key.
    const SIGNED_WITH_NOTHING: &str =
        "ImNoYXQvMjAyMyI=--03f5fc02d1df23911d39c85d53c5109d96b4036ea81a5d868b4cfcf281dd2f50";

    fn streams() -> StreamsConfig {
        StreamsConfig {
            pubsub_channel: "$pubsub".to_owned(),
            secret: Some("s3Krit".to_owned()),
            presence: true,
            ..Default::default()
        }
    }

    fn confirm(whisper: bool, presence: bool) -> Route {
        Route::Local(LocalSubscribe::Confirm {
            stream: "chat/2023".to_owned(),
            whisper,
            presence,
        })
    }

    const REJECT: Route = Route::Local(LocalSubscribe::Reject);

    fn pubsub(params: &str) -> String {
        format!(r#"{{"channel":"$pubsub"{params}}}"#)
    }

    #[test]
    fn pubsub_takes_signed_names_and_public_ones_when_allowed() {
        fn check(params: &str, streams: &StreamsConfig, expected: Route) {
            assert_eq!(
                route_subscribe(&pubsub(params), streams),
                expected,
                "{params}"
            );
        }
        let signed = format!(r#","signed_stream_name":"{SIGNED}""#);
        let wrong = format!(r#","signed_stream_name":"{SIGNED_OTHERWISE}""#);
        let plain = r#","stream_name":"chat/2023""#;
        let private = streams();
        let public = StreamsConfig {
            public: true,
            ..streams()
        };
        check(&signed, &private, confirm(false, true));
        check(
            &signed,
            &StreamsConfig {
                whisper: true,
                presence: false,
                ..streams()
            },
            confirm(true, false),
        );
        check(
            &signed,
            &StreamsConfig {
                secret: None,
                ..streams()
            },
            REJECT,
        );
        check(&wrong, &private, REJECT);
        check(plain, &private, REJECT);
        check(plain, &public, confirm(true, true));
        check(
            plain,
            &StreamsConfig {
                presence: false,
                ..public.clone()
            },
            confirm(true, true),
        );
        check(&format!("{signed}{plain}"), &public, confirm(false, true));
        check(&format!("{wrong}{plain}"), &public, REJECT);
        check(
            &format!(r#","signed_stream_name":"",{}"#, &plain[1..]),
            &public,
            confirm(true, true),
        );
        check(
            &format!(r#","signed_stream_name":null,{}"#, &plain[1..]),
            &public,
            confirm(true, true),
        );
        check(
            &format!(r#","signed_stream_name":5,{}"#, &plain[1..]),
            &public,
            REJECT,
        );
        check(&format!(r#"{signed},"stream_name":5"#), &public, REJECT);
        check(r#","stream_name":"""#, &public, REJECT);
        check("", &public, REJECT);
    }

    #[test]
    fn a_name_signed_with_the_empty_key_is_rejected_without_a_secret() {
        let identifier = pubsub(&format!(r#","signed_stream_name":"{SIGNED_WITH_NOTHING}""#));
        for secret in [None, Some(String::new())] {
            assert_eq!(
                route_subscribe(
                    &identifier,
                    &StreamsConfig {
                        secret,
                        ..streams()
                    }
                ),
                REJECT
            );
        }
    }

    #[test]
    fn turbo_and_cable_ready_are_local_only_when_they_have_a_secret() {
        fn check(channel: &str, param: &str, signed: &str, secret: Option<&str>, expected: Route) {
            let secret = secret.map(str::to_owned);
            let streams = StreamsConfig {
                turbo_secret: secret.clone(),
                cable_ready_secret: secret,
                whisper: true,
                public: true,
                ..streams()
            };
            let identifier = format!(r#"{{"channel":"{channel}","{param}":"{signed}"}}"#);
            let is_local = expected != Route::Rpc;
            assert_eq!(
                route_subscribe(&identifier, &streams),
                expected,
                "{identifier}"
            );
            assert_eq!(
                is_local_channel(&identifier, &streams),
                is_local,
                "{identifier}"
            );
        }
        let secret = Some("s3Krit");
        check(
            "Turbo::StreamsChannel",
            "signed_stream_name",
            SIGNED,
            secret,
            confirm(false, false),
        );
        check(
            "Turbo::StreamsChannel",
            "signed_stream_name",
            SIGNED_OTHERWISE,
            secret,
            REJECT,
        );
        check(
            "Turbo::StreamsChannel",
            "stream_name",
            "chat/2023",
            secret,
            REJECT,
        );
        check(
            "Turbo::StreamsChannel",
            "signed_stream_name",
            SIGNED,
            None,
            Route::Rpc,
        );
        check(
            "Turbo::StreamsChannel",
            "signed_stream_name",
            SIGNED,
            Some(""),
            Route::Rpc,
        );
        check(
            "CableReady::Stream",
            "identifier",
            SIGNED,
            secret,
            confirm(false, false),
        );
        check(
            "CableReady::Stream",
            "identifier",
            SIGNED_OTHERWISE,
            secret,
            REJECT,
        );
        check(
            "CableReady::Stream",
            "signed_stream_name",
            SIGNED,
            secret,
            REJECT,
        );
        check("CableReady::Stream", "identifier", SIGNED, None, Route::Rpc);
    }

    #[test]
    fn everything_else_is_for_the_app() {
        fn check(identifier: &str, streams: &StreamsConfig) {
            assert_eq!(
                route_subscribe(identifier, streams),
                Route::Rpc,
                "{identifier}"
            );
            assert!(!is_local_channel(identifier, streams), "{identifier}");
        }
        for identifier in [
            "",
            "A",
            "null",
            "[]",
            "{}",
            r#"{"channel":5}"#,
            r#"{"channel":null}"#,
            r#"{"channel":""}"#,
            r#"{"channel":"$PUBSUB"}"#,
            r#"{"channel":"$pubsub"} x"#,
            r#"{"channel":"RoomChannel","room_id":1}"#,
        ] {
            check(identifier, &streams());
            check(identifier, &StreamsConfig::default());
        }
        check(
            &pubsub(""),
            &StreamsConfig {
                pubsub_channel: String::new(),
                ..streams()
            },
        );
        assert!(is_local_channel(&pubsub(r#","any":[{}]"#), &streams()));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(identifier in any::<String>()) {
            route_subscribe(&identifier, &streams());
            route_subscribe(&pubsub(&identifier), &streams());
        }
    }
}

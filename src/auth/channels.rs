//! The channels the server answers itself: `$pubsub`, and Turbo and CableReady streams when they are switched on.
//!
//! Owns the routing of subscribe and unsubscribe by identifier. A `message` is never routed here: it goes to the app
//! whatever the channel. Called by `session`.
//!
//! A local answer, confirmed or rejected, gives the session no interest in a disconnect call (the reference forgets this
//! for rejections and makes a needless call).
//!
//! Source: `contract/auth_streams.md` §1, §5, §6, §7 and §8.

use super::signed_stream;
use crate::config::StreamsConfig;
use crate::protocol::json::{JsonError, Kind, Reader};

const TURBO_CHANNEL: &str = "Turbo::StreamsChannel";
const CABLE_READY_CHANNEL: &str = "CableReady::Stream";

/// Who answers a subscribe.
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

/// Whether `identifier` names a channel the server answers itself, so that unsubscribe needs no call either.
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
    // A signed name decides alone: a plain one beside it is no second chance.
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

/// The members of an identifier that matter here.
#[derive(Default)]
struct Params {
    channel: String,
    signed_stream_name: Param,
    stream_name: Param,
    identifier: Param,
}

impl Params {
    /// `None` when the identifier is no JSON object or names no channel: only the app can know what it means.
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
        if reader.kind()? != Kind::String {
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

//! The three RPC calls and their answers as JSON, from the app's side. Pure; called by `app` and `channels`.
//!
//! Strict like the Ruby side: an unknown field or a wrong type makes the whole call fail.
//! Source: `contract/rpc.md` §4, §6 and §9.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectCall {
    pub env: Env,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandCall {
    pub command: String,
    pub identifier: String,
    #[serde(default)]
    pub connection_identifiers: String,
    #[serde(default)]
    pub data: String,
    /// Only the form is checked: the app finds everything by the connection identifiers.
    #[serde(rename = "env")]
    pub _env: Env,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DisconnectCall {
    /// Only the form is checked: the chat knows visitors by sid.
    #[serde(default, rename = "identifiers")]
    pub _identifiers: String,
    #[serde(default, rename = "subscriptions")]
    pub _subscriptions: Vec<String>,
    #[serde(rename = "env")]
    pub _env: Env,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Env {
    pub url: String,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The app reads no state of the session; a value of the wrong type is an error nevertheless.
    #[serde(default, rename = "cstate")]
    pub _cstate: BTreeMap<String, String>,
    #[serde(default, rename = "istate")]
    pub _istate: BTreeMap<String, String>,
}

const SUCCESS: u8 = 1;
const FAILURE: u8 = 2;

/// The answer to any of the calls; default values are left out, as the Ruby encoder does.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    #[serde(skip_serializing_if = "is_zero")]
    status: u8,
    #[serde(skip_serializing_if = "String::is_empty")]
    identifiers: String,
    #[serde(skip_serializing_if = "is_false")]
    stop_streams: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    streams: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transmissions: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    error_msg: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Changes>,
}

/// What changed in the session's state; `{}`: nothing.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Changes {
    /// Of this subscription.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    istate: BTreeMap<&'static str, String>,
}

/// The key of a subscription's state that names the stream of its presence.
const PRESENCE_KEY: &str = "$p";

impl Answer {
    /// SUCCESS without any text or change.
    pub fn success() -> Answer {
        Answer {
            status: SUCCESS,
            env: Some(Changes::default()),
            ..Answer::default()
        }
    }

    /// Connect succeeded: the connection identifiers and the welcome. With its `sid` a client can come back.
    pub fn welcome(identifiers: String, sid: &str) -> Answer {
        #[derive(Serialize)]
        struct Welcome<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            sid: &'a str,
        }
        let welcome = Welcome {
            kind: "welcome",
            sid,
        };
        Answer {
            identifiers,
            ..Answer::success()
        }
        .transmit(json(&welcome))
    }

    /// Connect was refused, and the client shall not retry.
    pub fn unauthorized() -> Answer {
        Answer {
            status: FAILURE,
            ..Answer::default()
        }
        .transmit(r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#.to_owned())
    }

    /// The subscription exists now and listens to `streams`.
    pub fn confirmed(identifier: &str, streams: Vec<String>) -> Answer {
        Answer {
            streams,
            ..Answer::success()
        }
        .transmit(subscription_reply(identifier, "confirm_subscription"))
    }

    /// Lets the client be present in `stream` with this subscription.
    pub fn with_presence(mut self, stream: String) -> Answer {
        let changes = self.env.get_or_insert_default();
        changes.istate.insert(PRESENCE_KEY, stream);
        self
    }

    /// The channel refused the subscription.
    pub fn rejected(identifier: &str) -> Answer {
        Answer {
            status: FAILURE,
            stop_streams: true,
            env: Some(Changes::default()),
            ..Answer::default()
        }
        .transmit(subscription_reply(identifier, "reject_subscription"))
    }

    /// The subscription was removed.
    pub fn unsubscribed() -> Answer {
        Answer {
            stop_streams: true,
            ..Answer::success()
        }
    }

    /// The app failed. The answer has no `status`, which is how Rails reports ERROR.
    pub fn error(message: String) -> Answer {
        Answer {
            error_msg: message,
            ..Answer::default()
        }
    }

    /// Adds a text that the client gets unchanged.
    pub fn transmit(mut self, transmission: String) -> Answer {
        self.transmissions.push(transmission);
        self
    }

    /// Adds `message` for the subscription `identifier`.
    pub fn transmit_message(self, identifier: &str, message: &impl Serialize) -> Answer {
        #[derive(Serialize)]
        struct Transmission<'a, M> {
            identifier: &'a str,
            message: &'a M,
        }
        self.transmit(json(&Transmission {
            identifier,
            message,
        }))
    }
}

/// `value` as JSON text.
pub fn json(value: &impl Serialize) -> String {
    sonic_rs::to_string(value).expect("plain structs of strings, numbers and lists always encode")
}

fn subscription_reply(identifier: &str, kind: &'static str) -> String {
    #[derive(Serialize)]
    struct SubscriptionReply<'a> {
        identifier: &'a str,
        #[serde(rename = "type")]
        kind: &'static str,
    }
    json(&SubscriptionReply { identifier, kind })
}

fn is_zero(status: &u8) -> bool {
    *status == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: Answer, expected: &str) {
        assert_eq!(json(&answer), expected);
    }

    #[test]
    fn answers_have_the_bytes_of_the_contract() {
        check(
            Answer::welcome(r#"{"current_user":"Z2lk"}"#.to_owned(), "s1"),
            r#"{"status":1,"identifiers":"{\"current_user\":\"Z2lk\"}","transmissions":["{\"type\":\"welcome\",\"sid\":\"s1\"}"],"env":{}}"#,
        );
        check(
            Answer::unauthorized(),
            r#"{"status":2,"transmissions":["{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}"]}"#,
        );
        check(
            Answer::confirmed(r#"{"channel":"A"}"#, vec!["s".to_owned()]),
            r#"{"status":1,"streams":["s"],"transmissions":["{\"identifier\":\"{\\\"channel\\\":\\\"A\\\"}\",\"type\":\"confirm_subscription\"}"],"env":{}}"#,
        );
        check(
            Answer::success().with_presence("p".to_owned()),
            r#"{"status":1,"env":{"istate":{"$p":"p"}}}"#,
        );
        check(
            Answer::rejected("A"),
            r#"{"status":2,"stop_streams":true,"transmissions":["{\"identifier\":\"A\",\"type\":\"reject_subscription\"}"],"env":{}}"#,
        );
        check(
            Answer::unsubscribed(),
            r#"{"status":1,"stop_streams":true,"env":{}}"#,
        );
        check(Answer::error("no".to_owned()), r#"{"error_msg":"no"}"#);
    }

    #[test]
    fn a_call_with_an_unknown_field_or_a_wrong_type_is_refused() {
        for text in [
            r#"{"env":{"url":"u"},"sid":"x"}"#,
            r#"{"env":{"url":1}}"#,
            r#"{"env":{"url":"u","headers":{"cookie":1}}}"#,
            r#"{"env":{}}"#,
            "{}",
            "",
        ] {
            assert!(sonic_rs::from_str::<ConnectCall>(text).is_err(), "{text}");
        }
        assert!(sonic_rs::from_str::<ConnectCall>(r#"{"env":{"url":"u"}}"#).is_ok());
    }
}

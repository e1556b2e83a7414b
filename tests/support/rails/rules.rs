//! The simple app: what it answers to calls for which the test has no rule.

use serde_json::json;

use super::{Answer, Call};

/// The `identifiers` of the default app's connect answer. Source: `contract/rpc.md` §11.
pub const CURRENT_USER: &str = r#"{"current_user":"Z2lkOi8vY2FtcGZpcmUvVXNlci8x"}"#;

/// The default app's welcome, as Rails sends it over HTTP RPC.
pub const WELCOME: &str = r#"{"type":"welcome"}"#;

/// `{"identifier":"…","type":"confirm_subscription"}`, in Rails' key order.
pub fn confirmation(identifier: &str) -> String {
    format!(
        r#"{{"identifier":{},"type":"confirm_subscription"}}"#,
        json!(identifier)
    )
}

/// `{"identifier":"…","type":"reject_subscription"}`, in Rails' key order.
pub fn rejection(identifier: &str) -> String {
    format!(
        r#"{{"identifier":{},"type":"reject_subscription"}}"#,
        json!(identifier)
    )
}

/// Welcomes everybody, confirms every subscribe with the stream `stream:<identifier>`, echoes what is performed.
pub(super) fn simple_app(call: &Call) -> Answer {
    let identifier = call.identifier();
    match (call.method.as_str(), call.command()) {
        ("connect", _) => Answer::welcome(CURRENT_USER, &[WELCOME]),
        ("command", "subscribe") => Answer::confirm(identifier, &[&format!("stream:{identifier}")]),
        ("command", "unsubscribe") => {
            Answer::json(&json!({ "status": 1, "stop_streams": true, "env": {} }))
        }
        ("command", _) => Answer::transmit(&[echo(identifier, call.data())]),
        _ => Answer::json(&json!({ "status": 1 })),
    }
}

/// What the simple app transmits for a performed `data`.
pub fn echo(identifier: &str, data: &str) -> String {
    format!(
        r#"{{"identifier":{},"message":{{"echo":{}}}}}"#,
        json!(identifier),
        json!(data)
    )
}

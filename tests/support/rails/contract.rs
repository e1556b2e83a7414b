//! What `contract/rpc.md` asks of a call.

use serde_json::Value;

use crate::support::app::Request;

/// Where the calls of an app have to go, and with which token.
pub(super) struct Contract {
    pub base_path: String,
    pub token: Option<String>,
}

impl Contract {
    /// Source: `contract/rpc.md` §2 and §3.
    pub(super) fn check_request(
        &self,
        request: &Request,
        authority: &str,
        method: &str,
        query: &str,
    ) -> Vec<String> {
        let mut violations = Vec::new();
        let expected_line = format!("POST {}/{method}{query} HTTP/1.1", self.base_path);
        if request.line() != expected_line
            || !["connect", "command", "disconnect"].contains(&method)
        {
            violations.push(format!("request line is not {expected_line:?}"));
        }
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let length = request.body.len().to_string();
        let expected = [
            ("host", Some(authority)),
            ("user-agent", Some("Go-http-client/1.1")),
            ("content-length", Some(length.as_str())),
            ("authorization", authorization.as_deref()),
            ("content-type", Some("application/json")),
            ("x-anycable-meta-protov", Some("v1")),
            ("accept-encoding", Some("gzip")),
        ];
        for (name, value) in expected {
            if request.header(name) != value {
                violations.push(format!(
                    "header {name} is {:?}, not {value:?}",
                    request.header(name)
                ));
            }
        }
        if request
            .header("x-anycable-meta-sid")
            .is_none_or(str::is_empty)
        {
            violations.push("no x-anycable-meta-sid".to_owned());
        }
        let mut seen = Vec::new();
        for (name, _) in request.headers() {
            let name = name.to_ascii_lowercase();
            let known = name == "x-anycable-meta-sid"
                || expected.iter().any(|(expected, _)| *expected == name);
            if !known || seen.contains(&name) {
                violations.push(format!("unexpected or repeated header {name}"));
            }
            seen.push(name);
        }
        violations
    }
}

/// What `contract/rpc.md` §4 allows in a body: known fields, right types, nothing empty, compact.
pub(super) fn check_body(method: &str, raw: &str, body: &Value) -> Vec<String> {
    let fields: &[(&str, Kind)] = match method {
        "connect" => &[("env", Kind::Env)],
        "command" => &[
            ("command", Kind::Text),
            ("identifier", Kind::Text),
            ("connection_identifiers", Kind::Text),
            ("data", Kind::Text),
            ("env", Kind::Env),
        ],
        _ => &[
            ("identifiers", Kind::Text),
            ("subscriptions", Kind::Texts),
            ("env", Kind::Env),
        ],
    };
    let mut violations = Vec::new();
    check_object("body", body, fields, &mut violations);
    let env: &[(&str, Kind)] = &[
        ("url", Kind::Text),
        ("headers", Kind::Map),
        ("cstate", Kind::Map),
        ("istate", Kind::Map),
    ];
    check_object("env", &body["env"], env, &mut violations);
    if method == "connect" && body["env"].get("istate").is_some() {
        violations.push("a connect call carries istate".to_owned());
    }
    if body["env"]["url"].as_str().is_none()
        || body["env"]["headers"]["REMOTE_ADDR"].as_str().is_none()
    {
        violations.push("env without url or REMOTE_ADDR".to_owned());
    }
    if method == "command"
        && !["subscribe", "unsubscribe", "message"]
            .contains(&body["command"].as_str().unwrap_or(""))
    {
        violations.push(format!("command {}", body["command"]));
    }
    if has_space_outside_strings(raw) {
        violations.push("the JSON is not compact".to_owned());
    }
    violations
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Texts,
    Map,
    Env,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Texts => value
                .as_array()
                .is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string)),
            Self::Map => value
                .as_object()
                .is_some_and(|map| !map.is_empty() && map.values().all(Value::is_string)),
            Self::Env => value.is_object(),
        }
    }
}

fn check_object(name: &str, value: &Value, fields: &[(&str, Kind)], violations: &mut Vec<String>) {
    let Some(object) = value.as_object() else {
        violations.push(format!("{name} is not an object"));
        return;
    };
    for (key, value) in object {
        match fields.iter().find(|(field, _)| field == key) {
            Some((_, kind)) if kind.fits(value) => {}
            Some(_) => violations.push(format!(
                "{name}.{key} is empty or of the wrong type: {value}"
            )),
            None => violations.push(format!("unknown field {name}.{key}")),
        }
    }
}

fn has_space_outside_strings(raw: &str) -> bool {
    let (mut in_string, mut escaped) = (false, false);
    for byte in raw.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\n' | b'\t' if !in_string => return true,
            _ => {}
        }
    }
    false
}

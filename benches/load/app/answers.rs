//! The answers of the app: reads a call as it came over HTTP, writes the whole answer.
//!
//! Only [`stream_of`] decides which stream an identifier gets. There is no JSON parser, because the app must stay cheap:
//! servers send compact JSON, and its order is part of the contract.

use std::io::Write as _;

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine as _};
use memchr::memmem;

use super::MOUNT;

/// The stream of a subscription with this identifier (JSON text); `None` for channels without a stream.
///
/// Campfire's channels follow Campfire's rules. For others the field `stream` names the stream, or else the channel's name
/// does.
pub fn stream_of(identifier: &str, user: u64) -> Option<String> {
    // The identifier is escaped in a call and not escaped in a client's command; both are read the same way.
    let plain = identifier.replace('\\', "");
    let text = |key| field(&plain, key).unwrap_or("");
    let room = || global_id("Rooms::Closed", text("room_id"));
    match text("channel") {
        "HeartbeatChannel" | "MemberChannel" => None,
        "PresenceChannel" => Some(format!("presence:{}", room())),
        "TypingNotificationsChannel" => Some(format!("typing_notifications:{}", room())),
        "UnreadRoomsChannel" => Some("unread_rooms".to_owned()),
        "RoomListChannel" => Some("room_list".to_owned()),
        "UserUnreadRoomsChannel" => Some(format!("user_{user}_unreads")),
        "UnreadNotificationsChannel" => Some(format!("user_{user}_notifications")),
        "UserInvolvementsChannel" => Some(format!("user_{user}_involvements")),
        "ReadRoomsChannel" => Some(format!("user_{user}_reads")),
        "Turbo::StreamsChannel" => {
            let signed = text("signed_stream_name");
            Some(
                signed
                    .split_once("--")
                    .map_or(signed, |(name, _)| name)
                    .to_owned(),
            )
        }
        channel => Some(field(&plain, "stream").unwrap_or(channel).to_owned()),
    }
}

/// The user for a cookie: always the same one, and spread over 10,000 users.
pub fn user_of_cookie(cookie: &str) -> u64 {
    cookie.bytes().fold(0, |hash: u64, byte| {
        hash.wrapping_mul(31).wrapping_add(u64::from(byte))
    }) % 10_000
}

/// The connection identifiers that the app gives to this user.
pub fn connection_identifiers(user: u64) -> String {
    format!(
        r#"{{"current_user":"{}"}}"#,
        global_id("User", &user.to_string())
    )
}

/// The kind of call, with the body where the answer depends on it.
pub enum Call<'a> {
    Connect {
        body: &'a str,
        /// The sid, which the app puts into the welcome.
        sid: Option<&'a str>,
    },
    Command(&'a str),
    Disconnect,
    /// A Connect without a body: ringcable's check at its start.
    Check,
}

/// Whether a whole call has arrived.
pub enum Parsed<'a> {
    Whole(Call<'a>),
    Part,
    Wrong,
}

impl<'a> Call<'a> {
    /// Reads one request with its body; no further bytes may follow it.
    pub fn parse(request: &'a [u8]) -> Parsed<'a> {
        let Some(head_end) = memmem::find(request, b"\r\n\r\n") else {
            return Parsed::Part;
        };
        let (Ok(head), Ok(body)) = (
            str::from_utf8(&request[..head_end]),
            str::from_utf8(&request[head_end + 4..]),
        ) else {
            return Parsed::Wrong;
        };
        let mut lines = head.split("\r\n");
        let path = lines
            .next()
            .and_then(|line| line.strip_prefix("POST "))
            .and_then(|line| line.split(' ').next());
        let header = |wanted: &str| {
            let mut headers = lines.clone().filter_map(|line| line.split_once(':'));
            let found = headers.find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.trim())
        };
        let length = header("content-length").and_then(|value| value.parse().ok());
        let (Some(path), Some(length)) = (path.and_then(|path| path.strip_prefix(MOUNT)), length)
        else {
            return Parsed::Wrong;
        };
        if body.len() < length {
            return Parsed::Part;
        }
        match path {
            _ if body.len() > length => Parsed::Wrong,
            "/connect" | "/connect?ringcable=start-check" if body.is_empty() => {
                Parsed::Whole(Self::Check)
            }
            "/connect" => Parsed::Whole(Self::Connect {
                body,
                sid: header("x-anycable-meta-sid"),
            }),
            "/command" => Parsed::Whole(Self::Command(body)),
            "/disconnect" => Parsed::Whole(Self::Disconnect),
            _ => Parsed::Wrong,
        }
    }

    /// Writes the whole HTTP answer.
    pub fn answer_into(&self, answer: &mut Vec<u8>) {
        let (status, body) = match self {
            Self::Connect { body, sid } => ("200 OK", connect_answer(body, *sid)),
            Self::Command(body) => ("200 OK", command_answer(body)),
            Self::Disconnect => ("200 OK", r#"{"status":1}"#.to_owned()),
            Self::Check => ("422 Unprocessable Content", "Empty request body".to_owned()),
        };
        let head = "Content-Type: application/json\r\nContent-Length:";
        let _ = write!(
            answer,
            "HTTP/1.1 {status}\r\n{head} {}\r\n\r\n{body}",
            body.len()
        );
    }
}

fn connect_answer(body: &str, sid: Option<&str>) -> String {
    let user = user_of_cookie(field(body, "cookie").unwrap_or(""));
    let identifiers = escaped(&connection_identifiers(user));
    let sid = sid.map_or(String::new(), |sid| format!(r#",\"sid\":\"{sid}\""#));
    format!(
        r#"{{"status":1,"identifiers":"{identifiers}","transmissions":["{{\"type\":\"welcome\"{sid}}}"],"env":{{}}}}"#
    )
}

fn command_answer(body: &str) -> String {
    // Escaped once, as in the body. A transmission is JSON text inside JSON text, so it needs a second escape.
    let identifier = field(body, "identifier").unwrap_or("");
    let twice = escaped(identifier);
    match field(body, "command") {
        Some("subscribe") => {
            let user = user_of_call(body);
            let streams = stream_of(identifier, user).map_or(String::new(), |stream| {
                format!(r#""streams":["{}"],"#, escaped(&stream))
            });
            let plain = identifier.replace('\\', "");
            let istate = field(&plain, "presence").map_or(String::new(), |stream| {
                format!(r#""istate":{{"$p":"{stream}"}}"#)
            });
            format!(
                r#"{{"status":1,{streams}"transmissions":["{{\"identifier\":\"{twice}\",\"type\":\"confirm_subscription\"}}"],"env":{{{istate}}}}}"#
            )
        }
        Some("unsubscribe") => r#"{"status":1,"stop_streams":true,"env":{}}"#.to_owned(),
        _ if field(body, "data").is_some_and(|data| data.contains("echo")) => {
            format!(
                r#"{{"status":1,"transmissions":["{{\"identifier\":\"{twice}\",\"message\":\"echo\"}}"],"env":{{}}}}"#
            )
        }
        _ => r#"{"status":1,"env":{}}"#.to_owned(),
    }
}

/// The user in the connection identifiers of a command.
fn user_of_call(body: &str) -> u64 {
    let identifiers = field(body, "connection_identifiers")
        .unwrap_or("")
        .replace('\\', "");
    let decoded = field(&identifiers, "current_user")
        .and_then(|text| BASE64_STANDARD_NO_PAD.decode(text).ok());
    let global_id = decoded
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .unwrap_or_default();
    global_id
        .rsplit('/')
        .next()
        .and_then(|user| user.parse().ok())
        .unwrap_or(0)
}

/// The unpadded base64 of `gid://campfire/class/id`.
pub fn global_id(class: &str, id: &str) -> String {
    BASE64_STANDARD_NO_PAD.encode(format!("gid://campfire/{class}/{id}"))
}

/// The value of the first field with this name, as written in the JSON: a string without its quotes and with its escapes, or
/// a number. Correct only for texts in which no earlier value contains the field's name, which holds for all servers and the
/// fleet.
fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let quoted = memmem::find_iter(json.as_bytes(), name)
        .map(|at| at + name.len())
        .find(|&end| json[..end - name.len()].ends_with('"') && json[end..].starts_with("\":"))?;
    let value = json[quoted + 2..].trim_start();
    let Some(text) = value.strip_prefix('"') else {
        return Some(&value[..value.find([',', '}']).unwrap_or(value.len())]);
    };
    let bytes = text.as_bytes();
    let mut at = 0;
    while *bytes.get(at)? != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    Some(&text[..at])
}

/// The text as written inside a JSON string. These texts have no control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

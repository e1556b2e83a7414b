//! The kinds of clients: Campfire's load script, its room page, and plain public streams.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use ring::hmac;

use crate::app::answers::{global_id, user_of_cookie};
use crate::fleet::Clients;

/// The secret of the tokens of [`TokenBearers`], for `--jwt_secret`.
pub const JWT_SECRET: &str = "a secret of nobody";
/// Rooms that the clients of [`RoomPage`] are spread over.
const ROOMS: u32 = 200;
/// Bytes of the cookie of a signed-in user.
const COOKIE_BYTES: usize = 400;

/// One subscription through the app, the same for all clients, to the publisher's first stream.
pub struct OneChannel;

impl Clients for OneChannel {
    fn header_lines(&self, index: u32) -> String {
        cookie_line(index)
    }

    fn identifiers(&self, _index: u32) -> Vec<String> {
        vec![r#"{"channel":"BenchChannel","stream":"s0"}"#.to_owned()]
    }

    fn stream(&self, _index: u32) -> Option<u32> {
        Some(0)
    }
}

/// Campfire's load script: six subscriptions, three of them to Turbo streams that all clients share.
pub struct LoadScript;

impl Clients for LoadScript {
    fn header_lines(&self, index: u32) -> String {
        cookie_line(index)
    }

    fn identifiers(&self, _index: u32) -> Vec<String> {
        let room = global_id("Rooms::Closed", "1");
        // The script writes a space after the comma.
        let turbo = |name: &str| turbo_identifier(name, ", ");
        vec![
            r#"{"channel":"PresenceChannel", "room_id":1}"#.to_owned(),
            r#"{"channel":"UnreadRoomsChannel"}"#.to_owned(),
            r#"{"channel":"HeartbeatChannel"}"#.to_owned(),
            turbo("rooms"),
            turbo(&format!("{room}:messages")),
            turbo(&format!("{}:rooms", global_id("User", "1"))),
        ]
    }
}

/// Campfire's room page: 14 subscriptions, of which some belong to the user, some to the room, and some are the same for
/// all.
pub struct RoomPage;

impl Clients for RoomPage {
    fn header_lines(&self, index: u32) -> String {
        cookie_line(index)
    }

    fn identifiers(&self, index: u32) -> Vec<String> {
        let room_id = 1 + index % ROOMS;
        let room = global_id("Rooms::Closed", &room_id.to_string());
        let user = global_id("User", &user_of_cookie(&cookie(index)).to_string());
        let membership = global_id("Membership", &(1_000_000 + index).to_string());
        let turbo = |name: &str| turbo_identifier(name, ",");
        let of_room = |channel: &str| format!(r#"{{"channel":"{channel}","room_id":{room_id}}}"#);
        let plain = |channel: &str| format!(r#"{{"channel":"{channel}"}}"#);
        vec![
            turbo(&format!("{room}:messages")),
            turbo(&membership),
            turbo(&format!("{user}:{room}:messages")),
            turbo("rooms"),
            turbo(&format!("{user}:rooms")),
            of_room("PresenceChannel"),
            of_room("TypingNotificationsChannel"),
            plain("HeartbeatChannel"),
            plain("UnreadRoomsChannel"),
            plain("UserUnreadRoomsChannel"),
            plain("UnreadNotificationsChannel"),
            plain("RoomListChannel"),
            plain("UserInvolvementsChannel"),
            plain("ReadRoomsChannel"),
        ]
    }
}

/// Authenticated by a token, with six public streams each; nothing goes through the app.
pub struct TokenBearers;

impl Clients for TokenBearers {
    fn target(&self, index: u32) -> String {
        format!("/cable?jid={}", token(index))
    }

    fn identifiers(&self, _index: u32) -> Vec<String> {
        (0..6)
            .map(|stream| format!(r#"{{"channel":"$pubsub","stream_name":"stream-{stream}"}}"#))
            .collect()
    }
}

/// One public stream for all clients.
pub struct OneStream;

impl Clients for OneStream {
    fn identifiers(&self, _index: u32) -> Vec<String> {
        vec![r#"{"channel":"$pubsub","stream_name":"everybody"}"#.to_owned()]
    }

    fn stream(&self, _index: u32) -> Option<u32> {
        Some(0)
    }
}

/// The cookie of a client: as long as that of a signed-in user, and different for each client.
pub fn cookie(index: u32) -> String {
    let mut cookie = format!("session_token=eyJfcmFpbHMiOnsibWVzc2FnZSI6{index:08x}");
    while cookie.len() < COOKIE_BYTES {
        let byte = b'a' + ((cookie.len() as u32 * 7 + index) % 26) as u8;
        cookie.push(char::from(byte));
    }
    cookie
}

pub fn cookie_line(index: u32) -> String {
    format!("Origin: http://localhost\r\nCookie: {}\r\n", cookie(index))
}

/// As long as a signed name of Turbo; the signature is not checked here.
fn turbo_identifier(name: &str, comma: &str) -> String {
    let name = BASE64_STANDARD.encode(format!("\"{name}\""));
    let signature = "5f1c".repeat(16);
    format!(
        r#"{{"channel":"Turbo::StreamsChannel"{comma}"signed_stream_name":"{name}--{signature}"}}"#
    )
}

/// A token (HS256) that is valid for an hour.
fn token(index: u32) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let head = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = format!(
        r#"{{"ext":"{{\"user_id\":{index}}}","exp":{}}}"#,
        now + 3600
    );
    let signed = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, JWT_SECRET.as_bytes());
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

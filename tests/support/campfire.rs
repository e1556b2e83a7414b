//! Campfire as an app behind [`Rails`]: its login, its 12 channels and Turbo, its broadcasts from inside RPC calls.
//!
//! Source: `contract/campfire.md` §4 to §6. Rails keeps nothing between calls but what a database would hold.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::{Value, json};

use super::http::Broadcaster;
use super::keys::{gid, signed_stream_name, verified_stream_name};
use super::rails::{Answer, Call, Rails, WELCOME};

/// Rails' own signing key. The cable server never learns it.
const SIGNING_KEY: &str = "rails-secret-key-base";

/// The room everybody is in.
pub const ROOM: u32 = 1;

/// A room of users 1 and 2 only.
pub const CLOSED_ROOM: u32 = 2;

/// The signed login cookie of a user: base64, `--`, hex.
pub fn session_token(user: u32) -> String {
    signed_stream_name(SIGNING_KEY, &format!("session-of-{user}"))
}

/// The connection identifiers text of a user.
pub fn current_user(user: u32) -> String {
    json!({ "current_user": gid(&format!("User/{user}")) }).to_string()
}

/// `{"channel":"…"}`.
pub fn channel(name: &str) -> String {
    json!({ "channel": name }).to_string()
}

/// `{"channel":"…","room_id":1}`.
pub fn room_channel(name: &str, room: u32) -> String {
    json!({ "channel": name, "room_id": room }).to_string()
}

/// The identifier of a Turbo subscription to `stream`.
pub fn turbo_channel(stream: &str) -> String {
    let signed = signed_stream_name(SIGNING_KEY, stream);
    json!({ "channel": "Turbo::StreamsChannel", "signed_stream_name": signed }).to_string()
}

pub fn room_gid(room: u32) -> String {
    gid(&format!("Rooms::Open/{room}"))
}

/// The room of the k6 script, which is of another class.
pub fn gid_of_k6_room() -> String {
    gid("Rooms::Closed/1")
}

/// The 14 identifiers that a room page subscribes to.
pub fn page_identifiers(user: u32, room: u32) -> Vec<String> {
    let user_gid = gid(&format!("User/{user}"));
    let room_gid = room_gid(room);
    let turbo = [
        format!("{room_gid}:messages"),
        gid(&format!("Membership/{user}")),
        format!("{user_gid}:{room_gid}:messages"),
        "rooms".to_owned(),
        format!("{user_gid}:rooms"),
    ];
    let mut identifiers: Vec<String> = turbo.iter().map(|stream| turbo_channel(stream)).collect();
    identifiers.push(room_channel("PresenceChannel", room));
    identifiers.push(room_channel("TypingNotificationsChannel", room));
    let named = [
        "HeartbeatChannel",
        "UnreadRoomsChannel",
        "UserUnreadRoomsChannel",
        "UnreadNotificationsChannel",
        "RoomListChannel",
        "UserInvolvementsChannel",
        "ReadRoomsChannel",
    ];
    identifiers.extend(named.map(channel));
    identifiers
}

/// The app's database.
#[derive(Clone, Default)]
pub struct Campfire {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// (room, user) pairs that are present.
    present: BTreeSet<(u32, u32)>,
    broadcaster: Option<Broadcaster>,
}

impl Campfire {
    /// Makes `rails` answer as Campfire.
    pub fn install(rails: &Rails) -> Self {
        let campfire = Self::default();
        let app = campfire.clone();
        rails.on(move |call| Some(app.answer(call)));
        campfire
    }

    /// From now on the app can broadcast, as soon as the server's port is known.
    pub fn broadcasts_to(&self, broadcaster: Broadcaster) {
        self.state.lock().expect("not poisoned").broadcaster = Some(broadcaster);
    }

    pub fn is_present(&self, room: u32, user: u32) -> bool {
        self.state
            .lock()
            .expect("not poisoned")
            .present
            .contains(&(room, user))
    }

    /// What posting a message makes Rails publish: the Turbo append and the unread badge.
    pub fn post_message(&self, room: u32, html: &str) {
        let append =
            format!("<turbo-stream action=\"append\"><template>{html}</template></turbo-stream>");
        self.broadcast(
            &format!("{}:messages", room_gid(room)),
            &rails_json(&json!(append)),
        );
        let unread =
            json!({ "roomId": room, "roomSize": 3, "roomUpdatedAt": "2026-01-18T10:00:00Z" });
        self.broadcast("unread_rooms", &unread.to_string());
    }

    pub fn broadcast(&self, stream: &str, data: &str) {
        let broadcaster = self.state.lock().expect("not poisoned").broadcaster.clone();
        if let Some(broadcaster) = broadcaster {
            broadcaster.publish(stream, data);
        }
    }

    fn answer(&self, call: &Call) -> Answer {
        match call.method.as_str() {
            "connect" => connect(call),
            "command" => self.command(call),
            _ => self.disconnect(call),
        }
    }

    fn command(&self, call: &Call) -> Answer {
        let identifier = call.identifier();
        let user = user_of(call.body["connection_identifiers"].as_str());
        let params: Value = serde_json::from_str(identifier).unwrap_or(Value::Null);
        let Some(user) = user else {
            return Answer::json(&json!({ "error_msg": "no such user" }));
        };
        let room = params["room_id"]
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .unwrap_or(0);
        match call.command() {
            "subscribe" => match streams(&params, user, room) {
                Some(streams) => {
                    if params["channel"] == "PresenceChannel" {
                        self.present(room, user);
                    }
                    Answer::confirm(
                        identifier,
                        &streams.iter().map(String::as_str).collect::<Vec<_>>(),
                    )
                }
                None => Answer::reject(identifier),
            },
            "unsubscribe" => {
                self.leave(&params, user, room);
                Answer::json(&json!({ "status": 1, "stop_streams": true, "env": {} }))
            }
            _ => {
                self.perform(&params, user, room, call.data());
                Answer::success()
            }
        }
    }

    fn perform(&self, params: &Value, user: u32, room: u32, data: &str) {
        let data: Value = serde_json::from_str(data).unwrap_or(Value::Null);
        let action = data["action"].as_str().unwrap_or_default();
        match (params["channel"].as_str().unwrap_or_default(), action) {
            ("PresenceChannel", "present" | "refresh") => self.present(room, user),
            ("PresenceChannel", "absent") => self.absent(room, user),
            ("TypingNotificationsChannel", "start" | "stop") => {
                let message = json!({ "action": action, "user": { "id": user, "name": format!("User {user}") } });
                self.broadcast(
                    &format!("typing_notifications:{}", room_gid(room)),
                    &message.to_string(),
                );
            }
            _ => {}
        }
    }

    fn disconnect(&self, call: &Call) -> Answer {
        if let Some(user) = user_of(call.body["identifiers"].as_str()) {
            for identifier in call.body["subscriptions"].as_array().into_iter().flatten() {
                let params: Value = serde_json::from_str(identifier.as_str().unwrap_or_default())
                    .unwrap_or(Value::Null);
                let room = params["room_id"]
                    .as_u64()
                    .and_then(|id| u32::try_from(id).ok())
                    .unwrap_or(0);
                self.leave(&params, user, room);
            }
        }
        Answer::json(&json!({ "status": 1 }))
    }

    fn leave(&self, params: &Value, user: u32, room: u32) {
        if params["channel"] == "PresenceChannel" {
            self.absent(room, user);
        }
    }

    /// Also broadcasts, in the middle of the RPC call it runs in.
    fn present(&self, room: u32, user: u32) {
        self.state
            .lock()
            .expect("not poisoned")
            .present
            .insert((room, user));
        self.broadcast(
            &format!("user_{user}_reads"),
            &json!({ "room_id": room }).to_string(),
        );
    }

    fn absent(&self, room: u32, user: u32) {
        self.state
            .lock()
            .expect("not poisoned")
            .present
            .remove(&(room, user));
    }
}

/// JSON as Rails writes it: HTML characters escaped.
pub fn rails_json(value: &Value) -> String {
    value
        .to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

fn connect(call: &Call) -> Answer {
    let cookies = call.forwarded("cookie").unwrap_or_default();
    let token = cookies
        .split("; ")
        .find_map(|cookie| cookie.strip_prefix("session_token="));
    let session = token.and_then(|token| verified_stream_name(SIGNING_KEY, token));
    let user = session.and_then(|session| session.strip_prefix("session-of-")?.parse().ok());
    match user {
        Some(user) => Answer::welcome(&current_user(user), &[WELCOME]),
        None => Answer::unauthorized(),
    }
}

fn user_of(identifiers: Option<&str>) -> Option<u32> {
    let identifiers: Value = serde_json::from_str(identifiers?).ok()?;
    let gid = STANDARD_NO_PAD
        .decode(identifiers["current_user"].as_str()?)
        .ok()?;
    String::from_utf8(gid)
        .ok()?
        .strip_prefix("gid://campfire/User/")?
        .parse()
        .ok()
}

/// The streams of a subscription, `None` when it is rejected.
fn streams(params: &Value, user: u32, room: u32) -> Option<Vec<String>> {
    let in_room =
        |name: &str| is_member(user, room).then(|| vec![format!("{name}:{}", room_gid(room))]);
    let user_gid = gid(&format!("User/{user}"));
    match params["channel"].as_str()? {
        "PresenceChannel" => in_room("presence"),
        "TypingNotificationsChannel" => in_room("typing_notifications"),
        "RoomChannel" => in_room("room"),
        "HeartbeatChannel" => Some(Vec::new()),
        "UnreadRoomsChannel" => Some(vec!["unread_rooms".to_owned()]),
        "RoomListChannel" => Some(vec!["room_list".to_owned()]),
        "UserUnreadRoomsChannel" => Some(vec![format!("user_{user}_unreads")]),
        "UnreadNotificationsChannel" => Some(vec![format!("user_{user}_notifications")]),
        "UserInvolvementsChannel" => Some(vec![format!("user_{user}_involvements")]),
        "ReadRoomsChannel" => Some(vec![format!("user_{user}_reads")]),
        "InboxMentionsChannel" => Some(vec![format!("inbox_mentions:{user_gid}")]),
        "InboxThreadsChannel" => Some(vec![format!("inbox_threads:{user_gid}")]),
        "Turbo::StreamsChannel" => {
            let stream = verified_stream_name(SIGNING_KEY, params["signed_stream_name"].as_str()?)?;
            Some(vec![stream])
        }
        _ => None,
    }
}

fn is_member(user: u32, room: u32) -> bool {
    room == ROOM || (room == CLOSED_ROOM && user <= 2)
}

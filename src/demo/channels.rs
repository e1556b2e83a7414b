//! The channels of Campfire, reduced to what the demo shows: the streams of a subscription, and what its actions do.
//!
//! Pure: a call and the chat in, an answer and publications out. Called by `app`.
//! Source: `contract/campfire.md` §5 and §6. `RoomListChannel` and `RoomChannel` do more here than in Campfire, because this
//! page can load rooms and messages only over the cable.

use serde::{Deserialize, Serialize};

use super::chat::{
    Chat, Message, Publication, Room, RoomSummary, Speech, notification_stream, read_stream,
};
use super::client_json;
use super::rpc::{Answer, CommandCall, ConnectCall};
use super::user::User;

/// Finds the user of a connection by the URL or the cookie.
pub fn connect(sid: &str, call: &ConnectCall) -> Answer {
    match User::from_env(
        &call.env.url,
        call.env.headers.get("cookie").map(String::as_str),
    ) {
        Some(user) => Answer::welcome(user.identifiers(), sid),
        None => Answer::unauthorized(),
    }
}

/// Runs `subscribe`, `unsubscribe` or `message` for the session `sid`. Publications for the pages are added to `out`.
pub fn command(
    chat: &mut Chat,
    sid: &str,
    call: &CommandCall,
    now_ms: u64,
    out: &mut Vec<Publication>,
) -> Answer {
    let Some(user) = User::from_identifiers(&call.connection_identifiers) else {
        return Answer::error(format!(
            "Unknown connection identifiers: {}",
            call.connection_identifiers
        ));
    };
    let Some(params) = client_json::decode::<Params>(&call.identifier) else {
        return Answer::error(format!(
            "Unable to read the identifier: {}",
            call.identifier
        ));
    };
    let Some(channel) = Channel::named(&params.channel) else {
        return Answer::error(format!("Channel not found: {}", params.channel));
    };
    if channel.is_of_a_room() && chat.room(params.room_id).is_none() {
        return Answer::rejected(&call.identifier);
    }
    let mut visit = Visit {
        chat,
        sid,
        user: &user,
        room_id: params.room_id,
        identifier: &call.identifier,
        now_ms,
        out,
    };
    match call.command.as_str() {
        "subscribe" => visit.subscribe(channel),
        "unsubscribe" => visit.unsubscribe(channel),
        "message" => match client_json::decode::<Action>(&call.data) {
            Some(action) => visit.perform(channel, &action),
            None => Answer::error(format!("Unable to read the data of {}", params.channel)),
        },
        other => Answer::error(format!("Unknown command: {other}")),
    }
}

#[derive(Deserialize)]
struct Params {
    channel: String,
    #[serde(default)]
    room_id: u64,
}

/// Data of a perform: the action and the arguments of all actions.
#[derive(Deserialize)]
struct Action {
    action: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    client_id: String,
    #[serde(default)]
    after: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Channel {
    Heartbeat,
    InboxMentions,
    InboxThreads,
    Presence,
    ReadRooms,
    Room,
    RoomList,
    TypingNotifications,
    UnreadNotifications,
    UnreadRooms,
    UserInvolvements,
    UserUnreadRooms,
}

impl Channel {
    fn named(name: &str) -> Option<Channel> {
        Some(match name {
            "HeartbeatChannel" => Channel::Heartbeat,
            "InboxMentionsChannel" => Channel::InboxMentions,
            "InboxThreadsChannel" => Channel::InboxThreads,
            "PresenceChannel" => Channel::Presence,
            "ReadRoomsChannel" => Channel::ReadRooms,
            "RoomChannel" => Channel::Room,
            "RoomListChannel" => Channel::RoomList,
            "TypingNotificationsChannel" => Channel::TypingNotifications,
            "UnreadNotificationsChannel" => Channel::UnreadNotifications,
            "UnreadRoomsChannel" => Channel::UnreadRooms,
            "UserInvolvementsChannel" => Channel::UserInvolvements,
            "UserUnreadRoomsChannel" => Channel::UserUnreadRooms,
            _ => return None,
        })
    }

    /// Whether the channel takes a `room_id`, and is rejected for a room that does not exist.
    fn is_of_a_room(self) -> bool {
        matches!(
            self,
            Channel::Presence | Channel::Room | Channel::TypingNotifications
        )
    }

    fn streams(self, user: &User, room: Option<&Room>) -> Vec<String> {
        let of_room = |stream: fn(&Room) -> String| room.map(stream).into_iter().collect();
        let of_user = |suffix: &str| vec![format!("user_{}_{suffix}", user.id)];
        match self {
            Channel::Heartbeat => Vec::new(),
            Channel::InboxMentions => vec![format!("inbox_mentions:{}", user.id)],
            Channel::InboxThreads => vec![format!("inbox_threads:{}", user.id)],
            Channel::Presence => of_room(Room::presence_stream),
            Channel::ReadRooms => vec![read_stream(user)],
            Channel::Room => of_room(Room::message_stream),
            Channel::RoomList => vec!["room_list".to_owned()],
            Channel::TypingNotifications => of_room(Room::typing_stream),
            Channel::UnreadNotifications => vec![notification_stream(user)],
            Channel::UnreadRooms => vec!["unread_rooms".to_owned()],
            Channel::UserInvolvements => of_user("involvements"),
            Channel::UserUnreadRooms => of_user("unreads"),
        }
    }
}

/// One command of one session, with all data that it may use.
struct Visit<'a> {
    chat: &'a mut Chat,
    sid: &'a str,
    user: &'a User,
    room_id: u64,
    identifier: &'a str,
    now_ms: u64,
    out: &'a mut Vec<Publication>,
}

impl Visit<'_> {
    fn subscribe(&mut self, channel: Channel) -> Answer {
        let streams = channel.streams(self.user, self.chat.room(self.room_id));
        let answer = Answer::confirmed(self.identifier, streams);
        match channel {
            Channel::Presence => {
                self.chat
                    .enter(self.room_id, self.sid, self.user, self.now_ms, self.out);
                match self.chat.room(self.room_id) {
                    Some(room) => answer.with_presence(room.presence_stream()),
                    None => answer,
                }
            }
            Channel::Room => self.with_history(answer, 0),
            Channel::RoomList => {
                let list = RoomList {
                    you: self.user,
                    rooms: self.chat.rooms_for(self.user),
                };
                answer.transmit_message(self.identifier, &list)
            }
            _ => answer,
        }
    }

    fn unsubscribe(&mut self, channel: Channel) -> Answer {
        match channel {
            Channel::Presence => self.chat.leave(self.room_id, self.sid),
            Channel::TypingNotifications => self.typing("stop"),
            _ => {}
        }
        Answer::unsubscribed()
    }

    fn perform(&mut self, channel: Channel, action: &Action) -> Answer {
        match (channel, action.action.as_str()) {
            (Channel::Room, "speak") => self.speak(action),
            (Channel::Room, "catch_up") => self.with_history(Answer::success(), action.after),
            (Channel::Presence, "present") => {
                self.chat
                    .enter(self.room_id, self.sid, self.user, self.now_ms, self.out);
                Answer::success()
            }
            (Channel::Presence, "absent") => {
                self.chat.leave(self.room_id, self.sid);
                Answer::success()
            }
            (Channel::Presence, "refresh") => {
                self.chat
                    .refresh(self.room_id, self.sid, self.user, self.now_ms);
                Answer::success()
            }
            (Channel::TypingNotifications, "start") => {
                self.typing("start");
                Answer::success()
            }
            (Channel::TypingNotifications, "stop") => {
                self.typing("stop");
                Answer::success()
            }
            (_, other) => Answer::error(format!("Unable to process {}#{other}", self.identifier)),
        }
    }

    fn speak(
        &mut self,
        Action {
            body, client_id, ..
        }: &Action,
    ) -> Answer {
        let speech = Speech {
            room_id: self.room_id,
            user: self.user,
            body,
            client_id,
        };
        if self.chat.speak(speech, self.now_ms, self.out) {
            Answer::success()
        } else {
            Answer::success()
                .transmit_message(self.identifier, &RefusedMessage { refused: client_id })
        }
    }

    fn typing(&mut self, action: &'static str) {
        if let Some(room) = self.chat.room(self.room_id) {
            let typing = Typing {
                action,
                user: self.user,
            };
            self.out
                .push(Publication::transient(room.typing_stream(), &typing));
        }
    }

    fn with_history(&self, answer: Answer, after: u64) -> Answer {
        match self.chat.room(self.room_id) {
            Some(room) => answer.transmit_message(
                self.identifier,
                &History {
                    after,
                    history: room.history(after),
                },
            ),
            None => answer,
        }
    }
}

#[derive(Serialize)]
struct RoomList<'a> {
    you: &'a User,
    rooms: Vec<RoomSummary<'a>>,
}

#[derive(Serialize)]
struct History<'a> {
    /// The message id that the page asked for. 0 means the whole history, which replaces all messages of the page.
    after: u64,
    history: Vec<&'a Message>,
}

#[derive(Serialize)]
struct Typing<'a> {
    action: &'static str,
    user: &'a User,
}

/// Tells the page that the message with this client id was refused.
#[derive(Serialize)]
struct RefusedMessage<'a> {
    refused: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::rpc::json;
    use serde_json::Value;

    /// Runs one command of Ann's session and returns the answer and the streams that were published to.
    fn run(chat: &mut Chat, command: &str, identifier: &str, data: &str) -> (Value, Vec<String>) {
        let ann = User::named("Ann").expect("a name");
        let call = serde_json::json!({
            "command": command, "identifier": identifier, "connection_identifiers": ann.identifiers(), "data": data,
            "env": {"url": "http://localhost/cable"}
        });
        let call = sonic_rs::from_str(&call.to_string()).expect("a call");
        let mut out = Vec::new();
        let answer = super::command(chat, "s1", &call, 1000, &mut out);
        let streams = out
            .into_iter()
            .map(|publication| publication.stream.split(':').next().unwrap().to_owned());
        (
            serde_json::from_str(&json(&answer)).expect("JSON"),
            streams.collect(),
        )
    }

    fn check(identifier: &str, streams: usize, transmissions: usize) {
        let (answer, _) = run(&mut Chat::seeded(0), "subscribe", identifier, "");
        assert_eq!(answer["status"], 1, "{identifier}: {answer}");
        assert_eq!(
            answer["streams"].as_array().map_or(0, Vec::len),
            streams,
            "{identifier}"
        );
        let transmitted = answer["transmissions"].as_array().expect("a confirmation");
        assert_eq!(transmitted.len(), transmissions, "{identifier}");
        let confirmation: Value =
            serde_json::from_str(transmitted[0].as_str().expect("text")).expect("JSON");
        assert_eq!(confirmation["type"], "confirm_subscription");
        assert_eq!(confirmation["identifier"], identifier, "byte for byte");
    }

    #[test]
    fn every_campfire_channel_confirms_with_its_streams() {
        check(r#"{"channel":"HeartbeatChannel"}"#, 0, 1);
        check(r#"{"channel":"UnreadRoomsChannel"}"#, 1, 1);
        check(r#"{"channel":"UserUnreadRoomsChannel"}"#, 1, 1);
        check(r#"{"channel":"UnreadNotificationsChannel"}"#, 1, 1);
        check(r#"{"channel":"RoomListChannel"}"#, 1, 2);
        check(r#"{"channel":"UserInvolvementsChannel"}"#, 1, 1);
        check(r#"{"channel":"ReadRoomsChannel"}"#, 1, 1);
        check(r#"{"channel":"InboxMentionsChannel"}"#, 1, 1);
        check(r#"{"channel":"InboxThreadsChannel"}"#, 1, 1);
        check(r#"{"channel":"RoomChannel", "room_id":1}"#, 1, 2);
        check(r#"{"channel":"PresenceChannel", "room_id":1}"#, 1, 1);
        check(
            r#"{"channel":"TypingNotificationsChannel","room_id":1}"#,
            1,
            1,
        );
    }

    #[test]
    fn an_unknown_room_is_rejected_and_an_unknown_channel_is_an_error() {
        let mut chat = Chat::seeded(0);
        for identifier in [
            r#"{"channel":"RoomChannel","room_id":9}"#,
            r#"{"channel":"PresenceChannel"}"#,
        ] {
            let (answer, _) = run(&mut chat, "subscribe", identifier, "");
            assert_eq!(answer["status"], 2, "{answer}");
            assert!(
                answer["transmissions"][0]
                    .as_str()
                    .expect("text")
                    .contains("reject_subscription")
            );
        }
        for identifier in [
            r#"{"channel":"Nope"}"#,
            "",
            "[]",
            r#"{"channel":"RoomChannel","room_id":-1}"#,
        ] {
            let (answer, _) = run(&mut chat, "subscribe", identifier, "");
            assert_eq!(answer["status"], Value::Null, "{answer}");
            assert!(answer["error_msg"].is_string());
        }
    }

    #[test]
    fn actions_publish_what_campfire_publishes() {
        let mut chat = Chat::seeded(0);
        let mut published = |command: &str, channel: &str, data: &str| {
            run(
                &mut chat,
                command,
                &format!(r#"{{"channel":"{channel}","room_id":1}}"#),
                data,
            )
            .1
            .join(" ")
        };
        let reads = format!("user_{}_reads", User::named("Ann").expect("a name").id);
        assert_eq!(published("subscribe", "PresenceChannel", ""), reads);
        assert_eq!(
            published("message", "PresenceChannel", r#"{"action":"refresh"}"#),
            ""
        );
        assert_eq!(
            published("message", "PresenceChannel", r#"{"action":"present"}"#),
            reads
        );
        assert_eq!(
            published("message", "PresenceChannel", r#"{"action":"absent"}"#),
            ""
        );
        assert_eq!(
            published(
                "message",
                "TypingNotificationsChannel",
                r#"{"action":"start"}"#
            ),
            "typing_notifications"
        );
        assert_eq!(
            published(
                "message",
                "TypingNotificationsChannel",
                r#"{"action":"stop"}"#
            ),
            "typing_notifications"
        );
        assert_eq!(
            published(
                "message",
                "RoomChannel",
                r#"{"action":"speak","body":"hi"}"#
            ),
            "room unread_rooms"
        );
        assert_eq!(
            published(
                "message",
                "RoomChannel",
                r#"{"action":"catch_up","after":1}"#
            ),
            ""
        );
        assert_eq!(
            published("unsubscribe", "TypingNotificationsChannel", ""),
            "typing_notifications"
        );
        assert_eq!(published("unsubscribe", "RoomChannel", ""), "");
    }

    #[test]
    fn presence_is_left_to_the_broker() {
        let identifier = r#"{"channel":"PresenceChannel","room_id":1}"#;
        let (answer, _) = run(&mut Chat::seeded(0), "subscribe", identifier, "");
        assert_eq!(
            answer["env"]["istate"]["$p"], answer["streams"][0],
            "{answer}"
        );
    }

    #[test]
    fn a_message_that_is_not_taken_is_said_to_its_sender_only() {
        let data = r#"{"action":"speak","body":" ","client_id":"c9"}"#;
        let (answer, published) = run(
            &mut Chat::seeded(0),
            "message",
            r#"{"channel":"RoomChannel","room_id":1}"#,
            data,
        );
        assert_eq!(published, [""; 0]);
        assert!(
            answer["transmissions"][0]
                .as_str()
                .expect("text")
                .contains(r#""message":{"refused":"c9"}"#)
        );
    }
}

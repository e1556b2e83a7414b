//! The chat itself: rooms, messages, who has read what. Pure: time is an argument, and what the pages must get is returned
//! as [`Publication`]s. Who is in a room is told by the broker; the chat only remembers who reads a room at the moment.
//!
//! Every collection has a named limit. Called by `channels` and `app`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::Serialize;

use super::rpc::json;
use super::user::{User, gid_param};

/// Messages that a room keeps.
const ROOM_MESSAGES_MAX: usize = 200;
/// Messages sent to a page that enters a room.
const HISTORY_MESSAGES_MAX: usize = 60;
/// Longest message, in characters.
pub const BODY_CHARS_MAX: usize = 2000;
/// Longest client id, which a page gives its own message to recognise it.
const CLIENT_ID_BYTES_MAX: usize = 64;
/// Sessions that read a room. More sessions can chat, but what is said there becomes unread for them.
const ROOM_SESSIONS_MAX: usize = 2000;
/// A session that has not reported its presence for this long counts as gone. Long, because browsers let hidden tabs run
/// only once a minute.
const PRESENCE_TTL_MS: u64 = 150_000;
/// Users whose reading position is kept. When there are more, the one not seen for longest is forgotten.
const READERS_MAX: usize = 1000;
/// Users that one message can mention.
const MENTIONS_MAX: usize = 5;

/// Name, topic and first messages of the rooms.
const ROOMS: [(&str, &str, &[&str]); 3] = [
    (
        "Campfire",
        "The place to start",
        &[
            "Welcome! Open a second window with another name and say something: it appears in both at once.",
            "What you write goes the whole way: WebSocket, HTTP RPC, POST /_broadcast, fan-out.",
        ],
    ),
    (
        "Engine room",
        "One thread per core, many connections",
        &["An idle connection is a table entry and one armed poll."],
    ),
    (
        "Random",
        "Everything else",
        &["Talk here and watch the badge in the other window."],
    ),
];
const HOST_NAME: &str = "ringcable";

/// One publication for `/_broadcast`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Publication {
    pub stream: String,
    /// JSON text.
    pub data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<Meta>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Meta {
    /// Only for those who listen at the moment: it is not kept in the history of the stream.
    transient: bool,
}

impl Publication {
    pub fn new(stream: String, data: &impl Serialize) -> Publication {
        Publication {
            stream,
            data: json(data),
            meta: None,
        }
    }

    /// For what nobody wants to hear later.
    pub fn transient(stream: String, data: &impl Serialize) -> Publication {
        Publication {
            meta: Some(Meta { transient: true }),
            ..Publication::new(stream, data)
        }
    }
}

/// A chat message as pages see it. Within a room the ids count up by one, so a page notices when it missed a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    pub id: u64,
    pub room_id: u64,
    pub user: User,
    pub body: String,
    pub sent_at_ms: u64,
    /// The sender's client id, which lets the page measure the time until its message comes back.
    pub client_id: String,
}

/// A room in the list, as one user sees it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RoomSummary<'a> {
    pub id: u64,
    pub name: &'a str,
    pub topic: &'a str,
    pub unread: u64,
}

#[derive(Debug)]
pub struct Chat {
    /// Room with id n at index n - 1.
    rooms: Vec<Room>,
    readers: BTreeMap<User, Reader>,
    /// Counts up at each use of a reader, to find the one that was not used for longest.
    reader_clock: u64,
}

#[derive(Debug)]
pub struct Room {
    id: u64,
    name: &'static str,
    topic: &'static str,
    last_message_id: u64,
    messages: VecDeque<Message>,
    /// By sid.
    sessions: BTreeMap<String, Presence>,
}

#[derive(Debug)]
struct Presence {
    user: User,
    seen_at_ms: u64,
}

#[derive(Debug)]
struct Reader {
    /// Id of the last message read, per room.
    read: Vec<u64>,
    used_at: u64,
}

impl Chat {
    /// The rooms with their first messages.
    pub fn seeded(now_ms: u64) -> Chat {
        let host = User {
            id: gid_param("gid://ringcable-demo/Host/1"),
            name: HOST_NAME.to_owned(),
        };
        let rooms = (1..).zip(ROOMS).map(|(id, (name, topic, bodies))| {
            let empty = Room {
                id,
                name,
                topic,
                last_message_id: 0,
                messages: VecDeque::new(),
                sessions: BTreeMap::new(),
            };
            bodies.iter().fold(empty, |mut room, body| {
                room.append(host.clone(), (*body).to_owned(), String::new(), now_ms);
                room
            })
        });
        Chat {
            rooms: rooms.collect(),
            readers: BTreeMap::new(),
            reader_clock: 0,
        }
    }

    pub fn room(&self, room_id: u64) -> Option<&Room> {
        self.rooms
            .get(usize::try_from(room_id.checked_sub(1)?).ok()?)
    }

    fn room_mut(&mut self, room_id: u64) -> Option<&mut Room> {
        self.rooms
            .get_mut(usize::try_from(room_id.checked_sub(1)?).ok()?)
    }

    /// The rooms with the user's unread counts. A new user has read everything.
    pub fn rooms_for(&mut self, user: &User) -> Vec<RoomSummary<'_>> {
        let read = self.reader(user).read.clone();
        let summaries = self.rooms.iter().zip(read).map(|(room, read)| RoomSummary {
            id: room.id,
            name: room.name,
            topic: room.topic,
            unread: room.last_message_id.saturating_sub(read),
        });
        summaries.collect()
    }

    /// Adds a message and publishes it to the room, to everybody's room list, and to the users it mentions.
    ///
    /// Returns false, and changes nothing, when the text is blank or too long or the room is unknown. A message that a page
    /// sends again, because it does not know whether it has arrived, is there once.
    pub fn speak(&mut self, speech: Speech, now_ms: u64, out: &mut Vec<Publication>) -> bool {
        let Speech {
            room_id,
            user,
            body,
            client_id,
        } = speech;
        let body = body.trim();
        if body.is_empty()
            || body.chars().count() > BODY_CHARS_MAX
            || client_id.len() > CLIENT_ID_BYTES_MAX
        {
            return false;
        }
        let Some(room) = self.room_mut(room_id) else {
            return false;
        };
        if room.has_heard(user, client_id) {
            return true;
        }
        let message = room
            .append(user.clone(), body.to_owned(), client_id.to_owned(), now_ms)
            .clone();
        let unread = UnreadRoom {
            room_id,
            room_size: room.member_set().len(),
            room_updated_at: now_ms,
        };
        let mut readers: BTreeSet<User> = room.member_set().into_iter().cloned().collect();
        readers.insert(user.clone());
        out.push(Publication::new(
            room.message_stream(),
            &SpokenMessage { message: &message },
        ));
        out.push(Publication::new("unread_rooms".to_owned(), &unread));
        for mentioned in mentions(&message.body) {
            out.push(Publication::new(
                notification_stream(&mentioned),
                &MentionedIn { room_id },
            ));
        }
        // Users in the room see the message at once, so it does not become unread for them.
        for reader in readers {
            self.mark_read(&reader, room_id);
        }
        true
    }

    /// The session enters the room: its user has read it, and reads on.
    pub fn enter(
        &mut self,
        room_id: u64,
        sid: &str,
        user: &User,
        now_ms: u64,
        out: &mut Vec<Publication>,
    ) {
        if self.refresh(room_id, sid, user, now_ms) {
            self.mark_read(user, room_id);
            out.push(Publication::new(read_stream(user), &ReadRoom { room_id }));
        }
    }

    /// The session is still in the room. Returns whether the room exists.
    pub fn refresh(&mut self, room_id: u64, sid: &str, user: &User, now_ms: u64) -> bool {
        let Some(room) = self.room_mut(room_id) else {
            return false;
        };
        let sessions = &mut room.sessions;
        sessions.retain(|_, presence| now_ms.saturating_sub(presence.seen_at_ms) < PRESENCE_TTL_MS);
        if sessions.len() < ROOM_SESSIONS_MAX || sessions.contains_key(sid) {
            sessions.insert(
                sid.to_owned(),
                Presence {
                    user: user.clone(),
                    seen_at_ms: now_ms,
                },
            );
        }
        true
    }

    /// The session has left the room.
    pub fn leave(&mut self, room_id: u64, sid: &str) {
        if let Some(room) = self.room_mut(room_id) {
            room.sessions.remove(sid);
        }
    }

    /// The session is gone from every room.
    pub fn leave_all(&mut self, sid: &str) {
        for room in &mut self.rooms {
            room.sessions.remove(sid);
        }
    }

    fn mark_read(&mut self, user: &User, room_id: u64) {
        let Some(last) = self.room(room_id).map(|room| room.last_message_id) else {
            return;
        };
        let index = usize::try_from(room_id - 1).expect("a room that exists has a small id");
        self.reader(user).read[index] = last;
    }

    fn reader(&mut self, user: &User) -> &mut Reader {
        self.reader_clock += 1;
        if !self.readers.contains_key(user) && self.readers.len() >= READERS_MAX {
            let oldest = self
                .readers
                .iter()
                .min_by_key(|(_, reader)| reader.used_at)
                .map(|(user, _)| user.clone());
            oldest.and_then(|oldest| self.readers.remove(&oldest));
        }
        let read_all = || self.rooms.iter().map(|room| room.last_message_id).collect();
        let reader = self.readers.entry(user.clone()).or_insert_with(|| Reader {
            read: read_all(),
            used_at: 0,
        });
        reader.used_at = self.reader_clock;
        reader
    }
}

/// A message that a user wants to post.
#[derive(Debug)]
pub struct Speech<'a> {
    pub room_id: u64,
    pub user: &'a User,
    pub body: &'a str,
    pub client_id: &'a str,
}

impl Room {
    /// The newest messages after the one with id `after`, oldest first.
    pub fn history(&self, after: u64) -> Vec<&Message> {
        let newer = self.messages.iter().filter(|message| message.id > after);
        let skipped = newer.clone().count().saturating_sub(HISTORY_MESSAGES_MAX);
        newer.skip(skipped).collect()
    }

    /// Whether the user's page has sent this message before.
    fn has_heard(&self, user: &User, client_id: &str) -> bool {
        let is_it = |message: &Message| message.client_id == client_id && message.user == *user;
        !client_id.is_empty() && self.messages.iter().any(is_it)
    }

    pub fn message_stream(&self) -> String {
        format!("room:{}", self.gid())
    }

    pub fn presence_stream(&self) -> String {
        format!("presence:{}", self.gid())
    }

    pub fn typing_stream(&self) -> String {
        format!("typing_notifications:{}", self.gid())
    }

    fn gid(&self) -> String {
        gid_param(&format!("gid://ringcable-demo/Rooms::Open/{}", self.id))
    }

    fn append(&mut self, user: User, body: String, client_id: String, sent_at_ms: u64) -> &Message {
        self.last_message_id += 1;
        if self.messages.len() >= ROOM_MESSAGES_MAX {
            self.messages.pop_front();
        }
        let (id, room_id) = (self.last_message_id, self.id);
        self.messages.push_back(Message {
            id,
            room_id,
            user,
            body,
            sent_at_ms,
            client_id,
        });
        self.messages.back().expect("just pushed")
    }

    fn member_set(&self) -> BTreeSet<&User> {
        self.sessions
            .values()
            .map(|presence| &presence.user)
            .collect()
    }
}

/// Stream of the rooms that the user has read in any window.
pub fn read_stream(user: &User) -> String {
    format!("user_{}_reads", user.id)
}

/// Stream of the rooms where the user was mentioned.
pub fn notification_stream(user: &User) -> String {
    format!("user_{}_notifications", user.id)
}

/// The users mentioned by `@name` words in `body`. A name with spaces cannot be mentioned.
fn mentions(body: &str) -> BTreeSet<User> {
    let words = body
        .split_whitespace()
        .filter_map(|word| word.strip_prefix('@'));
    let names = words.map(|word| word.trim_end_matches(|c: char| !c.is_alphanumeric()));
    names.filter_map(User::named).take(MENTIONS_MAX).collect()
}

#[derive(Serialize)]
struct SpokenMessage<'a> {
    message: &'a Message,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnreadRoom {
    room_id: u64,
    room_size: usize,
    room_updated_at: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MentionedIn {
    room_id: u64,
}

#[derive(Serialize)]
struct ReadRoom {
    room_id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User::named(name).expect("a name")
    }

    fn speak(chat: &mut Chat, room_id: u64, name: &str, body: &str) -> Vec<Publication> {
        let mut out = Vec::new();
        chat.speak(
            Speech {
                room_id,
                user: &user(name),
                body,
                client_id: "",
            },
            1000,
            &mut out,
        );
        out
    }

    fn unread(chat: &mut Chat, name: &str) -> Vec<u64> {
        chat.rooms_for(&user(name))
            .iter()
            .map(|room| room.unread)
            .collect()
    }

    #[test]
    fn a_message_reaches_its_room_and_every_room_list() {
        let mut chat = Chat::seeded(0);
        let out = speak(&mut chat, 2, "Ann", "  hi @Bob, and @Bob! ");
        let ann = user("Ann").id;
        let room = "Z2lkOi8vcmluZ2NhYmxlLWRlbW8vUm9vbXM6Ok9wZW4vMg";
        let expected = [
            (
                format!("room:{room}"),
                format!(
                    r#"{{"message":{{"id":2,"room_id":2,"user":{{"id":"{ann}","name":"Ann"}},"body":"hi @Bob, and @Bob!","sent_at_ms":1000,"client_id":""}}}}"#
                ),
            ),
            (
                "unread_rooms".to_owned(),
                r#"{"roomId":2,"roomSize":0,"roomUpdatedAt":1000}"#.to_owned(),
            ),
            (
                format!("user_{}_notifications", user("Bob").id),
                r#"{"roomId":2}"#.to_owned(),
            ),
        ];
        assert_eq!(
            out,
            expected.map(|(stream, data)| Publication {
                stream,
                data,
                meta: None
            })
        );
    }

    #[test]
    fn blank_and_endless_messages_change_nothing() {
        let mut chat = Chat::seeded(0);
        for body in ["", " \n ", &"x".repeat(BODY_CHARS_MAX + 1)] {
            assert_eq!(speak(&mut chat, 1, "Ann", body), []);
        }
        assert_eq!(speak(&mut chat, 4, "Ann", "hi"), []);
        assert_eq!(speak(&mut chat, 0, "Ann", "hi"), []);
        assert_eq!(chat.room(1).expect("room 1").history(0).len(), 2);
    }

    #[test]
    fn a_room_forgets_its_oldest_messages() {
        let mut chat = Chat::seeded(0);
        for _ in 0..ROOM_MESSAGES_MAX + 10 {
            speak(&mut chat, 1, "Ann", "x");
        }
        let room = chat.room(1).expect("room 1");
        assert_eq!(room.messages.len(), ROOM_MESSAGES_MAX);
        let last = room.last_message_id;
        let ids = |after| {
            room.history(after)
                .iter()
                .map(|message| message.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(last - 2), [last - 1, last]);
        assert_eq!(ids(0).len(), HISTORY_MESSAGES_MAX);
        assert_eq!(ids(0).last(), Some(&last));
    }

    #[test]
    fn what_is_sent_twice_is_said_once() {
        let mut chat = Chat::seeded(0);
        let mut say = |name: &str, client_id: &str| {
            let mut out = Vec::new();
            let speech = Speech {
                room_id: 1,
                user: &user(name),
                body: "hi",
                client_id,
            };
            assert!(chat.speak(speech, 0, &mut out));
            out.len()
        };
        assert_eq!([say("Ann", "c1"), say("Ann", "c1")], [2, 0]);
        assert_eq!([say("Bob", "c1"), say("Ann", "c2")], [2, 2]);
        assert_eq!([say("Ann", ""), say("Ann", "")], [2, 2]);
    }

    #[test]
    fn what_nobody_wants_later_is_transient() {
        let typing = Publication::transient("s".to_owned(), &1);
        assert_eq!(
            json(&typing),
            r#"{"stream":"s","data":"1","meta":{"transient":true}}"#
        );
        let spoken = Publication::new("s".to_owned(), &1);
        assert_eq!(json(&spoken), r#"{"stream":"s","data":"1"}"#);
    }

    #[test]
    fn a_room_that_is_entered_is_read() {
        let mut chat = Chat::seeded(0);
        let mut out = Vec::new();
        chat.enter(1, "s1", &user("Ann"), 0, &mut out);
        let read = Publication::new(read_stream(&user("Ann")), &ReadRoom { room_id: 1 });
        assert_eq!(out, [read]);
        let readers = |chat: &Chat| chat.room(1).expect("room 1").member_set().len();
        chat.enter(1, "s2", &user("Ann"), 0, &mut out);
        chat.enter(1, "s3", &user("Bob"), 0, &mut out);
        assert_eq!(readers(&chat), 2);
        chat.leave(1, "s1");
        assert_eq!(readers(&chat), 2, "the second tab is still there");
        chat.leave_all("s2");
        assert_eq!(readers(&chat), 1);
    }

    #[test]
    fn a_session_that_never_said_goodbye_is_dropped_in_time() {
        let mut chat = Chat::seeded(0);
        let mut out = Vec::new();
        chat.enter(1, "s1", &user("Ann"), 0, &mut out);
        chat.enter(1, "s2", &user("Bob"), PRESENCE_TTL_MS - 1, &mut out);
        assert_eq!(chat.room(1).expect("room 1").member_set().len(), 2);
        chat.refresh(1, "s2", &user("Bob"), PRESENCE_TTL_MS);
        assert_eq!(chat.room(1).expect("room 1").member_set().len(), 1);
    }

    #[test]
    fn unread_counts_grow_elsewhere_and_end_with_a_visit() {
        let mut chat = Chat::seeded(0);
        let mut out = Vec::new();
        assert_eq!(
            unread(&mut chat, "Bob"),
            [0, 0, 0],
            "a new user has read everything"
        );
        chat.enter(1, "s1", &user("Bob"), 0, &mut out);
        speak(&mut chat, 1, "Ann", "seen at once");
        speak(&mut chat, 2, "Ann", "one");
        speak(&mut chat, 2, "Ann", "two");
        assert_eq!(unread(&mut chat, "Bob"), [0, 2, 0]);
        assert_eq!(
            unread(&mut chat, "Ann"),
            [0, 0, 0],
            "one's own words are read"
        );
        chat.enter(2, "s1", &user("Bob"), 0, &mut out);
        assert_eq!(unread(&mut chat, "Bob"), [0, 0, 0]);
    }

    #[test]
    fn the_reader_seen_longest_ago_is_forgotten_first() {
        let mut chat = Chat::seeded(0);
        for n in 0..READERS_MAX {
            unread(&mut chat, &format!("u{n}"));
        }
        unread(&mut chat, "u0");
        unread(&mut chat, "one more");
        assert_eq!(chat.readers.len(), READERS_MAX);
        assert!(chat.readers.contains_key(&user("u0")));
        assert!(!chat.readers.contains_key(&user("u1")));
    }
}

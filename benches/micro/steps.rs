//! The pure steps: bytes to values and back, the subscription table, the inbox. No sockets and no clock.

use std::hint::black_box;
use std::sync::Arc;

use ringcable::hub::Hub;
use ringcable::protocol::command::decode_command;
use ringcable::protocol::publication::{Broadcast, decode_broadcast, encode_message};
use ringcable::protocol::reply::{self, Reply};
use ringcable::protocol::rpc::{self, RpcRequest};
use ringcable::protocol::state::State;
use ringcable::shard::message::{PublishMessage, ShardMesh};
use ringcable::shard::outbox::frame::Frame;
use ringcable::wire::websocket::frame::{self, FrameRules};
use ringcable::wire::websocket::message::{MessageDecoder, MessageLimits, Scratch};
use serde_json::json;

use super::Step;

const IDENTIFIER: &str =
    r#"{"channel":"Turbo::StreamsChannel","signed_stream_name":"ImNoYXQvMjAyMyI=--2b2e054b"}"#;

pub fn decode_header() -> Step {
    let wire = masked_frame(200);
    Step::new(move || {
        let header = frame::decode_header(black_box(&wire), FrameRules::default());
        black_box(header).expect("a header");
    })
}

pub fn unmask_200() -> Step {
    unmask(200)
}

pub fn unmask_1024() -> Step {
    unmask(1024)
}

fn unmask(bytes: usize) -> Step {
    let mut bytes = vec![b'x'; bytes];
    Step::new(move || frame::unmask([1, 2, 3, 4], 0, black_box(&mut bytes)))
}

pub fn build_frame() -> Step {
    let payload = [b'x'; 200];
    Step::new(move || {
        black_box(frame::text_frame(black_box(&payload)));
    })
}

/// The UTF-8 check that `MessageDecoder` makes for each text message.
pub fn check_utf8() -> Step {
    let text = "Grüße, 世界! ".repeat(53);
    Step::new(move || {
        black_box(simdutf8::basic::from_utf8(black_box(text.as_bytes()))).expect("UTF-8");
    })
}

pub fn decode_frame() -> Step {
    let mut wire = masked_frame(200);
    let limits = MessageLimits {
        message_bytes_max: 65_536,
        deflate: false,
        inflated_bytes_max: 0,
    };
    let (mut decoder, mut scratch) = (MessageDecoder::default(), Scratch::default());
    Step::new(move || {
        let decoded = decoder.next(black_box(&mut wire), &limits, &mut scratch);
        assert!(matches!(decoded, Ok((_, Some(_)))), "the frame is whole");
    })
}

/// A text frame as a client sends it. The mask is zero, so that unmasking in place changes nothing and the frame can be
/// decoded again and again.
fn masked_frame(payload_bytes: usize) -> Vec<u8> {
    let mut wire = frame::text_frame(&vec![b'x'; payload_bytes]);
    wire[1] |= 0x80;
    wire.splice(4..4, [0; 4]);
    wire
}

pub fn decode_subscribe() -> Step {
    decode(json!({ "command": "subscribe", "identifier": IDENTIFIER }).to_string())
}

pub fn decode_perform() -> Step {
    let data = json!({ "action": "speak", "body": "How are you?", "room": 17 }).to_string();
    decode(json!({ "command": "message", "identifier": IDENTIFIER, "data": data }).to_string())
}

fn decode(text: String) -> Step {
    Step::new(move || {
        black_box(decode_command(black_box(text.as_bytes()))).expect("a command");
    })
}

pub fn decode_publication_200() -> Step {
    decode_publication(&text_of_200())
}

pub fn decode_publication_21k() -> Step {
    decode_publication(&text_of_21k())
}

/// `data` is the JSON text of a string, as Rails sends rendered HTML.
fn decode_publication(text: &str) -> Step {
    let body = broadcast_body(text);
    Step::new(move || {
        black_box(decode_broadcast(black_box(&body))).expect("a publication");
    })
}

/// The body that the app posts to deliver `text` to the stream `room:1`.
pub fn broadcast_body(text: &str) -> Vec<u8> {
    let body = json!({ "stream": "room:1", "data": json!(text).to_string() });
    body.to_string().into_bytes()
}

fn text_of_200() -> String {
    r#"<p class="m">Hi</p>"#.repeat(11)
}

/// A page fragment: markup with quotes and line ends, which are escaped twice in a broadcast.
fn text_of_21k() -> String {
    "<turbo-stream action=\"append\" target=\"messages\"><template>Hello there, how is it?</template></turbo-stream>\n"
        .repeat(200)
}

pub fn encode_delivery_200() -> Step {
    encode_delivery(IDENTIFIER, &text_of_200())
}

pub fn encode_delivery_21k() -> Step {
    encode_delivery(IDENTIFIER, &text_of_21k())
}

pub fn encode_delivery_1k() -> Step {
    encode_delivery(IDENTIFIER, &"a".repeat(1000))
}

/// The bar: at most 80 ns from the message to the frame.
pub fn encode_delivery_1k_short() -> Step {
    let identifier = r#"{"channel":"RoomChannel","room_id":1}"#;
    encode_delivery(identifier, &"a".repeat(1000))
}

/// From the message of a publication to the frame that its receivers share.
fn encode_delivery(identifier: &'static str, text: &str) -> Step {
    let message = encode_message(json!(text).to_string());
    let mut beginning = Vec::new();
    Step::new(move || {
        beginning.clear();
        reply::begin_data_message(black_box(identifier), None, &mut beginning);
        black_box(Frame::delivery(&beginning, black_box(&message)));
    })
}

pub fn command_body() -> Step {
    let env = rpc::encode_env_prefix(
        "http://localhost/cable",
        &mut [("cookie", "session_token=abc".into())],
    );
    let state = State::default();
    Step::new(move || {
        let user = r#"{"current_user":"Z2lk"}"#;
        let request = RpcRequest::Command {
            command: "subscribe",
            identifier: black_box(IDENTIFIER),
            connection_identifiers: user,
            data: None,
            env: &env,
            cstate: &state,
            istate: None,
        };
        black_box(request.json());
    })
}

pub fn command_answer() -> Step {
    let identifier = IDENTIFIER.into();
    let confirmation = Reply::ConfirmSubscription { identifier }
        .json()
        .into_owned();
    let body = json!({
        "status": 1,
        "disconnect": false,
        "stop_streams": false,
        "streams": ["room:1"],
        "stopped_streams": [],
        "transmissions": [String::from_utf8(confirmation).expect("UTF-8")],
        "env": { "cstate": {}, "istate": {} },
    })
    .to_string();
    Step::new(move || {
        black_box(rpc::decode_answer(black_box(body.as_bytes()))).expect("an answer");
    })
}

pub fn find_stream() -> Step {
    let mut hub = Hub::default();
    for slot in 0..10_000 {
        hub.subscribe(slot, IDENTIFIER);
        hub.attach(slot, IDENTIFIER, &format!("room:{slot}"));
    }
    Step::new(move || {
        let found = hub.receivers(black_box("room:5000")).count();
        assert_eq!(found, 1, "one group listens");
    })
}

pub fn walk() -> Step {
    let mut hub = Hub::default();
    for slot in 0..10_000 {
        hub.subscribe(slot, IDENTIFIER);
        hub.attach(slot, IDENTIFIER, "room:1");
    }
    Step::new(move || {
        let mut slots = 0;
        hub.walk(black_box("room:1"));
        while let Some(group) = hub.next_group() {
            let (_, members) = hub.group(group);
            slots += members.iter().map(|&slot| u64::from(slot)).sum::<u64>();
        }
        black_box(slots);
    })
}

/// Puts a message into the inbox and takes it out, while the receiver is awake.
pub fn hand_over() -> Step {
    let (mesh, mut inboxes) = ShardMesh::new(1);
    let inbox = inboxes.remove(0);
    let Ok(Broadcast::Publications(publications)) = decode_broadcast(&broadcast_body("hello"))
    else {
        unreachable!("the body is a publication")
    };
    let publications: Arc<[_]> = publications.into();
    Step::new(move || {
        let message = PublishMessage::Deliver(Arc::clone(&publications));
        assert!(
            mesh.mailbox(0).try_send(message.into()).is_ok(),
            "the inbox is empty"
        );
        black_box(inbox.pop()).expect("the message");
    })
}

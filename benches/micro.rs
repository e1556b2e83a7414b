//! Times of the small pure steps on the data path: `cargo bench --bench micro [-- <part of a name>]`.
//!
//! Each step runs in batches until half a second has passed; the line shows the median batch. Times on shared machines
//! are noisy: compare runs of one session only.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ringcable::hub::Hub;
use ringcable::protocol::command::decode_command;
use ringcable::protocol::publication::decode_broadcast;
use ringcable::protocol::reply;
use ringcable::protocol::rpc;
use ringcable::protocol::state::State;
use ringcable::wire::frame;
use ringcable::wire::message::{MessageDecoder, MessageLimits};

/// How long one step is measured.
const MEASURE: Duration = Duration::from_millis(500);
/// Calls between two looks at the clock.
const BATCH: u32 = 1000;

const IDENTIFIER: &str =
    r#"{"channel":"Turbo::StreamsChannel","signed_stream_name":"ImNoYXQvMjAyMyI=--2b2e054b"}"#;

fn main() {
    // Cargo passes `--bench`; the first other word selects steps by name.
    let wanted = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let wanted = wanted.as_deref().unwrap_or("");
    println!("{:<44} {:>12}", "step", "ns, median");
    for (name, step) in steps() {
        if name.contains(wanted) {
            println!("{name:<44} {:>12.1}", median_nanos(step));
        }
    }
}

type Step = Box<dyn FnMut()>;

fn steps() -> Vec<(&'static str, Step)> {
    vec![
        ("frame: unmask 1 KiB", unmask()),
        ("message: decode a 200 B frame", decode_frame()),
        ("command: decode a subscribe", decode_subscribe()),
        ("publication: decode 21 kB", decode_publication()),
        (
            "delivery: encode 21 kB for one identifier",
            encode_delivery(),
        ),
        ("rpc: build a command body", command_body()),
        ("hub: receivers of a stream with 10,000", receivers()),
    ]
}

fn median_nanos(mut step: Step) -> f64 {
    let started = Instant::now();
    let mut batches = Vec::new();
    while started.elapsed() < MEASURE {
        let batch = Instant::now();
        for _ in 0..BATCH {
            step();
        }
        batches.push(batch.elapsed());
    }
    batches.sort_unstable();
    batches[batches.len() / 2].as_nanos() as f64 / f64::from(BATCH)
}

fn unmask() -> Step {
    let mut bytes = vec![b'x'; 1024];
    Box::new(move || frame::unmask([1, 2, 3, 4], 0, black_box(&mut bytes)))
}

fn decode_frame() -> Step {
    let mut wire = frame::text_frame(&[b'x'; 200]);
    // The same frame as a client sends it, masked with zeroes so that it can be decoded again and again.
    wire[1] |= 0x80;
    wire.splice(4..4, [0; 4]);
    let limits = MessageLimits {
        message_bytes_max: 65_536,
        deflate: false,
        inflated_bytes_max: 0,
    };
    let (mut decoder, mut scratch) = (MessageDecoder::default(), Vec::new());
    Box::new(move || {
        let decoded = decoder.next(black_box(&mut wire), &limits, &mut scratch);
        assert!(matches!(decoded, Ok((_, Some(_)))), "the frame is whole");
    })
}

fn decode_subscribe() -> Step {
    let text = serde_json::json!({ "command": "subscribe", "identifier": IDENTIFIER }).to_string();
    Box::new(move || {
        black_box(decode_command(black_box(text.as_bytes()))).expect("a command");
    })
}

fn broadcast_body() -> Vec<u8> {
    let data = serde_json::json!("<turbo-stream>".repeat(1500)).to_string();
    let body = serde_json::json!({ "stream": "room:1", "data": data });
    body.to_string().into_bytes()
}

fn decode_publication() -> Step {
    let body = broadcast_body();
    Box::new(move || {
        black_box(decode_broadcast(black_box(&body))).expect("a publication");
    })
}

fn encode_delivery() -> Step {
    let message = serde_json::json!("<turbo-stream>".repeat(1500)).to_string();
    Box::new(move || {
        let mut text = Vec::new();
        reply::data_message(IDENTIFIER, black_box(message.as_bytes()), None, &mut text);
        black_box(frame::text_frame(&text));
    })
}

fn command_body() -> Step {
    let env = rpc::encode_env_prefix(
        "http://localhost/cable",
        &mut [("cookie", "session_token=abc".into())],
    );
    let state = State::default();
    Box::new(move || {
        let user = r#"{"current_user":"Z2lk"}"#;
        black_box(rpc::command_body(
            "subscribe",
            black_box(IDENTIFIER),
            user,
            None,
            &env,
            &state,
            None,
        ));
    })
}

fn receivers() -> Step {
    let mut hub = Hub::default();
    for slot in 0..10_000 {
        hub.subscribe(slot, IDENTIFIER);
        hub.attach(slot, IDENTIFIER, "room:1");
    }
    Box::new(move || {
        let slots: u64 = hub
            .receivers(black_box("room:1"))
            .flat_map(|(_, slots)| slots)
            .map(|&slot| u64::from(slot))
            .sum();
        black_box(slots);
    })
}

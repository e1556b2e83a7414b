//! The frames of polling clients: one JSON text a line.

use crate::protocol::publication::Publication;
use crate::protocol::reply::{self, Reply};
use crate::shard::outbox::batch::Batch;
use crate::shard::outbox::frame::{Frame, FrameKind, SHARED_MESSAGE_BYTES_MIN};

pub(super) fn reply(reply: &Reply) -> Frame {
    line(reply.json().into_owned())
}

pub(super) fn publication(identifier: &str, publication: &Publication, batch: &mut Batch) -> Frame {
    let (message, position) = (&publication.message, publication.position);
    let mut text = batch.take_scratch();
    let kind = publication.broadcast_type.as_deref();
    reply::begin_data_message(identifier, kind, &mut text);
    let is_shared = message.len() >= SHARED_MESSAGE_BYTES_MIN && first_line_end(message).is_none();
    let mut ending = Vec::new();
    reply::end_data_message(&publication.stream, position, &mut ending);
    if is_shared {
        let payload_bytes = text.len() + message.len() + ending.len();
        ending.push(b'\n');
        let shared = Frame::shared_in_answer(text.clone(), message, &ending, payload_bytes);
        if let Some(frame) = shared {
            batch.keep_scratch(text);
            return frame;
        }
        ending.pop();
    }
    text.extend_from_slice(message);
    text.extend_from_slice(&ending);
    let frame = line(text.clone());
    batch.keep_scratch(text);
    frame
}

/// JSON has line ends only between its parts, where a blank means the same.
fn line(mut text: Vec<u8>) -> Frame {
    let mut start = 0;
    while let Some(end) = first_line_end(&text[start..]) {
        start += end;
        text[start] = b' ';
    }
    let payload_bytes = text.len();
    text.push(b'\n');
    Frame::in_answer(text, FrameKind::Message, payload_bytes)
}

fn first_line_end(text: &[u8]) -> Option<usize> {
    memchr::memchr2(b'\n', b'\r', text)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::mesh::{ProcessBudget, ShardBudget};
    use crate::metrics::Metrics;
    use crate::protocol::position::{Epoch, Position};

    fn text(frame: &Frame) -> String {
        String::from_utf8(frame.pieces().concat()).expect("UTF-8")
    }

    fn check(message: &str, position: Option<Position>, expected: &str) {
        let budget = ShardBudget::new(ProcessBudget::new(None, 1), Metrics::new(1).into(), 0);
        let mut batch = Batch::new(Rc::clone(&budget));
        let publication_made = Publication {
            stream: "s".into(),
            message: message.as_bytes().into(),
            position,
            ..Publication::default()
        };
        for _ in 0..2 {
            let frame = publication("A", &publication_made, &mut batch);
            assert_eq!(text(&frame), format!("{expected}\n"), "{message:.40}");
            assert_eq!(frame.payload_bytes() as usize, expected.len());
        }
    }

    #[test]
    fn a_publication_is_one_line_however_it_is_written() {
        let position = Position {
            epoch: Epoch::from_bits(7),
            offset: 3,
        };
        let with = |message: &str, ending: &str| {
            format!(r#"{{"identifier":"A","message":{message}{ending}}}"#)
        };
        let ending = format!(
            r#","stream_id":"s","epoch":"{}","offset":3"#,
            position.epoch
        );
        let long = format!("\"{}\"", "x".repeat(SHARED_MESSAGE_BYTES_MIN));
        for message in ["1", r#"{"a":"b\n"}"#, &long] {
            check(message, None, &with(message, ""));
            check(message, Some(position), &with(message, &ending));
        }
        check("{\n\"a\":\r\n1}\n", None, &with(r#"{ "a":  1} "#, ""));
        let broken = format!("[\n{long}\r]");
        let expected = with(&format!("[ {long} ]"), &ending);
        check(&broken, Some(position), &expected);
    }

    #[test]
    fn a_transmission_of_the_app_is_one_line() {
        let frame = reply(&Reply::Transmission("{\n\"a\": 1\r\n}".into()));
        assert_eq!(text(&frame), "{ \"a\": 1  }\n");
    }
}

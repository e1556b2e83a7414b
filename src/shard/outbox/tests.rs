//! The outbox and the batch before it.

use std::io::Read;
use std::net::TcpListener;

use super::batch::{
    BATCH_DELIVERIES_DEEP, BATCH_DELIVERIES_MAX, Batch, BatchList, PONGS_APART_MAX, Urgency,
};
use super::frame::{FRAME_OVERHEAD_BYTES, FRAMES_PER_WRITE_MAX, Frame, FrameKind};
use super::*;
use crate::mesh::ProcessBudget;
use crate::metrics::Metrics;
use crate::wire::websocket::frame;

fn budget() -> Rc<ShardBudget> {
    let metrics = Metrics::new(1).into();
    ShardBudget::new(ProcessBudget::new(None, 1), metrics, 0)
}

fn batch() -> Batch {
    Batch::new(budget())
}

fn shared(text: &str) -> Rc<Frame> {
    message(text).into()
}

fn pong(payload: &str) -> Frame {
    Frame::new(frame::pong_frame(payload.as_bytes()), FrameKind::Pong)
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    server.set_nonblocking(true).expect("nonblocking");
    (server, client)
}

fn message(text: &str) -> Frame {
    Frame::new(frame::text_frame(text.as_bytes()), FrameKind::Message)
}

#[test]
fn a_batch_goes_out_in_order_with_one_write() {
    let (server, mut client) = sockets();
    let mut batch = batch();
    let mut list = BatchList::default();
    for text in ["a", "bb", "ccc"] {
        let frame = batch.add_frame(message(text));
        batch.deliver(5, &mut list, frame, Urgency::Bulk);
    }
    assert_eq!((batch.next_dirty(), batch.next_dirty()), (Some(5), None));
    let (written, rest) = batch.write(&mut list, &server).expect("write");
    assert!(rest.is_none() && list.is_empty());
    assert_eq!(
        (written.messages, written.payload_bytes, written.blocked),
        (3, 6, false)
    );
    let mut bytes = vec![0; written.bytes];
    client.read_exact(&mut bytes).expect("read");
    assert_eq!(bytes, b"\x81\x01a\x81\x02bb\x81\x03ccc");
}

#[test]
fn what_does_not_fit_waits_in_order_and_nothing_is_lost() {
    let (server, mut client) = sockets();
    let mut batch = batch();
    let mut list = BatchList::default();
    let texts: Vec<String> = (0..200).map(|index| format!("{index:0>65000}")).collect();
    for text in &texts {
        let frame = batch.add_frame(message(text));
        batch.deliver(0, &mut list, frame, Urgency::Bulk);
    }
    let expected: Vec<u8> = texts
        .iter()
        .flat_map(|text| frame::text_frame(text.as_bytes()))
        .collect();
    let (written, rest) = batch.write(&mut list, &server).expect("write");
    let mut outbox = rest.expect("13 MB do not fit");
    assert_eq!(outbox.pending_bytes(), expected.len() - written.bytes);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).expect("read");
        bytes
    });
    let mut messages = written.messages;
    while !outbox.is_empty() {
        messages += outbox.write(&server).expect("write").messages;
    }
    drop(server);
    assert_eq!(messages, 200);
    assert_eq!(outbox.pending_bytes(), 0);
    assert!(reader.join().expect("reader") == expected);
}

#[test]
fn clearing_keeps_a_frame_that_is_half_written() {
    let mut outbox = Outbox::default();
    outbox.push(shared("first"));
    outbox.push(shared("second"));
    let mut written = Written::default();
    outbox.consume(3, &mut written);
    outbox.clear_unstarted();
    assert_eq!((outbox.messages(), outbox.pending_bytes()), (1, 4));
    outbox.consume(4, &mut written);
    assert!(outbox.is_empty());
    outbox.push(shared("third"));
    outbox.clear_unstarted();
    assert_eq!((outbox.is_empty(), outbox.pending_bytes()), (true, 0));
}

#[test]
fn the_frame_that_is_being_written_is_pending_and_not_queued() {
    let mut outbox = Outbox::default();
    assert_eq!((outbox.queued_bytes(), outbox.held_bytes()), (0, 0));
    outbox.push(shared("first"));
    assert_eq!((outbox.pending_bytes(), outbox.queued_bytes()), (7, 0));
    outbox.push(shared("second"));
    outbox.consume(3, &mut Written::default());
    assert_eq!(outbox.pending_bytes(), 12);
    assert_eq!(outbox.queued_bytes(), 8 + FRAME_OVERHEAD_BYTES);
    assert_eq!(outbox.held_bytes(), 15 + 2 * FRAME_OVERHEAD_BYTES);
    outbox.consume(12, &mut Written::default());
    assert_eq!((outbox.queued_bytes(), outbox.held_bytes()), (0, 0));
}

#[test]
fn a_frame_is_charged_once_and_until_its_last_receiver_has_it() {
    let budget = budget();
    let mut batch = Batch::new(Rc::clone(&budget));
    let frame = batch.add_frame(message("shared"));
    let held = 8 + FRAME_OVERHEAD_BYTES;
    assert_eq!(budget.used_bytes(), held);
    let mut outboxes = [Outbox::default(), Outbox::default()];
    for (slot, outbox) in outboxes.iter_mut().enumerate() {
        let mut list = BatchList::default();
        batch.deliver(slot as u32, &mut list, frame, Urgency::Bulk);
        batch.next_dirty();
        batch.drain_into(&mut list, outbox);
    }
    batch.finish();
    let [mut first, second] = outboxes;
    first.consume(8, &mut Written::default());
    assert_eq!(budget.used_bytes(), held);
    drop(second);
    assert_eq!(budget.used_bytes(), 0);
}

#[test]
fn of_many_pongs_that_wait_only_the_newest_is_kept() {
    let mut batch = batch();
    let mut list = BatchList::default();
    let deliver = |batch: &mut Batch, list: &mut BatchList, frame| {
        let frame = batch.add_frame(frame);
        batch.deliver(1, list, frame, Urgency::Bulk);
    };
    assert!(
        batch.replace_pong(list, pong("a"), true).is_some(),
        "nothing is there"
    );
    deliver(&mut batch, &mut list, pong("a"));
    assert!(
        batch.replace_pong(list, pong("b"), false).is_some(),
        "few are all sent"
    );
    assert!(batch.replace_pong(list, pong("b"), true).is_none());
    deliver(&mut batch, &mut list, message("text"));
    assert!(
        batch.replace_pong(list, pong("c"), true).is_some(),
        "the order stays"
    );
    let mut outbox = Outbox::default();
    batch.drain_into(&mut list, &mut outbox);
    for newer in ["c", "d"] {
        deliver(&mut batch, &mut list, pong(newer));
        batch.drain_into(&mut list, &mut outbox);
    }
    let kept: Vec<&[u8]> = outbox
        .frames
        .iter()
        .map(|frame| &frame.contiguous().expect("short")[2..])
        .collect();
    assert_eq!(kept, [b"b" as &[u8], b"text", b"d"]);
    assert_eq!(outbox.pending_bytes(), 3 + 6 + 3);
}

#[test]
fn a_pong_that_is_half_written_is_not_replaced() {
    let mut outbox = Outbox::default();
    outbox.push_or_replace(pong("a").into());
    outbox.consume(1, &mut Written::default());
    outbox.push_or_replace(pong("b").into());
    outbox.push_or_replace(pong("c").into());
    assert_eq!(outbox.frames.len(), 2);
    assert_eq!(outbox.pending_bytes(), 5);
}

#[test]
fn pongs_of_a_full_batch_are_merged_for_everybody() {
    let mut batch = batch();
    let mut list = BatchList::default();
    let mut kept = 0;
    for _ in 0..10_000 {
        if let Some(pong) = batch.replace_pong(list, pong(""), false) {
            let frame = batch.add_frame(pong);
            batch.deliver(1, &mut list, frame, Urgency::Bulk);
            kept += 1;
        }
    }
    assert_eq!(kept, PONGS_APART_MAX + 1);
}

#[test]
fn replies_are_written_before_publications_and_both_come_to_their_turn() {
    let mut batch = batch();
    let frame = batch.add_frame(message("x"));
    let mut lists = [BatchList::default(); 20];
    for (slot, list) in lists.iter_mut().enumerate() {
        let urgency = match slot {
            0..10 => Urgency::Bulk,
            _ => Urgency::Prompt,
        };
        batch.deliver(slot as u32, list, frame, urgency);
    }
    let order: Vec<u32> = std::iter::from_fn(|| batch.next_dirty()).collect();
    assert_eq!(order[..10], [10, 11, 12, 13, 0, 14, 15, 16, 17, 1]);
    assert_eq!(order[10..13], [18, 19, 2]);
    assert_eq!(order.len(), 20);
}

#[test]
fn a_batch_is_full_when_few_sessions_have_very_much() {
    let deliveries = |sessions: usize| {
        let mut batch = batch();
        let frame = batch.add_frame(message("x"));
        let mut lists = vec![BatchList::default(); sessions];
        for slot in (0..sessions).cycle() {
            if batch.is_full() {
                break;
            }
            batch.deliver(slot as u32, &mut lists[slot], frame, Urgency::Bulk);
        }
        assert!(!batch.has_no_room(), "there is room for replies");
        batch.nodes.len()
    };
    assert_eq!(deliveries(1), BATCH_DELIVERIES_DEEP);
    assert_eq!(deliveries(1000), 1000 * FRAMES_PER_WRITE_MAX);
    assert_eq!(deliveries(20_000), BATCH_DELIVERIES_MAX);
}

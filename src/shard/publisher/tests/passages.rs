//! One message on its way into inboxes.

use super::*;
use crate::hub::ShardSet;

fn ended(sid: &str) -> ShardMessage {
    ShardMessage::Home(Box::new(HomeMessage::Ended { sid: sid.into() }))
}

fn advance(publisher: &Publisher, passage: &mut Passage) -> bool {
    passage.advance(&publisher.mesh, publisher.counters())
}

#[test]
fn a_publication_goes_on_with_the_inbox_that_had_no_room() {
    let (publisher, inboxes) = publisher();
    fill(&publisher, 1);
    let mut passage = Passage::of_publication(publications(&["a"]), ShardSet::all(2));
    assert!(!advance(&publisher, &mut passage) && !passage.is_done());
    assert!(!advance(&publisher, &mut passage), "there is no room yet");
    assert_eq!(streams(&inboxes[0]), ["a"]);
    inboxes[1].pop().expect("it is full");
    assert!(advance(&publisher, &mut passage) && passage.is_done());
    assert_eq!(streams(&inboxes[1]), ["a"]);
    assert_eq!(inboxes[0].depth(), 0, "once for each shard");
    assert_eq!(publisher.counters().publications_handed_total.value(), 2);
}

#[test]
fn a_message_for_one_shard_is_still_there_after_it_was_refused() {
    let (publisher, inboxes) = publisher();
    fill(&publisher, 1);
    let mut passage = Passage::to_shard(1, 2, ended("s"));
    assert!(!advance(&publisher, &mut passage));
    while inboxes[1].pop().is_some() {}
    assert!(advance(&publisher, &mut passage) && passage.is_done());
    let (_, message) = inboxes[1].pop().expect("the message");
    assert!(matches!(message, ShardMessage::Home(message)
        if matches!(&*message, HomeMessage::Ended { sid } if &**sid == "s")));
    assert_eq!((inboxes[0].depth(), inboxes[1].depth()), (0, 0));
    let handed = publisher.counters().publications_handed_total.value();
    assert_eq!(handed, 0, "it is no publication");
}

#[test]
fn a_passage_to_nobody_is_done() {
    let (publisher, _inboxes) = publisher();
    let mut passage = Passage::of_publication(publications(&["a"]), ShardSet::none(2));
    assert!(passage.is_done() && passage.take_next().is_none());
    assert!(advance(&publisher, &mut passage));
}

#[test]
fn who_waits_is_told_when_the_last_inbox_has_the_message() {
    let (publisher, inboxes) = publisher();
    listen(&publisher, ["a"]);
    fill(&publisher, 1);
    let (gather, mut replies) = Gather::new(1);
    let mut passage = publisher.route(publications(&["a"]));
    passage.report_to(replies.pop());
    publisher.send(passage);
    let mut told = pin!(gather.all());
    assert!(poll(told.as_mut()).is_pending());
    let mut sending = pin!(publisher.send_waiting());
    assert!(poll(sending.as_mut()).is_pending());
    assert!(poll(told.as_mut()).is_pending(), "there is no room yet");
    while inboxes[1].pop().is_some() {}
    assert!(poll(sending.as_mut()).is_pending());
    assert!(poll(told.as_mut()).is_ready());
    assert_eq!(streams(&inboxes[1]), ["a"]);
}

//! Answers to publications, which leave with the writes of a turn.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::net::TcpSocket;
use crate::shard::answers::SentAnswer;

type Sending = Pin<Box<dyn Future<Output = SentAnswer>>>;

fn poll(sending: &mut Sending) -> Poll<SentAnswer> {
    let mut context = Context::from_waker(Waker::noop());
    sending.as_mut().poll(&mut context)
}

/// An answer that waits for a turn.
fn send(bench: &Bench, socket: TcpStream, text: &str) -> Sending {
    let sending = bench
        .sessions
        .send_answer(TcpSocket::new(socket), text.into());
    let mut sending: Sending = Box::pin(sending);
    assert!(poll(&mut sending).is_pending());
    sending
}

/// The same, and the far end of its socket.
fn waiting(bench: &Bench, text: &str) -> (Sending, TcpStream) {
    let (ours, theirs) = bench.pair();
    (send(bench, ours, text), theirs)
}

/// Makes turns until no answer waits. A turn ends early when its time is over.
fn finish(bench: &mut Bench) {
    while bench.sessions.has_more() {
        bench.turn(|_| ());
    }
    bench.flush();
}

fn written(sending: &mut Sending) -> SentAnswer {
    match poll(sending) {
        Poll::Ready(written) => written,
        Poll::Pending => panic!("no turn has written the answer"),
    }
}

#[track_caller]
fn reads(mut socket: &TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    socket.read_exact(&mut read).expect("it has arrived");
    assert_eq!(read, text.as_bytes());
}

/// With and without deliveries, few and so many that one submission does not hold them.
#[test]
fn answers_leave_with_the_deliveries_of_the_turn() {
    on_both(PUBLIC, |bench| {
        let mut clients: Vec<Client> = (0..4).map(|_| bench.listener("x")).collect();
        for (published, count) in [(false, 1), (true, 1), (true, 12), (true, 300)] {
            let texts: Vec<String> = (0..count)
                .map(|number| format!("answer {number}"))
                .collect();
            let mut sent: Vec<_> = texts.iter().map(|text| waiting(bench, text)).collect();
            bench.turn(|sessions| {
                if published {
                    fan_out(sessions, &[message("x", "1")]);
                }
            });
            finish(bench);
            for ((sending, far), text) in sent.iter_mut().zip(&texts) {
                let written = written(sending);
                assert_eq!(written.taken.expect("an open socket"), text.len());
                assert_eq!(written.bytes, text.as_bytes());
                reads(far, text);
            }
            if published {
                clients.iter_mut().for_each(|client| drop(client.next()));
            }
        }
    });
}

#[test]
fn a_full_socket_and_a_broken_one_are_reported_and_hold_nobody_up() {
    on_both(PUBLIC, |bench| {
        for others in [0, 20] {
            let long = "x".repeat(8 << 20);
            let (mut full, _far) = waiting(bench, &long);
            let (ours, theirs) = bench.pair();
            SockRef::from(&ours)
                .shutdown(std::net::Shutdown::Write)
                .expect("connected");
            let mut broken = send(bench, ours, "lost");
            let mut sent: Vec<_> = (0..=others).map(|_| waiting(bench, "heard")).collect();
            finish(bench);
            let written_bytes = written(&mut full).taken.expect("an open socket");
            assert!(0 < written_bytes && written_bytes < long.len());
            let error = written(&mut broken).taken.expect_err("it was shut down");
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            for (sending, far) in &mut sent {
                assert_eq!(written(sending).taken.expect("an open socket"), 5);
                reads(far, "heard");
            }
            drop(theirs);
        }
    });
}

#[test]
fn an_answer_whose_client_is_given_up_closes_its_socket() {
    on_both(PUBLIC, |bench| {
        let (sending, mut far) = waiting(bench, "late");
        drop(sending);
        finish(bench);
        reads(&far, "late");
        assert_eq!(far.read(&mut [0]).expect("it is closed"), 0);
    });
}

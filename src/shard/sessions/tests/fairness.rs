//! One session's share of a turn, and fan-outs that take several turns.

use super::*;

/// A pong without payload, masked with zeroes.
const PONG: &[u8] = &[0x8a, 0x80, 0, 0, 0, 0];
/// A ping with one byte of payload.
const PING: &[u8] = &[0x89, 0x81, 0, 0, 0, 0, b'p'];
/// Turns within which a client that sends little must be served beside those that never stop: one, plus some for bytes that
/// the kernel has not delivered yet.
const TURNS_MAX: usize = 10;

/// Writes as much into a client's socket as the kernel takes.
fn fill(client: &mut Client, bytes: &[u8]) -> usize {
    client.socket.set_nonblocking(true).expect("nonblocking");
    let flood = bytes.repeat((64 << 10) / bytes.len());
    let mut written = 0;
    loop {
        match client.socket.write(&flood) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("the flood ended: {error}"),
        }
    }
    client.socket.set_nonblocking(false).expect("blocking");
    written
}

/// The number of turns after which `client` has its pong.
fn turns_until_pong(bench: &mut Bench, client: &mut Client) -> usize {
    client.socket.write_all(PING).expect("write");
    client.socket.set_nonblocking(true).expect("nonblocking");
    let mut buffer = [0; 16];
    let turns = (1..1000).find(|_| {
        bench.harvest();
        matches!(client.socket.read(&mut buffer), Ok(3))
    });
    client.socket.set_nonblocking(false).expect("blocking");
    turns.expect("a pong")
}

#[test]
fn whatever_one_client_sends_the_others_are_served_in_the_same_turn() {
    let subscribe = frame_of(
        r#"{"command":"subscribe","identifier":"{\"channel\":\"$pubsub\",\"stream_name\":\"s\"}"}"#,
    );
    let garbage = frame_of("x");
    // A fragment of one byte that begins a message, then fragments that never end it.
    let fragments: &[u8] = &[0, 0x81, 0, 0, 0, 0, b'x'];
    for flood in [PONG, PING, &subscribe, &garbage, fragments] {
        on_both(PUBLIC, |bench| {
            let mut attackers: Vec<Client> = (0..3).map(|_| bench.listener("x")).collect();
            let mut honest = bench.listener("x");
            for attacker in &mut attackers {
                if flood == fragments {
                    attacker
                        .socket
                        .write_all(&[0x01, 0x81, 0, 0, 0, 0, b'x'])
                        .expect("write");
                }
                fill(attacker, flood);
            }
            for _ in 0..3 {
                let turns = turns_until_pong(bench, &mut honest);
                assert!(
                    turns <= TURNS_MAX,
                    "{}: {turns} turns beside {flood:?}",
                    bench.driver
                );
            }
        });
    }
}

#[test]
fn what_goes_beyond_a_share_is_served_in_the_next_turns_without_a_new_event() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.listener("x");
        let commands = 20_000;
        let command = frame_of(r#"{"command":"ping"}"#);
        let mut socket = client.socket.try_clone().expect("dup");
        let writer = std::thread::spawn(move || socket.write_all(&command.repeat(commands)));
        bench.until("share used up", |bench| bench.sessions.has_more());
        client.socket.set_nonblocking(true).expect("nonblocking");
        let mut buffer = vec![0; 64 << 10];
        let served = |bench: &Bench| bench.counters().client_msg_total.value() as usize - 1;
        let deadline = Instant::now() + PATIENCE;
        while served(bench) < commands {
            assert!(Instant::now() < deadline, "{}", served(bench));
            bench.harvest();
            while client.socket.read(&mut buffer).is_ok() {}
        }
        writer.join().expect("writer").expect("written");
        bench.flush();
        assert!(!bench.sessions.has_more());
    });
}

#[test]
fn a_command_in_the_middle_of_a_fan_out_does_not_get_what_was_published_before() {
    on_both(PUBLIC, |bench| {
        let mut early = bench.listener("x");
        let mut late = bench.open(|_| ());
        assert!(late.next().contains("welcome"));

        // When the command comes, message 1 is half delivered and message 2 waits.
        bench.arrive(&message("x", "1"));
        bench.arrive(&message("x", "2"));
        let (number, publications) = bench.take_arrived();
        bench.turn(|sessions| sessions.fan_out(publications, number));
        bench.listen_again(&mut late, "x");
        bench.arrive(&message("x", "3"));
        bench.finish_fan_out();
        for _ in 2..=3 {
            let (number, publications) = bench.take_arrived();
            bench.turn(|sessions| sessions.fan_out(publications, number));
            bench.finish_fan_out();
        }
        bench.flush();
        for expected in 1..=3 {
            assert!(
                early
                    .next()
                    .ends_with(&format!(r#""message":{expected}}}"#))
            );
        }
        assert!(late.next().ends_with(r#""message":3}"#), "{}", bench.driver);
        assert!(early.got_nothing() && late.got_nothing());
    });
}

#[test]
fn a_fan_out_to_very_many_identifiers_is_left_for_the_next_turns() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        assert!(client.next().contains("welcome"));
        const IDENTIFIERS: usize = 600;
        for number in 0..IDENTIFIERS {
            let identifier =
                format!(r#"{{"channel":"$pubsub","stream_name":"x","number":{number}}}"#);
            client.command("subscribe", &identifier);
        }
        bench.until("confirmations", |bench| {
            bench.counters().server_msg_total.value() > IDENTIFIERS as u64
        });
        for _ in 0..IDENTIFIERS {
            assert!(client.next().contains("confirm_subscription"));
        }
        let mut pieces = 1;
        bench.turn(|sessions| {
            sessions.fan_out([message("x", "1")].into(), 0);
            let no_time = TimeSlice::new(Duration::ZERO);
            while !sessions.go_on_fan_out(no_time) && sessions.is_fanning_out() {
                pieces += 1;
            }
        });
        assert!(pieces > IDENTIFIERS / 16, "{}: {pieces}", bench.driver);
        bench.flush();
        for _ in 0..IDENTIFIERS {
            assert!(client.next().ends_with(r#""message":1}"#));
        }
    });
}

fn frame_of(text: &str) -> Vec<u8> {
    assert!(text.len() < 126, "a short frame");
    [
        &[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0],
        text.as_bytes(),
    ]
    .concat()
}

impl Bench {
    /// Puts a publication into the shard's inbox.
    fn arrive(&self, publication: &Publication) {
        let message = PublishMessage::Deliver([publication.clone()].into());
        let sent = self.mesh.mailbox(0).try_send(message.into());
        assert!(sent.is_ok(), "the inbox has room");
    }

    fn take_arrived(&self) -> (u64, Arc<[Publication]>) {
        match self.inbox.pop() {
            Some((number, ShardMessage::Publish(PublishMessage::Deliver(publications)))) => {
                (number, publications)
            }
            _ => panic!("a publication waits"),
        }
    }

    fn finish_fan_out(&mut self) {
        self.turn(|sessions| {
            assert!(sessions.go_on_fan_out(TimeSlice::new(PATIENCE)));
        });
    }

    /// As [`Self::listen`], for a client that has read its welcome. Also reads the confirmation.
    fn listen_again(&mut self, client: &mut Client, stream: &str) {
        let identifier = format!(r#"{{"channel":"$pubsub","stream_name":"{stream}"}}"#);
        let before = self.counters().server_msg_total.value();
        client.command("subscribe", &identifier);
        self.until("confirmation", |bench| {
            bench.counters().server_msg_total.value() > before
        });
        assert!(client.next().contains("confirm_subscription"));
    }
}

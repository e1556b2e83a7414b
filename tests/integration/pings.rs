//! Pings and pongs. Source: `contract/websocket.md` §3.4 and §10.

use std::time::{Duration, Instant};

use crate::support::raw::{PING, PONG, Raw, frame, handshake};
use crate::support::{Cable, Stage};

/// The next frame, which must be an Action Cable ping; gives the digits of its timestamp.
fn ping_digits(raw: &mut Raw) -> String {
    let text = raw.read_frame().text();
    let digits = text
        .strip_prefix(r#"{"type":"ping","message":"#)
        .and_then(|rest| rest.strip_suffix('}'));
    let digits = digits.unwrap_or_else(|| panic!("not a ping: {text}"));
    assert!(digits.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
    digits.to_owned()
}

/// An upgraded client whose welcome has been read; pings are left alone.
fn client(stage: &Stage, target: &str) -> Raw {
    let mut raw = Raw::upgrade(stage.server.address(), target);
    assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    raw
}

fn extended_client(stage: &Stage, target: &str) -> Raw {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake(target, &["Sec-WebSocket-Protocol: actioncable-v1-ext-json"]).as_bytes());
    assert_eq!(raw.read_head().status(), 101);
    assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    raw
}

on_both_drivers! {
    fn first_ping_comes_within_one_and_a_half_intervals_then_one_per_interval(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1"]);
        let started = Instant::now();
        let mut raw = client(&stage, "/cable");
        ping_digits(&mut raw);
        let first = started.elapsed().as_secs_f64();
        assert!((0.4..1.9).contains(&first), "first ping after {first} s");
        let mut last = Instant::now();
        for _ in 0..2 {
            ping_digits(&mut raw);
            let pause = last.elapsed().as_secs_f64();
            assert!((0.7..1.5).contains(&pause), "pings {pause} s apart");
            last = Instant::now();
        }
    }

    fn pings_of_many_clients_are_spread_over_the_interval(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1"]);
        let clients: Vec<Raw> = (0..24).map(|_| client(&stage, "/cable")).collect();
        let started = Instant::now();
        let handles: Vec<_> = clients.into_iter().map(|mut raw| std::thread::spawn(move || {
            ping_digits(&mut raw);
            started.elapsed()
        })).collect();
        let mut times: Vec<Duration> = handles.into_iter().map(|handle| handle.join().expect("a ping")).collect();
        times.sort_unstable();
        let spread = times[times.len() - 1] - times[0];
        assert!(spread > Duration::from_millis(300), "all first pings within {spread:?}");
    }

    fn clients_choose_their_own_interval(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=60"]);
        let mut every_second = client(&stage, "/cable?pi=1");
        let mut never = client(&stage, "/cable?pi=0");
        let mut negative = client(&stage, "/cable?pi=-5");
        let mut last_counts = client(&stage, "/cable?pi=0&pi=1");
        for _ in 0..3 {
            ping_digits(&mut every_second);
        }
        ping_digits(&mut last_counts);
        for raw in [&mut never, &mut negative] {
            raw.send_text(r#"{"command":"ping"}"#);
            assert_eq!(raw.read_frame().text(), r#"{"type":"pong"}"#, "no ping in three seconds");
        }
    }

    fn interval_that_is_no_integer_is_ignored(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1"]);
        for target in ["/cable?pi=abc", "/cable?pi=1.5", "/cable?pi="] {
            ping_digits(&mut client(&stage, target));
        }
    }

    fn interval_zero_switches_pings_off(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=0"]);
        let mut silent = client(&stage, "/cable");
        let mut asked = client(&stage, "/cable?pi=1");
        for _ in 0..2 {
            ping_digits(&mut asked);
        }
        silent.send_text(r#"{"command":"ping"}"#);
        assert_eq!(silent.read_frame().text(), r#"{"type":"pong"}"#);
    }

    fn timestamp_has_the_precision_asked_for(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--ping_timestamp_precision=ms"]);
        for (target, digits) in [("/cable", 13), ("/cable?ptp=s", 10), ("/cable?ptp=ns", 19), ("/cable?ptp=weird", 10)] {
            assert_eq!(ping_digits(&mut client(&stage, target)).len(), digits, "{target}");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let sent: u64 = ping_digits(&mut client(&stage, "/cable?ptp=s")).parse().expect("digits");
        assert!(sent.abs_diff(now) <= 5, "sent {sent}, now {now}");
    }

    fn silent_extended_client_is_dropped_and_one_that_answers_stays(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let mut silent = extended_client(&stage, "/cable");
        let mut lively = extended_client(&stage, "/cable");
        for _ in 0..4 {
            ping_digits(&mut lively);
            lively.send_text(r#"{"command":"pong"}"#);
        }
        assert_eq!(silent.next_text(), r#"{"type":"disconnect","reason":"no_pong","reconnect":true}"#);
        silent.expect_close(1000, "No Pong");
        lively.expect_nothing_before_pong();
        stage.rails.wait_for_calls("disconnect", 1);
        assert_eq!(stage.rails.calls_to("disconnect").len(), 1);
    }

    fn any_message_counts_as_a_sign_of_life(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let mut client = extended_client(&stage, "/cable");
        for _ in 0..4 {
            ping_digits(&mut client);
            client.send_text(r#"{"command":"whatever"}"#);
        }
        client.expect_nothing_before_pong();
    }

    /// The first deadline is the first ping and the timeout; only a command that can be decoded ends it. Source:
    /// `contract/extended.md` §3.8.
    fn messages_that_cannot_be_decoded_are_no_sign_of_life(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let started = Instant::now();
        let mut client = extended_client(&stage, "/cable");
        loop {
            client.send_text(r#"{"command":"join","identifier":"A","presence":{"id":5}}"#);
            let text = client.read_frame().text();
            if !text.starts_with(r#"{"type":"ping""#) {
                assert_eq!(text, r#"{"type":"disconnect","reason":"no_pong","reconnect":true}"#);
                break;
            }
        }
        let silent = started.elapsed();
        assert!(silent > Duration::from_millis(1400), "dropped after {silent:?}");
        client.expect_close(1000, "No Pong");
    }

    fn base_protocol_clients_need_not_answer_pings(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let mut silent = client(&stage, "/cable");
        for _ in 0..4 {
            ping_digits(&mut silent);
        }
        silent.expect_nothing_before_pong();
    }

    fn client_without_pings_is_never_dropped_for_missing_pongs(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let mut unpinged = extended_client(&stage, "/cable?pi=0");
        let mut silent = extended_client(&stage, "/cable");
        assert!(silent.next_text().contains("no_pong"));
        unpinged.expect_nothing_before_pong();
    }

    fn native_pings_follow_each_ping_and_native_pongs_keep_the_session(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--enable_native_pings", "--pong_timeout=1"]);
        let mut lively = client(&stage, "/cable");
        let mut silent = client(&stage, "/cable");
        for _ in 0..4 {
            ping_digits(&mut lively);
            let native = lively.read_frame();
            assert_eq!((native.opcode, native.payload.len()), (PING, 0));
            lively.send(&frame(PONG, b""));
        }
        lively.expect_nothing_before_pong();
        let mut frame = silent.next_frame();
        while frame.opcode == PING {
            frame = silent.next_frame();
        }
        assert_eq!(frame.text(), r#"{"type":"disconnect","reason":"no_pong","reconnect":true}"#);
        silent.expect_close(1000, "No Pong");
    }

    fn pings_go_on_while_the_app_is_silent(driver: Driver) {
        let stage = Stage::with(driver, &["--ping_interval=1"]);
        stage.rails.on_command("message", "A", crate::support::Answer::success().behind(&crate::support::Gate::new()));
        let mut raw = client(&stage, "/cable");
        raw.subscribe("A");
        raw.send_text(r#"{"command":"message","identifier":"A","data":"x"}"#);
        stage.rails.wait_for_command("message", "A");
        for _ in 0..2 {
            ping_digits(&mut raw);
        }
    }

    fn ping_command_is_answered_with_pong(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = Cable::to(&stage.server).welcomed();
        client.expect_nothing_before_pong();
    }
}

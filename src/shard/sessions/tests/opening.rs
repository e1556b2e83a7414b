//! From an answered upgrade to a welcome or a refusal.

use super::*;

#[test]
fn the_app_welcomes_a_client() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|_| ());
        let call = bench.call();
        assert!(matches!(call.question, Question::Connect));
        assert_eq!(
            (&*call.sid, &call.body),
            ("s1", &json!({ "env": { "url": "u" } }))
        );
        assert!(client.got_nothing());
        assert_eq!((bench.clients(), bench.survey().identities.len()), (0, 0));
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": [WELCOME, "more"] }),
        );
        assert_eq!(
            (client.next(), client.next()),
            (WELCOME.into(), "more".into())
        );
        assert_eq!((bench.clients(), bench.survey().identities.len()), (1, 1));
        assert_eq!(bench.counters().rpc_call_total.value(), 1);
        assert_eq!(bench.counters().server_msg_total.value(), 2);
        assert!(bench.actions.is_empty());
    });
}

#[test]
fn a_refused_client_hears_why_and_is_gone() {
    type Answered = fn() -> Result<RpcAnswer, RpcError>;
    fn check(answer: Answered, frames: &[&str], auths: u64, errors: u64, rpc_errors: u64) {
        on_both(WITH_RPC, |bench| {
            let mut client = bench.open(|_| ());
            let call = bench.call();
            bench.result(call, answer());
            assert_eq!(client.rest(), frames);
            let counters = bench.counters();
            assert_eq!(counters.failed_auths_total.value(), auths);
            assert_eq!(counters.closed_auth_total.value(), auths);
            assert_eq!(counters.closed_error_total.value(), errors);
            assert_eq!(counters.rpc_error_total.value(), rpc_errors);
            assert_eq!(bench.clients(), 0);
            assert!(bench.disconnect_jobs().is_empty());
        });
    }
    check(
        || answered(br#"{"status":2,"transmissions":["no"]}"#),
        &["no", "close 1000 Auth Failed", "end"],
        1,
        0,
        0,
    );
    let failed = &["close 1011 Auth Error", "end"];
    check(
        || answered(br#"{"status":0,"transmissions":["no"]}"#),
        failed,
        0,
        1,
        0,
    );
    check(|| answered(b"<html>"), failed, 0, 1, 1);
    check(|| Err(RpcError::Status { status: 500 }), failed, 0, 1, 0);
    check(|| Err(RpcError::BreakerOpen), failed, 0, 1, 0);
}

#[test]
fn a_permit_is_held_as_long_as_the_socket() {
    on_both(PUBLIC, |bench| {
        let limit = ConnectionLimit::new(1, Arc::default(), usize::MAX);
        let client = bench.open(|new| new.permit = limit.try_acquire().ok());
        assert!(limit.try_acquire().is_err());
        drop(client);
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(limit.try_acquire().is_ok());
        let mut refused = bench.open(|new| new.permit = limit.try_acquire().ok());
        bench.disconnect_remotely(r#"{"sid":"s2"}"#, false);
        assert_eq!(refused.rest().last().map(String::as_str), Some("end"));
        assert!(limit.try_acquire().is_ok());
    });
}

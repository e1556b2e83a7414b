//! How the client is authenticated.

use super::*;

/// Source: contract/auth_streams.md §4, row by row: no token, a valid one, a bad one.
#[test]
fn the_table_of_authentication_holds() {
    const SECRET: &str = "--jwt_secret=s3Krit";
    const CALL: &[&str] = &["call"];
    const PUBLIC: &[&str] = &["register {\"sid\":\"req-1\"}", WELCOME];
    const JWT: &[&str] = &["register {\"user_id\":15}", WELCOME];
    fn check(args: &[&str], credentials: &Credentials, expected: &[&str]) {
        let mut scene = Scene::new(args);
        let mut steps = scene.authenticate(credentials);
        for step in &mut steps {
            if step.starts_with("call") {
                assert_eq!(*step, format!("call {{\"env\":{{{ENV}}}}}"));
                *step = "call".into();
            } else if step == "register" {
                *step = format!("register {}", scene.session.identifiers());
            }
        }
        assert_eq!(steps, expected, "{args:?} {credentials:?}");
        let welcomed = expected.contains(&WELCOME);
        assert_eq!(scene.session.is_authenticated(), welcomed, "{args:?}");
    }
    fn row(args: &[&str], none: &[&str], valid: &[&str], bad: &[&str]) {
        check(args, &Credentials::default(), none);
        check(args, &token(GOOD_TOKEN), valid);
        check(args, &token(BAD_TOKEN), bad);
    }
    let rpc = WITH_RPC[0];
    row(&[rpc], CALL, CALL, CALL);
    row(&["--norpc"], UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED);
    row(&["--noauth", rpc], PUBLIC, PUBLIC, PUBLIC);
    row(&["--noauth", "--norpc"], PUBLIC, PUBLIC, PUBLIC);
    row(&[SECRET, rpc], CALL, JWT, UNAUTHORIZED);
    for other in [rpc, "--norpc"] {
        let enforced = [SECRET, "--enforce_jwt", other];
        row(&enforced, UNAUTHORIZED, JWT, UNAUTHORIZED);
        let enforced = [SECRET, "--enforce_jwt", "--noauth", other];
        row(&enforced, UNAUTHORIZED, JWT, UNAUTHORIZED);
        row(&[SECRET, "--noauth", other], PUBLIC, JWT, UNAUTHORIZED);
    }
    row(&[SECRET, "--norpc"], UNAUTHORIZED, JWT, UNAUTHORIZED);
}

#[test]
fn an_expired_token_says_so_and_one_without_identity_is_an_error() {
    fn check(credentials: &Credentials, expected: &[&str]) {
        let mut scene = Scene::new(&["--jwt_secret=s3Krit", "--noauth", "--norpc"]);
        assert_eq!(scene.authenticate(credentials), expected);
        assert!(!scene.session.is_authenticated());
    }
    let expired = r#"send {"type":"disconnect","reason":"token_expired","reconnect":false}"#;
    check(&token(EXPIRED_TOKEN), &[expired, "close 1000 Auth Failed"]);
    check(&token(TOKEN_WITHOUT_EXT), &["close 1011 Auth Error"]);
    let bad_query = Credentials {
        token: None,
        bad_query: true,
    };
    check(&bad_query, &["close 1011 Auth Error"]);
}

#[test]
fn whoever_is_refused_here_is_refused_for_a_reason_that_the_log_can_tell() {
    const SECRET: &str = "--jwt_secret=s3Krit";
    fn check(args: &[&str], credentials: &Credentials, expected: Result<(), AuthRefusal>) {
        let (result, _) = Scene::new(args).try_authenticate(credentials);
        assert_eq!(result, expected, "{args:?} {credentials:?}");
    }
    let jwt = &[SECRET, "--norpc"];
    check(jwt, &token(GOOD_TOKEN), Ok(()));
    check(jwt, &token(BAD_TOKEN), Err(AuthRefusal::TokenInvalid));
    check(jwt, &token("no token"), Err(AuthRefusal::TokenInvalid));
    check(jwt, &token(EXPIRED_TOKEN), Err(AuthRefusal::TokenExpired));
    check(
        jwt,
        &token(TOKEN_WITHOUT_EXT),
        Err(AuthRefusal::TokenWithoutIdentifiers),
    );
    let nobody = Credentials::default();
    check(jwt, &nobody, Err(AuthRefusal::NoAuthenticator));
    check(
        &[SECRET, "--enforce_jwt", "--norpc"],
        &nobody,
        Err(AuthRefusal::TokenMissing),
    );
    check(&["--noauth", "--norpc"], &nobody, Ok(()));
    check(WITH_RPC, &nobody, Ok(()));
}

/// Source: contract/rpc.md §6.1, E1, E10 and E11.
#[test]
fn answers_to_connect_decide_what_the_client_sees() {
    fn check(answer: Value, expected: &[&str], identifiers: &str) {
        let mut scene = Scene::new(WITH_RPC);
        scene.authenticate(&Credentials::default());
        assert_eq!(scene.connect_answer(&answer), expected);
        assert_eq!(scene.session.identifiers(), identifiers);
        assert_eq!(
            scene.session.is_authenticated(),
            expected.contains(&"register")
        );
        assert_eq!((scene.session.sid(), scene.session.env()), (SID, ENV));
        assert_eq!(
            scene.disconnect_body().is_some(),
            scene.session.is_authenticated(),
            "a Disconnect call follows success only"
        );
    }
    let welcome = r#"{"type":"welcome"}"#;
    check(
        json!({ "status": 1, "identifiers": USER, "transmissions": [welcome], "env": {} }),
        &["register", r#"send {"type":"welcome"}"#],
        USER,
    );
    check(json!({ "status": 1, "identifiers": "" }), &["register"], "");
    let refusal = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
    check(
        json!({ "status": 2, "identifiers": USER, "transmissions": [refusal] }),
        UNAUTHORIZED,
        "",
    );
    for status in [json!(0), json!(7), json!(null)] {
        check(
            json!({ "status": status, "identifiers": USER, "transmissions": [welcome] }),
            &["close 1011 Auth Error"],
            "",
        );
    }
}

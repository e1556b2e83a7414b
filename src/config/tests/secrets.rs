//! How secrets, public modes and the console depend on each other.

use super::*;

#[test]
fn broadcast_port_and_token_follow_the_secrets() {
    const MAIN: u16 = 9000;
    let check = |args: &[&str], port: u16, token: Option<&str>| {
        let config = config(&[&["--port=9000"], args].concat());
        let http = config.broadcast.http.expect("the default adapter is http");
        assert_eq!(
            (http.port, http.token.as_deref()),
            (port, token),
            "{args:?}"
        );
    };
    let from_s = Some("b015d1a3c08cf2fec39f3014255191ef020d4ac845ac9ee7ab068b97234c62c8");
    let from_none = Some("cefe585c117433fd0b169e2e123e15eaf8faa67bd62d87372ec54828f2d6950d");
    check(&[], 8090, None);
    check(&["--secret=S"], MAIN, from_s);
    check(&["--broadcast_key=K"], MAIN, Some("K"));
    check(&["--secret=S", "--broadcast_key=K"], MAIN, Some("K"));
    check(&["--broadcast_key=none"], 8090, None);
    check(&["--secret=S", "--broadcast_key=none"], 8090, None);
    check(&["--secret=none"], MAIN, from_none);
    check(&["--secret=none", "--broadcast_key=none"], 8090, None);
    check(&["--secret=S", "--http_broadcast_port=7"], 7, from_s);
    check(&["--http_broadcast_port=7"], 7, None);
    check(&["--public"], 8090, None);
    check(&["--public", "--secret=S"], MAIN, None);
    check(&["--public", "--broadcast_key=K"], MAIN, None);
    check(
        &["--public", "--secret=S", "--http_broadcast_port=7"],
        7,
        None,
    );
    check(&["--noauth", "--secret=S"], MAIN, from_s);
    check(
        &["--http_broadcast_secret=K", "--broadcast_key=L"],
        MAIN,
        Some("K"),
    );
    check(&["--http_broadcast_secret=none", "--secret=S"], 8090, None);
    check(&["--port=0", "--secret=S"], 0, from_s);
}

#[test]
fn a_bare_secret_switches_on_what_the_reference_switches_on() {
    let config = config(&["--secret=qwerty"]);
    let jwt = JwtConfig {
        secret: "qwerty".to_owned(),
        param: "jid".to_owned(),
        enforce: false,
    };
    assert_eq!(config.auth.jwt, Some(jwt));
    assert_eq!(config.auth.streams.secret.as_deref(), Some("qwerty"));
    assert_eq!(config.auth.streams.turbo_secret, None);
    let rpc_token = "57c40610d142fe7d7999be4e23dfba4f42c3c542e1f278063e8e3b6a30b0c2bd";
    assert_eq!(
        (config.rpc.token.as_deref(), config.rpc.token_derived),
        (Some(rpc_token), true)
    );
    let api = config.api.expect("a secret mounts the API");
    let api_token = "bdd0244b3664404d03b7d0c2f1b946dc4fc6c13fdcbfa2be62a4a28deb04d096";
    assert_eq!((api.port, api.path.as_str()), (8080, "/api"));
    assert_eq!(
        (api.token.as_deref(), api.token_derived),
        (Some(api_token), true)
    );
    assert!(config.broadcast.http.expect("http is on").token_derived);
}

#[test]
fn secrets_fall_back_and_none_clears_them() {
    let jwt = |args: &[&str]| config(args).auth.jwt.map(|jwt| jwt.secret);
    let streams = |args: &[&str]| config(args).auth.streams.secret;
    let turbo = |args: &[&str]| config(args).auth.streams.turbo_secret;
    let rpc = |args: &[&str]| config(args).rpc.token;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(jwt(&["--secret=S", "--jwt_secret=J"]), some("J"));
    assert_eq!(jwt(&["--secret=S", "--jwt_secret=none"]), None);
    assert_eq!(jwt(&["--secret=none"]), None);
    assert_eq!(jwt(&["--jwt_id_key=K"]), some("K"));
    assert_eq!(streams(&["--streams_secret=T"]), some("T"));
    assert_eq!(streams(&["--secret=S", "--streams_secret=none"]), None);
    assert_eq!(turbo(&["--secret=S", "--turbo_streams"]), some("S"));
    assert_eq!(turbo(&["--secret=S", "--turbo_streams_secret=U"]), None);
    assert_eq!(turbo(&["--turbo_rails_key=U"]), some("U"));
    assert_eq!(
        config(&["--cable_ready_key=C"])
            .auth
            .streams
            .cable_ready_secret,
        some("C")
    );
    assert_eq!(rpc(&["--http_rpc_secret=R"]), some("R"));
    assert_eq!(rpc(&["--secret=S", "--http_rpc_secret=none"]), None);
    assert_eq!(rpc(&["--secret=none"]).map(|token| token.len()), Some(64));
    assert_eq!(rpc(&[]), None);
}

#[test]
fn the_api_is_mounted_by_public_port_or_secret() {
    let api = |args: &[&str]| config(args).api.map(|api| (api.port, api.token));
    assert_eq!(api(&[]), None);
    assert_eq!(api(&["--public"]), Some((8080, None)));
    assert_eq!(api(&["--api_port=7"]), Some((7, None)));
    assert_eq!(api(&["--api_secret=A"]), Some((8080, Some("A".to_owned()))));
    assert_eq!(
        api(&["--api_secret=none"]),
        Some((8080, Some("none".to_owned())))
    );
    assert_eq!(api(&["--secret=none"]), None);
    assert!(
        api(&["--public", "--secret=S"])
            .expect("mounted")
            .1
            .is_some()
    );
}

#[test]
fn the_api_has_an_address_and_cors_of_its_own_by_the_file() {
    let api = |toml: &str, args: &[&str]| {
        let file = toml_file(toml);
        let path = format!("--config-path={}", path_of(&file));
        let config = config(&[&[path.as_str(), "--api_secret=0123456789abcdef"], args].concat());
        (config.api.expect("mounted"), config.warnings)
    };
    let (plain, _) = api("", &["--host=h"]);
    assert_eq!((plain.host.as_str(), plain.cors), ("h", false));
    let toml =
        "[api]\nhost = '10.0.0.1'\ncors_headers = true\ncors_hosts = 'A.example, *.b.example'";
    let (own, warnings) = api(toml, &["--host=h"]);
    assert_eq!((own.host.as_str(), own.port), ("10.0.0.1", 8080));
    assert!(own.cors);
    assert_eq!(own.cors_hosts, ["a.example", "*.b.example"]);
    assert!(warnings.is_empty(), "{warnings:?}");
    let (_, warnings) = api("[api]\ncors_hosts = 'a.example'", &[]);
    assert_eq!(
        warnings,
        ["api.cors_hosts has no effect without api.cors_headers"]
    );
    let refused = |toml: &str| {
        let file = toml_file(toml);
        refusal(
            &[],
            &["--norpc", &format!("--config-path={}", path_of(&file))],
        )
    };
    let host = refused("[api]\nhost = 'http://a'");
    assert!(
        host.starts_with("invalid option api.host = http://a: expected an address"),
        "{host}"
    );
    let hosts = refused("[api]\ncors_hosts = 'https://a.example'");
    assert!(hosts.contains("hosts without scheme and path"), "{hosts}");
}

#[test]
fn public_means_noauth_and_public_streams() {
    let open = config(&["--public"]);
    assert!(open.auth.noauth && open.auth.streams.public);
    assert_eq!(open.warnings, ["Server is running in the public mode"]);
    let noauth = config(&["--noauth"]);
    assert!(noauth.auth.noauth && !noauth.auth.streams.public);
}

#[test]
fn the_console_needs_a_secret_or_loopback() {
    assert_eq!(config(&[]).console, None);
    let console = |args: &[&str]| {
        config(&[&["--console"], args].concat())
            .console
            .expect("on")
    };
    let expected = |secret: Option<&str>, bound_to_loopback| ConsoleConfig {
        secret: secret.map(str::to_owned),
        bound_to_loopback,
    };
    assert_eq!(console(&[]), expected(None, true));
    assert_eq!(console(&["--secret=none"]), expected(None, true));
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1"] {
        assert_eq!(
            console(&["--host", host, "--secret=S"]),
            expected(Some("S"), true),
            "{host}"
        );
    }
    for host in ["", "0.0.0.0", "::", "10.0.0.1", "example.com"] {
        let host = format!("--host={host}");
        assert_eq!(
            console(&[&host, "--secret=S"]),
            expected(Some("S"), false),
            "{host}"
        );
        for secret in ["--secret=", "--secret=none"] {
            let refusal = refusal(&[], &["--norpc", "--console", &host, secret]);
            assert!(
                refusal.starts_with("option --console=true needs a secret"),
                "{refusal}"
            );
        }
    }
    // Nobody knows the secret that the demo generates.
    let refusal = refusal(
        &[("ANYCABLE_CONSOLE", "true")],
        &["--demo", "--host=0.0.0.0"],
    );
    assert!(refusal.contains("ANYCABLE_CONSOLE"), "{refusal}");
    let file = toml_file("[console]\nenabled = true\n");
    let args = ["--norpc", "--config-path", &path_of(&file)];
    assert_eq!(run(&[], &args).console, Some(expected(None, true)));
}

//! The RPC endpoint and its limits.

use super::*;

#[test]
fn rpc_leads_to_http_or_nowhere() {
    let check = |args: &[&str], expected: RpcEndpoint| {
        assert_eq!(run(&[], args).rpc.endpoint, expected, "{args:?}")
    };
    let http = |url: &str| RpcEndpoint::Http(url.to_owned());
    check(
        &["--rpc_host=http://web:3000/_anycable"],
        http("http://web:3000/_anycable"),
    );
    check(
        &["--rpc_host=https://web/_anycable"],
        http("https://web/_anycable"),
    );
    check(
        &["--rpc_host=http://web", "--rpc_impl=http"],
        http("http://web"),
    );
    check(
        &["--rpc_host=http://web", "--rpc_impl=none"],
        RpcEndpoint::None,
    );
    check(&["--norpc"], RpcEndpoint::None);
    check(&["--noauth"], RpcEndpoint::None);
    check(&["--public"], RpcEndpoint::None);
    check(&["--noauth", "--rpc_host=http://web"], http("http://web"));
    check(&["--demo"], http("http://127.0.0.1:0/"));
}

#[test]
fn rpc_that_leads_elsewhere_is_refused() {
    let check = |args: &[&str], expected: &str| {
        let message = refusal(&[], args);
        assert!(message.starts_with(expected), "{args:?}: {message}");
        assert!(!message.contains('\n'));
    };
    check(&[], "no RPC host is set");
    check(&["--rpc_host="], "no RPC host is set");
    check(
        &["--rpc_host=localhost:50051"],
        "option --rpc_host=localhost:50051 is not supported yet",
    );
    check(
        &["--rpc_host=dns:///rpc:50051"],
        "option --rpc_host=dns:///rpc:50051 is not supported yet",
    );
    check(
        &["--rpc_host=HTTP://web"],
        "option --rpc_host=HTTP://web is not supported yet",
    );
    check(
        &["--rpc_impl=grpc"],
        "option --rpc_impl=grpc is not supported yet",
    );
    check(
        &["--rpc_impl=http", "--rpc_host=web:3000"],
        "invalid option --rpc_host=web:3000: expected a URL",
    );
    check(
        &["--rpc_host=http://"],
        "invalid option --rpc_host=http://: expected a URL with a host",
    );
    check(
        &["--rpc_host=http:///x"],
        "invalid option --rpc_host=http:///x: expected a URL with a host",
    );
}

#[test]
fn rpc_limits_and_timeouts_are_resolved() {
    let rpc = |args: &[&str]| config(args).rpc;
    assert_eq!(rpc(&["--rpc_concurrency=5"]).concurrency, 5);
    let config = config(&["--rpc_concurrency=-1"]);
    assert_eq!(config.rpc.concurrency, 28);
    assert_eq!(
        config.warnings,
        ["RPC concurrency must be positive, reverted to the default value"]
    );
    let request = |args: &[&str]| rpc(args).request_timeout.as_millis();
    assert_eq!(request(&["--rpc_request_timeout=500"]), 500);
    assert_eq!(
        request(&["--rpc_request_timeout=500", "--http_rpc_timeout=800"]),
        800
    );
    assert_eq!(
        rpc(&["--rpc_command_timeout=0"]).command_timeout,
        Duration::ZERO
    );
    assert!(rpc(&["--rpc_tls_root_ca=ca.pem"]).tls.enabled);
    assert!(
        !rpc(&["--rpc_enable_tls", "--rpc_tls_verify=false"])
            .tls
            .verify
    );
    assert_eq!(
        rpc(&["--headers=Cookie, X-Api ,"]).headers,
        ["cookie", "x-api"]
    );
    assert!(rpc(&["--headers="]).headers.is_empty());
    assert_eq!(
        rpc(&["--proxy-cookies=_session, Id"]).cookies,
        ["_session", "Id"]
    );
}

#[test]
fn slow_calls_have_a_limit_that_can_be_switched_off() {
    let limit = |args: &[&str]| config(args).rpc.slow_call;
    assert_eq!(limit(&[]), Duration::from_secs(1));
    assert_eq!(limit(&["--rpc_slow_call=250"]), Duration::from_millis(250));
    assert_eq!(limit(&["--rpc_slow_call=0"]), Duration::ZERO);
}

#[test]
fn certificates_of_the_app_are_verified_unless_its_tls_options_are_on() {
    let tls = |args: &[&str]| {
        let config = config(args);
        (config.rpc.tls.verify, config.warnings.len())
    };
    assert_eq!(tls(&[]), (true, 0));
    assert_eq!(tls(&["--rpc_tls_verify=false"]), (true, 1));
    assert_eq!(
        tls(&["--rpc_tls_verify=false", "--rpc_enable_tls"]),
        (false, 0)
    );
    assert_eq!(
        tls(&["--rpc_tls_verify=false", "--rpc_tls_root_ca=ca.pem"]),
        (false, 0)
    );
}

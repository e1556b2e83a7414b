//! Deprecated options: each is turned into its successor, and the operator gets a notice on stdout.
//!
//! After [`normalize`] no other code needs the old names. Source: `contract/operations.md` §7, `options.tsv`.

use super::settings::Settings;
use super::value::Value;

/// Replaces deprecated options and short forms by the options they stand for. Returns the notices in the reference's order,
/// three lines each.
pub fn normalize(settings: &mut Settings) -> Vec<String> {
    let notices = notices(settings);
    if settings.on("debug") {
        settings.derive("log_level", Value::Text("debug".to_owned()));
    }
    if settings.on("norpc") {
        settings.derive("rpc_impl", Value::Text("none".to_owned()));
    }
    if settings.on("disable_disconnect") {
        settings.derive("disconnect_mode", Value::Text("never".to_owned()));
    }
    switch_on_with_key(
        settings,
        "turbo_rails_key",
        "turbo_streams_secret",
        "turbo_streams",
    );
    switch_on_with_key(
        settings,
        "cable_ready_key",
        "cable_ready_secret",
        "cable_ready",
    );
    if settings.text("jwt_secret").is_empty() {
        take_over(settings, "jwt_id_key", "jwt_secret");
    }
    if settings.on("jwt_id_enforce") {
        settings.derive("enforce_jwt", Value::Bool(true));
    }
    take_over(settings, "http_broadcast_secret", "broadcast_key");
    take_over(settings, "http_rpc_timeout", "rpc_request_timeout");
    if settings.int("metrics_rotate_interval") == 0 {
        take_over(settings, "metrics_log_interval", "metrics_rotate_interval");
    }
    notices
}

/// Replaced without a notice, as in the reference.
const WITHOUT_NOTICE: &str = "http_rpc_timeout";

/// Old name and the options to use instead, in the order of the notices.
const SUCCESSORS: [(&str, &str); 12] = [
    (WITHOUT_NOTICE, "Use rpc_request_timeout instead."),
    (
        "metrics_log_interval",
        "Use metrics_rotate_interval instead.",
    ),
    ("disable_disconnect", "Use disconnect_mode=never instead."),
    ("disconnect_timeout", "Use shutdown_timeout instead."),
    (
        "turbo_rails_key",
        "Use turbo_streams and turbo_streams_secret instead.",
    ),
    (
        "turbo_rails_cleartext",
        "It has no effect; see public_streams.",
    ),
    (
        "cable_ready_key",
        "Use cable_ready and cable_ready_secret instead.",
    ),
    (
        "cable_ready_cleartext",
        "It has no effect; see public_streams.",
    ),
    ("jwt_id_key", "Use jwt_secret instead."),
    ("jwt_id_param", "It has no effect; use jwt_param instead."),
    ("jwt_id_enforce", "Use enforce_jwt instead."),
    ("http_broadcast_secret", "Use broadcast_key instead."),
];

/// A sentence that names the successor of a deprecated option.
pub fn instead_of(name: &str) -> Option<&'static str> {
    SUCCESSORS
        .iter()
        .find(|(old, _)| *old == name)
        .map(|(_, instead)| *instead)
}

fn notices(settings: &Settings) -> Vec<String> {
    SUCCESSORS
        .iter()
        .filter(|(name, _)| *name != WITHOUT_NOTICE && !settings.is_default(name))
        .map(|(name, instead)| {
            format!(
                "DEPRECATION WARNING: {name} option is deprecated\n\
                 and will be removed in a future version of ringcable.\n{instead}"
            )
        })
        .collect()
}

/// If the old option is used, copies its value to the new name.
fn take_over(settings: &mut Settings, old: &str, new: &str) {
    if !settings.is_default(old) {
        let value = settings.value(old).clone();
        settings.derive(new, value);
    }
}

fn switch_on_with_key(settings: &mut Settings, old: &str, secret: &str, switch: &str) {
    if !settings.text(old).is_empty() {
        take_over(settings, old, secret);
        settings.derive(switch, Value::Bool(true));
    }
}

#[cfg(test)]
mod tests {
    use super::super::flags::Flags;
    use super::super::options::{OPTIONS, Support};
    use super::*;

    fn normalized(args: &[&str]) -> (Settings, Vec<String>) {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut settings = Settings::defaults();
        let mut problems = Vec::new();
        Flags::parse(&args, &mut problems).apply(&mut settings);
        assert!(problems.is_empty(), "{problems:?}");
        let notices = normalize(&mut settings);
        (settings, notices)
    }

    #[test]
    fn old_options_become_new_ones() {
        let check = |args: &[&str], name: &str, expected: &str| {
            assert_eq!(
                normalized(args).0.value(name).to_string(),
                expected,
                "{args:?}"
            );
        };
        check(&["--debug", "--log_level=error"], "log_level", "debug");
        check(&["--norpc"], "rpc_impl", "none");
        check(&["--disable_disconnect"], "disconnect_mode", "never");
        check(&["--turbo_rails_key=k"], "turbo_streams_secret", "k");
        check(&["--turbo_rails_key=k"], "turbo_streams", "true");
        check(&["--cable_ready_key=k"], "cable_ready_secret", "k");
        check(&["--cable_ready_key=k"], "cable_ready", "true");
        check(&["--jwt_id_key=k"], "jwt_secret", "k");
        check(&["--jwt_id_key=k", "--jwt_secret=s"], "jwt_secret", "s");
        check(&["--jwt_id_param=p"], "jwt_param", "jid");
        check(&["--jwt_id_enforce"], "enforce_jwt", "true");
        check(
            &["--http_broadcast_secret=a", "--broadcast_key=b"],
            "broadcast_key",
            "a",
        );
        check(
            &["--http_rpc_timeout=800", "--rpc_request_timeout=500"],
            "rpc_request_timeout",
            "800",
        );
        check(
            &["--metrics_log_interval=7"],
            "metrics_rotate_interval",
            "15",
        );
        check(
            &["--metrics_log_interval=7", "--metrics_rotate_interval=0"],
            "metrics_rotate_interval",
            "7",
        );
    }

    #[test]
    fn every_deprecated_option_has_a_successor_or_says_that_it_has_none() {
        for option in OPTIONS {
            assert_eq!(
                option.support == Support::Deprecated,
                instead_of(option.name).is_some(),
                "{}",
                option.name
            );
        }
    }

    #[test]
    fn notices_come_in_the_order_of_the_reference() {
        let (_, notices) = normalized(&[
            "--http_broadcast_secret=k",
            "--jwt_id_key=k",
            "--disable_disconnect",
        ]);
        let first_lines: Vec<&str> = notices
            .iter()
            .filter_map(|notice| notice.lines().next())
            .collect();
        assert_eq!(
            first_lines,
            [
                "DEPRECATION WARNING: disable_disconnect option is deprecated",
                "DEPRECATION WARNING: jwt_id_key option is deprecated",
                "DEPRECATION WARNING: http_broadcast_secret option is deprecated",
            ]
        );
        assert!(notices.iter().all(|notice| notice.lines().count() == 3));
        assert!(
            normalized(&["--jwt_secret=k", "--http_rpc_timeout=3"])
                .1
                .is_empty()
        );
    }
}

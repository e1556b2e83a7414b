//! Refuses values that are not allowed and features that are missing, each in one line that names the option.
//!
//! The reference has no such check: there, bad values crash it, have odd effects or are ignored. Source:
//! `contract/operations.md` §6.

use super::error::ConfigError;
use super::is_loopback_host;
use super::options::{OPTIONS, Support};
use super::secrets;
use super::settings::{Settings, Source};
use super::value::{OptionKind, Value, quoted};

/// Checks every option. For each that cannot be used as given, `problems` gets a [`ConfigError::NotAllowed`],
/// [`ConfigError::NotSupported`] or [`ConfigError::Incomplete`], and the option gets its default.
pub fn check(settings: &mut Settings, problems: &mut Vec<ConfigError>) {
    for option in OPTIONS {
        if let Err(expected) = option.kind.check(settings.value(option.name)) {
            problems.push(not_allowed(settings, option.name, expected));
            settings.reset(option.name);
        }
    }
    let checks: [(&[&str], Check); 10] = [
        (&["broadcast_adapter"], check_broadcast_adapters),
        (&["broker"], check_broker),
        (&["ds"], check_durable_streams),
        (&["statsd_host"], check_statsd_host),
        (&["statsd_prefix"], check_statsd_prefix),
        (&["host"], |settings| check_address(settings, "host")),
        (&["metrics_host"], |settings| {
            check_address(settings, "metrics_host")
        }),
        (&["api.host"], |settings| {
            check_address(settings, "api.host")
        }),
        (&["ssl_cert", "ssl_key"], check_tls_files),
        (&["shutdown_slowdrain"], check_slow_drain),
    ];
    for (names, check) in checks {
        if let Err(problem) = check(settings) {
            problems.push(problem);
            names.iter().for_each(|name| settings.reset(name));
        }
    }
    problems.extend(absent_features(settings));
    // This check comes last, because it depends on other options.
    problems.extend(check_console(settings).err());
}

type Check = fn(&Settings) -> Result<(), ConfigError>;

fn absent_features(settings: &Settings) -> Vec<ConfigError> {
    settings
        .iter()
        .filter_map(|(option, value, _)| match option.support {
            Support::Refused(why) if !is_switched_off(settings, option.name) => {
                Some(ConfigError::NotSupported {
                    given: settings.as_given(option.name),
                    why: why.to_owned(),
                    remedy: remedy(option.kind, value),
                })
            }
            _ => None,
        })
        .collect()
}

/// Log lines about options that were given and have no effect, because this server does not have what they tune.
pub fn without_effect(settings: &Settings) -> Vec<String> {
    settings
        .iter()
        .filter_map(|(option, _, _)| match option.support {
            Support::NoEffect(why) if is_asked_for(settings, option.name) => Some(format!(
                "option {} has no effect: {why}",
                settings.as_given(option.name)
            )),
            _ => None,
        })
        .collect()
}

/// The same about options of the broker when there is none.
pub fn without_broker(settings: &Settings) -> Vec<String> {
    const OF_THE_BROKER: [&str; 6] = [
        "history_limit",
        "history_ttl",
        "sessions_ttl",
        "presence_ttl",
        "broker_bytes_max",
        "broker.limits",
    ];
    if settings.text("broker") == "memory" {
        return Vec::new();
    }
    let given = OF_THE_BROKER
        .into_iter()
        .filter(|name| is_asked_for(settings, name));
    given
        .map(|name| {
            let given = settings.as_given(name);
            format!("option {given} has no effect without a broker: set broker to memory")
        })
        .collect()
}

/// The same about options that belong to a missing feature and do not switch it on, such as the Redis URL of the app itself.
pub fn not_in_use(settings: &Settings) -> Vec<String> {
    settings
        .iter()
        .filter_map(|(option, _, _)| match option.support {
            Support::Refused(why) if is_asked_for(settings, option.name) => Some(format!(
                "option {} is not in use ({why})",
                settings.as_given(option.name)
            )),
            _ => None,
        })
        .collect()
}

/// The error for an option whose value is not allowed.
pub fn not_allowed(settings: &Settings, name: &str, expected: String) -> ConfigError {
    ConfigError::NotAllowed {
        given: settings.as_given(name),
        expected,
    }
}

/// True unless the value is the default or one of the ways to say "nothing".
fn is_asked_for(settings: &Settings, name: &str) -> bool {
    let value = settings.value(name);
    !settings.is_default(name) && !value.is_empty() && *value != Value::Text("none".to_owned())
}

fn is_switched_off(settings: &Settings, name: &str) -> bool {
    if !is_asked_for(settings, name) {
        return true;
    }
    match name {
        // Apps set REDIS_URL for their own use, and without pub/sub the server does not read the URL.
        "redis_url" => {
            *settings.source(name) == Source::Env("REDIS_URL".to_owned())
                || settings.text("pubsub") == "none"
        }
        // Pusher mode is on only when both options are set.
        "pusher_app_id" => settings.text("pusher_app_key").is_empty(),
        "pusher_app_key" => settings.text("pusher_app_id").is_empty(),
        _ => false,
    }
}

fn remedy(kind: OptionKind, value: &Value) -> String {
    match (kind, value) {
        (OptionKind::Word(words), _) if words.contains(&"none") => {
            "remove it or set it to none".to_owned()
        }
        (_, Value::Bool(_)) => "remove it or set it to false".to_owned(),
        _ => "remove it".to_owned(),
    }
}

fn check_broadcast_adapters(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "broadcast_adapter";
    for adapter in settings.list(NAME) {
        match adapter.as_str() {
            "http" => {}
            "redis" | "redisx" | "nats" => {
                return Err(ConfigError::NotSupported {
                    given: settings.as_given(NAME),
                    why: format!("broadcasts through {adapter} are planned"),
                    remedy: "leave only http".to_owned(),
                });
            }
            _ => {
                return Err(not_allowed(
                    settings,
                    NAME,
                    "a list of http, redisx, redis, nats".to_owned(),
                ));
            }
        }
    }
    Ok(())
}

fn check_broker(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "broker";
    if settings.text(NAME) != "nats" {
        return Ok(());
    }
    Err(ConfigError::NotSupported {
        given: settings.as_given(NAME),
        why: "the NATS broker is planned".to_owned(),
        remedy: "set it to memory or none".to_owned(),
    })
}

/// The reference starts, and answers every reader with 500.
fn check_durable_streams(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "ds";
    if !settings.on(NAME) || settings.text("broker") == "memory" {
        return Ok(());
    }
    Err(ConfigError::Needs {
        given: settings.as_given(NAME),
        other: "--broker=memory (ANYCABLE_BROKER)",
        why: "durable streams are read from its history",
    })
}

/// Refused here, because the reference instead logs an error at every flush.
fn check_statsd_host(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "statsd_host";
    let target = settings.text(NAME);
    let is_complete = target.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if target.is_empty() || is_complete {
        Ok(())
    } else {
        let expected = "a host and a port, such as localhost:8125".to_owned();
        Err(not_allowed(settings, NAME, expected))
    }
}

/// Refuses characters in the prefix that end a name or a value in StatsD's lines.
fn check_statsd_prefix(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "statsd_prefix";
    let is_free = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'`:|@#,;=".contains(c);
    if settings.text(NAME).chars().all(is_free) {
        return Ok(());
    }
    let expected = "the beginning of names, such as anycable_go.".to_owned();
    Err(not_allowed(
        settings,
        NAME,
        expected + quoted(settings.text(NAME)),
    ))
}

fn check_address(settings: &Settings, name: &str) -> Result<(), ConfigError> {
    let is_free = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'`/,".contains(c);
    if settings.text(name).chars().all(is_free) {
        return Ok(());
    }
    let expected = "an address or a name of this machine, such as 0.0.0.0 or localhost".to_owned();
    Err(not_allowed(
        settings,
        name,
        expected + quoted(settings.text(name)),
    ))
}

/// Refuses one file without the other: in the reference that silently means no TLS.
fn check_tls_files(settings: &Settings) -> Result<(), ConfigError> {
    match (settings.text("ssl_cert"), settings.text("ssl_key")) {
        ("", "") => Ok(()),
        (_, "") => Err(ConfigError::Incomplete {
            given: settings.as_given("ssl_cert"),
            other: "--ssl_key",
        }),
        ("", _) => Err(ConfigError::Incomplete {
            given: settings.as_given("ssl_key"),
            other: "--ssl_cert",
        }),
        _ => Ok(()),
    }
}

/// A secret that `--demo` generates does not count: nobody knows it, so nobody could log in.
fn check_console(settings: &Settings) -> Result<(), ConfigError> {
    let host = settings.text("host");
    let is_open = secrets::application_secret(settings).is_none() && !is_loopback_host(host);
    if settings.on("console") && is_open {
        return Err(ConfigError::ConsoleWithoutSecret {
            given: settings.as_given("console"),
            host: host.to_owned(),
        });
    }
    Ok(())
}

/// The last client must be told before the timeout of the whole shutdown.
fn check_slow_drain(settings: &Settings) -> Result<(), ConfigError> {
    const NAME: &str = "shutdown_slowdrain";
    let &Value::Int(secs) = settings.value(NAME) else {
        return Ok(());
    };
    let (timeout, delay) = (
        settings.int("shutdown_timeout"),
        settings.int("shutdown_delay"),
    );
    let secs_max = (timeout - delay - 1).max(0);
    if secs <= secs_max {
        return Ok(());
    }
    Err(not_allowed(
        settings,
        NAME,
        format!(
            "at most {secs_max}: shutdown_timeout ({timeout}) less shutdown_delay ({delay}) less one second for what \
             follows; raise shutdown_timeout"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::flags::Flags;
    use super::super::{environment, file};
    use super::*;

    fn result(toml: &str, env: &[(&str, &str)], args: &[&str]) -> Result<(), String> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let env: Vec<(String, String)> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut settings = Settings::defaults();
        let mut problems = Vec::new();
        file::apply_text("a.toml", toml, &mut settings, &mut problems);
        environment::apply(&env, &mut settings, &mut problems);
        Flags::parse(&args, &mut problems).apply(&mut settings);
        assert!(problems.is_empty(), "{problems:?}");
        check(&mut settings, &mut problems);
        match problems.first() {
            None => Ok(()),
            Some(problem) => Err(problem.to_string()),
        }
    }

    /// `docker --env-file` passes values on with their quotes. Options that list names refuse such values.
    #[test]
    fn quotes_around_names_are_refused_by_name() {
        let check = |variable: &str, value: &str, refused: bool| {
            for quote in ['"', '\'', '`'] {
                let given = format!("{quote}{value}{quote}");
                let error = result("", &[(variable, &given)], &[]).expect_err(&given);
                assert!(
                    error.starts_with(&format!("invalid option {variable}={quote}{value}")),
                    "{error}"
                );
                assert!(
                    error.contains("without the quotes (docker --env-file"),
                    "{error}"
                );
            }
            assert_eq!(result("", &[(variable, value)], &[]).is_err(), refused);
        };
        check("ANYCABLE_HEADERS", "cookie,origin", false);
        check("ANYCABLE_HEADERS", "cookie", false);
        check("ANYCABLE_PROXY_COOKIES", "_session_id,user", false);
        check(
            "ANYCABLE_ALLOWED_ORIGINS",
            "example.com,*.example.org:3000",
            false,
        );
        check("ANYCABLE_PATH", "/cable,/ws", false);
        check("ANYCABLE_HEALTH_PATH", "/up", false);
        check("ANYCABLE_METRICS_HTTP", "/metrics", false);
        check("ANYCABLE_HTTP_BROADCAST_PATH", "/_broadcast", false);
        check("ANYCABLE_API_PATH", "/api", false);
        check("ANYCABLE_METRICS_TAGS", "env:dev,rev:1.1", false);
        check(
            "ANYCABLE_METRICS_LOG_FILTER",
            "clients_num,rpc_call_total",
            false,
        );
        check("ANYCABLE_PRESETS", "heroku", false);
        check("ANYCABLE_BROADCAST_ADAPTER", "http", false);
        check("ANYCABLE_JWT_PARAM", "token", false);
        check("ANYCABLE_STATSD_PREFIX", "cable.", false);
        check("ANYCABLE_HOST", "0.0.0.0", false);
        check("ANYCABLE_METRICS_HOST", "127.0.0.1", false);
        check("ANYCABLE_LOG_LEVEL", "warn", false);
        check("ANYCABLE_DRIVER", "epoll", false);
    }

    #[test]
    fn characters_that_a_name_cannot_have_are_refused() {
        let check = |arg: &str, part: &str| {
            let error = result("", &[], &[arg]).expect_err(arg);
            assert!(
                error.starts_with(&format!("invalid option {arg}: expected "))
                    && error.contains(part),
                "{error}"
            );
        };
        for arg in [
            "--headers=cookie;origin",
            "--headers=x y",
            "--headers=cookie:",
            "--headers=a,(b)",
            "--headers=größe",
            "--headers=[cookie]",
        ] {
            check(arg, "names of headers");
        }
        for arg in [
            "--proxy-cookies=a;b",
            "--proxy-cookies=a=1",
            "--proxy-cookies=a b",
            "--proxy-cookies=a\\",
        ] {
            check(arg, "names of cookies");
        }
        for arg in [
            "--allowed_origins=https://example.com",
            "--allowed_origins=example.com/",
            "--allowed_origins=a.example b.example",
            "--allowed_origins=foo.*",
            "--allowed_origins=user@example.com",
            "--allowed_origins=größe.example",
        ] {
            check(arg, "hosts without scheme and path");
        }
        check("--presets=fly;heroku", "words");
        check("--metrics_log_filter=clients num", "words");
        check("--jwt_param=a b", "a name");
        check("--statsd_prefix=a:b", "the beginning of names");
        check("--path=/a<b", "no spaces");
        for arg in [
            "--headers=X-Api_Key,cookie,x.y",
            "--proxy-cookies=__Host-id,foo[bar],a.b",
            "--allowed_origins=*,*suffix.test,*.a.b:80,[::1]:3000,under_score.example",
            "--presets=none",
            "--path=/{id:[0-9]+}/cable*",
        ] {
            assert_eq!(result("", &[], &[arg]), Ok(()), "{arg}");
        }
    }

    #[test]
    fn all_problems_are_found_and_leave_defaults() {
        let args = [
            "--port=70000",
            "--broker=nats",
            "--ssl_cert=a.pem",
            "--headers=a b",
            "--log_level=x",
        ]
        .map(str::to_owned);
        let (mut settings, mut problems) = (Settings::defaults(), Vec::new());
        Flags::parse(&args, &mut problems).apply(&mut settings);
        check(&mut settings, &mut problems);
        let names: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), args.len(), "{names:?}");
        for arg in &args {
            assert!(
                names.iter().any(|line| line.contains(arg)),
                "{arg}: {names:?}"
            );
        }
        assert_eq!(settings.int("port"), 8080);
        assert_eq!(settings.text("ssl_cert"), "");
    }

    #[test]
    fn silly_values_are_refused() {
        let check = |arg: &str, expected: &str| {
            assert_eq!(
                result("", &[], &[arg]),
                Err(format!("invalid option {arg}: expected {expected}"))
            );
        };
        check("--disconnect_rate=0", "a number from 1 to 1000");
        check("--disconnect_rate=1001", "a number from 1 to 1000");
        check("--disconnect_mode=sometimes", "one of auto, always, never");
        check("--ping_timestamp_precision=us", "one of s, ms, ns");
        check("--log_level=foo", "one of debug, info, warn, error");
        check("--log_level=", "one of debug, info, warn, error");
        check("--log_format=xml", "one of text, json");
        check("--port=65536", "a number from 0 to 65535");
        check("--port=-1", "a number from 0 to 65535");
        check("--max_message_size=-1", "a number not below 0");
        check("--ping_interval=-3", "a number from 0 to 4294967295");
        check(
            "--health-path=",
            "a path that starts with / and has no spaces",
        );
        check(
            "--http_broadcast_path=x",
            "a path that starts with / and has no spaces",
        );
        check(
            "--metrics_http=metrics",
            "a path that starts with / and has no spaces",
        );
        check(
            "--path=/cable,b",
            "paths that start with / and have no spaces",
        );
        check(
            "--metrics_tags=1a:b",
            "tag names made of letters, digits and _ that do not start with a digit",
        );
        check(
            "--broadcast_adapter=http,foo",
            "a list of http, redisx, redis, nats",
        );
        check("--broker=redis", "one of memory, nats, none");
        check("--rpc_impl=soap", "one of http, grpc, none");
        check("--driver=kqueue", "one of auto, io_uring, epoll");
        check("--cores=-1", "a number from 0 to 1024");
        check("--jwt_param=", "a text that is not empty");
        check("--shutdown_pool_size=0", "a number from 1 to 4294967295");
        check(
            "--shutdown_slowdrain=-1",
            "seconds from 0 to 4294967295, true or false",
        );
        check(
            "--shutdown_slowdrain=30",
            "at most 29: shutdown_timeout (30) less shutdown_delay (0) less one second for what follows; raise \
             shutdown_timeout",
        );
        check("--ws_write_timeout=0", "a number from 1 to 4294967295");
        check(
            "--statsd_tags_format=carbon",
            "one of datadog, influxdb, graphite",
        );
        for target in ["localhost", "localhost:", ":8125", "h:70000", "h:0", "h:x"] {
            check(
                &format!("--statsd_host={target}"),
                "a host and a port, such as localhost:8125",
            );
        }
        check("--statsd_max_packet_size=0", "a number from 1 to 65507");
    }

    #[test]
    fn the_spelling_of_the_operator_is_named() {
        assert_eq!(
            result("", &[("ANYCABLE_HEALTH_PATH", "")], &[]),
            Err("invalid option ANYCABLE_HEALTH_PATH=: expected a path that starts with / and has no spaces".to_owned())
        );
        assert_eq!(
            result("[disconnector]\nrate = 0", &[], &[]),
            Err(
                "invalid option disconnector.rate = 0: expected a number from 1 to 1000".to_owned()
            )
        );
    }

    #[test]
    fn absent_features_are_refused_by_name() {
        let check = |arg: &str, rest: &str| {
            let given = if arg.starts_with("--redis_url") {
                "--redis_url"
            } else {
                arg
            };
            let expected = format!("option {given} is not supported yet by ringcable ({rest}");
            assert_eq!(result("", &[], &[arg]), Err(expected));
        };
        check(
            "--broker=nats",
            "the NATS broker is planned); set it to memory or none",
        );
        check(
            "--pubsub=redis",
            "node-to-node fan-out is planned); remove it or set it to none",
        );
        check(
            "--redis_url=redis://r:1",
            "Redis support is planned); remove it",
        );
        check("--redis_channel=x", "Redis support is planned); remove it");
        check("--redisx_group=x", "Redis support is planned); remove it");
        check(
            "--embed_nats=true",
            "there is no embedded NATS server); remove it or set it to false",
        );
        check(
            "--broadcast_adapter=http,redis",
            "broadcasts through redis are planned); leave only http",
        );
        check(
            "--broadcast_adapter=nats",
            "broadcasts through nats are planned); leave only http",
        );
        check(
            "--metrics_log_formatter=a.rb",
            "mruby is not built in); remove it",
        );
    }

    #[test]
    fn durable_streams_need_the_broker() {
        let needs = "option --ds=true needs --broker=memory (ANYCABLE_BROKER): durable streams are read from its history";
        assert_eq!(result("", &[], &["--ds=true"]), Err(needs.to_owned()));
        for args in [
            &["--ds=true", "--broker=memory"][..],
            &["--ds_path=/x", "--ds_sse_ttl=5"],
        ] {
            assert_eq!(result("", &[], args), Ok(()), "{args:?}");
        }
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let accepted: [&[&str]; 10] = [
            &["--broker=none", "--pubsub=none"],
            &["--broker=memory"],
            &["--broker="],
            &["--redis_channel=__anycable__"],
            &["--redis_url=redis://r", "--pubsub=none"],
            &[
                "--hub_gopool_size=8",
                "--read_buffer_size=4096",
                "--write_buffer_size=0",
            ],
            &[
                "--history_limit=5",
                "--history_ttl=5",
                "--sessions_ttl=5",
                "--presence_ttl=5",
            ],
            &[
                "--pusher_app_id=1",
                "--ds_path=/e",
                "--statsd_prefix=x",
                "--metrics_log_filter=a",
            ],
            &["--statsd_host=[::1]:8125", "--statsd_tags_format=influxdb"],
            &["--ssl_cert=c.pem", "--ssl_key=k.pem"],
        ];
        for args in accepted {
            assert_eq!(result("", &[], args), Ok(()), "{args:?}");
        }
    }

    #[test]
    fn the_redis_url_of_the_app_is_ignored() {
        assert_eq!(result("", &[("REDIS_URL", "redis://app")], &[]), Ok(()));
        let message = result("", &[("ANYCABLE_REDIS_URL", "redis://:pw@cable")], &[])
            .expect_err("asks for Redis");
        assert!(
            message.starts_with("option ANYCABLE_REDIS_URL is not supported"),
            "{message}"
        );
        assert!(!message.contains("pw"));
    }

    #[test]
    fn pusher_needs_both_halves_to_be_on() {
        let message = result("", &[], &["--pusher_app_id=1", "--pusher_app_key=k"])
            .expect_err("Pusher is on");
        assert!(
            message.starts_with("option --pusher_app_id=1 is not supported"),
            "{message}"
        );
    }

    #[test]
    fn one_tls_file_alone_is_refused() {
        assert_eq!(
            result("", &[], &["--ssl_cert=c.pem"]),
            Err("option --ssl_cert=c.pem needs --ssl_key too: set both or none of them".to_owned())
        );
    }
}

//! Presets: named sets of defaults for a hosting platform, chosen by an option or detected from the platform's variables.
//!
//! Presets are applied last and change only values that equal the built-in default. If a preset would switch on a missing
//! feature, it is refused by name. Source: `contract/operations.md` §5.

use super::environment::lookup;
use super::error::ConfigError;
use super::settings::Settings;
use super::value::Value;

const PRESETS: [&str; 3] = ["fly", "heroku", "broker"];

/// Applies the presets and returns their names for the start-up line.
///
/// # Errors
/// A variable that a preset needs is missing, or the preset asks for something that is not supported.
pub fn apply(
    settings: &mut Settings,
    env: &[(String, String)],
) -> Result<Vec<String>, ConfigError> {
    let names = match settings.list("presets") {
        [] => detected(env),
        given => given.to_vec(),
    };
    for name in &names {
        match name.as_str() {
            "fly" => fly(settings, env)?,
            "heroku" => listen_everywhere(settings),
            "broker" => broker(settings),
            // Any other word switches detection off.
            _ => {}
        }
    }
    Ok(names)
}

/// Log lines about words that are no preset. `none` is not among them, because it is the documented way to switch detection
/// off.
pub fn unknown(names: &[String]) -> Vec<String> {
    names
        .iter()
        .filter(|name| !PRESETS.contains(&name.as_str()) && *name != "none")
        .map(|name| {
            format!(
                "Unknown preset {name} changes nothing (there are {})",
                PRESETS.join(", ")
            )
        })
        .collect()
}

fn detected(env: &[(String, String)]) -> Vec<String> {
    let all = |names: &[&str]| names.iter().all(|name| lookup(env, name).is_some());
    let mut found = Vec::new();
    if all(&["FLY_APP_NAME", "FLY_ALLOC_ID", "FLY_REGION"]) {
        found.push("fly".to_owned());
    }
    if all(&["HEROKU_APP_ID", "HEROKU_DYNO_ID"]) {
        found.push("heroku".to_owned());
    }
    found
}

fn listen_everywhere(settings: &mut Settings) {
    if settings.is_default("host") {
        settings.derive("host", Value::Text("0.0.0.0".to_owned()));
    }
}

fn fly(settings: &mut Settings, env: &[(String, String)]) -> Result<(), ConfigError> {
    let region = needed(env, "FLY_REGION")?;
    needed(env, "FLY_APP_NAME")?;
    listen_everywhere(settings);
    if settings.is_default("pubsub") {
        let adapter = if settings.is_default("redis_url") {
            "nats"
        } else {
            "redis"
        };
        return Err(ConfigError::NotSupported {
            given: format!("--pubsub={adapter} of the fly preset"),
            why: "node-to-node fan-out is planned".to_owned(),
            remedy: "set ANYCABLE_PUBSUB=none to run on one machine".to_owned(),
        });
    }
    if let Some(app) =
        lookup(env, "ANYCABLE_FLY_RPC_APP_NAME").filter(|_| settings.is_default("rpc_host"))
    {
        settings.derive(
            "rpc_host",
            Value::Text(format!("dns:///{region}.{app}.internal:50051")),
        );
    }
    Ok(())
}

/// Broadcasts come by HTTP, as by default, because Redis and NATS are not there yet.
pub fn broker(settings: &mut Settings) {
    if settings.is_default("broker") {
        settings.derive("broker", Value::Text("memory".to_owned()));
    }
}

fn needed<'a>(env: &'a [(String, String)], variable: &'static str) -> Result<&'a str, ConfigError> {
    lookup(env, variable).ok_or(ConfigError::PresetVariable { variable })
}

#[cfg(test)]
mod tests {
    use super::super::environment;
    use super::*;

    const FLY: [(&str, &str); 3] = [
        ("FLY_APP_NAME", "app"),
        ("FLY_ALLOC_ID", "1"),
        ("FLY_REGION", "ams"),
    ];
    const HEROKU: [(&str, &str); 2] = [("HEROKU_APP_ID", "a"), ("HEROKU_DYNO_ID", "d")];

    fn applied(env: &[&[(&str, &str)]]) -> Result<(Vec<String>, Settings), String> {
        let env: Vec<(String, String)> = env
            .concat()
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut settings = Settings::defaults();
        let mut problems = Vec::new();
        environment::apply(&env, &mut settings, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let names = apply(&mut settings, &env).map_err(|error| error.to_string())?;
        Ok((names, settings))
    }

    #[test]
    fn presets_are_detected_or_asked_for() {
        let check = |env: &[&[(&str, &str)]], names: &[&str], host: &str| {
            let (found, settings) = applied(env).expect("good presets");
            assert_eq!(found, names, "{env:?}");
            assert_eq!(settings.text("host"), host, "{env:?}");
        };
        let single: &[(&str, &str)] = &[("ANYCABLE_PUBSUB", "none")];
        check(&[], &[], "localhost");
        check(&[&HEROKU], &["heroku"], "0.0.0.0");
        check(&[&HEROKU[..1]], &[], "localhost");
        check(
            &[&HEROKU, &[("ANYCABLE_HOST", "10.0.0.1")]],
            &["heroku"],
            "10.0.0.1",
        );
        check(
            &[&HEROKU, &[("ANYCABLE_HOST", "localhost")]],
            &["heroku"],
            "0.0.0.0",
        );
        check(
            &[&HEROKU, &[("ANYCABLE_PRESETS", "none")]],
            &["none"],
            "localhost",
        );
        check(&[&[("ANYCABLE_PRESETS", "heroku")]], &["heroku"], "0.0.0.0");
        check(&[&FLY, single], &["fly"], "0.0.0.0");
        check(&[&FLY, &HEROKU, single], &["fly", "heroku"], "0.0.0.0");
    }

    #[test]
    fn words_that_are_no_preset_are_mentioned() {
        let names = ["heroku", "herku", "none"].map(str::to_owned);
        assert_eq!(
            unknown(&names),
            ["Unknown preset herku changes nothing (there are fly, heroku, broker)"]
        );
    }

    #[test]
    fn what_a_preset_cannot_have_is_named() {
        let check = |env: &[&[(&str, &str)]], expected: &str| {
            let message = applied(env).map(|_| ()).expect_err("refused");
            assert!(message.contains(expected), "{message}");
        };
        check(
            &[&[("ANYCABLE_PRESETS", "fly")]],
            "configuration presets, cause: FLY_REGION env is missing",
        );
        check(
            &[&[("ANYCABLE_PRESETS", "fly"), ("FLY_REGION", "ams")]],
            "configuration presets, cause: FLY_APP_NAME env is missing",
        );
        check(
            &[&FLY],
            "option --pubsub=nats of the fly preset is not supported yet",
        );
        check(
            &[&FLY, &[("REDIS_URL", "redis://r")]],
            "option --pubsub=redis of the fly preset is not supported yet",
        );
    }

    #[test]
    fn the_broker_preset_keeps_history_in_memory() {
        let preset: [(&str, &str); 1] = [("ANYCABLE_PRESETS", "broker")];
        let (_, settings) = applied(&[&preset]).expect("good presets");
        assert_eq!(settings.text("broker"), "memory");
        let (_, settings) = applied(&[&preset, &[("ANYCABLE_BROKER", "none")]]).expect("good");
        assert_eq!(settings.text("broker"), "none");
    }

    #[test]
    fn the_rpc_app_of_fly_becomes_a_grpc_host() {
        let env: [(&str, &str); 2] = [
            ("ANYCABLE_PUBSUB", "none"),
            ("ANYCABLE_FLY_RPC_APP_NAME", "web"),
        ];
        let (_, settings) = applied(&[&FLY, &env]).expect("good presets");
        assert_eq!(settings.text("rpc_host"), "dns:///ams.web.internal:50051");
    }
}

//! Tests of the whole path from arguments, environment and file to the resolved configuration.

mod load;
mod reference;
mod rpc;
mod secrets;

use super::*;

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Ignores configuration files of the machine that runs the tests.
fn startup(env: &[(&str, &str)], args: &[&str]) -> Result<Startup, ConfigError> {
    let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    if !args.iter().any(|arg| arg.starts_with("--config-path")) {
        args.insert(0, "--ignore-config-path".to_owned());
    }
    load(&args, &pairs(env))
}

fn run(env: &[(&str, &str)], args: &[&str]) -> Config {
    match startup(env, args) {
        Ok(Startup::Run(config)) => *config,
        other => panic!("{args:?} {env:?} should start the server: {other:?}"),
    }
}

/// A configuration without RPC.
fn config(args: &[&str]) -> Config {
    run(&[], &[&["--norpc"], args].concat())
}

fn printed_text(env: &[(&str, &str)], args: &[&str]) -> String {
    match startup(env, args) {
        Ok(Startup::Print(text)) => text,
        other => panic!("{args:?} should print: {other:?}"),
    }
}

fn refusal(env: &[(&str, &str)], args: &[&str]) -> String {
    startup(env, args)
        .expect_err("should be refused")
        .to_string()
}

/// A TOML file that exists as long as the value.
fn toml_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("a writable temporary file");
    file
}

fn path_of(file: &tempfile::NamedTempFile) -> String {
    file.path()
        .to_str()
        .expect("temporary names are ASCII")
        .to_owned()
}

//! `--check-config`: what a start would say about its configuration, without starting.
//!
//! The checks are those of a start: first `config::load`, then [`server::prepare`]. A start ends at the first problem; here
//! all problems are listed. Nothing listens and no other machine is contacted.

use std::error::Error;
use std::fmt::Write;

use crate::config::{Config, ConfigError};
use crate::server;
use crate::shard::http::collisions;
use crate::shard::http::listener::{self, Features};
use crate::startup;

/// What a start prints and logs about its options, one line each: deprecation notices, remarks, warnings.
pub fn remarks(config: &Config) -> String {
    let mut out = String::new();
    let mut write = |line: &str| writeln!(out, "{line}").expect("a String takes all");
    for notice in &config.notices {
        write(notice);
    }
    for remark in &config.remarks {
        write(&format!("note: {remark}"));
    }
    for remark in collisions::shared_patterns(config, &startup::pages(config)) {
        write(&format!("note: {remark}"));
    }
    for warning in &config.warnings {
        write(&format!("warning: {warning}"));
    }
    out
}

/// The line that says that a start would reach the point where it listens, with which file and where. `problems` are those
/// found earlier.
///
/// # Errors
/// Every problem that would end a start, the earlier ones first.
pub fn verdict(config: &Config, problems: Vec<ConfigError>) -> Result<String, Vec<Box<dyn Error>>> {
    let mut problems: Vec<Box<dyn Error>> = problems.into_iter().map(Into::into).collect();
    if let Err(found) = server::prepare(config) {
        problems.extend(found.into_iter().map(Box::<dyn Error>::from));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let file = match &config.config_file {
        Some(path) => format!("file {path}"),
        None => "no file".to_owned(),
    };
    let listeners: Vec<String> = listener::listeners(config)
        .iter()
        .map(|(address, features)| {
            let url = startup::url(config.server.tls.is_some(), &address.host, address.port, "");
            format!("{url} ({})", served(*features))
        })
        .collect();
    Ok(format!(
        "configuration is ok: {file}, would listen on {}",
        listeners.join(", ")
    ))
}

fn served(features: Features) -> String {
    let names = [
        (features.main, "WebSocket, health"),
        (features.broadcast, "broadcasts"),
        (features.api, "API"),
        (features.metrics, "metrics"),
    ];
    let names: Vec<&str> = names
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    names.join(", ")
}

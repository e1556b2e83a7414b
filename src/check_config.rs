//! `--check-config`: what a start would say about its configuration, without one.
//!
//! The checks are the start's own: `config::load` has passed when this is called, [`server::prepare`] is the rest.
//! Nothing listens, and nobody is spoken to.

use std::fmt::Write;

use crate::config::Config;
use crate::server::{self, StartError};
use crate::shard::front::{self, Features};
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
    for warning in &config.warnings {
        write(&format!("warning: {warning}"));
    }
    out
}

/// The line that says that a start would get as far as to listen, with which file and where.
///
/// # Errors
/// What a start would end with.
pub fn verdict(config: &Config) -> Result<String, StartError> {
    server::prepare(config)?;
    let file = match &config.config_file {
        Some(path) => format!("file {path}"),
        None => "no file".to_owned(),
    };
    let listeners: Vec<String> = front::listeners(config)
        .iter()
        .map(|(endpoint, features)| {
            let url = startup::url(
                config.server.tls.is_some(),
                &endpoint.host,
                endpoint.port,
                "",
            );
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

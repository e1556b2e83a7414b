//! What can be checked before a start: the host with `--check N` ([`host`]), the options with `--check-config` ([`config`]).

pub mod config;
pub mod host;

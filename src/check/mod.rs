//! What can be asked before a start: `--check N` about the host ([`host`]), `--check-config` about the options ([`config`]).

pub mod config;
pub mod host;

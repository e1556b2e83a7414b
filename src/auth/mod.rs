//! Who may connect and who may subscribe, as far as the server decides it without the app.
//!
//! Owns tokens ([`jwt`]), signed names ([`signed_stream`]), derived keys ([`keys`]) and the channels that the server answers
//! itself ([`channels`]). Pure: time is an argument; a refusal is a value and no log line. Called by `session` and
//! `endpoints`.
//!
//! Source: `contract/auth_streams.md`.

pub mod channels;
pub mod jwt;
pub mod keys;
pub mod signed_stream;

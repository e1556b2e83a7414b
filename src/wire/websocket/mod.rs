//! The WebSocket codec: frames, the messages in them, and their compression.
//!
//! Reading order: `frame` (one frame in, one frame out) · `message` (bytes of a session to its messages) · `deflate` (the
//! compression of a message) · `extensions` (its negotiation, before the first frame).

pub mod deflate;
pub(crate) mod extensions;
pub mod frame;
pub mod message;

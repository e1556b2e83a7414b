//! HTTP/1.1 and WebSocket bytes to values and back. Pure: no I/O, no clock, no logging.
//!
//! Reading order: `http_head`, `http_request` (a request arrives) · `paths`, `origins`, `handshake` (it becomes a
//! WebSocket) · `websocket` (what follows) · `http_body`, `http_response`, `query`, `percent` (everything else).

pub mod handshake;
pub(crate) mod http_body;
pub mod http_head;
pub mod http_request;
pub(crate) mod http_response;
pub mod origins;
pub(crate) mod paths;
pub(crate) mod percent;
pub(crate) mod query;
pub mod websocket;

//! What the integration tests stand on: the real binary, a scripted Rails app and clients that share no code with it.
//!
//! Nothing here uses the library under test: frames, handshakes, tokens and HTTP are written or taken from other crates, so
//! a mistake in the server cannot hide behind the same mistake in the test.

pub mod app;
pub mod cable;
pub mod campfire;
pub mod events;
pub mod fleet;
pub mod http;
pub mod keys;
pub mod machine;
pub mod memory;
pub mod poller;
pub mod ports;
pub mod rails;
pub mod raw;
pub mod server;
pub mod stage;
pub mod tls;
pub mod wait;

pub use cable::Cable;
pub use poller::Poller;
pub use rails::{Answer, Gate, Rails};
pub use raw::Raw;
pub use server::{Driver, Launch, Server};
pub use stage::Stage;
pub use wait::PATIENCE;

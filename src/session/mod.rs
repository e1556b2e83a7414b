//! One client's protocol state, pure: commands, RPC answers and time come in, steps go out. No I/O, no clock, no await.
//!
//! The shard owns the socket and carries out the steps (`shard::sessions`). The subscriptions are in the hub, under the
//! session's slot.

mod admission;
mod broker;
mod deadlines;
mod departed;
mod question;
mod resume;
mod state;
mod step;

pub use admission::{Admission, Flaw};
pub use broker::{BrokerQuestion, HistoryStart, StreamHistory};
pub use deadlines::{Deadlines, Tick};
pub use departed::Departed;
pub use question::Question;
pub use state::{DisconnectCall, Session, SessionSettings};
pub use step::{AuthRefusal, CommandRefusal, Context, Credentials, Step};

#[cfg(test)]
mod tests;

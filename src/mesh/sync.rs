//! What the mailbox is made of. `tests/mailbox_model.rs` builds the mailbox with parts of the same names that try every
//! interleaving of the threads.

pub use std::sync::atomic::{AtomicU64, Ordering};
pub use std::sync::{Mutex, MutexGuard, PoisonError};
pub use std::thread_local;

pub use crossbeam_queue::SegQueue;

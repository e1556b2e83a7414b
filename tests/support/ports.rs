//! Ports for tests that cannot let the kernel choose.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// Ours are below the range from which Linux takes ports for outgoing connections and for port 0, so that nobody else
/// gets one between the look and the use.
const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that nobody listens on and no other test of this run gets.
pub fn free_port() -> u16 {
    // Two runs on one machine start at different places.
    let start = u16::try_from(std::process::id() % u32::from(COUNT)).expect("less than the count");
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + start.wrapping_add(step) % COUNT;
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
}

//! Removes what the broker has kept long enough: once a second, in pieces that leave room for everything else.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::shard::Shard;

/// Time between two sweeps. What is due may stay that much longer.
const BROKER_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Sweeps for the life of the shard.
pub async fn run(shard: Rc<Shard>) {
    loop {
        shard.timeouts.sleep(BROKER_SWEEP_INTERVAL).await;
        while sweep(&shard) {
            shard.yields.yield_now().await;
        }
    }
}

/// One piece. True: there is more to do at once.
fn sweep(shard: &Shard) -> bool {
    let now = Instant::now();
    let more = shard.publisher.sweep(now);
    shard.sessions.borrow_mut().sweep_kept(now) || more
}

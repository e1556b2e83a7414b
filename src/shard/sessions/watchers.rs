//! Which connections are the console's.
//!
//! A connection of the console is in the table like any other, with pings, write deadlines and the drain. What makes it
//! special is in a separate list, so that ordinary sessions need no field for it. It is not a session of the app: it is not
//! authenticated, not counted, and has no identifiers and no subscription in the hub.

/// Connections of the console on one shard.
pub const CONSOLE_CONNECTIONS_MAX: usize = 16;
/// Which connections are the console's.
#[derive(Default)]
pub(super) struct Watchers {
    connections: Vec<Watcher>,
}

struct Watcher {
    slot: u32,
    /// It has subscribed to the snapshots.
    watches: bool,
}

impl Watchers {
    /// Adds a connection of the console that has not subscribed yet.
    pub fn add(&mut self, slot: u32) {
        self.connections.push(Watcher {
            slot,
            watches: false,
        });
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn contains(&self, slot: u32) -> bool {
        self.connections.iter().any(|other| other.slot == slot)
    }

    /// Removes an ended connection. Returns true when it was the console's.
    pub fn remove(&mut self, slot: u32) -> bool {
        let before = self.connections.len();
        self.connections.retain(|other| other.slot != slot);
        self.connections.len() < before
    }

    pub fn is_full(&self) -> bool {
        self.connections.len() >= CONSOLE_CONNECTIONS_MAX
    }

    /// Sets whether it gets snapshots.
    pub fn set_watching(&mut self, slot: u32, watches: bool) {
        if let Some(connection) = self.connections.iter_mut().find(|other| other.slot == slot) {
            connection.watches = watches;
        }
    }

    /// The slots of the connections that get snapshots.
    pub fn watching(&self) -> Vec<u32> {
        self.connections
            .iter()
            .filter(|connection| connection.watches)
            .map(|connection| connection.slot)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_of_the_console_watch_and_only_until_they_end() {
        let mut watchers = Watchers::default();
        watchers.add(3);
        watchers.add(5);
        watchers.set_watching(5, true);
        watchers.set_watching(7, true);
        assert_eq!(watchers.watching(), [5]);
        assert!(watchers.remove(5) && !watchers.remove(5));
        assert!(watchers.watching().is_empty());
        assert!(watchers.contains(3) && !watchers.contains(5));
    }
}

//! Names that scenarios write into their results, and that the code for bars, tables and pictures reads.

/// The scenario that measures the figures of the first page side by side with another server's.
pub const BESIDE: &str = "beside";

/// The scenario that measures one to 64 shards.
pub const SHARDS: &str = "shards";

/// The scenarios that are built only with the feature `experiments`.
pub const ON_DEMAND: [&str; 2] = ["experiments", "allocator"];

/// Cases.
pub mod case {
    pub const BUSY_CALLS: &str = "app 2 ms, 500 clients";
    pub const CHURN: &str = "500 clients per second";
    pub const MEMBERS: &str = "10,000 members";
    pub const MEMBERS_ASKED: &str = "10,000 members are asked for";
    pub const ONE_CHANNEL: &str = "1 subscription";
    pub const ONE_STREAM: &str = "1 stream, 200 B, window 1";
    pub const RESTORE: &str = "clients: 5,000";
    pub const RESTORE_MANY: &str = "clients: 15,000";
    pub const STORM_FAST_APP: &str = "app 0 ms, 1 subscription";
    pub const STORM_RPC: &str = "app 2 ms, 6 subscriptions";
}

/// Figures of `history`.
pub mod history {
    pub const DELIVERIES: &str = "deliveries/s with history, of those without";
}

/// Figures of `presence`.
pub mod presence {
    pub const ANSWER: &str = "question to whole answer";
    pub const RATE: &str = "joins and leaves/s";
}

/// Figures of `restores`.
pub mod restores {
    pub const ALL: &str = "all have everything";
    pub const CALLS: &str = "calls to the app";
    pub const FAULTS: &str = "messages missing or twice, clients without everything";
    pub const TIMED_OUT: &str = "clients timed out";
}

/// Figures of `unfair`.
pub mod unfair {
    pub const HEALTH: &str = "health p99";
    pub const PING: &str = "ping p99";
    pub const PINGS: &str = "cable pings off by";
    pub const TAKEN: &str = "201 p99";
    pub const WELCOME: &str = "welcome p99";
}

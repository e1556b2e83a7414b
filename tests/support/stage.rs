//! An app and a server in front of it: the usual scene of a test.

use super::cable::Cable;
use super::http::Broadcaster;
use super::keys;
use super::rails::Rails;
use super::raw::Raw;
use super::server::{Driver, Launch, Server};

/// The server goes first when this is dropped, then the app says whether it was called properly.
pub struct Stage {
    pub server: Server,
    pub rails: Rails,
}

impl Stage {
    /// The simple app and the settings of [`Stage::launch`].
    pub fn new(driver: Driver) -> Self {
        Self::with(driver, &[])
    }

    /// The same with more arguments; later ones win.
    pub fn with(driver: Driver, args: &[&str]) -> Self {
        let rails = Rails::start();
        let server = Self::launch(driver, &rails)
            .args(args.iter().copied())
            .start();
        Self { server, rails }
    }

    /// Campfire's settings: one secret, from which the RPC and broadcast tokens are derived. Metrics and debug logs are on
    /// for the tests' own sake.
    pub fn launch(driver: Driver, rails: &Rails) -> Launch {
        Launch::new(driver)
            .arg(format!("--rpc_host={}", rails.url()))
            .arg(format!("--secret={}", keys::SECRET))
            .args([
                "--metrics_http=/metrics",
                "--stats_refresh_interval=1",
                "--log_level=debug",
            ])
    }

    pub fn broadcaster(&self) -> Broadcaster {
        Broadcaster {
            address: self.server.address(),
            path: "/_broadcast".to_owned(),
            token: Some(keys::broadcast_token(keys::SECRET)),
        }
    }

    pub fn publish(&self, stream: &str, data: &str) {
        self.broadcaster().publish(stream, data);
    }

    /// A client that has got its welcome.
    pub fn client(&self) -> Cable {
        Cable::to(&self.server).welcomed()
    }

    /// A client at byte level, without pings, that has got its welcome.
    pub fn raw(&self) -> Raw {
        Raw::welcomed(self.server.address())
    }
}

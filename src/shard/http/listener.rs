//! What each listener of a shard serves: routes and policies, built once from the configuration.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::Config;
use crate::console::access::Guard;
use crate::endpoints::api;
use crate::endpoints::broadcast::{BroadcastPolicy, Cors};
use crate::endpoints::durable_streams::ReadPolicy;
use crate::endpoints::polling::PollPolicy;
use crate::mesh::ConnectionLimit;
use crate::os::limits::OpenFiles;
use crate::shard::http::routes::{Paths, Routes};
use crate::wire::origins::AllowedOrigins;
use crate::wire::paths::PathPatternError;

/// Where a listener is bound: features with the same address share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindAddress {
    pub host: String,
    pub port: u16,
}

/// Which features a listener serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// WebSocket, server-sent events, health, the console and plain pages.
    pub main: bool,
    pub broadcast: bool,
    pub api: bool,
    pub metrics: bool,
}

/// Routes and policies of one listener. They apply to every client that connects to it.
pub struct ListenerRules {
    pub features: Features,
    pub routes: Routes,
    pub origins: AllowedOrigins,
    pub broadcast: BroadcastPolicy,
    pub publish: BroadcastPolicy,
    /// Of server-sent events.
    pub sse_cors: Cors,
    pub api_token: Option<String>,
    /// `--ds`, on the main listener.
    pub durable_streams: Option<ReadPolicy>,
    pub poll: PollPolicy,
    /// `--console`, on the main listener.
    pub console: Option<Guard>,
    pub large_heads: LargeHeads,
}

/// The buffers of larger-than-usual heads, counted over all clients of one listener and shard. A limit per client would not
/// help: these clients are not identified yet.
#[derive(Debug, Clone)]
pub struct LargeHeads {
    bytes: Rc<Cell<usize>>,
    bytes_max: usize,
}

/// The number of heads of the largest size that may be read at once.
const LARGE_HEADS_MAX: usize = 256;

impl LargeHeads {
    fn new(head_bytes_max: usize) -> Self {
        Self {
            bytes: Rc::default(),
            bytes_max: LARGE_HEADS_MAX * head_bytes_max,
        }
    }

    /// Counts a head for as long as the guard lives; `None` when there are too many.
    pub fn admit(&self, bytes: usize) -> Option<LargeHead> {
        let all = self.bytes.get() + bytes;
        (all <= self.bytes_max).then(|| {
            self.bytes.set(all);
            LargeHead {
                all: Rc::clone(&self.bytes),
                bytes,
            }
        })
    }
}

/// One head among [`LargeHeads`].
#[derive(Debug)]
pub struct LargeHead {
    all: Rc<Cell<usize>>,
    bytes: usize,
}

impl Drop for LargeHead {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.bytes);
    }
}

impl ListenerRules {
    /// # Errors
    /// When a WebSocket path is not a valid pattern.
    pub fn new(
        config: &Config,
        features: Features,
        paths: Paths,
    ) -> Result<Self, PathPatternError> {
        let http = config
            .broadcast
            .http
            .as_ref()
            .filter(|_| features.broadcast);
        let origins = &config.server.allowed_origins;
        let api = config.api.as_ref().filter(|_| features.api);
        let api_token = api.and_then(|api| api.token.clone());
        let api_cors = api.map(|api| Cors::new(api.cors, &api.cors_hosts));
        Ok(Self {
            features,
            routes: Routes::new(paths)?,
            origins: AllowedOrigins::new(origins),
            broadcast: BroadcastPolicy {
                token: http.and_then(|http| http.token.clone()),
                cors: Cors::new(http.is_some_and(|http| http.cors), origins),
            },
            sse_cors: Cors::new(true, origins),
            publish: api::publish_policy(api_token.clone(), api_cors.unwrap_or_default()),
            api_token,
            durable_streams: ReadPolicy::of(config).filter(|_| features.main),
            poll: PollPolicy::new(origins),
            console: config
                .console
                .as_ref()
                .filter(|_| features.main)
                .map(Guard::new),
            large_heads: LargeHeads::new(config.server.head_bytes_max),
        })
    }
}

/// The listeners that a configuration asks for, the main one first. Features with one address share a listener.
/// Source: contract/operations.md §11.
pub fn listeners(config: &Config) -> Vec<(BindAddress, Features)> {
    let host = &config.server.host;
    let mut listeners = vec![(
        BindAddress {
            host: host.clone(),
            port: config.server.port,
        },
        Features {
            main: true,
            ..Features::default()
        },
    )];
    let mut serve = |host: &str, port: u16, enable: fn(&mut Features)| {
        let wanted = BindAddress {
            host: host.to_string(),
            port,
        };
        match listeners.iter_mut().find(|(address, _)| *address == wanted) {
            Some((_, features)) => enable(features),
            None => {
                let mut features = Features::default();
                enable(&mut features);
                listeners.push((wanted, features));
            }
        }
    };
    if let Some(http) = &config.broadcast.http {
        serve(host, http.port, |features| features.broadcast = true);
    }
    if let Some(api) = &config.api {
        serve(&api.host, api.port, |features| features.api = true);
    }
    if config.metrics.http_path.is_some() {
        serve(&config.metrics.host, config.metrics.port, |features| {
            features.metrics = true
        });
    }
    listeners
}

/// A listener of one shard before the shard's thread runs.
pub struct ListenerSetup {
    pub listener: std::net::TcpListener,
    pub features: Features,
    pub paths: Paths,
    /// The limit on open connections, shared by all shards that listen on this address.
    pub limit: Arc<ConnectionLimit>,
    /// For the log: where the limit comes from.
    pub open_files: OpenFiles,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Startup, load};

    #[test]
    fn large_heads_are_counted_while_they_are_there() {
        let heads = LargeHeads::new(4096);
        let first = heads.admit(4096).expect("room");
        let rest = heads.admit(255 * 4096).expect("room");
        assert!(heads.admit(1).is_none());
        drop(first);
        assert!(heads.admit(4097).is_none());
        assert!(heads.admit(4096).is_some());
        drop(rest);
        assert_eq!(heads.bytes.get(), 0);
    }

    fn config(args: &[&str]) -> Config {
        let required = [
            "--rpc_host=http://app",
            "--secret=0123456789abcdef",
            "--port=80",
        ];
        let args: Vec<String> = required
            .iter()
            .chain(args)
            .map(|arg| (*arg).to_owned())
            .collect();
        match load(&args, &[]) {
            Ok(Startup::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    /// Compares the result of `listeners`, written as port and letters of the features.
    #[track_caller]
    fn check_listeners(args: &[&str], expected: &[(u16, &str)]) {
        let found: Vec<(u16, String)> = listeners(&config(args))
            .into_iter()
            .map(|(address, features)| {
                let letters = [
                    (features.main, 'w'),
                    (features.broadcast, 'b'),
                    (features.api, 'a'),
                    (features.metrics, 'm'),
                ];
                let letters = letters.iter().filter(|(on, _)| *on);
                (address.port, letters.map(|(_, letter)| *letter).collect())
            })
            .collect();
        let found: Vec<(u16, &str)> = found.iter().map(|(port, all)| (*port, &**all)).collect();
        assert_eq!(found, expected, "{args:?}");
    }

    #[test]
    fn features_with_one_address_share_a_listener() {
        check_listeners(&[], &[(80, "wba")]);
        check_listeners(&["--metrics_http=/m"], &[(80, "wbam")]);
        check_listeners(&["--http_broadcast_port=81"], &[(80, "wa"), (81, "b")]);
        let metrics_apart = ["--metrics_http=/m", "--metrics_port=82"];
        check_listeners(&metrics_apart, &[(80, "wba"), (82, "m")]);
        let one_beside = [&metrics_apart[..], &["--api_port=82"]].concat();
        check_listeners(&one_beside, &[(80, "wb"), (82, "am")]);
        let other_host = ["--metrics_http=/m", "--metrics_host=10.0.0.1"];
        check_listeners(&other_host, &[(80, "wba"), (80, "m")]);
    }

    #[test]
    fn the_api_has_a_listener_of_its_own_with_its_own_host() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "[api]\nhost = '10.0.0.1'").expect("a file");
        let path = format!("--config-path={}", file.path().display());
        check_listeners(&[&path], &[(80, "wb"), (80, "a")]);
        check_listeners(&[&path, "--host=10.0.0.1"], &[(80, "wba")]);
        check_listeners(&[&path, "--api_port=81"], &[(80, "wb"), (81, "a")]);
        let beside = ["--metrics_http=/m", "--metrics_host=10.0.0.1"];
        check_listeners(
            &[&[path.as_str()], &beside[..]].concat(),
            &[(80, "wb"), (80, "am")],
        );
    }

    #[test]
    fn only_the_main_listener_lets_anybody_into_the_console() {
        let config = config(&["--console", "--metrics_http=/m", "--metrics_port=82"]);
        let has_console: Vec<bool> = listeners(&config)
            .into_iter()
            .map(|(_, features)| {
                let paths = Paths::new(&config, features, &[]);
                let rules = ListenerRules::new(&config, features, paths).expect("good paths");
                rules.console.is_some()
            })
            .collect();
        assert_eq!(has_console, [true, false]);
    }
}

//! What a start decides before it opens a socket: settings and files are checked, and the limits of the host are read.

use std::sync::Arc;

use super::StartError;
use crate::config::{Config, RpcEndpoint};
use crate::demo::{DemoApp, DemoOptions};
use crate::net::tls::ServerTls;
use crate::os::limits::OpenFiles;
use crate::rpc::{self, RpcShared};
use crate::shard::http::{collisions, listener};
use crate::wire::paths::PathPatterns;
use crate::{os, startup};

/// What the boot needs to know.
pub struct Plan {
    pub shards: usize,
    pub open_files: OpenFiles,
    pub tls: Option<Arc<ServerTls>>,
    /// `None` without RPC.
    pub rpc: Option<Arc<RpcShared>>,
    /// The demo app runs as long as this value lives.
    pub demo: Option<DemoApp>,
}

impl Plan {
    /// Raises the limit on open files. If the demo is wanted, starts its app and writes the app's URL into `config`.
    ///
    /// # Errors
    /// The first problem that [`prepare`] finds, or why the demo cannot start.
    pub fn make(config: &mut Config) -> Result<Self, StartError> {
        let open_files = os::limits::raise_open_files().unwrap_or(0);
        let shards = config
            .runtime
            .cores
            .unwrap_or_else(os::cpu::default_cores)
            .max(1);
        startup::banner(config, open_files, shards);
        let Prepared { tls, rpc } =
            prepare(config).map_err(|mut problems| problems.swap_remove(0))?;
        let demo = start_demo(config)?;
        let rpc = match &demo {
            Some(_) => Some(RpcShared::new(&config.rpc)?),
            None => rpc,
        };
        let calls = config.rpc.concurrency.max(1);
        let calls_kept = rpc::idle_connections_max(calls, shards);
        let listeners = listener::listeners(config).len();
        Ok(Self {
            shards,
            open_files: OpenFiles::share_out(open_files, shards, listeners, calls, calls_kept),
            tls,
            rpc,
            demo,
        })
    }
}

/// The result of checking settings and files.
pub struct Prepared {
    tls: Option<Arc<ServerTls>>,
    /// `None` without RPC, and with `--demo`: the demo's app has no address yet.
    rpc: Option<Arc<RpcShared>>,
}

/// Finds every problem that can be found without opening a listener or contacting anybody. `--check-config` does only this.
///
/// # Errors
/// All problems: TLS files or a certificate authority that cannot be used, paths that are no patterns or collide, an RPC URL
/// or token that cannot work. Never empty.
pub fn prepare(config: &Config) -> Result<Prepared, Vec<StartError>> {
    let mut problems = Vec::new();
    let tls = match &config.server.tls {
        Some(files) => match ServerTls::load(files) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(_) => {
                problems.extend(ServerTls::problems(files).into_iter().map(StartError::Tls));
                None
            }
        },
        None => None,
    };
    if config.demo && config.server.tls.is_some() {
        problems.push(StartError::DemoWithTls);
    }
    match PathPatterns::new(&config.server.paths) {
        Ok(_) => problems.extend(
            collisions::find(config, &startup::pages(config))
                .into_iter()
                .map(StartError::Collision),
        ),
        Err(error) => problems.push(StartError::Path(error)),
    }
    let rpc = match config.rpc.endpoint {
        RpcEndpoint::Http(_) if !config.demo => RpcShared::new(&config.rpc)
            .map_err(|error| problems.push(StartError::Rpc(error)))
            .ok(),
        _ => None,
    };
    if problems.is_empty() {
        Ok(Prepared { tls, rpc })
    } else {
        Err(problems)
    }
}

fn start_demo(config: &mut Config) -> Result<Option<DemoApp>, StartError> {
    if !config.demo {
        return Ok(None);
    }
    let http = config.broadcast.http.as_ref();
    let demo = DemoApp::start(DemoOptions {
        rpc_token: config.rpc.token.clone(),
        broadcast_token: http.and_then(|http| http.token.clone()),
    })
    .map_err(StartError::Demo)?;
    config.rpc.endpoint = RpcEndpoint::Http(demo.rpc_url());
    Ok(Some(demo))
}

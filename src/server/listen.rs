//! Opens the listeners of all shards, and explains why one cannot be opened.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use super::StartError;
use crate::config::Config;
use crate::mesh::{ClientSockets, ConnectionLimit};
use crate::os::limits::OpenFiles;
use crate::shard::http::listener::{self, BindAddress, Features, ListenerSetup};
use crate::shard::http::routes::Paths;
use crate::{os, startup};

/// Opens every listener once for each shard. Afterwards `config` has the chosen ports where it had port 0.
pub fn listen(
    config: &mut Config,
    shards: usize,
    open_files: OpenFiles,
) -> Result<Vec<Vec<ListenerSetup>>, StartError> {
    let pages = startup::pages(config);
    let sockets_of_clients = Arc::new(ClientSockets::default());
    let mut by_shard: Vec<Vec<ListenerSetup>> = (0..shards).map(|_| Vec::new()).collect();
    for (address, features) in listener::listeners(config) {
        let sockets = os::sockets::listen(&address.host, address.port, shards)
            .map_err(|source| refused(config.server.tls.is_some(), &address, features, source))?;
        note_port(config, features, &sockets[0]);
        let paths = Paths::new(config, features, &pages);
        let limit = ConnectionLimit::new(
            config.server.connections_max,
            Arc::clone(&sockets_of_clients),
            files_for(features, open_files),
        );
        for (setups, listener) in by_shard.iter_mut().zip(sockets) {
            setups.push(ListenerSetup {
                listener,
                features,
                paths: paths.clone(),
                limit: Arc::clone(&limit),
                open_files,
            });
        }
    }
    Ok(by_shard)
}

/// The listener accepts only while the process has fewer sockets than this.
fn files_for(features: Features, open_files: OpenFiles) -> usize {
    let files = match (open_files.max, features.main) {
        (0, _) => u64::MAX,
        (_, true) => open_files.clients(),
        (_, false) => open_files.requests(),
    };
    usize::try_from(files).unwrap_or(usize::MAX)
}

fn refused(tls: bool, address: &BindAddress, features: Features, source: io::Error) -> StartError {
    let hint = match source.kind() {
        io::ErrorKind::AddrInUse => startup::port_taken(
            address.port,
            startup::port_option(features),
            os::port_owner::find(&address.host, address.port).as_ref(),
        ),
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_string()
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has that address".to_string()
        }
        _ => String::new(),
    };
    StartError::Listen {
        feature: startup::listener_name(features),
        url: startup::url(tls, &address.host, address.port, ""),
        source,
        hint,
    }
}

fn note_port(config: &mut Config, features: Features, listener: &TcpListener) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let port = address.port();
    if features.main {
        config.server.port = port;
    }
    if let Some(http) = config
        .broadcast
        .http
        .as_mut()
        .filter(|_| features.broadcast)
    {
        http.port = port;
    }
    if let Some(api) = config.api.as_mut().filter(|_| features.api) {
        api.port = port;
    }
    if features.metrics {
        config.metrics.port = port;
    }
}

//! The source that follows a Kubernetes API server.
//!
//! One task for each kind lists and watches (`reflector.rs`) at the address that responds (`servers.rs`). It
//! decodes into slim types (`decode.rs`) and passes the objects on. The source holds no objects: the next
//! stage is the only cache.

mod backoff;
mod decode;
mod lines;
mod reflector;
#[cfg(test)]
mod reflector_tests;
mod server_addresses;
mod servers;

use std::path::{Path, PathBuf};

use http::Uri;
use kube::Config;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::mpsc;

use self::reflector::Reflector;
use self::server_addresses::ServerAddresses;
pub use self::servers::Servers;
pub(crate) use self::servers::is_no_response;
use super::{Event, Kind, StateHandle};

/// Why the agent cannot send requests to the API server at all.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file is unreadable or not a kubeconfig.
    #[error("reading the kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The path of the file.
        path: PathBuf,
        /// The fault of the file.
        source: Box<KubeconfigError>,
    },
    /// The agent does not run in a pod with a service account.
    #[error(
        "finding the API server of the cluster that this runs in: {0}; outside a pod give --kubeconfig FILE"
    )]
    InCluster(#[from] InClusterError),
    /// The certificates or the address cannot be used.
    #[error("preparing a client for {server}: {source}")]
    Client {
        /// The address of the server.
        server: String,
        /// The reason of the failure.
        source: Box<kube::Error>,
    },
}

/// Prepares the requests to the API server that `kubeconfig` names, or in a pod to that of its cluster. It
/// uses `addresses` if there are any. The server need not run yet. A pod's token and the authority are read
/// again when they change.
pub async fn connect(kubeconfig: Option<&Path>, addresses: &[Uri]) -> Result<Servers, StartError> {
    let config = match kubeconfig {
        Some(path) => read_kubeconfig(path)
            .await
            .map_err(|source| StartError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?,
        None if addresses.is_empty() => Config::incluster()?,
        // Of the service account only the files count, and not the address in the environment.
        None => Config::incluster_dns()?,
    };
    let servers = Servers::new(&config, addresses)?;
    let named = [config.cluster_url];
    let asked = if addresses.is_empty() { &named } else { addresses };
    let server_addresses = ServerAddresses::of(asked.iter().chain(&config.proxy_url));
    server_addresses.publish(servers.state().clone()).await;
    Ok(servers)
}

/// Follows an API server until the receiver of `events` is dropped. It requests only the pods of the node.
pub fn start(servers: &Servers, node_name: &str, events: &mpsc::Sender<Event>) -> StateHandle {
    let state = servers.state().clone();
    for kind in Kind::ALL {
        let reflector = Reflector {
            kind,
            node_name: node_name.to_owned(),
            servers: servers.clone(),
            events: events.clone(),
        };
        tokio::spawn(reflector.run());
    }
    state
}

/// The status of a response, `success` for a good one; `None` if no response arrived.
pub(crate) fn status_code<T>(response: &Result<T, kube::Error>, success: u16) -> Option<u16> {
    match response {
        Ok(_) => Some(success),
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(_) => None,
    }
}

async fn read_kubeconfig(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

//! The source that follows a Kubernetes API server.
//!
//! One task for each kind lists and watches (`reflector.rs`) over one client, decodes into slim types (`decode.rs`) and hands
//! on. Nothing is held: the next stage is the only cache.

mod backoff;
mod decode;
mod lines;
mod reflector;
#[cfg(test)]
mod reflector_tests;

use std::path::{Path, PathBuf};

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tokio::sync::mpsc;

use self::reflector::Reflector;
use super::{Event, Kind, StateHandle};

/// Why the API server cannot even be asked.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file is unreadable or not a kubeconfig.
    #[error("reading the kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// There is no pod's service account to use.
    #[error(
        "finding the API server of the cluster that this runs in: {0}; outside a pod give --kubeconfig FILE"
    )]
    InCluster(#[from] InClusterError),
    /// The certificates or the address cannot be used.
    #[error("preparing a client for {server}: {source}")]
    Client {
        /// The server's address.
        server: String,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// Follows the API server that `kubeconfig` names, or the one of the cluster that this runs in, until the receiver of
/// `events` goes. Of the pods only those of the node are asked for. The server need not be there yet. The client is for whoever else has to ask it.
pub async fn start(
    kubeconfig: Option<&Path>,
    node_name: &str,
    events: mpsc::Sender<Event>,
) -> Result<(StateHandle, Client), StartError> {
    let config = match kubeconfig {
        Some(path) => read_kubeconfig(path)
            .await
            .map_err(|source| StartError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?,
        None => Config::incluster()?,
    };
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let client = Client::try_from(config).map_err(|source| StartError::Client {
        server: server.clone(),
        source: Box::new(source),
    })?;
    let state = StateHandle::new(server);
    for kind in Kind::ALL {
        let reflector = Reflector {
            kind,
            node_name: node_name.to_owned(),
            client: client.clone(),
            state: state.clone(),
            events: events.clone(),
        };
        tokio::spawn(reflector.run());
    }
    Ok((state, client))
}

/// The status of an answer, `success` if it is a good one; none where no answer came.
pub(crate) fn status_code<T>(answer: &Result<T, kube::Error>, success: u16) -> Option<u16> {
    match answer {
        Ok(_) => Some(success),
        Err(kube::Error::Api(status)) => Some(status.code),
        Err(_) => None,
    }
}

async fn read_kubeconfig(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}

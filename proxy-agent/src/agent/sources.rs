//! The source of objects: a directory, or an API server.

use tokio::sync::mpsc;

use crate::config::{AgentOptions, SourceSpec};
use crate::events::Recorder;
use crate::source::{self, Event};

/// Starts to read objects. The recorder sends events to the API server that the objects come from; a
/// directory takes no events.
pub async fn start(
    options: &AgentOptions,
    events: mpsc::Sender<Event>,
) -> anyhow::Result<(source::StateHandle, Recorder)> {
    match &options.source {
        SourceSpec::Directory(path) => {
            let state = source::directory::start(path.clone(), events)?;
            Ok((state, Recorder::nowhere()))
        }
        SourceSpec::Kubernetes => {
            let kubeconfig = options.kubeconfig.as_deref();
            let addresses = options.configuration.api_servers.iter();
            let addresses: Vec<_> = addresses.map(|server| server.uri().clone()).collect();
            let servers = source::kubernetes::connect(kubeconfig, &addresses).await?;
            let state = source::kubernetes::start(&servers, &options.node_name, &events);
            let recorder = Recorder::start(servers, &options.node_name);
            Ok((state, recorder))
        }
    }
}

//! The addresses of the API server, and the one in use.
//!
//! Inside a cluster the API server has a virtual address, which leads nowhere before a proxy serves it, and
//! this agent is the proxy. So an operator names the servers' own addresses, all of them, since any one may
//! be down when a node boots.
//!
//! The agent tries them in the given order. A task that gets no response moves all tasks on to the next
//! address, in a circle. The tasks stay with an address that responds; a refusal is a response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use kube::{Client, Config};

use super::StartError;
use crate::source::StateHandle;

/// How long one of several servers may take to accept a connection, before the next one is tried.
const CONNECT: Duration = Duration::from_secs(5);

/// The API server, at one or several addresses; clones agree on the one in use.
#[derive(Clone)]
pub struct Servers(Arc<Inner>);

struct Inner {
    servers: Vec<Server>,
    /// The index of the server in use.
    current: AtomicUsize,
    state: StateHandle,
}

struct Server {
    address: String,
    client: Client,
}

/// The address that was chosen for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice(usize);

impl Servers {
    /// The server that `config` names, at `addresses` if there are any. Must be called within a tokio
    /// runtime.
    pub(super) fn new(config: &Config, addresses: &[Uri]) -> Result<Self, StartError> {
        let named = [config.cluster_url.clone()];
        let addresses = if addresses.is_empty() { &named } else { addresses };
        let several = addresses.len() > 1;
        let servers = addresses.iter().map(|address| {
            let mut config = config.clone();
            config.cluster_url = address.clone();
            if several {
                config.connect_timeout = Some(CONNECT);
                // The client must not retry with the same server.
                config.default_retry = false;
            }
            Server::new(config)
        });
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        let state = StateHandle::new(servers[0].address.clone());
        Ok(Self::of(servers, state))
    }

    fn of(servers: Vec<Server>, state: StateHandle) -> Self {
        Self(Arc::new(Inner {
            servers,
            current: AtomicUsize::new(0),
            state,
        }))
    }

    /// Makes servers from clients, with invented addresses.
    #[cfg(test)]
    pub(crate) fn of_clients(clients: impl IntoIterator<Item = Client>) -> Self {
        let server = |(index, client)| Server {
            address: format!("https://api-{index}.example"),
            client,
        };
        let servers: Vec<_> = clients.into_iter().enumerate().map(server).collect();
        let state = StateHandle::new(servers[0].address.clone());
        Self::of(servers, state)
    }

    /// The state of the source, which has the address in use.
    pub fn state(&self) -> &StateHandle {
        &self.0.state
    }

    /// The server to use. If it gives no response, call [`Servers::failed`].
    pub fn choose(&self) -> (Choice, &Client) {
        let index = self.0.current.load(Ordering::Relaxed);
        (Choice(index), &self.0.servers[index].client)
    }

    /// Notes that the chosen address gave no response. The first caller moves all requests on to the next
    /// address.
    pub fn failed(&self, choice: Choice) {
        let Inner {
            servers,
            current,
            state,
        } = &*self.0;
        let next = (choice.0 + 1) % servers.len();
        let moved = current.compare_exchange(choice.0, next, Ordering::Relaxed, Ordering::Relaxed);
        if moved.is_ok() && next != choice.0 {
            let (from, to) = (&servers[choice.0].address, &servers[next].address);
            tracing::info!(from, to, "no reply; asking the API server at its next address");
            state.set_origin(to.clone());
        }
    }
}

impl Server {
    fn new(config: Config) -> Result<Self, StartError> {
        let address = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        match Client::try_from(config) {
            Ok(client) => Ok(Self { address, client }),
            Err(source) => Err(StartError::Client {
                server: address,
                source: Box::new(source),
            }),
        }
    }
}

/// Whether a request got no usable response: none arrived, or it came from a server that does not work.
pub(crate) fn is_no_response(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 500..),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    fn silent() -> Client {
        let server = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        Client::new(server, "default")
    }

    #[tokio::test]
    async fn all_clients_move_on_once_and_come_round() {
        let servers = Servers::of_clients([silent(), silent()]);
        assert_eq!(servers.state().origin(), "https://api-0.example");
        let (first, _) = servers.choose();
        servers.failed(first);
        let other = servers.clone();
        // This request used the first address too, and fails late.
        other.failed(first);
        let (second, _) = servers.choose();
        assert_ne!(first, second);
        assert_eq!(servers.state().origin(), "https://api-1.example");
        other.failed(second);
        assert_eq!(servers.choose().0, first);
    }

    #[tokio::test]
    async fn a_single_one_is_asked_for_ever() {
        let servers = Servers::of_clients([silent()]);
        let (only, _) = servers.choose();
        servers.failed(only);
        assert_eq!(servers.choose().0, only);
    }

    #[tokio::test]
    async fn addresses_replace_the_one_that_the_configuration_names() {
        let config = Config::new(Uri::from_static("https://10.96.0.1/"));
        let origin = |addresses: &[Uri]| {
            let servers = Servers::new(&config, addresses).expect("a client");
            (servers.0.servers.len(), servers.state().origin())
        };
        assert_eq!(origin(&[]), (1, "https://10.96.0.1".to_owned()));
        let addresses = ["https://192.0.2.1:6443", "https://192.0.2.2:6443"].map(Uri::from_static);
        assert_eq!(origin(&addresses), (2, "https://192.0.2.1:6443".to_owned()));
    }
}

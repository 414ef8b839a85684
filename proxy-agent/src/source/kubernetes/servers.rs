//! The addresses by which the API server is reached, and which of them is asked.
//!
//! Inside a cluster the API server has a virtual address, which leads nowhere before a proxy serves it, and the proxy is us. So an
//! operator names the servers' own addresses, all of them, since any one may be down when a node boots. They are tried in the
//! given order: whoever gets no answer moves everybody on to the next one, round and round, and the one that answers is stayed
//! with. That it refuses a request is an answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use kube::{Client, Config};

use super::StartError;
use crate::source::StateHandle;

/// How long one of several servers may take to accept a connection, before the next one is tried.
const CONNECT: Duration = Duration::from_secs(5);

/// The API server, at one or several addresses; clones agree on the one that is asked.
#[derive(Clone)]
pub struct Servers(Arc<Inner>);

struct Inner {
    servers: Vec<Server>,
    /// Which of them is asked.
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
    /// The server that `config` names, at `addresses` if there are any. Must be called within a tokio runtime.
    pub(super) fn new(config: &Config, addresses: &[Uri]) -> Result<Self, StartError> {
        let named = [config.cluster_url.clone()];
        let addresses = if addresses.is_empty() { &named } else { addresses };
        let several = addresses.len() > 1;
        let servers = addresses.iter().map(|address| {
            let mut config = config.clone();
            config.cluster_url = address.clone();
            if several {
                config.connect_timeout = Some(CONNECT);
                // Not the same one again.
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

    /// Clients in the place of servers; the addresses are made up.
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

    /// What is known of the source; it names the address that is asked.
    pub fn state(&self) -> &StateHandle {
        &self.0.state
    }

    /// The one to ask. If it gives no answer, say so to [`Servers::failed`].
    pub fn choose(&self) -> (Choice, &Client) {
        let index = self.0.current.load(Ordering::Relaxed);
        (Choice(index), &self.0.servers[index].client)
    }

    /// The address that was chosen gave no answer. If nobody has noticed yet, the next one is asked from now on.
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
            tracing::info!(from, to, "no answer; asking the API server at its next address");
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

/// Whether a request got no answer, as far as the server's own word goes: nothing came, or a server that is not at work spoke.
pub(crate) fn is_no_answer(error: &kube::Error) -> bool {
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
    async fn everybody_moves_on_once_and_comes_round() {
        let servers = Servers::of_clients([silent(), silent()]);
        assert_eq!(servers.state().origin(), "https://api-0.example");
        let (first, _) = servers.choose();
        servers.failed(first);
        let other = servers.clone();
        // This one asked the first address too, and hears of it late.
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

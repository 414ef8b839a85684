//! The addresses of the API servers: those of their names, and of the proxy in front of them.
//!
//! A service must not take an API server's address from the agent, so the addresses are known before the
//! first list is applied. Names may get other addresses later, so the agent resolves them again from time to
//! time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;

use crate::source::StateHandle;

/// How long the start waits for the names to be resolved.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the agent resolves the names again.
const PERIOD: Duration = Duration::from_secs(30);

/// The hosts and ports of the servers.
pub(super) struct ServerAddresses(Vec<(String, u16)>);

impl ServerAddresses {
    /// The hosts and ports in some addresses.
    pub fn of<'a>(addresses: impl IntoIterator<Item = &'a Uri>) -> Self {
        let place = |uri: &Uri| {
            let in_clear = uri.scheme() == Some(&Scheme::HTTP);
            let port = uri.port_u16().unwrap_or(if in_clear { 80 } else { 443 });
            let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
            Some((host.to_owned(), port))
        };
        Self(addresses.into_iter().filter_map(place).collect())
    }

    /// Writes the addresses to `state`, and continues to do so if there are names among the hosts.
    pub async fn publish(self, state: StateHandle) {
        let has_names = self.0.iter().any(|(host, _)| host.parse::<IpAddr>().is_err());
        if tokio::time::timeout(LOOKUP_TIMEOUT, self.look_up(&state))
            .await
            .is_err()
        {
            tracing::warn!(servers = ?self.0, "the names of the API servers have no addresses yet");
        }
        if has_names {
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(PERIOD).await;
                    self.look_up(&state).await;
                }
            });
        }
    }

    async fn look_up(&self, state: &StateHandle) {
        for (host, port) in &self.0 {
            match tokio::net::lookup_host((host.as_str(), *port)).await {
                Ok(found) => state.add_servers(found.map(canonical)),
                Err(error) => tracing::debug!(host, %error, "looking up an API server"),
            }
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_published_at_once_and_once() {
        let servers = [
            "https://192.0.2.100:6443",
            "https://[2001:db8::1]/",
            "http://192.0.2.9",
        ];
        let servers = servers.map(|server| server.parse::<Uri>().expect("an address"));
        let state = StateHandle::new("https://192.0.2.100:6443".into());
        ServerAddresses::of(&servers).publish(state.clone()).await;
        let expected = ["192.0.2.9:80", "192.0.2.100:6443", "[2001:db8::1]:443"];
        let expected = expected.map(|text| text.parse::<SocketAddr>().expect("an address"));
        assert_eq!(state.servers(), expected.into());
        state.moved().await;
        ServerAddresses::of(&servers).publish(state.clone()).await;
        let again = tokio::time::timeout(Duration::from_millis(1), state.moved()).await;
        assert!(again.is_err(), "nothing new");
    }
}

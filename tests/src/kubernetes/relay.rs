//! One API server at several addresses, and for two worlds. Packets do not pass between worlds, and both
//! fabrics have the same addresses. Clients of a second world connect to the API server's address in their
//! own fabric. This process accepts those connections there and carries them to the first world. Agents of
//! both worlds then follow the same objects, by the same kubeconfig.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::place::Place;

/// Carries connections from a port of one place to an address that another place reaches, until it is
/// dropped.
pub struct Relay {
    _runtime: Runtime,
}

impl Relay {
    pub(super) fn start(from: &Place, port: u16, to_place: &Place, to: SocketAddr) -> Result<Self> {
        let listener = from
            .tcp_listen(port)
            .with_context(|| format!("listening on port {port} of {}", from.name()))?;
        listener
            .set_nonblocking(true)
            .context("making a listener non-blocking")?;
        let runtime = to_place.netns().runtime()?;
        runtime.spawn(carry(listener, to));
        Ok(Self { _runtime: runtime })
    }
}

async fn carry(listener: TcpListener, to: SocketAddr) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        // The task cannot return the error. Tests notice it by connections that are not accepted.
        Err(error) => return eprintln!("relaying to {to}: {error}"),
    };
    loop {
        // An error ends one connection, and its client connects again.
        if let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut far) = TcpStream::connect(to).await {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    }
}

//! The thread of a server: it accepts, greets and echoes, until it is told to drain or end.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// An order to a server. Each phase includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Accepts and answers.
    Serving,
    /// Accepts no more; connections go on.
    Draining,
    /// Ends; connections are closed by FIN.
    Stopped,
    /// Ends; connections are closed by RST.
    Reset,
}

/// The sockets of a server.
pub(super) enum Sockets {
    Tcp(TcpListener),
    Udp(Vec<UdpSocket>),
}

/// The state of a server's thread.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) name: Arc<str>,
    pub(super) orders: watch::Receiver<Phase>,
    pub(super) served: Arc<AtomicUsize>,
}

impl Task {
    pub(super) fn run(self, sockets: Sockets) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match sockets {
                Sockets::Tcp(listener) => self.accept(listener).await,
                Sockets::Udp(sockets) => self.reply_to_all(sockets).await,
            }
        })
    }

    /// Waits for an order of at least this phase.
    async fn ordered(&self, phase: Phase) -> Phase {
        let mut orders = self.orders.clone();
        // The sender is gone only if the server's handle was leaked: the server goes on.
        let reached = orders.wait_for(|now| *now >= phase).await.map(|now| *now);
        match reached {
            Ok(now) => now,
            Err(_) => std::future::pending().await,
        }
    }

    async fn accept(self, listener: TcpListener) -> Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                _ = self.ordered(Phase::Draining) => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        self.served.fetch_add(1, Ordering::Relaxed);
                        connections.spawn(self.clone().serve_connection(stream, peer));
                    }
                    // The client closed the connection before, or the process had no free descriptor for a
                    // moment.
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        self.ordered(Phase::Stopped).await;
        while connections.join_next().await.is_some() {}
        Ok(())
    }

    async fn serve_connection(self, mut stream: TcpStream, peer: SocketAddr) {
        tokio::select! {
            // The server ignores a client that closes or resets its connection.
            _ = self.echo(&mut stream, peer) => {}
            phase = self.ordered(Phase::Stopped) => if phase == Phase::Reset {
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
        }
    }

    async fn echo(&self, stream: &mut TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (reader, mut writer) = stream.split();
        writer.write_all(self.greeting(peer).as_bytes()).await?;
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await? {
            writer
                .write_all(format!("{} {line}\n", self.name).as_bytes())
                .await?;
        }
        Ok(())
    }

    async fn reply_to_all(self, sockets: Vec<UdpSocket>) -> Result<()> {
        let mut replying = tokio::task::JoinSet::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            replying.spawn(self.clone().reply(socket));
        }
        self.ordered(Phase::Draining).await;
        replying.shutdown().await;
        Ok(())
    }

    async fn reply(self, socket: tokio::net::UdpSocket) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            // An error is about an earlier reply (ICMP), not about this socket.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            self.served.fetch_add(1, Ordering::Relaxed);
            let mut reply = self.greeting(peer).into_bytes();
            reply.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&reply, peer).await;
        }
    }

    fn greeting(&self, peer: SocketAddr) -> String {
        // A dual-stack listener shows IPv4 clients in mapped form.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        format!("{} {peer}\n", self.name)
    }
}

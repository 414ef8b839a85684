//! Backends: servers that say who they are and whom they see. By TCP the first
//! line is `<name> <peer address>`, and each line that comes is echoed as
//! `<name> <line>`; by UDP each datagram is answered by such a first line
//! followed by the datagram.
//!
//! A server is one thread of the test's process. It stops when it is dropped,
//! and its port is free then.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::failure::OrPanic;
use crate::place::{Place, listen};

/// What a server is told to do, each step beyond the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Accept and answer.
    Serving,
    /// Accept no more; connections go on.
    Draining,
    /// End, connections by FIN.
    Stopped,
    /// End, connections by RST.
    Reset,
}

/// A running server.
pub struct Server {
    phase: watch::Sender<Phase>,
    thread: Option<JoinHandle<()>>,
    served: Arc<AtomicUsize>,
}

impl Place {
    /// Serves TCP on a port of all its addresses, IPv4 and IPv6.
    #[track_caller]
    pub fn serve_tcp(&self, port: u16) -> Server {
        let listener = self
            .tcp_listen(port)
            .with_context(|| self.cannot_serve(port))
            .or_panic();
        Server::start(Sockets::Tcp(listener), self.name())
    }

    /// Serves UDP on a port of each of its addresses. A socket per address
    /// answers from the address that was asked.
    #[track_caller]
    pub fn serve_udp(&self, port: u16) -> Server {
        let bind = |ip: &_| self.udp_bind(SocketAddr::new(*ip, port));
        let sockets: io::Result<Vec<_>> = self.addresses().iter().map(bind).collect();
        let sockets = sockets.with_context(|| self.cannot_serve(port)).or_panic();
        Server::start(Sockets::Udp(sockets), self.name())
    }

    /// Serves TCP and UDP on a port from a process of its own inside the place,
    /// which lives until the world ends, even where that outlives this process.
    #[track_caller]
    pub fn serve_apart(&self, port: u16) -> ServerApart {
        let tool = crate::binary::world_tool().or_panic();
        let mut command = self.command(tool);
        command
            .args(["serve", self.name(), &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .spawn()
            .with_context(|| self.cannot_serve(port))
            .or_panic();
        // It says a line once it serves, and closes its output.
        let mut said = String::new();
        let heard = child
            .stdout
            .take()
            .map(|mut out| io::Read::read_to_string(&mut out, &mut said));
        assert!(
            said.starts_with("serving"),
            "{}: {heard:?}",
            self.cannot_serve(port)
        );
        ServerApart(child)
    }

    fn cannot_serve(&self, port: u16) -> String {
        format!("serving port {port} on {}", self.name())
    }
}

/// A server in a process of its own; dropping this leaves it running.
pub struct ServerApart(Child);

impl ServerApart {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it by SIGKILL: the kernel closes its connections.
    #[track_caller]
    pub fn kill(mut self) {
        self.0
            .kill()
            .and_then(|()| self.0.wait())
            .context("ending a server")
            .or_panic();
    }
}

enum Sockets {
    Tcp(TcpListener),
    Udp(Vec<UdpSocket>),
}

impl Server {
    fn start(sockets: Sockets, name: &str) -> Self {
        let (phase, orders) = watch::channel(Phase::Serving);
        let served = Arc::new(AtomicUsize::new(0));
        let task = Task {
            name: name.into(),
            orders,
            served: Arc::clone(&served),
        };
        let thread = std::thread::Builder::new()
            .name(format!("server {name}"))
            .spawn(move || task.run(sockets).or_panic())
            .context("starting a server's thread")
            .or_panic();
        Self {
            phase,
            thread: Some(thread),
            served,
        }
    }

    /// How many connections or datagrams it has answered.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Closes the listening socket; connections that exist go on.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends it, resetting every connection.
    pub fn reset(mut self) {
        self.end(Phase::Reset);
    }

    /// Ends it, closing every connection. Dropping does the same.
    pub fn stop(mut self) {
        self.end(Phase::Stopped);
    }

    fn end(&mut self, phase: Phase) {
        self.phase.send_replace(phase);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed; in a test that goes on it shows as missing answers.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end(Phase::Stopped);
        }
    }
}

/// What a server's thread works with.
#[derive(Clone)]
struct Task {
    name: Arc<str>,
    orders: watch::Receiver<Phase>,
    served: Arc<AtomicUsize>,
}

impl Task {
    fn run(self, sockets: Sockets) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match sockets {
                Sockets::Tcp(listener) => self.accept(listener).await,
                Sockets::Udp(sockets) => self.answer_all(sockets).await,
            }
        })
    }

    /// Waits for an order of at least this phase.
    async fn ordered(&self, phase: Phase) -> Phase {
        let mut orders = self.orders.clone();
        // The sender is gone only if the server's handle was leaked: serve on.
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
                        connections.spawn(self.clone().converse(stream, peer));
                    }
                    // The client gave up first, or descriptors ran out for a moment.
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

    async fn converse(self, mut stream: TcpStream, peer: SocketAddr) {
        tokio::select! {
            // A client that goes away is no concern of the server.
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

    async fn answer_all(self, sockets: Vec<UdpSocket>) -> Result<()> {
        let mut answering = tokio::task::JoinSet::new();
        for socket in sockets {
            socket.set_nonblocking(true)?;
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            answering.spawn(self.clone().answer(socket));
        }
        self.ordered(Phase::Draining).await;
        answering.shutdown().await;
        Ok(())
    }

    async fn answer(self, socket: tokio::net::UdpSocket) {
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            // Errors report what became of earlier answers (ICMP), not of this socket.
            let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            self.served.fetch_add(1, Ordering::Relaxed);
            let mut answer = self.greeting(peer).into_bytes();
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&answer, peer).await;
        }
    }

    fn greeting(&self, peer: SocketAddr) -> String {
        // A dual-stack listener shows IPv4 clients in mapped form.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        format!("{} {peer}\n", self.name)
    }
}

/// What `millrace-world serve` does: TCP and UDP on a port, for ever.
pub fn run(name: &str, port: u16) -> Result<()> {
    let listener = listen(Socket::new(Domain::IPV6, Type::STREAM, None)?, port)?;
    let _tcp = Server::start(Sockets::Tcp(listener), name);
    let mut sockets = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().context("listing addresses")? {
        let Some(address) = interface.address else {
            continue;
        };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        let v6 = address
            .as_sockaddr_in6()
            .map(|address| IpAddr::from(address.ip()));
        // A link-local address could be bound only together with its link.
        if let Some(ip) = v4.or(v6.filter(|ip| !is_link_local(ip))) {
            sockets
                .push(UdpSocket::bind(SocketAddr::new(ip, port)).with_context(|| format!("binding {ip}"))?);
        }
    }
    let _udp = Server::start(Sockets::Udp(sockets), name);
    println!("serving {name} on port {port}");
    // The reader waits for the end of the output; the write end of /dev/null takes its place.
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    rustix::stdio::dup2_stdout(null).context("closing the output")?;
    loop {
        std::thread::park();
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

//! Backends: servers that send their own name and the address of their client. By TCP the first line is
//! `<name> <peer address>`, and the server echoes each further line as `<name> <line>`. By UDP the reply to a
//! datagram is such a first line followed by the datagram.
//!
//! A server is one thread of the test's process. It stops when it is dropped, and its port is free then.

mod task;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use crate::failure::OrPanic;
use crate::place::{PATIENCE, Place, listen};
use crate::probe::{self, Probe};
use task::{Phase, Sockets, Task};

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

    /// Serves UDP on a port of each of the place's addresses. A socket per address replies from the address
    /// that was asked.
    #[track_caller]
    pub fn serve_udp(&self, port: u16) -> Server {
        let bind = |ip: &_| self.udp_bind(SocketAddr::new(*ip, port));
        let sockets: io::Result<Vec<_>> = self.addresses().iter().map(bind).collect();
        let sockets = sockets.with_context(|| self.cannot_serve(port)).or_panic();
        Server::start(Sockets::Udp(sockets), self.name())
    }

    /// Serves UDP at one address, which need not be among those of the place.
    #[track_caller]
    pub fn serve_udp_at(&self, at: SocketAddr) -> Server {
        let socket = self.udp_bind(at);
        let socket = socket.with_context(|| self.cannot_serve(at.port())).or_panic();
        Server::start(Sockets::Udp(vec![socket]), self.name())
    }

    /// Serves TCP and UDP on a port.
    #[track_caller]
    pub fn serve(&self, port: u16) -> [Server; 2] {
        [self.serve_tcp(port), self.serve_udp(port)]
    }

    /// Serves TCP and UDP on a port, from a process of its own inside the place. The process lives until the
    /// world ends, even if the world outlives this process.
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
        // The process prints a line once it serves, and closes its output.
        let mut line = String::new();
        let result = child
            .stdout
            .take()
            .map(|mut out| io::Read::read_to_string(&mut out, &mut line));
        assert!(
            line.starts_with("serving"),
            "{}: {result:?}",
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
    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends the server by SIGKILL: the kernel closes its connections.
    #[track_caller]
    pub fn kill(mut self) {
        self.0
            .kill()
            .and_then(|()| self.0.wait())
            .context("ending a server")
            .or_panic();
    }
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

    /// The number of connections or datagrams that the server has answered.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Closes the listening socket; existing connections go on.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends the server and resets every connection.
    pub fn reset(mut self) {
        self.end(Phase::Reset);
    }

    /// Ends the server and closes every connection. Dropping does the same.
    pub fn stop(mut self) {
        self.end(Phase::Stopped);
    }

    fn end(&mut self, phase: Phase) {
        self.phase.send_replace(phase);
        if let Some(thread) = self.thread.take() {
            // The panic of the thread has been printed. A test that goes on notices it by missing answers.
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

/// `millrace-world serve`: serves TCP and UDP on a port, for ever.
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
        // The bind to a link-local address would need the link as well.
        if let Some(ip) = v4.or(v6.filter(|ip| !is_link_local(ip))) {
            sockets
                .push(UdpSocket::bind(SocketAddr::new(ip, port)).with_context(|| format!("binding {ip}"))?);
        }
    }
    let _udp = Server::start(Sockets::Udp(sockets), name);
    println!("serving {name} on port {port}");
    // The reader waits for the end of the output, so /dev/null replaces the pipe.
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .context("opening /dev/null")?;
    nix::unistd::dup2_stdout(null).context("closing the output")?;
    loop {
        std::thread::park();
    }
}

/// `millrace-world ask`: prints a server's answer by TCP.
pub fn ask(to: SocketAddr) -> Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let reply = probe::ask_by(socket, Probe::Tcp, to, PATIENCE).with_context(|| format!("asking {to}"))?;
    println!("{} {}", reply.backend, reply.peer);
    Ok(())
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

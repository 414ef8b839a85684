//! One question to a server, by a new socket: the name of the backend, and the client's address as the
//! backend sees it. The answer is a line `<backend> <peer address>`.

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::place::{PATIENCE, Place, connect, unspecified_like};

/// The kind of socket call. Each kind takes another path through the data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection.
    Tcp,
    /// A datagram by `sendto`.
    Udp,
    /// A datagram by `connect` and `send`.
    UdpConnected,
}

impl Probe {
    /// All kinds of probes.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::UdpConnected];

    pub(crate) fn socket_type(self) -> Type {
        match self {
            Self::Tcp => Type::STREAM,
            Self::Udp | Self::UdpConnected => Type::DGRAM,
        }
    }
}

/// A server's answer: its own name and the address of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The server's name.
    pub backend: String,
    /// The client's address as the server sees it.
    pub peer: SocketAddr,
}

impl Reply {
    /// Parses the first line of a server's output.
    pub fn parse(text: &str) -> io::Result<Self> {
        let line = text.lines().next().unwrap_or_default();
        let parsed = line.split_once(' ').and_then(|(backend, peer)| {
            Some(Self {
                backend: backend.to_owned(),
                peer: peer.parse().ok()?,
            })
        });
        parsed.ok_or_else(|| io::Error::other(format!("not a reply of a test server: {text:?}")))
    }
}

impl Place {
    /// Asks the server at `to`, within [`PATIENCE`].
    pub fn ask(&self, probe: Probe, to: SocketAddr) -> io::Result<Reply> {
        self.ask_within(probe, to, PATIENCE)
    }

    /// Asks the server at `to`; `TimedOut` or `WouldBlock` if no answer comes in time.
    pub fn ask_within(&self, probe: Probe, to: SocketAddr, within: Duration) -> io::Result<Reply> {
        ask_by(
            self.socket(Domain::for_address(to), probe.socket_type(), None)?,
            probe,
            to,
            within,
        )
    }

    /// Asks by a socket bound to a local address and port.
    pub fn ask_from(
        &self,
        probe: Probe,
        from: SocketAddr,
        to: SocketAddr,
        within: Duration,
    ) -> io::Result<Reply> {
        let socket = self.socket(Domain::for_address(to), probe.socket_type(), None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        ask_bound(socket, probe, to, within)
    }
}

/// Asks by a given socket.
pub(crate) fn ask_by(socket: Socket, probe: Probe, to: SocketAddr, within: Duration) -> io::Result<Reply> {
    if probe != Probe::Tcp {
        socket.bind(&unspecified_like(to).into())?;
    }
    ask_bound(socket, probe, to, within)
}

fn ask_bound(socket: Socket, probe: Probe, to: SocketAddr, within: Duration) -> io::Result<Reply> {
    if probe == Probe::Tcp {
        let stream = connect(socket, to, within)?;
        stream.set_read_timeout(Some(within))?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        // Reset instead of FIN: ten thousand connections closed by FIN would leave as many ports in
        // TIME_WAIT.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        return Reply::parse(&line);
    }
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(within))?;
    ask_by_udp(&socket, probe, to)
}

fn ask_by_udp(socket: &UdpSocket, probe: Probe, to: SocketAddr) -> io::Result<Reply> {
    let mut buffer = [0; 512];
    let length = if probe == Probe::UdpConnected {
        socket.connect(to)?;
        socket.send(b"?")?;
        socket.recv(&mut buffer)?
    } else {
        socket.send_to(b"?", to)?;
        let (length, from) = socket.recv_from(&mut buffer)?;
        // An answer from another address is an error: a resolver would discard it.
        if from != to {
            return Err(io::Error::other(format!("asked {to}, {from} replied")));
        }
        length
    };
    Reply::parse(&String::from_utf8_lossy(&buffer[..length]))
}

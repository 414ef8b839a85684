//! Step: a backend of a UDP client is removed. The client's next datagram goes to another backend.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Place, Reply};

use crate::console::{Console, time};
use crate::topology::{self, DNS, Listed, Topology};

const A_SECOND: Duration = Duration::from_secs(1);

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "A UDP client moves to a live backend",
        "UDP has no connections. A client does not notice the loss of its backend and keeps sending from the same \
         socket. Its next datagram reaches another backend.",
    );
    let places = topology.clients().map(|(place, kind)| (place.clone(), kind));
    for (place, kind) in places {
        // One place of each kind: their packets take different paths through the kernel.
        let connected = kind == "a node";
        let name = moved(console, topology, &place, kind, connected)?;
        topology.revive(&name)?;
    }
    Ok(())
}

/// Ends the backend of a socket that goes on sending; returns the backend's name.
fn moved(
    console: &mut Console,
    topology: &mut Topology,
    place: &Place,
    kind: &str,
    connected: bool,
) -> Result<String> {
    let socket = Client::open(place, connected)?;
    console.doing(format!("sending datagrams from {kind}"));
    let first = socket.ask()?;
    for _ in 0..10 {
        let next = socket.ask()?;
        ensure!(
            next == first,
            "the client of {first} moved to {next} without a change"
        );
    }
    console.doing(format!("ending {first}, which {kind} sends to"));
    topology.kill(&first)?;
    topology.list(&first, Listed::No)?;
    // From here on no datagram may be lost.
    topology.wait_programmed(&first)?;
    console.doing(format!(
        "sending the next datagram from {kind}, whose backend {first} is gone"
    ));
    let sent = Instant::now();
    let second = socket.ask().context("the datagram after the backend is gone")?;
    let taken = time(sent.elapsed());
    ensure!(second != first, "{first} is gone and still replies");
    let how = if connected {
        "a connected socket"
    } else {
        "a socket"
    };
    console.result(&format!(
        "{how} of {kind} uses {first}; {first} ends; the next datagram reaches {second} ({taken})"
    ));
    Ok(first)
}

/// A socket that sends one datagram after the other.
struct Client {
    socket: UdpSocket,
    connected: bool,
    to: SocketAddr,
}

impl Client {
    fn open(place: &Place, connected: bool) -> Result<Self> {
        let to = topology::address(DNS)?;
        let socket = place.udp_socket_for(to)?;
        if connected {
            socket.connect(to)?;
        }
        socket.set_read_timeout(Some(A_SECOND))?;
        Ok(Self {
            socket,
            connected,
            to,
        })
    }

    /// Sends one datagram; returns the name of the backend that replies.
    fn ask(&self) -> io::Result<String> {
        if self.connected {
            self.socket.send(b"?")?;
        } else {
            self.socket.send_to(b"?", self.to)?;
        }
        let mut buffer = [0; 512];
        let length = self.socket.recv(&mut buffer)?;
        Ok(Reply::parse(&String::from_utf8_lossy(&buffer[..length]))?.backend)
    }
}

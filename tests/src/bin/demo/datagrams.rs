//! Act: a backend of a UDP client is removed. The client's next datagram goes to another backend.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::{Answer, Place};

use crate::shop::{self, Listed, SHOP_UDP, Shop};
use crate::stage::{Stage, time};

const A_SECOND: Duration = Duration::from_secs(1);

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "A UDP client is moved to a live backend",
        "UDP knows no connections: a client cannot notice that its backend is gone, and just goes on sending from the \
         same socket. Its very next datagram has to reach another backend.",
    );
    let places = shop.askers().map(|(place, kind)| (place.clone(), kind));
    for (place, kind) in places {
        // One place of each kind: their packets take different paths through the kernel.
        let connected = kind == "a node";
        let name = moved(stage, shop, &place, kind, connected)?;
        shop.revive(&name)?;
    }
    Ok(())
}

/// Ends the backend of a socket that goes on sending; returns the backend's name.
fn moved(stage: &mut Stage, shop: &mut Shop, place: &Place, kind: &str, connected: bool) -> Result<String> {
    let socket = Client::open(place, connected)?;
    stage.doing(format!("sending datagrams from {kind}"));
    let first = socket.ask()?;
    for _ in 0..10 {
        let next = socket.ask()?;
        ensure!(
            next == first,
            "the client of {first} was moved to {next} for no reason"
        );
    }
    stage.doing(format!("ending {first}, which {kind} sends to"));
    shop.kill(&first)?;
    shop.list(&first, Listed::No)?;
    // From here on no datagram may be lost.
    shop.wait_programmed(&first)?;
    stage.doing(format!(
        "sending the next datagram from {kind}, whose backend {first} is gone"
    ));
    let sent = Instant::now();
    let second = socket.ask().context("the datagram after the backend is gone")?;
    let taken = time(sent.elapsed());
    ensure!(second != first, "{first} is gone and still answers");
    let how = if connected {
        "a connected socket"
    } else {
        "a socket"
    };
    stage.result(&format!(
        "{how} of {kind} has {first}; it goes; the next datagram reaches {second} ({taken})"
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
        let to = shop::address(SHOP_UDP)?;
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
        Ok(Answer::parse(&String::from_utf8_lossy(&buffer[..length]))?.backend)
    }
}

//! Exchanges of datagrams that go on for long enough to be streams.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Endpoint, Place, Pod, Probe, Reply, Server, Service, eventually, wait_for};

use crate::topology::{SECOND, SOON, Topology, at, of_family};

/// Exchanges of datagrams of each kind and family, about a hundred together.
const EXCHANGES: usize = 17;
const EXCHANGES_IP: [&str; 2] = ["10.96.3.20", "fd00:96::3:20"];
const EXCHANGES_PORT: u16 = 30_092;
/// How long a stream lives without a datagram (`nf_conntrack_udp_timeout_stream`).
const STREAM_LIFETIME: Duration = Duration::from_mins(3);
/// Longer than a tick, which is 2³⁰ ns.
const TICK: Duration = Duration::from_millis(1100);

/// A continued exchange of datagrams, and its first answer.
pub struct Exchange {
    what: String,
    socket: UdpSocket,
    to: SocketAddr,
    reply: Reply,
}

impl Exchange {
    #[track_caller]
    fn start(client: &Place, to: SocketAddr, what: &str) -> Self {
        let socket = client.udp_socket_for(to).expect("a socket");
        socket.set_read_timeout(Some(SECOND)).expect("to set");
        let what = format!("{what} to {to}");
        let reply = wait_for(&what, SOON, || ask_by(&socket, to));
        Self {
            what,
            socket,
            to,
            reply,
        }
    }

    /// Asserts that the same backend sees the same client and port as at first.
    #[track_caller]
    fn assert_same(&self, when: &str) {
        let reply = wait_for(&self.what, SOON, || ask_by(&self.socket, self.to));
        assert_eq!(reply, self.reply, "{when}: {}", self.what);
    }
}

/// Asks once more in an exchange.
fn ask_by(socket: &UdpSocket, to: SocketAddr) -> io::Result<Reply> {
    let mut buffer = [0; 512];
    socket.send_to(b"?", to)?;
    let (length, from) = socket.recv_from(&mut buffer)?;
    if from != to {
        return Err(io::Error::other(format!("asked {to}, {from} replied")));
    }
    Reply::parse(&String::from_utf8_lossy(&buffer[..length]))
}

/// Exchanges of datagrams that are streams, and their entries. A new flow may get another backend.
pub struct Exchanges {
    pub all: Vec<Exchange>,
    entries: BTreeSet<[u8; 40]>,
    _servers: Vec<Server>,
}

impl Exchanges {
    /// Continues exchanges of each kind for several ticks, and then adds another backend.
    #[track_caller]
    pub fn hold(topology: &Topology) -> Self {
        let backends = ["left", "right", "third"].map(|name| topology.node().add_pod(name));
        let mut servers: Vec<_> = backends.iter().map(|backend| backend.serve_udp(5400)).collect();
        servers.push(topology.outside.serve_udp(9200));
        let service = Service::new("exchanges")
            .cluster_ip(EXCHANGES_IP[0])
            .cluster_ip(EXCHANGES_IP[1])
            .udp("talk", 90, 5400)
            .node_port("talk", EXCHANGES_PORT);
        let slices = |pods: &[Pod]| service.slices(pods.iter().map(Endpoint::of));
        topology.world.apply_all(slices(&backends[..2]));
        topology.world.apply(&service);
        let mut all = Vec::new();
        for v4 in [true, false] {
            let cluster_ip = at(EXCHANGES_IP[usize::from(!v4)], 90);
            let outside = SocketAddr::new(of_family(&topology.outside, v4), 9200);
            let node_port = SocketAddr::new(of_family(topology.node(), v4), EXCHANGES_PORT);
            let kinds: [(&Place, SocketAddr, &str); 3] = [
                (&topology.pod, cluster_ip, "a pod's datagrams"),
                (&topology.pod, outside, "a pod's datagrams to the outside"),
                (&topology.outside, node_port, "datagrams from outside"),
            ];
            for (client, to, what) in kinds {
                all.extend((0..EXCHANGES).map(|_| Exchange::start(client, to, what)));
            }
        }
        for _ in 0..3 {
            thread::sleep(TICK);
            for exchange in &all {
                exchange.assert_same("at first");
            }
        }
        let entries: BTreeSet<_> = topology.node().table::<40, 64>("STREAMS").into_keys().collect();
        assert!(entries.len() >= all.len(), "{} entries", entries.len());
        topology.world.apply_all(slices(&backends));
        eventually("the third backend", 2 * SOON, || {
            let reply = topology
                .pod
                .ask_within(Probe::Udp, at(EXCHANGES_IP[0], 90), SECOND);
            reply.is_ok_and(|reply| reply.backend == "third")
        });
        Self {
            all,
            entries,
            _servers: servers,
        }
    }

    /// Has each exchange send before its lifetime ends, until `is_over` is set.
    pub fn keep_in_use(&self, is_over: &AtomicBool) {
        let mut spoken = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            thread::sleep(SECOND / 10);
            if spoken.elapsed() > STREAM_LIFETIME / 3 {
                for exchange in &self.all {
                    exchange.assert_same("beside the floods");
                }
                spoken = Instant::now();
            }
        }
    }

    /// Asserts that each exchange has its entries, its backend and its port.
    #[track_caller]
    pub fn assert_kept(&self, topology: &Topology) {
        let now = topology.node().table::<40, 64>("STREAMS");
        let lost = self.entries.iter().filter(|key| !now.contains_key(*key)).count();
        assert_eq!(lost, 0, "of {} entries of streams are lost", self.entries.len());
        for exchange in &self.all {
            exchange.assert_same("in the end");
        }
    }
}

//! Valid frames of every kind that the programs decide about: requests, replies, and ICMP errors about both.

use std::net::{IpAddr, SocketAddr};

use proxy_common::protocol;

use super::layout::Layout;
use super::sender::LINK_LOCAL;
use super::world::{
    BROADCASTS, Frontends, LOCAL, MAC, OTHER_NODE, OUTSIDE, POD, REMOTE, ROUTER, STRANGER, THIRD_NODE,
    THIRD_POD, TUNNEL, TUNNEL_PORT,
};
use super::{FROM_HOST, FROM_LOOPBACK, FROM_POD, FROM_UPLINK, TO_POD, TO_UPLINK};
use crate::frame::{frame, icmp_error};
use crate::node::{NODE, of_family};

/// A program's number, and the frame that it runs over.
type Run<'a> = dyn FnMut(usize, &[u8]) -> Vec<u8> + 'a;

pub struct Corpus {
    pub frames: Vec<Vec<u8>>,
    /// The frames that make the flows of the corpus, in order, with their programs.
    pub primers: Vec<(usize, Vec<u8>)>,
    /// The addresses that have a meaning in the tests, by family.
    pub addresses: [Vec<IpAddr>; 2],
}

impl Corpus {
    /// Runs valid requests over empty tables, and records their results.
    pub fn new(frontends: &Frontends, run: &mut Run<'_>) -> Self {
        let mut corpus = Self {
            frames: Vec::new(),
            primers: Vec::new(),
            addresses: addresses(frontends),
        };
        let mut services: Vec<_> = frontends.keys().copied().collect();
        services.sort_unstable();
        let mut port = 10_000;
        for (service, protocol) in services {
            let family = usize::from(service.is_ipv6());
            for (program, client) in [
                (FROM_POD, POD),
                (FROM_UPLINK, OUTSIDE),
                (FROM_UPLINK, OTHER_NODE),
                (FROM_HOST, NODE),
                (FROM_LOOPBACK, NODE),
            ] {
                let is_own = service.ip() == of_family(NODE, family);
                if (program == FROM_HOST && is_own) || (program == FROM_LOOPBACK && !is_own) {
                    continue;
                }
                port += 1;
                let client = SocketAddr::new(of_family(client, family), port);
                corpus.exchange(program, client, service, protocol, run);
            }
        }
        corpus.unrelated_errors();
        corpus.tunnelled();
        corpus.by_ipsec();
        for family in [0, 1] {
            corpus.masqueraded(family, run);
        }
        corpus
    }

    fn exchange(
        &mut self,
        program: usize,
        client: SocketAddr,
        service: SocketAddr,
        protocol: u8,
        run: &mut Run<'_>,
    ) {
        let (from, to) = (client.to_string(), service.to_string());
        let starts = if protocol == protocol::TCP { 2 } else { 1 };
        let request = frame(&from, &to, protocol, starts, b"hello");
        let sent = run(program, &request);
        self.primers.push((program, request.clone()));
        self.frames.push(request);
        self.frames.push(frame(&from, &to, protocol, 0x10, &[7; 33]));
        if client.port().is_multiple_of(16) {
            self.frames.push(frame(&from, &to, protocol, 0x10, &[7; 1600]));
        }
        let Ok(layout) = Layout::of(&sent) else {
            return;
        };
        let [near, far] = layout.sockets(&sent, 14);
        if !layout.has_ports() || far == service || near.ip() == service.ip() {
            return;
        }
        let router = of_family(ROUTER, usize::from(service.is_ipv6()));
        self.frames.push(too_big(router, near.ip(), &sent[14..]));
        self.frames.push(too_big(far.ip(), near.ip(), &sent[14..]));
        let reply = frame(&far.to_string(), &near.to_string(), protocol, 0x12, b"hello back");
        self.frames.push(reply.clone());
        for program in [FROM_POD, FROM_UPLINK, TO_POD, TO_UPLINK, FROM_HOST] {
            let received = run(program, &reply);
            if received != reply && Layout::of(&received).is_ok() {
                self.frames.push(too_big(router, service.ip(), &received[14..]));
                self.primers.push((program, reply));
                return;
            }
        }
    }

    /// The pod's packets to addresses outside the cluster, and the replies.
    fn masqueraded(&mut self, family: usize, run: &mut Run<'_>) {
        let [pod, outside, router] = [POD, OUTSIDE, ROUTER].map(|addresses| of_family(addresses, family));
        let (request, reply) = if family == 0 { (8, 0) } else { (128, 129) };
        let echo = |from, to, kind, id: u16| {
            let [high, low] = id.to_be_bytes();
            icmp_error(from, to, [kind, 0, 0, 0, high, low, 0, 1], b"abcdefgh")
        };
        let mut requests = vec![echo(pod, outside, request, 7)];
        for (protocol, starts) in [(protocol::TCP, 2), (protocol::UDP, 0), (protocol::SCTP, 1)] {
            let [from, to] = [(pod, 9000), (outside, 443)].map(|(ip, port)| SocketAddr::new(ip, port));
            requests.push(frame(
                &from.to_string(),
                &to.to_string(),
                protocol,
                starts,
                b"hello",
            ));
            self.frames.push(frame(
                &from.to_string(),
                &to.to_string(),
                protocol,
                0x10,
                &[7; 33],
            ));
            // The packet goes directly to the pod, without the node's address.
            let direct = frame(&to.to_string(), &from.to_string(), protocol, starts, b"hello");
            self.frames.push(direct);
        }
        for request in requests {
            let sent = run(TO_UPLINK, &request);
            self.primers.push((TO_UPLINK, request.clone()));
            self.frames.push(request);
            let Ok(layout) = Layout::of(&sent) else { continue };
            let [near, far] = layout.sockets(&sent, 14);
            self.frames.push(too_big(router, near.ip(), &sent[14..]));
            let reply = if layout.is_icmp() {
                let id = layout
                    .l4
                    .map_or(0, |l4| u16::from_be_bytes([sent[l4 + 4], sent[l4 + 5]]));
                echo(far.ip(), near.ip(), reply, id)
            } else {
                frame(
                    &far.to_string(),
                    &near.to_string(),
                    layout.protocol,
                    0x12,
                    b"hello back",
                )
            };
            let received = run(FROM_UPLINK, &reply);
            self.frames.push(too_big(pod, far.ip(), &received[14..]));
            self.primers.push((FROM_UPLINK, reply.clone()));
            self.frames.push(reply);
        }
    }

    /// Packets to the port of the tunnel, with inner frames of right and wrong pods.
    fn tunnelled(&mut self) {
        const INSIDE: [([&str; 2], [&str; 2]); 8] = [
            (REMOTE, LOCAL),
            (THIRD_POD, LOCAL),
            (REMOTE, POD),
            (THIRD_POD, TUNNEL),
            (POD, LOCAL),
            (OUTSIDE, LOCAL),
            (REMOTE, OUTSIDE),
            (OTHER_NODE, NODE),
        ];
        let between = |from: IpAddr, to: IpAddr, to_port: u16, payload: &[u8]| {
            let [from, to] = [(from, 40_000), (to, to_port)].map(|(ip, port)| SocketAddr::new(ip, port));
            frame(&from.to_string(), &to.to_string(), protocol::UDP, 0, payload)
        };
        for family in [0, 1] {
            for (sender, receiver) in INSIDE {
                for inner in [0, 1] {
                    let [source, to] = [sender, receiver].map(|addresses| of_family(addresses, inner));
                    let mut content = between(source, to, 9, b"inside");
                    if family == inner && sender == THIRD_POD {
                        // The inner frame enters by the tunnel's device after decapsulation.
                        self.frames.push(content.clone());
                    }
                    if source.is_ipv6() && receiver == POD {
                        // A VLAN tag, which no host expects there.
                        content.splice(12..12, [0x81, 0, 0, 5]);
                    }
                    let content = [&[8, 0, 0, 0, 0, 0, 1, 0], &content[..]].concat();
                    for from in [OTHER_NODE, THIRD_NODE, OUTSIDE, POD] {
                        for to in [NODE, OTHER_NODE, TUNNEL, LOCAL] {
                            let [from, to] = [from, to].map(|addresses| of_family(addresses, family));
                            self.frames.push(between(from, to, TUNNEL_PORT, &content));
                        }
                    }
                }
            }
        }
    }

    /// Packets of `IPsec` of another node and of a stranger, plain and in UDP.
    fn by_ipsec(&mut self) {
        for family in [0, 1] {
            for from in [OTHER_NODE, OUTSIDE] {
                let [from, to] = [from, NODE].map(|addresses| of_family(addresses, family));
                let [from, to] = [from, to].map(|ip| SocketAddr::new(ip, 4500).to_string());
                let packet = frame(&from, &to, protocol::UDP, 0, &[7; 40]);
                for kind in [50, 51] {
                    let mut protected = packet.clone();
                    protected[if family == 0 { 23 } else { 20 }] = kind;
                    self.frames.push(protected);
                }
                self.frames.push(packet);
            }
        }
    }

    /// Packets that belong to no service.
    fn unrelated_errors(&mut self) {
        for family in [0, 1] {
            for destination in self.addresses[family].clone() {
                for source in [POD, OUTSIDE, NODE].map(|source| of_family(source, family)) {
                    let head = if family == 0 { 8 } else { 128 };
                    let echo = icmp_error(source, destination, [head, 0, 0, 0, 0, 7, 0, 1], b"abcdefgh");
                    self.frames.push(echo);
                    for (protocol, _) in [(protocol::TCP, 0), (protocol::UDP, 0)] {
                        let [source, destination] =
                            [(source, 5000), (destination, 9)].map(|(ip, port)| SocketAddr::new(ip, port));
                        let unrelated =
                            frame(&source.to_string(), &destination.to_string(), protocol, 2, b"");
                        self.frames
                            .push(too_big(destination.ip(), source.ip(), &unrelated[14..]));
                        self.frames.push(unrelated);
                    }
                }
            }
        }
    }
}

fn addresses(frontends: &Frontends) -> [Vec<IpAddr>; 2] {
    let mut all: Vec<IpAddr> = frontends
        .iter()
        .flat_map(|((frontend, _), what)| what.backends.iter().chain([frontend]).map(SocketAddr::ip))
        .chain(
            [
                POD, OUTSIDE, OTHER_NODE, ROUTER, THIRD_NODE, THIRD_POD, TUNNEL, BROADCASTS,
            ]
            .concat()
            .iter()
            .map(|text| text.parse().unwrap()),
        )
        .collect();
    for text in [
        "10.96.77.77",
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "fd00:96::7777",
        "::",
        "::1",
        "ff02::1",
        "::ffff:10.96.0.1",
        "fe80::1",
        STRANGER,
    ] {
        all.push(text.parse().expect("an address"));
    }
    all.sort_unstable();
    all.dedup();
    let (v4, v6) = all.into_iter().partition(IpAddr::is_ipv4);
    [v4, v6]
}

/// An ARP message from one end to the other, a request or a reply.
pub fn arp(operation: u8, mac: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut frame = [[0xff; 6], MAC].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(from);
    frame.extend([0; 6]);
    frame.extend(to);
    frame.resize(60, 0);
    frame
}

/// A message of neighbour discovery or of multicast listeners (RFC 4861, RFC 3810). `from` selects its
/// source, which may be the pod's own address.
pub fn discovery(kind: u8, from: usize, to_group: bool) -> Vec<u8> {
    let own: IpAddr = LINK_LOCAL.into();
    let others =
        ["::", "fe80::1", "fe80::77", POD[1], LOCAL[1]].map(|text| text.parse().expect("an address"));
    let from = if from < others.len() { others[from] } else { own };
    let to = if to_group { "ff02::1" } else { "fe80::1" };
    icmp_error(
        from,
        to.parse().expect("an address"),
        [kind, 0, 0, 0, 0, 0, 0, 0],
        &[0; 24],
    )
}

/// Makes the ICMP error "fragmentation needed" or "packet too big".
fn too_big(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let head = if from.is_ipv4() {
        [3, 4, 0, 0, 0, 0, 5, 0]
    } else {
        [2, 0, 0, 0, 0, 0, 5, 0]
    };
    icmp_error(from, to, head, about)
}

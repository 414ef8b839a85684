//! The frames that the fuzz sends to tunnels: VXLAN of any sender, with any frame inside.

use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use harness::forge::{Ethernet, link, packet};

use super::frames::{BEYOND, Draw, Mac, Mark, NODE, NOWHERE, Reach, Sender, TUNNEL, tags};
use super::packets::{self, Transport, pick};

const SEGMENT: u32 = 1;

/// The destinations and the contents of datagrams for tunnels.
pub struct Tunnel {
    /// Destinations of datagrams for a tunnel. The first one of a family is used for honest datagrams.
    pub entrances: [Vec<SocketAddr>; 2],
    /// Pods, for which the tunnel's port number is an ordinary port.
    pub pods: Vec<IpAddr>,
    /// The hardware address of the node's end.
    pub end: Mac,
    /// Inner destinations: in the node's own pod ranges, and elsewhere.
    pub own: [Vec<SocketAddr>; 2],
    pub foreign: [Vec<SocketAddr>; 2],
    /// Inner sources in the other node's pod ranges.
    pub carried: [Vec<IpAddr>; 2],
}

impl Sender {
    /// A datagram from the link to the tunnel. It is admitted only from another node, with a packet of that
    /// node's pods for a pod of this node.
    pub(super) fn to_tunnel(&self, rng: &mut Rng, draw: &Draw, mark: Mark) -> (Reach, Vec<u8>) {
        let tunnel = &self.tunnel;
        let is_from_peer = draw.is_honest || rng.bool();
        let source = if is_from_peer {
            self.nodes[1][draw.family]
        } else {
            draw.source
        };
        let is_from_peer = self.nodes[1].contains(&source);
        let entrances = &tunnel.entrances[draw.family];
        let entrance = if draw.is_honest {
            entrances[0]
        } else {
            pick(rng, entrances)
        };
        let (inside, frame) = self.inside(rng, draw.is_honest, mark);
        let segment = if draw.is_honest || rng.bool() {
            SEGMENT
        } else {
            pick(rng, &[0, 2, 4096, 0xff_ffff])
        };
        let flags = if draw.is_honest || rng.u8(..4) != 0 {
            8
        } else {
            rng.u8(..)
        };
        let is_fragment = draw.family == 0 && !draw.is_honest && rng.u8(..8) == 0;
        let is_received = self.reach_of(&draw.ethernet) != NOWHERE && !entrance.ip().is_loopback();
        let is_admitted = is_received && is_from_peer && inside.is_some() && !is_fragment;
        let mut reach = NOWHERE;
        if is_admitted {
            reach |= TUNNEL;
            // The tunnel runs over IPv4.
            if draw.family == 0 && segment == SEGMENT && flags == 8 {
                reach |= inside.unwrap_or(NOWHERE);
            }
        }
        let mut content = link::vxlan(segment, &frame(reach));
        content[0] = flags;
        let mut outer = packet::udp(SocketAddr::new(source, rng.u16(1024..)), entrance, &content);
        if is_fragment {
            packets::as_first_fragment(&mut outer);
        }
        (reach, outer)
    }

    /// A datagram of a pod to the tunnel's port number. It is admitted only to addresses of pods, with any
    /// frame inside.
    pub(super) fn to_tunnel_of_pod(&self, rng: &mut Rng, draw: &Draw, mark: Mark) -> (Reach, Vec<u8>) {
        let entrances = &self.tunnel.entrances[draw.family];
        let entrance = if draw.is_honest {
            entrances[0]
        } else {
            pick(rng, entrances)
        };
        // The inner source is a pod of another node, so that a tunnel that received the frame would accept
        // it.
        let is_convincing = draw.is_honest || rng.bool();
        let (_, frame) = self.inside(rng, is_convincing, mark);
        let reach = self.reach(draw, entrance, Some(Transport::Udp)) & BEYOND;
        let content = link::vxlan(SEGMENT, &frame(reach));
        let from = draw.from(rng);
        (reach, packet::udp(from, entrance, &content))
    }

    /// A frame for the tunnel, made from a mark, and the places where it may arrive if it comes through the
    /// other node's tunnel. `None` if the tunnel carries no such frame.
    fn inside(
        &self,
        rng: &mut Rng,
        is_honest: bool,
        mark: Mark,
    ) -> (Option<Reach>, impl Fn(Reach) -> Vec<u8> + use<>) {
        let tunnel = &self.tunnel;
        let family = rng.usize(..2);
        let good = |rng: &mut Rng| is_honest || rng.u8(..4) != 0;
        let is_pods_source = good(rng);
        let sources = if is_pods_source {
            &tunnel.carried
        } else {
            &self.forged
        };
        let source = pick(rng, &sources[family]);
        let is_pods_source = tunnel.carried[family].contains(&source);
        let is_own = good(rng);
        let targets = if is_own { &tunnel.own } else { &tunnel.foreign };
        let to = pick(rng, &targets[family]);
        let mac = if good(rng) {
            tunnel.end
        } else {
            pick(rng, &self.macs)
        };
        let tags = if good(rng) { Vec::new() } else { tags(rng) };
        let is_ip = good(rng);
        let is_taken = is_pods_source && is_own && tags.is_empty() && is_ip;
        let ethernet = Ethernet {
            to: mac,
            from: [2; 6],
            tags,
        };
        let (transport, from) = (Transport::any(rng), SocketAddr::new(source, rng.u16(1024..)));
        let reach = match mac {
            mac if mac == tunnel.end => BEYOND | NODE,
            // The node itself replies to an echo request in a frame to a group; its reply reaches the pod.
            mac if mac[0] & 1 == 1 && matches!(transport, Transport::Echo) => BEYOND | NODE,
            mac if mac[0] & 1 == 1 => NODE,
            _ => NOWHERE,
        };
        let state = rng.clone();
        let frame = move |reach| {
            let packet = packets::whole(&mut state.clone(), transport, from, to, &mark.of(reach));
            if is_ip {
                ethernet.of_packet(&packet)
            } else {
                ethernet.of(link::ARP, &packet)
            }
        };
        (is_taken.then_some(reach), frame)
    }
}

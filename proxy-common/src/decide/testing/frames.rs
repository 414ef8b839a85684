//! Properties that hold for every frame.

use super::{Fake, ip};
use crate::decide::PacketContext;
use crate::decide::admission::Frame;
use crate::decide::egress::leaving_node;
use crate::decide::packet::{Decision, Entry, entering, leaving};
use crate::decide::sender::may_send;
use crate::maps::{ConfigFlags, Pod, PodLink};
use crate::packet::{ETHERNET_LEN, Headers, parse};
use crate::protocol;

/// Feeds a frame to the parser and to every decision, and checks the properties that hold for every frame.
pub fn check_frame(frame: &[u8]) {
    let mut fake = Fake::node();
    for (vip, backend) in [("10.96.0.1", "10.244.1.2"), ("fd00:96::1", "fd00:244::2")] {
        for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
            fake.service(vip, 80, protocol, &[(backend, 8080)]);
        }
    }
    fake.config.node_v6 = ip("fd00:50::11");
    let Some(ether_type) = frame.get(12..14) else {
        return;
    };
    let ether_type = u16::from_be_bytes([ether_type[0], ether_type[1]]);
    let Ok(headers) = parse(frame, ether_type, ETHERNET_LEN) else {
        return;
    };
    assert!(
        headers.l4 == 0 || (headers.l4 as usize) < frame.len(),
        "the transport header lies in the frame"
    );
    for entry in [Entry::Pod, Entry::Uplink, Entry::Host, Entry::Loopback] {
        let mut ctx = PacketContext::new(headers);
        let decision = entering(&fake, &mut ctx, frame, entry);
        check_translation(&fake, &headers, &ctx, decision);
        let mut ctx = PacketContext::new(headers);
        let _ = leaving(&fake, &mut ctx, frame);
    }
    fake.config.flags |= ConfigFlags::MASQUERADE_PODS;
    fake.own_pods.insert(headers.src, Pod::default());
    let mut ctx = PacketContext::new(headers);
    let decision = leaving_node(&fake, &mut ctx, frame);
    check_translation(&fake, &headers, &ctx, decision);
    let metadata = Frame {
        ether_type,
        vlan: Frame::UNTAGGED,
        is_for_other: false,
    };
    assert!(
        may_send(&fake, frame, metadata, 7, false),
        "an interface of another plugin"
    );
    fake.pod_links.insert(7, PodLink::default());
    for strict in [false, true] {
        let _ = may_send(&fake, frame, metadata, 7, strict);
    }
}

/// Checks the properties that hold for every translation.
fn check_translation(fake: &Fake, headers: &Headers, ctx: &PacketContext, decision: Decision) {
    if let Decision::Translate(_) = decision {
        let flow = ctx.flow;
        for (new, old) in [(flow.dst, headers.dst), (flow.src, headers.src)] {
            assert_eq!(new.is_v4(), old.is_v4(), "a translation stays in its family");
        }
        // For every decision, the reply must be translated back.
        let key = flow.reply_key(&ctx.key);
        let reply = fake.known_flow(&key).expect("an entry for the reply");
        assert_eq!((reply.src, reply.dst), (headers.dst, headers.src));
        assert_eq!((reply.sport, reply.dport), (ctx.headers.dport, ctx.headers.sport));
    }
}

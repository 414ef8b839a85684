//! Tests that the agent finds the objects in the kernel that kube-proxy leaves behind, and only those.
//!
//! The tests make tables and chains by the messages that `nft` would send, in a namespace that disappears
//! with the test's thread.

#[path = "support/skip.rs"]
mod skip;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use millrace::network::stale_rules::kube_proxy;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use skip::note_skip;

const NFTABLES: u16 = 10 << 8;
const NEW_TABLE: u16 = NFTABLES;
const NEW_CHAIN: u16 = NFTABLES | 3;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// The flags `NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE`.
const CREATE: u16 = 0x405;
const REQUEST: u16 = 1;
const IP: u8 = 2;
const IP6: u8 = 10;

fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[(u16, &str)]) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(resource.to_be_bytes());
    for (kind, text) in attributes {
        body.extend((4 + text.len() as u16 + 1).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(text.bytes().chain([0]));
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

/// Makes one object; the error is the kernel's error number.
fn make(kind: u16, family: u8, attributes: &[(u16, &str)]) -> Result<(), i32> {
    let socket: OwnedFd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .expect("a netlink socket");
    let batch = [
        message(BATCH_BEGIN, REQUEST, 0, 10, &[]),
        message(kind, CREATE, family, 0, attributes),
        message(BATCH_END, REQUEST, 0, 10, &[]),
    ]
    .concat();
    send(socket.as_raw_fd(), &batch, MsgFlags::empty()).expect("sending");
    let mut reply = [0; 1024];
    let length = recv(socket.as_raw_fd(), &mut reply, MsgFlags::empty()).expect("a reply");
    assert!(length >= 20, "{length} bytes");
    match i32::from_ne_bytes([reply[16], reply[17], reply[18], reply[19]]) {
        0 => Ok(()),
        error => Err(-error),
    }
}

fn table(family: u8, name: &str) -> Result<(), i32> {
    make(NEW_TABLE, family, &[(1, name)])
}

fn chain(family: u8, table: &str, name: &str) {
    make(NEW_CHAIN, family, &[(1, table), (3, name)]).expect("a chain");
}

fn found() -> Vec<(String, String)> {
    let problems = kube_proxy().expect("looking");
    problems
        .into_iter()
        .map(|problem| (problem.object, problem.message))
        .collect()
}

#[test]
fn stale_rules_of_kube_proxy_are_found_with_the_command_that_removes_them() {
    if !nix::unistd::geteuid().is_root() {
        return note_skip("needs root");
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a new namespace");
    assert_eq!(found(), []);
    if let Err(error) = table(IP, "filter") {
        assert_eq!(error, nix::errno::Errno::EINVAL as i32, "making a table");
        return note_skip("the kernel has no nftables");
    }
    table(IP, "nat").expect("a table");
    chain(IP, "nat", "MY-SERVICES");
    chain(IP, "filter", "KUBE-FIREWALL");
    assert_eq!(found(), [], "a kubelet's and other people's");

    table(IP6, "kube-proxy").expect("a table");
    let problems = found();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].0, "kube-proxy's table ip6 kube-proxy");
    assert!(
        problems[0]
            .1
            .ends_with("stop kube-proxy on this node first, then run `nft delete table ip6 kube-proxy`"),
        "{problems:?}"
    );
    chain(IP, "nat", "KUBE-SERVICES");
    let added = Command::new("ip")
        .args(["link", "add", "kube-ipvs0", "type", "veth"])
        .status();
    assert!(added.expect("ip").success());
    let objects: Vec<_> = found().into_iter().map(|(object, _)| object).collect();
    assert_eq!(
        objects,
        [
            "kube-proxy's table ip6 kube-proxy",
            "kube-proxy's chain KUBE-SERVICES of family ip",
            "kube-proxy's device kube-ipvs0"
        ]
    );
}

#[test]
fn chains_of_the_legacy_iptables_are_found_too() {
    if !nix::unistd::geteuid().is_root() {
        return note_skip("needs root");
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("a new namespace");
    let legacy = |program: &str, arguments: &str| {
        let output = Command::new(program).args(arguments.split(' ')).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !legacy("iptables-legacy", "-t nat -N MY-SERVICES") {
        return note_skip("no legacy iptables");
    }
    assert_eq!(found(), [], "other people's");
    assert!(legacy("iptables-legacy", "-t nat -N KUBE-SERVICES"));
    let objects: Vec<_> = found().into_iter().map(|(object, _)| object).collect();
    assert_eq!(
        objects,
        ["kube-proxy's chain KUBE-SERVICES in the legacy table nat of family ip"]
    );
    if legacy("ip6tables-legacy", "-t filter -N KUBE-SERVICES") {
        assert_eq!(found().len(), 2);
    }
}

//! What follows from the names of container and interface alone: the names on the node and both Ethernet addresses.
//!
//! So a repeated ADD gives the same result, and DEL finds everything without having been told. The names are hashed with
//! fixed keys, which makes them part of the interface between versions.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::config::Attachment;

/// How the names of interfaces on the node's side begin.
pub const PREFIX: &str = proxy_bpf::links::OWN_POD;
/// How the names of devices begin that limit what pods send; the rest is that of the interface.
pub const LIMITER_PREFIX: &str = "ml";
/// The same of their far ends.
const LIMITER_END_PREFIX: &str = "mk";

fn hash(what: u64, attachment: &Attachment) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x6d69_6c6c_7261_6365, what);
    hasher.write(attachment.container_id.as_bytes());
    hasher.write_u8(0);
    hasher.write(attachment.if_name.as_bytes());
    hasher.finish()
}

/// The name of the interface on the node's side.
pub fn host_interface(attachment: &Attachment) -> String {
    // 48 bits: among ten thousand pods two names collide once in 5 million nodes.
    format!("{PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// The name of the device that limits what the pod sends.
pub fn limiter(attachment: &Attachment) -> String {
    format!("{LIMITER_PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// The name of that device's far end.
pub fn limiter_end(attachment: &Attachment) -> String {
    format!("{LIMITER_END_PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// Whether an interface is part of a limiter, by its name.
pub fn is_of_limiter(interface: &str) -> bool {
    [LIMITER_PREFIX, LIMITER_END_PREFIX].iter().any(|prefix| {
        let digits = interface.strip_prefix(prefix).unwrap_or_default();
        digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The Ethernet address of the pod's side, unless another is asked for.
pub fn pod_mac(attachment: &Attachment) -> [u8; 6] {
    mac(hash(1, attachment))
}

/// The Ethernet address of the node's side.
pub fn host_mac(attachment: &Attachment) -> [u8; 6] {
    mac(hash(2, attachment))
}

/// Locally administered, of one station.
fn mac(hash: u64) -> [u8; 6] {
    let [first, rest @ ..] = hash.to_be_bytes();
    [first & 0xfc | 2, rest[0], rest[1], rest[2], rest[3], rest[4]]
}

/// As people write it.
pub fn mac_text(mac: &[u8]) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use proxy_bpf::links::InterfaceRole;

    use super::*;

    #[test]
    fn names_are_those_of_the_first_release() {
        let attachment = |id: &str, name: &str| Attachment {
            container_id: id.into(),
            if_name: name.into(),
        };
        let eth0 = attachment("c1", "eth0");
        assert_eq!(host_interface(&eth0).len(), 14);
        assert_eq!(host_interface(&eth0), "mrf874111cf6a8");
        assert_eq!(
            InterfaceRole::of_pod(&host_interface(&eth0)),
            InterfaceRole::OwnPod
        );
        assert_eq!(InterfaceRole::of_pod("mr-cafe"), InterfaceRole::Pod);
        assert_eq!(limiter(&eth0), "mlf874111cf6a8");
        assert_eq!(limiter_end(&eth0), "mkf874111cf6a8");
        assert_ne!(host_interface(&eth0), host_interface(&attachment("c1", "eth1")));
        assert_ne!(host_interface(&eth0), host_interface(&attachment("c1e", "th0")));
        for mac in [pod_mac(&eth0), host_mac(&eth0)] {
            assert_eq!(mac[0] & 3, 2);
        }
        assert_ne!(pod_mac(&eth0), host_mac(&eth0));
        assert_eq!(mac_text(&[2, 0, 0, 0, 0, 255]), "02:00:00:00:00:ff");
    }
}

//! Values that follow from the names of container and interface alone: the names on the node and both
//! Ethernet addresses.
//!
//! So a repeated ADD gives the same result, and DEL finds every object of the attachment without further
//! input. The names are hashed with fixed keys. A newer version must keep these keys: it has to find the
//! interfaces that an older version made.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::config::Attachment;

/// Prefix of the names of interfaces on the node's side.
pub const PREFIX: &str = proxy_bpf::links::OWN_POD;
/// Prefix of the names of the devices that limit packets from pods. The rest is that of the interface's name.
pub const LIMITER_PREFIX: &str = "ml";
/// Prefix of the names of the far ends of these devices.
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
    // 48 bits: with ten thousand pods on each node, two names collide on one node in 5 million.
    format!("{PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// The name of the device that limits packets from the pod.
pub fn limiter(attachment: &Attachment) -> String {
    format!("{LIMITER_PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// The name of the far end of that device.
pub fn limiter_end(attachment: &Attachment) -> String {
    format!("{LIMITER_END_PREFIX}{:012x}", hash(0, attachment) >> 16)
}

/// Whether an interface belongs to a limiter, by its name.
pub fn is_of_limiter(interface: &str) -> bool {
    [LIMITER_PREFIX, LIMITER_END_PREFIX].iter().any(|prefix| {
        let digits = interface.strip_prefix(prefix).unwrap_or_default();
        digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// The Ethernet address of the pod's side, unless the runtime asks for another one.
pub fn pod_mac(attachment: &Attachment) -> [u8; 6] {
    mac(hash(1, attachment))
}

/// The Ethernet address of the node's side.
pub fn host_mac(attachment: &Attachment) -> [u8; 6] {
    mac(hash(2, attachment))
}

/// A locally administered unicast address.
fn mac(hash: u64) -> [u8; 6] {
    let [first, rest @ ..] = hash.to_be_bytes();
    [first & 0xfc | 2, rest[0], rest[1], rest[2], rest[3], rest[4]]
}

/// The address as hexadecimal bytes with colons between them.
pub fn mac_text(mac: &[u8]) -> String {
    let bytes: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use proxy_bpf::links::InterfaceRole;

    use super::*;

    #[test]
    fn interface_names_match_the_first_release() {
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

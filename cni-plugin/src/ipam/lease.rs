//! The file of a lease: its name is the address, its contents name the owner.
//!
//! host-local writes the container, a line break of two bytes and the interface, and nothing after it. Very
//! old versions wrote the container alone. A crash may leave a file without contents.

use std::net::IpAddr;

use crate::config::Attachment;

/// The separator between container and interface.
pub const LINE_BREAK: &str = "\r\n";

/// The lease of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The leased address.
    pub address: IpAddr,
    /// The container's id; empty if the file has no contents.
    pub container_id: String,
    /// The interface's name; `None` in leases of very old versions.
    pub if_name: Option<String>,
}

impl Lease {
    /// Reads a lease; `None` if the name is no address, as with other files of the directory.
    pub fn read(name: &str, contents: &[u8]) -> Option<Self> {
        let address: IpAddr = name.parse().ok()?;
        let contents = String::from_utf8_lossy(contents);
        let mut lines = contents.trim().lines();
        let container_id = lines.next().unwrap_or_default().trim().to_owned();
        let if_name = lines.next().map(|name| name.trim().to_owned());
        Some(Self {
            address,
            container_id,
            if_name: if_name.filter(|name| !name.is_empty()),
        })
    }

    /// The contents of the file of an attachment's lease.
    pub fn contents(attachment: &Attachment) -> String {
        format!("{}{LINE_BREAK}{}", attachment.container_id, attachment.if_name)
    }

    /// Whether the lease names its container.
    pub fn is_readable(&self) -> bool {
        !self.container_id.is_empty()
    }

    /// Whether the lease belongs to an attachment. A lease without an interface belongs to all of its
    /// container.
    pub fn is_of(&self, attachment: &Attachment) -> bool {
        self.container_id == attachment.container_id
            && self
                .if_name
                .as_ref()
                .is_none_or(|if_name| *if_name == attachment.if_name)
    }

    /// The owner of the lease, for messages.
    pub fn owner(&self) -> String {
        match (&self.if_name, self.is_readable()) {
            (_, false) => "a lease that cannot be read".to_owned(),
            (Some(if_name), _) => format!("interface {if_name} of container {}", self.container_id),
            (None, _) => format!("container {}", self.container_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_written_and_read_as_host_local_does() {
        let attachment = Attachment {
            container_id: "c1".into(),
            if_name: "eth0".into(),
        };
        assert_eq!(Lease::contents(&attachment), "c1\r\neth0");
        for (contents, ours) in [
            ("c1\r\neth0", true),
            ("c1\neth0\n", true),
            ("c1", true),
            (" c1 ", true),
            ("c1\r\neth1", false),
            ("c10\r\neth0", false),
            ("", false),
        ] {
            let lease = Lease::read("10.0.0.1", contents.as_bytes()).unwrap();
            assert_eq!(lease.is_of(&attachment), ours, "{contents:?}");
        }
        assert!(!Lease::read("fd00::1", b"\0\xff").unwrap().is_of(&attachment));
        for other in ["lock", "last_reserved_ip.0", "millrace", "10.0.0"] {
            assert_eq!(Lease::read(other, b"c1"), None);
        }
    }
}

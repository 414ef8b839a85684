//! Ports and protocols of objects, validated once.

use super::problems::Findings;

/// A transport protocol that Services can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// The protocol TCP.
    Tcp,
    /// The protocol UDP.
    Udp,
    /// The protocol SCTP.
    Sctp,
}

impl Protocol {
    /// The protocol as Kubernetes writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// The IP protocol number of the protocol.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Reads `text`; an absent one means TCP. `field` (`spec.ports[0]`) is called only for a bad text.
    pub(super) fn read(
        text: Option<&str>,
        findings: &mut Findings,
        field: impl Fn() -> String,
    ) -> Option<Self> {
        match text {
            None | Some("" | "TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(other) => {
                findings.add(|| {
                    format!(
                        "{}.protocol: {other:?} is none of TCP, UDP, SCTP; the port is left out",
                        field()
                    )
                });
                None
            }
        }
    }
}

/// Reads a port number that must be there.
pub(super) fn read_port(
    port: Option<i64>,
    findings: &mut Findings,
    field: impl Fn() -> String,
) -> Option<u16> {
    let number = port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|&port| port != 0);
    if number.is_none() {
        findings.add(|| match port {
            Some(port) => format!(
                "{}.port: {port} is outside 1–65535; the port is left out",
                field()
            ),
            None => format!("{}.port: missing; the port is left out", field()),
        });
    }
    number
}

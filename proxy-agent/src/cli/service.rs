//! `millrace service list`: the programmed services, frontend by frontend.

use std::net::SocketAddr;

use clap::Subcommand;

use super::output::{self, OutputFormat};
use super::table::{Align, Cell, Table};
use super::text::{self, BAD, FAINT, WARNING};
use crate::control::{BackendState, Client, PendingUpdate, ServiceEntry};

/// `millrace service`
#[derive(Debug, Subcommand)]
pub enum ServiceVerb {
    /// List every frontend with its backends
    List,
}

/// Prints the programmed services.
pub fn run(format: OutputFormat, client: &Client, verb: &ServiceVerb) -> anyhow::Result<bool> {
    let ServiceVerb::List = verb;
    let services = client.services()?;
    output::print(format, &services, || render(&services))?;
    Ok(true)
}

/// The list as a table.
pub fn render(services: &[ServiceEntry]) -> String {
    if services.is_empty() {
        return "No services are programmed.\n".into();
    }
    let mut table = Table::new(&[
        ("NAMESPACE", Align::Left),
        ("SERVICE", Align::Left),
        ("KIND", Align::Left),
        ("FRONTEND", Align::Left),
        ("POLICY", Align::Left),
        ("AFFINITY", Align::Left),
        ("BACKENDS", Align::Left),
        ("", Align::Left),
    ]);
    for entry in services {
        let service = if entry.port.is_empty() {
            entry.name.clone()
        } else {
            format!("{}:{}", entry.name, entry.port)
        };
        let affinity = match entry.affinity_seconds {
            Some(seconds) => text::duration(seconds.into()).into(),
            None => Cell::styled(FAINT, "-"),
        };
        let addresses: Vec<_> = entry.backends.iter().map(|backend| backend.address).collect();
        table.row([
            entry.namespace.as_str().into(),
            service.into(),
            entry.kind.to_string().into(),
            format!(
                "{} {}",
                SocketAddr::new(entry.address, entry.port_number),
                entry.protocol
            )
            .into(),
            entry.policy.to_string().into(),
            affinity,
            backends(entry),
            last(entry, &addresses),
        ]);
    }
    table.to_string()
}

/// The addresses of backends, or the reason why the row differs from the plan.
fn last(entry: &ServiceEntry, addresses: &[SocketAddr]) -> Cell {
    let reason = match entry.update {
        None => return Cell::styled(FAINT, text::few(addresses, 3)),
        Some(PendingUpdate::Waiting) => "update waits",
        Some(PendingUpdate::NoRoom) => "no room for the update, see millrace status",
    };
    if addresses.is_empty() {
        return Cell::styled(WARNING, reason);
    }
    Cell::styled(WARNING, format!("{} ({reason})", text::few(addresses, 3)))
}

fn backends(entry: &ServiceEntry) -> Cell {
    let active = entry
        .backends
        .iter()
        .filter(|backend| backend.state == BackendState::Active)
        .count() as u64;
    let terminating = entry.backends.len() as u64 - active;
    match (active, terminating) {
        (0, 0) => Cell::styled(BAD, "none"),
        (active, 0) => text::grouped(active).into(),
        (0, terminating) => Cell::styled(WARNING, format!("{} terminating", text::grouped(terminating))),
        (active, terminating) => format!(
            "{}, {} terminating",
            text::grouped(active),
            text::grouped(terminating)
        )
        .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{BackendEntry, Protocol, ServiceKind, TrafficPolicy};

    fn backend(address: &str, state: BackendState) -> BackendEntry {
        BackendEntry {
            address: address.parse().unwrap(),
            node: None,
            state,
        }
    }

    #[test]
    fn a_row_for_each_frontend() {
        use BackendState::{Active, Terminating};
        let entry = |name: &str, port: &str, address: &str, backends| ServiceEntry {
            namespace: "shop".into(),
            name: name.into(),
            port: port.into(),
            protocol: Protocol::Tcp,
            kind: ServiceKind::ClusterIp,
            address: address.parse().unwrap(),
            port_number: 80,
            policy: TrafficPolicy::Cluster,
            affinity_seconds: None,
            backends,
            update: None,
        };
        let many = (1..=5)
            .map(|host| backend(&format!("10.244.1.{host}:8080"), Active))
            .collect();
        let services = [
            ServiceEntry {
                affinity_seconds: Some(10_800),
                ..entry(
                    "cart",
                    "http",
                    "10.96.0.10",
                    vec![backend("10.244.1.5:8080", Active)],
                )
            },
            entry(
                "cart",
                "http",
                "fd00:96::a",
                vec![
                    backend("[fd00:10::5]:8080", Active),
                    backend("[fd00:10::6]:8080", Terminating),
                ],
            ),
            entry("search", "", "10.96.0.11", vec![]),
            entry(
                "till",
                "",
                "10.96.0.12",
                vec![backend("10.244.1.5:1", Terminating)],
            ),
            entry("web", "https", "10.96.0.13", many),
            ServiceEntry {
                update: Some(PendingUpdate::Waiting),
                ..entry("wiki", "", "10.96.0.14", vec![backend("10.244.1.9:80", Active)])
            },
            ServiceEntry {
                update: Some(PendingUpdate::NoRoom),
                ..entry("zoo", "", "10.96.0.15", vec![])
            },
        ];
        assert_eq!(
            anstream::adapter::strip_str(&render(&services)).to_string(),
            "\
NAMESPACE  SERVICE    KIND       FRONTEND             POLICY   AFFINITY  BACKENDS
shop       cart:http  ClusterIP  10.96.0.10:80 TCP    Cluster  3 hours   1                 10.244.1.5:8080
shop       cart:http  ClusterIP  [fd00:96::a]:80 TCP  Cluster  -         1, 1 terminating  [fd00:10::5]:8080, [fd00:10::6]:8080
shop       search     ClusterIP  10.96.0.11:80 TCP    Cluster  -         none
shop       till       ClusterIP  10.96.0.12:80 TCP    Cluster  -         1 terminating     10.244.1.5:1
shop       web:https  ClusterIP  10.96.0.13:80 TCP    Cluster  -         5                 10.244.1.1:8080, 10.244.1.2:8080, 10.244.1.3:8080 and 2 more
shop       wiki       ClusterIP  10.96.0.14:80 TCP    Cluster  -         1                 10.244.1.9:80 (update waits)
shop       zoo        ClusterIP  10.96.0.15:80 TCP    Cluster  -         none              no room for the update, see millrace status
"
        );
    }

    #[test]
    fn nothing_is_said_in_words() {
        assert_eq!(render(&[]), "No services are programmed.\n");
    }
}

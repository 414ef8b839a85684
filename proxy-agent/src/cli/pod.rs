//! `millrace pod list`: the pods that the CNI plugin gave an interface to.

use clap::Subcommand;

use super::output::{self, OutputFormat};
use super::table::{Align, Cell, Table};
use super::text::{self, FAINT};
use crate::control::{Client, HostPortEntry, PodEntry};

/// `millrace pod`
#[derive(Debug, Subcommand)]
pub enum PodVerb {
    /// List every pod with its interface
    List,
}

/// Prints the pods of this node.
pub fn run(format: OutputFormat, client: &Client, verb: &PodVerb) -> anyhow::Result<bool> {
    let PodVerb::List = verb;
    let pods = client.pods()?;
    output::print(format, &pods, || render(&pods))?;
    Ok(true)
}

/// The list as a table.
pub fn render(pods: &[PodEntry]) -> String {
    if pods.is_empty() {
        return "No pods have an interface from Millrace.\n".into();
    }
    let mut table = Table::new(&[
        ("NAMESPACE", Align::Left),
        ("POD", Align::Left),
        ("INTERFACE", Align::Left),
        ("ADDRESSES", Align::Left),
        ("MTU", Align::Right),
        ("LIMITS", Align::Left),
        ("HOST PORTS", Align::Left),
    ]);
    for pod in pods {
        let known = |name: &Option<String>| match name {
            Some(name) => name.as_str().into(),
            None => Cell::styled(FAINT, "-"),
        };
        let name = match &pod.name {
            Some(name) => name.as_str().into(),
            None => Cell::styled(FAINT, format!("container {}", shortened(&pod.container_id))),
        };
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        table.row([
            known(&pod.namespace),
            name,
            format!("{} at {}", pod.if_name, pod.host_interface).into(),
            addresses.join(", ").into(),
            pod.mtu.to_string().into(),
            limits(pod),
            host_ports(&pod.host_ports),
        ]);
    }
    table.to_string()
}

/// The first twelve characters of a container's id, as runtimes print it.
pub fn shortened(container_id: &str) -> String {
    container_id.chars().take(12).collect()
}

fn limits(pod: &PodEntry) -> Cell {
    let limits = [("in", pod.ingress_bandwidth), ("out", pod.egress_bandwidth)];
    let limited: Vec<_> = limits
        .iter()
        .filter_map(|(direction, rate)| Some(format!("{direction} {}", text::bit_rate((*rate)?))))
        .collect();
    if limited.is_empty() {
        Cell::styled(FAINT, "-")
    } else {
        limited.join(", ").into()
    }
}

fn host_ports(ports: &[HostPortEntry]) -> Cell {
    if ports.is_empty() {
        return Cell::styled(FAINT, "-");
    }
    let text = |port: &HostPortEntry| {
        let HostPortEntry {
            host_ip,
            host_port,
            container_port,
            protocol,
        } = port;
        let from = match host_ip {
            Some(address) => std::net::SocketAddr::new(*address, *host_port).to_string(),
            None => host_port.to_string(),
        };
        format!("{from}→{container_port} {protocol}")
    };
    let texts: Vec<_> = ports.iter().map(text).collect();
    text::few(&texts, 3).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Protocol;

    #[test]
    fn a_row_for_each_pod() {
        let mut cart = PodEntry {
            name: Some("cart-1".into()),
            egress_bandwidth: Some(1_500_000),
            ..PodEntry::example()
        };
        cart.host_ports.push(HostPortEntry {
            host_ip: Some("2001:db8::1".parse().unwrap()),
            host_port: 53,
            container_port: 53,
            protocol: Protocol::Udp,
        });
        let nameless = PodEntry {
            namespace: None,
            name: None,
            container_id: "0123456789abcdef".into(),
            addresses: vec!["10.244.1.3".parse().unwrap()],
            ingress_bandwidth: None,
            egress_bandwidth: None,
            host_ports: vec![],
            ..cart.clone()
        };
        assert_eq!(
            anstream::adapter::strip_str(&render(&[cart, nameless])).to_string(),
            "\
NAMESPACE  POD                     INTERFACE               ADDRESSES               MTU  LIMITS                        HOST PORTS
shop       cart-1                  eth0 at mrf874111cf6a8  10.244.1.2, fd00:1::2  1450  in 10 Mbit/s, out 1.5 Mbit/s  80→8080 TCP, [2001:db8::1]:53→53 UDP
-          container 0123456789ab  eth0 at mrf874111cf6a8  10.244.1.3             1450  -                             -
"
        );
        assert_eq!(render(&[]), "No pods have an interface from Millrace.\n");
    }
}

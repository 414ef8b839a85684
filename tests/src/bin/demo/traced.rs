//! Step: `millrace trace` predicts the path of a packet, and a real packet takes that path.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use harness::{Pod, Reply};

use crate::console::Console;
use crate::topology::{self, DNS, Topology};

/// The first source port, and the number of ports that are compared.
const SPORT: u16 = 40_001;
const PORTS: u16 = 20;
const PATIENCE: Duration = Duration::from_secs(2);

pub fn run(console: &mut Console, topology: &mut Topology) -> Result<()> {
    console.step(
        "A trace predicts the path of a packet",
        "`millrace trace` runs the kernel's own program on a test packet and prints each step. The demo then sends real \
         packets and compares their backends.",
    );
    let line = trace(topology, SPORT);
    console.doing(format!("running millrace {}", line.join(" ")));
    let printed = topology::millrace(topology.client.node(), &as_strs(&line))?;
    console.command(&format!("millrace {}", line.join(" ")), &printed);
    let reached = compare(console, topology, SPORT)?;
    console.result(&format!(
        "a real datagram from port {SPORT} reaches {} on {}, {}, as predicted",
        reached.name(),
        reached.node().name(),
        reached.ip()
    ));
    for sport in SPORT + 1..SPORT + PORTS {
        compare(console, topology, sport)?;
    }
    console.result(&format!(
        "the same from {} other ports: each prediction is right",
        PORTS - 1
    ));
    Ok(())
}

fn trace(topology: &Topology, sport: u16) -> Vec<String> {
    let (from, sport) = (topology.client.ip().to_string(), sport.to_string());
    let verb = [
        "trace", "--from", &from, "--to", DNS, "--proto", "udp", "--sport", &sport,
    ];
    verb.map(str::to_owned).into()
}

fn as_strs(verb: &[String]) -> Vec<&str> {
    verb.iter().map(String::as_str).collect()
}

/// Traces a datagram from this port and sends it; returns the pod that both lead to.
fn compare<'a>(console: &mut Console, topology: &'a Topology, sport: u16) -> Result<&'a Pod> {
    console.doing(format!("tracing a datagram from port {sport}"));
    let predicted = predicted(&topology.client.node().cli(&as_strs(&trace(topology, sport)))?)?;
    let pod = topology
        .at(predicted)
        .with_context(|| format!("trace names {predicted}, which is no backend"))?;
    console.doing(format!("sending a datagram from port {sport}"));
    let real = send(&topology.client, sport)?;
    ensure!(
        real == pod.name(),
        "trace predicts {}, the real datagram reached {real}",
        pod.name()
    );
    Ok(pod)
}

/// The only backend that the trace names.
fn predicted(reply: &serde_json::Value) -> Result<SocketAddr> {
    ensure!(reply["verdict"] == "forward", "the trace is {reply}");
    let backends = reply["backends"].as_array().map_or(&[] as &[_], Vec::as_slice);
    let [backend] = backends else {
        bail!("trace of one packet names {} backends: {reply}", backends.len());
    };
    let address = backend["address"].as_str().unwrap_or_default();
    address
        .parse()
        .with_context(|| format!("trace names a backend `{address}`"))
}

/// Sends one datagram from this port; returns the name of the backend that replies.
fn send(client: &Pod, sport: u16) -> Result<String> {
    let socket = client.udp_bind(SocketAddr::new(IpAddr::from(client.ip()), sport))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(b"?", DNS)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context("no reply")?;
    Ok(Reply::parse(&String::from_utf8_lossy(&buffer[..length]))?.backend)
}

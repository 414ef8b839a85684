//! Act: `millrace trace` predicts the path of a packet, and a real packet takes that path.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use harness::{Answer, Pod};

use crate::shop::{self, SHOP_UDP, Shop};
use crate::stage::Stage;

/// The first source port, and the number of ports that are compared.
const SPORT: u16 = 40_001;
const PORTS: u16 = 20;
const PATIENCE: Duration = Duration::from_secs(2);

pub fn play(stage: &mut Stage, shop: &mut Shop) -> Result<()> {
    stage.act(
        "Where would this packet go?",
        "`millrace trace` lets the live program in the kernel decide about a packet that nobody sends, and tells each step. \
         Such an answer is worth something only if real packets go the same way, so they are sent, too.",
    );
    let line = trace(shop, SPORT);
    stage.doing(format!("running millrace {}", line.join(" ")));
    let printed = shop::millrace(shop.client.node(), &as_strs(&line))?;
    stage.command(&format!("millrace {}", line.join(" ")), &printed);
    let reached = compare(stage, shop, SPORT)?;
    stage.result(&format!(
        "a real datagram from port {SPORT} reaches {} on {}, {}, as foreseen",
        reached.name(),
        reached.node().name(),
        reached.ip()
    ));
    for sport in SPORT + 1..SPORT + PORTS {
        compare(stage, shop, sport)?;
    }
    stage.result(&format!(
        "the same from {} other ports: foreseen each time",
        PORTS - 1
    ));
    Ok(())
}

fn trace(shop: &Shop, sport: u16) -> Vec<String> {
    let (from, sport) = (shop.client.ip().to_string(), sport.to_string());
    let verb = [
        "trace", "--from", &from, "--to", SHOP_UDP, "--proto", "udp", "--sport", &sport,
    ];
    verb.map(str::to_owned).into()
}

fn as_strs(verb: &[String]) -> Vec<&str> {
    verb.iter().map(String::as_str).collect()
}

/// Traces a datagram from this port and sends it; returns the pod that both lead to.
fn compare<'a>(stage: &mut Stage, shop: &'a Shop, sport: u16) -> Result<&'a Pod> {
    stage.doing(format!("tracing a datagram from port {sport}"));
    let foreseen = foreseen(&shop.client.node().cli(&as_strs(&trace(shop, sport)))?)?;
    let pod = shop
        .at(foreseen)
        .with_context(|| format!("trace names {foreseen}, which is no backend"))?;
    stage.doing(format!("sending a datagram from port {sport}"));
    let real = send(&shop.client, sport)?;
    ensure!(
        real == pod.name(),
        "trace foresees {}, the real datagram reached {real}",
        pod.name()
    );
    Ok(pod)
}

/// The only backend that the trace names.
fn foreseen(reply: &serde_json::Value) -> Result<SocketAddr> {
    ensure!(reply["verdict"] == "forward", "trace says {reply}");
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
    socket.send_to(b"?", SHOP_UDP)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context("no answer")?;
    Ok(Answer::parse(&String::from_utf8_lossy(&buffer[..length]))?.backend)
}

//! Latency within a pod's limit: a request and its reply while the pod sends at its limit, by one flow and by
//! many.
//!
//! The request passes the same limit as the bulk traffic, so it waits in the same queue. Runtimes ask for
//! bursts of hundreds of megabytes, and so do both contenders here.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::json;

use super::chain::Sandbox;
use super::site::{Contender, Site, inside, missing};
use crate::Effort;
use crate::figures::{Figure, Figures};
use crate::quantiles::quantile;

const RATES: [(&str, u64); 2] = [("10M", 10_000_000), ("100M", 100_000_000)];
const FLOWS: [usize; 2] = [1, 128];
/// The size of a burst, in bits.
const BURST: u64 = 2_147_483_647;
/// The pause between requests.
const PAUSE: Duration = Duration::from_millis(5);
/// How long bulk flows before the measurement begins.
const WARM_UP: Duration = Duration::from_secs(2);

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    if let Some(reason) = missing() {
        figures.skip("cni.shaped", &reason);
        return Ok(());
    }
    let site = Site::new()?;
    for (label, rate) in RATES {
        let capability_args = json!({"bandwidth": {
            "ingressRate": rate, "ingressBurst": BURST, "egressRate": rate, "egressBurst": BURST,
        }});
        let mut pods = Vec::new();
        for contender in Contender::BOTH {
            let pod = site.sandbox(&format!("{}-{label}", contender.name()))?;
            let add = || site.chain(contender).add(&pod, &capability_args);
            site.node(contender).enter(add)?;
            pods.push(pod);
        }
        for flows in FLOWS {
            let mut latency: [Vec<f64>; 2] = Default::default();
            let mut carried: [Vec<f64>; 2] = Default::default();
            for round in 0..effort.pick(2, 6) {
                for contender in Contender::in_round(round) {
                    let of = contender as usize;
                    let (p50, bits) = under_load(&site, contender, &pods[of], flows, effort.pick(2, 4))?;
                    latency[of].push(p50);
                    #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^52")]
                    carried[of].push(bits / rate as f64);
                }
            }
            let [ours, stock] = latency;
            let ratios: Vec<f64> = ours
                .iter()
                .zip(&stock)
                .map(|(ours, stock)| ours / stock)
                .collect();
            let name = format!("cni.shaped.{label}.request-response");
            figures.add(Figure::new(&name, flows, "ms", &stock).of("stock"));
            figures.add(Figure::new(&name, flows, "ms", &ours).ratio("stock", &ratios));
            figures.add(Figure::new(format!("{name}.ratio"), flows, "of stock", &ratios).limit(1.0));
            let name = format!("cni.shaped.{label}.payload");
            figures.add(Figure::new(&name, flows, "of the rate", &carried[1]).of("stock"));
            figures.add(Figure::new(&name, flows, "of the rate", &carried[0]));
        }
    }
    Ok(())
}

/// The median of requests from the pod while it sends by `flows` flows, in milliseconds, and the bits per
/// second of those flows.
fn under_load(
    site: &Site,
    contender: Contender,
    pod: &Sandbox,
    flows: usize,
    seconds: u64,
) -> Result<(f64, f64)> {
    let node = site.node(contender);
    let listener = node.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let to = (node.ip(), listener.local_addr()?.port());
    let connect = || -> Result<(TcpStream, TcpStream)> {
        let inner = inside(pod, || Ok(TcpStream::connect(to)?))?;
        let (outer, _) = listener.accept()?;
        Ok((inner, outer))
    };
    let (client, server) = connect()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    let bulk: Vec<_> = (0..flows).map(|_| connect()).collect::<Result<_>>()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = [0];
            while (&server).read_exact(&mut byte).is_ok() && (&server).write_all(&byte).is_ok() {}
        });
        let receivers: Vec<_> = bulk
            .iter()
            .map(|(inner, outer)| {
                scope.spawn(move || {
                    let full = vec![0; 64 << 10];
                    while (&*inner).write_all(&full).is_ok() {}
                });
                let done = &done;
                scope.spawn(move || {
                    let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
                    let begin = Instant::now() + WARM_UP;
                    while !done.load(Ordering::Relaxed) {
                        let Ok(more) = (&*outer).read(&mut buffer) else {
                            break;
                        };
                        if Instant::now() > begin {
                            bytes += more;
                        }
                    }
                    #[expect(clippy::cast_precision_loss, reason = "less than 2^52 bytes")]
                    let bits = bytes as f64 * 8.0;
                    bits / begin.elapsed().as_secs_f64()
                })
            })
            .collect();
        let measured = requests(&client, Duration::from_secs(seconds));
        done.store(true, Ordering::Relaxed);
        for (inner, outer) in &bulk {
            let _ = inner.shutdown(std::net::Shutdown::Both);
            let _ = outer.shutdown(std::net::Shutdown::Both);
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        let mut bits = 0.0;
        for receiver in receivers {
            bits += receiver.join().map_err(|_| anyhow!("a thread panicked"))?;
        }
        Ok((measured?, bits))
    })
}

fn requests(client: &TcpStream, lasting: Duration) -> Result<f64> {
    thread::sleep(WARM_UP);
    let end = Instant::now() + lasting;
    let mut samples = Vec::new();
    let mut byte = [1];
    while Instant::now() < end || samples.is_empty() {
        let begin = Instant::now();
        (&*client).write_all(&byte)?;
        (&*client).read_exact(&mut byte)?;
        samples.push(begin.elapsed().as_secs_f64() * 1e3);
        // Without the pause, requests with fast replies would be sent more often and count for more.
        thread::sleep(PAUSE);
    }
    Ok(quantile(&samples, 0.5))
}

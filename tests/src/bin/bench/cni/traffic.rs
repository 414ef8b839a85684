//! The cost of packets between two pods of a node: a request and its reply, and bulk. Millrace is compared
//! with the bridge and with a bare routed pair of veth links without any program. Millrace is measured twice:
//! through the node's stack, which is the default, and by redirects past it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use harness::{Pod, World};
use serde_json::{Value, json};

use super::chain::Sandbox;
use super::site::{Contender, Site, inside, missing};
use crate::Effort;
use crate::cpu;
use crate::figures::{Figure, Figures};
use crate::quantiles::quantile;

/// Millrace's two modes, and then the contenders that they are compared with.
const NAMES: [&str; 4] = ["millrace", "millrace, redirect", "stock", "routed"];
const OURS: [usize; 2] = [0, 1];
const OTHERS: [usize; 2] = [2, 3];

/// The samples of each contender, by its index in [`NAMES`].
type Samples = [Vec<f64>; NAMES.len()];

/// Two ends that can exchange packets.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    if let Some(reason) = missing() {
        figures.skip("cni.traffic", &reason);
        return Ok(());
    }
    let (site, redirecting) = (Site::new()?, Site::configured("hostRouting: redirect\n")?);
    let mut pairs = vec![
        plugged(&site, Contender::Millrace)?,
        plugged(&redirecting, Contender::Millrace)?,
        plugged(&site, Contender::Stock)?,
    ];
    let bare = World::with_nodes(1);
    let pods = [bare.node(1).add_pod("one"), bare.node(1).add_pod("two")];
    pairs.push(routed(&pods)?);
    let (mut latency, mut bulk) = (Samples::default(), Samples::default());
    for round in 0..effort.pick(4, 12) {
        let mut order = [0, 1, 2, 3];
        if round % 2 == 1 {
            order.reverse();
        }
        for which in order {
            latency[which].push(request_response(&pairs[which], effort.pick(2_000, 10_000))?);
        }
        for which in order {
            bulk[which].push(throughput(&pairs[which], effort.pick(200, 500))?);
        }
    }
    report(figures, "cni.traffic.request-response", "µs", &latency, false);
    report(figures, "cni.traffic.bulk", "Gbit/s", &bulk, true);
    Ok(())
}

fn report(figures: &mut Figures, name: &str, unit: &'static str, samples: &Samples, more_is_better: bool) {
    for other in OTHERS {
        figures.add(Figure::new(name, 1, unit, &samples[other]).of(NAMES[other]));
    }
    for own in OURS {
        // A ratio of costs: less is better for both quantities.
        let cost = |other: usize| -> Vec<f64> {
            let pairs = samples[own].iter().zip(&samples[other]);
            pairs
                .map(|(ours, theirs)| {
                    if more_is_better {
                        theirs / ours
                    } else {
                        ours / theirs
                    }
                })
                .collect()
        };
        let mut ours = Figure::new(name, 1, unit, &samples[own]).of(NAMES[own]);
        for other in OTHERS {
            ours = ours.ratio(NAMES[other], &cost(other));
        }
        figures.add(ours);
        for other in OTHERS {
            let unit = if other == OTHERS[0] {
                "of stock"
            } else {
                "of routed"
            };
            let mut cost = Figure::new(format!("{name}.cost"), 1, unit, &cost(other)).of(NAMES[own]);
            if other == OTHERS[0] {
                cost = cost.limit(1.0);
            }
            figures.add(cost);
        }
    }
}

fn plugged(site: &Site, contender: Contender) -> Result<Pair> {
    let sandboxes = ["one", "two"].map(|name| site.sandbox(&format!("{}-{name}", contender.name())));
    let [one, two] = sandboxes;
    let (one, two) = (one?, two?);
    let add = |sandbox: &Sandbox| -> Result<IpAddr> {
        let result: Value = site.chain(contender).add(sandbox, &json!({}))?;
        let address = result["ips"][0]["address"].as_str().unwrap_or_default();
        let address = address.split('/').next().unwrap_or_default();
        address.parse().context("the pod's address")
    };
    let address = site.node(contender).enter(|| {
        add(&one)?;
        add(&two)
    })?;
    let listener = inside(&two, || Ok(TcpListener::bind((address, 0))?))?;
    let to = listener.local_addr()?;
    let client = inside(&one, || Ok(TcpStream::connect(to)?))?;
    pair(client, &listener)
}

fn routed([one, two]: &[Pod; 2]) -> Result<Pair> {
    let listener = two.tcp_listen(7000)?;
    pair(
        one.tcp_connect(SocketAddr::new(two.ip().into(), 7000))?,
        &listener,
    )
}

fn pair(client: TcpStream, listener: &TcpListener) -> Result<Pair> {
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(Duration::from_secs(10)))?;
    }
    Ok(Pair { client, server })
}

/// The median round-trip time of one byte, in microseconds; both ends run on one CPU.
fn request_response(pair: &Pair, count: usize) -> Result<f64> {
    let samples = thread::scope(|scope| -> Result<Vec<f64>> {
        let server = scope.spawn(|| -> Result<()> {
            cpu::bind_this_thread()?;
            let mut byte = [0];
            for _ in 0..count {
                (&pair.server).read_exact(&mut byte)?;
                (&pair.server).write_all(&byte)?;
            }
            Ok(())
        });
        let samples = cpu::beside(|| {
            let (mut samples, mut byte) = (Vec::with_capacity(count), [1]);
            for _ in 0..count {
                let begin = Instant::now();
                (&pair.client).write_all(&byte)?;
                (&pair.client).read_exact(&mut byte)?;
                samples.push(begin.elapsed().as_secs_f64() * 1e6);
            }
            Ok(samples)
        })?;
        server.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok(samples)
    })?;
    Ok(quantile(&samples, 0.5))
}

/// The throughput of one flow, in Gbit/s.
fn throughput(pair: &Pair, megabytes: usize) -> Result<f64> {
    let total = megabytes << 20;
    let chunk = vec![0; 256 << 10];
    let begin = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| -> Result<()> {
            for _ in 0..total / chunk.len() {
                (&pair.client).write_all(&chunk)?;
            }
            Ok(())
        });
        let mut buffer = vec![0; 256 << 10];
        let mut received = 0;
        while received < total {
            received += (&pair.server).read(&mut buffer)?;
        }
        sender.join().map_err(|_| anyhow!("a thread panicked"))?
    })?;
    #[expect(clippy::cast_precision_loss, reason = "some hundred megabytes")]
    Ok(total as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
}

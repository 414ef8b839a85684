//! Pods that come and go: how long ADD and DEL take, one at a time and fifty at once.
//!
//! A pod of kind `plain` asks for nothing, a pod of kind `full` for a host port and limits in both
//! directions. The kernel's removal of the interface, with everything attached to it, takes most of the time
//! of DEL. So that removal is also measured alone, on interfaces that ADD made in the same way.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use serde_json::{Value, json};

use super::chain::Sandbox;
use super::site::{Contender, Site, missing};
use crate::Effort;
use crate::figures::{Figure, Figures};
use crate::quantiles::quantile;

/// Pods that containerd and kubelet start at once in the worst case.
const AT_ONCE: usize = 50;

pub fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    if let Some(reason) = missing() {
        figures.skip("cni.churn", &reason);
        return Ok(());
    }
    let site = Site::new()?;
    let sandboxes: Vec<[Sandbox; 2]> = (0..AT_ONCE)
        .map(|number| {
            Ok([
                site.sandbox(&format!("a{number}"))?,
                site.sandbox(&format!("b{number}"))?,
            ])
        })
        .collect::<Result<_>>()?;
    for (kind, capability_args) in [
        ("plain", no_capability_args as fn(usize) -> Value),
        ("full", all_capability_args),
    ] {
        let alone = Setting {
            name: format!("alone.{kind}"),
            capability_args,
            at_once: 1,
            repeat: effort.pick(3, 5),
        };
        alone.measure(figures, &site, &sandboxes, effort.pick(4, 10))?;
        let crowd = Setting {
            name: format!("{AT_ONCE}-at-once.{kind}"),
            capability_args,
            at_once: AT_ONCE,
            repeat: 1,
        };
        crowd.measure(figures, &site, &sandboxes, effort.pick(2, 6))?;
    }
    beyond_the_kernel(figures, &site, &sandboxes, effort.pick(10, 40))
}

fn no_capability_args(_: usize) -> Value {
    json!({})
}

fn all_capability_args(number: usize) -> Value {
    json!({
        "portMappings": [{"hostPort": 20_000 + number, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {
            "ingressRate": 100_000_000, "ingressBurst": 8_000_000,
            "egressRate": 100_000_000, "egressBurst": 8_000_000,
        },
    })
}

struct Setting {
    name: String,
    capability_args: fn(usize) -> Value,
    at_once: usize,
    repeat: usize,
}

/// The times of one contender in a round, in milliseconds.
#[derive(Default)]
struct Round {
    adds: Vec<f64>,
    dels: Vec<f64>,
}

impl Setting {
    fn measure(
        &self,
        figures: &mut Figures,
        site: &Site,
        sandboxes: &[[Sandbox; 2]],
        rounds: usize,
    ) -> Result<()> {
        let mut medians: [[Vec<f64>; 2]; 2] = Default::default();
        // The first round creates bridges and chains, and is not counted.
        for round in 0..=rounds {
            for contender in Contender::in_round(round) {
                let taken = self.round(site, contender, sandboxes)?;
                if round > 0 {
                    let of = &mut medians[contender as usize];
                    of[0].push(quantile(&taken.adds, 0.5));
                    of[1].push(quantile(&taken.dels, 0.5));
                }
            }
        }
        let [ours, stock] = medians;
        for ((verb, limit), (ours, stock)) in [("add", 0.1), ("del", 0.5)]
            .into_iter()
            .zip(ours.iter().zip(&stock))
        {
            let name = format!("cni.churn.{verb}.{}", self.name);
            let ratios: Vec<f64> = ours.iter().zip(stock).map(|(ours, stock)| ours / stock).collect();
            figures.add(Figure::new(&name, self.at_once, "ms", stock).of("stock"));
            let ours = Figure::new(&name, self.at_once, "ms", ours);
            figures.add(ours.ratio("stock", &ratios));
            let ratio = Figure::new(format!("{name}.ratio"), self.at_once, "of stock", &ratios);
            figures.add(ratio.limit(limit));
        }
        Ok(())
    }

    fn round(&self, site: &Site, contender: Contender, sandboxes: &[[Sandbox; 2]]) -> Result<Round> {
        let mut taken = Round::default();
        for _ in 0..self.repeat {
            let each = |number: usize| -> Result<(Duration, Value)> {
                let sandbox = &sandboxes[number][contender as usize];
                let begin = Instant::now();
                let result = site
                    .chain(contender)
                    .add(sandbox, &(self.capability_args)(number))?;
                Ok((begin.elapsed(), result))
            };
            let added = self.all_at_once(site, contender, each)?;
            let each = |number: usize| -> Result<Duration> {
                let sandbox = &sandboxes[number][contender as usize];
                let begin = Instant::now();
                let result = &added[number].1;
                site.chain(contender)
                    .del(sandbox, &(self.capability_args)(number), result)?;
                Ok(begin.elapsed())
            };
            let deleted = self.all_at_once(site, contender, each)?;
            taken
                .adds
                .extend(added.iter().map(|(took, _)| milliseconds(*took)));
            taken.dels.extend(deleted.into_iter().map(milliseconds));
        }
        Ok(taken)
    }

    /// Runs `each` for all pods that start at once, on the contender's node.
    fn all_at_once<T: Send>(
        &self,
        site: &Site,
        contender: Contender,
        each: impl Fn(usize) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        site.node(contender).enter(|| {
            thread::scope(|scope| {
                let each = &each;
                let threads: Vec<_> = (0..self.at_once)
                    .map(|number| scope.spawn(move || each(number)))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
                    .collect()
            })
        })
    }
}

/// The time of DEL beyond the removal of the interface.
fn beyond_the_kernel(
    figures: &mut Figures,
    site: &Site,
    sandboxes: &[[Sandbox; 2]],
    repeat: usize,
) -> Result<()> {
    let (capability_args, sandbox) = (json!({}), &sandboxes[0][0]);
    let chain = site.chain(Contender::Millrace);
    let (mut whole, mut kernels, mut own) = (Vec::new(), Vec::new(), Vec::new());
    site.node(Contender::Millrace).enter(|| -> Result<()> {
        for _ in 0..repeat {
            let result = chain.add(sandbox, &capability_args)?;
            let begin = Instant::now();
            chain.del(sandbox, &capability_args, &result)?;
            let del = milliseconds(begin.elapsed());
            let result = chain.add(sandbox, &capability_args)?;
            let interface = result["interfaces"][0]["name"]
                .as_str()
                .context("no interface in the result")?;
            let mut netlink = cni_plugin::netlink::NetlinkSocket::open()?;
            let found = cni_plugin::netlink::link::find(&mut netlink, interface)?;
            let index = found.context("no interface on the node")?.index;
            let begin = Instant::now();
            cni_plugin::netlink::link::remove(&mut netlink, index)?;
            let kernel = milliseconds(begin.elapsed());
            chain.del(sandbox, &capability_args, &result)?;
            whole.push(del);
            kernels.push(kernel);
            own.push(del - kernel);
        }
        Ok(())
    })?;
    figures.add(Figure::new("cni.churn.del.whole", 1, "ms", &whole));
    figures.add(Figure::new("cni.churn.del.kernel", 1, "ms", &kernels).of("kernel"));
    figures.add(Figure::new("cni.churn.del.own", 1, "ms", &own).limit(2.0));
    Ok(())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

//! `packets`: the cost of a packet on each path, in the order of [`Scenario`].
//!
//! Each contender is a process of its own ([`subject`]) with a world of two nodes and real agents. Its
//! sockets are outside of the agents' cgroup, so all packets take the packet path. The contenders measure one
//! after the other in rounds of alternating order, and a ratio is formed within a round. With `--against
//! FILE` a second build of the agent is the other contender. Without it, the figures of each path are
//! compared with those of the path between two pods.

mod scenarios;
mod subject;

use std::path::Path;

use anyhow::{Context as _, Result};

pub use subject::serve;

use crate::figures::{Figure, Figures};
use crate::{Effort, Quantity};
use scenarios::{Kind, Scenario};
use subject::Subject;

/// In the order in which they are measured.
pub const QUANTITIES: [Quantity; 1] = [Quantity {
    name: "packets",
    measure,
}];

/// The other contender's name.
const OTHER: &str = "against";

fn measure(figures: &mut Figures, effort: &Effort) -> Result<()> {
    let ours = Subject::start(None)?;
    let other = effort
        .against
        .as_deref()
        .map(|program| Subject::start(Some(program)));
    let mut subjects = vec![ours];
    subjects.extend(other.transpose()?);
    for kind in Kind::ALL {
        let mut samples = vec![vec![Vec::new(); Scenario::ALL.len()]; subjects.len()];
        for round in 0..effort.pick(4, 12) {
            let mut order: Vec<_> = (0..Scenario::ALL.len())
                .flat_map(|scenario| (0..subjects.len()).map(move |subject| (scenario, subject)))
                .collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for (scenario, subject) in order {
                let value = subjects[subject]
                    .measure(Scenario::ALL[scenario], kind, effort.pick(500, 3_000))
                    .with_context(|| format!("{} of {}", kind.name(), Scenario::ALL[scenario].name()))?;
                samples[subject][scenario].push(value);
            }
        }
        report(figures, kind, &samples);
    }
    Ok(())
}

fn report(figures: &mut Figures, kind: Kind, samples: &[Vec<Vec<f64>>]) {
    for (index, scenario) in Scenario::ALL.into_iter().enumerate() {
        let name = format!("packets.{}.{}", kind.name(), scenario.name());
        let ours = &samples[0][index];
        let base = match samples.get(1) {
            Some(other) => {
                figures.add(Figure::new(name.clone(), 1, kind.unit(), &other[index]).of(OTHER));
                &other[index]
            }
            None => &samples[0][0],
        };
        let ratios: Vec<_> = ours.iter().zip(base).map(|(ours, base)| ours / base).collect();
        let (to, unit) = match samples.get(1) {
            Some(_) => (OTHER, "of the other build"),
            None => (Scenario::ALL[0].name(), "of pod to pod"),
        };
        figures.add(Figure::new(name.clone(), 1, kind.unit(), ours).ratio(to, &ratios));
        figures.add(Figure::new(format!("{name}.ratio"), 1, unit, &ratios));
    }
}

/// The argument that makes the benchmark's program run as a subject.
pub const SUBJECT: &str = "--subject";

/// Checks that a file of the command line exists. The error names the file.
pub fn existing(path: &Path) -> Result<()> {
    std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(())
}

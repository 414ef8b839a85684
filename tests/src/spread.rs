//! The spread of new connections over backends, and whether chance explains it: Pearson's chi-squared test
//! against the uniform distribution.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use socket2::Domain;
use statrs::distribution::{ChiSquared, ContinuousCDF};

use crate::place::{PATIENCE, Place};
use crate::probe::{Probe, ask_by};

/// The number of sockets that are requested at a time.
const BATCH: usize = 256;

/// A spread less probable than this counts as uneven. Chance alone fails one test in a thousand.
const SIGNIFICANT: f64 = 0.001;

/// The outcomes of many questions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// Answers per backend.
    pub replies: BTreeMap<String, usize>,
    /// Failures per error text.
    pub failures: BTreeMap<String, usize>,
}

impl Spread {
    /// Panics unless exactly these backends answered, all questions were answered, and the spread may be
    /// uniform (p > 0.001).
    #[track_caller]
    pub fn assert_uniform(&self, backends: &[&str]) {
        assert!(
            self.failures.is_empty(),
            "failures: {:?}, replies: {:?}",
            self.failures,
            self.replies
        );
        let mut expected = backends.to_vec();
        expected.sort_unstable();
        let replied: Vec<_> = self.replies.keys().map(String::as_str).collect();
        assert_eq!(
            replied, expected,
            "other backends replied than expected: {:?}",
            self.replies
        );
        let p = uniform_p_value(self.replies.values().copied());
        assert!(p > SIGNIFICANT, "not uniform (p = {p:.6}): {:?}", self.replies);
    }

    /// Whether chance makes counts this uneven at most once in a thousand times.
    fn looks_uneven(&self) -> bool {
        uniform_p_value(self.replies.values().copied()) <= SIGNIFICANT
    }

    /// The names of the backends that answered.
    pub fn backends(&self) -> Vec<&str> {
        self.replies.keys().map(String::as_str).collect()
    }
}

/// Asks `count` times, each time by a new socket from a new port.
pub fn spread(place: &Place, probe: Probe, to: SocketAddr, count: usize) -> Spread {
    let mut spread = Spread::default();
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH);
        left -= batch;
        let sockets = match place.sockets(Domain::for_address(to), probe.socket_type(), None, batch) {
            Ok(sockets) => sockets,
            Err(error) => {
                *spread.failures.entry(error.to_string()).or_default() += batch;
                continue;
            }
        };
        for socket in sockets {
            match ask_by(socket, probe, to, PATIENCE) {
                Ok(reply) => *spread.replies.entry(reply.backend).or_default() += 1,
                Err(error) => *spread.failures.entry(error.to_string()).or_default() += 1,
            }
        }
    }
    spread
}

/// Asks `count` times, and panics unless exactly these backends answered evenly. A spread that looks uneven,
/// as chance makes one in a thousand, gets a second try.
#[track_caller]
pub fn assert_even(place: &Place, probe: Probe, to: SocketAddr, count: usize, backends: &[&str]) {
    let mut seen = spread(place, probe, to, count);
    if seen.looks_uneven() {
        seen = spread(place, probe, to, count);
    }
    seen.assert_uniform(backends);
}

/// The probability that a uniform choice is at least as uneven as these counts.
pub fn uniform_p_value(counts: impl IntoIterator<Item = usize>) -> f64 {
    let counts: Vec<f64> = counts
        .into_iter()
        .filter_map(|n| u32::try_from(n).ok())
        .map(f64::from)
        .collect();
    let Some(freedom) = u32::try_from(counts.len())
        .ok()
        .filter(|cells| *cells > 1)
        .map(|cells| cells - 1)
    else {
        return 1.0;
    };
    let expected = counts.iter().sum::<f64>() / f64::from(freedom + 1);
    let statistic: f64 = counts.iter().map(|n| (n - expected).powi(2) / expected).sum();
    match ChiSquared::new(freedom.into()) {
        Ok(distribution) => distribution.sf(statistic),
        Err(error) => panic!("chi-squared with {freedom} degrees of freedom: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::uniform_p_value;

    #[test]
    fn p_values_agree_with_published_tables() {
        // The 0.05 quantile of one degree of freedom is 3.841, that of four is 9.488.
        let near = |counts: &[usize], p: f64| (uniform_p_value(counts.iter().copied()) - p).abs() < 0.001;
        assert!(near(&[5000, 5000], 1.0));
        assert!(near(&[5098, 4902], 0.05), "statistic 3.8416");
        assert!(uniform_p_value([100, 0, 0]) < 1e-9);
        assert!((uniform_p_value([7]) - 1.0).abs() < f64::EPSILON);
    }
}

//! The bandwidth limits of a pod, from its annotations `kubernetes.io/ingress-bandwidth` and
//! `…/egress-bandwidth`.
//!
//! They hold a quantity of Kubernetes (`apimachinery/pkg/api/resource`), in bits per second. The kubelet
//! hands them to the runtime when the pod is made. The agent reads them later too, so that they can change
//! while the pod runs. Values that make no sense are reported and count as absent.

use super::problems::Findings;
use crate::source::wire;

/// The slowest and the fastest limit, in bits per second (`pkg/util/bandwidth` of Kubernetes).
const RATES: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The limits of a pod, in bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// The limit of traffic to the pod.
    pub ingress: Option<u64>,
    /// The limit of traffic from the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    pub(super) fn read(metadata: &wire::Metadata, findings: &mut Findings) -> Self {
        let Some(annotations) = &metadata.annotations else {
            return Self::default();
        };
        let mut read = |direction: &str, text: Option<&str>| {
            let text = text?;
            let rate = quantity(text).filter(|rate| RATES.contains(rate));
            if rate.is_none() {
                findings.add(|| {
                    format!(
                        "metadata.annotations[kubernetes.io/{direction}-bandwidth]: {text:?} is no rate between 1k and 1P; \
                         the pod is not limited by it"
                    )
                });
            }
            rate
        };
        Self {
            ingress: read("ingress", annotations.ingress_bandwidth.as_deref()),
            egress: read("egress", annotations.egress_bandwidth.as_deref()),
        }
    }

    /// Whether no limit is set.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads a quantity, rounded up to a whole number.
fn quantity(text: &str) -> Option<u64> {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned.find(|c| !is_digit(c)).unwrap_or(unsigned.len());
    let (digits, suffix) = unsigned.split_at(end);
    let number: f64 = digits.parse().ok()?;
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1_024_f64,
        "Mi" => 1_024_f64.powi(2),
        "Gi" => 1_024_f64.powi(3),
        "Ti" => 1_024_f64.powi(4),
        "Pi" => 1_024_f64.powi(5),
        "Ei" => 1_024_f64.powi(6),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?.parse::<i8>().ok()?;
            10_f64.powi(power.into())
        }
    };
    let whole = (number * factor).ceil();
    // A cast saturates at the type's bounds, which no limit reaches.
    #[expect(clippy::cast_sign_loss, reason = "it has no sign")]
    (whole.is_finite()).then_some(whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, value) in [
            ("10M", 10_000_000),
            ("1.5M", 1_500_000),
            ("1k", 1_000),
            ("1Ki", 1_024),
            ("2Gi", 2 << 30),
            ("1000", 1_000),
            ("1e6", 1_000_000),
            ("1E3", 1_000),
            ("+1P", 1_000_000_000_000_000),
            ("1500m", 2),
            (".5G", 500_000_000),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for bad in [
            "", "M", "10MB", "ten", "-1M", "1 M", "1.2.3k", "1e", "0x10", "1mi",
        ] {
            assert_eq!(quantity(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_reported_and_counts_as_absent() {
        let read = |annotations: serde_json::Value| {
            let metadata = json!({"name": "a", "annotations": annotations});
            let metadata: wire::Metadata = serde_json::from_value(metadata).expect("metadata");
            let mut findings = Findings::default();
            let bandwidth = Bandwidth::read(&metadata, &mut findings);
            (
                bandwidth.ingress,
                bandwidth.egress,
                findings.into_messages().len(),
            )
        };
        let both = json!({"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1k"});
        assert_eq!(read(both), (Some(10_000_000), Some(1_000), 0));
        let bad = json!({"kubernetes.io/ingress-bandwidth": "999", "kubernetes.io/egress-bandwidth": "2P"});
        assert_eq!(read(bad), (None, None, 2));
        assert_eq!(read(json!({"other": "10M"})), (None, None, 0));
    }
}

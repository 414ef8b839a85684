//! The page, in the text format that kube-proxy shows (Prometheus, version 0.0.4).
//!
//! The library writes `OpenMetrics`, where the name of a counter's family lacks the `_total` that its series
//! have. A reader without content negotiation expects the older format, where a family has the name of its
//! series. This module also writes the numbers of buckets as Go does, since queries select them by that text.

use std::fmt::Write as _;

use prometheus_client::encoding::text::encode_registry;
use prometheus_client::registry::Registry;

/// The content type of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Writes all families of a registry.
pub fn page(registry: &Registry) -> String {
    let mut text = String::new();
    if let Err(error) = encode_registry(&mut text, registry) {
        tracing::warn!(%error, "metrics cannot be shown");
    }
    translate(&text)
}

fn translate(text: &str) -> String {
    let mut page = String::with_capacity(text.len() + 1024);
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            let kind = lines
                .peek()
                .and_then(|line| line.strip_prefix("# TYPE ")?.rsplit_once(' '))
                .map_or("untyped", |(_, kind)| kind);
            let total = if kind == "counter" { "_total" } else { "" };
            let _ = writeln!(page, "# HELP {name}{total} {help}\n# TYPE {name}{total} {kind}");
        } else if line.starts_with('#') {
            // The TYPE line is already on the page, and no reader uses the UNIT line.
        } else {
            page.push_str(&bucket(line));
            page.push('\n');
        }
    }
    page
}

/// Writes the bucket of a line, if it has one, without a useless fraction.
fn bucket(line: &str) -> String {
    match line.split_once("le=\"") {
        Some((before, after)) => match after.split_once('"') {
            Some((bound, rest)) => {
                let bound = bound.strip_suffix(".0").unwrap_or(bound);
                format!("{before}le=\"{bound}\"{rest}")
            }
            None => line.to_owned(),
        },
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_called_like_their_series() {
        let open = "# HELP a_b Some.\n# TYPE a_b counter\na_b_total{x=\"y\"} 1\n# HELP c Other.\n# TYPE c gauge\n# UNIT c seconds\nc 1.0\n";
        assert_eq!(
            translate(open),
            "# HELP a_b_total Some.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 1\n# HELP c Other.\n# TYPE c gauge\nc 1.0\n"
        );
    }

    #[test]
    fn buckets_are_written_as_go_writes_them() {
        for (line, expected) in [
            ("a_bucket{le=\"1.0\"} 1", "a_bucket{le=\"1\"} 1"),
            (
                "a_bucket{le=\"0.25\",x=\"y\"} 1",
                "a_bucket{le=\"0.25\",x=\"y\"} 1",
            ),
            ("a_bucket{le=\"+Inf\"} 1", "a_bucket{le=\"+Inf\"} 1"),
        ] {
            assert_eq!(bucket(line), expected);
        }
    }
}

//! Checks the page as a reader does (`promtool check metrics`), and the families that users of kube-proxy
//! rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Metrics, Round};
use crate::cluster::Family;
use crate::http::Use;

/// Makes a page on which every family has a series.
fn page() -> String {
    let metrics = Metrics::default();
    let old = &metrics.kube_proxy;
    old.queued(1_700_000_000.5);
    let round = |full| Round {
        took: Duration::from_millis(3),
        full,
    };
    old.done(round(true), 1_700_000_001.5);
    old.done(round(false), 1_700_000_002.5);
    old.programmed(Family::V4, 0.3);
    old.changes(2, 3);
    old.pending(1, 0);
    old.no_local_endpoints("internal", Family::V4, 1);
    old.probes().healthz("200");
    old.probes().healthz("503");
    old.probes().livez("200");
    old.requests("10.96.0.1:443", "GET", Some(200), 3);
    old.requests("10.96.0.1:443", "GET", None, 1);
    let own = &metrics.own;
    own.applied(Duration::from_micros(300));
    own.map("flows", 5, 10);
    own.map("slots", 5, 10);
    own.reason("new_flow", 3, 300);
    own.served(4, 5);
    own.written(6, 0);
    own.status(true, 0);
    own.port("health", &Use::default());
    own.restored("route");
    metrics.page()
}

/// One family as a reader parses it.
#[derive(Debug, Default)]
struct Seen {
    kind: String,
    series: Vec<(String, f64)>,
}

/// Parses a page, and panics where a reader would report an error.
fn check(page: &str) -> BTreeMap<String, Seen> {
    let mut families = BTreeMap::<String, Seen>::new();
    let mut current = String::new();
    let mut series = BTreeSet::new();
    for line in page.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(!help.trim().is_empty(), "no help text: {line}");
            assert!(
                families.insert(name.to_owned(), Seen::default()).is_none(),
                "twice: {line}"
            );
            name.clone_into(&mut current);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert_eq!(name, current, "TYPE does not follow its HELP");
            kind.clone_into(&mut families.get_mut(name).expect("a HELP").kind);
        } else {
            let (id, value) = line.rsplit_once(' ').expect("a series and a value");
            assert!(series.insert(id.to_owned()), "twice: {id}");
            let name = id.split('{').next().unwrap();
            let seen = families.get_mut(&current).expect("a family");
            let base = match seen.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .unwrap_or_else(|| panic!("{name} in a histogram")),
                _ => name,
            };
            assert_eq!(base, current, "a series outside of its family");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            seen.series.push((id.to_owned(), value));
        }
    }
    for (name, seen) in &families {
        lint(name, seen);
    }
    families
}

/// Checks the rules of the linter for a family.
fn lint(name: &str, seen: &Seen) {
    assert!(
        name.chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
        "{name}"
    );
    // kube-proxy breaks the rule with this name.
    let misnamed = name == "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    assert_eq!(
        name.ends_with("_total"),
        seen.kind == "counter" || misnamed,
        "{name} is a {}",
        seen.kind
    );
    for unit in [
        "milliseconds",
        "microseconds",
        "minutes",
        "kilobytes",
        "_ms",
        "_kb",
    ] {
        assert!(!name.contains(unit), "{name} is not in base units");
    }
    match seen.kind.as_str() {
        "counter" | "gauge" => {}
        "histogram" => cumulative(name, seen),
        kind => panic!("{name} is a {kind:?}"),
    }
}

/// Checks that buckets are cumulative, and that the last equals the count.
fn cumulative(name: &str, seen: &Seen) {
    let mut last = BTreeMap::<String, (f64, f64)>::new();
    let without_le = |id: &str| {
        let labels = id
            .split_once('{')
            .map_or("", |(_, labels)| labels)
            .trim_end_matches('}');
        let kept = labels
            .split(',')
            .filter(|label| !label.starts_with("le=") && !label.is_empty());
        kept.collect::<Vec<_>>().join(",")
    };
    for (id, value) in &seen.series {
        if id.contains("_bucket{") {
            let bound = id
                .split_once("le=\"")
                .and_then(|(_, rest)| rest.split('"').next());
            let bound: f64 = bound.expect("a bound").parse().expect("a number");
            let (above, count) = last.entry(without_le(id)).or_insert((f64::NEG_INFINITY, 0.0));
            assert!(bound > *above && *value >= *count, "{name}: {id}");
            (*above, *count) = (bound, *value);
        }
    }
    for (id, value) in seen.series.iter().filter(|(id, _)| id.contains("_count")) {
        assert_eq!(last[&without_le(id)], (f64::INFINITY, *value), "{name}: {id}");
    }
}

#[test]
fn the_page_is_in_order() {
    let families = check(&page());
    for (name, seen) in &families {
        assert!(!seen.series.is_empty(), "{name} has no series");
    }
    assert!(families["process_resident_memory_bytes"].series[0].1 > 0.0);
}

#[test]
fn the_families_of_kube_proxy_are_there_by_name_type_and_labels() {
    let families = check(&page());
    for (name, kind, series) in [
        (
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "histogram",
            "_count{ip_family=\"IPv4\"} 2",
        ),
        (
            "kubeproxy_sync_full_proxy_rules_duration_seconds",
            "histogram",
            "_count{ip_family=\"IPv6\"} 1",
        ),
        (
            "kubeproxy_sync_partial_proxy_rules_duration_seconds",
            "histogram",
            "_count{ip_family=\"IPv4\"} 1",
        ),
        (
            "kubeproxy_network_programming_duration_seconds",
            "histogram",
            "_count{ip_family=\"IPv4\"} 1",
        ),
        (
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "gauge",
            "{ip_family=\"IPv4\"} 1700000002.5",
        ),
        (
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "gauge",
            "{ip_family=\"IPv4\"} 1700000000.5",
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "counter",
            " 2",
        ),
        (
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "gauge",
            " 1",
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "counter",
            " 3",
        ),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "gauge",
            " 0",
        ),
        (
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            "{traffic_policy=\"internal\",ip_family=\"IPv4\"} 1",
        ),
        ("kubeproxy_proxy_healthz_total", "counter", "{code=\"503\"} 1"),
        ("kubeproxy_proxy_livez_total", "counter", "{code=\"200\"} 1"),
        (
            "rest_client_requests_total",
            "counter",
            "{code=\"<error>\",host=\"10.96.0.1:443\",method=\"GET\"} 1",
        ),
    ] {
        let seen = families.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(seen.kind, kind, "{name}");
        let (labels, value) = series.rsplit_once(' ').unwrap();
        let (id, value) = (format!("{name}{labels}"), value.parse::<f64>().unwrap());
        assert!(seen.series.contains(&(id, value)), "{name}: {:?}", seen.series);
    }
}

#[test]
fn the_buckets_of_kube_proxy_are_kept() {
    let families = check(&page());
    let bounds = |name: &str| -> Vec<String> {
        let buckets = families[name]
            .series
            .iter()
            .filter(|(id, _)| id.contains("_bucket"));
        let buckets = buckets.filter(|(id, _)| !id.contains("IPv6"));
        buckets
            .map(|(id, _)| {
                id.split("le=\"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let rounds = bounds("kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!(
        (rounds.len(), rounds[0].as_str(), rounds[14].as_str()),
        (16, "0.001", "16.384")
    );
    let programming = bounds("kubeproxy_network_programming_duration_seconds");
    assert_eq!(programming.len(), 2 + 59 + 12 + 7 + 1);
    for (index, bound) in [
        (0, "0.25"),
        (1, "0.5"),
        (2, "1"),
        (60, "59"),
        (61, "60"),
        (72, "115"),
        (73, "120"),
        (79, "300"),
    ] {
        assert_eq!(programming[index], bound);
    }
}

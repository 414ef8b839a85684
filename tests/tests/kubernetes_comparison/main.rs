//! kube-proxy and Millrace over the same services in equal worlds. A cluster that changes from one to the
//! other gets the same verdicts from the same backends, and backends see the same client. The exceptions are
//! in [`differences`].

mod case;
mod differences;
mod probing;
mod table;
mod topology;

use std::time::Instant;

use harness::kubernetes::{ControlPlane, KubeProxy};
use harness::{Manifest, require_kubernetes, skip_if};

use case::Case;
use differences::{DIFFERENCES, Difference};
use probing::{Effort, Outcome, Question, ask_all, questions};
use topology::{Contender, Topology};

/// The least number of services that are compared.
const SERVICES: usize = 60;

#[test]
fn services_behave_as_with_kube_proxy() {
    require_kubernetes!();
    skip_if!(KubeProxy::missing());
    let started = Instant::now();
    let cases = table::cases();
    let topologies: Vec<Topology> = Contender::ALL.map(Topology::build).into();
    let plane = ControlPlane::start(topologies[0].world());
    publish(&plane, &topologies[0], &cases);
    let _running: Vec<_> = topologies.iter().map(|topology| topology.serve(&plane)).collect();
    println!("all proxies serve after {:?}", started.elapsed());

    let groups = questions(&cases);
    let outcomes = ask_all(&topologies, &groups, Effort::QUICK);
    assert_every_verdict_occurs(&outcomes);
    let mut found = different(&groups, outcomes);
    println!(
        "asked {} questions after {:?}",
        groups.iter().map(Vec::len).sum::<usize>(),
        started.elapsed()
    );
    // Unexplained differences are asked again with more effort: most of them are chance.
    let doubtful: Vec<Vec<Question>> = regroup(&found);
    println!("{} groups are asked again", doubtful.len());
    found.retain(|difference| difference.explanation().is_some());
    found.extend(different(
        &doubtful,
        ask_all(&topologies, &doubtful, Effort::THOROUGH),
    ));
    println!("asked again after {:?}", started.elapsed());
    judge(&found);
}

/// Creates all objects at the API server.
fn publish(plane: &ControlPlane, topology: &Topology, cases: &[Case]) {
    for node in topology.world().nodes() {
        plane.apply(&node.object());
        plane.apply_status(&node.object());
    }
    let services: Vec<_> = cases.iter().filter_map(Case::service).collect();
    assert!(services.len() >= SERVICES, "{} services", services.len());
    plane.create_all(services.iter().cloned().chain(table::unaddressed()));
    plane.create_all(cases.iter().flat_map(|case| case.slices(topology)));
    let with_balancer = |service: &&serde_json::Value| service["spec"]["type"] == "LoadBalancer";
    for service in services.iter().filter(with_balancer) {
        plane.apply_status(&service.object());
    }
}

/// Equal outcomes are meaningful only if kube-proxy's outcomes are of all kinds.
fn assert_every_verdict_occurs(outcomes: &[Vec<Vec<Outcome>>]) {
    let theirs = || outcomes.iter().flat_map(|topologies| &topologies[0]);
    for verdict in ["replied", "refused", "silent"] {
        let count = theirs().filter(|outcome| outcome.is(verdict)).count();
        assert!(
            count > theirs().count() / 50,
            "kube-proxy: only {count} are {verdict}"
        );
    }
}

/// The differences between Millrace, with hooks or without, and kube-proxy.
fn different<'a>(groups: &[Vec<Question<'a>>], outcomes: Vec<Vec<Vec<Outcome>>>) -> Vec<Difference<'a>> {
    let mut found = Vec::new();
    for (group, outcomes) in groups.iter().zip(outcomes) {
        let (theirs, ours) = outcomes.split_first().expect("kube-proxy's topology");
        for (proxy, ours) in Contender::ALL[1..].iter().zip(ours) {
            for ((question, theirs), ours) in group.iter().zip(theirs).zip(ours) {
                if theirs != ours {
                    found.push(Difference {
                        question: *question,
                        proxy: *proxy,
                        theirs: theirs.clone(),
                        ours: ours.clone(),
                    });
                }
            }
        }
    }
    found
}

/// The questions of the unexplained differences, in their groups.
fn regroup<'a>(found: &[Difference<'a>]) -> Vec<Vec<Question<'a>>> {
    let mut groups: Vec<Vec<Question>> = Vec::new();
    for difference in found
        .iter()
        .filter(|difference| difference.explanation().is_none())
    {
        let question = difference.question;
        let same = |group: &&mut Vec<Question>| {
            std::ptr::eq(group[0].case, question.case) && group[0].asker == question.asker
        };
        match groups.iter_mut().find(same) {
            Some(group)
                if group
                    .iter()
                    .any(|other| std::ptr::eq(other.frontend, question.frontend)) => {}
            Some(group) => group.push(question),
            None => groups.push(vec![question]),
        }
    }
    groups
}

/// Fails for a difference that is not listed, and for a listed difference that did not occur.
fn judge(found: &[Difference]) {
    let mut counts = vec![0; DIFFERENCES.len()];
    let mut unexplained = Vec::new();
    for difference in found {
        match difference.explanation() {
            Some(index) => counts[index] += 1,
            None => unexplained.push(difference.to_string()),
        }
    }
    for (known, count) in DIFFERENCES.iter().zip(&counts) {
        println!("{count:5} × {}: {}", known.what, known.why);
    }
    let stale = DIFFERENCES.iter().zip(&counts).filter(|(_, count)| **count == 0);
    let stale: Vec<_> = stale.map(|(known, _)| known.what).collect();
    assert!(
        unexplained.is_empty() && stale.is_empty(),
        "{} differences that are not listed:\n{}\nlisted ones that there are not: {stale:#?}",
        unexplained.len(),
        unexplained.join("\n")
    );
}

//! Leases, notes and interface names that are lost while their pods run.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use harness::cni::{self, PodSpec};
use harness::{Pod, eventually};

use super::topology::{PROMISED, Topology, of_family};

fn lease_dir(topology: &Topology) -> PathBuf {
    topology.node().dir().join("state/networks/millrace")
}

fn remove_leases(topology: &Topology, pod: &Pod) {
    for address in pod.addresses() {
        fs::remove_file(lease_dir(topology).join(address.to_string())).expect("a lease");
    }
}

#[test]
fn leases_of_running_pods_are_made_again_from_their_notes() {
    harness::require_root!();
    let topology = Topology::build();
    let path = lease_dir(&topology).join(of_family(topology.web.addresses(), true).to_string());
    let contents = fs::read(&path).expect("a lease");
    topology.lose("lease", |topology| remove_leases(topology, &topology.web));
    assert_eq!(fs::read(&path).expect("a lease"), contents);
    topology.assert_in_order("with new leases");
}

#[test]
fn a_pod_whose_leases_and_note_are_gone_is_named_until_it_is_deleted() {
    harness::require_root!();
    let topology = Topology::build();
    let doomed = topology.node().add_pod("doomed");
    let address: IpAddr = of_family(doomed.addresses(), true);
    remove_leases(&topology, &doomed);
    fs::remove_file(
        lease_dir(&topology)
            .join("millrace")
            .join(doomed.host_interface()),
    )
    .expect("a note");
    let status = topology.wait_named(&address.to_string());
    let errors = status["errors"].to_string();
    let object = format!("interface {}", doomed.host_interface());
    assert!(
        errors.contains(&object) && errors.contains("delete the pod"),
        "{errors}"
    );
    // A request for the address is refused, and the error names the pod's interface.
    let other = cni::Attachment {
        spec: PodSpec::new("other").asking("ips", serde_json::json!([address.to_string()])),
        netns: topology.node().add_namespace("other"),
    };
    let refused = cni::call(topology.node(), "ADD", &other, None).expect("a call");
    let document = refused.document.to_string();
    assert!(!refused.success && document.contains(&object), "{document}");
    topology.node().remove_namespace("other");
    doomed.delete();
    topology.wait_ready();
    topology.assert_whole("without it");
}

#[test]
fn an_entry_that_is_no_lease_and_no_note_affects_only_itself_and_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let address = "10.244.1.77";
    for unexpected in [address, "millrace/lost+found"] {
        let unexpected = lease_dir(&topology).join(unexpected);
        let path = unexpected.display().to_string();
        fs::create_dir(&unexpected).expect("to make it");
        eventually("it to be named", PROMISED, || {
            topology.status()["errors"].to_string().contains(&path)
        });
        topology.wait_reported(&path);
        let checked = topology.node().cli(&["ipam", "check"]).expect("to check");
        assert!(checked["problems"].to_string().contains(&path), "{checked}");
        topology.node().add_pod("beside").delete();
        if unexpected.ends_with(address) {
            let other = cni::Attachment {
                spec: PodSpec::new("other").asking("ips", serde_json::json!([address])),
                netns: topology.node().add_namespace("other"),
            };
            let refused = cni::call(topology.node(), "ADD", &other, None).expect("a call");
            let document = refused.document.to_string();
            let part = "a lease that cannot be read";
            assert!(!refused.success && document.contains(part), "{document}");
            topology.node().remove_namespace("other");
        }
        fs::remove_dir(&unexpected).expect("to remove it");
        eventually("nothing to be named", PROMISED, || {
            topology.status()["errors"] == serde_json::json!([])
        });
    }
    topology.assert_in_order("without them");
}

#[test]
fn a_lease_of_a_running_pod_that_cannot_be_read_is_named_and_made_again() {
    harness::require_root!();
    let topology = Topology::build();
    let address = of_family(topology.web.addresses(), true);
    let path = lease_dir(&topology).join(address.to_string());
    fs::remove_file(&path).expect("a lease");
    if fs::create_dir(&path).is_err() {
        // The agent has restored the lease meanwhile.
        fs::remove_file(&path).expect("a lease");
        fs::create_dir(&path).expect("to make it");
    }
    topology.wait_named(&format!("remove {}", path.display()));
    fs::remove_dir(&path).expect("to remove it");
    topology.wait_ready();
    assert!(path.is_file(), "the lease is made again");
    topology.assert_in_order("with its lease");
}

#[test]
fn a_note_that_is_half_written_is_named_by_its_path() {
    harness::require_root!();
    let topology = Topology::build();
    let note = lease_dir(&topology)
        .join("millrace")
        .join(topology.web.host_interface());
    let contents = fs::read(&note).expect("a note");
    for half in ["", "{"] {
        // A new file changes the directory, which the agent checks every second.
        let new = lease_dir(&topology).join("half");
        fs::write(&new, half).expect("to write");
        fs::rename(&new, &note).expect("to rename");
        let status = topology.wait_named(&note.display().to_string());
        let errors = status["errors"].to_string();
        assert!(
            errors.contains("cannot be read") && !errors.contains("are gone from"),
            "{errors}"
        );
        let checked = topology.node().cli(&["ipam", "check"]).expect("to check");
        assert!(
            !checked["problems"].to_string().contains("was removed while"),
            "{checked}"
        );
        fs::write(&new, &contents).expect("to write");
        fs::rename(&new, &note).expect("to rename");
        topology.wait_ready();
    }
    topology.assert_in_order("with its note");
}

#[test]
fn a_removed_directory_of_leases_is_reported() {
    harness::require_root!();
    let topology = Topology::build();
    fs::remove_dir_all(lease_dir(&topology)).expect("to remove");
    let status = topology.wait_named("are gone from");
    let errors = status["errors"].to_string();
    for pod in [&topology.web, &topology.near] {
        assert!(errors.contains(pod.host_interface()), "{errors}");
    }
    topology.assert_whole("without leases");
}

#[test]
fn an_interface_that_is_renamed_gets_its_name_back() {
    harness::require_root!();
    let topology = Topology::build();
    let forger = topology.forge();
    for pod in [&topology.web, &topology.near] {
        topology.lose("interface", |topology| {
            topology
                .node()
                .run_ip(&format!("link set {} name tap7", pod.host_interface()));
        });
        topology.assert_in_order("with its name");
        forger.assert_held("with its name");
    }
}

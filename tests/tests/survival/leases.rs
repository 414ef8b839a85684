//! Leases, notes and names that go while their pods run.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use harness::Pod;
use harness::cni::{self, PodSpec};

use super::town::{Town, of_family};

fn lease_dir(town: &Town) -> PathBuf {
    town.node().dir().join("state/networks/millrace")
}

fn remove_leases(town: &Town, pod: &Pod) {
    for address in pod.addresses() {
        fs::remove_file(lease_dir(town).join(address.to_string())).expect("a lease");
    }
}

#[test]
fn leases_of_running_pods_are_made_again_from_their_notes() {
    harness::require_root!();
    let town = Town::build();
    let path = lease_dir(&town).join(of_family(town.web.addresses(), true).to_string());
    let contents = fs::read(&path).expect("a lease");
    town.lose("lease", |town| remove_leases(town, &town.web));
    assert_eq!(fs::read(&path).expect("a lease"), contents);
    town.assert_in_order("with new leases");
}

#[test]
fn a_pod_whose_leases_and_note_are_gone_is_named_until_it_is_deleted() {
    harness::require_root!();
    let town = Town::build();
    let doomed = town.node().add_pod("doomed");
    let address: IpAddr = of_family(doomed.addresses(), true);
    remove_leases(&town, &doomed);
    fs::remove_file(lease_dir(&town).join("millrace").join(doomed.host_interface())).expect("a note");
    let status = town.wait_named(&address.to_string());
    let errors = status["errors"].to_string();
    let object = format!("interface {}", doomed.host_interface());
    assert!(
        errors.contains(&object) && errors.contains("delete the pod"),
        "{errors}"
    );
    // What asks for the address is told of the pod.
    let other = cni::Attachment {
        spec: PodSpec::new("other").asking("ips", serde_json::json!([address.to_string()])),
        netns: town.node().add_namespace("other"),
    };
    let refused = cni::call(town.node(), "ADD", &other, None).expect("a call");
    let document = refused.document.to_string();
    assert!(!refused.success && document.contains(&object), "{document}");
    town.node().remove_namespace("other");
    doomed.delete();
    town.wait_ready();
    town.assert_whole("without it");
}

#[test]
fn a_directory_of_leases_that_is_removed_is_told_of() {
    harness::require_root!();
    let town = Town::build();
    fs::remove_dir_all(lease_dir(&town)).expect("to remove");
    let status = town.wait_named("are gone from");
    let errors = status["errors"].to_string();
    for pod in [&town.web, &town.near] {
        assert!(errors.contains(pod.host_interface()), "{errors}");
    }
    town.assert_whole("without leases");
}

#[test]
fn an_interface_that_is_renamed_gets_its_name_back() {
    harness::require_root!();
    let town = Town::build();
    let forger = town.forge();
    for pod in [&town.web, &town.near] {
        town.lose("interface", |town| {
            town.node()
                .run_ip(&format!("link set {} name tap7", pod.host_interface()));
        });
        town.assert_in_order("with its name");
        forger.assert_held("with its name");
    }
}

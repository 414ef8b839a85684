//! Leases, notes and interface names that are lost while their pods run.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use harness::cni::{self, PodSpec};
use harness::{Pod, eventually};

use super::town::{PROMISED, Town, of_family};

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
    // A request for the address is refused, and the error names the pod's interface.
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
fn what_is_no_lease_and_no_note_spoils_its_own_place_and_is_named() {
    harness::require_root!();
    let town = Town::build();
    let address = "10.244.1.77";
    for stray in [address, "millrace/lost+found"] {
        let stray = lease_dir(&town).join(stray);
        let path = stray.display().to_string();
        fs::create_dir(&stray).expect("to make it");
        eventually("it to be named", PROMISED, || {
            town.status()["errors"].to_string().contains(&path)
        });
        town.wait_told(&path);
        let checked = town.node().cli(&["ipam", "check"]).expect("to check");
        assert!(checked["problems"].to_string().contains(&path), "{checked}");
        town.node().add_pod("beside").delete();
        if stray.ends_with(address) {
            let other = cni::Attachment {
                spec: PodSpec::new("other").asking("ips", serde_json::json!([address])),
                netns: town.node().add_namespace("other"),
            };
            let refused = cni::call(town.node(), "ADD", &other, None).expect("a call");
            let document = refused.document.to_string();
            let says = "a lease that cannot be read";
            assert!(!refused.success && document.contains(says), "{document}");
            town.node().remove_namespace("other");
        }
        fs::remove_dir(&stray).expect("to remove it");
        eventually("nothing to be named", PROMISED, || {
            town.status()["errors"] == serde_json::json!([])
        });
    }
    town.assert_in_order("without them");
}

#[test]
fn a_lease_of_a_running_pod_that_cannot_be_read_is_named_and_made_again() {
    harness::require_root!();
    let town = Town::build();
    let address = of_family(town.web.addresses(), true);
    let path = lease_dir(&town).join(address.to_string());
    fs::remove_file(&path).expect("a lease");
    if fs::create_dir(&path).is_err() {
        // The agent has restored the lease meanwhile.
        fs::remove_file(&path).expect("a lease");
        fs::create_dir(&path).expect("to make it");
    }
    town.wait_named(&format!("remove {}", path.display()));
    fs::remove_dir(&path).expect("to remove it");
    town.wait_ready();
    assert!(path.is_file(), "the lease is made again");
    town.assert_in_order("with its lease");
}

#[test]
fn a_note_that_is_half_written_is_named_by_its_path() {
    harness::require_root!();
    let town = Town::build();
    let note = lease_dir(&town).join("millrace").join(town.web.host_interface());
    let contents = fs::read(&note).expect("a note");
    for half in ["", "{"] {
        // A new file changes the directory, which the agent checks every second.
        let new = lease_dir(&town).join("half");
        fs::write(&new, half).expect("to write");
        fs::rename(&new, &note).expect("to rename");
        let status = town.wait_named(&note.display().to_string());
        let errors = status["errors"].to_string();
        assert!(
            errors.contains("cannot be read") && !errors.contains("are gone from"),
            "{errors}"
        );
        let checked = town.node().cli(&["ipam", "check"]).expect("to check");
        assert!(
            !checked["problems"].to_string().contains("was removed while"),
            "{checked}"
        );
        fs::write(&new, &contents).expect("to write");
        fs::rename(&new, &note).expect("to rename");
        town.wait_ready();
    }
    town.assert_in_order("with its note");
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

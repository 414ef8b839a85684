//! Tests of loading, pinning, adopting and growing, on the live kernel.

mod support;

use std::os::fd::AsFd as _;

use millrace::bpf::object::MapSizes;
use millrace::bpf::{BpfError, Datapath, pins, sys};
use proxy_common::maps::{Backend, Frontend, FrontendKey, Slot};
use proxy_common::{Ip, Port};
use support::Sandbox;

const SIZES: MapSizes = MapSizes {
    frontends: 64,
    slots: 128,
    backends: 64,
    addresses: 64,
    flows: 128,
    affinity: 64,
    socket_peers: 64,
    pod_netns: 16,
};

fn key(host: u8) -> FrontendKey {
    FrontendKey::new(
        Ip::from(std::net::Ipv4Addr::new(10, 96, 0, host)),
        Port::new(80),
        6,
    )
}

fn frontend(key: &FrontendKey) -> Frontend {
    Frontend {
        check: key.check(),
        slots: 7,
        service: 3,
        flags: 0,
        affinity: 0,
        reserved: 0,
    }
}

#[test]
fn a_second_start_adopts_what_the_first_one_pinned() {
    let sandbox = Sandbox::enter();
    let first = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
    first.frontends.set(&key(1), &frontend(&key(1))).unwrap();
    first.slots.set(5, &Slot::new(3, 4));
    let program =
        millrace::bpf::sys::program_info(std::os::fd::AsFd::as_fd(&first.programs["from_pod"])).unwrap();
    drop(first);
    let second = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
    assert_eq!(second.frontends.get(&key(1)).unwrap(), Some(frontend(&key(1))));
    assert_eq!(second.slots.get(5), Some(Slot::new(3, 4)));
    let again =
        millrace::bpf::sys::program_info(std::os::fd::AsFd::as_fd(&second.programs["from_pod"])).unwrap();
    assert_eq!(program.id, again.id, "a warm start loads no program");
}

#[test]
fn maps_grow_with_their_contents() {
    let sandbox = Sandbox::enter();
    let mut datapath = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
    let all: Vec<_> = (0..64).map(|host| (key(host), frontend(&key(host)))).collect();
    datapath.frontends.set_all(&all).unwrap();
    assert!(
        datapath.frontends.set(&key(100), &frontend(&key(100))).is_err(),
        "64 entries are all that fit"
    );
    datapath.backends.set(
        63,
        &Backend {
            generation: 9,
            ..Backend::default()
        },
    );
    datapath
        .grow(&MapSizes {
            frontends: 256,
            backends: 128,
            ..SIZES
        })
        .unwrap();
    assert_eq!(
        datapath.sizes(),
        MapSizes {
            frontends: 256,
            backends: 128,
            ..SIZES
        }
    );
    assert_eq!(datapath.frontends.count().unwrap(), 64);
    assert_eq!(datapath.backends.get(63).unwrap().generation, 9);
    datapath.frontends.set(&key(100), &frontend(&key(100))).unwrap();
    drop(datapath);
    let again = Datapath::open(&sandbox.bpf_root(), &SIZES).unwrap();
    assert_eq!(
        again.frontends.count().unwrap(),
        65,
        "the grown generation is in force"
    );
}

#[test]
fn uninstalling_leaves_foreign_pins_and_nothing_of_ours() {
    let sandbox = Sandbox::enter();
    let root = sandbox.bpf_root();
    drop(Datapath::open(&root, &SIZES).unwrap());
    std::fs::create_dir(root.join("foreign")).unwrap();
    let removed = pins::remove_all(&root).unwrap();
    assert!(removed.iter().any(|removed| removed.name == "FRONTENDS"));
    let left: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["foreign"]);
    std::fs::remove_dir(root.join("foreign")).unwrap();
    pins::remove_all(&root).unwrap();
    assert!(!root.exists());
    assert_eq!(pins::remove_all(&root).unwrap(), []);
}

#[test]
fn pins_of_a_newer_layout_are_refused_untouched() {
    let sandbox = Sandbox::enter();
    let root = sandbox.bpf_root();
    std::fs::create_dir_all(root.join("l99-abc-1")).unwrap();
    std::os::unix::fs::symlink("l99-abc-1", root.join("current")).unwrap();
    let error = Datapath::open(&root, &SIZES).err().expect("must be refused");
    assert!(
        matches!(error, BpfError::NewerLayout { found: 99, .. }),
        "{error}"
    );
    assert!(root.join("l99-abc-1").exists());
}

#[test]
fn tables_of_an_older_layout_are_not_read() {
    let sandbox = Sandbox::enter();
    let root = sandbox.bpf_root();
    let older = Datapath::open(&root, &SIZES).unwrap();
    older.frontends.set(&key(1), &frontend(&key(1))).unwrap();
    drop(older);
    let name = std::fs::read_link(root.join("current")).unwrap();
    let (_, rest) = name.to_str().unwrap().split_once('-').unwrap();
    let old_name = format!("l1-{rest}");
    std::fs::rename(root.join(&name), root.join(&old_name)).unwrap();
    std::fs::remove_file(root.join("current")).unwrap();
    std::os::unix::fs::symlink(&old_name, root.join("current")).unwrap();
    let newer = Datapath::open(&root, &SIZES).unwrap();
    assert_eq!(newer.frontends.count().unwrap(), 0);
    assert!(
        !root.join(&old_name).exists(),
        "what is no longer in force is removed"
    );
}

#[test]
fn the_working_memory_of_another_object_is_not_taken_over() {
    const ARRAY_PER_CPU: u32 = 6;
    let sandbox = Sandbox::enter();
    let root = sandbox.bpf_root();
    let first = Datapath::open(&root, &SIZES).unwrap();
    first.frontends.set(&key(1), &frontend(&key(1))).unwrap();
    drop(first);
    // The name is that of an object that needs less.
    let name = std::fs::read_link(root.join("current")).unwrap();
    let text = name.to_str().unwrap();
    let mut parts: Vec<_> = text.split('-').collect();
    parts[1] = "00000000000000aa";
    let other = parts.join("-");
    std::fs::rename(root.join(&name), root.join(&other)).unwrap();
    std::fs::remove_file(root.join("current")).unwrap();
    std::os::unix::fs::symlink(&other, root.join("current")).unwrap();
    let mut pins = std::fs::read_dir(root.join(&other).join("maps")).unwrap();
    let work = pins.find_map(|pin| pin.ok().filter(|pin| pin.file_name() == "WORK"));
    let work = work.expect("it is pinned").path();
    std::fs::remove_file(&work).unwrap();
    let smaller = sys::map_create(ARRAY_PER_CPU, 4, 64, 1).unwrap();
    sys::pin(smaller.as_fd(), &work).unwrap();
    let second = Datapath::open(&root, &SIZES).unwrap();
    assert_eq!(
        second.frontends.get(&key(1)).unwrap(),
        Some(frontend(&key(1))),
        "the tables are"
    );
}

#[test]
fn a_foreign_current_is_refused_untouched() {
    let sandbox = Sandbox::enter();
    let root = sandbox.bpf_root();
    std::fs::create_dir_all(root.join("current")).unwrap();
    let error = Datapath::open(&root, &SIZES).err().expect("must be refused");
    assert!(matches!(error, BpfError::Foreign { .. }), "{error}");
}

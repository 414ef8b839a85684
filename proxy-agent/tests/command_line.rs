//! Tests of the program itself, as an operator and a script use it: documents on stdout, everything else on
//! stderr, exit statuses.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use millrace::bpf::Datapath;
use millrace::bpf::object::MapSizes;
use millrace::control::{self, RunDirError};
use millrace::network::{HOST_DEVICE, HostDevice, Netlink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::Sandbox;

/// Runs the program in the namespaces of this thread, with directories below `root`.
fn millrace(root: &Path, bpf_root: &Path, line: &str) -> Output {
    command(root, bpf_root, line).output().expect("running millrace")
}

fn command(root: &Path, bpf_root: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace"));
    command
        .args(line.split(' '))
        .env("MILLRACE_RUN_DIR", root.join("run"))
        .env("MILLRACE_BPF_ROOT", bpf_root)
        .env("MILLRACE_STATE_DIR", root.join("state"));
    command
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON document on stdout")
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_an_agent_status_succeeds_and_other_verbs_fail() {
    let root = tempfile::tempdir().unwrap();
    let run = |line| millrace(root.path(), root.path(), line);
    let status = run("status -o json");
    assert_eq!(status.status.code(), Some(1));
    assert_eq!(document(&status)["ready"], json!(false));
    assert_eq!(document(&status)["waitingFor"], json!(["agent"]));
    for line in [
        "service list -o json",
        "trace --from 10.0.0.1 --to 10.0.0.2:80 --proto tcp",
    ] {
        let output = run(line);
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(1), &[][..])
        );
        assert!(
            message(&output).contains("no agent replies at"),
            "{}",
            message(&output)
        );
    }
    let version = run("version -o json");
    assert!(version.status.success());
    assert_eq!(
        document(&version)["layoutVersion"],
        json!(proxy_common::LAYOUT_VERSION)
    );
}

#[test]
fn a_configuration_can_be_checked_before_it_is_used() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("agent.yaml");
    let line = format!("config check {} -o json", file.display());
    fs::write(
        &file,
        "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nsocketLB: off\n",
    )
    .unwrap();
    let good = millrace(root.path(), root.path(), &line);
    assert!(good.status.success());
    assert_eq!(
        document(&good),
        json!({"file": file.display().to_string(), "valid": true, "errors": [], "warnings": []})
    );
    fs::write(
        &file,
        "apiVersion: millrace.dev/v1alpha1\nkind: AgentConfiguration\nmaps: {slot: 1}\n",
    )
    .unwrap();
    let bad = millrace(root.path(), root.path(), &line);
    assert_eq!(bad.status.code(), Some(1));
    assert_eq!(document(&bad)["errors"][0]["field"], json!("maps.slot"));
}

#[test]
fn uninstall_removes_ours_leaves_the_rest_and_can_be_repeated() {
    let sandbox = Sandbox::enter();
    let root = tempfile::tempdir().unwrap();
    let bpf_root = sandbox.bpf_root();
    let run = || millrace(root.path(), &bpf_root, "uninstall -o json");
    install(&bpf_root);
    fs::create_dir(root.path().join("state")).unwrap();
    fs::create_dir(bpf_root.join("foreign")).unwrap();

    let agent = control::bind(&root.path().join("run")).unwrap();
    let refused = run();
    assert_eq!(
        (refused.status.code(), refused.stdout.as_slice()),
        (Some(1), &[][..])
    );
    assert!(
        message(&refused).contains("an agent is running with --run-dir"),
        "{}",
        message(&refused)
    );
    drop(agent);

    let output = run();
    assert!(output.status.success(), "{}", message(&output));
    let removed = document(&output)["removed"].clone();
    for (kind, end) in [
        ("program", "from_pod"),
        ("map", "FRONTENDS"),
        ("device", HOST_DEVICE),
        ("directory", "/state"),
        ("directory", "/run"),
    ] {
        let found = removed.as_array().unwrap().iter().any(|removed| {
            removed["kind"] == kind && removed["name"].as_str().is_some_and(|name| name.ends_with(end))
        });
        assert!(found, "{kind} {end} in {removed:#}");
    }
    let foreign = bpf_root.join("foreign");
    assert_eq!(
        document(&output)["left"],
        json!([{"name": foreign, "reason": "not ours"}])
    );
    let rest: Vec<_> = fs::read_dir(&bpf_root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(rest, std::slice::from_ref(&foreign));

    fs::remove_dir(&foreign).unwrap();
    let again = document(&run());
    assert_eq!(again["removed"], json!([{"kind": "directory", "name": bpf_root}]));
    assert_eq!(document(&run()), json!({"removed": [], "left": []}));
}

/// The set-up is that of the pod of `manifests/uninstall`: directories of the node are volumes, and the root
/// is read-only.
#[test]
fn uninstall_in_a_container_empties_volumes_and_keeps_agents_away_until_a_signal() {
    let sandbox = Sandbox::enter();
    let node = tempfile::tempdir().unwrap();
    let container = tempfile::tempdir().unwrap();
    let root = container.path();
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for name in ["run", "state"] {
        let (outside, inside) = (node.path().join(name), root.join(name));
        fs::create_dir(&outside).unwrap();
        fs::create_dir(&inside).unwrap();
        mount(
            Some(&outside),
            &inside,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .unwrap();
    }
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(None::<&str>, root, None::<&str>, read_only, None::<&str>).unwrap();
    let plugin = node.path().join("millrace-cni");
    fs::write(&plugin, "").unwrap();
    let installed = json!({"files": [plugin]});
    fs::write(node.path().join("state/installed.json"), installed.to_string()).unwrap();
    fs::write(node.path().join("state/foreign"), "").unwrap();

    let mut command = command(root, &sandbox.bpf_root(), "uninstall --wait -o json");
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut waiting = command.spawn().expect("running millrace");
    let mut line = String::new();
    BufReader::new(waiting.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let document: Value = serde_json::from_str(&line).expect("one JSON document on stdout");
    assert_eq!(
        document,
        json!({
            "removed": [
                {"kind": "file", "name": plugin},
                {"kind": "file", "name": root.join("state/installed.json")},
            ],
            "left": [
                {"name": root.join("state/foreign"), "reason": "not ours"},
                {"name": root.join("run"), "reason": "empty, and a mount point"},
            ],
        })
    );
    assert!(!plugin.exists());
    // An agent of the node would need this directory.
    assert!(matches!(
        control::bind(&node.path().join("run")),
        Err(RunDirError::Taken(_))
    ));
    assert!(waiting.try_wait().unwrap().is_none(), "it stays");

    // The program has blocked its signals by then.
    line.clear();
    BufReader::new(waiting.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "done; waiting for SIGTERM\n");
    let pid = Pid::from_raw(i32::try_from(waiting.id()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    assert!(waiting.wait().unwrap().success());
    drop(control::bind(&node.path().join("run")).expect("the lock is free"));
    umount2(root, MntFlags::MNT_DETACH).unwrap();
}

/// Puts the objects of an agent on the node.
fn install(bpf_root: &Path) {
    let sizes = MapSizes {
        frontends: 64,
        slots: 128,
        backends: 64,
        addresses: 64,
        flows: 128,
        affinity: 64,
        socket_peers: 64,
        pod_netns: 16,
    };
    Datapath::open(bpf_root, &sizes).expect("loading the programs");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let device = runtime.block_on(async { HostDevice::new(Netlink::open()?).ensure(1500).await });
    device.expect("making the device");
}

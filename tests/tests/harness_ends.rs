//! Every end of a world removes all of it: namespaces, mounts, cgroups, files and processes.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{World, eventually, require_root};

const PORT: u16 = 8080;

#[test]
fn a_world_is_made_quickly_and_leaves_nothing() {
    require_root!();
    let started = Instant::now();
    let world = World::with_nodes(2);
    let pods: Vec<_> = (0..4)
        .map(|i| world.node(i % 2 + 1).add_pod(&format!("p{i}")))
        .collect();
    let made = started.elapsed();
    let (tag, dir, cgroup) = (world.tag(), world.dir(), world.fabric().cgroup().to_owned());
    let _socket = pods[0].tcp_listen(PORT).expect("a socket");
    let ended = Instant::now();
    drop((pods, world));
    println!("made in {made:?}, removed in {:?}", ended.elapsed());
    assert_nothing_left(&tag, &dir, &cgroup);
}

#[test]
fn a_panic_leaves_nothing_either() {
    require_root!();
    let seen = std::sync::Mutex::new(None);
    let outcome = std::thread::scope(|scope| {
        let test = || {
            let world = World::with_nodes(1);
            let _pod = world.node(1).add_pod("web");
            let cgroup = world.fabric().cgroup().to_owned();
            *seen.lock().expect("no panic so far") = Some((world.tag(), world.dir(), cgroup));
            panic!("as a failing test does");
        };
        scope.spawn(test).join()
    });
    assert!(outcome.is_err());
    let (tag, dir, cgroup) = seen.into_inner().expect("the lock").expect("a world");
    assert_nothing_left(&tag, &dir, &cgroup);
}

/// The variable is set for the process that the next test kills.
const TO_BE_KILLED: &str = "MILLRACE_TEST_TO_BE_KILLED";

/// Does nothing by itself: the next test runs it as a process, which waits to be killed.
#[test]
fn owner_of_a_world() {
    if std::env::var_os(TO_BE_KILLED).is_none() {
        return;
    }
    let world = World::with_nodes(1);
    let _pod = world.node(1).add_pod("web");
    println!(
        "\nowner of {} {} {}",
        world.tag(),
        world.dir().display(),
        world.fabric().cgroup().display()
    );
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_owner_leaves_nothing_either() {
    require_root!();
    let mut owner = Command::new(std::env::current_exe().expect("this executable"))
        .args(["--exact", "owner_of_a_world", "--nocapture"])
        .env(TO_BE_KILLED, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("to start an owner");
    let mut lines = BufReader::new(owner.stdout.take().expect("its output")).lines();
    let printed = lines
        .find_map(|line| Some(line.ok()?.strip_prefix("owner of ")?.to_owned()))
        .expect("a world");
    let names: Vec<_> = printed.split(' ').collect();
    let [tag, dir, cgroup] = names[..] else {
        panic!("{printed}")
    };
    assert!(Path::new(dir).exists() && Path::new(cgroup).exists());
    owner
        .kill()
        .and_then(|()| owner.wait())
        .expect("to kill the owner");
    eventually("the world to go", Duration::from_secs(10), || {
        !Path::new(dir).exists()
    });
    assert_nothing_left(tag, Path::new(dir), Path::new(cgroup));
}

#[test]
fn a_kept_world_stays_until_it_is_removed() {
    require_root!();
    let world = World::with_nodes(1);
    let pod = world.node(1).add_pod("web");
    let _server = pod.serve_apart(PORT);
    let (tag, dir, cgroup) = (world.tag(), world.dir(), world.fabric().cgroup().to_owned());
    let netns = pod.netns_path().to_owned();
    let text = world.keep();
    drop(pod);
    assert!(text.contains(&format!("millrace-world remove {tag}")), "{text}");
    assert!(dir.exists() && netns.exists());
    harness::remove(&tag).expect("to remove it");
    assert_nothing_left(&tag, &dir, &cgroup);
}

#[test]
fn the_tool_names_the_wrong_argument_in_one_line() {
    let wrong: [(&[&str], &str); 11] = [
        (&[], "usage: "),
        (&["dance"], "usage: "),
        (&["remove"], "usage: "),
        (&["remove", "mr-"], "eight hexadecimal digits"),
        (&["remove", "../etc"], "`../etc`"),
        (&["guard", "n1"], "`n1`"),
        (&["place", "/run/netns/none-such", "/"], "none-such"),
        (&["run", "/", "/none-such", "true"], "none-such"),
        (&["serve", "web", "http"], "http"),
        (&["serve", "web", "65536"], "65536"),
        (&["ask", "192.0.2.1"], "192.0.2.1"),
    ];
    for (arguments, expected) in wrong {
        let output = Command::new(env!("CARGO_BIN_EXE_millrace-world"))
            .args(arguments)
            .env("RUST_BACKTRACE", "1")
            .output()
            .expect("to run it");
        let printed = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {printed}");
        assert_eq!(printed.lines().count(), 1, "{arguments:?}: {printed}");
        assert!(printed.contains(expected), "{arguments:?}: {printed}");
    }
}

#[track_caller]
fn assert_nothing_left(tag: &str, dir: &Path, cgroup: &Path) {
    let named = |entry: fs::DirEntry| entry.file_name().to_string_lossy().starts_with(tag);
    assert!(
        !fs::read_dir("/run/netns")
            .expect("the directory")
            .flatten()
            .any(named),
        "namespaces are left"
    );
    assert!(!dir.exists(), "{} is left", dir.display());
    assert!(
        !cgroup.parent().expect("a parent").exists(),
        "{} is left",
        cgroup.display()
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    assert!(!mounts.contains(tag), "mounts are left");
}

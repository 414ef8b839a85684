//! DEL removes all objects of a plugin that was killed.
//!
//! This process traces the plugin and stops it at each system call. So the test covers every point between
//! two effects, and not only the points that a developer thinks of. Most calls come before `main` or only
//! read; a kill at each of them costs little.

#[expect(dead_code, reason = "this file needs a part of it")]
mod support;
#[expect(dead_code, reason = "this file needs a part of it")]
mod wire;

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;
use support::{World, interfaces, on_a_node, run, with};
use wire::Wire;

/// Starts a call that waits for its tracer.
fn start(mut command: Command, input: &str) -> (Child, Pid) {
    // SAFETY: the closure makes one system call and allocates nothing.
    #[expect(unsafe_code, reason = "tracing has to be asked for between fork and exec")]
    unsafe {
        command.pre_exec(|| ptrace::traceme().map_err(std::io::Error::from));
    }
    let mut child = command.spawn().expect("starting millrace-cni");
    child
        .stdin
        .take()
        .expect("a pipe")
        .write_all(input.as_bytes())
        .expect("writing the configuration");
    let pid = Pid::from_raw(child.id().cast_signed());
    assert!(
        matches!(waitpid(pid, None), Ok(WaitStatus::Stopped(_, Signal::SIGTRAP))),
        "stopped after exec"
    );
    (child, pid)
}

/// Kills a call at its n-th stop; true if it had ended by then. Each system call stops twice.
fn kill_at(command: Command, input: &str, stop: u32) -> bool {
    let (mut child, pid) = start(command, input);
    for _ in 0..stop {
        ptrace::syscall(pid, None).expect("going on");
        match waitpid(pid, None).expect("waiting") {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => return true,
            _ => {}
        }
    }
    child.kill().expect("killing it");
    child.wait().expect("waiting for its end");
    false
}

/// Goes through the stops of a call in steps. After each kill DEL has to remove all objects.
fn at_every_step(world: &World, verb: &str, step: u32, mut prepare: impl FnMut(&str, &Path)) {
    let pod = world.pod("pod");
    let everything = json!({"enabledad": true, "runtimeConfig": {
        "portMappings": [{"hostPort": 80, "containerPort": 80}, {"hostPort": 53, "containerPort": 53, "protocol": "udp"}],
        "bandwidth": {"ingressRate": 10_000_000, "egressRate": 10_000_000},
    }});
    let input = with(world.config(), &everything).to_string();
    let before = world.traces();
    let mut kills = 0;
    for stop in (1..).step_by(step as usize) {
        prepare(&input, &pod);
        let ended = kill_at(World::command(verb, "c1", Some(&pod)), &input, stop);
        // DEL removes the pod's side with the node's and frees the address.
        world.del("c1", Some(&pod)).done();
        assert_eq!(world.traces(), before, "killed at stop {stop}");
        assert_eq!(World::inside(&pod, interfaces), ["lo"], "killed at stop {stop}");
        if ended {
            break;
        }
        kills += 1;
    }
    println!("{verb} was killed at {kills} points");
    assert!(kills > 50, "{kills}");
    run(&mut World::command("ADD", "c2", Some(&pod)), input.as_bytes()).done();
}

#[test]
fn an_add_that_is_killed_leaves_nothing_behind_del() {
    on_a_node(|world| {
        // A neighbour to which the kernel sends requests for addresses.
        Wire::connect(world);
        Wire::hurry(10);
        at_every_step(world, "ADD", 3, |_, _| {});
    });
}

#[test]
fn a_del_that_is_killed_can_be_repeated() {
    on_a_node(|world| {
        at_every_step(world, "DEL", 3, |input, pod| {
            run(&mut World::command("ADD", "c1", Some(pod)), input.as_bytes()).done();
        });
    });
}

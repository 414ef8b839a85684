//! Devices, routes, neighbours, addresses and settings that are lost.

use harness::{cni, eventually};

use super::topology::{SECOND, SOON, Topology, of_family};

/// Causes a loss, and asserts that the agent repairs it.
#[track_caller]
fn lose(topology: &Topology, what: &'static str, loss: impl Fn(&Topology)) {
    topology.lose(what, loss);
    topology.assert_in_order(&format!("after the loss of a {what}"));
}

#[test]
fn objects_of_a_pods_interface_are_restored() {
    harness::require_root!();
    let topology = Topology::build();
    let forger = topology.forge();
    let interface = topology.web.host_interface().to_owned();
    // The kernel removes routes, neighbours and addresses of a link that goes down.
    lose(&topology, "route", |topology| {
        topology.node().run_ip(&format!("link set {interface} down"));
        topology.node().run_ip(&format!("link set {interface} up"));
    });
    forger.assert_held("after down and up");
    lose(&topology, "interface", |topology| {
        topology.node().run_ip(&format!("link set {interface} down"));
    });
    forger.assert_held("after down");
    lose(&topology, "interface", |topology| {
        let other = format!("link set {interface} address 02:00:00:00:00:99");
        topology.node().run_ip(&other);
    });
    // A smaller MTU, a larger one, and one so small that the kernel removes IPv6.
    let mtu = || {
        let arguments = ["link", "show", "dev", &interface];
        let output = topology.node().command("ip").args(arguments).output();
        let text = String::from_utf8(output.expect("to run ip").stdout).expect("text");
        let mut words = text.split(' ').skip_while(|word| *word != "mtu");
        words.nth(1).map(str::to_owned).expect("an MTU")
    };
    let before = mtu();
    for other in ["1300", "9000", "600"] {
        lose(&topology, "interface", |topology| {
            topology
                .node()
                .run_ip(&format!("link set {interface} mtu {other}"));
        });
        assert_eq!(mtu(), before, "after {other}");
    }
    topology.node().run_ip("link add br7 type bridge");
    lose(&topology, "interface", |topology| {
        topology
            .node()
            .run_ip(&format!("link set {interface} master br7"));
    });
    topology.node().run_ip("link del br7");
    for v4 in [true, false] {
        let address = of_family(topology.web.addresses(), v4);
        lose(&topology, "route", |topology| {
            topology
                .node()
                .run_ip(&format!("route del {address} dev {interface}"));
        });
        lose(&topology, "neighbour", |topology| {
            topology
                .node()
                .run_ip(&format!("neigh del {address} dev {interface}"));
        });
    }
    let address = of_family(topology.web.addresses(), true);
    for state in ["permanent", "reachable"] {
        lose(&topology, "neighbour", |topology| {
            let entry = format!("{address} lladdr 02:00:00:00:00:99 dev {interface} nud {state}");
            topology.node().run_ip(&format!("neigh replace {entry}"));
        });
    }
    lose(&topology, "address", |topology| {
        topology
            .node()
            .run_ip(&format!("addr del fe80::1/64 dev {interface}"));
    });
    lose(&topology, "route", |topology| {
        topology.node().sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        topology.node().sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        // The administrator owns the uplink's addresses, so the test restores them.
        for address in topology.node().addresses().iter().filter(|ip| ip.is_ipv6()) {
            topology
                .node()
                .run_ip(&format!("addr replace {address}/64 dev eth0 nodad"));
        }
        topology
            .node()
            .run_ip("route replace default via fd00:50::1 dev eth0");
    });
    forger.assert_held("in the end");
    topology.assert_in_time();
}

#[test]
fn the_check_of_pods_names_routes_and_neighbours() {
    harness::require_root!();
    let mut topology = Topology::build();
    // Without an agent, nothing is restored.
    topology.agents[0].stop(5 * SECOND);
    let interface = topology.web.host_interface().to_owned();
    let address = of_family(topology.web.addresses(), true);
    topology
        .node()
        .run_ip(&format!("route del {address} dev {interface}"));
    topology
        .node()
        .run_ip(&format!("neigh del {address} dev {interface}"));
    topology
        .node()
        .sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "0");
    let description = cni::conflist(topology.node()).expect("a description");
    let leases = description["plugins"][0]["ipam"]["dataDir"]
        .as_str()
        .expect("a directory");
    let output = topology.node().run(&["ipam", "check", "--data-dir", leases]);
    let output = output.expect("to check");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for expected in [
        format!("there is no route to {address} by interface {interface}"),
        format!("the Ethernet address of {address} is not noted at interface {interface}"),
        format!("net.ipv4.conf.{interface}.forwarding is not 1"),
    ] {
        assert!(text.contains(&expected), "{expected} is not in {text}");
    }
    // The next start of the agent restores it.
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    topology.assert_in_order("after a start");
}

#[test]
fn forwarding_that_is_switched_off_is_switched_on_where_packets_of_pods_come_in() {
    harness::require_root!();
    let mut topology = Topology::build();
    lose(&topology, "setting", |topology| {
        topology.node().sysctl("net/ipv4/ip_forward", "1");
        topology.node().sysctl("net/ipv4/ip_forward", "0");
    });
    lose(&topology, "setting", |topology| {
        topology.node().sysctl("net/ipv6/conf/all/forwarding", "0");
    });
    let interface = topology.web.host_interface().to_owned();
    for setting in ["lo/accept_local", "lo/forwarding", "eth0/forwarding"] {
        lose(&topology, "setting", |topology| {
            topology.node().sysctl(&format!("net/ipv4/conf/{setting}"), "0");
        });
    }
    for family in ["ipv4", "ipv6"] {
        lose(&topology, "setting", |topology| {
            topology
                .node()
                .sysctl(&format!("net/{family}/conf/{interface}/forwarding"), "0");
        });
    }
    topology.assert_in_time();
    topology.agents[0].stop(5 * SECOND);
    topology
        .node()
        .sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "0");
    topology.node().sysctl("net/ipv4/ip_forward", "1");
    topology.node().sysctl("net/ipv4/ip_forward", "0");
    topology.agents[0].start_again();
    topology.agents[0].wait_ready(10 * SECOND);
    topology.assert_in_order("after a start");
}

#[test]
fn files_for_container_runtimes_come_back() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    for path in [
        cni::conf_dir(node).join("10-millrace.conflist"),
        cni::bin_dir(node).join("millrace-cni"),
    ] {
        let before = std::fs::read(&path).expect("a file");
        topology.lose("file", |_| std::fs::remove_file(&path).expect("to remove"));
        assert!(
            std::fs::read(&path).expect("a file") == before,
            "{}",
            path.display()
        );
    }
    topology.assert_in_order("in the end");
    topology.assert_in_time();
}

#[test]
fn our_own_devices_and_their_entries_come_back() {
    harness::require_root!();
    let topology = Topology::with("routingMode: vxlan\n");
    let tunnel = "millrace-vxlan";
    let shown = |what: &str| {
        let output = topology.node().command("ip").args(what.split(' ')).output();
        String::from_utf8(output.expect("to run ip").stdout).expect("text")
    };
    lose(&topology, "interface", |topology| {
        topology.node().run_ip("link del millrace0");
    });
    lose(&topology, "route", |topology| {
        topology.node().run_ip("route flush dev millrace0");
    });
    lose(&topology, "interface", |topology| {
        topology.node().run_ip(&format!("link del {tunnel}"));
    });
    lose(&topology, "route", |topology| {
        topology.node().run_ip(&format!("route flush dev {tunnel}"));
    });
    for family in ["ipv4", "ipv6"] {
        lose(&topology, "setting", |topology| {
            topology
                .node()
                .sysctl(&format!("net/{family}/conf/{tunnel}/forwarding"), "0");
        });
    }
    let neighbours = shown(&format!("neigh show dev {tunnel}"));
    let end = neighbours.split(' ').next().expect("an end").to_owned();
    lose(&topology, "neighbour", |topology| {
        topology.node().run_ip(&format!("neigh del {end} dev {tunnel}"));
    });
    // The kernel does not report a replaced entry as a loss.
    for state in ["permanent", "reachable"] {
        lose(&topology, "neighbour", |topology| {
            let entry = format!("{end} lladdr 02:00:00:00:00:98 dev {tunnel} nud {state}");
            topology.node().run_ip(&format!("neigh replace {entry}"));
        });
    }
    let entries = topology
        .node()
        .command("bridge")
        .args(["fdb", "show", "dev", tunnel])
        .output()
        .expect("to run bridge");
    let entries = String::from_utf8(entries.stdout).expect("text");
    let entry = entries
        .lines()
        .find(|line| line.contains(" dst "))
        .expect("an entry");
    let words: Vec<_> = entry.split(' ').collect();
    let at = words.iter().position(|word| *word == "dst").expect("a node");
    lose(&topology, "forwarding entry", |topology| {
        let entry = format!("fdb del {} dev {tunnel} dst {}", words[0], words[at + 1]);
        topology.run("bridge", &entry);
    });
    for to in ["192.168.50.77".to_owned(), format!("{} port 9999", words[at + 1])] {
        lose(&topology, "forwarding entry", |topology| {
            let entry = format!("fdb replace {} dev {tunnel} dst {to}", words[0]);
            topology.run("bridge", &entry);
        });
    }
    eventually("the tunnel to be whole", SOON, || {
        shown(&format!("neigh show dev {tunnel}")).contains(&end)
    });
    topology.assert_in_time();
}

#[test]
fn a_tunnel_that_another_program_alters_is_as_it_was_again() {
    harness::require_root!();
    let topology = Topology::with("routingMode: vxlan\n");
    let tunnel = "millrace-vxlan";
    topology.node().run_ip("link add br7 type bridge");
    lose(&topology, "interface", |topology| {
        topology.node().run_ip(&format!("link set {tunnel} master br7"));
    });
    topology.node().run_ip("link del br7");
    for altered in [
        "local 192.168.50.99",
        "dev lo local 192.168.50.99",
        "remote 192.168.50.77",
        "ttl 1",
        "learning",
    ] {
        lose(&topology, "interface", |topology| {
            topology
                .node()
                .run_ip(&format!("link set {tunnel} type vxlan id 1 {altered}"));
        });
    }
    topology.assert_in_time();
}

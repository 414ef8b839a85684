//! Devices, routes, neighbours, addresses and settings that are lost.

use harness::{cni, eventually};

use super::town::{SECOND, SOON, Town, of_family};

/// Causes a loss, and asserts that the agent repairs it.
#[track_caller]
fn lose(town: &Town, what: &'static str, loss: impl Fn(&Town)) {
    town.lose(what, loss);
    town.assert_in_order(&format!("after the loss of a {what}"));
}

#[test]
fn what_a_pods_interface_is_owed_comes_back() {
    harness::require_root!();
    let town = Town::build();
    let forger = town.forge();
    let interface = town.web.host_interface().to_owned();
    // The kernel removes routes, neighbours and addresses of a link that goes down.
    lose(&town, "route", |town| {
        town.node().run_ip(&format!("link set {interface} down"));
        town.node().run_ip(&format!("link set {interface} up"));
    });
    forger.assert_held("after down and up");
    lose(&town, "interface", |town| {
        town.node().run_ip(&format!("link set {interface} down"));
    });
    forger.assert_held("after down");
    lose(&town, "interface", |town| {
        let other = format!("link set {interface} address 02:00:00:00:00:99");
        town.node().run_ip(&other);
    });
    // A smaller MTU, a larger one, and one so small that the kernel removes IPv6.
    let mtu = || {
        let arguments = ["link", "show", "dev", &interface];
        let output = town.node().command("ip").args(arguments).output();
        let text = String::from_utf8(output.expect("to run ip").stdout).expect("text");
        let mut words = text.split(' ').skip_while(|word| *word != "mtu");
        words.nth(1).map(str::to_owned).expect("an MTU")
    };
    let before = mtu();
    for other in ["1300", "9000", "600"] {
        lose(&town, "interface", |town| {
            town.node().run_ip(&format!("link set {interface} mtu {other}"));
        });
        assert_eq!(mtu(), before, "after {other}");
    }
    town.node().run_ip("link add br7 type bridge");
    lose(&town, "interface", |town| {
        town.node().run_ip(&format!("link set {interface} master br7"));
    });
    town.node().run_ip("link del br7");
    for v4 in [true, false] {
        let address = of_family(town.web.addresses(), v4);
        lose(&town, "route", |town| {
            town.node()
                .run_ip(&format!("route del {address} dev {interface}"));
        });
        lose(&town, "neighbour", |town| {
            town.node()
                .run_ip(&format!("neigh del {address} dev {interface}"));
        });
    }
    let address = of_family(town.web.addresses(), true);
    for state in ["permanent", "reachable"] {
        lose(&town, "neighbour", |town| {
            let entry = format!("{address} lladdr 02:00:00:00:00:99 dev {interface} nud {state}");
            town.node().run_ip(&format!("neigh replace {entry}"));
        });
    }
    lose(&town, "address", |town| {
        town.node()
            .run_ip(&format!("addr del fe80::1/64 dev {interface}"));
    });
    lose(&town, "route", |town| {
        town.node().sysctl("net/ipv6/conf/all/disable_ipv6", "1");
        town.node().sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        // The administrator owns the uplink's addresses, so the test restores them.
        for address in town.node().addresses().iter().filter(|ip| ip.is_ipv6()) {
            town.node()
                .run_ip(&format!("addr replace {address}/64 dev eth0 nodad"));
        }
        town.node()
            .run_ip("route replace default via fd00:50::1 dev eth0");
    });
    forger.assert_held("in the end");
    town.assert_in_time();
}

#[test]
fn what_the_check_of_pods_says_of_routes_and_neighbours() {
    harness::require_root!();
    let mut town = Town::build();
    // Without an agent, nothing is restored.
    town.agents[0].stop(5 * SECOND);
    let interface = town.web.host_interface().to_owned();
    let address = of_family(town.web.addresses(), true);
    town.node()
        .run_ip(&format!("route del {address} dev {interface}"));
    town.node()
        .run_ip(&format!("neigh del {address} dev {interface}"));
    town.node()
        .sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "0");
    let description = cni::conflist(town.node()).expect("a description");
    let leases = description["plugins"][0]["ipam"]["dataDir"]
        .as_str()
        .expect("a directory");
    let output = town.node().run(&["ipam", "check", "--data-dir", leases]);
    let output = output.expect("to check");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for said in [
        format!("there is no route to {address} by interface {interface}"),
        format!("the Ethernet address of {address} is not noted at interface {interface}"),
        format!("net.ipv4.conf.{interface}.forwarding is not 1"),
    ] {
        assert!(text.contains(&said), "{said} is not in {text}");
    }
    // The next start of the agent restores it.
    town.agents[0].start_again();
    town.agents[0].wait_ready(10 * SECOND);
    town.assert_in_order("after a start");
}

#[test]
fn forwarding_that_is_switched_off_is_switched_on_where_packets_of_pods_come_in() {
    harness::require_root!();
    let mut town = Town::build();
    lose(&town, "setting", |town| {
        town.node().sysctl("net/ipv4/ip_forward", "1");
        town.node().sysctl("net/ipv4/ip_forward", "0");
    });
    lose(&town, "setting", |town| {
        town.node().sysctl("net/ipv6/conf/all/forwarding", "0");
    });
    let interface = town.web.host_interface().to_owned();
    for setting in ["lo/accept_local", "lo/forwarding", "eth0/forwarding"] {
        lose(&town, "setting", |town| {
            town.node().sysctl(&format!("net/ipv4/conf/{setting}"), "0");
        });
    }
    for family in ["ipv4", "ipv6"] {
        lose(&town, "setting", |town| {
            town.node()
                .sysctl(&format!("net/{family}/conf/{interface}/forwarding"), "0");
        });
    }
    town.assert_in_time();
    town.agents[0].stop(5 * SECOND);
    town.node()
        .sysctl(&format!("net/ipv4/conf/{interface}/forwarding"), "0");
    town.node().sysctl("net/ipv4/ip_forward", "1");
    town.node().sysctl("net/ipv4/ip_forward", "0");
    town.agents[0].start_again();
    town.agents[0].wait_ready(10 * SECOND);
    town.assert_in_order("after a start");
}

#[test]
fn files_for_container_runtimes_come_back() {
    harness::require_root!();
    let town = Town::build();
    let node = town.node();
    for path in [
        cni::conf_dir(node).join("10-millrace.conflist"),
        cni::bin_dir(node).join("millrace-cni"),
    ] {
        let before = std::fs::read(&path).expect("a file");
        town.lose("file", |_| std::fs::remove_file(&path).expect("to remove"));
        assert!(
            std::fs::read(&path).expect("a file") == before,
            "{}",
            path.display()
        );
    }
    town.assert_in_order("in the end");
    town.assert_in_time();
}

#[test]
fn our_own_devices_and_their_entries_come_back() {
    harness::require_root!();
    let town = Town::with("routingMode: vxlan\n");
    let tunnel = "millrace-vxlan";
    let shown = |what: &str| {
        let output = town.node().command("ip").args(what.split(' ')).output();
        String::from_utf8(output.expect("to run ip").stdout).expect("text")
    };
    lose(&town, "interface", |town| {
        town.node().run_ip("link del millrace0");
    });
    lose(&town, "route", |town| {
        town.node().run_ip("route flush dev millrace0");
    });
    lose(&town, "interface", |town| {
        town.node().run_ip(&format!("link del {tunnel}"));
    });
    lose(&town, "route", |town| {
        town.node().run_ip(&format!("route flush dev {tunnel}"));
    });
    for family in ["ipv4", "ipv6"] {
        lose(&town, "setting", |town| {
            town.node()
                .sysctl(&format!("net/{family}/conf/{tunnel}/forwarding"), "0");
        });
    }
    let neighbours = shown(&format!("neigh show dev {tunnel}"));
    let end = neighbours.split(' ').next().expect("an end").to_owned();
    lose(&town, "neighbour", |town| {
        town.node().run_ip(&format!("neigh del {end} dev {tunnel}"));
    });
    // The kernel does not report a replaced entry as a loss.
    for state in ["permanent", "reachable"] {
        lose(&town, "neighbour", |town| {
            let entry = format!("{end} lladdr 02:00:00:00:00:98 dev {tunnel} nud {state}");
            town.node().run_ip(&format!("neigh replace {entry}"));
        });
    }
    let entries = town
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
    lose(&town, "forwarding entry", |town| {
        let entry = format!("fdb del {} dev {tunnel} dst {}", words[0], words[at + 1]);
        town.run("bridge", &entry);
    });
    for to in ["192.168.50.77".to_owned(), format!("{} port 9999", words[at + 1])] {
        lose(&town, "forwarding entry", |town| {
            let entry = format!("fdb replace {} dev {tunnel} dst {to}", words[0]);
            town.run("bridge", &entry);
        });
    }
    eventually("the tunnel to be whole", SOON, || {
        shown(&format!("neigh show dev {tunnel}")).contains(&end)
    });
    town.assert_in_time();
}

#[test]
fn a_tunnel_that_another_program_alters_is_as_it_was_again() {
    harness::require_root!();
    let town = Town::with("routingMode: vxlan\n");
    let tunnel = "millrace-vxlan";
    town.node().run_ip("link add br7 type bridge");
    lose(&town, "interface", |town| {
        town.node().run_ip(&format!("link set {tunnel} master br7"));
    });
    town.node().run_ip("link del br7");
    for altered in [
        "local 192.168.50.99",
        "dev lo local 192.168.50.99",
        "remote 192.168.50.77",
        "ttl 1",
        "learning",
    ] {
        lose(&town, "interface", |town| {
            town.node()
                .run_ip(&format!("link set {tunnel} type vxlan id 1 {altered}"));
        });
    }
    town.assert_in_time();
}

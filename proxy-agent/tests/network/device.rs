//! Tests of our own device and its routes.

use super::*;

#[test]
fn our_device_is_made_once_and_then_left_alone() {
    in_namespace(|| async {
        add_uplink();
        std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").expect("strict filtering");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("IPv6 off by default");
        let netlink = Netlink::open().expect("a socket");
        let mut device = HostDevice::new(netlink.clone());
        let index = device.ensure(1400).await.expect("made");
        assert!(device.writes() > 0);

        let link = netlink
            .link_by_name(HOST_DEVICE)
            .await
            .expect("asked")
            .expect("there");
        let shown = ip("-d link show");
        for name in ["millrace0@millrace1", "millrace1@millrace0"] {
            let row = shown.lines().find(|row| row.contains(name)).expect("both ends");
            assert!(
                row.contains("NOARP,UP,LOWER_UP") && !row.contains("MULTICAST"),
                "{row}"
            );
            assert!(row.contains("mtu 1400"), "{row}");
        }
        assert_eq!(
            ip("-o addr show dev millrace0") + &ip("-o addr show dev millrace1"),
            "",
            "no addresses"
        );
        assert_eq!(setting("ipv4/conf/all/rp_filter"), "1");
        assert_eq!(
            setting("ipv4/conf/millrace0/rp_filter"),
            setting("ipv4/conf/default/rp_filter")
        );
        assert_eq!(setting("ipv4/conf/millrace0/forwarding"), "1");
        assert_eq!(setting("ipv6/conf/millrace0/forwarding"), "1");
        assert_eq!(setting("ipv6/conf/all/forwarding"), "0");
        assert_eq!(setting("ipv4/conf/millrace1/forwarding"), "0");

        let restarted = Netlink::open().expect("a socket");
        let mut after_restart = HostDevice::new(restarted.clone());
        assert_eq!(after_restart.ensure(1400).await.expect("adopted"), index);
        assert_eq!(after_restart.writes(), 0);
        assert_eq!(
            restarted.link_by_name(HOST_DEVICE).await.expect("asked"),
            Some(link)
        );

        after_restart.ensure(1350).await.expect("smaller");
        assert_eq!(after_restart.writes(), 2, "one for each end");
        assert!(after_restart.remove().await.expect("removed"));
        assert!(!after_restart.remove().await.expect("nothing left"));
        assert_eq!(netlink.link_by_name(HOST_DEVICE).await.expect("asked"), None);
    });
}

#[test]
fn an_interface_with_our_name_is_not_touched() {
    in_namespace(|| async {
        ip("link add millrace0 type veth peer name other0");
        let before = ip("-o link show");
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        let error = device.ensure(1500).await.expect_err("foreign");
        assert!(matches!(error, NetworkError::ForeignDevice { .. }), "{error}");
        assert!(device.remove().await.is_err());
        assert_eq!((ip("-o link show"), device.writes()), (before, 0));
    });
}

#[test]
fn routes_follow_what_is_wanted_and_nothing_is_written_twice() {
    in_namespace(|| async {
        add_uplink();
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        device.ensure(1400).await.expect("made");
        assert_eq!(device.sync_routes(wanted()).await.expect("set"), []);
        let expected = [
            "10.96.0.0/12 dev millrace0 scope link src 192.0.2.1",
            "203.0.113.9 dev millrace0 scope link src 192.0.2.1",
            "2001:db8:f::9 dev millrace0 src 2001:db8::1 metric 1024 pref medium",
            "fd00:96::/112 dev millrace0 src 2001:db8::1 metric 1024 pref medium",
        ];
        assert_eq!(our_routes(), expected);

        let mut restarted = HostDevice::new(Netlink::open().expect("a socket"));
        restarted.ensure(1400).await.expect("adopted");
        assert_eq!(restarted.sync_routes(wanted()).await.expect("read"), []);
        assert_eq!(restarted.writes(), 0);

        // The primary address is another one, and there are one range and one address less.
        let mut other = HostRoutes {
            node: node("192.0.2.2"),
            ..wanted()
        };
        other.service_cidrs.pop();
        other.virtual_addresses = [address("2001:db8:f::9")].into();
        assert_eq!(restarted.sync_routes(other.clone()).await.expect("set"), []);
        assert_eq!(
            our_routes(),
            [
                expected[0].replace("192.0.2.1", "192.0.2.2").as_str(),
                expected[2]
            ]
        );
        assert_eq!(restarted.writes(), 3);

        // The kernel removes the routes with their source address and with the device's state.
        ip("addr del 192.0.2.2/24 dev uplink0");
        ip("link set millrace0 down");
        assert_eq!(our_routes(), [""; 0]);
        ip("addr add 192.0.2.2/24 dev uplink0");
        restarted.ensure(1400).await.expect("up again");
        assert_eq!(restarted.sync_routes(other).await.expect("set"), []);
        assert_eq!(our_routes().len(), 2);
    });
}

#[test]
fn foreign_routes_stay_and_are_reported() {
    in_namespace(|| async {
        add_uplink();
        ip("route add 10.96.0.0/12 via 192.0.2.254 metric 50");
        ip("route add blackhole fd00:96::/112");
        ip("route add 198.51.100.0/24 via 192.0.2.254 proto 157");
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        device.ensure(1400).await.expect("made");
        let before = ip("route show proto boot") + &ip("-6 route show type blackhole");
        let problems = device.sync_routes(wanted()).await.expect("set");
        let objects: Vec<_> = problems.iter().map(|problem| problem.object.as_str()).collect();
        assert_eq!(objects, ["route 10.96.0.0/12", "route fd00:96::/112"]);
        assert!(
            problems[0].message.contains("through uplink0"),
            "{}",
            problems[0].message
        );
        assert_eq!(
            ip("route show proto boot") + &ip("-6 route show type blackhole"),
            before
        );
        assert!(
            ip("route show proto 157").contains("198.51.100.0/24"),
            "not on our device, hence not ours"
        );

        ip("route del 10.96.0.0/12 via 192.0.2.254");
        ip("route del blackhole fd00:96::/112");
        let change = monitor.changed().await.expect("following");
        assert!(device.is_concerned(&change), "{change:?}");
        assert_eq!(device.sync_routes(wanted()).await.expect("set"), []);
        assert_eq!(
            our_routes()
                .iter()
                .filter(|route| route.contains("millrace0"))
                .count(),
            4
        );
    });
}

#[test]
fn packets_to_virtual_addresses_leave_by_our_device_and_end_at_its_peer() {
    in_namespace(|| async {
        add_uplink();
        for setting in [
            "ipv4/ip_forward",
            "ipv6/conf/all/forwarding",
            "ipv4/conf/all/rp_filter",
        ] {
            std::fs::write(format!("/proc/sys/net/{setting}"), "1").expect("a setting");
        }
        let mut device = HostDevice::new(Netlink::open().expect("a socket"));
        device.ensure(1400).await.expect("made");
        device.sync_routes(wanted()).await.expect("set");
        for (to, from) in [("10.96.7.7:53", "192.0.2.1"), ("[fd00:96::7]:53", "2001:db8::1")] {
            let before = (sent_by("millrace0"), sent_by("millrace1"));
            let any = if from.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.connect(to).expect("a route");
            assert_eq!(socket.local_addr().expect("bound").ip(), address(from));
            for _ in 0..5 {
                socket
                    .send(b"?")
                    .expect("no neighbour to wait for, and no refusal");
            }
            // The counter grows by exactly these five: no solicitation, no report, and no echo from the other
            // end.
            let after = (sent_by("millrace0"), sent_by("millrace1"));
            assert_eq!(after, (before.0 + 5, before.1), "{to}");
        }
        assert_eq!(
            (sent_by("millrace0"), sent_by("millrace1")),
            (10, 0),
            "it says nothing of its own accord"
        );
    });
}

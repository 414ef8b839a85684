//! Tests of the monitor: it follows links, addresses and routes.

use super::*;

#[test]
fn links_addresses_and_default_routes_are_followed() {
    in_namespace(|| async {
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        assert_eq!(
            monitor
                .links()
                .iter()
                .map(|link| link.name.as_str())
                .collect::<Vec<_>>(),
            ["lo"]
        );

        ip("link add uplink0 type veth peer name outside0");
        ip("addr add 192.0.2.1/24 dev uplink0");
        ip("link set uplink0 up");
        ip("link set outside0 up");
        ip("route add default via 192.0.2.254");
        let carries = |links: &Links| {
            links
                .by_name("uplink0")
                .is_some_and(millrace::network::Link::has_carrier)
        };
        let changes = until(&mut monitor, "the uplink has carrier", carries).await;
        assert!(
            changes
                .iter()
                .any(|change| change.addresses && change.default_routes),
            "{changes:?}"
        );
        let index = monitor.links().by_name("uplink0").expect("there").index;
        assert_eq!(monitor.links().default_interfaces(), [index].into());
        let found = roles(monitor.links(), &RoleOptions::default());
        assert_eq!(
            found
                .of(Role::Uplink)
                .map(|uplink| uplink.index)
                .collect::<Vec<_>>(),
            [index]
        );
        let addresses = NodeAddresses::find(monitor.links(), &found, &[]);
        assert_eq!(addresses.all, [address("192.0.2.1")]);

        // The kernel sends no message about routes that it removes with the state of a link.
        ip("link set uplink0 down");
        until(&mut monitor, "the default route is gone", |links| {
            links.default_interfaces().is_empty()
        })
        .await;

        // The kernel sends no message about one end of a veth when the other one moves.
        let pod = Namespace::new();
        pod.receive("outside0");
        let is_connected = |links: &Links| {
            links
                .get(index)
                .is_some_and(millrace::network::Link::connects_to_another_namespace)
        };
        until(&mut monitor, "the other end is known to have moved", is_connected).await;

        ip("link add br0 type bridge");
        ip("link set uplink0 master br0");
        ip("link set uplink0 nomaster");
        until(&mut monitor, "the bridge is there", |links| {
            links.by_name("br0").is_some()
        })
        .await;
        assert!(
            monitor.links().get(index).is_some(),
            "leaving a bridge is not being removed"
        );
        ip("link del uplink0");
        until(&mut monitor, "the link is gone", |links| {
            links.get(index).is_none()
        })
        .await;
        assert_eq!(monitor.links().addresses(index), []);
    });
}

#[test]
fn lost_messages_are_made_up_for() {
    in_namespace(|| async {
        let mut monitor = Monitor::start(Netlink::open().expect("a socket"))
            .await
            .expect("following");
        let dir = tempfile::tempdir().expect("a directory");
        let batch = dir.path().join("batch");
        let routes =
            (0..60_000).map(|i| format!("route add 10.{}.{}.{} dev lo", i >> 16, i >> 8 & 255, i & 255));
        std::fs::write(&batch, routes.collect::<Vec<_>>().join("\n")).expect("written");
        run("ip", &["-batch", batch.to_str().expect("UTF-8")]);
        ip("link add late0 type veth peer name late1");
        let changes = until(&mut monitor, "the late link is there", |links| {
            links.by_name("late0").is_some()
        })
        .await;
        assert!(
            changes.iter().any(|change| change.resynced),
            "the buffer held it all: make the flood larger"
        );
    });
}

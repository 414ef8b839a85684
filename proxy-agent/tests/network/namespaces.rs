//! Tests of the namespaces of pods, and of their cookies.

use super::*;

#[test]
fn a_namespace_gives_its_cookie_by_entering_and_by_request() {
    in_namespace_with_cookie(|| async {
        let pods = [Namespace::new(), Namespace::new()];
        let files = || {
            pods.iter()
                .map(|pod| std::fs::File::open(&pod.file).expect("the namespace"))
                .collect()
        };
        let own = own_netns_cookie(None).expect("a cookie");
        let entered = cookies_by_entering(files(), None).expect("entered");
        assert_eq!(cookies_of(files(), None).expect("asked"), entered);
        assert_eq!(
            entered,
            [cookie_inside(&pods[0].file), cookie_inside(&pods[1].file)]
        );
        assert_eq!(
            own_netns_cookie(None).expect("a cookie"),
            own,
            "this thread has not moved"
        );
    });
}

/// The cookie that a process in the namespace reads.
fn cookie_inside(file: &Path) -> u64 {
    let file = std::fs::File::open(file).expect("the namespace");
    let inside = move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("entering");
        own_netns_cookie(None).expect("a cookie")
    };
    std::thread::spawn(inside).join().expect("a thread")
}

#[test]
fn pods_are_found_before_and_after_their_interface() {
    in_namespace_with_cookie(|| async {
        let directory = tempfile::tempdir().expect("a directory");
        let directory = directory.path();
        let netlink = Netlink::open().expect("a socket");
        let mut monitor = Monitor::start(netlink.clone()).await.expect("following");
        let mut namespaces = PodNamespaces::new(netlink, directory).expect("watching");
        let no_uplink = RoleOptions {
            uplinks: vec!["none".into()],
            ..RoleOptions::default()
        };
        std::fs::write(directory.join("not-mounted"), "").expect("a file");
        Namespace::make(directory, "without-pod");

        // The file exists first, as with every container runtime; two interfaces lead into one pod.
        let first = Namespace::make(directory, "first");
        for name in ["pod0", "pod1"] {
            ip(&format!(
                "link add {name} type veth peer name eth-{name} netns {}",
                first.display()
            ));
        }
        until(&mut monitor, "both links are there", |links| {
            links.by_name("pod1").is_some()
        })
        .await;
        let found = roles(monitor.links(), &no_uplink);
        assert_eq!(
            found
                .of(Role::Pod)
                .map(|pod| pod.name.as_str())
                .collect::<Vec<_>>(),
            ["pod0", "pod1"]
        );
        assert!(namespaces.update(monitor.links(), &found).await);
        assert!(!namespaces.update(monitor.links(), &found).await, "no news");
        let cookie = cookie_inside(&first);
        assert_ne!(cookie, own_netns_cookie(None).expect("a cookie"));
        assert_eq!(
            namespaces.cookies().map(|(_, cookie)| cookie).collect::<Vec<_>>(),
            [cookie, cookie]
        );

        // The interface exists first; its namespace gets a file in the directory later.
        let second = Namespace::new();
        ip(&format!(
            "link add pod2 type veth peer name eth0 netns {}",
            second.file.display()
        ));
        until(&mut monitor, "the link is there", |links| {
            links.by_name("pod2").is_some()
        })
        .await;
        let found = roles(monitor.links(), &no_uplink);
        assert!(!namespaces.update(monitor.links(), &found).await);
        let file = directory.join("second");
        std::fs::write(&file, "").expect("a file to mount on");
        mount(
            Some(&second.file),
            &file,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("mounted");
        namespaces.mounted().await;
        assert!(namespaces.update(monitor.links(), &found).await);
        let pod2 = monitor.links().by_name("pod2").expect("there").index;
        assert!(
            namespaces
                .cookies()
                .any(|found| found == (pod2, cookie_inside(&second.file)))
        );

        // A new pod gets the name, the id and the inode of a removed one.
        ip("link del pod2");
        nix::mount::umount(&second.file).expect("unmounted");
        nix::mount::umount(&file).expect("unmounted");
        let third = Namespace::make(directory, "second");
        ip(&format!(
            "link add pod3 type veth peer name eth0 netns {}",
            third.display()
        ));
        until(&mut monitor, "the link is there", |links| {
            links.by_name("pod3").is_some()
        })
        .await;
        assert!(
            namespaces
                .update(monitor.links(), &roles(monitor.links(), &no_uplink))
                .await
        );
        let pod3 = monitor.links().by_name("pod3").expect("there").index;
        assert!(
            namespaces
                .cookies()
                .any(|found| found == (pod3, cookie_inside(&third)))
        );
        assert!(!namespaces.cookies().any(|(index, _)| index == pod2));
    });
}

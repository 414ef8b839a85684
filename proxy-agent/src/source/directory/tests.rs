//! Tests of changes in a real directory, seen through the state of the cluster.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::cluster::{Changes, ClusterState};

/// The time limit of each step, which is ample on any machine.
const DEADLINE: Duration = Duration::from_secs(20);

struct World {
    directory: TempDir,
    events: Receiver<Event>,
    source: StateHandle,
    cluster: ClusterState,
    /// The number of deletions since the start, to show that no object was deleted in between.
    deleted: usize,
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

impl World {
    async fn new(files: &[(&str, String)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        for (name, text) in files {
            fs::create_dir_all(directory.path().join(name).parent().expect("below the root"))
                .expect("a directory");
            fs::write(directory.path().join(name), text).expect("a file");
        }
        let (sender, events) = mpsc::channel(64);
        let source = start(directory.path().to_owned(), sender).expect("it starts");
        let mut world = Self {
            directory,
            events,
            source,
            cluster: ClusterState::new(None),
            deleted: 0,
        };
        world.until("synced", |world| world.cluster.synced()).await;
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file as a careful tool does.
    fn replace(&self, name: &str, text: &str) {
        fs::write(self.path("new.tmp"), text).expect("a file");
        fs::rename(self.path("new.tmp"), self.path(name)).expect("a rename");
    }

    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            let left = DEADLINE.saturating_sub(started.elapsed());
            let next = tokio::time::timeout(left, self.events.recv()).await;
            let event =
                next.unwrap_or_else(|_| panic!("still not {what}: {:?} {:?}", self.names(), self.messages()));
            let event = event.expect("the source goes on");
            self.deleted += usize::from(matches!(event.change, Change::Delete(..)));
            self.cluster.apply(event, &mut Changes::default());
        }
    }

    async fn until_named(&mut self, names: &[&str]) {
        self.until(&format!("{names:?}"), |world| world.names() == names)
            .await;
    }

    /// The name and the address of each service.
    fn names(&self) -> Vec<String> {
        let name = |service: &crate::cluster::Service| {
            let address = service.cluster_ips().next().expect("an address");
            format!("{} {address}", service.name)
        };
        let mut names: Vec<_> = self
            .cluster
            .services()
            .map(|(_, service)| name(service))
            .collect();
        names.sort();
        names
    }

    fn messages(&self) -> Vec<String> {
        let of = |problem: crate::cluster::Problem| {
            let object = problem
                .object
                .replace(&self.directory.path().display().to_string(), "ROOT");
            problem
                .messages
                .into_iter()
                .map(move |message| format!("{object}: {message}"))
                .collect::<Vec<_>>()
        };
        self.cluster.problems().into_iter().flat_map(of).collect()
    }
}

#[tokio::test]
async fn files_come_change_move_and_go() {
    let mut world = World::new(&[
        ("a.yaml", service("a", "10.0.0.1")),
        ("notes.txt", service("x", "10.0.0.9")),
    ])
    .await;
    assert_eq!(world.names(), ["a 10.0.0.1"]);
    fs::write(world.path("b.yml"), service("b", "10.0.0.2")).expect("written");
    world.until_named(&["a 10.0.0.1", "b 10.0.0.2"]).await;
    world.replace("b.yml", &service("b", "10.0.0.3"));
    world.until_named(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    fs::write(world.path("c.json"), r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c"}, "spec": {"clusterIP": "10.0.0.4"}}"#)
        .expect("written");
    world
        .until_named(&["a 10.0.0.1", "b 10.0.0.3", "c 10.0.0.4"])
        .await;
    fs::rename(world.path("a.yaml"), world.path("z.yaml")).expect("renamed");
    fs::remove_file(world.path("c.json")).expect("removed");
    world.until_named(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    assert_eq!(world.deleted, 1, "a renamed file's objects are never gone");
    fs::hard_link(world.path("notes.txt"), world.path("x.yaml")).expect("linked");
    world
        .until_named(&["a 10.0.0.1", "b 10.0.0.3", "x 10.0.0.9"])
        .await;
    fs::rename(world.path("x.yaml"), world.path("x.yaml.off")).expect("renamed");
    world.until_named(&["a 10.0.0.1", "b 10.0.0.3"]).await;
    assert!(world.messages().is_empty(), "{:?}", world.messages());
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_content_until_it_is_repaired() {
    let good = service("a", "10.0.0.1") + &service("b", "10.0.0.2");
    let mut world = World::new(&[("a.yaml", good.clone())]).await;
    world.replace(
        "a.yaml",
        &good
            .replace("port: 80}]}\n---", "port: eighty}]}\n---")
            .replace("10.0.0.2", "10.0.0.3"),
    );
    world.until("broken", |world| !world.messages().is_empty()).await;
    assert_eq!(
        world.messages(),
        [
            "file ROOT/a.yaml: line 5, field spec.ports[0].port: invalid i64; its last good content stays served"
        ]
    );
    assert_eq!(world.names(), ["a 10.0.0.1", "b 10.0.0.2"]);
    // The source follows the rest of the directory.
    world.replace("c.yaml", &service("c", "10.0.0.4"));
    world
        .until_named(&["a 10.0.0.1", "b 10.0.0.2", "c 10.0.0.4"])
        .await;
    world.replace("a.yaml", &service("b", "10.0.0.3"));
    world.until_named(&["b 10.0.0.3", "c 10.0.0.4"]).await;
    assert!(world.messages().is_empty());
}

#[tokio::test]
async fn a_file_that_was_never_good_affects_no_other() {
    let mut world = World::new(&[
        ("a.yaml", "kind: [".to_owned()),
        ("b.yaml", service("b", "10.0.0.2")),
    ])
    .await;
    world.until_named(&["b 10.0.0.2"]).await;
    let messages = world.messages();
    assert!(
        messages[0].starts_with("file ROOT/a.yaml: line 1"),
        "{messages:?}"
    );
    assert!(messages[0].ends_with("nothing in it is served"), "{messages:?}");
    fs::write(world.path("a.yaml"), b"kind: Service\n\xff").expect("written");
    world
        .until("told", |world| world.messages()[0].contains("line 2: not UTF-8"))
        .await;
    fs::remove_file(world.path("a.yaml")).expect("removed");
    world.until("mended", |world| world.messages().is_empty()).await;
}

#[tokio::test]
async fn unknown_kinds_are_named_and_the_rest_of_the_file_counts() {
    let text = service("a", "10.0.0.1")
        + "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
        + &service("a", "10.0.0.2");
    let world = World::new(&[("a.yaml", text)]).await;
    assert_eq!(world.names(), ["a 10.0.0.1"]);
    let messages = world.messages();
    assert!(
        messages[0].starts_with("file ROOT/a.yaml: line 7: Deployment of apps/v1 is none"),
        "{messages:?}"
    );
    assert!(
        messages[1].contains("line 11: Service default/a is left out: the file defines it before"),
        "{messages:?}"
    );
}

#[tokio::test]
async fn directories_come_move_and_go() {
    let mut world = World::new(&[
        ("one/two/a.yaml", service("a", "10.0.0.1")),
        (".git/x.yaml", service("x", "10.0.0.9")),
    ])
    .await;
    assert_eq!(world.names(), ["a 10.0.0.1"]);
    fs::create_dir_all(world.path("three/four")).expect("created");
    fs::write(world.path("three/four/b.yaml"), service("b", "10.0.0.2")).expect("written");
    world.until_named(&["a 10.0.0.1", "b 10.0.0.2"]).await;
    fs::rename(world.path("three"), world.path("five")).expect("renamed");
    fs::write(world.path("five/four/c.yaml"), service("c", "10.0.0.3")).expect("written");
    world
        .until_named(&["a 10.0.0.1", "b 10.0.0.2", "c 10.0.0.3"])
        .await;
    world.replace("five/four/b.yaml", &service("b", "10.0.0.4"));
    world
        .until_named(&["a 10.0.0.1", "b 10.0.0.4", "c 10.0.0.3"])
        .await;
    assert_eq!(world.deleted, 0, "a renamed directory's objects are never gone");
    fs::remove_dir_all(world.path("five")).expect("removed");
    world.until_named(&["a 10.0.0.1"]).await;
    let outside = TempDir::new().expect("a temporary directory");
    fs::rename(world.path("one"), outside.path().join("one")).expect("on one file system");
    world.until_named(&[]).await;
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_path_wins() {
    let mut world = World::new(&[
        ("b.yaml", service("a", "10.0.0.2")),
        ("c.yaml", service("a", "10.0.0.3")),
    ])
    .await;
    assert_eq!(world.names(), ["a 10.0.0.2"]);
    let left_out =
        |by: &str| format!("line 2: Service default/a is left out: ROOT/{by} defines it too and comes first");
    let reported = |world: &World| {
        world
            .messages()
            .iter()
            .map(|m| m.replace(&*world.directory.path().to_string_lossy(), "ROOT"))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        reported(&world),
        [format!("file ROOT/c.yaml: {}", left_out("b.yaml"))]
    );
    world.replace("a.yaml", &service("a", "10.0.0.1"));
    world
        .until("two left out", |world| world.messages().len() == 2)
        .await;
    assert_eq!(world.names(), ["a 10.0.0.1"]);
    fs::remove_file(world.path("a.yaml")).expect("removed");
    fs::remove_file(world.path("b.yaml")).expect("removed");
    world.until_named(&["a 10.0.0.3"]).await;
    world.until("mended", |world| world.messages().is_empty()).await;
    assert_eq!(world.deleted, 0);
}

#[tokio::test]
async fn a_volume_of_kubernetes_swaps_its_files_at_once() {
    let mut world = World::new(&[]).await;
    for (version, ip) in [("..1", "10.0.0.1"), ("..2", "10.0.0.2")] {
        fs::create_dir(world.path(version)).expect("created");
        fs::write(world.path(version).join("a.yaml"), service("a", ip)).expect("written");
    }
    symlink("..1", world.path("..data")).expect("linked");
    symlink("..data/a.yaml", world.path("a.yaml")).expect("linked");
    world.until_named(&["a 10.0.0.1"]).await;
    symlink("..2", world.path("..data_tmp")).expect("linked");
    fs::rename(world.path("..data_tmp"), world.path("..data")).expect("renamed");
    world.until_named(&["a 10.0.0.2"]).await;
    assert_eq!(world.deleted, 0);
}

#[tokio::test]
async fn a_directory_that_vanishes_is_no_reason_to_forget() {
    let mut world = World::new(&[("sub/a.yaml", service("a", "10.0.0.1"))]).await;
    let (root, aside) = (
        world.directory.path().to_owned(),
        TempDir::new().expect("a temporary directory"),
    );
    fs::rename(&root, aside.path().join("moved")).expect("on one file system");
    let started = Instant::now();
    while world.source.errors().is_empty() {
        assert!(started.elapsed() < DEADLINE, "no watcher noticed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.names(), ["a 10.0.0.1"]);
    fs::create_dir(&root).expect("created");
    fs::write(root.join("b.yaml"), service("b", "10.0.0.2")).expect("written");
    world.until_named(&["b 10.0.0.2"]).await;
    assert!(world.source.errors().is_empty());
}

#[tokio::test]
async fn a_large_file_is_read_by_its_differences() {
    let text = |changed: usize| -> String {
        (0..3000)
            .map(|i| {
                service(
                    &format!("s{i}"),
                    &format!(
                        "10.{}.{}.{}",
                        if i == changed { 1 } else { 2 },
                        i / 250,
                        1 + i % 250
                    ),
                )
            })
            .collect()
    };
    let mut world = World::new(&[("all.yaml", text(0))]).await;
    assert_eq!(world.cluster.service_count(), 3000);
    world.replace("all.yaml", &text(2999));
    let mut applied = 0;
    while applied < 2 {
        let event = tokio::time::timeout(DEADLINE, world.events.recv())
            .await
            .expect("in time")
            .expect("the source goes on");
        let object = match event.change {
            // The first lists end with kinds that no test waits for.
            Change::End(_) => continue,
            Change::Apply(object) => object,
            other => panic!("{other:?}"),
        };
        assert!(
            ["s0", "s2999"].contains(&object.metadata().name.as_str()),
            "{object} did not change"
        );
        applied += 1;
    }
}

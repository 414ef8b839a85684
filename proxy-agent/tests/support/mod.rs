//! The common part of all kernel tests: namespaces of their own with a bpffs in them.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A private bpffs in a mount and network namespace of the calling thread; it disappears with the thread.
pub struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    /// Moves the calling thread into new namespaces and mounts a bpffs there.
    pub fn enter() -> Self {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("kernel tests need root");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .expect("making the mount namespace private");
        let dir = tempfile::tempdir().expect("a temporary directory");
        mount(
            Some("bpf"),
            dir.path(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mounting a bpffs");
        #[cfg(feature = "log")]
        show_decisions();
        Self { dir }
    }

    /// A bpf root that does not exist yet.
    pub fn bpf_root(&self) -> PathBuf {
        self.dir.path().join("millrace")
    }

    /// The path of the bpffs itself.
    #[expect(dead_code, reason = "not every test file that includes this module needs it")]
    pub fn bpffs(&self) -> &Path {
        self.dir.path()
    }
}

/// Prints the decisions of programs, which a thread of the agent's library logs.
#[cfg(feature = "log")]
fn show_decisions() {
    // Another test of this process has set it before.
    let _ = tracing_subscriber::fmt()
        .without_time()
        .with_test_writer()
        .try_init();
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The thread reads at intervals.
        #[cfg(feature = "log")]
        std::thread::sleep(std::time::Duration::from_millis(100));
        let _ = nix::mount::umount2(self.dir.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

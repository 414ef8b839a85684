//! Directories that only root may enter.
//!
//! The agent, the command line and the CNI plugin use the files of the run directory and the state directory.
//! All three run as root. A container's volume or an older agent may have made such a directory with a wider
//! mode; the agent closes it.
//!
//! Invariant: a directory with a foreign file in it keeps its mode. An operator may have named `/run` or
//! `/var/lib`, and a closed one would stop the machine.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// The mode bits of users other than root.
const OTHERS: u32 = 0o077;

/// Whether a directory is closed to users other than root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Only root may enter the directory.
    Closed,
    /// The directory keeps its mode, since it holds a file that is not ours.
    Shared,
}

/// Makes a directory, or closes an existing one. `is_ours` decides by the name of a file whether it may lie
/// in it.
pub fn make(path: &Path, is_ours: impl Fn(&OsStr) -> bool) -> io::Result<Privacy> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => close(path, is_ours),
        made => made.map(|()| Privacy::Closed),
    }
}

/// Closes a directory if everything in it is ours.
pub fn close(path: &Path, is_ours: impl Fn(&OsStr) -> bool) -> io::Result<Privacy> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(Privacy::Closed);
    }
    for entry in fs::read_dir(path)? {
        if !is_ours(&entry?.file_name()) {
            return Ok(Privacy::Shared);
        }
    }
    fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
    Ok(Privacy::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_directory_of_ours_is_closed_however_it_was_made() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("missing/ours");
        let is_ours = |name: &OsStr| name == "note";
        assert_eq!(make(&path, is_ours).unwrap(), Privacy::Closed);
        assert_eq!(mode(&path), 0o700);
        fs::write(path.join("note"), "").unwrap();
        for wide in [0o755, 0o711, 0o770, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
            assert_eq!(make(&path, is_ours).unwrap(), Privacy::Closed, "{wide:o}");
            assert_eq!(mode(&path), 0o700, "{wide:o}");
        }
    }

    #[test]
    fn a_directory_that_holds_something_else_is_left_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        for name in ["note", "passwd"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        assert_eq!(make(root.path(), |name| name == "note").unwrap(), Privacy::Shared);
        assert_eq!(mode(root.path()), 0o755);
    }
}

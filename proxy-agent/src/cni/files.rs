//! Files that other programs read at any moment, replaced as a whole.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Writes a file with this content and mode, unless it has them; true if it had to be written.
///
/// The content goes into a temporary file beside it, to the disk, and then takes the name at once. The
/// directory must exist.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    if is_so(path, content, mode)? {
        return Ok(false);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(temporary(&name));
    let written = write(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(path)?;
    Ok(true)
}

/// The name of a file while it is written. Runtimes read names that end in .conf, .conflist or .json, and
/// execute the file that a network's type names.
pub fn temporary(name: &str) -> String {
    format!(".{name}.tmp")
}

/// Writes the names in a file's directory to the disk.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn is_so(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let looks_so =
        found.is_file() && found.len() == content.len() as u64 && found.permissions().mode() & 0o7777 == mode;
    Ok(looks_so && fs::read(path)? == content)
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // A temporary file of an agent that died is of no use, and could be a link to another place.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    // The umask of the process may have removed bits of the mode.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_when_it_differs() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.conflist");
        let names = || fs::read_dir(root.path()).unwrap().count();
        fs::write(root.path().join(".a.conflist.tmp"), "left behind").unwrap();
        assert!(replace(&path, b"one", 0o644).unwrap());
        assert!(!replace(&path, b"one", 0o644).unwrap());
        assert!(replace(&path, b"two", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert!(replace(&path, b"two", 0o755).unwrap(), "another mode");
        assert_eq!(names(), 1, "no temporary file is left");

        fs::remove_file(&path).unwrap();
        let elsewhere = root.path().join("elsewhere");
        fs::write(&elsewhere, "two").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(
            replace(&path, b"two", 0o644).unwrap(),
            "a link is no file of ours"
        );
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert!(replace(&root.path().join("none/a"), b"", 0o644).is_err());
    }
}

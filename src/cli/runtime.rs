//! The note a running `demo --serve` leaves behind, so that `gateway codex` finds it: address, key and process.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::language;
use crate::said;

/// A gateway that runs on this machine for this user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Where it serves: `http://127.0.0.1:40123`, without `/v1`.
    pub url: String,
    /// A key for it.
    pub key: String,
    /// Its process.
    pub pid: u32,
}

/// `$XDG_RUNTIME_DIR/codex-gateway/demo.json`, else `codex-gateway-UID/demo.json` in the temporary directory.
pub fn path() -> PathBuf {
    directory().join("demo.json")
}

/// The directory of the note, 0700.
pub fn directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("codex-gateway"),
        None => std::env::temp_dir().join(format!("codex-gateway-{}", uid())),
    }
}

/// The running demo; `None` when there is no note, its process is gone, or the file is not ours alone: in a shared
/// temporary directory somebody else could lead a user's prompts to a server of their own.
pub fn read() -> Option<Running> {
    read_at(&path())
}

/// Leaves the note, readable by this user only.
pub fn write(running: &Running) -> io::Result<()> {
    write_at(&path(), running)
}

/// Takes the note away, if it is there.
pub fn remove() -> io::Result<()> {
    match fs::remove_file(path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory that only this user can look into, and refuses one that belongs to somebody else.
pub fn private_directory(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let meta = fs::symlink_metadata(dir)?;
    if meta.is_dir() && meta.uid() == uid() && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    let dir = dir.display();
    let why = said!(
        language(),
        en: "{dir} is not a directory of this user alone (mode 0700)",
        zh: "{dir} 不是仅此用户可用的文件夹（权限 0700）",
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, String::from(why)))
}

/// Writes a new file that only this user can read, in the place of an older one at once.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(name);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| fs::rename(&new, path));
    if placed.is_err() {
        fs::remove_file(&new).ok();
    }
    placed
}

fn read_at(path: &Path) -> Option<Running> {
    for (place, kind) in [
        (path.parent()?, fs::FileType::is_dir as fn(&fs::FileType) -> bool),
        (path, fs::FileType::is_file),
    ] {
        let meta = fs::symlink_metadata(place).ok()?;
        if !kind(&meta.file_type()) || meta.uid() != uid() || meta.mode() & 0o077 != 0 {
            return None;
        }
    }
    let running: Running = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    lives(running.pid).then_some(running)
}

fn write_at(path: &Path, running: &Running) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        private_directory(dir)?;
    }
    write_private(path, &serde_json::to_vec(running)?)
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether a process exists (also one that we may not signal).
fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn note(pid: u32) -> Running {
        Running {
            url: "http://127.0.0.1:1".into(),
            key: "sk-gw-x".into(),
            pid,
        }
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn a_note_is_read_back_while_its_process_lives() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("gateway").join("demo.json");
        let mine = note(std::process::id());
        write_at(&path, &mine).expect("write");
        assert_eq!(fs::metadata(&path).expect("meta").mode() & 0o777, 0o600);
        assert!(read_at(&path) == Some(mine));
        write_at(&path, &note(i32::MAX.unsigned_abs())).expect("write again");
        assert!(read_at(&path).is_none(), "its process is gone");
    }

    #[test]
    fn a_note_that_others_could_have_written_is_not_believed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("gateway").join("demo.json");
        write_at(&path, &note(std::process::id())).expect("write");
        mode(&path, 0o644);
        assert!(read_at(&path).is_none(), "file open to others");
        mode(&path, 0o600);
        mode(path.parent().expect("dir"), 0o755);
        assert!(read_at(&path).is_none(), "directory open to others");
        assert!(write_at(&path, &note(1)).is_err(), "nor written there");
    }
}

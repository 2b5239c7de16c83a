//! The lock that lets only one server run on a database; a file of its own beside it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{OpenError, StoreError, connection, on_file};

/// How often a lock is tried that is taken, and how long is waited in between: [`ServerLock::holder`] has it for an
/// instant while it looks.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How much of a lock file is read, in bytes.
const MAX_NOTE: u64 = 1024;

/// Held while a server runs; freed when it is dropped, or when the process dies.
#[derive(Debug)]
pub struct ServerLock {
    file: File,
}

impl ServerLock {
    /// Takes the lock of a database. When another server has it, the error tells what that one noted: its process id
    /// and address.
    pub fn acquire(database: &Path) -> Result<ServerLock, OpenError> {
        let path = lock_path(database);
        let failed = |error| on_file("locking", &path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match lock_patiently(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(note(&mut file).map_err(failed)?)),
            Err(TryLockError::Error(error)) => return Err(failed(error).into()),
        }
        let lock = ServerLock { file };
        lock.write("").map_err(failed)?;
        Ok(lock)
    }

    /// What the server that runs on a database noted: its process id and address. `None` when none runs, or the lock
    /// file cannot be read.
    pub fn holder(database: &Path) -> Option<String> {
        let mut file = File::open(lock_path(database)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => note(&mut file).ok(),
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    /// Notes where this server can be found, for whoever finds the lock taken.
    pub fn set_note(&self, text: &str) -> Result<(), StoreError> {
        self.write(text)
            .map_err(|error| on_file("writing", Path::new("the lock file"), error))
    }

    fn write(&self, text: &str) -> io::Result<()> {
        let mut file = &self.file;
        file.set_len(0)?;
        file.rewind()?;
        write!(
            file,
            "process {}{}{text}",
            std::process::id(),
            if text.is_empty() { "" } else { ", " }
        )?;
        file.flush()
    }
}

fn lock_patiently(file: &File) -> Result<(), TryLockError> {
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_TRIES),
            other => return other,
        }
    }
    file.try_lock()
}

fn note(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_NOTE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn lock_path(database: &Path) -> PathBuf {
    let database = connection::absolute(database).unwrap_or_else(|_| database.to_owned());
    connection::beside(&database, ".lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_is_told_who_the_first_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        let first = ServerLock::acquire(&database).expect("nobody has it");
        first.set_note("http://127.0.0.1:8080").expect("written");
        match ServerLock::acquire(&database) {
            Err(OpenError::InUse(who)) => {
                assert_eq!(who, format!("process {}, http://127.0.0.1:8080", std::process::id()));
            }
            other => panic!("{other:?}"),
        }
        drop(first);
        ServerLock::acquire(&database).expect("it is free again");
    }

    #[test]
    fn a_link_to_a_database_has_the_lock_of_what_it_leads_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let (database, link) = (folder.path().join("gateway.db"), folder.path().join("link.db"));
        std::fs::write(&database, "").expect("written");
        std::os::unix::fs::symlink(&database, &link).expect("linked");
        let _first = ServerLock::acquire(&database).expect("nobody has it");
        assert!(ServerLock::holder(&link).is_some());
        let second = ServerLock::acquire(&link);
        assert!(matches!(second, Err(OpenError::InUse(_))), "{second:?}");
    }

    #[test]
    fn only_a_running_server_is_a_holder() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        assert_eq!(ServerLock::holder(&database), None);
        assert!(!lock_path(&database).exists(), "a look makes no file");
        let server = ServerLock::acquire(&database).expect("nobody has it");
        server.set_note("http://127.0.0.1:8080").expect("written");
        let noted = ServerLock::holder(&database).expect("it runs");
        assert!(noted.ends_with(", http://127.0.0.1:8080"), "{noted}");
        drop(server);
        assert_eq!(ServerLock::holder(&database), None, "what it noted is still there");
    }
}

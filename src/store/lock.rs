//! The lock that lets only one server run on a database; a file of its own beside it.

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{OpenError, StoreError, connection, on_file};

/// How often a lock is tried that is taken, and how long is waited in between: [`ServerLock::holder`] has it for an
/// instant while it looks.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How much of a lock file is read, in bytes.
const MAX_NOTE: u64 = 8 * 1024;

/// What stands before the socket of the status, behind the address.
const SOCKET: &str = ", status at ";

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
        let mut file = connection::open_beside(database, &path).map_err(failed)?;
        match patiently(&file, TRIES, BETWEEN_TRIES) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(note(&mut file).map_err(failed)?)),
            Err(TryLockError::Error(error)) => return Err(failed(error).into()),
        }
        let lock = ServerLock { file };
        lock.write("").map_err(failed)?;
        Ok(lock)
    }

    /// What the server that runs on a database noted: its process id and address. `None` when none runs.
    ///
    /// # Errors
    /// Whether one runs cannot be told: the lock cannot be read.
    pub fn holder(database: &Path) -> Result<Option<String>, StoreError> {
        let path = lock_path(database);
        let held = || match File::open(&path) {
            Ok(mut file) => match file.try_lock_shared() {
                Ok(()) => Ok(None),
                Err(TryLockError::WouldBlock) => note(&mut file).map(Some),
                Err(TryLockError::Error(error)) => Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        held().map_err(|error| on_file("reading", &path, error))
    }

    /// Where the socket of a database's server is, unless it noted another place.
    pub fn socket(database: &Path) -> PathBuf {
        let database = connection::absolute(database).unwrap_or_else(|_| database.to_owned());
        connection::beside(&database, ".sock")
    }

    /// Notes where this server can be found, for whoever finds the lock taken: its address, and the socket of its status
    /// when that is not in its place.
    pub fn set_note(&self, address: &str, socket: Option<&Path>) -> Result<(), StoreError> {
        let socket = socket.map_or_else(String::new, |path| format!("{SOCKET}{}", path.display()));
        self.write(&format!("{address}{socket}"))
            .map_err(|error| on_file("writing", Path::new("the lock file"), error))
    }

    /// Address and socket as a server noted them: `process 7, http://127.0.0.1:8080, status at /run/gateway.db.sock`.
    pub fn noted(note: &str) -> (Option<&str>, Option<&Path>) {
        let (found, socket) = match note.split_once(SOCKET) {
            Some((found, socket)) => (found, Some(Path::new(socket))),
            None => (note, None),
        };
        (found.split_once(", ").map(|(_, address)| address), socket)
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

/// Locks a file that others have for an instant, as often as it takes, within bounds.
pub(super) fn patiently(file: &File, tries: u32, between: Duration) -> Result<(), TryLockError> {
    for _ in 1..tries {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(between),
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

    fn holder(database: &Path) -> Option<String> {
        ServerLock::holder(database).expect("it can be told")
    }

    #[test]
    fn a_second_server_is_told_who_the_first_one_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        let first = ServerLock::acquire(&database).expect("nobody has it");
        first.set_note("http://127.0.0.1:8080", None).expect("written");
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
    fn what_was_noted_is_read_back() {
        let noted = "process 7, http://127.0.0.1:8080";
        assert_eq!(ServerLock::noted(noted), (Some("http://127.0.0.1:8080"), None));
        let elsewhere = format!("{noted}{SOCKET}/tmp/a, b/sock");
        let socket = Some(Path::new("/tmp/a, b/sock"));
        assert_eq!(ServerLock::noted(&elsewhere), (Some("http://127.0.0.1:8080"), socket));
        assert_eq!(ServerLock::noted("process 7"), (None, None));
    }

    #[test]
    fn a_link_to_a_database_has_the_lock_of_what_it_leads_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let (database, link) = (folder.path().join("gateway.db"), folder.path().join("link.db"));
        std::fs::write(&database, "").expect("written");
        std::os::unix::fs::symlink(&database, &link).expect("linked");
        let _first = ServerLock::acquire(&database).expect("nobody has it");
        assert!(holder(&link).is_some());
        let second = ServerLock::acquire(&link);
        assert!(matches!(second, Err(OpenError::InUse(_))), "{second:?}");
    }

    #[test]
    fn only_a_running_server_is_a_holder() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        assert_eq!(holder(&database), None);
        assert!(!lock_path(&database).exists(), "a look makes no file");
        let server = ServerLock::acquire(&database).expect("nobody has it");
        server.set_note("http://127.0.0.1:8080", None).expect("written");
        let noted = holder(&database).expect("it runs");
        assert!(noted.ends_with(", http://127.0.0.1:8080"), "{noted}");
        drop(server);
        assert_eq!(holder(&database), None, "what it noted is still there");
    }

    #[test]
    fn a_lock_that_cannot_be_read_may_be_somebodys() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        std::os::unix::fs::symlink("gateway.db.lock", lock_path(&database)).expect("linked to itself");
        ServerLock::holder(&database).expect_err("it cannot be told");
    }
}

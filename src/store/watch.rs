//! Whether the database and its log are still the files that are open: what is written into others is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::connection;

/// Which file of which device.
type Identity = (u64, u64);

/// The files of an open database.
#[derive(Debug)]
pub(super) struct Watched {
    database: PathBuf,
    log: PathBuf,
    is_database: Option<Identity>,
    /// It is made by the first transaction, and stays as long as anybody has the database open.
    is_log: Option<Identity>,
}

impl Watched {
    /// Of a database that is open already.
    pub(super) fn of(database: &Path) -> Watched {
        let log = connection::beside(database, "-wal");
        Watched {
            is_database: identity(database),
            is_log: identity(&log),
            database: database.to_owned(),
            log,
        }
    }

    /// Which file is missing or another one, if any.
    pub(super) fn replaced(&mut self) -> Option<String> {
        if identity(&self.database) != self.is_database {
            return Some(format!("{} was removed or replaced", self.database.display()));
        }
        let log = identity(&self.log);
        if self.is_log.is_none() {
            self.is_log = log;
        }
        (log != self.is_log).then(|| format!("{} was removed or replaced", self.log.display()))
    }
}

impl Watched {
    /// Whether the log alone is gone: what it has can still be moved into the database, as long as it is open.
    pub(super) fn lost_only_its_log(&self) -> bool {
        self.is_log.is_some() && identity(&self.log).is_none() && identity(&self.database) == self.is_database
    }
}

/// Looks at a file without opening it: closing a handle on it would drop the process's locks.
fn identity(path: &Path) -> Option<Identity> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_another_one_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let (database, log) = (folder.path().join("gateway.db"), folder.path().join("gateway.db-wal"));
        fs::write(&database, "1").expect("written");
        let mut watched = Watched::of(&database);
        assert_eq!(watched.replaced(), None, "no log yet");
        fs::write(&log, "1").expect("written");
        assert_eq!(watched.replaced(), None, "the log is made");
        fs::write(&log, "12").expect("written");
        assert_eq!(watched.replaced(), None, "what is in it is its own affair");
        let other = folder.path().join("other");
        fs::write(&other, "1").expect("written");
        fs::rename(&other, &log).expect("moved");
        assert!(watched.replaced().is_some_and(|why| why.contains("-wal")));
        fs::remove_file(&log).expect("removed");
        assert!(watched.lost_only_its_log() && watched.replaced().is_some());
        fs::write(&log, "1").expect("written");
        assert!(!watched.lost_only_its_log(), "another one is there");
        fs::write(&other, "1").expect("written");
        fs::rename(&other, &database).expect("moved");
        assert!(watched.replaced().is_some_and(|why| why.contains("gateway.db was")));
        fs::remove_file(&log).expect("removed");
        let mut watched = Watched {
            is_database: identity(&database),
            ..watched
        };
        assert!(watched.replaced().is_some_and(|why| why.contains("-wal")));
        fs::remove_file(&database).expect("removed");
        assert!(watched.replaced().is_some_and(|why| why.contains("gateway.db was")));
    }
}

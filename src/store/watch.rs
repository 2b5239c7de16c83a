//! Whether the database and its log are still the files that are open: what is written into others is lost.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::{StoreError, connection, on_file};

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
    pub(super) fn of(database: &Path) -> Result<Watched, StoreError> {
        let look = |path: &Path| identity(path).map_err(|error| on_file("looking at", path, error));
        let log = connection::beside(database, "-wal");
        Ok(Watched {
            is_database: look(database)?,
            is_log: look(&log)?,
            database: database.to_owned(),
            log,
        })
    }

    /// Which file is missing or another one, if any.
    pub(super) fn replaced(&mut self) -> Option<String> {
        let what = |path: &Path| format!("{} was removed or replaced", path.display());
        if look(&self.database, self.is_database) != self.is_database {
            return Some(what(&self.database));
        }
        let log = look(&self.log, self.is_log);
        self.is_log = self.is_log.or(log);
        (log != self.is_log).then(|| what(&self.log))
    }

    /// Whether the log alone is gone: what it has can still be moved into the database, as long as it is open.
    pub(super) fn lost_only_its_log(&self) -> bool {
        let is_gone = self.is_log.is_some() && look(&self.log, self.is_log).is_none();
        is_gone && look(&self.database, self.is_database) == self.is_database
    }
}

/// Which file is there now; the one that was, when that cannot be told.
fn look(path: &Path, before: Option<Identity>) -> Option<Identity> {
    identity(path).unwrap_or_else(|error| {
        tracing::debug!(%error, path = %path.display(), "whether it is the same file cannot be told");
        before
    })
}

/// Which file is there, if one is. It is not opened for that: closing a handle on a database would drop the process's
/// locks.
pub(super) fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_another_one_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let (database, log) = (folder.path().join("gateway.db"), folder.path().join("gateway.db-wal"));
        fs::write(&database, "1").expect("written");
        let mut watched = Watched::of(&database).expect("looked at");
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
            is_database: identity(&database).expect("looked at"),
            ..watched
        };
        assert!(watched.replaced().is_some_and(|why| why.contains("-wal")));
        fs::remove_file(&database).expect("removed");
        assert!(watched.replaced().is_some_and(|why| why.contains("gateway.db was")));
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_is_no_other_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        fs::write(&database, "1").expect("written");
        let watched = Watched::of(&database).expect("looked at");
        // No system takes so long a name.
        let name = PathBuf::from("n".repeat(10_000));
        identity(&name).expect_err("nothing is known of it");
        let mut unseen = Watched {
            database: name.clone(),
            log: name.clone(),
            is_log: watched.is_database,
            ..watched
        };
        assert_eq!(unseen.replaced(), None);
        assert!(!unseen.lost_only_its_log());
        Watched::of(&name).expect_err("it has to be known at first");
    }
}

//! Whether the log beside a database is its own: SQLite takes any log for it, and makes one database of the pages of two.
//!
//! An old copy of a database that is put beside the log of the newer one would so become something that never was, and
//! its last transaction would be the right one. So the mark has a second line: how many transactions had been moved
//! from the log into the database file itself, at the last checkpoint that moved all. A file that has fewer is an older
//! one than its log. And a log whose database is missing is not given to an empty one: SQLite would delete it.

use std::fs;
use std::path::{Path, PathBuf};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags};

use super::mark::{self, MarkFile};
use super::{OpenError, ServerLock, StoreError, commits, connection};

/// Characters that stand for something else in the URI of a file.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/');

/// Looks at a database that is about to be opened.
pub(super) fn check(database: &Path) -> Result<(), OpenError> {
    let log = connection::beside(database, "-wal");
    if !database.exists() {
        let left = [mark::path_of(database), log].into_iter().find(|left| is_written(left));
        return left.map_or(Ok(()), |left| Err(OpenError::Gone(database.to_owned(), left)));
    }
    // A server that runs has looked, and moves its log at any moment.
    if !is_written(&log) || ServerLock::holder(database)?.is_some() {
        return Ok(());
    }
    match log_of_a_newer_one(database)? {
        None => Ok(()),
        // An earlier release that ran on it since knew no mark: the log may be its own.
        Some(log) if in_file(database).is_ok_and(|count| count.is_none()) => {
            Err(OpenError::WhoseLog(database.to_owned(), log))
        }
        Some(log) => Err(OpenError::NotItsLog(database.to_owned(), log)),
    }
}

/// The log beside a database, when it is that of a newer one. No server may run on it meanwhile.
///
/// # Errors
/// The mark cannot be read: then it is not known.
pub(super) fn log_of_a_newer_one(database: &Path) -> Result<Option<PathBuf>, StoreError> {
    let log = connection::beside(database, "-wal");
    if !is_written(&log) {
        return Ok(None);
    }
    let older = match (mark::moved(database)?, in_file(database)) {
        (Some(marked), Ok(found)) => found.unwrap_or(0) < marked,
        // Or one that a dying machine left in pieces, which its log mends.
        _ => false,
    };
    Ok(older.then_some(log))
}

fn is_written(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() > 0)
}

/// Notes how many transactions are in the file of a database that has its log, or none.
pub(super) fn note(database: &Path, mark: &MarkFile) {
    match in_file(database) {
        Ok(count) => mark.note_moved(count.unwrap_or(0)),
        Err(error) => tracing::debug!(%error, "how much is in the database file cannot be told"),
    }
}

/// How many transactions are in the database file, without its log; `None`: it is from before they were counted.
#[expect(clippy::disallowed_methods, reason = "the store's own look past the log")]
fn in_file(database: &Path) -> rusqlite::Result<Option<i64>> {
    let path = percent_encode(database.as_os_str().as_encoded_bytes(), IN_PATH);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(PathBuf::from(format!("file:{path}?immutable=1")), flags)?;
    commits::last_if_counted(&file)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Create, Store, checkpoint};
    use super::*;

    #[test]
    fn what_a_database_file_has_is_told_apart_from_what_its_log_has() {
        let desk = Desk::new();
        let (conn, file) = (desk.raw(), MarkFile::open(&desk.path()).expect("opened"));
        desk.user("ada", "1");
        checkpoint::checkpoint(&conn, &file, "PASSIVE");
        let moved = commits::last(&conn).expect("read");
        desk.user("bob", "1");
        assert_eq!(in_file(&desk.path()).expect("read"), Some(moved));
        assert!(commits::last(&conn).expect("read") > moved);
        assert_eq!(mark::moved(&desk.path()).expect("read"), Some(moved));
        assert_eq!(desk.again().behind(), None, "the first line is as it was");
    }

    #[test]
    fn without_its_mark_no_log_is_given_to_a_database() {
        let desk = Desk::new();
        let path = desk.path();
        let (conn, file) = (desk.raw(), MarkFile::open(&path).expect("opened"));
        checkpoint::checkpoint(&conn, &file, "PASSIVE");
        let old = fs::read(&path).expect("a database");
        desk.user("ada", "1");
        checkpoint::checkpoint(&conn, &file, "PASSIVE");
        desk.user("bob", "1");
        let log = connection::beside(&path, "-wal");
        let kept = fs::read(&log).expect("a log");
        drop((conn, desk.store));
        fs::write(&path, &old).expect("written");
        fs::write(&log, &kept).expect("written");
        fs::remove_file(mark::path_of(&path)).expect("removed");
        fs::create_dir(mark::path_of(&path)).expect("what cannot be read");
        let refused = Store::open(&path, Create::Never);
        assert!(matches!(&refused, Err(OpenError::Store(_))), "{refused:?}");
        assert!(fs::read(&path).expect("a database") == old, "it is as it was");
        assert!(fs::read(&log).expect("a log") == kept, "and so is the log");
    }

    #[test]
    fn a_log_is_not_given_to_a_database_that_was_made_in_place_of_its_own() {
        let desk = Desk::new();
        desk.user("ada", "1");
        let (path, log) = (desk.path(), connection::beside(&desk.path(), "-wal"));
        let kept = fs::read(&log).expect("a log");
        drop(desk.store);
        fs::remove_file(&path).expect("removed");
        fs::write(&log, &kept).expect("written");
        let refused = Store::open(&path, Create::IfMissing);
        assert!(
            matches!(&refused, Err(OpenError::Gone(gone, _)) if *gone == path),
            "{refused:?}"
        );
        assert!(!path.exists());
        assert_eq!(fs::read(&log).expect("a log"), kept);
    }
}

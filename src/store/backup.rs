//! Backups: a copy of the books, made while they are written, that takes its place only once it is found whole.
//!
//! `VACUUM INTO` reads one snapshot and lets the writer go on. (SQLite's backup API begins anew whenever another process
//! writes, or holds everything in one step as well; and it copies damaged pages, which `VACUUM INTO` does not read.)

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension};
use tempfile::TempDir;

use super::columns::{Micros, injected};
pub(super) use super::on_file as failed;
use super::verify::{Finding, Verification};
use super::{OpenError, Store, StoreError, connection, during, migrate, watch};
use crate::fail_point::{self, Point};

/// Files that belong to a database, by how their names go on from its name.
const COMPANIONS: [&str; 6] = ["-wal", "-shm", "-journal", ".lock", ".mark", ".ballast"];

/// Those of a database that somebody has open, or had when it was last used.
pub(super) const IN_USE: [&str; 3] = ["-wal", "-journal", "-shm"];

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Leave it, and refuse.
    Keep,
    /// Put the new one in its place.
    Replace,
}

/// What a copy of the books holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// How large it is.
    pub bytes: u64,
    /// Its users.
    pub users: u64,
    /// Its entries.
    pub entries: u64,
    /// The last of them; `None`: there is none.
    pub last: Option<LastEntry>,
}

/// The last entry of the books: as of when they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastEntry {
    /// Its number.
    pub seq: i64,
    /// When it was made.
    pub at: Timestamp,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file is there, and is to be kept.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The file is the database, or belongs to it.
    #[error("{} belongs to the database itself", .0.display())]
    Itself(PathBuf),
    /// Somebody has it open: a log lies beside it.
    #[error("{} is a database in use: {} lies beside it", .file.display(), .log.display())]
    InUse {
        /// The file.
        file: PathBuf,
        /// What lies beside it.
        log: PathBuf,
    },
    /// No file there to read, or no folder to write into.
    #[error("there is no {}", .0.display())]
    Missing(PathBuf),
    /// Somebody else uses the database.
    #[error("{} is in use", .0.display())]
    Busy(PathBuf),
    /// The file is a folder.
    #[error("{} is a folder", .0.display())]
    Folder(PathBuf),
    /// The file cannot be read to its end.
    #[error("{} is damaged", .file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What SQLite says.
        #[source]
        source: StoreError,
    },
    /// Its books do not balance.
    #[error("the books in {} do not balance: table {}, row {}: {}", .file.display(), .first.table, .first.row, .first.problem)]
    Unbalanced {
        /// The file.
        file: PathBuf,
        /// The first thing that is wrong.
        first: Finding,
    },
    /// The file cannot be opened as a gateway's database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Anything else, such as a full disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Copies the books as they are now into a file, and verifies the copy before it takes the file's place. Books that
    /// lost their end are not copied: the backup that is there may have it.
    ///
    /// # Errors
    /// There is no backup then, and a file that was there is as it was.
    pub fn back_up(&self, file: &Path, existing: Existing) -> Result<Contents, BackupError> {
        let file = connection::absolute(file)?;
        may_be_written(&file, self.path(), existing)?;
        self.whole()?;
        let draft = Draft::beside(&file)?;
        copy(self.path(), &draft)?;
        let contents = verified(&draft.file(), self.path())?;
        draft.put(&file)?;
        Ok(contents)
    }
}

/// Makes the backup that a migration is preceded by. A version that is not ours can only be read to its end, not
/// verified.
pub(super) fn before_migration(database: &Path, version: i64) -> Result<(), StoreError> {
    let draft = Draft::beside(database)?;
    let checked = copy_into(database, &draft).and_then(|()| {
        let conn = connection::open_to_read(&draft.file())?;
        match connection::pragma::<String>(&conn, "PRAGMA integrity_check(1)")? {
            sound if sound == "ok" => Ok(()),
            problem => Err(super::columns::broken(problem)),
        }
    });
    checked.map_err(during(format!("copying {}", database.display())))?;
    draft.put(&migrate::backup_path(database, version))
}

/// Refuses a file that must not be written over.
fn may_be_written(file: &Path, database: &Path, existing: Existing) -> Result<(), BackupError> {
    if is_same(file, database)
        || COMPANIONS
            .iter()
            .any(|end| is_same(file, &connection::beside(database, end)))
    {
        return Err(BackupError::Itself(file.to_owned()));
    }
    if file.is_dir() {
        return Err(BackupError::Folder(file.to_owned()));
    }
    let folder = file.parent().unwrap_or(file);
    if !folder.is_dir() {
        return Err(BackupError::Missing(folder.to_owned()));
    }
    // A log that lies there would be taken for the backup's own.
    if let Some(log) = IN_USE
        .iter()
        .map(|end| connection::beside(file, end))
        .find(|log| log.exists())
    {
        let file = file.to_owned();
        return Err(BackupError::InUse { file, log });
    }
    if existing == Existing::Keep && file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    Ok(())
}

/// Whether two paths lead to one file, or would if it were there.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| watch::identity(path).ok().flatten();
    let one_file = identity(one).is_some_and(|it| Some(it) == identity(other));
    one_file || real(one).is_some_and(|path| Some(path) == real(other))
}

/// A path without links, of a file that need not be there.
fn real(path: &Path) -> Option<PathBuf> {
    let folder = || fs::canonicalize(path.parent()?).ok();
    fs::canonicalize(path)
        .ok()
        .or_else(|| Some(folder()?.join(path.file_name()?)))
}

/// Copies a database as it is now into a draft.
pub(super) fn copy(from: &Path, draft: &Draft) -> Result<(), BackupError> {
    copy_into(from, draft).map_err(|error| {
        let code = error.sqlite_error_code();
        let source = during(format!("copying {}", from.display()))(error);
        match code {
            Some(ErrorCode::DatabaseCorrupt) => BackupError::Damaged {
                file: from.to_owned(),
                source,
            },
            _ => BackupError::Store(source),
        }
    })
}

fn copy_into(from: &Path, draft: &Draft) -> rusqlite::Result<()> {
    // SQLite takes paths as text; the system gives them as bytes.
    let to = draft.file();
    let to = to.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(to.clone()))?;
    let conn = connection::open_to_read(from)?;
    conn.execute("VACUUM INTO ?1", [to])?;
    conn.close().map_err(|(_, error)| error)
}

/// Recomputes every law on a copy that nobody writes; `of` is what it is a copy of.
pub(super) fn verified(copy: &Path, of: &Path) -> Result<Contents, BackupError> {
    let store = Store::open_to_read(copy)?;
    let Verification {
        users,
        entries,
        findings,
        ..
    } = store.verify()?;
    if let Some(first) = findings.into_iter().next() {
        let file = of.to_owned();
        return Err(BackupError::Unbalanced { file, first });
    }
    let bytes = fs::metadata(copy)
        .map_err(|error| failed("reading", copy, error))?
        .len();
    Ok(Contents {
        bytes,
        users,
        entries,
        last: store.read("reading the last entry", last_entry)?,
    })
}

/// The last entry there is.
pub(super) fn last_entry(conn: &Connection) -> rusqlite::Result<Option<LastEntry>> {
    conn.query_row(
        "SELECT seq, at FROM ledger_entries ORDER BY seq DESC LIMIT 1",
        [],
        |row| {
            let Micros(at) = row.get("at")?;
            Ok(LastEntry {
                seq: row.get("seq")?,
                at,
            })
        },
    )
    .optional()
}

/// Where a file is written before it takes its place: a folder beside it, locked as long as it is used, and removed
/// with all that is in it.
#[derive(Debug)]
pub(super) struct Draft {
    folder: TempDir,
    /// Tells a folder in use from one that was left behind.
    _lock: File,
}

impl Draft {
    /// An empty one. What a process that died left of earlier ones is removed.
    pub(super) fn beside(file: &Path) -> Result<Draft, StoreError> {
        let parent = file.parent().unwrap_or(Path::new("/"));
        let mut prefix = file.file_name().unwrap_or_default().to_owned();
        prefix.push(".partial-");
        let make = || {
            remove_abandoned(parent, prefix.as_encoded_bytes())?;
            let folder = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent)?;
            let lock = File::open(folder.path())?;
            lock.try_lock()?;
            let draft = Draft { folder, _lock: lock };
            connection::create_blank(&draft.file())?;
            Ok(draft)
        };
        make().map_err(|error| failed("writing beside", file, error))
    }

    /// The file in it: its owner's alone, and empty at first.
    pub(super) fn file(&self) -> PathBuf {
        self.folder.path().join("copy.db")
    }

    /// Makes the file durable. Nobody may have it open.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let file = self.file();
        sync(&file).map_err(|error| failed("writing", &file, error))
    }

    /// Puts the file in its place, durably; what is there gives way at once.
    pub(super) fn put(self, place: &Path) -> Result<(), StoreError> {
        self.sync()?;
        fail_point::hit(Point::Backup).map_err(|point| during("putting the copy in its place")(injected(point)))?;
        fs::rename(self.file(), place)
            .and_then(|()| sync_folder(place))
            .map_err(|error| failed("writing", place, error))
    }
}

fn remove_abandoned(parent: &Path, prefix: &[u8]) -> io::Result<()> {
    for found in fs::read_dir(parent)? {
        let found = found?;
        if found.file_name().as_encoded_bytes().starts_with(prefix) && found.file_type()?.is_dir() {
            let lock = File::open(found.path())?;
            match lock.try_lock() {
                Ok(()) => fs::remove_dir_all(found.path())?,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

fn sync(file: &Path) -> io::Result<()> {
    File::open(file)?.sync_all()
}

/// Makes durable which files are in the folder of a file.
pub(super) fn sync_folder(file: &Path) -> io::Result<()> {
    sync(file.parent().unwrap_or(file))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::super::Create;
    use super::super::testing::*;
    use super::*;

    /// What is in a folder, by name.
    fn names(folder: &Path) -> Vec<String> {
        let name = |found: io::Result<fs::DirEntry>| found.expect("listed").file_name().into_string();
        let found = fs::read_dir(folder).expect("listed");
        let mut names: Vec<String> = found.map(|found| name(found).expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_is_one_file_for_its_owner_and_holds_what_was_there() {
        let desk = Desk::new();
        let (ada, away) = (desk.user("ada", "9"), tempfile::tempdir().expect("a folder"));
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(2)));
        let file = away.path().join("copy.db");
        let contents = desk.store.back_up(&file, Existing::Keep).expect("a backup");
        assert_eq!((contents.users, contents.entries), (1, 2));
        assert_eq!(contents.last, Some(LastEntry { seq: 2, at: at(2) }));
        let there = fs::metadata(&file).expect("it is there");
        assert_eq!(
            (there.len(), there.permissions().mode() & 0o777),
            (contents.bytes, 0o600)
        );
        assert_eq!(names(away.path()), ["copy.db"]);
        let copy = Store::open_to_read(&file).expect("it opens");
        assert_eq!(copy.users().expect("read"), desk.store.users().expect("read"));
        drop(copy);
        assert_eq!(names(away.path()), ["copy.db"], "reading it leaves nothing beside it");
    }

    #[test]
    fn every_backup_beside_a_busy_writer_is_a_state_that_was() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let (away, over) = (tempfile::tempdir().expect("a folder"), AtomicBool::new(false));
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut written = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(2)));
                    written += 1;
                }
                written
            });
            let mut last = 0;
            for n in 0..8 {
                let file = away.path().join(format!("{n}.db"));
                let contents = desk.again().back_up(&file, Existing::Keep).expect("a backup");
                let copy = Store::open_to_read(&file).expect("it opens");
                let balance = copy.users().expect("read")[0].balance;
                assert_eq!(balance, usd(&contents.entries.to_string()), "whole acts only");
                assert!(contents.entries >= last, "time goes on");
                last = contents.entries;
            }
            over.store(true, Ordering::Relaxed);
            assert!(writing.join().expect("it wrote") >= last);
        });
    }

    #[test]
    fn books_that_do_not_balance_take_nobodys_place() {
        let desk = Desk::new();
        desk.user("ada", "9");
        let away = tempfile::tempdir().expect("a folder");
        let file = away.path().join("copy.db");
        desk.store.back_up(&file, Existing::Keep).expect("a backup");
        let before = fs::read(&file).expect("read");
        let alter = "DROP TRIGGER entries_are_final; UPDATE ledger_entries SET note = 'altered'";
        desk.raw().execute_batch(alter).expect("altered");
        let error = desk.store.back_up(&file, Existing::Replace).expect_err("altered");
        match &error {
            BackupError::Unbalanced { file, first } => {
                assert_eq!((file, first.table), (&desk.path(), "ledger_entries"));
            }
            other => panic!("{other:?}"),
        }
        assert!(fs::read(&file).expect("read") == before, "the one before is as it was");
        assert_eq!(names(away.path()), ["copy.db"]);
    }

    #[test]
    fn books_that_lost_their_end_do_not_replace_a_backup_that_has_it() {
        let desk = Desk::new();
        let (ada, away) = (desk.user("ada", "9"), tempfile::tempdir().expect("a folder"));
        let (old, new) = (away.path().join("old.db"), away.path().join("new.db"));
        desk.store.back_up(&old, Existing::Keep).expect("a backup");
        done(desk.store.credit(&top_up(&ada, "1", None), &by(), at(2)));
        desk.store.back_up(&new, Existing::Keep).expect("a backup");
        fs::copy(
            super::super::mark::path_of(&desk.path()),
            super::super::mark::path_of(&old),
        )
        .expect("copied");
        let put_back = Store::open(&old, Create::Never).expect("it opens");
        let error = put_back.back_up(&new, Existing::Replace).expect_err("it is older");
        assert!(
            matches!(error, BackupError::Open(OpenError::Behind { .. })),
            "{error:?}"
        );
        let kept = Store::open_to_read(&new).expect("it opens");
        assert_eq!(kept.users().expect("read")[0].balance, usd("10"));
    }

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_another_writes_is_not() {
        let desk = Desk::new();
        let away = tempfile::tempdir().expect("a folder");
        let file = away.path().join("copy.db");
        let left = away.path().join("copy.db.partial-left");
        fs::create_dir(&left).expect("made");
        fs::write(left.join("copy.db"), "half").expect("written");
        fs::write(away.path().join("copy.db.partial-mine"), "no folder").expect("written");
        let others = Draft::beside(&file).expect("another backup to the same file");
        assert!(!left.exists(), "nobody writes it any more");
        desk.store.back_up(&file, Existing::Keep).expect("a backup");
        assert!(others.file().exists());
        drop(others);
        assert_eq!(names(away.path()), ["copy.db", "copy.db.partial-mine"]);
    }

    #[test]
    fn files_that_a_backup_would_destroy_are_left_alone() {
        let desk = Desk::new();
        let away = tempfile::tempdir().expect("a folder");
        let refused = |file: &Path| desk.store.back_up(file, Existing::Replace).expect_err("refused");
        let link = away.path().join("link");
        std::os::unix::fs::symlink(desk.path(), &link).expect("linked");
        let second_name = away.path().join("second name");
        fs::hard_link(desk.path(), &second_name).expect("linked");
        let own = COMPANIONS.iter().map(|end| connection::beside(&desk.path(), end));
        for file in own.chain([desk.path(), link, second_name]) {
            let error = refused(&file);
            assert!(
                matches!(&error, BackupError::Itself(_)),
                "{}: {error:?}",
                file.display()
            );
        }
        let other = away.path().join("other.db");
        for end in ["-wal", "-journal"] {
            let log = connection::beside(&other, end);
            fs::write(&log, "").expect("written");
            assert!(matches!(refused(&other), BackupError::InUse { log: found, .. } if found == log));
            fs::remove_file(log).expect("removed");
        }
        assert!(matches!(refused(away.path()), BackupError::Folder(_)));
        assert!(matches!(refused(&other.join("x")), BackupError::Missing(folder) if folder == other));
    }
}

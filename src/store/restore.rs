//! Restoring: a backup in the place of the database, which is kept.
//!
//! A database that SQLite can open is written over through SQLite, in one transaction: whoever has it open sees it
//! before or after. Renaming another file over it would leave their logs to be taken for the new one's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode};

use super::backup::{
    self, BackupError, Contents, Draft, Existing, IN_USE, LastEntry, failed, is_same, last_entry, sync_folder,
};
use super::migrate::VERSION;
use super::{Create, OpenError, ServerLock, StoreError, Trouble, columns, connection, during};

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// What the database holds now.
    pub contents: Contents,
    /// What was there before.
    pub replaced: Option<Replaced>,
}

/// A database, or what was left of it, that gave way to a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where it is now: one file, and its log if it could not be opened.
    pub kept: Vec<PathBuf>,
    /// Its last entry; `None`: it has none, or it cannot be read.
    pub last: Option<LastEntry>,
}

/// Puts a backup in the place of the database, when it is found whole. It is brought up to our version on the way.
///
/// # Errors
/// The database is as it was then, but for an I/O error, which says what was being done.
pub fn restore(file: &Path, database: &Path, existing: Existing, now: Timestamp) -> Result<Restored, BackupError> {
    let (file, database) = (connection::absolute(file)?, connection::absolute(database)?);
    may_be_read(&file, &database)?;
    connection::create_folder(&database).map_err(|error| failed("creating the folder of", &database, error))?;
    let _lock = ServerLock::acquire(&database)?;
    if existing == Existing::Keep && database.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(database));
    }
    // A link stays what it is, and what it leads to is replaced.
    let target = fs::canonicalize(&database).unwrap_or(database);
    let draft = Draft::beside(&target)?;
    backup::copy(&file, &draft)?;
    bring_up(&draft)?;
    let contents = backup::verified(&draft.file(), &file)?;
    draft.sync()?;
    let replaced = replace(&target, &draft, now)?;
    Ok(Restored { contents, replaced })
}

/// Refuses a file that is no backup of a gateway's database, by what its head says.
fn may_be_read(file: &Path, database: &Path) -> Result<(), BackupError> {
    if is_same(file, database) {
        return Err(BackupError::Itself(file.to_owned()));
    }
    if file.is_dir() {
        return Err(BackupError::Folder(file.to_owned()));
    }
    if !file.exists() {
        return Err(BackupError::Missing(file.to_owned()));
    }
    let version = connection::open_to_read(file).and_then(|conn| connection::version_of(&conn));
    match version {
        Ok(Some(version)) if (1..=VERSION).contains(&version) => Ok(()),
        Ok(Some(found)) => Err(BackupError::Open(OpenError::TooNew {
            path: file.to_owned(),
            found,
            known: VERSION,
            backup: None,
        })),
        Ok(None) => Err(BackupError::Open(OpenError::NotOurs(file.to_owned()))),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            Err(BackupError::Open(OpenError::NotOurs(file.to_owned())))
        }
        Err(error) => Err(during(format!("opening {}", file.display()))(error).into()),
    }
}

/// Makes a copy one of our version, in one file.
fn bring_up(draft: &Draft) -> Result<(), BackupError> {
    let conn = connection::open(&draft.file(), Create::Never)?;
    close_in_one_file(conn).map_err(during("closing the copy"))?;
    Ok(())
}

/// Closes a database that nobody else has open, with all its log in it.
fn close_in_one_file(conn: Connection) -> rusqlite::Result<()> {
    let mode: String = connection::pragma(&conn, "PRAGMA journal_mode = DELETE")?;
    if mode != "delete" {
        return Err(columns::broken(format!("the journal is still {mode}")));
    }
    conn.close().map_err(|(_, error)| error)
}

/// Puts the copy in the place of the database, which is kept under another name.
fn replace(target: &Path, copy: &Draft, now: Timestamp) -> Result<Option<Replaced>, BackupError> {
    let name = free_name(target, now);
    let Some(conn) = open_alone(target)? else {
        let kept = move_in(target, &copy.file(), &name).map_err(|error| failed("writing", target, error))?;
        return Ok((!kept.is_empty()).then_some(Replaced { kept, last: None }));
    };
    let last = last_entry(&conn).unwrap_or_default();
    keep_copy(&conn, target, &name)?;
    write_over(conn, &copy.file()).map_err(during(format!(
        "writing over {}, of which {} is a copy",
        target.display(),
        name.display()
    )))?;
    let kept = vec![name];
    Ok(Some(Replaced { kept, last }))
}

/// Opens a database to write over it, and keeps everybody else out until it is closed. `None` when there is no database
/// that SQLite could open.
fn open_alone(target: &Path) -> Result<Option<Connection>, BackupError> {
    if fs::metadata(target).map_or(0, |file| file.len()) == 0 {
        return Ok(None);
    }
    let opening = connection::open_writable(target).and_then(|conn| {
        conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT")?;
        let ours = connection::version_of(&conn)?.is_some() || connection::is_empty(&conn)?;
        Ok(ours.then_some(conn))
    });
    match opening {
        Ok(Some(conn)) => Ok(Some(conn)),
        Ok(None) => Err(OpenError::NotOurs(target.to_owned()).into()),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Ok(None),
            _ if Trouble::of(&error) == Trouble::Busy => Err(BackupError::Busy(target.to_owned())),
            _ => Err(during(format!("opening {}", target.display()))(error).into()),
        },
    }
}

/// Copies the database page by page, as damaged as it may be.
fn keep_copy(conn: &Connection, target: &Path, kept: &Path) -> Result<(), StoreError> {
    let draft = Draft::beside(target)?;
    let copied = connection::open_writable(&draft.file()).and_then(|mut to| {
        copy_pages(conn, &mut to)?;
        close_in_one_file(to)
    });
    copied.map_err(during(format!("keeping a copy of {}", target.display())))?;
    draft.put(kept)
}

/// Writes the pages of a file over a database, in one transaction of it.
fn write_over(mut conn: Connection, file: &Path) -> rusqlite::Result<()> {
    copy_pages(&connection::open_to_read(file)?, &mut conn)?;
    conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    conn.close().map_err(|(_, error)| error)
}

fn copy_pages(from: &Connection, to: &mut Connection) -> rusqlite::Result<()> {
    match Backup::new(from, to)?.step(-1)? {
        StepResult::Done => Ok(()),
        other => Err(columns::broken(format!("copying pages ended as {other:?}"))),
    }
}

/// Moves a file to where the database is to be. What is left there of one that cannot be opened moves aside first: its
/// log would be taken for the new one's. Gives what was moved.
fn move_in(target: &Path, copy: &Path, name: &Path) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for end in IN_USE {
        let aside = connection::beside(name, end);
        match fs::rename(connection::beside(target, end), &aside) {
            Ok(()) => kept.push(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match fs::hard_link(target, name) {
        Ok(()) => {
            kept.insert(0, name.to_owned());
            fs::rename(copy, target)?;
        }
        // Not renamed: a database that somebody makes meanwhile stays.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::hard_link(copy, target)?,
        Err(error) => return Err(error),
    }
    sync_folder(target)?;
    Ok(kept)
}

/// Where what is replaced is kept: `gateway.db.replaced-20261124T184500Z`.
fn free_name(target: &Path, now: Timestamp) -> PathBuf {
    let time = now
        .to_zoned_datetime(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let first = connection::beside(target, &format!(".replaced-{time}"));
    let next = (2..).map(|n| connection::beside(&first, &format!("-{n}")));
    let taken = |path: &PathBuf| path.exists() || IN_USE.iter().any(|end| connection::beside(path, end).exists());
    let mut names = std::iter::once(first.clone()).chain(next);
    names.find(|path| !taken(path)).unwrap_or(first)
}

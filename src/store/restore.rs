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
use super::{Create, Loss, OpenError, ServerLock, StoreError, Trouble, columns, connection, during, mark, pairing};

/// How the name goes on under which a log is kept that is newer than its database, before the log's own ending.
const NEWER: &str = ".newer";

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
    /// Where it is now: one file, and its log if it could not be opened, or was that of a newer database.
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
    let draft = Draft::beside(&database)?;
    backup::copy(&file, &draft)?;
    bring_up(&draft)?;
    let contents = backup::verified(&draft.file(), &file)?;
    draft.sync()?;
    let replaced = replace(&database, &draft, now)?;
    mark_as_whole(&database)?;
    Ok(Restored { contents, replaced })
}

/// Lowers the high-water mark to what was restored: it is meant to be there.
fn mark_as_whole(database: &Path) -> Result<(), StoreError> {
    let conn = connection::open_to_read(database).map_err(during("opening what was restored"))?;
    mark::reset(&conn, database)
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
    match head(file)? {
        Head::Version(version) if (1..=VERSION).contains(&version) => Ok(()),
        Head::Version(found) => Err(BackupError::Open(OpenError::TooNew {
            path: file.to_owned(),
            found,
            known: VERSION,
            backup: None,
        })),
        Head::Foreign | Head::Empty | Head::None => Err(OpenError::NotOurs(file.to_owned()).into()),
        Head::Damaged(source) => Err(BackupError::Damaged {
            file: file.to_owned(),
            source,
        }),
    }
}

/// What a file says that it is.
#[derive(Debug)]
enum Head {
    /// A gateway's database, of this version.
    Version(i64),
    /// Somebody else's database.
    Foreign,
    /// A database with nothing in it.
    Empty,
    /// No database.
    None,
    /// A database that cannot be read.
    Damaged(StoreError),
}

/// Looks at a file, and leaves its log as it is.
fn head(file: &Path) -> Result<Head, StoreError> {
    let opening = || during(format!("opening {}", file.display()));
    let looked = connection::open_to_read(file).and_then(|conn| {
        Ok(match connection::version_of(&conn)? {
            Some(version) => Head::Version(version),
            None if connection::is_empty(&conn)? => Head::Empty,
            None => Head::Foreign,
        })
    });
    match looked {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => Ok(Head::None),
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
            Ok(Head::Damaged(opening()(error)))
        }
        other => other.map_err(opening()),
    }
}

/// Makes a copy one of our version, in one file.
fn bring_up(draft: &Draft) -> Result<(), BackupError> {
    let conn = connection::open(&draft.file(), Create::Never, Loss::Refused)?;
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
    let aside = |logs: &Path| {
        let kept = move_in(target, &copy.file(), &name, logs).map_err(|error| failed("writing", target, error))?;
        Ok((!kept.is_empty()).then_some(Replaced { kept, last: None }))
    };
    if pairing::log_of_a_newer_one(target)?.is_some() {
        // Opened together, here or where they are kept, they would become one database that never was.
        return aside(&connection::beside(&name, NEWER));
    }
    let Some(conn) = open_alone(target)? else {
        return aside(&name);
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
    // SQLite removes the log of a file without a byte.
    if fs::metadata(target).map_or(0, |file| file.len()) == 0 {
        return Ok(None);
    }
    match head(target)? {
        Head::Version(_) => {}
        Head::Foreign => return Err(OpenError::NotOurs(target.to_owned()).into()),
        Head::Empty | Head::None | Head::Damaged(_) => return Ok(None),
    }
    let opened = connection::open_writable(target).and_then(|conn| {
        conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; COMMIT")?;
        Ok(conn)
    });
    opened.map(Some).map_err(|error| match Trouble::of(&error) {
        Trouble::Busy => BackupError::Busy(target.to_owned()),
        _ => during(format!("opening {}", target.display()))(error).into(),
    })
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

/// Moves a file to where the database is to be. What is left there of one that cannot be opened moves aside first, the
/// database to `name` and its logs beside `logs`: they would be taken for the new one's. Gives what was moved.
fn move_in(target: &Path, copy: &Path, name: &Path, logs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for end in IN_USE {
        let aside = connection::beside(logs, end);
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
    let has_logs = |path: &Path| IN_USE.iter().any(|end| connection::beside(path, end).exists());
    let taken = |path: &PathBuf| path.exists() || has_logs(path) || has_logs(&connection::beside(path, NEWER));
    let mut names = std::iter::once(first.clone()).chain(next);
    names.find(|path| !taken(path)).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::testing::*;
    use super::super::{Store, checkpoint};
    use super::*;
    use crate::store::migrate::backup_path;

    /// A backup of books in which Ada has nine dollars, and the database of later, in which she has ten.
    struct Scene {
        folder: tempfile::TempDir,
        backup: PathBuf,
        database: PathBuf,
    }

    impl Scene {
        fn new() -> Scene {
            let folder = tempfile::tempdir().expect("a folder");
            let (backup, database) = (folder.path().join("backup"), folder.path().join("data/gateway.db"));
            let scene = Scene {
                folder,
                backup,
                database,
            };
            let store = Store::open(&scene.database, Create::IfMissing).expect("a database");
            let new = crate::store::users::NewUser {
                id: crate::store::UserId(uuid::Uuid::now_v7()),
                name: "ada".to_owned(),
                email: None,
                credit_line: crate::money::Usd::ZERO,
                balance: usd("9"),
                budgets: Vec::new(),
                rates: crate::limits::Rates::default(),
            };
            let ada = done(store.add_user(&new, &by(), at(0)));
            store.back_up(&scene.backup, Existing::Keep).expect("a backup");
            done(store.credit(&top_up(&ada, "1", None), &by(), at(2)));
            scene
        }

        fn restore(&self, existing: Existing) -> Result<Restored, BackupError> {
            restore(&self.backup, &self.database, existing, at(3))
        }

        fn kept(&self, ending: &str) -> PathBuf {
            connection::beside(&self.database, &format!(".replaced-20260921T141323Z{ending}"))
        }

        fn beside(&self, ending: &str) -> PathBuf {
            connection::beside(&self.database, ending)
        }

        /// The names in the database's folder.
        fn names(&self) -> Vec<String> {
            let found = fs::read_dir(self.database.parent().expect("a folder")).expect("listed");
            let mut names: Vec<_> = found
                .map(|found| found.expect("listed").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        }
    }

    fn balance(path: &Path) -> crate::money::Usd {
        let store = Store::open(path, Create::Never).expect("it opens");
        assert_eq!(store.verify().expect("verified").findings, []);
        assert_eq!(
            store.behind(),
            None,
            "it is what was restored, and not the remains of what was there"
        );
        store.find_user("ada").expect("read").expect("there").balance
    }

    const LATER: Option<LastEntry> = Some(LastEntry { seq: 2, at: FEW });
    const FEW: Timestamp = Timestamp::constant(1_790_000_002, 0);

    #[test]
    fn what_is_replaced_is_kept_and_can_be_restored_in_turn() {
        let scene = Scene::new();
        let refused = scene.restore(Existing::Keep).expect_err("it is there");
        assert!(matches!(refused, BackupError::Exists(at) if at == scene.database));
        assert_eq!(balance(&scene.database), usd("10"));
        let restored = scene.restore(Existing::Replace).expect("restored");
        let kept = vec![scene.kept("")];
        assert_eq!(restored.replaced, Some(Replaced { kept, last: LATER }));
        assert_eq!(restored.contents.last, Some(LastEntry { seq: 1, at: at(0) }));
        assert_eq!(balance(&scene.database), usd("9"));
        let mode = fs::metadata(scene.kept("")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        restore(&scene.kept(""), &scene.database, Existing::Replace, at(3)).expect("restored");
        assert_eq!(balance(&scene.database), usd("10"));
        assert_eq!(balance(&scene.kept("-2")), usd("9"), "a second one in the same second");
    }

    #[test]
    fn a_missing_database_and_its_folder_are_made_for_their_owner() {
        let scene = Scene::new();
        fs::remove_dir_all(scene.database.parent().expect("a folder")).expect("removed");
        let restored = scene.restore(Existing::Keep).expect("restored");
        assert_eq!(restored.replaced, None);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&scene.database), 0o600);
        assert_eq!(mode(scene.database.parent().expect("a folder")), 0o700);
        assert_eq!(scene.names(), ["gateway.db", "gateway.db.lock", "gateway.db.mark"]);
        assert_eq!(balance(&scene.database), usd("9"));
    }

    #[test]
    fn a_log_that_lost_its_database_is_not_taken_for_the_new_ones() {
        let scene = Scene::new();
        // As a process that was killed leaves it: the log holds what the file does not.
        let store = Store::open(&scene.database, Create::Never).expect("it opens");
        let ada = store.find_user("ada").expect("read").expect("there");
        done(store.credit(&top_up(&ada, "5", None), &by(), at(2)));
        let log = fs::read(scene.beside("-wal")).expect("there is a log");
        drop(store);
        fs::write(scene.beside("-wal"), &log).expect("written");
        fs::remove_file(&scene.database).expect("removed");
        let restored = scene.restore(Existing::Keep).expect("restored");
        let kept = vec![scene.kept("-wal")];
        assert_eq!(restored.replaced, Some(Replaced { kept, last: None }));
        assert!(fs::read(scene.kept("-wal")).expect("kept") == log);
        assert_eq!(balance(&scene.database), usd("9"));
    }

    #[test]
    fn a_database_that_cannot_be_opened_moves_aside_as_it_is() {
        for wreck in [
            "no database any more, and longer than a page".repeat(200),
            String::new(),
        ] {
            let scene = Scene::new();
            fs::write(&scene.database, &wreck).expect("written");
            fs::write(scene.beside("-wal"), "a log").expect("written");
            let restored = scene.restore(Existing::Replace).expect("restored");
            let replaced = restored.replaced.expect("something was there");
            assert_eq!(replaced.kept[..2], [scene.kept(""), scene.kept("-wal")]);
            assert_eq!(fs::read_to_string(scene.kept("")).expect("kept"), wreck);
            assert_eq!(fs::read_to_string(scene.kept("-wal")).expect("kept"), "a log");
            assert_eq!(balance(&scene.database), usd("9"));
        }
    }

    #[test]
    fn an_old_copy_and_the_log_of_the_newer_one_are_kept_apart() {
        let scene = Scene::new();
        let old = fs::read(&scene.database).expect("read");
        let store = Store::open(&scene.database, Create::Never).expect("it opens");
        let ada = store.find_user("ada").expect("read").expect("there");
        done(store.credit(&top_up(&ada, "5", None), &by(), at(2)));
        let conn = connection::open_writable(&scene.database).expect("it opens");
        let marks = mark::MarkFile::open(&scene.database).expect("opened");
        checkpoint::checkpoint(&conn, &marks, "PASSIVE");
        done(store.credit(&top_up(&ada, "7", None), &by(), at(2)));
        let log = fs::read(scene.beside("-wal")).expect("there is a log");
        drop((store, conn));
        fs::write(&scene.database, &old).expect("written");
        fs::write(scene.beside("-wal"), &log).expect("written");
        let restored = scene.restore(Existing::Replace).expect("restored");
        let kept = vec![scene.kept(""), scene.kept(".newer-wal")];
        assert_eq!(restored.replaced, Some(Replaced { kept, last: None }));
        assert!(fs::read(scene.kept("")).expect("kept") == old, "the copy is as it was");
        assert!(
            fs::read(scene.kept(".newer-wal")).expect("kept") == log,
            "and so is the log"
        );
        assert_eq!(balance(&scene.database), usd("9"));
    }

    #[test]
    fn a_database_that_somebody_has_open_is_left_alone() {
        let scene = Scene::new();
        let open = Store::open(&scene.database, Create::Never).expect("it opens");
        let busy = scene.restore(Existing::Replace).expect_err("it is in use");
        assert!(
            matches!(&busy, BackupError::Busy(at) if *at == scene.database),
            "{busy:?}"
        );
        assert_eq!(open.users().expect("read")[0].balance, usd("10"));
        drop(open);
        let more = scene
            .names()
            .into_iter()
            .find(|name| name.contains("replaced") || name.contains("partial"));
        assert_eq!(more, None);
        let server = ServerLock::acquire(&scene.database).expect("nobody has it");
        let served = scene.restore(Existing::Replace).expect_err("a server runs");
        assert!(matches!(served, BackupError::Open(OpenError::InUse(_))), "{served:?}");
        drop(server);
        scene.restore(Existing::Replace).expect("nobody uses it now");
    }

    #[test]
    fn the_database_stays_as_it_is_when_the_backup_is_no_good() {
        let scene = Scene::new();
        let good = fs::read(&scene.backup).expect("read");
        let refused = |bytes: &[u8]| {
            fs::write(&scene.backup, bytes).expect("written");
            let error = scene.restore(Existing::Replace).expect_err("no good");
            assert_eq!(balance(&scene.database), usd("10"));
            assert!(!scene.kept("").exists());
            error
        };
        let cut = refused(&good[..good.len() / 2]);
        assert!(matches!(cut, BackupError::Damaged { .. }), "{cut:?}");
        let text = refused("no database ".repeat(1000).as_bytes());
        assert!(matches!(text, BackupError::Open(OpenError::NotOurs(_))), "{text:?}");
        refused(b"");
        fs::write(&scene.backup, &good).expect("written");
        let alter = |sql: &str| {
            let conn = connection::open_writable(&scene.backup).expect("it opens");
            conn.execute_batch(sql).expect("altered");
            drop(conn);
            fs::read(&scene.backup).expect("read")
        };
        let altered = alter("DROP TRIGGER entries_are_final; UPDATE ledger_entries SET at = at + 1");
        match refused(&altered) {
            BackupError::Unbalanced { file, first } => {
                assert_eq!((file, first.table), (scene.backup.clone(), "ledger_entries"));
            }
            other => panic!("{other:?}"),
        }
        fs::write(&scene.backup, &good).expect("written");
        let newer = refused(&alter("PRAGMA user_version = 99"));
        assert!(
            matches!(newer, BackupError::Open(OpenError::TooNew { found: 99, .. })),
            "{newer:?}"
        );
        fs::write(&scene.backup, &good).expect("written");
        scene.restore(Existing::Replace).expect("restored");
    }

    #[test]
    fn a_backup_of_an_earlier_version_is_brought_up_before_it_takes_the_place() {
        let scene = Scene::new();
        let conn = connection::open_writable(&scene.backup).expect("it opens");
        let downgrade = include_str!("../../tests/data/downgrade-to-1.sql");
        conn.execute_batch(downgrade).expect("downgraded");
        drop(conn);
        scene.restore(Existing::Replace).expect("restored");
        assert_eq!(balance(&scene.database), usd("9"));
        assert!(
            !backup_path(&scene.database, 1).exists(),
            "there was nothing left to migrate"
        );
        let conn = connection::open_to_read(&scene.backup).expect("it opens");
        assert_eq!(
            connection::version_of(&conn).expect("read"),
            Some(1),
            "the backup is as it was"
        );
    }

    #[test]
    fn a_link_to_the_database_stays_a_link_and_a_foreign_database_stays() {
        let scene = Scene::new();
        let link = scene.folder.path().join("link.db");
        std::os::unix::fs::symlink(&scene.database, &link).expect("linked");
        restore(&scene.backup, &link, Existing::Replace, at(3)).expect("restored");
        assert!(link.is_symlink());
        assert_eq!(balance(&scene.database), usd("9"));
        let same = restore(&scene.database, &link, Existing::Replace, at(3));
        assert!(matches!(same, Err(BackupError::Itself(_))), "{same:?}");
        let foreign = scene.folder.path().join("photos.db");
        connection::create_blank(&foreign).expect("made");
        let conn = connection::open_writable(&foreign).expect("it opens");
        conn.execute_batch("CREATE TABLE photos (name)").expect("written");
        drop(conn);
        let refused = restore(&scene.backup, &foreign, Existing::Replace, at(3));
        assert!(
            matches!(refused, Err(BackupError::Open(OpenError::NotOurs(_)))),
            "{refused:?}"
        );
    }
}

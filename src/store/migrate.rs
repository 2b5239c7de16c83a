//! Migrations: what makes a database of an earlier version one of ours.
//!
//! A backup of the earlier version is made beside the database before anything is changed: `gateway.db.version-1.backup`.
//! The migration is one transaction, which also keeps everybody else from writing while the backup is made, so that the
//! backup is the very state that was migrated.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::{Loss, OpenError, ServerLock, backup, connection, during, mark};
use crate::fail_point::{self, Point};

/// `user_version` of the schema.
pub(super) const VERSION: i64 = 6;

/// What makes a database of one version one of the next; the first is of version 1.
const STEPS: [&str; 5] = [
    // 2: commits are counted.
    "CREATE TABLE commits (
         one   INTEGER PRIMARY KEY CHECK (one = 1),
         count INTEGER NOT NULL CHECK (count >= 0)
     ) STRICT;
     INSERT INTO commits (one, count) VALUES (1, 0);
     CREATE TRIGGER commits_are_counted BEFORE UPDATE ON commits
     WHEN NEW.count IS NOT OLD.count + 1 OR NEW.one IS NOT OLD.one
     BEGIN SELECT RAISE(ABORT, 'commits are counted one by one'); END;
     CREATE TRIGGER commits_stay BEFORE DELETE ON commits
     BEGIN SELECT RAISE(ABORT, 'the count of commits is not deleted'); END;",
    // 3: a settlement makes no tables for itself.
    include_str!("version-3.sql"),
    // 4: budgets, refunds, codes, idempotency, usage summed by day.
    include_str!("version-4.sql"),
    // 5: rate limits, attempts, events.
    include_str!("version-5.sql"),
    // 6: who asked.
    include_str!("version-6.sql"),
];

/// A table that is made anew is missing for a moment: what refers to it has to bear that. Looked at again at the end.
const LENIENT: &str = "PRAGMA foreign_keys = OFF; PRAGMA legacy_alter_table = ON";
const STRICT: &str = "PRAGMA legacy_alter_table = OFF; PRAGMA foreign_keys = ON";

/// Where the backup is that was made of a version before it was left.
pub(super) fn backup_path(database: &Path, version: i64) -> PathBuf {
    connection::beside(database, &format!(".version-{version}.backup"))
}

/// Brings a database of an earlier version up to ours. A server that runs on it is of an earlier release: it would go
/// on in its own way. What lacks something of what was there before could not go back either.
pub(super) fn migrate(conn: &mut Connection, path: &Path, loss: Loss) -> Result<(), OpenError> {
    if let Some(server) = ServerLock::holder(path)?
        && is_earlier(conn)?
    {
        return Err(OpenError::InUse(server));
    }
    if loss == Loss::Refused
        && let Some(lacks) = mark::check(conn, path)?
    {
        let path = path.to_owned();
        return Err(OpenError::Behind { path, lacks });
    }
    take(&STEPS, conn, path)
}

/// Whether the database is of an earlier version still: whoever serves it may just have migrated it.
fn is_earlier(conn: &Connection) -> Result<bool, OpenError> {
    let found: i64 = connection::pragma(conn, "PRAGMA user_version").map_err(during("reading the version"))?;
    Ok(found < VERSION)
}

/// Takes those of the steps that the database lacks.
fn take(steps: &[&str], conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let set = |conn: &Connection, how| conn.execute_batch(how).map_err(during(migrating(path)));
    set(conn, LENIENT)?;
    let taken = take_leniently(steps, conn, path);
    set(conn, STRICT)?;
    taken
}

fn migrating(path: &Path) -> String {
    format!("migrating {}", path.display())
}

fn take_leniently(steps: &[&str], conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let migrating = || migrating(path);
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(during(migrating()))?;
    // Another process may have been first.
    let found: i64 = connection::pragma(&tx, "PRAGMA user_version").map_err(during(migrating()))?;
    let missing: Vec<_> = (1_i64..).zip(steps).filter(|(from, _)| *from >= found).collect();
    if missing.is_empty() {
        return Ok(());
    }
    backup::before_migration(path, found).map_err(|source| OpenError::NotBackedUp { found, source })?;
    for (from, step) in missing {
        let stepped = tx
            .execute_batch(step)
            .and_then(|()| fail_point::hit(Point::Migration).map_err(super::columns::injected))
            .and_then(|()| tx.pragma_update(None, "user_version", from + 1));
        stepped.map_err(during(migrating()))?;
    }
    let dangling = tx
        .prepare("PRAGMA foreign_key_check")
        .and_then(|mut check| check.exists([]));
    if dangling.map_err(during(migrating()))? {
        return Err(during(migrating())(super::columns::broken("a row refers to one that is not there")).into());
    }
    Ok(tx.commit().map_err(during(migrating()))?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::super::testing::*;
    use super::super::{Create, Store};
    use super::*;
    use crate::origin::Origin;
    use crate::store::entries::Entry;

    /// The schema of version 1, as it was.
    const SCHEMA_1: &str = include_str!("../../tests/data/schema-1.sql");

    /// Books of version 1: written by our own hand, and put into the tables of then.
    fn earlier() -> (Desk, Vec<Entry>) {
        let desk = Desk::new();
        let ada = desk.user("ada", "9");
        let (key, id) = (desk.key(&ada), exchange());
        desk.set_aside(&ask(id, &key, "2"));
        let mut close = closing(id, &key, "1");
        // Which attempts these were was not kept, nor who asked.
        close.row.attempts = 2;
        close.row.origin = Origin::default();
        desk.close(id, &close);
        let entries = desk.store.entries(ada.id, None, 100).expect("they are read");
        desk.raw()
            .execute_batch(include_str!("../../tests/data/downgrade-to-1.sql"))
            .expect("downgraded");
        // Version 1 had no high-water mark.
        fs::remove_file(mark::path_of(&desk.path())).expect("removed");
        (desk, entries)
    }

    /// Every table, index and trigger by its name and SQL, without comments, spaces and quotes around names.
    fn schema(conn: &Connection) -> Vec<String> {
        let mut statement = conn
            .prepare("SELECT name || ' ' || COALESCE(sql, '') FROM sqlite_schema ORDER BY name")
            .expect("prepared");
        let rows = statement.query_map([], |row| row.get(0)).expect("read");
        rows.map(|sql: rusqlite::Result<String>| {
            let sql = sql.expect("text");
            let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
            lines
                .flat_map(|line| line.chars().filter(|c| !c.is_whitespace() && *c != '"'))
                .collect()
        })
        .collect()
    }

    fn made_of(sql: &str) -> Connection {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("made.db");
        connection::create_blank(&path).expect("made");
        let conn = connection::open_writable(&path).expect("it opens");
        conn.execute_batch(sql).expect("the schema");
        conn
    }

    fn version(path: &Path) -> i64 {
        let conn = connection::open_to_read(path).expect("it opens");
        connection::pragma(&conn, "PRAGMA user_version").expect("read")
    }

    fn names_beside(path: &Path) -> Vec<String> {
        let folder = fs::read_dir(path.parent().expect("a folder")).expect("listed");
        let name = |found: std::io::Result<fs::DirEntry>| found.expect("listed").file_name().into_string();
        let mut names: Vec<String> = folder.map(|found| name(found).expect("text")).collect();
        names.sort();
        names
    }

    #[test]
    fn version_1_becomes_ours_with_its_books_and_lies_beside_it_as_it_was() {
        let (desk, entries) = earlier();
        assert_eq!(schema(&desk.raw()), schema(&made_of(SCHEMA_1)), "it is a version 1");
        let migrated = desk.again();
        let ada = migrated.find_user("ada").expect("read").expect("there");
        assert_eq!(migrated.entries(ada.id, None, 100).expect("read"), entries);
        assert_eq!(migrated.verify().expect("verified").findings, []);
        let exchange = entries.iter().find_map(|entry| entry.exchange).expect("a charge");
        let outcomes = migrated.attempts(exchange).expect("read").into_iter();
        let outcomes: Vec<_> = outcomes.map(|attempt| attempt.outcome.name()).collect();
        assert_eq!(outcomes, ["unreachable", "answered"]);
        assert_eq!(schema(&desk.raw()), schema(&made_of(include_str!("../../schema.sql"))));
        assert_eq!(version(&desk.path()), VERSION);
        let backup = backup_path(&desk.path(), 1);
        assert_eq!(version(&backup), 1);
        let conn = connection::open_to_read(&backup).expect("it opens");
        assert_eq!(schema(&conn), schema(&made_of(SCHEMA_1)));
        let kept: i64 = connection::pragma(&conn, "SELECT COUNT(*) FROM ledger_entries").expect("read");
        assert_eq!(usize::try_from(kept), Ok(entries.len()));
    }

    #[test]
    fn steps_are_taken_from_the_version_that_is_found() {
        let (desk, _) = earlier();
        let mut conn = connection::open_writable(&desk.path()).expect("it opens");
        let steps = ["CREATE TABLE one (a)", "CREATE TABLE two AS SELECT * FROM one"];
        take(&steps, &mut conn, &desk.path()).expect("two steps at once");
        assert_eq!(version(&desk.path()), 3);
        assert_eq!(version(&backup_path(&desk.path(), 1)), 1);
        let steps = [steps[0], steps[1], "DROP TABLE one"];
        take(&steps, &mut conn, &desk.path()).expect("the third only");
        assert_eq!(version(&desk.path()), 4);
        assert_eq!(version(&backup_path(&desk.path(), 3)), 3);
        take(&steps, &mut conn, &desk.path()).expect("none");
        assert!(!backup_path(&desk.path(), 4).exists(), "nothing to do, nothing to keep");
    }

    #[test]
    fn a_migration_that_fails_half_way_changes_nothing() {
        let (desk, _) = earlier();
        let mut conn = connection::open_writable(&desk.path()).expect("it opens");
        let before = schema(&conn);
        let steps = ["CREATE TABLE one (a)", "INSERT INTO nowhere VALUES (1)"];
        let error = take(&steps, &mut conn, &desk.path()).expect_err("there is no such table");
        assert!(error.to_string().starts_with("migrating /"), "{error}");
        assert_eq!((version(&desk.path()), schema(&conn)), (1, before));
        desk.again().verify().expect("the next start migrates");
    }

    #[test]
    fn without_a_backup_there_is_no_migration() {
        let (desk, _) = earlier();
        let place = backup_path(&desk.path(), 1);
        fs::create_dir_all(place.join("in the way")).expect("made");
        let error = Store::open(&desk.path(), Create::Never).expect_err("it has to be there first");
        assert!(matches!(error, OpenError::NotBackedUp { found: 1, .. }), "{error:?}");
        assert_eq!(version(&desk.path()), 1);
        let names = names_beside(&desk.path());
        assert!(!names.iter().any(|name| name.contains("partial")), "{names:?}");
        fs::remove_dir_all(place).expect("out of the way");
        desk.again();
    }

    #[test]
    fn of_many_that_migrate_at_once_one_does_and_the_backup_is_of_before() {
        let (desk, _) = earlier();
        thread::scope(|scope| {
            let all: Vec<_> = (0..6).map(|_| scope.spawn(|| desk.again())).collect();
            for one in all {
                one.join().expect("opened");
            }
        });
        assert_eq!(version(&desk.path()), VERSION);
        assert_eq!(version(&backup_path(&desk.path(), 1)), 1);
    }

    #[test]
    fn a_database_that_an_earlier_release_serves_stays_its_own() {
        let (desk, _) = earlier();
        let server = ServerLock::acquire(&desk.path()).expect("nobody has it");
        let error = Store::open(&desk.path(), Create::Never).expect_err("it would be changed under the server");
        assert!(matches!(error, OpenError::InUse(_)), "{error:?}");
        assert_eq!(version(&desk.path()), 1);
        drop(server);
        desk.again();
        let _server = ServerLock::acquire(&desk.path()).expect("nobody has it");
        let mut conn = connection::open_writable(&desk.path()).expect("it opens");
        migrate(&mut conn, &desk.path(), Loss::Refused).expect("the server itself was first");
    }

    #[test]
    fn whoever_may_not_know_whether_a_server_runs_does_not_migrate() {
        let (desk, _) = earlier();
        let lock = connection::beside(&desk.path(), ".lock");
        std::os::unix::fs::symlink(&lock, &lock).expect("linked to itself: nobody can read it");
        let mut conn = connection::open_writable(&desk.path()).expect("it opens");
        let error = migrate(&mut conn, &desk.path(), Loss::Refused).expect_err("one may run");
        assert!(matches!(error, OpenError::Store(_)), "{error:?}");
        assert_eq!(version(&desk.path()), 1);
    }

    #[test]
    fn an_old_copy_of_an_earlier_version_stays_so_until_the_loss_is_accepted() {
        let (desk, _) = earlier();
        let newer = Desk::new();
        newer.user("eve", "1");
        fs::copy(mark::path_of(&newer.path()), mark::path_of(&desk.path())).expect("copied");
        let refused = Store::open(&desk.path(), Create::Never);
        assert!(matches!(refused, Err(OpenError::Behind { .. })), "{refused:?}");
        assert_eq!(version(&desk.path()), 1);
        assert!(!backup_path(&desk.path(), 1).exists());
        let store = Store::open_at_a_loss(&desk.path(), Create::Never).expect("it opens");
        assert!(store.behind().is_some());
        done(store.accept_loss(&by(), at(3)));
        assert_eq!(desk.again().behind(), None);
        assert_eq!(store.verify().expect("verified").findings, []);
    }

    #[test]
    fn the_log_of_an_earlier_version_in_place_of_a_newer_one_is_nobodys_to_throw_away() {
        let (desk, _) = earlier();
        let conn = desk.raw();
        let into_file = "PRAGMA wal_checkpoint(RESTART); CREATE TABLE later (a)";
        conn.execute_batch(into_file)
            .expect("version 1 is in the file, and something in the log");
        mark::MarkFile::open(&desk.path()).expect("opened").note_moved(1);
        let refused = Store::open(&desk.path(), Create::Never);
        assert!(matches!(refused, Err(OpenError::WhoseLog(..))), "{refused:?}");
    }

    #[test]
    fn a_newer_database_names_the_newest_backup_of_a_version_that_we_know() {
        let (desk, _) = earlier();
        desk.again();
        desk.raw().execute_batch("PRAGMA user_version = 9").expect("set");
        let refused = |expected: Option<PathBuf>| match Store::open(&desk.path(), Create::Never) {
            Err(OpenError::TooNew { found: 9, backup, .. }) => assert_eq!(backup, expected),
            other => panic!("{other:?}"),
        };
        refused(Some(backup_path(&desk.path(), 1)));
        fs::write(backup_path(&desk.path(), 2), "").expect("written");
        fs::write(backup_path(&desk.path(), 8), "").expect("written");
        refused(Some(backup_path(&desk.path(), 2)));
    }
}

//! Opening SQLite: the file, the settings of every connection, the schema.
//!
//! The database files are opened by SQLite only: closing any other handle on them drops the process's locks, and then
//! acknowledged commits are lost.

use std::cell::Cell;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::process::geteuid;

use super::migrate::{self, VERSION};
use super::{Create, Loss, OpenError, StoreError, during, on_file};

/// The whole schema.
const SCHEMA: &str = include_str!("../../schema.sql");

/// `application_id` of a gateway's database: "CxGw".
const APPLICATION: i64 = 0x4378_4777;

/// The first SQLite without the bug that loses commits when two connections checkpoint at once.
const OLDEST_SQLITE: i32 = 3_051_003;

/// How long a connection asks for a lock, a millisecond apart: a server's writer leaves gaps of two milliseconds, which
/// SQLite's own ladder of ever longer sleeps would miss.
const BUSY: Duration = Duration::from_secs(5);

/// How often setting WAL is tried: the lock it takes ignores the busy handler.
const WAL_TRIES: u32 = 100;

/// Statements kept prepared by each connection: all there are.
const STATEMENTS: usize = 96;

/// The mode of a database: its owner reads and writes it.
const OWNER_ONLY: u32 = 0o600;

/// Connections that read, at most.
pub(super) const READERS: u32 = 8;

/// The page cache of each of them, in KiB. They look up single rows, which the system has in memory; larger ones fill in the
/// course of hours, and look like a leak.
const READER_CACHE: i64 = 512;

/// How long a reader's connection is waited for; the callers are bounded to as many as there are connections.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// What every connection is set to; each with its reason.
const SETTINGS: &str = "
    PRAGMA synchronous = FULL;            -- NORMAL loses acknowledged commits when the power fails
    PRAGMA foreign_keys = ON;
    PRAGMA recursive_triggers = ON;       -- else REPLACE deletes past the triggers that protect the ledger
    PRAGMA trusted_schema = OFF;          -- a file made by somebody else runs nothing
    PRAGMA cell_size_check = ON;          -- finds corruption when it is read, not later
    PRAGMA journal_size_limit = 67108864; -- 64 MiB of log are kept for reuse, which also helps on a full disk
    PRAGMA wal_autocheckpoint = 0;        -- checkpoints run on their own thread: on the commit path they halve it
    PRAGMA temp_store = MEMORY;
    PRAGMA mmap_size = 0;                 -- a mapped file turns an I/O error into a signal
";

/// Opens for writing, creating the file and its schema if that is allowed.
pub(super) fn open(path: &Path, create: Create, loss: Loss) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        let context = format!(
            "SQLite {} loses commits; at least 3.51.3 is needed",
            rusqlite::version()
        );
        return Err(StoreError { context, source: None }.into());
    }
    match (path.exists(), create) {
        (true, _) => {}
        (false, Create::Never) => return Err(OpenError::Missing(path.to_owned())),
        (false, Create::IfMissing) => create_file(path).map_err(|e| on_file("creating", path, e))?,
    }
    let opening = || format!("opening {}", path.display());
    if path.is_dir() {
        return Err(OpenError::NotOurs(path.to_owned()));
    }
    let mut conn = match open_writable(path) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            return Err(OpenError::NotOurs(path.to_owned()));
        }
        other => other.map_err(during(opening()))?,
    };
    if create == Create::IfMissing && is_empty(&conn).map_err(during(opening()))? {
        create_schema(&mut conn).map_err(during(format!("creating the schema in {}", path.display())))?;
        fs::set_permissions(path, fs::Permissions::from_mode(OWNER_ONLY)).map_err(|e| on_file("creating", path, e))?;
    }
    let application: i64 = pragma(&conn, "PRAGMA application_id").map_err(during(opening()))?;
    if application != APPLICATION {
        return Err(OpenError::NotOurs(path.to_owned()));
    }
    if (1..VERSION).contains(&version(&conn).map_err(during(opening()))?) {
        migrate::migrate(&mut conn, path, loss)?;
    }
    match version(&conn).map_err(during(opening()))? {
        VERSION => {}
        found => return Err(too_new(path, found)),
    }
    use_wal(&conn).map_err(during(opening()))?;
    warn_of_others(path);
    Ok(conn)
}

/// What is said of a database that a newer release made, with the backup of ours that lies beside it.
pub(super) fn too_new(path: &Path, found: i64) -> OpenError {
    let ours = (1..=VERSION).rev().map(|version| migrate::backup_path(path, version));
    OpenError::TooNew {
        path: path.to_owned(),
        found,
        known: VERSION,
        backup: ours.into_iter().find(|backup| backup.exists()),
    }
}

/// Tells when anybody on the machine may read or write the books. What the file's group may is the operator's choice:
/// so several people administer one gateway.
fn warn_of_others(path: &Path) {
    let mode = fs::metadata(path).map_or(0, |file| file.permissions().mode());
    if mode & 0o007 != 0 {
        let mode = format!("{:o}", mode & 0o777);
        tracing::warn!(
            path = %path.display(), mode,
            "everybody on this machine may open the database; chmod o= on it and its -wal and -shm takes that away"
        );
    }
}

/// A further connection that writes to a database that is open already.
#[expect(clippy::disallowed_methods, reason = "this is the store's door")]
pub(super) fn open_writable(path: &Path) -> rusqlite::Result<Connection> {
    // Without SQLITE_OPEN_CREATE (the file is made by `create_file`) and SQLITE_OPEN_URI (a path is a path).
    let conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    set_up(&conn)?;
    Ok(conn)
}

/// A connection that reads a file and makes none; what it reads need not be a database of ours.
#[expect(clippy::disallowed_methods, reason = "this is the store's door")]
pub(super) fn open_to_read(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    set_up(&conn)?;
    Ok(conn)
}

/// The version of a gateway's database, `None` when it is no gateway's.
pub(super) fn version_of(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    let application: i64 = pragma(conn, "PRAGMA application_id")?;
    (application == APPLICATION).then(|| version(conn)).transpose()
}

/// The connections that read.
pub(super) fn readers(path: &Path) -> r2d2::Pool<SqliteConnectionManager> {
    let manager = SqliteConnectionManager::file(path)
        .with_flags(OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .with_init(|conn| {
            only_read(conn)?;
            conn.pragma_update(None, "cache_size", -READER_CACHE)
        });
    r2d2::Pool::builder()
        .max_size(READERS)
        .min_idle(Some(0))
        .max_lifetime(None)
        .idle_timeout(None)
        .test_on_check_out(false)
        .connection_timeout(READER_TIMEOUT)
        .build_unchecked(manager)
}

/// A connection that reads, beside those of the pool.
#[expect(clippy::disallowed_methods, reason = "this is the store's door")]
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    only_read(&conn)?;
    Ok(conn)
}

fn only_read(conn: &Connection) -> rusqlite::Result<()> {
    set_up(conn)?;
    conn.execute_batch("PRAGMA query_only = ON")
}

/// The path in the form SQLite takes for a path and nothing else. Of a link it is what it leads to: SQLite puts the log
/// beside that, and so is everything else.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, OpenError> {
    if path.is_symlink()
        && let Ok(file) = fs::canonicalize(path)
    {
        return Ok(file);
    }
    Ok(std::path::absolute(path).map_err(|e| on_file("finding", path, e))?)
}

/// The path of a file beside the database, whose name goes on from the database's.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn set_up(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_handler(Some(wait_a_millisecond))?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DDL, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.execute_batch(SETTINGS)
}

/// Does something that waits for locks of others no longer than `wait`.
pub(super) fn waiting<T>(conn: &Connection, wait: Duration, act: impl FnOnce() -> T) -> rusqlite::Result<T> {
    conn.busy_timeout(wait)?;
    let done = act();
    conn.busy_handler(Some(wait_a_millisecond))?;
    Ok(done)
}

/// Asked after each try; on a machine with much to do a millisecond is longer than that, so tries are not counted.
fn wait_a_millisecond(tries: i32) -> bool {
    thread_local! {
        static SINCE: Cell<Instant> = Cell::new(Instant::now());
    }
    if tries == 0 {
        SINCE.set(Instant::now());
    }
    thread::sleep(Duration::from_millis(1));
    SINCE.get().elapsed() < BUSY
}

pub(super) fn pragma<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> rusqlite::Result<T> {
    conn.query_row(sql, [], |row| row.get(0))
}

fn version(conn: &Connection) -> rusqlite::Result<i64> {
    pragma(conn, "PRAGMA user_version")
}

/// Makes an empty database that only its owner can read.
fn create_file(path: &Path) -> io::Result<()> {
    create_folder(path)?;
    create_linked(path, |_| Ok(()))
}

/// Makes an empty file, which is its owner's alone until `prepare` says otherwise; one that is there stays. It is made
/// beside the path and linked to it: nobody sees it before it is as it has to be, and of a database no handle but
/// SQLite's is ever closed.
fn create_linked(path: &Path, prepare: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let blank = beside(path, &format!(".new-{}", uuid::Uuid::now_v7()));
    create_blank(&blank)?;
    let linked = prepare(&blank).and_then(|()| fs::hard_link(&blank, path));
    fs::remove_file(&blank)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Opens a file that belongs to a database and lies beside it, or makes an empty one. As SQLite does with its own, what
/// is made has the database's mode, and its owner and group if root makes it: whoever may use the database may use it.
pub(super) fn open_beside(database: &Path, path: &Path) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    create_linked(path, |blank| match fs::metadata(database) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(database) => {
            if geteuid().is_root() {
                chown(blank, Some(database.uid()), Some(database.gid()))?;
            }
            fs::set_permissions(blank, database.permissions())
        }
    })?;
    open()
}

/// Makes the folder of a file, if it is missing; what is made is its owner's alone.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

/// Makes an empty file that only its owner can read. It must not be there, nor be a database that anybody has open.
pub(super) fn create_blank(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(OWNER_ONLY);
    options.open(path).map(drop)
}

/// Whether nobody has written anything into the database yet.
pub(super) fn is_empty(conn: &Connection) -> rusqlite::Result<bool> {
    let tables: i64 = pragma(conn, "SELECT COUNT(*) FROM sqlite_schema")?;
    let application: i64 = pragma(conn, "PRAGMA application_id")?;
    Ok(version(conn)? == 0 && application == 0 && tables == 0)
}

fn create_schema(conn: &mut Connection) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_empty(&tx)? {
        tx.execute_batch(SCHEMA)?;
    }
    tx.commit()
}

fn use_wal(conn: &Connection) -> rusqlite::Result<()> {
    let mut tries = 0;
    loop {
        match pragma::<String>(conn, "PRAGMA journal_mode = WAL") {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                return Err(super::columns::broken(format!(
                    "the journal is {mode}, not a write-ahead log"
                )));
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && tries < WAL_TRIES => {
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::testing::*;
    use super::*;

    fn open_at(path: &Path, create: Create) -> Result<Store, OpenError> {
        Store::open(path, create)
    }

    #[test]
    fn a_new_database_is_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("data").join("gateway.db");
        let store = open_at(&path, Create::IfMissing).expect("created");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().expect("a folder")), 0o700);
        assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
        assert_eq!(mode(&path.with_extension("db.mark")), 0o600);
        let others = fs::read_dir(folder.path().join("data")).expect("listed").count();
        assert_eq!(
            others, 4,
            "the database, its log, its index, its mark, and nothing else"
        );
        drop(store);
    }

    #[test]
    fn a_missing_database_is_only_created_where_that_is_meant() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.db");
        let missing = open_at(&path, Create::Never);
        assert!(
            matches!(&missing, Err(OpenError::Missing(at)) if *at == path),
            "{missing:?}"
        );
        assert!(!path.exists());
    }

    #[test]
    fn a_newer_database_and_a_foreign_one_are_left_alone() {
        let desk = Desk::new();
        let newer = VERSION + 1;
        desk.raw().pragma_update(None, "user_version", newer).expect("set");
        match open_at(&desk.path(), Create::Never) {
            Err(OpenError::TooNew {
                found, known, backup, ..
            }) => {
                assert_eq!((found, known, backup), (newer, VERSION, None));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_no_database_of_a_gateway_is_told_as_that() {
        let desk = Desk::new();
        let file = |name: &str| desk.path().with_file_name(name);
        let foreign = |name: &str, sql: &str| {
            #[expect(clippy::disallowed_methods, reason = "a file that the store did not make")]
            let conn = Connection::open(file(name)).expect("it opens");
            conn.execute_batch(sql).expect("written");
        };
        foreign("newer.db", "CREATE TABLE t (c); PRAGMA user_version = 7");
        foreign("same.db", "CREATE TABLE t (c); PRAGMA user_version = 1");
        foreign("tables.db", "CREATE TABLE t (c)");
        foreign("other.db", "PRAGMA application_id = 5");
        fs::write(file("text"), "not a database ".repeat(100)).expect("written");
        fs::create_dir(file("folder")).expect("made");
        for name in ["newer.db", "same.db", "tables.db", "other.db", "text", "folder"] {
            for create in [Create::Never, Create::IfMissing] {
                let error = open_at(&file(name), create).expect_err(name);
                assert!(
                    matches!(&error, OpenError::NotOurs(at) if *at == file(name)),
                    "{name}: {error:?}"
                );
            }
        }
    }

    #[test]
    fn an_empty_file_becomes_a_database_only_where_that_is_meant_and_then_its_owners_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.db");
        fs::write(&path, "").expect("written");
        let refused = open_at(&path, Create::Never);
        assert!(matches!(refused, Err(OpenError::NotOurs(_))), "{refused:?}");
        assert_eq!(fs::metadata(&path).expect("it is there").len(), 0, "left alone");
        open_at(&path, Create::IfMissing).expect("created");
        let mode = fs::metadata(&path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_path_is_a_path_even_when_it_looks_like_a_uri() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file:x?mode=memory");
        open_at(&path, Create::IfMissing).expect("created");
        assert!(path.exists());
    }

    #[test]
    fn every_connection_is_safe_and_readers_only_read() {
        let desk = Desk::new();
        let check = |conn: &Connection| {
            let value = |name: &str| pragma::<i64>(conn, &format!("PRAGMA {name}")).expect(name);
            assert_eq!(value("synchronous"), 2);
            assert_eq!(value("recursive_triggers"), 1);
            assert_eq!(value("foreign_keys"), 1);
            assert_eq!(value("trusted_schema"), 0);
            assert_eq!(value("wal_autocheckpoint"), 0);
            assert_eq!(pragma::<String>(conn, "PRAGMA journal_mode").expect("read"), "wal");
            assert!(conn.db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE).expect("read"));
            conn.prepare("SELECT \"no_such_column\"")
                .expect_err("a typo is no text");
            Ok(())
        };
        check(&open_writable(&desk.path()).expect("it opens")).expect("checked");
        desk.store.read("checking", check).expect("checked");
        let written = desk.store.read("writing", |conn| conn.execute("DELETE FROM meta", []));
        written.expect_err("readers only read");
    }

    #[test]
    fn what_lies_beside_a_database_is_for_whom_the_database_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.db");
        drop(open_at(&path, Create::IfMissing).expect("created"));
        let others = [".mark", ".lock", ".ballast"].map(|ending| beside(&path, ending));
        fs::remove_file(&others[0]).expect("removed");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("set");
        let who = if geteuid().is_root() {
            12_345
        } else {
            geteuid().as_raw()
        };
        chown(&path, Some(who), None).expect("given away");
        let config = crate::config::DiskConfig {
            min_free: 0,
            ballast: 1,
        };
        super::super::mark::MarkFile::open(&path).expect("opened");
        let lock = super::super::ServerLock::acquire(&path).expect("nobody has it");
        super::super::space::Space::of(&path, config);
        for other in others {
            let file = fs::metadata(&other).expect("it is there");
            assert_eq!((file.mode() & 0o777, file.uid()), (0o660, who), "{}", other.display());
        }
        drop(lock);
        let names = fs::read_dir(folder.path()).expect("listed").count();
        assert_eq!(names, 4, "and nothing else");
    }

    #[test]
    fn many_that_create_a_database_at_once_create_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.db");
        thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| open_at(&path, Create::IfMissing)))
                .collect();
            for one in all {
                one.join().expect("no panic").expect("opened");
            }
        });
    }
}

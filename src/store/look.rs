//! Looking at a database without writing anything: nothing is made, migrated or marked, and a running server goes on.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{ErrorCode, OptionalExtension};

use super::columns::Micros;
use super::migrate::VERSION;
use super::{OpenError, Store, StoreError, connection, during, mark, pairing};

/// What was found.
#[derive(Debug)]
pub enum Looked {
    /// A database of our version; [`Store::behind`] tells what it lacks.
    Ours(Store),
    /// One of an earlier version, which whoever opens it migrates.
    Earlier {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
}

/// Looks at a database.
///
/// # Errors
/// Why [`Store::open`] would not open it.
pub fn look(path: &Path) -> Result<Looked, OpenError> {
    let path = connection::absolute(path)?;
    pairing::check(&path)?;
    if !path.exists() {
        return Err(OpenError::Missing(path));
    }
    let opening = || during(format!("opening {}", path.display()));
    let conn = connection::open_to_read(&path);
    let version = conn.and_then(|conn| Ok((connection::version_of(&conn)?, conn)));
    let (version, conn) = match version {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
            return Err(OpenError::NotOurs(path));
        }
        other => other.map_err(opening())?,
    };
    match version {
        None => Err(OpenError::NotOurs(path)),
        Some(found) if found > VERSION => Err(connection::too_new(&path, found)),
        Some(found) if found < VERSION => Ok(Looked::Earlier { found, known: VERSION }),
        Some(_) => {
            let behind = mark::check(&conn, &path)?;
            Ok(Looked::Ours(Store::over(path, conn, behind)))
        }
    }
}

impl Store {
    /// The first damage that SQLite finds in the file, if any; reads all of it, but compares no index with its table.
    pub fn damage(&self) -> Result<Option<String>, StoreError> {
        let found: String = self.read("checking the file", |conn| {
            connection::pragma(conn, "PRAGMA quick_check(1)")
        })?;
        Ok((found != "ok").then_some(found))
    }

    /// When the newest of entries, holds and acts was written.
    pub fn newest(&self) -> Result<Option<Timestamp>, StoreError> {
        let newest = |conn: &rusqlite::Connection, sql| -> rusqlite::Result<Option<Timestamp>> {
            let at = conn.query_row(sql, [], |row| row.get::<_, Micros>(0)).optional()?;
            Ok(at.map(|Micros(at)| at))
        };
        self.read("reading the newest rows", |conn| {
            let entry = newest(conn, "SELECT at FROM ledger_entries ORDER BY seq DESC LIMIT 1")?;
            let act = newest(conn, "SELECT at FROM audit_log ORDER BY seq DESC LIMIT 1")?;
            let hold = newest(conn, "SELECT placed_at FROM holds ORDER BY exchange_id DESC LIMIT 1")?;
            Ok(entry.max(act).max(hold))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_look_finds_what_is_there_and_writes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.db");
        assert!(matches!(look(&path), Err(OpenError::Missing(_))));
        std::fs::write(
            &path,
            "no database, but a text that is long enough to be read as the head of one",
        )
        .expect("written");
        assert!(matches!(look(&path), Err(OpenError::NotOurs(_))));
        let desk = Desk::new();
        let store = match look(&desk.path()).expect("ours") {
            Looked::Ours(store) => store,
            other => panic!("{other:?}"),
        };
        assert_eq!(store.damage().expect("read"), None);
        assert_eq!(store.newest().expect("read"), None);
        let alice = desk.user("alice", "5");
        assert!(store.newest().expect("read") >= Some(alice.created_at));
    }
}

//! Statements that stay at hand while one transaction runs them again and again.
//!
//! rusqlite finds a prepared statement by hashing its text, copies the text, and hashes it once more to put the statement
//! back, with its parameters cleared: for each of the ten statements of a call that is as much as two of them. Here they are
//! found by where their text is, and put back once, when the transaction is over.

use std::cell::RefCell;
use std::ops::Deref;

use rusqlite::{CachedStatement, Connection};

/// A connection in a transaction, and what was prepared in it so far.
pub(super) struct Prepared<'c> {
    conn: &'c Connection,
    statements: RefCell<Vec<(&'static str, CachedStatement<'c>)>>,
}

impl<'c> Prepared<'c> {
    /// With nothing at hand yet.
    pub(super) fn of(conn: &'c Connection) -> Prepared<'c> {
        Prepared {
            conn,
            statements: RefCell::default(),
        }
    }

    /// Runs a statement, with all of its parameters. What runs it may run others.
    pub(super) fn with<T>(
        &self,
        sql: &'static str,
        run: impl FnOnce(&mut CachedStatement<'c>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut statement = self.take(sql)?;
        let done = run(&mut statement);
        self.statements.borrow_mut().push((sql, statement));
        done
    }

    fn take(&self, sql: &'static str) -> rusqlite::Result<CachedStatement<'c>> {
        let mut statements = self.statements.borrow_mut();
        match statements.iter().position(|(of, _)| std::ptr::eq(*of, sql)) {
            Some(at) => Ok(statements.swap_remove(at).1),
            None => self.conn.prepare_cached(sql),
        }
    }
}

impl Deref for Prepared<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: &str = "SELECT ?1";

    fn number(tx: &Prepared<'_>, number: i64) -> rusqlite::Result<i64> {
        tx.with(NUMBER, |select| select.query_row([number], |row| row.get(0)))
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a database in memory")]
    fn a_statement_is_prepared_once_and_free_again_after_each_run() {
        let conn = Connection::open_in_memory().expect("memory");
        let tx = Prepared::of(&conn);
        assert_eq!((number(&tx, 1), number(&tx, 2)), (Ok(1), Ok(2)));
        assert_eq!(tx.statements.borrow().len(), 1);
        // One that is under way is not at hand: what asks for it then gets another.
        let nested = tx.with(NUMBER, |outer| {
            let inner = number(&tx, 3)?;
            outer.query_row([inner + 1], |row| row.get::<_, i64>(0))
        });
        assert_eq!(nested, Ok(4));
        // One that failed can be run again.
        let failed = tx.with(NUMBER, |select| select.query_row([1, 2], |row| row.get::<_, i64>(0)));
        assert!(failed.is_err(), "{failed:?}");
        assert_eq!(number(&tx, 5), Ok(5));
        drop(tx);
        conn.execute_batch("BEGIN; CREATE TABLE a (b); COMMIT")
            .expect("nothing is under way");
    }
}

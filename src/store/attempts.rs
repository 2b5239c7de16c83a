//! Attempts: where a call was sent, and what became of it, when that was more than once. Written with the usage row, in the
//! transaction that closes the hold, and never changed.

use std::time::Duration;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::columns::{Span, micros};
use super::{ExchangeId, Store, StoreError};

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// An answer began.
    Answered,
    /// The upstream refused, with a status.
    Refused,
    /// No connection came about.
    Unreachable,
    /// No answer came in time.
    Timeout,
    /// The connection broke before an answer.
    Broken,
    /// It was given up before an answer came: the client left, or the gateway stopped.
    Abandoned,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 6] = [
        Outcome::Answered,
        Outcome::Refused,
        Outcome::Unreachable,
        Outcome::Timeout,
        Outcome::Broken,
        Outcome::Abandoned,
    ];

    /// The name in the database and in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Refused => "refused",
            Outcome::Unreachable => "unreachable",
            Outcome::Timeout => "timeout",
            Outcome::Broken => "broken",
            Outcome::Abandoned => "abandoned",
        }
    }
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    /// The upstream's name.
    pub upstream: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The upstream's HTTP status, if it answered.
    pub status: Option<u16>,
    /// From the hold to it.
    pub began: Duration,
    /// From there to the head of the answer, or to what came instead.
    pub took: Duration,
}

/// Writes one; the key is the exchange and its number.
pub(super) const INSERT: &str =
    "INSERT INTO attempts (exchange_id, number, upstream, outcome, status, began_us, duration_us)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/// Writes the attempts of an exchange, in order; part of the closing of its hold.
pub(super) fn insert(tx: &Connection, exchange: ExchangeId, attempts: &[Attempt]) -> rusqlite::Result<()> {
    if attempts.is_empty() {
        return Ok(());
    }
    let mut insert = tx.prepare_cached(INSERT)?;
    for (number, attempt) in (1_i64..).zip(attempts) {
        insert.execute(params![
            exchange,
            number,
            attempt.upstream,
            attempt.outcome,
            attempt.status,
            ToSqlOutput::Borrowed(micros(attempt.began)),
            ToSqlOutput::Borrowed(micros(attempt.took)),
        ])?;
    }
    Ok(())
}

/// Attempts of an exchange, in order; none when there was but one.
pub(super) fn of(conn: &Connection, exchange: ExchangeId) -> rusqlite::Result<Vec<Attempt>> {
    conn.prepare_cached(
        "SELECT upstream, outcome, status, began_us, duration_us FROM attempts WHERE exchange_id = ?1 ORDER BY number",
    )?
    .query_map([exchange], |row| {
        Ok(Attempt {
            upstream: row.get(0)?,
            outcome: row.get(1)?,
            status: row.get(2)?,
            began: row.get::<_, Span>(3)?.0,
            took: row.get::<_, Span>(4)?.0,
        })
    })?
    .collect()
}

impl Store {
    /// Attempts of an exchange, in order; none when there was but one.
    pub fn attempts(&self, exchange: ExchangeId) -> Result<Vec<Attempt>, StoreError> {
        self.read("reading attempts", |conn| of(conn, exchange))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn attempt(upstream: &str, outcome: Outcome, status: Option<u16>) -> Attempt {
        Attempt {
            upstream: upstream.to_owned(),
            outcome,
            status,
            began: Duration::from_millis(3),
            took: Duration::from_micros(1_500),
        }
    }

    /// The books with an exchange that was sent twice.
    fn sent_twice() -> (Desk, ExchangeId, Vec<Attempt>) {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "5"));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        let mut close = closing(id, &key, "0.75");
        close.row.attempts = 2;
        close.attempts = vec![
            attempt("elsewhere", Outcome::Unreachable, None),
            attempt(&close.row.upstream, Outcome::Answered, close.row.upstream_status),
        ];
        desk.close(id, &close);
        (desk, id, close.attempts)
    }

    #[test]
    fn attempts_come_back_in_order_and_are_never_changed() {
        let (desk, id, written) = sent_twice();
        assert_eq!(desk.store.attempts(id).expect("they read"), written);
        desk.assert_books_balance();
        for sql in ["UPDATE attempts SET outcome = 'answered'", "DELETE FROM attempts"] {
            desk.raw().execute(sql, []).expect_err(sql);
        }
    }

    #[test]
    fn verification_finds_attempts_that_are_not_those_of_the_usage_row() {
        for sql in [
            "DELETE FROM attempts WHERE number = 1",
            "DELETE FROM attempts WHERE number = 2",
            "DELETE FROM attempts",
            "UPDATE attempts SET number = 3 WHERE number = 1",
            "UPDATE attempts SET upstream = 'other' WHERE number = 2",
            "UPDATE attempts SET status = NULL WHERE number = 2",
            "INSERT INTO attempts SELECT exchange_id, 3, upstream, outcome, status, 0, 0 FROM attempts WHERE number = 2",
            "UPDATE attempts SET outcome = 'else'",
        ] {
            let (desk, id, _) = sent_twice();
            let raw = desk.raw();
            raw.execute_batch("DROP TRIGGER attempts_are_never_changed; DROP TRIGGER attempts_are_never_deleted")
                .expect("they are there");
            raw.execute_batch(sql).expect(sql);
            let found = desk.store.verify().expect("it verifies").findings;
            let of_it =
                |finding: &super::super::verify::Finding| finding.table == "attempts" && finding.row == id.to_string();
            assert!(found.len() == 1 && found.iter().all(of_it), "{sql}: {found:?}");
        }
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "5"));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        desk.close(id, &closing(id, &key, "0.75"));
        let raw = desk.raw();
        insert(&raw, id, &[attempt("gpt", Outcome::Answered, None)]).expect("it is written");
        let found = desk.store.verify().expect("it verifies").findings;
        assert!(found.len() == 1 && found[0].table == "attempts", "{found:?}");
    }
}

//! The audit log: who did what, with the state before and after, in the act's own transaction.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use super::columns::{Json, Micros};
use super::{Actor, Store, StoreError};

/// An act on users, keys, prices or money.
pub(super) struct Act<'a> {
    /// Who.
    pub(super) by: &'a Actor,
    /// When.
    pub(super) at: Timestamp,
    /// What: `user.add`.
    pub(super) action: &'static str,
    /// On what: an id, or `list/model`.
    pub(super) subject: String,
    /// The state before it, as JSON.
    pub(super) before: Option<String>,
    /// The state after it, as JSON.
    pub(super) after: String,
}

/// An act as it was written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Its number, ascending.
    pub seq: i64,
    /// When.
    pub at: Timestamp,
    /// Who: `cli:root@host`, `key:ID`, `server`.
    pub actor: String,
    /// What: `user.add`.
    pub action: String,
    /// On what.
    pub subject: String,
    /// The state before it; `None`: there was none.
    pub before: Option<Value>,
    /// The state after it.
    pub after: Value,
}

/// Which acts.
#[derive(Clone, Debug, Default)]
pub struct ActFilter {
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// By whom: a pattern such as `cli:*`.
    pub actor: Option<String>,
    /// What: a pattern such as `ledger.*`.
    pub action: Option<String>,
    /// On what, or how that begins.
    pub subject: Option<String>,
}

fn recorded(row: &Row<'_>) -> rusqlite::Result<Recorded> {
    Ok(Recorded {
        seq: row.get("seq")?,
        at: row.get::<_, Micros>("at")?.0,
        actor: row.get("actor")?,
        action: row.get("action")?,
        subject: row.get("subject")?,
        before: row.get::<_, Option<Json<Value>>>("before")?.map(|json| json.0),
        after: row.get::<_, Json<Value>>("after")?.0,
    })
}

impl Store {
    /// Acts that match, oldest first: the last ones, or those right behind a number.
    pub fn acts(&self, filter: &ActFilter, behind: Option<i64>, limit: u32) -> Result<Vec<Recorded>, StoreError> {
        let order = if behind.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT * FROM audit_log
             WHERE seq > ?1 AND (?2 IS NULL OR at >= ?2) AND (?3 IS NULL OR at < ?3) AND (?4 IS NULL OR actor GLOB ?4)
               AND (?5 IS NULL OR action GLOB ?5) AND (?6 IS NULL OR substr(subject, 1, length(?6)) = ?6)
             ORDER BY seq {order} LIMIT ?7"
        );
        let (since, until) = (filter.since.map(Micros), filter.until.map(Micros));
        let mut acts: Vec<Recorded> = self.read("reading the audit log", |conn| {
            conn.prepare_cached(&sql)?
                .query_map(
                    params![
                        behind.unwrap_or(0),
                        since,
                        until,
                        filter.actor,
                        filter.action,
                        filter.subject,
                        limit
                    ],
                    recorded,
                )?
                .collect()
        })?;
        acts.sort_by_key(|act| act.seq);
        Ok(acts)
    }
}

/// Writes an act down; part of its transaction.
pub(super) fn record(tx: &Connection, act: &Act<'_>) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO audit_log (at, actor, action, subject, before, after) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        Micros(act.at),
        act.by.0,
        act.action,
        act.subject,
        act.before,
        act.after
    ])
    .map(|_| ())
}

/// Whether a state is what was written down: every field that was; what there are of fields beside them today is unset.
pub(super) fn is_as_written(written: Option<&str>, state: &serde_json::Value) -> bool {
    let written = written.and_then(|json| serde_json::from_str::<serde_json::Map<_, _>>(json).ok());
    let same = |fields: &serde_json::Map<_, _>| fields.iter().all(|(name, value)| state.get(name) == Some(value));
    let unset = |fields: &serde_json::Map<_, _>| {
        let now = state.as_object();
        now.is_some_and(|now| {
            now.iter()
                .all(|(name, value)| fields.contains_key(name) || value.is_null())
        })
    };
    written.is_some_and(|fields| !fields.is_empty() && same(&fields) && unset(&fields))
}

/// The state after the last act of a family (`user.`, `key.`) on a subject.
pub(super) fn last_state(conn: &Connection, family: &str, subject: &str) -> rusqlite::Result<Option<String>> {
    conn.prepare_cached(
        "SELECT after FROM audit_log WHERE subject = ?1 AND substr(action, 1, length(?2)) = ?2
         ORDER BY seq DESC LIMIT 1",
    )?
    .query_row(params![subject, family], |row| row.get(0))
    .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_is_compared_by_the_fields_that_were_written() {
        let state = json!({"name": "ada", "email": null, "added later": null});
        for (written, same) in [
            (Some(r#"{"name":"ada","email":null}"#), true),
            (Some(r#"{"email":null,"name":"ada"}"#), true),
            (Some(r#"{"name":"bob"}"#), false),
            (Some(r#"{"name":"ada","gone":1}"#), false),
            (Some("{}"), false),
            (Some("x"), false),
            (None, false),
        ] {
            assert_eq!(is_as_written(written, &state), same, "{written:?}");
        }
        let set = json!({"name": "ada", "added later": 1});
        assert!(!is_as_written(Some(r#"{"name":"ada"}"#), &set), "nobody wrote it down");
    }
}

//! The audit log: who did what, with the state before and after, in the act's own transaction.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::Actor;
use super::columns::Micros;

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

/// Whether a state is what was written down: every field that was, whatever fields there are beside them today.
pub(super) fn is_as_written(written: Option<&str>, state: &serde_json::Value) -> bool {
    let written = written.and_then(|json| serde_json::from_str::<serde_json::Map<_, _>>(json).ok());
    written
        .is_some_and(|fields| !fields.is_empty() && fields.iter().all(|(name, value)| state.get(name) == Some(value)))
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
        let state = json!({"name": "ada", "email": null, "added later": 1});
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
    }
}

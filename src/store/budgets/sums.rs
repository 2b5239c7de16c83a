//! What the calls of a span of time hold and were charged, for a window that is opened after some of them.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::super::UserId;
use super::super::columns::{Micros, broken};
use super::super::reports::lowest;
use super::super::rollups::{self, DAY_US};
use super::Spender;
use crate::money::Usd;

/// Where the calls of a window are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// In all that there ever was of the user: days that are over are summed already, and the rest is read.
    History,
    /// In everybody's since then, which are few: the window has hardly begun.
    Newest,
}

/// What whoever it is about has of the calls in a span of time, as conditions on a table: ?1 is the spender, ?2 the user.
pub(super) fn whose(of: Spender) -> &'static str {
    match of {
        Spender::User(_) => "user_id = ?1 AND ?2 IS ?2",
        // Itself, and those that were rotated from it.
        Spender::Key(_) => "user_id = ?2 AND key_id IN (SELECT id FROM api_keys WHERE COALESCE(budget_id, id) = ?1)",
    }
}

/// The user that a spender is, or has.
pub(super) fn user_of(conn: &Connection, of: Spender) -> rusqlite::Result<Option<UserId>> {
    match of {
        Spender::User(id) => Ok(Some(id)),
        Spender::Key(id) => conn
            .prepare_cached("SELECT user_id FROM api_keys WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional(),
    }
}

/// What calls whose hold was taken in a span of whole days hold, and what they were charged, less refunds.
pub(super) fn sums(
    conn: &Connection,
    of: Spender,
    (start, end): (Timestamp, Timestamp),
    among: Among,
) -> rusqlite::Result<(Usd, Usd)> {
    let (id, user, whose) = (of.id(), user_of(conn, of)?, whose(of));
    let ask = |sql: &str, from: Timestamp, until: Timestamp| -> rusqlite::Result<Usd> {
        let asked = params![id.as_bytes(), user, Micros(from), Micros(until), lowest(Some(from))];
        conn.prepare_cached(sql)?.query_row(asked, |row| row.get(0))
    };
    let held = format!(
        "SELECT COALESCE(SUM(amount_nanos), 0) FROM holds
         WHERE {whose} AND state = 'open' AND placed_at >= ?3 AND placed_at < ?4 AND ?5 IS ?5"
    );
    let of_rows = |from| {
        format!(
            "SELECT COALESCE(SUM(charge_nanos - uncollected_nanos), 0) FROM {from}
             WHERE {whose} AND exchange_id >= ?5 AND started_at >= ?3 AND started_at < ?4"
        )
    };
    let (charged, refunded) = match among {
        Among::History => {
            let summed = Timestamp::from_microsecond(rollups::rolled_until(conn)?).unwrap_or(start);
            let summed = summed.clamp(start, end);
            // Day by day, because the sums of a day are everybody's.
            let days = format!(
                "WITH RECURSIVE days (day) AS (
                     SELECT MIN(day_at) FROM usage_days WHERE day_at >= ?3 AND day_at < ?4
                     UNION ALL SELECT day + {DAY_US} FROM days WHERE day + {DAY_US} < ?4)
                 SELECT COALESCE(SUM(charge_nanos - uncollected_nanos), 0)
                 FROM days CROSS JOIN usage_days ON day_at = day WHERE {whose} AND ?5 IS ?5"
            );
            let days = ask(&days, start, summed)?;
            let rest = ask(&of_rows("usage_logs"), summed, end)?;
            // By the refunds that there are, which are few.
            let refunded = format!(
                "SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries e
                 WHERE refunds IS NOT NULL AND user_id = ?2
                   AND EXISTS (SELECT 1 FROM usage_logs WHERE exchange_id = e.refunds
                               AND {whose} AND started_at >= ?3 AND started_at < ?4 AND ?5 IS ?5)"
            );
            (days.checked_add(rest), ask(&refunded, start, end)?)
        }
        Among::Newest => {
            let newest = "usage_logs INDEXED BY usage_logs_by_start";
            let refunded = format!(
                "SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries
                 WHERE refunds IS NOT NULL AND user_id = ?2
                   AND refunds IN (SELECT exchange_id FROM {newest}
                                   WHERE {whose} AND exchange_id >= ?5 AND started_at >= ?3 AND started_at < ?4)"
            );
            (Some(ask(&of_rows(newest), start, end)?), ask(&refunded, start, end)?)
        }
    };
    let spent = charged
        .and_then(|charged| charged.checked_sub(refunded))
        .ok_or_else(|| broken("a sum does not fit"))?;
    Ok((ask(&held, start, end)?, spent))
}

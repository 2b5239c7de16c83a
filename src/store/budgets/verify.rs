//! Budgets against the rest of the books.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::super::audit;
use super::super::columns::Micros;
use super::super::rollups::DAY_US;
use super::super::{KeyId, UserId};
use super::setting::audited;
use super::sums::{user_of, whose};
use super::{Spender, standing};
use crate::budget::Period;
use crate::money::Usd;

/// What of the budgets is not what the rest of the books says: whose and which, and what is wrong.
pub(in crate::store) fn wrong(conn: &Connection) -> rusqlite::Result<Vec<(&'static str, String, &'static str)>> {
    let mut wrong = Vec::new();
    let mut owners = conn.prepare(
        "SELECT DISTINCT b.owner_id AS owner_id, EXISTS (SELECT 1 FROM users WHERE id = b.owner_id) AS is_user,
                EXISTS (SELECT 1 FROM api_keys WHERE id = b.owner_id) AS is_key
         FROM (SELECT owner_id FROM budgets UNION SELECT owner_id FROM budget_windows
               UNION SELECT unhex(replace(subject, '-', '')) FROM audit_log WHERE action = 'budget.set') b",
    )?;
    let mut rows = owners.query([])?;
    while let Some(row) = rows.next()? {
        let Ok(id) = row.get::<_, UserId>("owner_id").map(|id| id.0) else {
            wrong.push(("budgets", "*".to_owned(), "belongs to nobody"));
            continue;
        };
        let of = match (row.get("is_user")?, row.get("is_key")?) {
            (true, false) => Spender::User(UserId(id)),
            (false, true) => Spender::Key(KeyId(id)),
            _ => {
                wrong.push(("budgets", id.to_string(), "belongs to nobody"));
                continue;
            }
        };
        let written = audit::last_state(conn, "budget.", &id.to_string())?;
        let now = audited(&standing(conn, of, Timestamp::UNIX_EPOCH)?);
        if !audit::is_as_written(written.as_deref(), &now) {
            wrong.push(("budgets", id.to_string(), "is not what the audit log says of it"));
        }
        wrong.extend(wrong_windows(conn, of)?);
    }
    Ok(wrong)
}

/// What a spender's calls hold and were charged, less refunds, by the day in which their holds were taken: from the rows
/// themselves, each of which is read once.
fn by_day(conn: &Connection, of: Spender) -> rusqlite::Result<BTreeMap<i64, (i128, i128)>> {
    let (id, user, whose) = (of.id(), user_of(conn, of)?, whose(of));
    let held = format!("SELECT placed_at / {DAY_US}, amount_nanos, 0 FROM holds WHERE {whose} AND state = 'open'");
    let charged =
        format!("SELECT started_at / {DAY_US}, 0, charge_nanos - uncollected_nanos FROM usage_logs WHERE {whose}");
    let refunded = format!(
        "SELECT started_at / {DAY_US}, 0, -amount
         FROM (SELECT refunds, amount_nanos AS amount FROM ledger_entries WHERE refunds IS NOT NULL AND user_id = ?2)
              CROSS JOIN usage_logs ON exchange_id = refunds WHERE {whose}"
    );
    let mut days: BTreeMap<i64, (i128, i128)> = BTreeMap::new();
    for sql in [held, charged, refunded] {
        let mut statement = conn.prepare_cached(&sql)?;
        let mut rows = statement.query(params![id.as_bytes(), user])?;
        while let Some(row) = rows.next()? {
            let (held, spent) = days.entry(row.get(0)?).or_default();
            *held += i128::from(row.get::<_, i64>(1)?);
            *spent += i128::from(row.get::<_, i64>(2)?);
        }
    }
    Ok(days)
}

fn wrong_windows(conn: &Connection, of: Spender) -> rusqlite::Result<Vec<(&'static str, String, &'static str)>> {
    let window = |row: &Row<'_>| -> rusqlite::Result<(Period, Timestamp, Usd, Usd)> {
        Ok((
            row.get("period")?,
            row.get::<_, Micros>("start_at")?.0,
            row.get("held_nanos")?,
            row.get("spent_nanos")?,
        ))
    };
    let mut wrong = Vec::new();
    let mut statement = conn.prepare_cached(
        "SELECT w.period, w.start_at, w.held_nanos, w.spent_nanos
         FROM budget_windows w JOIN budgets b ON b.owner_id = w.owner_id AND b.period = w.period WHERE w.owner_id = ?1",
    )?;
    let mut days = None;
    for read in statement.query_map([of.id().as_bytes()], window)? {
        let (period, start, held, spent) = read?;
        let days = match &mut days {
            Some(days) => days,
            none => none.insert(by_day(conn, of)?),
        };
        let day = |at: Timestamp| at.as_microsecond().div_euclid(DAY_US);
        let end = period.resets_at(start).map_or(i64::MAX, day);
        let sums = days.range(day(start)..end.max(day(start)));
        let sums = sums.fold((0, 0), |sum, (_, day)| (sum.0 + day.0, sum.1 + day.1));
        if period.start(start) != start || sums != (held.nanos().into(), spent.nanos().into()) {
            let row = format!("{} {period} from {start}", of.id());
            wrong.push(("budget_windows", row, "is not the sum of its calls"));
        }
    }
    Ok(wrong)
}

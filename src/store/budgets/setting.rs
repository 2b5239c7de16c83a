//! Budgets are set and dropped.

use jiff::Timestamp;
use rusqlite::{Connection, params};

use super::super::Actor;
use super::super::audit::{self, Act};
use super::super::columns::Micros;
use super::{Among, Change, Spender, Standing, open_window, standing};
use crate::budget::{Budget, Period};

/// What the audit log keeps of a spender's budgets, and `verify` compares.
pub(super) fn audited(budgets: &[Standing]) -> serde_json::Value {
    let of = |period| budgets.iter().find(|budget| budget.period == period);
    Period::ALL
        .into_iter()
        .map(|period| {
            (
                period.name().to_owned(),
                serde_json::json!(of(period).map(|budget| budget.limit)),
            )
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Changes budgets; part of a transaction. What changes nothing is no act.
pub(in crate::store) fn change(
    tx: &Connection,
    of: Spender,
    changes: &[Change],
    (by, now): (&Actor, Timestamp),
) -> rusqlite::Result<Vec<Standing>> {
    let before = standing(tx, of, now)?;
    for change in changes {
        match change {
            Change::Set(budget) => set(tx, of, *budget, now)?,
            Change::Drop(period) => drop_one(tx, of, *period)?,
        }
    }
    let after = standing(tx, of, now)?;
    if audited(&before) != audited(&after) {
        let act = Act {
            by,
            at: now,
            action: "budget.set",
            subject: of.id().to_string(),
            before: (!before.is_empty()).then(|| audited(&before).to_string()),
            after: audited(&after).to_string(),
        };
        audit::record(tx, &act)?;
    }
    Ok(after)
}

fn drop_one(tx: &Connection, of: Spender, period: Period) -> rusqlite::Result<()> {
    tx.execute(
        "DELETE FROM budgets WHERE owner_id = ?1 AND period = ?2",
        params![of.id().as_bytes(), period],
    )
    .map(drop)
}

fn set(tx: &Connection, of: Spender, budget: Budget, now: Timestamp) -> rusqlite::Result<()> {
    let id = of.id();
    let owner = id.as_bytes();
    let changed = tx.execute(
        "UPDATE budgets SET limit_nanos = ?3 WHERE owner_id = ?1 AND period = ?2",
        params![owner, budget.period, budget.limit],
    )?;
    if changed == 1 {
        return Ok(());
    }
    tx.execute(
        "INSERT INTO budgets (owner_id, period, limit_nanos, set_at) VALUES (?1, ?2, ?3, ?4)",
        params![owner, budget.period, budget.limit, Micros(now)],
    )?;
    open_window(tx, of, budget.period, now, Among::History)
}

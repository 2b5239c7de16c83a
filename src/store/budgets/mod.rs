//! Budgets in the books: limits of users and keys, and what each of their windows holds and has spent.
//!
//! A hold goes into the windows of its time, in the statement that sets the money aside and the one behind it; its
//! closing takes it out of the same ones and puts the charge in. So `held + spent ≤ limit` at every commit, except where a
//! limit was set below what was spent already; the trigger `budgets_are_kept` sees to it once more.
//!
//! A key shares the budgets of the key that it was rotated from.

mod setting;
mod sums;
#[cfg(test)]
mod tests;
mod verify;

use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::{Connection, params};
use uuid::Uuid;

use self::sums::{Among, sums};
use super::columns::Micros;
use super::{Actor, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::budget::{Budget, Limit, Owner, Period};
use crate::money::Usd;
pub(super) use setting::change;
pub(super) use verify::wrong;

/// Whose budgets a call counts in: its user's, and those of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payers {
    /// The user.
    pub user: UserId,
    /// The key whose budgets they are: [`super::keys::Key::budgets`].
    pub key: KeyId,
}

/// A user or a key that has budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spender {
    /// A user.
    User(UserId),
    /// A key, by [`super::keys::Key::budgets`].
    Key(KeyId),
}

impl Spender {
    fn id(self) -> Uuid {
        match self {
            Spender::User(id) => id.0,
            Spender::Key(id) => id.0,
        }
    }
}

/// A change of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is so much from now on. What was spent in its window before counts.
    Set(Budget),
    /// There is none any more.
    Drop(Period),
}

/// A budget and the state of its window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Over what.
    pub period: Period,
    /// How much.
    pub limit: Usd,
    /// Charged in this window, less what was given back.
    pub spent: Usd,
    /// Held by running calls that began in it.
    pub held: Usd,
    /// When it is whole again; `None`: never.
    pub resets_at: Option<Timestamp>,
}

impl Standing {
    /// What may be spent yet; never below zero.
    pub fn left(&self) -> Usd {
        self.limit
            .saturating_sub(self.spent)
            .saturating_sub(self.held)
            .max(Usd::ZERO)
    }
}

/// The first moments of the windows that a time is in.
#[derive(Clone, Copy)]
pub(super) struct Starts {
    pub(super) day: Micros,
    pub(super) month: Micros,
}

impl Starts {
    pub(super) fn of(at: Timestamp) -> Starts {
        Starts {
            day: Micros(Period::Day.start(at)),
            month: Micros(Period::Month.start(at)),
        }
    }
}

/// When the window of `period` began, of which the day began at `day` and the month at `month`.
fn start_of(period: &str, day: &str, month: &str) -> String {
    format!("CASE {period} WHEN 'day' THEN {day} WHEN 'month' THEN {month} ELSE 0 END")
}

/// Whether anybody has a budget.
pub(super) const ANY: &str = "EXISTS (SELECT 1 FROM budgets)";

/// The least that a spender's budgets leave, as a scalar; NULL when there are none.
pub(super) fn room(owner: &str, day: &str, month: &str) -> String {
    let start = start_of("b.period", day, month);
    // Where nobody has budgets, one look shows it: a call pays for that and no more.
    format!(
        "CASE WHEN {ANY} THEN
            (SELECT MIN(b.limit_nanos - COALESCE(w.held_nanos + w.spent_nanos, 0))
             FROM budgets b LEFT JOIN budget_windows w
               ON w.owner_id = b.owner_id AND w.period = b.period AND w.start_at = {start}
             WHERE b.owner_id = {owner}) END"
    )
}

/// What the windows of a time have left; one that is not there binds nothing.
static LEFT: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("b.period", "?2", "?3");
    format!(
        "SELECT MIN(b.limit_nanos - w.held_nanos - w.spent_nanos) FROM budgets b JOIN budget_windows w
           ON w.owner_id = b.owner_id AND w.period = b.period AND w.start_at = {start}
         WHERE b.owner_id = ?1"
    )
});

/// The windows of a time that are not there yet, by period.
static MISSING: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("b.period", "?2", "?3");
    format!(
        "SELECT b.period FROM budgets b WHERE b.owner_id = ?1 AND NOT EXISTS
           (SELECT 1 FROM budget_windows w
            WHERE w.owner_id = b.owner_id AND w.period = b.period AND w.start_at = {start})"
    )
});

static HOLD: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("period", "?2", "?3");
    format!("UPDATE budget_windows SET held_nanos = held_nanos + ?4 WHERE owner_id = ?1 AND start_at = {start}")
});

static CLOSE: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("period", "?2", "?3");
    format!(
        "UPDATE budget_windows SET held_nanos = held_nanos - ?4, spent_nanos = spent_nanos + ?5
         WHERE owner_id = ?1 AND start_at = {start}"
    )
});

static GIVE_BACK: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("period", "?2", "?3");
    format!("UPDATE budget_windows SET spent_nanos = spent_nanos - ?4 WHERE owner_id = ?1 AND start_at = {start}")
});

static STANDING: LazyLock<String> = LazyLock::new(|| {
    let start = start_of("b.period", "?2", "?3");
    format!(
        "SELECT b.period, b.limit_nanos, COALESCE(w.spent_nanos, 0) AS spent_nanos, COALESCE(w.held_nanos, 0) AS held_nanos
         FROM budgets b LEFT JOIN budget_windows w
           ON w.owner_id = b.owner_id AND w.period = b.period AND w.start_at = {start}
         WHERE b.owner_id = ?1 ORDER BY b.period = 'total', b.period = 'month'"
    )
});

/// Puts a hold into the windows of its time; part of the transaction that sets the money aside.
pub(super) fn hold(tx: &Connection, of: Payers, at: Timestamp, amount: Usd) -> rusqlite::Result<()> {
    let Starts { day, month } = Starts::of(at);
    let mut hold = tx.prepare_cached(&HOLD)?;
    for owner in [of.user.0, of.key.0] {
        hold.execute(params![owner.as_bytes(), day, month, amount])?;
    }
    Ok(())
}

/// Opens the windows of a time that are not there, each with what its calls hold and have spent: there may be some from
/// before there was the budget, also when its day is younger, because clocks go back and commands wait. Before the money
/// of the call that comes is set aside. Whether there were any.
pub(super) fn open_windows(tx: &Connection, of: Payers, at: Timestamp) -> rusqlite::Result<bool> {
    let mut opened = false;
    let Starts { day, month } = Starts::of(at);
    for spender in [Spender::User(of.user), Spender::Key(of.key)] {
        let missing: Vec<Period> = tx
            .prepare_cached(&MISSING)?
            .query_map(params![spender.id().as_bytes(), day, month], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        for period in missing {
            open_window(tx, spender, period, at, Among::Newest)?;
            opened = true;
        }
    }
    Ok(opened)
}

fn open_window(tx: &Connection, of: Spender, period: Period, at: Timestamp, among: Among) -> rusqlite::Result<()> {
    let start = period.start(at);
    let end = period.resets_at(at).unwrap_or(Timestamp::MAX);
    let (held, spent) = sums(tx, of, (start, end), among)?;
    tx.execute(
        "INSERT INTO budget_windows (owner_id, period, start_at, held_nanos, spent_nanos) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![of.id().as_bytes(), period, Micros(start), held, spent],
    )
    .map(drop)
}

/// The least that the windows of a time have left, where there are any.
pub(super) fn left(tx: &Connection, of: Payers, at: Timestamp) -> rusqlite::Result<Option<Usd>> {
    let Starts { day, month } = Starts::of(at);
    let mut least = tx.prepare_cached(&LEFT)?;
    let mut of_owner = |owner: Uuid| -> rusqlite::Result<Option<Usd>> {
        least.query_row(params![owner.as_bytes(), day, month], |row| row.get(0))
    };
    let (user, key) = (of_owner(of.user.0)?, of_owner(of.key.0)?);
    Ok(user.into_iter().chain(key).min())
}

/// Takes a hold out of the windows of its time, and puts what was charged in.
pub(super) fn close(tx: &Connection, of: Payers, at: Timestamp, (held, charged): (Usd, Usd)) -> rusqlite::Result<()> {
    let Starts { day, month } = Starts::of(at);
    let mut close = tx.prepare_cached(&CLOSE)?;
    for owner in [of.user.0, of.key.0] {
        close.execute(params![owner.as_bytes(), day, month, held, charged])?;
    }
    Ok(())
}

/// Gives back a refund of a call whose hold was taken at `placed_at`, in the windows that it counted in.
pub(super) fn give_back(
    tx: &Connection,
    user: UserId,
    key: KeyId,
    placed_at: Timestamp,
    amount: Usd,
) -> rusqlite::Result<()> {
    let Starts { day, month } = Starts::of(placed_at);
    let of = payers(tx, user, key)?;
    let mut give = tx.prepare_cached(&GIVE_BACK)?;
    for owner in [of.user.0, of.key.0] {
        give.execute(params![owner.as_bytes(), day, month, amount])?;
    }
    Ok(())
}

/// Whose budgets a call of a user with a key counts in.
pub(super) fn payers(conn: &Connection, user: UserId, key: KeyId) -> rusqlite::Result<Payers> {
    conn.prepare_cached("SELECT COALESCE(budget_id, id) FROM api_keys WHERE id = ?1")?
        .query_row([key], |row| Ok(Payers { user, key: row.get(0)? }))
}

/// What a spender's budgets are and have at a time: day, month, total.
pub(super) fn standing(conn: &Connection, of: Spender, at: Timestamp) -> rusqlite::Result<Vec<Standing>> {
    let Starts { day, month } = Starts::of(at);
    conn.prepare_cached(&STANDING)?
        .query_map(params![of.id().as_bytes(), day, month], |row| {
            let period: Period = row.get("period")?;
            Ok(Standing {
                period,
                limit: row.get("limit_nanos")?,
                spent: row.get("spent_nanos")?,
                held: row.get("held_nanos")?,
                resets_at: period.resets_at(at),
            })
        })?
        .collect()
}

/// What a call that needs so much does not fit into, of the balance and all budgets: what is used up before what is only
/// held, and what has the least of that. With what is available of it, and what of it is held.
pub(super) fn narrowest(
    conn: &Connection,
    of: Payers,
    at: Timestamp,
    (needed, balance): (Usd, (Usd, Usd)),
) -> rusqlite::Result<(Limit, Usd, Usd)> {
    let mut limits = vec![(Limit::Balance, balance.0, balance.1)];
    for (owner, spender) in [
        (Owner::Key, Spender::Key(of.key)),
        (Owner::User, Spender::User(of.user)),
    ] {
        limits.extend(standing(conn, spender, at)?.into_iter().map(|budget| {
            let limit = Limit::Budget {
                owner,
                period: budget.period,
                resets_at: budget.resets_at,
            };
            (limit, budget.left(), budget.held)
        }));
    }
    let short = limits.iter().filter(|(_, available, _)| *available < needed);
    let narrowest = short.min_by_key(|(_, available, held)| (available.saturating_add(*held) >= needed, *available));
    Ok(*narrowest.unwrap_or(&limits[0]))
}

impl Store {
    /// Changes budgets, from now on; the refusal is: no such user or key.
    pub fn change_budgets(
        &self,
        of: Spender,
        changes: &[Change],
        by: &Actor,
        now: Timestamp,
    ) -> Outcome<Vec<Standing>, ()> {
        self.write("changing a budget", |tx| -> Tried<Vec<Standing>, ()> {
            let (table, id) = match of {
                Spender::User(id) => ("users", id.0),
                Spender::Key(id) => ("api_keys", id.0),
            };
            let there = tx
                .prepare(&format!("SELECT 1 FROM {table} WHERE id = ?1"))?
                .exists([id.as_bytes()])?;
            if !there {
                return Ok(Err(()));
            }
            change(tx, of, changes, (by, now)).map(Ok)
        })
    }

    /// What a spender's budgets are and have at a time: day, month, total.
    pub fn budgets(&self, of: Spender, at: Timestamp) -> Result<Vec<Standing>, StoreError> {
        self.read("reading budgets", |conn| standing(conn, of, at))
    }
}

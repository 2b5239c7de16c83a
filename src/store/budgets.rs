//! Budgets in the books: limits of users and keys, and what each of their windows holds and has spent.
//!
//! A hold goes into the windows of its time, in the statement that sets the money aside and the one behind it; its
//! closing takes it out of the same ones and puts the charge in. So `held + spent ≤ limit` at every commit, except where a
//! limit was set below what was spent already; the trigger `budgets_are_kept` sees to it once more.
//!
//! A key shares the budgets of the key that it was rotated from.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::audit::{self, Act};
use super::columns::{Micros, broken};
use super::reports::lowest;
use super::rollups::{self, DAY_US};
use super::{Actor, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::budget::{Budget, Limit, Owner, Period};
use crate::money::Usd;

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

// Setting them -------------------------------------------------------------------------------------------------------

/// What the audit log keeps of a spender's budgets, and `verify` compares.
fn audited(budgets: &[Standing]) -> serde_json::Value {
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
pub(super) fn change(
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

/// Where the calls of a window are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Among {
    /// In all that there ever was of the user: days that are over are summed already, and the rest is read.
    History,
    /// In everybody's since then, which are few: the window has hardly begun.
    Newest,
}

/// What whoever it is about has of the calls in a span of time, as conditions on a table: ?1 is the spender, ?2 the user.
fn whose(of: Spender) -> &'static str {
    match of {
        Spender::User(_) => "user_id = ?1 AND ?2 IS ?2",
        // Itself, and those that were rotated from it.
        Spender::Key(_) => "user_id = ?2 AND key_id IN (SELECT id FROM api_keys WHERE COALESCE(budget_id, id) = ?1)",
    }
}

/// The user that a spender is, or has.
fn user_of(conn: &Connection, of: Spender) -> rusqlite::Result<Option<UserId>> {
    match of {
        Spender::User(id) => Ok(Some(id)),
        Spender::Key(id) => conn
            .prepare_cached("SELECT user_id FROM api_keys WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional(),
    }
}

/// What calls whose hold was taken in a span of whole days hold, and what they were charged, less refunds.
fn sums(
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

// Verifying them -----------------------------------------------------------------------------------------------------

/// What of the budgets is not what the rest of the books says: whose and which, and what is wrong.
pub(super) fn wrong(conn: &Connection) -> rusqlite::Result<Vec<(&'static str, String, &'static str)>> {
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

#[cfg(test)]
mod tests {
    use super::super::keys::Key;
    use super::super::ledger::{self, CloseHold, HoldRefused, PlaceHold};
    use super::super::prepared::Prepared;
    use super::super::refunds::Refund;
    use super::super::testing::*;
    use super::super::users::User;
    use super::*;
    use crate::hold::Shortfall;

    const DAY: i64 = 86_400;

    fn budget(text: &str) -> Change {
        Change::Set(text.parse().expect("a budget"))
    }

    fn give(desk: &Desk, of: Spender, changes: &[Change]) -> Vec<Standing> {
        done(desk.store.change_budgets(of, changes, &by(), at(5)))
    }

    fn of_user(user: &User) -> Spender {
        Spender::User(user.id)
    }

    fn of_key(key: &Key) -> Spender {
        Spender::Key(key.budgets)
    }

    /// Limit, spent and held of each budget.
    fn state(desk: &Desk, of: Spender, seconds: i64) -> Vec<(Period, String, String)> {
        let standing = desk.store.budgets(of, at(seconds)).expect("read");
        let texts = standing.iter().map(|budget| (budget.period, budget.spent, budget.held));
        texts
            .map(|(period, spent, held)| (period, spent.to_string(), held.to_string()))
            .collect()
    }

    /// Takes a hold some seconds later than others.
    fn ask_at(key: &Key, amount: &str, seconds: i64) -> PlaceHold {
        PlaceHold {
            now: at(seconds),
            ..ask(exchange(), key, amount)
        }
    }

    /// Closes it as its time wants.
    fn closing_of(ask: &PlaceHold, key: &Key, charge: &str) -> CloseHold {
        let mut close = closing(ask.exchange, key, charge);
        close.row.started_at = ask.now;
        close
    }

    fn why(desk: &Desk, ask: &PlaceHold) -> (Limit, Shortfall) {
        match refused(desk.place(ask)) {
            HoldRefused::Short(limit, shortfall) => (limit, shortfall),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_fits_into_every_budget_of_its_user_and_its_key_or_is_refused_by_the_one_it_does_not_fit() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let (key, other) = (desk.key(&ada), desk.key(&ada));
        give(&desk, of_user(&ada), &[budget("5/day"), budget("8/month")]);
        give(&desk, of_key(&key), &[budget("3")]);
        desk.set_aside(&ask(exchange(), &key, "2"));
        let (limit, short) = why(&desk, &ask(exchange(), &key, "1.5"));
        assert_eq!(limit.name(), "key_budget_total");
        assert_eq!(
            (short.needed, short.available, short.held),
            (usd("1.5"), usd("1"), usd("2"))
        );
        desk.set_aside(&ask(exchange(), &other, "3"));
        let (limit, short) = why(&desk, &ask(exchange(), &other, "0.000000001"));
        assert_eq!(limit.name(), "user_budget_day");
        assert_eq!(limit.resets_at(), Period::Day.resets_at(at(10)));
        assert_eq!((short.available, short.held), (Usd::ZERO, usd("5")));
        let (limit, short) = why(&desk, &ask_at(&other, "4", 10 + DAY));
        assert_eq!((limit.name(), short.available), ("user_budget_month", usd("3")));
        desk.assert_books_balance();
    }

    #[test]
    fn what_is_charged_stays_spent_and_what_was_held_beyond_comes_back() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("5/day")]);
        let call = ask_at(&key, "4", 10);
        desk.set_aside(&call);
        assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "0".into(), "4".into())]);
        desk.close(call.exchange, &closing_of(&call, &key, "1.5"));
        assert_eq!(
            state(&desk, of_key(&key), 10),
            [(Period::Day, "1.5".into(), "0".into())]
        );
        desk.set_aside(&ask_at(&key, "3.5", 11));
        assert_eq!(why(&desk, &ask_at(&key, "0.1", 11)).0.name(), "key_budget_day");
        desk.assert_books_balance();
    }

    #[test]
    fn a_call_belongs_to_the_window_in_which_its_hold_was_taken() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("5/day")]);
        let late = ask_at(&key, "5", 10);
        desk.set_aside(&late);
        let tomorrow = ask_at(&key, "5", 10 + DAY);
        desk.set_aside(&tomorrow);
        let mut ends_tomorrow = closing_of(&late, &key, "2");
        ends_tomorrow.row.duration = std::time::Duration::from_hours(25);
        desk.close(late.exchange, &ends_tomorrow);
        assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "2".into(), "0".into())]);
        assert_eq!(
            state(&desk, of_key(&key), 10 + DAY),
            [(Period::Day, "0".into(), "5".into())]
        );
        desk.close(tomorrow.exchange, &closing_of(&tomorrow, &key, "0"));
        assert_eq!(
            state(&desk, of_key(&key), 10 + DAY),
            [(Period::Day, "0".into(), "0".into())]
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_charge_beyond_its_hold_takes_no_more_than_the_budgets_leave() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("5")]);
        give(&desk, of_user(&ada), &[budget("4/month")]);
        let call = ask_at(&key, "1", 10);
        desk.set_aside(&call);
        desk.set_aside(&ask_at(&key, "2", 10));
        let closed = desk.close(call.exchange, &closing_of(&call, &key, "9"));
        assert_eq!((closed.charged, closed.uncollected), (usd("2"), usd("7")));
        assert_eq!(
            state(&desk, of_user(&ada), 10),
            [(Period::Month, "2".into(), "2".into())]
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_budget_counts_what_was_spent_in_its_window_before_it_was_set() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let (key, other) = (desk.key(&ada), desk.key(&ada));
        for (key, charge) in [(&key, "1"), (&other, "0.5")] {
            let call = ask_at(key, "2", 10);
            desk.set_aside(&call);
            desk.close(call.exchange, &closing_of(&call, key, charge));
        }
        let before = ask_at(&key, "2", 10 - DAY);
        desk.set_aside(&before);
        desk.close(before.exchange, &closing_of(&before, &key, "2"));
        let open = ask_at(&key, "3", 10);
        desk.set_aside(&open);
        give(&desk, of_user(&ada), &[budget("9/day")]);
        give(&desk, of_key(&key), &[budget("9/day"), budget("20/total")]);
        assert_eq!(
            state(&desk, of_user(&ada), 10),
            [(Period::Day, "1.5".into(), "3".into())]
        );
        assert_eq!(
            state(&desk, of_key(&key), 10),
            [
                (Period::Day, "1".into(), "3".into()),
                (Period::Total, "3".into(), "3".into())
            ]
        );
        desk.close(open.exchange, &closing_of(&open, &key, "3"));
        assert_eq!(
            state(&desk, of_user(&ada), 10),
            [(Period::Day, "4.5".into(), "0".into())]
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_window_that_is_opened_late_has_what_came_before_there_was_the_budget() {
        // The command read the clock before midnight, and waited: calls of the next day were there first. Or it was set
        // back.
        for set_at in [5 - DAY, 5 + DAY] {
            let desk = Desk::new();
            let ada = desk.user("ada", "100");
            let key = desk.key(&ada);
            let (open, done_before) = (ask_at(&key, "2", 10), ask_at(&key, "1", 10));
            desk.set_aside(&open);
            desk.set_aside(&done_before);
            desk.close(done_before.exchange, &closing_of(&done_before, &key, "0.5"));
            let set = [budget("4/day")];
            done(desk.store.change_budgets(of_key(&key), &set, &by(), at(set_at)));
            let next = ask_at(&key, "1.5", 11);
            assert_eq!(why(&desk, &ask_at(&key, "1.6", 11)).0.name(), "key_budget_day");
            desk.set_aside(&next);
            assert_eq!(
                state(&desk, of_key(&key), 10),
                [(Period::Day, "0.5".into(), "3.5".into())]
            );
            desk.assert_books_balance();
            desk.close(open.exchange, &closing_of(&open, &key, "2"));
            desk.close(next.exchange, &closing_of(&next, &key, "1.5"));
            assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "4".into(), "0".into())]);
            desk.assert_books_balance();
        }
    }

    #[test]
    fn a_budget_of_another_day_does_not_bind_a_running_call() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        let call = ask_at(&key, "1", 10);
        desk.set_aside(&call);
        done(
            desk.store
                .change_budgets(of_key(&key), &[budget("0/day")], &by(), at(10 + DAY)),
        );
        let closed = desk.close(call.exchange, &closing_of(&call, &key, "4"));
        assert_eq!((closed.charged, closed.uncollected), (usd("4"), Usd::ZERO));
        desk.assert_books_balance();
    }

    #[test]
    fn a_call_that_costs_nothing_fits_into_a_budget_that_is_overdrawn() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        let call = ask_at(&key, "4", 10);
        desk.set_aside(&call);
        give(&desk, of_key(&key), &[budget("1")]);
        assert_eq!(desk.set_aside(&ask_at(&key, "0", 10)), Usd::ZERO);
        desk.assert_books_balance();
    }

    #[test]
    fn a_limit_below_what_is_spent_stops_calls_and_running_ones_settle() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("9")]);
        let call = ask_at(&key, "4", 10);
        desk.set_aside(&call);
        let lowered = give(&desk, of_key(&key), &[budget("1")]);
        assert_eq!((lowered[0].limit, lowered[0].left()), (usd("1"), Usd::ZERO));
        assert_eq!(why(&desk, &ask_at(&key, "0.5", 10)).0.name(), "key_budget_total");
        let closed = desk.close(call.exchange, &closing_of(&call, &key, "5"));
        assert_eq!(
            (closed.charged, closed.uncollected),
            (usd("4"), usd("1")),
            "the hold, and no more"
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_budget_that_is_dropped_and_set_again_is_whole() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("3/day")]);
        let call = ask_at(&key, "2", 10);
        desk.set_aside(&call);
        assert_eq!(give(&desk, of_key(&key), &[Change::Drop(Period::Day)]), []);
        desk.set_aside(&ask_at(&key, "5", 10));
        desk.close(call.exchange, &closing_of(&call, &key, "1"));
        desk.assert_books_balance();
        give(&desk, of_key(&key), &[budget("7/day")]);
        assert_eq!(state(&desk, of_key(&key), 10), [(Period::Day, "1".into(), "5".into())]);
        desk.assert_books_balance();
    }

    #[test]
    fn a_rotated_key_spends_from_the_budget_of_the_one_it_replaces() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let old = desk.key(&ada);
        give(&desk, of_key(&old), &[budget("5/day")]);
        desk.set_aside(&ask_at(&old, "3", 10));
        let rotate = |from: &Key| {
            let new = new_key(ada.id, Uuid::now_v7());
            done(desk.store.rotate_key(from.id, &new, at(100), &by(), at(6)))
        };
        let heir = rotate(&old);
        let second = rotate(&heir);
        assert_eq!((heir.budgets, second.budgets), (old.id, old.id));
        assert_eq!(why(&desk, &ask_at(&second, "2.5", 10)).0.name(), "key_budget_day");
        let call = ask_at(&second, "2", 10);
        desk.set_aside(&call);
        assert_eq!(why(&desk, &ask_at(&old, "0.5", 10)).0.name(), "key_budget_day");
        desk.close(call.exchange, &closing_of(&call, &second, "2"));
        assert_eq!(
            state(&desk, of_key(&second), 10),
            [(Period::Day, "2".into(), "3".into())]
        );
        desk.assert_books_balance();
    }

    #[test]
    fn of_what_does_not_fit_the_one_that_is_used_up_is_told() {
        let desk = Desk::new();
        let ada = desk.user("ada", "3");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("2/day")]);
        // The balance is held, and comes back; the budget is spent, and does not.
        let call = ask_at(&key, "2", 10);
        desk.set_aside(&call);
        desk.close(call.exchange, &closing_of(&call, &key, "2"));
        let other = desk.key(&ada);
        desk.set_aside(&ask_at(&other, "1", 10));
        assert_eq!(why(&desk, &ask_at(&key, "0.5", 10)).0.name(), "key_budget_day");
        assert_eq!(why(&desk, &ask_at(&other, "0.5", 10)).0, Limit::Balance);
    }

    #[test]
    fn what_was_spent_before_a_budget_was_set_is_the_same_from_days_as_from_rows() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "1000"), desk.user("bob", "1000"));
        let keys = [desk.key(&ada), desk.key(&ada), desk.key(&bob)];
        for number in 0..60_i64 {
            let key = &keys[usize::try_from(number % 3).expect("few")];
            let call = ask_at(key, "2", number / 3 * (DAY / 3) + number);
            desk.set_aside(&call);
            desk.close(call.exchange, &closing_of(&call, key, &format!("0.{:03}", number + 1)));
            if number % 7 == 0 {
                let part = Refund {
                    exchange: call.exchange,
                    amount: (number % 2 == 0).then(|| usd("0.001")),
                    reference: None,
                    note: None,
                };
                done(desk.store.refund(&part, &by(), call.now));
            }
        }
        let spenders = [of_user(&ada), of_user(&bob), of_key(&keys[0]), of_key(&keys[1])];
        let raw = desk.raw();
        let all = || -> Vec<_> {
            let moments = (0..8).map(|day| at(day * DAY + 10));
            let windows = moments.flat_map(|now| Period::ALL.map(|period| (period, now)));
            let asked = windows.flat_map(|window| spenders.map(|of| (window, of)));
            let sums = asked.map(|((period, now), of)| {
                let span = (period.start(now), period.resets_at(now).unwrap_or(Timestamp::MAX));
                sums(&raw, of, span, Among::History).expect("they are read")
            });
            sums.collect()
        };
        let from_rows = all();
        for day in 1..9 {
            while desk.store.roll_up(at(day * DAY)).expect("it is summed") {}
            assert_eq!(all(), from_rows, "{day} days are over");
        }
        give(&desk, of_user(&ada), &[budget("500")]);
        let (_, spent, _) = &state(&desk, of_user(&ada), 10)[0];
        assert_eq!(*spent, from_rows[0].1.to_string());
        desk.assert_books_balance();
        // It reads no rows of days that are summed.
        raw.execute(
            "UPDATE usage_days SET charge_nanos = charge_nanos + 1 WHERE day_at = (SELECT MIN(day_at) FROM usage_days)",
            [],
        )
        .expect("altered");
        assert_ne!(all(), from_rows);
    }

    #[test]
    fn the_schema_alone_keeps_a_budget() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        give(&desk, of_user(&ada), &[budget("5")]);
        let raw = desk.raw();
        let hold = |nanos: i64| raw.execute("UPDATE budget_windows SET held_nanos = held_nanos + ?1", [nanos]);
        for _ in 0..5 {
            hold(1_000_000_000).expect("the first five fit");
        }
        let sixth = hold(1).expect_err("the sixth does not");
        assert!(sixth.to_string().contains("a budget is not exceeded"), "{sixth}");
    }

    #[test]
    fn the_statement_alone_takes_no_hold_beyond_a_budget() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        for (of, text) in [(of_user(&ada), "5/month"), (of_key(&key), "5/day")] {
            give(&desk, of, &[budget(text)]);
            let ask = ask_at(&key, "6", 10);
            let took = ledger::set_aside(&Prepared::of(&desk.raw()), &ask, usd("5.000000001")).expect("no error");
            assert!(!took, "{text}");
            give(
                &desk,
                of,
                &[Change::Drop(
                    text.split_once('/').expect("a period").1.parse().expect("one"),
                )],
            );
        }
    }

    #[test]
    fn whatever_is_altered_of_a_budget_is_found() {
        let desk = Desk::new();
        let ada = desk.user("ada", "100");
        let key = desk.key(&ada);
        give(&desk, of_key(&key), &[budget("5/day")]);
        desk.set_aside(&ask_at(&key, "3", 10));
        desk.assert_books_balance();
        for sql in [
            "UPDATE budgets SET limit_nanos = limit_nanos + 1",
            "UPDATE budget_windows SET held_nanos = held_nanos - 1",
            "UPDATE budget_windows SET start_at = start_at + 1",
            "UPDATE budget_windows SET spent_nanos = spent_nanos + 1",
            "DELETE FROM budgets",
            "INSERT INTO budgets SELECT owner_id, 'total', 1, 1 FROM budgets",
            "INSERT INTO budgets VALUES (zeroblob(16), 'total', 1, 1)",
        ] {
            let raw = desk.raw();
            raw.execute_batch("SAVEPOINT altered").expect("begun");
            raw.execute(sql, []).expect(sql);
            assert!(!wrong(&raw).expect("it reads").is_empty(), "{sql}");
            raw.execute_batch("ROLLBACK TO altered; RELEASE altered")
                .expect("undone");
            assert_eq!(wrong(&raw).expect("it reads"), []);
        }
    }
}

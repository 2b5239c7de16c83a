//! Taking a hold: what there is, how much of it is set aside, and the row.

use std::sync::LazyLock;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::Tried;
use super::super::budgets::{self, Payers, Starts};
use super::super::columns::{Micros, broken, json, names_and_marks, text, tokens};
use super::super::digest::{Cells, Digest};
use super::super::idempotency;
use super::super::prepared::Prepared;
use super::super::users::UserStatus;
use super::{HOLD_COLUMNS, HOLD_DOMAIN, Hold, HoldRefused, PlaceHold, stored_hold};
use crate::budget::Limit;
use crate::hold::{self, Room, Shortfall, Size};
use crate::money::Usd;
use crate::origin::Origin;
use crate::pricing::ListName;

/// What a hold is decided by, as it stands inside the transaction.
struct Account {
    status: UserStatus,
    room: Room,
    /// What budgets leave at least, where there are any.
    budget: Option<Usd>,
    key_is_valid: bool,
    was_asked_before: bool,
}

/// Whether key ?2 of user ?1 is valid at ?3.
const KEY_IS_VALID: &str = "EXISTS (SELECT 1 FROM api_keys WHERE id = ?2 AND user_id = ?1 AND revoked_at IS NULL
                                    AND (expires_at IS NULL OR expires_at > ?3))";

pub(super) static ACCOUNT: LazyLock<String> = LazyLock::new(|| {
    let (of_user, of_key) = (budgets::room("?1", "?6", "?7"), budgets::room("?5", "?6", "?7"));
    format!(
        "SELECT status, balance_nanos + credit_line_nanos - held_nanos, held_nanos, {KEY_IS_VALID},
                EXISTS (SELECT 1 FROM holds WHERE exchange_id = ?4), {of_user}, {of_key}
         FROM users WHERE id = ?1"
    )
});

pub(super) static SET_ASIDE: LazyLock<String> = LazyLock::new(|| {
    let (of_user, of_key) = (budgets::room("?1", "?6", "?7"), budgets::room("?5", "?6", "?7"));
    format!(
        "UPDATE users SET held_nanos = held_nanos + ?4, holds = holds + 1
         WHERE id = ?1 AND status = 'active' AND ?4 >= 0 AND balance_nanos + credit_line_nanos - held_nanos >= ?4
           AND {KEY_IS_VALID} AND (?4 = 0 OR COALESCE({of_user}, ?4) >= ?4 AND COALESCE({of_key}, ?4) >= ?4)"
    )
});

fn account(tx: &Prepared<'_>, ask: &PlaceHold) -> rusqlite::Result<Option<Account>> {
    let Starts { day, month } = Starts::of(ask.now);
    let asked = params![
        ask.user,
        ask.key,
        Micros(ask.now),
        ask.exchange,
        ask.budgets,
        day,
        month
    ];
    let read = |row: &Row<'_>| {
        let (of_user, of_key): (Option<Usd>, Option<Usd>) = (row.get(5)?, row.get(6)?);
        Ok(Account {
            status: row.get(0)?,
            room: Room {
                available: row.get(1)?,
                held: row.get(2)?,
            },
            budget: of_user.into_iter().chain(of_key).min(),
            key_is_valid: row.get(3)?,
            was_asked_before: row.get(4)?,
        })
    };
    tx.with(&ACCOUNT, |account| account.query_row(asked, read).optional())
}

/// The account, once every window of its budgets at this time is there.
fn account_with_windows(tx: &Prepared<'_>, ask: &PlaceHold) -> rusqlite::Result<Option<Account>> {
    let found = account(tx, ask)?;
    match &found {
        Some(there) if there.budget.is_some() && budgets::open_windows(tx, ask.payers(), ask.now)? => account(tx, ask),
        _ => Ok(found),
    }
}

/// Takes a hold; part of a transaction.
pub(in crate::store) fn place(tx: &Prepared<'_>, ask: &PlaceHold) -> Tried<Hold, HoldRefused> {
    let account = match account_with_windows(tx, ask)? {
        Some(account) if account.was_asked_before => return placed_before(tx, ask).map(Ok),
        Some(account) if account.key_is_valid => account,
        _ => return Ok(Err(HoldRefused::KeyGone)),
    };
    if let Some(once) = &ask.once
        && let Some(repeat) = idempotency::repeated(tx, ask.key, once)?
    {
        return Ok(Err(HoldRefused::Repeated(repeat)));
    }
    if account.status == UserStatus::Suspended {
        return Ok(Err(HoldRefused::Suspended));
    }
    let room = account.room();
    let (amount, output_limit) = match hold::size(&ask.quote, room, &ask.policy) {
        Size::Hold { amount, output_limit } => (amount, output_limit),
        Size::Short(shortfall) => return short(tx, ask, &account, shortfall).map(Err),
    };
    if !set_aside(tx, ask, amount)? {
        let shortfall = Shortfall {
            needed: amount,
            available: room.available,
            held: room.held,
            largest_limit: None,
        };
        return short(tx, ask, &account, shortfall).map(Err);
    }
    if account.budget.is_some() {
        budgets::hold(tx, ask.payers(), ask.now, amount)?;
    }
    let hold = Hold {
        exchange: ask.exchange,
        user: ask.user,
        amount,
        output_limit,
    };
    write_hold(tx, ask, &hold)?;
    if let Some(once) = &ask.once {
        idempotency::claim(tx, ask.key, once, ask.exchange)?;
    }
    Ok(Ok(hold))
}

impl PlaceHold {
    fn payers(&self) -> Payers {
        Payers {
            user: self.user,
            key: self.budgets,
        }
    }
}

impl Account {
    /// What a call may cost: what is available, or what the budgets leave of it.
    fn room(&self) -> Room {
        let left = self.budget.unwrap_or(Usd::MAX).max(Usd::ZERO);
        Room {
            available: self.room.available.min(left),
            held: self.room.held,
        }
    }
}

/// Why a call does not fit: by the balance, or by which budget.
fn short(tx: &Connection, ask: &PlaceHold, account: &Account, shortfall: Shortfall) -> rusqlite::Result<HoldRefused> {
    if account.budget.is_none() {
        return Ok(HoldRefused::Short(Limit::Balance, shortfall));
    }
    let balance = (account.room.available, account.room.held);
    let (limit, available, held) = budgets::narrowest(tx, ask.payers(), ask.now, (shortfall.needed, balance))?;
    let shortfall = Shortfall {
        available,
        held,
        ..shortfall
    };
    Ok(HoldRefused::Short(limit, shortfall))
}

/// The guarded UPDATE: every condition is in it, whatever was read before.
pub(in crate::store) fn set_aside(tx: &Prepared<'_>, ask: &PlaceHold, amount: Usd) -> rusqlite::Result<bool> {
    let Starts { day, month } = Starts::of(ask.now);
    let asked = params![ask.user, ask.key, Micros(ask.now), amount, ask.budgets, day, month];
    tx.with(&SET_ASIDE, |set_aside| set_aside.execute(asked))
        .map(|rows| rows == 1)
}

/// Writes a hold: its cells, its hash, its state, who asks.
pub(super) static INSERT: LazyLock<String> = LazyLock::new(|| {
    let (names, marks) = names_and_marks(&HOLD_COLUMNS, &["hash", "state", "origin"]);
    format!("INSERT INTO holds ({names}) VALUES ({marks})")
});

fn write_hold(tx: &Prepared<'_>, ask: &PlaceHold, hold: &Hold) -> rusqlite::Result<()> {
    let cells = Cells(vec![
        ("exchange_id", hold.exchange.value()),
        ("user_id", hold.user.value()),
        ("key_id", ask.key.value()),
        ("amount_nanos", ValueRef::Integer(hold.amount.nanos())),
        ("output_limit", hold.output_limit.map_or(ValueRef::Null, tokens)),
        ("endpoint", text(Some(ask.endpoint.path()))),
        ("streamed", ValueRef::Integer(i64::from(ask.streamed))),
        ("model", text(Some(&ask.model))),
        ("priced_model", text(Some(&ask.priced_model))),
        ("upstream", text(Some(&ask.upstream))),
        ("list", text(ask.list.as_ref().map(ListName::as_str))),
        ("placed_at", ValueRef::Integer(ask.now.as_microsecond())),
    ]);
    let mut digest = Digest::new(HOLD_DOMAIN);
    digest.cells(&cells);
    let hash = digest.finish();
    let origin = (ask.origin != Origin::default())
        .then(|| json(&ask.origin))
        .transpose()?;
    let values = cells.and([ValueRef::Blob(&hash), text(Some("open")), text(origin.as_deref())]);
    tx.with(&INSERT, |insert| insert.execute(values)).map(drop)
}

/// The first answer to a hold that is taken again.
fn placed_before(tx: &Prepared<'_>, ask: &PlaceHold) -> rusqlite::Result<Hold> {
    match stored_hold(tx, ask.exchange)? {
        Some(there) if there.state == "open" && (there.user, there.key) == (ask.user, ask.key) => Ok(Hold {
            exchange: ask.exchange,
            user: there.user,
            amount: there.amount,
            output_limit: there.output_limit,
        }),
        _ => Err(broken(format!("exchange {} took another hold before", ask.exchange))),
    }
}

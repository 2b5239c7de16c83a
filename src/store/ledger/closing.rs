//! Closing it: the charge with its entry and its usage row, or nothing; and holds that nobody closes any more.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::super::columns::{Json, Micros, broken, injected};
use super::super::digest::Hash;
use super::super::entries::{self, NewEntry, Tip};
use super::super::prepared::Prepared;
use super::super::usage_log::{self, Basis, ExchangeRow, Settled, State};
use super::super::{ExchangeId, Trouble, attempts, background, budgets, events, rollups};
use super::{CloseHold, Closed, Excess, StoredHold, Swept, stored_hold};
use crate::fail_point::{self, Point};
use crate::money::Usd;
use crate::origin::Origin;
use crate::usage::{Tier, Usage};

/// The state of a hold that is closed for a charge.
pub(in crate::store) fn closed_state(charge: Usd) -> &'static str {
    if charge > Usd::ZERO { "settled" } else { "released" }
}

/// Settles or releases; part of a transaction. Closing twice changes nothing and gives the first answer.
pub(in crate::store) fn close(tx: &Prepared<'_>, exchange: ExchangeId, close: &CloseHold) -> rusqlite::Result<Closed> {
    let hold = stored_hold(tx, exchange)?.ok_or_else(|| broken(format!("exchange {exchange} has no hold")))?;
    if hold.state != "open" {
        return closed_before(tx, exchange);
    }
    let state = closed_state(close.row.charge);
    let ended = usage_log::ended_at(&close.row);
    let closed = tx.with(CLOSE, |close| close.execute(params![exchange, state, Micros(ended)]))?;
    if closed != 1 {
        return Err(broken(format!("the hold of exchange {exchange} is not open any more")));
    }
    let payers = hold
        .are_budgets
        .then(|| budgets::payers(tx, hold.user, hold.key))
        .transpose()?;
    let room = payers.map_or(Ok(None), |payers| budgets::left(tx, payers, hold.placed_at))?;
    let charged = collectable(close, &hold, room).ok_or_else(|| broken("a charge does not fit"))?;
    give_back(tx, &hold, charged)?;
    if let Some(payers) = payers {
        budgets::close(tx, payers, hold.placed_at, (hold.amount, charged))?;
    }
    let settled = Settled {
        exchange,
        user: hold.user,
        key: hold.key,
        held: hold.amount,
        hold_hash: hold.hash,
        hold_state: state,
        uncollected: close.row.charge.saturating_sub(charged),
        balance_after: hold
            .balance
            .checked_sub(charged)
            .ok_or_else(|| broken("a balance does not fit"))?,
    };
    let usage_hash = usage_log::insert(tx, &close.row, &settled)?;
    if close.row.started_at < hold.rolled_until {
        rollups::add_late(tx, exchange)?;
    }
    attempts::insert(tx, exchange, &close.attempts)?;
    if hold.is_in_background {
        background::end(tx, exchange)?;
    }
    fail_point::hit(Point::InSettlement).map_err(injected)?;
    if hold.tip.is_told {
        events::exchange_closed(tx, (&close.row, &settled), (charged, ended))?;
        if let Some(payers) = payers {
            events::budgets_charged(tx, payers, hold.placed_at, (charged, ended))?;
        }
    }
    if charged > Usd::ZERO {
        append_charge(tx, &settled, (charged, ended), usage_hash, &hold.tip)?;
    }
    Ok(Closed {
        charged,
        uncollected: settled.uncollected,
        balance: settled.balance_after,
        available: hold.available.saturating_sub(charged),
    })
}

pub(super) const CLOSE: &str =
    "UPDATE holds SET state = ?2, closed_at = ?3, origin = NULL WHERE exchange_id = ?1 AND state = 'open'";

pub(super) const GIVE_BACK: &str = "UPDATE users SET held_nanos = held_nanos - ?2
     WHERE id = ?1 AND held_nanos >= ?2 AND (?3 = 0 OR balance_nanos + credit_line_nanos - (held_nanos - ?2) >= ?3)";

/// Takes a hold's money out of what is held. Guarded: what is available then pays for the charge, whatever was read
/// before.
pub(super) fn give_back(tx: &Prepared<'_>, hold: &StoredHold, charged: Usd) -> rusqlite::Result<()> {
    let given = tx.with(GIVE_BACK, |give| give.execute(params![hold.user, hold.amount, charged]))?;
    match given {
        1 => Ok(()),
        _ => Err(broken("a hold is not in what is held, or does not pay for its charge")),
    }
}

/// What of a charge is there: with the hold given back, all that is available and that the budgets leave beside it, or
/// the hold and no more.
fn collectable(close: &CloseHold, hold: &StoredHold, budgets_leave: Option<Usd>) -> Option<Usd> {
    let budget = budgets_leave.map_or(Usd::MAX, |left| hold.amount.saturating_add(left.max(Usd::ZERO)));
    let most = match close.excess {
        Excess::Collect => hold.available.min(budget).max(Usd::ZERO),
        Excess::Waive => hold.amount,
    };
    (!close.row.charge.is_negative()).then(|| close.row.charge.min(most))
}

fn append_charge(
    tx: &Prepared<'_>,
    settled: &Settled,
    (charged, at): (Usd, Timestamp),
    usage_hash: Hash,
    tip: &Tip,
) -> rusqlite::Result<()> {
    let amount = charged.checked_neg().ok_or_else(|| broken("a charge does not fit"))?;
    let charge = NewEntry {
        user: settled.user,
        kind: "charge",
        amount,
        balance_after: settled.balance_after,
        exchange: Some(settled.exchange),
        refunds: None,
        usage_hash: Some(usage_hash),
        reference: None,
        note: None,
        at,
    };
    entries::append(tx, &charge, tip).map(drop)
}

fn closed_before(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<Closed> {
    tx.prepare_cached(
        "SELECT l.charge_nanos - l.uncollected_nanos AS charged_nanos, l.uncollected_nanos, l.balance_after_nanos,
                l.balance_after_nanos + u.credit_line_nanos - u.held_nanos AS available_nanos
         FROM usage_logs l JOIN users u ON u.id = l.user_id WHERE l.exchange_id = ?1",
    )?
    .query_row([exchange], |row| {
        Ok(Closed {
            charged: row.get("charged_nanos")?,
            uncollected: row.get("uncollected_nanos")?,
            balance: row.get("balance_after_nanos")?,
            available: row.get("available_nanos")?,
        })
    })
}

/// Releases an open hold whose exchange nobody will finish; part of a transaction. The usage row keeps its amount. Whether
/// it was open.
pub(in crate::store) fn interrupt(tx: &Prepared<'_>, exchange: ExchangeId, now: Timestamp) -> rusqlite::Result<bool> {
    let row = tx
        .prepare_cached(
            "SELECT exchange_id, user_id, key_id, endpoint, streamed, model, priced_model, upstream, list,
                    amount_nanos, output_limit, placed_at, origin
             FROM holds WHERE exchange_id = ?1 AND state = 'open'
               AND NOT EXISTS (SELECT 1 FROM background_responses WHERE exchange_id = ?1)",
        )?
        .query_row([exchange], unfinished)
        .optional()?;
    match row.map(|row| interrupted(row, now)) {
        Some(row) => close(
            tx,
            exchange,
            &CloseHold {
                row,
                excess: Excess::Waive,
                attempts: Vec::new(),
            },
        )
        .map(|_| true),
        None => Ok(false),
    }
}

/// Releases open holds that nobody owns; part of a transaction. One that cannot be released is left as it is, and keeps
/// no other from it.
pub(in crate::store) fn sweep(tx: &Prepared<'_>, holds: &[ExchangeId], now: Timestamp) -> rusqlite::Result<Swept> {
    let mut swept = Swept::default();
    for exchange in holds {
        tx.execute_batch("SAVEPOINT hold")?;
        match interrupt(tx, *exchange, now) {
            Ok(released) => swept.released += usize::from(released),
            Err(error) if Trouble::of(&error) == Trouble::Operation => {
                tx.execute_batch("ROLLBACK TO hold")?;
                swept.stuck.push((*exchange, error.to_string()));
            }
            Err(error) => return Err(error),
        }
        tx.execute_batch("RELEASE hold")?;
    }
    Ok(swept)
}

/// The usage row of an exchange that nobody finished.
fn interrupted(row: ExchangeRow, now: Timestamp) -> ExchangeRow {
    let lasted = Duration::try_from(now.duration_since(row.started_at));
    ExchangeRow {
        duration: lasted.unwrap_or_default(),
        ..row
    }
}

/// The usage row of an exchange as far as its hold tells it: nothing was used, nothing is charged.
pub(in crate::store) fn unfinished(hold: &Row<'_>) -> rusqlite::Result<ExchangeRow> {
    Ok(ExchangeRow {
        id: hold.get("exchange_id")?,
        user: hold.get("user_id")?,
        key: hold.get("key_id")?,
        endpoint: hold.get("endpoint")?,
        streamed: hold.get("streamed")?,
        model: hold.get("model")?,
        priced_model: hold.get("priced_model")?,
        answered_model: None,
        upstream: hold.get("upstream")?,
        list: hold.get("list")?,
        price_from: None,
        tier: Tier::Standard,
        state: State::Interrupted,
        basis: Basis::Reported,
        usage: Usage::default(),
        lines: Vec::new(),
        uplift: None,
        markup: "1".to_owned(),
        cost: Usd::ZERO,
        charge: Usd::ZERO,
        uncollected: Usd::ZERO,
        held: hold.get("amount_nanos")?,
        output_limit: hold.get("output_limit")?,
        balance_after: Usd::ZERO,
        response_id: None,
        item_ids: Vec::new(),
        upstream_request_id: None,
        upstream_status: None,
        attempts: 0,
        started_at: hold.get::<_, Micros>("placed_at")?.0,
        first_byte: None,
        duration: Duration::ZERO,
        origin: hold
            .get::<_, Option<Json<Origin>>>("origin")?
            .map_or_else(Origin::default, |origin| origin.0),
    })
}

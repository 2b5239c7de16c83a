//! Refunds: a charge given back, wholly or in part, by an entry of its own that names the exchange. What was written
//! stays as it was.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use super::audit::{self, Act};
use super::budgets;
use super::columns::{Micros, id_range};
use super::entries::{self, Entry, MAX_BALANCE, NewEntry, Times};
use super::prepared::Prepared;
use super::users::{self, User};
use super::{Actor, ExchangeId, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::money::Usd;

/// A charge to give back.
#[derive(Clone, Debug)]
pub struct Refund {
    /// Whose charge.
    pub exchange: ExchangeId,
    /// How much of it; `None`: all that is left.
    pub amount: Option<Usd>,
    /// The operator's reference; the same one refunds once.
    pub reference: Option<String>,
    /// The operator's note.
    pub note: Option<String>,
}

/// What a refund came to.
#[derive(Clone, Debug)]
pub struct Refunded {
    /// Its entry.
    pub entry: Entry,
    /// Who got it.
    pub user: User,
    /// What of the charge is left.
    pub left: Usd,
    /// Whether it was made now.
    pub times: Times,
}

/// Why nothing was refunded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefundRefused {
    /// The exchange took nothing.
    NothingCharged,
    /// Less than that is left of the charge: so much.
    TooMuch(Usd),
    /// The reference was used for something else.
    OtherReference(Box<Entry>),
    /// The balance would not fit.
    TooLarge,
}

/// What was charged for an exchange, and what of it was not given back.
struct Charge {
    user: UserId,
    key: KeyId,
    placed_at: Timestamp,
    left: Usd,
}

const CHARGE: &str = "SELECT e.user_id, h.key_id, h.placed_at, -e.amount_nanos
                             - (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE refunds = e.exchange_id)
     FROM ledger_entries e JOIN holds h ON h.exchange_id = e.exchange_id WHERE e.exchange_id = ?1";

fn charge(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<Option<Charge>> {
    tx.prepare_cached(CHARGE)?
        .query_row([exchange], |row| {
            Ok(Charge {
                user: row.get(0)?,
                key: row.get(1)?,
                placed_at: row.get::<_, Micros>(2)?.0,
                left: row.get(3)?,
            })
        })
        .optional()
}

fn refund(tx: &Connection, what: &Refund, by: &Actor, now: Timestamp) -> Tried<Refunded, RefundRefused> {
    let Some(charge) = charge(tx, what.exchange)? else {
        return Ok(Err(RefundRefused::NothingCharged));
    };
    let before = users::by_id(tx, charge.user)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    if let Some(reference) = &what.reference
        && let Some(first) = entries::by_reference(tx, reference)?
    {
        let same = first.refunds == Some(what.exchange) && what.amount.is_none_or(|amount| amount == first.amount);
        return Ok(match same {
            false => Err(RefundRefused::OtherReference(Box::new(first))),
            true => Ok(Refunded {
                entry: first,
                user: before,
                left: charge.left,
                times: Times::Again,
            }),
        });
    }
    let amount = what.amount.unwrap_or(charge.left);
    if amount > charge.left || amount <= Usd::ZERO {
        return Ok(Err(RefundRefused::TooMuch(charge.left)));
    }
    let balance_after = match before.balance.checked_add(amount) {
        Some(balance) if balance <= MAX_BALANCE => balance,
        _ => return Ok(Err(RefundRefused::TooLarge)),
    };
    let new = NewEntry {
        user: charge.user,
        kind: "refund",
        amount,
        balance_after,
        exchange: None,
        refunds: Some(what.exchange),
        usage_hash: None,
        reference: what.reference.as_deref(),
        note: what.note.as_deref(),
        at: now,
    };
    let entry = entries::append(&Prepared::of(tx), &new, &entries::tip(tx, charge.user)?)?;
    budgets::give_back(tx, charge.user, charge.key, charge.placed_at, amount)?;
    let after = serde_json::json!({
        "balance": balance_after, "entry": entry.seq, "amount": amount, "exchange": what.exchange.to_string(),
    });
    let act = Act {
        by,
        at: entry.at,
        action: "ledger.refund",
        subject: charge.user.to_string(),
        before: Some(serde_json::json!({ "balance": before.balance }).to_string()),
        after: after.to_string(),
    };
    audit::record(tx, &act)?;
    Ok(Ok(Refunded {
        entry,
        user: User {
            balance: balance_after,
            ..before
        },
        left: charge.left.saturating_sub(amount),
        times: Times::First,
    }))
}

impl Store {
    /// Gives a charge back. Repeating with the same reference gives the first entry again.
    pub fn refund(&self, what: &Refund, by: &Actor, now: Timestamp) -> Outcome<Refunded, RefundRefused> {
        self.write("refunding a charge", |tx| refund(tx, what, by, now))
    }

    /// What was given back of an exchange's charge.
    pub fn refunded(&self, exchange: ExchangeId) -> Result<Usd, StoreError> {
        self.read("reading what was refunded", |conn| {
            conn.prepare_cached("SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE refunds = ?1")?
                .query_row([exchange], |row| row.get(0))
        })
    }

    /// Whether an exchange whose id begins so is still running.
    pub fn is_running(&self, start: &str) -> Result<bool, StoreError> {
        let Some((low, high)) = id_range(start) else {
            return Ok(false);
        };
        self.read("looking for a running exchange", |conn| {
            conn.prepare_cached("SELECT 1 FROM holds WHERE exchange_id BETWEEN ?1 AND ?2 AND state = 'open'")?
                .exists([low, high])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::budgets::{Change, Spender};
    use super::super::keys::Key;
    use super::super::ledger::PlaceHold;
    use super::super::testing::*;
    use super::*;
    use crate::budget::{Budget, Period};

    fn charged(desk: &Desk, key: &Key, charge: &str) -> ExchangeId {
        let id = exchange();
        desk.set_aside(&ask(id, key, "2"));
        desk.close(id, &closing(id, key, charge));
        id
    }

    fn of(exchange: ExchangeId, amount: Option<&str>, reference: Option<&str>) -> Refund {
        Refund {
            exchange,
            amount: amount.map(usd),
            reference: reference.map(str::to_owned),
            note: None,
        }
    }

    #[test]
    fn a_charge_is_given_back_in_parts_and_never_more_than_it_took() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let id = charged(&desk, &desk.key(&ada), "1.5");
        let refund = |amount| desk.store.refund(&of(id, amount, None), &by(), at(20));
        let part = done(refund(Some("0.5")));
        assert_eq!((part.entry.kind.as_str(), part.entry.refunds), ("refund", Some(id)));
        assert_eq!((part.user.balance, part.left), (usd("4"), usd("1")));
        assert_eq!(refused(refund(Some("1.000000001"))), RefundRefused::TooMuch(usd("1")));
        assert_eq!(done(refund(None)).entry.amount, usd("1"));
        assert_eq!(refused(refund(None)), RefundRefused::TooMuch(Usd::ZERO));
        assert_eq!(
            (desk.now(&ada).balance, desk.store.refunded(id).expect("it reads")),
            (usd("5"), usd("1.5"))
        );
        desk.assert_books_balance();
    }

    #[test]
    fn what_took_nothing_or_runs_is_not_refunded_and_no_balance_overflows() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let free = charged(&desk, &key, "0");
        let running = exchange();
        desk.set_aside(&ask(running, &key, "1"));
        for id in [free, running, exchange()] {
            let why = refused(desk.store.refund(&of(id, None, None), &by(), at(20)));
            assert_eq!(why, RefundRefused::NothingCharged);
        }
        let is_running = |id: ExchangeId| desk.store.is_running(&id.to_string()).expect("it reads");
        assert!(is_running(running) && !is_running(free) && !is_running(exchange()));
        let paid = charged(&desk, &key, "1");
        let most = MAX_BALANCE.saturating_sub(desk.now(&ada).balance).to_string();
        done(desk.store.credit(&top_up(&ada, &most, None), &by(), at(15)));
        let why = refused(desk.store.refund(&of(paid, None, None), &by(), at(20)));
        assert_eq!(why, RefundRefused::TooLarge);
        done(desk.store.credit(&top_up(&ada, "-1", None), &by(), at(21)));
        let refunded = done(desk.store.refund(&of(paid, None, None), &by(), at(22)));
        assert_eq!(refunded.user.balance, MAX_BALANCE, "to the last nano-dollar");
    }

    #[test]
    fn a_reference_refunds_once_and_is_no_credits() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let (id, other) = (charged(&desk, &key, "1"), charged(&desk, &key, "1"));
        let refund = |what: &Refund| desk.store.refund(what, &by(), at(20));
        let first = done(refund(&Refund {
            note: Some("sorry".to_owned()),
            ..of(id, Some("0.25"), Some("ticket 7"))
        }));
        assert_eq!(
            (first.times, first.entry.note.as_deref()),
            (Times::First, Some("sorry"))
        );
        for amount in [Some("0.25"), None] {
            let again = done(refund(&of(id, amount, Some("ticket 7"))));
            assert_eq!(
                (again.times, again.entry, again.left),
                (Times::Again, first.entry.clone(), usd("0.75"))
            );
        }
        for what in [of(other, None, Some("ticket 7")), of(id, Some("0.5"), Some("ticket 7"))] {
            let why = refused(refund(&what));
            assert_eq!(why, RefundRefused::OtherReference(Box::new(first.entry.clone())));
        }
        let credit = desk
            .store
            .credit(&top_up(&ada, "0.25", Some("ticket 7")), &by(), at(21));
        assert!(matches!(refused(credit), entries::CreditRefused::OtherReference(_)));
        done(
            desk.store
                .credit(&top_up(&ada, "0.25", Some("ticket 8")), &by(), at(22)),
        );
        let credited = refused(refund(&of(id, Some("0.25"), Some("ticket 8"))));
        assert!(matches!(credited, RefundRefused::OtherReference(_)));
        desk.assert_books_balance();
    }

    #[test]
    fn the_windows_in_which_the_hold_was_taken_get_it_back() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let day = Change::Set(Budget {
            period: Period::Day,
            limit: usd("2.5"),
        });
        for of in [Spender::User(ada.id), Spender::Key(key.budgets)] {
            done(desk.store.change_budgets(of, &[day], &by(), at(2)));
        }
        let id = charged(&desk, &key, "1");
        let later = at(10 + 86_400);
        let next_day = exchange();
        desk.set_aside(&PlaceHold {
            now: later,
            ..ask(next_day, &key, "2")
        });
        done(desk.store.refund(&of(id, Some("0.25"), None), &by(), later));
        for spender in [Spender::User(ada.id), Spender::Key(key.budgets)] {
            let spent = |at| {
                let standing = desk.store.read("reading", |conn| budgets::standing(conn, spender, at));
                let standing = standing.expect("it reads").remove(0);
                (standing.spent, standing.held)
            };
            assert_eq!(spent(at(10)), (usd("0.75"), Usd::ZERO), "{spender:?}");
            assert_eq!(spent(later), (Usd::ZERO, usd("2")), "{spender:?}");
        }
        desk.assert_books_balance();
    }
}

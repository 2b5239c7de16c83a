//! The ledger: holds are taken and closed. Only here, and in the entries, money moves.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::{Micros, broken, injected, names_and_marks, text, tokens};
use super::digest::{Cells, Digest, Hash};
use super::entries::{self, NewEntry, Tip};
use super::usage_log::{self, Basis, ExchangeRow, Settled, State};
use super::users::UserStatus;
use super::{ExchangeId, KeyId, Outcome, Store, StoreError, Tried, UserId};
use crate::call::Endpoint;
use crate::fail_point::{self, Point};
use crate::hold::{self, Policy, Quote, Room, Shortfall, Size};
use crate::money::Usd;
use crate::pricing::ListName;
use crate::usage::Tier;
use crate::usage::{Tokens, Usage};

/// The domain of a hold's digest.
pub(super) const HOLD_DOMAIN: &str = "codex-gateway hold 1";

/// A hold to take for an exchange.
#[derive(Clone, Debug)]
pub struct PlaceHold {
    /// The exchange; taking it twice gives the first answer.
    pub exchange: ExchangeId,
    /// Who pays.
    pub user: UserId,
    /// With which key; it must be neither revoked nor expired.
    pub key: KeyId,
    /// What the call may cost; [`crate::hold::size`] decides with the room it finds.
    pub quote: Quote,
    /// The operator's rules.
    pub policy: Policy,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Whether a stream was asked for.
    pub streamed: bool,
    /// The model the client asked for.
    pub model: String,
    /// The model that is priced.
    pub priced_model: String,
    /// The upstream's name.
    pub upstream: String,
    /// The price list; `None`: free.
    pub list: Option<ListName>,
    /// When.
    pub now: Timestamp,
}

/// A hold that is open. It must be settled or released.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a hold has to be settled or released"]
pub struct Hold {
    /// The exchange it is for.
    pub exchange: ExchangeId,
    /// Who pays.
    pub user: UserId,
    /// What is set aside.
    pub amount: Usd,
    /// The output limit that the hold pays for, when it is below the one the model would have.
    pub output_limit: Option<Tokens>,
}

/// Why no hold was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldRefused {
    /// The room does not pay for it.
    Short(Shortfall),
    /// The user is suspended.
    Suspended,
    /// The key was revoked or expired since it was looked up.
    KeyGone,
}

/// How an exchange's hold is closed.
#[derive(Clone, Debug)]
pub struct CloseHold {
    /// What is recorded; its `charge` is what the exchange costs the user (zero: released).
    /// `row.uncollected` and `row.balance_after` are filled in by the ledger.
    pub row: ExchangeRow,
    /// Whether the charge may exceed the hold (usage did), or is capped by it (the gateway ended the stream).
    pub excess: Excess,
}

/// What happens to a charge beyond the hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// Collected from what is available; the rest is `uncollected`.
    Collect,
    /// All of it is `uncollected`.
    Waive,
}

/// How a hold was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// What was charged, in the end.
    pub charged: Usd,
    /// What could not be collected.
    pub uncollected: Usd,
    /// The balance after it.
    pub balance: Usd,
    /// What is available after it: credit line and other open holds counted in.
    pub available: Usd,
}

/// What is hashed of a hold: all that never changes.
pub(super) const HOLD_COLUMNS: [&str; 12] = [
    "exchange_id",
    "user_id",
    "key_id",
    "amount_nanos",
    "output_limit",
    "endpoint",
    "streamed",
    "model",
    "priced_model",
    "upstream",
    "list",
    "placed_at",
];

/// How many holds one transaction of [`Store::release_interrupted`] closes, so that nobody else waits long.
const RELEASES_PER_TRANSACTION: u32 = 256;

// Taking a hold ------------------------------------------------------------------------------------------------------

/// What a hold is decided by, as it stands inside the transaction.
struct Account {
    status: UserStatus,
    room: Room,
    key_is_valid: bool,
    was_asked_before: bool,
}

/// Whether key ?2 of user ?1 is valid at ?3.
const KEY_IS_VALID: &str = "EXISTS (SELECT 1 FROM api_keys WHERE id = ?2 AND user_id = ?1 AND revoked_at IS NULL
                                    AND (expires_at IS NULL OR expires_at > ?3))";

static ACCOUNT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT status, balance_nanos + credit_line_nanos - held_nanos, held_nanos, {KEY_IS_VALID},
                EXISTS (SELECT 1 FROM holds WHERE exchange_id = ?4)
         FROM users WHERE id = ?1"
    )
});

static SET_ASIDE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "UPDATE users SET held_nanos = held_nanos + ?4, holds = holds + 1
         WHERE id = ?1 AND status = 'active' AND ?4 >= 0 AND balance_nanos + credit_line_nanos - held_nanos >= ?4
           AND {KEY_IS_VALID}"
    )
});

fn account(tx: &Connection, ask: &PlaceHold) -> rusqlite::Result<Option<Account>> {
    tx.prepare_cached(&ACCOUNT)?
        .query_row(params![ask.user, ask.key, Micros(ask.now), ask.exchange], |row| {
            Ok(Account {
                status: row.get(0)?,
                room: Room {
                    available: row.get(1)?,
                    held: row.get(2)?,
                },
                key_is_valid: row.get(3)?,
                was_asked_before: row.get(4)?,
            })
        })
        .optional()
}

/// Takes a hold; part of a transaction.
pub(super) fn place(tx: &Connection, ask: &PlaceHold) -> Tried<Hold, HoldRefused> {
    let account = match account(tx, ask)? {
        Some(account) if account.was_asked_before => return placed_before(tx, ask).map(Ok),
        Some(account) if account.key_is_valid => account,
        _ => return Ok(Err(HoldRefused::KeyGone)),
    };
    if account.status == UserStatus::Suspended {
        return Ok(Err(HoldRefused::Suspended));
    }
    let (amount, output_limit) = match hold::size(&ask.quote, account.room, &ask.policy) {
        Size::Hold { amount, output_limit } => (amount, output_limit),
        Size::Short(shortfall) => return Ok(Err(HoldRefused::Short(shortfall))),
    };
    if !set_aside(tx, ask, amount)? {
        let Room { available, held } = account.room;
        let shortfall = Shortfall {
            needed: amount,
            available,
            held,
            largest_limit: None,
        };
        return Ok(Err(HoldRefused::Short(shortfall)));
    }
    let hold = Hold {
        exchange: ask.exchange,
        user: ask.user,
        amount,
        output_limit,
    };
    write_hold(tx, ask, &hold)?;
    Ok(Ok(hold))
}

/// The guarded UPDATE: every condition is in it, whatever was read before.
fn set_aside(tx: &Connection, ask: &PlaceHold, amount: Usd) -> rusqlite::Result<bool> {
    tx.prepare_cached(&SET_ASIDE)?
        .execute(params![ask.user, ask.key, Micros(ask.now), amount])
        .map(|rows| rows == 1)
}

/// Writes a hold: its cells, its hash, its state.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let (names, marks) = names_and_marks(&HOLD_COLUMNS, &["hash", "state"]);
    format!("INSERT INTO holds ({names}) VALUES ({marks})")
});

fn write_hold(tx: &Connection, ask: &PlaceHold, hold: &Hold) -> rusqlite::Result<()> {
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
    tx.prepare_cached(&INSERT)?
        .execute(cells.and([ValueRef::Blob(&hash), text(Some("open"))]))
        .map(drop)
}

/// The first answer to a hold that is taken again.
fn placed_before(tx: &Connection, ask: &PlaceHold) -> rusqlite::Result<Hold> {
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

// Closing it ---------------------------------------------------------------------------------------------------------

/// A hold as it is stored, with its user's account.
struct StoredHold {
    user: UserId,
    key: KeyId,
    amount: Usd,
    output_limit: Option<Tokens>,
    state: String,
    hash: Hash,
    balance: Usd,
    /// What the user could spend without this hold.
    available: Usd,
    tip: Tip,
}

fn stored_hold(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<Option<StoredHold>> {
    tx.prepare_cached(
        "SELECT h.user_id, h.key_id, h.amount_nanos, h.output_limit, h.state, h.hash, u.balance_nanos,
                u.balance_nanos + u.credit_line_nanos - u.held_nanos + h.amount_nanos, u.head_hash,
                (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_entries)
         FROM holds h JOIN users u ON u.id = h.user_id WHERE h.exchange_id = ?1",
    )?
    .query_row([exchange], |row| {
        Ok(StoredHold {
            user: row.get(0)?,
            key: row.get(1)?,
            amount: row.get(2)?,
            output_limit: row.get(3)?,
            state: row.get(4)?,
            hash: row.get(5)?,
            balance: row.get(6)?,
            available: row.get(7)?,
            tip: Tip {
                head: row.get(8)?,
                next: row.get(9)?,
            },
        })
    })
    .optional()
}

/// The state of a hold that is closed for a charge.
pub(super) fn closed_state(charge: Usd) -> &'static str {
    if charge > Usd::ZERO { "settled" } else { "released" }
}

/// Settles or releases; part of a transaction. Closing twice changes nothing and gives the first answer.
pub(super) fn close(tx: &Connection, exchange: ExchangeId, close: &CloseHold) -> rusqlite::Result<Closed> {
    let hold = stored_hold(tx, exchange)?.ok_or_else(|| broken(format!("exchange {exchange} has no hold")))?;
    if hold.state != "open" {
        return closed_before(tx, exchange);
    }
    let state = closed_state(close.row.charge);
    let ended = usage_log::ended_at(&close.row);
    let closed = tx
        .prepare_cached(CLOSE)?
        .execute(params![exchange, state, Micros(ended)])?;
    if closed != 1 {
        return Err(broken(format!("the hold of exchange {exchange} is not open any more")));
    }
    let charged = collectable(close, &hold).ok_or_else(|| broken("a charge does not fit"))?;
    give_back(tx, &hold, charged)?;
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
    fail_point::hit(Point::InSettlement).map_err(injected)?;
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

const CLOSE: &str = "UPDATE holds SET state = ?2, closed_at = ?3 WHERE exchange_id = ?1 AND state = 'open'";

const GIVE_BACK: &str = "UPDATE users SET held_nanos = held_nanos - ?2
     WHERE id = ?1 AND held_nanos >= ?2 AND (?3 = 0 OR balance_nanos + credit_line_nanos - (held_nanos - ?2) >= ?3)";

/// Takes a hold's money out of what is held. Guarded: what is available then pays for the charge, whatever was read
/// before.
fn give_back(tx: &Connection, hold: &StoredHold, charged: Usd) -> rusqlite::Result<()> {
    let given = tx
        .prepare_cached(GIVE_BACK)?
        .execute(params![hold.user, hold.amount, charged])?;
    match given {
        1 => Ok(()),
        _ => Err(broken("a hold is not in what is held, or does not pay for its charge")),
    }
}

/// What of a charge is there: with the hold given back, all that is available, or the hold and no more.
fn collectable(close: &CloseHold, hold: &StoredHold) -> Option<Usd> {
    let most = match close.excess {
        Excess::Collect => hold.available.max(Usd::ZERO),
        Excess::Waive => hold.amount,
    };
    (!close.row.charge.is_negative()).then(|| close.row.charge.min(most))
}

fn append_charge(
    tx: &Connection,
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

/// Releases an open hold whose exchange nobody will finish; part of a transaction. The usage row keeps its amount.
pub(super) fn interrupt(tx: &Connection, exchange: ExchangeId, now: Timestamp) -> rusqlite::Result<()> {
    let row = tx
        .prepare_cached(
            "SELECT exchange_id, user_id, key_id, endpoint, streamed, model, priced_model, upstream, list,
                    amount_nanos, output_limit, placed_at
             FROM holds WHERE exchange_id = ?1 AND state = 'open'",
        )?
        .query_row([exchange], |row| interrupted(row, now))
        .optional()?;
    match row {
        Some(row) => close(
            tx,
            exchange,
            &CloseHold {
                row,
                excess: Excess::Waive,
            },
        )
        .map(|_| ()),
        None => Ok(()),
    }
}

/// The usage row of an exchange that nobody finished.
fn interrupted(hold: &Row<'_>, now: Timestamp) -> rusqlite::Result<ExchangeRow> {
    let started_at = hold.get::<_, Micros>("placed_at")?.0;
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
        started_at,
        first_byte: None,
        duration: Duration::try_from(now.duration_since(started_at)).unwrap_or_default(),
    })
}

/// The open holds, at most so many.
fn open_holds(conn: &Connection, limit: u32) -> rusqlite::Result<Vec<ExchangeId>> {
    conn.prepare_cached("SELECT exchange_id FROM holds WHERE state = 'open' LIMIT ?1")?
        .query_map([limit], |row| row.get(0))?
        .collect()
}

/// Releases at most so many open holds; part of a transaction. Returns how many.
fn interrupt_some(tx: &Connection, now: Timestamp, limit: u32) -> rusqlite::Result<u64> {
    let open = open_holds(tx, limit)?;
    fail_point::hit(Point::Sweep).map_err(injected)?;
    let mut closed = 0;
    for exchange in open {
        interrupt(tx, exchange, now)?;
        closed += 1;
    }
    Ok(closed)
}

impl Store {
    /// The exchanges whose holds are open.
    pub fn open_holds(&self) -> Result<Vec<ExchangeId>, StoreError> {
        self.read("reading open holds", |conn| open_holds(conn, u32::MAX))
    }

    /// At start, before listening: closes the holds of a process that died, by releasing them, as `interrupted`.
    /// Returns how many.
    pub fn release_interrupted(&self, now: Timestamp) -> Outcome<u64, ()> {
        let mut released = 0;
        loop {
            let some = self.write("releasing the holds of a process that died", |tx| {
                interrupt_some(tx, now, RELEASES_PER_TRANSACTION).map(Ok)
            });
            match some {
                Outcome::Committed(0) => return Outcome::Committed(released),
                Outcome::Committed(some) => released += some,
                other => return other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::commits;
    use super::super::keys::Key;
    use super::super::testing::*;
    use super::super::users::User;
    use super::*;
    use rusqlite::ErrorCode;

    /// SQLite makes and drops a whole table for an `IN` with more than two words, for `RETURNING`, and for rows that are
    /// selected to be inserted: a fifth of a call's time, when all of them did.
    #[test]
    fn a_call_makes_no_tables_for_itself() {
        let desk = Desk::new();
        let conn = desk.raw();
        for sql in [
            &**ACCOUNT,
            &**SET_ASIDE,
            &**INSERT,
            CLOSE,
            GIVE_BACK,
            &**usage_log::INSERT,
            &**entries::INSERT,
            commits::COUNT,
        ] {
            let mut explain = conn.prepare(&format!("EXPLAIN {sql}")).expect("it explains");
            let parameters = vec![rusqlite::types::Value::Null; explain.parameter_count()];
            let steps = explain.query_map(rusqlite::params_from_iter(parameters), |row| row.get(1));
            let steps: Vec<String> = steps.expect("run").collect::<Result<_, _>>().expect("read");
            assert!(
                steps.len() > 10 && !steps.iter().any(|step| step == "OpenEphemeral"),
                "{sql}: {steps:?}"
            );
        }
    }

    #[test]
    fn a_hold_sets_money_aside_and_its_settlement_takes_what_it_cost() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let id = exchange();
        let hold = done(desk.place(&ask(id, &key, "2")));
        assert_eq!(hold.amount, usd("2"));
        assert_eq!((desk.now(&ada).held, desk.now(&ada).available()), (usd("2"), usd("3")));
        desk.assert_books_balance();
        let closed = desk.close(id, &closing(id, &key, "0.75"));
        assert_eq!(
            closed,
            Closed {
                charged: usd("0.75"),
                uncollected: Usd::ZERO,
                balance: usd("4.25"),
                available: usd("4.25"),
            }
        );
        assert_eq!(
            desk.now(&ada),
            User {
                balance: usd("4.25"),
                ..ada.clone()
            }
        );
        let entries = desk.store.entries(ada.id, None, 10).expect("entries");
        let kinds: Vec<_> = entries
            .iter()
            .map(|e| (e.kind.as_str(), e.amount, e.balance_after))
            .collect();
        assert_eq!(
            kinds,
            [("charge", usd("-0.75"), usd("4.25")), ("credit", usd("5"), usd("5"))]
        );
        desk.assert_books_balance();
    }

    #[test]
    fn closing_twice_changes_nothing_and_gives_the_first_answer() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        let first = desk.close(id, &closing(id, &key, "1"));
        assert_eq!(desk.close(id, &closing(id, &key, "2")), first);
        assert_eq!(desk.now(&ada).balance, usd("4"));
        assert_eq!(desk.store.verify().expect("it verifies").exchanges, 1);
        desk.assert_books_balance();
    }

    #[test]
    fn taking_the_same_hold_twice_takes_it_once() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let asked = ask(exchange(), &key, "2");
        let first = done(desk.place(&asked));
        assert_eq!(done(desk.place(&asked)), first);
        assert_eq!(desk.now(&ada).held, usd("2"));
        let other = desk.key(&ada);
        let stolen = desk.place(&PlaceHold { key: other.id, ..asked });
        assert!(matches!(stolen, Outcome::NotCommitted(_)), "{stolen:?}");
        desk.assert_books_balance();
    }

    #[test]
    fn what_a_charge_takes_beyond_its_hold_comes_from_what_is_available_and_the_rest_is_recorded() {
        let desk = Desk::new();
        for (excess, charged) in [(Excess::Collect, "4"), (Excess::Waive, "1")] {
            let user = desk.user(&format!("{excess:?}"), "5");
            let key = desk.key(&user);
            let (mine, other) = (exchange(), exchange());
            desk.set_aside(&ask(mine, &key, "1"));
            desk.set_aside(&ask(other, &key, "1"));
            let closed = desk.close(
                mine,
                &CloseHold {
                    excess,
                    ..closing(mine, &key, "10")
                },
            );
            let charged = usd(charged);
            assert_eq!(
                (closed.charged, closed.uncollected),
                (charged, usd("10").saturating_sub(charged))
            );
            assert_eq!(desk.now(&user).held, usd("1"));
            assert!(!desk.now(&user).available().is_negative());
        }
        desk.assert_books_balance();
    }

    #[test]
    fn a_hold_is_refused_with_the_reason() {
        let desk = Desk::new();
        let ada = desk.user("ada", "1");
        let (key, revoked) = (desk.key(&ada), desk.key(&ada));
        let short = HoldRefused::Short(Shortfall {
            needed: usd("1.000001"),
            available: usd("1"),
            held: Usd::ZERO,
            largest_limit: None,
        });
        match refused(desk.place(&ask(exchange(), &key, "1.000001"))) {
            HoldRefused::Short(found) => {
                assert_eq!(
                    HoldRefused::Short(Shortfall {
                        largest_limit: None,
                        ..found
                    }),
                    short
                );
            }
            other => panic!("{other:?}"),
        }
        done(desk.store.revoke_key(revoked.id, &by(), at(2)));
        assert_eq!(
            refused(desk.place(&ask(exchange(), &revoked, "1"))),
            HoldRefused::KeyGone
        );
        let late = PlaceHold {
            user: desk.user("bob", "1").id,
            ..ask(exchange(), &key, "1")
        };
        assert_eq!(refused(desk.place(&late)), HoldRefused::KeyGone);
        done(desk.store.set_user_status(ada.id, UserStatus::Suspended, &by(), at(3)));
        assert_eq!(refused(desk.place(&ask(exchange(), &key, "1"))), HoldRefused::Suspended);
        desk.assert_books_balance();
    }

    #[test]
    fn what_running_calls_hold_is_not_available_to_another() {
        let desk = Desk::new();
        let ada = desk.user("ada", "3");
        let key = desk.key(&ada);
        desk.set_aside(&ask(exchange(), &key, "2"));
        let HoldRefused::Short(short) = refused(desk.place(&ask(exchange(), &key, "1.5"))) else {
            panic!("it is only short");
        };
        assert_eq!((short.available, short.held), (usd("1"), usd("2")));
    }

    #[test]
    fn the_statement_alone_takes_nothing_that_is_not_there() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let (key, revoked) = (desk.key(&ada), desk.key(&ada));
        done(desk.store.revoke_key(revoked.id, &by(), at(2)));
        let raw = desk.raw();
        let takes = |key: &Key, amount: &str| {
            let ask = ask(exchange(), key, "1");
            set_aside(&raw, &ask, usd(amount)).expect("no error")
        };
        assert!(!takes(&key, "7.000000001") && !takes(&key, "-1") && !takes(&revoked, "1"));
        assert!(takes(&key, "7"));
        assert!(!takes(&key, "0.000000001"));
        done(desk.store.set_user_status(ada.id, UserStatus::Suspended, &by(), at(3)));
        assert!(!takes(&key, "0"));
    }

    #[test]
    fn the_statement_alone_gives_nothing_back_for_a_charge_that_is_not_there() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let key = desk.key(&ada);
        let (mine, other) = (exchange(), exchange());
        desk.set_aside(&ask(mine, &key, "2"));
        desk.set_aside(&ask(other, &key, "3"));
        let raw = desk.raw();
        let hold = stored_hold(&raw, mine).expect("it reads").expect("it is there");
        let unpaid = give_back(&raw, &hold, usd("4.000000001")).expect_err("the other hold is not there to be taken");
        assert!(unpaid.to_string().contains("does not pay"), "{unpaid}");
        assert_eq!(desk.now(&ada).held, usd("5"));
        give_back(&raw, &hold, usd("4")).expect("what is available pays");
        assert_eq!(desk.now(&ada).held, usd("3"));
    }

    #[test]
    fn the_schema_alone_stops_an_overdraft() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let raw = desk.raw();
        let hold = |nanos: i64| {
            raw.execute(
                "UPDATE users SET held_nanos = held_nanos + ?2 WHERE id = ?1",
                params![ada.id, nanos],
            )
        };
        for _ in 0..7 {
            hold(1_000_000_000).expect("the first seven fit");
        }
        let eighth = hold(1_000_000_000).expect_err("the eighth does not");
        assert_eq!(eighth.sqlite_error_code(), Some(ErrorCode::ConstraintViolation));
        assert!(eighth.to_string().contains("available_is_not_negative"), "{eighth}");
    }

    #[test]
    fn the_schema_alone_keeps_the_balance_the_sum_of_the_entries() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let raw = desk.raw();
        let refused = |sql: &str| match raw.execute(sql, [ada.id]) {
            Err(error) => assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ConstraintViolation), "{sql}"),
            Ok(rows) => panic!("{rows} rows by {sql}"),
        };
        refused("UPDATE users SET balance_nanos = balance_nanos + 1 WHERE id = ?1");
        refused("UPDATE users SET id = zeroblob(16) WHERE id = ?1");
        refused("DELETE FROM users WHERE id = ?1");
        refused("UPDATE ledger_entries SET note = 'x' WHERE user_id = ?1");
        refused("DELETE FROM ledger_entries WHERE user_id = ?1");
        refused(
            "REPLACE INTO ledger_entries SELECT seq, user_id, kind, 1, balance_after_nanos + 1, exchange_id, reference,
                    note, at, hash FROM ledger_entries WHERE user_id = ?1",
        );
        refused(
            "REPLACE INTO users SELECT id, name, email, password_hash, status, 0, 0, 0, created_at, 0, NULL, 0
             FROM users WHERE id = ?1",
        );
        refused(
            "INSERT INTO ledger_entries SELECT seq + 1, user_id, kind, 5, balance_after_nanos, NULL, NULL, NULL, at,
                    hash FROM ledger_entries WHERE user_id = ?1",
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_hold_cannot_be_opened_again_or_changed() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let key = desk.key(&ada);
        let (open, closed) = (exchange(), exchange());
        desk.set_aside(&ask(open, &key, "1"));
        desk.set_aside(&ask(closed, &key, "1"));
        desk.close(closed, &closing(closed, &key, "1"));
        let raw = desk.raw();
        for (sql, id) in [
            (
                "UPDATE holds SET state = 'open', closed_at = NULL WHERE exchange_id = ?1",
                closed,
            ),
            ("UPDATE holds SET state = 'released' WHERE exchange_id = ?1", closed),
            ("DELETE FROM holds WHERE exchange_id = ?1", open),
            ("UPDATE usage_logs SET charge_nanos = 0 WHERE exchange_id = ?1", closed),
            ("DELETE FROM usage_logs WHERE exchange_id = ?1", closed),
        ] {
            raw.execute(sql, [id]).expect_err(sql);
        }
        // Each by itself, and to what it is: so nothing but the trigger refuses it.
        for column in HOLD_COLUMNS.into_iter().chain(["hash"]) {
            let sql = format!("UPDATE holds SET {column} = {column} WHERE exchange_id = ?1");
            let refused = raw.execute(&sql, [open]).expect_err(&sql);
            assert!(refused.to_string().contains("nothing else of it changes"), "{refused}");
        }
        desk.assert_books_balance();
    }

    #[test]
    fn holds_of_a_process_that_died_are_released_and_leave_a_row() {
        let desk = Desk::new();
        let ada = desk.user("ada", "7");
        let key = desk.key(&ada);
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        assert_eq!(desk.store.verify().expect("it verifies").open_holds, 1);
        assert_eq!(done(desk.store.release_interrupted(at(70))), 1);
        assert_eq!(done(desk.store.release_interrupted(at(71))), 0);
        let row = desk
            .store
            .find_exchange(&id.to_string())
            .expect("it reads")
            .expect("it is there");
        assert_eq!(
            (row.state, row.held, row.charge),
            (State::Interrupted, usd("2"), Usd::ZERO)
        );
        assert_eq!((row.duration.as_secs(), row.model.as_str()), (60, "gpt"));
        assert_eq!(desk.now(&ada), ada);
        let late = desk.close(id, &closing(id, &key, "1"));
        assert_eq!(
            late,
            Closed {
                charged: Usd::ZERO,
                uncollected: Usd::ZERO,
                balance: usd("7"),
                available: usd("7"),
            }
        );
        desk.assert_books_balance();
    }

    #[test]
    fn a_settlement_is_filed_under_its_hold_whatever_its_row_says() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
        let (key, other) = (desk.key(&ada), desk.key(&bob));
        let (id, stranger) = (exchange(), exchange());
        desk.set_aside(&ask(id, &key, "2"));
        desk.close(id, &closing(stranger, &other, "1"));
        let row = desk.store.find_exchange(&id.to_string()).expect("it reads");
        let row = row.expect("it is there");
        assert_eq!((row.user, row.key, row.held), (ada.id, key.id, usd("2")));
        assert_eq!((desk.now(&ada).balance, desk.now(&bob).balance), (usd("4"), usd("5")));
        desk.assert_books_balance();
    }
}

//! The ledger: holds are taken and closed. Only here, and in the entries, money moves.

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::attempts::{self, Attempt};
use super::background;
use super::budgets::{self, Payers, Starts};
use super::columns::{Json, Micros, broken, injected, json, names_and_marks, text, tokens};
use super::digest::{Cells, Digest, Hash};
use super::entries::{self, NewEntry, Tip};
use super::events;
use super::idempotency::{self, Once, Repeat};
use super::prepared::Prepared;
use super::rollups;
use super::usage_log::{self, Basis, ExchangeRow, Settled, State};
use super::users::UserStatus;
use super::{ExchangeId, KeyId, Outcome, Store, StoreError, Tried, Trouble, UserId};
use crate::budget::Limit;
use crate::call::Endpoint;
use crate::fail_point::{self, Point};
use crate::hold::{self, Policy, Quote, Room, Shortfall, Size};
use crate::money::Usd;
use crate::origin::Origin;
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
    /// The key whose budgets count, beside the user's: [`super::keys::Key::budgets`].
    pub budgets: KeyId,
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
    /// Who asks: for the usage row, should nobody end the exchange.
    pub origin: Origin,
    /// Its name, when the client gave it one: then it is taken once.
    pub once: Option<Once>,
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
    /// The room does not pay for it: the balance, or a budget.
    Short(Limit, Shortfall),
    /// The user is suspended.
    Suspended,
    /// The key was revoked or expired since it was looked up.
    KeyGone,
    /// Its name stands for an exchange that runs or was charged.
    Repeated(Repeat),
}

/// How an exchange's hold is closed.
#[derive(Clone, Debug)]
pub struct CloseHold {
    /// What is recorded; its `charge` is what the exchange costs the user (zero: released).
    /// `row.uncollected` and `row.balance_after` are filled in by the ledger.
    pub row: ExchangeRow,
    /// Whether the charge may exceed the hold (usage did), or is capped by it (the gateway ended the stream).
    pub excess: Excess,
    /// Where it was sent, when that was more than once; else none.
    pub attempts: Vec<Attempt>,
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

impl Closed {
    /// Whether the exchange cost its user something, collected or not.
    pub fn is_charge(&self) -> bool {
        self.charged > Usd::ZERO || self.uncollected > Usd::ZERO
    }
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
const RELEASES_PER_TRANSACTION: usize = 256;

/// No call lasts so long: a hold that is open for longer belongs to none that runs.
pub const LONGEST_HOLD: Duration = Duration::from_secs(8 * 3600);

/// What became of open holds that nobody owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many were released.
    pub released: usize,
    /// Those that cannot be, each with why. They stay open: their money stays set aside, and nothing is charged.
    pub stuck: Vec<(ExchangeId, String)>,
}

impl Swept {
    /// Both together.
    pub(super) fn add(&mut self, other: Swept) {
        self.released += other.released;
        self.stuck.extend(other.stuck);
    }
}

// Taking a hold ------------------------------------------------------------------------------------------------------

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

static ACCOUNT: LazyLock<String> = LazyLock::new(|| {
    let (of_user, of_key) = (budgets::room("?1", "?6", "?7"), budgets::room("?5", "?6", "?7"));
    format!(
        "SELECT status, balance_nanos + credit_line_nanos - held_nanos, held_nanos, {KEY_IS_VALID},
                EXISTS (SELECT 1 FROM holds WHERE exchange_id = ?4), {of_user}, {of_key}
         FROM users WHERE id = ?1"
    )
});

static SET_ASIDE: LazyLock<String> = LazyLock::new(|| {
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
pub(super) fn place(tx: &Prepared<'_>, ask: &PlaceHold) -> Tried<Hold, HoldRefused> {
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
pub(super) fn set_aside(tx: &Prepared<'_>, ask: &PlaceHold, amount: Usd) -> rusqlite::Result<bool> {
    let Starts { day, month } = Starts::of(ask.now);
    let asked = params![ask.user, ask.key, Micros(ask.now), amount, ask.budgets, day, month];
    tx.with(&SET_ASIDE, |set_aside| set_aside.execute(asked))
        .map(|rows| rows == 1)
}

/// Writes a hold: its cells, its hash, its state, who asks.
static INSERT: LazyLock<String> = LazyLock::new(|| {
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
    placed_at: Timestamp,
    /// Whether anybody has a budget.
    are_budgets: bool,
    /// Until when usage is summed by day.
    rolled_until: Timestamp,
    /// Whether it is of a background response.
    is_in_background: bool,
}

static STORED_HOLD: LazyLock<String> = LazyLock::new(|| {
    let (any, told, rolled_until) = (budgets::ANY, events::ANY, rollups::ROLLED_UNTIL);
    format!(
        "SELECT h.user_id, h.key_id, h.amount_nanos, h.output_limit, h.state, h.hash, u.balance_nanos,
                u.balance_nanos + u.credit_line_nanos - u.held_nanos + h.amount_nanos, u.head_hash,
                (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_entries), h.placed_at, {any}, {told}, {rolled_until},
                EXISTS (SELECT 1 FROM background_responses WHERE exchange_id = ?1)
         FROM holds h JOIN users u ON u.id = h.user_id WHERE h.exchange_id = ?1"
    )
});

fn stored_hold(tx: &Prepared<'_>, exchange: ExchangeId) -> rusqlite::Result<Option<StoredHold>> {
    let read = |row: &Row<'_>| {
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
                is_told: row.get(12)?,
            },
            placed_at: row.get::<_, Micros>(10)?.0,
            are_budgets: row.get(11)?,
            rolled_until: row.get::<_, Micros>(13)?.0,
            is_in_background: row.get(14)?,
        })
    };
    tx.with(&STORED_HOLD, |stored| stored.query_row([exchange], read).optional())
}

/// The state of a hold that is closed for a charge.
pub(super) fn closed_state(charge: Usd) -> &'static str {
    if charge > Usd::ZERO { "settled" } else { "released" }
}

/// Settles or releases; part of a transaction. Closing twice changes nothing and gives the first answer.
pub(super) fn close(tx: &Prepared<'_>, exchange: ExchangeId, close: &CloseHold) -> rusqlite::Result<Closed> {
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

const CLOSE: &str =
    "UPDATE holds SET state = ?2, closed_at = ?3, origin = NULL WHERE exchange_id = ?1 AND state = 'open'";

const GIVE_BACK: &str = "UPDATE users SET held_nanos = held_nanos - ?2
     WHERE id = ?1 AND held_nanos >= ?2 AND (?3 = 0 OR balance_nanos + credit_line_nanos - (held_nanos - ?2) >= ?3)";

/// Takes a hold's money out of what is held. Guarded: what is available then pays for the charge, whatever was read
/// before.
fn give_back(tx: &Prepared<'_>, hold: &StoredHold, charged: Usd) -> rusqlite::Result<()> {
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
pub(super) fn interrupt(tx: &Prepared<'_>, exchange: ExchangeId, now: Timestamp) -> rusqlite::Result<bool> {
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
pub(super) fn sweep(tx: &Prepared<'_>, holds: &[ExchangeId], now: Timestamp) -> rusqlite::Result<Swept> {
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
pub(super) fn unfinished(hold: &Row<'_>) -> rusqlite::Result<ExchangeRow> {
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

impl Store {
    /// How many holds are open, and what they hold in all; it reads each of them, which are as many as calls run.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn held_in_all(&self) -> Result<(u32, Usd), StoreError> {
        self.read("adding up the open holds", |conn| {
            let mut query =
                conn.prepare_cached("SELECT COUNT(*), COALESCE(SUM(amount_nanos), 0) FROM holds WHERE state = 'open'")?;
            query.query_row([], |row| Ok((row.get(0)?, Usd::from_nanos(row.get(1)?))))
        })
    }

    /// The exchanges whose holds are open, but for background responses: nobody has to run for those.
    pub fn open_holds(&self) -> Result<Vec<ExchangeId>, StoreError> {
        self.read("reading open holds", |conn| {
            let sql = "SELECT exchange_id FROM holds h WHERE state = 'open'
                         AND NOT EXISTS (SELECT 1 FROM background_responses WHERE exchange_id = h.exchange_id)";
            conn.prepare_cached(sql)?.query_map([], |row| row.get(0))?.collect()
        })
    }

    /// How many holds are open, and what they hold together.
    pub fn held(&self) -> Result<(u64, Usd), StoreError> {
        self.read("reading open holds", |conn| {
            let sql = "SELECT COUNT(*), COALESCE(SUM(amount_nanos), 0) FROM holds WHERE state = 'open'";
            let both = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?.unsigned_abs(), row.get(1)?));
            conn.prepare_cached(sql)?.query_row([], both)
        })
    }

    /// At start, before listening: closes the holds of a process that died, by releasing them, as `interrupted`.
    pub fn release_interrupted(&self, now: Timestamp) -> Outcome<Swept, ()> {
        let open = match self.open_holds() {
            Ok(open) => open,
            Err(error) => return Outcome::NotCommitted(error),
        };
        let mut all = Swept::default();
        for some in open.chunks(RELEASES_PER_TRANSACTION) {
            let swept = self.write("releasing the holds of a process that died", |tx| {
                fail_point::hit(Point::Sweep).map_err(injected)?;
                sweep(&Prepared::of(tx), some, now).map(Ok)
            });
            match swept {
                Outcome::Committed(swept) => all.add(swept),
                other => return other,
            }
        }
        Outcome::Committed(all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::commits;
    use super::super::keys::Key;
    use super::super::testing::*;
    use super::super::users::User;
    use super::*;
    use crate::origin::{Client, Kind, Label};
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
            events::INSERT,
            idempotency::FIND,
            idempotency::CLAIM,
            attempts::INSERT,
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
        let short = HoldRefused::Short(
            Limit::Balance,
            Shortfall {
                needed: usd("1.000001"),
                available: usd("1"),
                held: Usd::ZERO,
                largest_limit: None,
            },
        );
        match refused(desk.place(&ask(exchange(), &key, "1.000001"))) {
            HoldRefused::Short(limit, found) => {
                assert_eq!(
                    HoldRefused::Short(
                        limit,
                        Shortfall {
                            largest_limit: None,
                            ..found
                        }
                    ),
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
        let HoldRefused::Short(Limit::Balance, short) = refused(desk.place(&ask(exchange(), &key, "1.5"))) else {
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
            set_aside(&Prepared::of(&raw), &ask, usd(amount)).expect("no error")
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
        let raw = Prepared::of(&raw);
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
                    note, at, hash, refunds FROM ledger_entries WHERE user_id = ?1",
        );
        refused(
            "REPLACE INTO users SELECT id, name, email, password_hash, status, 0, 0, 0, created_at, 0, NULL, 0, NULL, NULL, NULL, NULL, NULL
             FROM users WHERE id = ?1",
        );
        refused(
            "INSERT INTO ledger_entries SELECT seq + 1, user_id, kind, 5, balance_after_nanos, NULL, NULL, NULL, at,
                    hash, NULL FROM ledger_entries WHERE user_id = ?1",
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
        let origin = Origin {
            session: Label::new("s"),
            turn: Label::new("t"),
            agent: None,
            kind: Some(Kind::SubAgent),
            client: Client::parse("codex_exec/0.169.0"),
        };
        desk.set_aside(&PlaceHold {
            origin: origin.clone(),
            ..ask(id, &key, "2")
        });
        assert_eq!(desk.store.verify().expect("it verifies").open_holds, 1);
        assert_eq!(done(desk.store.release_interrupted(at(70))).released, 1);
        assert_eq!(done(desk.store.release_interrupted(at(71))), Swept::default());
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
        assert_eq!(row.origin, origin, "it is told who asked");
        let kept = "SELECT COUNT(*) FROM holds WHERE origin IS NOT NULL";
        let kept: i64 = desk.raw().query_row(kept, [], |row| row.get(0)).expect("a count");
        assert_eq!(kept, 0, "the usage row has it");
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
    fn a_hold_that_cannot_be_released_keeps_no_other_from_it() {
        let desk = Desk::new();
        let ada = desk.user("ada", "400");
        let key = desk.key(&ada);
        let ids: Vec<_> = (0..RELEASES_PER_TRANSACTION + 3).map(|_| exchange()).collect();
        for id in &ids {
            desk.set_aside(&ask(*id, &key, "1"));
        }
        let bad = [ids[1], ids[RELEASES_PER_TRANSACTION + 1]];
        for (number, id) in bad.iter().enumerate() {
            desk.raw()
                .execute_batch(&format!(
                    "CREATE TRIGGER never_{number} BEFORE INSERT ON usage_logs WHEN NEW.exchange_id = x'{}'
                     BEGIN SELECT RAISE(ABORT, 'never'); END",
                    id.0.simple()
                ))
                .expect("made");
        }
        let swept = done(desk.store.release_interrupted(at(70)));
        assert_eq!(swept.released, ids.len() - bad.len());
        let stuck: Vec<_> = swept.stuck.iter().map(|(id, why)| (*id, why.as_str())).collect();
        assert_eq!(stuck, bad.map(|id| (id, "never")));
        assert_eq!(desk.store.open_holds().expect("read"), bad);
        assert_eq!(desk.now(&ada).held, usd("2"), "nothing of it is half done");
        desk.assert_books_balance();
        // By what was written last, no call lasts so long.
        let late = exchange();
        desk.set_aside(&ask(late, &key, "1"));
        let mut close = closing(late, &key, "1");
        close.row.duration = LONGEST_HOLD + Duration::from_secs(1);
        desk.close(late, &close);
        let mut findings = desk.store.verify().expect("it verifies").findings;
        findings.sort_by_key(|finding| bad.iter().position(|id| id.to_string() == finding.row));
        let named: Vec<_> = findings
            .iter()
            .map(|finding| (finding.table, finding.row.clone()))
            .collect();
        assert_eq!(named, bad.map(|id| ("holds", id.to_string())), "{findings:?}");
        assert!(
            findings[0].problem.contains("longer than any call lasts"),
            "{findings:?}"
        );
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

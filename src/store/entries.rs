//! Entries: the immutable lines of the ledger, and what operators put into a balance.

use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::audit::{self, Act};
use super::columns::{Micros, names_and_marks, text, to_the_microsecond};
use super::digest::{Cells, Digest, GENESIS, Hash};
use super::events;
use super::prepared::Prepared;
use super::users::{self, User};
use super::{Actor, ExchangeId, Outcome, Store, StoreError, UserId};
use crate::money::Usd;

/// The largest balance, and the largest credit line, in dollars four billion: their sum still fits.
pub const MAX_BALANCE: Usd = Usd::from_nanos(4_000_000_000_000_000_000);

/// The domain of an entry's digest.
pub(super) const ENTRY_DOMAIN: &str = "codex-gateway entry 1";

/// One immutable line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number within the whole ledger, ascending.
    pub seq: i64,
    /// Whose.
    pub user: UserId,
    /// `credit`, `adjustment`, `charge`, `refund`.
    pub kind: String,
    /// Signed: charges are negative.
    pub amount: Usd,
    /// The balance after it.
    pub balance_after: Usd,
    /// The exchange it charges for.
    pub exchange: Option<ExchangeId>,
    /// The exchange whose charge it gives back.
    pub refunds: Option<ExchangeId>,
    /// The operator's reference; the same one credits once.
    pub reference: Option<String>,
    /// The operator's note.
    pub note: Option<String>,
    /// When.
    pub at: Timestamp,
    /// SHA-256 over the entry, what it covers, and the user's hash before it.
    pub hash: [u8; 32],
}

/// Money put into a balance.
#[derive(Clone, Debug)]
pub struct Credit {
    /// Whose.
    pub user: UserId,
    /// How much; negative only as an adjustment.
    pub amount: Usd,
    /// Whether it is an adjustment.
    pub adjustment: bool,
    /// The operator's reference; the same one with the same amount credits once.
    pub reference: Option<String>,
    /// The operator's note.
    pub note: Option<String>,
}

/// Whether a credit was made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// It was: this is its entry.
    First,
    /// Its reference was used before, and nothing changed: this is the entry of then.
    Again,
}

/// Why nothing was credited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreditRefused {
    /// No such user.
    NoUser,
    /// The adjustment would push the balance below what is held.
    BelowHeld(User),
    /// The reference was used with another amount or user.
    OtherReference(Box<Entry>),
    /// The balance would not fit.
    TooLarge,
}

/// What is hashed of an entry, between the hash before it and the usage row's. Behind that one comes `refunds`, where
/// there is one.
pub(super) const ENTRY_COLUMNS: [&str; 9] = [
    "seq",
    "user_id",
    "kind",
    "amount_nanos",
    "balance_after_nanos",
    "exchange_id",
    "reference",
    "note",
    "at",
];

/// Reads an entry.
pub(super) fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        seq: row.get("seq")?,
        user: row.get("user_id")?,
        kind: row.get("kind")?,
        amount: row.get("amount_nanos")?,
        balance_after: row.get("balance_after_nanos")?,
        exchange: row.get("exchange_id")?,
        refunds: row.get("refunds")?,
        reference: row.get("reference")?,
        note: row.get("note")?,
        at: row.get::<_, Micros>("at")?.0,
        hash: row.get("hash")?,
    })
}

/// An entry to append.
pub(super) struct NewEntry<'a> {
    pub(super) user: UserId,
    pub(super) kind: &'static str,
    pub(super) amount: Usd,
    pub(super) balance_after: Usd,
    pub(super) exchange: Option<ExchangeId>,
    pub(super) refunds: Option<ExchangeId>,
    pub(super) usage_hash: Option<Hash>,
    pub(super) reference: Option<&'a str>,
    pub(super) note: Option<&'a str>,
    pub(super) at: Timestamp,
}

/// Writes an entry: its cells, its hash. Triggers see that it fits on the balance and move the balance with it; the CHECK
/// of `users` sees that what is available does not become negative.
pub(super) static INSERT: LazyLock<String> = LazyLock::new(|| {
    let (names, marks) = names_and_marks(&ENTRY_COLUMNS, &["hash", "refunds"]);
    format!("INSERT INTO ledger_entries ({names}) VALUES ({marks})")
});

/// Where a user's next entry belongs.
pub(super) struct Tip {
    /// The number it gets.
    pub(super) next: i64,
    /// The hash of the user's newest entry.
    pub(super) head: Option<Hash>,
    /// Whether others are told of it.
    pub(super) is_told: bool,
}

/// Where it belongs now.
pub(super) fn tip(tx: &Connection, user: UserId) -> rusqlite::Result<Tip> {
    tx.prepare_cached(&TIP)?.query_row([user], |row| {
        Ok(Tip {
            next: row.get(0)?,
            head: row.get(1)?,
            is_told: row.get(2)?,
        })
    })
}

static TIP: LazyLock<String> = LazyLock::new(|| {
    let told = events::ANY;
    format!("SELECT (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger_entries), head_hash, {told} FROM users WHERE id = ?1")
});

/// Appends an entry; a trigger moves the balance with it. Whoever is told of such things is, by the same transaction.
pub(super) fn append(tx: &Prepared<'_>, new: &NewEntry<'_>, tip: &Tip) -> rusqlite::Result<Entry> {
    let cells = Cells(vec![
        ("seq", ValueRef::Integer(tip.next)),
        ("user_id", new.user.value()),
        ("kind", text(Some(new.kind))),
        ("amount_nanos", ValueRef::Integer(new.amount.nanos())),
        ("balance_after_nanos", ValueRef::Integer(new.balance_after.nanos())),
        (
            "exchange_id",
            new.exchange.as_ref().map_or(ValueRef::Null, ExchangeId::value),
        ),
        ("reference", text(new.reference)),
        ("note", text(new.note)),
        ("at", ValueRef::Integer(new.at.as_microsecond())),
    ]);
    let mut digest = Digest::new(ENTRY_DOMAIN);
    digest.field("previous_hash", ValueRef::Blob(&tip.head.unwrap_or(GENESIS)));
    digest.cells(&cells);
    digest.field(
        "usage_hash",
        new.usage_hash
            .as_ref()
            .map_or(ValueRef::Null, |hash| ValueRef::Blob(hash)),
    );
    let refunds = new.refunds.as_ref().map_or(ValueRef::Null, ExchangeId::value);
    digest.field_if_any("refunds", refunds);
    let hash = digest.finish();
    let values = cells.and([ValueRef::Blob(&hash), refunds]);
    tx.with(&INSERT, |insert| insert.execute(values))?;
    let entry = Entry {
        seq: tip.next,
        user: new.user,
        kind: new.kind.to_owned(),
        amount: new.amount,
        balance_after: new.balance_after,
        exchange: new.exchange,
        refunds: new.refunds,
        reference: new.reference.map(str::to_owned),
        note: new.note.map(str::to_owned),
        at: to_the_microsecond(new.at),
        hash,
    };
    if tip.is_told {
        events::balance_changed(tx, &entry)?;
    }
    Ok(entry)
}

/// A credit's entry, whose it is, and whether it was made now; or why it was not made.
type Credited = Result<(Entry, User, Times), CreditRefused>;

/// Credits or adjusts; part of a transaction.
pub(super) fn credit(tx: &Connection, credit: &Credit, by: &Actor, now: Timestamp) -> rusqlite::Result<Credited> {
    if let Some(first) = credited_before(tx, credit)? {
        return Ok(first);
    }
    let Some(user) = users::by_id(tx, credit.user)? else {
        return Ok(Err(CreditRefused::NoUser));
    };
    let balance_after = match user.balance.checked_add(credit.amount) {
        Some(balance) if balance <= MAX_BALANCE => balance,
        _ => return Ok(Err(CreditRefused::TooLarge)),
    };
    if credit.amount.is_negative() && user.unheld().saturating_add(credit.amount).is_negative() {
        return Ok(Err(CreditRefused::BelowHeld(user)));
    }
    let new = NewEntry {
        user: credit.user,
        kind: if credit.adjustment { "adjustment" } else { "credit" },
        amount: credit.amount,
        balance_after,
        exchange: None,
        refunds: None,
        usage_hash: None,
        reference: credit.reference.as_deref(),
        note: credit.note.as_deref(),
        at: now,
    };
    let entry = append(&Prepared::of(tx), &new, &tip(tx, credit.user)?)?;
    let after = User {
        balance: balance_after,
        ..user.clone()
    };
    record_credit(tx, &entry, (&user, &after), by)?;
    Ok(Ok((entry, after, Times::First)))
}

fn record_credit(tx: &Connection, entry: &Entry, (before, after): (&User, &User), by: &Actor) -> rusqlite::Result<()> {
    let after = serde_json::json!({ "balance": after.balance, "entry": entry.seq, "amount": entry.amount });
    let act = Act {
        by,
        at: entry.at,
        action: if entry.kind == "credit" {
            "ledger.credit"
        } else {
            "ledger.adjust"
        },
        subject: entry.user.to_string(),
        before: Some(serde_json::json!({ "balance": before.balance }).to_string()),
        after: after.to_string(),
    };
    audit::record(tx, &act)
}

/// The entry with an operator's reference.
pub(super) fn by_reference(conn: &Connection, reference: &str) -> rusqlite::Result<Option<Entry>> {
    conn.prepare_cached("SELECT * FROM ledger_entries WHERE reference = ?1")?
        .query_row([reference], entry)
        .optional()
}

/// The first answer to a credit that is repeated with its reference.
fn credited_before(tx: &Connection, credit: &Credit) -> rusqlite::Result<Option<Credited>> {
    let Some(reference) = &credit.reference else {
        return Ok(None);
    };
    let Some(first) = by_reference(tx, reference)? else {
        return Ok(None);
    };
    if (first.user, first.amount, first.refunds) != (credit.user, credit.amount, None) {
        return Ok(Some(Err(CreditRefused::OtherReference(Box::new(first)))));
    }
    let user = users::by_id(tx, credit.user)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    Ok(Some(Ok((first, user, Times::Again))))
}

impl Store {
    /// Credits or adjusts; repeating with the same reference gives the first entry again.
    pub fn credit(&self, what: &Credit, by: &Actor, now: Timestamp) -> Outcome<(Entry, User, Times), CreditRefused> {
        self.write("crediting a user", |tx| credit(tx, what, by, now))
    }

    /// A user's entries, newest first, from before `before`.
    pub fn entries(&self, user: UserId, before: Option<i64>, limit: u32) -> Result<Vec<Entry>, StoreError> {
        self.read("reading the ledger", |conn| {
            conn.prepare_cached(
                "SELECT * FROM ledger_entries WHERE user_id = ?1 AND seq < ?2 ORDER BY seq DESC LIMIT ?3",
            )?
            .query_map(params![user, before.unwrap_or(i64::MAX), limit], entry)?
            .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_reference_credits_once() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "0"), desk.user("bob", "0"));
        let (first, _, times) = done(desk.store.credit(&top_up(&ada, "3", Some("invoice 1")), &by(), at(1)));
        assert_eq!(times, Times::First);
        // Also at the same time: the time is no sign of it.
        let (again, user, times) = done(desk.store.credit(&top_up(&ada, "3", Some("invoice 1")), &by(), at(1)));
        assert_eq!(times, Times::Again);
        assert_eq!((again, user.balance), (first.clone(), usd("3")));
        for other in [
            top_up(&ada, "4", Some("invoice 1")),
            top_up(&bob, "3", Some("invoice 1")),
        ] {
            let why = refused(desk.store.credit(&other, &by(), at(3)));
            assert_eq!(why, CreditRefused::OtherReference(Box::new(first.clone())));
        }
        desk.assert_books_balance();
    }

    #[test]
    fn an_adjustment_never_takes_what_is_held() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        desk.set_aside(&ask(exchange(), &key, "2"));
        let why = refused(desk.store.credit(&top_up(&ada, "-3.000000001", None), &by(), at(1)));
        assert_eq!(why, CreditRefused::BelowHeld(desk.now(&ada)));
        done(desk.store.credit(&top_up(&ada, "-3", None), &by(), at(1)));
        assert_eq!(desk.now(&ada).available(), Usd::ZERO);
        let why = refused(desk.store.credit(&top_up(&ada, "9000000000", None), &by(), at(1)));
        assert_eq!(why, CreditRefused::TooLarge);
        desk.assert_books_balance();
    }

    #[test]
    fn a_credit_and_an_adjustment_are_written_down_as_what_they_are() {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        for amount in ["3", "-1"] {
            done(desk.store.credit(&top_up(&ada, amount, None), &by(), at(1)));
        }
        let raw = desk.raw();
        let mut acts = raw
            .prepare("SELECT action FROM audit_log WHERE action LIKE 'ledger.%' ORDER BY seq")
            .expect("it reads");
        let acts: Result<Vec<String>, _> = acts.query_map([], |row| row.get(0)).expect("it reads").collect();
        assert_eq!(acts.expect("text"), ["ledger.credit", "ledger.adjust"]);
    }
}

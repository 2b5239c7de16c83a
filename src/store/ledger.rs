//! The ledger: holds and entries. The only place that moves money.

use jiff::Timestamp;

use super::usage_log::ExchangeRow;
use super::users::User;
use super::{Actor, ExchangeId, KeyId, Outcome, Store, StoreError, UserId};
use crate::hold::{Policy, Quote, Shortfall};
use crate::money::Usd;
use crate::usage::Tokens;

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
}

/// One immutable line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number within the whole ledger, ascending.
    pub seq: i64,
    /// Whose.
    pub user: UserId,
    /// `credit`, `adjustment`, `charge`.
    pub kind: String,
    /// Signed: charges are negative.
    pub amount: Usd,
    /// The balance after it.
    pub balance_after: Usd,
    /// The exchange it charges for.
    pub exchange: Option<ExchangeId>,
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

/// The first thing wrong that a verification found, and how much was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Users looked at.
    pub users: u64,
    /// Entries looked at.
    pub entries: u64,
    /// Usage rows looked at.
    pub exchanges: u64,
    /// Open holds.
    pub open_holds: u64,
    /// What is wrong, in the order found; empty: the books balance.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The table.
    pub table: &'static str,
    /// The row: its id.
    pub row: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Store {
    /// Credits or adjusts; repeating with the same reference gives the first entry again.
    pub fn credit(&self, _credit: &Credit, _by: &Actor, _now: Timestamp) -> Outcome<(Entry, User), CreditRefused> {
        todo!()
    }

    /// A user's entries, newest first, from before `before`.
    pub fn entries(&self, _user: UserId, _before: Option<i64>, _limit: u32) -> Result<Vec<Entry>, StoreError> {
        todo!()
    }

    /// Recomputes every law; online, in constant memory.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        todo!()
    }

    /// At start, before listening: closes the holds of a process that died, by releasing them, as `interrupted`.
    /// Returns how many.
    pub fn release_interrupted(&self, _now: Timestamp) -> Outcome<u64, ()> {
        todo!()
    }
}

//! The ledger: holds are taken and closed. Only here, and in the entries, money moves.

mod closing;
mod taking;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{OptionalExtension, Row};

use super::attempts::Attempt;
use super::budgets;
use super::columns::{Micros, injected};
use super::digest::Hash;
use super::entries::Tip;
use super::events;
use super::idempotency::{Once, Repeat};
use super::prepared::Prepared;
use super::rollups;
use super::usage_log::ExchangeRow;
use super::{ExchangeId, KeyId, Outcome, Store, StoreError, UserId};
use crate::budget::Limit;
use crate::call::Endpoint;
use crate::fail_point::{self, Point};
use crate::hold::{Policy, Quote, Shortfall};
use crate::money::Usd;
use crate::origin::Origin;
use crate::pricing::ListName;
use crate::usage::Tokens;
pub(super) use closing::{close, closed_state, interrupt, sweep, unfinished};
pub(super) use taking::place;
#[cfg(test)]
pub(super) use taking::set_aside;

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

impl Store {
    /// How many holds are open, and what they hold in all; it reads each of them, which are as many as calls run.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn held_in_all(&self) -> Result<(u32, Usd), StoreError> {
        self.read("adding up the open holds", |conn| {
            let sql = "SELECT COUNT(*), COALESCE(SUM(amount_nanos), 0) FROM holds WHERE state = 'open'";
            conn.prepare_cached(sql)?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
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

//! Usage rows: one per exchange that took a hold; the receipt, and the reports over many.

use std::time::Duration;

use jiff::Timestamp;

use super::{ExchangeId, KeyId, Store, StoreError, UserId};
use crate::call::Endpoint;
use crate::money::Usd;
use crate::pricing::{Line, ListName, Tier};
use crate::usage::{Tokens, Usage};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the states of DESIGN, The end")]
pub enum State {
    Completed,
    Incomplete,
    Refused,
    Failed,
    Broken,
    Limited,
    Left,
    Cancelled,
    Interrupted,
}

/// Whether a usage was reported or estimated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// By the upstream.
    Reported,
    /// By counting; hidden reasoning is not in it.
    Estimated,
}

/// One exchange, from hold to settlement: everything a receipt shows.
#[derive(Clone, Debug, PartialEq)]
pub struct ExchangeRow {
    /// The exchange.
    pub id: ExchangeId,
    /// Who paid.
    pub user: UserId,
    /// With which key.
    pub key: KeyId,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// Whether it was a stream.
    pub streamed: bool,
    /// The model the client asked for.
    pub model: String,
    /// The model that was priced: the alias's target.
    pub priced_model: String,
    /// The model that the answer names.
    pub answered_model: Option<String>,
    /// The upstream's name.
    pub upstream: String,
    /// The price list; `None`: free.
    pub list: Option<ListName>,
    /// Since when the price is in force.
    pub price_from: Option<Timestamp>,
    /// The tier that was priced.
    pub tier: Tier,
    /// How it ended.
    pub state: State,
    /// Where the usage comes from.
    pub basis: Basis,
    /// What was used.
    pub usage: Usage,
    /// How the cost came about.
    pub lines: Vec<Line>,
    /// Regional uplift, when it applied: `1.1`.
    pub uplift: Option<String>,
    /// The markup: `1`.
    pub markup: String,
    /// By the price list.
    pub cost: Usd,
    /// What the exchange costs the user, before what could not be collected.
    pub charge: Usd,
    /// Of the charge: not collected. Filled in by the ledger.
    pub uncollected: Usd,
    /// What was set aside.
    pub held: Usd,
    /// The output limit the gateway wrote into the request.
    pub output_limit: Option<Tokens>,
    /// The balance after it. Filled in by the ledger.
    pub balance_after: Usd,
    /// The upstream's response id.
    pub response_id: Option<String>,
    /// Ids of the answer's items, for `item_reference`.
    pub item_ids: Vec<String>,
    /// The upstream's request id.
    pub upstream_request_id: Option<String>,
    /// The upstream's HTTP status, if it answered.
    pub upstream_status: Option<u16>,
    /// How often it was sent.
    pub attempts: u32,
    /// When the hold was taken.
    pub started_at: Timestamp,
    /// From there to the first byte of the answer.
    pub first_byte: Option<Duration>,
    /// From there to the settlement.
    pub duration: Duration,
}

/// Which exchanges.
#[derive(Clone, Debug, Default)]
pub struct ExchangeFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// With this key.
    pub key: Option<KeyId>,
    /// For this model (as asked).
    pub model: Option<String>,
    /// Started at or after.
    pub since: Option<Timestamp>,
    /// Started before.
    pub until: Option<Timestamp>,
    /// Older than this exchange (newest first), or newer when `after`.
    pub before: Option<ExchangeId>,
    /// Newer than this exchange (oldest first), for `tail`.
    pub after: Option<ExchangeId>,
    /// At most so many.
    pub limit: u32,
}

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the groups")]
pub enum GroupBy {
    Day,
    User,
    Key,
    Model,
    Upstream,
}

/// One row of a usage report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageSum {
    /// The group's value: a date, a name, an id; empty in the total.
    pub group: String,
    /// How many exchanges.
    pub exchanges: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Of them cached.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// By the price list.
    pub cost: Usd,
    /// Charged, after what was not collected: what the ledger's entries add up to.
    pub charge: Usd,
    /// Not collected.
    pub uncollected: Usd,
}

impl Store {
    /// An exchange by its id, a unique start of it, or the upstream's response id.
    pub fn find_exchange(&self, _which: &str) -> Result<Option<ExchangeRow>, StoreError> {
        todo!()
    }

    /// Exchanges that match.
    pub fn exchanges(&self, _filter: &ExchangeFilter) -> Result<Vec<ExchangeRow>, StoreError> {
        todo!()
    }

    /// Usage summed by a group, and the total.
    pub fn usage(&self, _filter: &ExchangeFilter, _by: GroupBy) -> Result<(Vec<UsageSum>, UsageSum), StoreError> {
        todo!()
    }

    /// The last exchange of this user at this upstream that made this response: its input + output tokens are what
    /// the upstream will read again.
    pub fn response_made_by(
        &self,
        _user: UserId,
        _upstream: &str,
        _response_id: &str,
    ) -> Result<Option<ExchangeRow>, StoreError> {
        todo!()
    }

    /// Whether an exchange of this user at this upstream made this item.
    pub fn item_made_by(&self, _user: UserId, _upstream: &str, _item_id: &str) -> Result<bool, StoreError> {
        todo!()
    }
}

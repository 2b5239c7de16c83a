//! Usage rows summed by a group.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params_from_iter};

use super::super::columns::{Count, broken};
use super::super::{KeyId, Store, StoreError, rollups};
use super::{ExchangeFilter, conditions};
use crate::money::Usd;

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the groups")]
pub enum GroupBy {
    Day,
    User,
    Key,
    Model,
    Upstream,
    Session,
    Kind,
    Client,
}

/// One row of a usage report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageSum {
    /// The group's value: a date, a name, an id; empty in the total, and where there is none.
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
    /// Of the charge: given back, whenever that was.
    pub refunded: Usd,
}

/// What a usage row `u` of the user `o` is summed under.
pub(in crate::store) fn grouped(by: GroupBy) -> String {
    match by {
        GroupBy::Day => format!("u.started_at / {}", rollups::DAY_US),
        GroupBy::User => "o.name".to_owned(),
        GroupBy::Key => "u.key_id".to_owned(),
        GroupBy::Model => "u.model".to_owned(),
        GroupBy::Upstream => "u.upstream".to_owned(),
        GroupBy::Session => "COALESCE(u.session, '')".to_owned(),
        GroupBy::Kind => "COALESCE(u.kind, '')".to_owned(),
        GroupBy::Client => "COALESCE(substr(u.client, 1, instr(u.client || '/', '/') - 1), '')".to_owned(),
    }
}

/// The group of a row of a report.
fn group_of(row: &Row<'_>, by: GroupBy) -> rusqlite::Result<String> {
    match by {
        GroupBy::Day => day(row.get("grouped")?),
        GroupBy::Key => row.get::<_, KeyId>("grouped").map(|key| key.to_string()),
        GroupBy::User | GroupBy::Model | GroupBy::Upstream | GroupBy::Session | GroupBy::Kind | GroupBy::Client => {
            row.get("grouped")
        }
    }
}

/// One row of a report, without its refunds.
pub(in crate::store) fn sum(row: &Row<'_>, by: GroupBy) -> rusqlite::Result<UsageSum> {
    let count = |column: &str| row.get::<_, Count>(column).map(|count| count.0);
    Ok(UsageSum {
        group: group_of(row, by)?,
        exchanges: count("exchanges")?,
        input_tokens: count("input_tokens")?,
        cached_tokens: count("cached_tokens")?,
        output_tokens: count("output_tokens")?,
        cost: row.get("cost_nanos")?,
        charge: row.get("charged_nanos")?,
        uncollected: row.get("uncollected_nanos")?,
        refunded: Usd::ZERO,
    })
}

/// What was given back of exchanges that match, by group. Refunds are few, so that all of them are looked through.
pub(in crate::store) fn refunds(
    conn: &Connection,
    filter: &ExchangeFilter,
    by: GroupBy,
) -> rusqlite::Result<BTreeMap<String, Usd>> {
    let ((conditions, values), group) = (conditions(filter), grouped(by));
    let sql = format!(
        "SELECT {group} AS grouped, SUM(e.amount_nanos) AS refunded
         FROM ledger_entries e CROSS JOIN usage_logs u ON u.exchange_id = e.refunds JOIN users o ON o.id = u.user_id
         WHERE e.refunds IS NOT NULL AND {conditions} GROUP BY 1"
    );
    conn.prepare(&sql)?
        .query_map(params_from_iter(&values), |row| {
            Ok((group_of(row, by)?, row.get("refunded")?))
        })?
        .collect()
}

/// The date, UTC, of a number of days since 1970.
pub(in crate::store) fn day(days: i64) -> rusqlite::Result<String> {
    let midnight = days
        .checked_mul(rollups::DAY_US)
        .and_then(|micros| Timestamp::from_microsecond(micros).ok());
    let midnight = midnight.ok_or_else(|| broken("a date is out of range"))?;
    Ok(midnight.strftime("%Y-%m-%d").to_string())
}

/// The sum of all rows of a report.
fn total(rows: &[UsageSum]) -> UsageSum {
    rows.iter().fold(UsageSum::default(), |sum, row| UsageSum {
        group: String::new(),
        exchanges: sum.exchanges + row.exchanges,
        input_tokens: sum.input_tokens + row.input_tokens,
        cached_tokens: sum.cached_tokens + row.cached_tokens,
        output_tokens: sum.output_tokens + row.output_tokens,
        cost: sum.cost.saturating_add(row.cost),
        charge: sum.charge.saturating_add(row.charge),
        uncollected: sum.uncollected.saturating_add(row.uncollected),
        refunded: sum.refunded.saturating_add(row.refunded),
    })
}

impl Store {
    /// Usage summed by a group, in the group's order, and the total. A refund counts in the group of its exchange. The
    /// filter's limit does not matter.
    pub fn usage(&self, filter: &ExchangeFilter, by: GroupBy) -> Result<(Vec<UsageSum>, UsageSum), StoreError> {
        let rows: Vec<UsageSum> = self.read("summing usage", |conn| {
            let snapshot = conn.unchecked_transaction()?;
            let mut rows = rollups::usage(&snapshot, filter, by)?;
            let refunds = refunds(&snapshot, filter, by)?;
            for row in &mut rows {
                row.refunded = refunds.get(&row.group).copied().unwrap_or_default();
            }
            Ok(rows)
        })?;
        let total = total(&rows);
        Ok((rows, total))
    }
}

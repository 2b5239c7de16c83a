//! Which usage rows: by an id, by a filter, by what they made.

use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, params, params_from_iter};

use super::super::columns::{id_range, text};
use super::super::{ExchangeId, KeyId, Store, StoreError, UserId};
use super::{ExchangeRow, exchange};

/// Which exchanges.
#[derive(Clone, Debug, Default)]
pub struct ExchangeFilter {
    /// Of this user.
    pub user: Option<UserId>,
    /// With this key.
    pub key: Option<KeyId>,
    /// For this model (as asked).
    pub model: Option<String>,
    /// Of this session.
    pub session: Option<String>,
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

/// With the `+`, the user's index is not taken for it: that would read all that the user ever did.
pub(super) const RESPONSE_MADE_BY: &str =
    "SELECT * FROM usage_logs WHERE response_id = ?1 AND +user_id = ?2 AND upstream = ?3
     ORDER BY exchange_id DESC LIMIT 1";

/// The same of an item.
pub(super) const ITEM_MADE_BY: &str = "SELECT 1 FROM usage_items i JOIN usage_logs u ON u.exchange_id = i.exchange_id
     WHERE i.item_id = ?1 AND +u.user_id = ?2 AND u.upstream = ?3";

/// The conditions of a filter, as SQL on `usage_logs u` and its numbered parameters.
pub(in crate::store) fn conditions(filter: &ExchangeFilter) -> (String, Vec<ToSqlOutput<'_>>) {
    let time = |at: Timestamp| ValueRef::Integer(at.as_microsecond());
    let parts = [
        ("u.user_id =", filter.user.as_ref().map(UserId::value)),
        ("u.key_id =", filter.key.as_ref().map(KeyId::value)),
        ("u.model =", filter.model.as_deref().map(|model| text(Some(model)))),
        (
            "u.session =",
            filter.session.as_deref().map(|session| text(Some(session))),
        ),
        ("u.started_at >=", filter.since.map(time)),
        ("u.started_at <", filter.until.map(time)),
        ("u.exchange_id <", filter.before.as_ref().map(ExchangeId::value)),
        ("u.exchange_id >", filter.after.as_ref().map(ExchangeId::value)),
    ];
    let mut sql = String::from("TRUE");
    let mut values = Vec::new();
    for (condition, value) in parts {
        if let Some(value) = value {
            values.push(ToSqlOutput::Borrowed(value));
            sql.push_str(&format!(" AND {condition} ?{}", values.len()));
        }
    }
    (sql, values)
}

impl Store {
    /// An exchange by its id, a unique start of it, or the upstream's response id (the newest of several). `None` also
    /// for a start of several ids: [`Store::exchanges_starting`] tells which.
    pub fn find_exchange(&self, which: &str) -> Result<Option<ExchangeRow>, StoreError> {
        self.read("looking for an exchange", |conn| {
            if let Some((low, high)) = id_range(which) {
                let found: Vec<ExchangeRow> = conn
                    .prepare_cached("SELECT * FROM usage_logs WHERE exchange_id BETWEEN ?1 AND ?2 LIMIT 2")?
                    .query_map([low, high], exchange)?
                    .collect::<Result<_, _>>()?;
                if let Ok([only]) = <[ExchangeRow; 1]>::try_from(found) {
                    return Ok(Some(only));
                }
            }
            conn.prepare_cached("SELECT * FROM usage_logs WHERE response_id = ?1 ORDER BY exchange_id DESC LIMIT 1")?
                .query_row([which], exchange)
                .optional()
        })
    }

    /// The ids that begin so, at most so many, oldest first: why [`Store::find_exchange`] found none when a start of
    /// an id is not unique.
    pub fn exchanges_starting(&self, start: &str, limit: u32) -> Result<Vec<ExchangeId>, StoreError> {
        let Some((low, high)) = id_range(start) else {
            return Ok(Vec::new());
        };
        self.read("looking for exchanges", |conn| {
            conn.prepare_cached(
                "SELECT exchange_id FROM usage_logs WHERE exchange_id BETWEEN ?1 AND ?2 ORDER BY exchange_id LIMIT ?3",
            )?
            .query_map(params![low, high, limit], |row| row.get(0))?
            .collect()
        })
    }

    /// Exchanges that match.
    pub fn exchanges(&self, filter: &ExchangeFilter) -> Result<Vec<ExchangeRow>, StoreError> {
        let (conditions, values) = conditions(filter);
        let order = if filter.after.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT * FROM usage_logs u WHERE {conditions} ORDER BY u.exchange_id {order} LIMIT {}",
            filter.limit
        );
        self.read("reading exchanges", |conn| {
            conn.prepare(&sql)?
                .query_map(params_from_iter(&values), exchange)?
                .collect()
        })
    }

    /// The last exchange of this user at this upstream that made this response: its input + output tokens are what
    /// the upstream will read again.
    pub fn response_made_by(
        &self,
        user: UserId,
        upstream: &str,
        response_id: &str,
    ) -> Result<Option<ExchangeRow>, StoreError> {
        self.read("looking for the exchange of a response", |conn| {
            conn.prepare_cached(RESPONSE_MADE_BY)?
                .query_row(params![response_id, user, upstream], exchange)
                .optional()
        })
    }

    /// Whether an exchange of this user at this upstream made this item.
    pub fn item_made_by(&self, user: UserId, upstream: &str, item_id: &str) -> Result<bool, StoreError> {
        self.read("looking for the exchange of an item", |conn| {
            conn.prepare_cached(ITEM_MADE_BY)?
                .exists(params![item_id, user, upstream])
        })
    }

    /// Exchanges that match in the order they were written, each with its place in it: the last ones, or those behind a
    /// place. The filter's limit holds; of more than that the last, or those right behind the place.
    pub fn exchanges_written(
        &self,
        filter: &ExchangeFilter,
        behind: Option<i64>,
    ) -> Result<Vec<(i64, ExchangeRow)>, StoreError> {
        let (conditions, mut values) = conditions(filter);
        values.push(ToSqlOutput::from(behind.unwrap_or(0)));
        let order = if behind.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT *, u.rowid AS place FROM usage_logs u WHERE {conditions} AND u.rowid > ?{} ORDER BY u.rowid {order}
             LIMIT {}",
            values.len(),
            filter.limit
        );
        let mut rows: Vec<(i64, ExchangeRow)> = self.read("reading new exchanges", |conn| {
            conn.prepare_cached(&sql)?
                .query_map(params_from_iter(&values), |row| Ok((row.get("place")?, exchange(row)?)))?
                .collect()
        })?;
        rows.sort_by_key(|(place, _)| *place);
        Ok(rows)
    }
}

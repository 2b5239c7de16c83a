//! Prices by (list, model) and date; the catalogue is seeded here, the operator's rows win.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use super::audit::{self, Act};
use super::columns::{Micros, hex, in_column, to_the_microsecond, unreadable};
use super::digest::Digest;
use super::{Actor, Outcome, Store, StoreError};
use crate::pricing::{CatalogueRow, ListName, Price};

/// Who wrote a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// The binary's catalogue.
    Catalogue,
    /// `gateway price set` or `import`.
    Operator,
}

/// A price as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceRow {
    /// The list.
    pub list: ListName,
    /// The model, by its upstream's name.
    pub model: String,
    /// In force from.
    pub from: Timestamp,
    /// Who wrote it.
    pub source: PriceSource,
    /// The rates.
    pub price: Arc<Price>,
}

impl PriceSource {
    /// `catalogue`, `operator`.
    pub const fn word(self) -> &'static str {
        match self {
            PriceSource::Catalogue => "catalogue",
            PriceSource::Operator => "operator",
        }
    }
}

impl FromSql for PriceSource {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<PriceSource> {
        match value.as_str()? {
            "catalogue" => Ok(PriceSource::Catalogue),
            "operator" => Ok(PriceSource::Operator),
            _ => Err(unreadable("who wrote a price")),
        }
    }
}

fn price_row(row: &Row<'_>) -> rusqlite::Result<PriceRow> {
    let json: String = row.get("price")?;
    let price = Price::from_json(&json).map_err(|e| in_column(FromSqlError::Other(Box::new(e))))?;
    Ok(PriceRow {
        list: row.get("list")?,
        model: row.get("model")?,
        from: row.get::<_, Micros>("from_at")?.0,
        source: row.get("source")?,
        price: Arc::new(price),
    })
}

/// All rows of one model, best first: the operator's before the catalogue's, newer before older.
fn rows_of(conn: &Connection, list: &ListName, model: &str) -> rusqlite::Result<Vec<PriceRow>> {
    conn.prepare_cached(
        "SELECT list, model, from_at, source, price FROM model_pricing WHERE list = ?1 AND model = ?2
         ORDER BY source DESC, from_at DESC",
    )?
    .query_map([list.as_str(), model], price_row)?
    .collect()
}

/// The price from a date on, as far as it was written at a time; the operator's, where there are two.
pub(super) fn price_of(
    conn: &Connection,
    list: &ListName,
    model: &str,
    from: Timestamp,
    at: Timestamp,
) -> rusqlite::Result<Option<Price>> {
    let row = conn
        .prepare_cached(
            "SELECT list, model, from_at, source, price FROM model_pricing
             WHERE list = ?1 AND model = ?2 AND from_at = ?3 AND recorded_at <= ?4 ORDER BY source DESC LIMIT 1",
        )?
        .query_row(params![list.as_str(), model, Micros(from), Micros(at)], price_row)
        .optional()?;
    Ok(row.map(|row| Arc::unwrap_or_clone(row.price)))
}

/// The row in force at a time, of rows in the order of [`rows_of`].
fn in_force(rows: &[PriceRow], at: Timestamp) -> Option<&PriceRow> {
    rows.iter().find(|row| row.from <= at)
}

/// How the audit log names a row.
fn subject(list: &str, model: &str, from: Timestamp) -> String {
    format!("{list}/{model} from {}", to_the_microsecond(from))
}

fn set(tx: &Connection, (list, model, from, price): &NewPrice, by: &Actor, now: Timestamp) -> rusqlite::Result<()> {
    let before: Option<String> = tx
        .prepare_cached(
            "SELECT price FROM model_pricing WHERE list = ?1 AND model = ?2 AND from_at = ?3 AND source = ?4",
        )?
        .query_row(
            params![list.as_str(), model, Micros(*from), PriceSource::Operator.word()],
            |row| row.get(0),
        )
        .optional()?;
    let after = price.to_json();
    tx.prepare_cached(
        "INSERT INTO model_pricing (list, model, from_at, source, price, recorded_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (list, model, from_at, source)
         DO UPDATE SET price = excluded.price, recorded_at = excluded.recorded_at",
    )?
    .execute(params![
        list.as_str(),
        model,
        Micros(*from),
        PriceSource::Operator.word(),
        after,
        Micros(now)
    ])?;
    let subject = subject(list.as_str(), model, *from);
    audit::record(
        tx,
        &Act {
            by,
            at: now,
            action: "price.set",
            subject,
            before,
            after,
        },
    )
}

/// An operator's row: list, model, in force from, rates.
type NewPrice = (ListName, String, Timestamp, Price);

/// The name of the fact that tells which catalogue was written last.
const CATALOGUE: &str = "catalogue";

/// The name of the fact that tells what the catalogues' rows are, all together.
const CATALOGUE_ROWS: &str = "catalogue_rows";

/// Writes the catalogue's rows that are not there yet, in one transaction, unless this very catalogue was written
/// last. Rows that are there stay as they are: past bills never change.
pub(super) fn seed(conn: &mut Connection, rows: &[CatalogueRow]) -> rusqlite::Result<bool> {
    let fingerprint = fingerprint(rows);
    let written = |conn: &Connection| -> rusqlite::Result<bool> {
        conn.prepare("SELECT 1 FROM meta WHERE name = ?1 AND value = ?2")?
            .exists([CATALOGUE, &fingerprint])
    };
    if written(conn)? {
        return Ok(false);
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for row in rows {
        tx.prepare_cached(
            "INSERT INTO model_pricing (list, model, from_at, source, price, recorded_at)
             VALUES (?1, ?2, ?3, 'catalogue', ?4, ?3) ON CONFLICT DO NOTHING",
        )?
        .execute(params![row.list.as_str(), row.model, Micros(row.from), row.price])?;
    }
    let there = digest_of_rows(&tx)?;
    super::commits::count(&tx)?;
    for fact in [[CATALOGUE, &fingerprint], [CATALOGUE_ROWS, &there]] {
        tx.execute(
            "INSERT INTO meta (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            fact,
        )?;
    }
    tx.commit().map(|()| true)
}

/// The digest of all rows that catalogues wrote.
fn digest_of_rows(conn: &Connection) -> rusqlite::Result<String> {
    let mut digest = Digest::new("codex-gateway catalogue rows 1");
    let mut statement = conn.prepare(
        "SELECT list, model, from_at, price, recorded_at FROM model_pricing WHERE source = 'catalogue'
         ORDER BY list, model, from_at",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        digest.columns(row, 0, &["list", "model", "from_at", "price", "recorded_at"])?;
    }
    Ok(hex(&digest.finish()))
}

/// Whether the catalogues' rows are those that were written.
pub(super) fn catalogue_is_whole(conn: &Connection) -> rusqlite::Result<bool> {
    let there = digest_of_rows(conn)?;
    conn.prepare("SELECT 1 FROM meta WHERE name = ?1 AND value = ?2")?
        .exists([CATALOGUE_ROWS, &there])
}

/// The operators' rows that are not what the audit log says of them; also as their count when rows are missing.
pub(super) fn unlike_the_audit_log(conn: &Connection) -> rusqlite::Result<Vec<(String, &'static str)>> {
    let mut statement =
        conn.prepare("SELECT list, model, from_at, price FROM model_pricing WHERE source = 'operator'")?;
    let mut rows = statement.query([])?;
    let (mut wrong, mut count) = (Vec::new(), 0_i64);
    while let Some(row) = rows.next()? {
        count += 1;
        let (list, model): (String, String) = (row.get("list")?, row.get("model")?);
        let subject = subject(&list, &model, row.get::<_, Micros>("from_at")?.0);
        if audit::last_state(conn, "price.", &subject)?.as_deref() != Some(&row.get::<_, String>("price")?) {
            wrong.push((subject, "is not what the audit log says of it"));
        }
    }
    let written: i64 = conn.query_row(
        "SELECT COUNT(DISTINCT subject) FROM audit_log WHERE action = 'price.set'",
        [],
        |row| row.get(0),
    )?;
    if written != count {
        wrong.push((format!("{count} of {written}"), "of the operators' prices are there"));
    }
    Ok(wrong)
}

fn fingerprint(rows: &[CatalogueRow]) -> String {
    let mut digest = Digest::new("codex-gateway catalogue 1");
    for row in rows {
        digest.field("list", ValueRef::Text(row.list.as_str().as_bytes()));
        digest.field("model", ValueRef::Text(row.model.as_bytes()));
        digest.field("from_at", ValueRef::Integer(row.from.as_microsecond()));
        digest.field("price", ValueRef::Text(row.price.as_bytes()));
    }
    hex(&digest.finish())
}

impl Store {
    /// [`Store::price`], answered at once when it is kept in memory, else read off the async threads.
    pub async fn look_up_price(
        &self,
        list: &ListName,
        model: &str,
        at: Timestamp,
    ) -> Result<Option<PriceRow>, StoreError> {
        if let Some(rows) = self.caches().known_prices(list, model) {
            return Ok(in_force(&rows, at).cloned());
        }
        let (list, model) = (list.clone(), model.to_owned());
        self.blocking(move |store| store.price(&list, &model, at)).await
    }

    /// The price in force at a time: the operator's newest row that is not after `at`, else the catalogue's.
    /// From the cache when nothing changed since.
    pub fn price(&self, list: &ListName, model: &str, at: Timestamp) -> Result<Option<PriceRow>, StoreError> {
        let rows = self.caches().prices(list, model, || {
            self.read("looking up a price", |conn| rows_of(conn, list, model))
        })?;
        Ok(in_force(&rows, at).cloned())
    }

    /// The prices in force at a time, of one list or all, of one model or all, by list and model.
    pub fn prices(
        &self,
        list: Option<&ListName>,
        model: Option<&str>,
        at: Timestamp,
    ) -> Result<Vec<PriceRow>, StoreError> {
        let mut rows: Vec<PriceRow> = self.read("reading the prices", |conn| {
            conn.prepare_cached(
                "SELECT list, model, from_at, source, price FROM model_pricing
                 WHERE (?1 IS NULL OR list = ?1) AND (?2 IS NULL OR model = ?2) AND from_at <= ?3
                 ORDER BY list, model, source DESC, from_at DESC",
            )?
            .query_map(params![list.map(ListName::as_str), model, Micros(at)], price_row)?
            .collect()
        })?;
        rows.dedup_by(|next, best| (&next.list, &next.model) == (&best.list, &best.model));
        Ok(rows)
    }

    /// All that operators wrote, past and to come, of one list or all, by list, model and date.
    pub fn operator_prices(&self, list: Option<&ListName>) -> Result<Vec<PriceRow>, StoreError> {
        self.read("reading the operator's prices", |conn| {
            conn.prepare_cached(
                "SELECT list, model, from_at, source, price FROM model_pricing
                 WHERE (?1 IS NULL OR list = ?1) AND source = 'operator' ORDER BY list, model, from_at",
            )?
            .query_map([list.map(ListName::as_str)], price_row)?
            .collect()
        })
    }

    /// Writes operator rows, all or none, with their audit rows. A row of the same list, model and date is replaced.
    pub fn set_prices(&self, rows: &[NewPrice], by: &Actor, now: Timestamp) -> Outcome<(), ()> {
        self.write("setting prices", |tx| {
            rows.iter().try_for_each(|row| set(tx, row, by, now))?;
            Ok(Ok(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::pricing;

    fn list() -> ListName {
        ListName::parse("vendor").expect("a name")
    }

    fn price(input: &str) -> Price {
        Price::from_json(&format!(
            r#"{{"kind":"text","rates":{{"input":"{input}","output":"1"}}}}"#
        ))
        .expect("a price")
    }

    fn row(model: &str, from: i64, input: &str) -> CatalogueRow {
        CatalogueRow {
            list: list(),
            model: model.to_owned(),
            from: at(from),
            price: price(input).to_json(),
        }
    }

    fn seeded(desk: &Desk, rows: &[CatalogueRow]) {
        let mut conn = desk.raw();
        seed(&mut conn, rows).expect("seeded");
    }

    fn input(desk: &Desk, when: i64) -> Option<(Price, PriceSource)> {
        let row = desk.store.price(&list(), "m", at(when)).expect("it reads");
        row.map(|row| (Price::clone(&row.price), row.source))
    }

    #[test]
    fn the_operators_rows_win_and_the_newest_that_has_begun_is_in_force() {
        let desk = Desk::new();
        seeded(&desk, &[row("m", 0, "1"), row("m", 100, "2")]);
        assert_eq!(input(&desk, -1), None);
        assert_eq!(input(&desk, 0), Some((price("1"), PriceSource::Catalogue)));
        assert_eq!(input(&desk, 100), Some((price("2"), PriceSource::Catalogue)));
        let rows = [
            (list(), "m".to_owned(), at(50), price("9")),
            (list(), "m".to_owned(), at(60), price("8")),
        ];
        done(desk.store.set_prices(&rows, &by(), at(40)));
        assert_eq!(input(&desk, 49), Some((price("1"), PriceSource::Catalogue)));
        assert_eq!(input(&desk, 50), Some((price("9"), PriceSource::Operator)));
        assert_eq!(input(&desk, 200), Some((price("8"), PriceSource::Operator)));
        let all = desk.store.prices(Some(&list()), None, at(200)).expect("read");
        assert_eq!(
            all.iter().map(|row| (row.model.as_str(), row.from)).collect::<Vec<_>>(),
            [("m", at(60))]
        );
    }

    #[test]
    fn a_newer_catalogue_adds_rows_and_changes_none() {
        let desk = Desk::new();
        seeded(&desk, &[row("m", 0, "1")]);
        seeded(&desk, &[row("m", 0, "7"), row("m", 10, "2"), row("n", 0, "3")]);
        assert_eq!(input(&desk, 5), Some((price("1"), PriceSource::Catalogue)));
        assert_eq!(input(&desk, 10), Some((price("2"), PriceSource::Catalogue)));
        let models = desk.store.prices(Some(&list()), None, at(20)).expect("read");
        assert_eq!(
            models.iter().map(|row| row.model.as_str()).collect::<Vec<_>>(),
            ["m", "n"]
        );
    }

    #[test]
    fn a_new_database_has_the_whole_catalogue_and_every_row_parses() {
        let desk = Desk::new();
        let (_, rows) = pricing::catalogue().expect("it parses");
        let now = "2100-01-01T00:00:00Z".parse().expect("a time");
        let there = desk.store.prices(None, None, now).expect("every row parses");
        let models: std::collections::BTreeSet<_> = rows.iter().map(|row| (&row.list, row.model.as_str())).collect();
        assert_eq!(there.len(), models.len());
    }
}

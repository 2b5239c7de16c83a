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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// A price as it was written once. One that an operator wrote anew for the same date is there as often as it was
/// written.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceVersion {
    /// What was written.
    pub row: PriceRow,
    /// When. Databases from before that was kept have, for the catalogue's, the date from which it counts.
    pub recorded: Timestamp,
    /// By whom; `None`: it came with the binary.
    pub by: Option<String>,
    /// From when and until when calls were priced by it, what is to come included; `None`: never.
    pub in_force: Option<InForce>,
}

/// The time in which a price is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InForce {
    /// From.
    pub from: Timestamp,
    /// Until; `None`: without end, as far as is known.
    pub until: Option<Timestamp>,
}

impl PriceVersion {
    /// When calls could first be priced by it.
    fn start(&self) -> Timestamp {
        self.row.from.max(self.recorded)
    }

    /// Of two that have started, the greater is in force.
    fn rank(&self) -> (PriceSource, Timestamp, Timestamp) {
        (self.row.source, self.row.from, self.recorded)
    }
}

/// Says of the versions of one price, oldest first, when each is in force: from its start until one that ranks higher
/// starts. Nothing that has started goes away, so none comes back.
fn tell_when_in_force(versions: &mut [PriceVersion]) {
    let known: Vec<_> = versions.iter().map(|one| (one.rank(), one.start())).collect();
    for (at, version) in versions.iter_mut().enumerate() {
        let (rank, from) = known[at];
        let higher = known
            .iter()
            .enumerate()
            .filter(|(other, (r, _))| (r, *other) > (&rank, at));
        let until = higher.map(|(_, (_, start))| *start).min();
        version.in_force = (until.is_none_or(|until| until > from)).then_some(InForce { from, until });
    }
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

/// The price from a date on, as far as it was written at a time; the operator's, where there are two. The catalogue's
/// never changes, so it does not matter when it was written.
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
             WHERE list = ?1 AND model = ?2 AND from_at = ?3 AND (recorded_at <= ?4 OR source = 'catalogue')
             ORDER BY source DESC LIMIT 1",
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

/// A row of the audit log that wrote a price, read back; `None`: it is of another list or model.
fn audited(row: &Row<'_>, of: Option<&ListName>, model: &str) -> rusqlite::Result<Option<PriceVersion>> {
    let subject: String = row.get("subject")?;
    let unlike = || in_column(unreadable("a price that was set"));
    let (list, rest) = subject.split_once('/').ok_or_else(unlike)?;
    let (named, from) = rest.rsplit_once(" from ").ok_or_else(unlike)?;
    if named != model || of.is_some_and(|of| of.as_str() != list) {
        return Ok(None);
    }
    let price = Price::from_json(&row.get::<_, String>("after")?);
    Ok(Some(PriceVersion {
        row: PriceRow {
            list: ListName::parse(list).map_err(|_| unlike())?,
            model: named.to_owned(),
            from: from.parse().map_err(|_| unlike())?,
            source: PriceSource::Operator,
            price: Arc::new(price.map_err(|error| in_column(FromSqlError::Other(Box::new(error))))?),
        },
        recorded: row.get::<_, Micros>("at")?.0,
        by: Some(row.get("actor")?),
        in_force: None,
    }))
}

fn set(tx: &Connection, (list, model, from, price): &NewPrice, by: &Actor, now: Timestamp) -> rusqlite::Result<()> {
    // What calls of that time would be priced by without it: another row of the date, an earlier one, the catalogue's.
    let before: Option<String> = tx
        .prepare_cached(
            "SELECT price FROM model_pricing WHERE list = ?1 AND model = ?2 AND from_at <= ?3
             ORDER BY source DESC, from_at DESC LIMIT 1",
        )?
        .query_row(params![list.as_str(), model, Micros(*from)], |row| row.get(0))
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
pub(super) fn seed(conn: &mut Connection, rows: &[CatalogueRow], now: Timestamp) -> rusqlite::Result<bool> {
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
             VALUES (?1, ?2, ?3, 'catalogue', ?4, ?5) ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            row.list.as_str(),
            row.model,
            Micros(row.from),
            row.price,
            Micros(now)
        ])?;
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

    /// The catalogue's price at a time, whether or not an operator's is in force in its place.
    pub fn catalogue_price(&self, list: &ListName, model: &str, at: Timestamp) -> Result<Option<PriceRow>, StoreError> {
        let rows = self.read("looking up a price", |conn| rows_of(conn, list, model))?;
        let theirs = rows.into_iter().filter(|row| row.source == PriceSource::Catalogue);
        Ok(in_force(&theirs.collect::<Vec<_>>(), at).cloned())
    }

    /// Every price of a model that was ever written, of one list or all: by list, and then in the order in which they
    /// count from. The operator's are read from the audit log, because a row that is set again for the same date
    /// replaces the one there was.
    pub fn price_history(&self, list: Option<&ListName>, model: &str) -> Result<Vec<PriceVersion>, StoreError> {
        let mut versions = self.read("reading the history of a price", |conn| {
            let mut versions: Vec<PriceVersion> = conn
                .prepare_cached(
                    "SELECT list, model, from_at, source, price, recorded_at FROM model_pricing
                     WHERE (?1 IS NULL OR list = ?1) AND model = ?2 AND source = 'catalogue'",
                )?
                .query_map(params![list.map(ListName::as_str), model], |row| {
                    Ok(PriceVersion {
                        row: price_row(row)?,
                        recorded: row.get::<_, Micros>("recorded_at")?.0,
                        by: None,
                        in_force: None,
                    })
                })?
                .collect::<Result<_, _>>()?;
            let mut set = conn.prepare_cached(
                "SELECT at, actor, subject, after FROM audit_log
                 WHERE action = 'price.set' AND instr(subject, '/' || ?1 || ' from ') > 0 ORDER BY seq",
            )?;
            let mut rows = set.query([model])?;
            while let Some(row) = rows.next()? {
                versions.extend(audited(row, list, model)?);
            }
            Ok(versions)
        })?;
        // Stable: what was written at the same time stays in the order of the audit log.
        versions.sort_by(|a, b| (&a.row.list, a.row.from, a.recorded).cmp(&(&b.row.list, b.row.from, b.recorded)));
        for of_list in versions.chunk_by_mut(|a, b| a.row.list == b.row.list) {
            tell_when_in_force(of_list);
        }
        Ok(versions)
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
    use super::super::audit::ActFilter;
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
        seed(&mut conn, rows, at(0)).expect("seeded");
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
    fn the_audit_log_says_what_a_price_took_the_place_of() {
        let desk = Desk::new();
        let acts = |(model, from, input): (&str, i64, &str)| {
            let row = (list(), model.to_owned(), at(from), price(input));
            done(desk.store.set_prices(&[row], &by(), at(40)));
            let filter = ActFilter {
                action: Some("price.set".to_owned()),
                ..ActFilter::default()
            };
            let acts = desk.store.acts(&filter, None, 1).expect("read");
            acts[0]
                .before
                .as_ref()
                .map(|json| Price::from_json(&json.to_string()).expect("a price"))
        };
        seeded(&desk, &[row("m", 0, "1"), row("m", 100, "2")]);
        assert_eq!(acts(("new", 50, "3")), None);
        assert_eq!(acts(("m", -1, "3")), None, "nothing was in force");
        assert_eq!(acts(("m", 50, "9")), Some(price("3")), "its own, from earlier on");
        assert_eq!(acts(("m", 50, "8")), Some(price("9")), "of the same date");
        assert_eq!(
            acts(("m", 200, "7")),
            Some(price("8")),
            "not the catalogue's, which was not in force"
        );
        seeded(&desk, &[row("n", 0, "1"), row("n", 100, "2")]);
        assert_eq!(acts(("n", 150, "5")), Some(price("2")), "the catalogue's");
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
    fn what_was_released_of_the_catalogue_stays_to_the_letter() {
        // The fact that the last binary of version 1 wrote (tests/data/rows-1.sql); databases have these rows, and keep them.
        let written = "cfb95514d770fededc952ebaad45a7ec2d90e69fd7a6b81d01da646966060c0a";
        let (_, mut rows) = pricing::catalogue().expect("it parses");
        let released = "2026-11-23T00:00:00Z".parse().expect("a time");
        rows.retain(|row| row.from <= released);
        assert_eq!((rows.len(), fingerprint(&rows).as_str()), (398, written));
    }

    #[test]
    fn the_history_says_which_price_was_in_force_when() {
        let desk = Desk::new();
        seed(&mut desk.raw(), &[row("m", 0, "1"), row("m", 100, "2")], at(0)).expect("seeded");
        let set = |from, input, now| {
            done(
                desk.store
                    .set_prices(&[(list(), "m".to_owned(), at(from), price(input))], &by(), at(now)),
            );
        };
        set(50, "9", 40);
        set(30, "8", 60);
        set(50, "7", 80);
        set(500, "6", 80);
        set(40, "5", 60);
        let told = |version: &PriceVersion| {
            let input = version.row.price.rates[&crate::pricing::Class::Input].to_string();
            (input, version.in_force.map(|time| (time.from, time.until)))
        };
        let history = desk.store.price_history(Some(&list()), "m").expect("read");
        let told: Vec<_> = history.iter().map(told).collect();
        assert_eq!(
            told,
            [
                ("1", Some((at(0), Some(at(50))))),
                ("8", None),
                ("5", None),
                ("9", Some((at(50), Some(at(80))))),
                ("7", Some((at(80), Some(at(500))))),
                ("2", None),
                ("6", Some((at(500), None))),
            ]
            .map(|(input, time)| (input.to_owned(), time))
        );
        for (when, input) in [(49, "1"), (50, "9"), (79, "9"), (80, "7"), (499, "7"), (500, "6")] {
            let holds = |version: &&PriceVersion| {
                version
                    .in_force
                    .is_some_and(|time| time.from <= at(when) && time.until.is_none_or(|until| at(when) < until))
            };
            let found: Vec<_> = history.iter().filter(holds).collect();
            assert_eq!(found.len(), 1, "one price at a time");
            assert_eq!(*found[0].row.price, price(input));
        }
        let other = ListName::parse("other").expect("a name");
        assert_eq!(desk.store.price_history(Some(&other), "m").expect("read"), []);
    }

    #[test]
    fn a_row_of_the_catalogue_says_when_it_was_written() {
        let desk = Desk::new();
        seed(&mut desk.raw(), &[row("m", 0, "1")], at(70)).expect("seeded");
        seed(&mut desk.raw(), &[row("m", 0, "1"), row("m", 10, "2")], at(80)).expect("seeded");
        let history = desk.store.price_history(None, "m").expect("read");
        let written: Vec<_> = history
            .iter()
            .map(|version| (version.row.from, version.recorded))
            .collect();
        assert_eq!(written, [(at(0), at(70)), (at(10), at(80))]);
        let named = price_of(&desk.raw(), &list(), "m", at(0), at(5)).expect("read");
        assert_eq!(named, Some(price("1")), "receipts of before name it all the same");
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

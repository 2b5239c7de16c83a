//! Background responses that run at their upstreams, each with its open hold.
//!
//! A row is all that the bill and the usage row of its exchange are made of, as it was when the call was admitted; nothing
//! of what was asked is in it. It is written before the client is told the response's id, and from then on the hold is
//! closed by what the upstream says in the end, whatever becomes of the client, its connection or this process:
//!
//! | the hold is | and there is a row | so |
//! |---|---|---|
//! | open | no | its exchange runs, or is interrupted: the next start and the sweep release it |
//! | open | yes | its response runs: the next start goes on asking for it, and nobody releases it |
//! | closed | no | the ledger deletes the row in the transaction that closes the hold |
//!
//! There is no fourth line: the schema refuses a row without an open hold, and to delete one whose hold is open.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::attempts::Attempt;
use super::columns::{Json, Micros, Span, json, micros, tokens, unreadable};
use super::ledger::{self, Hold};
use super::usage_log::ExchangeRow;
use super::{ExchangeId, Store, StoreError, UserId};
use crate::pricing::{Price, Priced};
use crate::usage::{CacheTtl, Tier, Tokens};

/// What is kept of a background response until its end is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Background {
    /// The usage row, as far as it is known: nothing is used, nothing charged.
    pub draft: ExchangeRow,
    /// The upstream's id of the response.
    pub response: String,
    /// What it is billed by.
    pub priced: Priced,
    /// The tier that was asked for.
    pub tier: Tier,
    /// How long what it writes to the prompt cache is to live.
    pub cache_ttl: CacheTtl,
    /// What the model reads, as it was counted: for an estimate.
    pub input: Tokens,
    /// Where it was sent, when that was more than once; else none.
    pub attempts: Vec<Attempt>,
    /// When its end is waited for no longer.
    pub deadline: Timestamp,
}

/// A response of a user's that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// The upstream that keeps it.
    pub upstream: String,
    /// Its exchange, if it is a background response that is not settled.
    pub unsettled: Option<ExchangeId>,
}

/// Background responses of a process that is gone.
#[derive(Debug, Default)]
pub struct Left {
    /// With their holds.
    pub responses: Vec<(Background, Hold)>,
    /// Rows that cannot be read, each with why. They stay, and their holds stay open.
    pub unreadable: Vec<(ExchangeId, String)>,
}

/// A price as it is written.
struct Written(Price);

impl FromSql for Written {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Written> {
        Price::from_json(value.as_str()?)
            .map(Written)
            .map_err(|_| unreadable("a price"))
    }
}

const INSERT: &str = "INSERT INTO background_responses
        (exchange_id, user_id, response_id, upstream, deadline_at, tier, cache_ttl, price, price_from, image_price, search,
         region, markup, input_tokens, upstream_request_id, upstream_status, attempts, first_byte_us, tries)
     VALUES (:exchange, :user, :response, :upstream, :deadline, :tier, :cache_ttl, :price, :price_from, :image_price, :search,
         :region, :markup, :input, :request, :status, :attempts, :first_byte, :tries)";

/// Writes one down, whose hold has to be open; part of a transaction. Doing it twice changes nothing.
pub(super) fn begin(tx: &Connection, background: &Background) -> rusqlite::Result<()> {
    let Background { draft, priced, .. } = background;
    if is_there(tx, draft.id)? {
        return Ok(());
    }
    let image_price = priced.image_price.as_deref().map(json).transpose()?;
    tx.prepare_cached(INSERT)?
        .execute(named_params! {
            ":exchange": draft.id,
            ":user": draft.user,
            ":response": background.response,
            ":upstream": draft.upstream,
            ":deadline": Micros(background.deadline),
            ":tier": background.tier,
            ":cache_ttl": background.cache_ttl,
            ":price": json(&*priced.price)?,
            ":price_from": priced.from.map(Micros),
            ":image_price": image_price,
            ":search": priced.search,
            ":region": priced.region,
            ":markup": priced.markup,
            ":input": ToSqlOutput::Borrowed(tokens(background.input)),
            ":request": draft.upstream_request_id,
            ":status": draft.upstream_status,
            ":attempts": draft.attempts,
            ":first_byte": draft.first_byte.map(|span| ToSqlOutput::Borrowed(micros(span))),
            ":tries": json(&background.attempts)?,
        })
        .map(drop)
}

/// Whether an exchange is a background response that is not settled.
pub(super) fn is_there(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<bool> {
    tx.prepare_cached("SELECT 1 FROM background_responses WHERE exchange_id = ?1")?
        .exists([exchange])
}

/// Deletes one; part of the closing of its hold.
pub(super) fn end(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<()> {
    tx.prepare_cached("DELETE FROM background_responses WHERE exchange_id = ?1")?
        .execute([exchange])
        .map(drop)
}

/// Where the user's background response of this id runs, if it is not settled.
pub(super) fn find(conn: &Connection, user: UserId, response: &str) -> rusqlite::Result<Option<Whereabouts>> {
    conn.prepare_cached(
        "SELECT upstream, exchange_id FROM background_responses WHERE response_id = ?1 AND user_id = ?2
         ORDER BY exchange_id DESC LIMIT 1",
    )?
    .query_row((response, user), |row| {
        Ok(Whereabouts {
            upstream: row.get(0)?,
            unsettled: Some(row.get(1)?),
        })
    })
    .optional()
}

/// Rows that must not be: each stands for an open hold of its user's.
pub(super) const UNFOUNDED: &str =
    "SELECT b.exchange_id FROM background_responses b LEFT JOIN holds h USING (exchange_id)
     WHERE h.state IS NOT 'open' OR h.user_id IS NOT b.user_id";

/// Each with what its hold says.
const ALL: &str = "SELECT h.exchange_id, h.user_id, h.key_id, h.endpoint, h.streamed, h.model, h.priced_model, h.list,
            h.amount_nanos, h.output_limit, h.placed_at, h.origin, b.upstream, b.response_id, b.deadline_at, b.tier, b.cache_ttl,
            b.price, b.price_from, b.image_price, b.search, b.region, b.markup, b.input_tokens, b.upstream_request_id,
            b.upstream_status, b.attempts, b.first_byte_us, b.tries
     FROM background_responses b JOIN holds h USING (exchange_id) ORDER BY b.exchange_id";

/// Reads a row of [`ALL`].
fn read(row: &Row<'_>) -> rusqlite::Result<(Background, Hold)> {
    let unfinished = ledger::unfinished(row)?;
    let price: Written = row.get("price")?;
    let image_price: Option<Written> = row.get("image_price")?;
    let priced = Priced {
        list: unfinished.list.clone(),
        from: row.get::<_, Option<Micros>>("price_from")?.map(|at| at.0),
        price: Arc::new(price.0),
        image_price: image_price.map(|price| Arc::new(price.0)),
        search: row.get("search")?,
        region: row.get("region")?,
        markup: row.get("markup")?,
        at: unfinished.started_at,
    };
    let draft = ExchangeRow {
        price_from: priced.from,
        markup: priced.markup.to_string(),
        upstream_request_id: row.get("upstream_request_id")?,
        upstream_status: row.get("upstream_status")?,
        attempts: row.get("attempts")?,
        first_byte: row.get::<_, Option<Span>>("first_byte_us")?.map(|span| span.0),
        ..unfinished
    };
    let hold = Hold {
        exchange: draft.id,
        user: draft.user,
        amount: draft.held,
        output_limit: draft.output_limit,
    };
    let background = Background {
        response: row.get("response_id")?,
        tier: row.get("tier")?,
        cache_ttl: row.get("cache_ttl")?,
        input: row.get("input_tokens")?,
        attempts: row.get::<_, Json<Vec<Attempt>>>("tries")?.0,
        deadline: row.get::<_, Micros>("deadline_at")?.0,
        draft,
        priced,
    };
    Ok((background, hold))
}

impl Store {
    /// At start: the background responses that are not settled, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn background_responses(&self) -> Result<Left, StoreError> {
        self.read("reading background responses", |conn| {
            let mut left = Left::default();
            let mut statement = conn.prepare(ALL)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                match read(row) {
                    Ok(response) => left.responses.push(response),
                    Err(error) => left.unreadable.push((row.get("exchange_id")?, error.to_string())),
                }
            }
            Ok(left)
        })
    }

    /// Whether an exchange is a background response that is not settled.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn runs_in_background(&self, exchange: ExchangeId) -> Result<bool, StoreError> {
        self.read("looking for a background response", |conn| is_there(conn, exchange))
    }

    /// How many background responses are not settled.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn background_responses_in_all(&self) -> Result<u32, StoreError> {
        self.read("counting background responses", |conn| {
            conn.prepare_cached("SELECT COUNT(*) FROM background_responses")?
                .query_row([], |row| row.get(0))
        })
    }

    /// How many background responses of the user's are not settled.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn background_responses_of(&self, user: UserId) -> Result<u32, StoreError> {
        self.read("counting background responses", |conn| {
            conn.prepare_cached("SELECT COUNT(*) FROM background_responses WHERE user_id = ?1")?
                .query_row([user], |row| row.get(0))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::params;

    use super::super::attempts::Outcome as Became;
    use super::super::keys::Key;
    use super::super::ledger::Swept;
    use super::super::prepared::Prepared;
    use super::super::testing::*;
    use super::*;
    use crate::endpoints::Kind;
    use crate::money::Usd;
    use crate::pricing::{Factor, ListName, SearchTool};

    /// A background response of a key, whose hold is open.
    fn run(desk: &Desk, key: &Key) -> (Background, Hold) {
        let id = exchange();
        let hold = done(desk.place(&ask(id, key, "2")));
        let price = r#"{"kind":"text","rates":{"input":"2","output":"10"},"regional_uplift":"1.1"}"#;
        let price = Arc::new(Price::from_json(price).expect("a price"));
        let priced = Priced {
            list: Some(ListName::openai()),
            from: Some(at(0)),
            price: Arc::clone(&price),
            image_price: Some(price),
            search: SearchTool::Preview,
            region: Some("eu".to_owned()),
            markup: Factor::parse("1.25").expect("a factor"),
            at: at(10),
        };
        let attempt = |outcome, status| Attempt {
            upstream: "openai".to_owned(),
            outcome,
            status,
            began: Duration::from_millis(1),
            took: Duration::from_micros(1_234),
        };
        let draft = ExchangeRow {
            streamed: true,
            model: "gpt".to_owned(),
            priced_model: "gpt-5".to_owned(),
            list: priced.list.clone(),
            price_from: priced.from,
            markup: "1.25".to_owned(),
            held: hold.amount,
            output_limit: hold.output_limit,
            started_at: at(10),
            upstream: "other".to_owned(),
            upstream_request_id: Some("req_1".to_owned()),
            upstream_status: Some(200),
            attempts: 2,
            first_byte: Some(Duration::from_millis(40)),
            ..blank(desk, id)
        };
        let background = Background {
            draft,
            response: "resp_1".to_owned(),
            priced,
            tier: Tier::Flex,
            cache_ttl: CacheTtl::Hours12,
            input: Tokens::saturating(77),
            attempts: vec![
                attempt(Became::Refused, Some(429)),
                attempt(Became::Answered, Some(200)),
            ],
            deadline: at(10) + Duration::from_secs(86_400),
        };
        write(desk, &background);
        (background, hold)
    }

    /// The usage row as the hold alone tells it.
    fn blank(desk: &Desk, id: ExchangeId) -> ExchangeRow {
        let raw = desk.raw();
        let sql = "SELECT * FROM holds WHERE exchange_id = ?1";
        raw.query_row(sql, [id], ledger::unfinished).expect("a hold")
    }

    fn write(desk: &Desk, background: &Background) {
        done(
            desk.store
                .write::<_, ()>("beginning", |tx| begin(tx, background).map(Ok)),
        );
    }

    #[test]
    fn what_a_process_left_comes_back_as_it_was_written() {
        let desk = Desk::new();
        let ada = desk.user("ada", "9");
        let key = desk.key(&ada);
        let written = run(&desk, &key);
        write(&desk, &written.0);
        // Of two with one id, the newer is meant.
        let newer = run(&desk, &key);
        let found = desk.store.where_is(ada.id, Kind::Response, "resp_1").expect("it reads");
        assert_eq!(found.and_then(|found| found.unsettled), Some(newer.0.draft.id));
        let left = desk.store.background_responses().expect("it reads");
        assert_eq!((left.responses, left.unreadable), (vec![written, newer], Vec::new()));
        let bob = desk.user("bob", "9");
        let of = |user| desk.store.background_responses_of(user).expect("it reads");
        assert_eq!((of(ada.id), of(bob.id)), (2, 0));
        assert_eq!(desk.store.background_responses_in_all().expect("it reads"), 2);
        desk.assert_books_balance();
    }

    #[test]
    fn one_that_cannot_be_read_keeps_no_other_from_it() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "9"));
        let (bad, good) = (run(&desk, &key), run(&desk, &key));
        let raw = desk.raw();
        raw.execute_batch("DROP TRIGGER background_responses_are_final")
            .expect("dropped");
        let sql = "UPDATE background_responses SET price = '{}' WHERE exchange_id = ?1";
        raw.execute(sql, [bad.0.draft.id]).expect("altered");
        let left = desk.store.background_responses().expect("it reads");
        assert_eq!(left.responses, [good]);
        let unreadable: Vec<_> = left.unreadable.iter().map(|(id, _)| *id).collect();
        assert_eq!(unreadable, [bad.0.draft.id]);
    }

    #[test]
    fn nobody_releases_its_hold_and_its_settlement_ends_it() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "9"), desk.user("bob", "9"));
        let key = desk.key(&ada);
        let (background, _) = run(&desk, &key);
        let id = background.draft.id;
        assert_eq!(done(desk.store.release_interrupted(at(70))), Swept::default());
        let swept = desk.store.write::<_, ()>("sweeping", |tx| {
            ledger::sweep(&Prepared::of(tx), &[id], at(90_000)).map(Ok)
        });
        assert_eq!(done(swept), Swept::default());
        assert_eq!(desk.now(&ada).held, usd("2"));
        let found = |user| desk.store.where_is(user, Kind::Response, "resp_1").expect("it reads");
        let runs = Whereabouts {
            upstream: "other".to_owned(),
            unsettled: Some(id),
        };
        assert_eq!((found(ada.id), found(bob.id)), (Some(runs), None));

        let mut close = closing(id, &key, "1");
        close.row.response_id = Some("resp_1".to_owned());
        assert_eq!(desk.close(id, &close).charged, usd("1"));
        assert_eq!(desk.close(id, &close).charged, usd("1"), "once");
        assert_eq!(found(ada.id).map(|found| found.unsettled), Some(None));
        assert!(!desk.store.runs_in_background(id).expect("it reads"));
        assert_eq!((desk.now(&ada).balance, desk.now(&ada).held), (usd("8"), Usd::ZERO));
        desk.assert_books_balance();
    }

    #[test]
    fn the_schema_alone_keeps_a_row_for_an_open_hold_and_no_other() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "9"), desk.user("bob", "9"));
        let key = desk.key(&ada);
        let (open, _) = run(&desk, &key);
        let raw = desk.raw();
        let refused = |sql: &str| {
            let error = raw.execute(sql, params![open.draft.id]).expect_err(sql);
            assert!(error.to_string().contains("a background response"), "{error}");
        };
        refused("DELETE FROM background_responses WHERE exchange_id = ?1");
        refused("UPDATE background_responses SET markup = '0' WHERE exchange_id = ?1");
        let mut strangers = open.clone();
        strangers.draft.user = bob.id;
        strangers.draft.id = exchange();
        desk.set_aside(&ask(strangers.draft.id, &key, "1"));
        begin(&raw, &strangers).expect_err("another user's hold");
        let mut late = open;
        late.draft.id = exchange();
        desk.set_aside(&ask(late.draft.id, &key, "1"));
        desk.close(late.draft.id, &closing(late.draft.id, &key, "1"));
        begin(&raw, &late).expect_err("its hold is closed");
    }

    #[test]
    fn a_row_without_its_hold_and_one_that_is_overdue_are_found() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "9"));
        let (background, _) = run(&desk, &key);
        let problems = || {
            let findings = desk.store.verify().expect("it verifies").findings;
            let problem = |finding: super::super::verify::Finding| (finding.table, finding.row);
            findings.into_iter().map(problem).collect::<Vec<_>>()
        };
        // What ended last, ended before the deadline and a little.
        let late = exchange();
        desk.set_aside(&ask(late, &key, "1"));
        let mut close = closing(late, &key, "1");
        close.row.duration = Duration::from_secs(86_400 + 3_600);
        desk.close(late, &close);
        assert_eq!(problems(), []);
        let latest = exchange();
        desk.set_aside(&ask(latest, &key, "1"));
        close.row.duration = Duration::from_secs(86_400) + ledger::LONGEST_HOLD + Duration::from_secs(1);
        desk.close(latest, &close);
        let id = background.draft.id.to_string();
        assert_eq!(problems(), [("holds", id.clone())]);

        desk.close(background.draft.id, &closing(background.draft.id, &key, "1"));
        assert_eq!(problems(), []);
        let raw = desk.raw();
        raw.execute_batch("DROP TRIGGER background_responses_are_held")
            .expect("dropped");
        begin(&raw, &background).expect("written");
        assert_eq!(problems(), [("background_responses", id)]);
    }
}

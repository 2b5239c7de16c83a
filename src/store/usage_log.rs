//! Usage rows: one per exchange that took a hold; the receipt, and the reports over many.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::{FromSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::columns::{
    Count, Json, Micros, Span, Word, broken, id_range, in_column, json, micros, names_and_marks, text,
    to_the_microsecond, tokens, unreadable,
};
use super::digest::{Cells, Digest, Hash};
use super::prepared::Prepared;
use super::rollups;
use super::{ExchangeId, KeyId, Store, StoreError, UserId};
use crate::call::Endpoint;
use crate::money::Usd;
use crate::origin::{Client, Label, Origin};
use crate::pricing::{Class, Line, ListName};
use crate::usage::Tier;
use crate::usage::{ImageUsage, Tokens, ToolUsage, Usage};

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the ends of an exchange, as ARCHITECTURE.md tells them")]
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

impl State {
    /// All of them.
    pub const ALL: [State; 9] = [
        State::Completed,
        State::Incomplete,
        State::Refused,
        State::Failed,
        State::Broken,
        State::Limited,
        State::Left,
        State::Cancelled,
        State::Interrupted,
    ];

    /// The name in the database and in documents.
    pub const fn name(self) -> &'static str {
        match self {
            State::Completed => "completed",
            State::Incomplete => "incomplete",
            State::Refused => "refused",
            State::Failed => "failed",
            State::Broken => "broken",
            State::Limited => "limited",
            State::Left => "left",
            State::Cancelled => "cancelled",
            State::Interrupted => "interrupted",
        }
    }
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
    /// Who asked.
    pub origin: Origin,
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

/// What is hashed of a usage row, in the order it is stored.
pub(super) const USAGE_COLUMNS: [&str; 46] = [
    "exchange_id",
    "user_id",
    "key_id",
    "endpoint",
    "streamed",
    "model",
    "priced_model",
    "answered_model",
    "upstream",
    "list",
    "price_from",
    "tier",
    "state",
    "basis",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "cache_write_12h_tokens",
    "audio_input_tokens",
    "output_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
    "web_searches",
    "file_searches",
    "containers",
    "image_text_input_tokens",
    "image_input_tokens",
    "image_text_output_tokens",
    "image_output_tokens",
    "lines",
    "uplift",
    "markup",
    "cost_nanos",
    "charge_nanos",
    "uncollected_nanos",
    "held_nanos",
    "output_limit",
    "balance_after_nanos",
    "response_id",
    "item_ids",
    "upstream_request_id",
    "upstream_status",
    "attempts",
    "started_at",
    "first_byte_us",
    "duration_us",
];

/// Who asked: columns behind the hash, of which those that are not NULL are hashed after everything else. So rows that
/// have none are hashed as they were before there were these columns.
pub(super) const ORIGIN_COLUMNS: [&str; 5] = ["session", "turn", "agent", "kind", "client"];

/// Where the first of them stands in a row.
pub(super) const ORIGIN: usize = USAGE_COLUMNS.len() + 1;

/// The domain of a usage row's digest.
pub(super) const USAGE_DOMAIN: &str = "codex-gateway usage 1";

/// When an exchange was settled.
pub(super) fn ended_at(row: &ExchangeRow) -> Timestamp {
    let started = to_the_microsecond(row.started_at);
    let micros = u64::try_from(row.duration.as_micros()).unwrap_or(u64::MAX);
    started.checked_add(Duration::from_micros(micros)).unwrap_or(started)
}

/// What the ledger says of a row, whatever the row says itself.
pub(super) struct Settled {
    pub(super) exchange: ExchangeId,
    pub(super) user: UserId,
    pub(super) key: KeyId,
    pub(super) held: Usd,
    pub(super) hold_hash: Hash,
    pub(super) hold_state: &'static str,
    pub(super) uncollected: Usd,
    pub(super) balance_after: Usd,
}

/// The lists of a row, in JSON.
struct Lists {
    lines: String,
    item_ids: String,
}

/// The cells of a row, named as in [`USAGE_COLUMNS`] and in that order.
fn cells<'a>(row: &'a ExchangeRow, settled: &'a Settled, lists: &'a Lists) -> Cells<'a> {
    let usage = &row.usage;
    let image = |part: fn(&ImageUsage) -> Tokens| {
        usage
            .tools
            .image_gen
            .as_ref()
            .map_or(ValueRef::Null, |i| tokens(part(i)))
    };
    let values = [
        settled.exchange.value(),
        settled.user.value(),
        settled.key.value(),
        text(Some(row.endpoint.path())),
        ValueRef::Integer(i64::from(row.streamed)),
        text(Some(&row.model)),
        text(Some(&row.priced_model)),
        text(row.answered_model.as_deref()),
        text(Some(&row.upstream)),
        text(row.list.as_ref().map(ListName::as_str)),
        row.price_from
            .map_or(ValueRef::Null, |at| ValueRef::Integer(at.as_microsecond())),
        text(Some(row.tier.word())),
        text(Some(row.state.word())),
        text(Some(row.basis.word())),
        tokens(usage.input_tokens),
        tokens(usage.cached_tokens),
        tokens(usage.cache_write_tokens),
        tokens(usage.cache_write_12h_tokens),
        tokens(usage.audio_input_tokens),
        tokens(usage.output_tokens),
        tokens(usage.reasoning_tokens),
        tokens(usage.audio_output_tokens),
        ValueRef::Integer(i64::from(usage.tools.web_searches)),
        ValueRef::Integer(i64::from(usage.tools.file_searches)),
        ValueRef::Integer(i64::from(usage.tools.containers)),
        image(|i| i.text_input_tokens),
        image(|i| i.image_input_tokens),
        image(|i| i.text_output_tokens),
        image(|i| i.image_output_tokens),
        text(Some(&lists.lines)),
        text(row.uplift.as_deref()),
        text(Some(&row.markup)),
        ValueRef::Integer(row.cost.nanos()),
        ValueRef::Integer(row.charge.nanos()),
        ValueRef::Integer(settled.uncollected.nanos()),
        ValueRef::Integer(settled.held.nanos()),
        row.output_limit.map_or(ValueRef::Null, tokens),
        ValueRef::Integer(settled.balance_after.nanos()),
        text(row.response_id.as_deref()),
        text(Some(&lists.item_ids)),
        text(row.upstream_request_id.as_deref()),
        row.upstream_status
            .map_or(ValueRef::Null, |status| ValueRef::Integer(i64::from(status))),
        ValueRef::Integer(i64::from(row.attempts)),
        ValueRef::Integer(row.started_at.as_microsecond()),
        row.first_byte.map_or(ValueRef::Null, micros),
        micros(row.duration),
    ];
    Cells(USAGE_COLUMNS.into_iter().zip(values).collect())
}

fn label(label: Option<&Label>) -> ValueRef<'_> {
    text(label.map(Label::as_str))
}

/// The cells of who asked, named as in [`ORIGIN_COLUMNS`] and in that order.
fn origin_cells(origin: &Origin) -> [ValueRef<'_>; 5] {
    [
        label(origin.session.as_ref()),
        label(origin.turn.as_ref()),
        label(origin.agent.as_ref()),
        text(origin.kind.map(Word::word)),
        text(origin.client.as_ref().map(Client::as_str)),
    ]
}

/// Writes a row: its cells, its hash, who asked.
pub(super) static INSERT: LazyLock<String> = LazyLock::new(|| {
    let (names, marks) = names_and_marks(&USAGE_COLUMNS, &[&["row_hash"], ORIGIN_COLUMNS.as_slice()].concat());
    format!("INSERT INTO usage_logs ({names}) VALUES ({marks})")
});

const INDEX: &str = "INSERT INTO usage_items (item_id, exchange_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING";

/// Writes an exchange's row, and returns its hash; part of the closing of its hold.
pub(super) fn insert(tx: &Prepared<'_>, row: &ExchangeRow, settled: &Settled) -> rusqlite::Result<Hash> {
    let lists = Lists {
        lines: json(&row.lines)?,
        item_ids: json(&row.item_ids)?,
    };
    let cells = cells(row, settled, &lists);
    let mut digest = Digest::new(USAGE_DOMAIN);
    digest.cells(&cells);
    digest.field("hold_hash", ValueRef::Blob(&settled.hold_hash));
    digest.field("hold_state", text(Some(settled.hold_state)));
    let [session, turn, agent, kind, client] = origin_cells(&row.origin);
    for (name, value) in ORIGIN_COLUMNS.into_iter().zip([session, turn, agent, kind, client]) {
        digest.field_if_any(name, value);
    }
    let hash = digest.finish();
    let values = cells.and([ValueRef::Blob(&hash), session, turn, agent, kind, client]);
    tx.with(&INSERT, |insert| insert.execute(values))?;
    for item in &row.item_ids {
        tx.with(INDEX, |index| index.execute(params![item, settled.exchange]))?;
    }
    Ok(hash)
}

/// With the `+`, the user's index is not taken for it: that would read all that the user ever did.
const RESPONSE_MADE_BY: &str = "SELECT * FROM usage_logs WHERE response_id = ?1 AND +user_id = ?2 AND upstream = ?3
     ORDER BY exchange_id DESC LIMIT 1";

/// The same of an item.
const ITEM_MADE_BY: &str = "SELECT 1 FROM usage_items i JOIN usage_logs u ON u.exchange_id = i.exchange_id
     WHERE i.item_id = ?1 AND +u.user_id = ?2 AND u.upstream = ?3";

/// The columns of a row, one after the other: looking each up by its name takes longer than reading it.
struct InOrder<'a> {
    row: &'a Row<'a>,
    next: usize,
}

impl InOrder<'_> {
    fn take<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        let value = self.row.get(self.next);
        self.next += 1;
        value
    }
}

/// Reads a row that begins with [`USAGE_COLUMNS`], its hash and [`ORIGIN_COLUMNS`]: `SELECT *`.
pub(super) fn exchange(row: &Row<'_>) -> rusqlite::Result<ExchangeRow> {
    let columns = &mut InOrder { row, next: 0 };
    let mut read = ExchangeRow {
        id: columns.take()?,
        user: columns.take()?,
        key: columns.take()?,
        endpoint: columns.take()?,
        streamed: columns.take()?,
        model: columns.take()?,
        priced_model: columns.take()?,
        answered_model: columns.take()?,
        upstream: columns.take()?,
        list: columns.take()?,
        price_from: columns.take::<Option<Micros>>()?.map(|at| at.0),
        tier: columns.take()?,
        state: columns.take()?,
        basis: columns.take()?,
        usage: usage(columns)?,
        lines: columns.take::<Json<Vec<Line>>>()?.0,
        uplift: columns.take()?,
        markup: columns.take()?,
        cost: columns.take()?,
        charge: columns.take()?,
        uncollected: columns.take()?,
        held: columns.take()?,
        output_limit: columns.take()?,
        balance_after: columns.take()?,
        response_id: columns.take()?,
        item_ids: columns.take::<Json<Vec<String>>>()?.0,
        upstream_request_id: columns.take()?,
        upstream_status: columns.take()?,
        attempts: columns.take()?,
        started_at: columns.take::<Micros>()?.0,
        first_byte: columns.take::<Option<Span>>()?.map(|span| span.0),
        duration: columns.take::<Span>()?.0,
        origin: origin(&mut InOrder { row, next: ORIGIN })?,
    };
    read.usage.seconds = in_lines(&read.lines, Class::Seconds);
    read.usage.characters = in_lines(&read.lines, Class::Characters);
    Ok(read)
}

/// Reads who asked.
fn origin(columns: &mut InOrder<'_>) -> rusqlite::Result<Origin> {
    Ok(Origin {
        session: columns.take()?,
        turn: columns.take()?,
        agent: columns.take()?,
        kind: columns.take()?,
        client: columns.take()?,
    })
}

/// Reads the usage of a row.
fn usage(columns: &mut InOrder<'_>) -> rusqlite::Result<Usage> {
    Ok(Usage {
        input_tokens: columns.take()?,
        cached_tokens: columns.take()?,
        cache_write_tokens: columns.take()?,
        cache_write_12h_tokens: columns.take()?,
        audio_input_tokens: columns.take()?,
        output_tokens: columns.take()?,
        reasoning_tokens: columns.take()?,
        audio_output_tokens: columns.take()?,
        tools: ToolUsage {
            web_searches: columns.take()?,
            file_searches: columns.take()?,
            containers: columns.take()?,
            image_gen: image_usage(columns)?,
        },
        seconds: 0,
        characters: 0,
    })
}

/// What has no column of its own: where it is billed, the receipt's line is what there is of it.
fn in_lines(lines: &[Line], class: Class) -> u32 {
    let of = lines.iter().filter(|line| line.class == class);
    of.fold(0, |sum, line| {
        sum.saturating_add(u32::try_from(line.quantity).unwrap_or(u32::MAX))
    })
}

/// Reads what an image model used: four columns, all of them NULL when it did not run.
fn image_usage(columns: &mut InOrder<'_>) -> rusqlite::Result<Option<ImageUsage>> {
    let parts: [Option<Tokens>; 4] = [columns.take()?, columns.take()?, columns.take()?, columns.take()?];
    match parts {
        [
            Some(text_input_tokens),
            Some(image_input_tokens),
            Some(text_output_tokens),
            Some(image_output_tokens),
        ] => Ok(Some(ImageUsage {
            text_input_tokens,
            image_input_tokens,
            text_output_tokens,
            image_output_tokens,
        })),
        [None, None, None, None] => Ok(None),
        _ => Err(in_column(unreadable("the usage of an image model"))),
    }
}

/// The conditions of a filter, as SQL on `usage_logs u` and its numbered parameters.
pub(super) fn conditions(filter: &ExchangeFilter) -> (String, Vec<ToSqlOutput<'_>>) {
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

/// What a usage row `u` of the user `o` is summed under.
pub(super) fn grouped(by: GroupBy) -> String {
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
pub(super) fn sum(row: &Row<'_>, by: GroupBy) -> rusqlite::Result<UsageSum> {
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
pub(super) fn refunds(
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
pub(super) fn day(days: i64) -> rusqlite::Result<String> {
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

#[cfg(test)]
mod tests {
    use super::super::keys::Key;
    use super::super::refunds::Refund;
    use super::super::testing::*;
    use super::*;

    fn settled(desk: &Desk, key: &Key, charge: &str) -> ExchangeRow {
        let id = exchange_id();
        desk.set_aside(&ask(id, key, "1"));
        let close = closing(id, key, charge);
        let closed = desk.close(id, &close);
        ExchangeRow {
            held: usd("1"),
            uncollected: closed.uncollected,
            balance_after: closed.balance,
            ..close.row
        }
    }

    fn exchange_id() -> ExchangeId {
        super::super::testing::exchange()
    }

    #[test]
    fn a_row_comes_back_as_it_was_written() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "5"));
        let row = settled(&desk, &key, "0.75");
        let response = row.response_id.clone().expect("it has one");
        for which in [row.id.to_string(), row.id.to_string()[..20].to_owned(), response] {
            assert_eq!(
                desk.store.find_exchange(&which).expect("it reads").as_ref(),
                Some(&row),
                "{which}"
            );
        }
        assert_eq!(desk.store.find_exchange("resp_other").expect("it reads"), None);
        settled(&desk, &key, "0");
        assert_eq!(
            desk.store.find_exchange("01").expect("it reads"),
            None,
            "not a unique start"
        );
    }

    #[test]
    fn only_this_users_responses_and_items_are_found() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
        let row = settled(&desk, &desk.key(&ada), "0.75");
        let response = row.response_id.clone().expect("it has one");
        let made = |user: UserId, upstream: &str| {
            let response = desk
                .store
                .response_made_by(user, upstream, &response)
                .expect("it reads");
            let item = desk
                .store
                .item_made_by(user, upstream, &row.item_ids[0])
                .expect("it reads");
            (response.is_some(), item)
        };
        assert_eq!(made(ada.id, "openai"), (true, true));
        assert_eq!(made(ada.id, "other"), (false, false));
        assert_eq!(made(bob.id, "openai"), (false, false));
    }

    #[test]
    fn a_filter_takes_what_it_names_and_pages_through_the_rest() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "5"));
        let (adas, bobs) = (desk.key(&ada), desk.key(&bob));
        let rows = [
            settled(&desk, &adas, "1"),
            settled(&desk, &bobs, "0"),
            settled(&desk, &adas, "0.5"),
        ];
        let ids = |filter: ExchangeFilter| -> Vec<ExchangeId> {
            let filter = ExchangeFilter {
                limit: filter.limit.max(2),
                ..filter
            };
            desk.store
                .exchanges(&filter)
                .expect("it reads")
                .iter()
                .map(|row| row.id)
                .collect()
        };
        let all = ExchangeFilter::default();
        assert_eq!(ids(all.clone()), [rows[2].id, rows[1].id]);
        assert_eq!(
            ids(ExchangeFilter {
                before: Some(rows[1].id),
                ..all.clone()
            }),
            [rows[0].id]
        );
        assert_eq!(
            ids(ExchangeFilter {
                after: Some(rows[0].id),
                ..all.clone()
            }),
            [rows[1].id, rows[2].id]
        );
        assert_eq!(
            ids(ExchangeFilter {
                user: Some(bob.id),
                ..all.clone()
            }),
            [rows[1].id]
        );
        assert_eq!(
            ids(ExchangeFilter {
                key: Some(adas.id),
                ..all.clone()
            }),
            [rows[2].id, rows[0].id]
        );
        assert!(
            ids(ExchangeFilter {
                until: Some(at(10)),
                ..all.clone()
            })
            .is_empty()
        );
        assert!(
            ids(ExchangeFilter {
                model: Some("other".into()),
                since: Some(at(10)),
                ..all
            })
            .is_empty()
        );
    }

    #[test]
    fn reports_add_up_to_the_ledger_by_any_group() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "5"), desk.user("bob", "0.5"));
        let (adas, bobs) = (desk.key(&ada), desk.key(&bob));
        settled(&desk, &adas, "1");
        settled(&desk, &adas, "0.5");
        let poor = exchange_id();
        desk.set_aside(&ask(poor, &bobs, "0.25"));
        desk.close(poor, &closing(poor, &bobs, "2"));
        let refund = Refund {
            exchange: poor,
            amount: Some(usd("0.25")),
            reference: None,
            note: None,
        };
        done(desk.store.refund(&refund, &by(), at(90_000)));
        let bobs_only = ExchangeFilter {
            user: Some(bob.id),
            until: Some(at(11)),
            ..ExchangeFilter::default()
        };
        for (filter, refunded) in [
            (bobs_only.clone(), "0.25"),
            (
                ExchangeFilter {
                    user: Some(ada.id),
                    ..bobs_only.clone()
                },
                "0",
            ),
            (
                ExchangeFilter {
                    model: Some("other".into()),
                    ..bobs_only
                },
                "0",
            ),
        ] {
            let (_, total) = desk.store.usage(&filter, GroupBy::Day).expect("summed");
            assert_eq!(total.refunded, usd(refunded), "{filter:?}");
        }
        for (by, groups) in [
            (GroupBy::Day, vec!["2026-09-21"]),
            (GroupBy::User, vec!["ada", "bob"]),
            (
                GroupBy::Key,
                vec![adas.id.to_string().leak() as &str, bobs.id.to_string().leak()],
            ),
            (GroupBy::Model, vec!["gpt"]),
            (GroupBy::Upstream, vec!["openai"]),
        ] {
            let (rows, total) = desk.store.usage(&ExchangeFilter::default(), by).expect("summed");
            assert_eq!(rows.iter().map(|row| row.group.as_str()).collect::<Vec<_>>(), groups);
            let expected = UsageSum {
                group: String::new(),
                exchanges: 3,
                input_tokens: 350_138,
                cached_tokens: 30,
                output_tokens: 150,
                cost: usd("3.5"),
                charge: usd("2"),
                uncollected: usd("1.5"),
                refunded: usd("0.25"),
            };
            assert_eq!(total, expected, "{by:?}");
            assert_eq!(rows.last().map(|row| row.refunded), Some(usd("0.25")), "{by:?}");
        }
    }

    #[test]
    fn a_response_and_an_item_are_found_without_reading_all_that_their_user_did() {
        let desk = Desk::new();
        let conn = desk.raw();
        let plan = |sql: &str| -> Vec<String> {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
            let steps = explain.query_map(["", "", ""], |row| row.get("detail")).expect(sql);
            steps.collect::<Result<_, _>>().expect(sql)
        };
        assert_eq!(
            plan(RESPONSE_MADE_BY),
            [
                "SEARCH usage_logs USING INDEX usage_logs_by_response (response_id=?)",
                "USE TEMP B-TREE FOR ORDER BY"
            ]
        );
        assert_eq!(
            plan(ITEM_MADE_BY),
            [
                "SEARCH i USING PRIMARY KEY (item_id=?)",
                "SEARCH u USING INDEX sqlite_autoindex_usage_logs_1 (exchange_id=?)"
            ]
        );
    }

    #[test]
    fn a_start_of_several_ids_names_them_all() {
        let desk = Desk::new();
        let ada = desk.user("ada", "5");
        let key = desk.key(&ada);
        let (first, second) = (settled(&desk, &key, "1").id, settled(&desk, &key, "1").id);
        let start = &first.to_string()[..4];
        assert_eq!(desk.store.find_exchange(start).expect("it reads"), None);
        let named = |start: &str, limit| desk.store.exchanges_starting(start, limit).expect("it reads");
        let mut both = [first, second];
        both.sort();
        assert_eq!(named(start, 10), both);
        assert_eq!(named(start, 1).len(), 1);
        assert_eq!(named(&first.to_string(), 10), [first]);
        assert!(named("resp_x", 10).is_empty());
    }
}

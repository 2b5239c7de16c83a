//! Usage rows: one per exchange that took a hold; the receipt, and the reports over many.

mod finding;
mod sums;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Row, params};

use super::columns::{
    Json, Micros, Span, Word, in_column, json, micros, names_and_marks, text, to_the_microsecond, tokens, unreadable,
};
use super::digest::{Cells, Digest, Hash};
use super::prepared::Prepared;
use super::{ExchangeId, KeyId, UserId};
use crate::call::Endpoint;
use crate::money::Usd;
use crate::origin::{Client, Label, Origin};
use crate::pricing::{Class, Line, ListName};
use crate::usage::Tier;
use crate::usage::{ImageUsage, Tokens, ToolUsage, Usage};
pub use finding::ExchangeFilter;
pub(super) use finding::conditions;
pub use sums::{GroupBy, UsageSum};
pub(super) use sums::{day, grouped, refunds, sum};

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

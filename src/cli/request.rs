//! `gateway request …`: single exchanges, and the receipt of one.

use std::time::Duration;

use clap::Subcommand;
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;

use super::Global;
use super::failure::Failure;
use super::filter::{Caller, Callers, FilterArgs, filter};
use super::output::{self, Column, Items, Pipe};
use crate::admin;
use crate::money::Usd;
use crate::origin::{Label, Origin};
use crate::pricing::Line;
use crate::store::attempts::Attempt;
use crate::store::usage_log::{Basis, ExchangeFilter, ExchangeRow, State};
use crate::store::{Create, Store};
use crate::usage::Usage;

/// How often `tail` looks for new rows.
const TAIL_EVERY: Duration = Duration::from_millis(500);

/// How many new requests `tail` reads at a time, at most.
const TAIL_MOST: u32 = 500;

/// How many past requests `tail` begins with.
const TAIL_FIRST: u32 = 10;

/// What to do with requests.
#[derive(Debug, Subcommand)]
pub enum RequestCommand {
    /// Requests, newest first
    List {
        /// Which
        #[command(flatten)]
        filter: FilterArgs,
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// The receipt: how one charge came about, line by line
    Show {
        /// The x-request-id of the answer, the start of it, or the upstream's response id
        id: String,
    },
    /// Follow requests as they end (with --json: a document a line)
    Tail {
        /// Which
        #[command(flatten)]
        filter: FilterArgs,
    },
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: RequestCommand, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    match command {
        RequestCommand::List { filter: which, limit } => list(&store, &filter(&store, &which, limit)?, global),
        RequestCommand::Show { id } => {
            let receipt = Receipt::find(&store, &id)?;
            if global.json {
                return output::json(&receipt);
            }
            output::print(&receipt.text()).map(drop)
        }
        RequestCommand::Tail { filter: which } => tail(&store, filter(&store, &which, TAIL_MOST)?, global),
    }
}

fn list(store: &Store, filter: &ExchangeFilter, global: &Global) -> anyhow::Result<()> {
    let rows = store.exchanges(filter).map_err(Failure::from)?;
    let mut callers = Callers::new(store);
    if global.json {
        let items = rows
            .iter()
            .map(|row| Receipt::new(&mut callers, row))
            .collect::<Result<Vec<_>, _>>()?;
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("time (UTC)"),
        Column::Left("by"),
        Column::Left("model"),
        Column::Left("state"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("charge"),
        Column::Left("id"),
    ];
    let rows = rows
        .iter()
        .map(|row| cells(row, &mut callers))
        .collect::<Result<Vec<_>, _>>()?;
    output::table(&columns, rows)
}

fn cells(row: &ExchangeRow, callers: &mut Callers<'_>) -> anyhow::Result<Vec<String>> {
    Ok(vec![
        output::time(row.started_at),
        callers.of(&row.key.to_string())?.text(),
        output::plain(&row.model),
        row.state.name().to_owned(),
        output::count(row.usage.input_tokens.get()),
        output::count(row.usage.cached_tokens.get()),
        output::count(row.usage.output_tokens.get()),
        format!("{:#}", charge(row)),
        row.id.0.to_string(),
    ])
}

/// What the user paid: the priced amount without what could not be collected, as the ledger's entry says.
pub fn charge(row: &ExchangeRow) -> Usd {
    row.charge.saturating_sub(row.uncollected)
}

fn tail(store: &Store, filter: ExchangeFilter, global: &Global) -> anyhow::Result<()> {
    let mut callers = Callers::new(store);
    let mut place = None;
    loop {
        let limit = if place.is_some() { filter.limit } else { TAIL_FIRST };
        let which = ExchangeFilter {
            limit,
            ..filter.clone()
        };
        let rows = store.exchanges_written(&which, place).map_err(Failure::from)?;
        place = Some(rows.last().map_or(place.unwrap_or(0), |(place, _)| *place));
        for (_, row) in &rows {
            let line = if global.json {
                serde_json::to_string(&Receipt::new(&mut callers, row)?)?
            } else {
                cells(row, &mut callers)?.join("  ")
            };
            if output::print(&format!("{line}\n"))? == Pipe::Closed {
                return Ok(());
            }
        }
        std::thread::sleep(TAIL_EVERY);
    }
}

/// `request show`: everything a charge came from.
#[derive(Debug, Serialize)]
pub struct Receipt {
    id: String,
    state: &'static str,
    estimated: bool,
    endpoint: &'static str,
    streamed: bool,
    user: String,
    key: String,
    key_name: String,
    model: String,
    priced_model: String,
    answered_model: Option<String>,
    upstream: String,
    price_list: Option<String>,
    price_from: Option<Timestamp>,
    tier: &'static str,
    usage: Usage,
    lines: Vec<Line>,
    uplift: Option<String>,
    markup: String,
    /// By the price list.
    cost: String,
    /// With the markup.
    priced: String,
    /// What the user paid of it.
    charge: String,
    uncollected: String,
    /// What of the charge was given back.
    refunded: String,
    hold: String,
    output_limit: Option<u64>,
    balance_after: String,
    attempts: u32,
    tries: Vec<Try>,
    response_id: Option<String>,
    upstream_request_id: Option<String>,
    upstream_status: Option<u16>,
    started_at: Timestamp,
    first_byte_ms: Option<u128>,
    duration_ms: u128,
    #[serde(flatten)]
    origin: Origin,
    #[serde(skip)]
    row: ExchangeRow,
    #[serde(skip)]
    given_back: Usd,
}

/// One attempt of a call that was sent more than once.
#[derive(Debug, Serialize)]
struct Try {
    upstream: String,
    outcome: &'static str,
    status: Option<u16>,
    began_ms: u128,
    duration_ms: u128,
    /// By the price list: only the last can have been taken.
    cost: String,
}

impl Try {
    fn all(attempts: &[Attempt], cost: Usd) -> Vec<Try> {
        let last = attempts.len().saturating_sub(1);
        let one = |(number, attempt): (usize, &Attempt)| Try {
            upstream: attempt.upstream.clone(),
            outcome: attempt.outcome.name(),
            status: attempt.status,
            began_ms: attempt.began.as_millis(),
            duration_ms: attempt.took.as_millis(),
            cost: if number == last { cost } else { Usd::ZERO }.to_string(),
        };
        attempts.iter().enumerate().map(one).collect()
    }

    /// `attempt 1  first unreachable after 3 ms, cost $0`
    fn line(&self, number: usize) -> String {
        let status = self.status.map_or(String::new(), |status| format!(" {status}"));
        format!(
            "  attempt {number}           {} {}{status} after {} ms, cost ${}",
            self.upstream, self.outcome, self.duration_ms, self.cost
        )
    }
}

impl Receipt {
    /// The receipt of an exchange: by its id, a unique start of it, or the upstream's response id.
    ///
    /// # Errors
    /// There is none; the database failed.
    pub fn find(store: &Store, which: &str) -> anyhow::Result<Receipt> {
        let row = admin::exchange(store, which).map_err(Failure::from)?;
        Receipt::new(&mut Callers::new(store), &row)
    }

    fn new(callers: &mut Callers<'_>, row: &ExchangeRow) -> anyhow::Result<Receipt> {
        let refunded = callers.store.refunded(row.id).map_err(Failure::from)?;
        let tries = match row.attempts {
            0 | 1 => Vec::new(),
            _ => callers.store.attempts(row.id).map_err(Failure::from)?,
        };
        Ok(Receipt::of(row, refunded, &tries, callers.of(&row.key.to_string())?))
    }

    fn of(row: &ExchangeRow, refunded: Usd, tries: &[Attempt], caller: Caller) -> Receipt {
        Receipt {
            id: row.id.0.to_string(),
            state: row.state.name(),
            estimated: row.basis == Basis::Estimated && row.state != State::Interrupted,
            endpoint: row.endpoint.path(),
            streamed: row.streamed,
            user: caller.user,
            key: caller.prefix,
            key_name: caller.key,
            model: row.model.clone(),
            priced_model: row.priced_model.clone(),
            answered_model: row.answered_model.clone(),
            upstream: row.upstream.clone(),
            price_list: row.list.as_ref().map(ToString::to_string),
            price_from: row.price_from,
            tier: row.tier.name(),
            usage: row.usage.clone(),
            lines: row.lines.clone(),
            uplift: row.uplift.clone(),
            markup: row.markup.clone(),
            cost: row.cost.to_string(),
            priced: row.charge.to_string(),
            charge: charge(row).to_string(),
            uncollected: row.uncollected.to_string(),
            refunded: refunded.to_string(),
            hold: row.held.to_string(),
            output_limit: row.output_limit.map(|limit| limit.get()),
            balance_after: row.balance_after.to_string(),
            attempts: row.attempts,
            tries: Try::all(tries, row.cost),
            response_id: row.response_id.clone(),
            upstream_request_id: row.upstream_request_id.clone(),
            upstream_status: row.upstream_status,
            started_at: row.started_at,
            first_byte_ms: row.first_byte.map(|wait| wait.as_millis()),
            duration_ms: row.duration.as_millis(),
            origin: row.origin.clone(),
            row: row.clone(),
            given_back: refunded,
        }
    }

    /// The receipt as people read it, each step such that it can be done again by hand.
    pub fn text(&self) -> String {
        let mut lines = vec![self.headline()];
        if self.interrupted() {
            lines.extend(self.release_lines());
        } else {
            lines.extend(self.sum_lines());
            lines.extend(self.money_lines());
        }
        lines.extend(self.context_lines());
        lines.join("\n") + "\n"
    }

    /// Whether nobody was there at its end: what came of it, and when, is not known.
    fn interrupted(&self) -> bool {
        self.row.state == State::Interrupted
    }

    fn release_lines(&self) -> [String; 2] {
        [
            format!("  held                {:#}, released", self.row.held),
            "  interrupted         the server died during this call; its hold was released, nothing charged".into(),
        ]
    }

    fn headline(&self) -> String {
        let estimated = if self.estimated { ", estimated" } else { "" };
        format!(
            "{:#}  {}  {}/{}  {} UTC  {}{estimated}",
            charge(&self.row),
            output::plain(&self.model),
            self.user,
            output::plain(&self.key_name),
            output::time(self.started_at),
            self.state
        )
    }

    /// `quantity × rate = amount` of each class, and what they add up to, exactly.
    fn sum_lines(&self) -> Vec<String> {
        let quantity = |line: &Line| output::count(line.quantity);
        let (wide, rates) = (
            self.lines.iter().map(|line| quantity(line).len()).max().unwrap_or(0),
            self.lines.iter().map(|line| line.rate.len()).max().unwrap_or(0),
        );
        let line = |line: &Line| {
            format!(
                "  {:<18}  {:>wide$} × ${:<rates$} per million = ${}",
                line.class.name().replace('_', " "),
                quantity(line),
                line.rate,
                line.amount
            )
        };
        let mut lines: Vec<String> = self.lines.iter().map(line).collect();
        if self.row.usage.reasoning_tokens.get() > 0 {
            let reasoning = output::count(self.row.usage.reasoning_tokens.get());
            lines.push(format!("  of the output, {reasoning} tokens were reasoning"));
        }
        if let Some((tokens, fees)) = self.exact_sums() {
            let markup = format!("× markup {}", self.markup);
            let formula = match (&self.uplift, fees.is_zero()) {
                (None, _) => format!("{} {markup}", (tokens + fees).normalize()),
                (Some(uplift), true) => format!("{tokens} × regional uplift {uplift} {markup}"),
                (Some(uplift), false) => format!("({tokens} × regional uplift {uplift} + fees {fees}) {markup}"),
            };
            // What is priced is what is charged, unless not all of it was there.
            let label = if self.row.uncollected == Usd::ZERO {
                "charge"
            } else {
                "priced"
            };
            lines.push(format!(
                "  {label}              {formula} = {:#}, rounded once",
                self.row.charge
            ));
        }
        lines
    }

    /// What the lines add up to: tokens, and fees, which no uplift touches.
    fn exact_sums(&self) -> Option<(Decimal, Decimal)> {
        let sum = |fees: bool| {
            self.lines
                .iter()
                .filter(|line| line.class.is_lifted() != fees)
                .try_fold(Decimal::ZERO, |sum, line| {
                    sum.checked_add(Decimal::from_str_exact(&line.amount).ok()?)
                })
                .map(|sum| sum.normalize())
        };
        let sums = (sum(false)?, sum(true)?);
        (!self.lines.is_empty()).then_some(sums)
    }

    fn money_lines(&self) -> Vec<String> {
        let row = &self.row;
        let mut lines = vec![format!("  cost by the list    {:#}", row.cost)];
        if row.uncollected.nanos() > 0 {
            lines.push(format!(
                "  not collected       {:#}: more than was held, and not available",
                row.uncollected
            ));
        }
        lines.push(format!(
            "  held                {:#}, charged {:#}, balance after it {:#}",
            row.held,
            charge(row),
            row.balance_after
        ));
        if self.given_back > Usd::ZERO {
            lines.push(format!("  refunded            {:#} of the charge", self.given_back));
        }
        if let Some(limit) = self.output_limit {
            lines.push(format!(
                "  output limit        {} tokens, written into the request by the gateway",
                output::count(limit)
            ));
        }
        if self.estimated {
            lines.push(
                "  estimated           the upstream reported no usage; an estimate cannot see hidden reasoning".into(),
            );
        }
        lines
    }

    /// `asked by  codex_exec/0.169.0, turn, session S, turn T`, as far as it is known.
    fn origin_line(&self) -> Option<String> {
        let Origin {
            session,
            turn,
            agent,
            kind,
            client,
        } = &self.origin;
        let named = |name: &str, id: &Option<Label>| Some(format!("{name} {}", id.as_ref()?));
        let parts = [
            client.as_ref().map(ToString::to_string),
            kind.map(|kind| kind.name().to_owned()),
            named("session", session),
            named("turn", turn),
            named("agent", agent),
        ];
        let known: Vec<String> = parts.into_iter().flatten().collect();
        (!known.is_empty()).then(|| format!("  asked by            {}", known.join(", ")))
    }

    fn context_lines(&self) -> Vec<String> {
        let list = match (&self.price_list, self.price_from) {
            (Some(list), Some(from)) => format!("list {list}, in force since {} UTC", output::time(from)),
            (Some(list), None) => format!("list {list}"),
            (None, _) => "free".to_owned(),
        };
        let first = self
            .first_byte_ms
            .map_or("no answer".to_owned(), |ms| format!("first byte after {ms} ms"));
        let attempts = match self.attempts {
            _ if self.interrupted() => String::new(),
            1 => ", 1 attempt".to_owned(),
            n => format!(", {n} attempts"),
        };
        let status = self
            .upstream_status
            .map_or(String::new(), |status| format!(", status {status}"));
        let form = if self.streamed { "streamed" } else { "plain" };
        let mut lines = vec![
            format!(
                "  price               {}, tier {}, {list}",
                output::plain(&self.priced_model),
                self.tier
            ),
            format!(
                "  upstream            {}{status}{attempts}, {}, {form}",
                self.upstream, self.endpoint
            ),
        ];
        lines.extend(self.tries.iter().zip(1..).map(|(tried, number)| tried.line(number)));
        if !self.interrupted() {
            lines.push(format!("  time                {first}, {} ms in all", self.duration_ms));
        }
        lines.extend(self.origin_line());
        lines.push(format!("  request             {}", self.id));
        let ids = [
            ("answered by", &self.answered_model),
            ("response", &self.response_id),
            ("upstream's id", &self.upstream_request_id),
        ];
        lines.extend(
            ids.iter()
                .filter_map(|(name, id)| Some(format!("  {name:<18}  {}", output::plain(id.as_ref()?)))),
        );
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Endpoint;
    use crate::pricing::{Class, ListName};
    use crate::store::{ExchangeId, KeyId, UserId};
    use crate::usage::Tier;
    use crate::usage::Tokens;

    fn line(class: Class, quantity: u64, rate: &str, amount: &str) -> Line {
        Line {
            class,
            quantity,
            rate: rate.into(),
            amount: amount.into(),
        }
    }

    fn row() -> ExchangeRow {
        ExchangeRow {
            id: ExchangeId(uuid::Uuid::nil()),
            user: UserId(uuid::Uuid::nil()),
            key: KeyId(uuid::Uuid::nil()),
            endpoint: Endpoint::Responses,
            streamed: true,
            model: "gpt-6.1-sol".into(),
            priced_model: "gpt-6.1-sol".into(),
            answered_model: None,
            upstream: "openai".into(),
            list: Some(ListName::openai()),
            price_from: None,
            tier: Tier::Standard,
            state: State::Completed,
            basis: Basis::Reported,
            usage: Usage {
                reasoning_tokens: Tokens::saturating(704),
                ..Usage::default()
            },
            lines: vec![
                line(Class::Input, 1_312, "1.25", "0.00164"),
                line(Class::Output, 1_104, "10", "0.01104"),
                line(Class::WebSearch, 2, "10000", "0.02"),
            ],
            uplift: Some("1.1".into()),
            markup: "1.04".into(),
            cost: Usd::from_nanos(33_948_000),
            charge: Usd::from_nanos(35_305_920),
            uncollected: Usd::ZERO,
            held: Usd::from_nanos(112_000_000),
            output_limit: None,
            balance_after: Usd::from_nanos(4_853_300_000),
            response_id: Some("resp_1".into()),
            item_ids: Vec::new(),
            upstream_request_id: None,
            upstream_status: Some(200),
            attempts: 1,
            started_at: Timestamp::UNIX_EPOCH,
            first_byte: Some(Duration::from_millis(880)),
            duration: Duration::from_millis(5_300),
            origin: Origin::default(),
        }
    }

    fn caller() -> Caller {
        Caller {
            user: "alice".into(),
            prefix: "sk-gw-x".into(),
            key: "laptop".into(),
        }
    }

    fn receipt(row: &ExchangeRow) -> String {
        Receipt::of(row, Usd::ZERO, &[], caller()).text()
    }

    #[test]
    fn a_receipt_can_be_done_again_by_hand() {
        let text = receipt(&row());
        for part in [
            "input               1,312 × $1.25  per million = $0.00164",
            "web search              2 × $10000 per million = $0.02",
            "(0.01268 × regional uplift 1.1 + fees 0.02) × markup 1.04 = $0.03530592, rounded once",
            "held                $0.112, charged $0.03530592, balance after it $4.8533",
            "704 tokens were reasoning",
            "status 200, 1 attempt",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let by_hand = (Decimal::from_str_exact("0.01268").expect("a number")
            * Decimal::from_str_exact("1.1").expect("a number")
            + Decimal::from_str_exact("0.02").expect("a number"))
            * Decimal::from_str_exact("1.04").expect("a number");
        assert_eq!(by_hand.normalize().to_string(), "0.03530592");
    }

    #[test]
    fn an_estimate_says_what_it_cannot_see() {
        let mut row = row();
        row.basis = Basis::Estimated;
        let text = receipt(&row);
        assert!(
            text.contains("cannot see hidden reasoning") && text.contains("completed, estimated"),
            "{text}"
        );
    }

    #[test]
    fn an_interrupted_call_says_only_what_is_known_of_it() {
        let mut row = row();
        (row.state, row.basis, row.attempts) = (State::Interrupted, Basis::Estimated, 0);
        (row.charge, row.cost, row.lines) = (Usd::ZERO, Usd::ZERO, Vec::new());
        (row.usage, row.first_byte, row.upstream_status) = (Usage::default(), None, None);
        let text = receipt(&row);
        assert!(text.contains("its hold was released, nothing charged"), "{text}");
        for untrue in ["estimate", "attempt", "no answer", " ms", "balance"] {
            assert!(!text.contains(untrue), "{untrue}\n{text}");
        }
        let document = serde_json::to_value(Receipt::of(&row, Usd::ZERO, &[], caller())).expect("JSON");
        assert_eq!(document["estimated"], false);
    }

    #[test]
    fn a_charge_is_what_the_user_paid() {
        let mut row = row();
        row.uncollected = Usd::from_nanos(305_920);
        let text = receipt(&row);
        for part in [
            "$0.035  gpt-6.1-sol",
            "  priced              (",
            "= $0.03530592, rounded once",
            "not collected       $0.00030592",
            "charged $0.035, balance",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let document = serde_json::to_value(Receipt::of(&row, Usd::ZERO, &[], caller())).expect("JSON");
        let amounts = ["priced", "charge", "uncollected"].map(|name| document[name].clone());
        assert_eq!(amounts, ["0.03530592", "0.035", "0.00030592"]);
    }

    #[test]
    fn a_receipt_says_what_was_given_back_when_something_was() {
        let text = |refunded| Receipt::of(&row(), Usd::from_nanos(refunded), &[], caller()).text();
        assert!(text(5_305_920).contains("  refunded            $0.00530592 of the charge\n"));
        assert!(!text(0).contains("refunded"));
    }

    #[test]
    fn the_document_has_the_documented_names() {
        let document = serde_json::to_value(Receipt::of(&row(), Usd::ZERO, &[], caller())).expect("JSON");
        for name in [
            "state",
            "estimated",
            "model",
            "tier",
            "usage",
            "lines",
            "cost",
            "charge",
            "refunded",
            "hold",
            "balance_after",
            "attempts",
        ] {
            assert!(document.get(name).is_some(), "{name}");
        }
        assert_eq!(document["lines"][0]["class"], "input");
        assert_eq!(document["charge"], "0.03530592");
    }
}

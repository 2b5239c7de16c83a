//! `gateway statement`: a user's month, from the ledger alone.

use jiff::Timestamp;
use serde::Serialize;

use super::failure::{self, Exit, Failure};
use super::output::{self, Column, csv_cell};
use super::values::Month;
use super::{Global, language};
use crate::admin;
use crate::money::Usd;
use crate::said;
use crate::store::Create;
use crate::store::entries::Entry;
use crate::store::statement::{Charges, Statement};

/// A user's month, UTC: opening balance, credits, charges by day and model, closing balance. An entry belongs to the
/// month in which it was made; of a month that is not over, the closing balance is that of now.
#[derive(Debug, clap::Args)]
pub struct StatementArgs {
    /// Name, e-mail address or id
    user: String,
    /// Which month, such as 2026-11
    #[arg(long, value_name = "YYYY-MM", value_parser = Month::parse)]
    month: Month,
    /// Print comma-separated values: signed amounts, of which all but the last add up to the last
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code; 8 when the lines do not add up.
pub fn run(args: &StatementArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let user = admin::user(&store, &args.user).map_err(Failure::from)?;
    let statement = store
        .statement(user.id, args.month.span.clone())
        .map_err(Failure::from)?;
    if !statement.adds_up() {
        let (language, name, month) = (language(), &user.name, &args.month.name);
        let what = said!(
            language,
            en: "the entries of {name} in {month} do not lead to the balance",
            zh: "{name} 在 {month} 的条目与余额不符",
        );
        return Err(Failure::new(Exit::Books, what)
            .why(failure::altered(language))
            .fix(said!(
                language,
                en: "see what: gateway ledger verify",
                zh: "查看：gateway ledger verify",
            ))
            .into());
    }
    if global.json {
        return output::json(&StatementView::new(&statement, &args.month));
    }
    if args.csv {
        return output::print(&csv(&statement)).map(drop);
    }
    text(&statement, &args.month)
}

/// Kinds of entries but charges, and what they are called together.
const KINDS: [(&str, &str); 3] = [
    ("credit", "credits"),
    ("adjustment", "adjustments"),
    ("refund", "refunds"),
];

fn text(statement: &Statement, month: &Month) -> anyhow::Result<()> {
    let charged = negative(statement.charged());
    let moved = KINDS.map(|(kind, name)| (name, statement.moved(kind)));
    let lines = std::iter::once(("opening balance", statement.opening))
        .chain(moved)
        .chain([("charges", charged), ("closing balance", statement.closing)]);
    output::print(&format!("{}, {} (UTC)\n\n", statement.user.name, month.name))?;
    let rows = lines
        .map(|(name, usd)| vec![name.to_owned(), format!("{usd:#}")])
        .collect();
    output::table(&[Column::Left("balance"), Column::Right("amount")], rows)?;
    if !statement.movements.is_empty() {
        output::print("\n")?;
        let columns = [
            Column::Left("time (UTC)"),
            Column::Left("kind"),
            Column::Right("amount"),
            Column::Left("for"),
        ];
        output::table(&columns, statement.movements.iter().map(movement).collect())?;
    }
    if !statement.charges.is_empty() {
        output::print("\n")?;
        charges(statement)?;
    }
    Ok(())
}

fn movement(entry: &Entry) -> Vec<String> {
    vec![
        output::time(entry.at),
        entry.kind.clone(),
        format!("{:#}", entry.amount),
        output::about(entry),
    ]
}

fn charges(statement: &Statement) -> anyhow::Result<()> {
    let columns = [
        Column::Left("day"),
        Column::Left("model"),
        Column::Right("requests"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("charge"),
    ];
    let cells = |charges: &Charges| {
        vec![
            charges.day.clone(),
            output::plain(&charges.model),
            output::count(charges.exchanges),
            output::count(charges.input_tokens),
            output::count(charges.cached_tokens),
            output::count(charges.output_tokens),
            format!("{:#}", charges.amount),
        ]
    };
    let total = statement
        .charges
        .iter()
        .fold(Charges::default(), |sum, charges| Charges {
            day: "total".to_owned(),
            model: String::new(),
            exchanges: sum.exchanges + charges.exchanges,
            input_tokens: sum.input_tokens + charges.input_tokens,
            cached_tokens: sum.cached_tokens + charges.cached_tokens,
            output_tokens: sum.output_tokens + charges.output_tokens,
            amount: sum.amount.saturating_add(charges.amount),
        });
    output::table(&columns, statement.charges.iter().chain([&total]).map(cells).collect())
}

fn negative(usd: Usd) -> Usd {
    Usd::ZERO.saturating_sub(usd)
}

const CSV_COLUMNS: &str =
    "kind,day,time,model,exchanges,input_tokens,cached_tokens,output_tokens,amount,entry,exchange,reference,note\n";

fn csv(statement: &Statement) -> String {
    let balance = |kind: &str, at: Timestamp, usd: Usd| format!("{kind},{},,,,,,,{usd},,,,\n", day(at));
    let moved = |entry: &Entry| {
        let (kind, day, at, usd, seq) = (&entry.kind, day(entry.at), entry.at, entry.amount, entry.seq);
        let exchange = entry.refunds.map_or_else(String::new, |id| id.to_string());
        let text = |text: &Option<String>| csv_cell(text.as_deref().unwrap_or_default());
        let (reference, note) = (text(&entry.reference), text(&entry.note));
        format!("{kind},{day},{at},,,,,,{usd},{seq},{exchange},{reference},{note}\n")
    };
    let charged = |charges: &Charges| {
        let Charges {
            day,
            model,
            exchanges,
            input_tokens,
            cached_tokens,
            output_tokens,
            amount,
        } = charges;
        let (model, amount) = (csv_cell(model), negative(*amount));
        format!("charge,{day},,{model},{exchanges},{input_tokens},{cached_tokens},{output_tokens},{amount},,,,\n")
    };
    let mut out = CSV_COLUMNS.to_owned() + &balance("opening", statement.span.start, statement.opening);
    out.extend(statement.movements.iter().map(moved));
    out.extend(statement.charges.iter().map(charged));
    out + &balance("closing", statement.span.end, statement.closing)
}

fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d").to_string()
}

/// `statement --json`
#[derive(Serialize)]
struct StatementView {
    user: String,
    month: String,
    since: Timestamp,
    until: Timestamp,
    opening: Usd,
    movements: Vec<Movement>,
    charges: Vec<ChargesView>,
    totals: Totals,
    closing: Usd,
}

#[derive(Serialize)]
struct Movement {
    entry: i64,
    kind: String,
    at: Timestamp,
    amount: Usd,
    /// The exchange whose charge a refund gives back.
    exchange: Option<String>,
    reference: Option<String>,
    note: Option<String>,
}

#[derive(Serialize)]
struct ChargesView {
    day: String,
    model: String,
    exchanges: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    charge: Usd,
}

/// `opening + credits + adjustments + refunds − charges = closing`
#[derive(Serialize)]
struct Totals {
    credits: Usd,
    adjustments: Usd,
    refunds: Usd,
    charges: Usd,
}

impl StatementView {
    fn new(statement: &Statement, month: &Month) -> StatementView {
        let movement = |entry: &Entry| Movement {
            entry: entry.seq,
            kind: entry.kind.clone(),
            at: entry.at,
            amount: entry.amount,
            exchange: entry.refunds.map(|id| id.to_string()),
            reference: entry.reference.clone(),
            note: entry.note.clone(),
        };
        let charges = |charges: &Charges| ChargesView {
            day: charges.day.clone(),
            model: charges.model.clone(),
            exchanges: charges.exchanges,
            input_tokens: charges.input_tokens,
            cached_tokens: charges.cached_tokens,
            output_tokens: charges.output_tokens,
            charge: charges.amount,
        };
        StatementView {
            user: statement.user.name.clone(),
            month: month.name.clone(),
            since: statement.span.start,
            until: statement.span.end,
            opening: statement.opening,
            movements: statement.movements.iter().map(movement).collect(),
            charges: statement.charges.iter().map(charges).collect(),
            totals: Totals {
                credits: statement.moved("credit"),
                adjustments: statement.moved("adjustment"),
                refunds: statement.moved("refund"),
                charges: statement.charged(),
            },
            closing: statement.closing,
        }
    }
}

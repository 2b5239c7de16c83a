//! `gateway price …`

mod check;
mod diff;
mod differences;
mod file;
mod history;
mod import;
mod litellm;
mod set;
mod sheet;

use std::path::PathBuf;

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::failure::Failure;
use super::output::{self, Column, Items};
use super::values::{self, When};
use super::{Global, language};
use crate::admin::{AdminError, Thing};
use crate::language::Said;
use crate::pricing::{Class, Kind, ListName, Price};
use crate::said;
use crate::store::prices::{PriceRow, PriceSource};
use crate::store::{Create, Store};
use crate::time::now;

/// What to do with prices. A price belongs to a list and a model: the same model costs differently at two vendors.
#[derive(Debug, Subcommand)]
pub enum PriceCommand {
    /// The prices in force
    List {
        /// Only this model
        model: Option<String>,
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
    },
    /// Set rates of a model, in dollars per million tokens; what is not given stays as it is
    Set(Box<set::SetArgs>),
    /// Every price that a model had or will have: from when, when it was in force, who wrote it when
    History {
        /// The model, by its upstream's name
        model: String,
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
    },
    /// How a file's prices differ from those in force, one date's from another's, or yours from the catalogue's
    Diff(diff::DiffArgs),
    /// Read prices from a file: an export, as JSON or CSV, or LiteLLM's price map; shows the differences first
    Import {
        /// The file, or - for stdin
        file: PathBuf,
        /// Only this list; of a CSV file without lists, the list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
        /// In force from: a date (midnight UTC) or a time [default: the file's own dates, else now]
        #[arg(long, value_name = "DATE", value_parser = When::parse)]
        from: Option<When>,
        /// Write without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print the prices in force, and all of the operator's with their dates, so that `import` reads them: JSON, or CSV
    Export {
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
        /// A sheet to edit: a column for each rate, a line for each price, tier, long context and cheaper hours
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
    /// Say which configured models have no price; exit code 1 when there are any
    Check,
}

fn list_name(text: &str) -> Result<ListName, String> {
    values::read(ListName::parse, text)
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: PriceCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        PriceCommand::List { model, list } => show(list.as_ref(), model.as_deref(), global),
        PriceCommand::Set(args) => set::run(&args, global),
        PriceCommand::Import { file, list, from, yes } => import::run(&file, list.as_ref(), from, yes.into(), global),
        PriceCommand::History { model, list } => history::run(&model, list.as_ref(), global),
        PriceCommand::Diff(args) => diff::run(&args, global),
        PriceCommand::Export { list, csv: false } => export(list.as_ref(), global),
        PriceCommand::Export { list, csv: true } => {
            output::print(&sheet::write(&exported(list.as_ref(), global)?)?).map(drop)
        }
        PriceCommand::Check => check::run(global),
    }
}

/// A price in JSON documents.
#[derive(Serialize)]
struct PriceView {
    list: String,
    model: String,
    from: Timestamp,
    source: &'static str,
    price: Box<RawValue>,
}

impl PriceView {
    fn new(row: &PriceRow) -> anyhow::Result<PriceView> {
        Ok(PriceView {
            list: row.list.to_string(),
            model: row.model.clone(),
            from: row.from,
            source: row.source.word(),
            price: RawValue::from_string(row.price.to_json())?,
        })
    }
}

fn show(list: Option<&ListName>, model: Option<&str>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let rows = store.prices(list, model, now()).map_err(Failure::from)?;
    if rows.is_empty() {
        check_list(&store, list)?;
    }
    if let (Some(model), true) = (model, rows.is_empty()) {
        return Err(Failure::from(no_price(&store, list, model)?).into());
    }
    if global.json {
        let items = rows.iter().map(PriceView::new).collect::<Result<Vec<_>, _>>()?;
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("list"),
        Column::Left("model"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Left("also"),
        Column::Left("from"),
        Column::Left("by"),
    ];
    global.say(&unit());
    output::table(&columns, rows.iter().map(price_row).collect())
}

/// Refuses a list that has no price, past, present or to come.
fn check_list(store: &Store, list: Option<&ListName>) -> anyhow::Result<()> {
    let mut rows = store.prices(None, None, now()).map_err(Failure::from)?;
    rows.extend(store.operator_prices(None).map_err(Failure::from)?);
    match list {
        Some(list) if rows.iter().all(|row| row.list != *list) => {
            let nearest = crate::route::nearest(list.as_str(), rows.iter().map(|row| row.list.as_str()));
            let failure = Failure::from(AdminError::NotFound {
                what: Thing::PriceList,
                name: list.to_string(),
                nearest: nearest.map(str::to_owned),
            });
            Err(failure.into())
        }
        _ => Ok(()),
    }
}

fn no_price(store: &Store, list: Option<&ListName>, model: &str) -> anyhow::Result<AdminError> {
    let all = store.prices(list, None, now()).map_err(Failure::from)?;
    let nearest = crate::route::nearest(model, all.iter().map(|row| row.model.as_str()));
    Ok(AdminError::NotFound {
        what: Thing::Price { list: None },
        name: model.to_owned(),
        nearest: nearest.map(str::to_owned),
    })
}

/// What the rates of a table are.
fn unit() -> Said {
    said!(
        language(),
        en: "dollars per million tokens; --json has every rate",
        zh: "美元/百万 token；--json 列出每种费率",
    )
}

fn price_row(row: &PriceRow) -> Vec<String> {
    let mut cells = vec![row.list.to_string(), output::plain(&row.model)];
    cells.extend(main_rates(&row.price));
    cells.extend([
        also(&row.price),
        output::time(row.from).split(' ').next().unwrap_or_default().to_owned(),
        row.source.word().to_owned(),
    ]);
    cells
}

/// The rates of plain input, cached input and output.
fn main_rates(price: &Price) -> [String; 3] {
    let (input, output_class) = match price.kind {
        Kind::Text | Kind::Embedding | Kind::Transcription | Kind::Speech => (Class::Input, Class::Output),
        Kind::Image => (Class::ImageTextInput, Class::ImageOutput),
    };
    let rate = |class: Class| price.rates.get(&class).map_or("-".to_owned(), ToString::to_string);
    [rate(input), rate(Class::CachedInput), rate(output_class)]
}

/// What else a price is made of, in words.
fn also(price: &Price) -> String {
    let parts = parts(price);
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

/// What else a price is made of.
fn parts(price: &Price) -> Vec<String> {
    let mut parts: Vec<String> = price.tiers.keys().map(|tier| tier.name().to_owned()).collect();
    parts.extend(
        price
            .steps
            .first()
            .map(|step| format!("above {}", output::count(step.above))),
    );
    parts.extend(price.off_peak.as_ref().map(|_| "off-peak".to_owned()));
    parts.extend((!price.fees.is_empty()).then(|| "tools".to_owned()));
    parts
}

/// An export.
#[derive(Serialize)]
struct Export {
    prices: Vec<PriceView>,
}

/// The catalogue's prices in force, and all of the operator's.
fn exported(list: Option<&ListName>, global: &Global) -> anyhow::Result<Vec<PriceRow>> {
    let store = global.store(Create::Never)?;
    let mut rows = store.prices(list, None, now()).map_err(Failure::from)?;
    rows.retain(|row| row.source == PriceSource::Catalogue);
    rows.extend(store.operator_prices(list).map_err(Failure::from)?);
    if rows.is_empty() {
        check_list(&store, list)?;
    }
    rows.sort_by(|a, b| (&a.list, &a.model, a.from).cmp(&(&b.list, &b.model, b.from)));
    Ok(rows)
}

fn export(list: Option<&ListName>, global: &Global) -> anyhow::Result<()> {
    let rows = exported(list, global)?;
    let prices = rows.iter().map(PriceView::new).collect::<Result<Vec<_>, _>>()?;
    output::json(&Export { prices })
}

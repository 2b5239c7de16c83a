//! `gateway price …`

mod check;
mod import;
mod litellm;
mod set;

use std::path::PathBuf;

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::Global;
use super::failure::Failure;
use super::output::{self, Column, Items};
use super::values::When;
use crate::admin::{AdminError, PriceChange};
use crate::pricing::{Class, Kind, ListName, Price};
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
    /// Read prices from a file: an export, or LiteLLM's price map; shows the differences first
    Import {
        /// The file, or - for stdin
        file: PathBuf,
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
        /// In force from: a date (midnight UTC) or a time [default: now; an export's own dates]
        #[arg(long, value_name = "DATE", value_parser = When::parse)]
        from: Option<When>,
        /// Write without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print the prices in force, and all of the operator's with their dates, as JSON that `import` reads
    Export {
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
    },
    /// Say which configured models have no price; exit code 1 when there are any
    Check,
}

fn list_name(text: &str) -> Result<ListName, String> {
    ListName::parse(text).map_err(|error| error.to_string())
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
        PriceCommand::Export { list } => export(list.as_ref(), global),
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
    global.say("dollars per million tokens; --json has every rate");
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
                what: "price list",
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
        what: "price for the model",
        name: model.to_owned(),
        nearest: nearest.map(str::to_owned),
    })
}

fn price_row(row: &PriceRow) -> Vec<String> {
    let rates = &row.price.rates;
    let (input, output_class) = match row.price.kind {
        Kind::Text | Kind::Embedding => (Class::Input, Class::Output),
        Kind::Image => (Class::ImageTextInput, Class::ImageOutput),
    };
    let also = also(&row.price);
    let rate = |class: Class| rates.get(&class).map_or("-".to_owned(), ToString::to_string);
    vec![
        row.list.to_string(),
        output::plain(&row.model),
        rate(input),
        rate(Class::CachedInput),
        rate(output_class),
        if also.is_empty() {
            "-".to_owned()
        } else {
            also.join(", ")
        },
        output::time(row.from).split(' ').next().unwrap_or_default().to_owned(),
        row.source.word().to_owned(),
    ]
}

/// What else a price is made of.
fn also(price: &Price) -> Vec<String> {
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

fn export(list: Option<&ListName>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let mut rows = store.prices(list, None, now()).map_err(Failure::from)?;
    rows.retain(|row| row.source == PriceSource::Catalogue);
    rows.extend(store.operator_prices(list).map_err(Failure::from)?);
    if rows.is_empty() {
        check_list(&store, list)?;
    }
    rows.sort_by(|a, b| (&a.list, &a.model, a.from).cmp(&(&b.list, &b.model, b.from)));
    let prices = rows.iter().map(PriceView::new).collect::<Result<Vec<_>, _>>()?;
    output::json(&Export { prices })
}

/// One changed field in JSON documents.
#[derive(Serialize)]
struct ChangeView {
    list: String,
    model: String,
    from: Timestamp,
    field: String,
    before: Option<String>,
    after: Option<String>,
}

fn show_changes(changes: &[PriceChange], global: &Global) -> anyhow::Result<()> {
    let all = changes.iter().flat_map(|change| {
        let view = |(field, before, after): &(String, Option<String>, Option<String>)| ChangeView {
            list: change.spec.list.to_string(),
            model: change.spec.model.clone(),
            from: change.spec.from,
            field: field.clone(),
            before: before.clone(),
            after: after.clone(),
        };
        change.fields.iter().map(view).collect::<Vec<_>>()
    });
    if global.json {
        return output::json(&Items { items: all.collect() });
    }
    let dated = changes
        .windows(2)
        .any(|pair| matches!(pair, [one, next] if one.spec.from != next.spec.from));
    let mut columns = vec![
        Column::Left("list"),
        Column::Left("model"),
        Column::Left("what"),
        Column::Right("before"),
        Column::Right("after"),
    ];
    columns.extend(dated.then_some(Column::Left("from")));
    let none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = all
        .map(|view| {
            let mut cells = vec![
                view.list,
                output::plain(&view.model),
                view.field,
                none(view.before),
                none(view.after),
            ];
            cells.extend(dated.then(|| output::time(view.from)));
            cells
        })
        .collect();
    if rows.is_empty() {
        Ok(())
    } else {
        output::table(&columns, rows)
    }
}

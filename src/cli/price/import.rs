//! `gateway price import`: our own export or LiteLLM's price map, shown first, written with consent.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{litellm, show_changes};
use crate::admin::{self, PriceSpec};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output;
use crate::cli::values::When;
use crate::cli::{Global, actor};
use crate::pricing::{ListName, Price};
use crate::store::{Create, Store};
use crate::time::now;

/// The largest file that is imported, in bytes.
const MAX_IMPORT: u64 = 64 << 20;

/// Whether to ask before writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Consent {
    Given,
    Ask,
}

impl From<bool> for Consent {
    fn from(yes: bool) -> Consent {
        if yes { Consent::Given } else { Consent::Ask }
    }
}

#[derive(Deserialize)]
struct ImportDoc<'a> {
    #[serde(borrow)]
    prices: Vec<ImportRow<'a>>,
}

#[derive(Deserialize)]
struct ImportRow<'a> {
    list: String,
    model: String,
    from: Timestamp,
    #[serde(borrow)]
    price: &'a RawValue,
}

pub(super) fn run(
    file: &Path,
    list: Option<&ListName>,
    from: Option<When>,
    consent: Consent,
    global: &Global,
) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let at = now();
    let text = read_import(file)?;
    let from = from.map(|when| when.ahead(at));
    let mut specs = if litellm::is_map(&text) {
        let specs = of_litellm(&text, from.unwrap_or(at), global)?;
        keeping_what_the_map_does_not_know(&store, specs)?
    } else {
        of_export(&text, from)?
    };
    specs.retain(|spec| list.is_none_or(|list| spec.list == *list));
    let changes = admin::price_changes(&store, specs).map_err(Failure::from)?;
    show_changes(&changes, global)?;
    if changes.is_empty() {
        global.say("nothing differs from the prices in force");
        return Ok(());
    }
    if !agreed(changes.len(), consent, global)? {
        return Ok(());
    }
    admin::set_prices(&store, &changes, &actor(), at).map_err(Failure::from)?;
    global.say(&format!("{} prices written", changes.len()));
    Ok(())
}

fn read_import(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(MAX_IMPORT + 1).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(MAX_IMPORT + 1).read_to_string(&mut text)),
    };
    let failure = |exit, why: String| Failure::new(exit, format!("{} cannot be read", file.display())).why(why);
    match read {
        Ok(bytes) if u64::try_from(bytes)? > MAX_IMPORT => {
            Err(failure(Exit::Usage, "larger than 64 MiB".into()).into())
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(failure(Exit::NotFound, error.to_string()).into())
        }
        Err(error) => Err(failure(Exit::Failed, error.to_string()).into()),
    }
}

fn not_imported(why: impl std::fmt::Display) -> Failure {
    let failure = Failure::new(Exit::Usage, "nothing was imported").why(why.to_string());
    failure.fix("give what `gateway price export` prints, or LiteLLM's model_prices_and_context_window.json")
}

fn of_export(text: &str, from: Option<Timestamp>) -> Result<Vec<PriceSpec>, Failure> {
    let doc: ImportDoc<'_> = serde_json::from_str(text).map_err(not_imported)?;
    let spec = |row: ImportRow<'_>| {
        let price = Price::from_json(row.price.get()).map_err(|why| not_imported(format!("{}: {why}", row.model)))?;
        Ok(PriceSpec {
            list: ListName::parse(&row.list).map_err(not_imported)?,
            model: row.model,
            from: from.unwrap_or(row.from),
            price,
        })
    };
    doc.prices.into_iter().map(spec).collect()
}

fn of_litellm(text: &str, from: Timestamp, global: &Global) -> Result<Vec<PriceSpec>, Failure> {
    let read = litellm::read(text).map_err(not_imported)?;
    for (model, why) in &read.left_out {
        global.say(&format!("left out {}: {}", output::plain(model), output::plain(why)));
    }
    let spec = |(list, model, price)| PriceSpec {
        list,
        model,
        from,
        price,
    };
    Ok(read.prices.into_iter().map(spec).collect())
}

/// The map says nothing of tool fees, uplifts and off-peak hours: what is in force stays.
fn keeping_what_the_map_does_not_know(store: &Store, specs: Vec<PriceSpec>) -> Result<Vec<PriceSpec>, Failure> {
    let keep = |mut spec: PriceSpec| {
        if let Some(row) = store.price(&spec.list, &spec.model, spec.from)? {
            spec.price.fees = row.price.fees.clone();
            spec.price.regional_uplift = row.price.regional_uplift;
            spec.price.off_peak = row.price.off_peak.clone();
            spec.price.context_window = row.price.context_window;
        }
        Ok(spec)
    };
    specs
        .into_iter()
        .map(keep)
        .collect::<Result<_, crate::store::StoreError>>()
        .map_err(Failure::from)
}

/// Asks on a terminal; elsewhere nothing is written without `--yes`.
fn agreed(prices: usize, consent: Consent, global: &Global) -> anyhow::Result<bool> {
    if consent == Consent::Given {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        global.say(&format!("nothing was written; add --yes to write {prices} prices"));
        return Ok(false);
    }
    eprint!("write {prices} prices? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        global.say("nothing was written");
    }
    Ok(yes)
}

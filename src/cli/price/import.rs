//! `gateway price import`: our own export or LiteLLM's price map, shown first, written with consent.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{litellm, show_changes};
use crate::admin::{self, PriceSpec, Same};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output;
use crate::cli::prompt::{self, Consent};
use crate::cli::values::When;
use crate::cli::{Global, actor};
use crate::pricing::{ListName, Price};
use crate::route::nearest;
use crate::store::{Create, Store};
use crate::time::now;

/// The largest file that is imported, in bytes.
const MAX_IMPORT: u64 = 64 << 20;

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
    /// A row of the catalogue's is there to be read: it is written only where it says something else.
    source: Option<Source>,
    #[serde(borrow)]
    price: &'a RawValue,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Source {
    Operator,
    Catalogue,
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
        let specs = of_litellm(&text, list, from.unwrap_or(at), global)?;
        keeping_what_the_map_does_not_know(&store, specs)?
    } else {
        of_export(&text, from)?
    };
    if let Some(list) = list {
        specs = only(list, specs, file)?;
    }
    let changes = admin::price_changes(&store, specs).map_err(Failure::from)?;
    show_changes(&changes, global)?;
    if changes.is_empty() {
        global.say("nothing differs from the prices in force");
        return Ok(());
    }
    if !prompt::agreed(
        &format!("write {}?", output::counted(changes.len(), "price")),
        consent,
        global,
    )? {
        return Ok(());
    }
    admin::set_prices(&store, &changes, &actor(), at).map_err(Failure::from)?;
    global.say(&format!("{} written", output::counted(changes.len(), "price")));
    Ok(())
}

/// The prices of one list; a file that has none is not what was meant.
fn only(list: &ListName, mut specs: Vec<PriceSpec>, file: &Path) -> Result<Vec<PriceSpec>, Failure> {
    let lists: BTreeSet<String> = specs.iter().map(|spec| spec.list.to_string()).collect();
    specs.retain(|spec| spec.list == *list);
    if !specs.is_empty() {
        return Ok(specs);
    }
    let what = format!("{} has no prices for the list '{list}'", file.display());
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    Err(match lists.is_empty() {
        true => Failure::new(Exit::NotFound, what).why("it has none for any list"),
        false => Failure {
            near: nearest(list.as_str(), lists.iter().copied()).map(str::to_owned),
            ..Failure::new(Exit::NotFound, what).fix(format!("give --list one of {}", lists.join(", ")))
        },
    })
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
            let failure = failure(Exit::NotFound, error.to_string());
            Err(failure
                .fix("name what `gateway price export` wrote, or LiteLLM's price map; - reads stdin")
                .into())
        }
        Err(error) => Err(failure(Exit::Failed, error.to_string()).into()),
    }
}

fn not_imported(why: impl std::fmt::Display) -> Failure {
    let failure = Failure::new(Exit::Usage, "nothing was imported").why(why.to_string());
    failure.fix("give what `gateway price export` prints, or LiteLLM's model_prices_and_context_window.json")
}

fn of_export(text: &str, from: Option<Timestamp>) -> Result<Vec<PriceSpec>, Failure> {
    let mut doc: ImportDoc<'_> = serde_json::from_str(text).map_err(not_imported)?;
    if let Some(at) = from {
        keep_what_holds(at, &mut doc.prices);
    }
    let spec = |row: ImportRow<'_>| {
        let price = Price::from_json(row.price.get()).map_err(|why| not_imported(format!("{}: {why}", row.model)))?;
        Ok(PriceSpec {
            list: ListName::parse(&row.list).map_err(not_imported)?,
            model: row.model,
            from: from.unwrap_or(row.from),
            price,
            same: match row.source {
                Some(Source::Catalogue) => Same::Skip,
                Some(Source::Operator) | None => Same::Pin,
            },
        })
    };
    doc.prices.into_iter().map(spec).collect()
}

/// With one date for all, a model is there once: with the row that the file has in force then, else its last.
fn keep_what_holds(at: Timestamp, rows: &mut Vec<ImportRow<'_>>) {
    let rank = |row: &ImportRow<'_>| (row.from > at, row.source, Reverse(row.from));
    rows.sort_by(|a, b| (&a.list, &a.model, rank(a)).cmp(&(&b.list, &b.model, rank(b))));
    rows.dedup_by(|next, best| (&next.list, &next.model) == (&best.list, &best.model));
}

fn of_litellm(
    text: &str,
    list: Option<&ListName>,
    from: Timestamp,
    global: &Global,
) -> Result<Vec<PriceSpec>, Failure> {
    let read = litellm::read(text).map_err(not_imported)?;
    for (model, why) in &read.left_out {
        global.say(&format!("left out {}: {}", output::plain(model), output::plain(why)));
    }
    for (of, note) in &read.zeros {
        if list.is_none_or(|list| list == of) {
            global.say(&output::plain(note));
        }
    }
    let spec = |(list, model, price)| PriceSpec {
        list,
        model,
        from,
        price,
        same: Same::Skip,
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

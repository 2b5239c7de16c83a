//! `gateway price diff`: a file against what is in force, one date against another, or your prices against the
//! catalogue's. Nothing is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use super::differences::{self, Difference};
use super::file::{self, Wanted};
use super::{check_list, list_name};
use crate::admin;
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::cli::values::When;
use crate::cli::{Global, language};
use crate::pricing::ListName;
use crate::said;
use crate::store::prices::{PriceRow, PriceSource};
use crate::store::{Create, Store};
use crate::time::now;

/// `gateway price diff`
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// What `import` reads: how its prices differ from those in force [default: your prices against the catalogue's]
    file: Option<PathBuf>,
    /// Only this list
    #[arg(long, value_name = "NAME", value_parser = list_name)]
    list: Option<ListName>,
    /// The earlier date, or a span back; of a file, the date from which its prices would count
    #[arg(long, value_name = "DATE", value_parser = When::parse)]
    from: Option<When>,
    /// The later date, or a span back [default: now]
    #[arg(long, value_name = "DATE", value_parser = When::parse, requires = "from", conflicts_with = "file")]
    to: Option<When>,
}

pub(super) fn run(args: &DiffArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let (at, list) = (now(), args.list.as_ref());
    let (found, names, same) = match (&args.file, args.from) {
        (Some(path), from) => {
            let wanted = Wanted {
                file: path,
                list,
                from: from.map(|when| when.ahead(at)),
                at,
                in_vain: said!(language(), en: "nothing was compared", zh: "没有比较任何内容"),
            };
            let changes = admin::price_changes(&store, wanted.read(&store, global)?).map_err(Failure::from)?;
            let found = changes.iter().map(Difference::of_change).collect();
            (found, ["in force", "file"], file::nothing_differs())
        }
        (None, Some(from)) => {
            check_list(&store, list)?;
            let to = args.to.map_or(at, |when| when.ago(at));
            let found = between_dates(&store, list, from.ago(at), to)?;
            let same = said!(
                language(),
                en: "nothing differs between the two dates",
                zh: "两个日期之间没有差异",
            );
            (found, ["before", "after"], same)
        }
        (None, None) => {
            check_list(&store, list)?;
            let found = from_the_catalogue(&store, list, at, global)?;
            let same = said!(
                language(),
                en: "no price of yours differs from the catalogue's",
                zh: "您的价格与目录没有差异",
            );
            (found, ["catalogue", "yours"], same)
        }
    };
    if found.is_empty() {
        global.say(&same);
    }
    differences::show(found, names, global)
}

fn between_dates(
    store: &Store,
    list: Option<&ListName>,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Difference>, Failure> {
    let by_model = |at| -> Result<BTreeMap<(ListName, String), PriceRow>, Failure> {
        let rows = store.prices(list, None, at).map_err(Failure::from)?;
        Ok(rows
            .into_iter()
            .map(|row| ((row.list.clone(), row.model.clone()), row))
            .collect())
    };
    let (before, after) = (by_model(from)?, by_model(to)?);
    // In force at one date only: a model that got its first price between them.
    let mut models: Vec<_> = before.keys().chain(after.keys()).collect();
    models.sort();
    models.dedup();
    let between = |model| Difference::between(before.get(model), after.get(model));
    Ok(models.into_iter().filter_map(between).collect())
}

fn from_the_catalogue(
    store: &Store,
    list: Option<&ListName>,
    at: Timestamp,
    global: &Global,
) -> Result<Vec<Difference>, Failure> {
    let mut own = store.prices(list, None, at).map_err(Failure::from)?;
    own.retain(|row| row.source == PriceSource::Operator);
    let (mut found, mut unknown) = (Vec::new(), 0);
    for row in &own {
        match store
            .catalogue_price(&row.list, &row.model, at)
            .map_err(Failure::from)?
        {
            Some(theirs) => found.extend(Difference::between(Some(&theirs), Some(row))),
            None => unknown += 1,
        }
    }
    if unknown > 0 {
        let prices = output::counted(unknown, "price");
        global.say(&said!(
            language(),
            en: "{prices} of yours, for models that the catalogue has not",
            zh: "您的 {unknown} 个价格所属的模型不在目录中",
        ));
    }
    Ok(found)
}

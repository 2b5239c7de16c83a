//! `gateway price check`: configured models that calls would be refused for.

use serde::Serialize;

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Column, Items};
use crate::cli::{Global, open};
use crate::config::{Pricing, UpstreamConfig};
use crate::route::{model_allowed, nearest};
use crate::store::{Create, Store};
use crate::time::now;

/// A configured model without a price.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Unpriced {
    upstream: String,
    list: String,
    model: String,
    alias: Option<String>,
    nearest: Option<String>,
    fix: String,
}

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let store = open(&config.database, Create::Never)?;
    let mut unpriced = Vec::new();
    for upstream in &config.upstreams {
        unpriced.extend(unpriced_of(&store, upstream)?);
    }
    let fine = match config.upstreams.len() {
        0 => "no upstream is configured, so there is nothing to check\n",
        _ => "every configured model has a price\n",
    };
    report(&unpriced, fine, global)?;
    if unpriced.is_empty() {
        return Ok(());
    }
    let what = format!("{} configured models have no price", unpriced.len());
    let failure = Failure::new(Exit::Failed, what).why("calls to them are refused: there is no default price");
    Err(failure.fix(unpriced[0].fix.clone()).into())
}

fn report(unpriced: &[Unpriced], fine: &str, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return output::json(&Items {
            items: unpriced.iter().collect(),
        });
    }
    if unpriced.is_empty() {
        return output::print(fine).map(drop);
    }
    let columns = ["upstream", "list", "model without a price", "alias", "nearest"].map(Column::Left);
    let none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let row = |one: &Unpriced| {
        vec![
            one.upstream.clone(),
            one.list.clone(),
            output::plain(&one.model),
            none(&one.alias),
            none(&one.nearest),
        ]
    };
    output::table(&columns, unpriced.iter().map(row).collect())
}

/// Models named in `models`, aliases' targets, and patterns that fit no priced model.
fn unpriced_of(store: &Store, upstream: &UpstreamConfig) -> anyhow::Result<Vec<Unpriced>> {
    let list = match &upstream.prices {
        Pricing::Free => return Ok(Vec::new()),
        Pricing::List(list) => list,
    };
    let rows = store.prices(Some(list), None, now()).map_err(Failure::from)?;
    let priced: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    let patterns = upstream.models.iter().filter(|pattern| !fits_any(pattern, &priced));
    let aliases = upstream
        .aliases
        .iter()
        .filter(|(_, model)| !priced.contains(&model.as_str()));
    let one = |model: &str, alias: Option<&str>| Unpriced {
        upstream: upstream.name.clone(),
        list: list.to_string(),
        model: model.to_owned(),
        alias: alias.map(str::to_owned),
        nearest: nearest(model, priced.iter().copied()).map(str::to_owned),
        fix: format!(
            "gateway price set {} --list {list} --input USD --output USD",
            if model.contains('*') {
                "MODEL".to_owned()
            } else {
                output::shell_word(model)
            }
        ),
    };
    Ok(patterns
        .map(|pattern| one(pattern, None))
        .chain(aliases.map(|(alias, model)| one(model, Some(alias))))
        .collect())
}

fn fits_any(pattern: &str, models: &[&str]) -> bool {
    let pattern = [pattern.to_owned()];
    models.iter().any(|model| model_allowed(&pattern, model))
}

//! Prices: what would change, what is written, and which models lack one.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AdminError, Done, Forbidden, Thing, done};
use crate::config::{Config, Pricing, UpstreamConfig};
use crate::pricing::{ListName, Price};
use crate::route::{model_allowed, nearest};
use crate::store::prices::PriceSource;
use crate::store::{Actor, Store};

/// A price to write.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceSpec {
    /// The list.
    pub list: ListName,
    /// The model.
    pub model: String,
    /// In force from.
    pub from: Timestamp,
    /// The rates.
    pub price: Price,
    /// What becomes of it when the catalogue says the same.
    pub same: Same,
}

/// What becomes of a price that is the catalogue's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// It is written: it holds when a later catalogue says something else.
    Pin,
    /// It is left out: the catalogue goes on deciding.
    Skip,
}

/// What writing a price would change.
#[derive(Clone, Debug)]
pub struct PriceChange {
    /// What would be written.
    pub spec: PriceSpec,
    /// Field, what is in force at that time, what would be.
    pub fields: Vec<FieldChange>,
}

/// A field of a price, what it says before, and what after.
pub type FieldChange = (String, Option<String>, Option<String>);

/// What of the prices differs from those in force when they would begin. A price that is the operator's already is
/// left out; one that is only the catalogue's so far, as it says itself.
///
/// # Errors
/// The database failed.
pub fn price_changes(store: &Store, specs: Vec<PriceSpec>) -> Done<Vec<PriceChange>> {
    let mut changes = Vec::new();
    for spec in &specs {
        let before = store.price(&spec.list, &spec.model, spec.from)?;
        let mut fields = price_differences(before.as_ref().map(|row| row.price.as_ref()), Some(&spec.price));
        if let (Some(row), true) = (&before, fields.is_empty()) {
            let comes_between = |other: &PriceSpec| {
                (&other.list, &other.model) == (&spec.list, &spec.model) && (row.from..spec.from).contains(&other.from)
            };
            let field = |name: &str, before: String, after: String| (name.to_owned(), Some(before), Some(after));
            fields.push(match (row.source, spec.same) {
                (PriceSource::Operator, _) if specs.iter().any(comes_between) => {
                    field("from", row.from.to_string(), spec.from.to_string())
                }
                (PriceSource::Operator, _) | (PriceSource::Catalogue, Same::Skip) => continue,
                (PriceSource::Catalogue, Same::Pin) => field(
                    "by",
                    row.source.word().to_owned(),
                    PriceSource::Operator.word().to_owned(),
                ),
            });
        }
        changes.push(PriceChange {
            spec: spec.clone(),
            fields,
        });
    }
    Ok(changes)
}

/// The fields in which two prices differ.
pub fn price_differences(before: Option<&Price>, after: Option<&Price>) -> Vec<FieldChange> {
    // What there is not has no fields.
    let before = before.map(price_fields).unwrap_or_default();
    let after = after.map(price_fields).unwrap_or_default();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    names
        .into_iter()
        .map(|name| (name.clone(), before.get(name).cloned(), after.get(name).cloned()))
        .filter(|(_, before, after)| before != after)
        .collect()
}

/// A price as flat fields: `rates.input`, `tiers.flex.rates.output`, `steps.0.above`.
pub fn price_fields(price: &Price) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    flatten("", &json!(price), &mut fields);
    fields
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let under = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| flatten(&under(key), value, into)),
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(at, value)| flatten(&under(&at.to_string()), value, into));
        }
        Value::String(text) => drop(into.insert(path.to_owned(), text.clone())),
        other => drop(into.insert(path.to_owned(), other.to_string())),
    }
}

/// Writes prices, all or none. The operator's rows win over the catalogue's from their date on; past bills stay.
///
/// # Errors
/// The database failed.
pub fn set_prices(store: &Store, changes: &[PriceChange], by: &Actor, now: Timestamp) -> Done<()> {
    let rows: Vec<_> = changes
        .iter()
        .map(|PriceChange { spec, .. }| (spec.list.clone(), spec.model.clone(), spec.from, spec.price.clone()))
        .collect();
    done(store.set_prices(&rows, by, now), |()| {
        AdminError::NotAllowed(Forbidden::PriceTwice)
    })
}

/// The price of a model in a list at a time.
///
/// # Errors
/// There is none, with the nearest model that has one; the database failed.
pub fn price(store: &Store, list: &ListName, model: &str, at: Timestamp) -> Done<(Price, PriceSource)> {
    if let Some(row) = store.price(list, model, at)? {
        return Ok((row.price.as_ref().clone(), row.source));
    }
    let rows = store.prices(Some(list), None, at)?;
    Err(AdminError::NotFound {
        what: Thing::Price {
            list: Some(list.clone()),
        },
        name: model.to_owned(),
        nearest: nearest(model, rows.iter().map(|row| row.model.as_str())).map(str::to_owned),
    })
}

/// A configured model without a price: calls to it are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpriced {
    /// The upstream that would serve it.
    pub upstream: String,
    /// The list that lacks it.
    pub list: ListName,
    /// The model, or the pattern that fits none with a price.
    pub model: String,
    /// The alias that stands for it.
    pub alias: Option<String>,
    /// The nearest model that has a price.
    pub nearest: Option<String>,
}

/// The configured models that have no price at a time: those named in `models`, targets of aliases, and patterns that
/// fit no model with a price. What is free lacks none.
///
/// # Errors
/// The database failed.
pub fn unpriced(store: &Store, config: &Config, at: Timestamp) -> Done<Vec<Unpriced>> {
    let mut all = Vec::new();
    for upstream in &config.upstreams {
        if let Pricing::List(list) = &upstream.prices {
            let rows = store.prices(Some(list), None, at)?;
            let priced: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
            all.extend(unpriced_of(upstream, list, &priced));
        }
    }
    Ok(all)
}

fn unpriced_of(upstream: &UpstreamConfig, list: &ListName, priced: &[&str]) -> Vec<Unpriced> {
    let fits_none = |pattern: &&String| {
        let pattern = std::slice::from_ref(*pattern);
        !priced.iter().any(|model| model_allowed(pattern, model))
    };
    let patterns = upstream.models.iter().filter(fits_none).map(|model| (model, None));
    let aliases = upstream.aliases.iter().map(|(alias, model)| (model, Some(alias)));
    let targets = aliases.filter(|(model, _)| !priced.contains(&model.as_str()));
    let one = |(model, alias): (&String, Option<&String>)| Unpriced {
        upstream: upstream.name.clone(),
        list: list.clone(),
        model: model.clone(),
        alias: alias.cloned(),
        nearest: nearest(model, priced.iter().copied()).map(str::to_owned),
    };
    patterns.chain(targets).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_differs_where_its_fields_do() {
        let of = |text: &str| Price::from_json(text).expect("a price");
        let old = of(r#"{"kind":"text","rates":{"input":"1","output":"2"}}"#);
        let new = of(r#"{"kind":"text","rates":{"input":"1","output":"3","cached_input":"0.1"}}"#);
        assert_eq!(
            price_differences(Some(&old), Some(&new)),
            [
                ("rates.cached_input".to_owned(), None, Some("0.1".to_owned())),
                ("rates.output".to_owned(), Some("2".to_owned()), Some("3".to_owned())),
            ]
        );
        assert!(price_differences(Some(&old), Some(&old)).is_empty());
        assert_eq!(price_differences(None, Some(&old)).len(), 3);
    }
}

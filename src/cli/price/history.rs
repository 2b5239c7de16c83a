//! `gateway price history`: every price that a model ever had, when each was in force, and who wrote it when.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{also, check_list, main_rates, no_price, unit};
use crate::cli::Global;
use crate::cli::failure::Failure;
use crate::cli::output::{self, Column, Items};
use crate::pricing::ListName;
use crate::store::Create;
use crate::store::prices::{InForce, PriceVersion};
use crate::time::now;

/// A version in JSON documents.
#[derive(Serialize)]
struct VersionView {
    list: String,
    model: String,
    from: Timestamp,
    source: &'static str,
    recorded_at: Timestamp,
    by: Option<String>,
    in_force: Option<InForceView>,
    price: Box<RawValue>,
}

#[derive(Serialize)]
struct InForceView {
    from: Timestamp,
    until: Option<Timestamp>,
}

impl VersionView {
    fn new(version: &PriceVersion) -> anyhow::Result<VersionView> {
        let row = &version.row;
        Ok(VersionView {
            list: row.list.to_string(),
            model: row.model.clone(),
            from: row.from,
            source: row.source.word(),
            recorded_at: version.recorded,
            by: version.by.clone(),
            in_force: version
                .in_force
                .map(|InForce { from, until }| InForceView { from, until }),
            price: RawValue::from_string(row.price.to_json())?,
        })
    }
}

pub(super) fn run(model: &str, list: Option<&ListName>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let versions = store.price_history(list, model).map_err(Failure::from)?;
    if versions.is_empty() {
        check_list(&store, list)?;
        return Err(Failure::from(no_price(&store, list, model)?).into());
    }
    if global.json {
        let items = versions.iter().map(VersionView::new).collect::<Result<Vec<_>, _>>()?;
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("list"),
        Column::Left("from"),
        Column::Left("in force"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Left("also"),
        Column::Left("by"),
        Column::Left("recorded"),
    ];
    let at = now();
    global.say(&unit());
    output::table(&columns, versions.iter().map(|version| cells(version, at)).collect())
}

fn cells(version: &PriceVersion, now: Timestamp) -> Vec<String> {
    let row = &version.row;
    let in_force = match version.in_force {
        None => "never".to_owned(),
        Some(InForce { from, until: None }) if from <= now => format!("since {}", output::time(from)),
        Some(InForce { from, until: None }) => format!("from {}", output::time(from)),
        Some(InForce {
            from,
            until: Some(until),
        }) => format!("{} to {}", output::time(from), output::time(until)),
    };
    let mut cells = vec![row.list.to_string(), output::time(row.from), in_force];
    cells.extend(main_rates(&row.price));
    cells.extend([
        also(&row.price),
        version
            .by
            .as_deref()
            .map_or(row.source.word().to_owned(), output::plain),
        output::time(version.recorded),
    ]);
    cells
}

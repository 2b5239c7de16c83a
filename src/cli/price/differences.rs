//! How prices differ, field by field.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;

use crate::admin::{FieldChange, PriceChange, price_differences};
use crate::cli::Global;
use crate::cli::output::{self, Column, Items};
use crate::pricing::ListName;
use crate::store::prices::PriceRow;

/// What differs of a model's price.
pub(super) struct Difference {
    list: ListName,
    model: String,
    /// From when the later of both counts.
    from: Timestamp,
    fields: Vec<FieldChange>,
}

impl Difference {
    pub(super) fn of_change(change: &PriceChange) -> Difference {
        Difference {
            list: change.spec.list.clone(),
            model: change.spec.model.clone(),
            from: change.spec.from,
            fields: change.fields.clone(),
        }
    }

    /// Of two rows, one at least of a model; `None`: they say the same.
    pub(super) fn between(before: Option<&PriceRow>, after: Option<&PriceRow>) -> Option<Difference> {
        let row = after.or(before)?;
        let price = |row: Option<&PriceRow>| row.map(|row| row.price.clone());
        let fields = price_differences(price(before).as_deref(), price(after).as_deref());
        (!fields.is_empty()).then(|| Difference {
            list: row.list.clone(),
            model: row.model.clone(),
            from: row.from,
            fields,
        })
    }
}

/// One field in JSON documents.
#[derive(Serialize)]
struct View {
    list: String,
    model: String,
    from: Timestamp,
    field: String,
    before: Option<String>,
    after: Option<String>,
    /// How much more the latter is, in percent of the former; of rates only.
    percent: Option<String>,
}

/// Shows differences; `names` are those of the columns of what was and what is.
///
/// # Errors
/// Stdout cannot be written.
pub(super) fn show(
    all: impl IntoIterator<Item = Difference>,
    names: [&'static str; 2],
    global: &Global,
) -> anyhow::Result<()> {
    let views: Vec<View> = all.into_iter().flat_map(views).collect();
    if global.json {
        return output::json(&Items { items: views });
    }
    if views.is_empty() {
        return Ok(());
    }
    let dated = views
        .windows(2)
        .any(|pair| matches!(pair, [one, next] if one.from != next.from));
    let [before, after] = names;
    let mut columns = vec![
        Column::Left("list"),
        Column::Left("model"),
        Column::Left("what"),
        Column::Right(before),
        Column::Right(after),
        Column::Right("change"),
    ];
    columns.extend(dated.then_some(Column::Left("from")));
    let none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let row = |view: View| {
        let percent = view.percent.map(|percent| match percent.starts_with('-') {
            true => format!("{percent}%"),
            false => format!("+{percent}%"),
        });
        let mut cells = vec![
            view.list,
            output::plain(&view.model),
            view.field,
            none(view.before),
            none(view.after),
            percent.unwrap_or_default(),
        ];
        cells.extend(dated.then(|| output::time(view.from)));
        cells
    };
    output::table(&columns, views.into_iter().map(row).collect())
}

fn views(difference: Difference) -> impl Iterator<Item = View> {
    let Difference {
        list,
        model,
        from,
        fields,
    } = difference;
    fields.into_iter().map(move |(field, before, after)| View {
        list: list.to_string(),
        model: model.clone(),
        from,
        percent: percent(&field, before.as_deref(), after.as_deref()),
        field,
        before,
        after,
    })
}

/// `25`, `-48.53`: of a rate or a fee that there was, to two decimals.
fn percent(field: &str, before: Option<&str>, after: Option<&str>) -> Option<String> {
    if !(field.contains("rates.") || field.starts_with("fees.")) {
        return None;
    }
    let number = |text: Option<&str>| Decimal::from_str_exact(text?).ok();
    let (before, after) = (number(before)?, number(after)?);
    let share = after.checked_sub(before)?.checked_div(before)?;
    let percent = share.checked_mul(Decimal::ONE_HUNDRED)?.round_dp(2);
    Some(percent.normalize().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_that_changes_says_by_how_much() {
        for (before, after, percent_) in [
            ("2", "2.5", Some("25")),
            ("1.36", "0.7", Some("-48.53")),
            ("3", "0", Some("-100")),
            ("0.000000001", "100000", Some("9999999999999900")),
            ("0", "1", None),
        ] {
            let found = percent("tiers.flex.rates.input", Some(before), Some(after));
            assert_eq!(found.as_deref(), percent_, "{before} → {after}");
        }
        assert_eq!(
            percent("fees.web_search", Some("10"), Some("5")).as_deref(),
            Some("-50")
        );
        assert_eq!(percent("max_output", Some("10"), Some("5")), None);
        assert_eq!(percent("rates.input", None, Some("5")), None);
    }
}

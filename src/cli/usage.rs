//! `gateway usage`

use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::{Map, Value, json};

use super::Global;
use super::failure::Failure;
use super::filter::{Callers, FilterArgs, filter};
use super::output::{self, Column};
use crate::money::Usd;
use crate::store::Create;
use crate::store::usage_log::{GroupBy, UsageSum};

/// What was used, what it cost and what was charged. Charges less refunds add up to the ledger's entries.
#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    /// Which requests
    #[command(flatten)]
    filter: FilterArgs,
    /// What to sum by
    #[arg(long, value_enum, default_value = "day")]
    by: GroupBy,
    /// Print comma-separated values, without the total
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

impl ValueEnum for GroupBy {
    fn value_variants<'a>() -> &'a [GroupBy] {
        &[
            GroupBy::Day,
            GroupBy::User,
            GroupBy::Key,
            GroupBy::Model,
            GroupBy::Upstream,
            GroupBy::Session,
            GroupBy::Kind,
            GroupBy::Client,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        labels(*self).first().map(PossibleValue::new)
    }
}

/// What a group is called; a key is told by its id, and named as people know it.
fn labels(by: GroupBy) -> &'static [&'static str] {
    match by {
        GroupBy::Day => &["day"],
        GroupBy::User => &["user"],
        GroupBy::Key => &["key", "user", "key_name"],
        GroupBy::Model => &["model"],
        GroupBy::Upstream => &["upstream"],
        GroupBy::Session => &["session"],
        GroupBy::Kind => &["kind"],
        GroupBy::Client => &["client"],
    }
}

/// One row of a report.
struct Group {
    /// One text for each of [`labels`].
    texts: Vec<String>,
    /// The texts for people.
    shown: String,
    sum: UsageSum,
}

impl Group {
    fn new(sum: UsageSum, by: GroupBy, callers: &mut Callers<'_>) -> anyhow::Result<Group> {
        if by != GroupBy::Key {
            return Ok(Group {
                texts: vec![sum.group.clone()],
                shown: shown(&sum.group),
                sum,
            });
        }
        let caller = callers.of(&sum.group)?;
        Ok(Group {
            shown: caller.text(),
            texts: vec![sum.group.clone(), caller.user, caller.key],
            sum,
        })
    }
}

/// A group for people; `-` where the client did not say.
fn shown(group: &str) -> String {
    match group {
        "" => "-".to_owned(),
        group => output::plain(group),
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(args: UsageArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let (filter, by) = (filter(&store, &args.filter, u32::MAX)?, args.by);
    let (sums, total) = store.usage(&filter, by).map_err(Failure::from)?;
    let mut callers = Callers::new(&store);
    let groups = sums.into_iter().map(|sum| Group::new(sum, by, &mut callers));
    let groups = groups.collect::<anyhow::Result<Vec<_>>>()?;
    if global.json {
        let item = |group: &Group| {
            let texts = group.texts.iter().map(|text| Value::from(text.as_str()));
            let mut item: Map<_, _> = labels(by).iter().map(ToString::to_string).zip(texts).collect();
            item.extend(view(&group.sum));
            Value::Object(item)
        };
        let items: Vec<Value> = groups.iter().map(item).collect();
        return output::json(&json!({ "items": items, "total": view(&total) }));
    }
    if args.csv {
        return output::print(&csv(&groups, by)).map(drop);
    }
    let columns = [
        Column::Left(labels(by)[0]),
        Column::Right("requests"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("cost"),
        Column::Right("charge"),
        Column::Right("margin"),
        Column::Right("uncollected"),
        Column::Right("refunded"),
    ];
    let rows = groups.iter().map(|group| row(&group.shown, &group.sum));
    output::table(&columns, rows.chain(std::iter::once(row("total", &total))).collect())
}

/// What is left of the charge; below zero when not all was collected, some was given back, or the markup is below one.
fn margin(sum: &UsageSum) -> Usd {
    sum.charge.saturating_sub(sum.refunded).saturating_sub(sum.cost)
}

fn row(name: &str, sum: &UsageSum) -> Vec<String> {
    let counts = counts(sum).map(|(_, count)| output::count(count));
    let money = money(sum).map(|(_, usd)| format!("{usd:#}"));
    std::iter::once(name.to_owned()).chain(counts).chain(money).collect()
}

/// What is counted, by its name.
pub(super) fn counts(sum: &UsageSum) -> [(&'static str, u64); 4] {
    [
        ("exchanges", sum.exchanges),
        ("input_tokens", sum.input_tokens),
        ("cached_tokens", sum.cached_tokens),
        ("output_tokens", sum.output_tokens),
    ]
}

fn money(sum: &UsageSum) -> [(&'static str, Usd); 5] {
    [
        ("cost", sum.cost),
        ("charge", sum.charge),
        ("margin", margin(sum)),
        ("uncollected", sum.uncollected),
        ("refunded", sum.refunded),
    ]
}

/// All of a sum, as a document has it.
pub(super) fn view(sum: &UsageSum) -> Map<String, Value> {
    let counts = counts(sum).map(|(name, count)| (name.to_owned(), count.into()));
    let money = money(sum).map(|(name, usd)| (name.to_owned(), usd.to_string().into()));
    counts.into_iter().chain(money).collect()
}

fn csv(groups: &[Group], by: GroupBy) -> String {
    let empty = UsageSum::default();
    let names = labels(by).iter().copied();
    let names = names.chain(counts(&empty).map(|(name, _)| name));
    let names: Vec<&str> = names.chain(money(&empty).map(|(name, _)| name)).collect();
    let mut out = names.join(",") + "\n";
    for Group { texts, sum, .. } in groups {
        let cells = texts.iter().map(|text| output::csv_cell(text));
        let cells = cells.chain(counts(sum).map(|(_, count)| count.to_string()));
        let cells: Vec<String> = cells.chain(money(sum).map(|(_, usd)| usd.to_string())).collect();
        out.push_str(&(cells.join(",") + "\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(group: &str) -> UsageSum {
        UsageSum {
            group: group.into(),
            exchanges: 2,
            input_tokens: 1_000,
            cached_tokens: 10,
            output_tokens: 5,
            cost: Usd::from_nanos(1_000_000),
            charge: Usd::from_nanos(1_200_000),
            uncollected: Usd::ZERO,
            refunded: Usd::from_nanos(100_000),
        }
    }

    #[test]
    fn a_report_is_exact_in_every_form() {
        let group = |texts: &[&str], sum| Group {
            texts: texts.iter().map(ToString::to_string).collect(),
            shown: String::new(),
            sum,
        };
        let text = csv(&[group(&["gpt-4o"], sum("gpt-4o"))], GroupBy::Model);
        let line = text.lines().nth(1);
        assert_eq!(line, Some("gpt-4o,2,1000,10,5,0.001,0.0012,0.0001,0,0.0001"));
        let text = csv(&[group(&["id", "alice", "a, b"], sum("id"))], GroupBy::Key);
        assert_eq!(
            text,
            "key,user,key_name,exchanges,input_tokens,cached_tokens,output_tokens,cost,charge,margin,uncollected,refunded\n\
             id,alice,\"a, b\",2,1000,10,5,0.001,0.0012,0.0001,0,0.0001\n"
        );
        assert_eq!(view(&sum("gpt-4o"))["margin"], json!("0.0001"));
    }
}

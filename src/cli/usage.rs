//! `gateway usage`

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::output::{self, Column};
use super::values::When;
use super::{Global, request};
use crate::money::Usd;
use crate::store::Create;
use crate::store::usage_log::{GroupBy, UsageSum};

/// What was used, what it cost and what was charged. The charges add up to the ledger's.
#[derive(Debug, clap::Args)]
pub struct UsageArgs {
    /// Which requests
    #[command(flatten)]
    filter: FilterArgs,
    /// What to sum by
    #[arg(long, value_enum, default_value_t = By::Day)]
    by: By,
    /// Print comma-separated values, without the total
    #[arg(long, conflicts_with = "json")]
    csv: bool,
}

/// Which requests.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FilterArgs {
    /// Of this user: a name, an e-mail address or an id
    #[arg(long)]
    pub user: Option<String>,
    /// With this key: an id or a prefix
    #[arg(long)]
    pub key: Option<String>,
    /// For this model, as the client asked
    #[arg(long)]
    pub model: Option<String>,
    /// Started at this time or later: a date (midnight UTC), a time, or a span back such as 7d
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub since: Option<When>,
    /// Started before this time
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    pub until: Option<When>,
}

/// What to sum by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Day,
    User,
    Key,
    Model,
    Upstream,
}

impl By {
    fn group(self) -> GroupBy {
        match self {
            By::Day => GroupBy::Day,
            By::User => GroupBy::User,
            By::Key => GroupBy::Key,
            By::Model => GroupBy::Model,
            By::Upstream => GroupBy::Upstream,
        }
    }

    fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::User => "user",
            By::Key => "key",
            By::Model => "model",
            By::Upstream => "upstream",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(args: UsageArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let filter = request::filter(&store, &args.filter, u32::MAX)?;
    let (sums, total) = store.usage(&filter, args.by.group()).map_err(Failure::from)?;
    if global.json {
        let items: Vec<Value> = sums.iter().map(|sum| Value::Object(view(sum, Some(args.by)))).collect();
        return output::json(&json!({ "items": items, "total": view(&total, None) }));
    }
    if args.csv {
        return output::print(&csv(&sums, args.by)).map(drop);
    }
    let columns = [
        Column::Left(args.by.name()),
        Column::Right("requests"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("cost"),
        Column::Right("charge"),
        Column::Right("margin"),
        Column::Right("uncollected"),
    ];
    let total = UsageSum {
        group: "total".into(),
        ..total
    };
    output::table(&columns, sums.iter().chain(std::iter::once(&total)).map(row).collect())
}

/// What is left of the charge; below zero when not all was collected or the markup is below one.
fn margin(sum: &UsageSum) -> Usd {
    sum.charge.saturating_sub(sum.cost)
}

fn row(sum: &UsageSum) -> Vec<String> {
    vec![
        output::plain(&sum.group),
        output::count(sum.exchanges),
        output::count(sum.input_tokens),
        output::count(sum.cached_tokens),
        output::count(sum.output_tokens),
        format!("{:#}", sum.cost),
        format!("{:#}", sum.charge),
        format!("{:#}", margin(sum)),
        format!("{:#}", sum.uncollected),
    ]
}

fn view(sum: &UsageSum, by: Option<By>) -> Map<String, Value> {
    let mut map = Map::new();
    if let Some(by) = by {
        map.insert(by.name().to_owned(), sum.group.clone().into());
    }
    let counts = [
        ("exchanges", sum.exchanges),
        ("input_tokens", sum.input_tokens),
        ("cached_tokens", sum.cached_tokens),
        ("output_tokens", sum.output_tokens),
    ];
    let money = [
        ("cost", sum.cost),
        ("charge", sum.charge),
        ("margin", margin(sum)),
        ("uncollected", sum.uncollected),
    ];
    map.extend(counts.map(|(name, count)| (name.to_owned(), count.into())));
    map.extend(money.map(|(name, usd)| (name.to_owned(), usd.to_string().into())));
    map
}

fn csv(sums: &[UsageSum], by: By) -> String {
    let mut out = format!(
        "{},exchanges,input_tokens,cached_tokens,output_tokens,cost,charge,margin,uncollected\n",
        by.name()
    );
    for sum in sums {
        let cells = [
            quoted(&sum.group),
            sum.exchanges.to_string(),
            sum.input_tokens.to_string(),
            sum.cached_tokens.to_string(),
            sum.output_tokens.to_string(),
            sum.cost.to_string(),
            sum.charge.to_string(),
            margin(sum).to_string(),
            sum.uncollected.to_string(),
        ];
        out.push_str(&cells.join(","));
        out.push('\n');
    }
    out
}

/// A cell as RFC 4180 wants it. A text that a spreadsheet would run as a formula gets a quote in front.
fn quoted(text: &str) -> String {
    let text = match text.chars().next() {
        Some('=' | '+' | '-' | '@') => format!("'{text}"),
        _ => text.to_owned(),
    };
    if text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
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
        }
    }

    #[test]
    fn a_report_is_exact_in_every_form() {
        let text = csv(&[sum("gpt-4o")], By::Model);
        let line = text.lines().nth(1);
        assert_eq!(line, Some("gpt-4o,2,1000,10,5,0.001,0.0012,0.0002,0"));
        let json = Value::Object(view(&sum("gpt-4o"), Some(By::Model)));
        assert_eq!((&json["model"], &json["margin"]), (&json!("gpt-4o"), &json!("0.0002")));
        assert!(!view(&sum(""), None).contains_key("model"));
    }

    #[test]
    fn a_cell_is_neither_split_nor_run() {
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted("=1+1"), "'=1+1");
    }
}

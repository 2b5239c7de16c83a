//! `gateway audit …`: who did what, with the state before and after.

use std::collections::BTreeSet;

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Global;
use super::failure::Failure;
use super::output::{self, Column, Items, Pipe};
use super::values::When;
use crate::store::audit::{ActFilter, Recorded};
use crate::store::{Create, Store};
use crate::time::now;

/// How many acts an export reads at a time.
const AT_ONCE: u32 = 1000;

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Acts on users, keys, prices, codes and balances, newest last
    List(ListArgs),
}

/// `gateway audit list`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// At this time or later: a date (midnight UTC), a time, or a span back such as 7d
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    since: Option<When>,
    /// Before this time
    #[arg(long, value_name = "WHEN", value_parser = When::parse)]
    until: Option<When>,
    /// By whom: a name as it is listed, or a pattern such as 'cli:*'
    #[arg(long, value_name = "GLOB")]
    actor: Option<String>,
    /// What: such as user.add, or a pattern such as 'ledger.*'
    #[arg(long, value_name = "GLOB")]
    action: Option<String>,
    /// On what: an id or list/model as it is listed, the start of it, or the name of a user
    #[arg(long)]
    subject: Option<String>,
    /// At most so many, the last ones [default: 100; with --jsonl all]
    #[arg(long)]
    limit: Option<u32>,
    /// Print a JSON document a line, for export
    #[arg(long, conflicts_with = "json")]
    jsonl: bool,
}

/// An act.
#[derive(Serialize)]
struct ActView<'a> {
    seq: i64,
    at: Timestamp,
    actor: &'a str,
    action: &'a str,
    subject: &'a str,
    before: &'a Option<Value>,
    after: &'a Value,
}

impl ActView<'_> {
    fn new(act: &Recorded) -> ActView<'_> {
        ActView {
            seq: act.seq,
            at: act.at,
            actor: &act.actor,
            action: &act.action,
            subject: &act.subject,
            before: &act.before,
            after: &act.after,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: AuditCommand, global: &Global) -> anyhow::Result<()> {
    let AuditCommand::List(args) = command;
    let store = global.store(Create::Never)?;
    let at = now();
    let named = match &args.subject {
        Some(subject) => store
            .find_user(subject)
            .map_err(Failure::from)?
            .map(|user| user.id.to_string()),
        None => None,
    };
    let filter = ActFilter {
        since: args.since.map(|when| when.ago(at)),
        until: args.until.map(|when| when.ago(at)),
        actor: args.actor,
        action: args.action,
        subject: named.or(args.subject),
    };
    match (args.jsonl, args.limit) {
        (true, None) => export(&store, &filter),
        (jsonl, limit) => {
            let acts = store.acts(&filter, None, limit.unwrap_or(100)).map_err(Failure::from)?;
            list(&acts, jsonl, global)
        }
    }
}

/// All of them, a page at a time: what is written down stays.
fn export(store: &Store, filter: &ActFilter) -> anyhow::Result<()> {
    let mut behind = 0;
    loop {
        let acts = store.acts(filter, Some(behind), AT_ONCE).map_err(Failure::from)?;
        let Some(last) = acts.last() else { return Ok(()) };
        behind = last.seq;
        if lines(&acts)? == Pipe::Closed {
            return Ok(());
        }
    }
}

fn lines(acts: &[Recorded]) -> anyhow::Result<Pipe> {
    let mut text = String::new();
    for act in acts {
        text.push_str(&serde_json::to_string(&ActView::new(act))?);
        text.push('\n');
    }
    output::print(&text)
}

fn list(acts: &[Recorded], jsonl: bool, global: &Global) -> anyhow::Result<()> {
    if jsonl {
        return lines(acts).map(drop);
    }
    if global.json {
        let items = acts.iter().map(ActView::new).collect();
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("time (UTC)"),
        Column::Left("actor"),
        Column::Left("action"),
        Column::Left("subject"),
        Column::Left("what changed"),
    ];
    let row = |act: &Recorded| {
        let texts = [&act.actor, &act.action, &act.subject].map(|text| output::plain(text));
        let changes = output::plain(&changes(act.before.as_ref(), &act.after));
        std::iter::once(output::time(act.at))
            .chain(texts)
            .chain([changes])
            .collect()
    };
    output::table(&columns, acts.iter().map(row).collect())
}

/// `field: before → after` of each field that differs; of what is new, `field: value`. Hashes say nothing to people.
fn changes(before: Option<&Value>, after: &Value) -> String {
    let nothing = Map::new();
    let fields = |state: Option<&Value>| state.and_then(Value::as_object).cloned();
    let (old, new) = (
        fields(before).unwrap_or_default(),
        after.as_object().unwrap_or(&nothing),
    );
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).filter(|name| *name != "hash").collect();
    let change = |name: &String| {
        let (was, is) = (shown(name, old.get(name)), shown(name, new.get(name)));
        match (was, is) {
            (was, is) if was == is => None,
            (None, Some(is)) => Some(format!("{name}: {is}")),
            (was, is) => Some(format!(
                "{name}: {} → {}",
                was.as_deref().unwrap_or("none"),
                is.as_deref().unwrap_or("none")
            )),
        }
    };
    names.into_iter().filter_map(change).collect::<Vec<_>>().join(", ")
}

/// A value as people read it; what is unset or empty is nothing.
fn shown(name: &str, value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) if list.is_empty() => None,
        Value::Number(micros) if name.ends_with("_at") => {
            let at = micros
                .as_i64()
                .and_then(|micros| Timestamp::from_microsecond(micros).ok());
            Some(at.map_or_else(|| micros.to_string(), output::time))
        }
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_change_is_told_by_its_fields() {
        let before = json!({"status": "active", "revoked_at": null, "hash": "a", "models": ["gpt-*"], "gone": 1});
        let after = json!({"status": "suspended", "revoked_at": 1_790_000_000_000_000_i64, "hash": "b", "models": []});
        assert_eq!(
            changes(Some(&before), &after),
            "gone: 1 → none, models: [\"gpt-*\"] → none, revoked_at: 2026-09-21 14:13:20, status: active → suspended"
        );
        assert_eq!(changes(None, &json!({"name": "ada", "email": null})), "name: ada");
        assert_eq!(changes(Some(&after), &after), "");
    }
}

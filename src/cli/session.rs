//! `gateway session …`: what conversations cost, and what made one dear.

use std::ops::ControlFlow;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::failure::{Exit, Failure};
use super::filter::{FilterArgs, filter};
use super::output::{self, Column, Items};
use super::usage::{counts, view};
use super::values::When;
use super::{Global, language};
use crate::admin;
use crate::money::Usd;
use crate::origin::Label;
use crate::said;
use crate::session::{Cause, Report, Tally, Turn};
use crate::store::reports::{Stop, Unread};
use crate::store::sessions::SessionSum;
use crate::store::usage_log::UsageSum;
use crate::store::{Create, Store, StoreError, UserId};

/// Sessions that are named when an id is the start of several, at most.
const NAMED: u32 = 5;

/// What to do with sessions.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Sessions, newest first, with what their requests come to
    List {
        /// Of this user: a name, an e-mail address or an id
        #[arg(long)]
        user: Option<String>,
        /// With this key: an id or a prefix
        #[arg(long)]
        key: Option<String>,
        /// Requests started at this time or later: a date (midnight UTC), a time, or a span back such as 7d
        #[arg(long, value_name = "WHEN", value_parser = When::parse, default_value = "30d")]
        since: When,
        /// Requests started before this time
        #[arg(long, value_name = "WHEN", value_parser = When::parse)]
        until: Option<When>,
        /// At most so many
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// What a session cost, turn by turn, and what made it dear
    Show {
        /// The session's id, or the start of it
        id: String,
        /// Of this user, where several have a session of that id
        #[arg(long)]
        user: Option<String>,
    },
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: SessionCommand, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    match command {
        SessionCommand::List {
            user,
            key,
            since,
            until,
            limit,
        } => {
            let which = FilterArgs {
                user,
                key,
                since: Some(since),
                until,
                ..FilterArgs::default()
            };
            let filter = filter(&store, &which, limit)?;
            let sessions = store.sessions(&filter, &Stop::default()).map_err(unread)?;
            list(&store, &sessions, global)
        }
        SessionCommand::Show { id, user } => {
            let user = user.map(|who| admin::user(&store, &who)).transpose();
            let user = user.map_err(Failure::from)?.map(|user| user.id);
            let (session, user) = find(&store, &id, user)?;
            let mut tally = Tally::default();
            let told = store.session((user, None), session.as_str(), &Stop::default(), |step| {
                tally.add(&step);
                ControlFlow::Continue(())
            });
            told.map_err(unread)?;
            let (name, report) = (name_of(&store, user)?, tally.finish());
            match global.json {
                true => output::json(&document(&session, &name, &report)),
                false => output::print(&text(&session, &name, &report)).map(drop),
            }
        }
    }
}

fn unread(why: Unread) -> Failure {
    match why {
        Unread::Failed(error) => Failure::from(error),
        Unread::Stopped | Unread::TooMany => Failure::from(StoreError {
            context: "reading sessions".to_owned(),
            source: None,
        }),
    }
}

/// The one session that begins so.
fn find(store: &Store, start: &str, user: Option<UserId>) -> anyhow::Result<(Label, UserId)> {
    let found = match Label::new(start) {
        Some(start) => store
            .sessions_starting(start.as_str(), user, NAMED + 1)
            .map_err(Failure::from)?,
        None => Vec::new(),
    };
    let whole: Vec<_> = found
        .iter()
        .filter(|(session, _)| session.as_str() == start)
        .cloned()
        .collect();
    let start = output::plain(start);
    match (whole.as_slice(), found.as_slice()) {
        ([only], _) | ([], [only]) => Ok(only.clone()),
        ([], []) => {
            let what = said!(language(), en: "no session begins with \"{start}\"", zh: "没有以 \"{start}\" 开头的会话");
            Err(Failure::new(Exit::NotFound, what)
                .fix(said!(language(), en: "list them: gateway session list", zh: "列出：gateway session list"))
                .into())
        }
        ([], several) | (several, _) => {
            let named = several.iter().take(NAMED as usize);
            let named = named.map(|(session, user)| Ok(format!("{session} ({})", name_of(store, *user)?)));
            let what = said!(
                language(),
                en: "several sessions begin with \"{start}\"",
                zh: "有多个以 \"{start}\" 开头的会话",
            );
            let mut failure = Failure::new(Exit::Usage, what).fix(said!(
                language(),
                en: "write more of the id, or --user NAME",
                zh: "请写出更多编号，或加上 --user 名称",
            ));
            failure.near = Some(named.collect::<anyhow::Result<Vec<_>>>()?.join(", "));
            Err(failure.into())
        }
    }
}

fn name_of(store: &Store, user: UserId) -> anyhow::Result<String> {
    let found = store.find_user(&user.to_string()).map_err(Failure::from)?;
    Ok(found.map_or_else(|| user.to_string(), |user| user.name))
}

fn list(store: &Store, sessions: &[SessionSum], global: &Global) -> anyhow::Result<()> {
    if global.json {
        let item = |of: &SessionSum| -> anyhow::Result<Value> {
            let mut item = object(json!({
                "id": of.session, "user": name_of(store, of.user)?, "client": of.client, "model": of.model,
                "began_at": of.began, "ended_at": of.ended, "turns": of.turns,
            }));
            item.extend(view(&of.sum));
            Ok(Value::Object(item))
        };
        let items = sessions.iter().map(item).collect::<anyhow::Result<Vec<_>>>()?;
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("ended (UTC)"),
        Column::Left("user"),
        Column::Left("client"),
        Column::Left("model"),
        Column::Right("turns"),
        Column::Right("requests"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("charge"),
        Column::Left("session"),
    ];
    let cells = |of: &SessionSum| -> anyhow::Result<Vec<String>> {
        let about = [
            output::time(of.ended),
            name_of(store, of.user)?,
            of.client.as_ref().map_or("-".to_owned(), ToString::to_string),
            output::plain(&of.model),
            output::count(of.turns),
        ];
        let sums = sums(&of.sum);
        Ok(about.into_iter().chain(sums).chain([of.session.to_string()]).collect())
    };
    output::table(&columns, sessions.iter().map(cells).collect::<anyhow::Result<_>>()?)
}

/// Requests, tokens and charge.
fn sums(sum: &UsageSum) -> impl Iterator<Item = String> {
    let counts = counts(sum).map(|(_, count)| output::count(count));
    counts.into_iter().chain([format!("{:#}", sum.charge)])
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn causes_of(causes: &[Cause]) -> Vec<Value> {
    let cause = |cause: &Cause| {
        json!({
            "cause": cause.what.name(), "exchanges": cause.exchanges, "tokens": cause.tokens,
            "charge": cause.charge,
        })
    };
    causes.iter().map(cause).collect()
}

/// `session show --json`
fn document(session: &Label, user: &str, report: &Report) -> Value {
    let named = |name: &str, sum: &UsageSum| {
        let group = Some(sum.group.as_str()).filter(|group| !group.is_empty());
        let mut item = object(json!({ name: group }));
        item.extend(view(sum));
        Value::Object(item)
    };
    let turn = |turn: &Turn| {
        let mut item = object(json!({"id": turn.id, "began_at": turn.began, "ended_at": turn.ended}));
        item.extend(view(&turn.sum));
        item.insert("causes".to_owned(), causes_of(&turn.causes).into());
        Value::Object(item)
    };
    json!({
        "id": session,
        "user": user,
        "client": report.client,
        "models": report.models,
        "began_at": report.began,
        "ended_at": report.ended,
        "total": view(&report.total),
        "turns": report.turns.iter().map(turn).collect::<Vec<_>>(),
        "kinds": report.kinds.iter().map(|sum| named("kind", sum)).collect::<Vec<_>>(),
        "agents": report.agents.iter().map(|sum| named("id", sum)).collect::<Vec<_>>(),
        "causes": causes_of(&report.causes),
    })
}

/// The report as people read it.
fn text(session: &Label, user: &str, report: &Report) -> String {
    let client = report
        .client
        .as_ref()
        .map_or("an unnamed client".to_owned(), ToString::to_string);
    let models: Vec<String> = report.models.iter().map(|model| output::plain(model)).collect();
    let mut out = format!(
        "{:#}  session {session}  {user}  {client}  {}\n",
        report.total.charge,
        models.join(", ")
    );
    if report.total.refunded > Usd::ZERO {
        out.push_str(&format!("  {:#} of it was given back\n", report.total.refunded));
    }
    let mut section = |title: &str, columns: &[Column], rows: Vec<Vec<String>>| {
        if !rows.is_empty() {
            out.push_str(&format!("\n{title}\n{}\n", output::table_text(columns, rows)));
        }
    };
    let sums_of = [
        Column::Right("requests"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Right("charge"),
    ];
    let number = |(at, turn): (usize, &Turn)| {
        let name = if turn.id.is_some() {
            (at + 1).to_string()
        } else {
            "-".to_owned()
        };
        let dear: Vec<String> = turn
            .causes
            .iter()
            .map(|cause| format!("{} {:#}", words(cause), cause.charge))
            .collect();
        let head = [name, output::time(turn.began)];
        head.into_iter()
            .chain(sums(&turn.sum))
            .chain([dear.join(", ")])
            .collect()
    };
    let mut rows: Vec<Vec<String>> = report.turns.iter().enumerate().map(number).collect();
    let head = ["total".to_owned(), String::new()];
    rows.push(
        head.into_iter()
            .chain(sums(&report.total))
            .chain([String::new()])
            .collect(),
    );
    let columns = [Column::Left("turn"), Column::Left("began (UTC)")]
        .into_iter()
        .chain(sums_of)
        .chain([Column::Left("made dear by")]);
    section("turn by turn", &columns.collect::<Vec<_>>(), rows);
    let grouped = |groups: &[UsageSum]| -> Vec<Vec<String>> {
        let row = |sum: &UsageSum| {
            let name = if sum.group.is_empty() { "-" } else { &sum.group };
            std::iter::once(name.to_owned()).chain(sums(sum)).collect()
        };
        groups.iter().map(row).collect()
    };
    let by = |name| std::iter::once(Column::Left(name)).chain(sums_of).collect::<Vec<_>>();
    section("what it was for", &by("kind"), grouped(&report.kinds));
    section("sub-agents", &by("agent"), grouped(&report.agents));
    let causes = report.causes.iter().map(|cause| {
        vec![
            words(cause),
            output::count(cause.exchanges),
            output::count(cause.tokens),
            format!("{:#}", cause.charge),
        ]
    });
    let columns = [
        Column::Left("cause"),
        Column::Right("requests"),
        Column::Right("tokens"),
        Column::Right("charge"),
    ];
    section(
        "what made it dear (one request may be in several)",
        &columns,
        causes.collect(),
    );
    out
}

/// The name of a cause, with spaces.
fn words(cause: &Cause) -> String {
    cause.what.name().replace('_', " ")
}

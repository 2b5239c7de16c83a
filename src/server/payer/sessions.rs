//! Sessions as their payer sees them: after markup and without cost.

use std::ops::ControlFlow;

use axum::http::Uri;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::query::Query;
use super::views::{Total, span};
use super::{Turns, now_in_the_books};
use crate::money::Usd;
use crate::origin::Label;
use crate::refusal::Refusal;
use crate::session::{self, Tally};
use crate::store::Store;
use crate::store::reports::Of;
use crate::store::sessions::SessionSum;
use crate::store::usage_log::UsageSum;

/// Turns and sub-agents of one answer, at most.
const MOST_PARTS: usize = 10_000;

/// `GET /v1/gateway/sessions`: the newest first. Each comes to what its calls within the span of time do.
#[derive(Debug, Serialize)]
pub(super) struct Sessions {
    since: Timestamp,
    until: Timestamp,
    items: Vec<Listed>,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    client: Option<String>,
    /// What its newest call asked for.
    model: String,
    began_at: Timestamp,
    ended_at: Timestamp,
    turns: u64,
    #[serde(flatten)]
    total: Total,
}

impl Listed {
    fn new(of: &SessionSum) -> Listed {
        Listed {
            id: of.session.to_string(),
            client: of.client.as_ref().map(ToString::to_string),
            model: of.model.clone(),
            began_at: of.began,
            ended_at: of.ended,
            turns: of.turns,
            total: Total::of(&of.sum),
        }
    }
}

/// `GET /v1/gateway/sessions/{id}`
#[derive(Debug, Serialize)]
pub(super) struct Session {
    id: String,
    client: Option<String>,
    models: Vec<String>,
    began_at: Timestamp,
    ended_at: Timestamp,
    total: Total,
    turns: Vec<Turn>,
    kinds: Vec<OfKind>,
    agents: Vec<OfAgent>,
    causes: Vec<Cause>,
}

#[derive(Debug, Serialize)]
struct Turn {
    id: Option<String>,
    began_at: Timestamp,
    ended_at: Timestamp,
    #[serde(flatten)]
    total: Total,
    causes: Vec<Cause>,
}

#[derive(Debug, Serialize)]
struct OfKind {
    kind: Option<String>,
    #[serde(flatten)]
    total: Total,
}

#[derive(Debug, Serialize)]
struct OfAgent {
    id: String,
    #[serde(flatten)]
    total: Total,
}

#[derive(Debug, Serialize)]
struct Cause {
    cause: &'static str,
    exchanges: u64,
    tokens: u64,
    charge: Usd,
}

fn causes(of: &[session::Cause]) -> Vec<Cause> {
    let cause = |cause: &session::Cause| Cause {
        cause: cause.what.name(),
        exchanges: cause.exchanges,
        tokens: cause.tokens,
        charge: cause.charge,
    };
    of.iter().map(cause).collect()
}

impl Session {
    fn new(id: &Label, report: session::Report) -> Session {
        let turn = |turn: &session::Turn| Turn {
            id: turn.id.as_ref().map(Label::to_string),
            began_at: turn.began,
            ended_at: turn.ended,
            total: Total::of(&turn.sum),
            causes: causes(&turn.causes),
        };
        let kind = |sum: &UsageSum| OfKind {
            kind: (!sum.group.is_empty()).then(|| sum.group.clone()),
            total: Total::of(sum),
        };
        let agent = |sum: &UsageSum| OfAgent {
            id: sum.group.clone(),
            total: Total::of(sum),
        };
        Session {
            id: id.to_string(),
            client: report.client.as_ref().map(ToString::to_string),
            models: report.models.into_iter().collect(),
            began_at: report.began,
            ended_at: report.ended,
            total: Total::of(&report.total),
            turns: report.turns.iter().map(turn).collect(),
            kinds: report.kinds.iter().map(kind).collect(),
            agents: report.agents.iter().map(agent).collect(),
            causes: causes(&report.causes),
        }
    }
}

/// The key's sessions.
pub(super) async fn list(store: &Store, turns: &Turns, of: Of, uri: &Uri) -> Result<Sessions, Refusal> {
    let mut query = Query::read(uri, &["since", "until", "limit"])?;
    let (limit, span) = (
        query.number("limit", 1..=100)?.unwrap_or(20),
        span(&mut query, now_in_the_books())?,
    );
    let (since, until) = (span.start, span.end);
    let found = turns.ask(store, move |store, stop| {
        store.sessions_of(of, (since, until), limit, stop)
    });
    Ok(Sessions {
        since,
        until,
        items: found.await?.iter().map(Listed::new).collect(),
    })
}

/// One of them.
pub(super) async fn one(store: &Store, turns: &Turns, of: Of, part: &str) -> Result<Session, Refusal> {
    let id = percent_decode_str(part).decode_utf8().ok();
    let id = id.and_then(|id| Label::new(&id)).ok_or(Refusal::NoSession)?;
    let which = id.clone();
    let read = turns.ask(store, move |store, stop| {
        let mut tally = Tally::default();
        store.session((of.user, Some(of.key)), which.as_str(), stop, |step| {
            tally.add(&step);
            match tally.parts() > MOST_PARTS {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        Ok(tally.finish())
    });
    let report = read.await?;
    match report.turns.is_empty() {
        true => Err(Refusal::NoSession),
        false => Ok(Session::new(&id, report)),
    }
}

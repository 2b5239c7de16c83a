//! `gateway status`: what the running server does now, asked on the socket beside its database.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;

use super::failure::{Exit, Failure};
use super::output::{self, Column};
use super::{Global, block_on, language};
use crate::language::Said;
use crate::said;
use crate::server::status::{Exchange, LastMinute, Status, Upstream};
use crate::store::ServerLock;
use crate::time::now;

/// How long the server has for its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the running server does now.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {}

/// Asks the server once.
///
/// # Errors
/// No server runs on this database, or it does not answer: exit code 7; it is another user's: 4.
pub fn run(_: &StatusArgs, global: &Global) -> anyhow::Result<()> {
    let status = block_on(async { Asker::new(global)?.ask().await })?;
    if global.json {
        return output::json(&status);
    }
    output::print(&format!("{}\n", text(&status, now()))).map(drop)
}

/// Asks the server of a database.
#[derive(Debug)]
pub(super) struct Asker {
    database: PathBuf,
}

impl Asker {
    /// For the database of the settings.
    ///
    /// # Errors
    /// The settings are not valid.
    pub(super) fn new(global: &Global) -> anyhow::Result<Asker> {
        let database = global.settings(Vec::new())?.config.database;
        Ok(Asker { database })
    }

    /// Asks once. The socket is looked for anew each time: another server may have taken the place of the first.
    ///
    /// # Errors
    /// As [`run`].
    pub(super) async fn ask(&self) -> anyhow::Result<Status> {
        let noted = ServerLock::holder(&self.database).map_err(Failure::from)?;
        let noted = noted.ok_or_else(|| no_server(&self.database))?;
        let (_, elsewhere) = ServerLock::noted(&noted);
        let socket = elsewhere.map_or_else(|| ServerLock::socket(&self.database), Path::to_owned);
        // Whoever was first has installed the same.
        rustls::crypto::ring::default_provider().install_default().unwrap_or(());
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(PATIENCE)
            .unix_socket(socket.as_path());
        let client = client.build().context("no client can be made")?;
        let answer = client.get("http://gateway/status").send().await;
        let silent = |error: &reqwest::Error| silent(&noted, &socket, error);
        let answer = answer.map_err(|error| silent(&error))?;
        Ok(answer.json().await.map_err(|error| silent(&error))?)
    }
}

fn no_server(database: &Path) -> Failure {
    let (language, database) = (language(), database.display());
    let what = said!(
        language,
        en: "no gateway serves {database}",
        zh: "没有网关在使用 {database}",
    );
    Failure::new(Exit::Upstream, what).fix(said!(
        language,
        en: "start one: gateway serve   (or name its settings: --config FILE)",
        zh: "启动一个：gateway serve   （或指明它的设置：--config FILE）",
    ))
}

fn silent(noted: &str, socket: &Path, error: &reqwest::Error) -> Failure {
    let language = language();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    let mut denied = false;
    while let Some(one) = cause {
        denied |= one
            .downcast_ref::<io::Error>()
            .is_some_and(|one| one.kind() == io::ErrorKind::PermissionDenied);
        cause = one.source();
    }
    let why = super::failure::chain(error);
    if denied {
        let what = said!(
            language,
            en: "only the user whose gateway it is may look at it",
            zh: "只有运行该网关的用户才能查看",
        );
        return Failure::new(Exit::NotAllowed, what).why(Said::verbatim(why));
    }
    let socket = socket.display();
    let what = said!(
        language,
        en: "the gateway does not answer on {socket} ({noted})",
        zh: "网关没有在 {socket} 上回答（{noted}）",
    );
    Failure::new(Exit::Upstream, what).why(Said::verbatim(why))
}

/// A status for people.
pub(super) fn text(status: &Status, at: Timestamp) -> String {
    let LastMinute {
        seconds,
        calls,
        refused,
        failed,
        tokens,
    } = status.last_minute;
    let rate = |count: u64| per_second(count, seconds);
    let mut text = format!(
        "gateway {}, process {}, {}, up {}\n",
        status.version,
        status.process,
        status.address,
        span(status.uptime_seconds)
    );
    let mut line = |name: &str, value: String| writeln!(text, "{name:<12} {value}").unwrap_or(());
    line("database", status.database.display().to_string());
    if let Some(why) = &status.not_ready {
        line("not ready", why.clone());
    }
    let shown = match status.exchanges.len() {
        listed if listed < status.running => format!(", the {listed} oldest below"),
        _ => String::new(),
    };
    line("running", format!("{}{shown}", status.running));
    if let Some(background) = status.background.filter(|background| *background > 0) {
        line("background", background.to_string());
    }
    line(
        "last minute",
        format!(
            "{} calls ({}/s), {} tokens ({}/s), {} failed, {} refused",
            output::count(calls),
            rate(calls),
            output::count(tokens),
            rate(tokens),
            output::count(failed),
            output::count(refused)
        ),
    );
    line(
        "holds",
        status.holds.as_ref().map_or_else(
            || "cannot be read".to_owned(),
            |holds| format!("{} open, {:#}", output::count(holds.open.into()), holds.amount),
        ),
    );
    let writer = &status.writer;
    line(
        "writer",
        format!(
            "{} of {} waiting, {} of {} open",
            writer.waiting, writer.most_waiting, writer.open, writer.most_open
        ),
    );
    let websockets = match status.websockets {
        0 => String::new(),
        some => format!(", {some} of them WebSockets"),
    };
    line("connections", format!("{}{websockets}", status.connections));
    let columns = [
        Column::Left("upstream"),
        Column::Right("in flight"),
        Column::Left("breaker"),
        Column::Left("last call"),
        Column::Left("at"),
    ];
    let rows = status.upstreams.iter().map(|upstream| of_upstream(upstream, at));
    text = format!("{text}\n{}", output::table_text(&columns, rows.collect()));
    if !status.exchanges.is_empty() {
        let columns = [
            Column::Left("exchange"),
            Column::Left("user"),
            Column::Left("key"),
            Column::Left("model"),
            Column::Left("upstream"),
            Column::Left("state"),
            Column::Right("age"),
            Column::Right("events"),
            Column::Right("bytes"),
        ];
        let rows = status.exchanges.iter().map(of_exchange);
        text = format!("{text}\n\n{}", output::table_text(&columns, rows.collect()));
    }
    text
}

fn of_upstream(upstream: &Upstream, at: Timestamp) -> Vec<String> {
    let ago = |then: Timestamp| u64::try_from(at.duration_since(then).as_secs()).unwrap_or(0);
    vec![
        upstream.name.clone(),
        upstream.in_flight.to_string(),
        upstream.breaker.replace('_', " "),
        upstream.last_result.clone().unwrap_or_else(|| "-".to_owned()),
        upstream
            .last_at
            .map_or_else(|| "-".to_owned(), |then| format!("{} ago", span(ago(then)))),
    ]
}

fn of_exchange(exchange: &Exchange) -> Vec<String> {
    vec![
        exchange.id.clone(),
        output::plain(&exchange.user),
        exchange.key.clone(),
        output::plain(&exchange.model),
        exchange.upstream.clone(),
        exchange.state.clone(),
        span(exchange.age_ms / 1000),
        output::count(exchange.events),
        output::count(exchange.bytes),
    ]
}

/// A count by the second, to a tenth.
fn per_second(count: u64, seconds: u64) -> String {
    let tenths = count.saturating_mul(10) / seconds.max(1);
    format!("{}.{}", output::count(tenths / 10), tenths % 10)
}

/// `45s`, `3m 5s`, `2h 3m`, `5d 2h`.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_rates_are_short() {
        let spans: Vec<String> = [0, 59, 60, 3599, 3600, 86_399, 86_400, 1_000_000]
            .into_iter()
            .map(span)
            .collect();
        assert_eq!(
            spans,
            ["0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "11d 13h"]
        );
        assert_eq!(
            [per_second(0, 0), per_second(59, 60), per_second(90, 60)],
            ["0.0", "0.9", "1.5"]
        );
    }
}

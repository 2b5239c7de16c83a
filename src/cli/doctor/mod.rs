//! `gateway doctor`: what is wrong here, and what to do about it. It reads only, and costs nothing.
//!
//! ```text
//! files      settings, secrets, who else may read them        no database, no network
//! books      database, server, holds, disk, clock, prices     read only: nothing is migrated or marked
//! network    each upstream, asked for its models              GET: no call, no money
//! client     instead of all of these: the installed Codex, on a gateway and an upstream made for it
//! ```

mod books;
mod client;
mod files;
mod network;

use std::cell::RefCell;
use std::path::PathBuf;

use serde::Serialize;

use super::output;
use super::{Global, block_on, failure, language};
use crate::language::{Language, Said};
use crate::said;

/// `gateway doctor`
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Leave out what asks an upstream
    #[arg(long, conflicts_with = "client")]
    offline: bool,
    /// Instead: drive this client through an answer, a used-up balance, a rate limit and a cut stream, on a gateway and a
    /// simulated upstream made for it, and show what its user reads
    #[arg(long, value_name = "CLIENT")]
    client: Option<Client>,
    /// The client's program [default: the `codex` on the PATH]
    #[arg(long, value_name = "FILE", requires = "client")]
    program: Option<PathBuf>,
}

/// A client that can be driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Client {
    /// The Codex CLI
    Codex,
}

/// How a check came out, from the best to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// It could not be looked at, or was not to be.
    Skipped,
    Ok,
    /// It works, but not for long, or not for everybody.
    Warning,
    /// Calls are refused, or something may be lost.
    Failure,
}

impl State {
    fn name(self, language: Language) -> Said {
        match self {
            State::Ok => said!(language, en: "ok", zh: "正常"),
            State::Skipped => said!(language, en: "skipped", zh: "跳过"),
            State::Warning => said!(language, en: "warning", zh: "警告"),
            State::Failure => said!(language, en: "failure", zh: "失败"),
        }
    }
}

/// One check, as it is shown and as it is in the JSON document; its name is the same in every language.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// What was found.
    what: Said,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<Said>,
}

impl Check {
    fn ok(name: &'static str, what: Said) -> Check {
        Check {
            name,
            state: State::Ok,
            what,
            fix: None,
        }
    }

    fn skipped(name: &'static str, what: Said) -> Check {
        Check {
            state: State::Skipped,
            ..Check::ok(name, what)
        }
    }

    fn warning(name: &'static str, what: Said, fix: Said) -> Check {
        Check {
            state: State::Warning,
            fix: Some(fix),
            ..Check::ok(name, what)
        }
    }

    fn failure(name: &'static str, what: Said, fix: Said) -> Check {
        Check {
            state: State::Failure,
            ..Check::warning(name, what, fix)
        }
    }

    /// Of a failure in the words of the command line.
    fn failed(name: &'static str, failure: failure::Failure) -> Check {
        let what = match failure.why {
            Some(why) => Said::verbatim(format!("{}: {why}", failure.what)),
            None => failure.what,
        };
        Check {
            name,
            state: State::Failure,
            what,
            fix: failure.fix,
        }
    }
}

/// `doctor --json`
#[derive(Serialize)]
struct Report {
    /// The worst of the checks.
    state: State,
    language: &'static str,
    checks: Vec<Check>,
}

/// Runs the command; 1 when something fails.
///
/// # Errors
/// Settings that are not valid (3).
pub fn run(args: &DoctorArgs, global: &Global) -> anyhow::Result<u8> {
    if let Some(Client::Codex) = args.client {
        return block_on(client::codex(args.program.as_deref(), global));
    }
    let language = language();
    let secrets = RefCell::new(Vec::new());
    let loaded = match global.settings_noting(Vec::new(), |file| secrets.borrow_mut().push(file.to_owned())) {
        Ok(loaded) => loaded,
        Err(error) => {
            if global.json {
                let (_, what) = failure::describe(&error);
                let fix = said!(language, en: "mend it, and look: gateway config check", zh: "改正后查看：gateway config check");
                report(vec![Check::failure("settings", what, fix)], language, global)?;
            }
            return Err(error);
        }
    };
    let settings = global.settings_path();
    let mut checks = files::check(&loaded, settings.as_deref(), secrets.into_inner(), language);
    checks.extend(books::check(&loaded.config, language));
    checks.extend(match (args.offline, loaded.config.upstreams.as_slice()) {
        (_, []) => vec![network::none(language)],
        (true, _) => vec![network::left_out(language)],
        (false, upstreams) => block_on(async { Ok(network::check(upstreams, language).await) })?,
    });
    report(checks, language, global)
}

fn report(checks: Vec<Check>, language: Language, global: &Global) -> anyhow::Result<u8> {
    let state = checks.iter().map(|check| check.state).max().unwrap_or(State::Ok);
    let code = u8::from(state == State::Failure);
    if global.json {
        output::json(&Report {
            state,
            language: language.name(),
            checks,
        })?;
        return Ok(code);
    }
    output::print(&checks.iter().map(|check| shown(check, language)).collect::<String>())?;
    let of = |state| checks.iter().filter(|check| check.state == state).count();
    let (failures, warnings) = (of(State::Failure), of(State::Warning));
    global.say(&said!(
        language,
        en: "failures: {failures}, warnings: {warnings}",
        zh: "失败：{failures}，警告：{warnings}",
    ));
    Ok(code)
}

/// A line, and one more with what to do. A Chinese letter takes two places, so each word takes four or seven.
fn shown(check: &Check, language: Language) -> String {
    let (state, name) = (check.state.name(language), check.name);
    let width = language.of(7, 0);
    let what = output::plain(&check.what.replace('\n', "; "));
    let mut text = format!("{state:<width$}  {name:<11}  {what}\n");
    if let Some(fix) = &check.fix {
        let label = language.of("fix    ", "处理");
        text.push_str(&format!("{label}  {:<11}  {}\n", "", output::plain(fix)));
    }
    text
}

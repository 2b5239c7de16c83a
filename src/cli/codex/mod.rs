//! `gateway codex`: starts Codex through this gateway, and leaves no file changed.

pub mod access;
pub mod args;
pub mod model;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::access::{Access, access, fetch_models, is_loopback};
use self::args::{CodexHome, asked_model, needs_exec, overrides, toml_text};
use self::model::{CatalogueFile, bundled, choose_model, codex_default};
use super::failure::{Exit, Failure};
use super::{Global, block_on, language};
use crate::config::Config;
use crate::language::Said;
use crate::said;

/// The variable Codex reads the key from.
pub const KEY_VARIABLE: &str = "CODEX_GATEWAY_API_KEY";

/// The variable that names the gateway.
pub const URL_VARIABLE: &str = "CODEX_GATEWAY_URL";

/// How long the gateway may take to say that it is there, and to list its models; and Codex to list its own.
const PATIENCE: Duration = Duration::from_secs(10);

/// The exit code of a command that was interrupted before Codex ran.
const INTERRUPTED: u8 = 130;

/// Start Codex through this gateway; changes no file.
#[derive(Clone, Debug, clap::Args)]
pub struct CodexArgs {
    /// The gateway's address, such as `https://gw.example.com`
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Whose balance pays, when the key is issued from this machine's database
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Everything else goes to Codex as it is
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// A failure with what happened, why, and a command that can be pasted.
pub fn failure(exit: Exit, what: Said, why: Said, fix: impl Into<String>) -> Failure {
    Failure::new(exit, what).why(why).fix(Said::verbatim(fix))
}

/// What happened, when it did not come to Codex.
fn not_started() -> Said {
    said!(language(), en: "Codex was not started", zh: "Codex 没有启动")
}

/// Runs Codex, and ends as it ends (128 + the signal that killed it).
///
/// # Errors
/// Codex is not installed, no gateway answers, no key can be had, or the asked model is not offered.
pub fn run(args: &CodexArgs, global: &Global) -> anyhow::Result<u8> {
    let config = global.settings_as_served()?;
    block_on(async { Ok(through(args, &config, global).await?) })
}

async fn through(args: &CodexArgs, config: &Config, global: &Global) -> Result<u8, Failure> {
    let program = find_program("codex", env::var_os("PATH").as_deref()).ok_or_else(not_installed)?;
    // From here on a stop signal ends Codex, not this process: the key has to be revoked.
    let mut signals = Signals::watch()?;
    let access = access(args, config).await?;
    let result = tokio::select! {
        prepared = prepare(&program, &access, args) => match prepared {
            Ok(prepared) => start(prepared, &access, &mut signals, global).await,
            Err(failure) => Err(failure),
        },
        () = signals.any() => Ok(INTERRUPTED),
    };
    if let Some(issued) = access.issued
        && let Err(failure) = issued.revoke().await
    {
        global.say(&Said::verbatim(failure.to_string()));
    }
    result
}

/// Codex's command line, ready to run.
struct Prepared {
    command: Command,
    note: Option<Said>,
    /// Lives as long as Codex may read it.
    catalogue: Option<CatalogueFile>,
}

async fn prepare(program: &Path, access: &Access, args: &CodexArgs) -> Result<Prepared, Failure> {
    let (list, bundle) = tokio::join!(fetch_models(&access.url, &access.key), bundled(program));
    let list = list?;
    let home = CodexHome::read(&args.args);
    let model = choose_model(
        asked_model(&args.args).as_deref(),
        home.model.as_deref(),
        &codex_default(&bundle),
        &list,
    )?;
    let catalogue = CatalogueFile::compose(&list, &bundle);
    let mut command = Command::new(program);
    command.args(overrides(
        &access.url,
        &home,
        &list,
        catalogue.as_ref().map(|file| file.0.as_path()),
    ));
    command.args(
        model
            .pass
            .iter()
            .flat_map(|name| ["-c".to_owned(), format!("model={}", toml_text(name))]),
    );
    if needs_exec(&args.args) && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        command.arg("exec");
    }
    command.args(&args.args).env(KEY_VARIABLE, &access.key);
    if is_loopback(&access.url) {
        command.envs(no_proxy(env::var("NO_PROXY").or_else(|_| env::var("no_proxy")).ok()));
    }
    Ok(Prepared {
        command,
        note: model.note,
        catalogue,
    })
}

async fn start(mut prepared: Prepared, access: &Access, signals: &mut Signals, global: &Global) -> Result<u8, Failure> {
    prepared.note.iter().for_each(|note| global.say(note));
    let (url, by) = (&access.url, &access.by);
    global.say(&said!(
        language(),
        en: "Codex through {url} {by}. No file was changed.",
        zh: "Codex 经由 {url}，{by}。没有改动任何文件。",
    ));
    let child = prepared.command.spawn();
    let child = child.map_err(|error| {
        failure(
            Exit::Failed,
            said!(language(), en: "Codex could not be started", zh: "无法启动 Codex"),
            Said::verbatim(error.to_string()),
            "codex --version",
        )
    })?;
    let code = wait(child, signals).await;
    drop(prepared.catalogue);
    code
}

fn not_installed() -> Failure {
    failure(
        Exit::NotFound,
        not_started(),
        said!(language(), en: "there is no `codex` on the PATH", zh: "PATH 中没有 `codex`"),
        "npm install -g @openai/codex",
    )
}

/// The variables that keep a proxy out of the way to this machine.
fn no_proxy(set: Option<String>) -> [(&'static str, String); 2] {
    let mut hosts: Vec<&str> = set
        .as_deref()
        .unwrap_or_default()
        .split(',')
        .filter(|host| !host.is_empty())
        .collect();
    hosts.extend(["127.0.0.1", "localhost", "::1"]);
    let value = hosts.join(",");
    [("NO_PROXY", value.clone()), ("no_proxy", value)]
}

/// The first executable file of this name on the path.
pub fn find_program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    env::split_paths(path?)
        .map(|dir| dir.join(name))
        .find(|file| std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

/// The signals that ask to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> Result<Signals, Failure> {
        let watch = |kind| signal(kind).map_err(unwatched);
        Ok(Signals {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn unwatched(error: std::io::Error) -> Failure {
    failure(
        Exit::Failed,
        said!(language(), en: "Codex could not be watched", zh: "无法监视 Codex"),
        Said::verbatim(error.to_string()),
        "codex --version",
    )
}

/// Waits for Codex. Ctrl-C reaches it through the terminal; other stop signals are passed on.
async fn wait(mut child: Child, signals: &mut Signals) -> Result<u8, Failure> {
    loop {
        tokio::select! {
            status = child.wait() => return status.map(exit_code).map_err(unwatched),
            _ = signals.interrupt.recv() => {}
            _ = signals.terminate.recv() => pass_on(&child, process::Signal::TERM),
            _ = signals.hangup.recv() => pass_on(&child, process::Signal::HUP),
        }
    }
}

fn pass_on(child: &Child, signal: process::Signal) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between, which is what was wanted.
        process::kill_process(pid, signal).ok();
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_stays_out_of_the_way_to_this_machine() {
        assert_eq!(no_proxy(Some("corp".into()))[0].1, "corp,127.0.0.1,localhost,::1");
        assert_eq!(no_proxy(None)[1].0, "no_proxy");
    }

    #[test]
    fn codex_s_exit_code_is_ours() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}

//! The command line: each command reads its flags, calls [`crate::admin`] or the server, and prints what came of it.

pub mod audit;
pub mod backup;
pub mod code;
pub mod codex;
pub mod config;
pub mod connect;
mod demo;
mod doctor;
mod explain;
pub mod failure;
pub mod filter;
mod healthcheck;
pub mod key;
pub mod ledger;
mod logging;
mod manual;
pub mod mistyped;
pub mod output;
pub mod price;
pub mod prompt;
pub mod refund;
mod reload;
pub mod request;
pub mod restore;
pub mod runtime;
mod serve;
mod session;
mod sink;
mod stage;
pub mod statement;
mod status;
mod stop;
mod top;
mod turn_cost;
mod upstream;
pub mod usage;
pub mod user;
pub mod values;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::failure::{Exit, Failure};
use crate::config::{Config, Flag, Loaded, LogConfig, LogFormat, Sources};
use crate::language::{Language, Said};
use crate::store::{Actor, Create, ServerLock, Store};
use crate::{bilingual, said};

/// The largest settings or secret file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A prepaid gateway for the Codex CLI and any OpenAI client: one binary, one SQLite file, exact bills.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 settings invalid, 4 not allowed, 5 not found,\n6 already exists, 7 upstream or network, 8 books do not balance (gateway explain N)."
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How long a file that is being read when all else is done may take: it may be one that never comes.
const LAST_READS: Duration = Duration::from_secs(1);

/// How long a thread for blocking work waits for more of it. With tokio's ten seconds, a look at files each second would keep
/// as many threads for ever as a busy minute had needed.
const THREAD_KEEP_ALIVE: Duration = Duration::from_millis(500);

/// Flags of every command.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Global {
    /// The settings file [default: ./gateway.toml, else codex-gateway/gateway.toml in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database file [default: as the settings say]
    #[arg(long, global = true, value_name = "FILE")]
    pub database: Option<PathBuf>,
    /// Log more; twice, still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print errors only, besides what was asked for
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print one JSON document
    #[arg(long, global = true)]
    pub json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole thing with nothing to set up: two calls on a simulated upstream, their receipts, the balance
    Demo(demo::DemoArgs),
    /// Serve the gateway until SIGTERM or Ctrl-C
    Serve(serve::ServeArgs),
    /// What the running server does now: exchanges, rates, upstreams, holds
    Status(status::StatusArgs),
    /// The same, each second; q leaves
    Top(top::TopArgs),
    /// Start Codex through this gateway; changes no file
    #[command(disable_version_flag = true)]
    Codex(codex::CodexArgs),
    /// Set up a client for this gateway
    Connect(connect::ConnectArgs),
    /// What a turn of Codex was charged, for its Stop hook
    #[command(hide = true)]
    TurnCost(turn_cost::TurnCostArgs),
    /// Upstreams
    #[command(subcommand)]
    Upstream(upstream::UpstreamCommand),
    /// Users: who owns a balance
    #[command(subcommand)]
    User(user::UserCommand),
    /// Gateway keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Prices, by price list and model
    #[command(subcommand)]
    Price(price::PriceCommand),
    /// What was used, what it cost and what was charged
    Usage(usage::UsageArgs),
    /// Single requests and their receipts
    #[command(subcommand)]
    Request(request::RequestCommand),
    /// What conversations cost, turn by turn, and what made them dear
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// The entries of a balance, and whether the books balance
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// A user's month: opening balance, credits, charges by day and model, closing balance
    Statement(statement::StatementArgs),
    /// Give a charge back, wholly or in part
    Refund(refund::RefundArgs),
    /// Codes that put money into the balance of whoever redeems them, once
    #[command(subcommand)]
    Code(code::CodeCommand),
    /// Where events go
    #[command(subcommand)]
    Sink(sink::SinkCommand),
    /// Who did what, with the state before and after
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Copy the database into a file, beside a running server too
    Backup(backup::BackupArgs),
    /// Put a backup in the place of the database
    Restore(restore::RestoreArgs),
    /// The effective settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// What is wrong here, and what to do about it
    Doctor(doctor::DoctorArgs),
    /// What an error code means, and what to do about it
    Explain(explain::ExplainArgs),
    /// Whether the server of these settings answers: exit code 0, else 7
    Healthcheck(healthcheck::HealthcheckArgs),
    /// What makes a shell complete commands and flags
    Completions(manual::CompletionsArgs),
    /// The manual pages
    Man(manual::ManArgs),
}

impl Command {
    /// Whether the command goes on serving, so that its log is what the settings say and not only warnings.
    fn serves(&self) -> bool {
        match self {
            Command::Serve(_) => true,
            Command::Demo(_)
            | Command::Codex(_)
            | Command::Connect(_)
            | Command::TurnCost(_)
            | Command::Upstream(_)
            | Command::User(_)
            | Command::Key(_)
            | Command::Price(_)
            | Command::Status(_)
            | Command::Top(_)
            | Command::Usage(_)
            | Command::Request(_)
            | Command::Session(_)
            | Command::Ledger(_)
            | Command::Statement(_)
            | Command::Refund(_)
            | Command::Code(_)
            | Command::Sink(_)
            | Command::Audit(_)
            | Command::Backup(_)
            | Command::Restore(_)
            | Command::Config(_)
            | Command::Doctor(_)
            | Command::Explain(_)
            | Command::Healthcheck(_)
            | Command::Completions(_)
            | Command::Man(_) => false,
        }
    }
}

/// Runs a command and gives its exit code: zero, or that of the program it started.
///
/// # Errors
/// What [`failure::describe`] turns into an exit code and a text.
pub fn run(cli: Cli) -> anyhow::Result<u8> {
    let Cli { global, command } = cli;
    start_logging(&global, &command);
    let done = match command {
        Command::Codex(args) => return codex::run(&args, &global),
        Command::Connect(args) => connect::run(&args, &global),
        Command::TurnCost(args) => turn_cost::run(&args),
        Command::Demo(args) => demo::run(&args, &global),
        Command::Serve(args) => serve::run(args, &global),
        Command::Upstream(command) => upstream::run(command, &global),
        Command::User(command) => user::run(command, &global),
        Command::Key(command) => key::run(command, &global),
        Command::Price(command) => price::run(command, &global),
        Command::Status(args) => status::run(&args, &global),
        Command::Top(args) => top::run(&args, &global),
        Command::Usage(args) => usage::run(args, &global),
        Command::Request(command) => request::run(command, &global),
        Command::Session(command) => session::run(command, &global),
        Command::Ledger(command) => ledger::run(command, &global),
        Command::Statement(args) => statement::run(&args, &global),
        Command::Refund(args) => refund::run(args, &global),
        Command::Code(command) => code::run(command, &global),
        Command::Sink(command) => sink::run(&command, &global),
        Command::Audit(command) => audit::run(command, &global),
        Command::Backup(args) => backup::run(&args, &global),
        Command::Restore(args) => restore::run(&args, &global),
        Command::Config(command) => config::run(command, &global),
        Command::Doctor(args) => return doctor::run(&args, &global),
        Command::Explain(args) => explain::run(&args, &global),
        Command::Healthcheck(args) => healthcheck::run(&args, &global),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    done.map(|()| 0)
}

/// Runs the future of a command that serves or calls.
///
/// # Errors
/// Its own, or that no runtime could be made.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .enable_all()
        .build();
    let runtime = runtime.context(said!(language(), en: "no threads could be started", zh: "无法启动线程"))?;
    let done = runtime.block_on(future);
    runtime.shutdown_timeout(LAST_READS);
    done
}

/// Logs go to stderr. Settings that are not valid are reported by the command itself.
fn start_logging(global: &Global, command: &Command) {
    let settings = global.settings(Vec::new()).ok().map(|loaded| loaded.config.log);
    let (format, level) = match settings {
        Some(LogConfig { format, level }) if command.serves() => (format, level),
        Some(LogConfig { format, .. }) => (format, "warn".to_owned()),
        None => (LogFormat::Text, "warn".to_owned()),
    };
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error".to_owned(),
        (false, 0) => level,
        (false, 1) => "info,codex_gateway=debug".to_owned(),
        (false, _) => "debug,codex_gateway=trace".to_owned(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_ansi(
            std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::io::IsTerminal::is_terminal(&std::io::stderr()),
        )
        .with_writer(std::io::stderr)
        // It would report a stderr that nobody reads on stderr, and panic.
        .log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.fmt_fields(logging::Fields).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        global.say(&said!(language(), en: "no log: {error}", zh: "没有日志：{error}"));
    }
}

impl Global {
    /// A message for people, on stderr, unless `--quiet`.
    pub fn say(&self, message: &Said) {
        if !self.quiet {
            output::tell(&format!("{message}\n"));
        }
    }

    /// Another command on the same settings and database, fit to be pasted: by the program as it was started.
    pub fn command(&self, words: &str) -> String {
        let flag = |name: &str, path: &Option<PathBuf>| {
            let path = path.as_ref()?.display().to_string();
            Some(format!(" --{name} {}", output::shell_word(&path)))
        };
        let flags = [flag("config", &self.config), flag("database", &self.database)];
        let flags: String = flags.into_iter().flatten().collect();
        format!("{}{flags} {words}", output::program())
    }

    /// The settings, with the flags of this command that stand for one.
    ///
    /// # Errors
    /// The file cannot be read, or a setting is not valid: exit code 3.
    pub fn settings(&self, flags: Vec<Flag>) -> anyhow::Result<Loaded> {
        self.settings_noting(flags, |_| {})
    }

    /// The settings, and the files that secrets are read from.
    ///
    /// # Errors
    /// As [`Global::settings`].
    pub fn settings_noting(&self, mut flags: Vec<Flag>, note: impl Fn(&Path)) -> anyhow::Result<Loaded> {
        let env = environment();
        let file = self.settings_file()?;
        if let Some(path) = &self.database {
            flags.push(Flag {
                name: "--database",
                table: "database",
                key: "path",
                value: path.display().to_string(),
            });
        }
        let loaded = Config::load(Sources {
            file,
            env: &env,
            flags,
            read: &|path| {
                note(path);
                read_text(path).map_err(|error| {
                    let path = path.display();
                    bilingual!(en: "{path} cannot be read: {error}", zh: "无法读取 {path}：{error}")
                })
            },
        });
        let mut loaded = loaded.map_err(Failure::from)?;
        make_absolute(&mut loaded)?;
        Ok(loaded)
    }

    /// The settings, with the address of the server that runs on their database in place of the one they name: port 0
    /// and `serve --listen` choose another.
    ///
    /// # Errors
    /// As [`Global::settings`].
    pub fn settings_as_served(&self) -> anyhow::Result<Config> {
        let mut config = self.settings(Vec::new())?.config;
        // Who may not look at the database takes the settings' word for it.
        let noted = ServerLock::holder(&config.database).unwrap_or_default();
        if let Some(listen) = noted.as_deref().and_then(address) {
            config.server.listen = listen;
        }
        Ok(config)
    }

    /// The settings file: the named one, or the first there is.
    pub fn settings_path(&self) -> Option<PathBuf> {
        let found = || settings_places(&environment()).into_iter().find(|path| path.exists());
        self.config.clone().or_else(found)
    }

    fn settings_file(&self) -> anyhow::Result<Option<(PathBuf, String)>> {
        let Some(path) = self.settings_path() else {
            return Ok(None);
        };
        match read_text(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) => {
                let (language, path) = (language(), path.display());
                let what = said!(
                    language,
                    en: "the settings file {path} cannot be read",
                    zh: "无法读取设置文件 {path}",
                );
                let failure = Failure::new(Exit::Settings, what).why(Said::verbatim(error.to_string()));
                Err(failure
                    .fix(said!(
                        language,
                        en: "name one that is there and that you may read: --config FILE",
                        zh: "指明一个存在且可读的文件：--config FILE",
                    ))
                    .into())
            }
        }
    }

    /// The database of the settings.
    ///
    /// # Errors
    /// Settings that are not valid (3), a database that is missing (5), in use (4) or broken (1).
    pub fn store(&self, create: Create) -> anyhow::Result<Store> {
        let path = self.settings(Vec::new())?.config.database;
        open(&path, create)
    }
}

/// Where a server listens, as it noted: `process 7, http://127.0.0.1:8080`.
fn address(noted: &str) -> Option<SocketAddr> {
    ServerLock::noted(noted).0?.split_once("://")?.1.parse().ok()
}

/// Shows the database's path as a whole: a relative one, of a flag or a variable, is another one in each folder.
fn make_absolute(loaded: &mut Loaded) -> anyhow::Result<()> {
    let database = std::path::absolute(&loaded.config.database)
        .context(said!(language(), en: "there is no current folder", zh: "没有当前文件夹"))?;
    let shown = loaded
        .settings
        .iter_mut()
        .filter(|setting| setting.key == "database.path");
    shown.for_each(|setting| setting.value = Some(database.display().to_string()));
    loaded.config.database = database;
    Ok(())
}

/// Opens a database, with failures in the words of the command line.
///
/// # Errors
/// As [`Global::store`].
pub fn open(path: &Path, create: Create) -> anyhow::Result<Store> {
    Store::open(path, create).map_err(|error| Failure::from(error).into())
}

/// Where a settings file is looked for, in order.
fn settings_places(env: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let folder = |name: &str| env.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    let user = user.map(|folder| folder.join("codex-gateway").join("gateway.toml"));
    std::iter::once(PathBuf::from("gateway.toml")).chain(user).collect()
}

/// The environment; a variable that is not text is nobody's setting.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// A small file as text.
fn read_text(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_FILE) {
        let why = said!(language(), en: "larger than 1 MiB", zh: "大于 1 MiB");
        return Err(std::io::Error::other(String::from(why)));
    }
    Ok(text)
}

/// The language of who reads the terminal.
pub fn language() -> Language {
    // The tests of this crate read English on any machine.
    Language::of_environment(|name| std::env::var(name).ok().filter(|_| !cfg!(test)))
}

/// What this machine calls itself.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Who acts, for the audit log: `cli:USER@HOST`. It is what the system says, not a proof.
pub fn actor() -> Actor {
    let user = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok());
    let short = |text: Option<String>| {
        let text: String = text
            .unwrap_or_default()
            .trim()
            .chars()
            .filter(|c| !c.is_control())
            .take(64)
            .collect();
        if text.is_empty() { "unknown".to_owned() } else { text }
    };
    Actor(format!("cli:{}@{}", short(user), short(Some(host()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_are_looked_for_here_and_then_in_the_users_folder() {
        let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        assert_eq!(
            settings_places(&env(&[("HOME", "/home/me")])),
            [
                Path::new("gateway.toml"),
                Path::new("/home/me/.config/codex-gateway/gateway.toml")
            ]
        );
        assert_eq!(
            settings_places(&env(&[("HOME", "/home/me"), ("XDG_CONFIG_HOME", "/c")]))[1],
            Path::new("/c/codex-gateway/gateway.toml")
        );
        assert_eq!(settings_places(&env(&[])).len(), 1);
    }
}

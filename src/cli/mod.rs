//! The command line: each command reads its flags, calls [`crate::admin`] or the server, and prints what came of it.

pub mod backup;
pub mod codex;
pub mod config;
pub mod connect;
mod demo;
pub mod failure;
pub mod key;
pub mod ledger;
pub mod output;
pub mod price;
pub mod prompt;
pub mod request;
pub mod restore;
pub mod runtime;
mod serve;
mod stop;
mod upstream;
pub mod usage;
pub mod user;
pub mod values;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};

use self::failure::{Exit, Failure};
use crate::config::{Config, Flag, Loaded, LogConfig, LogFormat, Sources};
use crate::store::{Actor, Create, ServerLock, Store};

/// The largest settings or secret file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A prepaid gateway for the Codex CLI and any OpenAI client: one binary, one SQLite file, exact bills.
#[derive(Debug, Parser)]
#[command(name = "gateway", version, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 settings invalid, 4 not allowed, 5 not found,\n6 already exists, 7 upstream or network, 8 books do not balance."
)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

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
    /// Start Codex through this gateway; changes no file
    #[command(disable_version_flag = true)]
    Codex(codex::CodexArgs),
    /// Set up a client for this gateway
    Connect(connect::ConnectArgs),
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
    /// The entries of a balance, and whether the books balance
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Copy the database into a file, beside a running server too
    Backup(backup::BackupArgs),
    /// Put a backup in the place of the database
    Restore(restore::RestoreArgs),
    /// The effective settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

impl Command {
    /// Whether the command goes on serving, so that its log is what the settings say and not only warnings.
    fn serves(&self) -> bool {
        match self {
            Command::Serve(_) => true,
            Command::Demo(_)
            | Command::Codex(_)
            | Command::Connect(_)
            | Command::Upstream(_)
            | Command::User(_)
            | Command::Key(_)
            | Command::Price(_)
            | Command::Usage(_)
            | Command::Request(_)
            | Command::Ledger(_)
            | Command::Backup(_)
            | Command::Restore(_)
            | Command::Config(_) => false,
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
        Command::Demo(args) => demo::run(&args, &global),
        Command::Serve(args) => serve::run(args, &global),
        Command::Upstream(command) => upstream::run(command, &global),
        Command::User(command) => user::run(command, &global),
        Command::Key(command) => key::run(command, &global),
        Command::Price(command) => price::run(command, &global),
        Command::Usage(args) => usage::run(args, &global),
        Command::Request(command) => request::run(command, &global),
        Command::Ledger(command) => ledger::run(command, &global),
        Command::Backup(args) => backup::run(&args, &global),
        Command::Restore(args) => restore::run(&args, &global),
        Command::Config(command) => config::run(command, &global),
    };
    done.map(|()| 0)
}

/// Runs the future of a command that serves or calls.
///
/// # Errors
/// Its own, or that no runtime could be made.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("no threads could be started")?.block_on(future)
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
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        global.say(&format!("no log: {error}"));
    }
}

impl Global {
    /// A message for people, on stderr, unless `--quiet`.
    pub fn say(&self, message: &str) {
        if !self.quiet {
            output::tell(&format!("{message}\n"));
        }
    }

    /// The settings, with the flags of this command that stand for one.
    ///
    /// # Errors
    /// The file cannot be read, or a setting is not valid: exit code 3.
    pub fn settings(&self, mut flags: Vec<Flag>) -> anyhow::Result<Loaded> {
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
            read: &|path| read_text(path).map_err(|error| format!("{} cannot be read: {error}", path.display())),
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
                let what = format!("the settings file {} cannot be read", path.display());
                let failure = Failure::new(Exit::Settings, what).why(error.to_string());
                Err(failure
                    .fix("name one that is there and that you may read: --config FILE")
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
    noted.rsplit_once("http://")?.1.parse().ok()
}

/// Shows the database's path as a whole: a relative one, of a flag or a variable, is another one in each folder.
fn make_absolute(loaded: &mut Loaded) -> anyhow::Result<()> {
    let database = std::path::absolute(&loaded.config.database).context("there is no current folder")?;
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
        return Err(std::io::Error::other("larger than 1 MiB"));
    }
    Ok(text)
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

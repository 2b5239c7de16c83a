//! How a command fails: an exit code, and up to four short lines that say what, why, what to do and what was near.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use super::output;
use crate::admin::AdminError;
use crate::config::ConfigErrors;
use crate::store::{Behind, OpenError, StoreError};

/// Exit codes, as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Failed for a reason of no other code.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Settings invalid.
    Settings = 3,
    /// Not allowed.
    NotAllowed = 4,
    /// Not found.
    NotFound = 5,
    /// Already exists.
    Exists = 6,
    /// Upstream or network.
    Upstream = 7,
    /// The books do not balance.
    Books = 8,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened.
    pub what: String,
    /// Why.
    pub why: Option<String>,
    /// What to do.
    pub fix: Option<String>,
    /// The nearest name.
    pub near: Option<String>,
}

impl Failure {
    /// A failure with what happened only.
    pub fn new(exit: Exit, what: impl Into<String>) -> Failure {
        Failure {
            exit,
            what: what.into(),
            why: None,
            fix: None,
            near: None,
        }
    }

    /// Says why.
    #[must_use]
    pub fn why(mut self, why: impl Into<String>) -> Failure {
        self.why = Some(why.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Failure {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let lines = [("why ", &self.why), ("fix ", &self.fix), ("near", &self.near)];
        for (label, line) in lines {
            if let Some(line) = line {
                write!(f, "\n  {label}  {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The source chain of an error in one line.
fn causes(error: &dyn std::error::Error) -> Option<String> {
    let mut texts = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    (!texts.is_empty()).then(|| texts.join(": "))
}

/// An error and its source chain in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    error.to_string() + &caused(error)
}

/// The same, to stand behind the error itself.
fn caused(error: &dyn std::error::Error) -> String {
    causes(error).map_or(String::new(), |causes| format!(": {causes}"))
}

/// What to do with a database of a newer release: its backup of our version, if there is one, is its way back.
fn newer(database: &Path, backup: Option<&Path>) -> String {
    match backup {
        Some(backup) => format!(
            "use that release, or go back to what was before it: {}",
            restore_command(database, backup)
        ),
        None => format!(
            "use that release, or a later one (this is {})",
            env!("CARGO_PKG_VERSION")
        ),
    }
}

/// A command on a database, fit to be pasted: by the program as it was started.
pub fn command_on(database: &Path, words: &str) -> String {
    format!("{} --database {} {words}", output::program(), word(database))
}

/// The command that puts a backup in the place of a database that is there.
pub fn restore_command(database: &Path, backup: &Path) -> String {
    command_on(database, &format!("restore {} --force", word(backup)))
}

fn word(path: &Path) -> String {
    output::shell_word(&path.display().to_string())
}

impl From<AdminError> for Failure {
    fn from(error: AdminError) -> Failure {
        if let Some(lacking) = std::error::Error::source(&error).and_then(of_its_state) {
            return unopened(lacking);
        }
        let what = error.to_string();
        let why = causes(&error);
        let failure = |exit| Failure::new(exit, what);
        match error {
            AdminError::NotFound { what, nearest, .. } => Failure {
                near: nearest,
                fix: Some(format!("see what there is: {}", lister(what))),
                ..failure(Exit::NotFound)
            },
            AdminError::Ambiguous { matches, .. } => {
                failure(Exit::Usage).fix(format!("write one of {}", matches.join(", ")))
            }
            AdminError::Exists { what, name } => failure(Exit::Exists).fix(existing(what, &name)),
            AdminError::NotAllowed { fix, .. } => failure(Exit::NotAllowed).fix(fix),
            AdminError::Invalid { fix, .. } => failure(Exit::Usage).fix(fix),
            AdminError::Storage(_) => Failure {
                why,
                ..failure(Exit::Failed).fix("see to the disk and the file (gateway config path), and do it again")
            },
            AdminError::Unknown(_) => Failure {
                why,
                ..failure(Exit::Failed).fix(
                    "look: gateway ledger list USER, key list, price list; a credit with a --reference can be repeated",
                )
            },
        }
    }
}

fn lister(what: &str) -> &'static str {
    match what {
        "user" => "gateway user list",
        "key" => "gateway key list",
        "request" => "gateway request list",
        _ => "gateway price list",
    }
}

fn existing(what: &str, name: &str) -> String {
    match what {
        "user" => format!("see it: gateway user show {name}"),
        "different credit with the reference" => "use another --reference; the first one was credited".into(),
        _ => "use another one".into(),
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        Failure::new(Exit::Settings, format!("the settings are not valid: {errors}"))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        AdminError::Storage(error).into()
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        unopened(&error)
    }
}

/// What a write was refused for, when it is the state of the database and no fault of the engine.
fn of_its_state<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a OpenError> {
    error.source()?.downcast_ref()
}

/// Why a database was not opened, or is not written to, and what to do.
pub fn unopened(error: &OpenError) -> Failure {
    let failure = |exit| Failure::new(exit, error.to_string());
    match error {
        OpenError::Missing(_) => failure(Exit::NotFound)
            .why("this command works on a database that is there")
            .fix("name it by --database FILE, or make one: gateway user add NAME"),
        OpenError::NotOurs(_) => failure(Exit::Failed).fix("name the gateway's own by --database FILE"),
        OpenError::TooNew { path, backup, .. } => failure(Exit::Failed)
            .why("a newer release made it, or migrated it")
            .fix(newer(path, backup.as_deref())),
        OpenError::NotBackedUp { source, .. } => failure(Exit::Failed)
            .why(chain(source))
            .fix("make room beside it, and do it again: nothing was changed"),
        OpenError::Behind { path, lacks } => failure(Exit::Failed).why(why_behind(lacks)).fix(format!(
            "restore the newest backup: {}; or go on with what is there: {}",
            restore_command(path, Path::new("FILE")),
            command_on(path, ACCEPT_LOSS)
        )),
        OpenError::Gone(_, left) => failure(Exit::NotFound)
            .why("an empty one in its place would take its log with it")
            .fix(format!(
                "put it back; or move {} and what else begins with that name away, to begin anew",
                left.display()
            )),
        OpenError::NotItsLog(database, log) => failure(Exit::Failed)
            .why("an old copy was put beside it; opened together they become a database that never was")
            .fix(format!(
                "put the newest database back; or go on without the log: mv {0} {0}.lost && {1}",
                word(log),
                command_on(database, ACCEPT_LOSS)
            )),
        OpenError::WhoseLog(database, _) => failure(Exit::Failed)
            .why("a database of an earlier release was put in the place of a newer one")
            .fix(format!(
                "if that release ran on it since, start and stop it once more: the log was its own; if not: {}",
                restore_command(database, Path::new("FILE"))
            )),
        OpenError::InUse(_) => failure(Exit::NotAllowed).fix("stop that one first, or use another --database"),
        OpenError::Store(error) => Failure::new(Exit::Failed, "the database could not be used")
            .why(chain(error))
            .fix("name a gateway's database, or a new file in a folder you may write to: --database FILE"),
    }
}

const ACCEPT_LOSS: &str = "serve --accept-loss";

fn why_behind(lacks: &Behind) -> &'static str {
    match lacks {
        Behind::Unreadable(_) => "that file was damaged or altered, so nobody knows whether anything is missing",
        Behind::Commits { .. } | Behind::Entry(_) => "its log was lost, or an old copy was put in its place",
    }
}

/// An address that a command could not have.
pub fn not_listening(addr: SocketAddr, error: &std::io::Error, command: &str) -> Failure {
    let again = format!("{} {command} --listen 127.0.0.1:0", output::program());
    Failure::new(Exit::Failed, format!("cannot listen on {addr}"))
        .why(error.to_string())
        .fix(format!("stop what listens there, or take another address: {again}"))
}

/// The exit code of an error, and the text to print behind `error: `.
pub fn describe(error: &anyhow::Error) -> (Exit, String) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return (failure.exit, failure.to_string());
    }
    let why = causes(error.as_ref()).map(|why| format!("\n  why   {why}"));
    (Exit::Failed, format!("{error}{}", why.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_failure_takes_at_most_four_lines() {
        let failure = Failure::from(AdminError::NotFound {
            what: "user",
            name: "alcie".into(),
            nearest: Some("alice".into()),
        });
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(
            failure.to_string(),
            "there is no user 'alcie'\n  fix   see what there is: gateway user list\n  near  alice"
        );
    }

    #[test]
    fn a_failure_of_the_database_says_why() {
        let error = StoreError {
            context: "reading users".into(),
            source: Some("disk I/O error".into()),
        };
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Failed);
        assert!(
            failure
                .to_string()
                .contains("\n  why   reading users: disk I/O error\n  fix   "),
            "{failure}"
        );
    }

    #[test]
    fn what_to_do_with_a_database_that_lost_something_can_be_pasted() {
        let path = PathBuf::from("/my books/gateway.db");
        let run = |words: &str| format!("{} --database '/my books/gateway.db' {words}", output::program());
        let behind = |lacks| {
            let path = path.clone();
            OpenError::Behind { path, lacks }
        };
        let old = Failure::from(behind(Behind::Entry(7)));
        for part in [run("restore FILE --force"), run("serve --accept-loss")] {
            assert!(old.fix.as_ref().is_some_and(|fix| fix.contains(&part)), "{old}");
        }
        let unknown = Failure::from(behind(Behind::Unreadable("/my books/gateway.db.mark".into())));
        assert!(unknown.what.contains("may not be"), "{unknown}");
        assert!(
            unknown.why.as_ref().is_some_and(|why| why.contains("damaged")),
            "{unknown}"
        );
        let log = Failure::from(OpenError::NotItsLog(path.clone(), "/my books/gateway.db-wal".into()));
        let moved = format!(
            "mv '/my books/gateway.db-wal' '/my books/gateway.db-wal'.lost && {}",
            run("serve --accept-loss")
        );
        assert!(log.fix.as_ref().is_some_and(|fix| fix.ends_with(&moved)), "{log}");
        let not_written = StoreError {
            context: "crediting: nothing was written".into(),
            source: Some(Box::new(behind(Behind::Entry(7)))),
        };
        assert_eq!(
            Failure::from(not_written).to_string(),
            old.to_string(),
            "an act that was refused for the same"
        );
    }

    #[test]
    fn any_other_error_is_told_with_its_causes() {
        let error = anyhow::Error::from(std::io::Error::other("gone")).context("the file was not read");
        assert_eq!(
            describe(&error),
            (Exit::Failed, "the file was not read\n  why   gone".into())
        );
    }
}

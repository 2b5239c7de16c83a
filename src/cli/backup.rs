//! `gateway backup`: a copy of the books, verified before it takes its place.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Exit, Failure, chain, command_on, unopened};
use super::{Global, output};
use crate::store::Create;
use crate::store::backup::{BackupError, Contents, Existing, LastEntry};

/// Copy the database into a file, beside a running server too.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The file to write; it takes its place only when the books in it balance
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
}

/// `backup --json`, and a part of `restore --json`.
#[derive(Debug, Serialize)]
pub struct ContentsView {
    path: PathBuf,
    bytes: u64,
    users: u64,
    entries: u64,
    last_entry: Option<LastEntryView>,
}

/// The last entry of the books.
#[derive(Debug, Serialize)]
pub struct LastEntryView {
    seq: i64,
    at: Timestamp,
}

impl ContentsView {
    /// Of what is in a file.
    pub fn new(path: PathBuf, contents: &Contents) -> ContentsView {
        ContentsView {
            path,
            bytes: contents.bytes,
            users: contents.users,
            entries: contents.entries,
            last_entry: contents.last.map(LastEntryView::new),
        }
    }
}

impl LastEntryView {
    /// Of an entry.
    pub fn new(LastEntry { seq, at }: LastEntry) -> LastEntryView {
        LastEntryView { seq, at }
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(args: &BackupArgs, global: &Global) -> anyhow::Result<()> {
    let path = a_file(&args.file)?;
    let store = global.store(Create::Never)?;
    let contents = store
        .back_up(&path, existing(args.force))
        .map_err(|error| not_done("the backup could not be made", &error))?;
    if global.json {
        return output::json(&ContentsView::new(path, &contents));
    }
    output::fields(&[
        ("backup", path.display().to_string()),
        ("bytes", output::count(contents.bytes)),
        ("users", output::count(contents.users)),
        ("entries", output::count(contents.entries)),
        ("as of", as_of(contents.last)),
    ])
}

/// A file that was named, as a whole path.
///
/// # Errors
/// It is `-`: what goes through a pipe cannot be verified first.
pub fn a_file(named: &Path) -> anyhow::Result<PathBuf> {
    if named == Path::new("-") {
        let failure = Failure::new(Exit::Usage, "a backup is a file, not a pipe");
        let why = failure.why("it is verified before it takes its place");
        return Err(why.fix("name a file").into());
    }
    Ok(std::path::absolute(named)?)
}

/// What `--force` says.
pub fn existing(force: bool) -> Existing {
    if force { Existing::Replace } else { Existing::Keep }
}

/// As of when books are.
pub fn as_of(last: Option<LastEntry>) -> String {
    match last {
        Some(LastEntry { seq, at }) => format!("entry {seq}, {} UTC", output::time(at)),
        None => "no entry yet".to_owned(),
    }
}

/// A backup or a restore that was not done; `what` says so of the one or the other.
pub fn not_done(what: &str, error: &BackupError) -> Failure {
    let failure = |exit| Failure::new(exit, error.to_string());
    match error {
        BackupError::Exists(_) => failure(Exit::Exists).fix("take another name, or replace it: --force"),
        BackupError::Itself(_) => failure(Exit::Usage).fix("name another file"),
        BackupError::InUse { .. } => {
            failure(Exit::Exists).fix("take another name; the log would be taken for the backup's own")
        }
        BackupError::Busy(_) => failure(Exit::NotAllowed).fix("wait for the gateway's other commands to end"),
        BackupError::Missing(_) => failure(Exit::NotFound).fix("name one that is there"),
        BackupError::Folder(_) => failure(Exit::Usage).fix("name a file in it"),
        BackupError::Damaged { source, .. } => failure(Exit::Books)
            .why(chain(source))
            .fix("nothing was written; use an earlier backup"),
        BackupError::Unbalanced { file, .. } => failure(Exit::Books)
            .why("a row was changed outside the gateway, or the gateway has a fault")
            .fix(format!(
                "nothing was written; all that is wrong: {}",
                command_on(file, "ledger verify --json")
            )),
        BackupError::Open(error) => unopened(error),
        BackupError::Store(source) => Failure::new(Exit::Failed, what)
            .why(chain(source))
            .fix("see to the disk, and do it again"),
    }
}

//! `gateway restore`: a backup in the place of the database, which is kept beside it.

use std::path::PathBuf;

use serde::Serialize;

use super::backup::{ContentsView, LastEntryView, a_file, as_of, existing, not_done};
use super::failure::{Exit, Failure, restore_command};
use super::{Global, output};
use crate::store::backup::{BackupError, LastEntry};
use crate::store::restore::{self, Replaced, Restored};
use crate::time::now;

/// Put a backup in the place of the database.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// A backup; it is only restored when the books in it balance
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the database if it is there; it is kept beside the new one
    #[arg(long)]
    force: bool,
}

/// `restore --json`.
#[derive(Serialize)]
struct RestoredView {
    #[serde(flatten)]
    contents: ContentsView,
    from: PathBuf,
    replaced: Option<ReplacedView>,
}

#[derive(Serialize)]
struct ReplacedView {
    kept: Vec<PathBuf>,
    last_entry: Option<LastEntryView>,
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(args: &RestoreArgs, global: &Global) -> anyhow::Result<()> {
    let from = a_file(&args.file)?;
    let path = global.settings(Vec::new())?.config.database;
    let restored = restore::restore(&from, &path, existing(args.force), now()).map_err(|error| match error {
        BackupError::Exists(path) => Failure::new(Exit::Exists, format!("{} is there already", path.display())).fix(
            format!("to replace it (it is kept beside): {}", restore_command(&path, &from)),
        ),
        error => not_done("the backup was not restored", &error),
    })?;
    if global.json {
        return output::json(&view(path, from, restored));
    }
    let Restored { contents, replaced } = restored;
    let mut lines = vec![
        ("restored", path.display().to_string()),
        ("from", from.display().to_string()),
        ("users", output::count(contents.users)),
        ("entries", output::count(contents.entries)),
        ("as of", as_of(contents.last)),
    ];
    let kept = replaced.iter().flat_map(|replaced| &replaced.kept);
    lines.extend(kept.map(|path| ("kept", path.display().to_string())));
    output::fields(&lines)?;
    global.say(&missing(contents.last, replaced.as_ref()));
    Ok(())
}

/// What the backup cannot know of.
fn missing(last: Option<LastEntry>, replaced: Option<&Replaced>) -> String {
    let from = last.map_or(1, |entry| entry.seq + 1);
    match replaced.and_then(|replaced| replaced.last) {
        Some(LastEntry { seq, at }) if seq >= from => format!(
            "not in it: {} of the database that was replaced, the last of {} UTC",
            if seq == from {
                format!("entry {seq}")
            } else {
                format!("entries {from} to {seq}")
            },
            output::time(at)
        ),
        _ => "not in it: what was settled and credited since".to_owned(),
    }
}

fn view(path: PathBuf, from: PathBuf, restored: Restored) -> RestoredView {
    RestoredView {
        contents: ContentsView::new(path, &restored.contents),
        from,
        replaced: restored.replaced.map(|Replaced { kept, last }| ReplacedView {
            kept,
            last_entry: last.map(LastEntryView::new),
        }),
    }
}

//! `gateway restore`: a backup in the place of the database, which is kept beside it.

use std::path::PathBuf;

use serde::Serialize;

use super::backup::{ContentsView, LastEntryView, a_file, as_of, existing, not_done};
use super::failure::{Exit, Failure, restore_command};
use super::{Global, actor, language, output};
use crate::language::Said;
use crate::said;
use crate::store::backup::{BackupError, LastEntry};
use crate::store::restore::{self, Replaced, Restored};
use crate::store::{Create, Outcome};
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
        BackupError::Exists(path) => {
            let (shown, command) = (path.display(), restore_command(&path, &from));
            let what = said!(language(), en: "{shown} is there already", zh: "{shown} 已经存在");
            Failure::new(Exit::Exists, what).fix(said!(
                language(),
                en: "to replace it (it is kept beside): {command}",
                zh: "如需替换（原有的会保留在旁边）：{command}",
            ))
        }
        error => {
            let what = said!(language(), en: "the backup was not restored", zh: "备份没有恢复");
            not_done(what, &error)
        }
    })?;
    let noted = super::open(&path, Create::Never).map(|store| store.note_restored(&from, &restored, &actor(), now()));
    if !matches!(noted, Ok(Outcome::Committed(()))) {
        global.say(&said!(
            language(),
            en: "it is restored, and that could not be written into its audit log",
            zh: "已恢复，但未能写入其审计日志",
        ));
    }
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
fn missing(last: Option<LastEntry>, replaced: Option<&Replaced>) -> Said {
    let (language, from) = (language(), last.map_or(1, |entry| entry.seq + 1));
    match replaced.and_then(|replaced| replaced.last) {
        Some(LastEntry { seq, at }) if seq >= from => {
            let at = output::time(at);
            let entries = match seq == from {
                true => said!(language, en: "entry {seq}", zh: "条目 {seq}"),
                false => said!(language, en: "entries {from} to {seq}", zh: "条目 {from} 至 {seq}"),
            };
            said!(
                language,
                en: "not in it: {entries} of the database that was replaced, the last of {at} UTC",
                zh: "其中没有：被替换的数据库的{entries}，最后一条在 {at} UTC",
            )
        }
        _ => said!(
            language,
            en: "not in it: what was settled and credited since",
            zh: "其中没有：此后的结算和充值",
        ),
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

//! `gateway backup`: a copy of the books, verified before it takes its place.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Exit, Failure, altered, chain, command_on, unopened};
use super::{Global, language, output};
use crate::language::{Language, Said};
use crate::said;
use crate::store::Create;
use crate::store::backup::{BackupError, Contents, Existing, LastEntry};
use crate::store::verify::Finding;

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
    let made = store.back_up(&path, existing(args.force));
    let contents = made.map_err(|error| {
        let what = said!(language(), en: "the backup could not be made", zh: "无法制作备份");
        not_done(what, &error)
    })?;
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
        let language = language();
        let what = said!(language, en: "a backup is a file, not a pipe", zh: "备份是文件，不是管道");
        let failure = Failure::new(Exit::Usage, what).why(said!(
            language,
            en: "it is verified before it takes its place",
            zh: "它在就位之前要先校验",
        ));
        return Err(failure
            .fix(said!(language, en: "name a file", zh: "请指明一个文件"))
            .into());
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
        Some(LastEntry { seq, at }) => {
            let at = output::time(at);
            said!(language(), en: "entry {seq}, {at} UTC", zh: "条目 {seq}，{at} UTC").into()
        }
        None => said!(language(), en: "no entry yet", zh: "还没有条目").into(),
    }
}

/// A backup or a restore that was not done; `what` says so of the one or the other.
pub fn not_done(what: Said, error: &BackupError) -> Failure {
    told(what, error, language())
}

fn told(what: Said, error: &BackupError, language: Language) -> Failure {
    let another =
        || said!(language, en: "take another name, or replace it: --force", zh: "换一个名称，或用 --force 替换它");
    match error {
        BackupError::Exists(file) => {
            let file = file.display();
            let what = said!(language, en: "{file} is there already", zh: "{file} 已经存在");
            Failure::told(Exit::Exists, language, what).fix(another())
        }
        BackupError::Itself(file) => {
            let file = file.display();
            let what = said!(language, en: "{file} belongs to the database itself", zh: "{file} 属于数据库自身");
            Failure::told(Exit::Usage, language, what)
                .fix(said!(language, en: "name another file", zh: "请指明另一个文件"))
        }
        BackupError::InUse { file, log } => {
            let (file, log) = (file.display(), log.display());
            let what = said!(
                language,
                en: "{file} is a database in use: {log} lies beside it",
                zh: "{file} 是使用中的数据库：{log} 在它旁边",
            );
            Failure::told(Exit::Exists, language, what).fix(said!(
                language,
                en: "take another name; the log would be taken for the backup's own",
                zh: "换一个名称；否则该日志会被当成备份自己的日志",
            ))
        }
        BackupError::Busy(file) => {
            let file = file.display();
            let what = said!(language, en: "{file} is in use", zh: "{file} 正在使用中");
            Failure::told(Exit::NotAllowed, language, what).fix(said!(
                language,
                en: "wait for the gateway's other commands to end",
                zh: "等待网关的其他命令结束",
            ))
        }
        BackupError::Missing(file) => {
            let file = file.display();
            let what = said!(language, en: "there is no {file}", zh: "没有 {file}");
            Failure::told(Exit::NotFound, language, what).fix(said!(
                language,
                en: "name one that is there",
                zh: "请指明一个存在的文件",
            ))
        }
        BackupError::Folder(file) => {
            let file = file.display();
            let what = said!(language, en: "{file} is a folder", zh: "{file} 是文件夹");
            Failure::told(Exit::Usage, language, what).fix(said!(
                language,
                en: "name a file in it",
                zh: "请指明其中的一个文件",
            ))
        }
        BackupError::Damaged { file, source } => {
            let file = file.display();
            let what = said!(language, en: "{file} is damaged", zh: "{file} 已损坏");
            Failure::told(Exit::Books, language, what)
                .why(Said::verbatim(chain(source)))
                .fix(said!(
                    language,
                    en: "nothing was written; use an earlier backup",
                    zh: "没有写入任何内容；请使用更早的备份",
                ))
        }
        BackupError::Unbalanced { file, first } => {
            let verify = command_on(file, "ledger verify --json");
            let (file, Finding { table, row, problem }) = (file.display(), first);
            let what = said!(
                language,
                en: "the books in {file} do not balance: table {table}, row {row}: {problem}",
                zh: "{file} 中的账目不平：表 {table}，行 {row}：{problem}",
            );
            Failure::told(Exit::Books, language, what)
                .why(altered(language))
                .fix(said!(
                    language,
                    en: "nothing was written; all that is wrong: {verify}",
                    zh: "没有写入任何内容；查看全部错误：{verify}",
                ))
        }
        BackupError::Open(error) => unopened(error),
        BackupError::Store(source) => Failure::told(Exit::Failed, language, what)
            .why(Said::verbatim(chain(source)))
            .fix(said!(
                language,
                en: "see to the disk, and do it again",
                zh: "检查磁盘，然后重试",
            )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::agreement::{agree, samples};
    use crate::store::{OpenError, StoreError};

    #[test]
    fn what_hinders_a_backup_is_told_in_every_language() {
        let file = || PathBuf::from("/backups/7.db");
        let source = || StoreError {
            context: "copying".into(),
            source: None,
        };
        let first = Finding {
            table: "users",
            row: "7".into(),
            problem: "balance".into(),
        };
        for error in samples!(BackupError {
            BackupError::Exists(_) => BackupError::Exists(file()),
            BackupError::Itself(_) => BackupError::Itself(file()),
            BackupError::InUse { .. } => BackupError::InUse { file: file(), log: file() },
            BackupError::Missing(_) => BackupError::Missing(file()),
            BackupError::Busy(_) => BackupError::Busy(file()),
            BackupError::Folder(_) => BackupError::Folder(file()),
            BackupError::Damaged { .. } => BackupError::Damaged { file: file(), source: source() },
            BackupError::Unbalanced { .. } => BackupError::Unbalanced { file: file(), first: first.clone() },
            BackupError::Open(_) => BackupError::Open(OpenError::NotOurs(file())),
            BackupError::Store(_) => BackupError::Store(source()),
        }) {
            // What is not opened is told, and tested, in `failure.rs`.
            if matches!(error, BackupError::Open(_)) {
                continue;
            }
            let [en, zh] = Language::ALL.map(|language| {
                let what = said!(language, en: "the backup could not be made", zh: "无法制作备份");
                told(what, &error, language)
            });
            assert_eq!(en.exit, zh.exit);
            agree(&en.what, &zh.what);
            if !matches!(error, BackupError::Store(_)) {
                assert_eq!(*en.what, error.to_string(), "as it is logged");
            }
            for (en, zh) in en.fix.iter().zip(&zh.fix) {
                agree(en, zh);
            }
        }
    }
}

//! The settings, the secrets that they name, and who else may read either.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Check;
use crate::cli::output;
use crate::config::{Loaded, Origin};
use crate::language::{Language, Said};
use crate::said;

/// What belongs to a database and lies beside it, by the ends of the names.
const BESIDE: [&str; 6] = ["", "-wal", "-shm", ".mark", ".lock", ".ballast"];

/// What everybody on the machine may do.
const OTHERS: u32 = 0o007;
const OTHERS_WRITE: u32 = 0o002;

/// `read` are the files that secrets were read from.
pub(super) fn check(loaded: &Loaded, file: Option<&Path>, read: Vec<PathBuf>, language: Language) -> Vec<Check> {
    let mut checks = vec![settings(file, language)];
    checks.extend(secrets(loaded, language));
    checks.extend(permissions(loaded, file, read, language));
    checks
}

fn settings(file: Option<&Path>, language: Language) -> Check {
    let what = match file.map(Path::display) {
        Some(file) => said!(language, en: "valid ({file})", zh: "有效（{file}）"),
        None => said!(language, en: "no file, defaults only", zh: "没有文件，仅使用默认值"),
    };
    Check::ok("settings", what)
}

fn secrets(loaded: &Loaded, language: Language) -> Vec<Check> {
    if loaded.missing.is_empty() {
        let what = said!(language, en: "all that are named can be read", zh: "所指明的都可读取");
        return vec![Check::ok("secrets", what)];
    }
    let unread = loaded.missing.iter();
    unread
        .map(|error| {
            let (place, what) = (&error.place, error.what.of(language));
            let what = said!(language, en: "{place}: {what}", zh: "{place}：{what}");
            Check::failure("secrets", what, error.fix.of(language).clone())
        })
        .collect()
}

/// Files with secrets or books in them that everybody on the machine may open.
fn permissions(loaded: &Loaded, file: Option<&Path>, read: Vec<PathBuf>, language: Language) -> Vec<Check> {
    let mut found = Vec::new();
    let hides = loaded.settings.iter().any(|setting| {
        let in_file = matches!(setting.origin, Origin::File { .. });
        in_file && setting.value.as_ref().is_some_and(|value| value.contains('•'))
    });
    if let Some(file) = file.filter(|file| hides && mode(file) & OTHERS != 0) {
        found.push(open_secret(file, language));
    }
    let tls_key = loaded.config.server.tls.iter().map(|files| files.key.clone());
    let secrets: BTreeSet<PathBuf> = read.into_iter().chain(tls_key).collect();
    let open = secrets.iter().filter(|path| mode(path) & OTHERS != 0);
    found.extend(open.map(|path| open_secret(path, language)));
    found.extend(books(&loaded.config.database).map(|path| open_book(&path, language)));
    if found.is_empty() {
        let what = said!(
            language,
            en: "no secret and no book is open to everybody on this machine",
            zh: "没有密钥或账本对本机所有人开放",
        );
        found.push(Check::ok("permissions", what));
    }
    found
}

/// Files of a database, its backups of earlier versions among them, that everybody may open.
fn books(database: &Path) -> impl Iterator<Item = PathBuf> {
    // SQLite puts its files beside what a link leads to.
    let database = fs::canonicalize(database).unwrap_or_else(|_| database.to_owned());
    let beside = |ending: &str| {
        let mut name = database.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let known = BESIDE.map(beside).into_iter();
    let backups = (1..10)
        .map(|version| beside(&format!(".version-{version}.backup")))
        .collect::<Vec<_>>();
    known.chain(backups).filter(|path| mode(path) & OTHERS != 0)
}

/// The permissions of a file; of one that is not there, none.
fn mode(path: &Path) -> u32 {
    fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o777)
}

fn open_secret(path: &Path, language: Language) -> Check {
    let (file, mode, word) = (
        path.display(),
        mode(path),
        output::shell_word(&path.display().to_string()),
    );
    let what = said!(
        language,
        en: "{file} has a secret in it, and everybody on this machine may open it (mode {mode:o})",
        zh: "{file} 中有密钥，而本机所有人都可以打开它（权限 {mode:o}）",
    );
    Check::failure("permissions", what, Said::verbatim(format!("chmod o= {word}")))
}

fn open_book(path: &Path, language: Language) -> Check {
    let (file, mode, word) = (
        path.display(),
        mode(path),
        output::shell_word(&path.display().to_string()),
    );
    let what = said!(
        language,
        en: "everybody on this machine may open {file} (mode {mode:o})",
        zh: "本机所有人都可以打开 {file}（权限 {mode:o}）",
    );
    let fix = Said::verbatim(format!("chmod o= {word}"));
    match mode & OTHERS_WRITE {
        0 => Check::warning("permissions", what, fix),
        _ => Check::failure("permissions", what, fix),
    }
}

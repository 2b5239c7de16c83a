//! How a command fails: an exit code, and up to four short lines that say what, why, what to do and what was near.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;

use super::{language, output};
use crate::admin::AdminError;
use crate::config::{ConfigErrors, SinkConfig, UpstreamConfig};
use crate::language::{Language, Said};
use crate::route::nearest;
use crate::said;
use crate::server::TlsError;
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

impl Exit {
    /// All of them, in order.
    pub const ALL: [Exit; 8] = [
        Exit::Failed,
        Exit::Usage,
        Exit::Settings,
        Exit::NotAllowed,
        Exit::NotFound,
        Exit::Exists,
        Exit::Upstream,
        Exit::Books,
    ];
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened.
    pub what: Said,
    /// Why.
    pub why: Option<Said>,
    /// What to do.
    pub fix: Option<Said>,
    /// The nearest name.
    pub near: Option<String>,
    /// What it is told in.
    pub language: Language,
}

impl Failure {
    /// A failure with what happened only.
    pub fn new(exit: Exit, what: Said) -> Failure {
        Failure::told(exit, language(), what)
    }

    /// The same, in a language.
    pub fn told(exit: Exit, language: Language, what: Said) -> Failure {
        Failure {
            exit,
            what,
            why: None,
            fix: None,
            near: None,
            language,
        }
    }

    /// Says why.
    #[must_use]
    pub fn why(mut self, why: Said) -> Failure {
        self.why = Some(why);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn fix(mut self, fix: Said) -> Failure {
        self.fix = Some(fix);
        self
    }
}

/// In the language that it was made in. A Chinese letter takes two places on a terminal.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let labels = self.language.of(["why ", "fix ", "near"], ["原因", "处理", "相近"]);
        let lines = [self.why.as_deref(), self.fix.as_deref(), self.near.as_deref()];
        for (label, line) in labels.into_iter().zip(lines) {
            if let Some(line) = line {
                write!(f, "\n  {label}  {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// The source chain of an error in one line, as the errors say it.
fn causes(error: &dyn std::error::Error) -> Option<Said> {
    let mut texts = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        texts.push(cause.to_string());
        next = cause.source();
    }
    (!texts.is_empty()).then(|| Said::verbatim(texts.join(": ")))
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
fn newer(database: &Path, backup: Option<&Path>, language: Language) -> Said {
    match backup {
        Some(backup) => said!(
            language,
            en: "use that release, or go back to what was before it: {restore}",
            zh: "使用该版本的程序，或回到它之前的状态：{restore}",
            restore = restore_command(database, backup),
        ),
        None => said!(
            language,
            en: "use that release, or a later one (this is {this})",
            zh: "使用该版本或更新的程序（当前为 {this}）",
            this = env!("CARGO_PKG_VERSION"),
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
        not_done(error, language())
    }
}

/// Why an act was not done, and what to do.
fn not_done(error: AdminError, language: Language) -> Failure {
    if let Some(lacking) = std::error::Error::source(&error).and_then(of_its_state) {
        return not_opened(lacking, language);
    }
    let why = causes(&error);
    let failure = |exit, what| Failure::told(exit, language, what);
    match error {
        AdminError::NotFound { what, name, nearest } => {
            let list = what.lister();
            let fix = said!(language, en: "see what there is: {list}", zh: "查看全部：{list}");
            Failure {
                near: nearest,
                ..failure(Exit::NotFound, what.lacking(&name, language)).fix(fix)
            }
        }
        AdminError::Ambiguous { what, name, matches } => {
            let matches = matches.join(", ");
            let fix = said!(language, en: "write one of {matches}", zh: "请写其中之一：{matches}");
            failure(Exit::Usage, what.ambiguous(&name, language)).fix(fix)
        }
        AdminError::Exists { what, name } => {
            failure(Exit::Exists, what.is_there(&name, language)).fix(what.fix(&name, language))
        }
        AdminError::NotAllowed(why) => failure(Exit::NotAllowed, why.what(language)).fix(why.fix(language)),
        AdminError::Invalid(why) => failure(Exit::Usage, why.what(language)).fix(why.fix(language)),
        AdminError::Storage(_) => Failure {
            why,
            ..failure(
                Exit::Failed,
                said!(language, en: "the database could not be used", zh: "无法使用数据库"),
            )
            .fix(said!(
                language,
                en: "see to the disk and the file (gateway config path), and do it again",
                zh: "检查磁盘和文件（gateway config path），然后重试",
            ))
        },
        AdminError::Unknown(_) => Failure {
            why,
            ..failure(
                Exit::Failed,
                said!(
                    language,
                    en: "the database failed while writing: whether it was written shows only after a look",
                    zh: "数据库在写入时出错：是否已写入，需要查看后才知道",
                ),
            )
            .fix(said!(
                language,
                en: "look: gateway ledger list USER, key list, price list; a credit or refund with a --reference can be repeated",
                zh: "查看：gateway ledger list USER、key list、price list；带 --reference 的充值或退款可以重复执行",
            ))
        },
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Failure {
        let language = language();
        let errors = errors.told(language);
        let what = said!(language, en: "the settings are not valid: {errors}", zh: "设置无效：{errors}");
        Failure::told(Exit::Settings, language, what)
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
    not_opened(error, language())
}

fn not_opened(error: &OpenError, language: Language) -> Failure {
    let failure = |exit, chinese: String| {
        let what = Said::verbatim(language.of(error.to_string(), chinese));
        Failure::told(exit, language, what)
    };
    match error {
        OpenError::Missing(path) => failure(Exit::NotFound, format!("{} 处没有数据库", path.display()))
            .why(said!(
                language,
                en: "this command works on a database that is there",
                zh: "此命令需要已有的数据库",
            ))
            .fix(said!(
                language,
                en: "name it by --database FILE, or make one: gateway user add NAME",
                zh: "用 --database FILE 指明，或新建一个：gateway user add NAME",
            )),
        OpenError::NotOurs(path) => failure(Exit::Failed, format!("{} 不是网关的数据库", path.display())).fix(said!(
            language,
            en: "name the gateway's own by --database FILE",
            zh: "用 --database FILE 指明网关自己的数据库",
        )),
        OpenError::TooNew {
            path,
            backup,
            found,
            known,
        } => failure(
            Exit::Failed,
            format!("{} 是版本 {found}，此程序只认识到 {known}", path.display()),
        )
        .why(said!(
            language,
            en: "a newer release made it, or migrated it",
            zh: "由更新的版本创建或迁移",
        ))
        .fix(newer(path, backup.as_deref(), language)),
        OpenError::NotBackedUp { found, source } => failure(
            Exit::Failed,
            format!("数据库是版本 {found}，并保持不变，因为无法为它制作备份"),
        )
        .why(Said::verbatim(chain(source)))
        .fix(said!(
            language,
            en: "make room beside it, and do it again: nothing was changed",
            zh: "在它旁边腾出空间，然后重试：没有任何改动",
        )),
        OpenError::Behind { path, lacks } => {
            let (restore, accept) = (restore_command(path, Path::new("FILE")), command_on(path, ACCEPT_LOSS));
            failure(Exit::Failed, format!("{} {}", path.display(), behind_in_chinese(lacks)))
                .why(why_behind(lacks, language))
                .fix(said!(
                    language,
                    en: "restore the newest backup: {restore}; or go on with what is there: {accept}",
                    zh: "恢复最新的备份：{restore}；或以现有内容继续：{accept}",
                ))
        }
        OpenError::Gone(path, left) => {
            let (path, left) = (path.display(), left.display());
            failure(
                Exit::NotFound,
                format!("{path} 处没有数据库，但还有它留下的文件：{left}"),
            )
            .why(said!(
                language,
                en: "an empty one in its place would take its log with it",
                zh: "在原处新建空数据库会连带毁掉它的日志",
            ))
            .fix(said!(
                language,
                en: "put it back; or move {left} and what else begins with that name away, to begin anew",
                zh: "把它放回原处；或移走 {left} 及同名开头的其他文件，重新开始",
            ))
        }
        OpenError::NotItsLog(database, log) => {
            let (shown, accept) = (log.display(), command_on(database, ACCEPT_LOSS));
            let log = word(log);
            failure(Exit::Failed, format!("{shown} 是比旁边的数据库更新的数据库的日志"))
                .why(said!(
                    language,
                    en: "an old copy was put beside it; opened together they become a database that never was",
                    zh: "旁边放的是旧副本；一起打开会变成从未存在过的数据库",
                ))
                .fix(said!(
                    language,
                    en: "put the newest database back; or go on without the log: mv {log} {log}.lost && {accept}",
                    zh: "放回最新的数据库；或不用该日志继续：mv {log} {log}.lost && {accept}",
                ))
        }
        OpenError::WhoseLog(database, log) => {
            let (shown, log) = (database.display(), log.display());
            let restore = restore_command(database, Path::new("FILE"));
            failure(
                Exit::Failed,
                format!("{log} 可能是 {shown} 的日志，也可能属于之前更新的数据库"),
            )
            .why(said!(
                language,
                en: "a database of an earlier release was put in the place of a newer one",
                zh: "旧版本的数据库被放到了新版本的位置",
            ))
            .fix(said!(
                language,
                en: "if that release ran on it since, start and stop it once more: the log was its own; if not: {restore}",
                zh: "如果该版本的程序此后运行过，请再启动并停止一次：日志是它自己的；否则：{restore}",
            ))
        }
        OpenError::InUse(who) => failure(Exit::NotAllowed, format!("另一个网关正在使用此数据库：{who}")).fix(said!(
            language,
            en: "stop that one first, or use another --database",
            zh: "先停止它，或使用另一个 --database",
        )),
        OpenError::Store(error) => Failure::told(
            Exit::Failed,
            language,
            said!(language, en: "the database could not be used", zh: "无法使用数据库"),
        )
        .why(Said::verbatim(chain(error)))
        .fix(said!(
            language,
            en: "name a gateway's database, or a new file in a folder you may write to: --database FILE",
            zh: "指明网关的数据库，或可写文件夹中的新文件：--database FILE",
        )),
    }
}

/// Why books do not balance.
pub fn altered(language: Language) -> Said {
    said!(
        language,
        en: "a row was changed outside the gateway, or the gateway has a fault",
        zh: "有行在网关之外被改动，或网关有缺陷",
    )
}

/// What a database lacks.
pub fn behind(lacks: &Behind, language: Language) -> Said {
    Said::verbatim(language.of(lacks.to_string(), behind_in_chinese(lacks)))
}

const ACCEPT_LOSS: &str = "serve --accept-loss";

/// What a database lacks, as the end of a sentence that begins with its path.
fn behind_in_chinese(lacks: &Behind) -> String {
    match lacks {
        Behind::Unreadable(mark) => format!("可能不是之前的内容：无法读取其高水位标记 {}", mark.display()),
        Behind::Commits { found, expected } => {
            format!("不是之前的内容：最后的事务编号是 {found}，而之前有 {expected} 个")
        }
        Behind::Entry(entry) => format!("不是之前的内容：条目 {entry} 与之前的不同"),
    }
}

fn why_behind(lacks: &Behind, language: Language) -> Said {
    match lacks {
        Behind::Unreadable(_) => said!(
            language,
            en: "that file was damaged or altered, so nobody knows whether anything is missing",
            zh: "该文件被损坏或改动，因此不知道是否有缺失",
        ),
        Behind::Commits { .. } | Behind::Entry(_) => said!(
            language,
            en: "its log was lost, or an old copy was put in its place",
            zh: "其日志丢失，或被换成了旧副本",
        ),
    }
}

/// An address that a command could not have.
pub fn not_listening(addr: SocketAddr, error: &std::io::Error, command: &str) -> Failure {
    let language = language();
    let again = format!("{} {command} --listen 127.0.0.1:0", output::program());
    let what = said!(language, en: "cannot listen on {addr}", zh: "无法监听 {addr}");
    Failure::told(Exit::Failed, language, what)
        .why(Said::verbatim(error.to_string()))
        .fix(said!(
            language,
            en: "stop what listens there, or take another address: {again}",
            zh: "停止占用该地址的程序，或换一个地址：{again}",
        ))
}

/// No upstream is meant by a name, or there is none at all.
pub fn no_upstream(name: Option<&str>, there: &[UpstreamConfig]) -> Failure {
    let language = language();
    let Some(name) = name else {
        let what = said!(language, en: "no upstream is configured", zh: "没有配置上游");
        return Failure::told(Exit::NotFound, language, what).fix(said!(
            language,
            en: "export OPENAI_API_KEY=sk-…   (or write [[upstream]] into gateway.toml)",
            zh: "export OPENAI_API_KEY=sk-…   （或在 gateway.toml 中写入 [[upstream]]）",
        ));
    };
    let what = said!(language, en: "there is no upstream '{name}'", zh: "没有上游“{name}”");
    let command = format!("{} upstream list", output::program());
    let near = nearest(name, there.iter().map(|upstream| upstream.name.as_str())).map(str::to_owned);
    Failure {
        near,
        ..Failure::told(Exit::NotFound, language, what)
    }
    .fix(said!(language, en: "see what there is: {command}", zh: "查看现有的：{command}"))
}

/// There is no such sink.
pub fn no_sink(name: &str, there: &[SinkConfig]) -> Failure {
    let language = language();
    let what = said!(language, en: "there is no sink '{name}'", zh: "没有事件去向“{name}”");
    let command = format!("{} sink list", output::program());
    let near = nearest(name, there.iter().map(|sink| sink.name.as_str())).map(str::to_owned);
    Failure {
        near,
        ..Failure::told(Exit::NotFound, language, what)
    }
    .fix(said!(language, en: "see what there is: {command}", zh: "查看现有的：{command}"))
}

/// Upstreams that do not answer as they should.
pub fn upstreams_fail(names: &[String]) -> Failure {
    let language = language();
    let names = names.join(", ");
    let what = said!(language, en: "these upstreams fail: {names}", zh: "以下上游出错：{names}");
    let command = format!("{} doctor", output::program());
    Failure::told(Exit::Upstream, language, what)
        .fix(said!(language, en: "see what to do: {command}", zh: "查看处理方法：{command}"))
}

/// Why the metrics cannot be served.
pub fn metrics_not_listening(addr: SocketAddr, error: &std::io::Error) -> Failure {
    let language = language();
    let what = said!(language, en: "cannot listen on {addr} for the metrics", zh: "无法监听指标地址 {addr}");
    Failure::told(Exit::Failed, language, what)
        .why(Said::verbatim(error.to_string()))
        .fix(said!(
            language,
            en: "stop what listens there, or set [metrics] listen to another address",
            zh: "停止占用该地址的程序，或将 [metrics] listen 设为其他地址",
        ))
}

/// A certificate that cannot be served.
impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Failure {
        let language = language();
        let what = match &error {
            TlsError::Unreadable { setting, path, .. } => said!(
                language,
                en: "{setting}: the file {path} cannot be read",
                zh: "{setting}：无法读取文件 {path}",
                path = path.display(),
            ),
            TlsError::NoCertificate(path) => said!(
                language,
                en: "tls_cert: {path} holds no certificate in PEM",
                zh: "tls_cert：{path} 中没有 PEM 格式的证书",
                path = path.display(),
            ),
            TlsError::NoKey(path) => said!(
                language,
                en: "tls_key: {path} holds no private key in PEM",
                zh: "tls_key：{path} 中没有 PEM 格式的私钥",
                path = path.display(),
            ),
            TlsError::Unusable { cert, key, .. } => {
                let (cert, key) = (cert.display(), key.display());
                said!(
                    language,
                    en: "the certificate {cert} cannot be served with the key {key}",
                    zh: "证书 {cert} 无法与私钥 {key} 一起使用",
                )
            }
        };
        let fix = match &error {
            TlsError::Unreadable { .. } => said!(
                language,
                en: "name a file that is there and that the user who serves may read",
                zh: "指明一个存在、且运行服务的用户可读的文件",
            ),
            TlsError::NoCertificate(_) => said!(
                language,
                en: "name the certificate with its chain, such as fullchain.pem: -----BEGIN CERTIFICATE-----",
                zh: "指明证书及其证书链，例如 fullchain.pem：-----BEGIN CERTIFICATE-----",
            ),
            TlsError::NoKey(_) => said!(
                language,
                en: "name the private key, without a passphrase: openssl pkey -in KEY -out privkey.pem",
                zh: "指明不带口令的私钥：openssl pkey -in KEY -out privkey.pem",
            ),
            TlsError::Unusable { .. } => said!(
                language,
                en: "take certificate and key of one renewal, of type RSA, ECDSA or Ed25519",
                zh: "使用同一次签发的证书和私钥，类型为 RSA、ECDSA 或 Ed25519",
            ),
        };
        let failure = Failure::told(Exit::Settings, language, what).fix(fix);
        let why = causes(&error);
        Failure { why, ..failure }
    }
}

/// What an error begins with.
pub fn label(language: Language) -> Said {
    said!(language, en: "error: ", zh: "错误：")
}

/// The exit code of an error, and the text to print behind [`label`].
pub fn describe(error: &anyhow::Error) -> (Exit, Said) {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return (failure.exit, Said::verbatim(failure.to_string()));
    }
    let failure = Failure::new(Exit::Failed, Said::verbatim(error.to_string()));
    let why = causes(error.as_ref());
    let told = Failure { why, ..failure }.to_string();
    (Exit::Failed, Said::verbatim(told))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::admin::Thing;

    #[test]
    fn a_failure_takes_at_most_four_lines() {
        let told = |language| {
            let error = AdminError::NotFound {
                what: Thing::User,
                name: "alcie".into(),
                nearest: Some("alice".into()),
            };
            not_done(error, language)
        };
        assert_eq!(told(Language::English).exit, Exit::NotFound);
        assert_eq!(
            told(Language::English).to_string(),
            "there is no user 'alcie'\n  fix   see what there is: gateway user list\n  near  alice"
        );
        assert_eq!(
            told(Language::Chinese).to_string(),
            "没有用户 'alcie'\n  处理  查看全部：gateway user list\n  相近  alice"
        );
    }

    #[test]
    fn a_failure_of_the_database_says_why() {
        let error = StoreError {
            context: "reading users".into(),
            source: Some("disk I/O error".into()),
        };
        let failure = not_done(AdminError::Storage(error), Language::English);
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
        let told = |error: OpenError| not_opened(&error, Language::English);
        let old = told(behind(Behind::Entry(7)));
        for part in [run("restore FILE --force"), run("serve --accept-loss")] {
            assert!(old.fix.as_ref().is_some_and(|fix| fix.contains(&part)), "{old}");
        }
        let unknown = told(behind(Behind::Unreadable("/my books/gateway.db.mark".into())));
        assert!(unknown.what.contains("may not be"), "{unknown}");
        assert!(
            unknown.why.as_ref().is_some_and(|why| why.contains("damaged")),
            "{unknown}"
        );
        let log = told(OpenError::NotItsLog(path.clone(), "/my books/gateway.db-wal".into()));
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
            not_done(AdminError::Storage(not_written), Language::English).to_string(),
            old.to_string(),
            "an act that was refused for the same"
        );
    }

    #[test]
    fn any_other_error_is_told_with_its_causes() {
        let error = anyhow::Error::from(std::io::Error::other("gone")).context("the file was not read");
        let (exit, text) = describe(&error);
        assert_eq!(exit, Exit::Failed);
        assert!(
            text.starts_with("the file was not read\n") && text.ends_with("  gone"),
            "{text}"
        );
    }

    #[test]
    fn every_failure_of_a_database_is_told_in_every_language_with_the_same_commands() {
        let path = || PathBuf::from("/books/gateway.db");
        let store = || StoreError {
            context: "reading users".into(),
            source: Some("disk I/O error".into()),
        };
        let behind = |lacks| OpenError::Behind { path: path(), lacks };
        let too_new = |backup| OpenError::TooNew {
            path: path(),
            found: 9,
            known: 3,
            backup,
        };
        for error in [
            OpenError::Missing(path()),
            OpenError::NotOurs(path()),
            too_new(None),
            too_new(Some("/books/gateway.db.version-3.backup".into())),
            OpenError::NotBackedUp {
                found: 2,
                source: store(),
            },
            behind(Behind::Unreadable("/books/gateway.db.mark".into())),
            behind(Behind::Entry(7)),
            behind(Behind::Commits { found: 5, expected: 6 }),
            OpenError::Gone(path(), "/books/gateway.db-wal".into()),
            OpenError::NotItsLog(path(), "/books/gateway.db-wal".into()),
            OpenError::WhoseLog(path(), "/books/gateway.db-wal".into()),
            OpenError::InUse("process 7".into()),
            OpenError::Store(store()),
        ] {
            let [en, zh] = Language::ALL.map(|language| not_opened(&error, language));
            assert_eq!(en.exit, zh.exit);
            let (en, zh) = (en.to_string(), zh.to_string());
            assert_eq!(en.lines().count(), zh.lines().count(), "{en}\n{zh}");
            assert!(zh.lines().all(|line| !line.is_ascii()), "{zh}");
            let is_constant = |word: &&str| word.starts_with("--") || word.contains('/') && !word.contains("I/O");
            for word in en.split_whitespace().filter(is_constant) {
                let word = word.trim_end_matches([':', ';', ',']);
                assert!(zh.contains(word), "{word}: {zh}");
            }
        }
    }
}

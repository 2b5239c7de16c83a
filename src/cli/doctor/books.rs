//! The database: whether it is whole, who serves it, what it holds, and the disk, the clock and the prices it lives by.

use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::fs::statvfs;

use super::Check;
use crate::admin::{self, Unpriced};
use crate::cli::failure::{Failure, command_on, unopened};
use crate::cli::output;
use crate::config::{Config, DiskConfig};
use crate::language::{Language, Said};
use crate::said;
use crate::store::events::SinkState;
use crate::store::ledger::LONGEST_HOLD;
use crate::store::look::{Looked, look};
use crate::store::{OpenError, ServerLock, Store, StoreError};
use crate::time::now;

/// A hold that is older has lost its call.
const OLD: Duration = LONGEST_HOLD;

/// Events that wait for longer are late.
const LATE: SignedDuration = SignedDuration::from_mins(10);

/// A clock may be so far behind what was written: another machine wrote it, or it was set back a little.
const BEHIND: SignedDuration = SignedDuration::from_secs(60);

/// File systems that forget everything when the machine stops.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// File systems of another machine, by the starts of their names: locks and shared memory may not work across them.
const REMOTE: [&str; 8] = ["nfs", "cifs", "smb", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs"];

pub(super) fn check(config: &Config, language: Language) -> Vec<Check> {
    // What lies beside it lies beside what a link leads to.
    let path = &fs::canonicalize(&config.database).unwrap_or_else(|_| config.database.clone());
    let mut checks = Vec::new();
    match look(path) {
        Ok(Looked::Ours(store)) => {
            checks.push(database(&store, language));
            checks.push(integrity(&store, language));
            let server = ServerLock::holder(path);
            checks.push(serving(&server, language));
            checks.push(holds(&store, &server, language));
            checks.push(clock(&store, language));
            checks.extend(sinks(&store, &server, language));
            checks.extend(prices(&store, config, language));
        }
        Ok(Looked::Earlier { found, known }) => checks.push(earlier(path, found, known, language)),
        Err(error @ OpenError::Missing(_)) => {
            let fix = said!(
                language,
                en: "make one: gateway user add NAME --balance USD",
                zh: "新建一个：gateway user add NAME --balance USD",
            );
            checks.push(Check::warning("database", unopened(&error).what, fix));
        }
        Err(error) => checks.push(Check::failed("database", unopened(&error))),
    }
    checks.extend(disk(path, config.disk, language));
    checks
}

fn database(store: &Store, language: Language) -> Check {
    if let Err(error) = store.whole() {
        return Check::failed("database", unopened(&error));
    }
    let path = store.path().display();
    let what = said!(language, en: "{path} opens, and lacks nothing", zh: "{path} 可以打开，没有缺失");
    Check::ok("database", what)
}

fn earlier(path: &Path, found: i64, known: i64, language: Language) -> Check {
    let shown = path.display();
    let what = said!(
        language,
        en: "{shown} is of version {found}; this program migrates it to {known} when it opens it, and makes a backup first",
        zh: "{shown} 是版本 {found}；此程序打开时会先备份，再迁移到版本 {known}",
    );
    Check::warning("database", what, Said::verbatim(command_on(path, "serve")))
}

fn integrity(store: &Store, language: Language) -> Check {
    let [verify, restore] = ["ledger verify", "restore FILE --force"].map(|words| command_on(store.path(), words));
    let fix = said!(
        language,
        en: "look closer, then restore a backup: {verify}; {restore}",
        zh: "进一步检查，然后恢复备份：{verify}；{restore}",
    );
    match store.damage() {
        Ok(None) => Check::ok(
            "integrity",
            said!(
                language,
                en: "SQLite finds no damage (gateway ledger verify recomputes the books)",
                zh: "SQLite 未发现损坏（gateway ledger verify 会重新计算账本）",
            ),
        ),
        Ok(Some(damage)) => {
            let what = said!(language, en: "the file is damaged: {damage}", zh: "文件已损坏：{damage}");
            Check::failure("integrity", what, fix)
        }
        Err(error) => unread("integrity", error),
    }
}

fn unread(name: &'static str, error: StoreError) -> Check {
    Check::failed(name, Failure::from(error))
}

fn serving(server: &Result<Option<String>, StoreError>, language: Language) -> Check {
    match server {
        Ok(Some(who)) => Check::ok("server", said!(language, en: "it runs: {who}", zh: "正在运行：{who}")),
        Ok(None) => Check::ok(
            "server",
            said!(language, en: "none runs on this database", zh: "没有服务器在使用此数据库"),
        ),
        Err(error) => {
            let error = crate::cli::failure::chain(error);
            Check::skipped(
                "server",
                said!(language, en: "it cannot be told: {error}", zh: "无法确定：{error}"),
            )
        }
    }
}

/// Holds without a server belong to a process that died; with one, none is older than the longest call.
fn holds(store: &Store, server: &Result<Option<String>, StoreError>, language: Language) -> Check {
    let open = match store.open_holds() {
        Ok(open) => open,
        Err(error) => return unread("holds", error),
    };
    let (count, limit) = (open.len(), now() - OLD);
    let taken_at = |id: &uuid::Uuid| {
        let (seconds, _) = id.get_timestamp()?.to_unix();
        Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
    };
    let old = open
        .iter()
        .filter(|id| taken_at(&id.0).is_some_and(|at| at < limit))
        .count();
    match server {
        _ if count == 0 => Check::ok("holds", said!(language, en: "none is open", zh: "没有未关闭的预留")),
        Ok(None) => {
            let what = said!(
                language,
                en: "{count} open, of a process that died: the money is not available until a server starts and releases them",
                zh: "{count} 个未关闭，属于已退出的进程：在服务器启动并释放它们之前，这些余额不可用",
            );
            Check::warning("holds", what, Said::verbatim(command_on(store.path(), "serve")))
        }
        _ if old > 0 => {
            let what = said!(
                language,
                en: "{old} of {count} are open for more than 8 hours, longer than any call lasts",
                zh: "{count} 个中有 {old} 个已打开超过 8 小时，长于任何调用",
            );
            let fix = said!(
                language,
                en: "stop the server and start it again: it releases them; report its log",
                zh: "停止并重新启动服务器：它会释放它们；请报告其日志",
            );
            Check::failure("holds", what, fix)
        }
        _ => Check::ok(
            "holds",
            said!(language, en: "{count} open, of running calls", zh: "{count} 个未关闭，属于正在进行的调用"),
        ),
    }
}

/// Sinks that get nothing, or are far behind. What waits without a server waits for its start.
fn sinks(store: &Store, server: &Result<Option<String>, StoreError>, language: Language) -> Vec<Check> {
    let states = match store.sinks() {
        Ok(states) => states,
        Err(error) => return vec![unread("sinks", error)],
    };
    let (limit, runs) = (now() - LATE, matches!(server, Ok(Some(_))));
    let check = |state: &SinkState| {
        let (name, waiting, lost) = (&state.name, state.waiting, state.lost);
        let lost = match lost {
            0 => Said::default(),
            _ => said!(language, en: "; {lost} were lost to it", zh: "；已丢失 {lost} 个"),
        };
        let fix = said!(
            language,
            en: "see why: gateway sink list; it gets them once it answers",
            zh: "查看原因：gateway sink list；恢复后会继续发送",
        );
        match &state.failing {
            Some((since, why)) => {
                let (since, why) = (output::time(*since), output::plain(why));
                let what = said!(
                    language,
                    en: "{name} gets no events since {since} UTC: {why}; {waiting} wait{lost}",
                    zh: "{name} 自 {since} UTC 起收不到事件：{why}；{waiting} 个在等待{lost}",
                );
                Check::warning("sinks", what, fix)
            }
            None if runs && state.waiting_since.is_some_and(|since| since < limit) => {
                let what = said!(
                    language,
                    en: "{name} is more than ten minutes behind; {waiting} events wait{lost}",
                    zh: "{name} 落后超过十分钟；{waiting} 个事件在等待{lost}",
                );
                Check::warning("sinks", what, fix)
            }
            None => {
                let what = said!(language, en: "{name}: {waiting} events wait{lost}", zh: "{name}：{waiting} 个事件在等待{lost}");
                Check::ok("sinks", what)
            }
        }
    };
    states.iter().map(check).collect()
}

/// The clock against the newest row: what was written cannot be of the future.
fn clock(store: &Store, language: Language) -> Check {
    let newest = match store.newest() {
        Ok(newest) => newest,
        Err(error) => return unread("clock", error),
    };
    let now = now();
    let ahead = newest.map_or(SignedDuration::ZERO, |newest| now.duration_until(newest));
    if ahead <= BEHIND {
        let shown = output::time(now);
        return Check::ok(
            "clock",
            said!(language, en: "{shown} UTC, not behind the books", zh: "{shown} UTC，不早于账本"),
        );
    }
    let seconds = ahead.as_secs();
    let what = said!(
        language,
        en: "it is {seconds} seconds behind what was written: days, prices and expiry of keys go by it",
        zh: "比已写入的内容早 {seconds} 秒：日期、价格和密钥的有效期都依赖它",
    );
    let fix = said!(language, en: "set it: timedatectl set-ntp true", zh: "校准时钟：timedatectl set-ntp true");
    Check::failure("clock", what, fix)
}

/// Configured models that calls would be refused for.
fn prices(store: &Store, config: &Config, language: Language) -> Vec<Check> {
    let unpriced = match admin::unpriced(store, config, now()) {
        Ok(unpriced) => unpriced,
        Err(error) => return vec![Check::failed("prices", Failure::from(error))],
    };
    let check = |lacking: &Unpriced| {
        let (model, name, list) = (&lacking.model, &lacking.upstream, &lacking.list);
        let near = lacking.nearest.as_ref().map_or_else(
            Said::default,
            |near| said!(language, en: "; the nearest that has one is {near}", zh: "；最接近的有价格的是 {near}"),
        );
        let what = said!(
            language,
            en: "the model {model} of the upstream {name} has no price, so calls to it are refused{near}",
            zh: "上游 {name} 的模型 {model} 没有价格，对它的调用会被拒绝{near}",
        );
        let word = match model.contains('*') {
            true => "MODEL".to_owned(),
            false => output::shell_word(model),
        };
        let set = format!("price set {word} --list {list} --input USD --output USD");
        Check::failure("prices", what, Said::verbatim(command_on(store.path(), &set)))
    };
    let mut checks: Vec<Check> = unpriced.iter().map(check).collect();
    if checks.is_empty() {
        let what = said!(language, en: "every configured model has one", zh: "每个已配置的模型都有价格");
        checks.push(Check::ok("prices", what));
    }
    checks
}

fn disk(database: &Path, config: DiskConfig, language: Language) -> Vec<Check> {
    // The folder may be still to be made.
    let folder = database
        .ancestors()
        .skip(1)
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"));
    let mut checks = vec![space(folder, config, language)];
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo")
        && let Ok(folder) = fs::canonicalize(folder)
        && let Some(kind) = file_system(&mounts, &folder)
    {
        checks.push(kind_of_disk(kind, language));
    }
    checks
}

fn space(folder: &Path, config: DiskConfig, language: Language) -> Check {
    let shown = folder.display();
    let free = match statvfs(folder) {
        Ok(disk) => disk.f_bavail.saturating_mul(disk.f_frsize),
        Err(error) => {
            let what = said!(
                language,
                en: "how much is free in {shown} cannot be told: {error}",
                zh: "无法确定 {shown} 的可用空间：{error}",
            );
            return Check::skipped("disk", what);
        }
    };
    let (mib, least) = (free >> 20, config.min_free >> 20);
    let fix = || {
        said!(
            language,
            en: "make room on it, or move the database to a larger disk ([database] path)",
            zh: "清理磁盘空间，或将数据库移到更大的磁盘（[database] path）",
        )
    };
    if free < config.min_free {
        let what = said!(
            language,
            en: "{mib} MiB are free in {shown}, below [database] min_free of {least} MiB: no calls are taken",
            zh: "{shown} 可用 {mib} MiB，低于 [database] min_free 的 {least} MiB：不接受调用",
        );
        return Check::failure("disk", what, fix());
    }
    if free < config.min_free.saturating_add(config.ballast).saturating_mul(2) {
        let what = said!(
            language,
            en: "{mib} MiB are free in {shown}; below {least} MiB no calls are taken",
            zh: "{shown} 可用 {mib} MiB；低于 {least} MiB 时不接受调用",
        );
        return Check::warning("disk", what, fix());
    }
    Check::ok(
        "disk",
        said!(language, en: "{mib} MiB are free in {shown}", zh: "{shown} 可用 {mib} MiB"),
    )
}

fn kind_of_disk(kind: &str, language: Language) -> Check {
    let fix = || {
        said!(
            language,
            en: "move the database to a local disk: stop the server, gateway backup FILE, set [database] path, gateway restore FILE",
            zh: "将数据库移到本地磁盘：停止服务器，gateway backup FILE，设置 [database] path，gateway restore FILE",
        )
    };
    if IN_MEMORY.contains(&kind) {
        let what = said!(
            language,
            en: "the database is on {kind}, in memory: it is gone when the machine stops",
            zh: "数据库位于 {kind}，在内存中：机器停止后就会丢失",
        );
        return Check::warning("filesystem", what, fix());
    }
    if REMOTE.iter().any(|remote| kind.starts_with(remote)) {
        let what = said!(
            language,
            en: "the database is on {kind}, at another machine: the locks of SQLite may not work there",
            zh: "数据库位于 {kind}，在另一台机器上：SQLite 的锁在那里可能无效",
        );
        return Check::warning("filesystem", what, fix());
    }
    Check::ok("filesystem", Said::verbatim(kind))
}

/// The type of the file system that a folder is on, by what Linux tells of its mounts.
fn file_system<'m>(mounts: &'m str, folder: &Path) -> Option<&'m str> {
    let mounted = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        // Of what is in a name, spaces are written as \040.
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        folder
            .starts_with(&point)
            .then_some((point.len(), after.split(' ').next()?))
    });
    // Of two on the same place, the later one hides the other.
    mounted.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_the_one_of_the_longest_mount() {
        let mounts = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                      30 22 0:26 / /srv rw - nfs4 host:/x rw\n\
                      31 22 0:27 / /my\\040disk rw,nosuid - tmpfs tmpfs rw\n\
                      32 22 0:28 / /srv/local rw master:3 - xfs /dev/b rw\n\
                      33 22 0:29 / /srv/local rw - btrfs /dev/c rw\n";
        for (folder, kind) in [
            ("/home/x", "ext4"),
            ("/srv", "nfs4"),
            ("/srv2", "ext4"),
            ("/srv/local/y", "btrfs"),
            ("/my disk/z", "tmpfs"),
        ] {
            assert_eq!(file_system(mounts, Path::new(folder)), Some(kind), "{folder}");
        }
        assert_eq!(file_system("rubbish", Path::new("/")), None);
    }

    #[test]
    fn memory_and_other_machines_are_warned_about() {
        let warned = |kind: &str| kind_of_disk(kind, Language::English).fix.is_some();
        for kind in ["tmpfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"] {
            assert!(warned(kind), "{kind}");
        }
        for kind in ["ext4", "xfs", "btrfs", "zfs", "overlay"] {
            assert!(!warned(kind), "{kind}");
        }
    }
}

//! Settings that change while `gateway serve` runs: taken in at SIGHUP, and when a file that they were read from is
//! another than it was.
//!
//! ```text
//! SIGHUP, or a file that changed and came to rest
//!    └▶ load    as at the start               not valid: told as `config check` does, and nothing changes
//!       take in server::Server::take_in       an upstream that cannot be used: likewise
//!       tell    what changed, by name; what waits for a restart; models without a price
//! ```
//!
//! Files are looked at once a second, through links: an editor writes a new file and renames it, Kubernetes turns a
//! link to a folder. A file that is being written is left alone until it has been the same for a second.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{self, Exit, Failure};
use super::serve;
use super::{Global, language};
use crate::admin;
use crate::config::{self, Flag, Loaded};
use crate::said;
use crate::server::{Server, TakenIn};
use crate::time;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What tells a file from what was there before; `None`: it is not there.
type Mark = Option<(u64, u64, u64, i64, i64)>;

/// The files that settings are read from: the settings file, secrets, certificate authorities.
#[derive(Debug, Default)]
struct Files {
    paths: BTreeSet<PathBuf>,
    /// As they were when they were read.
    read: BTreeMap<PathBuf, Mark>,
    /// As they were at the last look.
    seen: BTreeMap<PathBuf, Mark>,
}

impl Files {
    fn marks(&self) -> BTreeMap<PathBuf, Mark> {
        let paths = self.paths.iter();
        paths.map(|path| (path.clone(), mark(path))).collect()
    }

    /// Whether one is another than the one that was read, and has come to rest.
    fn have_changed(&mut self) -> bool {
        let now = self.marks();
        let rest = now == self.seen;
        self.seen = now;
        rest && self.seen != self.read
    }

    /// Notes what is going to be read. A file that turns up only then was not looked at before it was read, so it will be
    /// read once more.
    fn before_reading(&mut self) {
        self.read = self.marks();
    }
}

fn mark(path: &Path) -> Mark {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// Why settings are read once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    /// SIGHUP.
    Asked,
    /// A file has changed.
    Changed,
}

/// Where settings are read from.
#[derive(Debug, Default)]
struct Reading {
    global: Global,
    flags: Vec<Flag>,
    files: Files,
}

/// The settings that a server runs with, and what tells that they have changed.
#[derive(Debug)]
pub struct Reloads {
    reading: Reading,
    taken: Loaded,
    hangup: Signal,
    on_terminal: bool,
}

impl Reloads {
    /// Loads the settings, and watches for SIGHUP from now on.
    ///
    /// # Errors
    /// The settings are not valid, or signals cannot be watched.
    pub fn load(global: &Global, flags: Vec<Flag>) -> anyhow::Result<Reloads> {
        let mut global = global.clone();
        // Where settings are looked for, another file may turn up.
        global.config = global.settings_path();
        let mut reading = Reading {
            global,
            flags,
            files: Files::default(),
        };
        let taken = reading.read()?;
        Ok(Reloads {
            reading,
            taken,
            hangup: signal(SignalKind::hangup())
                .with_context(|| said!(language(), en: "cannot watch for SIGHUP", zh: "无法监视 SIGHUP"))?,
            on_terminal: std::io::stderr().is_terminal(),
        })
    }

    /// The settings as they were loaded last.
    pub fn settings(&self) -> &Loaded {
        &self.taken
    }

    /// Takes changed settings in, for as long as the server runs; returns when the terminal it runs on is closed.
    pub async fn until_hung_up(&mut self, server: &Server) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    if self.on_terminal && !std::io::stderr().is_terminal() {
                        return;
                    }
                    self.reload(server, Because::Asked).await;
                }
                _ = look.tick() => if self.aside(|reading| reading.files.have_changed()).await {
                    self.reload(server, Because::Changed).await;
                },
            }
        }
    }

    /// Looks at files on a thread of its own: they may be on a disk that does not answer, which a stop does not wait for.
    async fn aside<T: Send + 'static>(&mut self, look: impl FnOnce(&mut Reading) -> T + Send + 'static) -> T {
        let mut reading = std::mem::take(&mut self.reading);
        let looking = tokio::task::spawn_blocking(move || {
            let found = look(&mut reading);
            (reading, found)
        });
        let (reading, found) = looking
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.reading = reading;
        found
    }

    async fn reload(&mut self, server: &Server, because: Because) {
        if let Err(error) = self.try_to(server, because).await {
            let (_, why) = failure::describe(&error);
            tracing::error!("the changed settings are not taken in, and all stays as it was: {why}");
        }
    }

    async fn try_to(&mut self, server: &Server, because: Because) -> anyhow::Result<()> {
        let loaded = self.aside(Reading::read).await?;
        let changed = config::differences(&self.taken, &loaded);
        let taken_in = server.take_in(loaded.config.clone()).await;
        let TakenIn { waiting, reconnected } =
            taken_in.map_err(|error| Failure::new(Exit::Settings, error.told(language())))?;
        self.taken = loaded;
        let changed: Vec<&str> = changed.iter().map(String::as_str).collect();
        let (waits, effective): (Vec<&str>, Vec<&str>) = changed.iter().partition(|name| config::waits(name, &waiting));
        if !effective.is_empty() || !reconnected.is_empty() {
            let reconnected = reconnected.join(", ");
            tracing::info!(
                changed = effective.join(", "),
                reconnected,
                "changed settings are in force"
            );
            match admin::unpriced(server.store(), &self.taken.config, time::now()) {
                Ok(unpriced) => serve::warn_of_unpriced(&unpriced),
                Err(error) => tracing::warn!(?error, "it is not known which models have no price"),
            }
        } else if waits.is_empty() && because == Because::Asked {
            tracing::info!("the settings were read again, and are as they were");
        }
        if !waiting.is_empty() && (!waits.is_empty() || because == Because::Asked) {
            tracing::warn!(
                settings = waiting.join(", "),
                "changed settings stay as they were until the gateway is started again"
            );
        }
        Ok(())
    }
}

impl Reading {
    /// Loads complete settings, and notes the files that they are read from, also when they are not valid.
    fn read(&mut self) -> anyhow::Result<Loaded> {
        let Reading { global, flags, files } = self;
        files.paths.extend(global.settings_path());
        files.before_reading();
        let secrets = RefCell::new(Vec::new());
        let loaded = global.settings_noting(flags.clone(), |path| secrets.borrow_mut().push(path.to_owned()));
        files.paths.extend(secrets.into_inner());
        let loaded = loaded?;
        let authorities = loaded.config.upstreams.iter().filter_map(|one| one.ca_file.clone());
        files.paths.extend(authorities);
        loaded.lacks_nothing().map_err(Failure::from)?;
        if loaded.config.upstreams.is_empty() {
            return Err(serve::no_upstream().into());
        }
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn files(paths: &[&Path]) -> Files {
        let mut files = Files {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..Files::default()
        };
        files.before_reading();
        assert!(
            !files.have_changed() && !files.have_changed(),
            "they are as they were read"
        );
        files
    }

    #[test]
    fn a_file_has_changed_when_it_has_come_to_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gateway.toml");
        fs::write(&file, "a").expect("written");
        let mut files = files(&[&file]);
        fs::write(&file, "ab").expect("written");
        assert!(!files.have_changed(), "it may still be written to");
        fs::write(&file, "abc").expect("written");
        assert!(!files.have_changed(), "as it was");
        assert!(files.have_changed());
        files.before_reading();
        assert!(!files.have_changed() && !files.have_changed(), "once");
    }

    #[test]
    fn a_file_that_was_renamed_into_place_or_is_gone_has_changed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, new) = (folder.path().join("gateway.toml"), folder.path().join("new"));
        fs::write(&file, "a").expect("written");
        let mut files = files(&[&file]);
        fs::write(&new, "b").expect("written");
        fs::rename(&new, &file).expect("renamed");
        assert!(!files.have_changed() && files.have_changed());
        files.before_reading();
        fs::remove_file(&file).expect("removed");
        assert!(!files.have_changed() && files.have_changed());
    }

    #[test]
    fn a_link_to_a_folder_that_was_turned_is_a_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for version in ["1", "2"] {
            fs::create_dir(path(version)).expect("a folder");
            fs::write(path(version).join("gateway.toml"), "same").expect("written");
        }
        symlink("1", path("data")).expect("linked");
        symlink("data/gateway.toml", path("gateway.toml")).expect("linked");
        let mut files = files(&[&path("gateway.toml")]);
        symlink("2", path("turned")).expect("linked");
        fs::rename(path("turned"), path("data")).expect("renamed");
        assert!(!files.have_changed() && files.have_changed());
    }
}

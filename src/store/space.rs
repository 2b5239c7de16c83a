//! The disk below the database: calls are refused before it is full, and a ballast file gives way to running ones.
//!
//! A settlement takes some 8 KiB of log. Below `min_free` no holds are taken; when a write fails all the same because
//! the disk is full, the ballast is removed, and what runs can still be settled. It is made again when there is room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, StatVfs, fallocate, statvfs};
use rustix::io::Errno;

use super::connection;
use crate::config::DiskConfig;

/// What is written at once where the file system cannot set space aside by itself.
static PIECE: [u8; 1 << 16] = [0; 1 << 16];

/// How long after a full disk the ballast is made again at the soonest: what `statvfs` tells may not be what may be
/// written (a quota), and the ballast would take away the space that it gave.
const CALM: Duration = Duration::from_secs(30);

/// How long a ballast that could not be made is left alone.
const AFTER_FAILURE: Duration = Duration::from_secs(300);

/// The space for the books.
#[derive(Debug)]
pub(super) struct Space {
    database: PathBuf,
    ballast: PathBuf,
    config: DiskConfig,
    /// The ballast is not made before.
    not_before: Instant,
    /// The ballast could not be made the last time. It is told once.
    failing: bool,
    /// How much space is free could not be told the last time. It is told once.
    blind: bool,
}

impl Space {
    /// Of a database. The ballast is made where there is room for it.
    pub(super) fn of(database: &Path, config: DiskConfig) -> Space {
        let mut space = Space {
            database: database.to_owned(),
            ballast: connection::beside(database, ".ballast"),
            config,
            not_before: Instant::now(),
            failing: false,
            blind: false,
        };
        if config.ballast == 0 {
            space.remove();
        }
        space.look(true);
        space
    }

    /// Why no holds are taken, if it is for want of space. Makes the ballast again when there is room for it, as long
    /// as the last write did not fail.
    pub(super) fn look(&mut self, writes: bool) -> Option<String> {
        let disk = self.disk()?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let free = bytes(disk.f_bavail);
        let with_ballast = self.config.min_free.saturating_add(self.config.ballast);
        let is_due = writes && self.config.ballast > 0 && self.not_before <= Instant::now();
        if is_due && free >= with_ballast && !self.ballast.exists() {
            self.make();
        }
        let mib = |bytes: u64| match bytes >> 20 {
            0 => "less than 1".to_owned(),
            some => some.to_string(),
        };
        (free < self.config.min_free).then(|| {
            format!(
                "{} of {} MiB are free on the disk of the database; [database] min_free is {} MiB",
                mib(free),
                mib(bytes(disk.f_blocks)),
                mib(self.config.min_free),
            )
        })
    }

    /// Gives the ballast's space to what has to be written: the disk is full. Whether there was one.
    pub(super) fn release(&mut self) -> bool {
        self.not_before = Instant::now() + CALM;
        let there = self.ballast.exists();
        if there {
            tracing::warn!(path = %self.ballast.display(), "the disk is full; the ballast gives way to settlements");
            self.remove();
        }
        there
    }

    fn disk(&mut self) -> Option<StatVfs> {
        let folder = self.database.parent().unwrap_or(Path::new("/"));
        let asked = statvfs(folder);
        if let (Err(error), false) = (&asked, self.blind) {
            tracing::warn!(%error, folder = %folder.display(), "how much space is free cannot be told");
        }
        self.blind = asked.is_err();
        asked.ok()
    }

    fn make(&mut self) {
        let made = self.try_to_make();
        if let Err(error) = &made {
            if !self.failing {
                tracing::warn!(%error, path = %self.ballast.display(), "the ballast cannot be made");
            }
            self.not_before = Instant::now() + AFTER_FAILURE;
            self.remove();
        }
        self.failing = made.is_err();
    }

    fn try_to_make(&self) -> io::Result<()> {
        let file = connection::open_beside(&self.database, &self.ballast)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.config.ballast) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(file, self.config.ballast),
            other => Ok(other?),
        }
    }

    fn remove(&self) {
        match fs::remove_file(&self.ballast) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.ballast.display(), "the ballast cannot be removed");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn fill(mut file: File, bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(PIECE.len()).min(PIECE.len());
        file.write_all(&PIECE[..some])?;
        left -= u64::try_from(some).unwrap_or(left);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ballast_is_there_until_it_is_needed_and_comes_back_when_there_is_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        let config = DiskConfig {
            min_free: 1,
            ballast: 300_000,
        };
        let mut space = Space::of(&database, config);
        let ballast = folder.path().join("gateway.db.ballast");
        let allocated = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&ballast).expect("it is there")) * 512;
        assert!(allocated() >= 300_000, "its space is really taken");
        assert!(space.release() && !ballast.exists());
        assert!(!space.release(), "only once");
        assert_eq!(space.look(true), None);
        assert!(
            !ballast.exists(),
            "not at once: it would take the space from what it gave it to"
        );
        space.not_before = Instant::now();
        assert_eq!(space.look(false), None);
        assert!(!ballast.exists(), "nor while nothing can be written");
        assert_eq!(space.look(true), None);
        assert!(ballast.exists());
        let none = DiskConfig {
            min_free: 1,
            ballast: 0,
        };
        Space::of(&database, none);
        assert!(!ballast.exists(), "a setting of 0 takes it away");
    }

    #[test]
    fn low_space_is_told_with_figures() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        let config = DiskConfig {
            min_free: u64::MAX,
            ballast: 1 << 20,
        };
        let why = Space::of(&database, config).look(true).expect("nothing is enough");
        assert!(why.contains("min_free"), "{why}");
        assert!(!folder.path().join("gateway.db.ballast").exists(), "no room for it");
    }

    #[test]
    fn a_ballast_that_cannot_be_made_is_left_alone_for_a_while() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ballast, missing) = (folder.path().join("gateway.db.ballast"), folder.path().join("missing"));
        std::os::unix::fs::symlink(missing.join("file"), &ballast).expect("linked");
        let config = DiskConfig {
            min_free: 1,
            ballast: 1,
        };
        let mut space = Space::of(&folder.path().join("gateway.db"), config);
        assert!(space.failing);
        assert_eq!(space.look(true), None);
        assert!(!ballast.exists() && space.failing, "not tried again");
        space.not_before = Instant::now();
        assert_eq!(space.look(true), None);
        assert!(ballast.exists() && !space.failing);
    }

    #[test]
    fn only_a_file_system_that_cannot_set_space_aside_is_filled() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = folder.path().join("gateway.db");
        let none = DiskConfig {
            min_free: 0,
            ballast: 0,
        };
        let mut space = Space::of(&database, none);
        // No space can be set aside in a device, and this one is full.
        space.config.ballast = 1;
        space.ballast = PathBuf::from("/dev/full");
        let error = space.try_to_make().expect_err("a device");
        assert_eq!(error.raw_os_error(), Some(Errno::NODEV.raw_os_error()), "{error}");
    }

    #[test]
    fn a_file_system_that_sets_nothing_aside_is_filled() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("filled");
        fill(File::create(&path).expect("a file"), 200_001).expect("filled");
        assert_eq!(fs::metadata(&path).expect("it is there").len(), 200_001);
    }
}

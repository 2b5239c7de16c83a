//! The disk below the database: calls are refused before it is full, and a ballast file gives way to running ones.
//!
//! A settlement takes some 8 KiB of log. Below `min_free` no holds are taken; when a write fails all the same because
//! the disk is full, the ballast is removed, and what runs can still be settled. It is made again when there is room.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::connection;
use crate::config::DiskConfig;

/// What is written at once where the file system cannot set space aside by itself.
static PIECE: [u8; 1 << 16] = [0; 1 << 16];

/// The space for the books.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    ballast: PathBuf,
    config: DiskConfig,
}

impl Space {
    /// Of a database. The ballast is made where there is room for it.
    pub(super) fn of(database: &Path, config: DiskConfig) -> Space {
        let space = Space {
            folder: database.parent().unwrap_or(Path::new("/")).to_owned(),
            ballast: connection::beside(database, ".ballast"),
            config,
        };
        if config.ballast == 0 {
            space.remove();
        }
        space.look();
        space
    }

    /// Why no holds are taken, if it is for want of space. Makes the ballast again when there is room for it.
    pub(super) fn look(&self) -> Option<String> {
        let free = self.free()?;
        let with_ballast = self.config.min_free.saturating_add(self.config.ballast);
        if self.config.ballast > 0 && free >= with_ballast && !self.ballast.exists() {
            self.make();
        }
        let low = free < self.config.min_free;
        low.then(|| {
            format!(
                "{} of {} MiB are free on the disk of the database; [database] min_free is {} MiB",
                if free < 1 << 20 {
                    "less than 1".to_owned()
                } else {
                    (free >> 20).to_string()
                },
                self.total().unwrap_or(0) >> 20,
                self.config.min_free >> 20,
            )
        })
    }

    /// Gives the ballast's space to what has to be written. Whether there was one.
    pub(super) fn release(&self) -> bool {
        let there = self.ballast.exists();
        if there {
            tracing::warn!(path = %self.ballast.display(), "the disk is full; the ballast gives way to settlements");
            self.remove();
        }
        there
    }

    fn free(&self) -> Option<u64> {
        match statvfs(&self.folder) {
            Ok(disk) => Some(disk.f_bavail.saturating_mul(disk.f_frsize)),
            Err(error) => {
                tracing::warn!(%error, folder = %self.folder.display(), "how much space is free cannot be told");
                None
            }
        }
    }

    fn total(&self) -> Option<u64> {
        statvfs(&self.folder)
            .ok()
            .map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize))
    }

    fn make(&self) {
        if let Err(error) = self.try_to_make() {
            tracing::warn!(%error, path = %self.ballast.display(), "the ballast cannot be made");
            self.remove();
        }
    }

    fn try_to_make(&self) -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(connection::OWNER_ONLY)
            .open(&self.ballast)?;
        match fallocate(&file, FallocateFlags::empty(), 0, self.config.ballast) {
            Ok(()) => Ok(()),
            Err(_) => fill(file, self.config.ballast),
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
        let space = Space::of(&database, config);
        let ballast = folder.path().join("gateway.db.ballast");
        let allocated = || std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&ballast).expect("it is there")) * 512;
        assert!(allocated() >= 300_000, "its space is really taken");
        assert!(space.release() && !ballast.exists());
        assert!(!space.release(), "only once");
        assert_eq!(space.look(), None);
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
        let why = Space::of(&database, config).look().expect("nothing is enough");
        assert!(why.contains("min_free"), "{why}");
        assert!(!folder.path().join("gateway.db.ballast").exists(), "no room for it");
    }

    #[test]
    fn a_file_system_that_sets_nothing_aside_is_filled() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("filled");
        fill(File::create(&path).expect("a file"), 200_001).expect("filled");
        assert_eq!(fs::metadata(&path).expect("it is there").len(), 200_001);
    }
}

//! The high-water mark: how far the books had come, in a file of its own beside the database.
//!
//! A database that lost its log, and an old copy put in its place, look whole. The mark says how many transactions were
//! committed and what the last entry was. It is written after every commit, without waiting for the disk, and synced at
//! checkpoints: so it is never ahead of what is durable, and behind it only where the power failed. It is a line of
//! text: `codex-gateway mark 1`, commits, the last entry's number and hash, and a checksum of what stands before it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension};

use super::columns::hex;
use super::digest::{GENESIS, Hash};
use super::{StoreError, commits, connection, on_file};

/// What the line begins with.
const BEGINNING: &str = "codex-gateway mark 1";

/// The line is filled up to this length, so that a later one always covers an earlier one.
pub(super) const LENGTH: usize = 192;

/// How far the books have come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    commits: i64,
    /// The last entry's number; zero: there is none.
    entry: i64,
    hash: Hash,
}

/// Why a database is not what was there before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Behind {
    /// The mark cannot be read, so nothing is known.
    #[error("its high-water mark {} cannot be read", .0.display())]
    Unreadable(PathBuf),
    /// Transactions are missing.
    #[error("its last transaction is number {found}, and there were {expected}")]
    Commits {
        /// In the database.
        found: i64,
        /// By the mark.
        expected: i64,
    },
    /// The last entry is missing, or is another one.
    #[error("its entry {0} is not the one that was there")]
    Entry(i64),
}

impl Mark {
    /// How far a database has come, the transaction under way included.
    pub(super) fn of(conn: &Connection) -> rusqlite::Result<Mark> {
        let last = conn
            .prepare_cached("SELECT seq, hash FROM ledger_entries ORDER BY seq DESC LIMIT 1")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (entry, hash) = last.unwrap_or((0, GENESIS));
        Ok(Mark {
            commits: commits::last(conn)?,
            entry,
            hash,
        })
    }

    /// What a database lacks of what was marked.
    fn compare(&self, conn: &Connection) -> rusqlite::Result<Option<Behind>> {
        let found = commits::last(conn)?;
        if found < self.commits {
            return Ok(Some(Behind::Commits {
                found,
                expected: self.commits,
            }));
        }
        let there: Option<Hash> = conn
            .prepare_cached("SELECT hash FROM ledger_entries WHERE seq = ?1")?
            .query_row([self.entry], |row| row.get(0))
            .optional()?;
        let same = there.unwrap_or(GENESIS) == self.hash;
        Ok((!same).then_some(Behind::Entry(self.entry)))
    }

    fn to_line(&self) -> String {
        let text = format!("{BEGINNING} {} {} {}", self.commits, self.entry, hex(&self.hash));
        let line = format!("{text} {:08x}", crc32fast::hash(text.as_bytes()));
        format!("{line:<width$}\n", width = LENGTH - 1)
    }

    fn from_line(line: &str) -> Option<Mark> {
        let (text, checksum) = line.trim_end().rsplit_once(' ')?;
        if u32::from_str_radix(checksum, 16) != Ok(crc32fast::hash(text.as_bytes())) {
            return None;
        }
        let mut words = text.strip_prefix(BEGINNING)?.split_whitespace();
        let (commits, entry) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let hash = u256(words.next()?)?;
        Some(Mark { commits, entry, hash })
    }
}

/// 32 bytes from 64 hexadecimal digits.
fn u256(digits: &str) -> Option<Hash> {
    let (high, low) = (digits.get(..32)?, digits.get(32..64)?);
    let half = |digits| u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes);
    let mut hash = GENESIS;
    hash[..16].copy_from_slice(&half(high)?);
    hash[16..].copy_from_slice(&half(low)?);
    Some(hash)
}

/// The file.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    path: PathBuf,
}

impl MarkFile {
    /// Opens the mark of a database, or makes an empty one.
    pub(super) fn open(database: &Path) -> Result<MarkFile, StoreError> {
        let path = path_of(database);
        match connection::open_beside(database, &path) {
            Ok(file) => Ok(MarkFile { file, path }),
            Err(error) => Err(on_file("opening", &path, error)),
        }
    }

    /// Marks how far the books have come. A mark that cannot be written is told and passes: an older one finds less.
    pub(super) fn write(&self, mark: &Mark) {
        if let Err(error) = self.file.write_all_at(mark.to_line().as_bytes(), 0) {
            tracing::warn!(%error, path = %self.path.display(), "the high-water mark cannot be written");
        }
    }

    /// Writes what stands behind it (`pairing.rs`).
    pub(super) fn write_second_line(&self, line: &str) {
        let offset = u64::try_from(LENGTH).expect("a small number");
        if let Err(error) = self.file.write_all_at(line.as_bytes(), offset) {
            tracing::warn!(%error, path = %self.path.display(), "the high-water mark cannot be written");
        }
    }

    /// Makes it durable.
    pub(super) fn sync(&self) {
        if let Err(error) = self.file.sync_data() {
            tracing::warn!(%error, path = %self.path.display(), "the high-water mark cannot be synced");
        }
    }
}

/// Where the mark of a database is.
pub(super) fn path_of(database: &Path) -> PathBuf {
    connection::beside(database, ".mark")
}

/// What a database lacks of what was there, as far as its mark tells. Without a mark nothing is known to be missing.
pub(super) fn check(conn: &Connection, database: &Path) -> Result<Option<Behind>, StoreError> {
    let path = path_of(database);
    let Some(line) = read(&path)? else {
        return Ok(None);
    };
    match Mark::from_line(&line) {
        None => Ok(Some(Behind::Unreadable(path))),
        Some(mark) => mark
            .compare(conn)
            .map_err(super::during("comparing the database with its high-water mark")),
    }
}

/// Marks a database as it is, unless it was marked further on already.
pub(super) fn raise(conn: &Connection, database: &Path) -> Result<(), StoreError> {
    let mark = Mark::of(conn).map_err(super::during("reading how far the books have come"))?;
    let marked = read(&path_of(database))?.and_then(|line| Mark::from_line(&line));
    if marked.is_none_or(|marked| marked.commits < mark.commits) {
        MarkFile::open(database)?.write(&mark);
    }
    Ok(())
}

/// Marks a database as it is, whatever was marked before; durable when this returns.
pub(super) fn reset(conn: &Connection, database: &Path) -> Result<(), StoreError> {
    let mark = Mark::of(conn).map_err(super::during("reading how far the books have come"))?;
    let file = MarkFile::open(database)?;
    file.write(&mark);
    super::pairing::note_moved(&file, 0);
    file.sync();
    Ok(())
}

/// The first line in the file; `None` when there is no file, or nothing in it yet.
fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read(path) {
        Ok(mut bytes) => {
            bytes.truncate(LENGTH);
            Ok((!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(on_file("opening", path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Create, Outcome, Store};
    use super::*;

    /// A desk with a user, and what its database was before the user had money.
    fn with_old_copy() -> (Desk, super::super::users::User, PathBuf) {
        let desk = Desk::new();
        let ada = desk.user("ada", "0");
        let copy = desk.path().with_file_name("copy.db");
        let name = copy.to_str().expect("text").to_owned();
        desk.raw().execute("VACUUM INTO ?1", [name]).expect("copied");
        (desk, ada, copy)
    }

    fn put_in_place(desk: Desk, copy: &Path) -> (Desk, Store) {
        let path = desk.path();
        for ending in ["-wal", "-shm"] {
            fs::remove_file(connection::beside(&path, ending)).expect("removed");
        }
        fs::rename(copy, &path).expect("moved");
        let store = Store::open(&path, Create::Never).expect("it opens");
        (desk, store)
    }

    #[test]
    fn a_line_is_read_back_and_an_altered_one_is_not() {
        let mark = Mark {
            commits: 12,
            entry: 7,
            hash: [0xab; 32],
        };
        let line = mark.to_line();
        assert_eq!((line.len(), Mark::from_line(&line)), (LENGTH, Some(mark)));
        let longest = Mark {
            commits: i64::MAX,
            entry: i64::MAX,
            hash: [0xff; 32],
        };
        assert_eq!(longest.to_line().len(), LENGTH);
        for at in 0..line.trim_end().len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] ^= 1;
            let altered = String::from_utf8(bytes).expect("text");
            assert_eq!(Mark::from_line(&altered), None, "{at}");
        }
    }

    #[test]
    fn an_old_copy_is_found_and_nothing_is_written_to_it_until_somebody_says_so() {
        let (desk, ada, copy) = with_old_copy();
        done(desk.store.credit(&top_up(&ada, "3", None), &by(), at(1)));
        let (_desk, store) = put_in_place(desk, &copy);
        let lost = store.behind().expect("a commit is missing");
        assert!(
            matches!(lost, Behind::Commits { found, expected } if found + 1 == expected),
            "{lost:?}"
        );
        let refused = store.credit(&top_up(&ada, "1", None), &by(), at(2));
        assert!(matches!(refused, Outcome::NotCommitted(_)), "{refused:?}");
        done(store.accept_loss(&by(), at(3)));
        done(store.credit(&top_up(&ada, "1", None), &by(), at(4)));
        let again = Store::open(store.path(), Create::Never).expect("it opens");
        assert_eq!(again.behind(), None);
        assert_eq!(again.verify().expect("it verifies").findings, []);
    }

    #[test]
    fn other_books_of_the_same_length_are_found() {
        let (desk, ada, copy) = with_old_copy();
        let other = Store::open(&copy, Create::Never).expect("it opens");
        done(desk.store.credit(&top_up(&ada, "3", None), &by(), at(1)));
        done(other.credit(&top_up(&ada, "4", None), &by(), at(1)));
        done(other.credit(&top_up(&ada, "4", None), &by(), at(1)));
        drop(other);
        let (_desk, store) = put_in_place(desk, &copy);
        assert_eq!(store.behind(), Some(Behind::Entry(1)));
    }

    #[test]
    fn a_mark_that_cannot_be_read_is_no_mark_to_trust_and_an_empty_one_is_none() {
        let desk = Desk::new();
        let path = path_of(&desk.path());
        fs::write(&path, "").expect("written");
        assert_eq!(desk.again().behind(), None, "made and never written: nothing is known");
        fs::write(&path, "codex-gateway mark 1 9").expect("written");
        assert_eq!(desk.again().behind(), Some(Behind::Unreadable(path)));
    }

    #[test]
    fn a_mark_is_never_lowered_by_a_command() {
        let desk = Desk::new();
        desk.user("ada", "1");
        let conn = desk.raw();
        let there = || fs::read(path_of(&desk.path())).expect("a mark");
        let mark = there();
        let ahead = Mark {
            commits: 1_000,
            ..Mark::of(&conn).expect("read")
        };
        MarkFile::open(&desk.path()).expect("opened").write(&ahead);
        raise(&conn, &desk.path()).expect("nothing to do");
        assert_eq!(there(), ahead.to_line().into_bytes());
        reset(&conn, &desk.path()).expect("reset");
        assert_eq!(there()[..LENGTH], mark);
    }
}

//! The high-water mark: how far the books had come, in a file of its own beside the database.
//!
//! A database that lost its log, and an old copy put in its place, look whole. The mark says how many transactions were
//! committed and what the last entry was. It is written after every commit, without waiting for the disk, and synced at
//! checkpoints: so it is never ahead of what is durable, and behind it only where the power failed.
//!
//! It is a line of text: `codex-gateway mark 1`, commits, the last entry's number and hash, and a checksum of what
//! stands before it. A second line says how many transactions are in the database file itself (`pairing.rs`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use rusqlite::{Connection, OptionalExtension};

use super::columns::{hash, hex};
use super::digest::{GENESIS, Hash};
use super::{StoreError, commits, connection, during, lock, on_file};

/// How often a mark that is not whole is read: another process may just be writing it.
const READS: u32 = 3;

/// How often the lock on the file is asked for, which others have for an instant.
const TRIES: u32 = 100;

/// How long is waited between two of either.
const BETWEEN: Duration = Duration::from_millis(1);

/// How far the books have come.
const MARK: Line = Line {
    beginning: "codex-gateway mark 1",
    at: 0,
    length: 192,
};

/// How many transactions had been moved from the log into the database file.
const MOVED: Line = Line {
    beginning: "codex-gateway moved 1",
    at: MARK.length,
    length: 64,
};

/// A line of the file: values after words that say which it is, a checksum, and spaces up to its length, so that a later
/// one always covers an earlier one.
struct Line {
    beginning: &'static str,
    at: usize,
    length: usize,
}

impl Line {
    fn of(&self, values: &str) -> String {
        let text = format!("{} {values}", self.beginning);
        let line = format!("{text} {:08x}", crc32fast::hash(text.as_bytes()));
        format!("{line:<width$}\n", width = self.length - 1)
    }

    /// Its values, when it is whole.
    fn values_in<'a>(&self, file: &'a [u8]) -> Option<&'a str> {
        let end = file.len().min(self.at + self.length);
        let line = std::str::from_utf8(file.get(self.at..end)?).ok()?;
        let (text, checksum) = line.trim_end().rsplit_once(' ')?;
        let is_whole = u32::from_str_radix(checksum, 16) == Ok(crc32fast::hash(text.as_bytes()));
        text.strip_prefix(self.beginning)?
            .strip_prefix(' ')
            .filter(|_| is_whole)
    }
}

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
        let found = commits::last_if_counted(conn)?.unwrap_or(0);
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

    fn line(&self) -> String {
        MARK.of(&format!("{} {} {}", self.commits, self.entry, hex(&self.hash)))
    }

    fn in_file(file: &[u8]) -> Option<Mark> {
        let mut values = MARK.values_in(file)?.split(' ');
        Some(Mark {
            commits: values.next()?.parse().ok()?,
            entry: values.next()?.parse().ok()?,
            hash: hash(values.next()?)?,
        })
    }
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

    /// Marks how far the books have come, unless they were marked further on already. A mark that cannot be written is
    /// told and passes: an older one finds less.
    pub(super) fn raise(&self, mark: &Mark) {
        self.tell(self.locked(|| {
            let mut file = [0; MARK.length];
            let read = self.file.read_at(&mut file, 0)?;
            let there = Mark::in_file(&file[..read]);
            if there.is_none_or(|there| there.commits < mark.commits) {
                self.put(&MARK, &mark.line())?;
            }
            Ok(())
        }));
    }

    /// Notes how many transactions a checkpoint has moved into the database file. What cannot be noted is told and
    /// passes, likewise.
    pub(super) fn note_moved(&self, count: i64) {
        self.tell(self.put(&MOVED, &MOVED.of(&count.to_string())));
    }

    /// Makes it durable.
    pub(super) fn sync(&self) {
        self.tell(self.file.sync_data());
    }

    /// Marks how far the books have come, whatever was marked before; durable when this returns.
    fn reset(&self, mark: &Mark) -> io::Result<()> {
        self.locked(|| self.put(&MARK, &mark.line()))?;
        self.put(&MOVED, &MOVED.of("0"))?;
        self.file.sync_data()
    }

    /// Does something while no other process writes the mark: of two that raise it, the later one might lower it.
    fn locked<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        lock::patiently(&self.file, TRIES, BETWEEN)?;
        let done = act();
        self.file.unlock()?;
        done
    }

    fn put(&self, line: &Line, text: &str) -> io::Result<()> {
        let at = u64::try_from(line.at).expect("a small number");
        self.file.write_all_at(text.as_bytes(), at)
    }

    fn tell(&self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(%error, path = %self.path.display(), "the high-water mark cannot be written");
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
    match whole(|| read(&path))? {
        Found::Nothing => Ok(None),
        Found::Garbage => Ok(Some(Behind::Unreadable(path))),
        Found::Mark(mark) => mark
            .compare(conn)
            .map_err(during("comparing the database with its high-water mark")),
    }
}

/// What a file was found to have.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Garbage,
    Mark(Mark),
}

/// Reads until the mark is whole, [`READS`] times at most.
fn whole<E>(mut read: impl FnMut() -> Result<Vec<u8>, E>) -> Result<Found, E> {
    for _ in 0..READS {
        let file = read()?;
        if file.is_empty() {
            return Ok(Found::Nothing);
        }
        if let Some(mark) = Mark::in_file(&file) {
            return Ok(Found::Mark(mark));
        }
        thread::sleep(BETWEEN);
    }
    Ok(Found::Garbage)
}

/// Marks a database as it is, unless it was marked further on already.
pub(super) fn raise(conn: &Connection, database: &Path) -> Result<(), StoreError> {
    let mark = Mark::of(conn).map_err(during("reading how far the books have come"))?;
    MarkFile::open(database)?.raise(&mark);
    Ok(())
}

/// Marks a database as it is, whatever was marked before; durable when this returns.
pub(super) fn reset(conn: &Connection, database: &Path) -> Result<(), StoreError> {
    let mark = Mark::of(conn).map_err(during("reading how far the books have come"))?;
    let file = MarkFile::open(database)?;
    file.reset(&mark).map_err(|error| on_file("writing", &file.path, error))
}

/// How many transactions had been moved into the database file, as far as it was noted.
pub(super) fn moved(database: &Path) -> Result<Option<i64>, StoreError> {
    let file = read(&path_of(database))?;
    Ok(MOVED.values_in(&file).and_then(|count| count.parse().ok()))
}

/// What is in the file; nothing when there is no file.
fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|error| on_file("opening", path, error)),
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
        let line = mark.line();
        let read = Mark::in_file(line.as_bytes());
        assert_eq!((line.len(), read), (MARK.length, Some(mark)));
        let longest = Mark {
            commits: i64::MAX,
            entry: i64::MAX,
            hash: [0xff; 32],
        };
        assert_eq!(longest.line().len(), MARK.length);
        assert_eq!(MOVED.of(&i64::MAX.to_string()).len(), MOVED.length);
        let other = Line {
            beginning: "codex-gateway mark 12",
            ..MARK
        };
        let values = format!("12 7 {}", "ab".repeat(32));
        assert!(Mark::in_file(MARK.of(&values).as_bytes()).is_some());
        assert_eq!(Mark::in_file(other.of(&values).as_bytes()), None, "of another version");
        for at in 0..line.trim_end().len() {
            let mut bytes = line.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(Mark::in_file(&bytes), None, "{at}");
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
        MarkFile::open(&desk.path()).expect("opened").raise(&ahead);
        raise(&conn, &desk.path()).expect("nothing to do");
        assert_eq!(there(), ahead.line().into_bytes());
        reset(&conn, &desk.path()).expect("reset");
        assert_eq!(there()[..MARK.length], mark);
    }

    #[test]
    fn of_many_that_raise_a_mark_at_once_none_lowers_it() {
        let desk = Desk::new();
        let mark = Mark::of(&desk.raw()).expect("read");
        let next = std::sync::atomic::AtomicI64::new(mark.commits);
        let last = mark.commits + 4_000;
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let file = MarkFile::open(&desk.path()).expect("opened");
                    loop {
                        let commits = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if commits > last {
                            break;
                        }
                        file.raise(&Mark {
                            commits,
                            ..mark.clone()
                        });
                        let there = Mark::in_file(&fs::read(path_of(&desk.path())).expect("read"));
                        assert!(
                            there.as_ref().is_none_or(|there| there.commits >= commits),
                            "{commits}: {there:?}"
                        );
                    }
                });
            }
        });
        let there = Mark::in_file(&fs::read(path_of(&desk.path())).expect("read"));
        assert_eq!(there.map(|there| there.commits), Some(last));
    }

    #[test]
    fn a_mark_that_somebody_is_writing_is_read_again() {
        let mark = Mark {
            commits: 12,
            entry: 7,
            hash: [0xab; 32],
        };
        let whole_line = mark.line().into_bytes();
        let torn = [&whole_line[..40], b"0", &whole_line[41..]].concat();
        let read = |files: &[&[u8]]| {
            let mut files = files.iter();
            whole(|| files.next().map(|file| file.to_vec()).ok_or(())).expect("not read so often")
        };
        assert_eq!(read(&[&torn, &torn, &whole_line]), Found::Mark(mark));
        assert_eq!(read(&[&torn, &torn, &torn]), Found::Garbage);
        assert_eq!(read(&[&torn, b""]), Found::Nothing);
    }

    #[test]
    fn a_loss_that_could_not_be_accepted_is_a_loss_still() {
        let (desk, ada, copy) = with_old_copy();
        done(desk.store.credit(&top_up(&ada, "3", None), &by(), at(1)));
        let (desk, store) = put_in_place(desk, &copy);
        let mark = path_of(&desk.path());
        fs::remove_file(&mark).expect("removed");
        fs::create_dir(&mark).expect("something else is there");
        let accepted = store.accept_loss(&by(), at(3));
        assert!(matches!(accepted, Outcome::NotCommitted(_)), "{accepted:?}");
        assert!(store.behind().is_some());
    }

    #[test]
    fn a_mark_that_cannot_be_reset_is_an_error() {
        let desk = Desk::new();
        let mark = path_of(&desk.path());
        fs::remove_file(&mark).expect("removed");
        std::os::unix::fs::symlink("/dev/full", &mark).expect("linked");
        let error = reset(&desk.raw(), &desk.path()).expect_err("no space");
        assert!(error.to_string().contains("gateway.db.mark"), "{error}");
    }
}

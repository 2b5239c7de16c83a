//! Storage: one writer with group commit, many readers, migrations. The only door to SQLite.
//!
//! What crosses it are operations and values, never a connection: nothing outside knows which engine is behind it.

pub mod attempts;
pub mod audit;
pub mod background;
pub mod backup;
pub mod budgets;
mod cache;
mod checkpoint;
pub mod codes;
mod columns;
mod commits;
mod connection;
mod counts;
mod digest;
pub mod entries;
pub mod events;
mod health;
pub mod idempotency;
pub mod keys;
pub mod ledger;
mod lock;
pub mod look;
mod mark;
mod migrate;
#[cfg(test)]
mod model;
pub mod objects;
mod pairing;
mod prepared;
pub mod prices;
pub mod recordings;
pub mod refunds;
pub mod reports;
pub mod restore;
pub mod rollups;
pub mod seal;
pub mod sessions;
mod space;
pub mod statement;
#[cfg(test)]
mod testing;
pub mod usage_log;
pub mod users;
pub mod verify;
mod watch;
mod writer;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::sync::Semaphore;
use uuid::Uuid;

use self::restore::Restored;
use crate::config::DiskConfig;
use crate::time::now;
use cache::Caches;
pub use counts::Counts;
pub use lock::ServerLock;
pub use mark::Behind;
pub use writer::{Busy, Load, NotClosed, Place, Writer};

/// Id of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub Uuid);

/// Id of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub Uuid);

/// Id of a redemption code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeId(pub Uuid);

/// Id of an exchange: UUID v7, the answer's `x-request-id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(pub Uuid);

/// Who does an act, for the audit log: `cli:root@host`, `server`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor(pub String);

/// What became of a write.
#[derive(Debug)]
pub enum Outcome<D, R> {
    /// Durable.
    Committed(D),
    /// A condition did not hold; nothing was written.
    Refused(R),
    /// An error before the commit; nothing was written, and the operation may be repeated.
    NotCommitted(StoreError),
    /// The commit failed, or the writer died: the row may or may not be there after a restart. Stop admitting.
    Unknown(StoreError),
}

/// An error of the engine, with its source chain.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct StoreError {
    /// What was being done.
    pub context: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No file there, and the command does not create one.
    #[error("there is no database at {0}")]
    Missing(std::path::PathBuf),
    /// A folder, or a file that no gateway made.
    #[error("{0} is not a gateway database")]
    NotOurs(std::path::PathBuf),
    /// Made by a newer release.
    #[error("{} is of version {found}, this program knows {known}", .path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its `user_version`.
        found: i64,
        /// Ours.
        known: i64,
        /// The backup that lies beside it, of a version that we know.
        backup: Option<PathBuf>,
    },
    /// Of an earlier version, and left at it, because no backup of it could be made.
    #[error("the database is of version {found} and stays so, because no backup of it could be made")]
    NotBackedUp {
        /// Its `user_version`.
        found: i64,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// It ends before its high-water mark: a lost log, or an old copy in its place.
    #[error("{} {} what was there before: {lacks}", .path.display(), is_or_may_be_not(.lacks))]
    Behind {
        /// The file.
        path: PathBuf,
        /// What it lacks.
        lacks: Behind,
    },
    /// There was one: something of it is there still.
    #[error("there is no database at {0}, but what it left is there: {1}")]
    Gone(PathBuf, PathBuf),
    /// The log beside it is that of a newer database.
    #[error("{1} is the log of a newer database than the one beside it")]
    NotItsLog(PathBuf, PathBuf),
    /// It is of an earlier version, put in the place of a newer one; the log beside it may be that one's or its own.
    #[error("{1} may be the log of {0}, or of the newer database that was there before")]
    WhoseLog(PathBuf, PathBuf),
    /// Another server runs on it.
    #[error("another gateway serves this database: {0}")]
    InUse(String),
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn is_or_may_be_not(lacks: &Behind) -> &'static str {
    match lacks {
        Behind::Unreadable(_) => "may not be",
        Behind::Commits { .. } | Behind::Entry(_) => "is not",
    }
}

/// Whether opening may create the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// `serve` and `user add`. (`restore` makes one of its own.)
    IfMissing,
    /// Every other command.
    Never,
}

/// Whether a database of an earlier version is migrated that lacks something of what was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Refused,
    Accepted,
}

/// The database of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// What the clones of a [`Store`] share.
struct Inner {
    path: PathBuf,
    readers: r2d2::Pool<SqliteConnectionManager>,
    /// As many as there are readers: whoever waits for one waits here, not on a thread.
    reading: Arc<Semaphore>,
    /// For the acts of operators; a server's calls go through its [`Writer`].
    acts: Mutex<Connection>,
    caches: Caches,
    behind: Mutex<Option<Behind>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("path", &self.inner.path)
            .finish_non_exhaustive()
    }
}

/// What an operation gives inside its transaction: what it did, or why it did nothing.
type Tried<D, R> = rusqlite::Result<Result<D, R>>;

/// Turns SQLite's error into the store's.
fn during(context: impl Into<String>) -> impl FnOnce(rusqlite::Error) -> StoreError {
    let context = context.into();
    |error| StoreError {
        context,
        source: Some(Box::new(error)),
    }
}

/// An error of the system on a file.
fn on_file(doing: &str, file: &Path, error: io::Error) -> StoreError {
    StoreError {
        context: format!("{doing} {}", file.display()),
        source: Some(Box::new(error)),
    }
}

/// What an error of the engine means for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// Another process writes; it passes.
    Busy,
    /// The disk is full; it passes when somebody makes room.
    Full,
    /// What was written may or may not be there after a restart.
    Unknown,
    /// Something else that is no fault of the operation: no memory, a file that cannot be written for now.
    Passing,
    /// The operation itself cannot be done: it breaks a constraint, or it found what must not be.
    Operation,
}

impl Trouble {
    fn of(error: &rusqlite::Error) -> Trouble {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Trouble::Busy,
            Some(ErrorCode::DiskFull) => Trouble::Full,
            Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Trouble::Unknown,
            // Errors without a code are not SQLite's: a value that does not fit, a row that is not there.
            Some(ErrorCode::ConstraintViolation) | None => Trouble::Operation,
            Some(_) => Trouble::Passing,
        }
    }

    /// Of an error of COMMIT: what is neither busy nor full leaves the outcome open.
    fn of_commit(error: &rusqlite::Error) -> Trouble {
        match Trouble::of(error) {
            Trouble::Passing | Trouble::Operation => Trouble::Unknown,
            other => other,
        }
    }
}

impl Store {
    /// Opens, creates and migrates.
    ///
    /// # Errors
    /// Among others, [`OpenError::Behind`]: the database is of an earlier version and lacks something of what was there
    /// before. One of ours is opened, and [`Store::behind`] tells.
    pub fn open(path: &Path, create: Create) -> Result<Store, OpenError> {
        Store::open_or_lose(path, create, Loss::Refused)
    }

    /// As [`Store::open`], for whoever is about to accept a loss: what lacks something is migrated as well.
    ///
    /// # Errors
    /// It cannot be opened for another reason.
    pub fn open_at_a_loss(path: &Path, create: Create) -> Result<Store, OpenError> {
        Store::open_or_lose(path, create, Loss::Accepted)
    }

    fn open_or_lose(path: &Path, create: Create, loss: Loss) -> Result<Store, OpenError> {
        let path = connection::absolute(path)?;
        pairing::check(&path)?;
        let mut acts = connection::open(&path, create, loss)?;
        let (_, catalogue) = crate::pricing::catalogue().map_err(|e| StoreError {
            context: "reading the catalogue".to_owned(),
            source: Some(Box::new(e)),
        })?;
        let behind = mark::check(&acts, &path)?;
        if let Some(behind) = &behind {
            tracing::warn!(%behind, "the database is not what was there before; nothing is written to it");
        }
        if behind.is_none() && prices::seed(&mut acts, &catalogue, now()).map_err(during("writing the catalogue"))? {
            mark::raise(&acts, &path)?;
        }
        Ok(Store::over(path, acts, behind))
    }

    /// Opens a file that has our version already, and writes nothing into it.
    fn open_to_read(path: &Path) -> Result<Store, StoreError> {
        let acts = connection::open_to_read(path).map_err(during(format!("opening {}", path.display())))?;
        Ok(Store::over(path.to_owned(), acts, None))
    }

    fn over(path: PathBuf, acts: Connection, behind: Option<Behind>) -> Store {
        let inner = Inner {
            readers: connection::readers(&path),
            reading: Arc::new(Semaphore::new(connection::READERS as usize)),
            acts: Mutex::new(acts),
            caches: Caches::new(),
            behind: Mutex::new(behind),
            path,
        };
        Store { inner: Arc::new(inner) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Runs a synchronous function of the store off the async threads. At most as many run at once as there are
    /// connections to read from.
    pub async fn blocking<T: Send + 'static>(&self, f: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.clone();
        let turn = Arc::clone(&self.inner.reading).acquire_owned().await;
        let work = tokio::task::spawn_blocking(move || {
            let value = f(&store);
            drop(turn);
            value
        });
        match work.await {
            Ok(value) => value,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Starts the writer; it ends when every `Writer` is dropped and what was queued is durable.
    pub fn start_writer(&self, tracker: &tokio_util::task::TaskTracker, disk: DiskConfig) -> Writer {
        writer::start(self.clone(), tracker, disk)
    }

    /// What the database lacks of what was there before, by its high-water mark. As long as it lacks something nothing
    /// is written to it: the mark would be lost.
    pub fn behind(&self) -> Option<Behind> {
        self.inner.behind.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses a database that lacks something of what was there before.
    ///
    /// # Errors
    /// [`OpenError::Behind`].
    pub fn whole(&self) -> Result<(), OpenError> {
        match self.behind() {
            None => Ok(()),
            Some(lacks) => Err(OpenError::Behind {
                path: self.path().to_owned(),
                lacks,
            }),
        }
    }

    /// Goes on without what the database lacks, and writes down that somebody decided so.
    pub fn accept_loss(&self, by: &Actor, now: jiff::Timestamp) -> Outcome<(), ()> {
        let lost = self.inner.behind.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(lost) = lost else {
            return Outcome::Committed(());
        };
        let act = audit::Act {
            by,
            at: now,
            action: "database.accept_loss",
            subject: "database".to_owned(),
            before: None,
            after: serde_json::json!({ "lost": lost.to_string() }).to_string(),
        };
        let mut accepted = self.write("accepting a loss", |tx| audit::record(tx, &act).map(Ok));
        if let Outcome::Committed(()) = accepted
            && let Err(error) = self.reset_mark()
        {
            accepted = Outcome::NotCommitted(error);
        }
        if !matches!(accepted, Outcome::Committed(())) {
            *self.inner.behind.lock().unwrap_or_else(PoisonError::into_inner) = Some(lost);
        }
        accepted
    }

    /// Writes down that the database was put in the place of another.
    pub fn note_restored(&self, from: &Path, restored: &Restored, by: &Actor, now: jiff::Timestamp) -> Outcome<(), ()> {
        let last = |entry: Option<backup::LastEntry>| entry.map(|entry| entry.seq);
        let before = restored.replaced.as_ref().map(|replaced| {
            serde_json::json!({ "last_entry": last(replaced.last), "kept": replaced.kept }).to_string()
        });
        let contents = &restored.contents;
        let after = serde_json::json!({
            "from": from, "users": contents.users, "entries": contents.entries, "last_entry": last(contents.last),
        });
        let act = audit::Act {
            by,
            at: now,
            action: "database.restore",
            subject: "database".to_owned(),
            before,
            after: after.to_string(),
        };
        self.write("writing the restoring down", |tx| audit::record(tx, &act).map(Ok))
    }

    fn reset_mark(&self) -> Result<(), StoreError> {
        let conn = self.inner.acts.lock().unwrap_or_else(PoisonError::into_inner);
        mark::reset(&conn, &self.inner.path)
    }

    fn caches(&self) -> &Caches {
        &self.inner.caches
    }

    /// Runs a read on a connection of the pool.
    fn read<T>(&self, context: &str, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let conn = self.inner.readers.get().map_err(|e| StoreError {
            context: context.to_owned(),
            source: Some(Box::new(e)),
        })?;
        f(&conn).map_err(during(context))
    }

    /// Runs an operator's act in a transaction of its own.
    fn write<D, R>(&self, context: &str, act: impl FnOnce(&Connection) -> Tried<D, R>) -> Outcome<D, R> {
        if let Err(lacking) = self.whole() {
            return Outcome::NotCommitted(StoreError {
                context: format!("{context}: nothing was written"),
                source: Some(Box::new(lacking)),
            });
        }
        // A panic inside an act rolled its transaction back; the connection is as good as before.
        let mut conn = self.inner.acts.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = write_on(&mut conn, context, act);
        if matches!(outcome, Outcome::Committed(_))
            && let Err(error) = mark::raise(&conn, &self.inner.path)
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the high-water mark is not raised"
            );
        }
        if !matches!(outcome, Outcome::Refused(_)) {
            self.caches().forget();
        }
        outcome
    }
}

fn write_on<D, R>(conn: &mut Connection, context: &str, act: impl FnOnce(&Connection) -> Tried<D, R>) -> Outcome<D, R> {
    let failed = |trouble, error| match trouble {
        Trouble::Unknown => Outcome::Unknown(during(context)(error)),
        Trouble::Busy | Trouble::Full | Trouble::Passing | Trouble::Operation => {
            Outcome::NotCommitted(during(context)(error))
        }
    };
    let tx = match conn.transaction_with_behavior(TransactionBehavior::Immediate) {
        Ok(tx) => tx,
        Err(error) => return failed(Trouble::of(&error), error),
    };
    match act(&tx) {
        Ok(Ok(done)) => match commits::count(&tx) {
            Ok(_) => match tx.commit() {
                Ok(()) => Outcome::Committed(done),
                Err(error) => failed(Trouble::of_commit(&error), error),
            },
            Err(error) => failed(Trouble::of(&error), error),
        },
        Ok(Err(refused)) => Outcome::Refused(refused),
        Err(error) => failed(Trouble::of(&error), error),
    }
}

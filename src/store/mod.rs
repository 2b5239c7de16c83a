//! Storage: one writer with group commit, many readers, migrations. The only door to SQLite.
//!
//! What crosses it are operations and values, never a connection: nothing outside knows which engine is behind it.

pub mod audit;
pub mod keys;
pub mod ledger;
pub mod prices;
pub mod usage_log;
pub mod users;

use std::path::Path;

use uuid::Uuid;

/// Id of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub Uuid);

/// Id of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub Uuid);

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
    /// Made by a newer release.
    #[error("the database is of version {found}, this program knows {known}")]
    TooNew {
        /// `user_version` of the file.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another server runs on it.
    #[error("another gateway serves this database: {0}")]
    InUse(String),
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether opening may create the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// `serve`, `user add`, `restore`.
    IfMissing,
    /// Every other command.
    Never,
}

/// The database of a gateway. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

impl Store {
    /// Opens, creates and migrates.
    pub fn open(_path: &Path, _create: Create) -> Result<Store, OpenError> {
        todo!()
    }
}

/// The one writer of a serving process: group commit over a bounded queue.
#[derive(Clone, Debug)]
pub struct Writer {}

/// A place in the writer's queue for a settlement, reserved when its hold is taken.
#[derive(Debug)]
pub struct Place {}

impl Store {
    /// Starts the writer; it ends when every `Writer` is dropped and what was queued is durable.
    pub fn start_writer(&self, _tracker: &tokio_util::task::TaskTracker) -> Writer {
        todo!()
    }

    /// Runs a synchronous function of the store off the async threads.
    pub async fn blocking<T: Send + 'static>(&self, _f: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        todo!()
    }
}

/// Why a hold was not even tried.
#[derive(Debug)]
pub enum Busy {
    /// The queue is full: 503, try again.
    QueueFull,
    /// The writer has stopped after an unknown outcome: 503 until the process is restarted.
    Stopped,
}

impl Writer {
    /// Takes a hold. The place it comes with is the right to settle.
    pub async fn hold(
        &self,
        _hold: ledger::PlaceHold,
    ) -> Result<Outcome<(ledger::Hold, Place), ledger::HoldRefused>, Busy> {
        todo!()
    }

    /// Settles or releases: one transaction for charge, entry, usage row and the hold's closing. Repeated until it
    /// commits; `Err` only when the outcome is unknown and the process has to stop.
    pub async fn close(
        &self,
        _hold: ledger::Hold,
        _place: Place,
        _close: ledger::CloseHold,
    ) -> Result<ledger::Closed, StoreError> {
        todo!()
    }

    /// Fires when an outcome is unknown: stop admitting, exit, recover from disk.
    pub async fn failed(&self) -> StoreError {
        todo!()
    }

    /// Whether it accepts holds: for `/readyz`.
    pub fn is_ready(&self) -> bool {
        todo!()
    }
}

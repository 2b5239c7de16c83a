//! Points at which the crash tests make the gateway die, fail, panic or wait. A normal build has none.
//!
//! With the feature `failpoints`, the variable `FAILPOINTS` says what happens where, in the words of the crate `fail`:
//! `held=return(abort);settled=3*off->panic;sweep=sleep(500)`. What `return` gives is told apart here: `abort` aborts
//! the process, `kill` sends it SIGKILL, anything else is an error of that point.

/// Where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The key is known to be good; nothing is set aside.
    Authenticated,
    /// The hold is durable; nothing was sent.
    Held,
    /// There is a connection to the upstream; no byte of the call was sent.
    Connected,
    /// The call was sent whole.
    Sent,
    /// The head of the answer is there.
    Head,
    /// It is written down that a response runs in the background; its id has not left.
    Begun,
    /// The first piece of a stream has left for the client.
    FirstPiece,
    /// So has a later one.
    MidStream,
    /// The upstream says that a background response is over; nothing is settled.
    Over,
    /// The answer is at its end; nothing is settled.
    BeforeSettlement,
    /// In the settlement's transaction, between two of its statements.
    InSettlement,
    /// The charge is durable; the end has not left.
    Settled,
    /// So is the charge of an answer that is to be recorded; it is sealed, and not written.
    Recording,
    /// The end has left for the client.
    AfterEnd,
    /// Open holds that nobody owns were read; none is closed.
    Sweep,
    /// In the transaction of a migration.
    Migration,
    /// Before what was committed moves from the log into the database.
    Checkpoint,
    /// A backup is written and not yet in its place.
    Backup,
}

impl Point {
    /// Every point, in the order in which an exchange meets them.
    pub const ALL: [Point; 18] = [
        Point::Authenticated,
        Point::Held,
        Point::Connected,
        Point::Sent,
        Point::Head,
        Point::Begun,
        Point::FirstPiece,
        Point::MidStream,
        Point::Over,
        Point::BeforeSettlement,
        Point::InSettlement,
        Point::Settled,
        Point::Recording,
        Point::AfterEnd,
        Point::Sweep,
        Point::Migration,
        Point::Checkpoint,
        Point::Backup,
    ];

    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Point::Authenticated => "authenticated",
            Point::Held => "held",
            Point::Connected => "connected",
            Point::Sent => "sent",
            Point::Head => "head",
            Point::Begun => "begun",
            Point::FirstPiece => "first-piece",
            Point::MidStream => "mid-stream",
            Point::Over => "over",
            Point::BeforeSettlement => "before-settlement",
            Point::InSettlement => "in-settlement",
            Point::Settled => "settled",
            Point::Recording => "recording",
            Point::AfterEnd => "after-end",
            Point::Sweep => "sweep",
            Point::Migration => "migration",
            Point::Checkpoint => "checkpoint",
            Point::Backup => "backup",
        }
    }
}

/// The error of a point that was made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("made to fail at '{}'", .0.name())]
pub struct Injected(pub Point);

/// Does what `FAILPOINTS` says of a point; nothing in a normal build.
///
/// # Errors
/// The point was made to fail.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_: Point) -> Result<(), Injected> {
    Ok(())
}

/// Does what `FAILPOINTS` says of a point; nothing in a normal build.
///
/// # Errors
/// The point was made to fail.
#[cfg(feature = "failpoints")]
pub fn hit(point: Point) -> Result<(), Injected> {
    fail::fail_point!(point.name(), |told: Option<String>| match told.as_deref() {
        Some("abort") => std::process::abort(),
        Some("kill") => {
            let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            panic!("still alive: {killed:?}")
        }
        _ => Err(Injected(point)),
    });
    Ok(())
}

/// What arms the points, as long as it is kept.
#[cfg(not(feature = "failpoints"))]
pub struct Armed;

/// What arms the points, as long as it is kept.
#[cfg(feature = "failpoints")]
pub struct Armed(#[expect(dead_code, reason = "it disarms when it is dropped")] fail::FailScenario<'static>);

/// Reads `FAILPOINTS`.
#[cfg(not(feature = "failpoints"))]
pub fn arm() -> Armed {
    Armed
}

/// Reads `FAILPOINTS`.
#[cfg(feature = "failpoints")]
pub fn arm() -> Armed {
    Armed(fail::FailScenario::setup())
}

//! Events on their way out: from the outbox to webhooks and files.
//!
//! ```text
//! whoever moves money ─ one transaction ─▶ events            store::events: the outbox
//!                                           │
//!         a task per sink: read what is behind its place, in order
//!                                           │
//!              ┌────────────────────────────┴─────────────────────┐
//!        webhook: POST, signed, retried                  file: lines, synced
//!              └────────────────────────────┬─────────────────────┘
//!                                           ▼
//!                    the writer notes the new place (aside: nobody's settlement is in it),
//!                    and deletes what every sink has
//! ```
//!
//! - **At least once, in order.** A sink gets all events one after the other, in the order in which they were committed,
//!   and none before those ahead of it are delivered. Its place moves after the delivery, at most four times a second; who
//!   is stopped or killed in between sends again what lies between. An event keeps its id.
//! - **Nobody waits for it.** A sink that fails keeps its place and tries again by itself, at longer and longer intervals
//!   up to five minutes, or when the receiver said. The others and the calls do not notice.
//! - **Within a bound.** When more than `max_waiting` events wait for a sink, the oldest are lost to it: logged as an error
//!   and counted in its row.
//! - **Nowhere else.** A webhook's host is looked up here, and only addresses of the public internet are connected to,
//!   unless the settings allow others; no redirect is followed, no proxy asked.

mod file;
mod webhook;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::file::LinesFile;
use self::webhook::Webhook;
use crate::bilingual;
use crate::config::{SinkConfig, SinkTarget};
use crate::event::Kind;
use crate::language::{Bilingual, Language, Said};
use crate::said;
use crate::store::events::{About, Event, Note, loss};
use crate::store::{Store, StoreError, UserId, Writer};
use crate::time::{self, Stopwatch};

/// How often it is looked for new events.
const LOOK: Duration = Duration::from_millis(500);

/// How often a sink's place is noted while there is more to send.
const NOTE: Duration = Duration::from_millis(250);

/// How often, while a sink waits for its next try, it is looked whether too many events wait for it.
const LOOK_AT_BOUND: Duration = Duration::from_secs(5);

/// The pause after the first failure, the longest, and the longest that a receiver may ask for.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// Events in one request.
const EVENTS_PER_POST: u32 = 100;

/// Events that are written to a file at a time.
const EVENTS_PER_WRITE: u32 = 1000;

/// The type of an event that is sent to see whether it arrives. It is in no outbox.
const TEST: &str = "sink.test";

/// Characters of a failure that are kept.
const LONGEST_WHY: usize = 500;

/// Why a sink cannot be used as it is set.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.told(Language::English))]
pub struct SinkError {
    /// Which.
    pub name: String,
    /// What is wrong.
    pub what: Bilingual,
}

impl SinkError {
    /// Which sink, and what is wrong with it.
    pub fn told(&self, language: Language) -> Said {
        let (name, what) = (&self.name, self.what.of(language));
        said!(language, en: "sink '{name}': {what}", zh: "事件去向 '{name}'：{what}")
    }
}

/// Where events go.
#[derive(Debug)]
pub struct Sink {
    name: String,
    types: Vec<Kind>,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Webhook(Webhook),
    File(LinesFile),
}

/// Why events were not delivered, and when the receiver wants them again, if it said.
#[derive(Debug)]
struct Failed {
    why: String,
    after: Option<Duration>,
}

impl Failed {
    fn of(why: impl Into<String>) -> Failed {
        Failed {
            why: why.into(),
            after: None,
        }
    }
}

/// Where events come from.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// What holds them.
    pub store: Store,
    /// What notes how far a sink is.
    pub writer: Writer,
    /// Events that may wait for a sink.
    pub max_waiting: i64,
}

impl Sink {
    /// A sink as it is configured; nothing is sent or opened yet.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn new(config: &SinkConfig, database: &Path) -> Result<Sink, SinkError> {
        let wrong = |what: Bilingual| SinkError {
            name: config.name.clone(),
            what,
        };
        let target = match &config.target {
            SinkTarget::Webhook {
                url,
                secret,
                allow_private,
            } => Target::Webhook(Webhook::new(url, secret, *allow_private).map_err(wrong)?),
            SinkTarget::File(path) if is_of_database(path, database) => {
                return Err(wrong(
                    bilingual!(en: "its file is one of the database's", zh: "它的文件是数据库的文件之一"),
                ));
            }
            SinkTarget::File(path) => Target::File(LinesFile::at(path.clone())),
        };
        Ok(Sink {
            name: config.name.clone(),
            types: config.types.clone(),
            target,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends an event that tells of nothing, to see whether it arrives.
    ///
    /// # Errors
    /// Why it does not.
    pub async fn test(&mut self) -> Result<(), String> {
        let event = Event {
            id: Uuid::now_v7(),
            seq: 0,
            kind: TEST.to_owned(),
            at: time::now(),
            user: About {
                id: UserId(Uuid::nil()),
                name: String::new(),
            },
            data: RawValue::NULL.to_owned(),
        };
        match self.target.send(&[&event], &CancellationToken::new()).await {
            Some(Err(Failed { why, .. })) => Err(why),
            Some(Ok(())) | None => Ok(()),
        }
    }

    fn wants(&self, event: &Event) -> bool {
        self.types.is_empty() || self.types.iter().any(|kind| kind.name() == event.kind)
    }
}

/// Whether a file is the database or one of those beside it: closing another handle on them drops the locks of the
/// process.
fn is_of_database(path: &Path, database: &Path) -> bool {
    let real = |path: &Path| {
        fs::canonicalize(path).ok().or_else(|| {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).ok()?;
            Some(folder.join(path.file_name()?))
        })
    };
    match (real(path), real(database)) {
        (Some(path), Some(database)) => path
            .as_os_str()
            .as_encoded_bytes()
            .starts_with(database.as_os_str().as_encoded_bytes()),
        _ => false,
    }
}

impl Target {
    /// How many events it takes at a time.
    fn most(&self) -> u32 {
        match self {
            Target::Webhook(_) => EVENTS_PER_POST,
            Target::File(_) => EVENTS_PER_WRITE,
        }
    }

    /// Sends events; `None`: it was told to stop. What is being written to a file is written whole.
    async fn send(&mut self, events: &[&Event], stop: &CancellationToken) -> Option<Result<(), Failed>> {
        match self {
            Target::Webhook(webhook) => stop.run_until_cancelled(webhook.post(events, time::now())).await,
            Target::File(file) => Some(file.append(events).await),
        }
    }
}

/// A sink at work.
struct Delivery {
    sink: Sink,
    outbox: Outbox,
    /// The last event that it has.
    sent: i64,
    /// The one that the outbox knows of.
    noted: i64,
    since_note: Stopwatch,
    /// How often it failed one after the other.
    failures: u32,
}

/// Delivers to a sink, until it is told to stop.
pub async fn deliver(sink: Sink, outbox: Outbox, stop: CancellationToken) {
    let Some(mut delivery) = Delivery::begin(sink, outbox, &stop).await else {
        return;
    };
    while !stop.is_cancelled() {
        let pause = delivery.round(&stop).await.unwrap_or_else(|error| {
            tracing::warn!(
                sink = delivery.sink.name,
                error = &error as &dyn std::error::Error,
                "events cannot be read"
            );
            LOOK
        });
        if delivery.rest(pause, &stop).await.is_none() {
            break;
        }
    }
    delivery.note().await;
}

impl Delivery {
    /// Finds its place; `None`: it was told to stop before.
    async fn begin(sink: Sink, outbox: Outbox, stop: &CancellationToken) -> Option<Delivery> {
        loop {
            let name = sink.name.clone();
            match outbox.store.blocking(move |store| store.delivered(&name)).await {
                Ok(delivered) => {
                    return Some(Delivery {
                        sink,
                        outbox,
                        sent: delivered,
                        noted: delivered,
                        since_note: Stopwatch::start(),
                        failures: 0,
                    });
                }
                Err(error) => tracing::warn!(
                    sink = sink.name,
                    error = &error as &dyn std::error::Error,
                    "how far a sink is cannot be read"
                ),
            }
            stop.run_until_cancelled(tokio::time::sleep(LOOK)).await?;
        }
    }

    /// Sends the next events, and says how long to wait for more.
    async fn round(&mut self, stop: &CancellationToken) -> Result<Duration, StoreError> {
        let (sent, most) = (self.sent, self.sink.target.most());
        let read = move |store: &Store| store.events_behind(sent, most);
        let (events, newest) = self.outbox.store.blocking(read).await?;
        if self.lose_beyond_bound(newest).await? {
            return Ok(Duration::ZERO);
        }
        let wanted: Vec<&Event> = events.iter().filter(|event| self.sink.wants(event)).collect();
        if !wanted.is_empty() {
            match self.sink.target.send(&wanted, stop).await {
                None => return Ok(Duration::ZERO),
                Some(Ok(())) => self.works(),
                Some(Err(failed)) => return Ok(self.failed(failed).await),
            }
        }
        if let Some(last) = events.last() {
            self.sent = last.seq;
        }
        let is_more = u32::try_from(events.len()).is_ok_and(|count| count == most);
        if !is_more || self.since_note.elapsed() >= NOTE {
            self.note().await;
        }
        Ok(if is_more { Duration::ZERO } else { LOOK })
    }

    /// Waits, and keeps within the bound meanwhile; `None`: it was told to stop.
    async fn rest(&mut self, pause: Duration, stop: &CancellationToken) -> Option<()> {
        let since = Stopwatch::start();
        loop {
            let left = pause.saturating_sub(since.elapsed());
            let next = tokio::time::sleep(left.min(LOOK_AT_BOUND));
            stop.run_until_cancelled(next).await?;
            if left <= LOOK_AT_BOUND {
                return Some(());
            }
            let sent = self.sent;
            let newest = self
                .outbox
                .store
                .blocking(move |store| store.events_behind(sent, 0))
                .await;
            let kept = match newest {
                Ok((_, newest)) => self.lose_beyond_bound(newest).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = kept {
                tracing::debug!(
                    sink = self.sink.name,
                    error = &error as &dyn std::error::Error,
                    "how many events wait cannot be read or noted"
                );
            }
        }
    }

    /// Goes on behind the oldest events if more wait than may. Returns whether they do.
    async fn lose_beyond_bound(&mut self, newest: i64) -> Result<bool, StoreError> {
        let too_many = newest.saturating_sub(self.sent) > self.outbox.max_waiting;
        if too_many {
            self.lose(newest - self.outbox.max_waiting).await?;
        }
        Ok(too_many)
    }

    /// Goes on behind events that have waited among too many.
    async fn lose(&mut self, seq: i64) -> Result<(), StoreError> {
        let count = seq - self.sent;
        let mut notes = loss(&self.sink.name, seq, count);
        if let Some(first) = notes.next() {
            self.outbox.writer.note(first).await?;
        }
        (self.sent, self.noted) = (seq, seq);
        tracing::error!(
            sink = self.sink.name,
            count,
            max_waiting = self.outbox.max_waiting,
            "too many events waited; the oldest are lost to this sink"
        );
        for note in notes {
            self.outbox.writer.note(note).await?;
        }
        Ok(())
    }

    fn works(&mut self) {
        if self.failures > 0 {
            tracing::info!(sink = self.sink.name, "events are delivered again");
        }
        self.failures = 0;
    }

    /// Notes a failure, and says how long to wait before the next try.
    async fn failed(&mut self, failed: Failed) -> Duration {
        let pause = pause(self.failures, failed.after, getrandom::u32().unwrap_or_default());
        self.failures = self.failures.saturating_add(1);
        let why: String = failed.why.chars().take(LONGEST_WHY).collect();
        tracing::warn!(sink = self.sink.name, why, again_in = ?pause, "events cannot be delivered");
        let note = Note::Failing {
            sink: self.sink.name.clone(),
            why,
            now: time::now(),
        };
        if let Err(error) = self.outbox.writer.note(note).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a failing sink cannot be noted"
            );
        }
        pause
    }

    /// Notes how far the sink is. What cannot be noted is tried again at the next round.
    async fn note(&mut self) {
        if self.sent == self.noted {
            return;
        }
        self.since_note = Stopwatch::start();
        let note = Note::Delivered {
            sink: self.sink.name.clone(),
            seq: self.sent,
        };
        match self.outbox.writer.note(note).await {
            Ok(()) => self.noted = self.sent,
            Err(error) => tracing::debug!(
                sink = self.sink.name,
                error = &error as &dyn std::error::Error,
                "how far a sink is cannot be noted yet"
            ),
        }
    }
}

/// How long to wait after so many failures and one more: twice as long each time, less up to half of it by chance, so
/// that many do not come back at once; and not before the receiver said.
fn pause(failures: u32, asked: Option<Duration>, chance: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
    let half = u64::try_from(whole.as_millis() / 2).unwrap_or_default();
    let by_chance = Duration::from_millis((half * u64::from(chance)) >> 32);
    (whole / 2 + by_chance).max(asked.unwrap_or_default().min(LONGEST_ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_are_as_long_as_the_receiver_asks() {
        let millis = |failures, asked, chance| pause(failures, asked, chance).as_millis();
        let least = [0, 1, 2, 3, 20].map(|failures| millis(failures, None, 0));
        assert_eq!(least, [500, 1000, 2000, 4000, 150_000]);
        let most = [0, 1, 8, u32::MAX].map(|failures| millis(failures, None, u32::MAX));
        assert_eq!(most, [999, 1999, 255_999, 299_999]);
        assert_eq!(millis(0, Some(Duration::from_secs(7)), 0), 7000);
        assert_eq!(millis(3, Some(Duration::from_secs(1)), 0), 4000);
        assert_eq!(millis(0, Some(Duration::from_secs(1_000_000)), 0), 3_600_000);
    }

    #[test]
    fn the_files_of_the_database_are_no_sinks() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let database = at("gateway.db");
        fs::write(&database, "").expect("written");
        std::os::unix::fs::symlink(&database, at("link")).expect("linked");
        for name in ["gateway.db", "gateway.db-wal", "gateway.db.lock", "link"] {
            assert!(is_of_database(&at(name), &database), "{name}");
            assert!(is_of_database(&at(name), &at("link")), "{name}");
        }
        for name in ["events.jsonl", "gateway.d"] {
            assert!(!is_of_database(&at(name), &database), "{name}");
        }
    }
}

//! What the writer promises: alone, in a batch, in trouble, and at its end.

use std::sync::mpsc;

use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::super::keys::Key;
use super::super::ledger::{Closed, Hold, HoldRefused, Swept};
use super::super::mark::MarkFile;
use super::super::testing::*;
use super::super::users::{User, UserStatus};
use super::super::{Create, ExchangeId, Outcome, commits};
use super::handle::MAX_WAITING;
use super::*;
use crate::money::Usd;

/// A desk with a running writer, a user and a key.
struct Open {
    desk: Desk,
    writer: Writer,
    tracker: TaskTracker,
    user: User,
    key: Key,
}

fn open(balance: &str) -> Open {
    let desk = Desk::new();
    let tracker = TaskTracker::new();
    let writer = desk.store.start_writer(&tracker, DiskConfig::default());
    let user = desk.user("ada", balance);
    let key = desk.key(&user);
    Open {
        desk,
        writer,
        tracker,
        user,
        key,
    }
}

impl Open {
    async fn hold(&self, amount: &str) -> Outcome<(Hold, Place), HoldRefused> {
        let asked = ask(exchange(), &self.key, amount);
        self.writer.hold(asked).await.expect("there is room in the queue")
    }

    async fn settle(&self, (hold, place): (Hold, Place), charge: &str) -> Closed {
        let id = hold.exchange;
        self.writer
            .close(hold, place, closing(id, &self.key, charge))
            .await
            .expect("it commits")
    }

    /// Ends the writer and looks whether all is well.
    async fn finish(self) {
        let Open {
            desk, writer, tracker, ..
        } = self;
        drop(writer);
        tracker.close();
        tracker.wait().await;
        desk.assert_books_balance();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_held_and_settled_by_the_writer() {
    let open = open("5");
    let held = done(open.hold("2").await);
    assert_eq!(open.desk.now(&open.user).held, usd("2"));
    let closed = open.settle(held, "0.5").await;
    assert_eq!((closed.charged, closed.balance), (usd("0.5"), usd("4.5")));
    assert_eq!(open.writer.problem(), None);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_calls_are_admitted_as_far_as_the_money_goes_and_no_further() {
    let open = Arc::new(open("7"));
    let tasks = TaskTracker::new();
    let barrier = Arc::new(tokio::sync::Barrier::new(32));
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let (open, barrier) = (Arc::clone(&open), Arc::clone(&barrier));
            tasks.spawn(async move {
                barrier.wait().await;
                match open.hold("1").await {
                    Outcome::Committed(held) => Some(held),
                    Outcome::Refused(HoldRefused::Short(..)) => None,
                    other => panic!("{other:?}"),
                }
            })
        })
        .collect();
    let mut admitted = Vec::new();
    for call in calls {
        admitted.extend(call.await.expect("no panic"));
    }
    assert_eq!(admitted.len(), 7);
    assert_eq!(open.desk.now(&open.user).available(), Usd::ZERO);
    for held in admitted {
        open.settle(held, "1").await;
    }
    assert_eq!(open.desk.now(&open.user).balance, Usd::ZERO);
    drop(tasks);
    Arc::into_inner(open).expect("all calls are over").finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_fails_does_not_take_its_batch_with_it() {
    let open = open("5");
    let taken = exchange();
    let first = done(open.writer.hold(ask(taken, &open.key, "1")).await.expect("asked"));
    let stranger = open.desk.key(&open.user);
    // While another connection writes, everything asked for waits, and then goes into one batch.
    let raw = open.desk.raw();
    raw.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
    let (good, bad, good_too, ()) = tokio::join!(
        open.hold("1"),
        open.writer.hold(ask(taken, &stranger, "1")),
        open.hold("2"),
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            raw.execute_batch("ROLLBACK").expect("rolled back");
        }
    );
    assert!(matches!(bad, Ok(Outcome::NotCommitted(_))), "{bad:?}");
    for held in [first, done(good), done(good_too)] {
        open.settle(held, "1").await;
    }
    assert_eq!(open.desk.now(&open.user).balance, usd("2"));
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_waits_for_a_full_disk_and_a_hold_does_not() {
    let open = open("5");
    let held = done(open.hold("1").await);
    let pages: i64 = open
        .desk
        .raw()
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .expect("counted");
    // A full disk, as far as SQLite can tell: an operation that needs a page beyond the limit is SQLITE_FULL.
    let mut consumer = consumer(&open);
    consumer
        .conn
        .execute_batch(&format!("PRAGMA max_page_count = {pages}"))
        .expect("limited");
    let (job, mut settled) = settlement(&open, held, &"m".repeat(100_000));
    consumer.settle(vec![job]).expect("nothing is unknown");
    assert!(settled.try_recv().is_err(), "not answered yet");
    assert_eq!((consumer.backlog.len(), consumer.health.is_troubled()), (1, true));
    let (hold, refused) = asked(&open, &"m".repeat(100_000));
    consumer.settle(vec![hold]).expect("nothing is unknown");
    assert!(matches!(refused.await, Ok(Outcome::NotCommitted(_))));
    assert_eq!(open.desk.now(&open.user).held, usd("1"));
    // Room again.
    consumer
        .conn
        .execute_batch("PRAGMA max_page_count = 1000000")
        .expect("unlimited");
    let batch = consumer
        .next_batch()
        .expect("nothing is unknown")
        .expect("the settlement");
    consumer.settle(batch).expect("nothing is unknown");
    assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_to_be_settled_is_not_swept() {
    let open = open("5");
    let held = done(open.hold("1").await);
    let id = held.0.exchange;
    let (job, settled) = settlement(&open, held, &"m".repeat(100_000));
    let (queue, jobs) = mpsc::channel();
    let mut consumer = consumer(&open);
    consumer.jobs = jobs;
    let limit = |pages| format!("PRAGMA max_page_count = {pages}");
    let pages: i64 = connection::pragma(&consumer.conn, "PRAGMA page_count").expect("counted");
    let sweep = || {
        let (answer, swept) = oneshot::channel();
        let (overdue, now) = (vec![id], at(99));
        (Job::Sweep { overdue, now, answer }, swept)
    };
    // In one batch with a settlement that cannot be written.
    let (alongside, swept) = sweep();
    consumer.conn.execute_batch(&limit(pages)).expect("limited");
    consumer.settle(vec![job, alongside]).expect("nothing is unknown");
    swept.await.expect("answered").expect("not needed");
    assert_eq!((consumer.backlog.len(), open.desk.now(&open.user).held), (1, usd("1")));
    // Beside a settlement that is tried again, and is all that waits.
    let (beside, swept) = sweep();
    queue.send(beside).expect("queued");
    let batch = consumer
        .next_batch()
        .expect("nothing is unknown")
        .expect("the settlement");
    assert_eq!(batch.len(), 1);
    swept.await.expect("answered").expect("not needed");
    consumer.conn.execute_batch(&limit(1_000_000)).expect("unlimited");
    consumer.settle(batch).expect("nothing is unknown");
    assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waited_for_a_trouble_to_pass_is_written_without_further_pauses() {
    let open = open("5");
    let mut consumer = consumer(&open);
    refuse_writes(&consumer, "ON");
    let abandoned = |_| Job::Abandoned {
        exchange: exchange(),
        now: at(1),
    };
    let all = 2 * MAX_BATCH + 1;
    consumer
        .settle((0..all).map(abandoned).collect())
        .expect("nothing is unknown");
    assert!(consumer.retry_at.is_some(), "after a failure it waits");
    refuse_writes(&consumer, "OFF");
    for left in [MAX_BATCH + 1, 1, 0] {
        let batch = consumer.next_batch().expect("nothing is unknown").expect("a part");
        consumer.settle(batch).expect("nothing is unknown");
        assert_eq!((consumer.backlog.len(), consumer.retry_at), (left, None));
    }
    assert!(!consumer.health.is_troubled());
    drop(consumer);
    open.finish().await;
}

/// A recording of an exchange as the writer gets it, and where its answer comes.
fn recording(exchange: ExchangeId) -> (Job, oneshot::Receiver<Result<(), StoreError>>) {
    let (answer, answered) = oneshot::channel();
    let job = Job::Record {
        exchange,
        sealed: b"sealed".to_vec(),
        now: at(1),
        answer,
    };
    (job, answered)
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_written_one_by_one_after_what_money_waits_for() {
    let open = open("5");
    let held = done(open.hold("1").await);
    let recorded = held.0.exchange;
    open.settle(held, "1").await;
    let (queue, jobs) = mpsc::channel();
    let mut consumer = Consumer::new(&open.desk.store, jobs, Shared::default()).expect("it opens");
    let (good, kept) = recording(recorded);
    let (bad, lost) = recording(exchange());
    let (hold, held) = asked(&open, "gpt");
    for job in [good, hold] {
        queue.send(job).expect("it is read");
    }
    drop(queue);
    let before = commits::last(&open.desk.raw()).expect("counted");
    consumer.work().expect("nothing is unknown");
    assert_eq!(commits::last(&open.desk.raw()).expect("counted"), before + 2);
    consumer.aside.push_back(bad);
    consumer.write_aside().expect("nothing is unknown");
    assert!(!consumer.health.is_troubled());
    let held = done(held.await.expect("answered"));
    kept.await.expect("answered").expect("it is there");
    lost.await.expect("answered").expect_err("it has no exchange");
    let there = open.desk.store.recording(recorded, at(2)).expect("read");
    assert_eq!(there.as_deref(), Some(&b"sealed"[..]));
    drop(consumer);
    let place = open.writer.spare_place();
    open.settle((held, place), "1").await;
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_trouble_nothing_is_recorded() {
    let open = open("5");
    let mut consumer = consumer(&open);
    refuse_writes(&consumer, "ON");
    let abandoned = Job::Abandoned {
        exchange: exchange(),
        now: at(1),
    };
    consumer.settle(vec![abandoned]).expect("nothing is unknown");
    assert!(consumer.health.is_troubled());
    let (job, lost) = recording(exchange());
    consumer.aside.push_back(job);
    consumer.write_aside().expect("nothing is unknown");
    assert!(lost.await.expect("answered").is_err() && consumer.backlog.len() == 1);
    refuse_writes(&consumer, "OFF");
    drop(consumer);
    open.finish().await;
}

/// A hold of a dollar as the writer gets it, and where its answer comes.
fn asked(open: &Open, model: &str) -> (Job, oneshot::Receiver<Outcome<Hold, HoldRefused>>) {
    let (answer, answered) = oneshot::channel();
    let mut ask = Box::new(ask(exchange(), &open.key, "1"));
    ask.model = model.to_owned();
    let waits = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
    let job = Job::Hold {
        ask,
        answer,
        _waits: waits,
    };
    (job, answered)
}

/// A settlement of a dollar as the writer gets it, and where its answer comes.
fn settlement(
    open: &Open,
    (hold, place): (Hold, Place),
    model: &str,
) -> (Job, oneshot::Receiver<Result<Closed, StoreError>>) {
    let (answer, answered) = oneshot::channel();
    let mut close = Box::new(closing(hold.exchange, &open.key, "1"));
    close.row.model = model.to_owned();
    let job = Job::Close {
        exchange: hold.exchange,
        close,
        answer,
        _place: place,
    };
    (job, answered)
}

/// What makes every write fail with an error that is neither a full disk nor another writer.
fn refuse_writes(consumer: &Consumer<'_>, value: &str) {
    let sql = format!("PRAGMA query_only = {value}");
    consumer.conn.execute_batch(&sql).expect("set");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_is_only_given_up_for_what_it_is_itself() {
    let open = open("5");
    let (job, mut settled) = settlement(&open, done(open.hold("1").await), "m");
    let mut consumer = consumer(&open);
    refuse_writes(&consumer, "ON");
    consumer.settle(vec![job]).expect("nothing is unknown");
    assert!(settled.try_recv().is_err(), "it waits");
    refuse_writes(&consumer, "OFF");
    let batch = consumer.next_batch().expect("nothing is unknown").expect("it is kept");
    consumer.settle(batch).expect("nothing is unknown");
    assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_gives_up_what_cannot_be_written_and_the_next_start_releases_it() {
    let open = open("5");
    let (job, mut settled) = settlement(&open, done(open.hold("1").await), "m");
    let mut consumer = consumer(&open);
    refuse_writes(&consumer, "ON");
    consumer.stopping.store(true, Ordering::Relaxed);
    consumer.settle(vec![job]).expect("nothing is unknown");
    assert!(settled.try_recv().is_err(), "not at once");
    consumer.give_up_at = Some(Instant::now());
    let batch = consumer.next_batch().expect("nothing is unknown").expect("it is kept");
    consumer.settle(batch).expect("nothing is unknown");
    settled.await.expect("answered").expect_err("given up");
    assert!(consumer.backlog.is_empty());
    drop(consumer);
    assert_eq!(open.desk.now(&open.user).held, usd("1"));
    assert_eq!(done(open.desk.store.release_interrupted(at(99))).released, 1);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_can_write_again_says_so_without_being_asked_to_write() {
    let open = open("5");
    let mut consumer = consumer(&open);
    refuse_writes(&consumer, "ON");
    let (hold, answered) = asked(&open, "m");
    consumer.settle(vec![hold]).expect("nothing is unknown");
    assert!(matches!(answered.await, Ok(Outcome::NotCommitted(_))));
    consumer.look_for_relief().expect("nothing is unknown");
    assert!(consumer.health.is_troubled(), "still in trouble");
    refuse_writes(&consumer, "OFF");
    let (queue, jobs) = mpsc::channel();
    consumer.jobs = jobs;
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(LOOK * 2);
            drop(queue);
        });
        assert!(consumer.wait().expect("nothing is unknown").is_none());
    });
    assert!(!consumer.health.is_troubled(), "it can write again");
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_no_relief_though_a_transaction_begins() {
    let open = open("5");
    let mut consumer = consumer(&open);
    consumer.health.failed("database or disk is full");
    let full = "CREATE TEMP TRIGGER full BEFORE UPDATE ON commits BEGIN SELECT RAISE(ABORT, 'no page'); END";
    consumer.conn.execute_batch(full).expect("made");
    consumer.look_for_relief().expect("nothing is unknown");
    assert!(consumer.health.is_troubled(), "no page can be written");
    consumer.conn.execute_batch("DROP TRIGGER full").expect("dropped");
    consumer.look_for_relief().expect("nothing is unknown");
    assert!(!consumer.health.is_troubled());
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_that_came_while_a_write_was_failing_are_refused_without_another_try() {
    let open = open("5");
    let (queue, jobs) = mpsc::channel();
    let mut consumer = consumer(&open);
    consumer.jobs = jobs;
    let (hold, answered) = asked(&open, "m");
    queue.send(hold).expect("queued");
    drop(queue);
    consumer.health.failed("database is locked");
    consumer.work().expect("nothing is unknown");
    let told = answered.await.expect("answered");
    assert!(matches!(told, Outcome::NotCommitted(_)), "{told:?}");
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_last_write_failed_calls_are_refused_at_once_until_one_would_not() {
    let open = open("5");
    open.writer.handle.health.failed("database is locked");
    let refused = open.writer.hold(ask(exchange(), &open.key, "1")).await;
    assert!(matches!(refused, Err(Busy::Troubled)), "{refused:?}");
    while open.writer.problem().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let held = done(open.hold("1").await);
    open.settle(held, "1").await;
    open.finish().await;
}

fn consumer(open: &Open) -> Consumer<'_> {
    let (_, jobs) = mpsc::channel();
    Consumer::new(&open.desk.store, jobs, Shared::default()).expect("it opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_by_another_process_is_gone_within_a_second() {
    let open = open("5");
    let hash = new_key(open.user.id, open.key.id.0).hash;
    let cached = || {
        open.desk
            .store
            .key_by_hash(&hash)
            .expect("it reads")
            .expect("it is there")
    };
    assert_eq!(cached().revoked_at, None);
    let command_line = open.desk.again();
    done(command_line.revoke_key(open.key.id, &by(), at(9)));
    let revoked = Instant::now();
    while cached().revoked_at.is_none() {
        assert!(revoked.elapsed() < Duration::from_secs(1), "still valid");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(refused(open.hold("1").await), HoldRefused::KeyGone);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_get_the_lock_beside_a_writer_that_never_rests() {
    let open = open("5");
    let (queue, jobs) = mpsc::channel();
    let mut consumer = consumer(&open);
    consumer.jobs = jobs;
    let stop = AtomicBool::new(false);
    let waits = Arc::new(Semaphore::new(MAX_WAITING));
    let command_line = open.desk.again();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut uses = 0..;
            while !stop.load(Ordering::Relaxed) {
                match Arc::clone(&waits).try_acquire_owned() {
                    Ok(waits) => {
                        let used = uses.by_ref().take(20).map(|second| (open.key.id, at(second))).collect();
                        queue.send(Job::Touch { used, _waits: waits }).expect("queued");
                    }
                    Err(_) => thread::yield_now(),
                }
            }
            drop(queue);
        });
        scope.spawn(move || consumer.work().expect("nothing is unknown"));
        let began = Instant::now();
        for i in 0..10 {
            let status = [UserStatus::Suspended, UserStatus::Active][i % 2];
            done(command_line.set_user_status(open.user.id, status, &by(), at(0)));
        }
        stop.store(true, Ordering::Relaxed);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "ten commands took {took:?}");
    });
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_nobody_waits_for_any_more_is_released() {
    let open = open("5");
    let raw = open.desk.raw();
    raw.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
    let asked = tokio::time::timeout(Duration::from_millis(50), open.hold("1")).await;
    assert!(asked.is_err(), "it waits for the lock");
    raw.execute_batch("ROLLBACK").expect("rolled back");
    let next = done(open.hold("1").await);
    open.settle(next, "1").await;
    while open.desk.store.verify().expect("it verifies").open_holds > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn overdue_holds_are_swept_and_a_late_settlement_gets_the_first_answer() {
    let open = open("5");
    let held = done(open.hold("2").await);
    let overdue = open.desk.store.open_holds().expect("read");
    assert_eq!(overdue, [held.0.exchange]);
    open.writer.sweep(overdue, at(5000)).await.expect("swept");
    let closed = open.settle(held, "1").await;
    assert_eq!((closed.charged, closed.balance), (Usd::ZERO, usd("5")));
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_that_cannot_be_swept_keeps_no_other_from_it() {
    let open = open("5");
    let (bad, good) = (done(open.hold("2").await), done(open.hold("1").await));
    let never = format!(
        "CREATE TRIGGER never BEFORE INSERT ON usage_logs WHEN NEW.exchange_id = x'{}'
         BEGIN SELECT RAISE(ABORT, 'never'); END",
        bad.0.exchange.0.simple()
    );
    open.desk.raw().execute_batch(&never).expect("made");
    let overdue = vec![bad.0.exchange, good.0.exchange];
    let swept = open.writer.sweep(overdue, at(5000)).await.expect("swept");
    let stuck = vec![(bad.0.exchange, "never".to_owned())];
    assert_eq!(swept, Swept { released: 1, stuck });
    assert_eq!(open.desk.now(&open.user).held, usd("2"));
    assert_eq!(open.writer.problem(), None, "it is no trouble for others");
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_stops_the_writer_and_everybody_is_told() {
    let open = open("5");
    let (hold, place) = done(open.hold("1").await);
    let ruin = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE' WHERE name = 'holds';
                PRAGMA schema_version = 999;";
    open.desk.raw().execute_batch(ruin).expect("the database is ruined");
    let told = open.hold("1").await;
    assert!(matches!(told, Outcome::Unknown(_)), "{told:?}");
    open.writer.failed().await;
    assert!(open.writer.problem().is_some());
    let next = open.writer.hold(ask(exchange(), &open.key, "1")).await;
    assert!(matches!(next, Err(Busy::Stopped)), "{next:?}");
    let id = hold.exchange;
    open.writer
        .close(hold, place, closing(id, &open.key, "1"))
        .await
        .expect_err("it has stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_commit_is_an_unknown_outcome() {
    let open = open("5");
    let mut consumer = consumer(&open);
    consumer.conn.commit_hook(Some(|| true)).expect("hooked");
    let (hold, answered) = asked(&open, "m");
    let settled = consumer.settle(vec![hold]);
    settled.expect_err("nobody knows what is in the file");
    answered.await.expect_err("not told that nothing was written");
    drop(consumer);
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_beside_the_writer_stops_the_server_as_well() {
    let open = open("5");
    let error = StoreError {
        context: "beside it".to_owned(),
        source: None,
    };
    open.writer.distrust(&error);
    open.writer.distrust(&open.writer.failed().await);
    assert_eq!(open.writer.failure().why().as_deref(), Some("beside it"));
    let refused = open.writer.hold(ask(exchange(), &open.key, "2")).await;
    assert!(matches!(refused, Err(Busy::Stopped)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_log_has_is_moved_into_the_database_before_the_writer_stops() {
    let open = open("5");
    let held = done(open.hold("2").await);
    let late = done(open.hold("1").await);
    open.settle(held, "2").await;
    std::fs::remove_file(connection::beside(&open.desk.path(), "-wal")).expect("removed");
    let (id, close) = (late.0.exchange, closing(late.0.exchange, &open.key, "1"));
    let told = open.writer.close(late.0, late.1, close).await;
    assert!(told.is_err(), "{id} is not known to be durable: {told:?}");
    open.writer.failed().await;
    let copy = open.desk.path().with_file_name("copy.db");
    std::fs::copy(open.desk.path(), &copy).expect("copied");
    let alone = Store::open(&copy, Create::Never).expect("it opens without a log");
    let user = alone.find_user("ada").expect("read").expect("there");
    assert!(user.balance <= usd("3"), "what was acknowledged is there: {user:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_under_way_does_not_keep_a_removed_log_from_being_moved() {
    let desk = Desk::new();
    let (_, jobs) = mpsc::channel();
    let mut consumer = Consumer::new(&desk.store, jobs, Shared::default()).expect("it opens");
    let (path, reader, other) = (desk.path(), desk.raw(), desk.raw());
    reader.execute_batch("BEGIN; SELECT * FROM users").expect("it reads");
    desk.user("ada", "3");
    // It waits for the reader, until it is asked to stop.
    consumer.checkpoints = Checkpoints::on(move |woken| {
        let mark = MarkFile::open(&path).expect("opened");
        let waiting = thread::spawn(move || while checkpoint(&other, &mark, "RESTART").log < 0 {});
        woken.recv().expect_err("nothing is sent");
        reader.execute_batch("COMMIT").expect("it stops to read");
        waiting.join().expect("no panic");
    });
    while checkpoint(&consumer.conn, &consumer.mark, "PASSIVE").log >= 0 {
        thread::yield_now();
    }
    std::fs::remove_file(connection::beside(&desk.path(), "-wal")).expect("removed");
    consumer.look_at_files().expect_err("the log is gone");
    let copy = desk.path().with_file_name("copy.db");
    std::fs::copy(desk.path(), &copy).expect("copied");
    let alone = Store::open(&copy, Create::Never).expect("it opens without a log");
    assert!(alone.find_user("ada").expect("read").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_of_keys_are_noted() {
    let open = open("5");
    open.writer
        .touch_keys(vec![(open.key.id, at(60)), (open.key.id, at(30))]);
    let held = done(open.hold("1").await);
    open.settle(held, "0").await;
    let keys = open.desk.store.keys(Some(open.user.id)).expect("read");
    assert_eq!(keys[0].last_used_at, Some(at(60)));
    open.finish().await;
}

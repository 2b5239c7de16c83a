//! What others do to a running gateway, its files and its clock: another process that locks, removes or replaces the
//! files, a clock that jumps, a process that is stopped for a while.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use codex_gateway::simulator::Gate;
use codex_gateway::time;
use reqwest::Method;
use rusqlite::{Connection, OpenFlags};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::accounts::Accounts;
use crate::client::response;
use crate::dice::Dice;
use crate::load::{Load, MARK, Seen, six_people};
use crate::rig::{Machine, PATIENCE, Serving};
use crate::shim::{Files, Shim};
use crate::wait::{SETTLED, gated, readiness, refused, until, until_ready_says, whole};

/// How soon the gateway finds that its files are not what they were, and that a disk or a lock is free.
const SOON: Duration = Duration::from_secs(5);

async fn machine() -> Machine {
    Machine::new(&Dice::new(1), "").await.with(six_people)
}

/// A machine whose upstream's answers wait at a gate.
async fn gated_machine(gate: &Gate) -> Machine {
    let folder = TempDir::new().expect("a folder");
    Machine::in_folder(folder, gated(gate), "").await.with(six_people)
}

fn file(machine: &Machine, suffix: &str) -> PathBuf {
    let mut path = OsString::from(machine.database());
    path.push(suffix);
    PathBuf::from(path)
}

/// Another program that has the database open.
#[expect(clippy::disallowed_methods, reason = "it is not the gateway")]
fn stranger(machine: &Machine) -> Connection {
    Connection::open_with_flags(machine.database(), OpenFlags::SQLITE_OPEN_READ_WRITE).expect("it opens")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_passes_within_a_second_is_waited_for() {
    let machine = machine().await;
    let serving = machine.serve().await;
    let load = Load::start(&machine, &serving);
    until(&load, whole, 10).await;
    let other = stranger(&machine);
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock is free soon");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(readiness(&serving).await.0, 200);
    other.execute_batch("ROLLBACK").expect("given back");
    until(&load, whole, whole(&load) + 30).await;
    assert_eq!(refused(&load), 0);
    let seen = load.stop().await;
    serving.stop().await;
    Accounts::compared(&machine, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_another_process_locks_the_database_calls_are_refused_and_running_ones_end_when_it_is_free() {
    let gate = Gate::closed();
    let machine = gated_machine(&gate).await;
    let serving = machine.serve().await;
    let load = Load::start(&machine, &serving);
    machine.simulator.arrived(30).await;
    let other = stranger(&machine);
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");

    // Their answers go on, but have no end as long as it is not charged.
    gate.let_through(10);
    let locked = Instant::now();
    until_ready_says(&serving, 503, "the books cannot be written: database is locked").await;
    let asked = Instant::now();
    let answer = timeout(PATIENCE, ask(&machine, &serving, "late"))
        .await
        .expect("it is answered");
    assert_eq!(answer.0, 503, "{}", answer.1);
    assert!(answer.1.contains("storage_unavailable"), "{}", answer.1);
    assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    sleep(Duration::from_secs(10).saturating_sub(locked.elapsed())).await;
    assert_eq!(whole(&load), 0, "no end without a charge");

    other.execute_batch("ROLLBACK").expect("given back");
    let free = Instant::now();
    serving.until_it_says(SETTLED, 10).await;
    until_ready_says(&serving, 200, "ready").await;
    assert!(free.elapsed() < SOON, "{:?}", free.elapsed());
    gate.open();
    let seen = load.stop().await;
    serving.stop().await;
    Accounts::compared(&machine, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_never_given_back_keeps_no_gateway_from_stopping_and_nobody_is_charged() {
    let gate = Gate::closed();
    let machine = gated_machine(&gate).await;
    let mut serving = machine.serve_with(&[("GATEWAY_SERVER__DRAIN_TIMEOUT", "1s")]).await;
    let load = Load::start(&machine, &serving);
    machine.simulator.arrived(30).await;
    let other = stranger(&machine);
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
    gate.open();
    until_ready_says(&serving, 503, "the books cannot be written: database is locked").await;
    serving.signal(Signal::TERM);
    let status = serving.end().await;
    assert!(status.success(), "{status}: {}", serving.said());
    let seen = load.until_it_is_gone().await;
    other.execute_batch("ROLLBACK").expect("given back");
    let open = machine.store().verify().expect("verified").open_holds;
    assert!(open >= 30, "they are left to the next start: {open}");
    machine.serve().await.stop().await;
    let accounts = Accounts::compared(&machine, &seen);
    assert_eq!(accounts.books.charged(), 0, "and nobody had an end");
}

/// A call of its own: status and body.
async fn ask(machine: &Machine, serving: &Serving, mark: &str) -> (u16, String) {
    let client = machine.people[0].client_of(serving);
    let body = response("Hello", &json!({"max_output_tokens": 16}));
    let request = client
        .request(Method::POST, "/v1/responses")
        .header(MARK, mark)
        .json(&body);
    let answer = request.send().await.expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

/// What is done to the files of a running gateway.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Its log is removed.
    RemoveLog,
    /// Its database is moved away.
    MoveDatabase,
    /// And an older copy is put in its place.
    ReplaceDatabase,
}

/// Under load; the gateway ends by itself. What clients saw.
async fn run_into(machine: &Machine, deed: Deed, old: &Files) -> Vec<Seen> {
    let mut serving = machine.serve().await;
    let load = Load::start(machine, &serving);
    until(&load, whole, 20).await;
    let (database, aside) = (machine.database(), machine.folder().join("aside"));
    match deed {
        Deed::RemoveLog => fs::remove_file(file(machine, "-wal")).expect("removed"),
        Deed::MoveDatabase => fs::rename(database, aside).expect("moved"),
        Deed::ReplaceDatabase => {
            old.put(&aside);
            // In one step, as `mv` does it; what was there has its other name still.
            fs::hard_link(&database, machine.folder().join("original")).expect("linked");
            fs::rename(aside, database).expect("moved");
        }
    }
    let done = Instant::now();
    serving.until_it_says("the writer has stopped", 1).await;
    let took = done.elapsed();
    let status = serving.end().await;
    assert_eq!(status.code(), Some(1), "{deed:?} {}", serving.said());
    assert!(
        serving.said().contains("was removed or replaced"),
        "{deed:?} {}",
        serving.said()
    );
    assert!(took < SOON, "{deed:?} took {took:?}");
    println!("{deed:?}: found after {took:?}");
    load.until_it_is_gone().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_log_is_removed_ends_and_no_answer_was_free() {
    let machine = machine().await;
    let seen = run_into(&machine, Deed::RemoveLog, &Files::default()).await;
    // Its last act, closing the database, moved what it had still open into it.
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_database_is_moved_away_ends_and_does_not_make_another_one() {
    let machine = machine().await;
    let seen = run_into(&machine, Deed::MoveDatabase, &Files::default()).await;
    let refused = machine
        .try_serve(&[])
        .await
        .expect_err("it does not begin anew by itself");
    assert_eq!(refused.status.code(), Some(5), "{}", refused.said);
    assert!(refused.said.contains("books.db.mark"), "{}", refused.said);
    fs::rename(machine.folder().join("aside"), machine.database()).expect("moved back");
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_database_is_replaced_ends_and_everything_is_in_the_one_it_had() {
    let machine = machine().await;
    let old = Files::of(&machine.database());
    let mut seen = served_and_stopped(&machine).await;
    seen.extend(run_into(&machine, Deed::ReplaceDatabase, &old).await);
    let refused = machine
        .try_serve(&[])
        .await
        .expect_err("the old copy lacks what was there");
    assert!(refused.said.contains("--accept-loss"), "{}", refused.said);
    fs::rename(machine.folder().join("original"), machine.database()).expect("moved back");
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}

/// Starts on what is there: refused, with what to do; told to go on, it does, and from then on without being told.
async fn is_refused_until_told(machine: &Machine) {
    for _ in 0..2 {
        let refused = machine.try_serve(&[]).await.expect_err("something is missing");
        assert_eq!(refused.status.code(), Some(1), "{}", refused.said);
        for what in ["serve --accept-loss", "its last transaction is number"] {
            assert!(refused.said.contains(what), "{}", refused.said);
        }
    }
    let told = machine
        .try_start("serve --accept-loss", &[])
        .await
        .expect("it was told to");
    let load = Load::start(machine, &told);
    until(&load, whole, 5).await;
    load.stop().await;
    told.stop().await;
    machine.serve().await.stop().await;
    let verified = machine.store().verify().expect("the books can be verified");
    assert_eq!(verified.findings, []);
}

/// A gateway under load until it is killed: then its log has what its database has not.
async fn killed_under_load(machine: &Machine) -> Vec<Seen> {
    let mut serving = machine.serve().await;
    let load = Load::start(machine, &serving);
    until(&load, whole, 20).await;
    serving.kill().await;
    load.until_it_is_gone().await
}

/// A gateway under load until it is asked to stop: then its database has everything.
async fn served_and_stopped(machine: &Machine) -> Vec<Seen> {
    let serving = machine.serve().await;
    let load = Load::start(machine, &serving);
    until(&load, whole, 20).await;
    let seen = load.stop().await;
    serving.stop().await;
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_lost_its_log_does_not_start_unless_told_to() {
    let machine = machine().await;
    killed_under_load(&machine).await;
    fs::remove_file(file(&machine, "-wal")).expect("removed");
    is_refused_until_told(&machine).await;
}

/// SQLite would take a log for that of any database beside it, and make one out of the pages of both.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_beside_a_newer_log_is_told_and_nothing_is_made_of_the_two() {
    let machine = machine().await;
    let mut seen = killed_under_load(&machine).await;
    machine.serve().await.stop().await;
    let old = fs::read(machine.database()).expect("read");
    // A stop moves what the log has into the database; what comes after it is in a new log.
    seen.extend(served_and_stopped(&machine).await);
    seen.extend(killed_under_load(&machine).await);
    let newest = Files::of(&machine.database());
    fs::write(machine.database(), &old).expect("written");
    let log = || [".mark", "-wal"].map(|name| fs::read(file(&machine, name)).expect("it is there"));
    let before = log();
    for line in ["serve", "serve --accept-loss", "user list"] {
        let told = timeout(PATIENCE, machine.program(line).output()).await;
        let told = told.expect("it is refused").expect("it runs");
        let said = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(1), "{line} {said}");
        assert!(
            said.contains("books.db-wal") && said.contains("--accept-loss"),
            "{said}"
        );
    }
    assert_eq!(log(), before, "as it was");
    newest.put(&machine.database());
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_on_an_old_copy_does_not_start_unless_told_to() {
    let machine = machine().await;
    let old = Files::of(&machine.database());
    killed_under_load(&machine).await;
    // The copy of a backup has no mark: the one that is there stays.
    let mark = fs::read(file(&machine, ".mark")).expect("a mark");
    old.put(&machine.database());
    fs::write(file(&machine, ".mark"), mark).expect("written");
    is_refused_until_told(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_jumps_and_runs_backwards_moves_no_money() {
    let machine = machine().await;
    let shim = match Shim::new(&machine.database(), machine.folder()) {
        Ok(shim) => shim,
        Err(why) => return println!("skipped: {why}"),
    };
    let serving = machine.serve_with(&shim.env()).await;
    let load = Load::start(&machine, &serving);
    let now = i64::try_from(time::now().as_nanosecond()).expect("this century");
    // An hour ahead, an hour behind, ten seconds back in every second, and right again.
    for (ahead, drift) in [(0, 0), (3600, 0), (-3600, 0), (0, -11), (0, 0)] {
        shim.set_clock(ahead, drift, now);
        until(&load, whole, whole(&load) + 30).await;
    }
    assert_eq!(refused(&load), 0);
    let seen = load.stop().await;
    serving.stop().await;
    let accounts = Accounts::compared(&machine, &seen);
    let took = accounts.books.exchanges.iter().map(|row| row.duration);
    assert!(
        took.max() < Some(Duration::from_secs(60)),
        "durations are not measured by the wall clock"
    );
}

/// Timeouts that are all shorter than the pause.
const TIMEOUTS: &str = "first_byte_timeout = \"1s\"\nidle_timeout = \"1s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_stopped_for_longer_than_its_timeouts_goes_on_and_charges_nothing_twice() {
    let machine = machine().await;
    let settings = machine.folder().join("gateway.toml");
    let text = fs::read_to_string(&settings).expect("text");
    fs::write(&settings, text.replace("prices =", &format!("{TIMEOUTS}prices ="))).expect("written");
    let serving = machine.serve_with(&[("GATEWAY_SERVER__HEADER_TIMEOUT", "1s")]).await;
    let load = Load::start(&machine, &serving);
    for _ in 0..2 {
        until(&load, whole, whole(&load) + 20).await;
        serving.signal(Signal::STOP);
        sleep(Duration::from_secs(3)).await;
        serving.signal(Signal::CONT);
    }
    until(&load, whole, whole(&load) + 20).await;
    assert_eq!(readiness(&serving).await.0, 200);
    let seen = load.stop().await;
    serving.stop().await;
    Accounts::compared(&machine, &seen);
}

//! Every point of the code × {abort, error, panic, delay}: the gateway dies, goes on, or stops by itself, and in each
//! case the three books are right.
//!
//! An exchange's point is met under load. In one process it first aborts; in the next it is an error, then waits, then
//! panics, in this order: a panic that was heard says that the others have been. A panic in a settlement's transaction
//! leaves its outcome unknown: there the gateway has to stop by itself, and nowhere else. `GATEWAY_POINTS` says how often
//! each is done, with one seed after another.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use codex_gateway::fail_point::Point;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::store::{Create, Store};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::accounts::Accounts;
use crate::books::Books;
use crate::campaign;
use crate::client::{Client, MODEL, chat, response};
use crate::dice::Dice;
use crate::load::{Fate, Load, MARK, Seen, six_people};
use crate::price::{catalogue, expected_charge};
use crate::rig::{Machine, NotServing, PATIENCE, Serving};

/// How long a delay takes, in milliseconds: many times what an exchange does.
const DELAY: u64 = 400;

/// Answers to calls that have a name are recorded.
const RECORDS: &str = "[billing]\nrecord_answers = true";

/// The seeds of this run.
fn seeds() -> impl Iterator<Item = u64> {
    let first = Dice::seed();
    let times = u64::try_from(campaign::size("GATEWAY_POINTS", 1)).expect("64 bits");
    (0..times).map(move |time| first.wrapping_add(time))
}

/// A machine that serves, with all that was seen of it.
struct Cell {
    point: Point,
    seed: u64,
    dice: Dice,
    machine: Machine,
    seen: Vec<Seen>,
}

impl Cell {
    async fn new(point: Point, seed: u64) -> Cell {
        let machine = Machine::new(&Dice::new(seed), RECORDS).await.with(six_people);
        Cell::of(point, seed, machine)
    }

    /// Its upstream answers at once.
    async fn at_full_speed(point: Point, seed: u64) -> Cell {
        let folder = TempDir::new().expect("a folder");
        let machine = Machine::in_folder(folder, standard(Pace::default()), RECORDS)
            .await
            .with(six_people);
        Cell::of(point, seed, machine)
    }

    fn of(point: Point, seed: u64, machine: Machine) -> Cell {
        println!("GATEWAY_SEED={seed} {point:?}");
        Cell {
            point,
            seed,
            dice: Dice::new(seed),
            machine,
            seen: Vec::new(),
        }
    }

    /// The line of a campaign: what the point did, and how many calls met it.
    fn tell(&self, did: &[&str]) {
        let line = json!({
            "suite": "points", "seed": self.seed, "point": self.point.name(), "did": did, "calls": self.seen.len(),
            "received_whole": self.seen.iter().filter(|seen| seen.fate == Fate::Whole).count(), "failures": 0,
        });
        println!("campaign: {line}");
    }

    /// A gateway that does this at the point.
    async fn serve(&self, actions: &str) -> Serving {
        let points = format!("{}={actions}", self.point.name());
        self.machine.serve_with(&[("FAILPOINTS", &points)]).await
    }

    /// Starts the gateway without points, and compares the books.
    async fn recover(&self) -> Accounts {
        let serving = self.machine.serve().await;
        let accounts = Accounts::compared(&self.machine, &self.seen);
        serving.stop().await;
        accounts
    }

    /// The process aborts in the middle of its work, at any passage of the point.
    async fn aborts(&mut self) {
        let before = self.dice.between(1, 40);
        let mut serving = self.serve(&format!("{before}*off->return(abort)")).await;
        let load = Load::start(&self.machine, &serving);
        let status = serving.end().await;
        assert_eq!(
            status.signal(),
            Some(Signal::ABORT.as_raw()),
            "{:?}: {}",
            self.point,
            serving.said()
        );
        self.seen.extend(load.until_it_is_gone().await);
        self.recover().await;
    }

    /// A gateway that has done this under load, and panicked so often in the end, serves on.
    async fn serves_on_after(&mut self, actions: &str, panics: usize) {
        let serving = self.serve(actions).await;
        let load = Load::start(&self.machine, &serving);
        serving.until_it_says(&self.panic(), panics).await;
        self.seen.extend(load.stop().await);
        let fresh = Load::one(&self.machine, &serving).await;
        assert_eq!(
            fresh.fate,
            Fate::Whole,
            "{:?} has passed: {fresh:?} {}",
            self.point,
            serving.said()
        );
        self.seen.push(fresh);
        serving.stop().await;
        self.recover().await;
    }

    /// How a gateway ends that does this and is told to stop under load. What it had to tell is told before.
    async fn stops_under_load(&mut self, actions: &str) -> ExitStatus {
        let mut serving = self.serve(actions).await;
        let (load, arrived) = (
            Load::start(&self.machine, &serving),
            self.machine.simulator.served().len(),
        );
        self.machine.simulator.arrived(arrived + 40).await;
        serving.signal(Signal::TERM);
        self.seen.extend(load.until_it_is_gone().await);
        let status = serving.end().await;
        self.recover().await;
        status
    }

    /// An error does not keep a settlement's neighbours from theirs; a panic stops the gateway, which says so.
    async fn fails_and_stops(&mut self) {
        let mut serving = self
            .serve(&format!("9*off->3*return(error)->1*sleep({DELAY})->4*off->1*panic"))
            .await;
        let load = Load::start(&self.machine, &serving);
        let gone = until_it_is_gone(&serving, self.machine.people[0].client_of(&serving));
        let ready = timeout(PATIENCE, gone).await.expect("it stops");
        let status = serving.end().await;
        self.seen.extend(load.until_it_is_gone().await);
        let said = serving.said();
        assert_eq!(status.code(), Some(1), "{status}: {said}");
        for words in [
            &self.panic(),
            "the writer has stopped",
            "error: the server stopped, because",
        ] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let (red, first) = (
            ready.last().expect("it was asked"),
            ready.first().expect("it was asked"),
        );
        assert_eq!((first.0, red.0), (200, 503), "{ready:?}");
        assert!(red.1.starts_with("not ready: ") && red.1.contains("books"), "{red:?}");
        self.recover().await;
    }

    fn panic(&self) -> String {
        format!("failpoint {} panic", self.point.name())
    }

    /// A backup in a process of its own, which does this.
    async fn backs_up(&self, actions: &str) -> ExitStatus {
        let mut program = self.machine.program("backup --force copy.db");
        program.env("FAILPOINTS", format!("{}={actions}", self.point.name()));
        program.output().await.expect("it runs").status
    }

    /// Kills a gateway under load, which leaves holds open.
    async fn leave_holds(&mut self) {
        let mut serving = self.machine.serve().await;
        let load = Load::start(&self.machine, &serving);
        self.machine.simulator.arrived(40).await;
        serving.kill().await;
        self.seen.extend(load.until_it_is_gone().await);
        assert!(self.machine.store().verify().expect("verified").open_holds > 0);
    }

    /// A start that the point does not let succeed, by `actions`.
    async fn does_not_start(&self, actions: &str) -> NotServing {
        let points = format!("{}={actions}", self.point.name());
        let started = self.machine.try_serve(&[("FAILPOINTS", &points)]).await;
        started.err().unwrap_or_else(|| panic!("{points}: it starts"))
    }

    /// A start that dies, fails and panics, and in the end only waits.
    async fn starts_in_the_end(&mut self, untouched: impl Fn(&Machine)) {
        let aborted = self.does_not_start("return(abort)").await;
        assert_eq!(aborted.status.signal(), Some(Signal::ABORT.as_raw()), "{aborted:?}");
        untouched(&self.machine);
        let failed = self.does_not_start("return(error)").await;
        assert!(failed.status.code().is_some_and(|code| code > 0), "{failed:?}");
        assert!(
            failed
                .said
                .contains(&format!("made to fail at '{}'", self.point.name())),
            "{failed:?}"
        );
        untouched(&self.machine);
        let panicked = self.does_not_start("panic").await;
        assert!(panicked.status.code().is_some_and(|code| code > 0), "{panicked:?}");
        assert!(panicked.said.contains(&self.panic()), "{panicked:?}");
        untouched(&self.machine);

        let before = Instant::now();
        let serving = self.serve(&format!("1*sleep({DELAY})")).await;
        assert!(before.elapsed() >= Duration::from_millis(DELAY));
        Accounts::compared(&self.machine, &self.seen);
        serving.stop().await;
    }
}

/// What `/readyz` says until nobody says anything.
async fn until_it_is_gone(serving: &Serving, client: Client) -> Vec<(u16, String)> {
    let ask = || client.http.get(format!("{}/readyz", serving.url)).send();
    let mut answers = Vec::new();
    while let Ok(answer) = ask().await {
        let status = answer.status().as_u16();
        if let Ok(text) = answer.text().await {
            answers.push((status, text));
        }
    }
    answers
}

/// What an administrator would do to the file with another program.
#[expect(clippy::disallowed_methods, reason = "what the store would not do")]
fn raw(machine: &Machine) -> Connection {
    Connection::open(machine.database()).expect("the database opens")
}

fn version(machine: &Machine) -> i64 {
    raw(machine)
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .expect("a version")
}

macro_rules! matrix {
    ($($test:ident: $point:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            for seed in seeds() {
                let mut cell = Cell::new(Point::$point, seed).await;
                cell.aborts().await;
                let before = cell.dice.between(1, 20);
                let actions = format!("{before}*off->8*return(error)->4*off->1*sleep({DELAY})->4*off->8*panic");
                cell.serves_on_after(&actions, 8).await;
                cell.tell(&["abort", "error", "delay", "panic"]);
            }
        }
    )*};
}

matrix! {
    it_may_fail_when_the_key_is_known: Authenticated,
    it_may_fail_when_the_money_is_set_aside: Held,
    it_may_fail_when_the_upstream_is_reached: Connected,
    it_may_fail_when_the_call_is_sent: Sent,
    it_may_fail_when_the_head_is_there: Head,
    it_may_fail_at_the_first_piece_of_a_stream: FirstPiece,
    it_may_fail_in_the_middle_of_a_stream: MidStream,
    it_may_fail_before_a_settlement: BeforeSettlement,
    it_may_fail_between_a_settlement_and_the_end: Settled,
    it_may_fail_between_a_settlement_and_its_recording: Recording,
    it_may_fail_after_the_end: AfterEnd,
}

/// A call under a name, as often as the gateway lives through it: what came, and its body.
async fn named(cell: &Cell, serving: &Serving, (name, streamed): (&str, bool)) -> Option<(u16, Vec<u8>)> {
    let client = cell.machine.people[0].client_of(serving);
    let request = client
        .request(reqwest::Method::POST, "/v1/chat/completions")
        .header("idempotency-key", name);
    let request = request.header(MARK, name).header("content-type", "application/json");
    let body = chat("Hello", &json!({"stream": streamed, "max_completion_tokens": 40})).to_string();
    let answer = request.body(body).send().await.ok()?;
    let status = answer.status().as_u16();
    Some((status, answer.bytes().await.ok()?.to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_recording_was_lost_is_told_as_done_and_charged_once() {
    let cell = Cell::at_full_speed(Point::Recording, Dice::seed()).await;
    let calls = [("whole", false), ("streamed", true)];
    for call in calls {
        let mut serving = cell.serve("return(kill)").await;
        let cut = named(&cell, &serving, call).await;
        assert_eq!(cut, None, "it has no end");
        let status = serving.end().await;
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
    }
    let serving = cell.serve("2*return(error)->1*off").await;
    for call in [("whole too", false), ("streamed too", true)] {
        let first = named(&cell, &serving, call).await.expect("it is answered");
        assert_eq!(first.0, 200, "its end does not wait for what fails");
    }
    let recorded = named(&cell, &serving, ("recorded", true))
        .await
        .expect("it is answered");
    serving.stop().await;

    let serving = cell.machine.serve().await;
    for call in calls.into_iter().chain([("whole too", false), ("streamed too", true)]) {
        for _ in 0..2 {
            let (status, body) = named(&cell, &serving, call).await.expect("it is answered");
            let error: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(
                (status, &error["error"]["code"]),
                (409, &json!("already_done")),
                "{call:?}"
            );
        }
    }
    assert_eq!(named(&cell, &serving, ("recorded", true)).await, Some(recorded));
    serving.stop().await;
    let books = cell.recover().await.books;
    assert_eq!(books.exchanges.len(), 5);
    assert!(
        books.exchanges.iter().all(|row| row.charge.nanos() > 0),
        "each is charged"
    );
}

/// A create in the background, as far as it is answered: the status.
async fn in_background(cell: &Cell, serving: &Serving) -> Option<u16> {
    let client = cell.machine.people[0].client_of(serving);
    let body = response("Hello sim:polls-1", &json!({"background": true}));
    let answer = client.try_send("/v1/responses", &body).await.ok()?;
    let status = answer.status().as_u16();
    answer.bytes().await.ok()?;
    Some(status)
}

/// Waits until nothing runs in the background.
async fn until_nothing_runs(machine: &Machine) {
    let store = machine.store();
    let waits = async {
        while store.background_responses_in_all().expect("read") > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, waits).await.expect("it is settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_response_is_charged_once_whatever_its_begin_and_its_end_run_into() {
    let delay = format!("1*sleep({DELAY})");
    for (point, actions, status) in [
        (Point::Begun, "return(kill)", None),
        (Point::Begun, "return(error)", Some(500)),
        (Point::Begun, "panic", Some(500)),
        (Point::Begun, &delay, Some(200)),
        (Point::Over, "return(kill)", Some(200)),
        (Point::Over, "2*return(error)", Some(200)),
        (Point::Over, "2*panic", Some(200)),
        (Point::Over, &delay, Some(200)),
    ] {
        let cell = Cell::at_full_speed(point, Dice::seed()).await;
        let mut serving = cell.serve(actions).await;
        assert_eq!(in_background(&cell, &serving).await, status, "{point:?} {actions}");
        if actions == "return(kill)" {
            let ended = serving.end().await;
            assert_eq!(ended.signal(), Some(Signal::KILL.as_raw()), "{ended}");
            serving = cell.machine.serve().await;
        }
        until_nothing_runs(&cell.machine).await;
        serving.stop().await;
        let books = Books::checked(&cell.machine.database());
        let served = cell.machine.simulator.served();
        let usage = served[0].usage.as_ref().expect("a usage");
        // Who is told of a failure is told that it costs nothing.
        let expected = match status {
            Some(500) => 0,
            _ => expected_charge(usage, &catalogue("openai", MODEL), "1"),
        };
        let row = books.only();
        assert_eq!(i128::from(row.charge.nanos()), expected, "{point:?} {actions}: {row:?}");
        cell.tell(&[actions]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_panics_in_a_settlement_stops_the_gateway_which_says_so() {
    for seed in seeds() {
        let mut cell = Cell::new(Point::InSettlement, seed).await;
        cell.aborts().await;
        cell.fails_and_stops().await;
        cell.tell(&["abort", "error", "delay", "panic"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_fail_when_it_finds_the_holds_of_a_dead_process() {
    for seed in seeds() {
        let mut cell = Cell::new(Point::Sweep, seed).await;
        cell.leave_holds().await;
        cell.starts_in_the_end(|machine| {
            let verified = machine.store().verify().expect("verified");
            assert_eq!(verified.findings, []);
            assert!(verified.open_holds > 0, "all or none");
        })
        .await;
        cell.tell(&["abort", "error", "delay", "panic"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_fail_in_a_migration() {
    for seed in seeds() {
        let mut cell = Cell::new(Point::Migration, seed).await;
        cell.leave_holds().await;
        let earlier = include_str!("../data/downgrade-to-1.sql");
        raw(&cell.machine)
            .execute_batch(earlier)
            .expect("as it was before commits were counted");
        std::fs::remove_file(cell.machine.folder().join("books.db.mark")).expect("it was there");
        cell.starts_in_the_end(|machine| assert_eq!(version(machine), 1)).await;
        assert!(version(&cell.machine) > 1);
        cell.tell(&["abort", "error", "delay", "panic"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_fail_in_the_checkpoint_of_a_stop() {
    for seed in seeds() {
        let mut cell = Cell::new(Point::Checkpoint, seed).await;
        let aborted = cell.stops_under_load("return(abort)").await;
        assert_eq!(aborted.signal(), Some(Signal::ABORT.as_raw()), "{aborted}");
        for actions in ["return(error)", &format!("sleep({DELAY})")] {
            let ended = cell.stops_under_load(actions).await;
            assert!(ended.success(), "{actions}: {ended}");
        }
        let panicked = cell.stops_under_load("panic").await;
        assert_eq!(panicked.code(), Some(1), "{panicked}");
        let charged = cell
            .recover()
            .await
            .books
            .exchanges
            .iter()
            .filter(|row| row.charge.nanos() > 0)
            .count();
        let whole = cell.seen.iter().filter(|seen| seen.fate == Fate::Whole).count();
        let left = cell.seen.iter().filter(|seen| seen.fate == Fate::HungUp).count();
        assert_eq!(charged, whole + left, "a stop waits for every call and cuts none");
        cell.tell(&["abort", "error", "delay", "panic"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_fail_in_a_checkpoint_under_load() {
    for seed in seeds() {
        let mut cell = Cell::at_full_speed(Point::Checkpoint, seed).await;
        // The second panic is in a checkpoint after the first.
        cell.serves_on_after("1*return(error)->2*panic", 2).await;
        cell.tell(&["error", "panic"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_may_fail_in_a_backup_beside_the_running_server() {
    for seed in seeds() {
        let mut cell = Cell::new(Point::Backup, seed).await;
        let serving = cell.machine.serve().await;
        let load = Load::start(&cell.machine, &serving);
        let copy = cell.machine.folder().join("copy.db");
        assert!(cell.backs_up("off").await.success());
        let first = std::fs::read(&copy).expect("the copy");
        let aborted = cell.backs_up("return(abort)").await;
        assert_eq!(aborted.signal(), Some(Signal::ABORT.as_raw()), "{aborted}");
        for actions in ["return(error)", "panic"] {
            let failed = cell.backs_up(actions).await;
            assert!(failed.code().is_some_and(|code| code > 0), "{actions}: {failed}");
        }
        assert!(std::fs::read(&copy).expect("the copy") == first, "it is as it was");
        assert!(cell.backs_up(&format!("sleep({DELAY})")).await.success());
        assert!(std::fs::read(&copy).expect("the copy") != first, "it is a new one");

        let verified = Store::open(&copy, Create::Never)
            .expect("it opens")
            .verify()
            .expect("verified");
        assert_eq!(verified.findings, []);
        let left = std::fs::read_dir(cell.machine.folder())
            .expect("a folder")
            .map(|file| file.expect("a file").file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("partial")).collect();
        assert!(left.is_empty(), "what the others left is gone: {left:?}");
        cell.seen.extend(load.stop().await);
        serving.stop().await;
        cell.recover().await;
        cell.tell(&["abort", "error", "delay", "panic"]);
    }
}

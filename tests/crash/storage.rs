//! A disk that fails: whichever write or sync fails, the gateway stops or goes on, and its books are right.

use std::time::{Duration, Instant};

use codex_gateway::simulator::Gate;
use reqwest::Method;
use rustix::io::Errno;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::campaign;
use crate::client::response;
use crate::dice::Dice;
use crate::load::{Fate, Load, MARK, Seen, six_people};
use crate::rig::{Machine, PATIENCE, Serving};
use crate::shim::{Files, Lasting, Of, Operation, Shim, Spared};
use crate::wait::gated;

/// Faults of one machine, before another takes its place: the three books are read whole after each.
const FAULTS_OF_ONE: usize = 10;

/// Faults of `cargo test`; `GATEWAY_IO_ERRORS` says another number.
const FAULTS: usize = 20;

/// So many of a gateway's first writes and syncs may fail.
const WRITES: i64 = 200;
const SYNCS: i64 = 50;

/// How soon the gateway is to be gone once it cannot know what is on its disk. Most of it is the start of an unoptimised
/// build, which has a tokenizer to make ready and cannot be interrupted in it.
const SOON: Duration = Duration::from_secs(5);

/// Answers that are charged before a checkpoint: more than a page of the database.
const CALLS: usize = 10;

/// One fault.
#[derive(Clone, Copy, Debug)]
struct Fault {
    operation: Operation,
    nth: i64,
    lasting: Lasting,
}

/// What came of faults.
#[derive(Debug, Default)]
struct Tally {
    faults: usize,
    not_started: usize,
    stopped: usize,
    longest: Duration,
}

/// So many of the faults that there are, in any order; each once before one comes again. The first write and the first
/// sync, at which a gateway does not even start, are always among them.
fn faults(dice: &mut Dice, count: usize) -> Vec<Fault> {
    let each = |operation, last| {
        (1..=last).map(move |nth| Fault {
            operation,
            nth,
            lasting: [Lasting::Once, Lasting::ForEver][usize::from(nth % 2 == 0)],
        })
    };
    let mut all: Vec<Fault> = each(Operation::Write, WRITES)
        .chain(each(Operation::Sync, SYNCS))
        .collect();
    let mut some = Vec::new();
    while some.len() < count {
        dice.shuffle(&mut all);
        all.sort_by_key(|fault| fault.nth > 1);
        some.extend(all.iter().take(count - some.len()));
    }
    some
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_or_sync_of_the_books_fails_they_are_right_after_the_next_start() {
    if let Err(why) = crate::shim::library() {
        return campaign::skip("io-errors", why);
    }
    let seed = Dice::seed();
    println!("GATEWAY_SEED={seed}");
    let (mut dice, mut tally) = (Dice::new(seed), Tally::default());
    let faults = faults(&mut dice, campaign::size("GATEWAY_IO_ERRORS", FAULTS));
    for (number, some) in faults.chunks(FAULTS_OF_ONE).enumerate() {
        let mut desk = Desk::new(dice.of(number as u64)).await;
        for fault in some {
            desk.meet(*fault, &mut tally).await;
        }
    }
    println!(
        "campaign: {{\"suite\":\"io-errors\",\"seed\":{seed},\"faults\":{},\"refused_to_start\":{},\"stopped\":{},\
         \"longest_until_stopped_ms\":{},\"failures\":0}}",
        tally.faults,
        tally.not_started,
        tally.stopped,
        tally.longest.as_millis()
    );
}

/// What a checkpoint writes is in the log, too: when it fails, the log has to be kept. The next one, at the latest the
/// one when the last connection is closed, writes all of it anew: what a failed sync has lost as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_fails_loses_nothing_even_when_the_power_fails_after_the_next_one() {
    if let Err(why) = crate::shim::library() {
        return println!("skipped: {why}");
    }
    let seed = Dice::seed();
    println!("GATEWAY_SEED={seed}");
    let mut desk = Desk::new(Dice::new(seed)).await;
    for lasting in [Lasting::Once, Lasting::ForEver] {
        for (operation, nth) in [(Operation::Write, 1), (Operation::Write, 6), (Operation::Sync, 1)] {
            let fault = Fault {
                operation,
                nth,
                lasting,
            };
            desk.checkpoint_meets(fault).await;
        }
    }
}

/// A failed sync says nothing of what is on the disk. Here all of it is: the charge was made, and its client was told
/// that it may have been.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_charge_is_not_known_is_told_so_and_not_that_there_is_none() {
    let (gate, folder) = (Gate::closed(), TempDir::new().expect("a folder"));
    let machine = Machine::in_folder(folder, gated(&gate), "").await.with(six_people);
    let shim = match Shim::new(&machine.database(), machine.folder()) {
        Ok(shim) => shim,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut serving = machine.serve_with(&shim.env()).await;
    let client = machine.people[0].client_of(&serving);
    let body = response("Hello", &json!({"max_output_tokens": 16}));
    let request = client.request(Method::POST, "/v1/responses").header(MARK, "call");
    let failing = async {
        machine.simulator.arrived(1).await;
        shim.fail(Operation::Sync, 1, Of::DatabaseAndLog, Errno::IO, Lasting::ForEver);
        gate.open();
    };
    let (answer, ()) = tokio::join!(request.json(&body).send(), failing);
    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), 503);
    let told = answer.text().await.expect("text");
    assert!(told.contains("it is not known whether it was charged"), "{told}");
    assert!(!told.contains("othing was charged"), "{told}");
    assert_eq!(serving.end().await.code(), Some(1), "{}", serving.said());
    machine.serve().await.stop().await;
    assert!(Accounts::compared(&machine, &[]).books.charged() > 0);
}

/// A machine whose disk fails again and again.
struct Desk {
    machine: Machine,
    shim: Shim,
    seen: Vec<Seen>,
}

impl Desk {
    async fn new(dice: Dice) -> Desk {
        let machine = Machine::new(&dice, "").await.with(six_people);
        let shim = Shim::new(&machine.database(), machine.folder()).expect("it can be used here");
        Desk {
            machine,
            shim,
            seen: Vec::new(),
        }
    }

    /// Meets a fault, starts again without it, and compares the books. Of every other machine the power fails, too:
    /// what was not synced is lost.
    async fn meet(&mut self, fault: Fault, tally: &mut Tally) {
        let database = self.machine.database();
        let before = Files::of(&database);
        self.shim.begin_notes();
        self.shim
            .fail(fault.operation, fault.nth, Of::DatabaseAndLog, Errno::IO, fault.lasting);
        match self.machine.try_serve(&self.shim.env()).await {
            Err(ended) => {
                assert!(
                    !ended.status.success() && ended.said.contains("error: "),
                    "{fault:?} {ended:?}"
                );
                assert!(self.shim.seen(fault.operation) >= fault.nth, "{fault:?} was never met");
                tally.not_started += 1;
            }
            Ok(serving) => {
                let took = self.until_it_stops(serving, fault).await;
                tally.stopped += 1;
                tally.longest = tally.longest.max(took);
            }
        }
        tally.faults += 1;
        self.shim.heal();
        if tally.faults.is_multiple_of(2) {
            let journal = self.shim.journal();
            journal
                .after_power_cut(&before, journal.len(), Spared::Nothing)
                .put(&database);
        }
        self.machine.serve().await.stop().await;
        Accounts::compared(&self.machine, &self.seen);
    }

    /// Meets a fault in the checkpoint when the gateway stops; then the power fails.
    async fn checkpoint_meets(&mut self, fault: Fault) {
        let Fault {
            operation,
            nth,
            lasting,
        } = fault;
        let database = self.machine.database();
        let before = Files::of(&database);
        self.shim.begin_notes();
        let mut serving = self.machine.serve_with(&self.shim.env()).await;
        let load = Load::start(&self.machine, &serving);
        while load.seen().iter().filter(|seen| seen.fate == Fate::Whole).count() < CALLS {
            sleep(Duration::from_millis(5)).await;
        }
        self.seen.extend(load.stop().await);
        self.shim.fail(operation, nth, Of::Database, Errno::IO, lasting);
        serving.signal(Signal::TERM);
        serving.end().await;
        assert!(self.shim.seen(operation) >= nth, "{fault:?} was never met");
        assert!(
            serving.said().contains("a checkpoint failed"),
            "{fault:?} {}",
            serving.said()
        );
        let journal = self.shim.journal();
        journal
            .after_power_cut(&before, journal.len(), Spared::Nothing)
            .put(&database);
        self.machine.serve().await.stop().await;
        Accounts::compared(&self.machine, &self.seen);
    }

    /// Calls until the fault comes: then the gateway ends by itself, and soon. Says how soon.
    async fn until_it_stops(&mut self, mut serving: Serving, fault: Fault) -> Duration {
        let load = Load::start(&self.machine, &serving);
        let start = Instant::now();
        while self.shim.seen(fault.operation) < fault.nth {
            assert!(start.elapsed() < PATIENCE, "{fault:?} never comes");
            sleep(Duration::from_millis(1)).await;
        }
        let fell = Instant::now();
        let status = serving.end().await;
        let took = fell.elapsed();
        assert_eq!(status.code(), Some(1), "{fault:?} {}", serving.said());
        assert!(
            serving.said().contains("may not be durable"),
            "{fault:?} {}",
            serving.said()
        );
        assert!(took < SOON, "{fault:?} took {took:?}");
        self.seen.extend(load.until_it_is_gone().await);
        took
    }
}

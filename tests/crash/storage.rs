//! A disk that fails: whichever write or sync fails, the gateway stops or goes on, and its books are right.

use std::time::{Duration, Instant};

use rustix::io::Errno;
use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::dice::Dice;
use crate::load::{Load, Seen, six_people};
use crate::rig::{Machine, PATIENCE, Serving};
use crate::shim::{Files, Lasting, Of, Operation, Shim, Spared};

/// Faults of one machine, before another takes its place: the three books are read whole after each.
const FAULTS_OF_ONE: usize = 10;

/// How soon the gateway is to be gone once it cannot know what is on its disk. Most of it is the start of an unoptimised
/// build, which has a tokenizer to make ready and cannot be interrupted in it.
const SOON: Duration = Duration::from_secs(5);

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

/// The first so many, or a spread over them.
fn faults() -> Vec<Fault> {
    let all = std::env::var("GATEWAY_IO_ERRORS").is_ok_and(|which| which == "all");
    let some = |operation, last, spread: &[i64]| {
        let which = if all { (1..=last).collect() } else { spread.to_vec() };
        which.into_iter().map(move |nth| Fault {
            operation,
            nth,
            lasting: [Lasting::Once, Lasting::ForEver][usize::from(nth % 2 == 0)],
        })
    };
    let writes = some(
        Operation::Write,
        200,
        &[1, 2, 3, 5, 8, 13, 22, 35, 56, 91, 128, 147, 200],
    );
    let syncs = some(Operation::Sync, 50, &[1, 2, 3, 5, 14, 27, 50]);
    writes.chain(syncs).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_write_or_sync_of_the_books_fails_they_are_right_after_the_next_start() {
    if crate::shim::library().is_none() {
        return;
    }
    let seed = Dice::seed();
    println!("GATEWAY_SEED={seed}");
    let mut tally = Tally::default();
    for (number, some) in faults().chunks(FAULTS_OF_ONE).enumerate() {
        let mut desk = Desk::new(Dice::new(seed).of(number as u64)).await;
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
        if tally.faults % 2 == 0 {
            let journal = self.shim.journal();
            journal
                .after_power_cut(&before, journal.len(), Spared::Nothing)
                .put(&database);
        }
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

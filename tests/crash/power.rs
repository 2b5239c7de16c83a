//! Power cuts: when a disk keeps no more than it was told to keep, nothing that anybody was told is lost.

use std::time::Duration;

use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::campaign;
use crate::dice::Dice;
use crate::load::{Fate, Load, Seen, six_people};
use crate::rig::Machine;
use crate::shim::{Files, Journal, Shim, Spared};

/// Cuts of one machine, before another takes its place: the three books are read whole after each.
const CUTS_OF_ONE: u64 = 20;

/// What is credited each time.
const CREDIT: &str = "1";

/// What was seen, in all.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    torn: u64,
    notes: usize,
    taken: u64,
    whole: usize,
    credits: usize,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_acknowledged_is_lost_when_the_power_fails() {
    if let Err(why) = crate::shim::library() {
        return campaign::skip("power-cuts", why);
    }
    let seed = Dice::seed();
    println!("GATEWAY_SEED={seed}");
    let cuts: u64 = std::env::var("GATEWAY_CUTS").map_or(10, |cuts| cuts.parse().expect("GATEWAY_CUTS is a number"));
    let mut tally = Tally::default();
    while tally.cuts < cuts {
        let dice = Dice::new(seed).of(tally.cuts);
        let mut house = House::new(dice).await;
        for _ in tally.cuts..cuts.min(tally.cuts + CUTS_OF_ONE) {
            house.cut(&mut tally).await;
        }
    }
    println!(
        "campaign: {{\"suite\":\"power-cuts\",\"seed\":{seed},\"cuts\":{},\"torn\":{},\"writes_noted\":{},\
         \"cuts_that_took_something\":{},\"answers_received\":{},\"credits_acknowledged\":{},\"failures\":0}}",
        tally.cuts, tally.torn, tally.notes, tally.taken, tally.whole, tally.credits
    );
}

/// A machine whose power fails again and again.
struct House {
    machine: Machine,
    shim: Shim,
    dice: Dice,
    /// What clients saw, and the references of credits that an operator was told are made.
    seen: Vec<Seen>,
    credited: Vec<String>,
}

impl House {
    async fn new(dice: Dice) -> House {
        let machine = Machine::new(&dice, "").await.with(six_people);
        let shim = Shim::new(&machine.database(), machine.folder()).expect("it can be used here");
        House {
            machine,
            shim,
            dice,
            seen: Vec::new(),
            credited: Vec::new(),
        }
    }

    /// Calls and credits until the power fails, and what is there when it comes back.
    async fn cut(&mut self, tally: &mut Tally) {
        let database = self.machine.database();
        let before = Files::of(&database);
        let credited = self.credited.len();
        let seen = self.live().await;
        tally.whole += seen.iter().filter(|seen| seen.fate == Fate::Whole).count();
        tally.credits += self.credited.len() - credited;
        self.seen.extend(seen);

        let journal = self.shim.journal();
        let torn = tally.cuts % 2 == 1;
        let mut throw = || self.dice.between(0, 2);
        let spared = if torn {
            Spared::Some(&mut throw)
        } else {
            Spared::Nothing
        };
        let image = journal.after_power_cut(&before, journal.len(), spared);
        tally.cuts += 1;
        tally.torn += u64::from(torn);
        tally.notes += journal.len();
        tally.taken += u64::from(image != Files::of(&database));
        image.put(&database);
        self.machine.serve().await.stop().await;
        self.nothing_is_lost();

        self.an_earlier_cut_leaves_books_that_balance(&before, &journal);
        // From what the cut left, the next time: then it fails in or after a recovery.
        image.put(&database);
    }

    /// Calls and credits beside them until the power fails: everybody dies.
    async fn live(&mut self) -> Vec<Seen> {
        self.shim.begin_notes();
        let mut serving = self.machine.serve_with(&self.shim.env()).await;
        let load = Load::start(&self.machine, &serving);
        let moment = Duration::from_millis(self.dice.between(50, 900));
        tokio::select! {
            () = self.credit() => {}
            () = sleep(moment) => {}
        }
        serving.kill().await;
        load.until_it_is_gone().await
    }

    /// What was acknowledged by then nobody knows any more; but the laws hold.
    fn an_earlier_cut_leaves_books_that_balance(&mut self, before: &Files, journal: &Journal) {
        let database = self.machine.database();
        let earlier = usize::try_from(self.dice.between(0, journal.len() as u64)).expect("a few thousand");
        let mut throw = || self.dice.between(0, 2);
        let image = journal.after_power_cut(before, earlier, Spared::Some(&mut throw));
        image.put(&database);
        let verified = self.machine.store().verify().expect("the books can be verified");
        assert_eq!(verified.findings, [], "after {earlier} of {} calls", journal.len());
    }

    /// An operator credits again and again, until this is dropped, and notes what the program said is done.
    async fn credit(&mut self) {
        loop {
            let reference = uuid::Uuid::now_v7().to_string();
            let line = format!("user credit alice {CREDIT} --reference {reference}");
            let told = self
                .machine
                .program(&line)
                .envs(self.shim.env())
                .output()
                .await
                .expect("it runs");
            assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
            self.credited.push(reference);
        }
    }

    fn nothing_is_lost(&self) {
        let accounts = Accounts::compared(&self.machine, &self.seen);
        let store = self.machine.store();
        let alice = accounts
            .books
            .users
            .iter()
            .find(|user| user.name == "alice")
            .expect("alice");
        let entries = store.entries(alice.id, None, u32::MAX).expect("read");
        for reference in &self.credited {
            let found = entries
                .iter()
                .filter(|entry| entry.reference.as_deref() == Some(reference))
                .count();
            assert_eq!(found, 1, "credited as {reference}");
        }
    }
}

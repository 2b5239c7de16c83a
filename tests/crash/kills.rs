//! Kills at random moments under load: after each the gateway starts again, and the three books are compared.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::dice::Dice;
use crate::load::{Fate, Load, six_people};
use crate::rig::Machine;

#[tokio::test(flavor = "multi_thread")]
async fn a_first_look() {
    let mut dice = Dice::new(7);
    let machine = Machine::new(&dice, "").await.with(six_people);
    let store = machine.store();
    let mut all = Vec::new();
    for cycle in 0..10 {
        let start = Instant::now();
        let mut serving = machine.serve().await;
        let up = start.elapsed();
        let accounts = Accounts::compared(&machine, &all);
        let compared = start.elapsed();
        for person in &machine.people {
            person.help(&store);
        }
        let load = Load::start(&machine, &serving);
        sleep(Duration::from_millis(dice.between(60, 260))).await;
        let under_way = load.under_way();
        serving.kill().await;
        let killed = start.elapsed();
        let seen = load.until_it_is_gone().await;
        let count = |f: &dyn Fn(&Fate) -> bool| seen.iter().filter(|s| f(&s.fate)).count();
        println!(
            "{cycle}: up {up:?} compared {compared:?} killed {killed:?} gone {:?} exchanges {} under way {under_way} whole {} cut {} refused {} never {}",
            start.elapsed(),
            accounts.books.exchanges.len(),
            count(&|f| *f == Fate::Whole),
            count(&|f| *f == Fate::Cut),
            count(&|f| matches!(f, Fate::Refused(_))),
            count(&|f| *f == Fate::NeverSent),
        );
        all.extend(seen);
    }
}

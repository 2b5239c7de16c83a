//! Kills under load: after each the gateway starts again on what is on the disk, and the three books are compared.
//!
//! Half of the kills come at a random moment. With the feature `failpoints` the other half come at a point of the code:
//! the gateway kills itself at a random passage of it.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use codex_gateway::fail_point::Point;
use codex_gateway::simulator::Ended;
use codex_gateway::store::Store;
use codex_gateway::store::usage_log::{Basis, State};
use futures_util::FutureExt;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::dice::Dice;
use crate::load::{Fate, Load, Seen, six_people};
use crate::rig::{Machine, Serving};

/// Kills of `cargo test`; `GATEWAY_KILLS` says another number.
const KILLS: u64 = 25;

/// Kills until a machine begins with a new database: comparing reads all of it.
const PER_DATABASE: u64 = 16;

/// How many exchanges a kill has to find under way.
const UNDER_WAY: usize = 16;

/// When a random kill comes, in milliseconds of load: from before the first answer to many answers.
const MOMENTS: (u64, u64) = (25, 350);

/// At which passage of a point a directed kill comes; so many calls are under way at the first of them.
const PASSAGES: (u64, u64) = (17, 60);

/// The points of an exchange, in its order.
const POINTS: [Point; 11] = [
    Point::Authenticated,
    Point::Held,
    Point::Connected,
    Point::Sent,
    Point::Head,
    Point::FirstPiece,
    Point::MidStream,
    Point::BeforeSettlement,
    Point::InSettlement,
    Point::Settled,
    Point::AfterEnd,
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_moment_it_is_killed_at_nothing_is_free_invented_or_charged_twice() {
    let (seed, kills) = (Dice::seed(), how_many());
    let (dice, mut tally) = (Dice::new(seed), Tally::default());
    for first in (0..kills).step_by(usize::try_from(PER_DATABASE).expect("few")) {
        let mut cycle = first;
        let cycles = first..kills.min(first + PER_DATABASE);
        let worked = AssertUnwindSafe(one_database(&dice, cycles, &mut cycle, &mut tally)).catch_unwind();
        if let Err(panic) = worked.await {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!("GATEWAY_SEED={seed} cycle {cycle}, on the database of cycle {first}: {text}");
        }
    }
    tally.tell(seed);
}

fn how_many() -> u64 {
    let said = std::env::var("GATEWAY_KILLS").ok();
    said.map_or(KILLS, |kills| kills.parse().expect("GATEWAY_KILLS is a number"))
}

/// Kill after kill on one database; at the end it serves and stops as if nothing had been.
async fn one_database(dice: &Dice, cycles: std::ops::Range<u64>, cycle: &mut u64, tally: &mut Tally) {
    let machine = Machine::new(&dice.of(cycles.start), "").await.with(six_people);
    let store = machine.store();
    let (mut all, mut last): (Vec<Seen>, Vec<Seen>) = (Vec::new(), Vec::new());
    for number in cycles {
        *cycle = number;
        let kill = Kill::thrown(&mut dice.of(number), number);
        let points = kill.points(&store);
        let env = points.as_deref().map(|points| ("FAILPOINTS", points));
        let mut serving = machine.serve_with(env.as_slice()).await;
        let accounts = Accounts::compared(&machine, &all);
        tally.count(&accounts, &last);
        machine.people.iter().for_each(|person| person.help(&store));

        let load = Load::start(&machine, &serving);
        kill.happen(&mut serving).await;
        last = load.until_it_is_gone().await;
        all.extend_from_slice(&last);
        if !tally.killed(&kill, &last) {
            last.clear();
        }
    }
    let serving = machine.serve().await;
    tally.count(&Accounts::compared(&machine, &all), &last);
    let (load, served) = (Load::start(&machine, &serving), machine.simulator.served().len());
    machine.simulator.arrived(served + UNDER_WAY).await;
    all.extend(load.stop().await);
    serving.stop().await;
    tally.database(&Accounts::compared(&machine, &all));
    let verified = machine.program("ledger verify").output().await.expect("it runs");
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
}

/// How a gateway dies.
#[derive(Debug)]
enum Kill {
    /// After so much load.
    After(Duration),
    /// By itself, at this passage of a point.
    At(Point, u64),
}

impl Kill {
    fn thrown(dice: &mut Dice, cycle: u64) -> Kill {
        let directed = cfg!(feature = "failpoints") && cycle % 2 == 1;
        if !directed {
            return Kill::After(Duration::from_millis(dice.between(MOMENTS.0, MOMENTS.1)));
        }
        let turn = usize::try_from(cycle / 2).expect("few") % POINTS.len();
        Kill::At(POINTS[turn], dice.between(PASSAGES.0, PASSAGES.1))
    }

    /// The words of `FAILPOINTS` for it.
    fn points(&self, store: &Store) -> Option<String> {
        let Kill::At(point, passage) = self else {
            return None;
        };
        // The start itself closes what the last kill left open.
        let at_start = match point {
            Point::InSettlement => store.verify().expect("the books can be verified").open_holds,
            _ => 0,
        };
        Some(format!("{}={}*off->return(kill)", point.name(), at_start + passage - 1))
    }

    /// Kills, or sees the gateway die.
    async fn happen(&self, serving: &mut Serving) {
        let status = match self {
            Kill::After(moment) => {
                sleep(*moment).await;
                assert_eq!(serving.ended(), None, "it died by itself: {}", serving.said());
                serving.kill().await
            }
            Kill::At(..) => serving.end().await,
        };
        assert_eq!(
            status.signal(),
            Some(Signal::KILL.as_raw()),
            "{status}: {}",
            serving.said()
        );
    }
}

/// How far an exchange had come that a kill cut off, as its client, its upstream and the ledger saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing of it had reached the upstream.
    Asked,
    /// The upstream had the request and had not answered.
    Sent,
    /// It had sent the head of its answer,
    Head,
    /// a part of it,
    Part,
    /// all of it, and it was not settled.
    Answered,
    /// It was settled, and the client did not have the end.
    Settled,
}

impl Phase {
    const NAMES: [(Phase, &str); 6] = [
        (Phase::Asked, "asked"),
        (Phase::Sent, "sent"),
        (Phase::Head, "head"),
        (Phase::Part, "part"),
        (Phase::Answered, "answered"),
        (Phase::Settled, "settled"),
    ];

    fn of(seen: &Seen, accounts: &Accounts) -> Phase {
        let Some(served) = accounts.served(&seen.mark) else {
            return Phase::Asked;
        };
        match served {
            _ if accounts.row(&seen.mark).is_some_and(|row| row.charge.nanos() > 0) => Phase::Settled,
            served if served.ended == Some(Ended::Completed) => Phase::Answered,
            served if served.events_sent > 0 => Phase::Part,
            served if served.status.is_some() => Phase::Head,
            _ => Phase::Sent,
        }
    }
}

/// What all kills met.
#[derive(Default)]
struct Tally {
    kills: u64,
    early: u64,
    at: BTreeMap<&'static str, u64>,
    under_way: Vec<usize>,
    phases: BTreeMap<Phase, u64>,
    calls: usize,
    whole: usize,
    released: usize,
    charged: usize,
    charged_nanos: i128,
}

impl Tally {
    /// Counts a kill, and says whether it is one: not when it met too few calls, since a busy machine had not begun
    /// them yet.
    fn killed(&mut self, kill: &Kill, seen: &[Seen]) -> bool {
        let with = |fate: Fate| seen.iter().filter(|seen| seen.fate == fate).count();
        let under_way = with(Fate::Cut);
        if under_way < UNDER_WAY {
            self.early += 1;
            return false;
        }
        self.kills += 1;
        self.under_way.push(under_way);
        self.calls += seen.len() - with(Fate::NeverSent);
        self.whole += with(Fate::Whole);
        if let Kill::At(point, _) = kill {
            *self.at.entry(point.name()).or_default() += 1;
        }
        true
    }

    /// Counts how far the calls had come that the last kill cut off.
    fn count(&mut self, accounts: &Accounts, last: &[Seen]) {
        for seen in last.iter().filter(|seen| seen.fate == Fate::Cut) {
            *self.phases.entry(Phase::of(seen, accounts)).or_default() += 1;
        }
    }

    /// Counts what a database has in the end. No gateway lived to see a stream break: there is nothing to estimate.
    fn database(&mut self, accounts: &Accounts) {
        for row in &accounts.books.exchanges {
            assert_eq!(row.basis, Basis::Reported, "{row:?}");
            self.released += usize::from(row.state == State::Interrupted);
            self.charged += usize::from(row.charge.nanos() > 0);
        }
        self.charged_nanos += accounts.books.charged();
    }

    /// The line of a campaign.
    fn tell(&self, seed: u64) {
        assert!(
            self.early <= 1 + self.kills / 10,
            "{} of {} kills came too early",
            self.early,
            self.kills
        );
        let cut_off: usize = self.under_way.iter().sum();
        assert_eq!(
            self.phases.values().sum::<u64>(),
            cut_off as u64,
            "each that was cut off came to some phase"
        );
        let phases = Phase::NAMES.map(|(phase, name)| (name, self.phases.get(&phase).copied().unwrap_or(0)));
        let line = json!({
            "suite": "kills", "seed": seed, "kills": self.kills, "too_early": self.early, "kills_at": self.at,
            "least_under_way": self.under_way.iter().min(), "cut_off": cut_off,
            "cut_off_by_phase": BTreeMap::from(phases), "calls": self.calls, "received_whole": self.whole,
            "charged": self.charged, "charged_nanos": self.charged_nanos.to_string(), "released": self.released,
            "failures": 0,
        });
        println!("campaign: {line}");
    }
}

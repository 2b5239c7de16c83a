//! The store against a model: random steps through the real writer, every answer and the whole books compared.
//!
//! `GATEWAY_MODEL_STEPS` says how many operations (some thousands otherwise), `GATEWAY_SEED` repeats a run. What fails
//! is shrunk to the shortest run that fails.

mod laws;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use self::laws::{Beyond, Laws, Owner, Said, Times, Whose};
use super::background::{self, Background};
use super::budgets::{Change, Spender, Standing};
use super::entries::{self, Credit, CreditRefused, Entry};
use super::idempotency::{Once, Repeat};
use super::keys::{Key, NewKey};
use super::ledger::{self, CloseHold, Closed, Excess, Hold, HoldRefused, PlaceHold};
use super::prepared::Prepared;
use super::refunds::{Refund, RefundRefused, Refunded};
use super::testing::{ask, at, by, closing, done, new_key, quote};
use super::users::{NewUser, User, UserStatus};
use super::{Create, ExchangeId, Outcome, Store, UserId, Writer, connection};
use crate::budget::{Budget, Period};
use crate::call::Endpoint;
use crate::config::DiskConfig;
use crate::limits::Rates;
use crate::money::Usd;
use crate::pricing::{Factor, Price, Priced, SearchTool};
use crate::usage::{CacheTtl, Tier, Tokens};

/// What amounts are multiples of, in nano-dollars: a token of the receipts.
const UNIT: i64 = 10_000;

/// What each user starts with, and how far below zero it may go: in units.
const USERS: [(i64, i64); 3] = [(40, 0), (9, 5), (0, 12)];

/// Keys that a user starts with.
const KEYS: usize = 2;

/// Keys are numbered from here on: an id is a user's or a key's.
const FIRST_KEY: usize = 1_000;

/// After so many operations the whole books are compared.
const LOOK_EVERY: i64 = 1_000;

/// Steps of a run at most: the longer, the slower to compare; a database is made for each.
const RUN: usize = 400;

/// Operations by default: a few seconds.
const STEPS: usize = 20_000;

/// How long a failure is shrunk, in milliseconds.
const SHRINK: u32 = 20_000;

// What may happen -----------------------------------------------------------------------------------------------------

/// What an exchange does. Numbers of what there is go by the rest of a division.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A new hold, perhaps under a name and with a body.
    Hold {
        key: usize,
        nanos: i64,
        name: Option<(u8, u8)>,
    },
    /// One that was asked for lately, and is open, closed or was refused: asked for again, perhaps by another key.
    HoldAgain {
        which: usize,
        other_key: Option<usize>,
        nanos: i64,
    },
    /// The response of one of them runs on in the background.
    Begin { which: usize },
    /// One of them closed, perhaps again; below, at or above what it holds, or below nothing.
    Close {
        which: usize,
        units: i64,
        beyond: Beyond,
        row: RowIs,
    },
}

/// Whether a usage row can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowIs {
    Sound,
    /// Its cost breaks a constraint, when half of the settlement is done.
    Unsound,
}

#[derive(Clone, Debug)]
enum Step {
    /// By the writer, all at once.
    Batch(Vec<Op>),
    /// In a transaction that is given up.
    RolledBack(Vec<Op>),
    /// In a transaction in whose middle the process dies; then the next one starts.
    Crash(Vec<Op>),
    Credit {
        user: usize,
        nanos: i64,
        kind: &'static str,
        reference: Option<u32>,
    },
    Status {
        user: usize,
        to: UserStatus,
    },
    Revoke {
        key: usize,
    },
    Issue {
        user: usize,
        lives: Option<i64>,
    },
    /// Holds older than so many operations are released.
    Sweep {
        age: i64,
    },
    /// A budget of a user or a key is set or dropped.
    Budget {
        whose: Whose,
        period: Period,
        limit: Option<i64>,
    },
    /// One of the newest exchanges is refunded, wholly or in part.
    Refund {
        which: usize,
        nanos: Option<i64>,
        reference: Option<u32>,
    },
    /// So many hours pass; then, perhaps, the days that are over are summed.
    Wait {
        hours: i64,
        then: Then,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    RollUp,
    Nothing,
}

fn op() -> impl Strategy<Value = Op> {
    let (key, which) = (0..32_usize, 0..24_usize);
    let hold = (0..=10_i64, prop_oneof![3 => Just(0), 1 => 0..UNIT]).prop_map(|(units, odd)| units * UNIT + odd);
    let beyond = prop_oneof![Just(Beyond::Taken), Just(Beyond::Waived)];
    let row = prop_oneof![120 => Just(RowIs::Sound), 1 => Just(RowIs::Unsound)];
    let name = prop_oneof![3 => Just(None), 1 => (0..4_u8, prop_oneof![8 => Just(0), 1 => Just(1_u8)]).prop_map(Some)];
    let units = prop_oneof![1 => Just(-1), 20 => Just(0), 100 => 1..=14_i64];
    prop_oneof![
        40 => (key.clone(), hold.clone(), name).prop_map(|(key, nanos, name)| Op::Hold { key, nanos, name }),
        2 => (which.clone(), prop_oneof![9 => Just(None), 1 => key.prop_map(Some)], hold)
            .prop_map(|(which, other_key, nanos)| Op::HoldAgain { which, other_key, nanos }),
        6 => which.clone().prop_map(|which| Op::Begin { which }),
        50 => (which, units, beyond, row)
            .prop_map(|(which, units, beyond, row)| Op::Close { which, units, beyond, row }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    // As many as `join_all` asks in their order.
    let ops = |most| proptest::collection::vec(op(), 1..most);
    let user = 0..USERS.len();
    let nanos = prop_oneof![
        4 => -20 * UNIT..0,
        12 => 1..80 * UNIT,
        1 => Just(0),
        1 => Just(4_000_000_000_000_000_000),
    ];
    let kind = prop_oneof![Just("credit"), Just("adjustment")];
    let reference = prop_oneof![Just(None), (0..40_u32).prop_map(Some)];
    let whose = prop_oneof![
        2 => (0..USERS.len()).prop_map(Whose::User),
        1 => (0..32_usize).prop_map(Whose::Key),
    ];
    let period = prop_oneof![Just(Period::Day), Just(Period::Month), Just(Period::Total)];
    let limit = prop_oneof![1 => Just(None), 1 => (0..60 * UNIT).prop_map(Some)];
    let back = prop_oneof![2 => Just(None), 3 => (-UNIT..6 * UNIT).prop_map(Some)];
    let hours = prop_oneof![2 => 1..30_i64, 1 => Just(24 * 17)];
    prop_oneof![
        30 => ops(24).prop_map(Step::Batch),
        2 => ops(8).prop_map(Step::RolledBack),
        1 => ops(8).prop_map(Step::Crash),
        // One user more than there are.
        20 => (0..=USERS.len(), nanos, kind, reference.clone())
            .prop_map(|(user, nanos, kind, reference)| Step::Credit { user, nanos, kind, reference }),
        6 => (0..24_usize, back, reference)
            .prop_map(|(which, nanos, reference)| Step::Refund { which, nanos, reference }),
        4 => (whose, period, limit).prop_map(|(whose, period, limit)| Step::Budget { whose, period, limit }),
        3 => (hours, prop_oneof![Just(Then::RollUp), Just(Then::Nothing)])
            .prop_map(|(hours, then)| Step::Wait { hours, then }),
        3 => (user.clone(), prop_oneof![1 => Just(UserStatus::Suspended), 2 => Just(UserStatus::Active)])
            .prop_map(|(user, to)| Step::Status { user, to }),
        2 => (0..32_usize).prop_map(|key| Step::Revoke { key }),
        2 => (user, prop_oneof![2 => Just(None), 1 => (1..200_i64).prop_map(Some)])
            .prop_map(|(user, lives)| Step::Issue { user, lives }),
        1 => (0..60_i64).prop_map(|age| Step::Sweep { age }),
    ]
}

// The store beside the laws --------------------------------------------------------------------------------------------

/// How often what happened.
type Counts = BTreeMap<&'static str, usize>;

/// A store, what it has to say, and a process that runs on it.
struct Bench {
    laws: Laws,
    keys: Vec<Key>,
    /// The newest exchanges that were asked for a hold.
    exchanges: Vec<u128>,
    /// The time in seconds: one for each operation, and more when time passes.
    now: i64,
    /// Operations since the whole books were compared.
    unseen: i64,
    counts: Counts,
    process: Process,
}

/// What dies in a crash.
struct Process {
    folder: TempDir,
    store: Store,
    writer: Writer,
    tracker: TaskTracker,
    /// Transactions that are given up. Its cache is so small that they are in the log before they end.
    side: Connection,
}

impl Process {
    fn start(folder: TempDir) -> Process {
        let path = folder.path().join("gateway.db");
        let store = Store::open(&path, Create::IfMissing).expect("a database");
        let side = connection::open_writable(&path).expect("it opens");
        side.execute_batch("PRAGMA cache_size = 4").expect("set");
        let tracker = TaskTracker::new();
        let disk = DiskConfig {
            min_free: 0,
            ballast: 0,
        };
        let writer = store.start_writer(&tracker, disk);
        Process {
            folder,
            store,
            writer,
            tracker,
            side,
        }
    }

    async fn stop(self) {
        drop((self.writer, self.side));
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// A folder in memory, where there is such a place: it is the logic that is tested, not the disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    };
    made.expect("a folder")
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::try_from(number).expect("small"))
}

fn ids<'a>(exchanges: impl IntoIterator<Item = &'a u128>) -> Vec<ExchangeId> {
    let id = |exchange: &u128| ExchangeId(Uuid::from_u128(*exchange));
    exchanges.into_iter().map(id).collect()
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench {
            laws: Laws::default(),
            keys: Vec::new(),
            exchanges: Vec::new(),
            now: 0,
            unseen: 0,
            counts: Counts::new(),
            process: Process::start(folder()),
        };
        for (number, (balance, line)) in USERS.into_iter().enumerate() {
            bench.add_user(number, line * UNIT);
            if balance > 0 {
                bench.credit(number, balance * UNIT, "credit", None);
            }
            (0..KEYS).for_each(|_| bench.issue(number, None));
        }
        bench
    }

    async fn take(&mut self, step: &Step) {
        match step {
            Step::Batch(ops) => self.batch(ops).await,
            Step::RolledBack(ops) => self.roll_back(ops),
            Step::Crash(ops) => self.crash(ops).await,
            Step::Credit {
                user,
                nanos,
                kind,
                reference,
            } => self.credit(*user, *nanos, kind, *reference),
            Step::Status { user, to } => self.set_status(*user, *to),
            Step::Revoke { key } => self.revoke(*key),
            Step::Issue { user, lives } => self.issue(*user, *lives),
            Step::Sweep { age } => self.sweep(*age).await,
            Step::Budget { whose, period, limit } => self.set_budget(*whose, *period, *limit),
            Step::Refund {
                which,
                nanos,
                reference,
            } => self.refund(self.lately(*which), *nanos, *reference),
            Step::Wait { hours, then } => self.wait(*hours, *then),
        }
        if self.unseen >= LOOK_EVERY {
            self.look();
        }
    }

    /// The next moment.
    fn tick(&mut self) -> Timestamp {
        self.now += 1;
        self.unseen += 1;
        self.count("steps", 1);
        at(self.now)
    }

    fn count(&mut self, what: &'static str, times: usize) {
        *self.counts.entry(what).or_default() += times;
    }

    // Exchanges.

    /// All at once, so that the writer takes several into one transaction; it answers them in their order.
    async fn batch(&mut self, ops: &[Op]) {
        let (orders, expected): (Vec<_>, Vec<_>) = ops.iter().map(|op| self.order(*op)).unzip();
        let asked = orders.into_iter().map(|order| by_writer(&self.process.writer, order));
        assert_eq!(join_all(asked).await, expected, "{ops:?}");
        expected.iter().for_each(|said| self.note(said));
    }

    fn roll_back(&mut self, ops: &[Op]) {
        let before = self.laws.clone();
        self.begin(ops);
        self.process.side.execute_batch("ROLLBACK").expect("rolled back");
        self.laws = before;
    }

    /// Runs them in a transaction up to the first that fails, and leaves it open.
    fn begin(&mut self, ops: &[Op]) {
        let orders: Vec<_> = ops.iter().map(|op| self.order(*op)).collect();
        let side = &self.process.side;
        side.execute_batch("BEGIN IMMEDIATE").expect("nobody else writes");
        for (order, expected) in &orders {
            let said = in_transaction(side, order);
            assert_eq!(said, *expected, "{ops:?}");
            if said == Said::Error {
                break;
            }
        }
    }

    /// The files as they are in the middle of a transaction are what the next process finds.
    async fn crash(&mut self, ops: &[Op]) {
        let before = self.laws.clone();
        self.begin(ops);
        let found = left_behind(&self.process.folder);
        self.process.side.execute_batch("ROLLBACK").expect("rolled back");
        self.laws = before;
        std::mem::replace(&mut self.process, Process::start(found)).stop().await;
        assert_eq!(self.process.store.behind(), None, "nothing is lost");
        self.compare();
        let now = self.tick();
        let released = self.laws.interrupt(i64::MAX, self.now).len();
        let swept = done(self.process.store.release_interrupted(now));
        assert_eq!((swept.released, swept.stuck), (released, Vec::new()));
        self.look();
        self.count("crashes", 1);
        self.count("interrupted", released);
    }

    async fn sweep(&mut self, age: i64) {
        let now = self.tick();
        let mut open = self.process.store.open_holds().expect("it reads");
        open.sort();
        let running = self.laws.open.iter().filter(|(_, held)| !held.in_background);
        assert_eq!(open, ids(running.map(|(exchange, _)| exchange)));
        // One that is closed by then stays as it is, and one that runs in the background.
        let closed = self.laws.closed.keys().next_back().copied();
        let background = self.laws.open.iter().find(|(_, held)| held.in_background);
        let background = background.map(|(exchange, _)| *exchange);
        let overdue = self.laws.interrupt(self.now - age, self.now);
        let asked = ids(overdue.iter().chain(&closed).chain(&background));
        let swept = self.process.writer.sweep(asked, now).await.expect("it writes");
        assert_eq!((swept.released, swept.stuck), (overdue.len(), Vec::new()));
        self.count("interrupted", overdue.len());
    }

    /// What is asked of the store, and what it has to say to it.
    fn order(&mut self, op: Op) -> (Order, Said) {
        match op {
            Op::Hold { key, nanos, name } => {
                let exchange = self.next_exchange();
                let (order, said) = self.hold(exchange, key % self.keys.len(), nanos, name);
                // Few of the refused are asked for again.
                if matches!(said, Said::Held(_)) || exchange.is_multiple_of(64) {
                    self.exchanges.push(exchange);
                }
                (order, said)
            }
            Op::HoldAgain {
                which,
                other_key,
                nanos,
            } => {
                let exchange = self.lately(which);
                let of_it = || Some(self.laws.hold_of(exchange)?.key);
                let key = other_key.or_else(of_it).unwrap_or(which);
                self.hold(exchange, key % self.keys.len(), nanos, None)
            }
            Op::Begin { which } => self.run_on(self.lately(which)),
            Op::Close {
                which,
                units,
                beyond,
                row,
            } => self.close(self.lately(which), units * UNIT, beyond, row),
        }
    }

    /// Of its time, as all ids of exchanges are: sums are looked for by it.
    fn next_exchange(&self) -> u128 {
        let number = u128::try_from(self.now).expect("not negative");
        let millis = u128::try_from(at(self.now).as_millisecond()).expect("not negative");
        millis << 80 | 0x7000_8000_0000_0000_0000 | number
    }

    /// One of the newest exchanges, or, before there are any, one to come.
    fn lately(&self, which: usize) -> u128 {
        let newest = self.exchanges.iter().rev().nth(which).or(self.exchanges.last());
        newest.copied().unwrap_or(self.next_exchange())
    }

    fn hold(&mut self, exchange: u128, key: usize, nanos: i64, name: Option<(u8, u8)>) -> (Order, Said) {
        let now = self.tick();
        self.count("repeated", usize::from(self.laws.hold_of(exchange).is_some()));
        let said = self.laws.hold(exchange, key, nanos, (self.now, name));
        let once = |(name, body): (u8, u8)| Once::new(&name.to_string(), Endpoint::Responses, &[body]);
        let order = PlaceHold {
            quote: quote(Usd::from_nanos(nanos)),
            once: name.map(once),
            now,
            ..ask(ExchangeId(Uuid::from_u128(exchange)), &self.keys[key], "0")
        };
        (Order::Hold(Box::new(order)), said)
    }

    fn run_on(&mut self, exchange: u128) -> (Order, Said) {
        self.tick();
        let (key, started) = match self.laws.hold_of(exchange) {
            Some(held) => (held.key, held.at),
            None => (0, self.now),
        };
        let said = self.laws.begin(exchange);
        let mut draft = closing(ExchangeId(Uuid::from_u128(exchange)), &self.keys[key], "0").row;
        draft.started_at = at(started);
        let priced = Priced {
            list: None,
            from: None,
            price: Arc::new(
                Price::from_json(r#"{"kind":"text","rates":{"input":"2","output":"10"}}"#).expect("a price"),
            ),
            image_price: None,
            search: SearchTool::Preview,
            region: None,
            markup: Factor::parse("1").expect("a factor"),
            at: at(started),
        };
        let background = Background {
            draft,
            response: format!("resp_{exchange}"),
            priced,
            tier: Tier::Standard,
            cache_ttl: CacheTtl::Minutes30,
            input: Tokens::ZERO,
            attempts: Vec::new(),
            deadline: at(started + laws::LONGEST_RESPONSE),
        };
        (Order::Begin(Box::new(background)), said)
    }

    fn close(&mut self, exchange: u128, charge: i64, beyond: Beyond, row: RowIs) -> (Order, Said) {
        self.tick();
        self.count("repeated", usize::from(self.laws.closed.contains_key(&exchange)));
        let (key, started) = match self.laws.hold_of(exchange) {
            Some(held) => (held.key, held.at),
            None => (0, self.now),
        };
        let fails = row == RowIs::Unsound && self.laws.open.contains_key(&exchange);
        let said = if fails {
            Said::Error
        } else {
            self.laws.close(exchange, charge, beyond)
        };
        let exchange = ExchangeId(Uuid::from_u128(exchange));
        let charged = Usd::from_nanos(charge.max(0)).to_string();
        let mut close = closing(exchange, &self.keys[key], &charged);
        close.row.started_at = at(started);
        close.row.charge = Usd::from_nanos(charge);
        if row == RowIs::Unsound {
            close.row.cost = Usd::from_nanos(-1);
        }
        close.excess = match beyond {
            Beyond::Taken => Excess::Collect,
            Beyond::Waived => Excess::Waive,
        };
        (Order::Close(exchange, Box::new(close)), said)
    }

    fn note(&mut self, said: &Said) {
        let what = match said {
            Said::Held(_) => "held",
            Said::Begun => "in_background",
            Said::Closed { uncollected: 0, .. } => "closed",
            Said::Closed { .. } => "closed_short",
            Said::Credited {
                times: Times::First, ..
            } => "credited",
            Said::Credited { .. } => "credited_before",
            Said::Refunded {
                times: Times::First, ..
            } => "refunded",
            Said::Running(_) | Said::Done(..) | Said::OtherCall => "named_before",
            Said::Short { limit, .. } if limit != "balance" => "over_budget",
            Said::Error => "errors",
            _ => "refused",
        };
        self.count(what, 1);
    }

    // What operators do.

    fn add_user(&mut self, number: usize, credit_line: i64) {
        let new = NewUser {
            id: UserId(id(number)),
            name: number.to_string(),
            email: None,
            credit_line: Usd::from_nanos(credit_line),
            balance: Usd::ZERO,
            budgets: Vec::new(),
            rates: Rates::default(),
        };
        done(self.process.store.add_user(&new, &by(), at(0)));
        self.laws.users.push(Owner {
            balance: 0,
            credit_line,
            suspended: false,
        });
    }

    fn credit(&mut self, user: usize, nanos: i64, kind: &'static str, reference: Option<u32>) {
        let now = self.tick();
        let what = Credit {
            user: UserId(id(user)),
            amount: Usd::from_nanos(nanos),
            adjustment: kind == "adjustment",
            reference: reference.map(|reference| reference.to_string()),
            note: None,
        };
        let there = (user < self.laws.users.len()).then_some(user);
        let expected = self.laws.credit(there, nanos, kind, reference);
        assert_eq!(
            credited(self.process.store.credit(&what, &by(), now)),
            expected,
            "{what:?}"
        );
        self.note(&expected);
    }

    fn refund(&mut self, exchange: u128, nanos: Option<i64>, reference: Option<u32>) {
        let now = self.tick();
        let what = Refund {
            exchange: ExchangeId(Uuid::from_u128(exchange)),
            amount: nanos.map(Usd::from_nanos),
            reference: reference.map(|reference| reference.to_string()),
            note: None,
        };
        let expected = self.laws.refund(exchange, nanos, reference);
        assert_eq!(
            refunded(self.process.store.refund(&what, &by(), now)),
            expected,
            "{what:?}"
        );
        self.note(&expected);
    }

    fn set_budget(&mut self, whose: Whose, period: Period, limit: Option<i64>) {
        let now = self.tick();
        let (whose, of) = match whose {
            Whose::User(user) => (whose, Spender::User(UserId(id(user)))),
            Whose::Key(key) => {
                let key = key % self.keys.len();
                (Whose::Key(key), Spender::Key(self.keys[key].id))
            }
        };
        let change = match limit.map(Usd::from_nanos) {
            Some(limit) => Change::Set(Budget { period, limit }),
            None => Change::Drop(period),
        };
        let expected = self.laws.set_budget(whose, period, limit, self.now);
        let standing = done(self.process.store.change_budgets(of, &[change], &by(), now));
        let of = |budget: &Standing| {
            let (limit, spent, held) = (budget.limit.nanos(), budget.spent.nanos(), budget.held.nanos());
            (budget.period, limit, spent, held)
        };
        assert_eq!(Said::Budgets(standing.iter().map(of).collect()), expected, "{change:?}");
    }

    fn wait(&mut self, hours: i64, then: Then) {
        self.now += hours * 3600;
        // No call waits so long for its hold.
        self.exchanges.retain(|exchange| self.laws.hold_of(*exchange).is_some());
        while then == Then::RollUp && self.process.store.roll_up(at(self.now)).expect("it is summed") {}
        self.count("waits", 1);
    }

    fn set_status(&mut self, user: usize, to: UserStatus) {
        let now = self.tick();
        let store = &self.process.store;
        for _ in 0..2 {
            let after = done(store.set_user_status(UserId(id(user)), to, &by(), now));
            assert_eq!(
                (after.status, after.balance.nanos()),
                (to, self.laws.users[user].balance)
            );
        }
        self.laws.users[user].suspended = to == UserStatus::Suspended;
    }

    fn issue(&mut self, user: usize, lives: Option<i64>) {
        let now = self.tick();
        let number = self.keys.len();
        let ends = lives.map(|lives| self.now + lives);
        let new = NewKey {
            name: number.to_string(),
            expires_at: ends.map(at),
            ..new_key(UserId(id(user)), id(FIRST_KEY + number))
        };
        let store = &self.process.store;
        let key = done(store.issue_key(&new, &by(), now));
        assert_eq!(done(store.issue_key(&new, &by(), now)), key, "issued once");
        self.keys.push(key);
        self.laws.keys.push(laws::Key {
            user,
            revoked: false,
            ends,
        });
    }

    fn revoke(&mut self, key: usize) {
        let now = self.tick();
        let key = key % self.keys.len();
        let store = &self.process.store;
        let revoked = done(store.revoke_key(self.keys[key].id, &by(), now));
        assert_eq!(done(store.revoke_key(revoked.id, &by(), at(self.now + 1))), revoked);
        self.laws.keys[key].revoked = true;
    }

    // Looking.

    /// The whole books say what the laws say.
    fn compare(&self) {
        let mut query = self.process.side.prepare_cached(BOOKS).expect("it reads");
        let rows = query.query_map([], |row| row.get(0)).expect("it reads");
        let mut books: Vec<String> = rows.collect::<Result<_, _>>().expect("text");
        books.sort();
        assert_eq!(books, self.laws.books());
    }

    /// And verify finds nothing.
    fn look(&mut self) {
        self.unseen = 0;
        self.compare();
        let verified = self.process.store.verify().expect("it verifies");
        let mut found: Vec<_> = verified
            .findings
            .iter()
            .map(|finding| (finding.table, &*finding.row))
            .collect();
        found.sort_unstable();
        let overdue: Vec<_> = ids(&self.laws.overdue()).iter().map(ExchangeId::to_string).collect();
        let expected: Vec<_> = overdue.iter().map(|id| ("holds", &**id)).collect();
        assert_eq!(found, expected, "{:?}", verified.findings);
        assert_eq!(verified.open_holds, u64::try_from(self.laws.open.len()).expect("few"));
    }
}

/// The whole books, a line for each row; the laws write the same ones.
const BOOKS: &str = "
    WITH owners AS (SELECT id, 'user ' || name AS name FROM users UNION ALL SELECT id, 'key ' || name FROM api_keys)
    SELECT format('user %s %s: %d, line %d, held %d', name, status, balance_nanos, credit_line_nanos, held_nanos)
    FROM users
    UNION ALL
    SELECT format('key %s of %s%s', k.name, u.name, iif(k.revoked_at IS NULL, '', ' revoked'))
    FROM api_keys k JOIN users u ON u.id = k.user_id
    UNION ALL
    SELECT format('hold %s by %s: %d at %d %s', hex(h.exchange_id), k.name, h.amount_nanos,
                  h.placed_at / 1000000 - 1790000000, h.state || iif(b.exchange_id IS NULL, '', ' in the background'))
    FROM holds h LEFT JOIN background_responses b USING (exchange_id) JOIN api_keys k ON k.id = h.key_id AND k.user_id = h.user_id
    UNION ALL
    SELECT format('usage %s of %s %s: %d, %d uncollected, balance %d, held %d', hex(l.exchange_id), u.name, l.state,
                  l.charge_nanos, l.uncollected_nanos, l.balance_after_nanos, l.held_nanos)
    FROM usage_logs l JOIN users u ON u.id = l.user_id
    UNION ALL
    SELECT format('entry %d of %s %s: %d, balance %d, for %s, %s', e.seq, u.name, e.kind, e.amount_nanos,
                  e.balance_after_nanos, hex(COALESCE(e.exchange_id, e.refunds)), e.reference)
    FROM ledger_entries e JOIN users u ON u.id = e.user_id
    UNION ALL
    SELECT format('budget %s %s: %d', o.name, b.period, b.limit_nanos) FROM budgets b JOIN owners o ON o.id = b.owner_id
    UNION ALL
    SELECT format('window %s %s from %d: %d held, %d spent', o.name, w.period, w.start_at / 1000000, w.held_nanos,
                  w.spent_nanos)
    FROM budget_windows w JOIN owners o ON o.id = w.owner_id
    UNION ALL
    SELECT format('name by %s: %s', k.name, hex(i.exchange_id)) FROM idempotency i JOIN api_keys k ON k.id = i.key_id";

// Asking the store -----------------------------------------------------------------------------------------------------

/// An operation as the store takes it.
enum Order {
    Hold(Box<PlaceHold>),
    Begin(Box<Background>),
    Close(ExchangeId, Box<CloseHold>),
}

fn by_writer(writer: &Writer, order: Order) -> BoxFuture<'static, Said> {
    let writer = writer.clone();
    Box::pin(async move {
        match order {
            Order::Hold(ask) => match writer.hold(*ask).await.expect("there is room in the queue") {
                Outcome::Committed((hold, _)) => Said::Held(hold.amount.nanos()),
                Outcome::Refused(why) => refused(&why),
                Outcome::NotCommitted(_) => Said::Error,
                Outcome::Unknown(error) => panic!("{error:?}"),
            },
            Order::Begin(background) => begun(writer.begin(*background).await),
            Order::Close(exchange, close) => {
                let hold = Hold {
                    exchange,
                    user: close.row.user,
                    amount: Usd::ZERO,
                    output_limit: None,
                };
                closed(writer.close(hold, writer.spare_place(), *close).await)
            }
        }
    })
}

fn in_transaction(tx: &Connection, order: &Order) -> Said {
    match order {
        Order::Hold(ask) => match ledger::place(&Prepared::of(tx), ask) {
            Ok(Ok(hold)) => Said::Held(hold.amount.nanos()),
            Ok(Err(why)) => refused(&why),
            Err(_) => Said::Error,
        },
        Order::Begin(background) => begun(background::begin(tx, background)),
        Order::Close(exchange, close) => closed(ledger::close(&Prepared::of(tx), *exchange, close)),
    }
}

fn refused(why: &HoldRefused) -> Said {
    match why {
        HoldRefused::Short(limit, short) => Said::Short {
            limit: limit.name().to_owned(),
            needed: short.needed.nanos(),
            available: short.available.nanos(),
            held: short.held.nanos(),
        },
        HoldRefused::Suspended => Said::Suspended,
        HoldRefused::KeyGone => Said::KeyGone,
        HoldRefused::Repeated(Repeat::Running(exchange)) => Said::Running(exchange.0.as_u128()),
        HoldRefused::Repeated(Repeat::Done { exchange, charge }) => Said::Done(exchange.0.as_u128(), charge.nanos()),
        HoldRefused::Repeated(Repeat::OtherCall) => Said::OtherCall,
    }
}

fn begun<E>(begun: Result<(), E>) -> Said {
    begun.map_or(Said::Error, |()| Said::Begun)
}

fn closed<E>(closed: Result<Closed, E>) -> Said {
    match closed {
        Ok(closed) => Said::Closed {
            charged: closed.charged.nanos(),
            uncollected: closed.uncollected.nanos(),
            balance: closed.balance.nanos(),
            available: closed.available.nanos(),
        },
        Err(_) => Said::Error,
    }
}

fn credited(outcome: Outcome<(Entry, User, entries::Times), CreditRefused>) -> Said {
    match outcome {
        Outcome::Committed((entry, user, times)) => Said::Credited {
            seq: entry.seq,
            times: again(times),
            balance: user.balance.nanos(),
        },
        Outcome::Refused(CreditRefused::NoUser) => Said::NoUser,
        Outcome::Refused(CreditRefused::BelowHeld(_)) => Said::BelowHeld,
        Outcome::Refused(CreditRefused::OtherReference(first)) => Said::OtherReference(first.seq),
        Outcome::Refused(CreditRefused::TooLarge) => Said::TooLarge,
        Outcome::NotCommitted(_) => Said::Error,
        Outcome::Unknown(error) => panic!("{error:?}"),
    }
}

fn refunded(outcome: Outcome<Refunded, RefundRefused>) -> Said {
    match outcome {
        Outcome::Committed(Refunded {
            entry,
            user,
            left,
            times,
        }) => Said::Refunded {
            seq: entry.seq,
            times: again(times),
            left: left.nanos(),
            balance: user.balance.nanos(),
        },
        Outcome::Refused(RefundRefused::NothingCharged) => Said::NothingCharged,
        Outcome::Refused(RefundRefused::TooMuch(left)) => Said::TooMuch(left.nanos()),
        Outcome::Refused(RefundRefused::OtherReference(first)) => Said::OtherReference(first.seq),
        Outcome::Refused(RefundRefused::TooLarge) => Said::TooLarge,
        Outcome::NotCommitted(_) => Said::Error,
        Outcome::Unknown(error) => panic!("{error:?}"),
    }
}

fn again(times: entries::Times) -> Times {
    match times {
        entries::Times::First => Times::First,
        entries::Times::Again => Times::Again,
    }
}

/// A copy of the files of a process that is about to die. A checkpoint may be under way: the log is copied first and the
/// database last, so that all that has left the log, or is marked as moved, is in the database.
fn left_behind(of: &TempDir) -> TempDir {
    let copy = folder();
    let mut files: Vec<_> = fs::read_dir(of)
        .expect("listed")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort_by_key(|file| {
        let is = |ending| file.to_string_lossy().ends_with(ending);
        (!is("-wal"), is(".db"))
    });
    for file in files {
        let name = file.file_name().expect("a name");
        fs::copy(&file, copy.path().join(name)).expect("copied");
    }
    copy
}

// Running --------------------------------------------------------------------------------------------------------------

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number, not {text}")),
    )
}

/// What makes and shrinks the run of this number.
fn runner(seed: u64, number: u64) -> TestRunner {
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: u32::MAX - 1,
        max_shrink_time: SHRINK,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

#[test]
fn the_books_are_what_the_laws_say_under_any_sequence_of_operations() {
    let wanted = from_env("GATEWAY_MODEL_STEPS").map_or(STEPS, |steps| usize::try_from(steps).expect("64 bits"));
    let seed = from_env("GATEWAY_SEED").unwrap_or_else(|| u64::from(crc32fast::hash(Uuid::now_v7().as_bytes())));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let counts = RefCell::new(Counts::new());
    let steps = || counts.borrow().get("steps").copied().unwrap_or_default();
    let runs = proptest::collection::vec(step(), 1..=RUN);
    for number in 0.. {
        if steps() >= wanted {
            break;
        }
        let ran = runner(seed, number).run(&runs, |steps| {
            for (what, times) in runtime.block_on(run(&steps)) {
                *counts.borrow_mut().entry(what).or_default() += times;
            }
            Ok(())
        });
        if let Err(TestError::Fail(why, shortest)) = ran {
            panic!("GATEWAY_SEED={seed}, after {} steps: {why}\n{shortest:#?}", steps());
        }
    }
    let campaign = serde_json::json!({"suite": "model", "seed": seed, "counts": counts.into_inner(), "failures": 0});
    println!("campaign: {campaign}");
}

async fn run(steps: &[Step]) -> Counts {
    let mut bench = Bench::new();
    for step in steps {
        bench.take(step).await;
    }
    bench.look();
    bench.process.stop().await;
    bench.counts
}

//! The laws in plain integers: what the store has to answer to each operation, and what its books say then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::super::testing::at;
use crate::budget::Period;

/// What an operation answers, without the store's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// So much is set aside.
    Held(i64),
    /// It runs in the background.
    Begun,
    /// There is too little for a hold: of the balance, or of a budget.
    Short {
        limit: String,
        needed: i64,
        available: i64,
        held: i64,
    },
    /// Its name stands for an exchange that runs,
    Running(u128),
    /// for one that is done, and was charged so much,
    Done(u128, i64),
    /// or for another call.
    OtherCall,
    /// The user is suspended.
    Suspended,
    /// The key is revoked or has ended.
    KeyGone,
    /// The hold is closed.
    Closed {
        charged: i64,
        uncollected: i64,
        balance: i64,
        available: i64,
    },
    /// The entry of this number was made, now or before; the balance is now this.
    Credited { seq: i64, times: Times, balance: i64 },
    /// It would take what is held.
    BelowHeld,
    /// The reference is that of this entry, which is another one.
    OtherReference(i64),
    /// The balance would not fit.
    TooLarge,
    /// Nobody has this id.
    NoUser,
    /// The entry of this number gives so much of a charge back that this is left of it.
    Refunded {
        seq: i64,
        times: Times,
        left: i64,
        balance: i64,
    },
    /// The exchange took nothing.
    NothingCharged,
    /// No more than that is left of the charge.
    TooMuch(i64),
    /// The budgets by period: limit, spent, held.
    Budgets(Vec<(Period, i64, i64, i64)>),
    /// It cannot be done, and nothing was.
    Error,
}

/// Whether a credit is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Times {
    First,
    Again,
}

/// Whether a charge may take more than its hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beyond {
    Taken,
    Waived,
}

/// Whose a budget is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whose {
    User(usize),
    Key(usize),
}

/// A budget's window, by its first second.
type Window = (Whose, Period, i64);

/// The order in which budgets are told.
const PERIODS: [Period; 3] = [Period::Day, Period::Month, Period::Total];

/// When the window began that a time is in.
fn start(period: Period, now: i64) -> i64 {
    period.start(at(now)).as_second()
}

/// How long a call takes that comes to its end, in microseconds.
const CALL: i64 = 1_200_000;

/// How long a hold may be open, in microseconds.
const LONGEST_HOLD: i64 = 8 * 3_600_000_000;

/// How long a response may run in the background, in seconds.
pub(super) const LONGEST_RESPONSE: i64 = 24 * 3_600;

/// What a user's balance may be at most.
const MOST: i64 = 4_000_000_000_000_000_000;

/// Everything that has to be in the books. Users and keys go by their numbers, exchanges by theirs.
#[derive(Clone, Debug, Default)]
pub(super) struct Laws {
    pub(super) users: Vec<Owner>,
    pub(super) keys: Vec<Key>,
    pub(super) open: BTreeMap<u128, Held>,
    pub(super) closed: BTreeMap<u128, (Held, Closing)>,
    entries: Vec<Line>,
    pub(super) budgets: BTreeMap<(Whose, Period), i64>,
    /// The windows that are kept of them.
    windows: BTreeSet<Window>,
    /// What names stand for, of each key: an exchange and its body.
    names: BTreeMap<(usize, u8), (u128, u8)>,
    /// When the exchange ended that was closed last, in microseconds.
    ended: i64,
}

/// Who owns a balance.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) balance: i64,
    pub(super) credit_line: i64,
    pub(super) suspended: bool,
}

/// A key of a user.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) user: usize,
    pub(super) revoked: bool,
    /// From when on it is not valid.
    pub(super) ends: Option<i64>,
}

/// A hold.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) key: usize,
    pub(super) amount: i64,
    pub(super) at: i64,
    /// When the windows began that it is in, as in [`PERIODS`].
    starts: [i64; 3],
    /// Whether its response runs in the background: nobody interrupts it.
    pub(super) in_background: bool,
}

/// How it was closed.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    charge: i64,
    charged: i64,
    refunded: i64,
    balance: i64,
    ended: &'static str,
}

/// An entry.
#[derive(Clone, Debug)]
struct Line {
    user: usize,
    kind: &'static str,
    amount: i64,
    balance: i64,
    exchange: Option<u128>,
    refunds: Option<u128>,
    reference: Option<u32>,
}

impl Held {
    fn new(key: usize, amount: i64, now: i64) -> Held {
        Held {
            key,
            amount,
            at: now,
            starts: PERIODS.map(|period| start(period, now)),
            in_background: false,
        }
    }

    /// Until when its response may run.
    fn ends(&self) -> i64 {
        self.at + if self.in_background { LONGEST_RESPONSE } else { 0 }
    }

    fn is_in(&self, period: Period, start: i64) -> bool {
        let of_period = PERIODS.iter().zip(self.starts).find(|(of, _)| **of == period);
        of_period.is_some_and(|(_, began)| began == start)
    }
}

impl Laws {
    fn held(&self, user: usize) -> i64 {
        let of_user = self.open.values().filter(|held| self.keys[held.key].user == user);
        of_user.map(|held| held.amount).sum()
    }

    fn available(&self, user: usize) -> i64 {
        self.users[user].balance + self.users[user].credit_line - self.held(user)
    }

    /// The hold of an exchange, open or closed.
    pub(super) fn hold_of(&self, exchange: u128) -> Option<&Held> {
        let closed = || self.closed.get(&exchange).map(|(held, _)| held);
        self.open.get(&exchange).or_else(closed)
    }

    /// What calls of a window hold, and what they were charged and did not get back.
    fn sums(&self, (whose, period, start): Window) -> (i64, i64) {
        let is_in = |held: &Held| {
            held.is_in(period, start)
                && match whose {
                    Whose::User(user) => self.keys[held.key].user == user,
                    Whose::Key(key) => held.key == key,
                }
        };
        let held = self.open.values().filter(|held| is_in(held)).map(|held| held.amount);
        let spent = self.closed.values().filter(|(held, _)| is_in(held));
        let spent = spent.map(|(_, closing)| closing.charged - closing.refunded);
        (held.sum(), spent.sum())
    }

    /// The budgets that a hold counts in, each with its window: the key's first.
    fn windows_of(&self, held: &Held) -> Vec<(Window, i64)> {
        let both = [Whose::Key(held.key), Whose::User(self.keys[held.key].user)];
        let of = |whose| {
            PERIODS
                .into_iter()
                .zip(held.starts)
                .map(move |(period, start)| (whose, period, start))
        };
        let budgets = both.into_iter().flat_map(of);
        let there = budgets.filter_map(|window| Some((window, *self.budgets.get(&(window.0, window.1))?)));
        there.collect()
    }

    /// What a budget leaves.
    fn left(&self, (window, limit): (Window, i64)) -> i64 {
        let (held, spent) = self.sums(window);
        limit - held - spent
    }

    /// Why a call does not fit: what is used up before what is held, and what has the least of it.
    fn short(&self, held: &Held) -> Said {
        let (user, needed) = (self.keys[held.key].user, held.amount);
        let mut limits = vec![("balance".to_owned(), self.available(user), self.held(user))];
        limits.extend(self.windows_of(held).into_iter().map(|(window, limit)| {
            let owner = match window.0 {
                Whose::User(_) => "user",
                Whose::Key(_) => "key",
            };
            let left = self.left((window, limit)).max(0);
            (format!("{owner}_budget_{}", window.1), left, self.sums(window).0)
        }));
        let short = limits.into_iter().filter(|(_, available, _)| *available < needed);
        let (limit, available, held) = short
            .min_by_key(|(_, available, held)| (available + held >= needed, *available))
            .expect("something is short");
        Said::Short {
            limit,
            needed,
            available,
            held,
        }
    }

    /// What a name stands for, if it is taken.
    fn named(&self, key: usize, (name, body): (u8, u8)) -> Option<Said> {
        let (exchange, of) = *self.names.get(&(key, name))?;
        match self.closed.get(&exchange) {
            Some((_, closing)) if closing.charge == 0 => None,
            _ if of != body => Some(Said::OtherCall),
            Some((_, closing)) => Some(Said::Done(exchange, closing.charged)),
            None => Some(Said::Running(exchange)),
        }
    }

    /// A hold is taken when all of it is there, of the balance and of each budget, once; under a name, when that is free.
    pub(super) fn hold(
        &mut self,
        exchange: u128,
        key: usize,
        amount: i64,
        (now, name): (i64, Option<(u8, u8)>),
    ) -> Said {
        let held = Held::new(key, amount, now);
        let said = self.holds(exchange, &held, name);
        if said != Said::Error {
            let windows = self.windows_of(&held);
            self.windows.extend(windows.into_iter().map(|(window, _)| window));
        }
        if matches!(said, Said::Held(_)) && !self.open.contains_key(&exchange) {
            self.open.insert(exchange, held);
            if let Some((name, body)) = name {
                self.names.insert((key, name), (exchange, body));
            }
        }
        said
    }

    fn holds(&self, exchange: u128, held: &Held, name: Option<(u8, u8)>) -> Said {
        let Held {
            key, amount, at: now, ..
        } = *held;
        if let Some(first) = self.open.get(&exchange) {
            return if first.key == key {
                Said::Held(first.amount)
            } else {
                Said::Error
            };
        }
        if self.closed.contains_key(&exchange) {
            return Said::Error;
        }
        let Key { user, revoked, ends } = self.keys[key];
        if revoked || ends.is_some_and(|end| end <= now) {
            return Said::KeyGone;
        }
        if let Some(said) = name.and_then(|name| self.named(key, name)) {
            return said;
        }
        if self.users[user].suspended {
            return Said::Suspended;
        }
        let least = self.windows_of(held).into_iter().map(|budget| self.left(budget)).min();
        if self.available(user).min(least.map_or(i64::MAX, |left| left.max(0))) < amount {
            return self.short(held);
        }
        Said::Held(amount)
    }

    /// Only what is held for can run in the background.
    pub(super) fn begin(&mut self, exchange: u128) -> Said {
        match self.open.get_mut(&exchange) {
            Some(held) => {
                held.in_background = true;
                Said::Begun
            }
            None => Said::Error,
        }
    }

    /// A hold is closed once; what the charge cannot take is written down.
    pub(super) fn close(&mut self, exchange: u128, charge: i64, beyond: Beyond) -> Said {
        if charge < 0 && !self.closed.contains_key(&exchange) {
            return Said::Error;
        }
        let budgets = self.open.get(&exchange).map(|held| self.windows_of(held));
        let kept = budgets
            .unwrap_or_default()
            .into_iter()
            .filter(|(window, _)| self.windows.contains(window));
        let least = kept.map(|budget| self.left(budget)).min();
        if let Some(held) = self.open.remove(&exchange) {
            let user = self.keys[held.key].user;
            let budget = least.map_or(i64::MAX, |left| held.amount + left.max(0));
            let most = match beyond {
                Beyond::Taken => self.available(user).min(budget),
                Beyond::Waived => held.amount,
            };
            let charged = charge.min(most);
            self.users[user].balance -= charged;
            if charged > 0 {
                self.enter(user, "charge", -charged, (Some(exchange), None), None);
            }
            self.ended = held.at * 1_000_000 + CALL;
            self.put_away(exchange, held, charge, charged, "completed");
        }
        let Some((held, closing)) = self.closed.get(&exchange) else {
            return Said::Error;
        };
        let user = self.keys[held.key].user;
        Said::Closed {
            charged: closing.charged,
            uncollected: closing.charge - closing.charged,
            balance: closing.balance,
            available: closing.balance + self.users[user].credit_line - self.held(user),
        }
    }

    fn put_away(&mut self, exchange: u128, held: Held, charge: i64, charged: i64, ended: &'static str) {
        let balance = self.users[self.keys[held.key].user].balance;
        let closing = Closing {
            charge,
            charged,
            refunded: 0,
            balance,
            ended,
        };
        self.closed.insert(exchange, (held, closing));
    }

    /// What nobody finished costs nothing, but for what runs in the background. Which holds that closes.
    pub(super) fn interrupt(&mut self, taken_before: i64, now: i64) -> Vec<u128> {
        let overdue = self
            .open
            .extract_if(.., |_, held| held.at < taken_before && !held.in_background);
        let overdue: Vec<_> = overdue.collect();
        let exchanges = overdue.iter().map(|(exchange, _)| *exchange).collect();
        if !overdue.is_empty() {
            self.ended = now * 1_000_000;
        }
        for (exchange, held) in overdue {
            self.put_away(exchange, held, 0, 0, "interrupted");
        }
        exchanges
    }

    /// A credit is made once for each reference, and takes nothing that is held.
    pub(super) fn credit(
        &mut self,
        user: Option<usize>,
        amount: i64,
        kind: &'static str,
        reference: Option<u32>,
    ) -> Said {
        if let Some(said) = self.referred_before(user, amount, reference) {
            return said;
        }
        let Some(user) = user else {
            return Said::NoUser;
        };
        let balance = self.users[user].balance + amount;
        if balance > MOST {
            return Said::TooLarge;
        }
        if amount < 0 && balance < self.held(user) {
            return Said::BelowHeld;
        }
        if amount == 0 || (amount < 0 && kind == "credit") {
            return Said::Error;
        }
        self.users[user].balance = balance;
        let times = Times::First;
        let seq = self.enter(user, kind, amount, (None, None), reference);
        Said::Credited { seq, times, balance }
    }

    fn referred_before(&self, user: Option<usize>, amount: i64, reference: Option<u32>) -> Option<Said> {
        let (seq, first) = self.by_reference(reference)?;
        if (Some(first.user), first.amount, first.refunds) != (user, amount, None) {
            return Some(Said::OtherReference(seq));
        }
        let (times, balance) = (Times::Again, self.users[first.user].balance);
        Some(Said::Credited { seq, times, balance })
    }

    fn by_reference(&self, reference: Option<u32>) -> Option<(i64, &Line)> {
        let reference = reference?;
        let mut lines = (1..).zip(&self.entries);
        lines.find(|(_, line)| line.reference == Some(reference))
    }

    /// A charge is given back, in parts or all that is left, never more, to the budgets it counted in.
    pub(super) fn refund(&mut self, exchange: u128, amount: Option<i64>, reference: Option<u32>) -> Said {
        let Some((held, closing)) = self.closed.get(&exchange).filter(|(_, closing)| closing.charged > 0) else {
            return Said::NothingCharged;
        };
        let (user, left) = (self.keys[held.key].user, closing.charged - closing.refunded);
        if let Some((seq, first)) = self.by_reference(reference) {
            if first.refunds != Some(exchange) || amount.is_some_and(|amount| amount != first.amount) {
                return Said::OtherReference(seq);
            }
            let (times, balance) = (Times::Again, self.users[user].balance);
            return Said::Refunded {
                seq,
                times,
                left,
                balance,
            };
        }
        let amount = amount.unwrap_or(left);
        if amount > left || amount <= 0 {
            return Said::TooMuch(left);
        }
        let balance = self.users[user].balance + amount;
        if balance > MOST {
            return Said::TooLarge;
        }
        self.users[user].balance = balance;
        if let Some((_, closing)) = self.closed.get_mut(&exchange) {
            closing.refunded += amount;
        }
        Said::Refunded {
            seq: self.enter(user, "refund", amount, (None, Some(exchange)), reference),
            times: Times::First,
            left: left - amount,
            balance,
        }
    }

    /// A budget counts from the beginning of its window on, also what was before it was set.
    pub(super) fn set_budget(&mut self, whose: Whose, period: Period, limit: Option<i64>, now: i64) -> Said {
        match limit {
            Some(limit) => {
                if self.budgets.insert((whose, period), limit).is_none() {
                    self.windows.insert((whose, period, start(period, now)));
                }
            }
            None => {
                self.budgets.remove(&(whose, period));
                self.windows.retain(|window| (window.0, window.1) != (whose, period));
            }
        }
        let standing = PERIODS.into_iter().filter_map(|period| {
            let limit = *self.budgets.get(&(whose, period))?;
            let (held, spent) = self.sums((whose, period, start(period, now)));
            Some((period, limit, spent, held))
        });
        Said::Budgets(standing.collect())
    }

    /// The holds that were open for longer than any call lasts when the last exchange ended; of those in the background,
    /// longer than that beyond their deadlines.
    pub(super) fn overdue(&self) -> Vec<u128> {
        let before = self.ended - LONGEST_HOLD;
        let overdue = self.open.iter().filter(|(_, held)| held.ends() * 1_000_000 < before);
        overdue.map(|(exchange, _)| *exchange).collect()
    }

    /// Writes an entry down; the balance is the one after it. Gives its number.
    fn enter(
        &mut self,
        user: usize,
        kind: &'static str,
        amount: i64,
        (exchange, refunds): (Option<u128>, Option<u128>),
        reference: Option<u32>,
    ) -> i64 {
        let balance = self.users[user].balance;
        self.entries.push(Line {
            user,
            kind,
            amount,
            balance,
            exchange,
            refunds,
            reference,
        });
        i64::try_from(self.entries.len()).expect("few")
    }

    /// The whole books, a line for each row, in the words of [`super::BOOKS`].
    pub(super) fn books(&self) -> Vec<String> {
        let users = (0..).zip(&self.users).map(|(number, user)| {
            let status = if user.suspended { "suspended" } else { "active" };
            format!(
                "user {number} {status}: {}, line {}, held {}",
                user.balance,
                user.credit_line,
                self.held(number)
            )
        });
        let keys = (0..).zip(&self.keys).map(|(number, key): (usize, _)| {
            let revoked = if key.revoked { " revoked" } else { "" };
            format!("key {number} of {}{revoked}", key.user)
        });
        let open = self.open.iter().map(|(exchange, held)| {
            let place = if held.in_background { " in the background" } else { "" };
            format!("{} open{place}", hold(*exchange, held))
        });
        let closed = self.closed.iter().flat_map(|(exchange, (held, closing))| {
            let state = if closing.charge > 0 { "settled" } else { "released" };
            let (charge, charged, balance) = (closing.charge, closing.charged, closing.balance);
            [
                format!("{} {state}", hold(*exchange, held)),
                format!(
                    "usage {exchange:032X} of {} {}: {charge}, {} uncollected, balance {balance}, held {}",
                    self.keys[held.key].user,
                    closing.ended,
                    charge - charged,
                    held.amount,
                ),
            ]
        });
        let entries = (1..).zip(&self.entries).map(|(seq, line): (usize, _)| {
            let exchange = line
                .exchange
                .or(line.refunds)
                .map(|exchange| format!("{exchange:032X}"));
            let reference = line.reference.map(|reference| reference.to_string());
            format!(
                "entry {seq} of {} {}: {}, balance {}, for {}, {}",
                line.user,
                line.kind,
                line.amount,
                line.balance,
                exchange.unwrap_or_default(),
                reference.unwrap_or_default()
            )
        });
        let budgets = self
            .budgets
            .iter()
            .map(|((whose, period), limit)| format!("budget {whose} {period}: {limit}"));
        let windows = self.windows.iter().map(|window| {
            let ((whose, period, start), (held, spent)) = (window, self.sums(*window));
            format!("window {whose} {period} from {start}: {held} held, {spent} spent")
        });
        let names = self
            .names
            .iter()
            .map(|((key, _), (exchange, _))| format!("name by {key}: {exchange:032X}"));
        let of_calls = open.chain(closed).chain(entries).chain(names);
        let mut books: Vec<String> = users
            .chain(keys)
            .chain(of_calls)
            .chain(budgets)
            .chain(windows)
            .collect();
        books.sort();
        books
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whose::User(user) => write!(f, "user {user}"),
            Whose::Key(key) => write!(f, "key {key}"),
        }
    }
}

fn hold(exchange: u128, held: &Held) -> String {
    format!("hold {exchange:032X} by {}: {} at {}", held.key, held.amount, held.at)
}

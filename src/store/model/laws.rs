//! The laws in plain integers: what the store has to answer to each operation, and what its books say then.

use std::collections::BTreeMap;

/// What an operation answers, without the store's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// So much is set aside.
    Held(i64),
    /// There is too little for a hold.
    Short { needed: i64, available: i64, held: i64 },
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
}

/// How it was closed.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    charge: i64,
    charged: i64,
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
    reference: Option<u32>,
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

    /// A hold is taken when all of it is there, once.
    pub(super) fn hold(&mut self, exchange: u128, key: usize, amount: i64, now: i64) -> Said {
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
        if self.users[user].suspended {
            return Said::Suspended;
        }
        let (available, held) = (self.available(user), self.held(user));
        if available < amount {
            let needed = amount;
            return Said::Short {
                needed,
                available,
                held,
            };
        }
        self.open.insert(exchange, Held { key, amount, at: now });
        Said::Held(amount)
    }

    /// A hold is closed once; what the charge cannot take is written down.
    pub(super) fn close(&mut self, exchange: u128, charge: i64, beyond: Beyond) -> Said {
        if charge < 0 && !self.closed.contains_key(&exchange) {
            return Said::Error;
        }
        if let Some(held) = self.open.remove(&exchange) {
            let user = self.keys[held.key].user;
            let most = match beyond {
                Beyond::Taken => self.available(user),
                Beyond::Waived => held.amount,
            };
            let charged = charge.min(most);
            self.users[user].balance -= charged;
            if charged > 0 {
                self.enter(user, "charge", -charged, Some(exchange), None);
            }
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
            balance,
            ended,
        };
        self.closed.insert(exchange, (held, closing));
    }

    /// What nobody finished costs nothing. Which holds that closes.
    pub(super) fn interrupt(&mut self, taken_before: i64) -> Vec<u128> {
        let overdue = self.open.extract_if(.., |_, held| held.at < taken_before);
        let overdue: Vec<_> = overdue.collect();
        let exchanges = overdue.iter().map(|(exchange, _)| *exchange).collect();
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
        let seq = self.enter(user, kind, amount, None, reference);
        Said::Credited { seq, times, balance }
    }

    fn referred_before(&self, user: Option<usize>, amount: i64, reference: Option<u32>) -> Option<Said> {
        let reference = reference?;
        let is_it = |line: &&Line| line.reference == Some(reference);
        let (seq, first) = (1..).zip(&self.entries).find(|(_, line)| is_it(line))?;
        if (Some(first.user), first.amount) != (user, amount) {
            return Some(Said::OtherReference(seq));
        }
        let (times, balance) = (Times::Again, self.users[first.user].balance);
        Some(Said::Credited { seq, times, balance })
    }

    /// Writes an entry down; the balance is the one after it. Gives its number.
    fn enter(
        &mut self,
        user: usize,
        kind: &'static str,
        amount: i64,
        exchange: Option<u128>,
        reference: Option<u32>,
    ) -> i64 {
        let balance = self.users[user].balance;
        self.entries.push(Line {
            user,
            kind,
            amount,
            balance,
            exchange,
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
        let open = self
            .open
            .iter()
            .map(|(exchange, held)| format!("{} open", hold(*exchange, held)));
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
            let exchange = line.exchange.map(|exchange| format!("{exchange:032X}"));
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
        let mut books: Vec<String> = users.chain(keys).chain(open).chain(closed).chain(entries).collect();
        books.sort();
        books
    }
}

fn hold(exchange: u128, held: &Held) -> String {
    format!("hold {exchange:032X} by {}: {} at {}", held.key, held.amount, held.at)
}

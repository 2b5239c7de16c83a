//! The books of a database file, read beside the gateway's code: the first five laws, and what `ledger verify` finds.

use std::path::Path;

use codex_gateway::store::usage_log::{ExchangeFilter, ExchangeRow};
use codex_gateway::store::users::User;
use codex_gateway::store::{Create, Store};
use rusqlite::{Connection, OpenFlags};

/// What a gateway has written, at its end.
#[derive(Debug)]
pub struct Books {
    /// Every exchange, oldest first.
    pub exchanges: Vec<ExchangeRow>,
    /// Every user.
    pub users: Vec<User>,
}

impl Books {
    /// Reads the books and checks them.
    pub fn checked(path: &Path) -> Books {
        check_laws(path);
        let store = Store::open(path, Create::Never).expect("the database opens");
        let verification = store.verify().expect("the books can be verified");
        assert_eq!(verification.findings, [], "ledger verify finds nothing");
        assert_eq!(verification.open_holds, 0, "no hold stays open");
        let filter = ExchangeFilter {
            limit: u32::MAX,
            ..ExchangeFilter::default()
        };
        let mut exchanges = store.exchanges(&filter).expect("the exchanges can be read");
        exchanges.sort_by_key(|row| row.id);
        Books {
            exchanges,
            users: store.users().expect("the users can be read"),
        }
    }

    /// The exchange whose answer carried this `x-request-id`.
    pub fn exchange(&self, id: &str) -> &ExchangeRow {
        let found = self.exchanges.iter().find(|row| row.id.0.to_string() == id);
        found.unwrap_or_else(|| panic!("no exchange {id}"))
    }

    /// The only exchange.
    pub fn only(&self) -> &ExchangeRow {
        let [row] = self.exchanges.as_slice() else {
            panic!("{} exchanges", self.exchanges.len());
        };
        row
    }

    /// What all users have been charged, in nano-dollars.
    pub fn charged(&self) -> i128 {
        let collected = |row: &ExchangeRow| i128::from(row.charge.nanos()) - i128::from(row.uncollected.nanos());
        self.exchanges.iter().map(collected).sum()
    }
}

/// The first five laws in SQL of their own.
#[expect(
    clippy::disallowed_methods,
    reason = "the laws are checked beside the store, not by it"
)]
fn check_laws(path: &Path) {
    let file = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the database opens");
    let broken = |law: &str, query: &str| {
        let count: i64 = file.query_row(query, [], |row| row.get(0)).expect(law);
        assert_eq!(count, 0, "{law}: {count} rows");
    };
    broken(
        "law 1: what is available is never below zero",
        "SELECT COUNT(*) FROM users WHERE balance_nanos + credit_line_nanos - held_nanos < 0",
    );
    broken(
        "law 2: a balance is the sum of its entries",
        "SELECT COUNT(*) FROM users WHERE balance_nanos <>
           (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE user_id = users.id)",
    );
    broken(
        "law 3: every hold is closed, and what is held is the sum of open holds",
        "SELECT (SELECT COUNT(*) FROM holds WHERE state = 'open') + (SELECT COUNT(*) FROM users WHERE held_nanos <> 0)",
    );
    broken(
        "law 4: a closed hold has its usage row, and a charge its entry",
        "SELECT COUNT(*) FROM holds LEFT JOIN usage_logs USING (exchange_id)
           LEFT JOIN ledger_entries USING (exchange_id)
          WHERE usage_logs.exchange_id IS NULL
             OR COALESCE(-ledger_entries.amount_nanos, 0) <> charge_nanos - uncollected_nanos",
    );
    broken(
        "law 5: the charges are the priced usage without what was not collected",
        "SELECT (SELECT COALESCE(SUM(charge_nanos - uncollected_nanos), 0) FROM usage_logs)
              + (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE kind = 'charge')",
    );
}

//! Users: each balance as the sum of a chain of entries, and what is held as the sum of open holds.

use std::collections::HashMap;
use std::sync::LazyLock;

use rusqlite::types::ValueRef;
use rusqlite::{Row, ToSql};

use super::super::digest::{Digest, GENESIS};
use super::super::entries::{ENTRY_COLUMNS, ENTRY_DOMAIN};
use super::super::{audit, users};
use super::{Books, Sum, bytes, integer, is_hash, shown};

/// All entries, each with what its usage row says: in the order of both tables, so that every page is read once.
pub(super) static ENTRIES: LazyLock<String> = LazyLock::new(|| {
    let columns = ENTRY_COLUMNS.join(", e.");
    format!(
        "SELECT e.{columns}, e.hash, u.row_hash, u.charge_nanos, u.uncollected_nanos, u.balance_after_nanos,
                e.refunds
         FROM ledger_entries e LEFT JOIN usage_logs u ON u.exchange_id = e.exchange_id ORDER BY e.seq"
    )
});

/// Where what is needed stands in [`ENTRIES`].
const SEQ: usize = 0;
const USER: usize = 1;
const AMOUNT: usize = 3;
const BALANCE: usize = 4;
const EXCHANGE: usize = 5;
const HASH: usize = ENTRY_COLUMNS.len();
const USAGE_HASH: usize = HASH + 1;
const USAGE_CHARGE: usize = HASH + 2;
const USAGE_UNCOLLECTED: usize = HASH + 3;
const USAGE_BALANCE: usize = HASH + 4;
const REFUNDS: usize = HASH + 5;

/// How many holds a user has: a usage row for each that is closed.
const HOLDS: &str = "SELECT (SELECT COUNT(*) FROM usage_logs WHERE user_id = ?1)
                          + (SELECT COUNT(*) FROM holds WHERE user_id = ?1 AND state = 'open')";

/// What is held for a user.
const HELD: &str = "SELECT COALESCE(SUM(amount_nanos), 0) FROM holds WHERE user_id = ?1 AND state = 'open'";

/// How many entries operators made, by the audit log.
const ACTS: &str = "SELECT COUNT(*) FROM audit_log WHERE subject = ?1 AND action IN ('ledger.credit', 'ledger.adjust', 'ledger.refund')";

/// What a user's entries come to.
struct Chain {
    sum: Sum,
    count: Sum,
    by_operators: Sum,
    head: Vec<u8>,
}

impl Default for Chain {
    fn default() -> Chain {
        Chain {
            sum: 0,
            count: 0,
            by_operators: 0,
            head: GENESIS.to_vec(),
        }
    }
}

impl Books<'_> {
    pub(super) fn accounts(&mut self) -> rusqlite::Result<()> {
        let mut chains = self.chains()?;
        let mut statement = self.conn.prepare("SELECT *, id AS raw FROM users ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.result.users += 1;
            let id = row.get_ref("raw")?;
            let name = shown(id);
            self.as_written(row, &name)?;
            let chain = chains.remove(bytes(id)).unwrap_or_default();
            self.sums(row, &name, &chain)?;
        }
        for user in chains.keys() {
            let name = shown(ValueRef::Blob(user));
            self.find("users", name, "is not there, and has entries");
        }
        Ok(())
    }

    /// Status and credit line have to be as last written down.
    fn as_written(&mut self, row: &Row<'_>, name: &str) -> rusqlite::Result<()> {
        let user = match users::user(row) {
            Ok(user) => user,
            Err(error) => {
                self.find("users", name, format!("does not parse: {error}"));
                return Ok(());
            }
        };
        let written = audit::last_state(self.conn, "user.", name)?;
        if !audit::is_as_written(written.as_deref(), &users::audited(&user)) {
            self.find("users", name, "is not what the audit log says of it");
        }
        if user.available().is_negative() {
            self.find("users", name, "has less than nothing available");
        }
        Ok(())
    }

    /// What a user's row keeps of entries and holds has to be what there is of them.
    fn sums(&mut self, row: &Row<'_>, name: &str, chain: &Chain) -> rusqlite::Result<()> {
        let id = bytes(row.get_ref("raw")?);
        if integer(row.get_ref("balance_nanos")?) != Some(chain.sum) {
            self.find("users", name, "has a balance that is not the sum of its entries");
        }
        let head = match row.get_ref("head_hash")? {
            ValueRef::Null => &GENESIS,
            head => bytes(head),
        };
        if integer(row.get_ref("entries")?) != Some(chain.count) || head != chain.head {
            let problem = "has other entries than were made: some are missing, or were added";
            self.find("users", name, problem);
        }
        if self.number(HOLDS, id)? != integer(row.get_ref("holds")?) {
            let problem = "has other holds than were taken: some are missing, or were added";
            self.find("users", name, problem);
        }
        if self.number(ACTS, name)? != Some(chain.by_operators) {
            self.find("users", name, "was credited otherwise than the audit log says");
        }
        if self.number(HELD, id)? != integer(row.get_ref("held_nanos")?) {
            self.find("users", name, "holds something else than the sum of its open holds");
        }
        Ok(())
    }

    /// The number that SQL gives whose ?1 is an id.
    fn number(&self, sql: &str, id: impl ToSql) -> rusqlite::Result<Option<Sum>> {
        self.conn
            .prepare_cached(sql)?
            .query_row([id], |row| Ok(integer(row.get_ref(0)?)))
    }

    /// All entries, by user: the chain, the running balance, the usage rows of charges.
    fn chains(&mut self) -> rusqlite::Result<HashMap<Vec<u8>, Chain>> {
        let mut statement = self.conn.prepare(&ENTRIES)?;
        let mut rows = statement.query([])?;
        let mut chains: HashMap<Vec<u8>, Chain> = HashMap::new();
        while let Some(row) = rows.next()? {
            self.result.entries += 1;
            let user = bytes(row.get_ref(USER)?);
            let chain = chains.entry(user.to_vec()).or_default();
            chain.count += 1;
            chain.sum += integer(row.get_ref(AMOUNT)?).unwrap_or_default();
            chain.by_operators += Sum::from(row.get_ref(EXCHANGE)? == ValueRef::Null);
            for problem in problems(row, chain)? {
                self.find("ledger_entries", shown(row.get_ref(SEQ)?), problem);
            }
            chain.head.clear();
            chain.head.extend_from_slice(bytes(row.get_ref(HASH)?));
        }
        Ok(chains)
    }
}

/// What is wrong with an entry at its place in the chain.
fn problems(row: &Row<'_>, chain: &Chain) -> rusqlite::Result<Vec<&'static str>> {
    let mut digest = Digest::new(ENTRY_DOMAIN);
    digest.field("previous_hash", ValueRef::Blob(&chain.head));
    digest.columns(row, 0, &ENTRY_COLUMNS)?;
    digest.field("usage_hash", row.get_ref(USAGE_HASH)?);
    digest.field_if_any("refunds", row.get_ref(REFUNDS)?);
    let mut problems = Vec::new();
    if !is_hash(row, HASH, digest)? {
        problems.push("its hash does not fit: it, its usage row or an entry before it was altered");
    }
    let balance = integer(row.get_ref(BALANCE)?);
    if balance != Some(chain.sum) {
        problems.push("its balance is not the sum so far");
    }
    if row.get_ref(EXCHANGE)? != ValueRef::Null {
        let charge = integer(row.get_ref(USAGE_CHARGE)?).zip(integer(row.get_ref(USAGE_UNCOLLECTED)?));
        let charged = charge.map(|(charge, uncollected)| uncollected - charge);
        if charged.is_none() || charged != integer(row.get_ref(AMOUNT)?) {
            problems.push("its usage row charged something else");
        }
        if integer(row.get_ref(USAGE_BALANCE)?) != balance {
            problems.push("its usage row has another balance");
        }
    }
    Ok(problems)
}

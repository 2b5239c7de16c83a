//! What operators wrote: credits, refunds, codes, keys and prices, as the audit log says of them.

use rusqlite::OptionalExtension;

use super::super::{audit, background, budgets, codes, idempotency, keys, prices};
use super::{Books, Sum, bytes, integer, shown};
use crate::money::Usd;

/// Refunds by exchange, each with the charge of it.
pub(super) const REFUNDS: &str = "SELECT r.refunds, r.seq, r.amount_nanos AS amount, r.user_id AS user,
            c.amount_nanos AS charge, c.user_id AS charged_to
     FROM ledger_entries r LEFT JOIN ledger_entries c ON c.exchange_id = r.refunds
     WHERE r.refunds IS NOT NULL ORDER BY r.refunds";

impl Books<'_> {
    pub(super) fn records(&mut self) -> rusqlite::Result<()> {
        self.missing("user.add", "users")?;
        self.gaps()?;
        self.credits()?;
        self.refunds()?;
        self.codes()?;
        self.keys()?;
        self.missing("key.issue", "api_keys")?;
        for (table, row, problem) in budgets::wrong(self.conn)? {
            self.find(table, row, problem);
        }
        let other_keys = "stands for no exchange of its key";
        self.rows_that_must_not_be("idempotency", idempotency::UNFOUNDED, other_keys)?;
        let no_hold = "has no open hold of its user's";
        self.rows_that_must_not_be("background_responses", background::UNFOUNDED, no_hold)?;
        self.prices()
    }

    fn keys(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(&keys::select("ORDER BY k.id"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = shown(row.get_ref("id")?);
            match keys::key(row) {
                Err(error) => self.find("api_keys", name, format!("does not parse: {error}")),
                Ok(key) => {
                    let written = audit::last_state(self.conn, "key.", &name)?;
                    if !audit::is_as_written(written.as_deref(), &keys::audited(&key)) {
                        self.find("api_keys", name, "is not what the audit log says of it");
                    }
                }
            }
        }
        let sql = "SELECT id FROM api_keys k WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = k.user_id)";
        self.rows_that_must_not_be("api_keys", sql, "belongs to a user who is not there")
    }

    /// What operators put into balances or took out has to be there, as an entry of that amount.
    fn credits(&mut self) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut statement =
            conn.prepare("SELECT seq, subject, after FROM audit_log WHERE action LIKE 'ledger.%' ORDER BY seq")?;
        let mut entries = conn.prepare("SELECT user_id, amount_nanos FROM ledger_entries WHERE seq = ?1")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let act: serde_json::Value = serde_json::from_str(&row.get::<_, String>("after")?).unwrap_or_default();
            let amount = act["amount"].as_str().and_then(|amount| amount.parse().ok());
            let found = entries
                .query_row([act["entry"].as_i64()], |entry| {
                    Ok((
                        shown(entry.get_ref("user_id")?),
                        integer(entry.get_ref("amount_nanos")?),
                    ))
                })
                .optional()?;
            let said = (row.get("subject")?, amount.map(|usd: Usd| Sum::from(usd.nanos())));
            if found != Some(said) {
                let entry = act["entry"].to_string();
                self.find("ledger_entries", entry, "is not there as the audit log says of it");
            }
        }
        Ok(())
    }

    /// Refunds give back what was charged, at most, and to whom it was charged.
    fn refunds(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(REFUNDS)?;
        let mut rows = statement.query([])?;
        let mut of: (Vec<u8>, Sum) = Default::default();
        while let Some(row) = rows.next()? {
            let exchange = bytes(row.get_ref("refunds")?);
            if of.0 != exchange {
                of = (exchange.to_vec(), 0);
            }
            of.1 += integer(row.get_ref("amount")?).unwrap_or_default();
            let seq = shown(row.get_ref("seq")?);
            let charge = integer(row.get_ref("charge")?).unwrap_or_default();
            if of.1 + charge > 0 {
                self.find("ledger_entries", &*seq, "gives back more than was charged");
            }
            if charge != 0 && row.get_ref("charged_to")? != row.get_ref("user")? {
                self.find("ledger_entries", &*seq, "gives back what was another user's charge");
            }
        }
        Ok(())
    }

    /// Codes are as they were made, and each that was redeemed is the entry that it became, and no other one is.
    fn codes(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(&codes::select("ORDER BY c.id"))?;
        let mut entry = self.conn.prepare(
            "SELECT seq, user_id, amount_nanos FROM ledger_entries WHERE reference = ?1 AND kind = 'credit'",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let code = match codes::code(row) {
                Ok(code) => code,
                Err(error) => {
                    self.find("codes", shown(row.get_ref("id")?), format!("does not parse: {error}"));
                    continue;
                }
            };
            let name = shown(code.id.value());
            let written = audit::last_state(self.conn, "code.", &name)?;
            if !audit::is_as_written(written.as_deref(), &codes::audited(&code)) {
                self.find("codes", &*name, "is not what the audit log says of it");
            }
            let found = entry
                .query_row([codes::reference(code.id)], |entry| {
                    Ok((entry.get(0)?, entry.get(1)?, entry.get(2)?))
                })
                .optional()?;
            let said = code.redeemed.map(|by| (by.entry, by.user, code.amount));
            if found != said {
                self.find("codes", name, "is not the entry that it says it became");
            }
        }
        self.missing("code.create", "codes")
    }

    /// Entries and acts are numbered without gaps.
    fn gaps(&mut self) -> rusqlite::Result<()> {
        for table in ["ledger_entries", "audit_log"] {
            let sql = format!("SELECT COUNT(*), COALESCE(MAX(seq), 0), COALESCE(MIN(seq), 1) FROM {table}");
            let (count, last, first): (i64, i64, i64) = self
                .conn
                .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            if (count, first) != (last, 1) {
                self.find(
                    table,
                    last.to_string(),
                    "is the last number, and numbers before it are missing",
                );
            }
        }
        Ok(())
    }

    fn prices(&mut self) -> rusqlite::Result<()> {
        for (row, problem) in prices::unlike_the_audit_log(self.conn)? {
            self.find("model_pricing", row, problem);
        }
        if !prices::catalogue_is_whole(self.conn)? {
            self.find("model_pricing", "catalogue", "has other prices than the program wrote");
        }
        Ok(())
    }

    /// Users and keys that were added have to be there.
    fn missing(&mut self, action: &str, table: &'static str) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare("SELECT subject FROM audit_log WHERE action = ?1")?;
        let mut exists = self.conn.prepare(&format!("SELECT 1 FROM {table} WHERE id = ?1"))?;
        let mut rows = statement.query([action])?;
        while let Some(row) = rows.next()? {
            let subject: String = row.get("subject")?;
            let id = uuid::Uuid::try_parse(&subject).unwrap_or_default();
            if !exists.exists([id.as_bytes()])? {
                self.find(table, subject, "was added and is not there");
            }
        }
        Ok(())
    }
}

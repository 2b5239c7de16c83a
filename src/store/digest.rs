//! What is hashed, byte for byte, so that others can recompute it.
//!
//! A digest is SHA-256 over a domain followed by fields. The domain is a *text*, a field is a *text* (its name) and a
//! value:
//!
//! - a *text*: its length in bytes as 8 bytes, big-endian, then its bytes (UTF-8);
//! - a value: one byte for its kind, its length in bytes as 8 bytes, big-endian, then its bytes: `0` NULL (no bytes),
//!   `1` integer (8 bytes, big-endian, two's complement), `3` text (UTF-8), `4` blob. Real numbers do not occur.
//!
//! | digest | domain | fields |
//! |---|---|---|
//! | `holds.hash` | `codex-gateway hold 1` | the columns in [`HOLD`](super::ledger::HOLD_COLUMNS), in that order |
//! | `usage_logs.row_hash` | `codex-gateway usage 1` | the columns in [`USAGE`](super::usage_log::USAGE_COLUMNS), in that order; then `hold_hash` (the hold's `hash`), `hold_state` (its state) |
//! | `ledger_entries.hash` | `codex-gateway entry 1` | `previous_hash` (the user's entry before it; for the first one 32 zero bytes), the columns in [`ENTRY`](super::entries::ENTRY_COLUMNS), in that order; then `usage_hash` (the `row_hash` of a charge's usage row, else NULL) |
//!
//! So an entry covers all entries of its user before it, its usage row, and, through it, its hold.

use rusqlite::Row;
use rusqlite::types::{Value, ValueRef};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// The hash before a user's first entry.
pub(super) const GENESIS: Hash = [0; 32];

/// A row's cells in the order in which they are stored and hashed.
pub(super) type Cells = Vec<(&'static str, Value)>;

/// A digest under way.
pub(super) struct Digest(Sha256);

impl Digest {
    /// Begins with a domain.
    pub(super) fn new(domain: &str) -> Digest {
        let mut digest = Digest(Sha256::new());
        digest.sized(domain.as_bytes());
        digest
    }

    /// Adds a field.
    pub(super) fn field(&mut self, name: &str, value: ValueRef<'_>) {
        self.sized(name.as_bytes());
        let (kind, bytes): (u8, &[u8]) = match value {
            ValueRef::Null => (0, &[]),
            ValueRef::Integer(number) => (1, &number.to_be_bytes()),
            ValueRef::Real(number) => (2, &number.to_bits().to_be_bytes()),
            ValueRef::Text(text) => (3, text),
            ValueRef::Blob(bytes) => (4, bytes),
        };
        self.0.update([kind]);
        self.sized(bytes);
    }

    /// Adds cells, in their order.
    pub(super) fn cells(&mut self, cells: &Cells) {
        for (name, value) in cells {
            self.field(name, value.into());
        }
    }

    /// Adds columns of a stored row, in the given order.
    pub(super) fn columns(&mut self, row: &Row<'_>, names: &[&str]) -> rusqlite::Result<()> {
        for name in names {
            self.field(name, row.get_ref(*name)?);
        }
        Ok(())
    }

    /// The hash.
    pub(super) fn finish(self) -> Hash {
        self.0.finalize().into()
    }

    fn sized(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.0.update(length.to_be_bytes());
        self.0.update(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_the_documented_one() {
        let mut digest = Digest::new("d");
        digest.field("n", ValueRef::Integer(-2));
        digest.field("t", ValueRef::Text(b"ab"));
        digest.field("z", ValueRef::Null);
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 1, b'd'];
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, b'n', 1, 0, 0, 0, 0, 0, 0, 0, 8]);
        bytes.extend([255, 255, 255, 255, 255, 255, 255, 254]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, b't', 3, 0, 0, 0, 0, 0, 0, 0, 2, b'a', b'b']);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, b'z', 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(digest.finish(), Hash::from(Sha256::digest(bytes)));
    }

    #[test]
    fn no_two_rows_share_an_encoding() {
        let hash = |cells: Cells| {
            let mut digest = Digest::new("d");
            digest.cells(&cells);
            digest.finish()
        };
        let text = |text: &str| Value::Text(text.into());
        let rows = [
            vec![("a", text("1")), ("b", Value::Null)],
            vec![("a", Value::Integer(1)), ("b", Value::Null)],
            vec![("a", Value::Blob(b"1".into())), ("b", Value::Null)],
            vec![("a", Value::Null), ("b", text("1"))],
            vec![("a", text("1b"))],
            vec![("a", text("1"))],
        ];
        let hashes: std::collections::BTreeSet<Hash> = rows.iter().cloned().map(hash).collect();
        assert_eq!(hashes.len(), rows.len());
    }
}

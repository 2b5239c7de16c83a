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
//! | `usage_logs.row_hash` | `codex-gateway usage 1` | the columns in [`USAGE`](super::usage_log::USAGE_COLUMNS), in that order; then `hold_hash` (the hold's `hash`), `hold_state` (its state); then those of the columns in [`ORIGIN`](super::usage_log::ORIGIN_COLUMNS) that are not NULL, in that order |
//! | `ledger_entries.hash` | `codex-gateway entry 1` | `previous_hash` (the user's entry before it; for the first one 32 zero bytes), the columns in [`ENTRY`](super::entries::ENTRY_COLUMNS), in that order; then `usage_hash` (the `row_hash` of a charge's usage row, else NULL); then `refunds`, only in a refund |
//! | a seal ([`Seal`](super::seal::Seal)) | `codex-gateway seal 1` | `sequence` (the number of the last entry it covers, or 0); then, for each user in the order of ids who has entries up to it, `user_id` and `head_hash` (the `hash` of the newest of them) |
//!
//! So an entry covers all entries of its user before it, its usage row, and, through it, its hold;
//! and a seal covers all of these up to its number. Users without entries then do not count in it: users who are added
//! later do not change it.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{ParamsFromIter, Row, params_from_iter};
use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// The hash before a user's first entry.
pub(super) const GENESIS: Hash = [0; 32];

/// A row's cells in the order in which they are stored and hashed.
#[derive(Clone, Debug)]
pub(super) struct Cells<'a>(pub(super) Vec<(&'static str, ValueRef<'a>)>);

impl<'a> Cells<'a> {
    /// As parameters of a statement, with further values behind them.
    pub(super) fn and<const N: usize>(&self, further: [ValueRef<'a>; N]) -> ParamsFromIter<Vec<ToSqlOutput<'a>>> {
        let values = self.0.iter().map(|(_, value)| *value).chain(further);
        params_from_iter(values.map(ToSqlOutput::Borrowed).collect())
    }
}

/// So many bytes are hashed at once: a row at a time, not a number at a time.
const AT_ONCE: usize = 4096;

/// A digest under way.
pub(super) struct Digest {
    hashed: Sha256,
    pending: Vec<u8>,
}

impl Digest {
    /// Begins with a domain.
    pub(super) fn new(domain: &str) -> Digest {
        let mut digest = Digest {
            hashed: Sha256::new(),
            pending: Vec::with_capacity(AT_ONCE),
        };
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
        self.pending.push(kind);
        self.sized(bytes);
    }

    /// Adds a field that is only there when it has a value.
    pub(super) fn field_if_any(&mut self, name: &str, value: ValueRef<'_>) {
        if value != ValueRef::Null {
            self.field(name, value);
        }
    }

    /// Adds cells, in their order.
    pub(super) fn cells(&mut self, cells: &Cells<'_>) {
        for (name, value) in &cells.0 {
            self.field(name, *value);
        }
    }

    /// Adds columns of a stored row that stand side by side from `first` on, under these names.
    pub(super) fn columns(&mut self, row: &Row<'_>, first: usize, names: &[&str]) -> rusqlite::Result<()> {
        for (at, name) in (first..).zip(names) {
            self.field(name, row.get_ref(at)?);
        }
        Ok(())
    }

    /// The hash.
    pub(super) fn finish(mut self) -> Hash {
        self.hashed.update(&self.pending);
        self.hashed.finalize().into()
    }

    fn sized(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.pending.extend_from_slice(&length.to_be_bytes());
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= AT_ONCE {
            self.hashed.update(&self.pending);
            self.pending.clear();
        }
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
    fn a_long_digest_is_the_digest_of_all_of_it() {
        let text = "x".repeat(AT_ONCE - 30);
        let mut digest = Digest::new("d");
        let mut bytes = vec![0, 0, 0, 0, 0, 0, 0, 1, b'd'];
        for _ in 0..3 {
            digest.field("n", ValueRef::Text(text.as_bytes()));
            bytes.extend([0, 0, 0, 0, 0, 0, 0, 1, b'n', 3]);
            bytes.extend(u64::try_from(text.len()).expect("a length").to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        assert_eq!(digest.finish(), Hash::from(Sha256::digest(bytes)));
    }

    #[test]
    fn no_two_rows_share_an_encoding() {
        let hash = |cells: Vec<_>| {
            let mut digest = Digest::new("d");
            digest.cells(&Cells(cells));
            digest.finish()
        };
        let text = |text: &'static str| ValueRef::Text(text.as_bytes());
        let rows = [
            vec![("a", text("1")), ("b", ValueRef::Null)],
            vec![("a", ValueRef::Integer(1)), ("b", ValueRef::Null)],
            vec![("a", ValueRef::Blob(b"1")), ("b", ValueRef::Null)],
            vec![("a", ValueRef::Null), ("b", text("1"))],
            vec![("a", text("1b"))],
            vec![("a", text("1"))],
        ];
        let hashes: std::collections::BTreeSet<Hash> = rows.iter().cloned().map(hash).collect();
        assert_eq!(hashes.len(), rows.len());
    }
}

//! Redemption codes: made from 140 random bits, read as people type them, hashed, shown as a prefix.

use std::fmt;

use sha2::{Digest, Sha256};

/// What every code begins with.
const PREFIX: &str = "gwc";

/// Symbols of five random bits each: 140 bits.
pub const SYMBOLS: usize = 28;

/// Symbols between two hyphens.
const GROUP: usize = 4;

/// Symbols that are shown of a code that was made before; 110 bits stay unknown.
const SHOWN: usize = 6;

/// Crockford's base 32: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// SHA-256 of `gwc` and the symbols in capitals, without hyphens: all that is stored of a code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RedemptionHash(pub [u8; 32]);

impl fmt::Debug for RedemptionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedemptionHash(…)")
    }
}

/// A well-formed code. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct RedemptionCode(String);

impl fmt::Debug for RedemptionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gwc-…")
    }
}

impl RedemptionCode {
    /// A code from random bytes, of each of which five bits count.
    pub fn from_entropy(bytes: [u8; SYMBOLS]) -> RedemptionCode {
        let symbol = |byte: u8| char::from(ALPHABET[usize::from(byte % 32)]);
        RedemptionCode(bytes.into_iter().map(symbol).collect())
    }

    /// Reads a code as it was typed: in small or capital letters, with or without hyphens and blanks, and with the
    /// letters O, I and L where the digits 0 and 1 stand.
    pub fn parse(text: &str) -> Option<RedemptionCode> {
        start(text)
            .filter(|symbols| symbols.len() == SYMBOLS)
            .map(RedemptionCode)
    }

    /// The code itself, to be shown once: `gwc-7K2Q-…`, seven groups of four.
    pub fn reveal(&self) -> String {
        grouped(&self.0)
    }

    /// What is stored.
    pub fn hash(&self) -> RedemptionHash {
        RedemptionHash(
            Sha256::new()
                .chain_update(PREFIX)
                .chain_update(&self.0)
                .finalize()
                .into(),
        )
    }

    /// What is shown later: `gwc-7K2Q-9F`.
    pub fn prefix(&self) -> String {
        grouped(&self.0[..SHOWN])
    }
}

/// What would be shown of a code, when this is a code or the beginning of one.
pub fn shown(text: &str) -> Option<String> {
    let symbols = start(text)?;
    let shown = symbols.get(..SHOWN).unwrap_or(&symbols);
    (!shown.is_empty()).then(|| grouped(shown))
}

/// The symbols of a code or of its beginning.
fn start(text: &str) -> Option<String> {
    let rest = match text.trim().get(..PREFIX.len()) {
        Some(start) if start.eq_ignore_ascii_case(PREFIX) => &text.trim()[PREFIX.len()..],
        _ => return None,
    };
    let symbols = rest.chars().filter(|c| !matches!(c, '-' | ' ')).map(|typed| {
        let symbol = match typed.to_ascii_uppercase() {
            'O' => '0',
            'I' | 'L' => '1',
            other => other,
        };
        let known = u8::try_from(symbol).is_ok_and(|byte| ALPHABET.contains(&byte));
        known.then_some(symbol)
    });
    // Longer than a code is no code: what is typed is not kept.
    symbols.take(SYMBOLS + 1).collect()
}

fn grouped(symbols: &str) -> String {
    let mut text = String::from(PREFIX);
    for (at, symbol) in symbols.chars().enumerate() {
        if at % GROUP == 0 {
            text.push('-');
        }
        text.push(symbol);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let code = RedemptionCode::from_entropy(std::array::from_fn(|at| u8::try_from(at).expect("small")));
        assert_eq!(code.reveal(), "gwc-0123-4567-89AB-CDEF-GHJK-MNPQ-RSTV");
        assert_eq!(code.prefix(), "gwc-0123-45");
        for typed in [
            "GWC-0123-4567-89AB-CDEF-GHJK-MNPQ-RSTV",
            " gwc oi23 4567 89ab cdef ghjk mnpq rstv\n",
            "gwcOL23456789abcdefghjkmnpqrstv",
        ] {
            assert_eq!(RedemptionCode::parse(typed), Some(code.clone()), "{typed}");
        }
        for wrong in [
            "",
            "gwc",
            "gwc-0123",
            "0123456789ABCDEFGHJKMNPQRSTV",
            "gwc-0123-4567-89AB-CDEF-GHJK-MNPQ-RSTV-W",
            "gwc-U123-4567-89AB-CDEF-GHJK-MNPQ-RSTV",
            "gwc-é123-4567-89AB-CDEF-GHJK-MNPQ-RSTV",
        ] {
            assert_eq!(RedemptionCode::parse(wrong), None, "{wrong}");
        }
        assert_eq!(format!("{code:?} {:?}", code.hash()), "gwc-… RedemptionHash(…)");
    }

    #[test]
    fn the_start_of_a_code_is_enough_to_name_it() {
        assert_eq!(shown("GWC-ol2").as_deref(), Some("gwc-012"));
        assert_eq!(shown("gwc-0123-4567-89AB").as_deref(), Some("gwc-0123-45"));
        for nothing in ["", "gwc-", "01a20e17", "gwc-u"] {
            assert_eq!(shown(nothing), None, "{nothing}");
        }
    }

    proptest! {
        #[test]
        fn every_code_comes_back(bytes: [u8; SYMBOLS], text: String) {
            let code = RedemptionCode::from_entropy(bytes);
            prop_assert_eq!(RedemptionCode::parse(&code.reveal().to_lowercase()), Some(code.clone()));
            prop_assert!(code.reveal().starts_with(&code.prefix()));
            // Whatever is typed is read or refused.
            RedemptionCode::parse(&text);
            RedemptionCode::parse(&format!("gwc{text}"));
        }
    }
}

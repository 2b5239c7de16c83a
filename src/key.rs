//! Gateway keys: made from 256 random bits and a checksum, parsed, hashed, shown as a prefix.

use std::fmt;

use sha2::{Digest, Sha256};

/// What every key begins with.
const PREFIX: &str = "sk-gw-";

/// Base-62 digits that hold 256 bits: 62^43 > 2^256.
const SECRET_DIGITS: usize = 43;

/// Base-62 digits that hold a CRC-32: 62^6 > 2^32.
const CHECKSUM_DIGITS: usize = 6;

/// Digits of the secret that are shown with the prefix; 62^8 make a clash within one gateway unlikely.
const SHOWN_DIGITS: usize = 8;

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Beginnings of other services' tokens, the longer before the shorter.
const FOREIGN: [(&str, Foreign); 11] = [
    ("eyJ", Foreign::ChatGptSession),
    ("sk-proj-", Foreign::Key("OpenAI")),
    ("sk-svcacct-", Foreign::Key("OpenAI")),
    ("sk-admin-", Foreign::OpenAiAdmin),
    ("sk-ant-", Foreign::Key("Anthropic")),
    ("sk-or-", Foreign::Key("OpenRouter")),
    ("sk-", Foreign::LikeOpenAi),
    ("gsk_", Foreign::Key("Groq")),
    ("AIza", Foreign::Key("Google API")),
    ("xai-", Foreign::Key("xAI")),
    ("sess-", Foreign::OpenAiSession),
];

/// What another service's token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A key of this service.
    Key(&'static str),
    /// A key of OpenAI or of a service like it.
    LikeOpenAi,
    /// An admin key of OpenAI.
    OpenAiAdmin,
    /// A session token of OpenAI.
    OpenAiSession,
    /// A session token of ChatGPT.
    ChatGptSession,
}

/// SHA-256 of a whole key: all that is stored.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A well-formed key. Never shown by `Debug`.
#[derive(Clone)]
pub struct GatewayKey(String);

impl fmt::Debug for GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sk-gw-…")
    }
}

/// Why a token is not a gateway key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotAKey {
    /// Plainly another service's.
    Foreign(Foreign),
    /// Anything else: wrong prefix, length, alphabet or checksum. Refused before any look-up.
    Malformed,
}

impl GatewayKey {
    /// A key from 32 random bytes.
    pub fn from_entropy(bytes: [u8; 32]) -> GatewayKey {
        let mut text = String::with_capacity(PREFIX.len() + SECRET_DIGITS + CHECKSUM_DIGITS);
        text.push_str(PREFIX);
        push_base62(&mut text, bytes, SECRET_DIGITS);
        push_checksum(&mut text);
        GatewayKey(text)
    }

    /// Reads a key a client sent. The checksum catches every mistyped character, so that a typing error costs no
    /// look-up.
    pub fn parse(text: &str) -> Result<GatewayKey, NotAKey> {
        let Some(digits) = text.strip_prefix(PREFIX) else {
            return Err(foreign(text));
        };
        let well_formed =
            digits.len() == SECRET_DIGITS + CHECKSUM_DIGITS && digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !well_formed {
            return Err(NotAKey::Malformed);
        }
        let mut expected = String::with_capacity(text.len());
        expected.push_str(&text[..PREFIX.len() + SECRET_DIGITS]);
        push_checksum(&mut expected);
        if expected == text {
            Ok(GatewayKey(expected))
        } else {
            Err(NotAKey::Malformed)
        }
    }

    /// The key itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored. A plain hash suffices: 256 random bits cannot be guessed, however fast the hash is.
    pub fn hash(&self) -> KeyHash {
        KeyHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// What is shown: `sk-gw-` and the first characters, enough to tell keys apart.
    pub fn prefix(&self) -> &str {
        &self.0[..PREFIX.len() + SHOWN_DIGITS]
    }
}

fn foreign(text: &str) -> NotAKey {
    FOREIGN
        .iter()
        .find(|(beginning, _)| text.starts_with(beginning))
        .map_or(NotAKey::Malformed, |(_, whose)| NotAKey::Foreign(*whose))
}

fn push_checksum(text: &mut String) {
    let sum = crc32fast::hash(text.as_bytes());
    push_base62(text, sum.to_be_bytes(), CHECKSUM_DIGITS);
}

/// Appends a big-endian number as exactly `digits` base-62 digits, most significant first.
fn push_base62<const N: usize>(text: &mut String, mut number: [u8; N], digits: usize) {
    let mut reversed = Vec::with_capacity(digits);
    for _ in 0..digits {
        reversed.push(char::from(ALPHABET[divide_by_62(&mut number)]));
    }
    text.extend(reversed.iter().rev());
}

/// Divides a big-endian number in place and returns the remainder.
fn divide_by_62(number: &mut [u8]) -> usize {
    number.iter_mut().fold(0, |remainder, byte| {
        let part = remainder * 256 + usize::from(*byte);
        // The remainder is at most 61, so the quotient is at most (61 × 256 + 255) / 62 = 255.
        *byte = u8::try_from(part / 62).unwrap_or(u8::MAX);
        part % 62
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_and_the_largest_number_have_the_same_length() {
        for (byte, first) in [(0_u8, "sk-gw-00000000"), (255, "sk-gw-")] {
            let key = GatewayKey::from_entropy([byte; 32]);
            assert_eq!(key.reveal().len(), PREFIX.len() + SECRET_DIGITS + CHECKSUM_DIGITS);
            assert!(key.prefix().starts_with(first));
            assert_eq!(key.prefix().len(), 14);
        }
    }

    #[test]
    fn base_62_agrees_with_hand_made_numbers() {
        for (number, expected) in [(0_u32, "000000"), (61, "00000z"), (62, "000010"), (u32::MAX, "4gfFC3")] {
            let mut text = String::new();
            push_base62(&mut text, number.to_be_bytes(), 6);
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = GatewayKey::from_entropy([7; 32]);
        assert_eq!(format!("{key:?} {:?}", key.hash()), "sk-gw-… KeyHash(…)");
    }

    #[test]
    fn tokens_of_other_services_are_named() {
        for (token, whose) in [
            ("eyJhbGciOiJSUzI1NiJ9.e30.x", Foreign::ChatGptSession),
            ("sk-proj-abc", Foreign::Key("OpenAI")),
            ("sk-svcacct-abc", Foreign::Key("OpenAI")),
            ("sk-admin-abc", Foreign::OpenAiAdmin),
            ("sk-abc", Foreign::LikeOpenAi),
            ("sk-ant-api03-x", Foreign::Key("Anthropic")),
            ("sk-or-v1-x", Foreign::Key("OpenRouter")),
            ("gsk_abc", Foreign::Key("Groq")),
            ("AIzaSyx", Foreign::Key("Google API")),
            ("xai-abc", Foreign::Key("xAI")),
        ] {
            assert_eq!(GatewayKey::parse(token).err(), Some(NotAKey::Foreign(whose)), "{token}");
        }
    }

    #[test]
    fn whitespace_and_other_shapes_are_malformed() {
        let key = GatewayKey::from_entropy([7; 32]);
        let key = key.reveal();
        for text in [
            "",
            "sk-gw-",
            "hello",
            &format!(" {key}"),
            &format!("{key} "),
            &format!("{key}\n"),
            &format!("{key}0"),
            &key[..key.len() - 1],
            "sk-gw-ééééééééééééééééééééééééé",
        ] {
            assert_eq!(GatewayKey::parse(text).err(), Some(NotAKey::Malformed), "{text:?}");
        }
    }

    #[test]
    fn random_strings_of_the_right_shape_are_refused() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut digit = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(ALPHABET[usize::try_from((state >> 32) % 62).expect("below 62")])
        };
        for _ in 0..1_000_000 {
            let text: String = PREFIX.chars().chain((0..49).map(|_| digit())).collect();
            assert_eq!(GatewayKey::parse(&text).err(), Some(NotAKey::Malformed));
        }
    }

    proptest! {
        #[test]
        fn every_key_parses_back(bytes: [u8; 32]) {
            let key = GatewayKey::from_entropy(bytes);
            let read = GatewayKey::parse(key.reveal()).expect("a key");
            prop_assert_eq!(read.reveal(), key.reveal());
            prop_assert!(read.hash() == key.hash());
        }

        #[test]
        fn different_numbers_make_different_keys(one: [u8; 32], other: [u8; 32]) {
            let same = GatewayKey::from_entropy(one).reveal() == GatewayKey::from_entropy(other).reveal();
            prop_assert_eq!(same, one == other);
        }

        #[test]
        fn any_single_changed_character_is_refused(bytes: [u8; 32], at in 0_usize..55, to in 0_usize..62) {
            let key = GatewayKey::from_entropy(bytes);
            let mut changed = key.reveal().as_bytes().to_vec();
            prop_assume!(changed[at] != ALPHABET[to]);
            changed[at] = ALPHABET[to];
            let changed = String::from_utf8(changed).expect("ASCII");
            prop_assert!(GatewayKey::parse(&changed).is_err());
        }
    }
}

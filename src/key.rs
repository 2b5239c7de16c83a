//! Gateway keys: made from 256 random bits and a checksum, parsed, hashed, shown as a prefix.

use std::fmt;

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
    /// Plainly another service's: named (`an OpenAI key`, `a ChatGPT session token`).
    Foreign(&'static str),
    /// Anything else: wrong prefix, length, alphabet or checksum. Refused before any look-up.
    Malformed,
}

impl GatewayKey {
    /// A key from 32 random bytes.
    pub fn from_entropy(_bytes: [u8; 32]) -> GatewayKey {
        todo!()
    }

    /// Reads a key a client sent.
    pub fn parse(_text: &str) -> Result<GatewayKey, NotAKey> {
        todo!()
    }

    /// The key itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored.
    pub fn hash(&self) -> KeyHash {
        todo!()
    }

    /// What is shown: `sk-gw-` and the first characters, enough to tell keys apart.
    pub fn prefix(&self) -> &str {
        todo!()
    }
}

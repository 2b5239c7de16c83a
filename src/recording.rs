//! A recorded answer: what a client got, sealed under a key that follows from the client's own gateway key.
//!
//! The database holds the hash of a gateway key and not the key, so whoever has the database alone opens nothing. Each
//! exchange has a sealing key of its own, HKDF-SHA256 of the gateway key with the exchange's id as the salt, and its id is
//! authenticated too: a recording that lies in another one's place does not open. Sealed is ChaCha20-Poly1305: the nonce
//! (12 bytes), what is sealed, the tag (16). What is sealed is the head as HTTP writes it, an empty line, the body.

use std::fmt;

use bytes::Bytes;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hkdf::Hkdf;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sha2::Sha256;
use uuid::Uuid;

use crate::key::GatewayKey;

/// Bytes of a nonce.
pub const NONCE: usize = 12;

/// What the sealing key is for.
const PURPOSE: &[u8] = b"codex-gateway recording 1";

const BLANK_LINE: &[u8] = b"\r\n\r\n";

/// An answer as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; of a stream all of it.
    pub body: Bytes,
}

/// The head of an answer; the body follows it.
pub fn head(status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut head = status.as_str().as_bytes().to_vec();
    for (name, value) in headers {
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
    }
    head.extend_from_slice(BLANK_LINE);
    head
}

fn parse(mut plain: Bytes) -> Option<Recording> {
    let end = memchr::memmem::find(&plain, BLANK_LINE)?;
    let head = plain.split_to(end);
    let body = plain.split_off(BLANK_LINE.len());
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let status = StatusCode::from_bytes(lines.next()?).ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = memchr::memchr(b':', line)?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        headers.append(
            name,
            HeaderValue::from_bytes(line[colon + 1..].trim_ascii_start()).ok()?,
        );
    }
    Some(Recording { status, headers, body })
}

/// What seals and opens the recording of one exchange. Never shown by `Debug`.
#[derive(Clone)]
pub struct SealingKey {
    key: Key,
    exchange: Uuid,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealingKey({}, …)", self.exchange)
    }
}

impl SealingKey {
    /// Of a client's key and an exchange; `None` cannot be.
    pub fn of(key: &GatewayKey, exchange: Uuid) -> Option<SealingKey> {
        let mut derived = Key::default();
        Hkdf::<Sha256>::new(Some(exchange.as_bytes()), key.reveal().as_bytes())
            .expand(PURPOSE, &mut derived)
            .ok()?;
        Some(SealingKey { key: derived, exchange })
    }

    /// Seals a head with its body.
    pub fn seal(&self, mut plain: Vec<u8>, nonce: [u8; NONCE]) -> Option<Vec<u8>> {
        self.cipher()
            .encrypt_in_place(&Nonce::from(nonce), self.exchange.as_bytes(), &mut plain)
            .ok()?;
        plain.splice(..0, nonce);
        Some(plain)
    }

    /// Opens what was sealed with the same key for the same exchange; `None`: it was not, or it was altered.
    pub fn open(&self, mut sealed: Vec<u8>) -> Option<Recording> {
        let nonce: [u8; NONCE] = *sealed.first_chunk()?;
        sealed.drain(..NONCE);
        self.cipher()
            .decrypt_in_place(&Nonce::from(nonce), self.exchange.as_bytes(), &mut sealed)
            .ok()?;
        parse(sealed.into())
    }

    fn cipher(&self) -> ChaCha20Poly1305 {
        ChaCha20Poly1305::new(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: [u8; NONCE] = [7; NONCE];

    fn of(entropy: u8, exchange: u128) -> SealingKey {
        SealingKey::of(&GatewayKey::from_entropy([entropy; 32]), Uuid::from_u128(exchange)).expect("a key")
    }

    fn answer() -> Recording {
        let mut headers = HeaderMap::new();
        headers.append("content-type", HeaderValue::from_static("text/event-stream"));
        headers.append("x-two", HeaderValue::from_bytes(b"\xff: \t,").expect("a value"));
        headers.append("x-two", HeaderValue::from_static(""));
        Recording {
            status: StatusCode::CREATED,
            headers,
            body: Bytes::from_static(b"data: 1\r\n\r\ndata: [DONE]\r\n\r\n"),
        }
    }

    fn sealed(by: &SealingKey, answer: &Recording) -> Vec<u8> {
        let plain = [head(answer.status, &answer.headers), answer.body.to_vec()].concat();
        by.seal(plain, NONE).expect("it seals")
    }

    #[test]
    fn an_answer_is_opened_as_it_was_by_its_key_and_for_its_exchange_only() {
        let sealed = sealed(&of(1, 1), &answer());
        assert_eq!(of(1, 1).open(sealed.clone()), Some(answer()));
        assert_eq!(of(2, 1).open(sealed.clone()), None, "another gateway key");
        assert_eq!(of(1, 2).open(sealed.clone()), None, "another exchange");
        assert_eq!(format!("{:?}", of(1, 0)), format!("SealingKey({}, …)", Uuid::nil()));
        for secret in ["DONE", "event-stream"] {
            assert_eq!(memchr::memmem::find(&sealed, secret.as_bytes()), None);
        }
    }

    #[test]
    fn whatever_is_altered_or_cut_off_does_not_open() {
        let sealed = sealed(&of(1, 1), &answer());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(of(1, 1).open(altered), None, "byte {at}");
            assert_eq!(of(1, 1).open(sealed[..at].to_vec()), None, "{at} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_body_comes_back(body: Vec<u8>, status in 100_u16..600) {
            let answer = Recording {
                status: StatusCode::from_u16(status).expect("a status"),
                headers: HeaderMap::new(),
                body: body.into(),
            };
            prop_assert_eq!(of(1, 1).open(sealed(&of(1, 1), &answer)), Some(answer));
        }
    }
}

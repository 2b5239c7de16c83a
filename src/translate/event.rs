//! Events as they are written.

use serde::Serialize;

/// An event with a name, as the Responses API has them.
pub(super) fn named(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    unnamed(out, data);
}

/// An event without, as chat has them. What cannot be written as JSON is left out whole; nothing the translation makes is.
pub(super) fn unnamed(out: &mut Vec<u8>, data: &impl Serialize) {
    let Ok(json) = serde_json::to_vec(data) else { return };
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(&json);
    out.extend_from_slice(b"\n\n");
}

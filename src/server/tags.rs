//! Which catalogue the Codex of a key has: its `ETag` goes with each answer to Codex as `x-models-etag`, and when it is
//! another than that of Codex's copy, Codex asks for the list anew.
//!
//! ```text
//! GET /models ──▶ note: key → tag, as of a generation of the database and of the settings
//! an answer to Codex ──▶ tell: the tag as it was noted; when either has changed since, it is looked at again in the
//!                        background, one key at a time, and told with a later answer
//! ```
//!
//! A call pays for looking into memory, and only when Codex made it. Keys that never asked for the list are told nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use http::{HeaderMap, HeaderName, HeaderValue};
use moka::sync::Cache;

use super::{App, offer};
use crate::exchange::Live;
use crate::store::KeyId;
use crate::store::keys::Key;

/// Keys that are remembered; some 200 bytes each.
const MOST_KEYS: u64 = 10_000;

/// Codex sends it with each call, and nobody else does.
const OF_CODEX: &str = "x-codex-window-id";

const TAG: HeaderName = HeaderName::from_static("x-models-etag");

/// The tags that keys were told.
#[derive(Debug)]
pub(super) struct Tags {
    of_keys: Cache<KeyId, Noted>,
    looking: AtomicBool,
}

impl Default for Tags {
    fn default() -> Tags {
        Tags {
            of_keys: Cache::new(MOST_KEYS),
            looking: AtomicBool::new(false),
        }
    }
}

/// A tag, and what it was made of.
#[derive(Clone, Debug)]
struct Noted {
    tag: HeaderValue,
    generation: u64,
    settings: Weak<Live>,
}

impl Tags {
    /// Notes what a key was told; `generation` is that before the list was read.
    pub(super) fn note(&self, key: &Key, tag: HeaderValue, generation: u64, settings: &Arc<Live>) {
        let noted = Noted {
            tag,
            generation,
            settings: Arc::downgrade(settings),
        };
        self.of_keys.insert(key.id, noted);
    }
}

/// Whether Codex asks.
pub(super) fn is_codex(headers: &HeaderMap) -> bool {
    headers.contains_key(OF_CODEX)
}

/// Tells Codex which catalogue is current, as far as this key's is known.
pub(super) fn tell(app: &Arc<App>, key: &Arc<Key>, settings: &Arc<Live>, headers: &mut HeaderMap) {
    let Some(noted) = app.tags.of_keys.get(&key.id) else {
        return;
    };
    headers.insert(TAG, noted.tag);
    let is_current = noted.generation == app.gateway.store.generation()
        && std::ptr::eq(noted.settings.as_ptr(), Arc::as_ptr(settings));
    if !is_current && !app.tags.looking.swap(true, Ordering::SeqCst) {
        let (app, key, settings) = (Arc::clone(app), Arc::clone(key), Arc::clone(settings));
        let tracker = app.gateway.tracker.clone();
        tracker.spawn(async move {
            // Who cannot read prices has said so in the log; Codex is told with a later answer.
            offer::look(&app, &settings, &key).await.ok();
            app.tags.looking.store(false, Ordering::SeqCst);
        });
    }
}

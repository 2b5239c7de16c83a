//! When keys were last used: noted in memory, written in batches, off the hot path.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::App;
use crate::store::KeyId;

/// How often uses are written.
const EVERY: Duration = Duration::from_secs(10);

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(super) struct UsedKeys(Mutex<HashMap<KeyId, Timestamp>>);

impl UsedKeys {
    /// Notes a use.
    pub(super) fn note(&self, key: KeyId, at: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, at);
    }

    fn take(&self) -> Vec<(KeyId, Timestamp)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

/// Writes uses now and then, and once more at the stop.
pub(super) async fn flush_regularly(app: Arc<App>, stop: CancellationToken) {
    loop {
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = tokio::time::sleep(EVERY) => false,
        };
        let used = app.used_keys.take();
        if !used.is_empty() {
            app.gateway.writer.touch_keys(used);
        }
        if stopped {
            return;
        }
    }
}

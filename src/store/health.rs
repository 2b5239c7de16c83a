//! What keeps the books from being written, for whoever asks whether the server is ready.

use std::sync::{Mutex, PoisonError};

/// What keeps the writer from writing; shared between it and whoever asks.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The last write failed, and passes when its cause does.
    trouble: Mutex<Option<String>>,
    /// There is too little space for new calls.
    space: Mutex<Option<String>>,
}

impl Health {
    /// Notes that a write failed; whether the one before it had not.
    pub(super) fn failed(&self, why: &str) -> bool {
        replace(&self.trouble, Some(why.to_owned())).is_none()
    }

    /// Notes that it can write.
    pub(super) fn works(&self) {
        replace(&self.trouble, None);
    }

    /// Why the last write failed, if it did.
    pub(super) fn trouble(&self) -> Option<String> {
        read(&self.trouble)
    }

    /// Whether the last write failed.
    pub(super) fn is_troubled(&self) -> bool {
        self.trouble().is_some()
    }

    /// Notes whether there is too little space; the first time it is told in the log.
    pub(super) fn space(&self, low: Option<String>) {
        let is_low = low.clone();
        match (replace(&self.space, low), is_low) {
            (None, Some(why)) => tracing::warn!(why, "no new calls are taken until there is more space"),
            (Some(_), None) => tracing::info!("there is space again; calls are taken"),
            _ => {}
        }
    }

    /// Whether there is too little space.
    pub(super) fn is_low(&self) -> bool {
        read(&self.space).is_some()
    }

    /// What is wrong, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        let trouble = self.trouble().map(|why| format!("the books cannot be written: {why}"));
        trouble.or_else(|| read(&self.space))
    }
}

fn replace(of: &Mutex<Option<String>>, with: Option<String>) -> Option<String> {
    std::mem::replace(&mut *of.lock().unwrap_or_else(PoisonError::into_inner), with)
}

fn read(of: &Mutex<Option<String>>) -> Option<String> {
    of.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

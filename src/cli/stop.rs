//! Stop signals: the first asks for a clean end, the second for an end at once.

use super::language;
use crate::said;
use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, watched from now on instead of killing the process.
#[derive(Debug)]
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Starts watching.
    ///
    /// # Errors
    /// The system does not let the process watch signals.
    pub fn watch() -> anyhow::Result<StopSignals> {
        let watch = |kind, name| {
            signal(kind).with_context(|| said!(language(), en: "cannot watch for {name}", zh: "无法监视 {name}"))
        };
        Ok(StopSignals {
            interrupt: watch(SignalKind::interrupt(), "SIGINT")?,
            terminate: watch(SignalKind::terminate(), "SIGTERM")?,
        })
    }

    /// Waits for the next of either.
    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

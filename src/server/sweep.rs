//! Looks for holds that no running call owns, and releases them. There should be none. Forgets recorded answers that are
//! given out no more.
//!
//! How long a hold has been open is measured here, by a clock that only goes forward: the machine's own may be set to
//! another day, and then running calls would look overdue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::App;
use crate::exchange::LONGEST_CALL;
use crate::store::ledger::{LONGEST_HOLD, Swept};
use crate::store::{ExchangeId, StoreError};
use crate::time::{self, Stopwatch};

/// Holds that are open for longer belong to no running call: waiting for the head, the longest answer and the drain
/// are shorter.
const AGE: Duration = LONGEST_HOLD;
const _: () = assert!(AGE.as_secs() >= 2 * LONGEST_CALL.as_secs());

/// How often such holds are looked for.
const EVERY: Duration = Duration::from_secs(600);

/// The open holds that were seen, each since it was seen first.
#[derive(Debug, Default)]
struct Seen(HashMap<ExchangeId, Stopwatch>);

impl Seen {
    /// Takes note of the holds that are open now, and gives those that have been for longer than `age`.
    fn overdue(&mut self, open: &[ExchangeId], age: Duration) -> Vec<ExchangeId> {
        let before = std::mem::take(&mut self.0);
        let since = |id| before.get(id).copied().unwrap_or_else(Stopwatch::start);
        self.0 = open.iter().map(|id| (*id, since(id))).collect();
        let overdue = self.0.iter().filter(|(_, seen)| seen.elapsed() > age);
        overdue.map(|(id, _)| *id).collect()
    }
}

/// Sweeps now and then, until the server stops.
pub(super) async fn sweep_regularly(app: Arc<App>, stop: CancellationToken) {
    let mut seen = Seen::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match sweep(&app, &mut seen).await {
            Ok(Swept { released, stuck }) => {
                if released > 0 {
                    tracing::error!(
                        count = released,
                        "holds were open that no call owned; they are released"
                    );
                }
                tell_of_stuck(&stuck);
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "open holds cannot be swept"),
        }
        if let Err(error) = app.gateway.writer.forget_recordings(time::now()).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "old recordings cannot be forgotten"
            );
        }
    }
}

/// Names the holds that cannot be released. Everybody else's calls do not wait for them.
pub(super) fn tell_of_stuck(stuck: &[(ExchangeId, String)]) {
    for (exchange, error) in stuck {
        tracing::error!(%exchange, error, "a hold that no call owns cannot be released, and its money stays set aside: see `gateway ledger verify`");
    }
}

async fn sweep(app: &App, seen: &mut Seen) -> Result<Swept, StoreError> {
    let open = app.gateway.store.blocking(|store| store.open_holds()).await?;
    let overdue = seen.overdue(&open, AGE);
    app.gateway.writer.sweep(overdue, time::now()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_overdue_when_it_was_seen_open_for_long_enough_and_not_before() {
        let id = || ExchangeId(uuid::Uuid::now_v7());
        let (early, late) = (id(), id());
        let mut seen = Seen::default();
        assert_eq!(seen.overdue(&[early], AGE), []);
        std::thread::sleep(Duration::from_millis(30));
        let age = Duration::from_millis(20);
        assert_eq!(seen.overdue(&[early, late], age), [early]);
        assert_eq!(seen.overdue(&[late], AGE), [], "the other one is closed");
        assert_eq!(seen.0.len(), 1, "and forgotten");
    }
}

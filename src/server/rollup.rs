//! Sums days that are over, in the background.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::App;
use crate::store::rollups::NotSummed;
use crate::time::{self, Stopwatch};

/// How often it is looked whether a day is over.
const EVERY: Duration = Duration::from_secs(600);

/// Sums every day that is over, at once and then as they end, until the server stops. After each it rests for as long as that
/// took: years that are to be summed after an upgrade leave calls half a core and most of the disk.
pub(super) async fn roll_up_regularly(app: Arc<App>, stop: CancellationToken) {
    loop {
        let began = Stopwatch::start();
        let more = app.gateway.store.blocking(|store| store.roll_up(time::now())).await;
        let pause = match more {
            Ok(true) => began.elapsed(),
            Ok(false) => EVERY,
            Err(error) => {
                if let NotSummed::Unknown(error) = &error {
                    app.gateway.writer.distrust(error);
                }
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "usage cannot be summed by day"
                );
                EVERY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

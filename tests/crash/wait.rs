//! What tests of a failing machine wait for: answers, refusals, readiness.

use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Step};
use tokio::time::{sleep, timeout};

use crate::client::http;
use crate::load::{Fate, Load};
use crate::rig::{PATIENCE, Serving};

/// An upstream whose answers wait in the middle.
pub fn gated(gate: &Gate) -> Playwright {
    let (inner, gate) = (standard(Pace::default()), gate.clone());
    Arc::new(move |request: &Request| {
        let (script, pause) = (inner(request), Step::Wait(gate.clone()));
        if request.streamed() {
            script.at(2, pause)
        } else {
            script.first(pause)
        }
    })
}

/// What `/readyz` says.
pub async fn readiness(serving: &Serving) -> (u16, String) {
    let asked = http()
        .get(format!("{}/readyz", serving.url))
        .send()
        .await
        .expect("it answers");
    (asked.status().as_u16(), asked.text().await.expect("text"))
}

/// Waits until `/readyz` gives this status and says this, and how long that took.
pub async fn until_ready_says(serving: &Serving, status: u16, what: &str) -> Duration {
    let start = Instant::now();
    loop {
        let said = readiness(serving).await;
        if said.0 == status && said.1.contains(what) {
            return start.elapsed();
        }
        assert!(start.elapsed() < PATIENCE, "{said:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// How many answers have come to their ends.
pub fn whole(load: &Load) -> usize {
    load.seen().iter().filter(|seen| seen.fate == Fate::Whole).count()
}

/// How many calls were refused because the books cannot be written.
pub fn refused(load: &Load) -> usize {
    let is_refused = |fate: &Fate| matches!(fate, Fate::Refused(text) if text.contains("storage_unavailable"));
    load.seen().iter().filter(|seen| is_refused(&seen.fate)).count()
}

/// Waits until there are so many.
pub async fn until(load: &Load, of: fn(&Load) -> usize, many: usize) {
    let wait = async {
        while of(load) < many {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("{} of {many}: {:?}", of(load), load.seen()));
}

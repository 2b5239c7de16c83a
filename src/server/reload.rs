//! Settings taken in while the server runs.
//!
//! A request takes the settings once, at its start: one that is under way ends with those, and over the connections, that
//! it began with. Upstreams whose way has not changed keep their connections.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Server, upstream};
use crate::config::Config;
use crate::exchange::{Live, Upstream, UpstreamError};

/// What became of settings that were taken in.
#[derive(Debug)]
pub struct TakenIn {
    /// Settings that differ and stay as they are until the next start.
    pub waiting: Vec<&'static str>,
    /// Upstreams that get new connections, because the way to them or its certificate authorities are others.
    pub reconnected: Vec<String>,
}

impl Server {
    /// Takes settings in: what comes from now on is answered by them.
    ///
    /// # Errors
    /// An upstream cannot be used as it is set; everything stays as it is.
    pub async fn take_in(&self, config: Config) -> Result<TakenIn, UpstreamError> {
        let gateway = Arc::clone(&self.app.gateway);
        // Files of certificate authorities are read.
        let taking = tokio::task::spawn_blocking(move || take_in(&gateway.settings, config));
        taking
            .await
            .unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
}

fn take_in(settings: &ArcSwap<Live>, config: Config) -> Result<TakenIn, UpstreamError> {
    let running = settings.load_full();
    let (config, waiting) = config.taken_in(&running.config);
    let (mut upstreams, mut reconnected) = (Vec::new(), Vec::new());
    for one in &config.upstreams {
        let before = running.upstreams.iter().find(|before| before.name() == one.name);
        let new = upstream(one, before.map(Arc::as_ref))?;
        if before.is_some_and(|before| !new.shares_connections_of(before)) {
            reconnected.push(one.name.clone());
        }
        upstreams.push(Arc::new(new));
    }
    upstreams.iter().for_each(|upstream| upstream.comes_into_force());
    settings.store(Arc::new(Live::new(config, upstreams)));
    Ok(TakenIn { waiting, reconnected })
}

/// The upstreams of settings that nothing runs with yet.
pub(super) fn upstreams(config: &Config) -> Result<Vec<Arc<Upstream>>, UpstreamError> {
    let made = config.upstreams.iter().map(|one| upstream(one, None).map(Arc::new));
    made.collect()
}

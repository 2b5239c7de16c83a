//! The settings in force. A request takes them once, at its start, and its exchange keeps them to its end: what is changed
//! while it runs is for those that come after it.

use std::sync::Arc;

use super::Upstream;
use crate::config::{Config, Pricing, UpstreamConfig};
use crate::pricing::ListName;
use crate::route::{Catalogue, Routes, Served};

/// The settings in force, and what follows from them.
#[derive(Debug)]
pub struct Live {
    /// All settings.
    pub config: Config,
    /// Which upstreams serve a model.
    pub routes: Routes,
    /// The upstreams, in the order of the settings.
    pub upstreams: Vec<Arc<Upstream>>,
}

impl Live {
    /// Settings, with their upstreams in the same order.
    pub fn new(config: Config, upstreams: Vec<Arc<Upstream>>) -> Live {
        Live {
            routes: Routes::new(config.upstreams.iter().map(served)),
            upstreams,
            config,
        }
    }

    /// The upstream of a name.
    pub fn upstream(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.upstreams.iter().find(|upstream| upstream.name() == name)
    }
}

fn served(config: &UpstreamConfig) -> Served {
    let openai = config.prices == Pricing::List(ListName::openai());
    Served {
        name: config.name.clone(),
        models: config.models.clone(),
        aliases: config.aliases.clone(),
        catalogue: if openai { Catalogue::OpenAi } else { Catalogue::Other },
        priority: config.priority,
        weight: config.weight,
    }
}

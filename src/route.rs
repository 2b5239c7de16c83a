//! Routes: which upstream serves a model, under which name, priced by which list.

use crate::config::UpstreamConfig;

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index into the configured upstreams.
    pub upstream: usize,
    /// The upstream's name for the model; the one that is priced.
    pub model: String,
    /// Whether the client used an alias, so that the request has to be edited.
    pub aliased: bool,
}

/// The table of models and aliases.
#[derive(Clone, Debug)]
pub struct Routes {}

impl Routes {
    /// From the configured upstreams, in their order.
    pub fn new(_upstreams: &[UpstreamConfig]) -> Routes {
        Routes {}
    }

    /// The first upstream that serves `model`.
    pub fn find(&self, _model: &str) -> Option<Target> {
        todo!()
    }

    /// Every alias: (alias, target).
    pub fn aliases(&self) -> Vec<(String, Target)> {
        todo!()
    }
}

/// The name among `names` nearest to `wanted`, if one is near enough to be meant.
pub fn nearest<'a>(_wanted: &str, _names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    todo!()
}

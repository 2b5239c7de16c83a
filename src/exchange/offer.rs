//! What a key may use: its models ∩ what an upstream serves ∩ what has a price. What a free upstream serves no list of prices
//! knows: of that it is asked itself, where its settings name patterns.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;

use super::{Gateway, Live, Upstream};
use crate::config::Pricing;
use crate::pricing::Price;
use crate::route::{Candidate, Target, is_pattern};
use crate::store::StoreError;
use crate::store::keys::Key;

/// A model that a key may use.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The name clients use.
    pub name: String,
    /// Where it goes first, of the upstreams that serve it.
    pub target: Target,
    /// The upstream's name.
    pub upstream: String,
    /// What it costs.
    pub price: Arc<Price>,
    /// Since when its price is in force; `None`: free.
    pub since: Option<Timestamp>,
}

/// Every model that `key` may use, by name.
pub async fn offered(gateway: &Gateway, live: &Live, key: &Key, at: Timestamp) -> Result<Vec<Offer>, StoreError> {
    let prices = gateway
        .store
        .blocking(move |store| store.prices(None, None, at))
        .await?;
    let priced: BTreeMap<(&str, &str), (&Arc<Price>, Timestamp)> = prices
        .iter()
        .map(|row| ((row.list.as_str(), row.model.as_str()), (&row.price, row.from)))
        .collect();
    let own = join_all(live.upstreams.iter().map(|upstream| own_models(upstream))).await;
    let aliases = live.routes.aliases();
    let literal = live
        .upstreams
        .iter()
        .flat_map(|upstream| upstream.models())
        .filter(|model| !is_pattern(model));
    let names = prices
        .iter()
        .map(|row| row.model.as_str())
        .chain(literal)
        .chain(aliases.into_keys())
        .chain(own.iter().flat_map(|names| names.iter().map(String::as_str)));
    let free = Arc::new(Price::free());
    // Of several upstreams, a call goes to one that has a price.
    let of = |name: &str, candidate: Candidate<'_>| -> Option<Offer> {
        let upstream = &live.upstreams[candidate.upstream];
        let (price, since) = match upstream.pricing() {
            Pricing::Free => {
                let is_named = candidate.aliased || upstream.models().any(|model| model == candidate.model);
                let has = || own[candidate.upstream].iter().any(|name| name == candidate.model);
                (is_named || has()).then_some((&free, None))?
            }
            Pricing::List(list) => {
                let (price, from) = priced.get(&(list.as_str(), candidate.model))?;
                (*price, Some(*from))
            }
        };
        Some(Offer {
            name: name.to_owned(),
            upstream: upstream.name().to_owned(),
            price: Arc::clone(price),
            since,
            target: candidate.target(),
        })
    };
    let offer = |name: &str| -> Option<Offer> {
        let mut candidates = live.routes.candidates(name).filter(|_| key.may_use(name));
        candidates.find_map(|candidate| of(name, candidate))
    };
    let offers: BTreeMap<&str, Offer> = names.filter_map(|name| Some((name, offer(name)?))).collect();
    Ok(offers.into_values().collect())
}

/// What a free upstream says that it has, where the settings do not say it.
async fn own_models(upstream: &Upstream) -> Arc<[String]> {
    let says = *upstream.pricing() == Pricing::Free && upstream.models().any(is_pattern);
    match says {
        true => upstream.own_models().await,
        false => Arc::default(),
    }
}

//! Admission: route, price and hold, or a refusal. Nothing is sent upstream without a hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use super::{Gateway, Request};
use crate::call::{Call, Echo, Endpoint, Reference};
use crate::config::{OnHangup, Pricing};
use crate::hold::{self, Ask, Quote};
use crate::pricing::{Factor, Kind, ListName, Price, SearchTool, Terms};
use crate::refusal::Refusal;
use crate::route::{self, Target};
use crate::store::keys::Key;
use crate::store::ledger::{Hold, HoldRefused, PlaceHold};
use crate::store::prices::PriceRow;
use crate::store::{Busy, ExchangeId, Outcome, Place, StoreError};
use crate::time::{Stopwatch, now};
use crate::tokens::{self, Encoding};
use crate::usage::Tier;
use crate::usage::{Dialect, Tokens, Usage};

/// A model reads at most this when its price does not say.
const MAX_INPUT: u32 = 1_050_000;

/// Different answers and items that one call may lean on; each is looked up.
const MAX_REFERENCES: usize = 1_000;

/// What a legacy completion without `max_tokens` generates at OpenAI; other servers are told.
const COMPLETION_DEFAULT: Tokens = Tokens::saturating(16);

/// A call with money set aside for it.
#[derive(Debug)]
#[must_use = "an admitted call has to be settled"]
pub struct Admitted {
    /// The client's request.
    pub call: Arc<Call>,
    /// With which key.
    pub key: Arc<Key>,
    /// The client's headers, until they are sent on.
    pub headers: http::HeaderMap,
    /// Where it goes.
    pub target: Target,
    /// What is known of its cost.
    pub priced: Priced,
    /// The money set aside, and the right to settle it.
    pub hold: Hold,
    pub(super) place: Place,
    /// How its usage is written.
    pub dialect: Dialect,
    /// How long each answer may get.
    pub limit: Limit,
    /// How much of it may be visible, all choices together.
    pub visible_bound: Tokens,
    /// What happens when the client leaves.
    pub on_hangup: OnHangup,
    /// When the hold was taken.
    pub started_at: Timestamp,
    pub(super) since_start: Stopwatch,
    /// Given back when the exchange ends.
    _memory: OwnedSemaphorePermit,
}

impl Admitted {
    /// The exchange's id.
    pub fn id(&self) -> ExchangeId {
        self.hold.exchange
    }
}

/// The prices a call is billed by.
#[derive(Clone, Debug)]
pub struct Priced {
    /// The list; `None`: free.
    pub list: Option<ListName>,
    /// In force since.
    pub from: Option<Timestamp>,
    /// The model's price.
    pub price: Arc<Price>,
    /// The image model's, when the call may use `image_generation`.
    pub image_price: Option<Arc<Price>>,
    /// Which fee a web search costs.
    pub search: SearchTool,
    /// The upstream's region.
    pub region: Option<String>,
    /// The operator's markup.
    pub markup: Factor,
    /// When the call was admitted.
    pub at: Timestamp,
}

impl Priced {
    /// The terms at a tier.
    pub fn terms(&self, tier: Tier) -> Terms<'_> {
        Terms {
            price: &self.price,
            image_price: self.image_price.as_deref(),
            search: self.search,
            tier,
            region: self.region.as_deref(),
            markup: self.markup,
            at: self.at,
        }
    }
}

/// Takes a hold for a call.
pub(super) async fn admit(gateway: &Gateway, request: Request) -> Result<Admitted, Refusal> {
    let Request {
        id,
        key,
        call,
        headers,
        memory,
    } = request;
    let (call, at) = (Arc::new(call), now());
    let target = route(gateway, &key, &call).await?;
    let upstream = &gateway.upstreams[target.upstream];
    let priced = price(gateway, &call, &target, at).await?;
    let earlier = referred(gateway, &key, &call, upstream.name()).await?;
    let since_start = Stopwatch::start();
    let wanted = Wanted {
        gateway,
        id,
        key: &key,
        call: &call,
        target: &target,
        priced: &priced,
    };
    let Held {
        hold,
        place,
        quote,
        input,
    } = wanted.hold(InputBound::of(&call, &priced.price, earlier)).await?;
    let limit = Limit::of(&call, &hold, &quote);
    Ok(Admitted {
        visible_bound: limit.visible(&call, input),
        limit,
        on_hangup: key.on_hangup.unwrap_or(gateway.billing.on_hangup),
        dialect: upstream.dialect(call.endpoint),
        call,
        key,
        headers,
        target,
        priced,
        hold,
        place,
        started_at: at,
        since_start,
        _memory: memory,
    })
}

/// A call on its way to its hold.
struct Wanted<'a> {
    gateway: &'a Gateway,
    id: ExchangeId,
    key: &'a Key,
    call: &'a Arc<Call>,
    target: &'a Target,
    priced: &'a Priced,
}

/// A hold, and what it was made of.
struct Held {
    hold: Hold,
    place: Place,
    quote: Quote,
    input: Tokens,
}

impl Wanted<'_> {
    /// Takes the hold; a call that is too dear by its bytes is counted, and tried once more.
    async fn hold(&self, mut bound: InputBound) -> Result<Held, Refusal> {
        if bound.wants_counting(&self.priced.price) {
            bound.count(self.call, &self.target.model).await;
        }
        loop {
            let quote = bound.quote(self.call, self.priced)?;
            match self.gateway.writer.hold(self.place(quote.clone())).await {
                Ok(Outcome::Committed((hold, place))) => {
                    return Ok(Held {
                        hold,
                        place,
                        quote,
                        input: bound.tokens,
                    });
                }
                Ok(Outcome::Refused(HoldRefused::Short(_))) if bound.can_be_counted() => {
                    bound.count(self.call, &self.target.model).await;
                }
                outcome => return Err(refused(outcome, self.key)),
            }
        }
    }

    fn place(&self, quote: Quote) -> PlaceHold {
        PlaceHold {
            exchange: self.id,
            user: self.key.user_id,
            key: self.key.id,
            endpoint: self.call.endpoint,
            streamed: self.call.stream,
            model: self.call.model.clone(),
            priced_model: self.target.model.clone(),
            upstream: self.gateway.upstreams[self.target.upstream].name().to_owned(),
            list: self.priced.list.clone(),
            quote,
            policy: self.gateway.billing.hold.clone(),
            now: self.priced.at,
        }
    }
}

/// How long each answer of a call may get, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The client said.
    Stated(Tokens),
    /// The gateway writes it into the request, because the hold pays for no more.
    Written(Tokens),
    /// As long as the model's answers get.
    Models(Tokens),
}

impl Limit {
    fn of(call: &Call, hold: &Hold, quote: &Quote) -> Limit {
        match (hold.output_limit, quote.stated) {
            (Some(limit), _) => Limit::Written(limit),
            // OpenAI's default of a legacy completion; other servers are told.
            (None, Some(limit)) if call.endpoint == Endpoint::Completions && call.output_limit.is_none() => {
                Limit::Written(limit)
            }
            (None, Some(limit)) => Limit::Stated(limit),
            (None, None) => Limit::Models(quote.max_output),
        }
    }

    /// What is written into the request.
    pub(super) fn written(self) -> Option<Tokens> {
        match self {
            Limit::Written(limit) => Some(limit),
            Limit::Stated(_) | Limit::Models(_) => None,
        }
    }

    /// How much of an answer may be visible, all choices together; an echo shows the prompt, too.
    fn visible(self, call: &Call, input: Tokens) -> Tokens {
        let (Limit::Stated(limit) | Limit::Written(limit) | Limit::Models(limit)) = self;
        let shown = match call.echo {
            Echo::No => limit,
            Echo::Prompt => limit.saturating_add(input),
        };
        shown.saturating_mul(call.choices)
    }
}

fn refused(outcome: Result<Outcome<(Hold, Place), HoldRefused>, Busy>, key: &Key) -> Refusal {
    match outcome {
        Ok(Outcome::Refused(HoldRefused::Short(shortfall))) => Refusal::Short {
            user: key.user_name.clone(),
            shortfall,
        },
        Ok(Outcome::Refused(HoldRefused::Suspended)) => Refusal::Suspended {
            user: key.user_name.clone(),
        },
        Ok(Outcome::Refused(HoldRefused::KeyGone)) => Refusal::BadKey,
        Ok(Outcome::NotCommitted(error) | Outcome::Unknown(error)) => storage(&error),
        Err(Busy::QueueFull) => Refusal::Busy,
        Err(Busy::Stopped | Busy::NoSpace | Busy::Troubled) => Refusal::Storage,
        Ok(Outcome::Committed(_)) => Refusal::Internal,
    }
}

fn storage(error: &StoreError) -> Refusal {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "the books cannot be read or written"
    );
    Refusal::Storage
}

/// Which upstream, under which name; only what this key may use.
async fn route(gateway: &Gateway, key: &Key, call: &Call) -> Result<Target, Refusal> {
    if key.may_use(&call.model)
        && let Some(target) = gateway.routes.find(&call.model)
    {
        return Ok(target);
    }
    let offered = super::offered(gateway, key, now())
        .await
        .map_err(|error| storage(&error))?;
    let nearest = route::nearest(&call.model, offered.iter().map(|model| model.name.as_str())).map(str::to_owned);
    Err(Refusal::NoModel {
        model: call.model.clone(),
        nearest,
    })
}

/// What the call is billed by; a model without a price goes no further.
async fn price(gateway: &Gateway, call: &Call, target: &Target, at: Timestamp) -> Result<Priced, Refusal> {
    let upstream = &gateway.upstreams[target.upstream];
    let free = || (None, None, Arc::new(Price::free()));
    let (list, from, price) = match upstream.pricing() {
        Pricing::Free => free(),
        Pricing::List(list) => {
            let row = find_price(gateway, list, &target.model, at).await?;
            match row.filter(|row| prices_endpoint(&row.price, call.endpoint)) {
                Some(row) => (Some(row.list), Some(row.from), row.price),
                None => return Err(unpriced(gateway, call, target, list, at).await),
            }
        }
    };
    let image_price = match (&call.tools.image_generation, upstream.pricing()) {
        (None, _) => None,
        (Some(_), Pricing::Free) => Some(Arc::new(Price::free())),
        (Some(model), Pricing::List(list)) => match find_price(gateway, list, model, at).await? {
            Some(row) if row.price.kind == Kind::Image => Some(row.price),
            _ => return Err(Refusal::UnpricedTool(format!("the image model '{model}' has no price"))),
        },
    };
    Ok(Priced {
        list,
        from,
        price,
        image_price,
        search: if call.tools.web_search_preview {
            SearchTool::Preview
        } else {
            SearchTool::Current
        },
        region: upstream.region().map(str::to_owned),
        markup: gateway.billing.markup,
        at,
    })
}

fn prices_endpoint(price: &Price, endpoint: Endpoint) -> bool {
    match price.kind {
        Kind::Text => true,
        Kind::Embedding => endpoint == Endpoint::Embeddings,
        Kind::Image => false,
    }
}

async fn find_price(
    gateway: &Gateway,
    list: &ListName,
    model: &str,
    at: Timestamp,
) -> Result<Option<PriceRow>, Refusal> {
    let found = gateway.store.look_up_price(list, model, at).await;
    found.map_err(|error| storage(&error))
}

async fn unpriced(gateway: &Gateway, call: &Call, target: &Target, list: &ListName, at: Timestamp) -> Refusal {
    let of_list = list.clone();
    let known = gateway
        .store
        .blocking(move |store| store.prices(Some(&of_list), None, at))
        .await;
    let names: Vec<String> = known.map_or_else(|_| Vec::new(), |rows| rows.into_iter().map(|row| row.model).collect());
    Refusal::Unpriced {
        model: call.model.clone(),
        priced_as: target.model.clone(),
        list: list.to_string(),
        nearest: route::nearest(&target.model, names.iter().map(String::as_str)).map(str::to_owned),
    }
}

/// The tokens of the answers the call leans on; each must be this user's, at this upstream.
async fn referred(gateway: &Gateway, key: &Key, call: &Call, upstream: &str) -> Result<Tokens, Refusal> {
    if call.refers_to.is_empty() {
        return Ok(Tokens::ZERO);
    }
    let wanted: BTreeSet<Reference> = call.refers_to.iter().cloned().collect();
    if wanted.len() > MAX_REFERENCES {
        return Err(Refusal::TooManyReferences { most: MAX_REFERENCES });
    }
    let (user, upstream) = (key.user_id, upstream.to_owned());
    let looked_up = gateway.store.blocking(move |store| {
        let mut earlier = Tokens::ZERO;
        for reference in wanted {
            let read_again = match &reference {
                Reference::Response(id) => store.response_made_by(user, &upstream, id)?.map(|row| row.usage),
                Reference::Item(id) => store.item_made_by(user, &upstream, id)?.then(|| Usage {
                    input_tokens: Tokens::MAX,
                    ..Usage::default()
                }),
            };
            let Some(usage) = read_again else {
                return Ok(Err(not_yours(reference)));
            };
            earlier = earlier
                .saturating_add(usage.input_tokens)
                .saturating_add(usage.output_tokens);
        }
        Ok(Ok(earlier))
    });
    looked_up.await.map_err(|error: StoreError| storage(&error))?
}

fn not_yours(reference: Reference) -> Refusal {
    match reference {
        Reference::Response(id) => Refusal::NotYours {
            param: "previous_response_id",
            id,
        },
        Reference::Item(id) => Refusal::NotYours { param: "input", id },
    }
}

/// How much the model may have to read.
struct InputBound {
    tokens: Tokens,
    /// Read besides what the request carries: earlier answers at the upstream.
    earlier: Tokens,
    /// The most this model reads.
    largest: Tokens,
    counted: Counted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Counted {
    ByBytes,
    Final,
}

impl InputBound {
    /// By bytes; the model's largest input where hosted tools may add to it.
    fn of(call: &Call, price: &Price, earlier: Tokens) -> InputBound {
        let largest = price.max_input.or(price.context_window).unwrap_or(MAX_INPUT);
        let largest = Tokens::saturating(u64::from(largest));
        let by_bytes = tokens::bound_by_bytes(&call.input).saturating_add(earlier);
        let (tokens, counted) = if call.reads_more_than_the_body() {
            (largest, Counted::Final)
        } else {
            (by_bytes, Counted::ByBytes)
        };
        InputBound {
            tokens: tokens.min(largest),
            earlier,
            largest,
            counted,
        }
    }

    fn can_be_counted(&self) -> bool {
        self.counted == Counted::ByBytes
    }

    /// Whether bytes would price the call as a long one, which it may not be.
    fn wants_counting(&self, price: &Price) -> bool {
        self.can_be_counted() && price.first_step().is_some_and(|step| self.tokens > step)
    }

    async fn count(&mut self, call: &Arc<Call>, model: &str) {
        let (call, (encoding, known)) = (Arc::clone(call), Encoding::of(model));
        let counting = tokio::task::spawn_blocking(move || tokens::bound_by_counting(&call, encoding, known));
        if let Ok(counted) = counting.await {
            self.tokens = counted.saturating_add(self.earlier).min(self.largest).min(self.tokens);
        }
        self.counted = Counted::Final;
    }

    fn quote(&self, call: &Call, priced: &Priced) -> Result<Quote, Refusal> {
        let ask = Ask {
            input: self.tokens,
            rejected: Tokens::saturating(call.input.prediction_bytes),
            stated: stated(call),
            cache_ttl: call.cache_ttl,
            choices: call.choices,
            tools: &call.tools,
        };
        hold::quote(&ask, &priced.terms(call.tier)).map_err(|error| Refusal::UnpricedTool(error.to_string()))
    }
}

/// The output limit of a call: the client's, nothing for embeddings, OpenAI's own default for legacy completions.
fn stated(call: &Call) -> Option<Tokens> {
    match call.endpoint {
        Endpoint::Embeddings => Some(Tokens::ZERO),
        Endpoint::Completions => call.output_limit.or(Some(COMPLETION_DEFAULT)),
        Endpoint::ChatCompletions | Endpoint::Responses => call.output_limit,
    }
}

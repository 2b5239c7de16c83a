//! Admission: route, price and hold, or a refusal. Nothing is sent upstream without a hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use super::choice::{self, NoChoice, Wish};
use super::counting::count;
use super::form::Arriving;
use super::health::Turn;
use super::kin;
use super::{Gateway, Live, Request, Tunnelled, Upstream, background};
use crate::call::{Call, CallError, Echo, Endpoint, Reference};
use crate::config::{OnHangup, Pricing};
use crate::endpoints::Kind as Kept;
use crate::hold::{self, Ask, OfRoom, Quote, Unquoted};
use crate::money::Usd;
use crate::origin::Origin;
use crate::pricing::{Kind, ListName, Price, Priced, SearchTool};
use crate::refusal::Refusal;
use crate::route::{self, Candidate, Seat, Target};
use crate::store::idempotency::{Once, Repeat};
use crate::store::keys::Key;
use crate::store::ledger::{Hold, HoldRefused, PlaceHold};
use crate::store::prices::PriceRow;
use crate::store::usage_log::{Basis, ExchangeRow};
use crate::store::{Busy, ExchangeId, Outcome, Place, Store, StoreError, UserId};
use crate::texts::Language;
use crate::time::{Stopwatch, now};
use crate::tokens::{self, Encoding};
use crate::translate::{self, Answer, Client, Given};
use crate::usage::{Dialect, Tokens, Usage};

/// A model reads at most this when its price does not say.
const MAX_INPUT: u32 = 1_050_000;

/// Different answers and items that one call may lean on; each is looked up.
const MAX_REFERENCES: usize = 1_000;

/// A compaction of little may have as much, in tokens.
const COMPACTION: Tokens = Tokens::saturating(4_096);

/// What a legacy completion without `max_tokens` generates at OpenAI; other servers are told.
const COMPLETION_DEFAULT: Tokens = Tokens::saturating(16);

/// What a call takes up in the gateway: the memory of its body, and its place among all.
#[derive(Debug)]
pub(super) struct Room {
    _memory: OwnedSemaphorePermit,
    _among_all: OwnedSemaphorePermit,
}

impl Room {
    pub(super) fn of(memory: OwnedSemaphorePermit, place: OwnedSemaphorePermit) -> Room {
        Room {
            _memory: memory,
            _among_all: place,
        }
    }
}

/// A call with money set aside for it.
#[derive(Debug)]
#[must_use = "an admitted call has to be settled"]
pub struct Admitted {
    /// The settings it was admitted with, and ends with.
    pub live: Arc<Live>,
    /// The client's request.
    pub call: Arc<Call>,
    /// Who asks, as far as the client says.
    pub origin: Origin,
    /// As the upstream takes it: the same, or its translation. It is what the model reads, so cost goes by it.
    pub sent: Arc<Call>,
    /// Turns the upstream's answer into the client's, until there is one.
    pub(super) translation: Option<Box<dyn Answer>>,
    /// Tools that were offered and are not in the translation.
    pub(super) left_out: Vec<String>,
    /// With which key.
    pub key: Arc<Key>,
    /// The client's headers, until they are sent on.
    pub headers: http::HeaderMap,
    /// How it goes on to an upstream that speaks WebSocket, until one has taken it.
    pub(super) tunnelled: Option<Box<Tunnelled>>,
    /// Where it goes.
    pub target: Target,
    /// Its place there, until the exchange ends.
    pub(super) turn: Turn,
    /// Where it would like to go, should it have to go to another.
    pub(super) wish: Wish,
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
    /// What the gateway's own words are in.
    pub(super) language: Language,
    pub(super) since_start: Stopwatch,
    /// Given back when the last of the answer is handed on.
    pub(super) room: Option<Room>,
    /// Its form, as long as that is not all here: until then the call is the most that it may come to.
    pub(super) arriving: Option<Box<Arriving>>,
    /// What it was held for in vain: the form comes to more, and goes on as an exchange of its own.
    pub(super) again: Option<Box<Request>>,
}

impl Admitted {
    /// The exchange's id.
    pub fn id(&self) -> ExchangeId {
        self.hold.exchange
    }

    /// Whether what is sent is a translation.
    pub(super) fn is_translated(&self) -> bool {
        self.call.endpoint != self.sent.endpoint
    }

    /// Whether it is given up when its client leaves. A response in the background was to go on without its client: it is
    /// read until it can be asked for.
    pub(super) fn ends_with_its_client(&self) -> bool {
        self.on_hangup == OnHangup::Cancel && !self.sent.background
    }

    /// Where it goes.
    pub(super) fn upstream(&self) -> &Upstream {
        &self.live.upstreams[self.target.upstream]
    }
}

/// Takes a hold for a call.
pub(super) async fn admit(gateway: &Gateway, mut request: Box<Request>) -> Result<Admitted, Refusal> {
    match request.arriving.take() {
        None => admit_within(gateway, request, OfRoom::All).await,
        Some(arriving) => Box::pin(arriving.admit(gateway, request)).await,
    }
}

/// The same, of so much of the room.
pub(super) async fn admit_within(
    gateway: &Gateway,
    request: Box<Request>,
    of_room: OfRoom,
) -> Result<Admitted, Refusal> {
    may_begin(gateway, &request).await?;
    let Request {
        id,
        live,
        key,
        call,
        arriving: _,
        origin,
        once,
        sealing: _,
        headers,
        tunnelled,
        language,
        memory,
        place: among_all,
    } = *request;
    let origin = kin::of_one_session(gateway, key.user_id, origin).await;
    let (mut call, at) = (Arc::new(call), now());
    let asking = Asking {
        gateway,
        live: &live,
        key: &key,
        call: &call,
        at,
    };
    let sending = Sending {
        id,
        call: &call,
        headers: &headers,
        language,
        at,
    };
    let Chosen {
        target,
        turn,
        wish,
        sent: Sent {
            call: sent,
            translation,
            left_out,
        },
        priced,
        earlier,
    } = asking.choose(sending).await?;
    if let (Some(call), true) = (Arc::get_mut(&mut call), translation.is_some()) {
        call.let_go_of_body();
    }
    let since_start = Stopwatch::start();
    let wanted = Wanted {
        gateway,
        live: &live,
        id,
        key: &key,
        call: &call,
        origin: &origin,
        sent: &sent,
        once,
        target: &target,
        priced: &priced,
        of_room,
    };
    let Held {
        hold,
        place,
        quote,
        input,
    } = wanted.hold(InputBound::of(&sent, &priced.price, earlier)).await?;
    let limit = Limit::of(&sent, &hold, &quote);
    Ok(Admitted {
        visible_bound: limit.visible(&sent, input),
        limit,
        on_hangup: key.on_hangup.unwrap_or(live.config.billing.on_hangup),
        dialect: live.upstreams[target.upstream].dialect(sent.endpoint),
        live,
        call,
        origin,
        sent,
        translation,
        left_out,
        key,
        headers,
        tunnelled,
        language,
        target,
        turn,
        wish,
        priced,
        hold,
        place,
        started_at: at,
        since_start,
        room: Some(Room::of(memory, among_all)),
        arriving: None,
        again: None,
    })
}

/// Whether there is anything against the call wherever it would go.
async fn may_begin(gateway: &Gateway, Request { key, call, once, .. }: &Request) -> Result<(), Refusal> {
    if let Some(refusal) = made_before(gateway, key, *once).await {
        return Err(refusal);
    }
    if key.user_suspended {
        return Err(suspended(key));
    }
    match call.background {
        true => background::may_begin(gateway, key).await,
        false => Ok(()),
    }
}

/// Whether the hold, which was taken for the most that the call might be, is enough for what it is.
pub(super) fn pays_for(admitted: &Admitted, call: &Call) -> bool {
    let is_the_same = (call.endpoint, &call.model, call.stream)
        == (admitted.sent.endpoint, &admitted.sent.model, admitted.sent.stream);
    let priced = &admitted.priced;
    let quote = InputBound::of(call, &priced.price, Tokens::ZERO).quote(call, priced);
    let room = hold::Room {
        available: admitted.hold.amount,
        held: Usd::ZERO,
    };
    let size = quote.map(|quote| hold::size(&quote, room, &admitted.live.config.billing.hold));
    is_the_same && matches!(size, Ok(hold::Size::Hold { .. }))
}

/// Where a call goes that costs nothing, and a place there. All that it leans on has to be this user's.
pub(super) async fn without_hold(
    gateway: &Gateway,
    live: &Live,
    key: &Key,
    call: &Call,
) -> Result<(Target, Turn), Refusal> {
    let asking = Asking {
        gateway,
        live,
        key,
        call,
        at: now(),
    };
    let (_, earlier) = asking.served().await?;
    let may = |candidate: &Candidate<'_>| earlier.upstream.is_none_or(|only| candidate.upstream == only);
    let wish = Wish {
        seat: Seat::Any(0),
        home: None,
        lives: None,
        is_bound: false,
    };
    choice::choose(live, &call.model, wish, may).map_err(|none| match none {
        NoChoice::NoneDoes(fault) => Refusal::Upstream(fault),
        NoChoice::NoneMay => Refusal::Internal,
    })
}

/// Whether this upstream keeps all of these for the user; the first that it does not.
pub(super) async fn kept_at(
    gateway: &Gateway,
    user: UserId,
    upstream: &str,
    wanted: Vec<Reference>,
) -> Result<(), Refusal> {
    let wanted: BTreeSet<Reference> = wanted.into_iter().collect();
    if wanted.is_empty() {
        return Ok(());
    }
    if wanted.len() > MAX_REFERENCES {
        return Err(Refusal::TooManyReferences { most: MAX_REFERENCES });
    }
    let upstream = upstream.to_owned();
    let looked_up = gateway
        .store
        .blocking(move |store| made_by(store, user, &upstream, &wanted));
    match looked_up.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(reference)) => Err(not_yours(reference)),
        Err(error) => Err(storage(&error)),
    }
}

/// A call on its way to its hold.
struct Wanted<'a> {
    gateway: &'a Gateway,
    live: &'a Live,
    id: ExchangeId,
    key: &'a Key,
    call: &'a Arc<Call>,
    origin: &'a Origin,
    sent: &'a Arc<Call>,
    once: Option<Once>,
    target: &'a Target,
    priced: &'a Priced,
    of_room: OfRoom,
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
            bound.count(self.sent, &self.target.model).await;
        }
        loop {
            let quote = Quote {
                of_room: self.of_room,
                ..bound.quote(self.sent, self.priced)?
            };
            match self.gateway.writer.hold(self.place(quote.clone())).await {
                Ok(Outcome::Committed((hold, place))) => {
                    return Ok(Held {
                        hold,
                        place,
                        quote,
                        input: bound.tokens,
                    });
                }
                Ok(Outcome::Refused(HoldRefused::Short(..))) if bound.can_be_counted() => {
                    bound.count(self.sent, &self.target.model).await;
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
            budgets: self.key.budgets,
            endpoint: self.call.endpoint,
            streamed: self.call.stream,
            model: self.call.model.clone(),
            priced_model: self.target.model.clone(),
            upstream: self.live.upstreams[self.target.upstream].name().to_owned(),
            list: self.priced.list.clone(),
            origin: self.origin.clone(),
            once: self.once,
            quote,
            policy: self.live.config.billing.hold.clone(),
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
            (None, Some(_)) if call.endpoint.is_medium() => Limit::Models(quote.max_output),
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
        Ok(Outcome::Refused(HoldRefused::Short(limit, shortfall))) => Refusal::Short {
            user: key.user_name.clone(),
            limit,
            shortfall,
        },
        Ok(Outcome::Refused(HoldRefused::Suspended)) => suspended(key),
        Ok(Outcome::Refused(HoldRefused::KeyGone)) => Refusal::BadKey,
        Ok(Outcome::Refused(HoldRefused::Repeated(repeat))) => repeated(repeat),
        Ok(Outcome::NotCommitted(error) | Outcome::Unknown(error)) => storage(&error),
        Err(Busy::QueueFull) => Refusal::Busy,
        Err(Busy::Stopped | Busy::NoSpace | Busy::Troubled) => Refusal::Storage,
        Ok(Outcome::Committed(_)) => Refusal::Internal,
    }
}

/// What a call is refused as that was made before by its name, whatever else there may be against it.
pub async fn made_before(gateway: &Gateway, key: &Key, once: Option<Once>) -> Option<Refusal> {
    let (id, once) = (key.id, once?);
    match gateway.store.blocking(move |store| store.repeated(id, &once)).await {
        Ok(repeat) => repeat.map(repeated),
        Err(error) => Some(storage(&error)),
    }
}

fn repeated(repeat: Repeat) -> Refusal {
    match repeat {
        Repeat::Running(exchange) => Refusal::InProgress { exchange: exchange.0 },
        Repeat::Done { exchange, charge } => Refusal::AlreadyDone {
            exchange: exchange.0,
            charge,
        },
        Repeat::OtherCall => Refusal::IdempotencyMismatch,
    }
}

fn suspended(key: &Key) -> Refusal {
    Refusal::Suspended {
        user: key.user_name.clone(),
    }
}

pub(super) fn storage(error: &StoreError) -> Refusal {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "the books cannot be read or written"
    );
    Refusal::Storage
}

/// A call that looks for its upstream.
#[derive(Clone, Copy)]
struct Asking<'a> {
    gateway: &'a Gateway,
    live: &'a Live,
    key: &'a Key,
    call: &'a Call,
    at: Timestamp,
}

/// The same on its way to one.
#[derive(Clone, Copy)]
struct Sending<'a> {
    id: ExchangeId,
    call: &'a Arc<Call>,
    headers: &'a http::HeaderMap,
    language: Language,
    at: Timestamp,
}

/// Where a call goes, and what follows from that.
struct Chosen {
    target: Target,
    turn: Turn,
    wish: Wish,
    sent: Sent,
    priced: Priced,
    /// What is read again of earlier answers.
    earlier: Tokens,
}

impl Sending<'_> {
    /// The call itself, or in the only wire format that the upstream speaks.
    async fn to(&self, upstream: &Upstream) -> Result<Sent, Unfit> {
        let Some((to, chat_limit_field)) = upstream.translates_to(self.call.endpoint) else {
            return Ok(Sent {
                call: Arc::clone(self.call),
                translation: None,
                left_out: Vec::new(),
            });
        };
        let given = Given {
            id: self.id.0,
            created: self.at.as_second(),
            chat_limit_field,
            client: client_of(self.headers),
            language: self.language,
        };
        let call = Arc::clone(self.call);
        let translated = tokio::task::spawn_blocking(move || translate::translate(&call, to, &given)).await;
        let translation = translated
            .map_err(|_| Unfit::Unread(Refusal::Internal))?
            .map_err(Unfit::Untranslatable)?;
        Ok(Sent {
            call: Arc::new(translation.call),
            translation: Some(translation.answer),
            left_out: translation.left_out,
        })
    }
}

/// A call as its upstream takes it.
struct Sent {
    call: Arc<Call>,
    translation: Option<Box<dyn Answer>>,
    left_out: Vec<String>,
}

/// What a call leans on.
struct Earlier {
    /// The upstream that made it; a call that leans on nothing may go to any.
    upstream: Option<usize>,
    /// What of it is read again.
    tokens: Tokens,
}

/// Why an upstream does not take a call.
enum Unfit {
    /// What it asks for is not to be had there.
    Untranslatable(CallError),
    /// Its model has no price in this list.
    Model(ListName),
    /// A tool has none.
    Tool(Unquoted),
    /// The prices cannot be read.
    Unread(Refusal),
}

impl Asking<'_> {
    /// Whether several upstreams serve the call, and which of them made what it leans on; only what this key may use.
    async fn served(&self) -> Result<(bool, Earlier), Refusal> {
        let mut candidates = self.live.routes.candidates(&self.call.model);
        if !self.key.may_use(&self.call.model) || candidates.next().is_none() {
            drop(candidates);
            return Err(self.no_model().await);
        }
        let several = candidates.next().is_some();
        drop(candidates);
        Ok((several, self.referred().await?))
    }

    async fn no_model(&self) -> Refusal {
        no_model(self.gateway, self.live, self.key, &self.call.model).await
    }

    /// Which upstream takes it, a place there, and what it is billed by. A model without a price goes no further: an upstream
    /// that has none for it is chosen only to say so, when no other has one. So is one that cannot do what is asked.
    async fn choose(&self, sending: Sending<'_>) -> Result<Chosen, Refusal> {
        let (several, earlier) = self.served().await?;
        let seat = match several {
            true => choice::seat(self.key.user_id, sending.call, sending.headers, sending.id.0),
            false => Seat::Any(0),
        };
        let mut unfit: Vec<(Target, Unfit)> = Vec::new();
        loop {
            let may = |candidate: &Candidate<'_>| {
                earlier.upstream.is_none_or(|only| candidate.upstream == only)
                    && unfit.iter().all(|(target, _)| target.upstream != candidate.upstream)
            };
            let wish = Wish::of(self.call, seat, self.live, &self.gateway.homes, may);
            let (target, turn) = match choice::choose(self.live, &self.call.model, wish, may) {
                Ok(chosen) => chosen,
                Err(NoChoice::NoneDoes(fault)) => return Err(Refusal::Upstream(fault)),
                Err(NoChoice::NoneMay) => return Err(self.refuse(unfit).await),
            };
            match self.fit(&target, sending).await {
                Ok((sent, priced)) => {
                    return Ok(Chosen {
                        target,
                        turn,
                        wish,
                        sent,
                        priced,
                        earlier: earlier.tokens,
                    });
                }
                Err(Unfit::Unread(refusal)) => return Err(refusal),
                Err(why) => unfit.push((target, why)),
            }
        }
    }

    /// What the first of the upstreams that do not take it says.
    async fn refuse(&self, mut unfit: Vec<(Target, Unfit)>) -> Refusal {
        unfit.sort_by_key(|(target, _)| target.upstream);
        match unfit.into_iter().next() {
            Some((target, Unfit::Model(list))) => unpriced_model(self, &target, &list).await,
            Some((_, Unfit::Tool(tool))) => Refusal::UnpricedTool(tool),
            Some((_, Unfit::Untranslatable(error))) => Refusal::Call(error),
            Some((_, Unfit::Unread(refusal))) => refusal,
            None => Refusal::Internal,
        }
    }

    /// The call as an upstream takes it, and what it is billed by there.
    async fn fit(&self, target: &Target, sending: Sending<'_>) -> Result<(Sent, Priced), Unfit> {
        let sent = sending.to(&self.live.upstreams[target.upstream]).await?;
        let priced = self.price(target, &sent.call).await?;
        Ok((sent, priced))
    }

    /// What the call is billed by at an upstream.
    async fn price(&self, target: &Target, call: &Call) -> Result<Priced, Unfit> {
        let Asking { live, key, at, .. } = *self;
        let upstream = &live.upstreams[target.upstream];
        let free = || (None, None, Arc::new(Price::free()));
        let (list, from, price) = match upstream.pricing() {
            Pricing::Free => free(),
            Pricing::List(list) => {
                let row = self.find_price(list, &target.model).await?;
                match row.filter(|row| prices_endpoint(&row.price, call.endpoint)) {
                    Some(row) => (Some(row.list), Some(row.from), row.price),
                    None => return Err(Unfit::Model(list.clone())),
                }
            }
        };
        let image_price = match (&call.tools.image_generation, upstream.pricing()) {
            (None, _) => None,
            (Some(_), Pricing::Free) => Some(Arc::new(Price::free())),
            (Some(model), Pricing::List(list)) => match self.find_price(list, model).await? {
                Some(row) if row.price.kind == Kind::Image => Some(row.price),
                _ => return Err(Unfit::Tool(Unquoted::NoImagePrice(model.clone()))),
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
            markup: live.config.billing.markup.of(key.user_markup, &call.model),
            at,
        })
    }

    async fn find_price(&self, list: &ListName, model: &str) -> Result<Option<PriceRow>, Unfit> {
        let found = self.gateway.store.look_up_price(list, model, self.at).await;
        found.map_err(|error| Unfit::Unread(storage(&error)))
    }

    /// The tokens of the answers the call leans on; each must be this user's, and all at one upstream that serves the call.
    async fn referred(&self) -> Result<Earlier, Refusal> {
        let Asking { live, key, call, .. } = *self;
        if call.refers_to.is_empty() {
            return Ok(Earlier {
                upstream: None,
                tokens: Tokens::ZERO,
            });
        }
        let wanted: BTreeSet<Reference> = call.refers_to.iter().cloned().collect();
        if wanted.len() > MAX_REFERENCES {
            return Err(Refusal::TooManyReferences { most: MAX_REFERENCES });
        }
        let upstreams: Vec<(usize, String)> = live
            .routes
            .candidates(&call.model)
            .map(|candidate| (candidate.upstream, live.upstreams[candidate.upstream].name().to_owned()))
            .collect();
        let user = key.user_id;
        let looked_up = self.gateway.store.blocking(move |store| {
            let mut missing = None;
            for (upstream, name) in upstreams {
                match made_by(store, user, &name, &wanted)? {
                    Ok(tokens) => {
                        return Ok(Ok(Earlier {
                            upstream: Some(upstream),
                            tokens,
                        }));
                    }
                    Err(reference) => missing = missing.or(Some(reference)),
                }
            }
            Ok(Err(missing.map_or(Refusal::Internal, not_yours)))
        });
        looked_up.await.map_err(|error: StoreError| storage(&error))?
    }
}

/// No upstream serves the model, or the key may not use it.
pub(super) async fn no_model(gateway: &Gateway, live: &Live, key: &Key, model: &str) -> Refusal {
    let offered = match super::offered(gateway, live, key, now()).await {
        Ok(offered) => offered,
        Err(error) => return storage(&error),
    };
    let names = offered.iter().map(|model| model.name.as_str());
    Refusal::NoModel {
        model: model.to_owned(),
        nearest: route::nearest(model, names).map(str::to_owned),
    }
}

/// The tokens of answers and items, if this upstream made all of them for the user; else the first one that it did not.
fn made_by(
    store: &Store,
    user: UserId,
    upstream: &str,
    wanted: &BTreeSet<Reference>,
) -> Result<Result<Tokens, Reference>, StoreError> {
    let mut earlier = Tokens::ZERO;
    // Nothing tells how much it is.
    let unknown = || Usage {
        input_tokens: Tokens::MAX,
        ..Usage::default()
    };
    // An estimate sees no hidden reasoning, and of what failed nothing may be known at all.
    let is_known = |row: &ExchangeRow| row.basis == Basis::Reported && row.usage.input_tokens > Tokens::ZERO;
    for reference in wanted {
        let read_again = match reference {
            Reference::Response(id) => {
                let made = store.response_made_by(user, upstream, id)?;
                made.map(|row| if is_known(&row) { row.usage } else { unknown() })
            }
            Reference::Item(id) => store.item_made_by(user, upstream, id)?.then(unknown),
            // What is in them is bounded by the model's largest input alone.
            Reference::Conversation(id) => (store.keeps(user, upstream, Kept::Conversation, id)?).then(Usage::default),
            Reference::File(id) => store.keeps(user, upstream, Kept::File, id)?.then(Usage::default),
        };
        let Some(usage) = read_again else {
            return Ok(Err(reference.clone()));
        };
        earlier = earlier
            .saturating_add(usage.input_tokens)
            .saturating_add(usage.output_tokens);
    }
    Ok(Ok(earlier))
}

/// Codex names itself, and marks its calls with headers of its own.
fn client_of(headers: &http::HeaderMap) -> Client {
    let named = headers
        .get("originator")
        .is_some_and(|name| name.as_bytes().starts_with(b"codex"));
    let marked = headers.keys().any(|name| name.as_str().starts_with("x-codex-"));
    match named || marked {
        true => Client::Codex,
        false => Client::Other,
    }
}

fn prices_endpoint(price: &Price, endpoint: Endpoint) -> bool {
    match price.kind {
        Kind::Text => !endpoint.is_medium(),
        Kind::Embedding => endpoint == Endpoint::Embeddings,
        Kind::Image => matches!(endpoint, Endpoint::ImageGenerations | Endpoint::ImageEdits),
        Kind::Transcription => matches!(endpoint, Endpoint::Transcriptions | Endpoint::Translations),
        Kind::Speech => endpoint == Endpoint::Speech,
    }
}

async fn unpriced_model(asking: &Asking<'_>, target: &Target, list: &ListName) -> Refusal {
    let (of_list, at) = (list.clone(), asking.at);
    let known = asking
        .gateway
        .store
        .blocking(move |store| store.prices(Some(&of_list), None, at))
        .await;
    let names: Vec<String> = known.map_or_else(|_| Vec::new(), |rows| rows.into_iter().map(|row| row.model).collect());
    Refusal::Unpriced {
        model: asking.call.model.clone(),
        priced_as: target.model.clone(),
        list: list.to_string(),
        nearest: route::nearest(&target.model, names.iter().map(String::as_str)).map(str::to_owned),
    }
}

fn not_yours(reference: Reference) -> Refusal {
    match reference {
        Reference::Response(id) => Refusal::NotYours {
            param: "previous_response_id",
            id,
        },
        Reference::Item(id) | Reference::File(id) => Refusal::NotYours { param: "input", id },
        Reference::Conversation(id) => Refusal::NotYours {
            param: "conversation",
            id,
        },
    }
}

/// How much the model may have to read.
struct InputBound {
    tokens: Tokens,
    /// Read besides what the request carries: earlier answers at the upstream.
    earlier: Tokens,
    /// The most this model reads, in all prompts of a batch.
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
        let largest = Tokens::saturating(u64::from(largest)).saturating_mul(call.input.prompts.max(1));
        let by_bytes = tokens::bound_by_bytes(&call.input).saturating_add(earlier);
        let (tokens, counted) = match call.endpoint.is_medium() {
            _ if call.reads_more_than_the_body() => (largest, Counted::Final),
            // Its text is little of what it costs.
            true => (by_bytes, Counted::Final),
            false => (by_bytes, Counted::ByBytes),
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
        let by_bytes = self.tokens;
        let counted = count(move || tokens::bound_by_counting(&call, encoding, known), || by_bytes).await;
        self.tokens = counted.saturating_add(self.earlier).min(self.largest).min(by_bytes);
        self.counted = Counted::Final;
    }

    fn quote(&self, call: &Call, priced: &Priced) -> Result<Quote, Refusal> {
        let ask = Ask {
            input: self.tokens,
            rejected: Tokens::saturating(call.input.prediction_bytes),
            // A compaction is no longer than what it compacts, and no limit can be stated for it.
            stated: match call.endpoint {
                Endpoint::Compact => Some(self.tokens.max(COMPACTION).min(largest_output(&priced.price))),
                _ => stated(call),
            },
            cache_ttl: call.cache_ttl,
            choices: call.choices,
            tools: &call.tools,
            medium: call.medium,
        };
        hold::quote(&ask, &priced.terms(call.tier)).map_err(Refusal::UnpricedTool)
    }
}

/// The longest answer of a model.
fn largest_output(price: &Price) -> Tokens {
    Tokens::saturating(u64::from(price.max_output.unwrap_or(hold::MAX_OUTPUT)))
}

/// The output limit of a call: the client's, nothing for embeddings, OpenAI's own default for legacy completions.
pub(super) fn stated(call: &Call) -> Option<Tokens> {
    match call.endpoint {
        Endpoint::Embeddings => Some(Tokens::ZERO),
        Endpoint::Completions => call.output_limit.or(Some(COMPLETION_DEFAULT)),
        Endpoint::ChatCompletions | Endpoint::Responses | Endpoint::Compact => call.output_limit,
        _ => Some(Tokens::ZERO),
    }
}

//! Settlement: what was seen of the answer becomes usage, price and charge, in one transaction with the hold's end.

use super::admission::Admitted;
use super::{Gateway, Settle, Watch};
use crate::call::{Echo, Endpoint};
use crate::meter::Reading;
use crate::money::Usd;
use crate::pricing::{Bill, bill};
use crate::refusal::Refusal;
use crate::store::ledger::{CloseHold, Closed, Excess};
use crate::store::usage_log::{Basis, ExchangeRow, State};
use crate::tokens::{self, Encoding};
use crate::usage::Tier;
use crate::usage::{Tokens, Usage};

/// Closes the hold. An error means that the charge is not known to be durable ([`crate::store::Writer::close`] says when):
/// the hold stays open, and the next start or the sweep releases it.
pub(super) async fn settle(
    gateway: &Gateway,
    admitted: Admitted,
    watch: Watch,
    state: State,
    settle: Settle,
) -> Result<Closed, Refusal> {
    let (usage, basis) = measure(&admitted, &watch, settle).await;
    let reading = watch.meter.reading();
    // Only the end of an answer tells the tier for certain; without one it is the tier that was asked for.
    let tier = reading.tier.unwrap_or(match basis {
        Basis::Reported => Tier::Standard,
        Basis::Estimated => admitted.call.tier,
    });
    let bill = price(&admitted, &usage, tier);
    let row = row(
        gateway,
        &admitted,
        &watch,
        Outcome {
            state,
            basis,
            usage,
            tier,
            bill,
        },
    );
    let excess = match (settle, basis) {
        (Settle::Capped, _) | (_, Basis::Estimated) => Excess::Waive,
        _ => Excess::Collect,
    };
    let (id, user, duration_ms) = (admitted.id(), admitted.key.user_name, row.duration.as_millis());
    let (model, upstream) = (row.model.clone(), row.upstream.clone());
    let close = CloseHold { row, excess };
    let closed = gateway
        .writer
        .close(admitted.hold, admitted.place, close)
        .await
        .map_err(|error| {
            tracing::error!(exchange = %id, error = &error as &dyn std::error::Error, "the charge may not be durable");
            Refusal::Storage
        })?;
    tracing::info!(exchange = %id, user, model, upstream, state = state.name(), charged = %closed.charged, duration_ms, "settled");
    if closed.uncollected.nanos() > 0 {
        tracing::warn!(exchange = %id, uncollected = %closed.uncollected, "the charge was more than the hold and the balance");
    }
    Ok(closed)
}

/// The usage to charge, and where it comes from.
async fn measure(admitted: &Admitted, watch: &Watch, settle: Settle) -> (Usage, Basis) {
    let reading = watch.meter.reading();
    if let Some(problem) = &reading.usage_problem {
        tracing::warn!(exchange = %admitted.id(), %problem, "the upstream's usage cannot be believed; settled by estimate");
    }
    match (settle, &reading.usage) {
        (Settle::Nothing, _) => (Usage::default(), Basis::Reported),
        (_, Some(usage)) => (with_searches(admitted, usage.clone()), Basis::Reported),
        (Settle::UsageOfDelivered, None) if !watch.delivered => (Usage::default(), Basis::Reported),
        (_, None) => (estimate(admitted, watch).await, Basis::Estimated),
    }
}

/// A chat answer does not count its searches: one that may search is billed one.
fn with_searches(admitted: &Admitted, mut usage: Usage) -> Usage {
    if admitted.call.endpoint == Endpoint::ChatCompletions && admitted.call.tools.web_search {
        usage.tools.web_searches = usage.tools.web_searches.max(1);
    }
    usage
}

/// Counted input and counted visible output. Hidden reasoning is not in it.
async fn estimate(admitted: &Admitted, watch: &Watch) -> Usage {
    let reading = watch.meter.reading();
    let (call, (encoding, _)) = (admitted.call.clone(), Encoding::of(&admitted.target.model));
    let (visible, beyond) = counted(reading, watch.counted_bytes.unwrap_or(u64::MAX));
    let counting = tokio::task::spawn_blocking(move || {
        let input = tokens::estimate_input(&call, encoding);
        let shown = tokens::estimate_output(&visible, beyond, encoding);
        let echoed = match call.echo {
            Echo::No => Tokens::ZERO,
            Echo::Prompt => input.saturating_mul(call.choices),
        };
        (input, shown.saturating_sub(echoed))
    });
    let (input_tokens, output_tokens) = counting.await.unwrap_or_default();
    Usage {
        input_tokens,
        output_tokens,
        tools: reading.tools.clone(),
        ..Usage::default()
    }
}

/// The first so many bytes of what was visible, and how many of them were not kept.
fn counted(reading: &Reading, bytes: u64) -> (String, u64) {
    let most = usize::try_from(bytes).unwrap_or(usize::MAX);
    let kept = &reading.visible[..reading.visible.floor_char_boundary(most)];
    let seen = bytes.min(reading.visible_bytes());
    let beyond = seen.saturating_sub(u64::try_from(kept.len()).unwrap_or(u64::MAX));
    (kept.to_owned(), beyond)
}

/// The bill. What has no rate is not charged, and logged, so that the operator can set its price.
fn price(admitted: &Admitted, usage: &Usage, tier: Tier) -> Bill {
    let bill = bill(usage, &admitted.priced.terms(tier)).unwrap_or_else(|error| {
        tracing::error!(exchange = %admitted.id(), %error, ?usage, "the usage cannot be priced and is not charged");
        Bill {
            lines: Vec::new(),
            cost: Usd::ZERO,
            charge: Usd::ZERO,
            unpriced: Vec::new(),
        }
    });
    for class in &bill.unpriced {
        tracing::error!(exchange = %admitted.id(), %class, "was used, has no price, and is not charged");
    }
    bill
}

struct Outcome {
    state: State,
    basis: Basis,
    usage: Usage,
    tier: Tier,
    bill: Bill,
}

fn row(gateway: &Gateway, admitted: &Admitted, watch: &Watch, outcome: Outcome) -> ExchangeRow {
    let reading = watch.meter.reading();
    let terms = admitted.priced.terms(outcome.tier);
    ExchangeRow {
        id: admitted.id(),
        user: admitted.key.user_id,
        key: admitted.key.id,
        endpoint: admitted.call.endpoint,
        streamed: admitted.call.stream,
        model: admitted.call.model.clone(),
        priced_model: admitted.target.model.clone(),
        answered_model: reading.model.clone(),
        upstream: gateway.upstreams[admitted.target.upstream].name().to_owned(),
        list: admitted.priced.list.clone(),
        price_from: admitted.priced.from,
        tier: outcome.tier,
        state: outcome.state,
        basis: outcome.basis,
        usage: outcome.usage,
        lines: outcome.bill.lines,
        uplift: terms.uplift().map(|factor| factor.to_string()),
        markup: admitted.priced.markup.to_string(),
        cost: outcome.bill.cost,
        charge: outcome.bill.charge,
        uncollected: Usd::ZERO,
        held: admitted.hold.amount,
        output_limit: admitted.hold.output_limit,
        balance_after: Usd::ZERO,
        response_id: reading.response_id.clone(),
        item_ids: reading.item_ids.clone(),
        upstream_request_id: watch.upstream_request_id.clone(),
        upstream_status: watch.status.map(|status| status.as_u16()),
        attempts: watch.attempts,
        started_at: admitted.started_at,
        first_byte: watch.first_byte,
        duration: watch.since_start.elapsed(),
    }
}

//! Rate limits at the door of an exchange: what a call is counted for, and by which clock.
//!
//! Limits come before route, price and hold, because to refuse by them costs nothing but numbers in memory; and after the body,
//! because its model and tokens decide how long has to be waited, which is told. What is
//! refused after them, also a repeated call, or fails at the upstream, has been a request of its key and its user and stays
//! one; its tokens and its place among the running calls are given back. Of the model, which everybody shares, it has been
//! one only if it got its hold: who has no money uses up nothing of it.

use std::sync::Arc;

use super::admission;
use crate::call::Call;
use crate::config::LimitsConfig;
use crate::limits::{Exceeded, Need, Rates, Refused, Registry, Standing, Subject, Taken, Wait, Whose};
use crate::refusal::Refusal;
use crate::store::keys::Key;
use crate::time::Stopwatch;
use crate::tokens;
use crate::usage::{Tokens, Usage};

/// An answer without a stated limit is guessed to be so long, in tokens; what it was takes the place of the guess.
const USUAL_OUTPUT: Tokens = Tokens::saturating(1_000);

/// What is taken of all limits. It is not part of the settings: a changed limit finds what was taken before.
#[derive(Debug)]
pub struct Throttle {
    registry: Registry,
    clock: Stopwatch,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle {
            registry: Registry::default(),
            clock: Stopwatch::start(),
        }
    }
}

/// A call's share of the limits, until its exchange has ended.
#[derive(Debug)]
#[must_use = "a call is counted as running for as long as this is kept"]
pub struct Permit {
    throttle: Arc<Throttle>,
    taken: Taken,
}

impl Throttle {
    /// Takes what a call needs of the limits of its key, its user and its model, or nothing; and tells what is left.
    pub fn admit(
        self: &Arc<Self>,
        limits: &LimitsConfig,
        key: &Key,
        call: &Call,
    ) -> (Result<Permit, Refusal>, Standing) {
        // What is shared by everybody is not used up by whoever may not use it.
        let may_call = key.may_use(&call.model) && !key.user_suspended;
        let of_model = if may_call {
            limits.of_model(&call.model)
        } else {
            Rates::default()
        };
        let model = match of_model.is_none() {
            true => (Subject::Model([0; 16]), of_model),
            false => (Subject::model(&call.model), of_model),
        };
        let asked = [
            (Subject::Key(key.budgets.0), key_rates(limits, key)),
            (Subject::User(key.user_id.0), key.user_rates),
            model,
        ];
        let (taken, standing) = self.registry.take(asked, need(call), self.clock.elapsed());
        let permit = taken.map(|taken| Permit {
            throttle: Arc::clone(self),
            taken,
        });
        (permit.map_err(|refused| refusal(refused, key, &call.model)), standing)
    }

    /// Takes what a request that costs nothing needs of the limits of its key and its user: it counts as one.
    pub fn admit_free(self: &Arc<Self>, limits: &LimitsConfig, key: &Key) -> (Result<Permit, Refusal>, Standing) {
        let asked = [
            (Subject::Key(key.budgets.0), key_rates(limits, key)),
            (Subject::User(key.user_id.0), key.user_rates),
            (Subject::Model([0; 16]), Rates::default()),
        ];
        let need = Need { tokens: 0, perhaps: 0 };
        let (taken, standing) = self.registry.take(asked, need, self.clock.elapsed());
        let permit = taken.map(|taken| Permit {
            throttle: Arc::clone(self),
            taken,
        });
        (permit.map_err(|refused| refusal(refused, key, "")), standing)
    }
}

/// The limits of a key, its own or those of the settings.
pub fn key_rates(limits: &LimitsConfig, key: &Key) -> Rates {
    key.rates.or(limits.key)
}

/// The input as its bytes tell, and as much output as was asked for.
fn need(call: &Call) -> Need {
    let input = tokens::guess_by_bytes(&call.input);
    let (stated, perhaps) = match admission::stated(call) {
        Some(limit) => (limit, Tokens::ZERO),
        None => (Tokens::ZERO, USUAL_OUTPUT),
    };
    let all = |each: Tokens| each.get().saturating_mul(u64::from(call.choices));
    Need {
        tokens: input.get().saturating_add(all(stated)),
        perhaps: all(perhaps),
    }
}

fn refusal(refused: Refused, key: &Key, model: &str) -> Refusal {
    let Refused::Exceeded(Exceeded { of: limit, wait }) = refused else {
        return Refusal::Busy;
    };
    let name = match limit.whose {
        Whose::Key => &key.name,
        Whose::User => &key.user_name,
        Whose::Model => model,
    };
    let name = name.to_owned();
    match wait {
        Wait::After(wait) => Refusal::RateLimited { name, limit, wait },
        Wait::Never { needed } => Refusal::TooManyTokens { name, limit, needed },
    }
}

impl Permit {
    /// The call got no hold.
    pub(super) fn has_no_hold(&mut self) {
        let Permit { throttle, taken } = self;
        throttle.registry.spare_model(taken, throttle.clock.elapsed());
    }

    /// What the call uses is known only when this is gone: it stays counted for what it was taken to need.
    pub(super) fn keep_estimate(&mut self) {
        let Permit { throttle, taken } = self;
        throttle.registry.keep_estimate(taken);
    }

    /// What the call used takes the place of what it was taken to need.
    pub(super) fn settle(&mut self, usage: &Usage) {
        let used = usage.input_tokens.get().saturating_add(usage.output_tokens.get());
        let Permit { throttle, taken } = self;
        throttle.registry.settle(taken, used, throttle.clock.elapsed());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Permit { throttle, taken } = self;
        throttle.registry.end(std::mem::take(taken), throttle.clock.elapsed());
    }
}

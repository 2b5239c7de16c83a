//! Holds: how much to set aside for a call before it is sent.

use crate::money::Usd;
use crate::usage::Tokens;

/// What a call may cost, as a function of how long its answer gets. Made from a price, after markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Placeholder.
    pub stated: Option<Tokens>,
}

/// The operator's rules for holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which part of the room one call without a stated limit may take, in millionths (250,000 = 1/4).
    pub share_ppm: u32,
    /// An answer shorter than this shows nothing and costs money, in tokens.
    pub min_output: Tokens,
}

/// What a call may cost at most, when the hold is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// balance + credit line − open holds, and less where a budget leaves less.
    pub available: Usd,
    /// What running calls hold; it comes back when they settle.
    pub held: Usd,
}

/// How a call is admitted, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// Set this aside.
    Hold {
        /// The money.
        amount: Usd,
        /// The output limit that the hold pays for, per choice, when it is below the one the model would have.
        output_limit: Option<Tokens>,
    },
    /// The room does not pay for the call.
    Short(Shortfall),
}

/// Why the room does not pay for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// What the call needs at least.
    pub needed: Usd,
    /// What there is.
    pub available: Usd,
    /// What running calls hold.
    pub held: Usd,
    /// The largest output limit that the room pays for, when the client stated one.
    pub largest_limit: Option<Tokens>,
}

/// Decides the hold. Pure; called inside the writer's transaction.
pub fn size(_quote: &Quote, _room: Room, _policy: &Policy) -> Size {
    todo!()
}

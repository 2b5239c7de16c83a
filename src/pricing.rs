//! Prices: usage to money by exact arithmetic, rounded once; the lines of a receipt.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use crate::money::Usd;
use crate::usage::{Tokens, Usage};

/// Nano-dollars per million units (tokens, or calls of a tool): `2.5` dollars per million is 2,500,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// A multiplier: markup, regional uplift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor(u64);

/// The name of a price list, such as `openai`: the same model costs differently at two vendors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ListName(String);

/// What a token or a tool call is billed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the classes")]
pub enum Class {
    Input,
    CachedInput,
    CacheWrite,
    #[serde(rename = "cache_write_12h")]
    CacheWrite12h,
    AudioInput,
    Output,
    AudioOutput,
    WebSearch,
    FileSearch,
    Container,
    ImageTextInput,
    ImageInput,
    ImageTextOutput,
    ImageOutput,
}

/// How fast, and at what price, an upstream worked: the response's `service_tier`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "OpenAI's own names")]
pub enum Tier {
    #[default]
    Standard,
    Flex,
    Priority,
    Ultrafast,
    Batch,
}

impl Tier {
    /// From `service_tier`, of a request or a response; `fast` is priority; what is unknown is standard.
    pub fn from_wire(_name: Option<&str>) -> Tier {
        todo!()
    }
}

/// All rates of a model in one list from a date on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The largest input the model takes, in tokens.
    pub max_input: Option<Tokens>,
    /// The longest answer of the model, in tokens.
    pub max_output: Option<Tokens>,
}

impl Price {
    /// From the JSON that the catalogue and the database hold.
    pub fn from_json(_text: &str) -> Result<Price, PriceError> {
        todo!()
    }

    /// The JSON that [`Price::from_json`] reads.
    pub fn to_json(&self) -> String {
        todo!()
    }

    /// Everything at zero, for an upstream whose `prices = "free"`.
    pub fn free() -> Price {
        todo!()
    }
}

/// What is wrong with a price.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PriceError(pub String);

/// One line of a receipt: `quantity × rate` of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What was used.
    pub class: Class,
    /// How much of it.
    pub quantity: u64,
    /// Dollars per million, exact.
    pub rate: String,
    /// Dollars, exact, before uplift and markup.
    pub amount: String,
}

/// What a usage costs and is charged at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// How it came about.
    pub lines: Vec<Line>,
    /// By the price list, with the regional uplift, rounded to the nano-dollar.
    pub cost: Usd,
    /// With markup, rounded once from the exact amount.
    pub charge: Usd,
}

/// Everything a bill depends on besides the usage.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// The model's price.
    pub price: &'a Price,
    /// The image model's price, when the call may use `image_generation`.
    pub image_price: Option<&'a Price>,
    /// The tier that worked.
    pub tier: Tier,
    /// Whether the upstream's region carries the uplift.
    pub regional: bool,
    /// What the user pays per dollar of cost.
    pub markup: Factor,
    /// When the call was admitted: prices may depend on the hour.
    pub at: Timestamp,
}

/// Usage to money.
pub fn bill(_usage: &Usage, _terms: &Terms<'_>) -> Result<Bill, PriceError> {
    todo!()
}

/// The dated price list inside the binary: (list, model, in force from, price as JSON).
pub fn catalogue() -> impl Iterator<Item = (ListName, String, Timestamp, String)> {
    std::iter::empty()
}

/// Placeholder so that the map of rates has its shape.
pub type Rates = BTreeMap<Class, Rate>;

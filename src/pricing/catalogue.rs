//! The dated price list inside the binary.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{ListName, PriceError};

/// A row of the dated price list inside the binary.
#[derive(Clone, Debug)]
pub struct CatalogueRow {
    /// The list.
    pub list: ListName,
    /// The model.
    pub model: String,
    /// In force from.
    pub from: Timestamp,
    /// The price as [`super::Price::from_json`] reads it.
    pub price: String,
}

#[derive(Deserialize)]
struct CatalogueDoc<'a> {
    as_of: String,
    #[serde(borrow)]
    prices: Vec<CatalogueDocRow<'a>>,
}

#[derive(Deserialize)]
struct CatalogueDocRow<'a> {
    list: &'a str,
    model: &'a str,
    from: jiff::civil::Date,
    #[serde(borrow)]
    price: &'a serde_json::value::RawValue,
}

/// The catalogue as text: what its fingerprint is made of.
pub const CATALOGUE: &str = include_str!("catalogue.json");

/// The dated price list inside the binary, and the day it was compiled.
pub fn catalogue() -> Result<(String, Vec<CatalogueRow>), PriceError> {
    let doc: CatalogueDoc<'_> = serde_json::from_str(CATALOGUE).map_err(|e| PriceError::Catalogue(e.to_string()))?;
    let row = |row: CatalogueDocRow<'_>| -> Result<CatalogueRow, PriceError> {
        let midnight = row
            .from
            .to_zoned_datetime(TimeZone::UTC)
            .map_err(|e| PriceError::Catalogue(e.to_string()))?;
        Ok(CatalogueRow {
            list: ListName::parse(row.list)?,
            model: row.model.to_owned(),
            from: midnight.timestamp(),
            price: row.price.get().to_owned(),
        })
    };
    Ok((doc.as_of, doc.prices.into_iter().map(row).collect::<Result<_, _>>()?))
}

//! Prices by (list, model) and date; the catalogue is seeded here, the operator's rows win.

use std::sync::Arc;

use jiff::Timestamp;

use super::{Actor, Outcome, Store, StoreError};
use crate::pricing::{ListName, Price};

/// Who wrote a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PriceSource {
    /// The binary's catalogue.
    Catalogue,
    /// `gateway price set` or `import`.
    Operator,
}

/// A price as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceRow {
    /// The list.
    pub list: ListName,
    /// The model, by its upstream's name.
    pub model: String,
    /// In force from.
    pub from: Timestamp,
    /// Who wrote it.
    pub source: PriceSource,
    /// The rates.
    pub price: Arc<Price>,
}

impl Store {
    /// The price in force at a time: the operator's newest row that is not after `at`, else the catalogue's.
    /// From the cache when nothing changed since.
    pub fn price(&self, _list: &ListName, _model: &str, _at: Timestamp) -> Result<Option<PriceRow>, StoreError> {
        todo!()
    }

    /// The prices in force at a time, of one list or all, of one model or all.
    pub fn prices(
        &self,
        _list: Option<&ListName>,
        _model: Option<&str>,
        _at: Timestamp,
    ) -> Result<Vec<PriceRow>, StoreError> {
        todo!()
    }

    /// Writes operator rows, all or none, with their audit rows.
    pub fn set_prices(
        &self,
        _rows: &[(ListName, String, Timestamp, Price)],
        _by: &Actor,
        _now: Timestamp,
    ) -> Outcome<(), ()> {
        todo!()
    }
}

//! What holds for texts and budgets everywhere.

use std::collections::BTreeSet;

use super::{Done, LONGEST_TEXT, TextOf, Unusable, invalid};
use crate::budget::Period;
use crate::store::budgets::Change;

pub(super) fn check_text(what: TextOf, text: &str) -> Done<()> {
    if text.is_empty() || text.chars().count() > LONGEST_TEXT || text.chars().any(char::is_control) {
        return invalid(Unusable::Text(what));
    }
    Ok(())
}

/// Each period is named once: which of two were meant cannot be told.
pub(super) fn check_periods(periods: impl Iterator<Item = Period>) -> Done<()> {
    let mut seen = BTreeSet::new();
    for period in periods {
        if !seen.insert(period) {
            return invalid(Unusable::BudgetTwice(period));
        }
    }
    Ok(())
}

pub(super) fn check_changes(changes: &[Change]) -> Done<()> {
    check_periods(changes.iter().map(|change| match change {
        Change::Set(budget) => budget.period,
        Change::Drop(period) => *period,
    }))
}

pub(super) fn check_words(reference: Option<&str>, note: Option<&str>) -> Done<()> {
    reference.map_or(Ok(()), |text| check_text(TextOf::Reference, text))?;
    note.map_or(Ok(()), |text| check_text(TextOf::Note, text))
}

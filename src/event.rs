//! Events: what is told to others when it has happened.

use std::fmt;
use std::str::FromStr;

use crate::bilingual;
use crate::language::Bilingual;
use crate::route::nearest;

/// What happened. A sink may ask for some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An exchange was charged.
    ExchangeSettled,
    /// An exchange ended, and nothing was charged.
    ExchangeReleased,
    /// A balance moved by an entry of the ledger.
    BalanceChanged,
    /// A balance fell below what the settings call low.
    BalanceLow,
    /// A budget's window is spent, as far as the settings say.
    BudgetSpent,
}

impl Kind {
    /// Every one of them.
    pub const ALL: [Kind; 5] = [
        Kind::ExchangeSettled,
        Kind::ExchangeReleased,
        Kind::BalanceChanged,
        Kind::BalanceLow,
        Kind::BudgetSpent,
    ];

    /// The name in the database, in documents and in the settings.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::ExchangeSettled => "exchange.settled",
            Kind::ExchangeReleased => "exchange.released",
            Kind::BalanceChanged => "balance.changed",
            Kind::BalanceLow => "balance.low",
            Kind::BudgetSpent => "budget.spent",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Bilingual;

    /// Reads a name; the error says what would be right.
    fn from_str(text: &str) -> Result<Kind, Bilingual> {
        let names = Kind::ALL.map(Kind::name);
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| match nearest(text, names) {
            Some(near) => bilingual!(en: "did you mean \"{near}\"?", zh: "是否想写 \"{near}\"？"),
            None => {
                let known = names.join(", ");
                bilingual!(en: "known are {known}", zh: "已知的有 {known}")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Language;

    #[test]
    fn a_name_is_read_back_and_the_nearest_is_named() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let told = |name: &str| {
            name.parse::<Kind>()
                .expect_err("no such type")
                .of(Language::English)
                .to_string()
        };
        assert_eq!(told("balance.lo"), "did you mean \"balance.low\"?");
        assert!(told("x").contains("budget.spent"));
    }
}

//! Why an act was not done: what happened, never a sentence; [`super::texts`] has those.

use uuid::Uuid;

use crate::budget::Period;
use crate::language::Language;
use crate::money::Usd;
use crate::pricing::ListName;
use crate::store::StoreError;

/// Why an act was not done. Nothing was written, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("{}", .what.lacking(.name, Language::English))]
    NotFound {
        /// What kind of thing.
        what: Thing,
        /// What was asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<String>,
    },
    /// Several fit.
    #[error("{}", .what.ambiguous(.name, Language::English))]
    Ambiguous {
        /// What kind of thing.
        what: Thing,
        /// What was asked for.
        name: String,
        /// What fits, or the first of it.
        matches: Vec<String>,
    },
    /// The name is taken.
    #[error("{}", .what.is_there(.name, Language::English))]
    Exists {
        /// By what.
        what: Taken,
        /// The name.
        name: String,
    },
    /// A rule forbids it.
    #[error("{}", .0.what(Language::English))]
    NotAllowed(Forbidden),
    /// A value cannot be used.
    #[error("{}", .0.what(Language::English))]
    Invalid(Unusable),
    /// The database failed; nothing was written.
    #[error("the database could not be used")]
    Storage(#[from] StoreError),
    /// The commit failed: it may or may not have been written.
    #[error("the database failed while writing: whether it was written shows only after a look")]
    Unknown(#[source] StoreError),
}

/// What is looked up by a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thing {
    /// A user.
    User,
    /// A key.
    Key,
    /// A redemption code.
    Code,
    /// A request.
    Request,
    /// A price for a model.
    Price {
        /// In this list; `None`: in any.
        list: Option<ListName>,
    },
    /// A price list.
    PriceList,
}

/// What has a name that another one was to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// A user has the name.
    User,
    /// A user has the e-mail address.
    Email,
    /// Another credit has the reference.
    Credit,
    /// Another entry has the reference.
    Entry,
}

/// What a rule forbids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// A credit line below what is in use of it.
    CreditLineInUse {
        /// The one there is.
        credit_line: Usd,
        /// What is in the balance.
        balance: Usd,
        /// What running calls hold.
        held: Usd,
        /// The smallest that covers both.
        least: Usd,
    },
    /// A credit that takes money out.
    NegativeCredit {
        /// Of whom.
        user: String,
        /// How much.
        amount: Usd,
    },
    /// A balance that would fall below what running calls hold.
    BelowHeld {
        /// What is in the balance.
        balance: Usd,
        /// What running calls hold.
        held: Usd,
        /// What can be taken out; `None`: nothing.
        most: Option<Usd>,
    },
    /// A refund of a call that runs.
    Running {
        /// The request, as it was named.
        request: String,
    },
    /// A refund of nothing.
    NothingCharged {
        /// The request.
        request: Uuid,
    },
    /// A refund of what was given back before.
    GivenBack {
        /// The request.
        request: Uuid,
    },
    /// A refund of more than is left of a charge.
    MoreThanLeft {
        /// The request.
        request: Uuid,
        /// What is left.
        left: Usd,
    },
    /// A refund that the balance has no place for.
    RefundTooLarge,
    /// Revoking what was redeemed.
    Redeemed {
        /// What is shown of the code.
        code: String,
        /// By whom.
        user: String,
        /// What it was worth.
        amount: Usd,
    },
    /// Changing a key that is revoked or was rotated.
    KeyOver {
        /// What is shown of the key.
        key: String,
        /// Whose.
        user: String,
    },
    /// Rotating a key that is not valid, or was rotated.
    NotRotated {
        /// What is shown of the key.
        key: String,
        /// Whose.
        user: String,
    },
    /// Prices of which one is there twice.
    PriceTwice,
}

/// A value that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// The system gives no random bytes.
    NoRandom {
        /// Why, in its words.
        why: String,
    },
    /// A user's name that is empty or too long.
    UserNameLength,
    /// A user's name with spaces, control characters or a hyphen in front.
    UserNameCharacters,
    /// A user's name with an @.
    UserNameAt,
    /// A user's name that looks like an id or a key.
    UserNameLikeId,
    /// Not an e-mail address.
    Email(String),
    /// A text that is empty, too long, or has control characters.
    Text(TextOf),
    /// An amount that is negative or too large.
    Amount {
        /// Of what.
        what: AmountOf,
        /// The amount.
        amount: Usd,
    },
    /// A period with two budgets.
    BudgetTwice(Period),
    /// Crediting nothing.
    ZeroCredit,
    /// A credit that the balance has no place for.
    BalanceTooLarge {
        /// What is in the balance.
        balance: Usd,
    },
    /// Refunding nothing, or less.
    ZeroRefund,
    /// What a code cannot be worth.
    CodeAmount(Usd),
    /// A count of codes.
    CodeCount(u32),
    /// Codes that would be expired from the start.
    CodesExpired,
    /// A new key that would be expired from the start.
    NewKeyExpired,
    /// A key that would be expired by being changed.
    KeyExpired,
    /// An empty pattern of models.
    NoPattern,
}

/// What a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextOf {
    /// An operator's reference.
    Reference,
    /// An operator's note.
    Note,
    /// A key's name.
    KeyName,
}

/// What an amount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AmountOf {
    /// A first credit.
    Balance,
    /// A credit line.
    CreditLine,
}

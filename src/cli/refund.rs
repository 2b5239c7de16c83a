//! `gateway refund`

use serde::Serialize;

use super::failure::Failure;
use super::output::{self, EntryView, UserView};
use super::{Global, actor, language, values};
use crate::admin::{self, RefundSpec};
use crate::money::Usd;
use crate::said;
use crate::store::Create;
use crate::store::entries::Times;
use crate::time::now;

/// Gives a charge back to the balance it was taken from, and to the budgets of that time.
#[derive(Debug, clap::Args)]
pub struct RefundArgs {
    /// The x-request-id of the answer, the start of it, or the upstream's response id
    exchange: String,
    /// How much of the charge [default: all that is left of it]
    #[arg(long, value_name = "USD", allow_negative_numbers = true, value_parser = values::typed::<Usd>)]
    amount: Option<Usd>,
    /// A note for the ledger
    #[arg(long)]
    note: Option<String>,
    /// Your own id of the refund; the same one twice refunds once
    #[arg(long, value_name = "ID")]
    reference: Option<String>,
}

/// What a refund did.
#[derive(Serialize)]
struct RefundView {
    entry: EntryView,
    user: UserView,
    /// What of the charge was not given back.
    left: Usd,
    /// The reference had been refunded before; nothing changed.
    repeated: bool,
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(args: RefundArgs, global: &Global) -> anyhow::Result<()> {
    let spec = RefundSpec {
        amount: args.amount,
        reference: args.reference,
        note: args.note,
    };
    let store = global.store(Create::Never)?;
    let done = admin::refund(&store, &args.exchange, &spec, &actor(), now()).map_err(Failure::from)?;
    let repeated = done.times == Times::Again;
    if global.json {
        return output::json(&RefundView {
            entry: EntryView::new(&done.entry),
            user: UserView::new(&done.user),
            left: done.left,
            repeated,
        });
    }
    if repeated {
        let before = output::time(done.entry.at);
        global.say(&said!(
            language(),
            en: "refunded before, on {before}; nothing changed",
            zh: "此前已于 {before} 退款；没有任何改动",
        ));
    }
    output::fields(&[
        ("user", done.user.name.clone()),
        (
            "request",
            done.entry.refunds.map_or_else(String::new, |id| id.to_string()),
        ),
        ("refunded", format!("{:#}", done.entry.amount)),
        ("left of it", format!("{:#}", done.left)),
        ("balance", format!("{:#}", done.user.balance)),
        ("available", format!("{:#}", done.user.available())),
    ])
}

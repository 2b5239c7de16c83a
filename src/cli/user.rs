//! `gateway user …`

use clap::Subcommand;
use serde::Serialize;

use super::output::{self, Column, EntryView, Items, UserView};
use super::{Global, actor};
use crate::admin::{self, CreditKind, CreditSpec, UserSpec};
use crate::cli::failure::Failure;
use crate::money::Usd;
use crate::store::Create;
use crate::store::entries::Times;
use crate::store::users::{User, UserStatus};
use crate::time::now;

/// What to do with users. USER is a name, an e-mail address or an id.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user, and the database if there is none
    Add {
        /// Any handle without spaces
        name: String,
        /// An e-mail address
        #[arg(long)]
        email: Option<String>,
        /// The first credit
        #[arg(long, value_name = "USD", default_value = "0", allow_negative_numbers = true)]
        balance: Usd,
        /// How far below zero the balance may go
        #[arg(long, value_name = "USD", default_value = "0", allow_negative_numbers = true)]
        credit_line: Usd,
    },
    /// All users and their balances
    List,
    /// One user
    Show {
        /// Name, e-mail address or id
        user: String,
    },
    /// Refuse the user's calls; running ones settle
    Suspend {
        /// Name, e-mail address or id
        user: String,
    },
    /// Let a suspended user call again
    Activate {
        /// Name, e-mail address or id
        user: String,
    },
    /// Put money into a balance
    Credit {
        /// Name, e-mail address or id
        user: String,
        /// Dollars, such as 5 or 0.25
        #[arg(value_name = "AMOUNT", allow_negative_numbers = true)]
        amount: Usd,
        /// A note for the ledger
        #[arg(long)]
        note: Option<String>,
        /// Your own id of the payment; the same one twice credits once
        #[arg(long, value_name = "ID")]
        reference: Option<String>,
        /// A correction: may be negative, but never takes what is held
        #[arg(long)]
        adjust: bool,
    },
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: UserCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        UserCommand::Add {
            name,
            email,
            balance,
            credit_line,
        } => {
            let spec = UserSpec {
                name,
                email,
                balance,
                credit_line,
            };
            let store = global.store(Create::IfMissing)?;
            let user = admin::add_user(&store, &spec, &actor(), now()).map_err(Failure::from)?;
            show(&user, global)?;
            if !global.json {
                global.say(&format!("next: gateway key issue {}", user.name));
            }
            Ok(())
        }
        UserCommand::List => list(global),
        UserCommand::Show { user } => {
            let store = global.store(Create::Never)?;
            show(&admin::user(&store, &user).map_err(Failure::from)?, global)
        }
        UserCommand::Suspend { user } => set_status(&user, UserStatus::Suspended, global),
        UserCommand::Activate { user } => set_status(&user, UserStatus::Active, global),
        UserCommand::Credit {
            user,
            amount,
            note,
            reference,
            adjust,
        } => {
            let kind = if adjust {
                CreditKind::Adjustment
            } else {
                CreditKind::Credit
            };
            let spec = CreditSpec {
                amount,
                kind,
                reference,
                note,
            };
            credit(&user, &spec, global)
        }
    }
}

fn show(user: &User, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return output::json(&UserView::new(user));
    }
    let mut lines = vec![
        ("user", user.name.clone()),
        ("id", user.id.0.to_string()),
        ("status", user.status.name().to_owned()),
        ("balance", format!("{:#}", user.balance)),
        ("credit line", format!("{:#}", user.credit_line)),
        ("held", format!("{:#}", user.held)),
        ("available", format!("{:#}", user.available())),
        ("since", output::time(user.created_at)),
    ];
    if let Some(email) = &user.email {
        lines.insert(2, ("email", output::plain(email)));
    }
    output::fields(&lines)
}

fn list(global: &Global) -> anyhow::Result<()> {
    let users = global.store(Create::Never)?.users().map_err(Failure::from)?;
    if global.json {
        let items = users.iter().map(UserView::new).collect();
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("user"),
        Column::Left("status"),
        Column::Right("balance"),
        Column::Right("credit line"),
        Column::Right("held"),
        Column::Right("available"),
        Column::Left("id"),
    ];
    let row = |user: &User| {
        vec![
            user.name.clone(),
            user.status.name().to_owned(),
            format!("{:#}", user.balance),
            format!("{:#}", user.credit_line),
            format!("{:#}", user.held),
            format!("{:#}", user.available()),
            user.id.0.to_string(),
        ]
    };
    output::table(&columns, users.iter().map(row).collect())
}

fn set_status(who: &str, to: UserStatus, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let user = admin::set_status(&store, who, to, &actor(), now()).map_err(Failure::from)?;
    if global.json {
        return output::json(&UserView::new(&user));
    }
    global.say(&format!("user {} is {}", user.name, user.status.name()));
    Ok(())
}

/// What a credit did.
#[derive(Serialize)]
struct Credited {
    entry: EntryView,
    user: UserView,
    /// The reference had been credited before; nothing changed.
    repeated: bool,
}

fn credit(who: &str, spec: &CreditSpec, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let at = now();
    let (entry, user, times) = admin::credit(&store, who, spec, &actor(), at).map_err(Failure::from)?;
    let repeated = times == Times::Again;
    if global.json {
        return output::json(&Credited {
            entry: EntryView::new(&entry),
            user: UserView::new(&user),
            repeated,
        });
    }
    if repeated {
        global.say(&format!(
            "credited before, on {}; nothing changed",
            output::time(entry.at)
        ));
    }
    output::fields(&[
        ("user", user.name.clone()),
        ("credited", format!("{:#}", entry.amount)),
        ("balance", format!("{:#}", user.balance)),
        ("available", format!("{:#}", user.available())),
    ])
}

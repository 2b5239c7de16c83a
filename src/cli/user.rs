//! `gateway user …`

use clap::Subcommand;
use serde::Serialize;

use super::output::{self, Column, EntryView, Items, UserView, WithBudgets};
use super::values::{self, Markup, Rate, Spoken};
use super::{Global, actor, language};
use crate::admin::{self, CreditKind, CreditSpec, UserSpec};
use crate::budget::{Budget, Period};
use crate::cli::failure::Failure;
use crate::limits::{AtMost, Rates};
use crate::money::Usd;
use crate::said;
use crate::store::budgets::Spender;
use crate::store::entries::Times;
use crate::store::users::{User, UserChange, UserStatus};
use crate::store::{Create, Store};
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
        #[arg(long, value_name = "USD", default_value = "0", allow_negative_numbers = true, value_parser = values::typed::<Usd>)]
        balance: Usd,
        /// How far below zero the balance may go
        #[arg(long, value_name = "USD", default_value = "0", allow_negative_numbers = true, value_parser = values::typed::<Usd>)]
        credit_line: Usd,
        /// What the user may spend at most, all keys together: 20, 5/day or 100/month; may be given for each period
        #[arg(long = "budget", value_name = "USD[/day|/month|/total]", value_parser = values::typed::<Budget>)]
        budgets: Vec<Budget>,
        /// Requests a minute, all keys together [default: no limit]
        #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
        rpm: Option<AtMost>,
        /// Tokens a minute, input and output, all keys together [default: no limit]
        #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
        tpm: Option<AtMost>,
        /// Calls at once, all keys together [default: no limit]
        #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
        concurrency: Option<AtMost>,
    },
    /// Change a user: budgets, limits, markup, credit line, language; a running server knows at once
    Set(SetArgs),
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
        #[arg(value_name = "AMOUNT", allow_negative_numbers = true, value_parser = values::typed::<Usd>)]
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

/// `gateway user set`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct SetArgs {
    /// Name, e-mail address or id
    user: String,
    /// What the user may spend at most, all keys together: 20, 5/day or 100/month; may be given for each period
    #[arg(long = "budget", value_name = "USD[/day|/month|/total]", group = "change", value_parser = values::typed::<Budget>)]
    budgets: Vec<Budget>,
    /// Take a budget away
    #[arg(long = "no-budget", value_name = "day|month|total", group = "change", value_parser = values::typed::<Period>)]
    no_budgets: Vec<Period>,
    /// What the user pays per dollar of cost, such as 1.2, or 'default' for what the settings say
    #[arg(long, value_name = "FACTOR|default", value_parser = values::markup, group = "change")]
    markup: Option<Markup>,
    /// The language of what the user's clients are told, or 'auto' for what they ask for
    #[arg(long, value_name = "en|zh|auto", value_parser = values::spoken, group = "change")]
    language: Option<Spoken>,
    /// How far below zero the balance may go
    #[arg(long, value_name = "USD", allow_negative_numbers = true, group = "change", value_parser = values::typed::<Usd>)]
    credit_line: Option<Usd>,
    /// Requests a minute, all keys together, or 'none' for no limit
    #[arg(long, value_name = "N|none", value_parser = values::user_rate, group = "change")]
    rpm: Option<Rate>,
    /// Tokens a minute, input and output, all keys together, or 'none' for no limit
    #[arg(long, value_name = "N|none", value_parser = values::user_rate, group = "change")]
    tpm: Option<Rate>,
    /// Calls at once, all keys together, or 'none' for no limit
    #[arg(long, value_name = "N|none", value_parser = values::user_rate, group = "change")]
    concurrency: Option<Rate>,
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
            budgets,
            rpm,
            tpm,
            concurrency,
        } => {
            let spec = UserSpec {
                name,
                email,
                balance,
                credit_line,
                budgets,
                rates: Rates { rpm, tpm, concurrency },
            };
            let store = global.store(Create::IfMissing)?;
            let user = admin::add_user(&store, &spec, &actor(), now()).map_err(Failure::from)?;
            show(&store, &user, global)?;
            if !global.json {
                let next = global.command(&format!("key issue {}", output::shell_word(&user.name)));
                global.say(&said!(language(), en: "next: {next}", zh: "下一步：{next}"));
            }
            Ok(())
        }
        UserCommand::List => list(global),
        UserCommand::Show { user } => {
            let store = global.store(Create::Never)?;
            let user = admin::user(&store, &user).map_err(Failure::from)?;
            show(&store, &user, global)
        }
        UserCommand::Set(args) => set(args, global),
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

fn set(args: SetArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let change = UserChange {
        credit_line: args.credit_line,
        markup: args.markup.map(|markup| markup.0),
        language: args.language.map(|language| language.0),
        budgets: values::budget_changes(&args.budgets, &args.no_budgets),
        rates: values::rates_change(args.rpm, args.tpm, args.concurrency),
    };
    let user = admin::change_user(&store, &args.user, &change, &actor(), now()).map_err(Failure::from)?;
    show(&store, &user, global)
}

fn show(store: &Store, user: &User, global: &Global) -> anyhow::Result<()> {
    let budgets = store.budgets(Spender::User(user.id), now()).map_err(Failure::from)?;
    if global.json {
        return output::json(&WithBudgets::new(UserView::new(user), &budgets));
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
    if let Some(language) = user.language {
        lines.insert(3, ("language", language.to_string()));
    }
    if let Some(markup) = user.markup {
        lines.push(("markup", markup.to_string()));
    }
    if !user.rates.is_none() {
        lines.extend(output::rates(user.rates, "no limit"));
    }
    lines.extend(budgets.iter().map(output::budget));
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
    let name = &user.name;
    global.say(&match user.status {
        UserStatus::Active => said!(language(), en: "user {name} is active", zh: "用户 {name} 已启用"),
        UserStatus::Suspended => said!(language(), en: "user {name} is suspended", zh: "用户 {name} 已停用"),
    });
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
        let before = output::time(entry.at);
        global.say(&said!(
            language(),
            en: "credited before, on {before}; nothing changed",
            zh: "此前已于 {before} 充值；没有任何改动",
        ));
    }
    output::fields(&[
        ("user", user.name.clone()),
        ("credited", format!("{:#}", entry.amount)),
        ("balance", format!("{:#}", user.balance)),
        ("available", format!("{:#}", user.available())),
    ])
}

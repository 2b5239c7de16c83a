//! `gateway price …`

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Subcommand;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::failure::{Exit, Failure};
use super::output::{self, Column, Items};
use super::values::When;
use super::{Global, actor, litellm};
use crate::admin::{self, AdminError, PriceChange, PriceSpec};
use crate::config::{Config, Pricing, UpstreamConfig};
use crate::pricing::{Class, Factor, Kind, ListName, Price, Rate};
use crate::route::model_allowed;
use crate::store::prices::{PriceRow, PriceSource};
use crate::store::{Create, Store};
use crate::time::now;

/// The largest file that is imported, in bytes.
const MAX_IMPORT: u64 = 64 << 20;

/// What to do with prices. A price belongs to a list and a model: the same model costs differently at two vendors.
#[derive(Debug, Subcommand)]
pub enum PriceCommand {
    /// The prices in force
    List {
        /// Only this model
        model: Option<String>,
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
    },
    /// Set rates of a model, in dollars per million tokens; what is not given stays as it is
    Set(Box<SetArgs>),
    /// Read prices from a file: an export, or LiteLLM's price map; shows the differences first
    Import {
        /// The file, or - for stdin
        file: PathBuf,
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
        /// In force from: a date (midnight UTC) or a time [default: now; an export's own dates]
        #[arg(long, value_name = "DATE", value_parser = When::parse)]
        from: Option<When>,
        /// Write without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print the prices in force as JSON that `import` reads
    Export {
        /// Only this list
        #[arg(long, value_name = "NAME", value_parser = list_name)]
        list: Option<ListName>,
    },
    /// Say which configured models have no price; exit code 1 when there are any
    Check,
}

/// `gateway price set`
#[derive(Debug, clap::Args)]
pub struct SetArgs {
    /// The model, by its upstream's name
    model: String,
    /// The price list [default: the first upstream's]
    #[arg(long, value_name = "NAME", value_parser = list_name)]
    list: Option<ListName>,
    /// In force from: a date (midnight UTC) or a time [default: now]
    #[arg(long, value_name = "DATE", value_parser = When::parse)]
    from: Option<When>,
    /// Begin with the whole price of another model of the list (or LIST:MODEL)
    #[arg(long, value_name = "MODEL")]
    like: Option<String>,
    /// What the model is for [default: as it is, else text]
    #[arg(long, value_name = "text|embedding|image", value_parser = kind)]
    kind: Option<Kind>,
    /// Input tokens
    #[arg(long, value_name = "USD", value_parser = rate)]
    input: Option<Rate>,
    /// Input tokens read from the cache [default: as input]
    #[arg(long, value_name = "USD", value_parser = rate)]
    cached_input: Option<Rate>,
    /// Input tokens written to the cache [default: as input]
    #[arg(long, value_name = "USD", value_parser = rate)]
    cache_write: Option<Rate>,
    /// Input tokens written to the cache for 12 hours [default: as --cache-write]
    #[arg(long = "cache-write-12h", value_name = "USD", value_parser = rate)]
    cache_write_12h: Option<Rate>,
    /// Output tokens, reasoning included
    #[arg(long, value_name = "USD", value_parser = rate)]
    output: Option<Rate>,
    /// Reasoning tokens, where a vendor bills them apart [default: as output]
    #[arg(long, value_name = "USD", value_parser = rate)]
    reasoning_output: Option<Rate>,
    /// Audio tokens read [default: as input]
    #[arg(long, value_name = "USD", value_parser = rate)]
    audio_input: Option<Rate>,
    /// Audio tokens generated [default: as output]
    #[arg(long, value_name = "USD", value_parser = rate)]
    audio_output: Option<Rate>,
    /// A thousand web searches
    #[arg(long, value_name = "USD", value_parser = rate)]
    web_search: Option<Rate>,
    /// A thousand file searches
    #[arg(long, value_name = "USD", value_parser = rate)]
    file_search: Option<Rate>,
    /// A thousand containers of code interpreter
    #[arg(long, value_name = "USD", value_parser = rate)]
    container: Option<Rate>,
    /// What tokens cost more at an upstream with a region, such as 1.1
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    regional_uplift: Option<Factor>,
    /// The largest input the model takes, in tokens
    #[arg(long, value_name = "TOKENS")]
    max_input: Option<u32>,
    /// The longest answer of the model, in tokens
    #[arg(long, value_name = "TOKENS")]
    max_output: Option<u32>,
}

fn list_name(text: &str) -> Result<ListName, String> {
    ListName::parse(text).map_err(|error| error.to_string())
}

fn rate(text: &str) -> Result<Rate, String> {
    Rate::parse(text).map_err(|error| error.to_string())
}

fn factor(text: &str) -> Result<Factor, String> {
    Factor::parse(text).map_err(|error| error.to_string())
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "text" => Ok(Kind::Text),
        "embedding" => Ok(Kind::Embedding),
        "image" => Ok(Kind::Image),
        _ => Err("write text, embedding or image".into()),
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: PriceCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        PriceCommand::List { model, list } => show(list.as_ref(), model.as_deref(), global),
        PriceCommand::Set(args) => set(&args, global),
        PriceCommand::Import { file, list, from, yes } => import(&file, list.as_ref(), from, yes.into(), global),
        PriceCommand::Export { list } => export(list.as_ref(), global),
        PriceCommand::Check => check(global),
    }
}

/// The list of the first upstream that is not free, else OpenAI's.
fn default_list(config: &Config) -> ListName {
    let first = config.upstreams.iter().find_map(UpstreamConfig::list);
    first.cloned().unwrap_or_else(ListName::openai)
}

// ---- list, export

/// A price in JSON documents.
#[derive(Serialize)]
struct PriceView {
    list: String,
    model: String,
    from: Timestamp,
    source: &'static str,
    price: Box<RawValue>,
}

impl PriceView {
    fn new(row: &PriceRow) -> anyhow::Result<PriceView> {
        Ok(PriceView {
            list: row.list.to_string(),
            model: row.model.clone(),
            from: row.from,
            source: source(row.source),
            price: RawValue::from_string(row.price.to_json())?,
        })
    }
}

fn source(source: PriceSource) -> &'static str {
    match source {
        PriceSource::Catalogue => "catalogue",
        PriceSource::Operator => "operator",
    }
}

fn show(list: Option<&ListName>, model: Option<&str>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let rows = store.prices(list, model, now()).map_err(Failure::from)?;
    if let (Some(model), true) = (model, rows.is_empty()) {
        return Err(Failure::from(no_price(&store, list, model)?).into());
    }
    if global.json {
        let items = rows.iter().map(PriceView::new).collect::<Result<Vec<_>, _>>()?;
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("list"),
        Column::Left("model"),
        Column::Right("input"),
        Column::Right("cached"),
        Column::Right("output"),
        Column::Left("also"),
        Column::Left("from"),
        Column::Left("by"),
    ];
    global.say("dollars per million tokens; --json has every rate");
    output::table(&columns, rows.iter().map(price_row).collect())
}

fn no_price(store: &Store, list: Option<&ListName>, model: &str) -> anyhow::Result<AdminError> {
    let all = store.prices(list, None, now()).map_err(Failure::from)?;
    let nearest = crate::route::nearest(model, all.iter().map(|row| row.model.as_str()));
    Ok(AdminError::NotFound {
        what: "price for the model",
        name: model.to_owned(),
        nearest: nearest.map(str::to_owned),
    })
}

fn price_row(row: &PriceRow) -> Vec<String> {
    let rates = &row.price.rates;
    let (input, output_class) = match row.price.kind {
        Kind::Text | Kind::Embedding => (Class::Input, Class::Output),
        Kind::Image => (Class::ImageTextInput, Class::ImageOutput),
    };
    let rate = |class: Class| rates.get(&class).map_or("-".to_owned(), ToString::to_string);
    vec![
        row.list.to_string(),
        output::plain(&row.model),
        rate(input),
        rate(Class::CachedInput),
        rate(output_class),
        also(&row.price),
        output::time(row.from).split(' ').next().unwrap_or_default().to_owned(),
        source(row.source).to_owned(),
    ]
}

/// What else a price is made of.
fn also(price: &Price) -> String {
    let mut parts: Vec<String> = price.tiers.keys().map(|tier| tier.name().to_owned()).collect();
    parts.extend(
        price
            .steps
            .first()
            .map(|step| format!("above {}", output::count(step.above))),
    );
    parts.extend(price.off_peak.as_ref().map(|_| "off-peak".to_owned()));
    parts.extend((!price.fees.is_empty()).then(|| "tools".to_owned()));
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

/// An export.
#[derive(Serialize)]
struct Export {
    prices: Vec<PriceView>,
}

fn export(list: Option<&ListName>, global: &Global) -> anyhow::Result<()> {
    let rows = global
        .store(Create::Never)?
        .prices(list, None, now())
        .map_err(Failure::from)?;
    let prices = rows.iter().map(PriceView::new).collect::<Result<Vec<_>, _>>()?;
    output::json(&Export { prices })
}

// ---- set

fn set(args: &SetArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let store = super::open(&config.database, Create::Never)?;
    let at = now();
    let from = args.from.map_or(at, |when| when.ahead(at));
    let list = args.list.clone().unwrap_or_else(|| default_list(&config));
    let price = args.over(base(&store, args, &list, from)?)?;
    let spec = PriceSpec {
        list,
        model: args.model.clone(),
        from,
        price,
    };
    let changes = admin::price_changes(&store, vec![spec]).map_err(Failure::from)?;
    admin::set_prices(&store, &changes, &actor(), at).map_err(Failure::from)?;
    if changes.is_empty() {
        global.say("nothing differs from the price in force");
    }
    show_changes(&changes, global)
}

/// The price that the given rates are laid over: the one of `--like`, the model's own, or none.
fn base(store: &Store, args: &SetArgs, list: &ListName, from: Timestamp) -> anyhow::Result<Option<Price>> {
    if let Some(like) = &args.like {
        let (list, model) = match like.split_once(':').map(|(list, model)| (ListName::parse(list), model)) {
            Some((Ok(list), model)) => (list, model),
            _ => (list.clone(), like.as_str()),
        };
        return Ok(Some(admin::price(store, &list, model, from).map_err(Failure::from)?.0));
    }
    let row = store.price(list, &args.model, from).map_err(Failure::from)?;
    Ok(row.map(|row| row.price.as_ref().clone()))
}

impl SetArgs {
    /// These rates over a price.
    fn over(&self, base: Option<Price>) -> anyhow::Result<Price> {
        if self.model.is_empty() || self.model.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(Failure::new(Exit::Usage, "the model's name is empty or has spaces").into());
        }
        let mut price = base.unwrap_or_else(|| Price {
            rates: Default::default(),
            fees: Default::default(),
            ..Price::free()
        });
        price.kind = self.kind.unwrap_or(price.kind);
        price.rates.extend(self.rates());
        price.fees.extend(self.fees());
        price.regional_uplift = self.regional_uplift.or(price.regional_uplift);
        price.max_input = self.max_input.or(price.max_input);
        price.max_output = self.max_output.or(price.max_output);
        Price::from_json(&price.to_json()).map_err(|error| {
            let failure = Failure::new(Exit::Usage, format!("the price was not set: {error}"));
            failure
                .fix("give the rates per million tokens: --input 2.5 --cached-input 0.25 --output 10")
                .into()
        })
    }

    fn rates(&self) -> impl Iterator<Item = (Class, Rate)> {
        let image = self.kind == Some(Kind::Image);
        let given = [
            (if image { Class::ImageTextInput } else { Class::Input }, self.input),
            (Class::CachedInput, self.cached_input),
            (Class::CacheWrite, self.cache_write),
            (Class::CacheWrite12h, self.cache_write_12h),
            (if image { Class::ImageOutput } else { Class::Output }, self.output),
            (Class::ReasoningOutput, self.reasoning_output),
            (Class::AudioInput, self.audio_input),
            (Class::AudioOutput, self.audio_output),
        ];
        given.into_iter().filter_map(|(class, rate)| Some((class, rate?)))
    }

    fn fees(&self) -> impl Iterator<Item = (Class, Rate)> {
        let given = [
            (Class::WebSearch, self.web_search),
            (Class::FileSearch, self.file_search),
            (Class::Container, self.container),
        ];
        given.into_iter().filter_map(|(class, rate)| Some((class, rate?)))
    }
}

/// One changed field in JSON documents.
#[derive(Serialize)]
struct ChangeView {
    list: String,
    model: String,
    from: Timestamp,
    field: String,
    before: Option<String>,
    after: Option<String>,
}

fn show_changes(changes: &[PriceChange], global: &Global) -> anyhow::Result<()> {
    let all = changes.iter().flat_map(|change| {
        let view = |(field, before, after): &(String, Option<String>, Option<String>)| ChangeView {
            list: change.spec.list.to_string(),
            model: change.spec.model.clone(),
            from: change.spec.from,
            field: field.clone(),
            before: before.clone(),
            after: after.clone(),
        };
        change.fields.iter().map(view).collect::<Vec<_>>()
    });
    if global.json {
        return output::json(&Items { items: all.collect() });
    }
    let columns = [
        Column::Left("list"),
        Column::Left("model"),
        Column::Left("what"),
        Column::Right("before"),
        Column::Right("after"),
    ];
    let none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = all
        .map(|view| {
            vec![
                view.list,
                output::plain(&view.model),
                view.field,
                none(view.before),
                none(view.after),
            ]
        })
        .collect();
    if rows.is_empty() {
        Ok(())
    } else {
        output::table(&columns, rows)
    }
}

// ---- import

/// Whether to ask before writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consent {
    Given,
    Ask,
}

impl From<bool> for Consent {
    fn from(yes: bool) -> Consent {
        if yes { Consent::Given } else { Consent::Ask }
    }
}

#[derive(Deserialize)]
struct ImportDoc<'a> {
    #[serde(borrow)]
    prices: Vec<ImportRow<'a>>,
}

#[derive(Deserialize)]
struct ImportRow<'a> {
    list: String,
    model: String,
    from: Timestamp,
    #[serde(borrow)]
    price: &'a RawValue,
}

fn import(
    file: &Path,
    list: Option<&ListName>,
    from: Option<When>,
    consent: Consent,
    global: &Global,
) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let at = now();
    let text = read_import(file)?;
    let from = from.map(|when| when.ahead(at));
    let mut specs = if litellm::is_map(&text) {
        let specs = of_litellm(&text, from.unwrap_or(at), global)?;
        keeping_what_the_map_does_not_know(&store, specs)?
    } else {
        of_export(&text, from)?
    };
    specs.retain(|spec| list.is_none_or(|list| spec.list == *list));
    let changes = admin::price_changes(&store, specs).map_err(Failure::from)?;
    show_changes(&changes, global)?;
    if changes.is_empty() {
        global.say("nothing differs from the prices in force");
        return Ok(());
    }
    if !agreed(changes.len(), consent, global)? {
        return Ok(());
    }
    admin::set_prices(&store, &changes, &actor(), at).map_err(Failure::from)?;
    global.say(&format!("{} prices written", changes.len()));
    Ok(())
}

fn read_import(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().take(MAX_IMPORT + 1).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(MAX_IMPORT + 1).read_to_string(&mut text)),
    };
    let failure = |exit, why: String| Failure::new(exit, format!("{} cannot be read", file.display())).why(why);
    match read {
        Ok(bytes) if u64::try_from(bytes)? > MAX_IMPORT => {
            Err(failure(Exit::Usage, "larger than 64 MiB".into()).into())
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(failure(Exit::NotFound, error.to_string()).into())
        }
        Err(error) => Err(failure(Exit::Failed, error.to_string()).into()),
    }
}

fn not_imported(why: impl std::fmt::Display) -> Failure {
    let failure = Failure::new(Exit::Usage, "nothing was imported").why(why.to_string());
    failure.fix("give what `gateway price export` prints, or LiteLLM's model_prices_and_context_window.json")
}

fn of_export(text: &str, from: Option<Timestamp>) -> Result<Vec<PriceSpec>, Failure> {
    let doc: ImportDoc<'_> = serde_json::from_str(text).map_err(not_imported)?;
    let spec = |row: ImportRow<'_>| {
        let price = Price::from_json(row.price.get()).map_err(|why| not_imported(format!("{}: {why}", row.model)))?;
        Ok(PriceSpec {
            list: ListName::parse(&row.list).map_err(not_imported)?,
            model: row.model,
            from: from.unwrap_or(row.from),
            price,
        })
    };
    doc.prices.into_iter().map(spec).collect()
}

fn of_litellm(text: &str, from: Timestamp, global: &Global) -> Result<Vec<PriceSpec>, Failure> {
    let read = litellm::read(text).map_err(not_imported)?;
    for (model, why) in &read.left_out {
        global.say(&format!("left out {}: {}", output::plain(model), output::plain(why)));
    }
    let spec = |(list, model, price)| PriceSpec {
        list,
        model,
        from,
        price,
    };
    Ok(read.prices.into_iter().map(spec).collect())
}

/// The map says nothing of tool fees, uplifts and off-peak hours: what is in force stays.
fn keeping_what_the_map_does_not_know(store: &Store, specs: Vec<PriceSpec>) -> Result<Vec<PriceSpec>, Failure> {
    let keep = |mut spec: PriceSpec| {
        if let Some(row) = store.price(&spec.list, &spec.model, spec.from)? {
            spec.price.fees = row.price.fees.clone();
            spec.price.regional_uplift = row.price.regional_uplift;
            spec.price.off_peak = row.price.off_peak.clone();
            spec.price.context_window = row.price.context_window;
        }
        Ok(spec)
    };
    specs
        .into_iter()
        .map(keep)
        .collect::<Result<_, crate::store::StoreError>>()
        .map_err(Failure::from)
}

/// Asks on a terminal; elsewhere nothing is written without `--yes`.
fn agreed(prices: usize, consent: Consent, global: &Global) -> anyhow::Result<bool> {
    if consent == Consent::Given {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        global.say(&format!("nothing was written; add --yes to write {prices} prices"));
        return Ok(false);
    }
    eprint!("write {prices} prices? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        global.say("nothing was written");
    }
    Ok(yes)
}

// ---- check

/// A configured model without a price.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Unpriced {
    upstream: String,
    list: String,
    model: String,
    alias: Option<String>,
    nearest: Option<String>,
    fix: String,
}

fn check(global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let store = super::open(&config.database, Create::Never)?;
    let mut unpriced = Vec::new();
    for upstream in &config.upstreams {
        unpriced.extend(unpriced_of(&store, upstream)?);
    }
    report(&unpriced, config.upstreams.is_empty(), global)?;
    if unpriced.is_empty() {
        return Ok(());
    }
    let what = format!("{} configured models have no price", unpriced.len());
    let failure = Failure::new(Exit::Failed, what).why("calls to them are refused: there is no default price");
    Err(failure.fix(unpriced[0].fix.clone()).into())
}

fn report(unpriced: &[Unpriced], no_upstream: impl Into<Option<bool>>, global: &Global) -> anyhow::Result<()> {
    if global.json {
        return output::json(&Items {
            items: unpriced.iter().collect(),
        });
    }
    if no_upstream.into() == Some(true) {
        global.say("no upstream is configured, so there is nothing to check");
    } else if unpriced.is_empty() {
        return output::print("every configured model has a price\n").map(drop);
    }
    if unpriced.is_empty() {
        return Ok(());
    }
    let columns = ["upstream", "list", "model without a price", "alias", "nearest"].map(Column::Left);
    let none = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let row = |one: &Unpriced| {
        vec![
            one.upstream.clone(),
            one.list.clone(),
            output::plain(&one.model),
            none(&one.alias),
            none(&one.nearest),
        ]
    };
    output::table(&columns, unpriced.iter().map(row).collect())
}

/// Models named in `models`, aliases' targets, and patterns that fit no priced model.
fn unpriced_of(store: &Store, upstream: &UpstreamConfig) -> anyhow::Result<Vec<Unpriced>> {
    let list = match &upstream.prices {
        Pricing::Free => return Ok(Vec::new()),
        Pricing::List(list) => list,
    };
    let rows = store.prices(Some(list), None, now()).map_err(Failure::from)?;
    let priced: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    let patterns = upstream.models.iter().filter(|pattern| !fits_any(pattern, &priced));
    let aliases = upstream
        .aliases
        .iter()
        .filter(|(_, model)| !priced.contains(&model.as_str()));
    let one = |model: &str, alias: Option<&str>| Unpriced {
        upstream: upstream.name.clone(),
        list: list.to_string(),
        model: model.to_owned(),
        alias: alias.map(str::to_owned),
        nearest: crate::route::nearest(model, priced.iter().copied()).map(str::to_owned),
        fix: format!(
            "gateway price set {} --list {list} --input USD --output USD",
            if model.contains('*') { "MODEL" } else { model }
        ),
    };
    Ok(patterns
        .map(|pattern| one(pattern, None))
        .chain(aliases.map(|(alias, model)| one(model, Some(alias))))
        .collect())
}

fn fits_any(pattern: &str, models: &[&str]) -> bool {
    let pattern = [pattern.to_owned()];
    models.iter().any(|model| model_allowed(&pattern, model))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SetArgs,
    }

    fn set_of(line: &str, base: Option<&str>) -> Result<String, String> {
        let line = Line::try_parse_from(format!("set {line}").split(' ')).map_err(|error| error.to_string())?;
        let base = base.map(|text| Price::from_json(text).expect("a price"));
        line.args
            .over(base)
            .map(|price| price.to_json())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn rates_are_laid_over_the_price_there_is() {
        let old = r#"{"kind":"text","rates":{"input":"1","output":"2"},"max_output":9}"#;
        assert_eq!(
            set_of("m --input 2.5 --cached-input 0.25", Some(old)).as_deref(),
            Ok(r#"{"kind":"text","rates":{"input":"2.5","cached_input":"0.25","output":"2"},"max_output":9}"#)
        );
    }

    #[test]
    fn a_new_price_has_nothing_that_nobody_wrote() {
        assert_eq!(
            set_of("m --input 2.5 --output 0", None).as_deref(),
            Ok(r#"{"kind":"text","rates":{"input":"2.5","output":"0"}}"#)
        );
        assert!(set_of("m --input 2.5", None).is_err_and(|why| why.contains("output")));
        assert!(set_of("m --input 2.5 --kind embedding", None).is_ok());
        assert!(set_of("m --input 1e3 --output 1", None).is_err());
        assert!(set_of("m --input 0.0000000001 --output 1", None).is_err());
    }
}

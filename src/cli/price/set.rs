//! `gateway price set`: rates laid over the price there is.

use jiff::Timestamp;

use super::differences::{self, Difference};
use super::{list_name, parts};
use crate::admin::{self, PriceSpec, Same};
use crate::cli::failure::{Exit, Failure};
use crate::cli::values::{self, When};
use crate::cli::{Global, actor, language, open, output};
use crate::config::{Config, UpstreamConfig};
use crate::language::{Bilingual, Said, Tell};
use crate::pricing::{Class, Factor, Kind, ListName, Price, Rate};
use crate::store::{Create, Store};
use crate::time::now;
use crate::{bilingual, said};

/// `gateway price set`
#[derive(Debug, clap::Args)]
#[command(allow_negative_numbers = true)]
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
    #[arg(long, value_name = "text|embedding|image|transcription|speech", value_parser = kind_typed)]
    kind: Option<Kind>,
    /// Input tokens; of an image model, those of text
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
    /// Output tokens, reasoning included; of an image model, those of pictures
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
    /// Seconds of sound that are heard, where a transcription is billed by them
    #[arg(long, value_name = "USD", value_parser = rate)]
    seconds: Option<Rate>,
    /// Characters that are spoken, where speech is billed by them
    #[arg(long, value_name = "USD", value_parser = rate)]
    characters: Option<Rate>,
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

fn rate(text: &str) -> Result<Rate, String> {
    values::read(Rate::parse, text)
}

fn factor(text: &str) -> Result<Factor, String> {
    values::read(Factor::parse, text)
}

fn kind_typed(text: &str) -> Result<Kind, String> {
    values::read(kind, text)
}

pub(super) fn kind(text: &str) -> Result<Kind, Bilingual> {
    match text {
        "text" => Ok(Kind::Text),
        "embedding" => Ok(Kind::Embedding),
        "image" => Ok(Kind::Image),
        "transcription" => Ok(Kind::Transcription),
        "speech" => Ok(Kind::Speech),
        _ => Err(bilingual!(
            en: "write text, embedding, image, transcription or speech",
            zh: "请写 text、embedding、image、transcription 或 speech",
        )),
    }
}

/// The list of the first upstream that is not free, else OpenAI's.
fn default_list(config: &Config) -> ListName {
    let first = config.upstreams.iter().find_map(UpstreamConfig::list);
    first.cloned().unwrap_or_else(ListName::openai)
}

pub(super) fn run(args: &SetArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.settings(Vec::new())?.config;
    let store = open(&config.database, Create::Never)?;
    let at = now();
    let from = args.from.map_or(at, |when| when.ahead(at));
    let list = args.list.clone().unwrap_or_else(|| default_list(&config));
    let base = base(&store, args, &list, from)?;
    let kept = base.as_ref().and_then(|base| args.keeps(base));
    let price = args.over(base)?;
    let spec = PriceSpec {
        list,
        model: args.model.clone(),
        from,
        price,
        same: Same::Pin,
    };
    let changes = admin::price_changes(&store, vec![spec]).map_err(Failure::from)?;
    admin::set_prices(&store, &changes, &actor(), at).map_err(Failure::from)?;
    if changes.is_empty() {
        global.say(&said!(
            language(),
            en: "nothing differs from your price in force",
            zh: "与您现行的价格没有差异",
        ));
    }
    differences::show(changes.iter().map(Difference::of_change), ["before", "after"], global)?;
    if !changes.is_empty() {
        kept.iter().for_each(|kept| global.say(kept));
        if from > at {
            let from = output::time(from);
            global.say(&said!(language(), en: "in force from {from} UTC", zh: "自 {from} UTC 起生效"));
        }
    }
    Ok(())
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
            let what = said!(
                language(),
                en: "the model's name is empty or has spaces",
                zh: "模型名称为空或含有空格",
            );
            return Err(Failure::new(Exit::Usage, what).into());
        }
        let mut price = base.unwrap_or_else(|| Price {
            rates: Default::default(),
            fees: Default::default(),
            ..Price::free()
        });
        price.kind = self.kind.unwrap_or(price.kind);
        price.rates.extend(self.rates(price.kind));
        price.fees.extend(self.fees());
        price.regional_uplift = self.regional_uplift.or(price.regional_uplift);
        price.max_input = self.max_input.or(price.max_input);
        price.max_output = self.max_output.or(price.max_output);
        Price::from_json(&price.to_json()).map_err(|error| {
            let error = error.told(language());
            let what = said!(language(), en: "the price was not set: {error}", zh: "价格没有设置：{error}");
            let failure = Failure::new(Exit::Usage, what);
            failure
                .fix(said!(
                    language(),
                    en: "give the rates per million tokens: --input 2.5 --cached-input 0.25 --output 10",
                    zh: "请给出每百万 token 的费率：--input 2.5 --cached-input 0.25 --output 10",
                ))
                .into()
        })
    }

    /// What of a price these rates do not reach, in words.
    fn keeps(&self, base: &Price) -> Option<Said> {
        let own = parts(base);
        (!own.is_empty() && self.rates(base.kind).next().is_some()).then(|| {
            let own = own.join(", ");
            said!(
                language(),
                en: "unchanged, with rates of their own: {own}",
                zh: "保持不变，有各自的费率：{own}",
            )
        })
    }

    /// The given rates, by what they are called in a price of this kind.
    fn rates(&self, kind: Kind) -> impl Iterator<Item = (Class, Rate)> {
        let image = kind == Kind::Image;
        let given = [
            (if image { Class::ImageTextInput } else { Class::Input }, self.input),
            (Class::CachedInput, self.cached_input),
            (Class::CacheWrite, self.cache_write),
            (Class::CacheWrite12h, self.cache_write_12h),
            (if image { Class::ImageOutput } else { Class::Output }, self.output),
            (Class::ReasoningOutput, self.reasoning_output),
            (Class::AudioInput, self.audio_input),
            (Class::AudioOutput, self.audio_output),
            (Class::Seconds, self.seconds),
            (Class::Characters, self.characters),
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

    #[test]
    fn an_image_model_keeps_its_kind_and_its_rates_their_names() {
        let old = r#"{"kind":"image","rates":{"image_text_input":"5","image_output":"40"}}"#;
        let new = r#"{"kind":"image","rates":{"image_text_input":"6","image_output":"20"}}"#;
        for line in ["m --input 6 --output 20", "m --kind image --input 6 --output 20"] {
            assert_eq!(set_of(line, Some(old)).as_deref(), Ok(new), "{line}");
        }
    }
}

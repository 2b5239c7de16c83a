//! Prices from a file: our own export as JSON or CSV, or LiteLLM's price map; told apart by what is in it.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{litellm, sheet};
use crate::admin::{PriceSpec, Same};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{Global, language, output};
use crate::language::{Bilingual, Language, Said, Tell};
use crate::pricing::{ListName, Price};
use crate::route::nearest;
use crate::store::{Store, StoreError};
use crate::{bilingual, said};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;

/// How much of what is wrong with a file is told.
const TOLD: usize = 5;

/// A file of prices, and what of it is wanted.
pub(super) struct Wanted<'a> {
    /// The file, or `-` for stdin.
    pub(super) file: &'a Path,
    /// Only this list; of a sheet without lists, the list.
    pub(super) list: Option<&'a ListName>,
    /// One date for all.
    pub(super) from: Option<Timestamp>,
    /// The date of what has none.
    pub(super) at: Timestamp,
    /// How a failure begins.
    pub(super) in_vain: Said,
}

/// A price of a file, its rates as the file has them.
#[derive(Debug)]
pub(super) struct Row<P> {
    pub(super) list: ListName,
    pub(super) model: String,
    pub(super) from: Timestamp,
    /// A row of the catalogue's is there to be read: it is written only where it says something else.
    pub(super) source: Option<Source>,
    pub(super) price: P,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Source {
    Operator,
    Catalogue,
}

impl Source {
    pub(super) fn parse(text: &str) -> Result<Source, Bilingual> {
        match text {
            "operator" => Ok(Source::Operator),
            "catalogue" => Ok(Source::Catalogue),
            _ => Err(bilingual!(en: "write operator or catalogue", zh: "请写 operator 或 catalogue")),
        }
    }
}

#[derive(Deserialize)]
struct ExportDoc<'a> {
    #[serde(borrow)]
    prices: Vec<ExportRow<'a>>,
}

#[derive(Deserialize)]
struct ExportRow<'a> {
    list: String,
    model: String,
    from: Timestamp,
    source: Option<Source>,
    #[serde(borrow)]
    price: &'a RawValue,
}

impl Wanted<'_> {
    /// The prices of the file. What it does not say stays as it is in force.
    ///
    /// # Errors
    /// The file cannot be read, is not what is expected, has a row that cannot be used, or none for the list.
    pub(super) fn read(&self, store: &Store, global: &Global) -> anyhow::Result<Vec<PriceSpec>> {
        let text = self.text()?;
        let specs = if !text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']) {
            self.of_sheet(&text, store)?
        } else if litellm::is_map(&text) {
            let specs = self.of_litellm(&text, global)?;
            keeping_what_the_map_does_not_know(store, specs).map_err(Failure::from)?
        } else {
            self.of_export(&text)?
        };
        match self.list {
            Some(list) => Ok(self.only(list, specs)?),
            None => Ok(specs),
        }
    }

    fn text(&self) -> Result<String, Failure> {
        let mut text = String::new();
        let read = match self.file.to_str() {
            Some("-") => std::io::stdin().take(MAX_FILE + 1).read_to_string(&mut text),
            _ => std::fs::File::open(self.file).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)),
        };
        let (language, file) = (language(), self.file.display());
        let failure = |exit, why| {
            let what = said!(language, en: "{file} cannot be read", zh: "无法读取 {file}");
            Failure::new(exit, what).why(why)
        };
        let by_system = |error: std::io::Error| Said::verbatim(error.to_string());
        match read {
            Ok(bytes) if u64::try_from(bytes).is_ok_and(|bytes| bytes <= MAX_FILE) => Ok(text),
            Ok(_) => Err(failure(
                Exit::Usage,
                said!(language, en: "larger than 64 MiB", zh: "大于 64 MiB"),
            )),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(failure(Exit::NotFound, by_system(error)).fix(said!(
                    language,
                    en: "name what `gateway price export` wrote, or LiteLLM's price map; - reads stdin",
                    zh: "请指明 `gateway price export` 写出的文件，或 LiteLLM 的价格表；- 读取 stdin",
                )))
            }
            Err(error) => Err(failure(Exit::Failed, by_system(error))),
        }
    }

    /// The prices of one list; a file that has none is not what was meant.
    fn only(&self, list: &ListName, mut specs: Vec<PriceSpec>) -> Result<Vec<PriceSpec>, Failure> {
        let lists: BTreeSet<String> = specs.iter().map(|spec| spec.list.to_string()).collect();
        specs.retain(|spec| spec.list == *list);
        if !specs.is_empty() {
            return Ok(specs);
        }
        let (language, file) = (language(), self.file.display());
        let what = said!(
            language,
            en: "{file} has no prices for the list '{list}'",
            zh: "{file} 中没有价目表 '{list}' 的价格",
        );
        let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
        Err(match lists.is_empty() {
            true => Failure::new(Exit::NotFound, what).why(said!(
                language,
                en: "it has none for any list",
                zh: "其中没有任何价目表的价格",
            )),
            false => {
                let near = nearest(list.as_str(), lists.iter().copied()).map(str::to_owned);
                let lists = lists.join(", ");
                Failure {
                    near,
                    ..Failure::new(Exit::NotFound, what).fix(said!(
                        language,
                        en: "give --list one of {lists}",
                        zh: "--list 请写其中之一：{lists}",
                    ))
                }
            }
        })
    }

    /// Nothing of a file is used when something of it is wrong.
    fn refused(&self, wrong: &[Said]) -> Failure {
        let language = language();
        let mut told = wrong
            .iter()
            .take(TOLD)
            .map(|why| output::plain(why))
            .collect::<Vec<_>>()
            .join(language.of("; ", "；"));
        if let Some(more) = wrong.len().checked_sub(TOLD).filter(|more| *more > 0) {
            told = said!(language, en: "{told}; and {more} more", zh: "{told}；另有 {more} 处").into();
        }
        let failure = Failure::new(Exit::Usage, self.in_vain.clone()).why(Said::verbatim(told));
        failure.fix(said!(
            language,
            en: "give what `gateway price export` prints, with --csv or without, or LiteLLM's model_prices_and_context_window.json",
            zh: "请给出 `gateway price export`（加或不加 --csv）打印的内容，或 LiteLLM 的 model_prices_and_context_window.json",
        ))
    }

    fn spec<P>(&self, row: Row<P>, price: Price) -> PriceSpec {
        PriceSpec {
            list: row.list,
            model: row.model,
            from: self.from.unwrap_or(row.from),
            price,
            same: match row.source {
                Some(Source::Catalogue) => Same::Skip,
                Some(Source::Operator) | None => Same::Pin,
            },
        }
    }

    /// Makes prices of rows; `Err` with all that is wrong.
    fn specs<P>(
        &self,
        mut rows: Vec<Row<P>>,
        price: impl Fn(&Row<P>) -> Result<Price, Said>,
    ) -> Result<Vec<PriceSpec>, Failure> {
        if let Some(at) = self.from {
            keep_what_holds(at, &mut rows);
        }
        let (mut specs, mut wrong) = (Vec::new(), Vec::new());
        for row in rows {
            match price(&row) {
                Ok(price) => specs.push(self.spec(row, price)),
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() {
            Ok(specs)
        } else {
            Err(self.refused(&wrong))
        }
    }

    fn of_export(&self, text: &str) -> Result<Vec<PriceSpec>, Failure> {
        let doc: ExportDoc<'_> =
            serde_json::from_str(text).map_err(|why| self.refused(&[Said::verbatim(why.to_string())]))?;
        let (mut rows, mut wrong) = (Vec::new(), Vec::new());
        for row in doc.prices {
            match ListName::parse(&row.list) {
                Err(why) => {
                    let (at, why) = (place(text, row.price.get(), language()), why.told(language()));
                    wrong.push(said!(language(), en: "{at}: {why}", zh: "{at}：{why}"));
                }
                Ok(list) => rows.push(Row {
                    list,
                    model: row.model,
                    from: row.from,
                    source: row.source,
                    price: row.price,
                }),
            }
        }
        if !wrong.is_empty() {
            return Err(self.refused(&wrong));
        }
        self.specs(rows, |row| {
            Price::from_json(row.price.get()).map_err(|why| {
                let (language, why) = (language(), why.told(language()));
                // Its lines are those of the price; ours are those of the file.
                let why = why.split(" at line ").next().unwrap_or(&why);
                let (at, model) = (place(text, row.price.get(), language), &row.model);
                said!(language, en: "{at}, {model}: {why}", zh: "{at}，{model}：{why}")
            })
        })
    }

    fn of_sheet(&self, text: &str, store: &Store) -> Result<Vec<PriceSpec>, Failure> {
        let rows = sheet::read(text, self.list, self.at).map_err(|wrong| self.refused(&wrong))?;
        self.specs(rows, |row| {
            let from = self.from.unwrap_or(row.from);
            let base = store
                .price(&row.list, &row.model, from)
                .map_err(|error| Said::verbatim(error.to_string()))?;
            row.price.over(base.as_ref().map(|row| row.price.as_ref()))
        })
    }

    fn of_litellm(&self, text: &str, global: &Global) -> Result<Vec<PriceSpec>, Failure> {
        let read = litellm::read(text).map_err(|why| self.refused(&[why]))?;
        for (model, why) in &read.left_out {
            let (model, why) = (output::plain(model), output::plain(&why.told(language())));
            global.say(&said!(language(), en: "left out {model}: {why}", zh: "略去 {model}：{why}"));
        }
        for (of, note) in &read.zeros {
            if self.list.is_none_or(|list| list == of) {
                global.say(&Said::verbatim(output::plain(note)));
            }
        }
        let spec = |(list, model, price)| PriceSpec {
            list,
            model,
            from: self.from.unwrap_or(self.at),
            price,
            same: Same::Skip,
        };
        Ok(read.prices.into_iter().map(spec).collect())
    }
}

/// Where in a text a part of it begins: `line 3, column 7`.
fn place(text: &str, part: &str, language: Language) -> Said {
    let offset = part.as_ptr().addr().saturating_sub(text.as_ptr().addr());
    let before = text.get(..offset).unwrap_or_default();
    let line = before.rsplit('\n').next().unwrap_or_default();
    let (line, column) = (before.matches('\n').count() + 1, line.chars().count() + 1);
    said!(language, en: "line {line}, column {column}", zh: "第 {line} 行第 {column} 列")
}

/// That there is nothing to do.
pub(super) fn nothing_differs() -> Said {
    said!(
        language(),
        en: "nothing differs from the prices in force",
        zh: "与现行的价格没有差异",
    )
}

/// With one date for all, a model is there once: with the row that the file has in force then, else its last.
fn keep_what_holds<P>(at: Timestamp, rows: &mut Vec<Row<P>>) {
    let rank = |row: &Row<P>| (row.from > at, row.source, Reverse(row.from));
    rows.sort_by(|a, b| (&a.list, &a.model, rank(a)).cmp(&(&b.list, &b.model, rank(b))));
    rows.dedup_by(|next, best| (&next.list, &next.model) == (&best.list, &best.model));
}

/// The map says nothing of tool fees, uplifts and off-peak hours: what is in force stays.
fn keeping_what_the_map_does_not_know(store: &Store, specs: Vec<PriceSpec>) -> Result<Vec<PriceSpec>, StoreError> {
    let keep = |mut spec: PriceSpec| {
        if let Some(row) = store.price(&spec.list, &spec.model, spec.from)? {
            spec.price.fees = row.price.fees.clone();
            spec.price.regional_uplift = row.price.regional_uplift;
            spec.price.off_peak = row.price.off_peak.clone();
            spec.price.context_window = row.price.context_window;
        }
        Ok(spec)
    };
    specs.into_iter().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_from_one_in_characters() {
        let text = "ab\ncäd";
        let at = |part: usize| String::from(place(text, &text[part..], Language::English));
        assert_eq!(
            [at(0), at(3), at(6)],
            ["line 1, column 1", "line 2, column 1", "line 2, column 3"]
        );
    }
}

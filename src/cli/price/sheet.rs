//! Prices as CSV: what `gateway price export --csv` writes, and `import` and `diff` read.
//!
//! The first line names the columns; their order is free. A line without `tier`, `above` and `hours` is a price of its
//! own: list, model, from, what it is for, the rates of the standard tier in dollars per million tokens, the fees of
//! hosted tools in dollars per thousand calls, uplift and limits. Further lines of the same list, model and date are
//! parts of it, with the rates they differ in: those of a `tier`, those for inputs `above` so many tokens (of the
//! standard tier, or of the `tier` that is named too), and those of cheaper `hours` (`12345 00:00-06:30; 67 00:00-00:00`:
//! Monday to Friday before half past six, and the weekend, UTC).
//!
//! An empty cell says that there is none. A column that the file does not have says nothing: what is in force stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use csv::{ErrorKind, ReaderBuilder, StringRecord, Trim, Writer};
use jiff::Timestamp;

use super::file::{Row, Source};
use super::set::kind;
use crate::cli::language;
use crate::cli::values::When;
use crate::language::{Bilingual, Said, Tell};
use crate::pricing::{Card, Class, Factor, Kind, ListName, OffPeak, Price, Rate, Rates, Step, Window};
use crate::route::nearest;
use crate::store::prices::PriceRow;
use crate::usage::Tier;
use crate::{bilingual, said};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    List,
    Model,
    From,
    Source,
    Kind,
    Tier,
    Above,
    Hours,
    Rate(Class),
    RegionalUplift,
    ContextWindow,
    MaxInput,
    MaxOutput,
}

impl Column {
    /// All, as they are written.
    fn all() -> impl Iterator<Item = Column> {
        use Column::*;
        let first = [List, Model, From, Source, Kind, Tier, Above, Hours];
        let last = [RegionalUplift, ContextWindow, MaxInput, MaxOutput];
        first.into_iter().chain(Class::ALL.map(Rate)).chain(last)
    }

    const fn name(self) -> &'static str {
        match self {
            Column::List => "list",
            Column::Model => "model",
            Column::From => "from",
            Column::Source => "source",
            Column::Kind => "kind",
            Column::Tier => "tier",
            Column::Above => "above",
            Column::Hours => "hours",
            Column::Rate(class) => class.name(),
            Column::RegionalUplift => "regional_uplift",
            Column::ContextWindow => "context_window",
            Column::MaxInput => "max_input",
            Column::MaxOutput => "max_output",
        }
    }

    /// Whether it says something of a whole price, so that it has nothing to say of a part.
    fn is_of_the_whole(self) -> bool {
        match self {
            Column::Kind | Column::RegionalUplift | Column::ContextWindow | Column::MaxInput | Column::MaxOutput => {
                true
            }
            Column::Rate(class) => class.is_fee(),
            _ => false,
        }
    }
}

/// Which part of a price a line is; none of it: the price itself.
#[derive(Clone, Debug, Default, PartialEq)]
struct Part {
    tier: Option<Tier>,
    above: Option<u64>,
    hours: Option<Vec<Window>>,
}

/// A line, read.
#[derive(Debug)]
struct Line {
    /// Where it begins in the file.
    at: u64,
    part: Part,
    source: Option<Source>,
    kind: Option<Kind>,
    rates: Rates,
    regional_uplift: Option<Factor>,
    context_window: Option<u32>,
    max_input: Option<u32>,
    max_output: Option<u32>,
}

/// A price as a file says it, to be laid over the one in force.
#[derive(Debug)]
pub(super) struct Draft {
    columns: Arc<BTreeSet<Column>>,
    own: Line,
    parts: Vec<Line>,
}

/// What a line is about: list, model, in force from.
type Of = (ListName, String, Timestamp);

/// Reads a sheet. A line that names no list is of `list`; one without a date counts from `at`.
///
/// # Errors
/// All that is wrong, each with its line and column.
pub(super) fn read(text: &str, list: Option<&ListName>, at: Timestamp) -> Result<Vec<Row<Draft>>, Vec<Said>> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(text.as_bytes());
    let columns = header(reader.headers().map_err(|error| vec![unreadable(&error)])?)?;
    let has = Arc::new(columns.iter().copied().collect::<BTreeSet<_>>());
    let mut wrong = Vec::new();
    let mut drafts: BTreeMap<Of, Vec<Line>> = BTreeMap::new();
    for record in reader.records() {
        match record.map_err(|error| vec![unreadable(&error)]).and_then(|record| {
            let cells = Cells::new(&columns, &record);
            cells.read(list, at)
        }) {
            Err(found) => wrong.extend(found),
            Ok((of, line)) => {
                let lines = drafts.entry(of).or_default();
                match lines.iter().find(|other| other.part == line.part) {
                    Some(other) => {
                        let (at, first) = (line.at, other.at);
                        wrong.push(said!(
                            language(),
                            en: "line {at}: it says again what line {first} says",
                            zh: "第 {at} 行：重复了第 {first} 行",
                        ));
                    }
                    None => lines.push(line),
                }
            }
        }
    }
    let mut rows = Vec::new();
    for ((list, model, from), lines) in drafts {
        match Draft::new(lines, &has) {
            Err(why) => wrong.push(why),
            Ok(price) => rows.push(Row {
                list,
                model,
                from,
                source: price.own.source,
                price,
            }),
        }
    }
    if wrong.is_empty() { Ok(rows) } else { Err(wrong) }
}

/// What is wrong with the form of a file, in our words.
fn unreadable(error: &csv::Error) -> Said {
    let line = |pos: &Option<csv::Position>| pos.as_ref().map_or(1, csv::Position::line);
    match error.kind() {
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let at = line(pos);
            said!(
                language(),
                en: "line {at}: {len} cells where the first line names {expected_len} columns",
                zh: "第 {at} 行：有 {len} 格，而第一行列出 {expected_len} 列",
            )
        }
        _ => Said::verbatim(error.to_string()),
    }
}

fn header(names: &StringRecord) -> Result<Vec<Column>, Vec<Said>> {
    let mut columns: Vec<Column> = Vec::new();
    let (language, mut wrong) = (language(), Vec::new());
    for (at, name) in names.iter().enumerate() {
        let (at, name) = (at + 1, name.trim_start_matches('\u{feff}'));
        match Column::all().find(|column| column.name() == name) {
            Some(column) if columns.contains(&column) => wrong.push(said!(
                language,
                en: "line 1, column {at}: {name} twice",
                zh: "第 1 行第 {at} 列：{name} 出现两次",
            )),
            Some(column) => columns.push(column),
            None => {
                let near = nearest(name, Column::all().map(Column::name));
                let near = near.map_or_else(
                    Said::default,
                    |near| said!(language, en: "; did you mean {near}?", zh: "；是否想写 {near}？"),
                );
                wrong.push(said!(
                    language,
                    en: "line 1, column {at}: there is no column {name:?}{near}",
                    zh: "第 1 行第 {at} 列：没有名为 {name:?} 的列{near}",
                ));
            }
        }
    }
    if !columns.contains(&Column::Model) {
        wrong.push(said!(
            language,
            en: "line 1: there is no column model",
            zh: "第 1 行：没有 model 列",
        ));
    }
    if wrong.is_empty() { Ok(columns) } else { Err(wrong) }
}

/// The cells of a line.
struct Cells<'a> {
    at: u64,
    columns: &'a [Column],
    record: &'a StringRecord,
    wrong: Vec<Said>,
}

impl<'a> Cells<'a> {
    fn new(columns: &'a [Column], record: &'a StringRecord) -> Cells<'a> {
        Cells {
            at: record.position().map_or(0, csv::Position::line),
            columns,
            record,
            wrong: Vec::new(),
        }
    }

    /// What a column says here, unless it is empty or not there.
    fn text(&self, column: Column) -> Option<&'a str> {
        let at = self.columns.iter().position(|one| *one == column)?;
        self.record.get(at).filter(|text| !text.is_empty())
    }

    fn complain(&mut self, column: Column, why: Said) {
        let (language, line, name) = (language(), self.at, column.name());
        self.wrong
            .push(match self.columns.iter().position(|one| *one == column) {
                Some(at) => said!(
                    language,
                    en: "line {line}, column {at} ({name}): {why}",
                    zh: "第 {line} 行第 {at} 列（{name}）：{why}",
                    at = at + 1,
                ),
                None => said!(language, en: "line {line}: {why}", zh: "第 {line} 行：{why}"),
            });
    }

    fn value<T, E: Tell>(&mut self, column: Column, read: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match read(self.text(column)?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.complain(column, why.told(language()));
                None
            }
        }
    }

    fn tokens<T: std::str::FromStr>(&mut self, column: Column) -> Option<T> {
        self.value(column, |text| {
            text.parse()
                .map_err(|_| bilingual!(en: "{text:?} is no number of tokens", zh: "{text:?} 不是 token 数"))
        })
    }

    fn read(mut self, list: Option<&ListName>, at: Timestamp) -> Result<(Of, Line), Vec<Said>> {
        let list = self.value(Column::List, ListName::parse).or_else(|| list.cloned());
        if list.is_none() && self.wrong.is_empty() {
            let why = said!(
                language(),
                en: "which list? Name it here, or by --list",
                zh: "哪个价目表？请在此写明，或用 --list",
            );
            self.complain(Column::List, why);
        }
        let model = self.text(Column::Model).map(str::to_owned);
        match &model {
            None => self.complain(Column::Model, said!(language(), en: "which model?", zh: "哪个模型？")),
            Some(name) if name.chars().any(|c| c.is_control() || c.is_whitespace()) => {
                let why = said!(language(), en: "the model's name has spaces", zh: "模型名称含有空格");
                self.complain(Column::Model, why);
            }
            Some(_) => {}
        }
        let from = self.value(Column::From, time).unwrap_or(at);
        let part = Part {
            tier: self.value(Column::Tier, tier),
            above: self.tokens(Column::Above),
            hours: self.value(Column::Hours, windows),
        };
        if part.hours.is_some() && (part.tier.is_some() || part.above.is_some()) {
            let why = said!(
                language(),
                en: "cheaper hours are of the standard tier, whatever the size of the input",
                zh: "优惠时段属于标准档，与输入大小无关",
            );
            self.complain(Column::Hours, why);
        }
        if part != Part::default() {
            let misplaced = self.columns.iter().filter(|column| column.is_of_the_whole());
            for column in misplaced
                .copied()
                .filter(|column| self.text(*column).is_some())
                .collect::<Vec<_>>()
            {
                let why = said!(
                    language(),
                    en: "it belongs on the price's own line, the one without tier, above and hours",
                    zh: "它应写在价格自己的行上，即没有 tier、above 和 hours 的那一行",
                );
                self.complain(column, why);
            }
        }
        let rates = Class::ALL.into_iter().filter_map(|class| {
            let rate = self.value(Column::Rate(class), Rate::parse)?;
            Some((class, rate))
        });
        let rates = rates.collect();
        let line = Line {
            at: self.at,
            part,
            source: self.value(Column::Source, Source::parse),
            rates,
            kind: self.value(Column::Kind, kind),
            regional_uplift: self.value(Column::RegionalUplift, Factor::parse),
            context_window: self.tokens(Column::ContextWindow),
            max_input: self.tokens(Column::MaxInput),
            max_output: self.tokens(Column::MaxOutput),
        };
        match (list, model, self.wrong) {
            (Some(list), Some(model), wrong) if wrong.is_empty() => Ok(((list, model, from), line)),
            (_, _, wrong) => Err(wrong),
        }
    }
}

fn time(text: &str) -> Result<Timestamp, Bilingual> {
    match When::parse(text) {
        Ok(When::At(at)) => Ok(at),
        _ => Err(bilingual!(
            en: "write a date like 2026-12-31 (midnight UTC), or a time like 2026-12-31T18:00:00Z",
            zh: "请写 2026-12-31 这样的日期（UTC 零点），或 2026-12-31T18:00:00Z 这样的时间",
        )),
    }
}

fn tier(text: &str) -> Result<Tier, Bilingual> {
    let tiers = [Tier::Flex, Tier::Priority, Tier::Ultrafast, Tier::Batch];
    let found = tiers.into_iter().find(|tier| tier.name() == text);
    found.ok_or_else(|| {
        bilingual!(
            en: "write flex, priority, ultrafast or batch; the standard tier is the line without",
            zh: "请写 flex、priority、ultrafast 或 batch；不写的那一行是标准档",
        )
    })
}

fn windows(text: &str) -> Result<Vec<Window>, Bilingual> {
    let window = |part: &str| {
        let mut words = part.split_whitespace();
        let day = |c: char| {
            c.to_digit(10)
                .and_then(|day| i8::try_from(day).ok())
                .filter(|day| (1..=7).contains(day))
        };
        let days = words.next()?.chars().map(day).collect::<Option<Vec<i8>>>()?;
        let hours: Vec<String> = words.map(str::to_owned).collect();
        (!hours.is_empty()).then_some(Window { days, hours })
    };
    let all = text.split(';').map(window).collect::<Option<Vec<_>>>();
    all.ok_or_else(|| {
        bilingual!(
            en: "write days and hours like 12345 00:00-06:30; 67 00:00-00:00 (1 is Monday, UTC)",
            zh: "请写 12345 00:00-06:30; 67 00:00-00:00 这样的星期和时段（1 是星期一，UTC）",
        )
    })
}

impl Draft {
    fn new(lines: Vec<Line>, columns: &Arc<BTreeSet<Column>>) -> Result<Draft, Said> {
        let first = lines.first().map_or(0, |line| line.at);
        let (mut own, parts): (Vec<Line>, Vec<Line>) = lines.into_iter().partition(|line| line.part == Part::default());
        let own = own.pop().ok_or_else(|| {
            said!(
                language(),
                en: "line {first}: the price's own line is missing, the one without tier, above and hours",
                zh: "第 {first} 行：缺少价格自己的行，即没有 tier、above 和 hours 的那一行",
            )
        })?;
        for line in &parts {
            let tier = Part {
                above: None,
                ..line.part.clone()
            };
            if line.part.hours.is_none() && tier != Part::default() && !parts.iter().any(|one| one.part == tier) {
                let at = line.at;
                return Err(said!(
                    language(),
                    en: "line {at}: the tier's own line is missing, the one without above",
                    zh: "第 {at} 行：缺少该档自己的行，即没有 above 的那一行",
                ));
            }
        }
        if parts.iter().filter(|line| line.part.hours.is_some()).count() > 1 {
            return Err(said!(
                language(),
                en: "line {first}: cheaper hours have one line; write their windows into it",
                zh: "第 {first} 行：优惠时段只有一行；请把各时段都写在其中",
            ));
        }
        Ok(Draft {
            columns: Arc::clone(columns),
            own,
            parts,
        })
    }

    /// The price, laid over the one in force.
    ///
    /// # Errors
    /// It cannot price every call of its kind; with the line.
    pub(super) fn over(&self, base: Option<&Price>) -> Result<Price, Said> {
        let mut price = base.cloned().unwrap_or_else(|| Price {
            rates: Rates::new(),
            fees: Rates::new(),
            ..Price::free()
        });
        let (own, has) = (&self.own, |column| self.columns.contains(&column));
        price.kind = own.kind.unwrap_or(price.kind);
        self.lay(&mut price.rates, own, |class| !class.is_fee());
        self.lay(&mut price.fees, own, Class::is_fee);
        if has(Column::RegionalUplift) {
            price.regional_uplift = own.regional_uplift;
        }
        for (column, limit, said) in [
            (Column::ContextWindow, &mut price.context_window, own.context_window),
            (Column::MaxInput, &mut price.max_input, own.max_input),
            (Column::MaxOutput, &mut price.max_output, own.max_output),
        ] {
            if has(column) {
                *limit = said;
            }
        }
        if has(Column::Tier) {
            let old = std::mem::take(&mut price.tiers);
            let tiers = self.parts.iter().filter(|line| line.part.above.is_none());
            price.tiers = tiers
                .filter_map(|line| {
                    let tier = line.part.tier?;
                    let mut card = old.get(&tier).cloned().unwrap_or_default();
                    self.lay(&mut card.rates, line, |class| !class.is_fee());
                    if has(Column::Above) {
                        card.steps = self.steps(Some(tier), &card.steps);
                    }
                    Some((tier, card))
                })
                .collect();
        }
        if has(Column::Above) {
            price.steps = self.steps(None, &price.steps);
        }
        if has(Column::Hours) {
            let old = price.off_peak.take().map(|off| off.rates).unwrap_or_default();
            price.off_peak = self.parts.iter().find_map(|line| {
                let windows = line.part.hours.clone()?;
                let mut rates = old.clone();
                self.lay(&mut rates, line, |class| !class.is_fee());
                Some(OffPeak { windows, rates })
            });
        }
        Price::from_json(&price.to_json()).map_err(|why| {
            let (at, why) = (own.at, why.told(language()));
            said!(language(), en: "line {at}: {why}", zh: "第 {at} 行：{why}")
        })
    }

    /// The rates that a line says, over those there were.
    fn lay(&self, rates: &mut Rates, line: &Line, which: impl Fn(Class) -> bool) {
        for class in Class::ALL.into_iter().filter(|class| which(*class)) {
            match line.rates.get(&class) {
                Some(rate) => drop(rates.insert(class, *rate)),
                None if self.columns.contains(&Column::Rate(class)) => drop(rates.remove(&class)),
                None => {}
            }
        }
    }

    fn steps(&self, tier: Option<Tier>, old: &[Step]) -> Vec<Step> {
        let lines = self.parts.iter().filter(|line| line.part.tier == tier);
        let step = |line: &Line| {
            let above = line.part.above?;
            let mut rates = old
                .iter()
                .find(|step| step.above == above)
                .map(|step| step.rates.clone())
                .unwrap_or_default();
            self.lay(&mut rates, line, |class| !class.is_fee());
            Some(Step { above, rates })
        };
        lines.filter_map(step).collect()
    }
}

/// Writes prices as a sheet.
///
/// # Errors
/// Memory.
pub(super) fn write(rows: &[PriceRow]) -> anyhow::Result<String> {
    let mut writer = Writer::from_writer(Vec::new());
    writer.write_record(Column::all().map(Column::name))?;
    for row in rows {
        let price = row.price.as_ref();
        let mut own = BTreeMap::from([(Column::Kind, Kind::name(price.kind).to_owned())]);
        own.extend(rate_cells(&price.rates));
        own.extend(rate_cells(&price.fees));
        let of_price = [
            (
                Column::RegionalUplift,
                price.regional_uplift.map(|factor| factor.to_string()),
            ),
            (
                Column::ContextWindow,
                price.context_window.map(|limit| limit.to_string()),
            ),
            (Column::MaxInput, price.max_input.map(|limit| limit.to_string())),
            (Column::MaxOutput, price.max_output.map(|limit| limit.to_string())),
        ];
        own.extend(
            of_price
                .into_iter()
                .filter_map(|(column, value)| Some((column, value?))),
        );
        let mut lines = vec![own];
        lines.extend(price.steps.iter().map(|step| step_cells(None, step)));
        lines.extend(price.off_peak.iter().map(|off| {
            let mut cells = BTreeMap::from([(Column::Hours, hours(&off.windows))]);
            cells.extend(rate_cells(&off.rates));
            cells
        }));
        for (tier, Card { rates, steps }) in &price.tiers {
            let mut cells = BTreeMap::from([(Column::Tier, tier.name().to_owned())]);
            cells.extend(rate_cells(rates));
            lines.push(cells);
            lines.extend(steps.iter().map(|step| step_cells(Some(*tier), step)));
        }
        for mut cells in lines {
            cells.extend([
                (Column::List, row.list.to_string()),
                (Column::Model, row.model.clone()),
                (Column::From, row.from.to_string()),
                (Column::Source, row.source.word().to_owned()),
            ]);
            writer.write_record(Column::all().map(|column| cells.remove(&column).unwrap_or_default()))?;
        }
    }
    Ok(String::from_utf8(
        writer.into_inner().map_err(|error| error.into_error())?,
    )?)
}

fn rate_cells(rates: &Rates) -> impl Iterator<Item = (Column, String)> {
    rates
        .iter()
        .map(|(class, rate)| (Column::Rate(*class), rate.to_string()))
}

fn step_cells(tier: Option<Tier>, step: &Step) -> BTreeMap<Column, String> {
    let mut cells = BTreeMap::from([(Column::Above, step.above.to_string())]);
    cells.extend(tier.map(|tier| (Column::Tier, tier.name().to_owned())));
    cells.extend(rate_cells(&step.rates));
    cells
}

fn hours(windows: &[Window]) -> String {
    let window = |window: &Window| {
        let days: String = window.days.iter().map(ToString::to_string).collect();
        format!("{days} {}", window.hours.join(" "))
    };
    windows.iter().map(window).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::catalogue;
    use crate::store::prices::PriceSource;

    fn at() -> Timestamp {
        "2026-11-28T10:00:00Z".parse().expect("a time")
    }

    fn sheet(text: &str) -> Result<Vec<Row<Draft>>, Vec<Said>> {
        read(text, None, at())
    }

    /// The one price of a sheet, laid over another.
    fn over(text: &str, base: Option<&str>) -> Result<String, String> {
        let rows = sheet(text).map_err(|wrong| wrong.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        let base = base.map(|json| Price::from_json(json).expect("a price"));
        assert_eq!(rows.len(), 1, "one price");
        let price = rows[0].price.over(base.as_ref());
        price.map(|price| price.to_json()).map_err(String::from)
    }

    #[test]
    fn every_price_of_the_catalogue_is_written_and_read_back_the_same() {
        let (_, rows) = catalogue().expect("a catalogue");
        let mut written: Vec<PriceRow> = rows
            .into_iter()
            .map(|row| PriceRow {
                list: row.list,
                model: row.model,
                from: row.from,
                source: PriceSource::Catalogue,
                price: Arc::new(Price::from_json(&row.price).expect("a price")),
            })
            .collect();
        written.sort_by(|a, b| (&a.list, &a.model, a.from).cmp(&(&b.list, &b.model, b.from)));
        let text = write(&written).expect("written");
        let back = sheet(&text).expect("read");
        assert_eq!(back.len(), written.len());
        for (row, was) in back.iter().zip(&written) {
            assert_eq!((&row.list, &row.model, row.from), (&was.list, &was.model, was.from));
            assert_eq!(row.source, Some(Source::Catalogue));
            // Nothing is taken from what is in force: every column is there.
            let other = Price::from_json(
                r#"{"kind":"image","rates":{"input":"9","image_text_input":"1","image_output":"1"},
                "steps":[{"above":7,"rates":{}}],"tiers":{"ultrafast":{"rates":{"input":"8"}}},"max_output":3}"#,
            );
            for base in [None, other.as_ref().ok()] {
                assert_eq!(row.price.over(base).as_ref(), Ok(was.price.as_ref()), "{}", row.model);
            }
        }
    }

    #[test]
    fn the_sheet_in_the_documentation_is_read() {
        let text = include_str!("../../../docs/prices.md");
        let block = text.split("```csv\n").nth(1).and_then(|rest| rest.split("```").next());
        assert_eq!(
            over(block.expect("a block"), None).as_deref(),
            Ok(
                r#"{"kind":"text","rates":{"input":"2","cached_input":"0.2","output":"10"},"steps":[{"above":272000,"rates":{"input":"4","cached_input":"0.4","output":"15"}}],"tiers":{"flex":{"rates":{"input":"1","output":"5"}}}}"#
            )
        );
        for column in Column::all() {
            assert!(
                text.contains(&format!("`{}`", column.name())),
                "{} is told",
                column.name()
            );
        }
    }

    #[test]
    fn columns_that_are_not_there_leave_what_is_in_force() {
        let base = r#"{"kind":"text","rates":{"input":"1","cached_input":"0.1","output":"2"},"steps":[{"above":9,"rates":{"input":"5","output":"6"}}],
            "tiers":{"flex":{"rates":{"input":"0.5","output":"1"}},"batch":{"rates":{"input":"0.4","output":"1"}}},"fees":{"web_search":"10"},"max_output":9}"#;
        assert_eq!(
            over("list,model,output\nopenai,m,3\n", Some(base)).as_deref(),
            Ok(
                r#"{"kind":"text","rates":{"input":"1","cached_input":"0.1","output":"3"},"steps":[{"above":9,"rates":{"input":"5","output":"6"}}],"tiers":{"flex":{"rates":{"input":"0.5","output":"1"}},"batch":{"rates":{"input":"0.4","output":"1"}}},"fees":{"web_search":"10"},"max_output":9}"#
            )
        );
        assert_eq!(
            over(
                "list,model,tier,above,input,cached_input\nopenai,m,,,4,\nopenai,m,flex,,0.7,\nopenai,m,,9,6,\nopenai,m,,20,7,\n",
                Some(base)
            )
            .as_deref(),
            Ok(r#"{"kind":"text","rates":{"input":"4","output":"2"},"steps":[{"above":9,"rates":{"input":"6","output":"6"}},{"above":20,"rates":{"input":"7"}}],"tiers":{"flex":{"rates":{"input":"0.7","output":"1"}}},"fees":{"web_search":"10"},"max_output":9}"#),
            "an empty cell is none, a tier and a rate that are not named are gone"
        );
    }

    #[test]
    fn a_sheet_may_be_small_and_in_any_order() {
        let text = "\u{feff}output, model ,input,list,from\r\n\"10\",m,2.5,openai,2026-12-31\r\n";
        let rows = sheet(text).expect("read");
        assert_eq!(rows[0].from.to_string(), "2026-12-31T00:00:00Z");
        assert_eq!(rows[0].source, None);
        assert_eq!(
            over(text, None).as_deref(),
            Ok(r#"{"kind":"text","rates":{"input":"2.5","output":"10"}}"#)
        );
        let list = ListName::openai();
        let rows = read("model,input,output\nm,1,2\n", Some(&list), at()).expect("read");
        assert_eq!((&rows[0].list, rows[0].from), (&list, at()));
    }

    #[test]
    fn what_is_wrong_is_told_by_line_and_column() {
        let told = |text: &str| sheet(text).expect_err(text);
        for (text, says) in [
            ("", "line 1: there is no column model"),
            (
                "list,model,inptu\n",
                "line 1, column 3: there is no column \"inptu\"; did you mean input?",
            ),
            ("list,model,input,input\n", "line 1, column 4: input twice"),
            (
                "list,model,input\nopenai,m\n",
                "line 2: 2 cells where the first line names 3 columns",
            ),
            ("model,input\nm,1\n", "line 2: which list?"),
            ("list,model\nopenai,\n", "line 2, column 2 (model): which model?"),
            (
                "list,model,input\nopenai,m,-1\n",
                "line 2, column 3 (input): the rate \"-1\" is not between 0",
            ),
            (
                "list,model,input\nopenai,m,0.0000000001\n",
                "line 2, column 3 (input): the rate \"0.0000000001\" is",
            ),
            (
                "list,model,input\nopenai,m,1e-3\n",
                "line 2, column 3 (input): the rate \"1e-3\" is",
            ),
            (
                "list,model,from\nopenai,m,30d\n",
                "line 2, column 3 (from): write a date",
            ),
            (
                "list,model,tier\nopenai,m,fast\n",
                "line 2, column 3 (tier): write flex",
            ),
            (
                "list,model,hours\nopenai,m,\nopenai,m,89 00:00-01:00\n",
                "line 3, column 3 (hours): write days",
            ),
            (
                "list,model,tier\nopenai,m,flex\n",
                "line 2: the price's own line is missing",
            ),
            (
                "list,model,tier,above\nopenai,m,,\nopenai,m,flex,9\n",
                "line 3: the tier's own line is missing",
            ),
            (
                "list,model,tier,max_output\nopenai,m,,\nopenai,m,flex,9\n",
                "line 3, column 4 (max_output): it belongs on the price's own line",
            ),
            (
                "list,model,max_input\nopenai,m,many\n",
                "line 2, column 3 (max_input): \"many\" is no number of tokens",
            ),
            (
                "list,model,source\nopenai,m,me\n",
                "line 2, column 3 (source): write operator or catalogue",
            ),
            (
                "list,model,input\nopenai,m,1\nopenai,m,2\n",
                "line 3: it says again what line 2 says",
            ),
        ] {
            let wrong = told(text);
            assert!(wrong[0].starts_with(says), "{text:?}: {wrong:?}");
        }
        let all = told("list,model,input,output\nopenai,m,x,y\nfree,n,1,1\n");
        assert_eq!(all.len(), 3, "all of it is told: {all:?}");
        let unpriced = over("list,model,input\nopenai,m,1\n", None);
        assert!(unpriced.is_err_and(|why| why.starts_with("line 2: the price has no rate for output")));
    }
}

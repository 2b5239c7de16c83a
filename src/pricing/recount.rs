//! Receipts done again: whether the lines of one come to its amounts, and count what was used.

use super::*;

/// Cost and charge of a receipt, recomputed from its lines, the uplift and the markup it names. Fails when a line's
/// amount is not what its quantity and rate come to, or when something does not parse or fit.
pub fn recompute(lines: &[Line], uplift: Option<&str>, markup: &str) -> Result<(Usd, Usd), PriceError> {
    let (uplift, markup) = (uplift.map_or(Ok(Factor::ONE), Factor::parse)?, Factor::parse(markup)?);
    let (mut cost, mut charge) = (Exact::ZERO, Exact::ZERO);
    for given in lines {
        let (class, rate) = (given.class, Rate::parse(&given.rate)?);
        if *given != line(class, given.quantity, rate) {
            return Err(PriceError::Amount(class));
        }
        let lifted = if class.is_lifted() { uplift } else { Factor::ONE };
        let add = |sum: Exact, markup: Factor| {
            Exact(i128::from(rate.0) * i128::from(lifted.0) * i128::from(markup.0))
                .times(given.quantity)
                .and_then(|amount| sum.plus(amount))
        };
        let too_large = || PriceError::TooLarge;
        cost = add(cost, Factor::ONE).ok_or_else(too_large)?;
        charge = add(charge, markup).ok_or_else(too_large)?;
    }
    let rounded = cost.round().zip(charge.round());
    rounded.ok_or(PriceError::TooLarge)
}

/// The lines of a receipt as the user pays them: uplift and markup are in each rate, so that the amounts add up to the
/// charge before it is rounded. Fails when something does not parse or fit.
pub fn charged(lines: &[Line], uplift: Option<&str>, markup: &str) -> Result<Vec<Line>, PriceError> {
    let (uplift, markup) = (uplift.map_or(Ok(Factor::ONE), Factor::parse)?, Factor::parse(markup)?);
    lines
        .iter()
        .map(|given| {
            let lifted = if given.class.is_lifted() { uplift } else { Factor::ONE };
            let unit = i128::from(Rate::parse(&given.rate)?.0) * i128::from(lifted.0) * i128::from(markup.0);
            let amount = unit
                .checked_mul(i128::from(given.quantity))
                .ok_or(PriceError::TooLarge)?;
            Ok(Line {
                class: given.class,
                quantity: given.quantity,
                rate: decimal(unit, 21),
                amount: decimal(amount, 27),
            })
        })
        .collect()
}

/// A number that is not negative, with so many decimals, exactly.
fn decimal(number: i128, decimals: usize) -> String {
    let digits = format!("{number:0>width$}", width = decimals + 1);
    let (whole, fraction) = digits.split_at(digits.len() - decimals);
    match fraction.trim_end_matches('0') {
        "" => whole.to_owned(),
        fraction => format!("{whole}.{fraction}"),
    }
}

/// What of a usage its lines count otherwise: each group of classes has to come to its total. A group that is left out
/// whole is returned among the unpriced ones: it may have no rate.
pub fn miscounted(lines: &[Line], usage: &Usage) -> Counted {
    let lines_of = |classes: &[Class]| -> u64 {
        let of = lines.iter().filter(|line| classes.contains(&line.class));
        of.fold(0, |sum, line| sum.saturating_add(line.quantity))
    };
    let mut counted = Counted::default();
    for (name, classes, used) in groups(usage) {
        match lines_of(classes) {
            in_lines if in_lines == used => {}
            0 => counted.unpriced.push(name),
            _ => counted.wrong.push(name),
        }
    }
    counted
}

/// Groups of classes of which a usage tells the sum.
fn groups(usage: &Usage) -> [(&'static str, &'static [Class], u64); 12] {
    let images = usage.tools.image_gen.clone().unwrap_or_default();
    let details = usage.cached_tokens.get()
        + usage.cache_write_tokens.get()
        + usage.cache_write_12h_tokens.get()
        + usage.audio_input_tokens.get();
    [
        (
            "input",
            &[
                Class::Input,
                Class::CachedInput,
                Class::CacheWrite,
                Class::CacheWrite12h,
                Class::AudioInput,
            ],
            usage.input_tokens.get().max(details),
        ),
        (
            "output",
            &[Class::Output, Class::ReasoningOutput, Class::AudioOutput],
            usage.output_tokens.get().max(usage.audio_output_tokens.get()),
        ),
        (
            "web searches",
            &[Class::WebSearch, Class::WebSearchPreview],
            u64::from(usage.tools.web_searches),
        ),
        (
            "file searches",
            &[Class::FileSearch],
            u64::from(usage.tools.file_searches),
        ),
        ("containers", &[Class::Container], u64::from(usage.tools.containers)),
        ("cached input", &[Class::CachedInput], usage.cached_tokens.get()),
        ("cache writes", &[Class::CacheWrite], usage.cache_write_tokens.get()),
        (
            "cache writes for 12 hours",
            &[Class::CacheWrite12h],
            usage.cache_write_12h_tokens.get(),
        ),
        ("audio input", &[Class::AudioInput], usage.audio_input_tokens.get()),
        ("audio output", &[Class::AudioOutput], usage.audio_output_tokens.get()),
        (
            "image input",
            &[Class::ImageTextInput, Class::ImageInput],
            images.text_input_tokens.get() + images.image_input_tokens.get(),
        ),
        (
            "image output",
            &[Class::ImageTextOutput, Class::ImageOutput],
            images.text_output_tokens.get() + images.image_output_tokens.get(),
        ),
    ]
}

/// How the lines of a receipt count its usage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Groups of classes whose lines come to something else than was used.
    pub wrong: Vec<&'static str>,
    /// Groups that were used and have no line.
    pub unpriced: Vec<&'static str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{ImageUsage, ToolUsage};

    #[test]
    fn what_the_user_pays_of_each_line_adds_up_to_the_charge() {
        let line = |class, quantity, rate: &str| super::line(class, quantity, Rate::parse(rate).expect("a rate"));
        let lines = [
            line(Class::Input, 1_312, "1.25"),
            line(Class::Output, 1_104, "10"),
            line(Class::WebSearch, 2, "10000"),
        ];
        let paid = charged(&lines, Some("1.1"), "1.04").expect("it fits");
        let paid = paid.iter().map(|line| (line.rate.as_str(), line.amount.as_str()));
        // 0.00187616 + 0.01262976 + 0.0208 = 0.03530592; no uplift touches a fee.
        let wanted = [("1.43", "0.00187616"), ("11.44", "0.01262976"), ("10400", "0.0208")];
        assert_eq!(paid.collect::<Vec<_>>(), wanted);
        assert_eq!(
            recompute(&lines, Some("1.1"), "1.04").map(|(_, charge)| charge),
            Ok(Usd::from_nanos(35_305_920))
        );
        let finest = [line(Class::Input, 1, "0.000000001")];
        let paid = charged(&finest, Some("1.000001"), "1.000001").expect("it fits");
        assert_eq!(paid[0].amount, "0.000000000000001000002000001");
        assert!(charged(&[line(Class::Input, u64::MAX, "100000")], Some("1000"), "1000").is_err());
    }

    #[test]
    fn the_lines_of_a_bill_count_its_usage_also_where_the_parts_are_more_than_the_whole() {
        let price = |json| Price::from_json(json).expect("a price");
        let text = price(r#"{"kind":"text","rates":{"input":"1","output":"1","audio_input":"1","audio_output":"1"}}"#);
        let image = price(r#"{"kind":"image","rates":{"image_text_input":"1","image_input":"1","image_output":"1"}}"#);
        let terms = Terms {
            price: &text,
            image_price: Some(&image),
            search: SearchTool::Current,
            tier: Tier::Standard,
            region: None,
            markup: Factor::ONE,
            at: "2026-11-23T08:00:00Z".parse().expect("a time"),
        };
        let tokens = Tokens::saturating;
        let usage = Usage {
            input_tokens: tokens(5),
            cached_tokens: tokens(1),
            cache_write_tokens: tokens(2),
            cache_write_12h_tokens: tokens(4),
            audio_input_tokens: tokens(8),
            output_tokens: tokens(1),
            audio_output_tokens: tokens(2),
            tools: ToolUsage {
                image_gen: Some(ImageUsage {
                    text_input_tokens: tokens(3),
                    image_input_tokens: tokens(5),
                    text_output_tokens: tokens(2),
                    image_output_tokens: tokens(7),
                }),
                ..ToolUsage::default()
            },
            ..Usage::default()
        };
        let lines = bill(&usage, &terms).expect("a bill").lines;
        assert_eq!(miscounted(&lines, &usage), Counted::default());
        let wrong: Vec<_> = lines
            .iter()
            .filter_map(|left_out| {
                let others: Vec<Line> = lines.iter().filter(|line| *line != left_out).cloned().collect();
                miscounted(&others, &usage).wrong.first().copied()
            })
            .collect();
        assert_eq!(
            wrong,
            [
                "input",
                "input",
                "input",
                "input",
                "image input",
                "image input",
                "image output",
                "image output"
            ]
        );
    }
}

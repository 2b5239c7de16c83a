//! What is wrong with a setting: where, what, and what to write instead; no secret is ever quoted.

use std::fmt;
use std::ops::Range;

use crate::language::{Bilingual, Language, Said};
use crate::said;

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told(Language::English))]
pub struct ConfigError {
    /// `gateway.toml:6:1`, a variable's name or a flag.
    pub place: String,
    /// What is wrong.
    pub what: Bilingual,
    /// The line, when it stands in a file.
    pub excerpt: Option<Excerpt>,
    /// What to do.
    pub fix: Bilingual,
}

/// Settings that cannot be used: all that is wrong with them, as far as it can be told, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told(Language::English))]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    pub(super) fn new(mut found: Vec<ConfigError>) -> ConfigErrors {
        found.sort_by_key(|error| error.excerpt.as_ref().map(|excerpt| excerpt.number));
        ConfigErrors(found)
    }

    /// All of them, as they are shown.
    pub fn told(&self, language: Language) -> Said {
        let told = self.0.iter().map(|error| error.told(language).to_string());
        Said::verbatim(told.collect::<Vec<_>>().join("\n"))
    }

    /// Each of them; at least one.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

/// One line of a settings file with the place that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// Its number, from 1.
    pub number: usize,
    /// Its text, other strings than the one that is meant blotted out.
    pub line: String,
    /// Where the caret starts, in characters from 0.
    pub column: usize,
    /// How many carets.
    pub width: usize,
}

impl ConfigError {
    /// As it is shown: place, what is wrong, the line, what to do.
    pub fn told(&self, language: Language) -> Said {
        let (place, what, fix) = (&self.place, self.what.of(language), self.fix.of(language));
        let excerpt = self.excerpt.as_ref().map_or_else(String::new, ToString::to_string);
        said!(
            language,
            en: "{place}: {what}\n{excerpt}  fix   {fix}",
            zh: "{place}：{what}\n{excerpt}  处理  {fix}",
        )
    }
}

/// What is wrong with a value, behind its name.
pub(super) fn after(key: &str, what: &Bilingual) -> Bilingual {
    Bilingual::each(|language| {
        let what = what.of(language);
        said!(language, en: "{key}: {what}", zh: "{key}：{what}")
    })
}

/// The line with carets below what is meant.
impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number.to_string();
        let (blank, before) = (" ".repeat(number.len()), " ".repeat(self.column));
        writeln!(f, "  {number} │ {}", self.line)?;
        writeln!(f, "  {blank} │ {before}{}", "^".repeat(self.width))
    }
}

/// What a caret may show of its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    /// The key or value that is meant.
    Span,
    /// Nothing of the value, because it is or may be a secret.
    KeyOnly,
}

/// `line:column` of a byte offset, both from 1, the column in characters.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (line, before[start..].chars().count() + 1)
}

impl Excerpt {
    /// The line that `span` starts in.
    pub(super) fn new(text: &str, span: &Range<usize>, show: Show) -> Excerpt {
        let (number, column) = position(text, span.start);
        let start = text
            .get(..span.start)
            .and_then(|t| t.rfind('\n'))
            .map_or(0, |at| at + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        match show {
            Show::KeyOnly => {
                let meant = text.get(span.clone()).unwrap_or_default();
                Excerpt::key_only(number, line, column - 1, meant.chars().count())
            }
            Show::Span => Excerpt::around(number, line, span.start - start, span.end.saturating_sub(start)),
        }
    }

    fn key_only(number: usize, line: &str, column: usize, width: usize) -> Excerpt {
        let shown = match line.split_once('=') {
            Some((key, _)) => format!("{key}= …"),
            None => line.to_owned(),
        };
        let end = shown.chars().count();
        let column = column.min(end.saturating_sub(1));
        Excerpt {
            number,
            line: shown,
            column,
            width: width.min(end.saturating_sub(column)).max(1),
        }
    }

    fn around(number: usize, line: &str, from: usize, to: usize) -> Excerpt {
        let to = to.clamp(from, line.len());
        let before = blot(line.get(..from).unwrap_or_default());
        let meant = line.get(from..to).unwrap_or_default();
        let after = blot(line.get(to..).unwrap_or_default());
        Excerpt {
            number,
            column: before.chars().count(),
            width: meant.chars().count().max(1),
            line: format!("{before}{meant}{after}"),
        }
    }
}

/// The text with what stands in quotes taken out: it may be a secret.
fn blot(text: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    for c in text.chars() {
        match quote {
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                out.push(c);
                out.push('…');
            }
            Some(open) if c == open => {
                quote = None;
                out.push(c);
            }
            Some(_) => {}
            None => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_points_at_the_key_and_quotes_no_other_value() {
        let text = "a = 1\n  apikey = \"sk-secret\" # x\n";
        let at = text.find("apikey").expect("there");
        let excerpt = Excerpt::new(text, &(at..at + 6), Show::Span);
        assert_eq!((excerpt.number, excerpt.column, excerpt.width), (2, 2, 6));
        assert_eq!(excerpt.line, "  apikey = \"…\" # x");
    }

    #[test]
    fn an_excerpt_of_a_broken_line_ends_at_the_equals_sign() {
        let text = "api_key = sk-secret";
        let excerpt = Excerpt::new(text, &(10..19), Show::KeyOnly);
        assert_eq!((excerpt.line.as_str(), excerpt.column), ("api_key = …", 10));
    }

    #[test]
    fn a_caret_under_a_key_is_as_wide_as_the_key() {
        let text = "api_key = \"sk-secret\"";
        let excerpt = Excerpt::new(text, &(0..7), Show::KeyOnly);
        assert_eq!(
            (excerpt.line.as_str(), excerpt.column, excerpt.width),
            ("api_key = …", 0, 7)
        );
    }

    #[test]
    fn positions_count_characters_from_one() {
        assert_eq!(position("ä = 1\nb = 2", 8), (2, 2));
        assert_eq!(position("ä = 1", 2), (1, 2));
        assert_eq!(position("", 0), (1, 1));
    }
}

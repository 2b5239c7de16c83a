//! The languages that the gateway speaks, and texts that are there in each of them.
//!
//! What is said to people is [`Said`]. It is made by [`said!`](crate::said), in the language of who reads it, and that
//! does not build without a text in every language; a plain string is no `Said`. An error that is made before it is known
//! who reads it carries [`Bilingual`], its text in each.

#[cfg(test)]
pub(crate) mod agreement;

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use serde::Serialize;

/// A text in a language: `said!(language, en: "no user {name}", zh: "没有用户 {name}")`. What stands in braces is a
/// variable, as in `format!`; or it is given behind the texts, `name = user.name()`, and then has to stand in each of them.
///
/// Both languages have to be there:
///
/// ```
/// # use codex_gateway::{said, language::Language};
/// let name = "alice";
/// assert_eq!(said!(Language::Chinese, en: "no user {name}", zh: "没有用户 {name}").to_string(), "没有用户 alice");
/// ```
///
/// ```compile_fail
/// # use codex_gateway::{said, language::Language};
/// let name = "alice";
/// said!(Language::Chinese, en: "no user {name}");
/// ```
#[macro_export]
macro_rules! said {
    ($language:expr, en: $en:literal, zh: $zh:literal $(, $name:ident = $value:expr)* $(,)?) => {
        $crate::language::Said::verbatim(match $language {
            $crate::language::Language::English => ::std::format!($en $(, $name = $value)*),
            $crate::language::Language::Chinese => ::std::format!($zh $(, $name = $value)*),
        })
    };
}

/// A text in every language, for a reader who is not known yet: `bilingual!(en: "no user {name}", zh: "没有用户 {name}")`.
/// One that holds another is made by [`Bilingual::each`].
#[macro_export]
macro_rules! bilingual {
    (en: $en:literal, zh: $zh:literal $(,)?) => {
        $crate::language::Bilingual::each(|language| $crate::said!(language, en: $en, zh: $zh))
    };
}

/// A text for people, in the language of who reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Said(String);

impl Said {
    /// What is the same in every language: a name, a command, what the system or a library says.
    pub fn verbatim(text: impl Into<String>) -> Said {
        Said(text.into())
    }
}

impl Deref for Said {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl From<Said> for String {
    fn from(said: Said) -> String {
        said.0
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// An error that is told in the language of who reads it.
pub trait Tell {
    /// What is wrong, and what would be right.
    fn told(&self, language: Language) -> Said;
}

impl Tell for Bilingual {
    fn told(&self, language: Language) -> Said {
        self.of(language).clone()
    }
}

/// A text in every language, to be told when it is known who reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bilingual(Box<[Said; 2]>);

impl Bilingual {
    /// What is said in each language.
    pub fn each(said: impl Fn(Language) -> Said) -> Bilingual {
        Bilingual(Box::new(Language::ALL.map(said)))
    }

    /// In a language.
    pub fn of(&self, language: Language) -> &Said {
        let [english, chinese] = &*self.0;
        language.of(english, chinese)
    }
}

/// A language that the gateway speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Language {
    /// `en`
    #[default]
    English,
    /// `zh`: simplified Chinese.
    Chinese,
}

impl Language {
    /// All of them.
    pub const ALL: [Language; 2] = [Language::English, Language::Chinese];

    /// `en` or `zh`.
    pub const fn name(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Chinese => "zh",
        }
    }

    /// The one of two texts that is in this language.
    pub fn of<T>(self, en: T, zh: T) -> T {
        match self {
            Language::English => en,
            Language::Chinese => zh,
        }
    }

    /// The language for a user with a setting of their own, whose client asks for `accepted` ([`Language::accepted`]).
    pub fn choose(of_user: Option<Language>, accepted: Option<Language>) -> Language {
        of_user.or(accepted).unwrap_or_default()
    }

    /// The best of an `Accept-Language` (RFC 9110 §12.5.4), given in parts: what has the highest quality, and of equals
    /// the first. Whatever the region or the script is. `None` when none is ours.
    pub fn accepted<'a>(values: impl Iterator<Item = &'a str>) -> Option<Language> {
        let mut best: Option<(Language, u16)> = None;
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let (tag, quality) = (parts.next().unwrap_or_default(), quality(parts));
            let Some(language) = Language::of_tag(tag) else {
                continue;
            };
            if quality > best.map_or(0, |(_, best)| best) {
                best = Some((language, quality));
            }
        }
        best.map(|(language, _)| language)
    }

    /// The language of messages in a POSIX environment: the first of `LC_ALL`, `LC_MESSAGES` and `LANG` that says
    /// something. English when it is none of ours.
    pub fn of_environment(variable: impl Fn(&str) -> Option<String>) -> Language {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().find_map(set);
        locale.and_then(|locale| Language::of_tag(&locale)).unwrap_or_default()
    }

    /// Of `zh-CN`, `zh_CN.UTF-8`, `en`, `*`.
    fn of_tag(tag: &str) -> Option<Language> {
        let primary = tag.split(['-', '_', '.', '@']).next().unwrap_or_default();
        match primary {
            "*" => Some(Language::default()),
            _ => Language::ALL
                .into_iter()
                .find(|language| primary.eq_ignore_ascii_case(language.name())),
        }
    }
}

/// The quality of a range in thousandths: `q=0.8` is 800, none is 1000, and what is not understood is 0.
fn quality<'a>(parameters: impl Iterator<Item = &'a str>) -> u16 {
    let mut qualities = parameters.filter_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let Some(value) = qualities.next() else { return 1000 };
    let (whole, part) = value.split_once('.').unwrap_or((value, ""));
    let thousandths = format!("{part:0<3}");
    match (whole, thousandths.parse::<u16>()) {
        ("0", Ok(part)) if thousandths.len() == 3 => part,
        ("1", Ok(0)) if thousandths.len() == 3 => 1000,
        _ => 0,
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Neither `en` nor `zh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotALanguage;

impl Tell for NotALanguage {
    fn told(&self, language: Language) -> Said {
        said!(language, en: "a language is en or zh", zh: "语言是 en 或 zh")
    }
}

impl FromStr for Language {
    type Err = NotALanguage;

    fn from_str(text: &str) -> Result<Language, NotALanguage> {
        let mut all = Language::ALL.into_iter();
        all.find(|language| language.name() == text).ok_or(NotALanguage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_language_is_the_one_of_highest_quality() {
        use Language::{Chinese, English};
        for (header, best) in [
            ("", None),
            ("zh", Some(Chinese)),
            ("ZH-Hans-CN", Some(Chinese)),
            ("zh-TW, en;q=0.8", Some(Chinese)),
            ("en;q=0.8, zh;q=0.9", Some(Chinese)),
            ("en ; q = 0.9 , zh ; q = 0.899", Some(English)),
            ("en,zh", Some(English)),
            ("zh,en", Some(Chinese)),
            ("de-DE,de;q=0.9,zh;q=0.5", Some(Chinese)),
            ("de, fr;q=0.3", None),
            ("*", Some(English)),
            ("zh;q=0.1, *;q=0.5", Some(English)),
            ("zh;q=0", None),
            ("zh;q=0.000, en;q=0.001", Some(English)),
            ("zh;q=nan, en;q=0.1", Some(English)),
            ("zh;q=1.5, en;q=-1", None),
            ("zh;q=1.000", Some(Chinese)),
            ("zh;q=0.1234", None),
            ("zhx, eng", None),
        ] {
            assert_eq!(Language::accepted([header].into_iter()), best, "{header}");
        }
        assert_eq!(Language::accepted(["en;q=0.1", "zh;q=0.2"].into_iter()), Some(Chinese));
    }

    #[test]
    fn a_users_setting_comes_before_what_the_client_accepts() {
        use Language::{Chinese, English};
        assert_eq!(Language::choose(Some(English), Some(Chinese)), English);
        assert_eq!(Language::choose(None, Some(Chinese)), Chinese);
        assert_eq!(Language::choose(None, None), English);
    }

    #[test]
    fn the_environment_is_read_as_posix_says() {
        use Language::{Chinese, English};
        for (variables, language) in [
            (&[][..], English),
            (&[("LANG", "zh_CN.UTF-8")], Chinese),
            (&[("LANG", "zh_CN.UTF-8"), ("LC_MESSAGES", "en_US.UTF-8")], English),
            (&[("LANG", "C"), ("LC_ALL", "zh_CN")], Chinese),
            (&[("LANG", "zh_CN"), ("LC_ALL", "C.UTF-8")], English),
            (&[("LANG", "zh_CN"), ("LC_ALL", "")], Chinese),
            (&[("LANG", "de_DE@euro")], English),
        ] {
            let found = |name: &str| {
                let found = variables.iter().find(|(given, _)| *given == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(Language::of_environment(found), language, "{variables:?}");
        }
    }

    #[test]
    fn a_language_is_written_as_it_is_read() {
        for language in Language::ALL {
            assert_eq!(language.to_string().parse(), Ok(language));
        }
        assert_eq!("ZH".parse::<Language>(), Err(NotALanguage));
    }
}

//! What has to be the same in every language, for the tests of texts.

/// A sample for each variant of an enum: one without a sample does not build.
macro_rules! samples {
    ($of:ty { $($variant:pat => $sample:expr),* $(,)? }) => {{
        let _each: fn(&$of) = |sample| match sample {
            $($variant => {}),*
        };
        [$($sample),*]
    }};
}

pub(crate) use samples;

fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

/// What is the same in every language: numbers, money, paths, names of settings and fields.
pub(crate) fn constant(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_/.$-".contains(c)));
    let words = words.map(|word| word.trim_end_matches('.'));
    words.filter(|word| word.contains(|c: char| c.is_ascii_digit() || "_/$".contains(c)))
}

/// Insists that two texts say the same as far as a program can tell.
pub(crate) fn agree(english: &str, chinese: &str) {
    assert!(english.len() > 2 && !english.contains(is_chinese), "{english}");
    assert!(chinese.contains(is_chinese), "{chinese}");
    for word in constant(english) {
        assert!(chinese.contains(word), "{word}: {english} / {chinese}");
    }
    for word in constant(chinese) {
        assert!(english.contains(word), "{word}: {english} / {chinese}");
    }
    for text in [english, chinese] {
        let text = ["{\"model\": …}", "{ \"name\" = \"value\" }"]
            .iter()
            .fold(text.to_owned(), |text, braces| text.replace(braces, ""));
        assert!(!text.contains(['{', '}']), "a place that is not filled: {text}");
        assert!(!text.contains("  "), "{text}");
    }
    for command in ["user", "key", "price", "usage", "request", "doctor"] {
        let of = |text: &str| text.matches(&format!("gateway {command}")).count();
        assert_eq!(of(english), of(chinese), "{english} / {chinese}");
    }
}

//! Routes: which upstream serves a model, under which name, priced by which list.

use std::collections::BTreeMap;

/// Codex asks for this model when it has a command reviewed; OpenAI sells it under no such name.
const CODEX_REVIEW_ALIAS: (&str, &str) = ("codex-auto-review", "gpt-6.1-terra");

/// Longer names are not compared: nobody means them, and comparing costs the product of both lengths.
const MAX_NEAREST_BYTES: usize = 128;

/// Shorter names begin too many others to mean one of them.
const MIN_BEGINNING_BYTES: usize = 3;

/// Where a call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index into the configured upstreams.
    pub upstream: usize,
    /// The upstream's name for the model; the one that is priced.
    pub model: String,
    /// Whether the client used an alias, so that the request has to be edited.
    pub aliased: bool,
}

/// What one upstream serves.
#[derive(Clone, Debug)]
pub struct Served {
    /// Globs of models.
    pub models: Vec<String>,
    /// Alias → the upstream's model.
    pub aliases: BTreeMap<String, String>,
    /// Whose models these are.
    pub catalogue: Catalogue,
}

/// Whose models an upstream sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalogue {
    /// OpenAI's, by OpenAI's names.
    OpenAi,
    /// Anybody else's.
    Other,
}

/// The table of models and aliases.
#[derive(Clone, Debug)]
pub struct Routes {
    upstreams: Vec<Served>,
}

impl Routes {
    /// From the upstreams, in their order. One that sells OpenAI's models also gets the alias `codex-auto-review`,
    /// unless the operator defined it anywhere.
    pub fn new(upstreams: impl IntoIterator<Item = Served>) -> Routes {
        let mut upstreams: Vec<Served> = upstreams.into_iter().collect();
        let (alias, model) = CODEX_REVIEW_ALIAS;
        if !upstreams.iter().any(|served| served.aliases.contains_key(alias)) {
            for served in upstreams
                .iter_mut()
                .filter(|served| served.catalogue == Catalogue::OpenAi)
            {
                served.aliases.insert(alias.to_owned(), model.to_owned());
            }
        }
        Routes { upstreams }
    }

    /// The first upstream that serves `model`. Within an upstream an alias wins over a glob, and what an alias names is
    /// final: it is neither another alias nor matched against the globs.
    pub fn find(&self, model: &str) -> Option<Target> {
        self.upstreams.iter().enumerate().find_map(|(upstream, served)| {
            if let Some(name) = served.aliases.get(model) {
                return Some(Target {
                    upstream,
                    model: name.clone(),
                    aliased: true,
                });
            }
            let target = || Target {
                upstream,
                model: model.to_owned(),
                aliased: false,
            };
            model_allowed(&served.models, model).then(target)
        })
    }

    /// Every alias that a client can reach: (alias, target).
    pub fn aliases(&self) -> Vec<(String, Target)> {
        let mut reachable = BTreeMap::new();
        for alias in self.upstreams.iter().flat_map(|served| served.aliases.keys()) {
            if let Some(target) = self.find(alias).filter(|target| target.aliased) {
                reachable.insert(alias.clone(), target);
            }
        }
        reachable.into_iter().collect()
    }
}

/// Whether one of `globs` matches `model`: `*` stands for any characters, `?` for one, all else for itself. Case
/// counts, as it does at upstreams. No globs match nothing.
pub fn model_allowed(globs: &[String], model: &str) -> bool {
    globs.iter().any(|glob| glob_matches(glob, model))
}

/// Matches without recursion: on a mismatch the last `*` takes one character more, which is at most `glob × text` steps.
fn glob_matches(glob: &str, text: &str) -> bool {
    let (mut rest_of_glob, mut rest) = (glob, text);
    let mut last_star: Option<(&str, &str)> = None;
    loop {
        let mut glob_chars = rest_of_glob.chars();
        let mut chars = rest.chars();
        match (glob_chars.next(), chars.next()) {
            (Some('*'), _) => {
                rest_of_glob = glob_chars.as_str();
                last_star = Some((rest_of_glob, rest));
                continue;
            }
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                (rest_of_glob, rest) = (glob_chars.as_str(), chars.as_str());
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = last_star else {
            return false;
        };
        let mut longer = from.chars();
        if longer.next().is_none() {
            return false;
        }
        (rest_of_glob, rest) = (after_star, longer.as_str());
        last_star = Some((after_star, rest));
    }
}

/// How a name relates to the one wanted, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Nearness {
    /// It goes on where the wanted one ends.
    Completed,
    /// A few typing errors apart.
    Mistyped,
    /// The wanted one goes on where it ends, as with a date behind a model.
    Shortened,
}

/// The name among `names` nearest to `wanted`, if one is near enough to be meant: for "did you mean" of models, settings
/// and users. Case does not count.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > MAX_NEAREST_BYTES {
        return None;
    }
    let wanted = wanted.to_lowercase();
    let ranked = names
        .into_iter()
        .filter_map(|name| Some((nearness(&wanted, name)?, name)));
    ranked.min().map(|(_, name)| name)
}

/// The relation of `name` to `wanted` and their distance in typing errors.
fn nearness(wanted: &str, name: &str) -> Option<(Nearness, usize)> {
    if name.len() > MAX_NEAREST_BYTES {
        return None;
    }
    let name = name.to_lowercase();
    let distance = strsim::damerau_levenshtein(wanted, &name);
    let bearable = (wanted.chars().count().max(name.chars().count()) / 3).max(1);
    if wanted.len() >= MIN_BEGINNING_BYTES && name.starts_with(wanted) {
        Some((Nearness::Completed, distance))
    } else if distance <= bearable {
        Some((Nearness::Mistyped, distance))
    } else if name.len() >= MIN_BEGINNING_BYTES && wanted.starts_with(&name) {
        Some((Nearness::Shortened, distance))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn served(models: &[&str], aliases: &[(&str, &str)]) -> Served {
        Served {
            models: models.iter().map(|&glob| glob.to_owned()).collect(),
            aliases: aliases
                .iter()
                .map(|&(alias, model)| (alias.to_owned(), model.to_owned()))
                .collect(),
            catalogue: Catalogue::Other,
        }
    }

    fn of_openai(served: Served) -> Served {
        Served {
            catalogue: Catalogue::OpenAi,
            ..served
        }
    }

    fn routes(upstreams: Vec<Served>) -> Routes {
        Routes::new(upstreams)
    }

    fn target(upstream: usize, model: &str, aliased: bool) -> Option<Target> {
        Some(Target {
            upstream,
            model: model.to_owned(),
            aliased,
        })
    }

    #[test]
    fn the_first_upstream_that_serves_a_model_is_taken() {
        let routes = routes(vec![
            served(&["deepseek-*"], &[]),
            served(&["*"], &[]),
            served(&["gpt-*"], &[]),
        ]);
        assert_eq!(routes.find("deepseek-chat"), target(0, "deepseek-chat", false));
        assert_eq!(routes.find("gpt-5"), target(1, "gpt-5", false));
    }

    #[test]
    fn an_alias_wins_over_a_glob_of_its_own_upstream_only() {
        let routes = routes(vec![
            served(&["gpt-*"], &[]),
            served(&["*"], &[("gpt-5", "other"), ("fast", "gpt-mini")]),
        ]);
        assert_eq!(routes.find("gpt-5"), target(0, "gpt-5", false));
        assert_eq!(routes.find("fast"), target(1, "gpt-mini", true));
        assert_eq!(
            routes.aliases(),
            [("fast".to_owned(), target(1, "gpt-mini", true).expect("a target"))]
        );
    }

    #[test]
    fn what_an_alias_names_is_not_looked_up_again() {
        let routes = routes(vec![served(&[], &[("a", "b"), ("b", "c")])]);
        assert_eq!(routes.find("a"), target(0, "b", true));
        assert_eq!(routes.find("c"), None);
    }

    #[test]
    fn codex_reviews_go_to_a_priced_model_unless_the_operator_says_otherwise() {
        let built_in = Routes::new([of_openai(served(&["*"], &[]))]);
        assert_eq!(built_in.find("codex-auto-review"), target(0, "gpt-6.1-terra", true));
        let elsewhere = Routes::new([served(&["m"], &[])]);
        assert_eq!(elsewhere.find("codex-auto-review"), None);
        let own = served(&["*"], &[("codex-auto-review", "mine")]);
        let defined = Routes::new([of_openai(served(&["m"], &[])), of_openai(own)]);
        assert_eq!(defined.find("codex-auto-review"), target(1, "mine", true));
    }

    #[test]
    fn globs_match_whole_names_and_count_case() {
        for (glob, model, expected) in [
            ("*", "", true),
            ("*", "anything/at:all", true),
            ("gpt-5", "gpt-5", true),
            ("gpt-5", "gpt-5.1", false),
            ("gpt-*", "GPT-5", false),
            ("gpt-*", "gpt-", true),
            ("*-mini", "gpt-4o-mini", true),
            ("*-mini", "gpt-4o-mini-2024", false),
            ("gpt-*-mini*", "gpt-4o-mini-2024", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("gpt-?", "gpt-5", true),
            ("gpt-?", "gpt-é", true),
            ("gpt-?", "gpt-", false),
            ("gpt-[45]", "gpt-4", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(model_allowed(&[glob.to_owned()], model), expected, "{glob} {model}");
        }
        assert!(!model_allowed(&[], "gpt-5"));
    }

    #[test]
    fn a_hostile_glob_takes_no_exponential_time() {
        let glob = "*a".repeat(60) + "b";
        assert!(!glob_matches(&glob, &"a".repeat(250)));
    }

    #[test]
    fn the_nearest_name_is_the_one_meant() {
        let models = [
            "gpt-4o",
            "gpt-4o-mini",
            "gpt-5",
            "gpt-6.1-sol",
            "gpt-6.1-terra",
            "deepseek-chat",
        ];
        for (wanted, expected) in [
            ("gpt4o", Some("gpt-4o")),
            ("GPT-5", Some("gpt-5")),
            ("gpt-6.1", Some("gpt-6.1-sol")),
            ("gpt-4o-2024-08-06", Some("gpt-4o")),
            ("gpt-4o-mni", Some("gpt-4o-mini")),
            ("deepseek-caht", Some("deepseek-chat")),
            ("claude-opus", None),
            ("", None),
        ] {
            assert_eq!(nearest(wanted, models), expected, "{wanted}");
        }
        assert_eq!(nearest("lisen", ["listen", "public_url", "max_body"]), Some("listen"));
        assert_eq!(nearest(&"x".repeat(200), ["x"]), None);
    }

    proptest! {
        #[test]
        fn a_star_stands_for_any_characters(before in "[a-c*?]{0,6}", middle in "[a-c]{0,6}", after in "[a-c]{0,4}") {
            let head = before.replace(['*', '?'], "a");
            let glob = format!("{}*{}", before, after);
            let text = format!("{}{}{}", head, middle, after);
            prop_assert!(glob_matches(&glob, &text));
        }
    }
}

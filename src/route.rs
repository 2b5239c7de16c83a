//! Routes: which upstreams serve a model, under which name, and which of them takes a call.
//!
//! Those of the lowest `priority` number that take calls share a model. A call that belongs to a thread goes where the
//! thread's calls went before ([`Seat::Thread`]): by weighted rendezvous hashing, which needs no memory, is the same after a
//! restart, and moves only the threads of an upstream that goes or comes. Any other call goes to the one with the fewest
//! calls under way for its weight; among equals chance decides, by weight too.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

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

/// An upstream that could take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Index into the configured upstreams.
    pub upstream: usize,
    /// The upstream's name for the model.
    pub model: &'a str,
    /// Whether the client used an alias.
    pub aliased: bool,
}

impl Candidate<'_> {
    /// As the place a call goes to.
    pub fn target(&self) -> Target {
        Target {
            upstream: self.upstream,
            model: self.model.to_owned(),
            aliased: self.aliased,
        }
    }
}

/// What one upstream serves, and how much of it.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its name: threads stay with it by this.
    pub name: String,
    /// Globs of models.
    pub models: Vec<String>,
    /// Alias → the upstream's model.
    pub aliases: BTreeMap<String, String>,
    /// Whose models these are.
    pub catalogue: Catalogue,
    /// The lower, the sooner; the others are for when none of these takes calls.
    pub priority: u32,
    /// Its share beside those of the same priority.
    pub weight: u32,
}

/// Whose models an upstream sells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalogue {
    /// OpenAI's, by OpenAI's names.
    OpenAi,
    /// Anybody else's.
    Other,
}

/// What decides among upstreams that could take a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// The thread it belongs to, as a number that is the same for all its calls.
    Thread(u64),
    /// It belongs to none: a number by chance.
    Any(u64),
}

impl Seat {
    /// Of a thread of a user's.
    pub fn of_thread(user: &[u8], thread: &[u8]) -> Seat {
        Seat::Thread(number(&[user, thread]))
    }
}

/// The first bits of a digest.
fn number(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize().first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// Mixes bits as SplitMix64 does: any input differs from any other in half of the output.
fn mixed(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

/// An upstream in the table.
#[derive(Clone, Debug)]
struct Row {
    served: Served,
    number: u64,
}

impl Row {
    fn candidate<'a>(&'a self, upstream: usize, model: &'a str) -> Option<Candidate<'a>> {
        if let Some(name) = self.served.aliases.get(model) {
            return Some(Candidate {
                upstream,
                model: name,
                aliased: true,
            });
        }
        let candidate = || Candidate {
            upstream,
            model,
            aliased: false,
        };
        model_allowed(&self.served.models, model).then(candidate)
    }

    /// How high it draws: the best of as many draws as its weight.
    fn draw(&self, seat: u64) -> u64 {
        let own = mixed(seat ^ self.number);
        let draws = (0..u64::from(self.served.weight)).map(|draw| mixed(own.wrapping_add(draw)));
        draws.max().unwrap_or(0)
    }
}

/// The table of models and aliases.
#[derive(Clone, Debug)]
pub struct Routes {
    rows: Vec<Row>,
    /// Indexes of the rows by priority, then in the order of the settings.
    order: Vec<usize>,
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
        let mut order: Vec<usize> = (0..upstreams.len()).collect();
        order.sort_by_key(|&upstream| upstreams[upstream].priority);
        let row = |served: Served| Row {
            number: number(&[served.name.as_bytes()]),
            served,
        };
        Routes {
            rows: upstreams.into_iter().map(row).collect(),
            order,
        }
    }

    /// Every upstream that serves `model`, by priority, then in the order of the settings. Within an upstream an alias wins
    /// over a glob, and what an alias names is final: it is neither another alias nor matched against the globs.
    pub fn candidates<'a>(&'a self, model: &'a str) -> impl Iterator<Item = Candidate<'a>> {
        let of = move |&upstream: &usize| self.rows[upstream].candidate(upstream, model);
        self.order.iter().filter_map(of)
    }

    /// Whether two upstreams share the calls of a model, so that neither only stands in for the other.
    pub fn are_equals(&self, one: usize, other: usize) -> bool {
        self.rows[one].served.priority == self.rows[other].served.priority
    }

    /// Which upstream takes a call for `model`: of those for which `load` gives how many calls are under way there; `None`
    /// is one that takes none.
    pub fn choose<'a>(
        &'a self,
        model: &'a str,
        seat: Seat,
        mut load: impl FnMut(&Candidate<'a>) -> Option<u32>,
    ) -> Option<Candidate<'a>> {
        let mut best: Option<(Candidate<'a>, u32, u64)> = None;
        for candidate in self.candidates(model) {
            let row = &self.rows[candidate.upstream];
            let leader = best.map(|(leader, ..)| &self.rows[leader.upstream].served);
            if leader.is_some_and(|leader| leader.priority != row.served.priority) {
                break;
            }
            let Some(under_way) = load(&candidate) else {
                continue;
            };
            // For each call of mine, so many of the other's weigh as much.
            let (under_way, draw) = match seat {
                Seat::Thread(number) => (0, row.draw(number)),
                Seat::Any(number) => (under_way, row.draw(number)),
            };
            let is_better = best.is_none_or(|(leader, its, drew)| {
                let its_weight = u64::from(self.rows[leader.upstream].served.weight);
                let (mine, its) = (
                    u64::from(under_way) * its_weight,
                    u64::from(its) * u64::from(row.served.weight),
                );
                mine < its || mine == its && draw > drew
            });
            if is_better {
                best = Some((candidate, under_way, draw));
            }
        }
        best.map(|(candidate, ..)| candidate)
    }

    /// Every alias that a client can reach: one that the first upstream to serve it knows as such.
    pub fn aliases(&self) -> BTreeMap<&str, Candidate<'_>> {
        let known = self.rows.iter().flat_map(|row| row.served.aliases.keys());
        let reachable = known.filter_map(|alias| {
            let first = self.candidates(alias).next()?;
            first.aliased.then_some((alias.as_str(), first))
        });
        reachable.collect()
    }
}

/// Whether one of `globs` matches `model`: `*` stands for any characters, `?` for one, all else for itself. Case
/// counts, as it does at upstreams. No globs match nothing.
pub fn model_allowed(globs: &[String], model: &str) -> bool {
    globs.iter().any(|glob| glob_matches(glob, model))
}

/// What is set for the model: of the globs that match it, the longest counts, and a name before a pattern.
pub fn closest<'a, T>(by_glob: &'a BTreeMap<String, T>, model: &str) -> Option<&'a T> {
    let matching = by_glob.iter().filter(|(glob, _)| glob_matches(glob, model));
    let closest = matching.max_by_key(|(glob, _)| (*glob == model, glob.len()));
    closest.map(|(_, value)| value)
}

/// Whether a glob stands for more than one name.
pub fn is_pattern(glob: &str) -> bool {
    glob.contains(['*', '?'])
}

/// Whether one glob matches the whole text.
///
/// Matches without recursion: on a mismatch the last `*` takes one character more, which is at most `glob × text` steps.
pub fn glob_matches(glob: &str, text: &str) -> bool {
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
            name: "upstream".to_owned(),
            models: models.iter().map(|&glob| glob.to_owned()).collect(),
            aliases: aliases
                .iter()
                .map(|&(alias, model)| (alias.to_owned(), model.to_owned()))
                .collect(),
            catalogue: Catalogue::Other,
            priority: 0,
            weight: 1,
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

    /// Upstreams that serve everything, by name, priority and weight.
    fn equals(upstreams: &[(&str, u32, u32)]) -> Routes {
        Routes::new(upstreams.iter().map(|&(name, priority, weight)| Served {
            name: name.to_owned(),
            priority,
            weight,
            ..served(&["*"], &[])
        }))
    }

    fn candidate(upstream: usize, model: &str, aliased: bool) -> Candidate<'_> {
        Candidate {
            upstream,
            model,
            aliased,
        }
    }

    fn found<'a>(routes: &'a Routes, model: &'a str) -> Vec<Candidate<'a>> {
        routes.candidates(model).collect()
    }

    /// How many of these seats each upstream takes, when so many calls are under way there; `None` takes none.
    fn taken(routes: &Routes, seats: impl Iterator<Item = Seat>, loads: &[Option<u32>]) -> Vec<u32> {
        let mut taken = vec![0; loads.len()];
        for seat in seats {
            if let Some(chosen) = routes.choose("m", seat, |candidate| loads[candidate.upstream]) {
                taken[chosen.upstream] += 1;
            }
        }
        taken
    }

    fn threads(count: u64) -> impl Iterator<Item = Seat> {
        (0..count).map(|thread| Seat::of_thread(b"ada", &thread.to_be_bytes()))
    }

    #[test]
    fn every_upstream_that_serves_a_model_is_a_candidate_by_priority() {
        let mut last = served(&["gpt-*"], &[]);
        last.priority = 1;
        let routes = routes(vec![last, served(&["deepseek-*"], &[]), served(&["*"], &[])]);
        assert_eq!(
            found(&routes, "deepseek-chat"),
            [
                candidate(1, "deepseek-chat", false),
                candidate(2, "deepseek-chat", false)
            ]
        );
        assert_eq!(
            found(&routes, "gpt-5"),
            [candidate(2, "gpt-5", false), candidate(0, "gpt-5", false)]
        );
    }

    #[test]
    fn an_alias_wins_over_a_glob_of_its_own_upstream_only() {
        let routes = routes(vec![
            served(&["gpt-*"], &[]),
            served(&["*"], &[("gpt-5", "other"), ("fast", "gpt-mini")]),
        ]);
        assert_eq!(
            found(&routes, "gpt-5"),
            [candidate(0, "gpt-5", false), candidate(1, "other", true)]
        );
        assert_eq!(found(&routes, "fast"), [candidate(1, "gpt-mini", true)]);
        assert_eq!(
            routes.aliases(),
            BTreeMap::from([("fast", candidate(1, "gpt-mini", true))])
        );
    }

    #[test]
    fn what_an_alias_names_is_not_looked_up_again() {
        let routes = routes(vec![served(&[], &[("a", "b"), ("b", "c")])]);
        assert_eq!(found(&routes, "a"), [candidate(0, "b", true)]);
        assert_eq!(found(&routes, "c"), []);
    }

    #[test]
    fn codex_reviews_go_to_a_priced_model_unless_the_operator_says_otherwise() {
        let review = "codex-auto-review";
        let built_in = Routes::new([of_openai(served(&["*"], &[]))]);
        assert_eq!(found(&built_in, review), [candidate(0, "gpt-6.1-terra", true)]);
        let elsewhere = Routes::new([served(&["m"], &[])]);
        assert_eq!(found(&elsewhere, review), []);
        let own = served(&["*"], &[(review, "mine")]);
        let defined = Routes::new([of_openai(served(&["m"], &[])), of_openai(own)]);
        assert_eq!(found(&defined, review), [candidate(1, "mine", true)]);
    }

    #[test]
    fn a_thread_stays_where_it_is_and_weights_share_the_threads() {
        let routes = equals(&[("a", 0, 1), ("b", 0, 3)]);
        let [a, b] = taken(&routes, threads(10_000), &[Some(900), Some(0)])[..] else {
            panic!("two upstreams");
        };
        assert!((2_300..2_700).contains(&a) && a + b == 10_000, "{a} {b}");
        let swapped = equals(&[("b", 0, 3), ("a", 0, 1)]);
        for seat in threads(100) {
            let name = |routes: &Routes| {
                let chosen = routes.choose("m", seat, |_| Some(0)).expect("one");
                routes.rows[chosen.upstream].served.name.clone()
            };
            assert_eq!(name(&routes), name(&swapped), "by its name, wherever it stands");
        }
        assert_ne!(Seat::of_thread(b"ada", b"t"), Seat::of_thread(b"bob", b"t"));
    }

    #[test]
    fn only_the_threads_of_an_upstream_that_takes_no_calls_move() {
        let routes = equals(&[("a", 0, 1), ("b", 0, 1), ("c", 0, 1)]);
        for seat in threads(1_000) {
            let chosen = |loads: [Option<u32>; 3]| {
                let chosen = routes.choose("m", seat, |candidate| loads[candidate.upstream]);
                chosen.map(|candidate| candidate.upstream)
            };
            let (all, without) = (chosen([Some(0); 3]), chosen([None, Some(0), Some(0)]));
            assert!(all == Some(0) || all == without, "{all:?} {without:?}");
            assert_eq!(chosen([None; 3]), None);
        }
    }

    #[test]
    fn other_calls_go_where_the_fewest_are_for_its_weight_and_chance_shares_equals() {
        let routes = equals(&[("a", 0, 1), ("b", 0, 3)]);
        let any = || (0..10_000).map(Seat::Any);
        assert_eq!(taken(&routes, any(), &[Some(1), Some(2)]), [0, 10_000]);
        assert_eq!(taken(&routes, any(), &[Some(1), Some(4)]), [10_000, 0]);
        let [a, b] = taken(&routes, any(), &[Some(1), Some(3)])[..] else {
            panic!("two upstreams");
        };
        assert!((2_300..2_700).contains(&a) && a + b == 10_000, "{a} {b}");
    }

    #[test]
    fn the_next_priority_is_for_when_the_one_before_takes_no_calls() {
        let routes = equals(&[("spare", 7, 1), ("a", 0, 1), ("b", 0, 1)]);
        for seats in [true, false] {
            let seats = || (0..100).map(|n| if seats { Seat::Thread(n) } else { Seat::Any(n) });
            let [spare, a, b] = taken(&routes, seats(), &[Some(0), Some(5), Some(5)])[..] else {
                panic!("three upstreams");
            };
            assert!(spare == 0 && a > 0 && b > 0, "{a} {b}");
            assert_eq!(taken(&routes, seats(), &[Some(9), None, None]), [100, 0, 0]);
        }
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

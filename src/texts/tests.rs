//! Every refusal and every code, in every language: that it is told, that it says what it has to, that it agrees.

use jiff::Timestamp;
use uuid::Uuid;

use super::*;
use crate::budget::{Limit, Owner, Period};
use crate::call::{BodyProblem, CallError, Endpoint, Instead, Problem, Wanted};
use crate::code::{Again, Code};
use crate::hold::{Shortfall, Unquoted};
use crate::key::Foreign;
use crate::language::agreement::{agree, constant, samples};
use crate::limits::{Limited, What, Whose};
use crate::money::Usd;
use crate::pricing::Class;
use crate::refusal::{Ambiguity, Refusal, Unreadable, UpstreamFault, Wrong};
use crate::usage::Tokens;

/// A refusal, and what its message has to say in every language.
struct Sample {
    refusal: Refusal,
    says: Vec<&'static str>,
}

fn sample(refusal: Refusal, says: &[&'static str]) -> Sample {
    Sample {
        refusal,
        says: says.to_vec(),
    }
}

fn short(needed: i64, largest_limit: Option<u64>) -> Refusal {
    short_of(Limit::Balance, needed, largest_limit)
}

fn short_of(limit: Limit, needed: i64, largest_limit: Option<u64>) -> Refusal {
    Refusal::Short {
        user: "alice".into(),
        limit,
        shortfall: Shortfall {
            needed: Usd::from_nanos(needed),
            available: Usd::from_nanos(1_250_000_000),
            held: Usd::from_nanos(2_500_000_000),
            largest_limit: largest_limit.map(Tokens::saturating),
        },
    }
}

fn rate_limited(whose: Whose, what: What, limit: &str) -> Refusal {
    Refusal::RateLimited {
        name: "laptop".into(),
        limit: Limited {
            whose,
            what,
            limit: limit.parse().expect("a limit"),
        },
        wait: std::time::Duration::from_secs(17),
    }
}

fn refusals() -> Vec<Sample> {
    let limit = 33_554_432;
    let named = samples!(Refusal {
        Refusal::Malformed(_) => sample(Refusal::Malformed(Ambiguity::NoHost), &["Host"]),
        Refusal::Call(_) => sample(Refusal::Call(CallError::Body(BodyProblem::NotUtf8)), &["UTF-8"]),
        Refusal::TooLarge { .. } => sample(Refusal::TooLarge { limit }, &["33554432", "[server] max_body"]),
        Refusal::BodyLost => sample(Refusal::BodyLost, &[]),
        Refusal::Coding(_) => sample(Refusal::Coding(Unreadable::Several), &["zstd"]),
        Refusal::BadKey => sample(Refusal::BadKey, &["sk-gw-", "gateway key issue", "Authorization: Bearer"]),
        Refusal::ForeignKey(_) => sample(Refusal::ForeignKey(Foreign::Key("Groq")), &["Groq", "sk-gw-"]),
        Refusal::TooManyFailures { .. } => sample(
            Refusal::TooManyFailures { wait: std::time::Duration::from_millis(2_100) },
            &["3s", "sk-gw-"],
        ),
        Refusal::Full => sample(Refusal::Full, &["5s", "[server] max_connections"]),
        Refusal::Crowded => sample(
            Refusal::Crowded,
            &["5s", "[server] max_connections_per_address", "trusted_proxies"],
        ),
        Refusal::Ip => sample(Refusal::Ip, &[]),
        Refusal::Suspended { .. } => sample(
            Refusal::Suspended { user: "alice".into() },
            &["gateway user activate alice"],
        ),
        Refusal::NoModel { .. } => sample(
            Refusal::NoModel { model: "gpt-9".into(), nearest: Some("gpt-6".into()) },
            &["'gpt-9'", "'gpt-6'", "GET /v1/models"],
        ),
        Refusal::Unpriced { .. } => sample(
            Refusal::Unpriced {
                model: "house".into(),
                priced_as: "gpt 9".into(),
                list: "openai".into(),
                nearest: Some("gpt-6".into()),
            },
            &["'house'", "'gpt-6'", "gateway price set 'gpt 9' --list openai --input USD --output USD"],
        ),
        Refusal::NotYours { .. } => sample(
            Refusal::NotYours { param: "previous_response_id", id: "resp_7".into() },
            &["previous_response_id", "'resp_7'", "'input'"],
        ),
        Refusal::NoObject { .. } => sample(Refusal::NoObject { id: "file-7".into() }, &["file-7"]),
        Refusal::StillRuns { .. } => sample(Refusal::StillRuns { id: "resp_7".into() }, &["resp_7", "/cancel"]),
        Refusal::TooManyInBackground { .. } => sample(Refusal::TooManyInBackground { most: 1_000 }, &["1000"]),
        Refusal::TooManyObjects { .. } => sample(Refusal::TooManyObjects { most: 10_000 }, &["10000"]),
        Refusal::TooManyReferences { .. } => sample(Refusal::TooManyReferences { most: 512 }, &["512", "'input'"]),
        Refusal::UnpricedTool(_) => sample(
            Refusal::UnpricedTool(Unquoted::NoFee(Class::WebSearch)),
            &["web_search"],
        ),
        Refusal::Question { .. } => sample(
            Refusal::Question { param: "limit".into(), why: Wrong::Values { most: 50 } },
            &["limit", "50"],
        ),
        Refusal::NoReceipt => sample(Refusal::NoReceipt, &["x-request-id", "GET /v1/gateway/requests"]),
        Refusal::NoSession => sample(Refusal::NoSession, &["GET /v1/gateway/sessions"]),
        Refusal::TooMuch => sample(Refusal::TooMuch, &[]),
        Refusal::NoCode => sample(Refusal::NoCode, &[]),
        Refusal::TooManyTries { .. } => sample(Refusal::TooManyTries { wait: std::time::Duration::from_secs(17) }, &["17s"]),
        Refusal::RateLimited { .. } => sample(
            rate_limited(Whose::Key, What::Requests, "61"),
            &["laptop", "61", "17s"],
        ),
        Refusal::TooManyTokens { .. } => sample(
            Refusal::TooManyTokens {
                name: "gpt-6".into(),
                limit: Limited {
                    whose: Whose::Model,
                    what: What::Tokens,
                    limit: "1000".parse().expect("a limit"),
                },
                needed: 1_020,
            },
            &["'gpt-6'", "1000", "1020"],
        ),
        Refusal::Short { .. } => sample(
            short(9_000_000_000, Some(4_096)),
            &["alice", "$9", "$1.25", "$2.5", "4096", "gateway user credit alice AMOUNT"],
        ),
        Refusal::IdempotencyKey => sample(Refusal::IdempotencyKey, &["Idempotency-Key", "255"]),
        Refusal::InProgress { .. } => sample(
            Refusal::InProgress { exchange: Uuid::nil() },
            &["00000000-0000-0000-0000-000000000000", "5s"],
        ),
        Refusal::AlreadyDone { .. } => sample(
            Refusal::AlreadyDone { exchange: Uuid::nil(), charge: Usd::from_nanos(1_250_000_000) },
            &["$1.25", "GET /v1/gateway/requests/00000000-0000-0000-0000-000000000000"],
        ),
        Refusal::IdempotencyMismatch => sample(Refusal::IdempotencyMismatch, &["Idempotency-Key"]),
        Refusal::NotSupported { .. } => sample(
            Refusal::NotSupported { endpoint: "POST /v1/batches".into() },
            &["POST /v1/batches"],
        ),
        Refusal::NoRoute { .. } => sample(
            Refusal::NoRoute { endpoint: "GET /v2".into() },
            &["GET /v2", "POST /v1/responses", "GET /openapi.json"],
        ),
        Refusal::UpgradeRequired => sample(Refusal::UpgradeRequired, &["POST /v1/responses", "WebSocket"]),
        Refusal::OneAtATime => sample(Refusal::OneAtATime, &["WebSocket"]),
        Refusal::NoPrevious { .. } => sample(
            Refusal::NoPrevious { id: "resp_1".into() },
            &["previous_response_id", "'resp_1'", "input"],
        ),
        Refusal::Method { .. } => sample(Refusal::Method { allowed: "POST" }, &["POST"]),
        Refusal::Busy => sample(Refusal::Busy, &["1s"]),
        Refusal::Storage => sample(Refusal::Storage, &[]),
        Refusal::Unsettled => sample(Refusal::Unsettled, &[]),
        Refusal::ShuttingDown => sample(Refusal::ShuttingDown, &[]),
        Refusal::Upstream(_) => sample(Refusal::Upstream(UpstreamFault::Redirect), &[]),
        Refusal::Internal => sample(Refusal::Internal, &[]),
    });
    let held = sample(short(3_000_000_000, None), &["alice", "$3", "$1.25", "$2.5", "5s"]);
    let plain = |refusal| sample(refusal, &[]);
    let nowhere_near = Refusal::NoModel {
        model: "x".into(),
        nearest: None,
    };
    named
        .into_iter()
        .chain(budgets())
        .chain([held, short(9_000_000_000, None).into(), nowhere_near.into()])
        .chain(heads().map(|head| plain(Refusal::Malformed(head))))
        .chain(bodies().into_iter().map(|error| plain(Refusal::Call(error))))
        .chain(parameters())
        .chain(codings().map(|coding| plain(Refusal::Coding(coding))))
        .chain(tokens())
        .chain(questions())
        .chain(tools())
        .chain(faults().map(|fault| plain(Refusal::Upstream(fault))))
        .collect()
}

/// Each budget, gone and held.
fn budgets() -> impl Iterator<Item = Sample> {
    let day: Timestamp = "2026-11-29T00:00:00Z".parse().expect("a time");
    let periods = samples!(Period {
        Period::Total => (Period::Total, None, "AMOUNT/total"),
        Period::Day => (Period::Day, Some(day), "AMOUNT/day"),
        Period::Month => (Period::Month, Some(day), "AMOUNT/month"),
    });
    let owners = samples!(Owner {
        Owner::User => (Owner::User, "gateway user set alice --budget "),
        Owner::Key => (Owner::Key, "gateway key set KEY --budget "),
    });
    let each = periods
        .into_iter()
        .flat_map(move |period| owners.map(|owner| (period, owner)));
    each.flat_map(|((period, resets_at, amount), (owner, command))| {
        let limit = Limit::Budget {
            owner,
            period,
            resets_at,
        };
        let resets = resets_at.map_or("", |_| "2026-11-29T00:00:00Z");
        [
            sample(
                short_of(limit, 9_000_000_000, None),
                &["$9", "$1.25", command, amount, resets],
            ),
            sample(short_of(limit, 3_000_000_000, None), &["alice", "$3", "$2.5", "5s"]),
        ]
    })
}

impl From<Refusal> for Sample {
    fn from(refusal: Refusal) -> Sample {
        sample(refusal, &[])
    }
}

fn heads() -> impl Iterator<Item = Ambiguity> {
    let all = samples!(Ambiguity {
        Ambiguity::Proxy => Ambiguity::Proxy,
        Ambiguity::NoHost => Ambiguity::NoHost,
        Ambiguity::Hosts => Ambiguity::Hosts,
        Ambiguity::NotAHost => Ambiguity::NotAHost,
        Ambiguity::OtherServer => Ambiguity::OtherServer,
        Ambiguity::NotAPath => Ambiguity::NotAPath,
        Ambiguity::Control => Ambiguity::Control,
        Ambiguity::DoubleSlash => Ambiguity::DoubleSlash,
        Ambiguity::Dots => Ambiguity::Dots,
        Ambiguity::EncodedSlash => Ambiguity::EncodedSlash,
        Ambiguity::Repeated => Ambiguity::Repeated,
        Ambiguity::TransferCoding => Ambiguity::TransferCoding,
        Ambiguity::Expectation => Ambiguity::Expectation,
        Ambiguity::InTheClear => Ambiguity::InTheClear,
    });
    all.into_iter()
}

fn codings() -> impl Iterator<Item = Unreadable> {
    let all = samples!(Unreadable {
        Unreadable::Several => Unreadable::Several,
        Unreadable::Unknown => Unreadable::Unknown,
        Unreadable::Header => Unreadable::Header,
        Unreadable::Broken => Unreadable::Broken,
    });
    all.into_iter()
}

fn faults() -> impl Iterator<Item = UpstreamFault> {
    let all = samples!(UpstreamFault {
        UpstreamFault::Unreachable => UpstreamFault::Unreachable,
        UpstreamFault::Timeout => UpstreamFault::Timeout,
        UpstreamFault::Broken => UpstreamFault::Broken,
        UpstreamFault::TooLong => UpstreamFault::TooLong,
        UpstreamFault::Undecodable => UpstreamFault::Undecodable,
        UpstreamFault::Redirect => UpstreamFault::Redirect,
        UpstreamFault::Credential => UpstreamFault::Credential,
        UpstreamFault::Quota { .. } => UpstreamFault::Quota { retry_after: None },
        UpstreamFault::Overloaded { .. } => UpstreamFault::Overloaded { retry_after: None },
        UpstreamFault::Failed => UpstreamFault::Failed,
        UpstreamFault::Resting { .. } => UpstreamFault::Resting { wait: std::time::Duration::ZERO },
        UpstreamFault::Full => UpstreamFault::Full,
    });
    all.into_iter()
}

fn bodies() -> Vec<CallError> {
    let all = samples!(BodyProblem {
        BodyProblem::NotUtf8 => BodyProblem::NotUtf8,
        BodyProblem::NotAForm => BodyProblem::NotAForm,
        BodyProblem::NotJson { .. } => BodyProblem::NotJson { line: 7, column: 31 },
        BodyProblem::NotAnObject => BodyProblem::NotAnObject,
        BodyProblem::TooManyParameters { .. } => BodyProblem::TooManyParameters { most: 512 },
    });
    all.into_iter().map(CallError::Body).collect()
}

/// Each problem of a parameter, each type it may have to have, and each thing to do instead.
fn parameters() -> impl Iterator<Item = Sample> {
    let problems = samples!(Problem {
        Problem::NoModel => (Problem::NoModel, "GET /v1/models"),
        Problem::NotAModel => (Problem::NotAModel, "GET /v1/models"),
        Problem::Miswritten => (Problem::Miswritten, ""),
        Problem::Unclear { .. } => (Problem::Unclear { what: "name*" }, "`name*`"),
        Problem::Repeated => (Problem::Repeated, ""),
        Problem::Type(_) => (Problem::Type(Wanted::Bool), "true"),
        Problem::Zero => (Problem::Zero, "1"),
        Problem::Above { .. } => (Problem::Above { most: 128 }, "128"),
        Problem::NotOneOf(_) => (Problem::NotOneOf(&["30m", "12h"]), "30m, 12h"),
        Problem::TooDeep => (Problem::TooDeep, "128"),
        Problem::BrokenText => (Problem::BrokenText, ""),
        Problem::Unsupported(_) => (Problem::Unsupported(Instead::SendPrompt), "`instructions`"),
        Problem::Untranslatable { .. } => (
            Problem::Untranslatable { item: "web_search".to_owned(), to: Endpoint::ChatCompletions },
            "`web_search`",
        ),
    });
    let wanted = samples!(Wanted {
        Wanted::Text => (Wanted::Text, ""),
        Wanted::Bool => (Wanted::Bool, "false"),
        Wanted::Count => (Wanted::Count, "1"),
        Wanted::Object => (Wanted::Object, ""),
        Wanted::List => (Wanted::List, ""),
        Wanted::TextOrList => (Wanted::TextOrList, ""),
        Wanted::TextOrObject => (Wanted::TextOrObject, "`id`"),
        Wanted::Messages => (Wanted::Messages, ""),
        Wanted::Tools => (Wanted::Tools, ""),
        Wanted::Functions => (Wanted::Functions, ""),
    });
    let instead = samples!(Instead {
        Instead::PostResponse => (Instead::PostResponse, "POST /v1/responses"),
        Instead::SendPrompt => (Instead::SendPrompt, "`input`"),
        Instead::SetMaxTokens => (Instead::SetMaxTokens, "`max_tokens`"),
        Instead::OneModel => (Instead::OneModel, "`model`"),
        Instead::SendContent => (Instead::SendContent, ""),
        Instead::OneImageModel => (Instead::OneImageModel, ""),
        Instead::OneAtATime => (Instead::OneAtATime, ""),
    });
    let wanted = wanted.into_iter().map(|(wanted, says)| (Problem::Type(wanted), says));
    let instead = instead
        .into_iter()
        .map(|(instead, says)| (Problem::Unsupported(instead), says));
    problems
        .into_iter()
        .chain(wanted)
        .chain(instead)
        .map(|(problem, says)| {
            let name = "tools[0].container".to_owned();
            sample(
                Refusal::Call(CallError::Param { name, problem }),
                &["`tools[0].container`", says],
            )
        })
}

fn tokens() -> impl Iterator<Item = Sample> {
    let all = samples!(Foreign {
        Foreign::Key(_) => (Foreign::Key("OpenAI"), "OpenAI"),
        Foreign::LikeOpenAi => (Foreign::LikeOpenAi, "OpenAI"),
        Foreign::OpenAiAdmin => (Foreign::OpenAiAdmin, "OpenAI"),
        Foreign::OpenAiSession => (Foreign::OpenAiSession, "OpenAI"),
        Foreign::ChatGptSession => (Foreign::ChatGptSession, "ChatGPT"),
    });
    all.into_iter()
        .map(|(whose, says)| sample(Refusal::ForeignKey(whose), &[says, "sk-gw-"]))
}

fn tools() -> impl Iterator<Item = Sample> {
    let all = samples!(Unquoted {
        Unquoted::NoFee(_) => (Unquoted::NoFee(Class::Container), "container"),
        Unquoted::Untold(_) => (Unquoted::Untold(crate::hold::Form::Stream), ""),
        Unquoted::NoImagePrice(_) => (Unquoted::NoImagePrice("gpt-image-2".into()), "'gpt-image-2'"),
        Unquoted::TooLarge => (Unquoted::TooLarge, ""),
    });
    all.into_iter()
        .map(|(why, says)| sample(Refusal::UnpricedTool(why), &[says]))
}

fn questions() -> impl Iterator<Item = Sample> {
    let (least, most) = ("1".to_owned(), "100".to_owned());
    let all = samples!(Wrong {
        Wrong::Unreadable => (Wrong::Unreadable, vec![]),
        Wrong::Parameters { .. } => (Wrong::Parameters { most: 200 }, vec!["200"]),
        Wrong::TakesNone => (Wrong::TakesNone, vec![]),
        Wrong::Unknown { .. } => (Wrong::Unknown { known: "since, limit".into() }, vec!["since, limit"]),
        Wrong::Twice => (Wrong::Twice, vec![]),
        Wrong::Values { .. } => (Wrong::Values { most: 50 }, vec!["50"]),
        Wrong::NotWithin { .. } => (Wrong::NotWithin { least, most }, vec!["1", "100"]),
        Wrong::NotOneOf { .. } => (Wrong::NotOneOf { words: "day, model".into() }, vec!["day, model"]),
        Wrong::NotATime => (Wrong::NotATime, vec!["2026-11-28T15:04:05Z"]),
        Wrong::NotAPage => (Wrong::NotAPage, vec!["next_page"]),
        Wrong::NotASession => (Wrong::NotASession, vec!["/v1/gateway/sessions"]),
        Wrong::NoStart => (Wrong::NoStart, vec!["Unix"]),
        Wrong::NotBefore { .. } => (Wrong::NotBefore { end: "until" }, vec!["until"]),
        Wrong::NotAfter { .. } => (Wrong::NotAfter { start: "start_time" }, vec!["start_time"]),
        Wrong::NotOneText => (Wrong::NotOneText, vec!["JSON"]),
        Wrong::Bytes { .. } => (Wrong::Bytes { most: 4096 }, vec!["4096"]),
        Wrong::TooMuchMoney => (Wrong::TooMuchMoney, vec![]),
        Wrong::Days { .. } => (Wrong::Days { most: 366 }, vec!["366", "until"]),
    });
    all.into_iter().map(|(why, says)| {
        let param = "since".to_owned();
        sample(Refusal::Question { param, why }, &[&["since"], &says[..]].concat())
    })
}

#[test]
fn every_refusal_is_told_in_every_language_and_names_its_numbers() {
    for Sample { refusal, says } in refusals() {
        let told = Language::ALL.map(|language| message(&refusal, language));
        agree(&told[0], &told[1]);
        for word in says {
            assert!(
                told.iter().all(|message| message.contains(word)),
                "{told:?} does not say {word:?}"
            );
        }
    }
}

#[test]
fn every_refusal_has_codes_that_are_explained_as_they_are_told() {
    let endpoints = [None, Some(Endpoint::ChatCompletions), Some(Endpoint::Responses)];
    let (mut seen, mut free) = (std::collections::BTreeSet::from([Code::ServerError]), 0);
    for Sample { refusal, .. } in refusals() {
        for endpoint in endpoints {
            let told = refusal.told(endpoint);
            for code in [told.code, told.gateway.code] {
                assert!(
                    code.statuses().contains(&told.status),
                    "{refusal:?}: {code} {}",
                    told.status
                );
                seen.insert(code);
            }
            if told.retry_after.is_some() {
                let again = told.gateway.code.again();
                assert!(matches!(again, Again::Later | Again::AfterReceipt), "{refusal:?}");
            }
            assert_eq!(told.promo, promo(&refusal).is_some(), "{refusal:?}");
        }
        free += usize::from(
            message(&refusal, Language::English)
                .to_lowercase()
                .contains("nothing was charged"),
        );
    }
    assert!(free > 10);
    let all: std::collections::BTreeSet<_> = Code::ALL.iter().copied().collect();
    assert_eq!(seen, all, "no code is explained that nobody is told");
}

#[test]
fn every_code_is_explained_in_every_language() {
    for code in Code::ALL {
        let [en, zh] = Language::ALL.map(|language| explain(*code, language));
        for (en, zh) in [
            (en.means, zh.means),
            (en.why, zh.why),
            (en.client, zh.client),
            (en.operator, zh.operator),
        ] {
            agree(en, zh);
            assert!(en.ends_with(['.', '…']) || en.contains("gateway "), "{en}");
        }
        let [en, zh] = Language::ALL.map(|language| {
            [
                charged(code.charged(), language),
                again(code.again(), language),
                statuses(code.statuses(), language),
            ]
        });
        for (en, zh) in en.iter().zip(&zh) {
            for word in constant(en) {
                assert!(zh.contains(word), "{en} / {zh}");
            }
        }
    }
}

#[test]
fn what_codex_shows_is_a_header() {
    let promo = promo(&short(9_000_000_000, Some(4_096))).expect("money that is gone");
    assert!(promo.is_ascii() && !promo.ends_with('.'), "{promo}");
    for word in ["alice", "$9", "$1.25", "4096"] {
        assert!(promo.contains(word), "{promo}");
    }
    let unnamed = Refusal::Short {
        user: "爱丽丝\n".into(),
        limit: Limit::Balance,
        shortfall: Shortfall {
            needed: Usd::from_nanos(9),
            available: Usd::ZERO,
            held: Usd::ZERO,
            largest_limit: None,
        },
    };
    assert!(super::promo(&unnamed).is_some_and(|promo| promo.is_ascii() && !promo.contains('\n')));
}

#[test]
fn the_end_of_a_stream_says_what_is_charged() {
    for text in [broke_off, restarted, unread] {
        agree(&text(Language::English), &text(Language::Chinese));
        assert!(text(Language::English).contains("What was delivered is charged."));
    }
}

#[test]
fn a_command_to_paste_runs_nothing_but_itself() {
    let told = |model: &str| {
        let refusal = Refusal::Unpriced {
            model: model.into(),
            priced_as: model.into(),
            list: "openai".into(),
            nearest: None,
        };
        Language::ALL.map(|language| message(&refusal, language))
    };
    for message in told("ft:gpt-5.5:org") {
        assert!(message.contains(" price set ft:gpt-5.5:org --list"));
    }
    for message in told("x'; rm -rf $HOME") {
        assert!(message.contains(r"price set 'x'\''; rm -rf $HOME' --list"));
    }
}

//! `gateway explain CODE`: what an error means, why it comes, and what to do.

use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, Column, Items};
use super::{Global, language};
use crate::code::{Again, Charged, Code};
use crate::language::Said;
use crate::route::nearest;
use crate::said;
use crate::texts::{self, Explanation, Labels, Language};

/// `gateway explain`
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// A code of an error, `error.code` or `error.gateway.code`, or an exit code; without one, all are listed
    code: Option<String>,
}

/// One code with `--json`; the facts are the same in every language.
#[derive(Serialize)]
struct Explained {
    code: Code,
    language: &'static str,
    /// HTTP statuses; none: it comes inside a stream.
    statuses: &'static [u16],
    charged: Charged,
    again: Again,
    means: &'static str,
    why: &'static str,
    client: &'static str,
    operator: &'static str,
}

impl Explained {
    fn new(code: Code, language: Language) -> Explained {
        let Explanation {
            means,
            why,
            client,
            operator,
        } = texts::explain(code, language);
        Explained {
            code,
            language: language.name(),
            statuses: code.statuses(),
            charged: code.charged(),
            again: code.again(),
            means,
            why,
            client,
            operator,
        }
    }
}

/// Runs the command.
///
/// # Errors
/// No such code (5).
pub fn run(args: &ExplainArgs, global: &Global) -> anyhow::Result<()> {
    let language = language();
    let Some(name) = &args.code else {
        return list(language, global);
    };
    match Exit::ALL.into_iter().find(|exit| (*exit as u8).to_string() == *name) {
        Some(exit) => explain_exit(exit, language, global),
        None => explain(find(name, language)?, language, global),
    }
}

/// An exit code with `--json`.
#[derive(Serialize)]
struct ExitExplained {
    exit: u8,
    language: &'static str,
    means: Said,
}

fn explain_exit(exit: Exit, language: Language, global: &Global) -> anyhow::Result<()> {
    let means = meaning(exit, language);
    if global.json {
        return output::json(&ExitExplained {
            exit: exit as u8,
            language: language.name(),
            means,
        });
    }
    output::print(&format!("{}  {means}\n", exit as u8)).map(drop)
}

/// What an exit code means, and what to do.
fn meaning(exit: Exit, language: Language) -> Said {
    match exit {
        Exit::Failed => said!(
            language,
            en: "The command failed, for a reason of no other code; what it printed says why.",
            zh: "命令失败，原因不属于其他代码；它打印的内容说明了原因。",
        ),
        Exit::Usage => said!(
            language,
            en: "The command line is wrong: look at --help, or correct the value that is named.",
            zh: "命令行有误：请查看 --help，或改正所指明的值。",
        ),
        Exit::Settings => said!(
            language,
            en: "The settings are not valid: gateway config check names the place.",
            zh: "设置无效：gateway config check 会指明位置。",
        ),
        Exit::NotAllowed => said!(
            language,
            en: "A rule forbids it, or a server that runs; nothing was changed.",
            zh: "规则不允许，或有服务器正在运行；没有任何改动。",
        ),
        Exit::NotFound => said!(
            language,
            en: "What was named is not there; the nearest name is printed.",
            zh: "所指明的对象不存在；会打印最接近的名称。",
        ),
        Exit::Exists => said!(
            language,
            en: "What was to be made is there already; nothing was changed.",
            zh: "要创建的对象已经存在；没有任何改动。",
        ),
        Exit::Upstream => said!(
            language,
            en: "A gateway or the network did not answer: gateway doctor says what can be reached.",
            zh: "网关或网络没有响应：gateway doctor 会说明哪些可以连接。",
        ),
        Exit::Books => said!(
            language,
            en: "The books do not balance: keep the database as it is, and restore a backup that does.",
            zh: "账目不平：请保留数据库原样，并恢复一份账目平衡的备份。",
        ),
    }
}

fn find(name: &str, language: Language) -> Result<Code, Failure> {
    Code::named(name).ok_or_else(|| {
        let shown = output::plain(name);
        let what = said!(language, en: "there is no code '{shown}'", zh: "没有代码 '{shown}'");
        let fix = said!(language, en: "see what there is: gateway explain", zh: "查看全部：gateway explain");
        Failure {
            near: nearest(name, Code::ALL.iter().map(|code| code.name())).map(str::to_owned),
            ..Failure::new(Exit::NotFound, what).fix(fix)
        }
    })
}

fn explain(code: Code, language: Language, global: &Global) -> anyhow::Result<()> {
    let explained = Explained::new(code, language);
    if global.json {
        return output::json(&explained);
    }
    let labels = Labels::new(language);
    let lines = [
        (&labels.code, Said::verbatim(code.name())),
        (&labels.status, texts::statuses(code.statuses(), language)),
        (&labels.means, Said::verbatim(explained.means)),
        (&labels.why, Said::verbatim(explained.why)),
        (&labels.charged, texts::charged(code.charged(), language)),
        (&labels.again, texts::again(code.again(), language)),
        (&labels.client, Said::verbatim(explained.client)),
        (&labels.operator, Said::verbatim(explained.operator)),
    ];
    let width = lines.iter().map(|(label, _)| places(label)).max().unwrap_or(0);
    let line = |(label, text): &(&Said, Said)| {
        let blank = " ".repeat(width - places(label));
        format!("{label}{blank}  {text}\n")
    };
    output::print(&lines.iter().map(line).collect::<String>()).map(drop)
}

/// How many places a label takes on a terminal: a Chinese letter two.
fn places(label: &str) -> usize {
    label.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum()
}

fn list(language: Language, global: &Global) -> anyhow::Result<()> {
    let all = Code::ALL.iter().map(|code| Explained::new(*code, language));
    if global.json {
        return output::json(&Items { items: all.collect() });
    }
    let columns = language.of(["code", "means"], ["代码", "含义"]).map(Column::Left);
    let rows = all.map(|one| vec![one.code.name().to_owned(), one.means.to_owned()]);
    output::table(&columns, rows.collect())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_code_that_is_not_one_is_not_found_and_the_nearest_is_named() {
        let failure = find("insuficient_quota", Language::English).expect_err("mistyped");
        assert_eq!(failure.exit, Exit::NotFound);
        assert_eq!(failure.near.as_deref(), Some("insufficient_quota"));
        assert_eq!(
            find("model_not_found", Language::English).ok(),
            Some(Code::ModelNotFound)
        );
    }

    /// The commands in a text: subcommands, then values and flags.
    fn commands(text: &str) -> impl Iterator<Item = Vec<&str>> {
        let ends = |c: char| "。，；：（）:;,()".contains(c);
        let named = text.match_indices("gateway ");
        let commands = named.filter(|(at, _)| !text[..*at].ends_with("the "));
        commands.map(move |(at, gateway)| {
            let rest = &text[at + gateway.len()..];
            rest.split(ends).next().unwrap_or_default().split_whitespace().collect()
        })
    }

    #[test]
    fn every_command_that_is_named_is_one() {
        let mut known = 0;
        for (code, language) in Code::ALL
            .iter()
            .flat_map(|code| Language::ALL.map(|language| (*code, language)))
        {
            for words in commands(texts::explain(code, language).operator) {
                let mut command = &super::super::Cli::command();
                for word in words {
                    let word = word.trim_end_matches('.');
                    if let Some(flag) = word.strip_prefix("--") {
                        let has = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name));
                        assert!(
                            flag == "help" || has(flag),
                            "{code}: --{flag} of {}",
                            command.get_name()
                        );
                    } else if command.has_subcommands() {
                        let found = command.find_subcommand(word);
                        command = found.unwrap_or_else(|| panic!("{code}: {} {word}", command.get_name()));
                        known += 1;
                    }
                }
            }
        }
        assert!(known > 40, "{known}");
    }
}

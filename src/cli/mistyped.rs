//! A command line that cannot be read: clap says it in English, this says it in Chinese.

use std::error::Error;
use std::num::ParseIntError;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{failure, language, output};
use crate::language::{Language, Said};
use crate::route::nearest;
use crate::said;

/// Says what is wrong, or shows the help or the version that was asked for, and gives the exit code.
pub fn tell(mut error: clap::Error) -> u8 {
    if !is_near(&error) {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
    }
    match (language(), told(&error)) {
        (Language::Chinese, Some(told)) => output::tell(&format!("{}{told}\n", failure::label(Language::Chinese))),
        // Who closed the pipe has seen enough.
        _ => error.print().unwrap_or(()),
    }
    u8::try_from(error.exit_code()).unwrap_or(failure::Exit::Failed as u8)
}

/// Whether the flag that clap suggests may be what was meant; it also suggests what merely shares a few letters.
fn is_near(error: &clap::Error) -> bool {
    let (typed, suggested) = (
        text(error, ContextKind::InvalidArg),
        text(error, ContextKind::SuggestedArg),
    );
    suggested.is_empty() || nearest(typed, [suggested]).is_some()
}

fn text(error: &clap::Error, kind: ContextKind) -> &str {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text,
        _ => "",
    }
}

fn texts(error: &clap::Error, kind: ContextKind) -> &[String] {
    match error.get(kind) {
        Some(ContextValue::Strings(texts)) => texts,
        Some(ContextValue::String(text)) => std::slice::from_ref(text),
        _ => &[],
    }
}

fn number(error: &clap::Error, kind: ContextKind) -> isize {
    match error.get(kind) {
        Some(ContextValue::Number(number)) => *number,
        _ => 0,
    }
}

/// All that clap says of an error, in Chinese; `None`: it is none, or of a kind that this clap does not know.
fn told(error: &clap::Error) -> Option<String> {
    let mut told = what(error)?;
    for suggested in [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ] {
        let near = texts(error, suggested).join("'、'");
        if !near.is_empty() {
            told.push_str(&format!("\n\n  提示：是否想写 '{near}'？"));
        }
    }
    if let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) {
        told.push_str(&format!("\n\n{}", usage.to_string().replacen("Usage: ", "用法：", 1)));
    }
    told.push_str("\n\n更多信息请用 '--help' 查看。");
    Some(told)
}

fn what(error: &clap::Error) -> Option<String> {
    let (arg, value) = (
        text(error, ContextKind::InvalidArg),
        text(error, ContextKind::InvalidValue),
    );
    let given = number(error, ContextKind::ActualNumValues);
    let command = text(error, ContextKind::InvalidSubcommand);
    Some(match error.kind() {
        ErrorKind::UnknownArgument => format!("没有参数 '{arg}'"),
        ErrorKind::InvalidSubcommand => format!("没有子命令 '{command}'"),
        ErrorKind::InvalidValue if value.is_empty() => format!("'{arg}' 需要一个值，但没有给出"),
        ErrorKind::InvalidValue => {
            let values = texts(error, ContextKind::ValidValue).join("、");
            match values.is_empty() {
                true => format!("'{arg}' 的值 '{value}' 无效"),
                false => format!("'{arg}' 的值 '{value}' 无效\n  [可选的值：{values}]"),
            }
        }
        ErrorKind::ValueValidation => match error.source() {
            Some(why) => format!("'{arg}' 的值 '{value}' 无效：{}", invalid(why)),
            None => format!("'{arg}' 的值 '{value}' 无效"),
        },
        ErrorKind::NoEquals => format!("给 '{arg}' 赋值要用等号"),
        ErrorKind::TooManyValues => format!("'{arg}' 不再需要值 '{value}'"),
        ErrorKind::TooFewValues => {
            let least = number(error, ContextKind::MinValues);
            format!("'{arg}' 需要 {least} 个值，只给出了 {given} 个")
        }
        ErrorKind::WrongNumberOfValues => {
            let wanted = number(error, ContextKind::ExpectedNumValues);
            format!("'{arg}' 需要 {wanted} 个值，而给出了 {given} 个")
        }
        ErrorKind::ArgumentConflict => {
            let first = if arg.is_empty() { command } else { arg };
            match texts(error, ContextKind::PriorArg) {
                [other] if other == first => format!("参数 '{first}' 不能使用多次"),
                [] => format!("参数 '{first}' 不能与给出的其他参数同时使用"),
                others => format!("参数 '{first}' 不能与 '{}' 同时使用", others.join("'、'")),
            }
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = texts(error, ContextKind::InvalidArg).join("\n  ");
            format!("缺少以下必需的参数：\n  {missing}")
        }
        ErrorKind::MissingSubcommand => {
            let commands = texts(error, ContextKind::ValidSubcommand).join("、");
            format!("'{command}' 需要一个子命令\n  [子命令：{commands}]")
        }
        ErrorKind::InvalidUtf8 => "参数不是有效的 UTF-8".to_owned(),
        // Help and versions are no failures.
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::DisplayVersion
        | ErrorKind::Io
        | ErrorKind::Format => return None,
        _ => return None,
    })
}

/// Why a value is not valid: our own parsers have said it already, the standard library's and clap's of numbers have not.
fn invalid(why: &(dyn Error + 'static)) -> Said {
    let told = why.to_string();
    match (why.is::<ParseIntError>(), told.split_once(" is not in ")) {
        (true, _) => said!(Language::Chinese, en: "write a whole number", zh: "请写一个整数"),
        (false, Some((number, range))) => said!(
            Language::Chinese,
            en: "{number} is not in {range}",
            zh: "{number} 不在 {range} 之内",
        ),
        (false, None) => Said::verbatim(told),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    /// The kinds that a command line of ours can end in, and how.
    const WRONG: [(ErrorKind, &str, &str); 9] = [
        (ErrorKind::UnknownArgument, "user list --jsn", "没有参数 '--jsn'"),
        (ErrorKind::InvalidSubcommand, "usr list", "没有子命令 'usr'"),
        (
            ErrorKind::InvalidValue,
            "usage --by hour",
            "'--by <BY>' 的值 'hour' 无效\n  [可选的值：day、user、key、model、upstream、session、kind、client]",
        ),
        (
            ErrorKind::InvalidValue,
            "usage --by",
            "'--by <BY>' 需要一个值，但没有给出",
        ),
        (
            ErrorKind::ValueValidation,
            "ledger list alice --limit many",
            "'--limit <LIMIT>' 的值 'many' 无效：请写一个整数",
        ),
        (
            ErrorKind::ValueValidation,
            "upstream simulate --chunks 0",
            "'--chunks <N>' 的值 '0' 无效：0 不在 1..",
        ),
        (
            ErrorKind::ArgumentConflict,
            "code list --open --all",
            "参数 '--open' 不能与 '--all' 同时使用",
        ),
        (
            ErrorKind::MissingRequiredArgument,
            "user set alice",
            "缺少以下必需的参数：\n  <--budget ",
        ),
        (
            ErrorKind::ArgumentConflict,
            "user list --config a --config b",
            "不能使用多次",
        ),
    ];

    fn error(line: &str) -> clap::Error {
        Cli::try_parse_from(std::iter::once("gateway").chain(line.split(' '))).expect_err(line)
    }

    #[test]
    fn what_is_wrong_with_a_command_line_is_told_in_chinese() {
        for (kind, line, says) in WRONG {
            let error = error(line);
            assert_eq!(error.kind(), kind, "{line}: {error}");
            let told = told(&error).expect(line);
            assert!(told.contains(says), "{line}: {told}");
            assert!(told.ends_with("更多信息请用 '--help' 查看。"), "{told}");
            for english in ["error:", "Usage:", "tip:", "argument", "value", "provided"] {
                assert!(!told.contains(english), "{line}: {told}");
            }
        }
        let told = told(&error("usr list")).expect("wrong");
        assert!(
            told.contains("提示：是否想写 'upstream'、'user'？") && told.contains("用法：gateway"),
            "{told}"
        );
    }

    #[test]
    fn help_and_versions_are_shown_as_they_are() {
        for line in ["--help", "user", "--version", "help user"] {
            assert_eq!(told(&error(line)), None, "{line}");
        }
    }
}

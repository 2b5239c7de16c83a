//! An object that is translated whole: its members are taken by name, and what is left over is refused, never lost.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::call::{CallError, Member, Problem, Wanted, members};
use crate::translate::{Wire, untranslatable};

/// The members of an object that have not been taken yet.
pub(super) struct Members<'a> {
    /// What stands before their names in errors: nothing, or a path with its dot.
    within: String,
    left: Vec<Member<'a>>,
}

/// A string, its escapes undone.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Members<'a> {
    /// Of the object that `json` is; `path` says where it stands, and is empty for the whole body.
    pub(super) fn of(json: &'a str, path: &str) -> Result<Members<'a>, CallError> {
        let left = members(json).map_err(|error| match path {
            "" => error,
            _ => wrong_type(path, Wanted::Object),
        })?;
        let within = match path {
            "" => String::new(),
            _ => format!("{path}."),
        };
        Ok(Members { within, left })
    }

    /// The path of a member.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.within)
    }

    /// Takes a member's JSON; `null` is none.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a str> {
        let place = self.left.iter().position(|member| member.name == name)?;
        Some(self.left.remove(place).value).filter(|value| *value != "null")
    }

    /// Takes a member to be written as it is.
    pub(super) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        // It is a part of JSON that has been read.
        serde_json::from_str(self.take(name)?).ok()
    }

    /// Takes a member that is a string.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, CallError> {
        let Some(json) = self.take(name) else { return Ok(None) };
        let read = text(json).ok_or_else(|| wrong_type(&self.path(name), Wanted::Text));
        read.map(Some)
    }

    /// Takes a string that has to be there.
    pub(super) fn needed(&mut self, name: &str) -> Result<Cow<'a, str>, CallError> {
        let path = self.path(name);
        self.text(name)?.ok_or_else(|| wrong_type(&path, Wanted::Text))
    }

    /// Takes a member that is an object.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Members<'a>>, CallError> {
        let path = self.path(name);
        self.take(name).map(|json| Members::of(json, &path)).transpose()
    }

    /// Takes an object that has to be there.
    pub(super) fn needed_object(&mut self, name: &str) -> Result<Members<'a>, CallError> {
        let path = self.path(name);
        self.object(name)?.ok_or_else(|| wrong_type(&path, Wanted::Object))
    }

    /// Takes the elements of a list, each with its path; none when the member is not there.
    pub(super) fn list(&mut self, name: &str, wanted: Wanted) -> Result<Vec<(String, &'a str)>, CallError> {
        let path = self.path(name);
        self.take(name).map_or(Ok(Vec::new()), |json| list(json, &path, wanted))
    }

    /// Takes a member if what it says is what happens without it.
    pub(super) fn leave_out(&mut self, name: &str, says_nothing: impl Fn(&Value) -> bool) {
        let says_nothing = |value: &str| serde_json::from_str(value).is_ok_and(|value| says_nothing(&value));
        self.left
            .retain(|member| member.name != name || !says_nothing(member.value));
    }

    /// What stands here cannot be said in the Responses API, because of its kind.
    pub(super) fn untranslatable(&self, kind: &str) -> CallError {
        untranslatable(self.within.trim_end_matches('.'), kind, Wire::Responses)
    }

    /// That everything has been taken.
    pub(super) fn finish(self) -> Result<(), CallError> {
        let left = self.left.iter().find(|member| member.value != "null");
        left.map_or(Ok(()), |member| {
            Err(untranslatable(self.path(&member.name), &*member.name, Wire::Responses))
        })
    }
}

/// The string that `json` is.
pub(super) fn text(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str(json).ok().map(|Text(text)| text)
}

/// The elements of the list that `json` is, each with its path.
pub(super) fn list<'a>(json: &'a str, path: &str, wanted: Wanted) -> Result<Vec<(String, &'a str)>, CallError> {
    let elements: Vec<&RawValue> = serde_json::from_str(json).map_err(|_| wrong_type(path, wanted))?;
    let elements = elements.into_iter().enumerate();
    Ok(elements
        .map(|(index, json)| (format!("{path}[{index}]"), json.get()))
        .collect())
}

/// What stands at `path` is of another type.
pub(super) fn wrong_type(path: &str, wanted: Wanted) -> CallError {
    CallError::Param {
        name: path.to_owned(),
        problem: Problem::Type(wanted),
    }
}

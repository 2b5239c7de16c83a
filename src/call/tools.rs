//! Hosted tools among the tool definitions of a request: what may run upstream for money, and what may not run at all.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::Instead;
use super::fields::{Name, members};
use super::input::{Node, Scope, Walk, decoded, skip};

/// The image model of an `image_generation` tool that names none.
const DEFAULT_IMAGE_MODEL: &str = "gpt-image-2";

impl Walk<'_> {
    /// Walks over a list of definitions.
    pub(super) fn hosted_tools(&mut self, json: &str) -> Result<(), serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        Definition(self).deserialize(&mut deserializer)
    }

    fn note<E: Error>(&mut self, tool: &Tool<'_>) -> Result<(), E> {
        for kind in tool.types.iter().filter_map(|json| decoded(json)) {
            match &*kind {
                "file_search" => self.tools.file_search = true,
                "code_interpreter" => self.tools.container = true,
                "shell" => self.tools.container |= !tool.runs_at_the_client(),
                "mcp" => self.tools.mcp = true,
                "image_generation" => self.note_image_model(tool)?,
                // Moonshot's: the only one that there is searches.
                "builtin_function" => self.tools.web_search = true,
                name if name.starts_with("web_search") => {
                    self.tools.web_search = true;
                    self.tools.web_search_preview |= name.starts_with("web_search_preview");
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn note_image_model<E: Error>(&mut self, tool: &Tool<'_>) -> Result<(), E> {
        let named = tool.models.iter().filter_map(|json| decoded(json));
        let mut models: Vec<String> = named.map(std::borrow::Cow::into_owned).collect();
        if models.is_empty() {
            models.push(DEFAULT_IMAGE_MODEL.to_owned());
        }
        for model in models {
            if self.tools.image_generation.get_or_insert_with(|| model.clone()) != &model {
                return Err(self.refuse(Instead::OneImageModel));
            }
        }
        Ok(())
    }
}

/// The members of a definition that matter, whatever their order and however often they are written.
#[derive(Default)]
struct Tool<'a> {
    types: Vec<&'a str>,
    models: Vec<&'a str>,
    environments: Vec<&'a str>,
}

impl Tool<'_> {
    /// A shell without a word on where it runs is taken to run at the upstream, for money.
    fn runs_at_the_client(&self) -> bool {
        let [environment] = self.environments[..] else {
            return false;
        };
        let Ok(members) = members(environment) else {
            return false;
        };
        let mut types = members.iter().filter(|member| member.name == "type").peekable();
        types.peek().is_some() && types.all(|member| decoded(member.value).is_some_and(|kind| kind == "local"))
    }
}

/// A definition, or a list of them.
struct Definition<'a, 'w>(&'a mut Walk<'w>);

impl<'de> DeserializeSeed<'de> for Definition<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Definition<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tools")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut index = 0;
        loop {
            let element = list.next_element_seed(Definition(self.0));
            match element.map_err(|error| self.0.at(format_args!("[{index}]"), error))? {
                Some(()) => index += 1,
                None => return Ok(()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut tool = Tool::default();
        while let Some(Name(name)) = map.next_key()? {
            let value = self.0.tool_member(&name, &mut map, &mut tool);
            value.map_err(|error| self.0.at(&name, error))?;
        }
        self.0.note(&tool)
    }
}

impl Walk<'_> {
    fn tool_member<'de, A>(&mut self, name: &str, map: &mut A, tool: &mut Tool<'de>) -> Result<(), A::Error>
    where
        A: MapAccess<'de>,
    {
        let scope = match name {
            "type" => return keep(map, &mut tool.types),
            "model" => return keep(map, &mut tool.models),
            "environment" => {
                let json = map.next_value::<&'de RawValue>()?.get();
                tool.environments.push(json);
                return self.json(json, Scope::Setting).map_err(A::Error::custom);
            }
            "tools" => return map.next_value_seed(Definition(self)),
            "container" => Scope::Container,
            "input_image_mask" => Scope::Setting,
            "vector_store_ids" => Scope::ServerState,
            _ => return skip(map),
        };
        map.next_value_seed(Node { walk: self, scope })
    }
}

fn keep<'de, A: MapAccess<'de>>(map: &mut A, kept: &mut Vec<&'de str>) -> Result<(), A::Error> {
    kept.push(map.next_value::<&'de RawValue>()?.get());
    Ok(())
}

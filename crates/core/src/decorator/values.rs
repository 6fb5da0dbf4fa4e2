//! Reads the attributes of a compute layer's decorator: attribute first, then configuration, then
//! the default of its table; mistakes are sentences that begin with the attribute. Which attributes
//! there are is in the table of each layer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{AttributeSpec, number};

/// A file system in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// MiB.
    pub size: u64,
    pub path: String,
    pub is_tempdir: bool,
}

/// Attribute first, then configuration, then the default of the table.
pub(super) struct Values<'a> {
    pub attributes: &'static [AttributeSpec],
    pub given: &'a Map<String, Value>,
    pub configured: &'a BTreeMap<String, String>,
}

impl Values<'_> {
    pub fn spec(&self, name: &str) -> Option<&'static AttributeSpec> {
        self.attributes.iter().find(|a| a.name == name)
    }

    pub fn default(&self, name: &str) -> Value {
        self.spec(name).and_then(|a| serde_json::from_str(a.default).ok()).unwrap_or_default()
    }

    pub fn configuration(&self, name: &str) -> Option<Value> {
        let text = self.configured.get(self.spec(name)?.configured?)?;
        (!text.trim().is_empty()).then(|| Value::from(text.trim()))
    }

    /// The attribute itself where it says something other than the default.
    pub fn value(&self, name: &str) -> Option<Value> {
        let default = self.default(name);
        let own = self.given.get(name).filter(|value| !value.is_null() && value.as_str() != Some(""));
        own.filter(|value| **value != default).cloned().or_else(|| self.configuration(name)).or_else(|| own.cloned())
    }

    pub fn amount(&self, name: &str) -> Result<f64, String> {
        let value = self.value(name).unwrap_or_else(|| self.default(name));
        number(&value).filter(|n| *n > 0.0).ok_or_else(|| format!("`{name}` must be a number above 0, not {value}"))
    }

    pub fn whole(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match number(&value).filter(|n| n.fract() == 0.0 && *n >= 0.0) {
            Some(number) => Ok(Some(number as u64)),
            None => Err(format!("`{name}` must be a whole number, 0 or more, not {value}")),
        }
    }

    pub fn positive(&self, name: &str) -> Result<Option<u64>, String> {
        match self.whole(name) {
            Ok(Some(0)) | Err(_) => {
                let value = self.value(name).unwrap_or_default();
                Err(format!("`{name}` must be a whole number above 0, not {value}"))
            }
            found => found,
        }
    }

    pub fn text(&self, name: &str) -> Result<Option<String>, String> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(format!("`{name}` must be a text, not {other}")),
        }
    }

    pub fn flag(&self, name: &str) -> Result<bool, String> {
        let value = self.value(name).unwrap_or_else(|| self.default(name));
        match &value {
            Value::Bool(flag) => Ok(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Value::Null => Ok(false),
            other => Err(format!("`{name}` must be true or false, not {other}")),
        }
    }

    pub fn choice(&self, name: &str, choices: &[&str]) -> Result<Option<String>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let known = choices.iter().find(|choice| choice.eq_ignore_ascii_case(&text));
        known.map(|choice| Some((*choice).to_owned())).ok_or_else(|| {
            let (last, others) = choices.split_last().expect("there are choices");
            format!("`{name}` must be {} or {last}, not `{text}`", others.join(", "))
        })
    }

    /// A list, or its text: JSON or names with commas between them.
    pub fn names(&self, name: &str) -> Result<Vec<String>, String> {
        let Some(value) = self.value(name).map(unquoted) else { return Ok(Vec::new()) };
        let wrong = || format!("`{name}` must be a list of names, not {value}");
        match &value {
            Value::String(text) => {
                Ok(text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(str::to_owned).collect())
            }
            Value::Array(list) => list.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
            _ => Err(wrong()),
        }
    }

    /// A dictionary, or its text: JSON or `name=value` with commas between them.
    pub fn pairs(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        self.value(name).map_or_else(|| Ok(BTreeMap::new()), |value| pairs_of(name, value))
    }

    /// Attribute and configuration together, the attribute winning.
    pub fn merged_pairs(&self, name: &str) -> Result<BTreeMap<String, String>, String> {
        let mut pairs = match self.configuration(name) {
            Some(value) => pairs_of(name, value)?,
            None => BTreeMap::new(),
        };
        pairs.extend(self.pairs(name)?);
        Ok(pairs)
    }

    pub fn object(&self, name: &str) -> Result<Option<Value>, String> {
        match self.value(name).map(unquoted) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(value)),
            Some(other) => Err(format!("`{name}` must be a dictionary, not {other}")),
        }
    }

    /// The image, in the registry that the configuration names where the image names none.
    pub fn image(&self, registry: &str) -> Result<Option<String>, String> {
        let registry = self.configured.get(registry).filter(|registry| !registry.is_empty());
        let placed = |image: String| registry.map_or_else(|| image.clone(), |registry| in_registry(&image, registry));
        Ok(self.text("image")?.map(placed))
    }

    pub fn tmpfs(&self, memory: f64) -> Result<Option<Tmpfs>, String> {
        let size = self.positive("tmpfs_size")?;
        if !self.flag("use_tmpfs")? && size.is_none() {
            return Ok(None);
        }
        let path = self.text("tmpfs_path")?.unwrap_or_else(|| "/metaflow_temp".to_owned());
        if !path.starts_with('/') {
            return Err(format!("`tmpfs_path` must begin with `/`, not `{path}`"));
        }
        let size = size.unwrap_or((memory / 2.0) as u64);
        Ok(Some(Tmpfs { size, path, is_tempdir: self.flag("tmpfs_tempdir")? }))
    }
}

/// The image in that registry, unless it names one.
pub fn in_registry(image: &str, registry: &str) -> String {
    let first = image.split_once('/').map_or("", |(first, _)| first);
    if first.contains(['.', ':']) || first == "localhost" {
        return image.to_owned();
    }
    format!("{}/{image}", registry.trim_end_matches('/'))
}

/// A text that is JSON, as what it says.
pub(super) fn unquoted(value: Value) -> Value {
    match &value {
        Value::String(text) if text.trim_start().starts_with(['[', '{']) => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

fn pairs_of(name: &str, value: Value) -> Result<BTreeMap<String, String>, String> {
    let value = unquoted(value);
    let wrong = || format!("`{name}` must be a dictionary of names and values (or `name=value,…`), not {value}");
    match &value {
        Value::Object(object) => {
            Ok(object.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), super::as_text(v))).collect())
        }
        Value::String(text) => text
            .split(',')
            .filter(|part| !part.trim().is_empty())
            .map(|part| {
                let (key, value) = part.split_once('=').ok_or_else(wrong)?;
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            })
            .collect(),
        _ => Err(wrong()),
    }
}

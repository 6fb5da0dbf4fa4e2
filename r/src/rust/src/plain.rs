//! R values as JSON that every language reads, with a tag from which R has them back exactly:
//! atomic vectors and lists, named or not, without other attributes.
//!
//! A tag is `"d" "i" "l" "c"` (double, integer, logical, character; in capitals when the vector has
//! names), `"n"` (NULL), or `{"list": T}` / `{"named": T}` with one tag for all elements or an array
//! of tags. A vector of length one is a scalar in JSON.

use extendr_api::prelude::*;
use serde_json::{Map, Number, Value, json};

use crate::sexp;

const DEEPEST: usize = 100;
/// SEXPTYPE numbers.
const LOGICAL: u32 = 10;
const INTEGER: u32 = 13;
const DOUBLE: u32 = 14;
const CHARACTER: u32 = 16;
const LIST: u32 = 19;
const NULL_TYPE: u32 = 0;

/// The value and its tag; `None` when it is not plain, or has more than `limit` elements in all.
pub fn encode(value: &Robj, limit: usize) -> Option<(Value, Value)> {
    let mut left = limit;
    node(value, 0, &mut left)
}

fn node(value: &Robj, depth: usize, left: &mut usize) -> Option<(Value, Value)> {
    *left = left.checked_sub(sexp::length(value) + 1)?;
    if depth > DEEPEST || !sexp::is_bare(value) {
        return None;
    }
    match sexp::kind(value) {
        NULL_TYPE => Some((Value::Null, json!("n"))),
        LIST => list(value, depth, left),
        _ => atomic(value),
    }
}

fn atomic(value: &Robj) -> Option<(Value, Value)> {
    let keys = sexp::keys(value)?;
    let (kind, items): (char, Vec<Value>) = match sexp::kind(value) {
        LOGICAL => {
            let item = |item: &Rbool| if item.is_na() { Value::Null } else { json!(item.is_true()) };
            ('l', value.as_logical_slice()?.iter().map(item).collect())
        }
        INTEGER => {
            let item = |item: &i32| if *item == i32::MIN { Value::Null } else { json!(item) };
            ('i', value.as_integer_slice()?.iter().map(item).collect())
        }
        DOUBLE => ('d', value.as_real_slice()?.iter().map(|item| double(*item)).collect::<Option<_>>()?),
        CHARACTER => {
            let item = |index| sexp::text_at(value, index).map(|text| text.map_or(Value::Null, Value::String));
            ('c', (0..sexp::length(value)).map(item).collect::<Option<_>>()?)
        }
        _ => return None,
    };
    Some(match keys {
        None if items.len() == 1 => (items.into_iter().next()?, json!(kind)),
        None => (Value::Array(items), json!(kind)),
        Some(keys) => (Value::Object(keys.into_iter().zip(items).collect()), json!(kind.to_ascii_uppercase())),
    })
}

fn double(number: f64) -> Option<Value> {
    if sexp::is_na(number) { Some(Value::Null) } else { Number::from_f64(number).map(Value::Number) }
}

fn list(value: &Robj, depth: usize, left: &mut usize) -> Option<(Value, Value)> {
    let keys = sexp::keys(value)?;
    let mut items = Vec::new();
    let mut tags = Vec::new();
    for (_, item) in value.as_list()?.iter() {
        let (item, tag) = node(&item, depth + 1, left)?;
        items.push(item);
        tags.push(tag);
    }
    let tags = match tags.split_first() {
        Some((first, rest)) if rest.iter().all(|tag| tag == first) => first.clone(),
        _ => Value::Array(tags),
    };
    Some(match keys {
        None => (Value::Array(items), json!({"list": tags})),
        Some(keys) => (Value::Object(keys.into_iter().zip(items).collect()), json!({"named": tags})),
    })
}

/// A value that was written with a tag.
pub fn decode(value: &Value, tag: &Value) -> Option<Robj> {
    if let Some(kind) = tag.as_str() {
        return tagged_vector(value, kind);
    }
    if let Some(tags) = tag.get("named") {
        let entries = value.as_object()?;
        let items = entries.values().enumerate().map(|(index, item)| decode(item, tag_at(tags, index)?));
        let values: List = items.collect::<Option<Vec<Robj>>>().map(List::from_values)?;
        let keys: Vec<String> = entries.keys().cloned().collect();
        return Some(sexp::set_names(values.into(), &keys));
    }
    let tags = tag.get("list")?;
    let items = value.as_array()?.iter().enumerate().map(|(index, item)| decode(item, tag_at(tags, index)?));
    Some(List::from_values(items.collect::<Option<Vec<Robj>>>()?).into())
}

fn tag_at(tags: &Value, index: usize) -> Option<&Value> {
    match tags {
        Value::Array(tags) => tags.get(index),
        one => Some(one),
    }
}

fn tagged_vector(value: &Value, kind: &str) -> Option<Robj> {
    if kind == "n" {
        return Some(().into());
    }
    let named = kind.chars().all(|letter| letter.is_ascii_uppercase());
    let items: Vec<&Value> = match value {
        Value::Object(entries) if named => entries.values().collect(),
        Value::Array(items) => items.iter().collect(),
        scalar => vec![scalar],
    };
    let vector = vector_of(&items, kind.to_ascii_lowercase().chars().next()?)?;
    match value {
        Value::Object(entries) if named => {
            let keys: Vec<String> = entries.keys().cloned().collect();
            Some(sexp::set_names(vector, &keys))
        }
        _ => Some(vector),
    }
}

fn vector_of(items: &[&Value], kind: char) -> Option<Robj> {
    Some(match kind {
        'l' => items.iter().map(|item| item.as_bool().map_or_else(Rbool::na, Rbool::from)).collect::<Logicals>().into(),
        'i' => {
            let item = |item: &&Value| item.as_i64().and_then(|number| i32::try_from(number).ok());
            items.iter().map(|each| item(each).map_or_else(Rint::na, Rint::from)).collect::<Integers>().into()
        }
        'd' => items.iter().map(|item| item.as_f64().map_or_else(Rfloat::na, Rfloat::from)).collect::<Doubles>().into(),
        'c' => sexp::texts(&items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Vec<_>>()),
        _ => return None,
    })
}

/// A value of another language: arrays of scalars of one type become vectors, others lists.
pub fn simplify(value: &Value) -> Robj {
    match value {
        Value::Array(items) if !items.is_empty() => match common_kind(items) {
            Some(kind) => vector_of(&items.iter().collect::<Vec<_>>(), kind).unwrap_or_else(|| listed(value, simplify)),
            None => listed(value, simplify),
        },
        other => listed(other, simplify),
    }
}

fn common_kind(items: &[Value]) -> Option<char> {
    let mut common = scalar_kind(items.first()?)?;
    for item in items {
        common = match (common, scalar_kind(item)?) {
            (one, other) if one == other => one,
            ('i' | 'd', 'i' | 'd') => 'd',
            _ => return None,
        };
    }
    Some(common)
}

fn scalar_kind(value: &Value) -> Option<char> {
    match value {
        Value::Bool(_) => Some('l'),
        Value::Number(number) => Some(if is_r_integer(number) { 'i' } else { 'd' }),
        Value::String(_) => Some('c'),
        _ => None,
    }
}

/// Integers of more than 32 bits are doubles in R.
fn is_r_integer(number: &Number) -> bool {
    number.as_i64().is_some_and(|number| i32::try_from(number).is_ok_and(|number| number != i32::MIN))
}

/// JSON as R has it at its plainest: every array a list.
pub fn as_lists(value: &Value) -> Robj {
    listed(value, as_lists)
}

fn listed(value: &Value, inner: fn(&Value) -> Robj) -> Robj {
    match value {
        Value::Null => ().into(),
        Value::Array(items) => List::from_values(items.iter().map(inner)).into(),
        Value::Object(entries) => {
            let keys: Vec<String> = entries.keys().cloned().collect();
            sexp::set_names(List::from_values(entries.values().map(inner)).into(), &keys)
        }
        scalar => scalar_kind(scalar).and_then(|kind| vector_of(&[scalar], kind)).unwrap_or_else(|| ().into()),
    }
}

/// An R value as JSON for a message of ours: scalars for vectors of length one, a list's names as
/// keys. `None` for what JSON has no word for.
pub fn message(value: &Robj) -> Option<Value> {
    if sexp::kind(value) == LIST {
        let items = value.as_list()?.iter().map(|(_, item)| message(&item)).collect::<Option<Vec<_>>>()?;
        return Some(match sexp::keys(value)? {
            None => Value::Array(items),
            Some(keys) => Value::Object(keys.into_iter().zip(items).collect::<Map<_, _>>()),
        });
    }
    match sexp::kind(value) {
        NULL_TYPE => Some(Value::Null),
        CHARACTER if sexp::keys(value)?.is_none() => Some(shown_texts(value)),
        _ => atomic(value).map(|(json, _)| json),
    }
}

/// Texts for people: what is not UTF-8 is marked instead of refused.
fn shown_texts(value: &Robj) -> Value {
    let item = |index| sexp::shown_text_at(value, index).map_or(Value::Null, Value::String);
    let mut items: Vec<Value> = (0..sexp::length(value)).map(item).collect();
    if items.len() == 1 { items.remove(0) } else { Value::Array(items) }
}

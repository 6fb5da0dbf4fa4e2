//! Plain values as JSON, only where that round-trips exactly: exact types, str keys, finite
//! floats, integers within 64 bits, no lone surrogates, no container that occurs twice.

use std::collections::HashSet;
use std::fmt;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// Well below what a reader's recursion takes.
const DEEPEST: usize = 100;

/// JSON text of a plain value, or `None` when it is not one or longer than `limit`.
#[pyfunction]
pub fn encode_json<'py>(value: &Bound<'py, PyAny>, limit: usize) -> PyResult<Option<Bound<'py, PyBytes>>> {
    Ok(encode(value, limit)?.map(|text| PyBytes::new(value.py(), &text)))
}

/// The value of JSON text.
#[pyfunction]
pub fn decode_json<'py>(py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    decode(py, text)
}

pub fn encode(value: &Bound<'_, PyAny>, limit: usize) -> PyResult<Option<Vec<u8>>> {
    let mut encoder = Encoder { text: Vec::with_capacity(64), limit, seen: HashSet::new() };
    Ok(encoder.value(value, 0)?.then_some(encoder.text))
}

struct Encoder {
    text: Vec<u8>,
    limit: usize,
    /// Addresses of the containers met so far.
    seen: HashSet<usize>,
}

impl Encoder {
    /// `false`: this is not for JSON.
    fn value(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> PyResult<bool> {
        if self.text.len() > self.limit || depth > DEEPEST {
            return Ok(false);
        }
        let encoded = if value.is_none() {
            self.text.extend_from_slice(b"null");
            true
        } else if let Ok(text) = value.cast_exact::<PyString>() {
            self.string(text)
        } else if let Ok(flag) = value.cast_exact::<PyBool>() {
            self.text.extend_from_slice(if flag.is_true() { b"true" } else { b"false" });
            true
        } else if let Ok(number) = value.cast_exact::<PyInt>() {
            self.integer(number)
        } else if let Ok(number) = value.cast_exact::<PyFloat>() {
            self.float(number.extract()?)
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            self.list(list, depth)?
        } else if let Ok(dict) = value.cast_exact::<PyDict>() {
            self.dict(dict, depth)?
        } else {
            false
        };
        Ok(encoded && self.text.len() <= self.limit)
    }

    fn string(&mut self, text: &Bound<'_, PyString>) -> bool {
        // Fails for lone surrogates.
        let Ok(text) = text.to_cow() else { return false };
        text.len() <= self.limit && serde_json::to_writer(&mut self.text, text.as_ref()).is_ok()
    }

    fn integer(&mut self, number: &Bound<'_, PyInt>) -> bool {
        number.extract::<i64>().is_ok_and(|number| serde_json::to_writer(&mut self.text, &number).is_ok())
    }

    fn float(&mut self, number: f64) -> bool {
        number.is_finite() && serde_json::to_writer(&mut self.text, &number).is_ok()
    }

    fn list(&mut self, list: &Bound<'_, PyList>, depth: usize) -> PyResult<bool> {
        if !self.seen.insert(list.as_ptr() as usize) {
            return Ok(false);
        }
        self.text.push(b'[');
        for (index, item) in list.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            if !self.value(&item, depth + 1)? {
                return Ok(false);
            }
        }
        self.text.push(b']');
        Ok(true)
    }

    fn dict(&mut self, dict: &Bound<'_, PyDict>, depth: usize) -> PyResult<bool> {
        if !self.seen.insert(dict.as_ptr() as usize) {
            return Ok(false);
        }
        self.text.push(b'{');
        for (index, (key, item)) in dict.iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            let Ok(key) = key.cast_exact::<PyString>() else { return Ok(false) };
            if !self.string(key) {
                return Ok(false);
            }
            self.text.push(b':');
            if !self.value(&item, depth + 1)? {
                return Ok(false);
            }
        }
        self.text.push(b'}');
        Ok(true)
    }
}

pub fn decode<'py>(py: Python<'py>, text: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    Decoder { py }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| PyValueError::new_err(format!("not valid JSON: {error}")))
}

#[derive(Clone, Copy)]
struct Decoder<'py> {
    py: Python<'py>,
}

impl<'py> Decoder<'py> {
    fn object<E: serde::de::Error>(self, value: impl IntoPyObjectExt<'py>) -> Result<Bound<'py, PyAny>, E> {
        value.into_bound_py_any(self.py).map_err(E::custom)
    }
}

impl<'py, 'de> DeserializeSeed<'de> for Decoder<'py> {
    type Value = Bound<'py, PyAny>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'py, 'de> Visitor<'de> for Decoder<'py> {
    type Value = Bound<'py, PyAny>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(self.py.None().into_bound(self.py))
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Self::Value, E> {
        self.object(value)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
        self.object(value)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
        self.object(value)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        self.object(value)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Self::Value, E> {
        self.object(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let list = PyList::empty(self.py);
        while let Some(item) = items.next_element_seed(self)? {
            list.append(item).map_err(serde::de::Error::custom)?;
        }
        Ok(list.into_any())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let dict = PyDict::new(self.py);
        while let Some(key) = entries.next_key_seed(self)? {
            let value = entries.next_value_seed(self)?;
            dict.set_item(key, value).map_err(serde::de::Error::custom)?;
        }
        Ok(dict.into_any())
    }
}

/// A `serde_json::Value` as a Python object.
pub fn value_to_python<'py>(py: Python<'py>, value: &serde_json::Value) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_vec(value).map_err(|error| PyValueError::new_err(error.to_string()))?;
    decode(py, &text)
}

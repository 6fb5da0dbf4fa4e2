//! Large vectors, matrices and data frames: each column is a buffer of its own, which goes from R's
//! memory to hash and file without a copy. The stream before the buffers is a pickle that calls
//! `metaflow._from_r.restore`, so Python has numpy arrays and data frames; R itself reads the tag.

use extendr_api::prelude::*;
use serde_json::{Value, json};

use crate::sexp;

/// A value as its description and its buffers.
pub struct Columnar {
    pub header: Value,
    pub buffers: Vec<Buffer>,
}

pub enum Buffer {
    /// Memory of an R value that the caller keeps alive.
    Borrowed(*const u8, usize),
    Owned(Vec<u8>),
}

impl Buffer {
    pub fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: see `Borrowed`; R does not move memory.
            Self::Borrowed(start, length) => unsafe { std::slice::from_raw_parts(*start, *length) },
            Self::Owned(bytes) => bytes,
        }
    }

    fn of<T>(slice: &[T]) -> Self {
        Self::Borrowed(slice.as_ptr().cast(), std::mem::size_of_val(slice))
    }
}

/// `None` for what is neither a bare vector (or matrix) nor a data frame of known columns.
pub fn encode(value: &Robj) -> Option<Columnar> {
    let attributes = sexp::attribute_names(value);
    let attributes: Vec<&str> = attributes.iter().map(String::as_str).collect();
    if attributes.contains(&"class") {
        return frame(value, &attributes).or_else(|| classed_vector(value));
    }
    if !attributes.iter().all(|name| *name == "dim") || value.is_list() {
        return None;
    }
    let mut buffers = Vec::new();
    let mut column = column(value, &mut buffers)?;
    if let Some(dim) = value.get_attrib("dim").and_then(|dim| dim.as_integer_vector()) {
        column["dim"] = json!(dim);
    }
    Some(Columnar { header: json!({"vector": column}), buffers })
}

/// A factor, dates or times.
fn classed_vector(value: &Robj) -> Option<Columnar> {
    let mut buffers = Vec::new();
    let column = classed_column(value, &mut buffers)?;
    Some(Columnar { header: json!({"vector": column}), buffers })
}

fn frame(value: &Robj, attributes: &[&str]) -> Option<Columnar> {
    let class = value.get_attrib("class")?.as_string_vector()?;
    let known = [vec!["data.frame"], vec!["tbl_df", "tbl", "data.frame"]];
    if !known.iter().any(|each| *each == class) || attributes.len() != 3 || !value.is_list() {
        return None;
    }
    let names = sexp::keys(value)??;
    let row_names = value.get_attrib("row.names")?;
    // Automatic row names show as integers.
    let rows = sexp::length(&row_names);
    let mut buffers = Vec::new();
    let mut columns = Vec::new();
    for (_, item) in value.as_list()?.iter() {
        if sexp::length(&item) != rows {
            return None;
        }
        columns.push(classed_column(&item, &mut buffers)?);
    }
    let row_names: Value = match row_names.as_str_vector() {
        Some(names) if sexp::kind(&row_names) == 16 => json!(names),
        _ if row_names.as_integer_slice()?.iter().enumerate().all(|(i, n)| *n == i as i32 + 1) => Value::Null,
        // Those that a filter left.
        _ => {
            let numbers = row_names.as_integer_slice()?.iter().flat_map(|number| number.to_le_bytes());
            buffers.push(Buffer::Owned(numbers.collect()));
            json!({"kind": "i", "length": rows})
        }
    };
    let header = json!({"frame": {"rows": rows, "names": names, "columns": columns, "row_names": row_names,
        "class": class}});
    Some(Columnar { header, buffers })
}

fn classed_column(value: &Robj, buffers: &mut Vec<Buffer>) -> Option<Value> {
    let attributes = sexp::attribute_names(value);
    let mut attributes: Vec<&str> = attributes.iter().map(String::as_str).collect();
    attributes.sort_unstable();
    let class = value.get_attrib("class").and_then(|class| class.as_string_vector()).unwrap_or_default();
    let class: Vec<&str> = class.iter().map(String::as_str).collect();
    match (attributes.as_slice(), class.as_slice()) {
        ([], _) => column(value, buffers),
        (["class", "levels"], ["factor"] | ["ordered", "factor"]) => {
            let mut column = column(value, buffers)?;
            column["levels"] = json!(value.get_attrib("levels")?.as_string_vector()?);
            column["ordered"] = json!(class.len() == 2);
            Some(column)
        }
        (["class"], ["Date"]) | (["class"] | ["class", "tzone"], ["POSIXct", "POSIXt"]) => {
            let mut column = column(value, buffers)?;
            column["class"] = json!(class);
            if let Some(zone) = value.get_attrib("tzone") {
                column["zone"] = json!(zone.as_str()?);
            }
            Some(column)
        }
        _ => None,
    }
}

fn column(value: &Robj, buffers: &mut Vec<Buffer>) -> Option<Value> {
    let kind = match sexp::kind(value) {
        10 => {
            buffers.push(Buffer::of(value.as_logical_slice()?));
            "l"
        }
        13 => {
            buffers.push(Buffer::of(value.as_integer_slice()?));
            "i"
        }
        14 => {
            buffers.push(Buffer::of(value.as_real_slice()?));
            "d"
        }
        16 => {
            let (lengths, bytes) = texts(value)?;
            buffers.push(Buffer::Owned(lengths));
            buffers.push(Buffer::Owned(bytes));
            "c"
        }
        _ => return None,
    };
    Some(json!({"kind": kind, "length": sexp::length(value)}))
}

/// Lengths (i32, -1 for NA) and all bytes of a character vector.
fn texts(value: &Robj) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut lengths = Vec::with_capacity(sexp::length(value) * 4);
    let mut bytes = Vec::new();
    for index in 0..sexp::length(value) {
        let text = sexp::text_at(value, index)?;
        let length = text.as_ref().map_or(Some(-1), |text| i32::try_from(text.len()).ok())?;
        lengths.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(text.unwrap_or_default().as_bytes());
    }
    Some((lengths, bytes))
}

/// The pickle: `metaflow._from_r.restore(header, (buffer, …))`.
pub fn stream(header: &str, buffers: usize) -> Vec<u8> {
    let mut stream = b"\x80\x05cmetaflow._from_r\nrestore\n(".to_vec();
    stream.push(b'X');
    stream.extend_from_slice(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
    stream.extend_from_slice(header.as_bytes());
    stream.push(b'(');
    stream.extend(std::iter::repeat_n(b'\x97', buffers));
    stream.extend_from_slice(b"ttR.");
    stream
}

/// Takes columns out of the buffers one after the other.
struct Source<'a> {
    bytes: &'a [u8],
    buffers: std::slice::Iter<'a, (u64, u64)>,
}

impl<'a> Source<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (start, length) = *self.buffers.next()?;
        self.bytes.get(start as usize..(start + length) as usize)
    }
}

/// A value from its tag and its bytes; `None` when they do not fit each other.
pub fn decode(header: &Value, bytes: &[u8], buffers: &[(u64, u64)]) -> Option<Robj> {
    let mut source = Source { bytes, buffers: buffers.iter() };
    if let Some(vector) = header.get("vector") {
        let mut value = read_column(vector, &mut source)?;
        if let Some(dim) = vector.get("dim") {
            let dim: Vec<i32> = serde_json::from_value(dim.clone()).ok()?;
            value.set_attrib("dim", dim).ok()?;
        }
        return Some(value);
    }
    let frame = header.get("frame")?;
    let columns = frame["columns"].as_array()?.iter().map(|column| read_column(column, &mut source));
    let mut value: Robj = List::from_values(columns.collect::<Option<Vec<Robj>>>()?).into();
    let names: Vec<String> = serde_json::from_value(frame["names"].clone()).ok()?;
    value = sexp::set_names(value, &names);
    let row_names: Robj = match &frame["row_names"] {
        // R's short form of 1:n.
        Value::Null => vec![i32::MIN, -(frame["rows"].as_i64()? as i32)].into(),
        Value::Object(_) => read_column(&frame["row_names"], &mut source)?,
        names => serde_json::from_value::<Vec<String>>(names.clone()).ok()?.into(),
    };
    value.set_attrib("row.names", row_names).ok()?;
    let class: Vec<String> = serde_json::from_value(frame["class"].clone()).ok()?;
    value.set_attrib("class", class).ok()?;
    Some(value)
}

fn read_column(column: &Value, source: &mut Source<'_>) -> Option<Robj> {
    let length = column["length"].as_u64()? as usize;
    let mut value: Robj = match column["kind"].as_str()? {
        "d" => {
            let mut vector = Doubles::new(length).into();
            fill(&mut vector, source.next()?, length * 8)?;
            vector
        }
        "i" => {
            let mut vector = Integers::new(length).into();
            fill(&mut vector, source.next()?, length * 4)?;
            vector
        }
        "l" => {
            let mut vector = Logicals::new(length).into();
            fill(&mut vector, source.next()?, length * 4)?;
            vector
        }
        "c" => read_texts(source.next()?, source.next()?)?,
        _ => return None,
    };
    if let Some(levels) = column.get("levels") {
        value.set_attrib("levels", serde_json::from_value::<Vec<String>>(levels.clone()).ok()?).ok()?;
        let class: &[&str] = if column["ordered"] == true { &["ordered", "factor"] } else { &["factor"] };
        value.set_attrib("class", class).ok()?;
    }
    if let Some(class) = column.get("class") {
        value.set_attrib("class", serde_json::from_value::<Vec<String>>(class.clone()).ok()?).ok()?;
    }
    if let Some(zone) = column.get("zone").and_then(Value::as_str) {
        value.set_attrib("tzone", zone).ok()?;
    }
    Some(value)
}

/// Copies a column into a vector of as many bytes.
fn fill(vector: &mut Robj, bytes: &[u8], wanted: usize) -> Option<()> {
    if bytes.len() != wanted {
        return None;
    }
    // SAFETY: the vector was just made with room for exactly so many bytes, and is ours alone.
    unsafe {
        let target = extendr_ffi::DATAPTR(vector.get_mut()).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, wanted);
    }
    Some(())
}

fn read_texts(lengths: &[u8], bytes: &[u8]) -> Option<Robj> {
    let mut rest = bytes;
    let mut values = Vec::with_capacity(lengths.len() / 4);
    for length in lengths.as_chunks::<4>().0 {
        let length = i32::from_le_bytes(*length);
        if length < 0 {
            values.push(None);
            continue;
        }
        let (text, after) = rest.split_at_checked(length as usize)?;
        rest = after;
        values.push(Some(std::str::from_utf8(text).ok()?.to_owned()));
    }
    Some(sexp::texts(&values))
}

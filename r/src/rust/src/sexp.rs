//! Looking into R values: attributes, names and texts, without evaluating R code.

use std::ffi::CStr;

use extendr_api::prelude::*;
use extendr_ffi::{R_NaString, Rf_getAttrib, SEXP, STRING_ELT, TYPEOF, XLENGTH};

#[allow(improper_ctypes, reason = "extendr-ffi declares R's values so")]
unsafe extern "C" {
    fn ATTRIB(value: SEXP) -> SEXP;
    fn Rf_translateCharUTF8(value: SEXP) -> *const libc::c_char;
    fn Rf_getCharCE(value: SEXP) -> libc::c_int;
    static R_NamesSymbol: SEXP;
}

/// `cetype_t::CE_LATIN1`.
const LATIN1: libc::c_int = 2;

/// Names of the attributes a value has.
pub fn attribute_names(value: &Robj) -> Vec<String> {
    let mut found = Vec::new();
    // SAFETY: walks a pairlist that the value keeps alive.
    unsafe {
        let mut node = ATTRIB(value.get());
        while node != extendr_ffi::R_NilValue {
            let symbol = extendr_ffi::PRINTNAME(extendr_ffi::TAG(node));
            found.push(CStr::from_ptr(extendr_ffi::R_CHAR(symbol)).to_string_lossy().into_owned());
            node = extendr_ffi::CDR(node);
        }
    }
    found
}

/// No attributes, or `names` alone.
pub fn is_bare(value: &Robj) -> bool {
    // SAFETY: only looks.
    if unsafe { ATTRIB(value.get()) == extendr_ffi::R_NilValue } {
        return true;
    }
    attribute_names(value) == ["names"]
}

/// Elements of a vector; 0 of what is none.
pub fn length(value: &Robj) -> usize {
    if !matches!(kind(value), 10 | 13..=16 | 19 | 20 | 24) {
        return 0;
    }
    // SAFETY: only looks, and at a vector.
    unsafe { XLENGTH(value.get()).cast_unsigned() }
}

pub fn kind(value: &Robj) -> u32 {
    // SAFETY: only looks.
    unsafe { TYPEOF(value.get()) as u32 }
}

/// Names that can be keys: all there, not empty, none twice. `Some(None)` without names.
#[allow(clippy::option_option, reason = "no names, usable names, unusable names")]
pub fn keys(value: &Robj) -> Option<Option<Vec<String>>> {
    // SAFETY: the names live as long as the value.
    let names = unsafe { Robj::from_sexp(Rf_getAttrib(value.get(), R_NamesSymbol)) };
    if names.is_null() {
        return Some(None);
    }
    let mut keys = Vec::with_capacity(length(&names));
    let mut seen = std::collections::HashSet::new();
    for index in 0..length(&names) {
        let key = text_at(&names, index)?.filter(|key| !key.is_empty())?;
        if !seen.insert(key.clone()) {
            return None;
        }
        keys.push(key);
    }
    Some(Some(keys))
}

/// An element of a character vector as UTF-8, `Some(None)` for NA; `None` when it is no text.
#[allow(clippy::option_option, reason = "a text, NA, not a text")]
pub fn text_at(vector: &Robj, index: usize) -> Option<Option<String>> {
    match element_at(vector, index) {
        None => Some(None),
        Some(text) => text.to_str().ok().map(|text| Some(text.to_owned())),
    }
}

/// An element as UTF-8 whatever it is made of; `None` for NA.
pub fn shown_text_at(vector: &Robj, index: usize) -> Option<String> {
    element_at(vector, index).map(|text| text.to_string_lossy().into_owned())
}

/// The bytes of an element, `None` for NA. R would translate what is not valid in the locale to
/// `<ff>`, and refuse strings of bytes.
fn element_at(vector: &Robj, index: usize) -> Option<&CStr> {
    // SAFETY: the index is below the length; the text lives as long as the vector.
    unsafe {
        let element = STRING_ELT(vector.get(), index.cast_signed());
        if element == R_NaString {
            return None;
        }
        let bytes = match Rf_getCharCE(element) {
            LATIN1 => Rf_translateCharUTF8(element),
            _ => extendr_ffi::R_CHAR(element),
        };
        Some(CStr::from_ptr(bytes))
    }
}

/// NA, as opposed to NaN.
pub fn is_na(number: f64) -> bool {
    // SAFETY: a pure function.
    unsafe { extendr_ffi::R_IsNA(number) != 0 }
}

/// A vector of texts; `None` is NA.
pub fn texts(values: &[Option<String>]) -> Robj {
    let strings: Strings = values.iter().map(|value| value.as_deref().map_or_else(Rstr::na, Rstr::from)).collect();
    strings.into()
}

pub fn set_names(value: Robj, keys: &[String]) -> Robj {
    let mut value = value;
    // Names of the right number are always taken.
    let _ = value.set_names(keys.iter().map(String::as_str));
    value
}

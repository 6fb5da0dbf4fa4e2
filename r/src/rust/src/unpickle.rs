//! Python's plain values that were too large, or too odd, for JSON: text, numbers, True, False, None,
//! bytes, and lists, tuples, sets and dictionaries of these. A pickle is a program; one that calls
//! anything is not read here.

use std::collections::HashMap;

use extendr_api::prelude::*;

use crate::sexp;

#[derive(Clone, Debug, PartialEq)]
pub enum Plain {
    None,
    Bool(bool),
    Number(f64),
    /// Of at most 32 bits, as R's integers.
    Integer(i32),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Plain>),
    Dict(Vec<(Plain, Plain)>),
}

/// The value of a pickle; `None` when it is not of plain values alone.
pub fn plain(bytes: &[u8]) -> Option<Plain> {
    let mut machine =
        Machine { rest: bytes, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), remembered: 0 };
    loop {
        let code = machine.take(1)?[0];
        if code == b'.' {
            return machine.stack.pop();
        }
        machine.step(code)?;
    }
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Plain>,
    marks: Vec<usize>,
    memo: HashMap<u64, Plain>,
    /// How often something was remembered without a number of its own.
    remembered: u64,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    /// A little-endian number of so many bytes.
    fn number(&mut self, width: usize) -> Option<u64> {
        let bytes = self.take(width)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn sized(&mut self, width: usize) -> Option<&'a [u8]> {
        let count = usize::try_from(self.number(width)?).ok()?;
        self.take(count)
    }

    fn push(&mut self, value: Plain) -> Option<()> {
        self.stack.push(value);
        Some(())
    }

    fn text(&mut self, width: usize) -> Option<()> {
        let text = std::str::from_utf8(self.sized(width)?).ok()?.to_owned();
        self.push(Plain::Text(text))
    }

    /// What was put on the stack since the last mark.
    fn marked(&mut self) -> Option<Vec<Plain>> {
        let mark = self.marks.pop()?;
        (mark <= self.stack.len()).then(|| self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Option<()> {
        let start = self.stack.len().checked_sub(count)?;
        let items = self.stack.split_off(start);
        self.push(Plain::List(items))
    }

    fn extend(&mut self, items: Vec<Plain>) -> Option<()> {
        let Some(Plain::List(list)) = self.stack.last_mut() else { return None };
        list.extend(items);
        Some(())
    }

    fn set_items(&mut self, items: Vec<Plain>) -> Option<()> {
        let Some(Plain::Dict(entries)) = self.stack.last_mut() else { return None };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            entries.push((key, value));
        }
        Some(())
    }

    fn long(&mut self, width: usize) -> Option<()> {
        let bytes = self.sized(width)?;
        let magnitude = bytes.iter().rev().fold(0.0, |number, byte| number * 256.0 + f64::from(*byte));
        let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
        self.whole(if negative { magnitude - 256f64.powi(i32::try_from(bytes.len()).ok()?) } else { magnitude })
    }

    fn whole(&mut self, number: f64) -> Option<()> {
        let fits = number.abs() <= f64::from(i32::MAX);
        self.push(if fits { Plain::Integer(number as i32) } else { Plain::Number(number) })
    }

    fn remember(&mut self, key: u64) -> Option<()> {
        let value = self.stack.last()?;
        // Python may refer to a container before it is full: such a reference is not followed.
        if matches!(value, Plain::Text(_) | Plain::Bytes(_) | Plain::Number(_) | Plain::Integer(_)) {
            self.memo.insert(key, value.clone());
        }
        Some(())
    }

    fn recall(&mut self, width: usize) -> Option<()> {
        let key = self.number(width)?;
        let value = self.memo.get(&key)?.clone();
        self.push(value)
    }

    fn step(&mut self, code: u8) -> Option<()> {
        match code {
            0x80 => self.take(1).map(|_| ()),
            0x95 => self.take(8).map(|_| ()),
            b'N' => self.push(Plain::None),
            0x88 => self.push(Plain::Bool(true)),
            0x89 => self.push(Plain::Bool(false)),
            b'K' => self.number(1).and_then(|number| self.whole(number as f64)),
            b'M' => self.number(2).and_then(|number| self.whole(number as f64)),
            b'J' => self.number(4).and_then(|number| self.whole(f64::from(number as u32 as i32))),
            0x8a => self.long(1),
            0x8b => self.long(4),
            b'G' => {
                let number = f64::from_be_bytes(self.take(8)?.try_into().ok()?);
                self.push(Plain::Number(number))
            }
            0x8c => self.text(1),
            b'X' => self.text(4),
            0x8d => self.text(8),
            b'C' => self.sized(1).and_then(|bytes| self.push(Plain::Bytes(bytes.to_vec()))),
            b'B' => self.sized(4).and_then(|bytes| self.push(Plain::Bytes(bytes.to_vec()))),
            0x8e => self.sized(8).and_then(|bytes| self.push(Plain::Bytes(bytes.to_vec()))),
            b']' | b')' | 0x8f => self.push(Plain::List(Vec::new())),
            b'}' => self.push(Plain::Dict(Vec::new())),
            b'(' => {
                self.marks.push(self.stack.len());
                Some(())
            }
            b'a' => self.stack.pop().and_then(|item| self.extend(vec![item])),
            b'e' | 0x90 => self.marked().and_then(|items| self.extend(items)),
            b's' => {
                let value = self.stack.pop()?;
                let key = self.stack.pop()?;
                self.set_items(vec![key, value])
            }
            b'u' => self.marked().and_then(|items| self.set_items(items)),
            b't' | b'l' | 0x91 => self.marked().and_then(|items| self.push(Plain::List(items))),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            0x94 => {
                self.remembered += 1;
                self.remember(self.remembered - 1)
            }
            b'q' => self.number(1).and_then(|key| self.remember(key)),
            b'r' => self.number(4).and_then(|key| self.remember(key)),
            b'h' => self.recall(1),
            b'j' => self.recall(4),
            _ => None,
        }
    }
}

/// The value as R has it: lists of scalars of one type are vectors, dictionaries with texts as keys
/// are named lists. `None` for dictionaries with other keys.
pub fn to_r(value: &Plain) -> Option<Robj> {
    Some(match value {
        Plain::None => ().into(),
        Plain::Bytes(bytes) => Raw::from_bytes(bytes).into(),
        Plain::Dict(entries) => {
            let keys = entries.iter().map(|(key, _)| match key {
                Plain::Text(text) => Some(text.clone()),
                _ => None,
            });
            let keys: Vec<String> = keys.collect::<Option<_>>()?;
            let values: Vec<Robj> = entries.iter().map(|(_, value)| to_r(value)).collect::<Option<_>>()?;
            sexp::set_names(List::from_values(values).into(), &keys)
        }
        Plain::List(items) if !items.is_empty() => match vector(items) {
            Some(vector) => vector,
            None => List::from_values(items.iter().map(to_r).collect::<Option<Vec<Robj>>>()?).into(),
        },
        Plain::List(_) => List::new(0).into(),
        scalar => vector(std::slice::from_ref(scalar))?,
    })
}

fn vector(items: &[Plain]) -> Option<Robj> {
    let number = |item: &Plain| match item {
        Plain::Integer(number) => Some(f64::from(*number)),
        Plain::Number(number) => Some(*number),
        _ => None,
    };
    match items.first()? {
        Plain::Bool(_) => {
            let item = |item: &Plain| if let Plain::Bool(value) = item { Some(Rbool::from(*value)) } else { None };
            items
                .iter()
                .map(item)
                .collect::<Option<Vec<_>>>()
                .map(|values| values.into_iter().collect::<Logicals>().into())
        }
        Plain::Text(_) => {
            let item = |item: &Plain| if let Plain::Text(text) = item { Some(Some(text.clone())) } else { None };
            items.iter().map(item).collect::<Option<Vec<_>>>().map(|texts| sexp::texts(&texts))
        }
        _ if items.iter().all(|item| matches!(item, Plain::Integer(_))) => {
            let item = |item: &Plain| if let Plain::Integer(number) = item { Rint::from(*number) } else { Rint::na() };
            Some(items.iter().map(item).collect::<Integers>().into())
        }
        _ => {
            let numbers = items.iter().map(number).collect::<Option<Vec<f64>>>()?;
            Some(numbers.into_iter().map(Rfloat::from).collect::<Doubles>().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Plain {
        Plain::Text(text.to_owned())
    }

    #[test]
    fn plain_values_are_read() {
        // pickle.dumps({"a": [1, -2.5, True, None], "b": ("x", "x", 2**40, -300)}, 5)
        let pickle = b"\x80\x05\x95\x32\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94]\x94(K\x01G\xc0\x04\0\0\0\0\0\0\x88Ne\x8c\x01b\x94(\x8c\x01x\x94h\x04\x8a\x06\0\0\0\0\0\x01J\xd4\xfe\xff\xfft\x94u.";
        let list = vec![Plain::Integer(1), Plain::Number(-2.5), Plain::Bool(true), Plain::None];
        let tuple = vec![text("x"), text("x"), Plain::Number(2f64.powi(40)), Plain::Integer(-300)];
        let expected = Plain::Dict(vec![(text("a"), Plain::List(list)), (text("b"), Plain::List(tuple))]);
        assert_eq!(plain(pickle), Some(expected));
    }

    #[test]
    fn what_calls_something_or_is_cut_off_is_not() {
        assert_eq!(plain(b"\x80\x05cos\ngetcwd\n)R."), None);
        assert_eq!(plain(b"\x80\x05]\x94(K\x01"), None);
        assert_eq!(plain(b"\x80\x05\x8d\xff\xff\xff\xff\xff\xff\xff\xffx."), None);
        assert_eq!(plain(b"e."), None);
        assert_eq!(plain(b"\x80\x05]\x94h\0a."), None, "a list in itself");
    }
}

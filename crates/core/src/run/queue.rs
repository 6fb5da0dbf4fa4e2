//! Tasks that are ready and wait for a free worker: first in, first out. The splits of a foreach
//! are one entry, however many they are.

use std::collections::VecDeque;
use std::sync::Arc;

use super::frames::{DataPoint, FrameId, Place};
use crate::graph::StepIndex;
use crate::task::InputRef;

/// A task that may start; it has no id before it does.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub step: StepIndex,
    pub place: Place,
    /// Of a step that leads to itself; 0 otherwise.
    pub iteration: u32,
    pub inputs: Inputs,
}

#[derive(Clone, Debug)]
pub(super) enum Inputs {
    /// The start step.
    None,
    One(DataPoint),
    Joined {
        inputs: Arc<[InputRef]>,
        width: u64,
    },
}

#[derive(Debug)]
pub(super) enum Entry {
    Task(Ready),
    /// Splits `next..end` of a foreach.
    Splits {
        step: StepIndex,
        frame: FrameId,
        source: DataPoint,
        next: u64,
        end: u64,
    },
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
}

impl Queue {
    pub fn push(&mut self, ready: Ready) {
        self.entries.push_back(Entry::Task(ready));
    }

    pub fn push_splits(&mut self, step: StepIndex, frame: FrameId, source: DataPoint, width: u64) {
        self.entries.push_back(Entry::Splits { step, frame, source, next: 0, end: width });
    }

    /// Adds one split; it joins the last entry if it is the next of the same foreach.
    pub fn push_split(&mut self, ready: &Ready, frame: FrameId, source: DataPoint) {
        let index = ready.place.index;
        if let Some(Entry::Splits { frame: last, end, .. }) = self.entries.back_mut()
            && (*last, *end) == (frame, index)
        {
            *end += 1;
            return;
        }
        let step = ready.step;
        self.entries.push_back(Entry::Splits { step, frame, source, next: index, end: index + 1 });
    }

    /// The first task, and the split it is of if it is one.
    pub fn pop(&mut self) -> Option<(Ready, Option<(FrameId, DataPoint)>)> {
        match self.entries.front_mut()? {
            Entry::Splits { step, frame, source, next, end } => {
                let place = Place { frame: Some(*frame), index: *next };
                let inputs = Inputs::One(*source);
                let ready = Ready { step: *step, place, iteration: 0, inputs };
                let split = (*frame, *source);
                *next += 1;
                if next == end {
                    self.entries.pop_front();
                }
                Some((ready, Some(split)))
            }
            Entry::Task(_) => match self.entries.pop_front() {
                Some(Entry::Task(ready)) => Some((ready, None)),
                _ => None,
            },
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn clear(&mut self) {
        self.entries = VecDeque::new();
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

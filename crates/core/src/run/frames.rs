//! Splits that are open: who split, how wide, and what has arrived at the join so far. Which
//! task comes next is `advance`'s work.

use std::collections::BTreeMap;

use crate::graph::StepIndex;
use crate::id::TaskId;

/// A finished attempt whose data later tasks read. `run` is an index into the machine's table of
/// runs; 0 is the run itself, others are origins of clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataPoint {
    pub run: u32,
    pub step: StepIndex,
    pub task: TaskId,
    pub attempt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FrameId(u32);

/// Where a task stands: in which branch (or split) of which open split; `None` is outside of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub frame: Option<FrameId>,
    pub index: u64,
}

impl Place {
    pub const OUTSIDE: Self = Self { frame: None, index: 0 };
}

/// One split that happened and is not joined yet.
#[derive(Debug)]
pub(super) struct Frame {
    pub split: StepIndex,
    pub foreach: bool,
    /// Where the splitting task stood, and with it the join.
    pub outer: Place,
    /// The splitting attempt, which holds a foreach's items.
    pub source: DataPoint,
    pub width: u64,
    pub arrivals: Arrivals,
}

/// Open splits by id; ids of closed ones are used again.
#[derive(Debug, Default)]
pub(super) struct Frames {
    slots: Vec<Option<Frame>>,
    free: Vec<u32>,
}

impl Frames {
    pub fn open(&mut self, frame: Frame) -> FrameId {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = Some(frame);
            return FrameId(slot);
        }
        self.slots.push(Some(frame));
        FrameId(u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 open splits"))
    }

    pub fn close(&mut self, id: FrameId) -> Frame {
        self.free.push(id.0);
        self.slots[id.0 as usize].take().expect("an open frame is closed once")
    }

    pub fn get(&self, id: FrameId) -> &Frame {
        self.slots[id.0 as usize].as_ref().expect("a place refers to an open frame")
    }

    pub fn get_mut(&mut self, id: FrameId) -> &mut Frame {
        self.slots[id.0 as usize].as_mut().expect("a place refers to an open frame")
    }

    pub fn iter(&self) -> impl Iterator<Item = (FrameId, &Frame)> {
        self.slots.iter().enumerate().filter_map(|(slot, frame)| Some((FrameId(slot as u32), frame.as_ref()?)))
    }

    /// Frames around a place, innermost first, each with the index in it.
    pub fn around(&self, place: Place) -> impl Iterator<Item = (&Frame, u64)> {
        let mut at = place;
        std::iter::from_fn(move || {
            let frame = self.get(at.frame?);
            let index = at.index;
            at = frame.outer;
            Some((frame, index))
        })
    }

    /// Split indices of the foreach levels around a place, outermost first.
    pub fn path(&self, place: Place) -> Vec<u64> {
        let mut path: Vec<u64> = self.around(place).filter(|(f, _)| f.foreach).map(|(_, index)| index).collect();
        path.reverse();
        path
    }
}

/// What arrived, by split index. Neighbours whose task ids are neighbours too share one entry,
/// so that a wide foreach of quick tasks costs next to nothing.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// First index → (number of indices, data of the first).
    spans: BTreeMap<u64, (u64, DataPoint)>,
    count: u64,
}

impl Arrivals {
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn contains(&self, index: u64) -> bool {
        self.spans.range(..=index).next_back().is_some_and(|(first, (len, _))| index < first + len)
    }

    /// Each index arrives once.
    pub fn insert(&mut self, index: u64, point: DataPoint) {
        assert!(!self.contains(index), "split {index} arrived twice");
        self.count += 1;
        let before = self.spans.range(..index).next_back().map(|(first, span)| (*first, *span));
        let first = match before {
            Some((first, (len, start))) if follows(first, len, start, index, point) => {
                self.spans.insert(first, (len + 1, start));
                first
            }
            _ => {
                self.spans.insert(index, (1, point));
                index
            }
        };
        let (len, start) = self.spans[&first];
        let Some((next_len, next)) = self.spans.get(&(index + 1)).copied() else { return };
        if follows(first, len, start, index + 1, next) {
            self.spans.remove(&(index + 1));
            self.spans.insert(first, (len + next_len, start));
        }
    }

    /// In order of the index: first index, number of indices, data of the first; the others'
    /// task ids count up from it.
    pub fn spans(&self) -> impl Iterator<Item = (u64, u64, DataPoint)> {
        self.spans.iter().map(|(first, (len, start))| (*first, *len, *start))
    }
}

fn follows(first: u64, len: u64, start: DataPoint, index: u64, point: DataPoint) -> bool {
    first + len == index
        && start.task.0 + len == point.task.0
        && (start.run, start.step, start.attempt) == (point.run, point.step, point.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(task: u64, attempt: u32) -> DataPoint {
        DataPoint { run: 0, step: 1, task: TaskId(task), attempt }
    }

    #[test]
    fn neighbours_become_one_span_in_any_order() {
        let mut arrivals = Arrivals::default();
        for index in [3, 0, 2, 1, 4] {
            arrivals.insert(index, point(10 + index, 0));
        }
        assert_eq!(arrivals.spans().collect::<Vec<_>>(), [(0, 5, point(10, 0))]);
        assert_eq!(arrivals.count(), 5);
    }

    #[test]
    fn another_attempt_or_a_gap_in_task_ids_begins_a_span() {
        let mut arrivals = Arrivals::default();
        arrivals.insert(0, point(10, 0));
        arrivals.insert(1, point(11, 1));
        arrivals.insert(2, point(13, 1));
        arrivals.insert(3, point(14, 1));
        assert_eq!(
            arrivals.spans().collect::<Vec<_>>(),
            [(0, 1, point(10, 0)), (1, 1, point(11, 1)), (2, 2, point(13, 1))]
        );
        assert!(arrivals.contains(3) && !arrivals.contains(4));
    }

    #[test]
    #[should_panic(expected = "split 2 arrived twice")]
    fn an_index_arrives_once() {
        let mut arrivals = Arrivals::default();
        for index in [0, 1, 2, 2] {
            arrivals.insert(index, point(index, 0));
        }
    }
}

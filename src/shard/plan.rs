//! Which points can pass a filter, told from the field indexes alone.
//!
//! Every condition gets two sets of slots: `lower` certainly pass, `upper` may pass. Conditions the indexes
//! answer have both equal; conditions they know nothing of have nothing and everything. The clauses of a filter
//! combine the bounds (a negation swaps them), and only points between them need a look at their payload.
//!
//! Invariant: `lower` ⊆ the points that pass by [`Filter::matches`] ⊆ `upper`.
//! Not here: what conditions mean (`model::filter`), how a search uses the sets (`search`).

use super::{
    payload_index::{self, FieldIndex, FieldIndexes},
    points::{PointRecord, Slot},
    slots::{LiveSet, SlotTable},
};
use crate::{
    machine::MachineError,
    model::{
        Condition, FieldTest, FieldType, Filter, PointId, Schema,
        filter::{Scalar, Subject, words},
    },
};
use roaring::RoaringBitmap;
use std::{
    cell::LazyCell,
    collections::BTreeSet,
    ops::Bound,
    sync::{Arc, Mutex, PoisonError},
};

/// What a filter is planned and checked against: one state of a shard.
pub(super) struct Ground<'a> {
    pub(super) schema: &'a Schema,
    pub(super) fields: &'a FieldIndexes,
    pub(super) live: &'a LiveSet,
    pub(super) slots: &'a SlotTable,
    pub(super) plans: &'a Plans,
    pub(super) read: &'a dyn Fn(PointId) -> Result<Option<PointRecord>, MachineError>,
}

/// Bounds of the slots that pass. Where the indexes tell all, both are one set, and whatever is done to it is done once.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// Certainly pass.
    pub(super) lower: Arc<RoaringBitmap>,
    /// May pass.
    pub(super) upper: Arc<RoaringBitmap>,
}

impl Bounds {
    fn exact(slots: RoaringBitmap) -> Self {
        Bounds::shared(Arc::new(slots))
    }

    fn shared(slots: Arc<RoaringBitmap>) -> Self {
        Bounds { lower: slots.clone(), upper: slots }
    }

    fn is_exact(&self) -> bool {
        Arc::ptr_eq(&self.lower, &self.upper)
    }

    /// Puts together what is below and what is above; `low` and `high` say with which of the other's sets.
    fn combine(
        self,
        (low, high): (&RoaringBitmap, &RoaringBitmap),
        with: fn(&mut RoaringBitmap, &RoaringBitmap),
    ) -> Self {
        let apply = |set: Arc<RoaringBitmap>, other: &RoaringBitmap| {
            let mut set = Arc::unwrap_or_clone(set);
            with(&mut set, other);
            Arc::new(set)
        };
        if self.is_exact() && std::ptr::eq(low, high) {
            let Bounds { lower, upper } = self;
            drop(upper);
            return Bounds::shared(apply(lower, low));
        }
        Bounds { lower: apply(self.lower, low), upper: apply(self.upper, high) }
    }

    fn and(self, other: &Bounds) -> Self {
        self.combine((&other.lower, &other.upper), |set, other| *set &= other)
    }

    fn or(self, other: &Bounds) -> Self {
        self.combine((&other.lower, &other.upper), |set, other| *set |= other)
    }

    fn without(self, other: &Bounds) -> Self {
        self.combine((&other.upper, &other.lower), |set, other| *set -= other)
    }
}

/// All live slots, put together when they are first asked for.
type All<'a> = LazyCell<Arc<RoaringBitmap>, Box<dyn FnOnce() -> Arc<RoaringBitmap> + 'a>>;

/// Filters that are remembered in one state of a shard.
const PLANS_MAX: usize = 8;

/// What was planned in one state of a shard, the filter that was asked last first: most filters are asked again and again.
#[derive(Default)]
pub(super) struct Plans(Mutex<Vec<(Filter, Bounds)>>);

impl Plans {
    /// The bounds of a filter: remembered, or planned now.
    fn of(
        &self,
        filter: &Filter,
        plan: impl FnOnce() -> Result<Bounds, MachineError>,
    ) -> Result<Bounds, MachineError> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |plans: &mut Vec<(Filter, Bounds)>| {
            let at = plans.iter().position(|(of, _)| of == filter)?;
            plans[..=at].rotate_right(1);
            Some(plans[0].1.clone())
        };
        if let Some(bounds) = again(&mut known()) {
            return Ok(bounds);
        }
        let bounds = plan()?;
        let mut plans = known();
        plans.truncate(PLANS_MAX - 1);
        plans.insert(0, (filter.clone(), bounds.clone()));
        Ok(bounds)
    }
}

impl Ground<'_> {
    /// Plans a filter, if it is not known yet.
    pub(super) fn plan(&self, filter: &Filter) -> Result<Bounds, MachineError> {
        self.plans
            .of(filter, || self.filter(filter, &LazyCell::new(Box::new(|| Arc::new(self.live.to_bitmap())))))
    }

    /// All slots whose points pass: those in doubt are looked at one by one.
    pub(super) fn matching(&self, filter: &Filter) -> Result<Arc<RoaringBitmap>, MachineError> {
        let bounds = self.plan(filter)?;
        if bounds.is_exact() {
            return Ok(bounds.lower);
        }
        let mut passing = Arc::unwrap_or_clone(bounds.lower);
        for slot in &*bounds.upper - &passing {
            if self.passes(filter, slot)? {
                passing.insert(slot);
            }
        }
        Ok(Arc::new(passing))
    }

    /// Whether one live slot's point passes, from its payload.
    pub(super) fn passes(&self, filter: &Filter, slot: Slot) -> Result<bool, MachineError> {
        let Some(id) = self.slots.id(slot) else { return Ok(false) };
        let Some(record) = (self.read)(id)? else { return Ok(false) };
        let payload = super::search::parse(&record.payload)?;
        let vectors = record.vector_names();
        let subject =
            Subject { id: Some(id), payload: &payload, vectors: &vectors, fields: &self.schema.fields };
        Ok(filter.matches(&subject))
    }

    fn filter(&self, filter: &Filter, all: &All<'_>) -> Result<Bounds, MachineError> {
        let mut wanted =
            filter.must.iter().map(|condition| self.condition(condition, all)).collect::<Vec<_>>();
        if !filter.should.is_empty() {
            wanted.push(self.at_least(1, &filter.should, all));
        }
        if let Some(min_should) = &filter.min_should {
            wanted.push(self.at_least(min_should.min_count, &min_should.conditions, all));
        }
        let mut wanted = wanted.into_iter();
        // What the indexes name is live, so that all live slots are needed only where nothing is wanted.
        let mut bounds = wanted.next().unwrap_or_else(|| Ok(Bounds::shared(Arc::clone(all))))?;
        for other in wanted {
            bounds = bounds.and(&other?);
        }
        for condition in &filter.must_not {
            bounds = bounds.without(&self.condition(condition, all)?);
        }
        Ok(bounds)
    }

    /// Bounds of the slots for which at least `count` of the conditions hold.
    fn at_least(
        &self,
        count: usize,
        conditions: &[Condition],
        all: &All<'_>,
    ) -> Result<Bounds, MachineError> {
        if count > conditions.len() {
            return Ok(Bounds::exact(RoaringBitmap::new()));
        }
        if count == 0 {
            return Ok(Bounds::shared(Arc::clone(all)));
        }
        // reached[k]: slots for which more than k of the conditions seen so far hold.
        let mut reached = vec![Bounds::exact(RoaringBitmap::new()); count];
        for condition in conditions {
            let holds = self.condition(condition, all)?;
            for k in (1..count).rev() {
                reached[k] = reached[k].clone().or(&reached[k - 1].clone().and(&holds));
            }
            reached[0] = reached[0].clone().or(&holds);
        }
        Ok(reached.swap_remove(count - 1))
    }

    fn condition(&self, condition: &Condition, all: &All<'_>) -> Result<Bounds, MachineError> {
        let unknown = || Bounds { lower: Arc::default(), upper: Arc::clone(all) };
        Ok(match condition {
            Condition::Filter(filter) => self.filter(filter, all)?,
            Condition::HasId(ids) => {
                let mut slots = RoaringBitmap::new();
                for id in ids {
                    slots.extend((self.read)(*id)?.map(|record| record.slot));
                }
                Bounds::exact(slots)
            }
            Condition::IsEmpty(path) => match self.fields.get(path) {
                Some(field) => Bounds::exact(&***all - field.with(payload_index::PRESENT)),
                None => unknown(),
            },
            Condition::IsNull(path) => match self.fields.get(path) {
                Some(field) => Bounds::exact(field.with(payload_index::NULL)),
                None => unknown(),
            },
            Condition::Field { path, test } => {
                self.fields.get(path).and_then(|field| of_test(field, test)).unwrap_or_else(unknown)
            }
            Condition::HasVector(_) | Condition::Nested { .. } => unknown(),
        })
    }
}

/// Bounds of the slots whose field passes; `None` if the index cannot tell.
fn of_test(field: &FieldIndex, test: &FieldTest) -> Option<Bounds> {
    Some(match test {
        FieldTest::Match(value) => Bounds::exact(field.with(&entry(field.of, value)?)),
        FieldTest::MatchAny(values) => {
            let entries: Option<Vec<_>> = values.iter().map(|value| entry(field.of, value)).collect();
            Bounds::exact(entries?.iter().fold(RoaringBitmap::new(), |all, e| all | field.with(e)))
        }
        FieldTest::MatchExcept(values) => {
            let entries: Option<BTreeSet<_>> = values.iter().map(|value| entry(field.of, value)).collect();
            // Values of another type are not in the index, but are values.
            Bounds {
                lower: Arc::new(field.other_than(&entries?)),
                upper: Arc::new(field.with(payload_index::PRESENT)),
            }
        }
        FieldTest::Text(text) if field.of == FieldType::Text => {
            let mut wanted = words(text).map(|word| field.with(&payload_index::keyword(&word)));
            let first = wanted.next().unwrap_or_default();
            Bounds::exact(wanted.fold(first, |all, with| all & with))
        }
        FieldTest::Range(range) if matches!(field.of, FieldType::Integer | FieldType::Float) => {
            let key = |bound: f64| payload_index::float_key(bound);
            let after = |bound: f64| payload_index::after(key(bound));
            let bounds = [range.lt, range.gt, range.lte, range.gte];
            if bounds.iter().flatten().any(|bound| bound.is_nan()) {
                return None;
            }
            let mut from = Bound::Unbounded;
            let lowest = [range.gt.map(after), range.gte.map(key)].into_iter().flatten().max();
            if let Some(lowest) = lowest {
                from = Bound::Included(lowest);
            }
            let mut to = Bound::Unbounded;
            let highest = [range.lt.map(key), range.lte.map(after)].into_iter().flatten().min();
            if let Some(highest) = highest {
                to = Bound::Excluded(highest);
            }
            Bounds::exact(field.between(from, to))
        }
        FieldTest::DatetimeRange(range) if field.of == FieldType::Datetime => {
            let key = payload_index::instant;
            let beyond = |at: i64, step: i64| at.checked_add(step);
            let gt = range.gt.map(|at| beyond(at, 1));
            let lt = range.lt.map(|at| beyond(at, -1));
            if gt == Some(None) || lt == Some(None) {
                return None;
            }
            let lowest = [gt.flatten(), range.gte].into_iter().flatten().max();
            let highest = [lt.flatten(), range.lte].into_iter().flatten().min();
            let from = lowest.map_or(Bound::Unbounded, |at| Bound::Included(key(at)));
            let to = highest.map_or(Bound::Unbounded, |at| Bound::Included(key(at)));
            Bounds::exact(field.between(from, to))
        }
        FieldTest::Text(_)
        | FieldTest::Range(_)
        | FieldTest::DatetimeRange(_)
        | FieldTest::ValuesCount(_) => return None,
    })
}

/// The entry that stands for a value in a field's index; `None` if such values are not in it.
fn entry(of: FieldType, value: &Scalar) -> Option<Vec<u8>> {
    match (of, value) {
        (FieldType::Keyword, Scalar::Keyword(text)) => Some(payload_index::keyword(text)),
        (FieldType::Uuid, Scalar::Keyword(text)) => payload_index::uuid(text),
        (FieldType::Integer | FieldType::Float, Scalar::Integer(i)) => Some(payload_index::integer(*i)),
        (FieldType::Bool, Scalar::Bool(b)) => Some(payload_index::boolean(*b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_filters_asked_last_are_planned_once() {
        let plans = Plans::default();
        let filter =
            |id: u64| Filter { must: vec![Condition::HasId([PointId::Num(id)].into())], ..Filter::default() };
        let mut planned = Vec::new();
        let mut ask = |id: u64| {
            let plan = || {
                planned.push(id);
                Ok(Bounds::exact([id as Slot].into_iter().collect()))
            };
            let bounds = plans.of(&filter(id), plan).unwrap();
            assert!(bounds.lower.iter().eq([id as Slot]));
        };
        let most = PLANS_MAX as u64;
        // The first is asked once more, so that it is the second that is forgotten for the last.
        (0..most).chain([0, most, 0, most, 1]).for_each(&mut ask);
        assert!(planned.into_iter().eq((0..=most).chain([1])));
    }
}

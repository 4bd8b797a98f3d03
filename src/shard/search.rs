//! A shard at one position, and everything a request reads from it.
//!
//! A [`ReadView`] is published whole after each applied batch and never changes: store view, live slots, field
//! indexes and vector indexes belong together. Its methods compute and read files; call them off the async
//! threads.
//!
//! The way of a search: bounds from the field indexes (`plan`) -> candidates from graph ∪ delta among the slots
//! that are live and may pass -> those in doubt looked at -> the nearest, with what was asked for of them.
//!
//! Not here: waiting for a position, merging the answers of shards.

use super::{
    payload_index::FieldIndexes,
    plan::{Ground, Plans},
    points::{self, PointRecord, StateRecord, decode},
    slots::{LiveSet, SlotTable},
    vector_index::{Found, VectorIndexes, Wanted},
};
use crate::{
    machine::MachineError,
    model::{
        Counting, Explanation, FieldPath, Filter, FilterExplanation, Invalid, Payload, PayloadSelector,
        PointId, Position, Projection, Record, Schema, ScoredPoint, ScrollPage, ScrollRequest, SearchRequest,
        Target, Vector, VectorSelector, Vectors, filter::Step,
    },
    store::{Keyspace, View},
};
use bytes::Bytes;
use roaring::RoaringBitmap;
use serde_json::Value;
use std::{ops::Bound, sync::Arc};

/// A shard at one position.
pub struct ReadView {
    pub(super) state: StateRecord,
    pub(super) schema: Arc<Schema>,
    pub(super) keyspace: Keyspace,
    pub(super) store: View,
    pub(super) live: LiveSet,
    pub(super) slots: SlotTable,
    pub(super) fields: FieldIndexes,
    pub(super) vectors: VectorIndexes,
    pub(super) plans: Arc<Plans>,
}

/// Points in doubt that are all looked at before a search, rather than after it.
const DOUBT_MAX: u64 = 1000;

impl ReadView {
    /// How the shard counted commands, and up to where.
    pub fn counting(&self) -> Result<Counting, MachineError> {
        self.state.counting()
    }

    /// Whether the shard gives positions itself, and has all it had.
    pub fn is_home(&self) -> bool {
        self.state.counting.as_ref().is_none_or(|counting| counting.duty == 0)
    }

    /// Whether it takes positions over from a home.
    pub fn follows(&self) -> bool {
        self.state.counting.as_ref().is_some_and(|counting| counting.duty == 2)
    }

    /// Whether a copy of its home is not whole yet.
    pub fn is_being_seeded(&self) -> bool {
        self.state.counting.as_ref().is_some_and(|counting| counting.seeding != 0)
    }

    /// The same, with its vectors in other parts.
    pub(super) fn with_vectors(&self, vectors: VectorIndexes, store: View) -> ReadView {
        ReadView {
            state: self.state.clone(),
            schema: self.schema.clone(),
            keyspace: self.keyspace.clone(),
            store,
            live: self.live.clone(),
            slots: self.slots.clone(),
            fields: self.fields.clone(),
            vectors,
            plans: self.plans.clone(),
        }
    }

    /// The position of everything read here.
    pub fn position(&self) -> Position {
        Position(self.state.position)
    }

    /// The schema at that position.
    pub fn schema(&self) -> &Arc<Schema> {
        &self.schema
    }

    /// Whether the collection is dropped: from then on every command is rejected.
    pub fn retired(&self) -> bool {
        self.state.retired
    }

    /// A point's vector; `None` if there is no such point or vector.
    pub fn vector(&self, id: PointId, name: &str) -> Result<Option<Vector>, MachineError> {
        let Some(record) = self.record(id)? else { return Ok(None) };
        if let Some(sparse) = record.sparse.iter().find(|sparse| sparse.name == name) {
            return Ok(Some(sparse.vector()));
        }
        let bytes = self.store.get(&self.keyspace, points::vector_key(record.slot, name))?;
        bytes.map(|bytes| points::floats_of_bytes(&bytes).map(Vector::Dense)).transpose()
    }

    /// Points by id, in the order asked; those that are not there are left out.
    pub fn get(&self, ids: &[PointId], projection: &Projection) -> Result<Vec<Record>, MachineError> {
        let project = Projector::new(projection)?;
        let mut records = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(record) = self.record(*id)? {
                records.push(project.record(self, *id, &record)?);
            }
        }
        Ok(records)
    }

    /// How many points there are, or pass a filter.
    pub fn count(&self, filter: Option<&Filter>) -> Result<u64, MachineError> {
        match filter {
            None => Ok(self.live.count()),
            Some(filter) => {
                let read = |id| self.record(id);
                Ok(self.ground(&read).matching(filter)?.len())
            }
        }
    }

    /// Points in the order of their ids, from `request.offset` on.
    pub fn scroll(&self, request: &ScrollRequest) -> Result<ScrollPage, MachineError> {
        let project = Projector::new(&request.projection)?;
        let mut page = ScrollPage { points: Vec::new(), next: None };
        // Adds a point; `false` if the page was full.
        let mut add = |id: PointId, record: &PointRecord| -> Result<bool, MachineError> {
            if page.points.len() == request.limit {
                page.next = Some(id);
                return Ok(false);
            }
            page.points.push(project.record(self, id, record)?);
            Ok(true)
        };
        let Some(filter) = &request.filter else {
            for item in self.records_from(request.offset) {
                let (id, record) = item?;
                if !add(id, &record)? {
                    break;
                }
            }
            return Ok(page);
        };
        let read = |id| self.record(id);
        let ground = self.ground(&read);
        let bounds = ground.plan(filter)?;
        let passes = |slot| -> Result<bool, MachineError> {
            Ok(bounds.lower.contains(slot) || bounds.upper.contains(slot) && ground.passes(filter, slot)?)
        };
        if bounds.upper.len() * 4 < self.live.count() {
            let ids = bounds.upper.iter().filter_map(|slot| Some((self.slots.id(slot)?, slot)));
            let mut ids: Vec<_> =
                ids.filter(|(id, _)| request.offset.is_none_or(|from| *id >= from)).collect();
            ids.sort_unstable();
            for (id, slot) in ids {
                if passes(slot)? && !add(id, &self.expect_record(id, slot)?)? {
                    break;
                }
            }
        } else {
            for item in self.records_from(request.offset) {
                let (id, record) = item?;
                if passes(record.slot)? && !add(id, &record)? {
                    break;
                }
            }
        }
        Ok(page)
    }

    /// Every point from an id on, ascending.
    fn records_from(
        &self,
        from: Option<PointId>,
    ) -> impl Iterator<Item = Result<(PointId, PointRecord), MachineError>> {
        let from = from.map_or_else(|| vec![points::POINT], points::point_key);
        let bounds = (Bound::Included(from), Bound::Excluded(vec![points::POINT + 1]));
        self.store.range(&self.keyspace, bounds).map(|item| {
            let (key, bytes) = item?;
            Ok((points::point_of_key(&key)?, decode("point", bytes)?))
        })
    }

    /// The nearest points, best first, ties by id ascending.
    ///
    /// `exclude` is left out: the point whose vector is the query. A `Target::NearestTo` is looked up here;
    /// if the point lives in another shard, its vector must be given as `Target::Nearest`. `explanation` is told all
    /// but the time.
    pub fn search(
        &self,
        request: &SearchRequest,
        exclude: Option<PointId>,
        mut explanation: Option<&mut Explanation>,
    ) -> Result<Vec<ScoredPoint>, MachineError> {
        let project = Projector::new(&request.projection)?;
        let (query, exclude) = match &request.target {
            Target::Nearest(query) => (query.clone(), exclude),
            Target::NearestTo(id) => {
                let Some(Vector::Dense(vector)) = self.vector(*id, &request.using)? else {
                    return Err(Invalid::new("query", format!("No point with id {id} found")).into());
                };
                (vector, Some(*id))
            }
            Target::All => return self.by_id(request),
        };
        let params = self.schema.vectors.get(&request.using);
        let index = self.vectors.get(&request.using);
        let (Some(params), Some(index)) = (params, index) else {
            return Err(
                Invalid::new("using", format!("Not existing vector name error: {}", request.using)).into()
            );
        };
        if query.len() != params.dim as usize {
            let why = format!("Vector dimension error: expected dim: {}, got {}", params.dim, query.len());
            return Err(Invalid::new("query", why).into());
        }
        let mut wanted = Wanted {
            query: &query,
            count: request.offset.saturating_add(request.limit),
            ef: request.params.ef.map(|ef| ef as usize),
            exact: request.params.exact,
            allowed: None,
            exclude,
            live: &self.live,
            slots: &self.slots,
        };
        let mut rounds = 0;
        let mut nearest = |wanted: &Wanted<'_>| {
            rounds += 1;
            index.nearest(wanted, explanation.as_deref_mut())
        };
        let mut told = None;
        let found = match &request.filter {
            None => nearest(&wanted),
            Some(filter) => {
                let read = |id| self.record(id);
                let ground = self.ground(&read);
                let bounds = ground.plan(filter)?;
                let (lower, upper) = (bounds.lower.len(), bounds.upper.len());
                let filtered = told.insert(FilterExplanation {
                    estimated_min: lower,
                    estimated_max: upper,
                    ..FilterExplanation::default()
                });
                let doubt = upper - lower;
                if doubt <= DOUBT_MAX {
                    let passing = ground.matching(filter)?;
                    filtered.payloads_read = doubt;
                    filtered.actual = Some(passing.len());
                    wanted.allowed = Some(&passing);
                    nearest(&wanted)
                } else {
                    wanted.allowed = Some(&bounds.upper);
                    let read = &mut filtered.payloads_read;
                    let passes = |slot| {
                        Ok(bounds.lower.contains(slot) || {
                            *read += 1;
                            ground.passes(filter, slot)?
                        })
                    };
                    nearest_passing(wanted, &bounds.upper, nearest, passes)?
                }
            }
        };
        if let Some(explanation) = explanation {
            (explanation.rounds, explanation.filter) = (rounds, told);
        }
        let in_memory = is_nothing(&request.projection);
        let mut points = Vec::new();
        for found in found.into_iter().skip(request.offset) {
            let score = index.score(found.distance);
            let near_enough = request.score_threshold.is_none_or(|threshold| {
                if params.distance.larger_is_nearer() { score >= threshold } else { score <= threshold }
            });
            if !near_enough {
                break;
            }
            let (id, version) = (found.id, found.version);
            let (payload, vectors) = if in_memory {
                (None, None)
            } else {
                let record = self.expect_record(id, found.slot)?;
                (project.payload(&record)?, project.vectors(self, &record)?)
            };
            points.push(ScoredPoint { id, version, score, payload, vectors });
        }
        Ok(points)
    }

    /// Whether a search reads little, and all of it in memory: then another thread would cost more than it.
    pub fn is_quick(&self, request: &SearchRequest) -> bool {
        let SearchRequest { target, filter, limit, offset, params, projection, .. } = request;
        let (count, ef) = (limit.saturating_add(*offset), params.ef.map(|ef| ef as usize));
        let plain = matches!(target, Target::Nearest(_)) && filter.is_none() && !params.exact;
        let index = self.vectors.get(&request.using);
        plain && is_nothing(projection) && index.is_none_or(|index| index.is_quick(count, ef))
    }

    fn by_id(&self, request: &SearchRequest) -> Result<Vec<ScoredPoint>, MachineError> {
        let page = self.scroll(&ScrollRequest {
            offset: None,
            limit: request.offset.saturating_add(request.limit),
            filter: request.filter.clone(),
            projection: request.projection.clone(),
        })?;
        let scored = |r: Record| ScoredPoint {
            id: r.id,
            version: r.version,
            score: 0.0,
            payload: r.payload,
            vectors: r.vectors,
        };
        Ok(page.points.into_iter().skip(request.offset).map(scored).collect())
    }

    pub(super) fn record(&self, id: PointId) -> Result<Option<PointRecord>, MachineError> {
        self.store.get(&self.keyspace, points::point_key(id))?.map(|bytes| decode("point", bytes)).transpose()
    }

    /// The record of a point that has a live slot.
    fn expect_record(&self, id: PointId, slot: points::Slot) -> Result<PointRecord, MachineError> {
        self.record(id)?.ok_or_else(|| points::damaged("slot", format!("{slot} has no point {id}")))
    }

    fn ground<'a>(
        &'a self,
        read: &'a dyn Fn(PointId) -> Result<Option<PointRecord>, MachineError>,
    ) -> Ground<'a> {
        Ground {
            schema: &self.schema,
            fields: &self.fields,
            live: &self.live,
            slots: &self.slots,
            plans: &self.plans,
            read,
        }
    }
}

/// The nearest of `upper` that pass a test which is dear: asks for more candidates, four times as many each
/// time, until enough of them pass or all were seen.
fn nearest_passing(
    mut wanted: Wanted<'_>,
    upper: &RoaringBitmap,
    mut nearest: impl FnMut(&Wanted<'_>) -> Vec<Found>,
    mut passes: impl FnMut(points::Slot) -> Result<bool, MachineError>,
) -> Result<Vec<Found>, MachineError> {
    let count = wanted.count;
    let mut tested = std::collections::HashMap::new();
    loop {
        wanted.count = wanted.count.max(16).saturating_mul(4);
        let all = wanted.count as u64 >= upper.len();
        wanted.exact |= all;
        let candidates = nearest(&wanted);
        let mut passing = Vec::new();
        for found in candidates {
            if passing.len() == count {
                break;
            }
            let pass = match tested.get(&found.slot) {
                Some(pass) => *pass,
                None => {
                    let pass = passes(found.slot)?;
                    tested.insert(found.slot, pass);
                    pass
                }
            };
            if pass {
                passing.push(found);
            }
        }
        if passing.len() == count || all {
            return Ok(passing);
        }
    }
}

/// A payload as stored, taken apart; no text is an empty object.
pub(super) fn parse(text: &[u8]) -> Result<Payload, MachineError> {
    if text.is_empty() {
        return Ok(Payload::new());
    }
    serde_json::from_slice(text).map_err(|e| points::damaged("payload", e.to_string()))
}

/// Whether nothing of a point is asked for but what it is called and its version.
fn is_nothing(Projection { payload, vectors }: &Projection) -> bool {
    *payload == PayloadSelector::None && *vectors == VectorSelector::None
}

/// Takes from a point what was asked for.
struct Projector<'a> {
    projection: &'a Projection,
    paths: Vec<FieldPath>,
}

impl<'a> Projector<'a> {
    fn new(projection: &'a Projection) -> Result<Self, Invalid> {
        let texts = match &projection.payload {
            PayloadSelector::Include(paths) | PayloadSelector::Exclude(paths) => paths.as_slice(),
            PayloadSelector::None | PayloadSelector::All => &[],
        };
        let path = |text: &String| text.parse().map_err(|why: &str| Invalid::new("with_payload", why));
        Ok(Projector { projection, paths: texts.iter().map(path).collect::<Result<_, _>>()? })
    }

    fn record(&self, view: &ReadView, id: PointId, record: &PointRecord) -> Result<Record, MachineError> {
        Ok(Record {
            id,
            version: Position(record.version),
            payload: self.payload(record)?,
            vectors: self.vectors(view, record)?,
        })
    }

    fn payload(&self, record: &PointRecord) -> Result<Option<Bytes>, MachineError> {
        let paths = || self.paths.iter().map(|path| path.steps().collect::<Vec<_>>()).collect::<Vec<_>>();
        let whole = || parse(&record.payload).map(Value::Object);
        let kept = match &self.projection.payload {
            PayloadSelector::None => return Ok(None),
            PayloadSelector::All if record.payload.is_empty() => return Ok(Some(Bytes::from_static(b"{}"))),
            PayloadSelector::All => return Ok(Some(record.payload.clone())),
            PayloadSelector::Include(_) => include(&whole()?, &tails(&paths())),
            PayloadSelector::Exclude(_) => exclude(&whole()?, &tails(&paths())),
        };
        let kept = kept.unwrap_or_else(|| Value::Object(Payload::new()));
        Ok(Some(kept.to_string().into()))
    }

    fn vectors(&self, view: &ReadView, record: &PointRecord) -> Result<Option<Vectors>, MachineError> {
        let wanted = |name: &String| match &self.projection.vectors {
            VectorSelector::None => false,
            VectorSelector::All => true,
            VectorSelector::Names(names) => names.contains(name),
        };
        if self.projection.vectors == VectorSelector::None {
            return Ok(None);
        }
        let mut vectors = Vectors::new();
        for name in record.dense.iter().filter(|name| wanted(name)) {
            let bytes = view.store.get(&view.keyspace, points::vector_key(record.slot, name))?;
            let missing = || points::damaged("vector", format!("slot {} lost \"{name}\"", record.slot));
            let values = points::floats_of_bytes(&bytes.ok_or_else(missing)?)?;
            vectors.insert(name.clone(), Vector::Dense(values));
        }
        for sparse in record.sparse.iter().filter(|sparse| wanted(&sparse.name)) {
            vectors.insert(sparse.name.clone(), sparse.vector());
        }
        Ok(Some(vectors))
    }
}

type Tail<'a> = &'a [Step<'a>];

fn tails<'a>(paths: &'a [Vec<Step<'a>>]) -> Vec<Tail<'a>> {
    paths.iter().map(Vec::as_slice).collect()
}

/// The paths that lead on into a key of an object.
fn into_key<'a>(paths: &[Tail<'a>], key: &str) -> Vec<Tail<'a>> {
    let into = |path: &Tail<'a>| match path {
        [Step::Key(k), rest @ ..] if *k == key => Some(rest),
        _ => None,
    };
    paths.iter().filter_map(into).collect()
}

/// The paths that lead on into an element of an array: by `[]`, by its place, or by naming a key of it.
fn into_element<'a>(paths: &[Tail<'a>], place: usize) -> Vec<Tail<'a>> {
    let into = |path: &Tail<'a>| match path {
        [Step::Every, rest @ ..] => Some(rest),
        [Step::At(at), rest @ ..] => (*at == place).then_some(rest),
        whole => Some(*whole),
    };
    paths.iter().filter_map(into).collect()
}

/// What of a value lies on one of the paths; `None` if nothing does.
fn include(value: &Value, paths: &[Tail<'_>]) -> Option<Value> {
    if paths.iter().any(|path| path.is_empty()) {
        return Some(value.clone());
    }
    match value {
        Value::Object(object) => {
            let kept: Payload = object
                .iter()
                .filter_map(|(key, v)| Some((key.clone(), include(v, &into_key(paths, key))?)))
                .collect();
            (!kept.is_empty()).then_some(Value::Object(kept))
        }
        Value::Array(elements) => {
            let kept: Vec<Value> = elements
                .iter()
                .enumerate()
                .filter_map(|(place, v)| include(v, &into_element(paths, place)))
                .collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        _ => None,
    }
}

/// A value without what lies on one of the paths; `None` if it lies on one itself.
fn exclude(value: &Value, paths: &[Tail<'_>]) -> Option<Value> {
    if paths.iter().any(|path| path.is_empty()) {
        return None;
    }
    Some(match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .filter_map(|(key, v)| Some((key.clone(), exclude(v, &into_key(paths, key))?)))
                .collect(),
        ),
        Value::Array(elements) => Value::Array(
            elements
                .iter()
                .enumerate()
                .filter_map(|(place, v)| exclude(v, &into_element(paths, place)))
                .collect(),
        ),
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn payload_paths() {
        let value = json!({"a": {"b": 1, "c": 2}, "l": [{"x": 1, "y": 2}, {"y": 3}], "z": 0});
        let paths: Vec<FieldPath> = ["a.b", "l[].x", "nowhere"].map(|p| p.parse().unwrap()).into();
        let steps: Vec<Vec<Step<'_>>> = paths.iter().map(|p| p.steps().collect()).collect();
        assert_eq!(include(&value, &tails(&steps)), Some(json!({"a": {"b": 1}, "l": [{"x": 1}]})));
        assert_eq!(
            exclude(&value, &tails(&steps)),
            Some(json!({"a": {"c": 2}, "l": [{"y": 2}, {"y": 3}], "z": 0}))
        );
    }
}

//! How much of what searches should find they do find: a few of them are answered again, exactly, in the background.
//!
//! Invariants: both answers are of one view, so that nothing but the index lies between them; one search a node at a
//! time, and for no more than a hundredth of one core's; what would be looked at meanwhile is left out; no answer waits
//! for any of it.
//! Deliberately absent: what is done about a low recall.
//! Source: recall at k as ann-benchmarks has it (Aumüller et al., 2020): a row as near as the last of the exact answer
//! counts, whichever of its equals that is.

use super::{
    Cluster,
    read::{Found, ShardRead, ShardSearch},
    shards::LocalShard,
};
use crate::{
    model::{Projection, ScoredPoint, SearchParams, SearchRequest, Target},
    shard::ReadView,
    world,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};
use tokio::time::Instant;

/// Chooses searches to be looked at, one at a time.
pub(super) struct RecallMeter {
    /// The part of searches that is looked at, 0 to 1.
    share: f64,
    busy: AtomicBool,
    /// Until when nobody gets the turn, since the last one took so long.
    rests_until: Mutex<Option<Instant>>,
}

/// How many times as long as a turn took there is none.
const RESTS: u32 = 99;

/// What was found of what there was to find, over the searches of one replica that were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RecallFigures {
    /// Searches that were looked at.
    pub samples: u64,
    /// The sum of their recalls, each 0 to 1.
    pub sum: f64,
}

/// The figures of one replica, since it was opened.
#[derive(Default)]
pub(super) struct Recalls(Mutex<RecallFigures>);

impl Recalls {
    pub(super) fn figures(&self) -> RecallFigures {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, recall: f64) {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures.samples += 1;
        figures.sum += recall;
    }
}

/// The one turn of a node; given back when dropped.
pub(super) struct Turn {
    of: Arc<RecallMeter>,
    since: Instant,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let rests_until = now + (now - self.since) * RESTS;
        *self.of.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(rests_until);
        self.of.busy.store(false, Ordering::Release);
    }
}

impl RecallMeter {
    /// `share`: of the searches, 0 to 1; 0 looks at none.
    pub(super) fn new(share: f64) -> Arc<Self> {
        Arc::new(RecallMeter { share, busy: AtomicBool::new(false), rests_until: Mutex::default() })
    }

    /// Whether a search is looked at, or the rest after the last one is not over.
    #[cfg(test)]
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) || self.rests()
    }

    fn rests(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn chosen(&self) -> bool {
        // A float has 53 bits for it.
        ((world::chance() >> 11) as f64) < self.share * (1u64 << 53) as f64
    }

    /// The turn, if nobody has it, nor has had it for long of late.
    pub(super) fn turn(self: &Arc<Self>) -> Option<Turn> {
        let free = !self.rests() && !self.busy.swap(true, Ordering::Acquire);
        free.then(|| Turn { of: self.clone(), since: Instant::now() })
    }
}

impl Cluster {
    /// Looks at one of the searches that were just answered, perhaps.
    pub(super) fn sample_recall(
        &self,
        local: &Arc<LocalShard>,
        view: &Arc<ReadView>,
        read: &ShardRead,
        found: &Found,
    ) {
        let meter = &self.inner.recall;
        let ShardRead::Search(searches) = read else { return };
        if meter.share <= 0.0 {
            return;
        }
        let approximate = |search: &ShardSearch| {
            matches!(search.request.target, Target::Nearest(_)) && !search.request.params.exact
        };
        let chosen = searches.iter().enumerate().find(|(_, search)| approximate(search) && meter.chosen());
        let Some((number, search)) = chosen else { return };
        let hits = match found {
            Found::Hits(hits) => hits.get(number),
            Found::Explained(explained) => explained.get(number).map(|(hits, _)| hits),
            _ => None,
        };
        let (Some(hits), Some(turn)) = (hits, meter.turn()) else { return };
        let found: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
        let (local, view, search) = (local.clone(), view.clone(), search.clone());
        world::aside(move || {
            let _turn = turn;
            match exact_scores(&view, search) {
                Ok((exact, larger_is_nearer)) => {
                    recall(&found, &exact, larger_is_nearer).into_iter().for_each(|r| local.recalls.note(r));
                }
                Err(error) => tracing::debug!(%error, "a search was not answered a second time"),
            }
        });
    }
}

/// The scores of the exact answer, nearest first, and which way they go.
fn exact_scores(
    view: &ReadView,
    search: ShardSearch,
) -> Result<(Vec<f32>, bool), crate::machine::MachineError> {
    let params = SearchParams { exact: true, ..search.request.params };
    let request = SearchRequest { params, projection: Projection::default(), ..search.request };
    let hits: Vec<ScoredPoint> = view.search(&request, search.exclude, None)?;
    let distance = view.schema().vectors.get(&request.using).map(|params| params.distance);
    Ok((
        hits.iter().map(|hit| hit.score).collect(),
        distance.is_some_and(crate::model::Distance::larger_is_nearer),
    ))
}

/// The part of the exact answer that was found; `None` if there was nothing to find.
fn recall(found: &[f32], exact: &[f32], larger_is_nearer: bool) -> Option<f64> {
    let last = exact.last()?;
    let near = |score: &&f32| if larger_is_nearer { *score >= last } else { *score <= last };
    Some(found.iter().filter(near).count().min(exact.len()) as f64 / exact.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_as_near_as_the_last_counts_whichever_it_is() {
        assert_eq!(recall(&[0.1, 0.2, 0.9], &[0.1, 0.2, 0.3], false), Some(2.0 / 3.0));
        assert_eq!(recall(&[0.9, 0.2, 0.1], &[0.9, 0.8, 0.2], true), Some(2.0 / 3.0));
        assert_eq!(recall(&[0.1, 0.3, 0.3], &[0.1, 0.3], false), Some(1.0), "equals");
        assert_eq!(recall(&[], &[0.1, 0.2], false), Some(0.0));
        assert_eq!(recall(&[], &[], false), None, "nothing was there to be found");
    }

    #[test]
    fn a_share_of_the_searches_is_chosen_and_one_has_the_turn() {
        let chosen = |share| {
            let meter = RecallMeter::new(share);
            (0..20_000).filter(|_| meter.chosen()).count()
        };
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 20_000));
        // 200 are expected; six deviations are 85.
        assert!((115..285).contains(&chosen(0.01)), "{}", chosen(0.01));
        let meter = RecallMeter::new(1.0);
        let turn = meter.turn();
        assert!(turn.is_some() && meter.turn().is_none());
        std::thread::sleep(std::time::Duration::from_millis(2));
        drop(turn);
        assert!(meter.turn().is_none(), "99 times as long as it took, there is none");
        std::thread::sleep(std::time::Duration::from_millis(600));
        assert!(meter.turn().is_some());
    }
}

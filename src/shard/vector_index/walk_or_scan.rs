//! Whether to walk a segment's graph or to scan the rows that are allowed, and how far to walk.
//!
//! A walk that accepts only a share of the rows expands as many times more; a scan costs the less the fewer there
//! are. The crossing is measured (`docs/BENCHMARKS.md`, filters).
//! Deliberately absent: which rows a filter allows (`plan`).

use crate::model::HnswParams;

/// What a row that a walk scores costs against one that is scanned, all rows being: those lie behind each other in memory.
const AGAINST_ALL: f64 = 3.0;
/// The same, a share of them being. Where both cost the same, 8 % of 100,000 rows of MiniLM and 4 % of 398,000 of GloVe, it
/// is 1.1 and 1.6.
const AGAINST_SOME: f64 = 1.3;
/// A walk that expands so many times what evenly spread rows would make it expand is given up for a scan.
const EXPANDED_MAX: f64 = 4.0;

/// How far a walk goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Rows that are wanted.
    pub(crate) count: usize,
    /// Candidates that are kept.
    pub(crate) ef: usize,
    /// Nearly every row is accepted, so that the others can be dropped from what was found.
    pub(crate) most: bool,
    /// A walk that must expand more rows than this to find what is accepted has found nothing.
    pub(crate) expanded_max: usize,
}

impl Walk {
    /// The walk that finds `count` of the `allowed` ones among `rows` rows; `None` if a scan of them costs less.
    ///
    /// `ef`: what the caller asks for. `allowed`: `None` if all are.
    pub(crate) fn plan(
        hnsw: HnswParams,
        rows: usize,
        allowed: Option<usize>,
        count: usize,
        ef: Option<usize>,
    ) -> Option<Walk> {
        let matching = allowed.unwrap_or(rows);
        let share = matching as f64 / rows.max(1) as f64;
        let ef = ef.unwrap_or_else(|| default_ef(hnsw, share, count)).max(count);
        let expanded = ef as f64 / share.max(f64::MIN_POSITIVE);
        let scored = expanded * f64::from(hnsw.m);
        let against = if allowed.is_none() { AGAINST_ALL } else { AGAINST_SOME };
        (scored * against < matching as f64).then_some(Walk {
            count,
            ef,
            most: allowed.is_none(),
            expanded_max: (expanded * EXPANDED_MAX) as usize,
        })
    }
}

/// Candidates that are kept where no number is asked for: as many as while the graph was built; fewer where only a
/// share of rows is allowed, since they are the best of as many times more that were passed.
fn default_ef(hnsw: HnswParams, share: f64, count: usize) -> usize {
    let ef = f64::from(hnsw.ef_construct) * share.sqrt();
    (ef as usize).max(count + count / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_scanned_and_many_walked_the_less_far_the_fewer_are_asked_for() {
        let plan = |allowed, ef| Walk::plan(HnswParams::default(), 400_000, allowed, 11, ef);
        let all = plan(None, None).expect("a walk");
        assert!(all.most && all.ef == 128 && all.expanded_max == 4 * 128);
        assert_eq!(plan(None, Some(5)).expect("a walk").ef, 11, "as many as are wanted");
        let tenth = plan(Some(40_000), None).expect("a walk");
        assert!(!tenth.most && (16..64).contains(&tenth.ef), "{tenth:?}");
        assert!(plan(Some(40_000), Some(256)).is_none(), "as many would be scored");
        for allowed in [0, 1, 400, 4_000, 12_000] {
            assert!(plan(Some(allowed), None).is_none(), "{allowed}");
        }
        // Where walking and scanning were measured to cost the same lies between: 8 % of 100,000 rows, 4 % of 400,000.
        for (rows, walked, scanned) in [(100_000, 10_000, 7_000), (400_000, 20_000, 12_000)] {
            let walks = |allowed| Walk::plan(HnswParams::default(), rows, Some(allowed), 11, None).is_some();
            assert!(walks(walked) && !walks(scanned), "of {rows} rows");
        }
        assert!(Walk::plan(HnswParams::default(), 4_000, None, 11, None).is_none(), "a small segment");
        assert!(Walk::plan(HnswParams::default(), 0, None, 11, None).is_none(), "an empty one");
    }
}

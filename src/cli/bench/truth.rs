//! The true nearest points of queries, and which part of them an answer holds.

use super::{
    super::{
        collection::{Collection, id_text},
        matrix::Matrix,
        server::Failure,
    },
    search::Query,
};
use annal::model::PointId;
use serde::Deserialize;
use std::{collections::HashSet, path::Path};

/// True answers, of some of the queries.
pub(super) struct Truth {
    nearest: Vec<Option<HashSet<PointId>>>,
    k: usize,
}

/// Parts of answers that are true, summed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Recall {
    sum: f64,
    answers: u64,
}

impl Recall {
    pub(super) fn mean(self) -> Option<f64> {
        (self.answers > 0).then(|| self.sum / self.answers as f64)
    }

    /// None if nothing was measured.
    pub(super) fn answers(self) -> Option<u64> {
        (self.answers > 0).then_some(self.answers)
    }

    pub(super) fn add(&mut self, other: Recall) {
        self.sum += other.sum;
        self.answers += other.answers;
    }
}

impl Truth {
    /// Of no query.
    pub(super) fn none(queries: usize, k: usize) -> Self {
        Truth { nearest: vec![None; queries], k }
    }

    /// From a file whose row q holds the ids of the points that are nearest to query q, nearest first.
    ///
    /// Errors: names the file; it has too few rows or columns.
    pub(super) fn read(path: &Path, queries: usize, k: usize) -> Result<Self, Failure> {
        let mut matrix = Matrix::open(path)?;
        let (rows, columns) = (matrix.rows(), matrix.columns());
        if rows < queries as u64 || columns < k {
            let has = format!("has {rows} rows of {columns}");
            return Err(format!("{}: {has}, {queries} queries want {k} each", path.display()).into());
        }
        let mut truth = Truth::none(queries, k);
        for nearest in &mut truth.nearest {
            let ids = matrix.next_ids()?.ok_or("the file ends early")?;
            *nearest = Some(ids[..k].iter().map(|id| PointId::Num(*id)).collect());
        }
        Ok(truth)
    }

    /// Asked of the server, exactly, for so many of the queries, evenly spread.
    ///
    /// Errors: a search that was not answered.
    pub(super) fn asked(
        of: &Collection,
        queries: &[Query],
        k: usize,
        sample: usize,
    ) -> Result<Self, Failure> {
        let mut truth = Truth::none(queries.len(), k);
        for at in sampled(queries.len(), sample) {
            let reply = of.call("POST", "/points/query", &queries[at].exact)?;
            truth.nearest[at] = Some(found(&reply.expect::<Found>("an exact search")?).collect());
        }
        Ok(truth)
    }

    /// Asks the queries whose truth is known as they are.
    ///
    /// Errors: a search that was not answered.
    pub(super) fn recall_of(&self, of: &Collection, queries: &[Query]) -> Result<Recall, Failure> {
        let mut recall = Recall::default();
        for (at, query) in queries.iter().enumerate().filter(|(at, _)| self.knows(*at)) {
            let reply = of.call("POST", "/points/query", &query.body)?;
            recall.add(self.recall(at, &reply.text)?);
        }
        Ok(recall)
    }

    pub(super) fn knows(&self, query: usize) -> bool {
        self.nearest[query].is_some()
    }

    /// Which part of the true answer to a query this one holds; nothing if that is not known.
    ///
    /// Errors: the answer is no list of points, or holds one twice.
    pub(super) fn recall(&self, query: usize, answer: &str) -> Result<Recall, Failure> {
        let Some(nearest) = &self.nearest[query] else { return Ok(Recall::default()) };
        let answer: Found =
            serde_json::from_str(answer).map_err(|e| format!("an answer is not what it should be: {e}"))?;
        let mut seen = HashSet::new();
        if let Some(twice) = found(&answer).find(|id| !seen.insert(*id)) {
            return Err(format!("an answer holds point {} twice", id_text(twice)).into());
        }
        // A filter may leave fewer than k; where there are none, none is all.
        let wanted = nearest.len().min(self.k);
        let right = seen.intersection(nearest).count();
        let sum = if wanted == 0 { 1.0 } else { right as f64 / wanted as f64 };
        Ok(Recall { sum, answers: 1 })
    }
}

/// So many of `all`, evenly spread.
fn sampled(all: usize, sample: usize) -> impl Iterator<Item = usize> {
    let count = sample.min(all);
    (0..count).map(move |n| n * all / count)
}

/// What a search found.
#[derive(Deserialize)]
struct Found {
    result: FoundPoints,
}

#[derive(Deserialize)]
struct FoundPoints {
    points: Vec<FoundPoint>,
}

#[derive(Deserialize)]
struct FoundPoint {
    id: PointId,
}

fn found(answer: &Found) -> impl Iterator<Item = PointId> {
    answer.result.points.iter().map(|point| point.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_spread() {
        let of = |all, sample| sampled(all, sample).collect::<Vec<_>>();
        assert_eq!(of(10, 4), [0, 2, 5, 7]);
        assert_eq!(of(3, 9), [0, 1, 2]);
        assert_eq!(of(0, 9), [0; 0]);
        assert_eq!(of(9, 0), [0; 0]);
    }

    #[test]
    fn recall_is_the_part_that_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.ivecs");
        let row = |ids: [i32; 3]| [3, ids[0], ids[1], ids[2]].map(i32::to_le_bytes).concat();
        std::fs::write(&path, [row([4, 5, 6]), row([1, 2, 3])].concat()).unwrap();
        let truth = Truth::read(&path, 2, 2).unwrap();
        let answer = |ids: &[u32]| {
            let points: Vec<_> = ids.iter().map(|id| serde_json::json!({"id": id, "score": 1.0})).collect();
            serde_json::json!({"result": {"points": points}, "status": "ok", "time": 0.1}).to_string()
        };
        let mut recall = truth.recall(0, &answer(&[5, 6])).unwrap();
        assert_eq!(recall, Recall { sum: 0.5, answers: 1 }, "6 is the third");
        recall.add(truth.recall(1, &answer(&[2, 1])).unwrap());
        recall.add(truth.recall(1, &answer(&[])).unwrap());
        assert_eq!((recall.answers, recall.mean()), (3, Some(0.5)));
        assert!(truth.recall(0, &answer(&[5, 5])).unwrap_err().to_string().contains("point 5 twice"));
        truth.recall(0, "{}").unwrap_err();
        assert_eq!(Recall::default().mean(), None);
        assert_eq!(Truth::none(1, 2).recall(0, "{}").unwrap(), Recall::default());

        for (queries, k, wanted) in [(3, 2, "2 rows of 3, 3 queries want 2"), (2, 4, "2 queries want 4 each")]
        {
            let error = Truth::read(&path, queries, k).err().unwrap().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}

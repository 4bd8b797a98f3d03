//! Points whose vectors are the rows of a matrix, with a file of lines beside it for what a matrix cannot hold.

use super::{
    super::{
        matrix::Matrix,
        progress::Extent,
        row::{Content, Row},
        server::Failure,
    },
    Names,
    lines::Beside,
    source::{Ids, Source},
};
use std::path::Path;

/// A matrix, and what stands beside it.
pub(super) struct MatrixRows {
    matrix: Matrix,
    beside: Beside,
    ids: Ids,
    name: String,
    next: u64,
}

impl MatrixRows {
    /// Errors: a format that holds no vectors, or a damaged head.
    pub(super) fn open(path: &Path, beside: Beside, ids: Ids) -> Result<Self, Failure> {
        let name = path.display().to_string();
        if path.extension().is_some_and(|e| e == "ivecs") || !is_matrix(path) {
            let ends = "its name ends in none of .npy, .fvecs, .bvecs, .fbin, .parquet, .jsonl";
            return Err(format!("{name}: {ends}").into());
        }
        if matches!((&ids, &beside), (Ids::Field(_), Beside::Nothing)) {
            return Err("--id-field wants --payload".into());
        }
        Ok(MatrixRows { matrix: Matrix::open(path)?, beside, ids, name, next: 0 })
    }
}

fn is_matrix(path: &Path) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| Matrix::ENDINGS.contains(&e))
}

impl Source for MatrixRows {
    fn extent(&self) -> Extent {
        Extent::Points(self.matrix.rows())
    }

    fn passed(&self) -> u64 {
        self.next
    }

    fn names(&self) -> Names {
        Names::Rows(self.name.clone())
    }

    fn next(&mut self) -> Result<Option<Row>, Failure> {
        let Some(vector) = self.matrix.next_vector()? else {
            self.beside.ends(self.matrix.rows())?;
            return Ok(None);
        };
        let (said, payload) = self.beside.next(self.matrix.rows())?;
        let id = self.ids.of(self.next, said, payload.as_deref());
        let id = id.map_err(|why| format!("{} row {}: {why}", self.name, self.next))?;
        let row = Row { place: self.next, id, vector: Content::Dense(vector), payload };
        self.next += 1;
        Ok(Some(row))
    }
}

//! What benches of searches share: sets of real vectors with their true neighbours, and usearch beside us.
//!
//! A set is a folder with either `vectors.f16.npy`, `queries.f32.npy`, `neighbors*.i32.npy`, or `*_base.fbin`,
//! `*_query.fbin`, `*_gt100.ibin` (what the recipes of GloVe write); all Cosine, neighbours exact. Whoever includes this has
//! `use annal::{durable, model, world};` at its root, where the shard's rooms look for them.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};
use usearch::{Index, MetricKind};

/// Neighbours that are looked for.
pub const K: usize = 10;

/// The shard's own rooms, as they are.
#[path = "../../src/shard/vector_index"]
pub mod vector_index {
    mod bit_kernel;
    pub mod bits;
    pub mod build;
    mod code_kernel;
    pub mod codes;
    pub mod graph;
    pub mod grow;
    pub mod kernel;
    mod resident;
    pub mod segment;
    mod segment_search;
    pub mod walk_or_scan;
}

pub fn usearch_finds(index: &Index, query: &[f32], ef: usize) -> Vec<u64> {
    index.change_expansion_search(ef);
    index.search(query, K).expect("a query of its dimension").keys
}

pub fn recall_of_usearch(index: &Index, set: &Set, ef: usize) -> f64 {
    set.recall(|query| usearch_finds(index, query, ef).into_iter().map(|key| key as u32).collect())
}

pub fn usearch_with_its_own_metric(index: Index) -> Index {
    index.change_metric_kind(MetricKind::IP).expect("a metric it has");
    index
}

/// The least number of candidates that reaches a recall.
pub fn least_ef(wanted: f64, recall: impl Fn(usize) -> f64) -> Option<usize> {
    let (mut low, mut high) = (K, 1024);
    if recall(high) < wanted {
        return None;
    }
    while low < high {
        let middle = (low + high) / 2;
        if recall(middle) < wanted { low = middle + 1 } else { high = middle }
    }
    Some(high)
}

pub fn quantile(figures: &mut [f64], share: f64) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[((figures.len() - 1) as f64 * share).round() as usize]
}

/// CPU seconds of this thread.
pub fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

pub struct Set {
    pub name: String,
    pub dim: usize,
    pub base: Vec<f32>,
    pub queries: Vec<f32>,
    pub truth: Vec<HashSet<u32>>,
}

impl Set {
    pub fn read(folder: &Path) -> Set {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let ending = |end: &str| -> Option<PathBuf> {
            let files = fs::read_dir(folder).expect("a folder of data").map(|f| f.expect("its files").path());
            files.into_iter().find(|path| path.to_str().expect("a name in UTF-8").ends_with(end))
        };
        let sets =
            |ids: Vec<u32>, k: usize| ids.chunks_exact(k).map(|r| r[..K].iter().copied().collect()).collect();
        if let Some(base) = ending("_base.fbin") {
            let (base, dim) = words(&base, f32::from_le_bytes);
            let (queries, _) =
                words(&ending("_query.fbin").expect("queries beside the vectors"), f32::from_le_bytes);
            let (ids, k) =
                words(&ending("_gt100.ibin").expect("neighbours beside the vectors"), u32::from_le_bytes);
            return Set { name, dim, base, queries, truth: sets(ids, k) };
        }
        let (base, dim) = npy::<half::f16>(&folder.join("vectors.f16.npy"));
        let (queries, _) = npy::<f32>(&folder.join("queries.f32.npy"));
        let (ids, k) = npy::<i32>(&ending(".i32.npy").expect("neighbours beside the vectors"));
        Set {
            name,
            dim,
            base: base.into_iter().map(half::f16::to_f32).collect(),
            queries,
            truth: sets(ids.into_iter().map(|id| id as u32).collect(), k),
        }
    }

    /// Share of the true neighbours that a search finds.
    pub fn recall(&self, mut search: impl FnMut(&[f32]) -> Vec<u32>) -> f64 {
        let queries = self.queries.chunks_exact(self.dim).zip(&self.truth);
        let hits: usize = queries
            .map(|(query, truth)| search(query).iter().filter(|row| truth.contains(row)).count())
            .sum();
        hits as f64 / (self.truth.len() * K) as f64
    }
}

/// A matrix with its two sizes before it.
fn words<T>(path: &Path, word: fn([u8; 4]) -> T) -> (Vec<T>, usize) {
    let bytes = fs::read(path).expect("a readable file");
    let words = bytes.as_chunks::<4>().0;
    (words[2..].iter().map(|w| word(*w)).collect(), u32::from_le_bytes(words[1]) as usize)
}

fn npy<T: npyz::Deserialize>(path: &Path) -> (Vec<T>, usize) {
    let file = npyz::NpyFile::new(fs::File::open(path).expect("a readable file")).expect("an npy file");
    let columns = file.shape()[1] as usize;
    (file.into_vec().expect("numbers of this type"), columns)
}

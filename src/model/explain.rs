//! What a search did on one shard, told beside its answer when that is asked for.
//!
//! Travels between nodes as it stands here, and is the JSON that `Annal-Explain: true` gives; fields are only added.
//! Not here: who counts (`shard/vector_index`), what an answer looks like around it (`api/envelope`).

use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// What one search did on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// What the filter left; `None` without a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterExplanation>,
    /// How often the parts were searched: once more, for more, while too few of what they gave passed the filter.
    pub rounds: u32,
    /// Segments, then deltas; none if no vector was searched for.
    pub parts: Vec<PartExplanation>,
    /// Over all parts.
    pub cost: SearchCost,
    /// Time on the shard, in microseconds, without waiting for it.
    pub micros: u64,
}

/// How many points of the shard a filter lets pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilterExplanation {
    /// Certainly so many, as the payload indexes have it.
    pub estimated_min: u64,
    /// And not more than so many.
    pub estimated_max: u64,
    /// How many, if all of them were told apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<u64>,
    /// Points whose payload was read to tell.
    pub payloads_read: u64,
}

/// How one segment or delta was searched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartExplanation {
    /// What it is.
    pub part: PartKind,
    /// Rows it has, dead ones too.
    pub rows: u64,
    /// Rows the filter allows, no more than; `None` without a filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_estimated: Option<u64>,
    /// Rows that are live and allowed, where all of them were gone through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_actual: Option<u64>,
    /// What gave the answer.
    pub plan: SearchPlan,
    /// Candidates that a walk kept; also where it found too few, and a scan gave the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef: Option<u64>,
    /// Bits of a code; `None` if all was compared by f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_bits: Option<u32>,
    /// What it took.
    pub cost: SearchCost,
}

/// A part of a vector index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// A graph.
    #[default]
    Segment,
    /// Waits for a graph.
    SealedDelta,
    /// Takes what is written.
    OpenDelta,
}

/// How the nearest rows of a part are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchPlan {
    /// By walking the graph.
    Walk,
    /// By scanning the codes (f32 where there are none) of all rows that are allowed.
    #[default]
    Scan,
    /// By comparing every row by f32, as the request asks.
    Exact,
}

/// What a search took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SearchCost {
    /// Distances computed over codes.
    pub distances_codes: u64,
    /// Distances computed over f32.
    pub distances_f32: u64,
    /// Bytes of codes, vectors and links that were read.
    pub bytes_read: u64,
}

impl AddAssign for SearchCost {
    fn add_assign(&mut self, more: Self) {
        self.distances_codes += more.distances_codes;
        self.distances_f32 += more.distances_f32;
        self.bytes_read += more.bytes_read;
    }
}

impl Explanation {
    /// Notes how a part was searched, which may have been searched in an earlier round too: costs add up.
    pub fn note(&mut self, number: usize, mut part: PartExplanation) {
        self.cost += part.cost;
        if let Some(before) = self.parts.get_mut(number) {
            part.cost += before.cost;
            *before = part;
        } else {
            self.parts.push(part);
        }
    }
}

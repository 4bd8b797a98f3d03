//! The smallest history that shows a violation, as bars over time: one row a process.
//!
//! Invariants: a finding of a point shows its shrunk history, if the search for an order fails on it; else the
//! operations that the finding names. Time is the order of events, not nanoseconds: what overlaps, overlaps.

use super::escape;
use crate::{
    checker::{Finding, observe, shrink::shrink},
    history::{NEVER, Op, Outcome, Process},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::{Duration, Instant},
};

/// How long shrinking one history may take.
const SHRINK_WITHIN: Duration = Duration::from_secs(5);
/// Operations drawn at most.
const OPS_MAX: usize = 24;

const WIDTH: f64 = 1060.0;
const ROW: f64 = 26.0;
const LEFT: f64 = 70.0;

/// Draws what a finding is about; nothing if it names no operation.
pub(super) fn draw(ops: &[Op], finding: &Finding) -> String {
    let named: BTreeSet<u64> = finding.ops.iter().copied().collect();
    let mut shown = finding.key.map(|key| shrunk(ops, &finding.workload, key)).unwrap_or_default();
    if shown.is_empty() || shown.len() > OPS_MAX {
        shown = named;
    }
    let shown: Vec<&Op> = ops.iter().filter(|op| shown.contains(&op.invoked)).collect();
    if shown.is_empty() { String::new() } else { svg(&shown, finding.key) }
}

/// Operations of a point that cannot be put in an order, as few as can be; none if they can.
fn shrunk(ops: &[Op], workload: &str, key: u64) -> BTreeSet<u64> {
    let of: Vec<Op> = ops.iter().filter(|op| op.workload == workload).cloned().collect();
    let registers = observe::registers(&of);
    let accesses = registers.by_key.get(&key).map_or(&[][..], Vec::as_slice);
    shrink(accesses, Instant::now() + SHRINK_WITHIN).iter().map(|access| access.op).collect()
}

fn svg(ops: &[&Op], key: Option<u64>) -> String {
    let moments: BTreeSet<u64> =
        ops.iter().flat_map(|op| [op.invoked, op.ended]).filter(|at| *at != NEVER).collect();
    let place: BTreeMap<u64, usize> = moments.iter().enumerate().map(|(n, at)| (*at, n + 1)).collect();
    let step = (WIDTH - LEFT - 20.0) / (place.len() + 1) as f64;
    let x = |at: u64| LEFT + step * place.get(&at).map_or(place.len() + 1, |n| *n) as f64;
    let processes: BTreeSet<Process> = ops.iter().map(|op| op.process).collect();
    let row: BTreeMap<Process, usize> =
        processes.into_iter().enumerate().map(|(n, process)| (process, n)).collect();
    let height = ROW * row.len() as f64 + 12.0;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\">\n");
    for (process, n) in &row {
        let name = match process {
            Process::Client(number) => format!("client {number}"),
            Process::Nemesis(_) => "nemesis".to_owned(),
        };
        let _ = writeln!(svg, "<text x=\"6\" y=\"{:.1}\">{name}</text>", ROW * *n as f64 + 22.0);
    }
    for op in ops {
        let class = match op.outcome {
            Outcome::Ok => "ok",
            Outcome::Fail => "fail",
            Outcome::Info => "info",
        };
        let (from, to, y) = (x(op.invoked), x(op.ended), ROW * row[&op.process] as f64 + 6.0);
        let shown = told(op, key);
        let _ = writeln!(
            svg,
            "<g><title>{}</title><rect class=\"bar {class}\" x=\"{from:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"6\" rx=\"2\"/>\
             <text class=\"told\" x=\"{from:.1}\" y=\"{:.1}\">{}</text></g>",
            escape(&format!("operation {} at {:?}: {} {}", op.invoked, op.node, op.f, op.input)),
            (to - from).max(3.0),
            y + 17.0,
            escape(&shown)
        );
    }
    svg + "</svg>\n"
}

/// What an operation did to the point, in a few words.
fn told(op: &Op, key: Option<u64>) -> String {
    let version = op.version.map(|version| format!(" @{version}")).unwrap_or_default();
    match op.f.as_str() {
        "read" => format!("read {}{version}", op.output),
        "write" | "add" => format!("write {}{version}", op.input),
        "cas" => format!("cas {}{version}", op.input),
        "delete" => format!("delete{version}"),
        "intend" | "write-batch" => format!("{} {}{version}", op.f, op.input["v"]),
        f => {
            let hits = observe::hits_of(op);
            match hits.iter().find(|hit| Some(hit.id) == key) {
                Some(hit) => format!("{f} shows {}", hit.v),
                None => format!("{f} shows {} points, not this one", hits.len()),
            }
        }
    }
}

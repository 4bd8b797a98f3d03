//! Charts over the time of a run, in SVG.
//!
//! Invariants: all share one time axis, so that they can be read one above the other; times that took less than 0.1
//! ms are drawn at 0.1 ms.

use super::escape;
use crate::history::{Op, Outcome};
use hdrhistogram::Histogram;
use std::{collections::BTreeMap, fmt::Write};

/// A fault, from its start to its end in nanoseconds.
pub(super) struct Band {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) name: String,
    pub(super) what: String,
}

const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 24.0;

/// Dots drawn at most; of more every nth is.
const DOTS_MAX: usize = 6_000;

/// No operation takes longer than a minute.
const MICROS_MAX: u64 = 60_000_000;

const SECOND: f64 = 1e9;

/// Where things are on the paper.
struct Frame {
    seconds: f64,
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Frame {
    fn new(ops: &[Op], low: f64, high: f64, logarithmic: bool) -> Self {
        let seconds = ops.iter().map(|op| op.time.1).max().unwrap_or(0) as f64 / SECOND;
        Frame { seconds: seconds.max(1.0), low, high, logarithmic }
    }

    fn x(&self, nanos: u64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (nanos as f64 / SECOND / self.seconds).min(1.0)
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.logarithmic { v.max(self.low).log10() } else { v };
        let part = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part.clamp(0.0, 1.0)
    }

    /// Bands, axes and what is drawn over them.
    fn svg(&self, bands: &[Band], ticks: &[(f64, String)], body: &str) -> String {
        let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n");
        for (n, band) in bands.iter().enumerate() {
            let (from, to) = (self.x(band.from), self.x(band.to).max(self.x(band.from) + 1.0));
            let _ = writeln!(
                svg,
                "<g><title>{}</title><rect class=\"band\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>\
                 <text class=\"bandname\" x=\"{from:.1}\" y=\"{}\">{}</text></g>",
                escape(&band.what),
                to - from,
                HEIGHT - TOP - BOTTOM,
                // Names of neighbours stand on two lines.
                if n % 2 == 0 { 12 } else { 25 },
                escape(&band.name)
            );
        }
        for (value, text) in ticks {
            let y = self.y(*value);
            let _ = writeln!(
                svg,
                "<line class=\"tick\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0
            );
        }
        let step = [1u64, 2, 5, 10, 20, 30, 60, 120, 300, 600];
        let step = step.into_iter().find(|step| self.seconds / *step as f64 <= 14.0).unwrap_or(1_800);
        for second in (0..=self.seconds as u64).step_by(step as usize) {
            let x = self.x(second * SECOND as u64);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
                HEIGHT - 7.0
            );
        }
        svg += body;
        svg + "</svg>\n"
    }
}

/// Every operation: when it began, how long it took, what became of it.
pub(super) fn latency(ops: &[Op], bands: &[Band]) -> String {
    let frame = Frame::new(ops, 0.1, 20_000.0, true);
    let clients: Vec<&Op> = ops.iter().filter(|op| is_asked(op)).collect();
    let every = clients.len().div_ceil(DOTS_MAX).max(1);
    let mut body = String::new();
    // What failed is rare and says most: all of it is drawn, on top.
    for (class, outcome) in [("ok", Outcome::Ok), ("fail", Outcome::Fail), ("info", Outcome::Info)] {
        let of = clients.iter().filter(|op| op.outcome == outcome);
        let step = if outcome == Outcome::Ok { every } else { every.div_ceil(4) };
        for op in of.step_by(step) {
            let (x, y) = (frame.x(op.time.0), frame.y(millis(op)));
            let _ = write!(body, "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.7\"/>");
        }
    }
    let note = if every > 1 { format!("<small>one of {every} is drawn</small>\n") } else { String::new() };
    frame.svg(bands, &time_ticks(), &body) + &note
}

/// Median, 95th and 99th of a hundred of each second.
pub(super) fn quantiles(ops: &[Op], bands: &[Band]) -> String {
    let frame = Frame::new(ops, 0.1, 20_000.0, true);
    let mut seconds: BTreeMap<u64, Histogram<u64>> = BTreeMap::new();
    for op in ops.iter().filter(|op| is_asked(op) && op.outcome == Outcome::Ok) {
        let histogram = seconds.entry(op.time.1 / SECOND as u64);
        let histogram = histogram
            .or_insert_with(|| Histogram::new_with_max(MICROS_MAX, 3).expect("a range of positive numbers"));
        histogram.saturating_record((op.time.1 - op.time.0) / 1_000);
    }
    let curve = |quantile: f64| -> Vec<(u64, f64)> {
        let at = |(second, histogram): (&u64, &Histogram<u64>)| {
            ((*second * 2 + 1) * SECOND as u64 / 2, histogram.value_at_quantile(quantile) as f64 / 1e3)
        };
        seconds.iter().map(at).collect()
    };
    let body: String = [(0.5, "ok", "p50"), (0.95, "fail", "p95"), (0.99, "info", "p99")]
        .into_iter()
        .enumerate()
        .map(|(rank, (quantile, class, name))| line(&frame, &curve(quantile), class, rank, name))
        .collect();
    frame.svg(bands, &time_ticks(), &body)
}

/// What became of the operations of each second.
pub(super) fn rate(ops: &[Op], bands: &[Band]) -> String {
    let mut counts: BTreeMap<(u8, u64), u64> = BTreeMap::new();
    let classes = [("ok", Outcome::Ok), ("fail", Outcome::Fail), ("info", Outcome::Info)];
    for op in ops.iter().filter(|op| is_asked(op)) {
        *counts.entry((op.outcome as u8, op.time.1 / SECOND as u64)).or_default() += 1;
    }
    let high = counts.values().max().copied().unwrap_or(1).next_power_of_two().max(8) as f64;
    let frame = Frame::new(ops, 0.0, high, false);
    let last = frame.seconds as u64;
    let curve = |outcome: Outcome| -> Vec<(u64, f64)> {
        let count = |second| counts.get(&(outcome as u8, second)).copied().unwrap_or(0) as f64;
        (0..=last).map(|second| ((second * 2 + 1) * SECOND as u64 / 2, count(second))).collect()
    };
    let curves = classes.iter().enumerate();
    let body: String =
        curves.map(|(rank, (class, of))| line(&frame, &curve(*of), class, rank, class)).collect();
    let ticks: Vec<_> =
        (0..=4).map(|n| (high * f64::from(n) / 4.0, format!("{}", high * f64::from(n) / 4.0))).collect();
    frame.svg(bands, &ticks, &body)
}

/// What was asked of a node, and not only noted.
fn is_asked(op: &Op) -> bool {
    !["event", "feed-end", "converge", "state-hash", "log"].contains(&op.f.as_str())
}

fn millis(op: &Op) -> f64 {
    (op.time.1 - op.time.0) as f64 / 1e6
}

fn time_ticks() -> Vec<(f64, String)> {
    let ticks =
        [(0.1, "0.1 ms"), (1.0, "1 ms"), (10.0, "10 ms"), (100.0, "100 ms"), (1e3, "1 s"), (1e4, "10 s")];
    ticks.into_iter().map(|(value, text)| (value, text.to_owned())).collect()
}

/// A curve, with a gap where there is nothing for more than a second and a half, and its name at the right.
fn line(frame: &Frame, points: &[(u64, f64)], class: &str, rank: usize, name: &str) -> String {
    let apart = |a: &(u64, f64), b: &(u64, f64)| b.0 - a.0 <= (1.5 * SECOND) as u64;
    let mut svg = String::new();
    for part in points.chunk_by(apart) {
        let path: Vec<String> =
            part.iter().map(|(at, value)| format!("{:.1},{:.1}", frame.x(*at), frame.y(*value))).collect();
        let _ = writeln!(svg, "<polyline class=\"curve {class}\" points=\"{}\"/>", path.join(" "));
    }
    let (x, y) = (WIDTH - RIGHT - 110.0 + 38.0 * rank as f64, TOP + 14.0);
    let _ = writeln!(svg, "<circle class=\"{class}\" cx=\"{x}\" cy=\"{}\" r=\"3\"/>", y - 4.0);
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{y}\">{name}</text>", x + 6.0);
    svg
}

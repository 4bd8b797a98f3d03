//! The kernel against usearch's own search: same graph, same vectors, one thread, interleaved in one process.
//!
//! `ANNAL_BENCH_DATA=DIR[:DIR] cargo bench --bench search`: each folder holds one set (`common`); `tests/data/wordnet-2k` if
//! none is named.
//!
//! For each recall, the least `ef` of each that reaches it; then turns, one after the other; medians. Annal walks
//! the graph that usearch built, and one that it grew itself. Then searches that a share of the rows may answer, and
//! the scan of a delta.
//! usearch compares by our f32 kernel, which is no slower than what it is compiled with here; its own is shown too.
//! With `ANNAL_BENCH_PLOTS=DIR` each set's recall against queries a second is also drawn, as `DIR/NAME.svg`.

#![allow(missing_docs, unreachable_pub, dead_code, unused_imports)]

use annal::{
    durable,
    model::{self, Distance, HnswParams, Position, Residence},
    world,
};
use common::{
    K, Set, cpu_seconds, least_ef, quantile, recall_of_usearch, usearch_finds, usearch_with_its_own_metric,
    vector_index::{
        build::{self, BuildError},
        codes::{Coded, Grid},
        graph::Scratch,
        grow,
        kernel::Metric,
        segment::{Coder, Content, Row, Segment},
        walk_or_scan::Walk,
    },
};
use plotters::prelude::*;
use roaring::RoaringBitmap;
use std::{fs, path::Path, sync::atomic::AtomicBool};
use usearch::Index;

mod common;

const RECALLS: [f64; 3] = [0.955, 0.988, 0.99];
const TURNS: usize = 21;
/// Queries of a turn.
const QUERIES: usize = 500;

fn main() {
    let folders = std::env::var("ANNAL_BENCH_DATA").unwrap_or_else(|_| "tests/data/wordnet-2k".to_owned());
    for folder in folders.split(':') {
        run(&Set::read(Path::new(folder))).expect("usearch takes these vectors");
    }
}

fn run(set: &Set) -> Result<(), BuildError> {
    let (dim, rows, params) = (set.dim, set.base.len() / set.dim, HnswParams::default());
    println!("{}: {rows} vectors of {dim} dimensions, {} queries, {params:?}", set.name, set.truth.len());
    let metric = Metric::of(Distance::Cosine);
    let began = cpu_seconds();
    let index = build::insert(metric, dim, &set.base, params, &AtomicBool::new(false))?;
    let built = build::flatten(&index, rows, params);
    println!("  usearch built it in {:.1} CPU-s", cpu_seconds() - began);
    let folder = tempfile::tempdir().expect("room for the segments");
    let began = cpu_seconds();
    let same = sealed(&folder.path().join("a.seg"), set, &built);
    let per = |bytes: usize| bytes as f64 / rows as f64;
    println!(
        "  coded, written and opened in {:.1} CPU-s; bytes a vector: {:.0} of codes and graph, {:.0} in all",
        cpu_seconds() - began,
        per(same.bytes() as usize - (4 * dim + 16) * rows),
        per(same.bytes() as usize)
    );
    let began = cpu_seconds();
    let grid = Grid::of(dim, set.base.chunks_exact(dim)).expect("codes serve these vectors");
    let codes = grid.encode(set.base.chunks_exact(set.dim));
    let grown = grow::grow(Distance::Cosine, (&grid, &codes), Vec::new(), params, &AtomicBool::new(false))?;
    println!(
        "  grown over codes in {:.1} CPU-s, {} rows unreachable before the audit",
        cpu_seconds() - began,
        grown.unreachable().len()
    );
    let grown = sealed(&folder.path().join("b.seg"), set, &grown);
    let (same, grown) = (Ours { segment: &same, set }, Ours { segment: &grown, set });
    for recall in RECALLS {
        compare(set, recall, &index, &same, &grown);
    }
    if let Some(folder) = std::env::var_os("ANNAL_BENCH_PLOTS") {
        fs::create_dir_all(&folder).expect("a folder for the plots");
        let path = Path::new(&folder).join(format!("{}.svg", set.name));
        plot(&path, set, &index, &same, &grown).expect("room for the plot");
    }
    filtered(set, &grown, params);
    fresh(set);
    let plain = usearch_with_its_own_metric(index);
    let Some(ef) = least_ef(RECALLS[0], |ef| recall_of_usearch(&plain, set, ef)) else { return Ok(()) };
    let mut took: Vec<f64> =
        (0..5).map(|turn| 1.0 / turn_of(set, turn, |query| _ = usearch_finds(&plain, query, ef))).collect();
    println!("  recall {}: usearch by its own kernel {:.0}/CPU-s", RECALLS[0], quantile(&mut took, 0.5));
    Ok(())
}

/// Turns of usearch, of Annal on usearch's graph, and of Annal on its own.
fn compare(set: &Set, recall: f64, index: &Index, same: &Ours<'_>, grown: &Ours<'_>) {
    let efs = [
        least_ef(recall, |ef| recall_of_usearch(index, set, ef)),
        least_ef(recall, |ef| same.recall(ef)),
        least_ef(recall, |ef| grown.recall(ef)),
    ];
    let [Some(their_ef), Some(same_ef), Some(grown_ef)] = efs else {
        return println!("  recall {recall} is out of reach");
    };
    let mut rates = [const { Vec::new() }; 3];
    let mut ratios = [const { Vec::new() }; 2];
    let mut scratch = Scratch::default();
    for turn in 0..TURNS {
        let took = [
            turn_of(set, turn, |query| _ = usearch_finds(index, query, their_ef)),
            turn_of(set, turn, |query| _ = same.finds(query, same_ef, &mut scratch)),
            turn_of(set, turn, |query| _ = grown.finds(query, grown_ef, &mut scratch)),
        ];
        for (rates, took) in rates.iter_mut().zip(took) {
            rates.push(1.0 / took);
        }
        for (ratios, own) in ratios.iter_mut().zip(&took[1..]) {
            ratios.push(took[0] / own);
        }
    }
    let [their, own_same, own_grown] = rates.each_mut().map(|rates| quantile(rates, 0.5));
    println!("  recall {recall}: usearch ef {their_ef}, {their:.0}/CPU-s");
    for (what, ef, rate, ratios) in [
        ("the same graph", same_ef, own_same, &mut ratios[0].clone()),
        ("a grown graph", grown_ef, own_grown, &mut ratios[1].clone()),
    ] {
        println!(
            "    Annal on {what}: ef {ef}, {rate:.0}/CPU-s, {:.2} times (quartiles {:.2} to {:.2})",
            quantile(ratios, 0.5),
            quantile(ratios, 0.25),
            quantile(ratios, 0.75)
        );
    }
}

/// Recall against queries a CPU-second, for a range of `ef`; each the median of turns.
fn plot(
    path: &Path,
    set: &Set,
    index: &Index,
    same: &Ours<'_>,
    grown: &Ours<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    const EFS: [usize; 13] = [10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640];
    let mut scratch = Scratch::default();
    let mut curves = [const { Vec::new() }; 3];
    for ef in EFS {
        let mut took = [const { Vec::new() }; 3];
        for turn in 0..5 {
            took[0].push(turn_of(set, turn, |query| _ = usearch_finds(index, query, ef)));
            took[1].push(turn_of(set, turn, |query| _ = same.finds(query, ef, &mut scratch)));
            took[2].push(turn_of(set, turn, |query| _ = grown.finds(query, ef, &mut scratch)));
        }
        let recalls = [recall_of_usearch(index, set, ef), same.recall(ef), grown.recall(ef)];
        for ((curve, recall), took) in curves.iter_mut().zip(recalls).zip(&mut took) {
            curve.push((recall, 1.0 / quantile(took, 0.5)));
        }
    }
    let from = curves.iter().flatten().map(|(recall, _)| *recall).fold(1.0, f64::min).max(0.8);
    let rates = || curves.iter().flatten().filter(|(recall, _)| *recall >= from).map(|(_, rate)| *rate);
    let (least, most) = (rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max));
    let area = SVGBackend::new(path, (760, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{}: recall@{K} against queries a CPU-second", set.name), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(from..1.0, (least * 0.8..most * 1.2).log_scale())?;
    chart.configure_mesh().x_desc("recall").y_desc("queries a CPU-second").draw()?;
    let names = ["usearch, f32", "Annal on the same graph", "Annal on a graph it grew"];
    for ((curve, name), color) in curves.into_iter().zip(names).zip([&BLACK, &BLUE, &RED]) {
        let seen: Vec<_> = curve.into_iter().filter(|(recall, _)| *recall >= from).collect();
        chart
            .draw_series(LineSeries::new(seen, color.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    println!("  drawn: {}", path.display());
    Ok(())
}

/// Searches that only a share of the rows may answer, evenly spread, as they are planned.
fn filtered(set: &Set, ours: &Ours<'_>, params: HnswParams) {
    const FILTERED_QUERIES: usize = 200;
    let rows = set.base.len() / set.dim;
    let every = set.truth.len().div_ceil(FILTERED_QUERIES);
    let queries = || set.queries.chunks_exact(set.dim).step_by(every);
    let mut scratch = Scratch::default();
    for share in [1.0, 0.5, 0.1, 0.05, 0.03, 0.01, 0.003, 0.001f64] {
        // Fibonacci hashing: which rows are allowed has nothing to do with where they lie.
        let edge = (share * f64::from(u32::MAX)) as u32;
        let allowed: RoaringBitmap =
            (0..rows as u32).filter(|row| row.wrapping_mul(2_654_435_769).reverse_bits() <= edge).collect();
        let some = (share < 1.0).then_some(allowed.len() as usize);
        let walk = Walk::plan(params, rows, some, K + 1, None);
        let began = cpu_seconds();
        let found: Vec<_> = queries()
            .map(|query| match walk {
                Some(walk) => {
                    let accept = |row| some.is_none() || allowed.contains(row);
                    ours.segment.nearest(query, walk, &mut scratch, accept).near
                }
                None => ours.segment.scan(query, K + 1, allowed.iter()).near,
            })
            .collect();
        let took = (cpu_seconds() - began) / found.len() as f64;
        let metric = Metric::of(Distance::Cosine);
        let (mut hits, mut of) = (0, 0);
        for (query, found) in queries().zip(&found) {
            let mut exact: Vec<f32> =
                allowed.iter().map(|row| metric.distance(query, ours.segment.vector(row))).collect();
            let count = K.min(exact.len());
            let (_, tenth, _) = exact.select_nth_unstable_by(count - 1, f32::total_cmp);
            hits += found.iter().filter(|hit| hit.0 <= *tenth).count().min(count);
            of += count;
        }
        println!(
            "  {:>5} % allowed: {:.1} us, recall {:.4}, {}",
            share * 100.0,
            took * 1e6,
            hits as f64 / of as f64,
            walk.map_or("scanned".to_owned(), |walk| format!("walked with ef {}", walk.ef))
        );
    }
}

/// A delta as large as it grows before it is sealed, scanned by codes and by f32.
fn fresh(set: &Set) {
    let rows = (set.base.len() / set.dim).min((32 << 20) / (4 * set.dim)).min(1 << 16);
    let vectors = &set.base[..rows * set.dim];
    let grid = Grid::of(set.dim, vectors.chunks_exact(set.dim)).expect("codes serve these vectors");
    let codes = grid.encode(vectors.chunks_exact(set.dim));
    let metric = Metric::of(Distance::Cosine);
    let exact =
        |query: &[f32], row: u32| metric.distance(query, &vectors[row as usize * set.dim..][..set.dim]);
    let by_codes = turn_of(set, 0, |query| {
        let query_codes = grid.query(Distance::Cosine, query).expect("an angle lies never too far off");
        let coded = Coded { codes: &codes, query: &query_codes };
        let near =
            coded.shortlist(0..rows as u32, |_| true, K + 1).0.into_iter().map(|row| exact(query, row));
        std::hint::black_box(near.fold(f32::MAX, f32::min));
    });
    let by_f32 = turn_of(set, 0, |query| {
        std::hint::black_box((0..rows as u32).map(|row| exact(query, row)).fold(f32::MAX, f32::min));
    });
    println!(
        "  a delta of {rows} scanned in {:.0} us by codes, {:.0} us by f32",
        by_codes * 1e6,
        by_f32 * 1e6
    );
}

fn sealed(path: &Path, set: &Set, built: &build::Built) -> Segment {
    let rows: Vec<Row> =
        (0..(set.base.len() / set.dim) as u32).map(|slot| Row { slot, version: Position(1) }).collect();
    let grid = Grid::of(set.dim, set.base.chunks_exact(set.dim)).expect("codes serve these vectors");
    let codes = grid.encode(set.base.chunks_exact(set.dim));
    let coder = Coder::Numbers(grid);
    let content = Content {
        distance: Distance::Cosine,
        dim: set.dim,
        rows: &rows,
        built,
        coded: Some((&coder, &codes)),
    };
    Segment::write(path, &content, set.base.chunks_exact(set.dim)).expect("room for the segment");
    Segment::open(path, Residence::Memory).expect("written just now")
}

struct Ours<'a> {
    segment: &'a Segment,
    set: &'a Set,
}

impl Ours<'_> {
    fn finds(&self, query: &[f32], ef: usize, scratch: &mut Scratch) -> Vec<(f32, u32)> {
        let walk = Walk { count: K, ef: ef.max(K), most: true, expanded_max: usize::MAX };
        let mut hits = self.segment.nearest(query, walk, scratch, |_| true).near;
        hits.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        hits.truncate(K);
        hits
    }

    fn recall(&self, ef: usize) -> f64 {
        let mut scratch = Scratch::default();
        self.set.recall(|query| self.finds(query, ef, &mut scratch).into_iter().map(|hit| hit.1).collect())
    }
}

/// CPU seconds a query.
fn turn_of(set: &Set, turn: usize, mut search: impl FnMut(&[f32])) -> f64 {
    let queries = QUERIES.min(set.truth.len());
    let from = turn * queries % set.truth.len();
    let began = cpu_seconds();
    for query in set.queries.chunks_exact(set.dim).cycle().skip(from).take(queries) {
        search(query);
    }
    (cpu_seconds() - began) / queries as f64
}

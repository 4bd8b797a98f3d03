//! What applying costs, for `docs/BENCHMARKS.md`.

use super::*;
use std::{fs, time::Instant};

/// CPU time of the whole process, in seconds: the store's own threads work for the writer.
fn process_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Ticks of 10 ms.
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) as f64 / 100.0
}

/// CPU time of this thread, in seconds.
fn thread_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<u64>().unwrap() as f64 / 1e9
}

/// `ANNAL_COST=20000 cargo test --release -p annal --lib tests::cost -- --nocapture --ignored`: commands a line.
#[test]
#[ignore = "a measurement"]
fn of_single_point_upserts() {
    let env = |name: &str| std::env::var(name).ok();
    let count: u64 = env("ANNAL_COST").and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let only = env("ANNAL_COST_ONLY");
    println!(
        "{:>5} {:>6} {:>4} {:>14} {:>15} {:>10}",
        "dim", "batch", "ids", "thread µs/cmd", "process µs/cmd", "wall µs"
    );
    for dim in [128usize, 384] {
        for batch in [1usize, 8, 64] {
            for ids in [false, true] {
                let line = format!("{dim}/{batch}/{ids}");
                if only.as_ref().is_some_and(|only| !line.starts_with(only)) {
                    continue;
                }
                let folder = tempfile::tempdir().unwrap();
                let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
                // No graphs are built. A shorter window shows what evicting costs.
                let window = env("ANNAL_COST_WINDOW").map_or(DEDUP_WINDOW, |window| window.parse().unwrap());
                let options =
                    ShardOptions { dedup_window: window, seal_bytes: 1 << 30, ..ShardOptions::default() };
                let shard =
                    Shard::open(store, "s", &folder.path().join("index"), COLLECTION, options).unwrap();
                let params = VectorParams::new(dim as u32, Distance::Dot, HnswParams::default());
                let schema = Schema {
                    version: 1,
                    vectors: [(String::new(), params)].into(),
                    fields: [("n".parse().unwrap(), FieldType::Integer)].into(),
                    ..Schema::default()
                };
                shard.apply(vec![command(Body::Configure(schema)).encode()], Bookmark(Bytes::new())).unwrap();
                let upsert = |n: u64| {
                    let row = (0..dim).map(|d| ((n * 31 + d as u64 * 7) % 1000) as f32 / 1e3).collect();
                    let write = PointWrite {
                        id: PointId::Num(n * 7919 % (count / 2)),
                        vectors: [(String::new(), Vector::Dense(row))].into(),
                        payload: json!({"n": n % 100, "text": "a payload of usual length"})
                            .to_string()
                            .into(),
                    };
                    let request = ids.then(|| RequestId { client: "01927f3c-n1".into(), seq: n });
                    let body = Body::Upsert(vec![write]);
                    Command { request, born: Position(n), ..command(body) }.encode()
                };
                let log: Vec<Bytes> = (0..count).map(upsert).collect();
                let bookmark = Bookmark(vec![7; 40].into());
                let (cpu, thread, start) = (process_cpu(), thread_cpu(), Instant::now());
                for commands in log.chunks(batch) {
                    shard.apply(commands.to_vec(), bookmark.clone()).unwrap();
                }
                let each = |seconds: f64| seconds * 1e6 / count as f64;
                println!(
                    "{dim:>5} {batch:>6} {ids:>4} {:>14.1} {:>15.1} {:>10.1}",
                    each(thread_cpu() - thread),
                    each(process_cpu() - cpu),
                    each(start.elapsed().as_secs_f64())
                );
                assert_eq!(shard.position().0, count + 1);
                shard.close();
            }
        }
    }
}

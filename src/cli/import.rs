//! `annal import`: loads a `.npy` matrix, with a payload for each row, over HTTP.
//!
//! A batch is one upsert; its points' ids are row numbers, or a field of the payload. `--resume` asks the server
//! which ids it has and sends the others, so no file has to remember how far an import came.

use super::{
    Done,
    server::{Answer, Client, Failure, Server, part},
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json, value::RawValue};
use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, IsTerminal, Read},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

/// Loads vectors from a file into a collection.
///
/// Examples:
///   annal import vectors.npy --collection glosses --payload payload.jsonl
///   annal import vectors.npy --collection glosses --payload payload.jsonl --resume
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Import {
    /// The vectors: a `.npy` matrix [rows, dimensions] of f16, f32 or f64.
    file: PathBuf,
    /// The collection; created if it is not there.
    #[arg(long)]
    collection: String,
    /// The payloads: a `.jsonl` file whose line k belongs to row k.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Distance of a collection that is created.
    #[arg(long, value_enum, default_value_t = Distance::Cosine)]
    distance: Distance,
    /// Name of the vector; the unnamed one if not given.
    #[arg(long, value_name = "NAME")]
    vector: Option<String>,
    /// Field of the payload that holds the id; the row's number if not given.
    #[arg(long, value_name = "FIELD")]
    id_field: Option<String>,
    /// Points of one request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Requests under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    concurrency: u32,
    /// Leaves out points whose ids are there already.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    server: Server,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Distance {
    Cosine,
    Dot,
    Euclid,
    Manhattan,
}

impl Distance {
    /// The name in Qdrant's REST.
    fn name(self) -> &'static str {
        match self {
            Distance::Cosine => "Cosine",
            Distance::Dot => "Dot",
            Distance::Euclid => "Euclid",
            Distance::Manhattan => "Manhattan",
        }
    }
}

/// What an import ends with.
#[derive(Default)]
struct Loaded {
    sent: u64,
    there_already: u64,
}

impl Import {
    pub(super) fn run(self) -> Done {
        let matrix = Matrix::open(&self.file)?;
        let payloads = self.payload.as_deref().map(Payloads::open).transpose()?;
        let server = Collection::new(&self);
        server.ensure_collection(matrix.dim, self.distance, self.vector.as_deref())?;
        let bar = progress(matrix.rows);
        let started = Instant::now();
        let loaded = self.load(matrix, payloads, &server, &bar)?;
        bar.finish();
        let seconds = started.elapsed().as_secs_f64();
        let rate = loaded.sent as f64 / seconds.max(1e-9);
        if self.json {
            println!(
                "{}",
                json!({"sent": loaded.sent, "there_already": loaded.there_already, "seconds": seconds, "points_per_second": rate})
            );
        } else {
            println!(
                "{} points sent, {} there already, {seconds:.1} s, {rate:.0} points/s",
                loaded.sent, loaded.there_already
            );
        }
        Ok(())
    }

    /// One thread reads and cuts, `concurrency` threads send; the first failure stops all.
    fn load(
        &self,
        matrix: Matrix,
        payloads: Option<Payloads>,
        server: &Collection,
        bar: &ProgressBar,
    ) -> Result<Loaded, Failure> {
        let (batches, queue) = mpsc::sync_channel::<Vec<Row>>(self.concurrency as usize);
        let queue = Mutex::new(queue);
        std::thread::scope(|scope| {
            let send = || -> Result<Loaded, Failure> {
                let mut loaded = Loaded::default();
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(mut rows) = next else { return Ok(loaded) };
                    let all = rows.len() as u64;
                    if self.resume {
                        let there = server.ids_there(&rows)?;
                        rows.retain(|row| !there.contains(&row.id));
                    }
                    if !rows.is_empty() {
                        server.upsert(&rows, self.vector.as_deref())?;
                    }
                    loaded.sent += rows.len() as u64;
                    loaded.there_already += all - rows.len() as u64;
                    bar.inc(all);
                }
            };
            let senders: Vec<_> = (0..self.concurrency).map(|_| scope.spawn(send)).collect();
            let read = self.read(matrix, payloads, batches, &senders);
            let mut loaded = Loaded::default();
            for sender in senders {
                let part = sender.join().map_err(|_| "a sending thread panicked")??;
                loaded.sent += part.sent;
                loaded.there_already += part.there_already;
            }
            read.map(|()| loaded)
        })
    }

    fn read<T>(
        &self,
        mut matrix: Matrix,
        mut payloads: Option<Payloads>,
        batches: mpsc::SyncSender<Vec<Row>>,
        senders: &[std::thread::ScopedJoinHandle<'_, T>],
    ) -> Result<(), Failure> {
        let mut batch = Vec::with_capacity(self.batch as usize);
        for number in 0..matrix.rows {
            let vector = matrix.next_row()?;
            let payload = payloads.as_mut().map(|p| p.next_line(number)).transpose()?;
            let id = match (&self.id_field, &payload) {
                (Some(field), Some(payload)) => id_of(field, payload, number)?,
                (Some(_), None) => return Err("--id-field wants --payload".into()),
                (None, _) => number.to_string(),
            };
            batch.push(Row { id, vector, payload });
            if batch.len() == self.batch as usize || number + 1 == matrix.rows {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(self.batch as usize));
                // A failed sender has taken its error with it; the join tells.
                if senders.iter().any(|s| s.is_finished()) || batches.send(full).is_err() {
                    return Ok(());
                }
            }
        }
        if let Some(payloads) = &mut payloads
            && payloads.more()?
        {
            return Err(format!(
                "the payload file has more lines than the {} rows of the matrix",
                matrix.rows
            )
            .into());
        }
        Ok(())
    }
}

fn progress(rows: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{bar:40} {human_pos}/{human_len} points  {per_sec}  {eta} left";
    ProgressBar::new(rows)
        .with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A point on its way.
struct Row {
    /// The id as JSON text: a number, or a quoted UUID.
    id: String,
    vector: Vec<f32>,
    payload: Option<Box<RawValue>>,
}

fn id_of(field: &str, payload: &RawValue, row: u64) -> Result<String, Failure> {
    let object: serde_json::Map<String, Value> = serde_json::from_str(payload.get())?;
    match object.get(field) {
        Some(id @ (Value::Number(_) | Value::String(_))) => Ok(id.to_string()),
        _ => Err(format!("row {row}: the payload has no id in the field {field}").into()),
    }
}

/// The rows of a `.npy` file, read one by one.
struct Matrix {
    rows: u64,
    dim: usize,
    numbers: Box<dyn Iterator<Item = std::io::Result<f32>>>,
}

impl Matrix {
    fn open(path: &Path) -> Result<Self, Failure> {
        let within = |e: std::io::Error| format!("{}: {e}", path.display());
        if path.extension().is_none_or(|e| e != "npy") {
            return Err(format!("{}: only .npy can be imported so far", path.display()).into());
        }
        let file = npyz::NpyFile::new(BufReader::with_capacity(1 << 20, File::open(path).map_err(within)?));
        let file = file.map_err(within)?;
        let [rows, dim] = *file.shape() else {
            return Err(format!(
                "{}: has shape {:?}, wants [rows, dimensions]",
                path.display(),
                file.shape()
            )
            .into());
        };
        if file.order() != npyz::Order::C {
            return Err(format!("{}: is in Fortran order, wants C order", path.display()).into());
        }
        let Some(numbers) = numbers(file) else {
            return Err(format!("{}: holds no f16, f32 or f64", path.display()).into());
        };
        Ok(Matrix { rows, dim: usize::try_from(dim)?, numbers })
    }

    fn next_row(&mut self) -> std::io::Result<Vec<f32>> {
        self.numbers.by_ref().take(self.dim).collect()
    }
}

fn numbers<R: Read + 'static>(
    file: npyz::NpyFile<R>,
) -> Option<Box<dyn Iterator<Item = std::io::Result<f32>>>> {
    let file = match file.try_data::<half::f16>() {
        Ok(data) => return Some(Box::new(data.map(|n| n.map(half::f16::to_f32)))),
        Err(file) => file,
    };
    let file = match file.try_data::<f32>() {
        Ok(data) => return Some(Box::new(data)),
        Err(file) => file,
    };
    let data = file.try_data::<f64>().ok()?;
    Some(Box::new(data.map(|n| n.map(|n| n as f32))))
}

/// The lines of a `.jsonl` file.
struct Payloads {
    path: PathBuf,
    lines: std::io::Lines<BufReader<File>>,
}

impl Payloads {
    fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Payloads { path: path.to_owned(), lines: BufReader::with_capacity(1 << 20, file).lines() })
    }

    fn next_line(&mut self, row: u64) -> Result<Box<RawValue>, Failure> {
        let within = |e: &dyn std::fmt::Display| format!("{} line {}: {e}", self.path.display(), row + 1);
        let line = self.lines.next().ok_or_else(|| within(&"the file ends here, the matrix does not"))??;
        serde_json::from_str(&line).map_err(|e| within(&e).into())
    }

    fn more(&mut self) -> std::io::Result<bool> {
        self.lines.next().transpose().map(|line| line.is_some_and(|l| !l.trim().is_empty()))
    }
}

/// The collection on the server.
struct Collection {
    client: Client,
    path: String,
}

/// How long a batch is sent again: an upsert may be repeated, it says the same again.
const INSIST: Duration = Duration::from_secs(60);

impl Collection {
    fn new(import: &Import) -> Self {
        let path = format!("/collections/{}", part(&import.collection));
        Collection { client: import.server.client(), path }
    }

    fn call(&self, method: &str, path: &str, body: &str) -> Result<Answer, Failure> {
        self.client.insist(method, &format!("{}{path}", self.path), body, INSIST)
    }

    fn ensure_collection(&self, dim: usize, distance: Distance, vector: Option<&str>) -> Result<(), Failure> {
        let answer = self.call("GET", "", "")?;
        if answer.status != 404 {
            return answer.expect("the collection").map(drop);
        }
        let params = json!({"size": dim, "distance": distance.name()});
        let vectors = match vector {
            Some(name) => json!({ name: params }),
            None => params,
        };
        let answer = self.call("PUT", "", &json!({ "vectors": vectors }).to_string())?;
        answer.expect("creating the collection").map(drop)
    }

    fn ids_there(&self, rows: &[Row]) -> Result<HashSet<String>, Failure> {
        let ids: Vec<&str> = rows.iter().map(|r| r.id.as_str()).collect();
        let body = format!(r#"{{"ids":[{}],"with_payload":false,"with_vector":false}}"#, ids.join(","));
        let answer = self.call("POST", "/points", &body)?.expect("reading ids")?;
        let there = answer["result"].as_array().map_or(&[][..], Vec::as_slice);
        Ok(there.iter().map(|record| record["id"].to_string()).collect())
    }

    fn upsert(&self, rows: &[Row], vector: Option<&str>) -> Result<(), Failure> {
        self.call("PUT", "/points?wait=true", &upsert_body(rows, vector)?)?.expect("writing points").map(drop)
    }
}

/// Written as text: a vector's numbers are most of an import, and need no tree in between.
fn upsert_body(rows: &[Row], vector: Option<&str>) -> Result<String, Failure> {
    let mut body = String::with_capacity(rows.len() * 512 + 16);
    body.push_str(r#"{"points":["#);
    for (i, row) in rows.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(body, r#"{comma}{{"id":{},"vector":"#, row.id)?;
        let numbers = serde_json::to_string(&row.vector)?;
        match vector {
            Some(name) => write!(body, "{{{}:{numbers}}}", serde_json::to_string(name)?)?,
            None => body.push_str(&numbers),
        }
        if let Some(payload) = &row.payload {
            write!(body, r#","payload":{}"#, payload.get())?;
        }
        body.push('}');
    }
    body.push_str("]}");
    Ok(body)
}

//! `annal import`: loads points from a file, or from another server, over HTTP.
//!
//! A batch is one upsert. `--resume` asks the server which ids it has and sends the others, so no file has to
//! remember how far an import came (`docs/decisions/0004`). What stands before a damaged place is sent before the
//! damage is told.

mod lines;
mod matrix_rows;
mod remote;
mod source;

pub(super) use source::{Ids, Source, id_of};

use super::{
    Done,
    collection::{Collection, Upserted},
    parquet_file,
    progress::Progress,
    row::Row,
    server::{Failure, Server},
    settings::{Distance, Settings},
};
use clap::Args;
use remote::Remote;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

/// Loads points from a file, or from another server that speaks Qdrant's API, into a collection.
///
/// .npy .fvecs .bvecs .fbin   a vector a row; ids and payloads from --payload or --points, else the row's number
/// .jsonl                     {"id":…,"vector":…,"payload":…} a line; vectors may be named, as in the API
/// .parquet                   columns id, vector (or vector.NAME) and payload, as `annal export` writes them; of other
///                            files the one column that holds lists of floats, or --column; the rest is the payload
/// qdrant://HOST:PORT/NAME    a collection of another server, over HTTP
///
/// Examples:
///   annal import vectors.npy --collection glosses --payload payload.jsonl
///   annal import vectors.npy --collection glosses --payload payload.jsonl --resume
///   annal import articles.parquet --collection articles --id-field article_id --column embedding
///   annal import qdrant://10.0.0.7:6333/glosses --collection glosses
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Import {
    /// A file, or qdrant://HOST:PORT/COLLECTION.
    #[arg(value_name = "FILE|URL")]
    from: PathBuf,
    /// The collection; created if it is not there.
    #[arg(long)]
    collection: String,
    /// The payloads: a `.jsonl` file whose line k belongs to row k.
    #[arg(long, value_name = "FILE", conflicts_with = "points")]
    payload: Option<PathBuf>,
    /// Ids and payloads: a `.jsonl` file whose line k is row k's point without its vector.
    #[arg(long, value_name = "FILE")]
    points: Option<PathBuf>,
    /// What a collection that is created is like: a file that `annal export` wrote.
    #[arg(long, value_name = "FILE", conflicts_with = "distance")]
    settings: Option<PathBuf>,
    /// Distance of a collection that is created [default: cosine].
    #[arg(long, value_enum)]
    distance: Option<Distance>,
    /// Name of the vector; the unnamed one if not given.
    #[arg(long, value_name = "NAME")]
    vector: Option<String>,
    /// The column of a `.parquet` file that holds the vectors.
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// Field of the payload that holds the id.
    #[arg(long, value_name = "FIELD")]
    id_field: Option<String>,
    /// Takes rows' numbers for ids, from 0, whatever the file says.
    #[arg(long, conflicts_with = "id_field")]
    row_ids: bool,
    /// Points of one request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Requests under way at once.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    concurrency: u32,
    /// Leaves out points whose ids are there already.
    #[arg(long)]
    resume: bool,
    /// The key of the server that is read from.
    #[arg(long, env = "ANNAL_SOURCE_API_KEY", hide_env_values = true)]
    source_api_key: Option<String>,
    #[command(flatten)]
    server: Server,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Rows of one request; text above this is sent in several.
const BATCH_BYTES: usize = 8 << 20;

/// What an import has done so far.
#[derive(Default)]
struct Loaded {
    sent: AtomicU64,
    there_already: AtomicU64,
}

/// Rows of one upsert, and how much of the source they are.
struct Batch {
    rows: Vec<Row>,
    done: u64,
}

impl Import {
    pub(super) fn run(self) -> Done {
        let mut source = self.open()?;
        let to = Collection::new(self.server.client(), &self.collection);
        // Before anything is created: a file that is not what it should be changes nothing.
        let first = source.next()?;
        self.ensure(&to, &mut *source, first.as_ref())?;
        let progress = Progress::new(source.extent());
        let loaded = Loaded::default();
        let done = self.load(source, first, &to, &progress, &loaded);
        let seconds = progress.finish().as_secs_f64();
        let (sent, there) = (loaded.sent.into_inner(), loaded.there_already.into_inner());
        if let Err(error) = done {
            return Err(format!(
                "{error}\n{sent} points were sent; with --resume the same command sends the rest"
            )
            .into());
        }
        let rate = sent as f64 / seconds.max(1e-9);
        if self.json {
            println!(
                "{}",
                json!({"sent": sent, "there_already": there, "seconds": seconds, "points_per_second": rate})
            );
        } else {
            println!("{sent} points sent, {there} there already, {seconds:.1} s, {rate:.0} points/s");
        }
        Ok(())
    }

    fn open(&self) -> Result<Box<dyn Source>, Failure> {
        let ids = match &self.id_field {
            Some(field) => Ids::Field(field.clone()),
            None if self.row_ids => Ids::Rows,
            None => Ids::Usual,
        };
        let remote = self.from.to_str().and_then(|text| text.strip_prefix("qdrant://"));
        let ending = self.from.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if let Some(remote) = remote {
            self.refuse(
                "another server",
                &["payload", "points", "settings", "distance", "vector", "column", "id-field", "row-ids"],
            )?;
            return Ok(Box::new(Remote::open(remote, self.source_api_key.clone())?));
        }
        match ending {
            "parquet" => {
                self.refuse("a .parquet file", &["payload", "points"])?;
                Ok(Box::new(parquet_file::Table::open(&self.from, self.column.as_deref(), ids)?))
            }
            "jsonl" => {
                self.refuse("a .jsonl file", &["payload", "points", "column"])?;
                Ok(Box::new(lines::PointLines::open(&self.from, ids)?))
            }
            _ => {
                self.refuse("a matrix", &["column"])?;
                let beside = match (&self.payload, &self.points) {
                    (Some(path), _) => lines::Beside::payloads(path)?,
                    (_, Some(path)) => lines::Beside::points(path)?,
                    _ => lines::Beside::Nothing,
                };
                Ok(Box::new(matrix_rows::MatrixRows::open(&self.from, beside, ids)?))
            }
        }
    }

    /// Errors: one of the options is given, which say nothing of such a source.
    fn refuse(&self, source: &str, options: &[&str]) -> Result<(), Failure> {
        let given = [
            ("payload", self.payload.is_some()),
            ("points", self.points.is_some()),
            ("settings", self.settings.is_some()),
            ("distance", self.distance.is_some()),
            ("vector", self.vector.is_some()),
            ("column", self.column.is_some()),
            ("id-field", self.id_field.is_some()),
            ("row-ids", self.row_ids),
        ];
        match given.iter().find(|(option, given)| *given && options.contains(option)) {
            Some((option, _)) => Err(format!("--{option} has no meaning for {source}").into()),
            None => Ok(()),
        }
    }

    /// Creates the collection if it is not there; of one that is, whose import is resumed, the indexes that it had not come to.
    fn ensure(&self, to: &Collection, source: &mut dyn Source, first: Option<&Row>) -> Result<(), Failure> {
        let info = to.info()?;
        if info.is_some() && !self.resume {
            return Ok(());
        }
        let said = match &self.settings {
            Some(path) => Some(Settings::read(path)?),
            None => source.settings()?,
        };
        match (info, said) {
            (Some(info), said) => {
                said.map_or(Ok(()), |settings| to.index(&settings, &info["payload_schema"]))
            }
            (None, Some(settings)) => to.create(&settings),
            (None, None) => to.create(&self.settings_of(first)?),
        }
    }

    /// What a collection is like that the first point fits into.
    fn settings_of(&self, first: Option<&Row>) -> Result<Settings, Failure> {
        let first = first.ok_or("there are no points, and nothing says what they would be like")?;
        let name = self.vector.as_deref().unwrap_or_default();
        let settings = Settings::of_row(first, name, self.distance.unwrap_or(Distance::Cosine))?;
        if settings.creation() == Settings::default().creation() {
            return Err("the first point has no vector: --settings says what the others have".into());
        }
        Ok(settings)
    }

    /// One thread reads and cuts, `concurrency` threads send; the first failure stops all.
    fn load(
        &self,
        mut source: Box<dyn Source>,
        first: Option<Row>,
        to: &Collection,
        progress: &Progress,
        loaded: &Loaded,
    ) -> Result<(), Failure> {
        let (batches, queue) = mpsc::sync_channel::<Batch>(self.concurrency as usize);
        let queue = Mutex::new(queue);
        let (origin, from) = (source.origin(), source.names());
        std::thread::scope(|scope| {
            let send = || -> Result<(), Failure> {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Batch { mut rows, done }) = next else { return Ok(()) };
                    let all = rows.len() as u64;
                    if self.resume {
                        let there = to.ids_there(&rows)?;
                        rows.retain(|row| !there.contains(&row.id));
                        loaded.there_already.fetch_add(all - rows.len() as u64, Ordering::Relaxed);
                    }
                    if let Some(origin) = &origin {
                        fetch(origin, &mut rows)?;
                    }
                    self.upsert(to, &rows, &from)?;
                    loaded.sent.fetch_add(rows.len() as u64, Ordering::Relaxed);
                    progress.add(all, done);
                }
            };
            let senders: Vec<_> = (0..self.concurrency).map(|_| scope.spawn(send)).collect();
            let mut stop = || senders.iter().any(|sender| sender.is_finished());
            let read = self.read(&mut *source, first, batches, &mut stop);
            for sender in senders {
                sender.join().map_err(|_| "a sending thread panicked")??;
            }
            read
        })
    }

    /// Cuts the source into batches. Where it cannot be read on, what was read before is sent all the same.
    fn read(
        &self,
        source: &mut dyn Source,
        first: Option<Row>,
        batches: mpsc::SyncSender<Batch>,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<(), Failure> {
        let (mut rows, mut bytes, mut told) = (Vec::new(), 0, 0);
        let mut next = Ok(first);
        loop {
            let (row, failure) = match next {
                Ok(row) => (row, None),
                Err(failure) => (None, Some(failure)),
            };
            let ended = row.is_none();
            if let Some(row) = row {
                bytes += row.bytes();
                rows.push(row);
            }
            if !rows.is_empty() && (ended || rows.len() == self.batch as usize || bytes >= BATCH_BYTES) {
                let done = source.passed() - told;
                told += done;
                bytes = 0;
                // A failed sender has taken its error with it; the join tells.
                if stop() || batches.send(Batch { rows: std::mem::take(&mut rows), done }).is_err() {
                    return Ok(());
                }
            }
            if ended {
                return failure.map_or(Ok(()), Err);
            }
            next = source.next();
        }
    }

    /// Writes rows, in parts if the server takes no more at once.
    ///
    /// Errors: names the row that the server names, else all of them.
    fn upsert(&self, to: &Collection, rows: &[Row], from: &Names) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
        match to.upsert(rows, self.vector.as_deref())? {
            Upserted::Done => Ok(()),
            Upserted::TooLarge => {
                let (former, latter) = rows.split_at(rows.len() / 2);
                self.upsert(to, former, from)?;
                self.upsert(to, latter, from)
            }
            Upserted::Refused(answer) => {
                let why = answer.failure("refused").to_string();
                let of_row = why.split_once("points[").and_then(|(_, rest)| {
                    let (number, why) = rest.split_once(']')?;
                    Some((rows.get(number.parse::<usize>().ok()?)?, why.trim_start_matches(['.', ':', ' '])))
                });
                Err(match of_row {
                    Some((row, why)) => format!("{}: {why}", from.of(row)),
                    None => format!("{} to {}: {why}", from.of(first), from.of(last)),
                }
                .into())
            }
        }
    }
}

/// Fills rows of which only the ids are known; those that are gone meanwhile are left out.
fn fetch(origin: &Collection, rows: &mut Vec<Row>) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let read = origin.read(rows, true)?;
    *rows = read.into_iter().map(remote::row).collect();
    Ok(())
}

/// How the rows of a source are called in errors.
#[derive(Clone, Debug)]
pub(super) enum Names {
    /// By number, in the file so called.
    Rows(String),
    /// By line.
    Lines(String),
    /// By id.
    Ids(String),
}

impl Names {
    fn of(&self, row: &Row) -> String {
        match self {
            Names::Rows(file) => format!("{file} row {} (id {})", row.place, row.id),
            Names::Lines(file) => format!("{file} line {} (id {})", row.place, row.id),
            Names::Ids(from) => format!("{from} point {}", row.id),
        }
    }
}

/// Opens a file of points for a load that is measured: ids from the file, else rows' numbers.
pub(super) fn open(path: &Path, payload: Option<&Path>) -> Result<Box<dyn Source>, Failure> {
    Ok(match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") => Box::new(parquet_file::Table::open(path, None, Ids::Usual)?),
        Some("jsonl") => Box::new(lines::PointLines::open(path, Ids::Usual)?),
        _ => {
            let beside = payload.map_or(Ok(lines::Beside::Nothing), lines::Beside::payloads)?;
            Box::new(matrix_rows::MatrixRows::open(path, beside, Ids::Usual)?)
        }
    })
}

//! `annal export`: writes a collection to a file, page by page, in the order of its points' ids.
//!
//! Invariants: a file gets its name only when it is whole and on disk, so an export that was cut off leaves what was
//! there before; ids ascend, so two exports of the same points are the same bytes.
//! Not here: a moment. Pages are read one after the other; what is written meanwhile may be in the file or not.

mod part;
mod sink;

use super::{
    Done,
    collection::{Collection, Page},
    progress::{Extent, Progress},
    server::{Failure, Server},
    settings::Settings,
};
use annal::model::PointId;
use clap::Args;
use part::{PartFile, beside};
use serde_json::{Value, json};
use sink::{Sink, sink};
use std::{io::Write, path::PathBuf, sync::mpsc};

/// Writes a collection to a file, in the order of its points' ids.
///
/// .jsonl               {"id":…,"vector":…,"payload":…} a line
/// .parquet             columns id, payload (JSON) and vector, or vector.NAME
/// .npy .fvecs .fbin    one vector of every point as a row; ids and payloads go to FILE.jsonl
///
/// Beside it goes FILE.collection.json, for `annal import --settings` to create the like. Files get their names when
/// they are whole.
///
/// Examples:
///   annal export glosses.parquet --collection glosses
///   annal export verbs.jsonl --collection glosses --filter '{"must":[{"key":"pos","match":{"value":"v"}}]}'
///   annal export g.npy --collection glosses
///   annal import g.npy --points g.npy.jsonl --settings g.npy.collection.json --collection copy
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Export {
    /// The file; its ending says the format.
    file: PathBuf,
    /// The collection.
    #[arg(long)]
    collection: String,
    /// Only points that pass this filter.
    #[arg(long, value_name = "JSON", value_parser = object)]
    filter: Option<Value>,
    /// Name of the vector that becomes a matrix; the only one if not given.
    #[arg(long, value_name = "NAME")]
    vector: Option<String>,
    /// Writes over files that are there.
    #[arg(long)]
    overwrite: bool,
    /// Points of one request.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    #[command(flatten)]
    server: Server,
    /// Prints the result as JSON.
    #[arg(long)]
    json: bool,
}

/// A filter, or whatever else is a JSON object.
pub(super) fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(object @ Value::Object(_)) => Ok(object),
        Ok(_) => Err("wants a JSON object".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

impl Export {
    pub(super) fn run(self) -> Done {
        let from = Collection::new(self.server.client(), &self.collection);
        let info = from.info()?.ok_or_else(|| format!("there is no collection {}", self.collection))?;
        let (settings, _) = Settings::of_collection(&info)?;
        let mut settings_file = PartFile::create(&beside(&self.file, ".collection.json"), self.overwrite)?;
        settings_file.write_all(settings.written().as_bytes())?;
        let mut sink = sink(&self.file, &settings, self.vector.as_deref(), self.overwrite)?;
        let progress = Progress::new(Extent::Points(from.count(self.filter.as_ref())?));
        let points = self.copy(&from, &mut *sink, &progress)?;
        // The file itself comes last: where it is, all is.
        let mut files = vec![settings_file.commit()?];
        files.extend(sink.finish()?);
        let seconds = progress.finish().as_secs_f64();
        let rate = points as f64 / seconds.max(1e-9);
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        if self.json {
            println!(
                "{}",
                json!({"points": points, "files": files, "seconds": seconds, "points_per_second": rate})
            );
        } else {
            println!("{points} points, {seconds:.1} s, {rate:.0} points/s: {}", files.join(" "));
        }
        Ok(())
    }

    /// The next page is read while one is written.
    fn copy(&self, from: &Collection, sink: &mut dyn Sink, progress: &Progress) -> Result<u64, Failure> {
        let (pages, queue) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || self.read(from, pages));
            let mut points = 0;
            let mut last = None;
            for page in queue {
                for record in &page.points {
                    in_order(last, record.id)?;
                    last = Some(record.id);
                    sink.write(record)?;
                }
                points += page.points.len() as u64;
                progress.add(page.points.len() as u64, page.points.len() as u64);
            }
            reader.join().map_err(|_| "the reading thread panicked")??;
            Ok(points)
        })
    }

    fn read(&self, from: &Collection, pages: mpsc::SyncSender<Page>) -> Result<(), Failure> {
        let mut at = None;
        loop {
            let page = from.scroll(at, self.batch as usize, self.filter.as_ref(), true)?;
            at = page.next;
            // Nobody takes it any more: who did tells why.
            if pages.send(page).is_err() || at.is_none() {
                return Ok(());
            }
        }
    }
}

/// Checks that a point comes behind the last.
fn in_order(last: Option<PointId>, id: PointId) -> Result<(), Failure> {
    match last {
        Some(last) if last >= id => {
            Err(format!("the server gives point {id} behind {last}: its pages are not in order").into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_before_uuids_and_each_once() {
        let ids: [PointId; 4] = [0, u64::MAX]
            .map(PointId::Num)
            .into_iter()
            .chain([0, 1].map(PointId::Uuid))
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        for (at, id) in ids.iter().enumerate() {
            in_order(at.checked_sub(1).map(|before| ids[before]), *id).unwrap();
            in_order(Some(*id), *id).unwrap_err();
            ids[..at].iter().for_each(|before| assert!(in_order(Some(*id), *before).is_err()));
        }
    }

    #[test]
    fn filters_are_objects() {
        object(r#"{"must":[]}"#).unwrap();
        object("[]").unwrap_err();
        object("{").unwrap_err();
    }
}

//! `annal log`: follows a collection's changes; checks or prints the log of a node that does not run, never writing.

use super::{Done, tail::Tail};
use annal_wal::{DumpedRecord, VerifyReport};
use clap::Subcommand;
use std::{
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

/// Follows a collection's changes; checks or prints a stopped node's log.
#[derive(Subcommand)]
pub(super) enum Log {
    /// Checks every frame of the log; exits 1 and names segment and offset if one is damaged.
    Verify {
        /// A node's data folder, or its `wal` folder.
        dir: PathBuf,
        /// Prints the report as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints every record of the log.
    Dump {
        /// A node's data folder, or its `wal` folder.
        dir: PathBuf,
        /// Prints JSON lines.
        #[arg(long)]
        json: bool,
        /// Only this group's records.
        #[arg(long)]
        group: Option<u32>,
    },
    Tail(Tail),
}

impl Log {
    /// Errors: 1 for a log that is damaged or cannot be read.
    pub(super) fn run(self) -> Result<Done, ExitCode> {
        let intact = match self {
            Log::Tail(tail) => return Ok(tail.run()),
            Log::Verify { dir, json } => annal_wal::verify(&log_dir(dir)).map(|report| tell(&report, json)),
            Log::Dump { dir, json, group } => {
                let mut out = BufWriter::new(io::stdout().lock());
                let mut written = Ok(());
                let report = annal_wal::dump(&log_dir(dir), |record| {
                    // A reader that has seen enough (`| head`) ends the printing, not the check.
                    if written.is_ok() && group.is_none_or(|g| g == record.group.0) {
                        written = print(&mut out, &record, json);
                    }
                });
                report.map(|report| damage(&report))
            }
        };
        match intact {
            Ok(true) => Ok(Ok(())),
            // What is damaged is printed already.
            Ok(false) => Err(ExitCode::FAILURE),
            Err(e) => Ok(Err(e.into())),
        }
    }
}

/// The log of a data folder; a folder without one is taken for the log itself.
fn log_dir(dir: PathBuf) -> PathBuf {
    let inside = dir.join("wal");
    if inside.is_dir() { inside } else { dir }
}

/// Prints a report; whether the log is intact.
fn tell(report: &VerifyReport, json: bool) -> bool {
    if json {
        let damage: Vec<_> = report
            .damage
            .iter()
            .chain(&report.envelopes)
            .map(|d| serde_json::json!({"segment": d.segment, "offset": d.offset, "why": d.why}))
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "intact": report.is_intact(), "segments": report.segments, "frames": report.frames,
                "records": report.records, "entries": report.entries, "record_bytes": report.record_bytes,
                "torn": report.torn, "damage": damage,
            })
        );
        return report.is_intact();
    }
    println!(
        "{} segments, {} frames, {} records ({} entries), {} bytes",
        report.segments, report.frames, report.records, report.entries, report.record_bytes
    );
    for (segment, offset, bytes) in &report.torn {
        println!(
            "segment {segment} ends at offset {offset} in a write that was cut off ({bytes} bytes, never acknowledged)"
        );
    }
    let intact = damage(report);
    if intact {
        println!("intact");
    }
    intact
}

/// Prints what is damaged; whether nothing is.
fn damage(report: &VerifyReport) -> bool {
    for damage in report.damage.iter().chain(&report.envelopes) {
        eprintln!("damaged: segment {} offset {}: {}", damage.segment, damage.offset, damage.why);
    }
    report.is_intact()
}

fn print(out: &mut impl Write, record: &DumpedRecord<'_>, json: bool) -> io::Result<()> {
    let DumpedRecord { segment, sequence, offset, group, event, payload } = record;
    if !json {
        return writeln!(
            out,
            "{segment}/{offset} frame {sequence} group {} {event:?} {} bytes",
            group.0,
            payload.len()
        );
    }
    let line = serde_json::json!({
        "segment": segment, "frame": sequence, "offset": offset, "group": group.0,
        "record": format!("{event:?}"), "payload_bytes": payload.len(),
    });
    writeln!(out, "{line}")
}

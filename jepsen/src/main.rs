//! The command line of the harness.
//!
//! Exit codes: 0 valid; 1 something was found; 3 nobody knows (inconclusive, or a check did not come to its end); 2
//! nothing was checked.

use annal_jepsen::{
    checker::Valid,
    cluster::NetKind,
    history::{History, write_edn},
    nemesis::{Family, Tally},
    run::{self, Plan, Results},
    selftest, suite, workload,
};
use clap::{Parser, Subcommand, ValueEnum};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

/// Breaks a cluster of real nodes, and checks what its clients were told.
#[derive(Parser)]
#[command(name = "annal-jepsen", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs workloads against a cluster while a nemesis breaks it.
    ///
    /// Examples:
    ///   annal-jepsen run --workload register,search --nemesis kill,partition --time-limit 60 --seed 7
    ///   annal-jepsen run --workload region --nemesis takeover,handover,narrow --nodes 1 --seed 7
    #[command(verbatim_doc_comment)]
    Run(Run),
    /// Checks the history of a run again.
    Check {
        /// The run's folder.
        dir: PathBuf,
    },
    /// Writes the history of a run to standard output.
    Export {
        /// The run's folder.
        dir: PathBuf,
        /// How it is written.
        #[arg(long, value_enum, default_value = "edn")]
        format: Format,
    },
    /// Writes a run's index.html again.
    Report {
        /// The run's folder.
        dir: PathBuf,
    },
    /// Runs a fixed list of runs.
    Suite {
        /// Which list.
        #[arg(value_enum)]
        which: suite::Which,
        /// Added to every run's seed.
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// How long each run of the nightly list lasts, in seconds.
        #[arg(long, default_value_t = 60)]
        time_limit: u64,
        /// Where the runs' folders are made.
        #[arg(long, default_value = "target/jepsen")]
        out: PathBuf,
        /// The node's binary.
        #[arg(long, default_value = "target/release/annal")]
        bin: PathBuf,
    },
    /// Runs every planted bug and tells what caught it.
    Selftest {
        /// Only tells which there are.
        #[arg(long)]
        list: bool,
        /// Only this one.
        #[arg(long)]
        only: Option<String>,
        /// Seek all of them in real runs, also those that the simulation shows.
        #[arg(long)]
        real: bool,
        /// A binary that was built with them (default: one is built in target/mutants).
        #[arg(long)]
        bin: Option<PathBuf>,
        /// Where the runs' folders are made.
        #[arg(long, default_value = "target/jepsen/selftest")]
        out: PathBuf,
    },
}

#[derive(clap::Args)]
struct Run {
    /// What clients do: register, read-view, set, search, batch, tail, dedup, membership, or all of these; or region,
    /// alone: a collection in two regions, each a cluster of its own.
    #[arg(long, value_delimiter = ',', default_value = "register")]
    workload: Vec<String>,
    /// What is broken: kill, pause, power, partition, slow, clock, full, eio, readonly, freeze, flip, truncate,
    /// wipe, cpu, memory, membership, snapshot, restart; between regions apart, narrow, takeover, handover; or all, or none.
    #[arg(long, value_delimiter = ',', default_value = "kill")]
    nemesis: Vec<String>,
    /// How many nodes, in each region; one more where replicas are moved.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=15))]
    nodes: u8,
    /// How long the way from one region to another takes, in milliseconds.
    #[arg(long, default_value_t = run::WAY.as_millis() as u64)]
    way_ms: u64,
    /// How long, in seconds.
    #[arg(long, default_value_t = 60)]
    time_limit: u64,
    /// Where all random numbers come from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What lies between nodes.
    #[arg(long, value_enum, default_value = "proxy")]
    net: NetKind,
    /// A planted bug, if the binary knows it.
    #[arg(long)]
    mutant: Option<String>,
    /// The run's folder (default: one under target/jepsen, by time).
    #[arg(long)]
    out: Option<PathBuf>,
    /// The node's binary.
    #[arg(long, default_value = "target/release/annal")]
    bin: PathBuf,
    /// Clients of each workload.
    #[arg(long, default_value_t = 5)]
    clients: usize,
    /// Operations a second of all clients together.
    #[arg(long, default_value_t = 300)]
    rate: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Edn,
    Jsonl,
}

fn main() -> ExitCode {
    if let Err(why) = run::heed_interruptions() {
        return done(Err(why));
    }
    match Cli::parse().command {
        Command::Run(asked) => said(asked.plan().and_then(|plan| run_one(&plan))),
        Command::Check { dir } => said(check(&dir)),
        Command::Export { dir, format } => done(export(&dir, format)),
        Command::Report { dir } => done(report(&dir)),
        Command::Suite { which, seed, time_limit, out, bin } => {
            said(suite::run(which, seed, Duration::from_secs(time_limit), &out, &bin))
        }
        Command::Selftest { list: true, bin, .. } => done(list(bin.as_deref())),
        Command::Selftest { list: false, only, real, bin, out } => {
            let asked = selftest::Asked { binary: bin.as_deref(), only: only.as_deref(), real, out: &out };
            said(selftest::run(&asked).map(|passed| if passed { Valid::True } else { Valid::False }))
        }
    }
}

fn said(valid: Result<Valid, String>) -> ExitCode {
    match valid {
        Ok(Valid::True) => ExitCode::SUCCESS,
        Ok(Valid::False) => ExitCode::FAILURE,
        Ok(Valid::Unknown) => ExitCode::from(3),
        Err(why) => done(Err(why)),
    }
}

fn done(done: Result<(), String>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("annal-jepsen: {why}");
            ExitCode::from(2)
        }
    }
}

impl Run {
    fn plan(self) -> Result<Plan, String> {
        let workloads = match self.workload.as_slice() {
            [all] if all == "all" => workload::of_one_region().map(str::to_owned).collect(),
            _ => self.workload,
        };
        if let Some(strange) = workloads.iter().find(|name| workload::by_name(name).is_none()) {
            return Err(format!("there is no workload {strange}; there are {}", workload::NAMES.join(", ")));
        }
        let regions = if workloads.iter().any(|name| name == workload::REGION) { 2 } else { 1 };
        let families = match self.nemesis.as_slice() {
            [all] if all == "all" => Family::all(regions),
            [none] if none == "none" => Vec::new(),
            names => names.iter().map(|name| Family::from_str(name, true)).collect::<Result<_, _>>()?,
        };
        let out = self.out.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            Path::new("target/jepsen").join(format!("{}-{}", now.as_secs(), self.seed))
        });
        Ok(Plan {
            workloads,
            families,
            nodes: usize::from(self.nodes),
            way: Duration::from_millis(self.way_ms),
            time: Duration::from_secs(self.time_limit),
            seed: self.seed,
            net: self.net,
            mutant: self.mutant,
            out,
            binary: self.bin,
            clients: self.clients.max(1),
            rate: self.rate,
        })
    }
}

fn run_one(plan: &Plan) -> Result<Valid, String> {
    let results = run::run(plan)?;
    show(&plan.out, &results);
    Ok(results.valid)
}

fn show(out: &Path, results: &Results) {
    let Results { ops, ok, fail, info, faults, .. } = results;
    println!("{ops} operations: {ok} ok, {fail} fail, {info} info");
    for (family, tally) in faults {
        let Tally { installed, skipped, indeterminate } = tally;
        println!("  {family:<11} {installed} installed, {skipped} skipped, {indeterminate} indeterminate");
    }
    for (checker, verdict) in &results.checks {
        println!("  {checker:<13} looked at {}, found {}", verdict.checked, verdict.found);
    }
    results.why.iter().for_each(|why| println!("{why}"));
    let valid = match results.valid {
        Valid::True => "valid",
        Valid::False => "NOT VALID",
        Valid::Unknown => "unknown, which is not a pass",
    };
    println!("{valid}: {}", out.display());
}

fn check(dir: &Path) -> Result<Valid, String> {
    let history = History::read(&dir.join("history.jsonl")).map_err(|e| e.to_string())?;
    let before = run::read_results(dir)?;
    let results = run::conclude(&history, before.asked, before.faults)?;
    run::write(dir, &history, &results)?;
    show(dir, &results);
    Ok(results.valid)
}

fn export(dir: &Path, format: Format) -> Result<(), String> {
    let path = dir.join("history.jsonl");
    let mut to = BufWriter::new(io::stdout().lock());
    let written = match format {
        Format::Edn => {
            let history = History::read(&path).map_err(|e| e.to_string())?;
            write_edn(&history, &mut to)
        }
        Format::Jsonl => File::open(&path).and_then(|mut file| io::copy(&mut file, &mut to)).map(drop),
    };
    written.and_then(|()| to.flush()).map_err(|e| format!("{}: {e}", path.display()))
}

fn report(dir: &Path) -> Result<(), String> {
    let history = History::read(&dir.join("history.jsonl")).map_err(|e| e.to_string())?;
    run::write(dir, &history, &run::read_results(dir)?)
}

fn list(binary: Option<&Path>) -> Result<(), String> {
    selftest::list(binary)?.iter().for_each(|name| println!("{name}"));
    Ok(())
}

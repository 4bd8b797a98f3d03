//! `annal mutants`: the planted bugs of a build that has them.

use super::{Done, table::Table};
use annal::mutant::{MUTANTS, Shows};

/// Lists the planted bugs that `ANNAL_MUTANT` may name, one a line.
#[derive(clap::Args)]
pub(super) struct Mutants {
    /// Also what each breaks, and those that cannot show yet.
    #[arg(long)]
    all: bool,
    /// Only those that a simulation shows.
    #[arg(long, conflicts_with = "all")]
    simulated: bool,
    /// Only those that real runs of one cluster show.
    #[arg(long, conflicts_with_all = ["all", "simulated"])]
    real: bool,
}

impl Mutants {
    pub(super) fn run(&self) -> Done {
        if self.all {
            let mut table = Table::new(["mutant", "breaks", "shows"]);
            for (_, name, breaks, shows) in MUTANTS {
                let shows = match shows {
                    Shows::Everywhere => "everywhere".to_owned(),
                    Shows::RealRuns(why) => format!("in real runs: {why}"),
                    Shows::Regions => "in the simulation of regions".to_owned(),
                };
                table.row([(*name).to_owned(), (*breaks).to_owned(), shows]);
            }
            print!("{}", table.text());
            return Ok(());
        }
        for (_, name, _, shows) in MUTANTS {
            let listed = match shows {
                Shows::Everywhere => true,
                Shows::Regions => !self.real,
                Shows::RealRuns(_) => !self.simulated,
            };
            if listed {
                println!("{name}");
            }
        }
        Ok(())
    }
}

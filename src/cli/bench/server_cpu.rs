//! CPU time of the server's processes, which says more than a rate on a machine that others use too.
//!
//! Source: `/proc/PID/stat`, fields 14 and 15 (proc_pid_stat(5)): all threads, those that ended included.

use super::super::server::Failure;
use std::fs;

/// Processes that are watched from a moment on.
pub(super) struct ServerCpu {
    /// What each had used by then, in ticks.
    processes: Vec<(u32, u64)>,
}

impl ServerCpu {
    /// Errors: a process that is not there.
    pub(super) fn watch(pids: &[u32]) -> Result<Self, Failure> {
        let used = |pid: &u32| ticks(*pid).map(|ticks| (*pid, ticks));
        Ok(ServerCpu { processes: pids.iter().map(used).collect::<Result<_, _>>()? })
    }

    /// Seconds used since; none if nobody is watched.
    ///
    /// Errors: a process has ended meanwhile.
    pub(super) fn seconds(&self) -> Result<Option<f64>, Failure> {
        if self.processes.is_empty() {
            return Ok(None);
        }
        let mut used = 0;
        for (pid, before) in &self.processes {
            used += ticks(*pid)?.saturating_sub(*before);
        }
        Ok(Some(used as f64 / rustix::param::clock_ticks_per_second() as f64))
    }
}

fn ticks(pid: u32) -> Result<u64, Failure> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| format!("process {pid}: {e}"))?;
    of_stat(&stat).ok_or_else(|| format!("process {pid}: /proc says {stat:?}").into())
}

/// Ticks in user and system mode; the program's name may hold anything, spaces and brackets too.
fn of_stat(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let mut fields = behind_name.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn ticks_of_a_stat_line() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 9 8 7 6 500 70 3 2 20 0 9 0 100 1 1";
        assert_eq!(of_stat(stat), Some(570));
        assert_eq!(of_stat("42 (a) S 1"), None);
    }

    #[test]
    fn work_shows() {
        let own = ServerCpu::watch(&[std::process::id()]).unwrap();
        let started = Instant::now();
        let mut sum = 0u64;
        while own.seconds().unwrap() < Some(0.05) {
            sum = (0..100_000u64)
                .fold(sum, |sum, n| std::hint::black_box(sum.wrapping_mul(31).wrapping_add(n)));
            assert!(started.elapsed() < Duration::from_secs(60), "{sum}");
        }
        assert_eq!(ServerCpu::watch(&[]).unwrap().seconds().unwrap(), None);
        assert!(ServerCpu::watch(&[u32::MAX]).err().unwrap().to_string().contains("process 4294967295"));
    }
}

//! How far a long command is: a bar where somebody looks, else a line now and then.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::IsTerminal,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How much there is to do, as far as that is known beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Points(u64),
    /// Of a file whose points nobody has counted.
    Bytes(u64),
}

/// Counts points, from any thread.
pub(super) struct Progress {
    started: Instant,
    all: u64,
    points: AtomicU64,
    done: AtomicU64,
    bar: Option<ProgressBar>,
    told: Mutex<Instant>,
}

/// How often a line is printed where nobody looks.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(super) fn new(extent: Extent) -> Self {
        let (Extent::Points(all) | Extent::Bytes(all)) = extent;
        let style = ProgressStyle::with_template("{bar:40} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = std::io::stderr().is_terminal().then(|| ProgressBar::new(all).with_style(style));
        let started = Instant::now();
        Progress { started, all, points: 0.into(), done: 0.into(), bar, told: Mutex::new(started) }
    }

    /// So many points more, that are so much of the extent.
    pub(super) fn add(&self, points: u64, done: u64) {
        let points = self.points.fetch_add(points, Ordering::Relaxed) + points;
        let done = self.done.fetch_add(done, Ordering::Relaxed) + done;
        let line = || line(points, done, self.all, self.started.elapsed());
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(line());
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= LINE_EVERY {
            *told = Instant::now();
            eprintln!("{}", line());
        }
    }

    /// How long it took.
    pub(super) fn finish(&self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.started.elapsed()
    }
}

/// Points, how fast they come, how far that is, and how long the rest takes if it goes on so.
fn line(points: u64, done: u64, all: u64, elapsed: Duration) -> String {
    let rate = points as f64 / elapsed.as_secs_f64().max(1e-9);
    let mut line = format!("{points} points, {rate:.0} points/s");
    if (1..=all).contains(&done) {
        let left = elapsed.mul_f64((all - done) as f64 / done as f64);
        line += &format!(", {} %, {} left", (u128::from(done) * 100 / u128::from(all)), spoken(left));
    }
    line
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left() {
        let seconds = Duration::from_secs;
        for (points, done, all, elapsed, wanted) in [
            (0, 0, 100, 1, "0 points, 0 points/s"),
            (500, 500, 2000, 5, "500 points, 100 points/s, 25 %, 15 s left"),
            // Points of a file, of which bytes are known.
            (30, 1000, 91_000, 10, "30 points, 3 points/s, 1 %, 15 min 0 s left"),
            (1, 1, 7201, 1, "1 points, 1 points/s, 0 %, 2 h 0 min left"),
            (9, 9, 9, 3, "9 points, 3 points/s, 100 %, 0 s left"),
            // More came than was counted: nothing is made up.
            (10, 10, 9, 5, "10 points, 2 points/s"),
        ] {
            assert_eq!(line(points, done, all, seconds(elapsed)), wanted);
        }
    }
}

//! Some clients that ask a server, each one thing at a time, and how long each answer takes.

use super::super::server::Failure;
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) clients: u32,
    /// Requests a second of all clients; else each asks again as soon as it is answered.
    pub(super) rate: Option<f64>,
    /// Nothing is sent after that.
    pub(super) time: Duration,
    /// Nor after so many requests.
    pub(super) count: Option<u64>,
}

/// One client's part of a load.
pub(super) trait Client {
    /// What is sent, and what that takes to remember.
    type Request;

    /// Makes ready the request with this number, from 0, before its time counts; none: there is nothing left to ask.
    fn prepare(&mut self, number: u64) -> Result<Option<Self::Request>, Failure>;

    /// Sends it and reads the answer to its end: this is what is timed. Gives the status, 0 if none came.
    fn send(&mut self, request: &Self::Request) -> u16;

    /// Looks at what was answered with success, after its time was taken; gives how many operations that were.
    ///
    /// Errors: the answer is not what it should be, which ends the load.
    fn look(&mut self, request: Self::Request) -> Result<u64, Failure>;
}

/// What the clients saw.
#[derive(Debug)]
pub(super) struct Measured {
    /// In microseconds, of what was answered with success.
    pub(super) latency: Histogram<u64>,
    pub(super) answered: u64,
    /// What was done: searches, or points written.
    pub(super) operations: u64,
    /// Requests by status; 0: no answer came.
    pub(super) errors: BTreeMap<u16, u64>,
    pub(super) seconds: f64,
}

/// The longest latency that is told apart.
const LATENCY_MAX_MICROS: u64 = 600_000_000;
/// After a connection failed: a server that is gone is not asked in a tight loop.
const PAUSE: Duration = Duration::from_millis(50);

impl Measured {
    fn new() -> Self {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, 3).expect("bounds that it takes");
        Measured { latency, answered: 0, operations: 0, errors: BTreeMap::new(), seconds: 0.0 }
    }

    fn answer(&mut self, took: Duration) {
        self.latency.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
        self.answered += 1;
    }

    fn merge(&mut self, other: &Measured) {
        self.latency.add(&other.latency).expect("the same bounds");
        self.answered += other.answered;
        self.operations += other.operations;
        for (status, count) in &other.errors {
            *self.errors.entry(*status).or_default() += count;
        }
    }
}

/// Gives out requests and when they are due.
struct Tickets {
    plan: Plan,
    started: Instant,
    next: AtomicU64,
    stopped: AtomicBool,
}

impl Tickets {
    /// A number and when it is due (none: at once); nothing when the load has ended.
    fn take(&self) -> Option<(u64, Option<Instant>)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let after = self.plan.rate.map(|rate| number as f64 / rate);
        let ended = self.stopped.load(Ordering::Relaxed)
            || self.plan.count.is_some_and(|count| number >= count)
            || after.is_some_and(|after| after >= self.plan.time.as_secs_f64())
            || self.started.elapsed() >= self.plan.time;
        (!ended).then(|| (number, after.map(|after| self.started + Duration::from_secs_f64(after))))
    }
}

/// Lets clients ask until the plan ends; `client` makes each.
///
/// Errors: the first that a client told; the others stop.
pub(super) fn drive<C: Client>(plan: Plan, client: impl Fn() -> C + Sync) -> Result<Measured, Failure> {
    let tickets =
        Tickets { plan, started: Instant::now(), next: AtomicU64::new(0), stopped: AtomicBool::new(false) };
    std::thread::scope(|scope| {
        let one = || {
            let done = ask(&tickets, client());
            tickets.stopped.fetch_or(done.is_err(), Ordering::Relaxed);
            done
        };
        let clients: Vec<_> = (0..plan.clients).map(|_| scope.spawn(one)).collect();
        let mut measured = Measured::new();
        for client in clients {
            measured.merge(&client.join().map_err(|_| "a client panicked")??);
        }
        measured.seconds = tickets.started.elapsed().as_secs_f64();
        Ok(measured)
    })
}

fn ask<C: Client>(tickets: &Tickets, mut client: C) -> Result<Measured, Failure> {
    let mut measured = Measured::new();
    while let Some((number, due)) = tickets.take() {
        let Some(request) = client.prepare(number)? else { break };
        if let Some(early) = due.and_then(|due| due.checked_duration_since(Instant::now())) {
            std::thread::sleep(early);
        }
        let from = due.unwrap_or_else(Instant::now);
        match client.send(&request) {
            200..300 => {
                measured.answer(from.elapsed());
                measured.operations += client.look(request)?;
            }
            status => {
                *measured.errors.entry(status).or_default() += 1;
                if status == 0 {
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Answers after a while; some with an error.
    struct Slow<'a> {
        takes: Duration,
        asked: &'a Mutex<Vec<u64>>,
        only: u64,
    }

    impl Client for Slow<'_> {
        type Request = u64;

        fn prepare(&mut self, number: u64) -> Result<Option<u64>, Failure> {
            Ok((number < self.only).then_some(number))
        }

        fn send(&mut self, number: &u64) -> u16 {
            self.asked.lock().unwrap().push(*number);
            std::thread::sleep(self.takes);
            if number % 4 == 3 { 503 } else { 200 }
        }

        fn look(&mut self, _: u64) -> Result<u64, Failure> {
            Ok(10)
        }
    }

    fn driven(plan: Plan, takes_ms: u64, only: u64) -> (Measured, Vec<u64>) {
        let asked = Mutex::new(Vec::new());
        let takes = Duration::from_millis(takes_ms);
        let measured = drive(plan, || Slow { takes, asked: &asked, only }).unwrap();
        let mut asked = asked.into_inner().unwrap();
        asked.sort_unstable();
        (measured, asked)
    }

    const PLAN: Plan = Plan { clients: 3, rate: None, time: Duration::from_secs(60), count: Some(40) };

    #[test]
    fn every_request_is_sent_once_and_counted_once() {
        let (measured, asked) = driven(PLAN, 1, u64::MAX);
        assert_eq!(asked, (0..40).collect::<Vec<_>>());
        assert_eq!((measured.answered, measured.operations), (30, 300));
        assert_eq!(measured.errors, [(503, 10)].into());
        assert_eq!(measured.latency.len(), 30);
        assert!(measured.latency.min() >= 1000, "{}", measured.latency.min());

        let (measured, asked) = driven(PLAN, 0, 7);
        assert_eq!((asked.len(), measured.answered), (7, 6), "nothing is left to ask");
    }

    #[test]
    fn a_load_ends_in_time() {
        let plan = Plan { time: Duration::from_millis(100), count: None, ..PLAN };
        let (measured, asked) = driven(plan, 5, u64::MAX);
        assert!(
            measured.seconds >= 0.1 && !asked.is_empty() && asked.len() <= 63,
            "{} {}",
            measured.seconds,
            asked.len()
        );
        // At a rate, what would be due later is not sent.
        let (_, asked) = driven(Plan { rate: Some(100.0), ..plan }, 0, u64::MAX);
        assert_eq!(asked, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn a_request_that_had_to_wait_for_a_client_counts_from_when_it_was_due() {
        // One client, an answer takes 10 ms, a request is due every ms: the last of 20 waits for all others.
        let plan = Plan { clients: 1, rate: Some(1000.0), count: Some(20), ..PLAN };
        let (measured, _) = driven(plan, 10, u64::MAX);
        assert!(measured.latency.max() >= 150_000, "{}", measured.latency.max());
    }

    #[test]
    fn what_goes_wrong_at_a_client_ends_the_load() {
        struct Broken;
        impl Client for Broken {
            type Request = ();
            fn prepare(&mut self, _: u64) -> Result<Option<()>, Failure> {
                Ok(Some(()))
            }
            fn send(&mut self, (): &()) -> u16 {
                200
            }
            fn look(&mut self, (): ()) -> Result<u64, Failure> {
                Err("no".into())
            }
        }
        assert_eq!(drive(PLAN, || Broken).unwrap_err().to_string(), "no");
    }
}

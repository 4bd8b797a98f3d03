//! The next segment, opened ahead of time on a thread of its own; closed ones are given back there too.
//!
//! Invariants: one segment is ready or being made at any time; while none can be made, appends are turned away and it
//! is tried again; a segment that failed is never closed, only forgotten.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use crate::{
    error::Error,
    log::Shared,
    segment::{Segment, SegmentNo, layout::Spec},
};

/// Time between attempts while no segment can be made.
pub(crate) const RETRY: Duration = Duration::from_millis(100);

enum Job {
    Open(SegmentNo),
    Close(Box<dyn Segment>),
}

/// The writer's end.
pub(crate) enum Opener {
    Thread(OnThread),
    /// Of a writer that is a task: segments are made and closed at once.
    AtOnce(AtOnce),
}

pub(crate) struct OnThread {
    jobs: mpsc::Sender<Job>,
    ready: mpsc::Receiver<Box<dyn Segment>>,
    thread: Option<thread::JoinHandle<()>>,
}

pub(crate) struct AtOnce {
    shared: Arc<Shared>,
    spec: Spec,
    next: SegmentNo,
    ready: Option<Box<dyn Segment>>,
}

impl AtOnce {
    fn make(&mut self) {
        if self.ready.is_none() {
            self.ready = create(&self.shared, &self.spec, self.next);
        }
    }
}

impl Opener {
    /// Starts the thread and has it make `first`.
    pub(crate) fn start(shared: Arc<Shared>, spec: Spec, first: SegmentNo) -> Result<Opener, Error> {
        let (jobs, incoming) = mpsc::channel();
        let (made, ready) = mpsc::channel();
        let work = move || serve(&shared, &spec, &incoming, &made);
        let thread = thread::Builder::new().name("annal-log-open".into()).spawn(work);
        let thread = thread.map_err(Error::io("starting the thread that opens segments"))?;
        let opener = OnThread { jobs, ready, thread: Some(thread) };
        opener.ask(Job::Open(first));
        Ok(Opener::Thread(opener))
    }

    /// Makes `first` on the spot, and each further one when the one before is taken.
    pub(crate) fn at_once(shared: Arc<Shared>, spec: Spec, first: SegmentNo) -> Opener {
        let mut opener = AtOnce { shared, spec, next: first, ready: None };
        opener.make();
        Opener::AtOnce(opener)
    }

    /// Tries again to make a segment ahead, where that is not a thread's business; whether one is ready.
    pub(crate) fn try_again(&mut self) -> bool {
        match self {
            Opener::Thread(_) => true,
            Opener::AtOnce(opener) => {
                opener.make();
                opener.ready.is_some()
            }
        }
    }

    /// Takes the segment made ahead and has the following one made; `None` if none came within `patience`.
    pub(crate) fn next(&mut self, patience: Duration) -> Option<Box<dyn Segment>> {
        match self {
            Opener::Thread(opener) => {
                let segment = opener.ready.recv_timeout(patience).ok()?;
                opener.ask(Job::Open(segment.number().next()));
                Some(segment)
            }
            Opener::AtOnce(opener) => {
                opener.make();
                let segment = opener.ready.take()?;
                opener.next = segment.number().next();
                opener.make();
                Some(segment)
            }
        }
    }

    pub(crate) fn close(&self, segment: Box<dyn Segment>) {
        match self {
            Opener::Thread(opener) => opener.ask(Job::Close(segment)),
            Opener::AtOnce(_) => close(segment),
        }
    }

    /// Closes what was asked to be closed and the segment made ahead, and waits for it.
    pub(crate) fn finish(self) {
        match self {
            Opener::Thread(OnThread { jobs, ready, thread }) => {
                drop(jobs);
                if let Some(thread) = thread {
                    let _ = thread.join();
                }
                ready.try_iter().for_each(close);
            }
            Opener::AtOnce(opener) => opener.ready.into_iter().for_each(close),
        }
    }
}

impl OnThread {
    fn ask(&self, job: Job) {
        // The thread ends only after this end is dropped, unless it panicked; then `next` says so.
        let _ = self.jobs.send(job);
    }
}

fn close(segment: Box<dyn Segment>) {
    let number = segment.number();
    if let Err(error) = segment.close() {
        tracing::warn!(segment = number.0, %error, "closing a segment failed");
    }
}

/// Makes a segment, and notes whether there is room.
fn create(shared: &Shared, spec: &Spec, number: SegmentNo) -> Option<Box<dyn Segment>> {
    shared.look_at_space();
    match shared.disk.create(number, spec) {
        Ok(segment) => {
            shared.set_no_room(false);
            shared.look_at_space();
            Some(segment)
        }
        Err(error) => {
            if !shared.set_no_room(true) {
                tracing::warn!(segment = number.0, %error, "the next segment can't be made yet");
            }
            None
        }
    }
}

fn serve(shared: &Shared, spec: &Spec, jobs: &mpsc::Receiver<Job>, made: &mpsc::Sender<Box<dyn Segment>>) {
    let mut wanted = None;
    loop {
        let job = match wanted {
            None => jobs.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some(_) => jobs.recv_timeout(RETRY),
        };
        match job {
            Ok(Job::Open(number)) => wanted = Some(number),
            Ok(Job::Close(segment)) => {
                close(segment);
                continue;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let Some(number) = wanted else { continue };
        if let Some(segment) = create(shared, spec, number) {
            wanted = None;
            if made.send(segment).is_err() {
                return;
            }
        }
    }
}

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
const RETRY: Duration = Duration::from_millis(100);

enum Job {
    Open(SegmentNo),
    Close(Box<dyn Segment>),
}

/// The writer's end.
pub(crate) struct Opener {
    jobs: mpsc::Sender<Job>,
    ready: mpsc::Receiver<Box<dyn Segment>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Opener {
    /// Starts the thread and has it make `first`.
    pub(crate) fn start(shared: Arc<Shared>, spec: Spec, first: SegmentNo) -> Result<Opener, Error> {
        let (jobs, incoming) = mpsc::channel();
        let (made, ready) = mpsc::channel();
        let work = move || serve(&shared, &spec, &incoming, &made);
        let thread = thread::Builder::new().name("annal-log-open".into()).spawn(work);
        let thread = thread.map_err(Error::io("starting the thread that opens segments"))?;
        let opener = Opener { jobs, ready, thread: Some(thread) };
        opener.ask(Job::Open(first));
        Ok(opener)
    }

    fn ask(&self, job: Job) {
        // The thread ends only after this end is dropped, unless it panicked; then `next` says so.
        let _ = self.jobs.send(job);
    }

    /// Takes the segment made ahead and has the following one made; `None` if none came within `patience`.
    pub(crate) fn next(&self, patience: Duration) -> Option<Box<dyn Segment>> {
        let segment = self.ready.recv_timeout(patience).ok()?;
        self.ask(Job::Open(segment.number().next()));
        Some(segment)
    }

    pub(crate) fn close(&self, segment: Box<dyn Segment>) {
        self.ask(Job::Close(segment));
    }

    /// Closes what was asked to be closed and the segment made ahead, and waits for it.
    pub(crate) fn finish(self) {
        let Opener { jobs, ready, thread } = self;
        drop(jobs);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        for unused in ready.try_iter() {
            let _ = unused.close();
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
                let number = segment.number();
                if let Err(error) = segment.close() {
                    tracing::warn!(segment = number.0, %error, "closing a sealed segment failed");
                }
                continue;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        let Some(number) = wanted else { continue };
        shared.look_at_space();
        match shared.disk.create(number, spec) {
            Ok(segment) => {
                wanted = None;
                shared.set_no_room(false);
                shared.look_at_space();
                if made.send(segment).is_err() {
                    return;
                }
            }
            Err(error) => {
                if !shared.set_no_room(true) {
                    tracing::warn!(segment = number.0, %error, "the next segment can't be made yet");
                }
            }
        }
    }
}

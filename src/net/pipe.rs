//! Small calls over one stream of a connection: they cost a frame each way, not a stream each.
//!
//! ```text
//!   caller ──> Pipe ══ ask, ask, cancel, … ══> read ──> a task each ──> Service::answer
//!   caller <── told ══ answer, answer, stop … ══════════════════════ <──┘
//! ```
//!
//! Invariants: numbers ascend in the order in which asks are sent, and are looked at in that order, so that `stop`, which
//! names the last one looked at, says of each whether it was; a call that its caller gives up is cancelled at the
//! other end; when a pipe ends, everyone who waits hears of it. Frames that are ready together leave together.
//! Not here: calls with large bodies, uploads and downloads, which have streams of their own; who may ask for what.
//! Layout: `docs/FORMATS.md`.

use super::{
    CALL_BYTES_MAX,
    body::{self, Outgoing},
};
use crate::world;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::{
    collections::HashMap,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::AbortHandle,
};
use tokio_util::sync::CancellationToken;

/// Where a pipe is opened.
pub(super) const PATH: &str = "/pipe";

/// A call with a larger body takes a stream of its own, so that small ones need not wait behind it.
pub(super) const BODY_BYTES_MAX: usize = 64 << 10;

/// Frames up to this size are copied together into one piece of the body.
const JOINED_BYTES_MAX: usize = 16 << 10;
/// How many frames leave together at most.
const TOGETHER: usize = 64;

const ASK: u8 = 0;
const CANCEL: u8 = 1;
const ANSWER: u8 = 2;
const FAILED: u8 = 3;
const REFUSED: u8 = 4;
const BROKE: u8 = 5;
const STOP: u8 = 6;

const LENGTH_BYTES: usize = 4;
/// Kind and number.
const HEAD_BYTES: usize = 5;

/// How a call ended, as the other end tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Answer(Bytes),
    /// The service failed.
    Failed(Bytes),
    /// The other end does not talk to us about this.
    Refused(String),
}

/// Why nothing was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Untold {
    /// It was not sent.
    Unsent,
    /// It was not looked at: the other end stops.
    Unprocessed,
    /// The pipe broke, or ended.
    Broke(String),
}

type Outcome = Result<Told, Untold>;

/// The asking end of a pipe; cheap to clone. The pipe ends when the last one is dropped.
#[derive(Clone)]
pub(super) struct Pipe {
    calls: Arc<Calls>,
    frames: mpsc::UnboundedSender<Bytes>,
}

/// Those who wait for an answer.
#[derive(Default)]
pub(super) struct Calls {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last number given.
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<Outcome>>,
    /// Nothing is asked any more.
    over: bool,
}

impl Pipe {
    /// A pipe, and the body that carries what is asked.
    pub(super) fn new() -> (Pipe, Outgoing) {
        let (frames, queue) = mpsc::unbounded_channel();
        (Pipe { calls: Arc::default(), frames }, body::flow(None, together(queue)))
    }

    /// Those who wait, for [`Calls::listen`].
    pub(super) fn calls(&self) -> Arc<Calls> {
        self.calls.clone()
    }

    /// Whether nothing can be asked any more.
    pub(super) fn is_over(&self) -> bool {
        self.calls.lock().over
    }

    /// Asks; if the future is dropped, the call is cancelled at the other end. The body is at most
    /// [`BODY_BYTES_MAX`].
    pub(super) async fn call(&self, path: &'static str, body: &[u8]) -> Outcome {
        let (tell, told) = oneshot::channel();
        let call = {
            let mut state = self.calls.lock();
            // Numbers are not used twice.
            state.over |= state.last == u32::MAX;
            if state.over {
                return Err(Untold::Unsent);
            }
            state.last += 1;
            let number = state.last;
            let mut frame = frame(ASK, number, 1 + path.len() + body.len());
            frame.put_u8(u8::try_from(path.len()).expect("a path is short"));
            frame.put_slice(path.as_bytes());
            frame.put_slice(body);
            // Under the lock, so that asks leave in the order of their numbers.
            if self.frames.send(frame.freeze()).is_err() {
                state.over = true;
                return Err(Untold::Unsent);
            }
            state.waiting.insert(number, tell);
            Call { pipe: self, number }
        };
        let outcome = told.await;
        drop(call);
        outcome.unwrap_or_else(|_| Err(Untold::Broke("the connection ended".to_owned())))
    }
}

/// A call under way.
struct Call<'a> {
    pipe: &'a Pipe,
    number: u32,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.pipe.calls.lock().waiting.remove(&self.number).is_some() {
            // Nobody is there to cancel it if the pipe has ended.
            let _ = self.pipe.frames.send(frame(CANCEL, self.number, 0).freeze());
        }
    }
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells callers what the other end answers, until that ends.
    pub(super) async fn listen(self: Arc<Self>, answers: Incoming) {
        let mut inlet = Inlet::of(answers);
        let why = loop {
            match inlet.frame().await {
                Ok(Some(frame)) => match self.hear(frame) {
                    Ok(()) => {}
                    Err(why) => break why.to_owned(),
                },
                Ok(None) => break "the connection ended".to_owned(),
                Err(error) => break error.to_string(),
            }
        };
        let mut state = self.lock();
        state.over = true;
        for (_, tell) in state.waiting.drain() {
            // Whoever gave up meanwhile need not know.
            let _ = tell.send(Err(Untold::Broke(why.clone())));
        }
    }

    fn hear(&self, Frame { kind, number, body }: Frame) -> Result<(), &'static str> {
        let mut state = self.lock();
        let outcome = match kind {
            ANSWER => Ok(Told::Answer(body)),
            FAILED => Ok(Told::Failed(body)),
            REFUSED => Ok(Told::Refused(String::from_utf8_lossy(&body).into_owned())),
            BROKE => Err(Untold::Broke("the service broke off".to_owned())),
            STOP => {
                state.over = true;
                for (_, tell) in state.waiting.extract_if(|asked, _| *asked > number) {
                    let _ = tell.send(Err(Untold::Unprocessed));
                }
                return Ok(());
            }
            _ => return Err("a frame of an unknown kind came"),
        };
        // Nobody waits for an answer that crossed its cancellation.
        if let Some(tell) = state.waiting.remove(&number) {
            let _ = tell.send(outcome);
        }
        Ok(())
    }
}

/// What the answering end gives for a path and a body.
pub(super) type Answering = dyn Fn(&str, Bytes) -> BoxFuture<'static, Told> + Send + Sync;

/// The answering end: reads what is asked until it ends or `stop`, and gives the body that carries the answers. After
/// `stop` calls under way finish.
pub(super) fn answer(asks: Incoming, answering: Arc<Answering>, stop: CancellationToken) -> Outgoing {
    let (frames, queue) = mpsc::unbounded_channel();
    let desk = Desk { answering, frames, running: Arc::default(), idle: Arc::default(), last: 0 };
    world::spawn(desk.read(Inlet::of(asks), stop));
    body::flow(None, together(queue))
}

/// Where one peer's calls are answered.
struct Desk {
    answering: Arc<Answering>,
    frames: mpsc::UnboundedSender<Bytes>,
    running: Arc<Mutex<HashMap<u32, AbortHandle>>>,
    /// Told when no call is under way any more.
    idle: Arc<Notify>,
    /// The last ask looked at.
    last: u32,
}

impl Desk {
    async fn read(mut self, mut inlet: Inlet, stop: CancellationToken) {
        let broke = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break false,
                frame = inlet.frame() => {
                    let Ok(Some(frame)) = frame else { break true };
                    if let Err(why) = self.take(frame) {
                        tracing::warn!(why, "a peer's frame was refused");
                        break true;
                    }
                }
            }
        };
        if broke {
            // Nobody is there to hear an answer.
            lock(&self.running).drain().for_each(|(_, call)| call.abort());
            return;
        }
        // The reader of answers may be gone too.
        let _ = self.frames.send(frame(STOP, self.last, 0).freeze());
        let idle = self.idle.clone();
        while !lock(&self.running).is_empty() {
            tokio::select! {
                () = idle.notified() => {}
                frame = inlet.frame() => match frame {
                    Ok(Some(Frame { kind: CANCEL, number, .. })) => self.cancel(number),
                    // It was not looked at, as it has been told.
                    Ok(Some(_)) => {}
                    _ => lock(&self.running).drain().for_each(|(_, call)| call.abort()),
                },
            }
        }
    }

    fn take(&mut self, Frame { kind, number, body }: Frame) -> Result<(), &'static str> {
        match kind {
            ASK if number > self.last => self.last = number,
            CANCEL => {
                self.cancel(number);
                return Ok(());
            }
            _ => return Err("not an ask, or out of order"),
        }
        let path = body.first().and_then(|bytes| body.get(1..1 + usize::from(*bytes)));
        let path = path.and_then(|path| std::str::from_utf8(path).ok()).ok_or("an ask without a path")?;
        self.begin(number, path, body.slice(1 + path.len()..));
        Ok(())
    }

    /// Begins to answer an ask.
    fn begin(&self, number: u32, path: &str, body: Bytes) {
        let look = || {
            let mut answering = (self.answering)(path, body);
            match answering.poll_unpin(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(told) => Ok(told),
                Poll::Pending => Err(answering),
            }
        };
        // Much is answered at once, and needs no task. If not, the task looks again.
        let answering = match catch_unwind(AssertUnwindSafe(look)) {
            Ok(Err(answering)) => answering,
            Ok(Ok(told)) => return self.send(told.into_frame(number)),
            // The others' calls go on.
            Err(_) => return self.send(frame(BROKE, number, 0).freeze()),
        };
        let (frames, running, idle) = (self.frames.clone(), self.running.clone(), self.idle.clone());
        let answer = Answer { frames, running, idle, number };
        let call = async move {
            let told = answering.await;
            answer.give(told.into_frame(number));
        };
        // It cannot end before it is noted.
        let mut noted = lock(&self.running);
        noted.insert(number, world::spawn(call).abort_handle());
    }

    fn send(&self, frame: Bytes) {
        // A reader of answers that is gone wants none.
        let _ = self.frames.send(frame);
    }

    fn cancel(&self, number: u32) {
        if let Some(call) = lock(&self.running).remove(&number) {
            call.abort();
        }
    }
}

/// What a call's answer goes to; one that is never given is told to be lost.
struct Answer {
    frames: mpsc::UnboundedSender<Bytes>,
    running: Arc<Mutex<HashMap<u32, AbortHandle>>>,
    idle: Arc<Notify>,
    number: u32,
}

impl Answer {
    fn give(&self, frame: Bytes) {
        let mut running = lock(&self.running);
        // A call that was cancelled wants none; nor does a reader of answers that is gone.
        if running.remove(&self.number).is_some() {
            let _ = self.frames.send(frame);
        }
        if running.is_empty() {
            self.idle.notify_one();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.give(frame(BROKE, self.number, 0).freeze());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Told {
    fn into_frame(self, number: u32) -> Bytes {
        let (kind, body) = match self {
            Told::Answer(body) => (ANSWER, body),
            Told::Failed(failure) => (FAILED, failure),
            Told::Refused(why) => (REFUSED, Bytes::from(why)),
        };
        let mut frame = frame(kind, number, body.len());
        frame.put_slice(&body);
        frame.freeze()
    }
}

/// A frame's head, with room for so many bytes behind it.
fn frame(kind: u8, number: u32, bytes: usize) -> BytesMut {
    let mut frame = BytesMut::with_capacity(LENGTH_BYTES + HEAD_BYTES + bytes);
    frame.put_u32(u32::try_from(HEAD_BYTES + bytes).expect("bounded by CALL_BYTES_MAX"));
    frame.put_u8(kind);
    frame.put_u32(number);
    frame
}

/// Pieces of a body: all frames that are ready, but large ones by themselves, uncopied.
fn together(queue: mpsc::UnboundedReceiver<Bytes>) -> BoxStream<'static, io::Result<Bytes>> {
    let frames = Vec::with_capacity(TOGETHER);
    let pieces = stream::unfold((queue, frames, 0), |(mut queue, mut frames, mut at)| async move {
        if at == frames.len() {
            (frames, at) = (Vec::with_capacity(TOGETHER), 0);
            if queue.recv_many(&mut frames, TOGETHER).await == 0 {
                return None;
            }
        }
        let rest: &[Bytes] = &frames[at..];
        let small = rest.iter().take_while(|frame| frame.len() <= JOINED_BYTES_MAX).count();
        let piece = match small {
            0 | 1 => rest[0].clone(),
            _ => rest[..small].concat().into(),
        };
        Some((Ok(piece), (queue, frames, at + small.max(1))))
    });
    pieces.boxed()
}

/// A frame as it came.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    number: u32,
    body: Bytes,
}

/// Takes frames off a body.
struct Inlet {
    body: Incoming,
    /// What came and is not taken yet.
    rest: Bytes,
}

impl Inlet {
    fn of(body: Incoming) -> Inlet {
        Inlet { body, rest: Bytes::new() }
    }

    /// The next frame; none when the body ended between two. Nothing is lost if the future is dropped.
    ///
    /// Errors: the body broke or ended within a frame, or a frame is larger than any.
    async fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = take(&mut self.rest)? {
                return Ok(Some(frame));
            }
            let Some(piece) = self.body.frame().await else {
                return if self.rest.is_empty() { Ok(None) } else { Err(cut_off()) };
            };
            let Ok(piece) = piece.map_err(io::Error::other)?.into_data() else { continue };
            self.rest = match self.rest.is_empty() {
                true => piece,
                false => joined(std::mem::take(&mut self.rest), &piece),
            };
        }
    }
}

/// Two pieces in one; what has room for the second is not copied again.
fn joined(first: Bytes, second: &[u8]) -> Bytes {
    let wanted = first.get(..LENGTH_BYTES).map_or(0, |mut length| LENGTH_BYTES + length.get_u32() as usize);
    let mut both = first.try_into_mut().unwrap_or_else(|first| BytesMut::from(&first[..]));
    both.reserve(
        wanted.min(LENGTH_BYTES + HEAD_BYTES + CALL_BYTES_MAX).saturating_sub(both.len()).max(second.len()),
    );
    both.put_slice(second);
    both.freeze()
}

fn take(rest: &mut Bytes) -> io::Result<Option<Frame>> {
    let Some(mut length) = rest.get(..LENGTH_BYTES) else { return Ok(None) };
    let bytes = length.get_u32() as usize;
    if !(HEAD_BYTES..=HEAD_BYTES + CALL_BYTES_MAX).contains(&bytes) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {bytes} bytes")));
    }
    if rest.len() < LENGTH_BYTES + bytes {
        return Ok(None);
    }
    let mut frame = rest.split_to(LENGTH_BYTES + bytes);
    frame.advance(LENGTH_BYTES);
    Ok(Some(Frame { kind: frame.get_u8(), number: frame.get_u32(), body: frame }))
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a frame was cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let sizes = [0, 1, 7, 300, JOINED_BYTES_MAX, 100_000, 2, 0, 0, 5];
        let (send, queue) = mpsc::unbounded_channel();
        let sent: Vec<Frame> = (1u32..)
            .zip(sizes)
            .map(|(number, size)| {
                let body = Bytes::from(vec![number as u8; size]);
                let mut bytes = frame(ANSWER, number, size);
                bytes.put_slice(&body);
                send.send(bytes.freeze()).unwrap();
                Frame { kind: ANSWER, number, body }
            })
            .collect();
        drop(send);
        let pieces: Vec<Bytes> = together(queue).map(Result::unwrap).collect().await;
        assert_eq!(pieces.len(), 4, "small, large, larger, small");
        let all = pieces.concat();
        for step in [1, 3, 1000, 16_384, all.len()] {
            let (mut rest, mut got) = (Bytes::new(), Vec::new());
            for piece in all.chunks(step) {
                rest = joined(rest, piece);
                while let Some(frame) = take(&mut rest).unwrap() {
                    got.push(frame);
                }
            }
            assert!(rest.is_empty() && got == sent, "in pieces of {step}");
        }
    }

    #[test]
    fn a_frame_larger_than_any_is_refused() {
        for length in [0, 4, u32::MAX] {
            assert!(take(&mut Bytes::copy_from_slice(&length.to_be_bytes())).is_err(), "{length}");
        }
    }

    #[tokio::test]
    async fn each_caller_hears_its_own_answer_and_a_stop_says_who_was_not_looked_at() {
        let (pipe, _body) = Pipe::new();
        let calls = pipe.calls();
        let call = |path| {
            let pipe = pipe.clone();
            tokio::spawn(async move { pipe.call(path, b"x").await })
        };
        let asked = [call("/1"), call("/2"), call("/3"), call("/4")];
        tokio::task::yield_now().await;
        let told = |kind, number, body: &'static [u8]| Frame { kind, number, body: Bytes::from_static(body) };
        calls.hear(told(ANSWER, 2, b"two")).unwrap();
        calls.hear(told(STOP, 3, b"")).unwrap();
        assert!(pipe.is_over());
        assert_eq!(pipe.call("/5", b"").await, Err(Untold::Unsent));
        calls.hear(told(REFUSED, 1, b"no")).unwrap();
        calls.hear(told(FAILED, 3, b"sour")).unwrap();
        // Long answered.
        calls.hear(told(ANSWER, 2, b"again")).unwrap();
        let mut outcomes = Vec::new();
        for call in asked {
            outcomes.push(call.await.unwrap());
        }
        let expected = [
            Ok(Told::Refused("no".into())),
            Ok(Told::Answer(Bytes::from_static(b"two"))),
            Ok(Told::Failed(Bytes::from_static(b"sour"))),
            Err(Untold::Unprocessed),
        ];
        assert_eq!(outcomes, expected);
        assert!(calls.hear(told(9, 1, b"")).is_err());
    }
}

//! Bodies as they travel: whole ones with their length, streams with an end mark.
//!
//! Invariant: what was cut off is an error. HTTP/2 alone does not promise it here: hyper ends a body quietly when
//! its stream is reset with CANCEL, which is what a peer does that gives up.

use super::{ByteStream, CALL_BYTES_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    HeaderMap,
    body::{Body, Frame, Incoming, SizeHint},
    header::{HeaderName, HeaderValue},
};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

/// A body on its way out.
pub(super) type Outgoing = Either<Full<Bytes>, Flow>;

/// The trailer that says a stream ended by itself.
const END: HeaderName = HeaderName::from_static("annal-end");

pub(super) fn whole(bytes: Bytes) -> Outgoing {
    Either::Left(Full::new(bytes))
}

/// A stream on its way out, after `head` if there is one.
pub(super) fn flow(head: Option<Bytes>, body: ByteStream) -> Outgoing {
    let head = head.map(|head| {
        let mut framed = BytesMut::with_capacity(4 + head.len());
        framed.put_u32(u32::try_from(head.len()).expect("checked against CALL_BYTES_MAX"));
        framed.put_slice(&head);
        framed.freeze()
    });
    Either::Right(Flow { head, body: Some(body) })
}

/// A stream of bytes and its end mark.
pub(super) struct Flow {
    head: Option<Bytes>,
    /// None once it ended or broke.
    body: Option<ByteStream>,
}

impl Body for Flow {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        loop {
            match std::task::ready!(body.poll_next_unpin(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Err(error)) => {
                    self.body = None;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.body = None;
                    let end = HeaderMap::from_iter([(END, HeaderValue::from_static("1"))]);
                    return Poll::Ready(Some(Ok(Frame::trailers(end))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.head.is_none() && self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads a whole body.
///
/// Errors: it broke, is shorter than it said, says no length, or is larger than `CALL_BYTES_MAX`.
pub(super) async fn read_whole(mut body: Incoming) -> io::Result<Bytes> {
    let bytes = usize::try_from(body.size_hint().exact().ok_or_else(|| wrong("a body without a length"))?)
        .ok()
        .filter(|bytes| *bytes <= CALL_BYTES_MAX)
        .ok_or_else(|| wrong("a body larger than the largest"))?;
    let mut read = Bytes::new();
    // Most bodies come in one frame, and are handed on without a copy.
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if data.len() == bytes {
            read = data;
        } else {
            if collected.is_empty() {
                collected.reserve(bytes);
            }
            collected.extend_from_slice(&data);
        }
    }
    if !collected.is_empty() {
        read = collected.freeze();
    }
    if read.len() != bytes {
        return Err(cut_off());
    }
    Ok(read)
}

/// A stream on its way in: it ends with an error unless the end mark came.
pub(super) fn incoming(body: Incoming) -> ByteStream {
    stream::try_unfold(Some(body), |body| async move {
        let Some(mut body) = body else { return Ok(None) };
        loop {
            match body.frame().await {
                Some(frame) => match frame.map_err(io::Error::other)?.into_data() {
                    Ok(bytes) if bytes.is_empty() => {}
                    Ok(bytes) => return Ok(Some((bytes, Some(body)))),
                    Err(trailers) if trailers.trailers_ref().is_some_and(|t| t.contains_key(END)) => {
                        return Ok(None);
                    }
                    Err(_) => {}
                },
                None => return Err(cut_off()),
            }
        }
    })
    .boxed()
}

/// Takes the head off an upload.
///
/// Errors: as the stream's; a head larger than `CALL_BYTES_MAX`.
pub(super) async fn take_head(mut body: ByteStream) -> io::Result<(Bytes, ByteStream)> {
    let mut read = BytesMut::new();
    loop {
        if let Some(mut length) = read.get(..4) {
            let bytes = length.get_u32() as usize;
            if bytes > CALL_BYTES_MAX {
                return Err(wrong("a head larger than the largest"));
            }
            if read.len() >= 4 + bytes {
                read.advance(4);
                let head = read.split_to(bytes).freeze();
                let rest = stream::iter((!read.is_empty()).then(|| Ok(read.freeze())));
                return Ok((head, rest.chain(body).boxed()));
            }
        }
        read.extend_from_slice(&body.next().await.ok_or_else(cut_off)??);
    }
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the body was cut off")
}

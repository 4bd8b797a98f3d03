//! Frames out of a stream of bytes, however that is cut into pieces: `length u32, little-endian | body`.
//!
//! Invariants: a body comes whole or not at all; a stream that ends within a frame is broken.
//! Not here: what a body says, and its checksum if it has one.

use super::ByteStream;
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use std::io;

/// Bytes of a frame before its body.
pub const LENGTH_BYTES: usize = 4;

/// Reads frames.
pub struct Frames {
    stream: ByteStream,
    read: BytesMut,
    bytes_max: usize,
}

impl Frames {
    /// Out of a stream whose frames have bodies of so many bytes at the most.
    pub fn over(stream: ByteStream, bytes_max: usize) -> Frames {
        Frames { stream, read: BytesMut::new(), bytes_max }
    }

    /// The next frame's body; none at the end. Dropping the future loses nothing.
    ///
    /// Errors: the stream broke, or ended within a frame; `InvalidData`: a frame is longer than any.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(body) = self.take()? {
                return Ok(Some(body));
            }
            match self.stream.next().await {
                Some(piece) => self.read.extend_from_slice(&piece?),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// The first frame of what was read, if it is whole.
    fn take(&mut self) -> io::Result<Option<Bytes>> {
        let Some(mut length) = self.read.get(..LENGTH_BYTES) else { return Ok(None) };
        let length = length.get_u32_le() as usize;
        if length > self.bytes_max {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        if self.read.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.read.advance(LENGTH_BYTES);
        Ok(Some(self.read.split_to(length).freeze()))
    }
}

/// A frame that is none.
pub fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

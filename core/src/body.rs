//! Response bodies: stored, passed through, or partly read and replayed.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;

use crate::policy::BodyLength;

pin_project! {
    /// The body of a response that went through the cache.
    pub struct ReplyBody<B: Body> {
        #[pin]
        inner: ReplySource<B>,
    }
}

pin_project! {
    #[project = ReplySourceProjection]
    enum ReplySource<B: Body> {
        Full { bytes: Bytes },
        Own { #[pin] body: B },
        Replay { replay: Replay<B> },
    }
}

/// The frames already read from a body that wasn't stored, and the rest of that body.
struct Replay<B: Body> {
    frames: VecDeque<Frame<Bytes>>,
    rest: Result<Pin<Box<B>>, Option<B::Error>>,
}

impl<B: Body> ReplyBody<B> {
    /// Creates a body from complete bytes.
    #[must_use]
    pub const fn full(bytes: Bytes) -> Self {
        Self { inner: ReplySource::Full { bytes } }
    }

    /// Wraps the handler's body unchanged.
    #[must_use]
    pub const fn own(body: B) -> Self {
        Self { inner: ReplySource::Own { body } }
    }

    /// Returns the bytes if the body is complete in memory.
    #[must_use]
    pub const fn as_bytes(&self) -> Option<&Bytes> {
        match &self.inner {
            ReplySource::Full { bytes } => Some(bytes),
            _ => None,
        }
    }
}

impl<B: Body> fmt::Debug for ReplyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.inner {
            ReplySource::Full { .. } => "ReplyBody::Full(..)",
            ReplySource::Own { .. } => "ReplyBody::Own(..)",
            ReplySource::Replay { .. } => "ReplyBody::Replay(..)",
        })
    }
}

impl<B: Body> Body for ReplyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            ReplySourceProjection::Full { bytes } if bytes.is_empty() => Poll::Ready(None),
            ReplySourceProjection::Full { bytes } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))))
            }
            ReplySourceProjection::Own { body } => body.poll_frame(context).map(own_frame),
            ReplySourceProjection::Replay { replay } => match replay.frames.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => match &mut replay.rest {
                    Ok(body) => body.as_mut().poll_frame(context).map(own_frame),
                    Err(error) => Poll::Ready(error.take().map(Err)),
                },
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            ReplySource::Full { bytes } => bytes.is_empty(),
            ReplySource::Own { body } => body.is_end_stream(),
            ReplySource::Replay { replay } => {
                replay.frames.is_empty()
                    && match &replay.rest {
                        Ok(body) => body.is_end_stream(),
                        Err(error) => error.is_none(),
                    }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            ReplySource::Full { bytes } => SizeHint::with_exact(bytes.len() as u64),
            ReplySource::Own { body } => body.size_hint(),
            ReplySource::Replay { .. } => SizeHint::default(),
        }
    }
}

fn own_frame<D: Buf, E>(frame: Option<Result<Frame<D>, E>>) -> Option<Result<Frame<Bytes>, E>> {
    frame.map(|frame| frame.map(owned))
}

/// Converts a frame's data to `Bytes`. Data that is `Bytes` already isn't copied.
pub(crate) fn owned<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

/// Returns the declared length of a response's body, from the body itself or from `Content-Length`.
pub(crate) fn length_of<B: Body>(headers: &HeaderMap, body: &B) -> BodyLength {
    if body.is_end_stream() {
        return BodyLength::Known(0);
    }
    let declared = || headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    body.size_hint().exact().or_else(declared).map_or(BodyLength::Unknown, BodyLength::Known)
}

/// Collects a body that declares a length of `expected` bytes. Returns the whole body unchanged as `Err` if it is longer or
/// shorter, if it fails, or if it ends with trailers.
pub(crate) async fn collect<B: Body>(body: B, expected: u64) -> Result<Bytes, ReplyBody<B>> {
    let mut body = Box::pin(body);
    let mut chunks = Vec::new();
    let mut length = 0;
    let rest = loop {
        match body.frame().await {
            None if length == expected => return Ok(join(&chunks)),
            None => break Err(None),
            Some(Err(error)) => break Err(Some(error)),
            Some(Ok(frame)) => match owned(frame).into_data() {
                Ok(data) => {
                    length += data.len() as u64;
                    chunks.push(data);
                    if length > expected {
                        break Ok(body);
                    }
                }
                Err(trailers) => {
                    let frames = chunks.into_iter().map(Frame::data).chain([trailers]).collect();
                    return Err(replay(frames, Ok(body)));
                }
            },
        }
    };
    Err(replay(chunks.into_iter().map(Frame::data).collect(), rest))
}

fn replay<B: Body>(
    frames: VecDeque<Frame<Bytes>>,
    rest: Result<Pin<Box<B>>, Option<B::Error>>,
) -> ReplyBody<B> {
    ReplyBody { inner: ReplySource::Replay { replay: Replay { frames, rest } } }
}

/// Joins chunks into one buffer. A single chunk isn't copied.
pub(crate) fn join(chunks: &[Bytes]) -> Bytes {
    if let [chunk] = chunks {
        return chunk.clone();
    }
    let mut whole = BytesMut::with_capacity(chunks.iter().map(Bytes::len).sum());
    for chunk in chunks {
        whole.extend_from_slice(chunk);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    type Frames = Vec<Result<Frame<Bytes>, &'static str>>;

    fn body(frames: Frames) -> impl Body<Data = Bytes, Error = &'static str> + std::fmt::Debug {
        StreamBody::new(futures_util::stream::iter(frames))
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    /// Reads a body as a client would. Returns its data, whether trailers came, and the error at its end.
    async fn read<B: Body>(mut body: Pin<&mut B>) -> (String, bool, Option<B::Error>) {
        let (mut text, mut trailers) = (String::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Err(error) => return (text, trailers, Some(error)),
                Ok(frame) => match frame.into_data() {
                    Ok(mut data) => {
                        let data = data.copy_to_bytes(data.remaining());
                        text.push_str(std::str::from_utf8(&data).unwrap());
                    }
                    Err(_) => trailers = true,
                },
            }
        }
        (text, trailers, None)
    }

    #[tokio::test]
    async fn whole_bodies_are_collected() {
        assert_eq!(collect(body(vec![data("ab"), data("c")]), 3).await.unwrap(), "abc");
        assert_eq!(collect(body(vec![]), 0).await.unwrap(), "");
    }

    #[tokio::test]
    async fn bodies_that_differ_from_their_declaration_are_returned_unchanged() {
        let trailers = || Ok(Frame::trailers(HeaderMap::new()));
        for (frames, expected) in [
            (vec![data("ab"), data("c")], ("abc", false, None)),
            (vec![data("a")], ("a", false, None)),
            (vec![data("a"), Err("cut")], ("a", false, Some("cut"))),
            (vec![data("ab"), trailers()], ("ab", true, None)),
        ] {
            let back = collect(body(frames), 2).await.unwrap_err();
            assert_eq!(back.size_hint().exact(), None);
            let (text, trailers, error) = read(std::pin::pin!(back)).await;
            assert_eq!((text.as_str(), trailers, error), expected);
        }
    }

    #[tokio::test]
    async fn stored_and_own_bodies_know_their_length() {
        let stored = ReplyBody::<Full<Bytes>>::full(Bytes::from_static(b"abc"));
        assert_eq!(stored.size_hint().exact(), Some(3));
        assert_eq!(stored.as_bytes().unwrap(), "abc");
        assert_eq!(read(std::pin::pin!(stored)).await.0, "abc");
        let own = ReplyBody::own(Full::new(Bytes::from_static(b"abc")));
        assert_eq!(own.size_hint().exact(), Some(3));
        assert_eq!(read(std::pin::pin!(own)).await.0, "abc");
        assert!(ReplyBody::<Full<Bytes>>::full(Bytes::new()).is_end_stream());
    }

    #[test]
    fn declared_lengths_of_bodies() {
        let full = Full::new(Bytes::from_static(b"abc"));
        let stream = body(vec![data("abc")]);
        let declared: HeaderMap = [(CONTENT_LENGTH, http::HeaderValue::from(3))].into_iter().collect();
        assert_eq!(length_of(&HeaderMap::new(), &full), BodyLength::Known(3));
        assert_eq!(length_of(&HeaderMap::new(), &stream), BodyLength::Unknown);
        assert_eq!(length_of(&declared, &stream), BodyLength::Known(3));
    }
}

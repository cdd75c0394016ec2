//! Bodies of a shared cache's answers: stored ones, the origin's own, and the origin's own while it is being kept.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::body::{join, owned};
use crate::policy::BodyLength;

type BoxError = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of an answer that went through a shared cache.
    pub struct SharedBody<B: Body> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<B: Body> {
        Full { bytes: Bytes },
        Own { #[pin] body: B },
        Kept { pieces: UnboundedReceiver<Piece<B>>, remaining: Option<u64>, ended: bool },
        Rest { rest: Pin<Box<B>> },
    }
}

/// What the one who keeps a body hands on.
enum Piece<B: Body> {
    Frame(Frame<Bytes>),
    /// It turned out too long to be kept. From here on the client reads it itself.
    Rest(Pin<Box<B>>),
    Error(B::Error),
    End,
}

impl<B: Body> SharedBody<B> {
    /// A body that is there whole.
    #[must_use]
    pub const fn full(bytes: Bytes) -> Self {
        Self { inner: Inner::Full { bytes } }
    }

    /// The origin's own body, untouched.
    #[must_use]
    pub const fn own(body: B) -> Self {
        Self { inner: Inner::Own { body } }
    }
}

impl<B: Body> fmt::Debug for SharedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.inner {
            Inner::Full { .. } => "SharedBody::Full(..)",
            Inner::Own { .. } => "SharedBody::Own(..)",
            Inner::Kept { .. } => "SharedBody::Kept(..)",
            Inner::Rest { .. } => "SharedBody::Rest(..)",
        })
    }
}

impl<B: Body<Error: Into<BoxError>>> Body for SharedBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = match self.as_mut().project().inner.project() {
            InnerProjection::Full { bytes } if bytes.is_empty() => return Poll::Ready(None),
            InnerProjection::Full { bytes } => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            InnerProjection::Own { body } => return body.poll_frame(context).map(own_frame),
            InnerProjection::Rest { rest } => return rest.as_mut().poll_frame(context).map(own_frame),
            InnerProjection::Kept { ended: true, .. } => return Poll::Ready(None),
            InnerProjection::Kept { pieces, remaining, ended } => {
                let piece = ready!(pieces.poll_recv(context));
                match (&piece, remaining) {
                    (Some(Piece::Frame(frame)), Some(remaining)) => {
                        let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
                        *remaining = remaining.saturating_sub(sent);
                    }
                    (Some(Piece::Frame(_)), None) => {}
                    _ => *ended = true,
                }
                piece
            }
        };
        match piece {
            Some(Piece::Frame(frame)) => Poll::Ready(Some(Ok(frame))),
            Some(Piece::Rest(rest)) => {
                self.set(Self { inner: Inner::Rest { rest } });
                self.poll_frame(context)
            }
            Some(Piece::Error(error)) => Poll::Ready(Some(Err(error.into()))),
            Some(Piece::End) => Poll::Ready(None),
            // Never let what was cut pass for whole.
            None => Poll::Ready(Some(Err("the response was given up on".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full { bytes } => bytes.is_empty(),
            Inner::Own { body } => body.is_end_stream(),
            Inner::Kept { ended, .. } => *ended,
            Inner::Rest { rest } => rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Full { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Inner::Own { body } => body.size_hint(),
            Inner::Kept { remaining: Some(remaining), .. } => SizeHint::with_exact(*remaining),
            Inner::Kept { remaining: None, .. } => SizeHint::default(),
            Inner::Rest { rest } => rest.size_hint(),
        }
    }
}

fn own_frame<D: Buf, E: Into<BoxError>>(
    frame: Option<Result<Frame<D>, E>>,
) -> Option<Result<Frame<Bytes>, BoxError>> {
    frame.map(|frame| match frame {
        Ok(frame) => Ok(owned(frame)),
        Err(error) => Err(error.into()),
    })
}

/// Splits a body: what the client reads, at once and as it comes, and what keeps it meanwhile.
pub(crate) fn keep<B: Body>(body: B, length: BodyLength, limit: u64) -> (SharedBody<B>, Keeper<B>) {
    let (client, pieces) = unbounded_channel();
    let remaining = body.size_hint().exact();
    let expected = match length {
        BodyLength::Known(length) => Some(length),
        BodyLength::Unknown => None,
    };
    let keeper = Keeper { body: Box::pin(body), client, limit, expected, chunks: Vec::new(), length: 0 };
    (SharedBody { inner: Inner::Kept { pieces, remaining, ended: false } }, keeper)
}

/// Reads a body to its end, hands every frame on, and keeps them. The client's channel needs no bound of its own: what lies
/// in it is kept anyway, and that is bounded.
pub(crate) struct Keeper<B: Body> {
    body: Pin<Box<B>>,
    client: UnboundedSender<Piece<B>>,
    limit: u64,
    expected: Option<u64>,
    chunks: Vec<Bytes>,
    length: u64,
}

/// A body that was read to its end. The client doesn't know yet: first the response is stored, so that whoever has read it
/// finds it in the cache.
pub(crate) struct Complete<B: Body> {
    pub(crate) body: Bytes,
    held_back: Vec<Frame<Bytes>>,
    client: UnboundedSender<Piece<B>>,
}

impl<B: Body> Complete<B> {
    /// Lets the client have the end.
    pub(crate) fn release(self) {
        for frame in self.held_back {
            let _: Result<(), _> = self.client.send(Piece::Frame(frame));
        }
        let _: Result<(), _> = self.client.send(Piece::End);
    }
}

/// Why there is nothing to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unkept {
    /// The body broke off, or the client is gone and it still goes on.
    Broken,
    TooLong,
}

impl<B: Body> Keeper<B> {
    /// Reads on until the end. For a client that is gone, no longer than `patience`.
    pub(crate) async fn read(mut self, patience: Duration) -> Result<Complete<B>, Unkept> {
        let client = self.client.clone();
        tokio::select! {
            biased;
            end = self.read_on() => match end {
                Ok(held_back) => Ok(Complete { body: join(&self.chunks), held_back, client }),
                Err(Some(last)) => {
                    let _: Result<(), _> = client.send(last);
                    Err(Unkept::Broken)
                }
                Err(None) => {
                    // The client takes over.
                    let _: Result<(), _> = client.send(Piece::Rest(self.body));
                    Err(Unkept::TooLong)
                }
            },
            () = lonely(&client, patience) => Err(Unkept::Broken),
        }
    }

    /// Up to the end, whose frames are held back. `Err` says how it ends instead; `None` that it is too long.
    async fn read_on(&mut self) -> Result<Vec<Frame<Bytes>>, Option<Piece<B>>> {
        let mut held_back = Vec::new();
        loop {
            let frame = match self.body.frame().await {
                None if self.expected.is_none_or(|expected| expected == self.length) => return Ok(held_back),
                // A body that says how long it is and then isn't is no body.
                None => return Err(Some(Piece::End)),
                Some(Err(error)) => return Err(Some(Piece::Error(error))),
                Some(Ok(frame)) => owned(frame),
            };
            if let Some(data) = frame.data_ref() {
                self.length = self.length.saturating_add(data.len() as u64);
                self.chunks.push(data.clone());
            }
            // Clients that know the length have read the body before they are told that it ends.
            let is_last = self.expected == Some(self.length);
            if is_last || frame.is_trailers() {
                held_back.push(frame);
                continue;
            }
            let _: Result<(), _> = self.client.send(Piece::Frame(frame));
            if self.length > self.limit {
                return Err(None);
            }
        }
    }
}

/// Until the client has been gone for a while.
async fn lonely<B: Body>(client: &UnboundedSender<Piece<B>>, patience: Duration) {
    client.closed().await;
    tokio::time::sleep(patience).await;
}

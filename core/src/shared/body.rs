//! Bodies of a shared cache's responses: stored, passed through, or read and stored at the same time.

use std::collections::VecDeque;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::budget::{Budget, BudgetHolder, Share};
use crate::body::{join, owned};
use crate::policy::BodyLength;

type BoxError = Box<dyn Error + Send + Sync>;

pin_project! {
    /// The body of a response that went through a shared cache.
    pub struct SharedBody<B: Body> {
        #[pin]
        inner: SharedSource<B>,
    }
}

pin_project! {
    #[project = SharedSourceProjection]
    enum SharedSource<B: Body> {
        Full { bytes: Bytes },
        Own { #[pin] body: B },
        Tee { pipe: ReadEnd<B>, remaining: Option<u64>, ended: bool },
        Rest { rest: Pin<Box<B>> },
    }
}

impl<B: Body> SharedBody<B> {
    /// Creates a body from complete bytes.
    #[must_use]
    pub const fn full(bytes: Bytes) -> Self {
        Self { inner: SharedSource::Full { bytes } }
    }

    /// Wraps the origin's body unchanged.
    #[must_use]
    pub const fn own(body: B) -> Self {
        Self { inner: SharedSource::Own { body } }
    }
}

impl<B: Body> fmt::Debug for SharedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.inner {
            SharedSource::Full { .. } => "SharedBody::Full(..)",
            SharedSource::Own { .. } => "SharedBody::Own(..)",
            SharedSource::Tee { .. } => "SharedBody::Tee(..)",
            SharedSource::Rest { .. } => "SharedBody::Rest(..)",
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
        let end = match self.as_mut().project().inner.project() {
            SharedSourceProjection::Full { bytes } if bytes.is_empty() => return Poll::Ready(None),
            SharedSourceProjection::Full { bytes } => {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes)))));
            }
            SharedSourceProjection::Own { body } => return body.poll_frame(context).map(own_frame),
            SharedSourceProjection::Rest { rest } => return rest.as_mut().poll_frame(context).map(own_frame),
            SharedSourceProjection::Tee { ended: true, .. } => return Poll::Ready(None),
            SharedSourceProjection::Tee { pipe, remaining, ended } => match pipe.0.read(context) {
                Read::Nothing => return Poll::Pending,
                Read::Frame(frame) => {
                    let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
                    *remaining = remaining.map(|remaining| remaining.saturating_sub(sent));
                    return Poll::Ready(Some(Ok(frame)));
                }
                Read::End(end) => {
                    *ended = true;
                    end
                }
            },
        };
        match end {
            End::Whole => Poll::Ready(None),
            End::Rest(rest) => {
                self.set(Self { inner: SharedSource::Rest { rest } });
                self.poll_frame(context)
            }
            End::Error(error) => Poll::Ready(Some(Err(error.into()))),
            // A truncated body must not look complete.
            End::Cut => Poll::Ready(Some(Err("the response was given up on".into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            SharedSource::Full { bytes } => bytes.is_empty(),
            SharedSource::Own { body } => body.is_end_stream(),
            SharedSource::Tee { ended, .. } => *ended,
            SharedSource::Rest { rest } => rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            SharedSource::Full { bytes } => SizeHint::with_exact(bytes.len() as u64),
            SharedSource::Own { body } => body.size_hint(),
            SharedSource::Tee { remaining: Some(remaining), .. } => SizeHint::with_exact(*remaining),
            SharedSource::Tee { remaining: None, .. } => SizeHint::default(),
            SharedSource::Rest { rest } => rest.size_hint(),
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

/// The state shared by the collector of a body and the client that reads it.
struct Pipe<B: Body> {
    state: Mutex<PipeState<B>>,
    client_gone: Notify,
}

struct PipeState<B: Body> {
    /// Frames that the client hasn't read, while the body is still being received.
    frames: VecDeque<Frame<Bytes>>,
    /// The complete body, which replaces the frames. Its bytes are those that are stored.
    whole: Option<Bytes>,
    /// The number of bytes that the client may read, and the number that it has read.
    released: usize,
    read: usize,
    trailers: Option<HeaderMap>,
    end: Option<End<B>>,
    reader: Option<Waker>,
    last_read: Instant,
    /// Held until the client has read all frames, or has disconnected.
    share: Option<Share>,
}

/// The end of a body.
enum End<B: Body> {
    Whole,
    Error(B::Error),
    /// The body is no longer collected. The client reads the rest itself.
    Rest(Pin<Box<B>>),
    /// The collector was dropped before the end.
    Cut,
}

enum Read<B: Body> {
    Nothing,
    Frame(Frame<Bytes>),
    End(End<B>),
}

impl<B: Body> Pipe<B> {
    fn state(&self) -> MutexGuard<'_, PipeState<B>> {
        // No panic can leave the state inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, context: &Context<'_>) -> Read<B> {
        let mut state = self.state();
        state.last_read = Instant::now();
        if let Some(frame) = state.frames.pop_front() {
            state.read += frame.data_ref().map_or(0, Bytes::len);
            return Read::Frame(frame);
        }
        let (read, released) = (state.read, state.released);
        if let Some(whole) = state.whole.as_ref().filter(|_| read < released) {
            let piece = whole.slice(read..released);
            state.read = released;
            return Read::Frame(Frame::data(piece));
        }
        if matches!(state.end, Some(End::Whole))
            && let Some(trailers) = state.trailers.take()
        {
            return Read::Frame(Frame::trailers(trailers));
        }
        match state.end.take() {
            Some(end) => {
                state.share = None;
                Read::End(end)
            }
            None => {
                state.reader = Some(context.waker().clone());
                Read::Nothing
            }
        }
    }

    /// Changes the state and wakes the client.
    fn write(&self, change: impl FnOnce(&mut PipeState<B>)) {
        let reader = {
            let mut state = self.state();
            change(&mut state);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl<B: Body + Send> BudgetHolder for Pipe<B>
where
    B::Error: Send,
{
    fn reclaim_if_stalled(&self, stalled: Duration) {
        self.write(|state| {
            // While the body is being received, there may be nothing for its client to read.
            if state.end.is_some() && state.last_read.elapsed() >= stalled {
                state.frames.clear();
                state.whole = None;
                state.end = Some(End::Cut);
                state.share = None;
            }
        });
    }
}

/// The client's end.
struct ReadEnd<B: Body>(Arc<Pipe<B>>);

impl<B: Body> Drop for ReadEnd<B> {
    fn drop(&mut self) {
        self.0.write(|state| {
            state.frames.clear();
            state.whole = None;
        });
        self.0.client_gone.notify_one();
    }
}

/// The collector's end. Dropping it before the end truncates the body.
struct WriteEnd<B: Body>(Arc<Pipe<B>>);

impl<B: Body> WriteEnd<B> {
    fn end(&self, end: End<B>) {
        self.0.write(|state| state.end = Some(end));
    }
}

impl<B: Body> Drop for WriteEnd<B> {
    fn drop(&mut self) {
        self.0.write(|state| {
            state.end.get_or_insert(End::Cut);
        });
    }
}

/// Splits a body into one for the client, which passes frames on as they arrive, and a collector of the same frames. Returns the
/// body as `Err` if the budget has no room for it.
pub(crate) fn tee<B>(
    body: B,
    length: BodyLength,
    limit: u64,
    budget: &Arc<Budget>,
) -> Result<(SharedBody<B>, BodyCollector<B>), B>
where
    B: Body<Error: Send> + Send + 'static,
{
    let remaining = body.size_hint().exact();
    let expected = match length {
        BodyLength::Known(length) => Some(length),
        BodyLength::Unknown => None,
    };
    let Some(share) = budget.share(expected.unwrap_or(0)) else { return Err(body) };
    let pipe = Arc::new(Pipe {
        state: Mutex::new(PipeState {
            frames: VecDeque::new(),
            whole: None,
            released: 0,
            read: 0,
            trailers: None,
            end: None,
            reader: None,
            last_read: Instant::now(),
            share: Some(share),
        }),
        client_gone: Notify::new(),
    });
    let holder: Arc<dyn BudgetHolder> = pipe.clone();
    budget.register(&holder, expected);
    let client = WriteEnd(Arc::clone(&pipe));
    let collector =
        BodyCollector { body: Box::pin(body), client, limit, expected, chunks: Vec::new(), length: 0 };
    Ok((SharedBody { inner: SharedSource::Tee { pipe: ReadEnd(pipe), remaining, ended: false } }, collector))
}

/// Reads a body to its end, passes every frame on, and collects them. Frames that the client hasn't read are held, within the
/// limit and the budget.
pub(crate) struct BodyCollector<B: Body> {
    body: Pin<Box<B>>,
    client: WriteEnd<B>,
    limit: u64,
    expected: Option<u64>,
    chunks: Vec<Bytes>,
    length: u64,
}

/// A body that was read to its end. The client doesn't get the end yet: the response is stored first, so that a client that has
/// read the whole body finds it in the cache.
pub(crate) struct Complete<B: Body> {
    pub(crate) body: Bytes,
    client: WriteEnd<B>,
}

impl<B: Body> Complete<B> {
    /// Passes the end on to the client. If `stored` has the same length, the client reads it instead, so that the body is in
    /// memory once.
    pub(crate) fn release(self, stored: Option<Bytes>) {
        let whole = stored.filter(|stored| stored.len() == self.body.len()).unwrap_or(self.body);
        self.client.0.write(|state| {
            state.released = whole.len();
            state.whole = Some(whole);
            state.end.get_or_insert(End::Whole);
        });
    }
}

/// The reason why a body isn't stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectError {
    /// The body broke off, or it didn't end in time after the client disconnected.
    Broken,
    /// It exceeds the limit or the budget.
    TooLong,
}

impl<B: Body> BodyCollector<B> {
    /// Reads to the end, but no longer than `timeout` after the client disconnected.
    pub(crate) async fn read(mut self, timeout: Duration) -> Result<Complete<B>, CollectError> {
        let pipe = Arc::clone(&self.client.0);
        let end = tokio::select! {
            biased;
            end = self.read_to_end() => end,
            () = client_gone_for(&pipe.client_gone, timeout) => return Err(CollectError::Broken),
        };
        match end {
            Ok(held_back) => {
                let body = join(&std::mem::take(&mut self.chunks));
                self.client.0.write(|state| {
                    state.frames.clear();
                    state.released = body.len() - held_back.data.as_ref().map_or(0, Bytes::len);
                    state.trailers = held_back.trailers;
                    state.whole = Some(body.clone());
                });
                Ok(Complete { body, client: self.client })
            }
            Err(Some(end)) => {
                self.client.end(end);
                Err(CollectError::Broken)
            }
            Err(None) => {
                // The client reads the rest itself.
                self.client.end(End::Rest(self.body));
                Err(CollectError::TooLong)
            }
        }
    }

    /// Reads to the end, and withholds the last frames. The `Err` is another end, or `None` if the body is too long.
    async fn read_to_end(&mut self) -> Result<HeldBack, Option<End<B>>> {
        let mut held_back = HeldBack::default();
        loop {
            let frame = match self.body.frame().await {
                None if self.expected.is_none_or(|expected| expected == self.length) => return Ok(held_back),
                // The body has another length than it declared.
                None => return Err(Some(End::Whole)),
                Some(Err(error)) => return Err(Some(End::Error(error))),
                Some(Ok(frame)) => owned(frame),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => {
                    held_back.trailers = frame.into_trailers().ok();
                    continue;
                }
            };
            if data.is_empty() {
                continue;
            }
            // The body continues after its declared length.
            if let Some(data) = held_back.data.take() {
                self.pass_on(data);
            }
            self.length = self.length.saturating_add(data.len() as u64);
            self.chunks.push(data.clone());
            // A client that knows the length has the whole body with these bytes, so they wait until the body is stored.
            if self.expected == Some(self.length) {
                held_back.data = Some(data);
                continue;
            }
            let has_room = self.pass_on(data);
            if self.length > self.limit || !has_room {
                return Err(None);
            }
        }
    }

    /// Passes data on to the client. Returns `false` if the budget has no room for more.
    fn pass_on(&self, data: Bytes) -> bool {
        let mut has_room = true;
        self.client.0.write(|state| {
            has_room = state.share.as_mut().is_none_or(|share| share.grow_to(self.length));
            state.frames.push_back(Frame::data(data));
        });
        has_room
    }
}

/// The end of a body, which waits until the body is stored.
#[derive(Default)]
struct HeldBack {
    data: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// Waits until the client has been disconnected for this time.
async fn client_gone_for(client_gone: &Notify, timeout: Duration) {
    client_gone.notified().await;
    tokio::time::sleep(timeout).await;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;

    /// RFC 9111 §3.1, RFC 9110 §6.5.1.
    #[tokio::test]
    async fn trailers_reach_the_client_and_are_not_stored() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"a\""))]);
        let frames = [Frame::data(Bytes::from_static(b"hello")), Frame::trailers(trailers.clone())];
        let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
        let Ok((client, collector)) = tee(body, BodyLength::Unknown, u64::MAX, &Budget::new(1024)) else {
            panic!("no room")
        };
        let Ok(complete) = collector.read(Duration::from_secs(60)).await else { panic!("broken") };
        assert_eq!(complete.body, "hello");
        complete.release(None);
        let received = client.collect().await.unwrap();
        assert_eq!(received.trailers(), Some(&trailers));
        assert_eq!(received.to_bytes(), "hello");
    }
}

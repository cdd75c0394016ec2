//! The handlers of the table's services, for every framework.

use std::io;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use crate::in_process::Runs;

/// The body of a handler's response.
pub(super) type OriginBody = BoxBody<Bytes, io::Error>;

/// The error that a handler returns instead of a response. It becomes a response with this status.
#[derive(Debug)]
pub(super) struct Failure(pub(super) StatusCode);

/// The response of a handler.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    status: u16,
    fields: &'static [(&'static str, &'static str)],
    content: Content,
    good_runs: usize,
}

/// The body of a handler's response.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// The method, the nested router if there is one, and the number of the run among those of all handlers: `GET/v1 3`.
    Counted,
    /// The value of this field of the request, and the number of the run: `fr 3`.
    Echoed(&'static str),
    /// The same as `Counted`, in two chunks and without a length.
    Streamed,
    /// An empty body.
    Nothing,
    /// The handler returns an error, which becomes a response with the status.
    Failed,
}

impl Default for Origin {
    fn default() -> Self {
        says(200, &[])
    }
}

/// A handler that answers with this status and these fields, and counts its runs.
#[must_use]
pub const fn says(status: u16, fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin { status, fields, content: Content::Counted, good_runs: 0 }
}

impl Origin {
    /// Sets the body.
    #[must_use]
    pub const fn content(self, content: Content) -> Self {
        Self { content, ..self }
    }

    /// Lets this number of runs of all handlers succeed first, with a 200 and the count.
    #[must_use]
    pub const fn after(self, good_runs: usize) -> Self {
        Self { good_runs, ..self }
    }

    pub(super) fn answer(
        &self,
        mount: &str,
        method: &Method,
        headers: &HeaderMap,
        runs: &Runs,
    ) -> Result<Response<OriginBody>, Failure> {
        let run = runs.count();
        if run <= self.good_runs {
            let text = Full::from(format!("{method}{mount} {run}")).map_err(|never| match never {});
            return Ok(Response::new(text.boxed()));
        }
        let status = StatusCode::from_u16(self.status).unwrap();
        let whole = |text: String| Full::from(text).map_err(|never| match never {}).boxed();
        let body = match self.content {
            Content::Counted => whole(format!("{method}{mount} {run}")),
            Content::Echoed(name) => {
                let value = headers.get(name).map_or("none", |value| value.to_str().unwrap());
                whole(format!("{value} {run}"))
            }
            Content::Streamed => {
                let chunks = [format!("{method}{mount}"), format!(" {run}")];
                let frames = chunks.map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
                StreamBody::new(stream::iter(frames)).boxed()
            }
            Content::Nothing => whole(String::new()),
            Content::Failed => return Err(Failure(status)),
        };
        let mut response = Response::builder().status(status);
        for (name, value) in self.fields {
            response = response.header(*name, *value);
        }
        Ok(response.body(body).unwrap())
    }
}

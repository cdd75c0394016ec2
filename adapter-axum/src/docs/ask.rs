// What the examples of the guide hide: a way to send a request to a router in one line. The page on testing shows it.

/// A whole answer.
struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    body: String,
}

impl Answer {
    /// A field, or "" if it is not there.
    fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// HIT, MISS or BYPASS.
    fn cache(&self) -> &str {
        self.field("x-redis-cache")
    }
}

/// Sends `METHOD uri`, or `METHOD uri json`.
async fn ask(app: &axum::Router, line: &str) -> Answer {
    ask_with(app, line, &[]).await
}

/// The same, with these fields.
async fn ask_with(app: &axum::Router, line: &str, fields: &[(&str, &str)]) -> Answer {
    let mut words = line.splitn(3, ' ');
    let (method, uri) = (words.next().unwrap(), words.next().unwrap());
    let mut request = axum::http::Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = match words.next() {
        Some(json) => request.header("content-type", "application/json").body(json.to_owned().into()),
        None => request.body(axum::body::Body::empty()),
    };
    let response = tower::ServiceExt::oneshot(app.clone(), request.unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

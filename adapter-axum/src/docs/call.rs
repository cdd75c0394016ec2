// Hidden helpers of the guide's examples, which send a request to a router in one line. The guide's front page shows them. They are
// in a module so that an example can import the same names.
mod in_one_line {
    pub use axum::Router;
    pub use axum::body::{Body, to_bytes};
    pub use axum::http::{Request, Response};
    pub use tower::ServiceExt as _;

    pub async fn call(app: &Router, line: &str) -> Response<Body> {
        call_with(app, line, "accept: */*").await
    }

    pub async fn call_with(app: &Router, line: &str, field: &str) -> Response<Body> {
        let mut words = line.splitn(3, ' ');
        let (name, value) = field.split_once(": ").unwrap();
        let request = Request::builder()
            .method(words.next().unwrap())
            .uri(words.next().unwrap())
            .header("content-type", "application/json")
            .header(name, value)
            .body(Body::from(words.next().unwrap_or_default().to_owned()));
        app.clone().oneshot(request.unwrap()).await.unwrap()
    }

    pub fn cache_header(response: &Response<Body>) -> &str {
        response.headers()["x-redis-cache"].to_str().unwrap()
    }

    pub fn field<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    pub async fn text(response: Response<Body>) -> String {
        String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap()
    }
}
use in_one_line::*;

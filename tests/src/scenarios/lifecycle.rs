//! Start and shutdown of a shop.

use std::time::Duration;

use futures_util::future::join;
use http::Method;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::product;
use crate::shop::Shop;

/// On SIGTERM, requests in progress are answered. Then the process exits with success, even if an endless response is open.
pub async fn sigterm_lets_open_requests_finish(program: &str) {
    let mut shop = Shop::in_memory(program);
    let endless = shop.open(Method::GET, "/events", &[], "").await;
    let under_way = shop.get("/slow/1");
    let stop = async {
        sleep(Duration::from_millis(80)).await;
        shop.terminate();
    };
    let (answer, ()) = join(under_way, stop).await;
    assert_eq!(answer.ok().json()["value"], "old-1");
    let status = shop.ended().await;
    assert!(status.success(), "{status}");
    drop(endless);
}

/// The shop serves requests before Redis is up.
pub async fn starts_while_redis_is_down(program: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut shop = Shop::on_redis(program, &format!("redis://127.0.0.1:{port}"));
    for _ in 0..5 {
        let answer = shop.get("/products/7").await.ok();
        assert_eq!(answer.json(), product(7));
        assert!(answer.took < Duration::from_secs(1), "{answer:?}");
    }
    shop.terminate();
    let status = shop.ended().await;
    assert!(status.success(), "{status}");
}

/// An invalid configuration is reported at start, without the password.
pub async fn invalid_url_is_refused_without_showing_the_password(program: &str) {
    for url in ["redis://user:s3cret@127.0.0.1:notaport", "http://user:s3cret@127.0.0.1", "s3cret"] {
        let (status, stderr) = Shop::fail(program, &[("REDIS_URL", url)]);
        assert!(!status.success(), "{url} was accepted");
        assert!(stderr.contains("REDIS_URL"), "{url}: which variable? {stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

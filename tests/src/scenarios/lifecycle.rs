//! How a shop starts and stops.

use std::time::Duration;

use futures_util::future::join;
use http::Method;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::product;
use crate::shop::Shop;

/// SIGTERM: requests that are under way are answered, then the process ends well, even with an endless answer open.
pub async fn stops_when_told_and_answers_first(program: &str) {
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

/// A Redis that isn't there yet keeps nobody from serving.
pub async fn starts_without_its_redis(program: &str) {
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

/// A configuration that can't work is said at start, without the password.
pub async fn a_bad_url_is_refused_in_secret(program: &str) {
    for url in ["redis://user:s3cret@127.0.0.1:notaport", "http://user:s3cret@127.0.0.1", "s3cret"] {
        let (status, stderr) = Shop::fail(program, &[("REDIS_URL", url)]);
        assert!(!status.success(), "{url} was accepted");
        assert!(stderr.contains("REDIS_URL"), "{url}: which variable? {stderr}");
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

//! Layers that change the URI before the handler: the key is of the URI that the handler sees, and evictions reach it.

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::handler::Handler;
use axum::routing::get as get_route;
use http::{Method, Request, Uri};
use larder_axum::{Larder, cache, cache_evict, cache_put};
use larder_tests::framework::{App, larder, outcome_of};
use larder_tests::in_process::Runs;
use poem::EndpointExt;
use tower::ServiceBuilder;
use tower::util::MapRequestLayer;

fn with_uri<B>(mut request: Request<B>, uri: String) -> Request<B> {
    *request.uri_mut() = uri.parse::<Uri>().unwrap();
    request
}

/// Rewrites `/home` of `two.example` to `/two.example/home`.
fn host_to_path<B>(request: Request<B>) -> Request<B> {
    let host = request.headers()["host"].to_str().unwrap().to_owned();
    let path = request.uri().path_and_query().unwrap().to_string();
    with_uri(request, format!("/{host}{path}"))
}

/// Adds `?lang=`, from `Accept-Language`.
fn with_language<B>(request: Request<B>) -> Request<B> {
    let language = request.headers()["accept-language"].to_str().unwrap().to_owned();
    let path = request.uri().path().to_owned();
    with_uri(request, format!("{path}?lang={language}"))
}

fn without_slashes<B>(request: Request<B>) -> Request<B> {
    let mut path = request.uri().path().trim_end_matches('/').to_owned();
    while path.contains("//") {
        path = path.replace("//", "/");
    }
    with_uri(request, if path.is_empty() { "/".to_owned() } else { path })
}

/// A route whose GET answers with the URI that the handler sees, and the number of its run.
fn shown(larder: &Larder, path: &str) -> Router {
    let runs = Runs::new();
    let show = move |uri: Uri| async move { format!("{uri} {}", runs.count()) };
    let route = get_route(show.clone().layer(cache(larder).group("g").ttl(60)))
        .put(show.clone().layer(cache_put(larder).group("g").ttl(60)))
        .delete(show.layer(cache_evict(larder).group("g").key()));
    Router::new().route(path, route)
}

fn behind(map: fn(Request<Body>) -> Request<Body>, inner: Router) -> App {
    App::axum(
        Router::new().fallback_service(ServiceBuilder::new().layer(MapRequestLayer::new(map)).service(inner)),
    )
}

const ONE: &[(&str, &str)] = &[("host", "one.example")];
const TWO: &[(&str, &str)] = &[("host", "two.example")];

#[tokio::test]
async fn rewritten_pages_are_stored_per_host() {
    let larder = larder();
    let shops = ["/one.example", "/two.example"];
    let nested = shops.iter().fold(Router::new(), |app, shop| app.nest(shop, shown(&larder, "/home")));
    let named = |Path(shop): Path<String>| async move { format!("/{shop}/home 1") };
    let patterns =
        Router::new().route("/{shop}/home", get_route(named.layer(cache(&larder).group("p").ttl(60))));
    for inner in [shown(&larder, "/{shop}/home"), patterns, nested] {
        larder.backend().group("g").delete_group().await;
        let app = behind(host_to_path, inner);
        let (mut texts, mut words) = (Vec::new(), Vec::new());
        for host in [ONE, TWO, ONE, TWO] {
            let answer = app.send_with(Method::GET, "/home", host).await;
            words.push(answer.cache().to_owned());
            texts.push(answer.text().to_owned());
        }
        assert_eq!(words, ["MISS", "MISS", "HIT", "HIT"], "{texts:?}");
        assert_eq!((&texts[0], &texts[1]), (&texts[2], &texts[3]));
    }
    // Either name evicts it.
    let app = behind(host_to_path, shown(&larder, "/{shop}/home"));
    app.send_with(Method::GET, "/home", TWO).await;
    app.send_with(Method::DELETE, "/home", ONE).await;
    assert_eq!(outcome_of(&app.send_with(Method::GET, "/home", ONE).await), "MISS absent");
    assert_eq!(outcome_of(&app.send_with(Method::GET, "/home", TWO).await), "HIT", "another host's stays");
}

/// A route under a mount with a parameter, which answers with the value of the parameter and the number of its run.
fn under_a_parameter(larder: &Larder) -> Router {
    let runs = Runs::new();
    let named = move |Path(shop): Path<String>| async move { format!("{shop} {}", runs.count()) };
    let route = get_route(named.clone().layer(cache(larder).group("g").ttl(60)))
        .put(named.clone().layer(cache_put(larder).group("g").ttl(60)))
        .delete(named.layer(cache_evict(larder).group("g").key()));
    Router::new().nest("/{shop}", Router::new().route("/home", route))
}

/// Replaces the first segment of the path by the host: `/my/home` of `two.example` becomes `/two.example/home`.
fn my_to_host<B>(request: Request<B>) -> Request<B> {
    let host = request.headers()["host"].to_str().unwrap().to_owned();
    let rest = request.uri().path().strip_prefix("/my").unwrap_or("/home").to_owned();
    with_uri(request, format!("/{host}{rest}"))
}

#[tokio::test]
async fn value_of_a_mount_that_middleware_chose_is_in_the_key() {
    for (rewrite, path) in [(host_to_path as fn(_) -> _, "/home"), (my_to_host, "/my/home")] {
        let larder = larder();
        let app = behind(rewrite, under_a_parameter(&larder));
        for (host, outcome, text) in [
            (ONE, "MISS absent", "one.example 1"),
            (TWO, "MISS absent", "two.example 2"),
            (ONE, "HIT", "one.example 1"),
            (TWO, "HIT", "two.example 2"),
        ] {
            let answer = app.send_with(Method::GET, path, host).await;
            assert_eq!((outcome_of(&answer).as_str(), answer.text()), (outcome, text), "{path}");
        }
        // The same resource by its own path, and writes by either.
        let direct = App::axum(under_a_parameter(&larder));
        assert_eq!(direct.get("/one%2Eexample/home").await.text(), "one.example 1");
        app.send_with(Method::DELETE, path, ONE).await;
        assert_eq!(outcome_of(&direct.get("/one.example/home").await), "MISS absent", "{path}");
        assert_eq!(outcome_of(&direct.get("/two.example/home").await), "HIT", "{path}");
        assert_eq!(direct.send(Method::PUT, "/two.example/home").await.text(), "two.example 2");
        assert_eq!(app.send_with(Method::GET, path, TWO).await.text(), "two.example 2", "{path}");
    }
}

#[tokio::test]
async fn added_parameter_is_in_the_key() {
    let larder = larder();
    let around = MapRequestLayer::new(with_language::<Body>);
    for app in [
        App::axum(shown(&larder, "/page").layer(around.clone())),
        App::axum(Router::new().nest("/shop", shown(&larder, "/shop/page").layer(around.clone()))),
        App::axum(Router::new().nest("/shop", shown(&larder, "/page").layer(around))),
    ]
    .into_iter()
    .zip(["/page", "/shop/shop/page", "/shop/page"])
    {
        let (app, uri) = app;
        let ask = async |language| app.send_with(Method::GET, uri, &[("accept-language", language)]).await;
        let (german, french) = (ask("de").await, ask("fr").await);
        assert_eq!(
            (outcome_of(&german).as_str(), outcome_of(&french).as_str()),
            ("MISS absent", "MISS absent"),
            "{uri}"
        );
        assert!(german.text().contains("lang=de") && french.text().contains("lang=fr"));
        let (german, french) = (ask("de").await, ask("fr").await);
        assert!(german.text().contains("lang=de") && french.text().contains("lang=fr"));
        assert_eq!((german.cache(), french.cache()), ("HIT", "HIT"), "{uri}");
        app.send_with(Method::DELETE, uri, &[("accept-language", "fr")]).await;
        assert_eq!((ask("de").await.cache(), ask("fr").await.cache()), ("HIT", "MISS"), "{uri}");
    }
}

#[tokio::test]
async fn normalized_paths_are_one_resource() {
    let inner = |larder: &Larder| shown(larder, "/p/{id}");
    for (app, mount) in [
        (behind(without_slashes, inner(&larder())), ""),
        (
            App::axum(
                Router::new().nest(
                    "/shop",
                    Router::new().fallback_service(
                        ServiceBuilder::new()
                            .layer(MapRequestLayer::new(without_slashes::<Body>))
                            .service(inner(&larder())),
                    ),
                ),
            ),
            "/shop",
        ),
        (poem_shown(&larder(), None), ""),
        (poem_shown(&larder(), Some("/shop")), "/shop"),
    ] {
        let at = |path: &str| format!("{mount}{path}");
        for (read, write) in [("/p/7/", "/p/7"), ("/p/7", "/p/7/"), ("/p//7", "/p/7"), ("//p/7", "/p/7/")] {
            let outcome = async |method, path: &str| outcome_of(&app.send(method, &at(path)).await);
            assert_eq!(outcome(Method::GET, read).await, "MISS absent", "{mount} {read}");
            assert_eq!(outcome(Method::GET, write).await, "HIT", "{mount} {write}");
            outcome(Method::DELETE, write).await;
            assert_eq!(outcome(Method::GET, read).await, "MISS absent", "{mount} {read} after {write}");
            outcome(Method::PUT, write).await;
            assert_eq!(outcome(Method::GET, read).await, "HIT", "{mount} {read} after {write}");
            outcome(Method::DELETE, read).await;
        }
    }
}

/// The same in poem, with its own middleware.
fn poem_shown(larder: &Larder, mount: Option<&str>) -> App {
    use poem::middleware::{NormalizePath, TrailingSlash};

    let runs = Runs::new();
    let show = std::sync::Arc::new(poem::endpoint::make_sync(move |request| {
        format!("{} {}", request.uri(), runs.count())
    }));
    let routes = poem::Route::new().at(
        "/p/:id",
        poem::get(std::sync::Arc::clone(&show).with(larder_poem::cache(larder).group("g").ttl(60)))
            .put(std::sync::Arc::clone(&show).with(larder_poem::cache_put(larder).group("g").ttl(60)))
            .delete(show.with(larder_poem::cache_evict(larder).group("g").key())),
    );
    let normalized = routes.with(NormalizePath::new(TrailingSlash::Trim));
    match mount {
        Some(mount) => App::poem(poem::Route::new().nest(mount, normalized)),
        None => App::poem(normalized),
    }
}

#[tokio::test]
async fn rewriting_works_in_poem() {
    let larder = larder();
    let page = poem::endpoint::make_sync(|request| request.uri().path().to_owned());
    let routes =
        poem::Route::new().at("/:shop/home", poem::get(page.with(larder_poem::cache(&larder).ttl(60))));
    let app = App::poem(routes.before(|mut request: poem::Request| async move {
        let host = request.header("host").unwrap().to_owned();
        *request.uri_mut() = format!("/{host}{}", request.uri().path()).parse().unwrap();
        Ok(request)
    }));
    for expected in ["MISS absent", "HIT"] {
        for (host, path) in [(ONE, "/one.example/home"), (TWO, "/two.example/home")] {
            let answer = app.send_with(Method::GET, "/home", host).await;
            assert_eq!((outcome_of(&answer).as_str(), answer.text()), (expected, path));
        }
    }
}

/// Rewrites a write to `/page` into one to `/other`.
fn writes_elsewhere<B>(request: Request<B>) -> Request<B> {
    if request.method() == Method::DELETE && request.uri().path() == "/page" {
        return with_uri(request, "/other".to_owned());
    }
    request
}

/// Fills these paths, whose bodies count runs, sends the write, and returns the paths that are still stored.
async fn left_after(app: &App, paths: &[&str], written: &str) -> Vec<String> {
    let mut stored = Vec::new();
    for path in paths {
        let answer = app.get(path).await;
        assert_eq!(app.get(path).await.text(), answer.text(), "{path} is stored");
        stored.push(answer);
    }
    assert!(app.send(Method::DELETE, written).await.status.is_success());
    let mut left = Vec::new();
    for (path, answer) in paths.iter().zip(stored) {
        if app.get(path).await.body == answer.body {
            left.push((*path).to_owned());
        }
    }
    left
}

#[tokio::test]
async fn rewritten_write_under_a_mount_with_parameters_evicts_what_it_changed() {
    let around = |inner: Router| {
        let layer = MapRequestLayer::new(writes_elsewhere::<Body>);
        let service = ServiceBuilder::new().layer(layer).service(inner);
        App::axum(Router::new().nest_service("/{shop}", service))
    };
    let larder = larder();
    let routes = || shown(&larder, "/page").merge(shown(&larder, "/other"));
    let paths = ["/one/page", "/one/other", "/two/page", "/two/other"];
    let left = ["/one/page", "/two/page", "/two/other"];
    assert_eq!(left_after(&around(routes()), &paths, "/one/page").await, left);

    // In the shared cache too.
    let runs = Runs::new();
    let fresh = move || async move { ([("cache-control", "max-age=60")], runs.count().to_string()) };
    let route = || get_route(fresh.clone()).delete(fresh.clone());
    let routes = Router::new().route("/page", route()).route("/other", route());
    let shared = routes.layer(larder_axum::SharedCacheLayer::new(&self::larder()));
    assert_eq!(left_after(&around(shared), &paths, "/one/page").await, left);
}

#[tokio::test]
async fn write_evicts_under_every_mount_that_its_pattern_allows() {
    let larder = larder();
    let runs = Runs::new();
    let page = || {
        let runs = runs.clone();
        poem::endpoint::make_sync(move |_| runs.count().to_string())
    };
    let cached = || poem::get(page().with(larder_poem::cache(&larder).group("g").ttl(60)));
    let files = cached().delete(page().with(larder_poem::cache_evict(&larder).group("g").key()));
    let routes = poem::Route::new()
        .nest("/v1", poem::Route::new().at("/files/*rest", files))
        .at("/other/:id", cached());
    let app = App::poem(routes.before(|mut request: poem::Request| async move {
        if request.method() == Method::DELETE {
            *request.uri_mut() = Uri::from_static("/v1/files/a");
        }
        Ok(request)
    }));
    // From the pattern alone, the mount may be `/v1` or `/v1/files`.
    let paths = ["/other/a", "/v1/files/a", "/v1/files/files/a", "/other/b", "/v1/files/b"];
    assert_eq!(left_after(&app, &paths, "/other/a").await, ["/other/b", "/v1/files/b"]);
}

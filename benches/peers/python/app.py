"""The same app as src/app.rs, on the Python library that Larder is a port of, set up as in its guide."""

import asyncio
from collections import Counter

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse, StreamingResponse
from redis_fastapi import FastAPIRedis, cache, cache_evict, default_key_builder

app = FastAPI()
FastAPIRedis(app).lifespan().caching()

cached = [Depends(cache(ttl=3600, eviction_group="peers"))]
runs: Counter[str] = Counter()
value = 1


def body(length: int) -> bytes:
    part = b'{"id":7,"name":"Earl Grey","price":"4.20"},'
    return (part * (length // len(part) + 1))[:length]


SMALL, LARGE, OVER = body(569), body(51_200), body(1024 * 1024)


def run(name: str) -> str:
    runs[name] += 1
    return f"run {runs[name]}"


@app.get("/small/{id}", dependencies=cached)
async def small(id: str):
    return Response(SMALL, media_type="application/json")


@app.get("/large/{id}", dependencies=cached)
async def large(id: str):
    return Response(LARGE, media_type="application/json")


@app.get("/tagged/{id}", dependencies=cached)
async def tagged(id: str):
    return Response(SMALL, media_type="application/json", headers={"etag": '"of-the-handler"'})


@app.get("/plain", dependencies=cached)
async def plain():
    return PlainTextResponse(run("plain"))


@app.get("/me/{by}", dependencies=[Depends(cache(ttl=3600, eviction_group="peers", private=True))])
async def me(by: str, request: Request):
    who = request.headers.get("authorization", "").removeprefix("Bearer ")
    who = who or request.headers.get("cookie", "").removeprefix("session=")
    return PlainTextResponse(f"for {who or 'anonymous'}")


@app.get("/login", dependencies=cached)
async def login():
    session = run("login").replace(" ", "-")
    return PlainTextResponse("welcome", headers={"set-cookie": f"session={session}"})


@app.get("/greeting", dependencies=cached)
async def greeting(request: Request):
    german = request.headers.get("accept-language", "").startswith("de")
    return PlainTextResponse("Guten Tag" if german else "Good day", headers={"vary": "accept-language"})


@app.get("/no-store", dependencies=cached)
async def no_store():
    return PlainTextResponse(run("no-store"), headers={"cache-control": "no-store"})


@app.get("/private", dependencies=cached)
async def private():
    return PlainTextResponse(run("private"), headers={"cache-control": "private, max-age=3600"})


@app.api_route("/order", methods=["GET", "POST"], dependencies=cached)
async def order():
    return PlainTextResponse(run("order"))


@app.api_route("/page", methods=["GET", "HEAD"], dependencies=cached)
async def page():
    return PlainTextResponse(run("page"))


@app.get("/page/own", dependencies=cached)
async def page_own():
    return PlainTextResponse(run("page/own"))


@app.head("/page/own", dependencies=cached)
async def head_of_page_own():
    return PlainTextResponse("")


@app.get("/events", dependencies=cached)
async def events():
    async def endless():
        count = 0
        while True:
            yield f"data: {count}\n\n"
            count += 1
            await asyncio.sleep(1)

    return StreamingResponse(endless(), media_type="text/event-stream")


@app.get("/cold", dependencies=cached)
async def cold():
    await asyncio.sleep(0.1)
    return PlainTextResponse(run("cold"))


@app.get("/slow", dependencies=cached)
async def slow():
    read = value
    if read == 1:
        await asyncio.sleep(0.4)
    return PlainTextResponse(f"value {read}")


@app.delete(
    "/slow", dependencies=[Depends(cache_evict(eviction_group="peers", key_builder=default_key_builder))]
)
async def evict_slow():
    return {}


@app.get("/big", dependencies=cached)
async def big():
    return PlainTextResponse(OVER)


@app.put("/control/value/{new}")
async def set_value(new: int):
    global value
    value = new
    return {}

// Tests the example's console as its users see it: with clicks and lookups, on a desktop and a phone, light and dark.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const shop = spawn(process.env.SHOP, { env: { ...process.env, LISTEN_ADDR: "127.0.0.1:0", REDIS_URL: "" }, stdio: ["ignore", "pipe", "inherit"] });
const [line] = await once(shop.stdout, "data");
const origin = String(line).trim().split(" ").pop();
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const tests = [];
const test = (name, run) => tests.push([name, run]);

const get = (path, init) => fetch(origin + path, init);
const cached = async (path, init) => (await get(path, init)).headers.get("x-redis-cache");
const traffic = async (rounds) => {
  for (let round = 0; round < rounds; round++) {
    await Promise.all([
      ...Array.from({ length: 6 }, (_, index) => get(`/products/${1 + (index * round) % 5}`)),
      get("/products/9"), get("/products/9"), get("/news"), get("/basket"),
      get("/me", { headers: { authorization: "Bearer alice" } }), get("/me"),
      get("/products?<img src=x onerror=alert(1)>"),
    ]);
    if (round % 4 === 0) await Promise.all([get("/broken"), get("/products/1", { method: "PUT" }), get("/basket", { headers: { cookie: "a=b" } })]);
    if (round % 9 === 0) await get("/products/2", { method: "DELETE" });
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
};

const visit = async (options = {}) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  const problems = [];
  page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  const hosts = new Set();
  page.on("request", (request) => hosts.add(new URL(request.url()).origin));
  await page.goto(origin + "/login");
  await page.waitForSelector("body[data-ready=yes]");
  return { page, context, problems, hosts };
};
const rows = (page, table) => page.locator(`${table} tbody tr`);
const shot = (page, name) => page.screenshot({ path: `${import.meta.dirname}/${name}.png`, fullPage: !name.startsWith("confirm") });

test("strangers see nothing", async () => {
  for (const [path, method] of [["/admin/cache", "GET"], ["/admin/cache/api/state", "GET"], ["/admin/cache/api/evict", "POST"]]) {
    const answer = await get(path, { method, headers: { "x-larder-console": "1" } });
    assert.equal(answer.status, 403, path);
  }
});

test("numbers, tables and decisions are shown, and nothing asks elsewhere", async () => {
  const { page, context, problems, hosts } = await visit();
  assert.equal(await page.locator("#health").textContent(), "memory");
  assert.match(await page.locator("#ratio").textContent(), /^[\d.]+ ?%$/);
  const products = rows(page, "#routes").filter({ hasText: "/products/{id}" }).first();
  assert.match(await products.textContent(), /products/);
  assert.ok(await page.locator("#plot-requests path.area").count() > 0);
  assert.ok(await page.locator("#decisions li").count() > 5);
  await page.locator("#chips button", { hasText: "bypass" }).click();
  const words = await page.locator("#decisions .word").allTextContents();
  assert.ok(words.length > 0 && words.every((word) => word === "bypass"), String(words));
  await page.locator("#spans button", { hasText: "30 min" }).click();
  assert.ok(await page.locator("#plot-requests path.area").count() > 0);
  assert.deepEqual([...hosts], [origin]);
  assert.deepEqual(problems, []);
  await context.close();
});

test("why was this not cached?", async () => {
  const { page, context, problems } = await visit();
  await page.fill("#find-target", "/basket");
  await page.click("#find button");
  await page.waitForSelector("#answer:not([hidden])");
  assert.match(await page.locator("#answer").textContent(), /set-cookie: The response sets a cookie\./);
  await page.locator("#answer summary").click();
  await page.fill("#more-fields", "cookie: session=1");
  await page.click("#more-ask");
  await page.waitForFunction(() => /neither public nor private/.test(document.querySelector("#answer .steps").textContent));
  assert.equal(await page.locator("#answer .why .word").textContent(), "bypass");
  await page.fill("#more-fields", "");
  await page.fill("#more-status", "404");
  await page.click("#more-ask");
  await page.waitForFunction(() => /this status are not stored/.test(document.querySelector("#answer .steps").textContent));
  await shot(page, "explain");
  assert.deepEqual(problems, []);
  await context.close();
});

test("an entry is found by its path and by its key, and evicted", async () => {
  assert.equal(await cached("/products/4"), "HIT");
  const { page, context, problems } = await visit();
  await page.fill("#find-target", "/products/4");
  await page.click("#find button");
  await page.waitForSelector("#evict-key");
  const key = await page.locator("#answer-key").textContent();
  assert.equal(key, "redis:larder:cache:{products}:products:4");
  await page.fill("#find-target", key);
  await page.click("#find button");
  await page.waitForFunction((key) => document.querySelector("#answer h2").textContent === key, key);
  await page.click("#evict-key");
  await page.waitForSelector("#confirm[open]");
  await page.click("#confirm button[value=no]");
  assert.equal(await cached("/products/4"), "HIT", "kept");
  await page.click("#evict-key");
  await page.click("#confirm-yes");
  await page.waitForFunction(() => /Nothing is stored/.test(document.querySelector("#answer").textContent));
  assert.match(await page.locator("#toast").textContent(), /Evicted redis:larder:cache:\{products\}:products:4/);
  assert.equal(await cached("/products/4"), "MISS");
  assert.deepEqual(problems, []);
  await context.close();
});

test("a group is evicted with two clicks", async () => {
  assert.equal(await cached("/products/4"), "HIT");
  const { page, context, problems } = await visit();
  await rows(page, "#groups").filter({ hasText: "products" }).locator("button").click();
  await page.waitForSelector("#confirm[open]");
  await shot(page, "confirm");
  await page.click("#confirm-yes");
  await page.waitForSelector("#toast:not([hidden])");
  assert.equal(await page.locator("#toast").textContent(), "Evicted products");
  assert.equal(await cached("/products/4"), "MISS");
  assert.deepEqual(problems, []);
  await context.close();
});

test("another site can't evict, nor read, nor frame it", async () => {
  const answer = (_, response) => response.setHeader("content-type", "text/html").end("<!doctype html><iframe></iframe>");
  const elsewhere = createServer(answer).listen(0, "127.0.0.1");
  await once(elsewhere, "listening");
  const { page, context } = await visit();
  // A cookie that the browser also sends with requests from the other site.
  await context.addCookies([{ name: "staff", value: "yes", url: origin, sameSite: "Lax" }]);
  // Cookies treat this as the same site, because only the port differs.
  await page.goto(`http://127.0.0.1:${elsewhere.address().port}/`);
  assert.equal(await cached("/products/4"), "HIT");
  const tried = await page.evaluate(async (origin) => {
    const attempt = (init) => fetch(origin + "/admin/cache/api/evict", { method: "POST", credentials: "include", body: '{"group":"products"}', ...init })
      .then((answer) => answer.status, () => "refused");
    return [await attempt({}), await attempt({ mode: "no-cors" }), await attempt({ headers: { "x-larder-console": "1", "content-type": "application/json" } })];
  }, origin);
  assert.deepEqual(tried, ["refused", "refused", "refused"]);
  assert.equal(await cached("/products/4"), "HIT", "still there");
  await page.evaluate((origin) => { document.querySelector("iframe").src = origin + "/admin/cache"; }, origin);
  await page.waitForTimeout(400);
  assert.ok(page.frames().every((frame) => !frame.url().includes("/admin/cache")), "framed");
  await context.close();
  elsewhere.close();
});

test("its policy lets no other script in", async () => {
  const { page, context } = await visit();
  const injected = await page.evaluate(() => {
    const script = document.createElement("script");
    try { script.text = "window.injected = true"; document.body.append(script); } catch { return "refused"; }
    return window.injected ? "ran" : "refused";
  });
  assert.equal(injected, "refused");
  await context.close();
});

test("it fits a phone, and there is a dark one", async () => {
  for (const [name, options] of [
    ["light", {}], ["dark", { colorScheme: "dark" }],
    ["phone-light", { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 }],
    ["phone-dark", { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2, colorScheme: "dark" }],
  ]) {
    const { page, context, problems } = await visit(options);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.equal(overflow, 0, `${name}: ${overflow} pixels too wide`);
    await shot(page, name);
    assert.deepEqual(problems, []);
    await context.close();
  }
});

let failed = 0;
try {
  await traffic(Number(process.env.ROUNDS || 60));
  for (const [name, run] of tests) {
    try {
      await run();
      console.log(`ok    ${name}`);
    } catch (error) {
      failed++;
      console.log(`FAIL  ${name}\n${error.stack}`);
    }
  }
} finally {
  await browser.close();
  shop.kill();
}
process.exit(failed ? 1 : 0);

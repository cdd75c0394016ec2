// Runs the suite with its origin and the proxy in front of it, once for each store, and counts the tests that pass.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'

const [folder, ...args] = process.argv.slice(2)
const suiteDir = path.join(folder, 'node_modules/http-cache-tests')
const RECORD = 'tests/conformance/passes.json'
const RESULTS = 'tests/conformance/results.md'
const KINDS = ['required', 'optimal']

// Tests that contradict RFC 9111, their own responses, or each other.
const CUT_OFF = 'the origin hangs up without an answer, so nothing can come that shows the origin\'s fields'
const CONTRADICT = {
  'age-parse-prefix':
    'wants `Age: 0,7200` used, where `age-parse-dup-0` wants `Age: 0, 0` refused',
  // Every cache whose results are published fails these four.
  'stale-close-must-revalidate': CUT_OFF,
  'stale-close-proxy-revalidate': CUT_OFF,
  'stale-close-no-cache': CUT_OFF,
  'stale-close-s-maxage=2': CUT_OFF,
  'conditional-lm-fresh-no-lm':
    'wants a 304 for `If-Modified-Since` where the stored response has no `Last-Modified` to compare it with',
  'partial-store-partial-reuse-partial-suffix':
    'asks for the last bytes of a body of which only the first were ever sent',
  'partial-store-partial-complete':
    'wants the missing part fetched with a range that the test\'s origin then answers with something else',
  'vary-normalise-lang-select':
    'wants two language preferences to select one response though they order the languages differently'
}

// Caches whose results are published with the same version of the suite.
const PUBLISHED = {
  trafficserver: 'Apache Traffic Server',
  apache: 'Apache httpd',
  squid: 'Squid',
  varnish: 'Varnish',
  nginx: 'nginx'
}

const load = file => import(path.join(suiteDir, file))
const suites = (await load('tests/index.mjs')).default
const { determineTestResult } = await load('lib/display.mjs')

// Without the tests for browsers, and without `check` tests, which have no wrong result.
const applicable = suites.map(suite => ({
  id: suite.id,
  name: suite.name,
  tests: suite.tests.filter(test => !test.browser_only && KINDS.includes(kindOf(test)))
}))

function kindOf (test) {
  return test.kind ?? 'required'
}

const processes = []

function start (command, argv, options) {
  const child = spawn(command, argv, { stdio: ['ignore', 'pipe', 'inherit'], ...options })
  processes.push(child)
  return child
}

function stopAll () {
  for (const child of processes.splice(0)) child.kill('SIGKILL')
}
process.on('exit', stopAll)
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))

async function freePort () {
  const server = net.createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}

async function answers (port) {
  for (let tries = 0; tries < 200; tries++) {
    const socket = net.connect(port, '127.0.0.1')
    const open = await new Promise(resolve => socket.on('connect', () => resolve(true)).on('error', () => resolve(false)))
    socket.destroy()
    if (open) return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
  throw new Error(`nothing listens on port ${port}`)
}

// Runs the whole suite, or one test of it, through a proxy with this environment.
async function run (environment, id) {
  const [origin, proxy] = [await freePort(), await freePort()]
  const settings = { npm_config_protocol: 'http', npm_config_port: String(origin), npm_config_pidfile: os.devNull }
  start('node', ['--no-warnings', 'server/server.mjs'], { cwd: suiteDir, env: { ...process.env, ...settings } }).stdout.resume()
  const binary = path.join(path.dirname(folder), 'debug/examples/reverse_proxy')
  // By default Larder stores no responses with cookies, and evicts after a write that ended in a server error. RFC 9111
  // requires neither, and seven of the suite's tests expect the opposite.
  const larder = {
    LISTEN_ADDR: `127.0.0.1:${proxy}`,
    ORIGIN: `http://127.0.0.1:${origin}`,
    RFC9111_DEFAULTS: 'true',
    // This version of the suite is older than RFC 9111 §5.1, by which an invalid `Age` is ignored.
    INVALID_AGE_IS_STALE: 'true',
    ...environment
  }
  start(binary, [], { env: { ...process.env, ...larder } }).stdout.resume()
  await Promise.all([answers(origin), answers(proxy)])

  const cli = { npm_config_base: `http://127.0.0.1:${proxy}`, npm_config_id: id ?? '', npm_package_config_id: '' }
  const client = start('node', ['--no-warnings', 'cli.mjs'], { cwd: suiteDir, env: { ...process.env, ...cli } })
  let output = ''
  client.stdout.on('data', chunk => { output += chunk })
  await once(client, 'close')
  stopAll()
  if (id) return output
  // The suite may print warnings before its results.
  return JSON.parse(output.slice(output.indexOf('\n{') + 1))
}

async function redis () {
  const port = await freePort()
  const argv = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
  const child = start('redis-server', argv, { cwd: folder })
  child.stdout.resume()
  await answers(port)
  // Keeps running when the proxy is stopped.
  processes.splice(processes.indexOf(child), 1)
  process.on('exit', () => child.kill('SIGKILL'))
  return { REDIS_URL: `redis://127.0.0.1:${port}/`, REDIS_SOCKET_TIMEOUT: '2' }
}

function passes (test, results) {
  return determineTestResult(suites, test.id, results)[2] === '✅'
}

// Returns the number of passed tests of a kind, and the number of all.
function count (kind, results, tests = applicable.flatMap(suite => suite.tests)) {
  const of = tests.filter(test => kindOf(test) === kind)
  return [of.filter(test => passes(test, results)).length, of.length]
}

function table (runs) {
  const rows = [['suite', ...Object.keys(runs).flatMap(store => KINDS.map(kind => `${store}, ${kind}`))]]
  for (const suite of applicable.filter(suite => suite.tests.length)) {
    const counts = Object.values(runs).flatMap(results => KINDS.map(kind => count(kind, results, suite.tests)))
    rows.push([suite.name, ...counts.map(([passed, of]) => of ? `${passed}/${of}` : '')])
  }
  const totals = Object.values(runs).flatMap(results => KINDS.map(kind => count(kind, results).join('/')))
  rows.push(['all', ...totals])
  const widths = rows[0].map((_, column) => Math.max(...rows.map(row => row[column].length)))
  return rows.map(row => row.map((cell, column) => cell.padEnd(widths[column])).join('  ')).join('\n')
}

function markdown (runs) {
  const published = Object.entries(PUBLISHED).map(([file, name]) =>
    [name, JSON.parse(fs.readFileSync(path.join(suiteDir, 'results', `${file}.json`)))])
  const own = Object.entries(runs).map(([store, results]) => [`**Larder** on ${store}`, results])
  const { version } = JSON.parse(fs.readFileSync(path.join(suiteDir, 'package.json')))
  const [required, optimal] = KINDS.map(kind => count(kind, {})[1])
  const rows = [...own, ...published].map(([name, results]) =>
    `| ${name} | ${KINDS.map(kind => count(kind, results)[0]).join(' | ')} |`)
  const failures = [...new Set(Object.values(runs).flatMap(results =>
    applicable.flatMap(suite => suite.tests).filter(test => !passes(test, results)).map(test => test.id)))]
  const excused = failures.filter(id => id in CONTRADICT)
  return [
    `| http-cache-tests ${version} | required, of ${required} | optimal, of ${optimal} |`,
    '|---|--:|--:|',
    ...rows,
    '',
    `Of the tests that Larder fails, ${excused.length} of ${failures.length} contradict RFC 9111, what they themselves`,
    'send, or each other; `tests/conformance/suite.mjs` says how. Two of Larder\'s defaults are turned off for this: that `Set-Cookie` is',
    'never stored, and that a write which ends in a server error evicts. And an `Age` that isn\'t one number counts as stale, as this',
    'version of the suite wants it, while RFC 9111 §5.1 has it ignored.'
  ].join('\n')
}

function writeResults (text) {
  fs.writeFileSync(RESULTS, `# Conformance of the shared cache

The shared cache, tested with the public suite of HTTP caches ([cache-tests.fyi](https://cache-tests.fyi)) by \`tests/conformance/run\`,
beside the results that the suite's authors published with the same version. The tests for browsers and for the old
\`Surrogate-Control\` are left out.

${text}
`)
}

const id = args[args.indexOf('--id') + 1]
if (args.includes('--id')) {
  console.log(await run({}, id))
  process.exit(0)
}

const runs = { memory: await run({}), Redis: await run(await redis()) }
console.log(table(runs))

const known = new Set(Object.keys(CONTRADICT))
for (const [store, results] of Object.entries(runs)) {
  for (const test of applicable.flatMap(suite => suite.tests).filter(test => !passes(test, results))) {
    const why = known.has(test.id) ? `on purpose: ${CONTRADICT[test.id]}` : JSON.stringify(results[test.id])
    console.log(`${store}: ${kindOf(test)} ${test.id}: ${why}`)
  }
}

const passed = Object.fromEntries(Object.entries(runs).map(([store, results]) =>
  [store, Object.fromEntries(KINDS.map(kind => [kind, count(kind, results)[0]]))]))
if (args.includes('--record')) {
  fs.writeFileSync(RECORD, JSON.stringify(passed, null, 2) + '\n')
  writeResults(markdown(runs))
} else {
  const recorded = JSON.parse(fs.readFileSync(RECORD, 'utf8'))
  let failed = 0
  for (const [store, kinds] of Object.entries(recorded)) {
    for (const [kind, least] of Object.entries(kinds)) {
      const now = passed[store][kind]
      if (now < least) {
        console.error(`${store}: ${now} ${kind} tests pass, and ${least} did`)
        failed++
      }
    }
  }
  console.log(`${4 - failed} passed, ${failed} failed`)
  process.exit(failed ? 1 : 0)
}
process.exit(0)

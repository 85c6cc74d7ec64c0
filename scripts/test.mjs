// Runs the tests, every part where it belongs, and ends with one line: N passed, N failed, N skipped.
//
//   node scripts/test.mjs                        all parts
//   node scripts/test.mjs PART [vitest options]  one of them: unit, kvm, package, lab; or a part of lab: svm, l3, vmx; or asan, which is
//                                                not part of "all"
//
// The lab's tests run bundled and without vitest itself (test/quick/main.ts): of its options they know `-t PATTERN` and parts of files' names.
//
// lab runs the same tests on both vendors' extensions at the same time: each on this host if its guests can nest with that
// extension, else inside the emulated host that has it. Some are tried with one of them only. The towers of other hypervisors among them need disks that are
// made first (as root, by debootstrap); a run of all parts makes them, and the emulated hosts, beside the unit tests. l3 is what an emulated host
// with svm runs by a clock that counts instructions: a tower of three guests. asan runs the kvm part over the sanitized addon of
// `npm run build:asan`. Exit code 0 only if something ran and nothing failed; a part that cannot run counts as failed.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join, relative } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs, stripVTControlCharacters } from 'node:util'
import { bundleTests } from './bundle-tests.mjs'
import { root } from './paths.mjs'

const results = join(root, 'build/test-results')
const vitest = join(root, 'node_modules/vitest/vitest.mjs')
const cli = join(root, 'dist/cli/main.js')

/** Seconds of this machine after which an emulated host is ended, whatever hangs in it: times inside are its own. */
const labTimeout = '1500'

/** What a file's tests need beside a kernel and busybox. */
const needs = {
  'crash.test.ts': ['rootDisk'],
  'disks.test.ts': ['rootDisk', 'guestDisk'],
  'xen.test.ts': ['rootDisk', 'guestDisk', 'xen'],
}
/** What does not depend on the extension, or takes too long, is tried with one of them, so that both are done at about the same time. */
const ONLY = {
  svm: ['block-device.test.ts', 'examples.test.ts', 'net.test.ts', 'virtio-devices.test.ts', 'xen.test.ts'],
  vmx: ['crash.test.ts'],
}
/**
 * Tried in an emulated host with svm whose clock counts its own instructions: L3 spends most of its time in ticks of its timer otherwise, and what is
 * wrong with the emulator's interrupts shows at once.
 */
const L3 = 'third-level.test.ts'
const COUNTED = [L3, 'interrupts.test.ts']
/** GiB of the emulated host with svm for those whose L1 is large: the first has the 8 GiB that people give it. */
const memories = { 'disks.test.ts': 9, [L3]: 6 }
const DEFAULT_MEMORY = 3

/** The parts: functions that give the lanes in which they run at the same time, each with its runs one after the other. */
const parts = {
  unit: options => [[vitestRun('unit', options)]],
  kvm: options => [[vitestRun('kvm', options)]],
  package: options => [[vitestRun('package', options)]],
  lab: options => labLanes([['svm', 'l3'], ['vmx']], options),
  svm: options => labLanes([['svm']], options),
  vmx: options => labLanes([['vmx']], options),
  l3: options => labLanes([['l3']], options),
  asan: options => [[{ ...vitestRun('kvm', options), name: 'asan', env: sanitizerEnvironment() }]],
}

function vitestRun(name, options) {
  const reporters = output => ['--reporter=default', '--reporter=json', `--outputFile.json=${output}`]
  // Not by a part of the files' names, of which vitest takes any: those that are given are to narrow it.
  return { name, args: output => [vitest, 'run', `--exclude=test/!(${name})/**`, ...reporters(output), ...options] }
}

/** Which tests a run of the lab has, all being those that there are. */
const tried = {
  svm: all => all.filter(name => name !== L3 && !ONLY.vmx.includes(name)),
  vmx: all => all.filter(name => name !== L3 && !ONLY.svm.includes(name)),
  l3: () => COUNTED,
}

/** The lanes of the lab's runs; options may say which tests. */
async function labLanes(lanes, options) {
  const { values, positionals } = parseArgs({
    args: options,
    allowPositionals: true,
    options: { t: { type: 'string', short: 't' } },
  })
  const pattern = values.t === undefined ? [] : ['-t', values.t]
  const { main, modules } = await bundleTests()
  const named = name => positionals.length === 0 || positionals.some(part => `test/lab/${name}`.includes(part))
  const chosen = run => tried[run]([...modules.keys()]).filter(named)
  await fetchGuests(lanes.flat().flatMap(chosen))
  const own = hostVendor()
  const labRun = run => {
    const vendor = run === 'vmx' ? 'vmx' : 'svm'
    const inLab = own !== vendor
    const names = chosen(run)
    const options = vendor === 'svm' ? svmOptions(run, names) : []
    const lab = [cli, 'lab', '--vendor', vendor, '--timeout', labTimeout, ...options, '--', process.execPath]
    return {
      name: run,
      inLab,
      setUp: inLab ? () => setUpLab(vendor) : undefined,
      args: output => [...(inLab ? lab : []), main, output, ...pattern, ...names.map(name => modules.get(name))],
    }
  }
  return lanes.map(runs => runs.filter(run => chosen(run).length > 0).map(labRun))
}

/** What the emulated host with svm has to have for these tests. */
function svmOptions(run, names) {
  const memory = Math.max(...names.map(name => memories[name] ?? DEFAULT_MEMORY))
  return ['--memory', `${memory}G`, ...(run === 'l3' ? ['--clock', 'instructions'] : [])]
}

let setUps = Promise.resolve()
const setUpOf = {}

/**
 * Fetches and builds a vendor's lab, once, and one after the other, since apt does one thing at a time. What is wrong when that fails is told
 * by the lab itself.
 */
function setUpLab(vendor) {
  setUpOf[vendor] ??= setUps = setUps.then(() => runNode([cli, 'lab', 'setup', '--vendor', vendor], {}, `${vendor}: `))
  return setUpOf[vendor]
}

/** All that the tests of a whole run need of the network. */
async function fetchAll() {
  await fetchGuests(Object.keys(needs))
  const own = hostVendor()
  for (const vendor of ['svm', 'vmx']) if (vendor !== own) await setUpLab(vendor)
}

/** The extension that guests of this host can nest with, if any. */
function hostVendor() {
  const { status, stdout } = spawnSync(process.execPath, [cli, 'doctor', '--json'], { cwd: root, encoding: 'utf8' })
  return status === 0 ? JSON.parse(stdout).extension : undefined
}

/** In the emulated host nothing can be fetched, so what the guests of tests need is fetched here; what cannot be had fails those. */
async function fetchGuests(tests) {
  const kinds = [...new Set(['guestKernel', 'busybox', ...tests.flatMap(name => needs[name] ?? [])])]
  const fetch = `import { ensureAssets } from ${JSON.stringify(join(root, 'dist/index.js'))}
    await ensureAssets(${JSON.stringify(kinds)}, { onProgress: message => console.error(message) })`
  const end = await runNode(['--input-type=module', '--eval', fetch], {}, 'assets: ')
  if (end !== 0) say(`not all of ${kinds.join(', ')} could be had (${end}): the tests that need it fail`)
}

function sanitizerEnvironment() {
  const library = spawnSync('g++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).stdout?.trim()
  return {
    // node-gyp-build looks for build/Release below this directory.
    NESTED_KVM_PREBUILD: join(root, 'build-asan'),
    // node itself is not sanitized, so the runtime has to be there before it.
    LD_PRELOAD: library,
    // Node frees little at exit, so leaks cannot be told from it; the tests count file descriptors and mappings.
    ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=1',
    UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
  }
}

/** What failed in any part, told once more at the end: between it and there may be thousands of lines. */
const failures = []

/** Most lines of what a failed test says that are told again. */
const RETOLD = 12

function noteFailures(name, report) {
  for (const { name: file, assertionResults, message } of report.testResults) {
    const tests = assertionResults.filter(({ status }) => status === 'failed')
    // The quick runner's names of tests have their file's in them.
    const place = fullName => (fullName.startsWith('test/') ? fullName : `${relative(root, file)} > ${fullName}`)
    for (const { fullName, failureMessages } of tests) note(`${name}: ${place(fullName)}`, failureMessages.join('\n'))
    if (tests.length === 0 && message) note(`${name}: ${relative(root, file)}`, message)
  }
}

function note(what, message) {
  const lines = stripVTControlCharacters(message).trim().split('\n').slice(0, RETOLD)
  failures.push([what, ...lines.map(line => `    ${line}`)].join('\n'))
}

function say(text) {
  process.stderr.write(`test: ${text}\n`)
}

/** What vitest's JSON report counts. A file that could not be loaded has no tests in it and counts as one failure. */
function count(report) {
  const broken = report.testResults.filter(file => file.status === 'failed' && file.assertionResults.length === 0)
  return {
    passed: report.numPassedTests,
    failed: report.numFailedTests + broken.length,
    skipped: report.numPendingTests + report.numTodoTests,
  }
}

/** Runs what one part is made of; gives what became of it. */
async function runPart(name, options) {
  const lanes = await parts[name](options)
  const together = lanes.flat().length > 1
  const runLane = async runs => {
    const totals = []
    for (const run of runs) totals.push(await runTests(run, together))
    return sumOf(totals)
  }
  return sumOf(await Promise.all(lanes.map(runLane)))
}

async function runTests({ name, args, inLab = false, env = {}, setUp }, together) {
  const output = join(results, `${name}.json`)
  rmSync(output, { force: true })
  await setUp?.()
  say(`${name}${inLab ? ' (in the emulated host)' : ''}`)
  const started = Date.now()
  const end = await runNode(args(output), env, together ? `${name}: ` : undefined)
  const seconds = ((Date.now() - started) / 1000).toFixed(1)

  const report = existsSync(output) ? JSON.parse(readFileSync(output, 'utf8')) : undefined
  const total = report ? count(report) : { passed: 0, failed: 0, skipped: 0 }
  if (report) noteFailures(name, report)
  if (total.passed + total.failed === 0 || (end !== 0 && total.failed === 0)) {
    note(`${name} could not run to its end`, String(end))
    say(failures.at(-1))
    total.failed++
  }
  say(`${name}: ${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped in ${seconds} s`)
  return total
}

/** Runs node and gives its exit code, or what else its end was. Each line of its output begins with `label`, where there is one. */
function runNode(args, env, label) {
  return new Promise(resolve => {
    const stdio = label === undefined ? 'inherit' : ['ignore', 'pipe', 'pipe']
    const child = spawn(process.execPath, args, { cwd: root, stdio, env: { ...process.env, ...env } })
    if (label !== undefined) {
      createInterface(child.stdout).on('line', line => process.stdout.write(`${label}${line}\n`))
      createInterface(child.stderr).on('line', line => process.stderr.write(`${label}${line}\n`))
    }
    child.once('error', error => resolve(error.message))
    child.once('close', (code, signal) => resolve(code === 0 ? 0 : (signal ?? `exit code ${code}`)))
  })
}

function sumOf(totals) {
  const sum = { passed: 0, failed: 0, skipped: 0 }
  for (const total of totals) for (const key of Object.keys(sum)) sum[key] += total[key]
  return sum
}

const [part, ...options] = process.argv.slice(2)
if (part !== undefined && !(part in parts)) {
  say(`there is no part ${part}: ${Object.keys(parts).join(', ')}`)
  process.exit(2)
}
mkdirSync(results, { recursive: true })
const totals = []
if (part) totals.push(await runPart(part, options))
else {
  const [unit] = await Promise.all([runPart('unit', []), fetchAll()])
  totals.push(unit)
  for (const name of ['kvm', 'package', 'lab']) totals.push(await runPart(name, []))
}
const sum = sumOf(totals)
process.exitCode = sum.failed > 0 || sum.passed === 0 ? 1 : 0
if (failures.length > 0) say(`what failed:\n${failures.join('\n')}`)
process.stdout.write(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped\n`)

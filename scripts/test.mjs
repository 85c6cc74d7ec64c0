// Runs the tests, every part where it belongs, and ends with one line: N passed, N failed, N skipped.
//
//   node scripts/test.mjs                        all parts
//   node scripts/test.mjs PART [vitest options]  one of them: unit, kvm, package, lab; or asan, not part of "all"
//
// lab runs on this host if guests of it can nest, else inside the emulated host. asan runs the kvm part over the
// sanitized addon of `npm run build:asan`. Exit code 0 only if something ran and nothing failed; a part that cannot run
// counts as failed.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './paths.mjs'

const results = join(root, 'build/test-results')
const vitest = join(root, 'node_modules/vitest/vitest.mjs')
const cli = join(root, 'dist/cli/main.js')

/** Seconds after which the emulated host is ended, whatever hangs in it. */
const labTimeout = '1800'

/** How each part is started: the words before vitest's own, the tests, the environment. */
const parts = {
  unit: () => ({ tests: 'test/unit/' }),
  kvm: () => ({ tests: 'test/kvm/' }),
  package: () => ({ tests: 'test/package/' }),
  // One file after the other: in an emulated host they would only take turns on its processors.
  lab: () => ({ tests: 'test/lab/', prefix: labPrefix(), suffix: ['--no-file-parallelism'] }),
  asan: () => ({ tests: 'test/kvm/', env: sanitizerEnvironment() }),
}

function hostNests() {
  return spawnSync(process.execPath, [cli, 'doctor', '--json'], { cwd: root, stdio: 'ignore' }).status === 0
}

/** In the emulated host nothing can be fetched, so its guests' parts are fetched here. */
function labPrefix() {
  const fetch = `import { ensureAssets } from ${JSON.stringify(join(root, 'dist/index.js'))}
    await ensureAssets(['guestKernel', 'busybox'], { onProgress: message => console.error('test: ' + message) })`
  spawnSync(process.execPath, ['--input-type=module', '--eval', fetch], { stdio: 'inherit' })
  return hostNests() ? [] : [cli, 'lab', '--timeout', labTimeout, '--', process.execPath]
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

function runPart(name, options) {
  const { tests, prefix = [], suffix = [], env = {} } = parts[name]()
  const output = join(results, `${name}.json`)
  rmSync(output, { force: true })
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${output}`]
  say(`${name}${prefix.length > 0 ? ' (in the emulated host)' : ''}`)
  const started = Date.now()
  const args = [...prefix, vitest, 'run', tests, ...reporters, ...suffix, ...options]
  const end = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } })
  const seconds = ((Date.now() - started) / 1000).toFixed(1)

  const total = existsSync(output)
    ? count(JSON.parse(readFileSync(output, 'utf8')))
    : { passed: 0, failed: 0, skipped: 0 }
  if (total.passed + total.failed === 0 || (end.status !== 0 && total.failed === 0)) {
    say(`${name} could not run to its end (${end.error?.message ?? end.signal ?? `exit code ${end.status}`})`)
    total.failed++
  }
  say(`${name}: ${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped in ${seconds} s`)
  return total
}

const [part, ...options] = process.argv.slice(2)
if (part !== undefined && !(part in parts)) {
  say(`there is no part ${part}: ${Object.keys(parts).join(', ')}`)
  process.exit(2)
}
mkdirSync(results, { recursive: true })
const sum = { passed: 0, failed: 0, skipped: 0 }
for (const name of part ? [part] : ['unit', 'kvm', 'package', 'lab']) {
  const total = runPart(name, options)
  for (const key of Object.keys(sum)) sum[key] += total[key]
}
process.exitCode = sum.failed > 0 || sum.passed === 0 ? 1 : 0
process.stdout.write(`${sum.passed} passed, ${sum.failed} failed, ${sum.skipped} skipped\n`)

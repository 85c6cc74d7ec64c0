/**
 * Runs bundled tests one file after the other in this process, tells of each test as it ends, and leaves a report in the form of vitest's
 * JSON reporter, as far as scripts/test.mjs reads it.
 *
 *   node main.mjs REPORT [-t PATTERN] FILE...
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { SourceMap } from 'node:module'
import { basename, dirname, join, relative } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs, stripVTControlCharacters } from 'node:util'
import { type File, startTests, type Task, type VitestRunner } from '@vitest/runner'
import { getNames, getSuites, getTests } from '@vitest/runner/utils'

/** Milliseconds. What takes a second elsewhere takes many in an emulated host, while several share this machine. */
const TIMEOUT = 180_000

const { values, positionals } = parseArgs({ allowPositionals: true, options: { t: { type: 'string', short: 't' } } })
const [output, ...paths] = positionals as [string, ...string[]]
const root = process.cwd()
const out = dirname(fileURLToPath(import.meta.url))

const runner: VitestRunner = {
  config: {
    root,
    name: undefined,
    setupFiles: [],
    passWithNoTests: false,
    testNamePattern: values.t === undefined ? undefined : new RegExp(values.t),
    allowOnly: false,
    sequence: { seed: 0, hooks: 'stack', setupFiles: 'list' },
    chaiConfig: undefined,
    maxConcurrency: 1,
    testTimeout: TIMEOUT,
    hookTimeout: TIMEOUT,
    retry: 0,
    includeTaskLocation: false,
    tags: [],
    tagsFilter: undefined,
    strictTags: false,
  },
  importFile: path => import(pathToFileURL(path).href),
  onAfterRunTask: tell,
}

function tell(task: Task): void {
  const { state = 'skip', duration = 0, errors = [] } = task.result ?? {}
  const mark = { pass: '✓', fail: '✗' }[state as string] ?? '↓'
  console.log(` ${mark} ${nameOf(task)}${state === 'skip' ? '' : ` ${Math.round(duration)} ms`}`)
  if (state === 'fail') console.log(indent(wordsOf(errors)))
}

/** What there is to read of errors. */
function wordsOf(errors: readonly Wrong[]): string {
  return errors
    .flatMap(({ name, message, diff, stack }) => {
      return [`${name ?? 'Error'}: ${message}`, stripVTControlCharacters(diff ?? ''), framesOf(stack ?? '')]
    })
    .filter(part => part !== '')
    .join('\n')
}

interface Wrong {
  readonly name?: string
  readonly message: string
  readonly diff?: string | undefined
  readonly stack?: string | undefined
}

const nameOf = (task: Task) => [sourceOf(task.file), ...getNames(task).slice(1)].join(' > ')
const sourceOf = (file: File) => `test/lab/${basename(file.filepath, '.mjs')}.ts`
const indent = (text: string) => text.replaceAll(/^/gm, '     ')

/** The frames of a stack, in the sources; those of the runner left out. */
function framesOf(stack: string): string {
  const frames = stack.split('\n').filter(line => /^\s+at /.test(line))
  const mapped = frames.map(frame => frame.trim().replace(/(?:file:\/\/)?(\/[^():]+\.mjs):(\d+):(\d+)/, sourceAt))
  return mapped.filter(frame => !/node_modules|node:internal/.test(frame)).join('\n')
}

function sourceAt(place: string, file: string, line: string, column: string): string {
  try {
    const map = new SourceMap(JSON.parse(readFileSync(`${file}.map`, 'utf8')))
    const entry = map.findEntry(Number(line) - 1, Number(column) - 1)
    if (!('originalSource' in entry)) return place
    return `${relative(root, join(out, entry.originalSource))}:${entry.originalLine + 1}:${entry.originalColumn + 1}`
  } catch {
    return place
  }
}

interface FileResult {
  readonly name: string
  readonly status: string
  readonly assertionResults: { fullName: string; status: string; failureMessages: string[] }[]
}

const results: FileResult[] = []

// What nobody caught is no test's, and fails the run all the same.
for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, (error: unknown) => {
    const message = wordsOf([error instanceof Error ? error : { message: String(error) }])
    console.log(` ✗ ${event}\n${indent(message)}`)
    results.push({
      name: event,
      status: 'failed',
      assertionResults: [{ fullName: event, status: 'failed', failureMessages: [message] }],
    })
  })
}

const states = { pass: 'passed', fail: 'failed' } as Record<string, string>
const stateOf = (task: Task) => states[task.result?.state ?? 'skip'] ?? 'pending'

/** What the report has of a file. What fails beside its tests (it does not load, a hook of a suite fails) counts as one, too. */
function resultOf(file: File): FileResult {
  const broken = [file, ...getSuites(file)].filter(suite => suite.result?.errors?.length)
  for (const suite of new Set(broken)) tell(suite)
  const tasks: Task[] = [...getTests(file), ...new Set(broken)]
  const tests = tasks.map(task => ({
    fullName: nameOf(task),
    status: stateOf(task),
    failureMessages: (task.result?.errors ?? []).map(error => wordsOf([error])),
  }))
  return { name: sourceOf(file), status: stateOf(file), assertionResults: tests }
}

function count(status: string): number {
  return results.flatMap(({ assertionResults }) => assertionResults).filter(test => test.status === status).length
}

for (const path of paths) {
  const [file] = await startTests([path], runner)
  results.push(resultOf(file!))
  const report = {
    numPassedTests: count('passed'),
    numFailedTests: count('failed'),
    numPendingTests: count('pending'),
    numTodoTests: 0,
    testResults: results,
  }
  // Each time, so that what is done is known whatever comes then.
  writeFileSync(output, JSON.stringify(report))
}
process.exit(count('failed') > 0 || count('passed') === 0 ? 1 : 0)

import { Command } from 'commander'
import { readSnapshot, SnapshotError, squashSnapshot, verifySnapshot } from '../index.js'
import { exitCode, printJson, reportFailure } from './output.js'
import { describeSize, longWork, percent } from './progress.js'

interface JsonFlag {
  readonly json?: boolean
}

/** `nested-kvm snapshot`: what there is to do with a saved machine. */
export function snapshotCommand(): Command {
  const verifyCommand = new Command('verify')
    .description('read a snapshot and all it is based on, and check it')
    .argument('<directory>', 'a snapshot')
    .option('--json', 'print one line of JSON')
    .addHelpText('after', '\nExit code: 0 if every byte is what was written, 1 if not; what is wrong is named.')
    .action(async (directory: string, _flags: JsonFlag, command: Command) => {
      process.exitCode = await verify(directory, json(command))
    })
  const squash = new Command('squash')
    .description('make one full snapshot of a differential and all it is based on')
    .argument('<directory>', 'a snapshot')
    .argument('<target>', 'where to; it may be the same')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
It is the same moment of the same machine: differentials that are based on it stay valid if it takes its place.

Exit code: 0 if it is made, 2 if not: what is wrong is named, and nothing is left behind.`,
    )
    .action(async (directory: string, target: string, _flags: JsonFlag, command: Command) => {
      process.exitCode = await squashTo(directory, target, json(command))
    })
  return new Command('snapshot')
    .description('check saved machines, and make one of several that are based on each other')
    .addHelpText(
      'after',
      `
A machine is saved by \`nested-kvm ctl <name> snapshot <directory>\`, and goes on by \`nested-kvm restore <directory>\`.

Examples:
  nested-kvm snapshot verify snap
  nested-kvm snapshot squash monday whole`,
    )
    .addCommand(verifyCommand)
    .addCommand(squash)
}

function json(command: Command): boolean {
  return command.opts<JsonFlag>().json === true
}

function verify(directory: string, json: boolean): Promise<number> {
  return longWork(json, async ({ signal, show }) => {
    let bytes = 0
    const onProgress = (done: number, total: number) => {
      bytes = total
      show(`checking: ${percent({ done, total })}`)
    }
    try {
      await verifySnapshot(directory, { signal, onProgress })
    } catch (error) {
      if (!(error instanceof SnapshotError)) throw error
      // It was asked, and this is the answer.
      reportFailure(error, json)
      return exitCode.failed
    }
    const { id, created, chain } = await readSnapshot(directory)
    if (json) printJson({ ok: true, directory: chain[0], id, created, chain, bytes })
    else {
      const based = chain.length > 1 ? `, with ${chain.length - 1} that it is based on` : ''
      process.stdout.write(`${directory}: intact${based}: ${describeSize(bytes)} checked\n`)
    }
    return exitCode.ok
  })
}

function squashTo(directory: string, target: string, json: boolean): Promise<number> {
  return longWork(json, async ({ signal, show }) => {
    const started = performance.now()
    const onProgress = (done: number, total: number) => show(`squashing: ${percent({ done, total })}`)
    const { directory: place, id, bytes, pages } = await squashSnapshot(directory, target, { signal, onProgress })
    const seconds = Math.round(performance.now() - started) / 1000
    if (json) printJson({ ok: true, directory: place, id, bytes, pages, seconds })
    else process.stdout.write(`saved ${place}: ${describeSize(bytes)} in ${seconds.toFixed(1)} s\n`)
    return exitCode.ok
  })
}

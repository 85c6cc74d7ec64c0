#!/usr/bin/env node
import { readFileSync } from 'node:fs'
import { Command, CommanderError } from 'commander'
import { cpuCommand } from './cpu.js'
import { ctlCommand } from './ctl.js'
import { demoCommand } from './demo.js'
import { doctorCommand } from './doctor.js'
import { hostCommand } from './host.js'
import { inspectCommand } from './inspect.js'
import { labCommand } from './lab.js'
import { exitCode, printJson, reportFailure } from './output.js'
import { psCommand } from './ps.js'
import { restoreCommand } from './restore.js'
import { runCommand } from './run.js'
import { snapshotCommand } from './snapshot.js'

const { version, description } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
  description: string
}

function buildProgram(): Command {
  const program = new Command('nested-kvm')
    .description(description)
    .version(version)
    .exitOverride()
    // What follows a subcommand's own arguments is not ours: `lab -- command --its-option`.
    .enablePositionalOptions()
    .showHelpAfterError('(--help tells more)')
  program.configureOutput({
    outputError: (text, write) => write(text.replace(/^error: /, 'nested-kvm: ')),
    // With --json, a usage error too is one JSON line on standard output.
    ...(wantsJson(process.argv) ? { writeErr: () => {} } : {}),
  })
  const commands = [
    demoCommand(),
    doctorCommand(),
    hostCommand(),
    cpuCommand(),
    labCommand(),
    runCommand(),
    restoreCommand(),
    psCommand(),
    ctlCommand(),
    snapshotCommand(),
    inspectCommand(),
  ]
  for (const command of commands) {
    program.addCommand(command.copyInheritedSettings(program))
    for (const inner of command.commands) inner.copyInheritedSettings(command)
  }
  return program
}

/** True when `--json` stands among our own arguments, before any `--`. */
function wantsJson(argv: readonly string[]): boolean {
  const end = argv.indexOf('--')
  return argv.slice(2, end < 0 ? undefined : end).includes('--json')
}

/** Runs the command line; a subcommand sets `process.exitCode`, a failure is reported here and nowhere else. */
async function main(argv: string[]): Promise<number> {
  try {
    await buildProgram().parseAsync(argv)
    return Number(process.exitCode ?? exitCode.ok)
  } catch (error) {
    if (!(error instanceof CommanderError)) return reportFailure(error, wantsJson(argv))
    // commander has written its message, or the help that was asked for.
    if (error.exitCode === 0) return exitCode.ok
    if (wantsJson(argv)) printJson({ ok: false, reason: error.message.replace(/^error: /, '') })
    return exitCode.usage
  }
}

// A reader that has seen enough (`| head`) is no failure of ours.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
  process.exit(process.exitCode ?? exitCode.ok)
})

process.on('uncaughtException', error => process.exit(reportFailure(error, wantsJson(process.argv))))

// Whatever a command leaves open must not keep the process: it has said that it is done.
process.exit(await main(process.argv))

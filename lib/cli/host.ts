import { Command } from 'commander'
import { applyHostNesting, type NestingPlan, type NestingResult, type NestingStep, planHostNesting } from '../index.js'
import { exitCode, printJson } from './output.js'

interface Options {
  readonly persist?: boolean
  readonly dryRun?: boolean
  readonly json?: boolean
}

/** `nested-kvm host`: makes this host nest, and undoes it. */
export function hostCommand(): Command {
  return new Command('host')
    .description('switch nested virtualization on or off on this host')
    .addCommand(nestingCommand('enable-nested', true))
    .addCommand(nestingCommand('disable-nested', false))
}

function nestingCommand(name: string, nested: boolean): Command {
  const other = nested ? 'disable-nested' : 'enable-nested'
  return new Command(name)
    .description(`reload kvm_intel or kvm_amd with nested=${nested ? 1 : 0}`)
    .option('--persist', 'also after every boot: writes /etc/modprobe.d/nested-kvm.conf')
    .option('--dry-run', 'say what would be done, and do nothing')
    .option('--json', 'print one line of JSON')
    .addHelpText(
      'after',
      `
Says what it does, does it, and verifies it by the parameter and by what KVM offers to guests. Nothing is touched while a virtual machine uses
the module, or where another file of modprobe.d says otherwise. If the module does not load, it is loaded as it was.
Undo: nested-kvm host ${other} (with --persist if this had it).

--json: {schema: 1, ok, done, module, extension, nested, former, already, steps, notes, restored, changed}.

Exit code: 0 if it is so now, or was already, or with --dry-run if it could be done; 2 if it cannot be done.

Examples:
  nested-kvm host ${name} --dry-run
  sudo nested-kvm host ${name} --persist`,
    )
    .action(({ persist = false, dryRun = false, json = false }: Options) => {
      const plan = planHostNesting(nested, { persist })
      if (!json) process.stdout.write(formatPlan(plan, dryRun))
      const result = dryRun ? { restored: [], changed: [] } : applyHostNesting(plan)
      if (json) printJson(toJson(plan, result, dryRun))
      else process.stdout.write(formatResult(plan, result, dryRun))
      process.exitCode = exitCode.ok
    })
}

function toJson(plan: NestingPlan, result: NestingResult, dryRun: boolean) {
  const { module, extension, nested, former, already, steps, notes } = plan
  const done = !dryRun && steps.length > 0
  return { schema: 1, ok: true, done, module, extension, nested, former, already, steps, notes, ...result }
}

function formatPlan({ module, nested, former, already, steps, notes }: NestingPlan, dryRun: boolean): string {
  const state = former === null ? `${module} is not loaded` : `${module} has nested=${former}`
  const head = already ? `${state}: nesting is ${nested ? 'on' : 'off'} already.` : `${state}.`
  const would = steps.length === 0 ? [] : [dryRun ? 'This would be done, as root:' : 'Doing:', ...steps.map(formatStep)]
  return `${[head, ...would, ...notes.map(note => `Note: ${note}.`)].join('\n')}\n`
}

function formatStep(step: NestingStep): string {
  if (step.kind !== 'write') return `  ${step.command.join(' ')}`
  const lines = step.content.trimEnd().split('\n')
  return [`  write ${step.path}:`, ...lines.map(line => `    ${line}`)].join('\n')
}

function formatResult(plan: NestingPlan, { restored, changed }: NestingResult, dryRun: boolean): string {
  const { extension, nested, steps } = plan
  if (dryRun || steps.length === 0) return ''
  const reloaded = steps.some(({ kind }) => kind === 'load')
  const lines = [reloaded ? `Done: KVM ${nested ? 'offers' : 'no longer offers'} ${extension} to guests.` : 'Done.']
  if (restored.length > 0) lines.push(`Set again, as before: ${restored.join(', ')}.`)
  if (changed.length > 0) lines.push(`Otherwise than before, and not to be set back: ${changed.join('; ')}.`)
  return `${lines.join('\n')}\n`
}

import { randomBytes } from 'node:crypto'
import { lstat, rename, rm, writeFile } from 'node:fs/promises'
import { Command, InvalidArgumentError } from 'commander'
import {
  ConfigError,
  compareMemory,
  diffInspections,
  type Inspection,
  inspectSnapshot,
  type L2Walk,
  readSnapshot,
  SnapshotMemory,
  toJson,
  walkL2,
} from '../index.js'
import { pageOf } from './inspect-html.js'
import { formatView } from './inspect-text.js'
import { type View, viewOf, viewOfDifference } from './inspect-view.js'
import { exitCode, printJson } from './output.js'
import { type LongWork, longWork, percent } from './progress.js'

interface InspectFlags {
  readonly vcpu?: number
  readonly walk?: bigint
  readonly diff?: boolean
  readonly json?: boolean
  readonly html?: string
}

const HELP = `
It tells what each vCPU is doing (in L1, in L2, VMXON without a VMCS, ...), where each level is, and each field of its VMCS12 or
VMCB12 with its meaning. It needs no KVM: a snapshot of any machine can be looked into on any other.

--walk follows a guest-physical address of L2 through the tables that L1 has for it (EPT, nested paging) to one of L1.

Exit code: 0, or 2 where there is no snapshot, it is damaged, or it has not what was asked for.

Examples:
  nested-kvm inspect snap
  nested-kvm inspect snap --vcpu 1 --walk 0x1000000
  nested-kvm inspect --diff before after
  nested-kvm inspect --diff before after --html difference.html
  nested-kvm inspect snap --json | jq '.vcpus[].doing'`

/** `nested-kvm inspect`: what is in a snapshot, and in which fields two differ. */
export function inspectCommand(): Command {
  return new Command('inspect')
    .description('look into a snapshot: what each vCPU is doing, its nested state field by field')
    .argument('<snapshot>', 'a snapshot')
    .argument('[other]', 'a second one, with --diff')
    .option('--vcpu <number>', 'only this vCPU', parseVcpu)
    .option('--walk <address>', "where a guest-physical address of L2 leads in L1's", parseAddress)
    .option('--diff', 'which fields and pages differ between two snapshots')
    .option('--json', 'print one line of JSON')
    .option('--html <file>', 'write a page for people, which needs nothing but a browser')
    .addHelpText('after', HELP)
    .action(async (snapshot: string, other: string | undefined, flags: InspectFlags) => {
      process.exitCode = await longWork(flags.json === true, async work => {
        const result = await (flags.diff ? difference(snapshot, other, flags, work) : single(snapshot, other, flags))
        await show(result, flags)
        return exitCode.ok
      })
    })
}

interface Result {
  readonly view: View
  readonly json: Record<string, unknown>
}

async function single(
  directory: string,
  other: string | undefined,
  { vcpu, walk: address }: InspectFlags,
): Promise<Result> {
  if (other !== undefined) {
    throw new ConfigError('other', other, 'only one snapshot is looked into at a time', 'compare two with --diff')
  }
  const snapshot = await readSnapshot(directory)
  using memory = new SnapshotMemory(snapshot)
  const inspection = only(inspectSnapshot(snapshot, memory), vcpu)
  const walk = address === undefined ? undefined : walkL2(snapshot, memory, address, vcpu)
  return { view: viewOf(inspection, walk), json: { ...inspection, ...(walk && { walk: walkJson(walk) }) } }
}

async function difference(
  directory: string,
  other: string | undefined,
  { vcpu, walk }: InspectFlags,
  { signal, show }: LongWork,
): Promise<Result> {
  if (other === undefined) throw new ConfigError('other', '', '--diff needs two snapshots', 'name a second one')
  if (walk !== undefined) throw new ConfigError('walk', walk, 'it goes through one snapshot', 'leave out --diff')
  const snapshots = [await readSnapshot(directory), await readSnapshot(other)] as const
  const [a, b] = snapshots.map(snapshot => {
    using memory = new SnapshotMemory(snapshot)
    return only(inspectSnapshot(snapshot, memory), vcpu)
  }) as [Inspection, Inspection]
  const changes = diffInspections(a, b)
  const onProgress = (done: number, total: number) => show(`comparing memory: ${percent({ done, total })}`)
  const memory = await compareMemory(...snapshots, { signal, onProgress })
  const place = ({ directory, id, created }: Inspection) => ({ directory, id, created })
  const vcpus = changes.vcpus.map(({ id, before, after, changed }) => {
    return { id, before: before?.doing, after: after?.doing, changed }
  })
  const json = { before: place(a), after: place(b), vcpus, changed: changes.changed, memory: memory ?? null }
  return { view: viewOfDifference(a, b, changes, memory), json }
}

function only(inspection: Inspection, vcpu: number | undefined): Inspection {
  if (vcpu === undefined) return inspection
  const vcpus = inspection.vcpus.filter(({ id }) => id === vcpu)
  const ids = inspection.vcpus.map(({ id }) => id).join(', ')
  if (vcpus.length === 0) throw new ConfigError('vcpu', vcpu, 'the snapshot has no such vCPU', `give one of ${ids}`)
  return { ...inspection, vcpus }
}

async function show({ view, json }: Result, flags: InspectFlags): Promise<void> {
  if (flags.html !== undefined) await writeWhole(flags.html, pageOf(view))
  if (flags.json) printJson(toJson({ ok: true, ...json }))
  else if (flags.html !== undefined) process.stdout.write(`wrote ${flags.html}\n`)
  else process.stdout.write(formatView(view, process.stdout.columns))
}

/** At any moment the file is the old one or the new one whole. */
async function writeWhole(path: string, text: string): Promise<void> {
  try {
    const stats = await lstat(path).catch(() => undefined)
    // A pipe, a terminal, a link: written to, not replaced.
    if (stats && !stats.isFile()) return await writeFile(path, text)
    const temporary = `${path}.${randomBytes(4).toString('hex')}`
    try {
      await writeFile(temporary, text)
      await rename(temporary, path)
    } finally {
      await rm(temporary, { force: true })
    }
  } catch (error) {
    throw new ConfigError('html', path, `it cannot be written (${(error as Error).message})`, 'give another file')
  }
}

function walkJson({ content, ...walk }: L2Walk): Record<string, unknown> {
  return { ...walk, ...(content && { content: Buffer.from(content).toString('hex') }) }
}

function parseVcpu(value: string): number {
  if (!/^\d{1,10}$/.test(value)) throw new InvalidArgumentError('A whole number is needed.')
  return Number(value)
}

function parseAddress(value: string): bigint {
  if (!/^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(value)) throw new InvalidArgumentError('An address is needed: 0x1000.')
  return BigInt(value)
}

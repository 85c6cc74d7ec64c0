import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { type FileHandle, open, realpath } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { SnapshotError } from '../errors.js'
import { checkExtentCount, checkGeometry } from './chain.js'
import { encodeChecksums } from './checksum.js'
import * as f from './format.js'
import { encodeExtents, readLayer, readManifest } from './layer.js'
import { encodeManifest } from './manifest.js'
import { type ProgressOptions, type RegionPlan, writeMemory } from './memory-file.js'
import { checkSource, planDifferential, planFull } from './memory-source.js'
import { replaceDirectory, resolveTarget } from './place.js'
import { readChain } from './read.js'
import { SummedFile } from './summed-file.js'
import { systemProblem } from './system-error.js'

export interface SnapshotContents {
  readonly state: f.MachineState
  readonly memory: f.MemorySource
  /** Further files: the snapshot is as they are once they are written. */
  readonly files?: readonly FileToAdd[] | undefined
  /** What the differential is based on: it stays needed, in this place. */
  readonly parent?: { readonly directory: string; readonly id: string } | undefined
}

/** A file that is to be part of a snapshot. */
export interface FileToAdd {
  /** As `ADDED_NAME` has them. */
  readonly name: string
  /** Writes its content, in ascending order. */
  write(file: SummedFile, signal: AbortSignal | undefined): Promise<void>
}

export interface SnapshotInfo {
  readonly id: string
  /** With links resolved. */
  readonly directory: string
  /** Written, in all files: zero pages count nothing. */
  readonly bytes: number
  /** Pages that the snapshot has, zero ones too: of a differential those written since the parent. */
  readonly pages: number
}

/**
 * Saves a snapshot to `directory`, which may be absent, empty, or a snapshot that is to be replaced. At any moment there
 * is the old one or the new one whole.
 *
 * @throws {SnapshotError} it cannot be written there; nothing is changed then, and nothing left behind
 */
export async function writeSnapshot(
  directory: string,
  { state, memory, parent, files = [] }: SnapshotContents,
  options: ProgressOptions = {},
): Promise<SnapshotInfo> {
  checkSource(memory)
  return saveTo(directory, options, async target => {
    const base = parent && (await readParent(target, parent, memory))
    return {
      state,
      files,
      id: randomUUID(),
      created: new Date().toISOString(),
      parent: base,
      guestAddresses: memory.regions.map(({ guestAddress }) => guestAddress),
      plan: base ? planDifferential(memory) : planFull(memory),
      checkCount: extents => base && checkExtentCount(directory, base.extents + extents),
    }
  })
}

/** All that is needed to write a snapshot. */
export interface Draft {
  readonly state: f.MachineState
  readonly files: readonly FileToAdd[]
  readonly id: string
  readonly created: string
  readonly parent?: { readonly id: string; readonly path: string } | undefined
  readonly guestAddresses: readonly number[]
  readonly plan: readonly RegionPlan[]
  /** Throws where the chain would have more extents than a reader takes. */
  readonly checkCount?: ((extents: number) => void) | undefined
}

/** Resolves the target, has a draft made for it and writes that, all at once. */
export async function saveTo(
  directory: string,
  options: ProgressOptions,
  draw: (target: string) => Promise<Draft>,
): Promise<SnapshotInfo> {
  try {
    options.signal?.throwIfAborted()
    const target = await resolveTarget(directory)
    const draft = await draw(target)
    draft.checkCount?.(draft.plan.reduce((sum, { extents }) => sum + extents.length, 0))
    return await replaceDirectory(target, async temporary => ({
      ...(await writeFiles(temporary, draft, options)),
      id: draft.id,
      directory: target,
    }))
  } catch (error) {
    throw systemProblem(directory, 'saving a snapshot', error)
  }
}

/** Finds the parent and refuses what could not be read back with it. */
async function readParent(target: string, parent: { directory: string; id: string }, memory: f.MemorySource) {
  const chain = await readChain(parent.directory)
  const newest = chain[0]!
  if (newest.manifest.id !== parent.id) {
    const problem = `the snapshot there is ${newest.manifest.id}, not ${parent.id}`
    throw new SnapshotError(parent.directory, problem, 'save a full snapshot: the parent was replaced')
  }
  if (chain.some(({ directory }) => directory === target)) {
    const remedy = 'save it to another directory, or save a full snapshot'
    throw new SnapshotError(target, 'the differential is based on the snapshot that it would replace', remedy)
  }
  if (chain.length >= f.LIMITS.chain) {
    const remedy = 'squash it (nested-kvm snapshot squash), or save a full snapshot'
    throw new SnapshotError(parent.directory, `its chain has ${chain.length} snapshots already`, remedy)
  }
  checkGeometry(target, memory.regions, newest)
  // Not newest.directory: for a moment of a save that one may lie aside, under another name.
  const named = resolve(parent.directory)
  const path = join(await realpath(dirname(named)), basename(named))
  const real = await realpath(path).catch(() => path)
  const extents = chain.reduce((sum, { regions }) => sum + regions.reduce((s, r) => s + r.extents.length, 0), 0)
  return { id: parent.id, path: relative(target, real), extents }
}

async function writeFiles(directory: string, draft: Draft, options: ProgressOptions) {
  const memory = await writeFile(directory, f.FILES.memory, file => writeMemory(file, draft.plan, options))
  const state = new StateFile()
  const { id, created, parent, state: machine } = draft
  const blobs = (of: f.Blobs) => Object.fromEntries(Object.entries(of).map(([name, bytes]) => [name, state.add(bytes)]))
  const vm = blobs(machine.vm)
  const vcpus = machine.vcpus.map(vcpu => ({ id: vcpu.id, about: vcpu.about, state: blobs(vcpu.state) }))
  const regions = memory.regions.map(({ fileOffset, extents, checksums }, i) => ({
    guestAddress: draft.guestAddresses[i]!,
    size: draft.plan[i]!.size,
    fileOffset,
    ...(parent && { extents: state.add(encodeExtents(extents)) }),
    checksums: state.add(checksums),
  }))
  const files: f.AddedFile[] = []
  let bytes = memory.bytes
  for (const { name, write } of draft.files) {
    const { checksums, size, blocks } = await writeFile(directory, name, async file => {
      const summed = new SummedFile(file)
      await write(summed, options.signal)
      const checksums = await summed.end()
      const { size, blocks } = await file.stat()
      return { checksums, size, blocks }
    })
    files.push({ name, size, checksums: state.add(checksums) })
    bytes += Math.min(size, blocks * 512)
  }
  const manifest: Omit<f.Manifest, 'stateSize'> = {
    format: f.FORMAT,
    version: f.VERSION,
    id,
    created,
    tool: `nested-kvm ${toolVersion()}`,
    ...(parent && { parent: { id: parent.id, path: parent.path } }),
    config: machine.config,
    devices: machine.devices,
    vm,
    vcpus,
    files,
    memory: { pageSize: f.PAGE_SIZE, chunkSize: f.CHUNK_SIZE, size: memory.size, regions },
  }
  const stateBytes = state.bytes()
  const manifestBytes = encodeManifest({ ...manifest, stateSize: stateBytes.length })
  const checksums = encodeChecksums(manifestBytes, stateBytes)
  checkReadable(manifestBytes, stateBytes, checksums)
  const small = { [f.FILES.manifest]: manifestBytes, [f.FILES.state]: stateBytes, [f.FILES.checksums]: checksums }
  for (const [name, content] of Object.entries(small)) {
    await writeFile(directory, name, file => file.writeFile(content))
    bytes += content.length
  }
  options.signal?.throwIfAborted()
  return { bytes, pages: memory.pages }
}

/** The reader's own checks: what it would refuse is not written either. */
function checkReadable(manifest: Uint8Array, state: Uint8Array, checksums: Uint8Array): void {
  try {
    readLayer('', readManifest('', manifest, checksums), state, checksums)
  } catch (error) {
    if (!(error instanceof SnapshotError)) throw error
    const remedy = 'such a machine cannot be saved: change what is named'
    throw new SnapshotError('snapshot', `${error.path} would be refused: ${error.problem}`, remedy, { cause: error })
  }
}

/** Makes a file, has it filled, and sees it on the disk. */
async function writeFile<T>(directory: string, name: string, fill: (file: FileHandle) => Promise<T>): Promise<T> {
  const file = await open(join(directory, name), 'wx', 0o600)
  try {
    const result = await fill(file)
    await file.sync()
    return result
  } finally {
    await file.close()
  }
}

/** The blobs of `state`, one after the other. */
class StateFile {
  readonly #parts: Uint8Array[] = []
  #length = 0

  add(bytes: Uint8Array): f.Extent {
    const extent = { offset: this.#length, length: bytes.length }
    this.#parts.push(bytes)
    this.#length += bytes.length
    return extent
  }

  bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

let version: string | undefined
function toolVersion(): string {
  version ??= JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version as string
  return version
}

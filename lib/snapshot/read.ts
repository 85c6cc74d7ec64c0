import { constants } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { SnapshotError } from '../errors.js'
import { checkExtentCount, checkParent, type PlacedRegion, placeMemory } from './chain.js'
import { DAMAGED } from './fields.js'
import { FILES, LIMITS, type MachineState } from './format.js'
import { blobsOf, type Layer, readLayer, readManifest } from './layer.js'
import { locate } from './place.js'
import { isSystemError, systemProblem } from './system-error.js'

/** A snapshot as it lies on disk: `state` in memory, guest memory not read. */
export interface Snapshot {
  readonly directory: string
  readonly id: string
  /** ISO 8601. */
  readonly created: string
  readonly parent?: { readonly id: string; readonly directory: string }
  readonly state: MachineState
  readonly memory: { readonly regions: readonly PlacedRegion[] }
  /** Further files of it, by their paths. */
  readonly files: readonly { readonly name: string; readonly path: string }[]
  /** The directories that memory comes from: this one, its parent, ..., the full snapshot at the end. */
  readonly chain: readonly string[]
}

/**
 * Reads a snapshot and those it is based on. All files but `memory` and those of disks are checked against their sums; of these only
 * the size is looked at (`verifySnapshot` reads them).
 *
 * @throws {SnapshotError} there is none, it is damaged, of a newer version, or a parent is missing
 */
export async function readSnapshot(directory: string): Promise<Snapshot> {
  const chain = await readChain(directory)
  const [{ directory: path, manifest }, parent] = chain as [Layer, Layer?]
  return {
    directory: path,
    id: manifest.id,
    created: manifest.created,
    ...(parent && { parent: { id: parent.manifest.id, directory: parent.directory } }),
    state: machineState(chain[0]!),
    memory: { regions: placeMemory(chain) },
    files: manifest.files.map(({ name }) => ({ name, path: join(path, name) })),
    chain: chain.map(layer => layer.directory),
  }
}

export function machineState({ manifest, state }: Layer): MachineState {
  return {
    config: manifest.config,
    vm: blobsOf(state, manifest.vm),
    vcpus: manifest.vcpus.map(({ id, about, state: table }) => ({ id, about, state: blobsOf(state, table) })),
    devices: manifest.devices,
  }
}

/** The snapshot and its parents, newest first. */
export async function readChain(directory: string): Promise<Layer[]> {
  try {
    return await loadChain(directory)
  } catch (error) {
    throw systemProblem(directory, 'reading the snapshot', error)
  }
}

async function loadChain(directory: string): Promise<Layer[]> {
  const chain = [await loadLayer(await find(directory))]
  let extents = countExtents(chain[0]!)
  for (;;) {
    const child = chain.at(-1)!
    const { parent } = child.manifest
    if (!parent) return chain
    const manifest = `${child.directory}/${FILES.manifest}`
    if (chain.length === LIMITS.chain) {
      throw new SnapshotError(
        manifest,
        `parent: this chain has more than ${LIMITS.chain} snapshots`,
        'squash a part of it',
      )
    }
    const place = await findParent(child, parent)
    if (chain.some(layer => layer.directory === place)) {
      throw new SnapshotError(manifest, `parent.path: ${parent.path}: the chain of parents is a circle`, DAMAGED)
    }
    const layer = await loadLayer(place)
    checkParent(child, layer)
    extents += countExtents(layer)
    checkExtentCount(directory, extents)
    // Only the newest gives the state; the others, up to a whole chain of them, need not stay in memory.
    chain.push({ ...layer, state: new Uint8Array(), files: [] })
  }
}

function countExtents(layer: Layer): number {
  return layer.regions.reduce((sum, { extents }) => sum + extents.length, 0)
}

async function find(directory: string): Promise<string> {
  const place = await locate(directory)
  if (place === undefined) {
    throw new SnapshotError(directory, 'there is no such directory', 'give the directory of a snapshot')
  }
  return place
}

async function findParent(child: Layer, parent: { id: string; path: string }): Promise<string> {
  const path = resolve(child.directory, parent.path)
  const place = await locate(path)
  if (place !== undefined) return place
  throw new SnapshotError(
    child.directory,
    `its parent ${parent.id} is missing: there is nothing in ${path}`,
    'bring the parent back to that place: a differential is nothing without it',
  )
}

async function loadLayer(directory: string): Promise<Layer> {
  if (!(await stat(directory)).isDirectory()) {
    throw new SnapshotError(directory, 'it is no directory', 'give the directory of a snapshot')
  }
  const manifestBytes = await readWhole(directory, FILES.manifest, LIMITS.manifest)
  const checksums = await readWhole(directory, FILES.checksums, LIMITS.checksums)
  const manifest = readManifest(directory, manifestBytes, checksums)
  const state = await readWhole(directory, FILES.state, LIMITS.state, manifest.stateSize)
  const layer = readLayer(directory, manifest, state, checksums)
  for (const { name, size } of [{ name: FILES.memory, size: manifest.memory.size }, ...manifest.files]) {
    const file = await openRegular(directory, name)
    try {
      checkSize(`${directory}/${name}`, (await file.stat()).size, size)
    } finally {
      await file.close()
    }
  }
  return layer
}

/** A file of at most `max` bytes, nothing allocated before its size is known to be so. */
async function readWhole(directory: string, name: string, max: number, expected?: number): Promise<Uint8Array> {
  const path = `${directory}/${name}`
  const file = await openRegular(directory, name)
  try {
    const { size } = await file.stat()
    if (expected !== undefined) checkSize(path, size, expected)
    if (size > max) throw new SnapshotError(path, `it has ${size} bytes, more than ${max}`, DAMAGED)
    const bytes = new Uint8Array(size)
    await readFully(path, file, bytes, 0)
    return bytes
  } finally {
    await file.close()
  }
}

function checkSize(path: string, size: number, expected: number): void {
  if (size === expected) return
  const how = size < expected ? 'it is cut short: ' : ''
  throw new SnapshotError(path, `${how}it has ${size} bytes, not ${expected}`, DAMAGED)
}

/** Fills `bytes` from `position` on. */
export async function readFully(path: string, file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesRead } = await file.read(bytes, at, bytes.length - at, position + at)
    if (bytesRead === 0) throw new SnapshotError(path, `it ends at ${position + at}`, DAMAGED)
    at += bytesRead
  }
}

/** Opens a file of a snapshot. What is no regular file is not opened: a FIFO would hang, a device might act. */
export async function openRegular(directory: string, name: string): Promise<FileHandle> {
  const path = `${directory}/${name}`
  try {
    if (!(await stat(path)).isFile()) throw new SnapshotError(path, 'it is no regular file', DAMAGED)
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
    if ((await file.stat()).isFile()) return file
    await file.close()
    throw new SnapshotError(path, 'it is no regular file', DAMAGED)
  } catch (error) {
    if (!isSystemError(error)) throw error
    if (error.code === 'ENOENT' && name === FILES.manifest) {
      const remedy = 'give the directory of a snapshot'
      throw new SnapshotError(directory, `it is no snapshot: it has no ${name}`, remedy, { cause: error })
    }
    if (error.code === 'ENOENT') {
      throw new SnapshotError(directory, `the file ${name} is missing`, DAMAGED, { cause: error })
    }
    throw systemProblem(path, 'opening it', error)
  }
}

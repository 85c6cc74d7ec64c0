import { SnapshotError } from '../errors.js'
import { CHECKSUM_SIZE } from './checksum.js'
import { DAMAGED, Field } from './fields.js'
import * as f from './format.js'
import { NUMBERED_SUM_SIZE } from './summed-file.js'

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/
/** The name of an ioctl and, where it is called several times, of what. */
const BLOB_NAME = /^[A-Za-z0-9][A-Za-z0-9_/.-]{0,99}$/
// biome-ignore lint/suspicious/noControlCharactersInRegex: a path has none
const PATH = /^[^\x00-\x1f]{1,4096}$/

/** The bytes of `manifest.json`, in a form that people can read. */
export function encodeManifest(manifest: f.Manifest): Buffer {
  return Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`)
}

/**
 * Reads `manifest.json`. `path` is for the error.
 *
 * @throws {SnapshotError} it is none, it is of a newer version, or what it says cannot be
 */
export function parseManifest(path: string, bytes: Uint8Array): f.Manifest {
  const top = new Field(path, parseJson(path, bytes))
  const format = top.at('format')
  if (format.json() !== f.FORMAT) format.bad('this is no snapshot of nested-kvm', 'give the directory of one')
  const version = top.at('version').integer(1, Number.MAX_SAFE_INTEGER)
  if (version > f.VERSION) {
    const tool = typeof top.at('tool').json() === 'string' ? `; it was written by ${top.at('tool').json()}` : ''
    top.at('version').bad(`this nested-kvm reads up to version ${f.VERSION}${tool}`, 'read it with a newer nested-kvm')
  }
  const manifest: f.Manifest = {
    format: f.FORMAT,
    version: f.VERSION,
    id: top.at('id').text(UUID, 'a UUID'),
    created: top.at('created').text(TIME, 'a time as 2026-01-31T12:00:00.000Z'),
    tool: top.at('tool').text(/^.{1,200}$/, 'a short text'),
    ...(top.has('parent') && {
      parent: {
        id: top.at('parent').at('id').text(UUID, 'a UUID'),
        path: top.at('parent').at('path').text(PATH, 'a path'),
      },
    }),
    config: top.at('config').json(),
    devices: Object.fromEntries(
      top
        .at('devices')
        .entries(f.LIMITS.blobs)
        .map(([name, state]) => [name, state.json()]),
    ),
    vm: parseBlobs(top.at('vm')),
    vcpus: top
      .at('vcpus')
      .list(f.LIMITS.vcpus)
      .map(vcpu => ({
        id: vcpu.at('id').integer(0, 2 ** 32 - 1),
        about: vcpu.at('about').json(),
        state: parseBlobs(vcpu.at('state')),
      })),
    files: top
      .at('files')
      .list(f.LIMITS.files)
      .map(file => ({
        name: file.at('name').text(f.ADDED_NAME, 'the name of such a file'),
        size: file.at('size').integer(0, f.LIMITS.file),
        checksums: parseExtent(file.at('checksums'), NUMBERED_SUM_SIZE),
      })),
    stateSize: top.at('stateSize').integer(0, f.LIMITS.state),
    memory: parseMemory(top.at('memory'), top.has('parent')),
  }
  if (new Set(manifest.vcpus.map(({ id }) => id)).size < manifest.vcpus.length) {
    top.at('vcpus').bad('two vCPUs have the same id')
  }
  if (new Set(manifest.files.map(({ name }) => name)).size < manifest.files.length) {
    top.at('files').bad('two files have the same name')
  }
  checkTiling(top.at('stateSize'), manifest)
  return manifest
}

/** Text to JSON, with the bounds that keep a small file from taking much memory or a stack. */
function parseJson(path: string, bytes: Uint8Array): unknown {
  if (bytes.length > f.LIMITS.manifest) {
    throw new SnapshotError(path, `it has ${bytes.length} bytes, more than ${f.LIMITS.manifest}`, DAMAGED)
  }
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    throw new SnapshotError(path, 'it is not UTF-8', DAMAGED)
  }
  checkShape(path, bytes)
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new SnapshotError(path, `it is not JSON: ${(error as Error).message.slice(0, 200)}`, DAMAGED)
  }
}

/** How deep and how many: counted on the bytes, before `JSON.parse` makes objects of them. */
function checkShape(path: string, bytes: Uint8Array): void {
  let depth = 0
  let values = 0
  let inText = false
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]
    if (inText) {
      if (byte === 0x5c /* \ */) i++
      else if (byte === 0x22 /* " */) inText = false
    } else if (byte === 0x22) inText = true
    else if (byte === 0x2c /* , */) values++
    else if (byte === 0x5b /* [ */ || byte === 0x7b /* { */) {
      values++
      if (++depth > f.LIMITS.jsonDepth) {
        throw new SnapshotError(path, `it is nested more than ${f.LIMITS.jsonDepth} deep`, DAMAGED)
      }
    } else if (byte === 0x5d /* ] */ || byte === 0x7d /* } */) depth--
  }
  if (values > f.LIMITS.jsonValues) {
    throw new SnapshotError(path, `it has more than ${f.LIMITS.jsonValues} values`, DAMAGED)
  }
}

function parseBlobs(field: Field): f.BlobTable {
  const entries = field.entries(f.LIMITS.blobs).map(([name, extent]): [string, f.Extent] => {
    if (!BLOB_NAME.test(name)) extent.bad('this is no name of a state')
    return [name, parseExtent(extent)]
  })
  return Object.fromEntries(entries)
}

function parseExtent(field: Field, multipleOf = 1): f.Extent {
  return {
    offset: field.at('offset').integer(0, f.LIMITS.state),
    length: field.at('length').integer(0, f.LIMITS.state, multipleOf),
  }
}

function parseMemory(memory: Field, differential: boolean): f.Manifest['memory'] {
  memory.at('pageSize').integer(f.PAGE_SIZE, f.PAGE_SIZE)
  memory.at('chunkSize').integer(f.CHUNK_SIZE, f.CHUNK_SIZE)
  let guestEnd = 0
  let fileEnd = 0
  let extents = 0
  const regions = memory
    .at('regions')
    .list(f.LIMITS.regions)
    .map((region): f.ManifestRegion => {
      const guestAddress = region.at('guestAddress').integer(guestEnd, 2 ** 52, f.PAGE_SIZE)
      const size = region.at('size').integer(f.PAGE_SIZE, f.LIMITS.memory, f.PAGE_SIZE)
      const fileOffset = region.at('fileOffset').integer(fileEnd, f.LIMITS.memory, f.PAGE_SIZE)
      guestEnd = guestAddress + size
      fileEnd = fileOffset + size
      if (region.has('extents') !== differential) {
        region.at('extents').bad(differential ? 'a differential has them' : 'only a differential has them')
      }
      const checksums = parseExtent(region.at('checksums'), CHECKSUM_SIZE)
      if (!differential) {
        const wanted = CHECKSUM_SIZE * Math.ceil(size / f.CHUNK_SIZE)
        if (checksums.length !== wanted) region.at('checksums').at('length').bad(`the region needs ${wanted}`)
        return { guestAddress, size, fileOffset, checksums }
      }
      const table = parseExtent(region.at('extents'), 16)
      extents += table.length / 16
      if (extents > f.LIMITS.extents) region.at('extents').at('length').bad(`over ${f.LIMITS.extents} extents in all`)
      return { guestAddress, size, fileOffset, extents: table, checksums }
    })
  const size = memory.at('size').integer(0, f.LIMITS.memory, f.PAGE_SIZE)
  if (size !== fileEnd) memory.at('size').bad(`the regions end at ${fileEnd}`)
  return { pageSize: f.PAGE_SIZE, chunkSize: f.CHUNK_SIZE, size, regions }
}

/** The blobs and tables stand one after the other: without overlaps, without gaps, up to the end of the file. */
function checkTiling(stateSize: Field, manifest: f.Manifest): void {
  const pieces = [
    ...Object.values(manifest.vm),
    ...manifest.vcpus.flatMap(({ state }) => Object.values(state)),
    ...manifest.files.map(({ checksums }) => checksums),
    ...manifest.memory.regions.flatMap(({ extents, checksums }) => (extents ? [extents, checksums] : [checksums])),
  ].sort((a, b) => a.offset - b.offset || a.length - b.length)
  let end = 0
  for (const { offset, length } of pieces) {
    if (offset !== end) stateSize.bad(`what lies in ${f.FILES.state} overlaps or leaves a gap at ${offset}`)
    end += length
  }
  if (end !== manifest.stateSize) stateSize.bad(`what lies in ${f.FILES.state} ends at ${end}`)
}

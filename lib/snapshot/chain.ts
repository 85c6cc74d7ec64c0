import { SnapshotError } from '../errors.js'
import { type Extent, FILES, LIMITS } from './format.js'
import type { Layer } from './layer.js'

/** A part of a region, and where its bytes lie. A hole in the file reads as zero. */
export interface PlacedExtent extends Extent {
  readonly file: string
  readonly fileOffset: number
}

export interface PlacedRegion {
  readonly guestAddress: number
  readonly size: number
  /** Cover the region wholly, ascending, without overlap. */
  readonly extents: readonly PlacedExtent[]
}

/** @throws {SnapshotError} `parent` cannot be the parent of `child` */
export function checkParent(child: Layer, parent: Layer): void {
  const wanted = child.manifest.parent!.id
  if (parent.manifest.id !== wanted) {
    throw new SnapshotError(
      child.directory,
      `parent.id: ${wanted}: the snapshot in ${parent.directory} is another one, ${parent.manifest.id}`,
      'put the parent it was saved upon back in its place',
    )
  }
  checkGeometry(child.directory, child.regions, parent)
}

/** The regions of a differential are those of its parent, or its pages would land elsewhere. */
export function checkGeometry(
  path: string,
  regions: readonly { readonly guestAddress: number; readonly size: number }[],
  parent: Layer,
): void {
  const shape = (of: typeof regions) => of.map(({ guestAddress, size }) => `0x${guestAddress.toString(16)}+${size}`)
  const [ours, theirs] = [shape(regions).join(' '), shape(parent.regions).join(' ')]
  if (ours === theirs) return
  const short = (text: string) => (text.length > 200 ? `${text.slice(0, 200)}...` : text)
  throw new SnapshotError(
    path,
    `memory.regions: ${short(ours)}: those of the parent in ${parent.directory} are ${short(theirs)}`,
    'save a full snapshot, not a differential',
  )
}

/** Where memory lies over a chain, given newest first. Throws `SnapshotError` where that falls into too many parts. */
export function placeMemory(chain: readonly Layer[]): PlacedRegion[] {
  return chain[0]!.regions.map(({ guestAddress, size }, i) => {
    let placed: PlacedExtent[] = []
    for (const layer of chain.toReversed()) {
      const region = layer.regions[i]!
      const file = `${layer.directory}/${FILES.memory}`
      const own = region.extents.map(({ offset, length }) => {
        return { offset, length, file, fileOffset: region.fileOffset + offset }
      })
      placed = overlay(placed, own)
    }
    return { guestAddress, size, extents: placed }
  })
}

/** Bounds what `placeMemory` may make of a chain, before it does: an extent cuts another one into at most three. */
export function checkExtentCount(path: string, extents: number): void {
  if (extents <= LIMITS.chainExtents) return
  throw new SnapshotError(
    path,
    `the chain of snapshots has ${extents} extents, more than ${LIMITS.chainExtents}`,
    'squash it (nested-kvm snapshot squash), or save a full snapshot',
  )
}

/** Both ascending and without overlap; where they overlap, `top` is what counts. */
function overlay(bottom: readonly PlacedExtent[], top: readonly PlacedExtent[]): PlacedExtent[] {
  const result: PlacedExtent[] = []
  let next = 0
  for (const extent of bottom) {
    const end = extent.offset + extent.length
    let at = extent.offset
    // One that started in an extent before this one may reach into it.
    const before = top[next - 1]
    if (before) at = Math.min(end, Math.max(at, before.offset + before.length))
    for (; next < top.length && top[next]!.offset < end; next++) {
      const over = top[next]!
      if (over.offset > at) result.push(part(extent, at, over.offset))
      result.push(over)
      at = Math.min(end, over.offset + over.length)
    }
    if (at < end) result.push(part(extent, at, end))
  }
  for (; next < top.length; next++) result.push(top[next]!)
  return result
}

function part(extent: PlacedExtent, from: number, to: number): PlacedExtent {
  return {
    offset: from,
    length: to - from,
    file: extent.file,
    fileOffset: extent.fileOffset + from - extent.offset,
  }
}

/**
 * The on-disk format of a snapshot, a directory of four files, and one for each disk with an overlay:
 *
 * - `manifest.json`: everything that a person may want to read, and where the rest lies.
 * - `state`: the raw bytes of every state, one after the other, then the tables of the memory.
 * - `memory`: guest memory, page-aligned and sparse: a zero page is a hole. A differential has only the pages of its
 *   extents; all others are the parent's.
 * - `disk0` and so on: what was written over a disk's image, as `storage/overlay-file.ts` has it.
 * - `checksums`: of `manifest.json` and `state`, as `sha256sum -c` takes them. They are checked whenever a snapshot is
 *   read. `memory` and the disks' files have a checksum per chunk in `state`, since a restore must not read them all.
 */

/** A value that JSON holds without loss. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json }

/** State by the name of the ioctl that gave it, the kernel's bytes unchanged. */
export type Blobs = Readonly<Record<string, Uint8Array>>

export interface SavedVcpu {
  readonly id: number
  readonly state: Blobs
  /** For people, in the manifest: the CPUID table and the capability MSRs by name. Not read back by a restore. */
  readonly about: Json
}

/** A machine but for its memory. */
export interface MachineState {
  readonly config: Json
  readonly vm: Blobs
  readonly vcpus: readonly SavedVcpu[]
  readonly devices: Readonly<Record<string, Json>>
}

/** A range of bytes, of a file or of a region of memory. */
export interface Extent {
  readonly offset: number
  readonly length: number
}

/** Guest memory as it is to be saved. It must not change until it is. */
export interface MemorySource {
  /** Ascending by address. */
  readonly regions: readonly {
    readonly guestAddress: number
    readonly size: number
    /** Views over the region, in order, together as long as it. */
    readonly chunks: readonly Uint8Array[]
    /**
     * Whole pages, ascending. For a full snapshot: what may be other than zero. For a differential: the pages written
     * since the parent.
     */
    readonly data: readonly Extent[]
  }[]
}

/** A file that is part of a snapshot, beside those that each one has. */
export interface AddedFile {
  readonly name: string
  /** Bytes. */
  readonly size: number
  /** In `state`, see `summed-file.ts`. */
  readonly checksums: Extent
}

/** Where the bytes of a table or state lie in `state`. */
export type BlobTable = Readonly<Record<string, Extent>>

export interface ManifestRegion {
  readonly guestAddress: number
  readonly size: number
  /** Where the region starts in `memory`. */
  readonly fileOffset: number
  /** In `state`, of a differential only: pairs of u64, offset in the region and length of what `memory` has. */
  readonly extents?: Extent
  /** In `state`: 8 bytes for each chunk of the region that has a byte in an extent, see `checksum.ts`. */
  readonly checksums: Extent
}

/** What `manifest.json` holds. */
export interface Manifest {
  readonly format: typeof FORMAT
  readonly version: typeof VERSION
  readonly id: string
  readonly created: string
  /** What wrote it. */
  readonly tool: string
  /** Of a differential: the snapshot that has all pages which this one has not; `path` counts from this directory. */
  readonly parent?: { readonly id: string; readonly path: string }
  readonly config: Json
  readonly devices: Readonly<Record<string, Json>>
  readonly vm: BlobTable
  readonly vcpus: readonly { readonly id: number; readonly about: Json; readonly state: BlobTable }[]
  readonly files: readonly AddedFile[]
  /** Bytes of the file `state`. */
  readonly stateSize: number
  readonly memory: {
    readonly pageSize: typeof PAGE_SIZE
    readonly chunkSize: typeof CHUNK_SIZE
    /** Bytes of the file `memory`. */
    readonly size: number
    readonly regions: readonly ManifestRegion[]
  }
}

export const FORMAT = 'nested-kvm snapshot'
export const VERSION = 1
export const PAGE_SIZE = 4096
/** Memory and added files have a checksum per this many bytes. */
export const CHUNK_SIZE = 2 ** 20

export const FILES = { manifest: 'manifest.json', state: 'state', memory: 'memory', checksums: 'checksums' } as const

/** The names that added files may have. */
export const ADDED_NAME = /^disk\d{1,2}$/

/** A snapshot beyond these is refused before anything is allocated for it, and not written either. */
export const LIMITS = {
  /** Bytes. */
  manifest: 2 ** 26,
  checksums: 4096,
  state: 2 ** 28,
  memory: 2 ** 44,
  /** Of one added file. */
  file: 2 ** 50,
  /** What a manifest may hold: an array or object of many small ones takes far more memory than text. */
  jsonValues: 2 ** 21,
  jsonDepth: 64,
  vcpus: 4096,
  files: 100,
  regions: 1024,
  /** Of one vCPU or of the VM. */
  blobs: 256,
  /** Of one snapshot. 2^20 single pages with gaps between them are 8 GiB; where there are more, gaps are filled. */
  extents: 2 ** 20,
  /** Of a chain, after it was resolved. */
  chainExtents: 2 ** 21,
  /** Snapshots in a chain. */
  chain: 64,
} as const

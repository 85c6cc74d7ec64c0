import { PAGE_SIZE } from '../arch/x86_64/layout.js'
import { ConfigError } from '../errors.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { lowMemoryEnd, type Placement } from './memory-map.js'

/**
 * What is to be in guest memory: the content in one piece or in several that follow each other; or only its `size`, and the
 * caller fills in the place that it gets (`memory.parts(address, size)`), straight from a file.
 */
export type Content = Uint8Array | readonly Uint8Array[] | { readonly size: number }

/** A file that is loaded beside the kernel, for a kernel that takes such. */
export interface BootModule {
  /** What the configuration calls it, for errors. */
  readonly field: string
  readonly content: Content
  /** The first word of its string, where there is to be one (Multiboot). */
  readonly name: string
  readonly cmdline: string
}

/** Bytes of a content. */
export function sizeOf(content: Content | undefined): number {
  if (!content) return 0
  if (content instanceof Uint8Array) return content.length
  if ('size' in content) return content.size
  return content.reduce((sum, part) => sum + part.length, 0)
}

/** Writes a content, as far as it is there. */
export function writeContent(memory: GuestMemory, content: Content | undefined, address: number): void {
  if (!content || 'size' in content) return
  let at = address
  for (const part of content instanceof Uint8Array ? [content] : content) {
    memory.write(at, part)
    at += part.length
  }
}

/**
 * Loads the modules one after another, each on a page of its own, behind the kernel and what it clears (its bss).
 *
 * @throws {ConfigError} a module's field: it does not fit below the gap for devices
 */
export function loadModules(memory: GuestMemory, modules: readonly BootModule[], kernel: Placement): Placement[] {
  const end = lowMemoryEnd(memory)
  let next = kernel.address + kernel.size
  return modules.map(({ field, content }) => {
    const address = Math.ceil(next / PAGE_SIZE) * PAGE_SIZE
    const size = sizeOf(content)
    next = address + size
    if (!(next <= end)) {
      const problem = `it does not fit into memory below 0x${end.toString(16)}, behind the kernel and other modules`
      const missing = `give the guest at least ${Math.ceil((next - end) / 2 ** 20)} MiB more memory, or a smaller file`
      throw new ConfigError(field, `${size} bytes`, problem, missing)
    }
    writeContent(memory, content, address)
    return { address, size }
  })
}

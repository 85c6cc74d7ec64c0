import { openImageFile } from '../../../lib/kvm/image-file.js'
import type { ImageFile } from '../../../lib/storage/raw-image.js'

export interface ReadNow {
  /** What it gave. */
  readonly count: number
  readonly mayWait: boolean
}

/** Opens files of which each `readNow` is written down; with `instead`, that is what it gives. */
export function watchedFiles(reads: ReadNow[], instead?: number): (path: string, writable: boolean) => ImageFile {
  return (path, writable) => {
    const file = openImageFile(path, writable)
    const readNow = file.readNow.bind(file)
    const value: ImageFile['readNow'] = (buffers, offset, mayWait) => {
      const count = instead ?? readNow(buffers, offset, mayWait)
      reads.push({ count, mayWait })
      return count
    }
    return Object.defineProperty(file, 'readNow', { value })
  }
}

import { addon, type NativeImageFile } from './binding.js'

/**
 * Opens a disk image for its locks, holes and size (`fs` reads and writes it).
 * @throws {KvmError} it cannot be opened
 */
export function openImageFile(path: string, writable: boolean): NativeImageFile {
  return new addon.ImageFile(path, writable)
}

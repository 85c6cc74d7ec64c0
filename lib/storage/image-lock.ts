/** A disk image's locks, one for each byte of the file; none of them keeps anybody from reading or writing. */
export interface LockableFile {
  lock(offset: number): boolean
  isLocked(offset: number): boolean
}

/*
 * QEMU's convention for image files (docs/system/qemu-block-drivers.rst.inc, "Disk image file locking"; block/file-posix.c), so that an
 * image is not opened by us and by QEMU at the same time: who needs a permission has a shared lock of byte 100 + its number, who does not
 * grant it to others one of byte 200 + its number.
 */
const NEEDS = 100
const KEEPS = 200
const CONSISTENT_READ = 0
const WRITE = 1
const RESIZE = 3

/**
 * Takes an image: as its only writer, or as one of several readers. False where another has it in a way that does not go with
 * this; the locks go with the file's `close()` then.
 */
export function takeImage(file: LockableFile, writable: boolean): boolean {
  const needed = writable ? [CONSISTENT_READ, WRITE] : [CONSISTENT_READ]
  // Who reads it relies on its content as well.
  const kept = [WRITE, RESIZE]
  const locks = [...needed.map(permission => NEEDS + permission), ...kept.map(permission => KEEPS + permission)]
  if (!locks.every(offset => file.lock(offset))) return false
  return (
    !needed.some(permission => file.isLocked(KEEPS + permission)) &&
    !kept.some(permission => file.isLocked(NEEDS + permission))
  )
}

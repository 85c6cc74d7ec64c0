import { tmpdir } from 'node:os'
import type { DiskConfig } from '../config/disks.js'
import type { MachineConfig } from '../config/machine-config.js'
import { BlockDevice } from '../devices/virtio/block.js'
import type { VirtioDevice } from '../devices/virtio/device.js'
import { openImageFile } from '../kvm/image-file.js'
import { Overlay } from '../storage/overlay.js'
import { RawImage } from '../storage/raw-image.js'

/** A virtio device, and its name in snapshots and messages. Their order is that of their places in the machine. */
export interface Peripheral {
  readonly name: string
  readonly device: VirtioDevice
  /** Of a disk that is not read-only: where what is written goes, undefined where that is the image itself. */
  readonly disk?: { readonly path: string; readonly overlay: Overlay | undefined }
}

/** Told of a failure of the host's that the guest sees as one of the device's. */
export type DeviceFailure = (name: string, error: Error) => void

/**
 * Makes a machine's virtio devices, with what they need of the host. On an error, nothing is left open.
 * @throws {ConfigError} a part of the host cannot be had: names the field, its value and the remedy
 */
export async function openPeripherals(config: MachineConfig, onFailure: DeviceFailure): Promise<Peripheral[]> {
  const peripherals: Peripheral[] = []
  try {
    for (const [index, disk] of config.disks.entries()) {
      const name = `disk${index}`
      peripherals.push(openDisk(name, `disks[${index}].path`, disk, error => onFailure(name, error)))
    }
    return peripherals
  } catch (error) {
    await closePeripherals(peripherals)
    throw error
  }
}

function openDisk(name: string, field: string, disk: DiskConfig, onError: (error: Error) => void): Peripheral {
  const { path, direct, serial, snapshot } = disk
  const readonly = disk.readonly || snapshot
  const image = RawImage.open({ field, path, readonly, direct, openFile: openImageFile })
  const overlay = snapshot ? new Overlay(image, tmpdir()) : undefined
  const device = new BlockDevice(overlay ?? image, { serial, onError })
  return { name, device, ...(!disk.readonly && { disk: { path, overlay } }) }
}

export async function closePeripherals(peripherals: readonly Peripheral[]): Promise<void> {
  for (const { device } of peripherals) await device.close()
}

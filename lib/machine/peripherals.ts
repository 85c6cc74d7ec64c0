import { randomFillSync } from 'node:crypto'
import { tmpdir } from 'node:os'
import type { DiskConfig } from '../config/disks.js'
import type { MachineConfig } from '../config/machine-config.js'
import type { NetConfig } from '../config/nets.js'
import type { VsockConfig } from '../config/vsock.js'
import { BlockDevice } from '../devices/virtio/block.js'
import { VirtioConsole } from '../devices/virtio/console.js'
import type { VirtioDevice } from '../devices/virtio/device.js'
import { VirtioNet } from '../devices/virtio/net.js'
import { type NetBackend, NO_OFFLOADS } from '../devices/virtio/net-backend.js'
import { VirtioRng } from '../devices/virtio/rng.js'
import { VirtioVsock } from '../devices/virtio/vsock/vsock.js'
import { ConfigError } from '../errors.js'
import { openImageFile } from '../kvm/image-file.js'
import { Passt } from '../net/passt.js'
import { Tap } from '../net/tap.js'
import { Unplugged } from '../net/unplugged.js'
import type { BlockStorage } from '../storage/block-storage.js'
import { Overlay } from '../storage/overlay.js'
import { openKeptLayer } from '../storage/overlay-file.js'
import { OverlayLayer } from '../storage/overlay-layer.js'
import { RawImage } from '../storage/raw-image.js'
import { Console } from './console.js'
import { Vsock } from './vsock.js'
import { VsockSocket } from './vsock-socket.js'

/** A virtio device, and its name in snapshots and messages. Their order is that of their places in the machine. */
export interface Peripheral {
  readonly name: string
  readonly device: VirtioDevice
  /** Of a disk that is not read-only: where what is written goes, undefined where that is the image itself. */
  readonly disk?: { readonly path: string; readonly overlay: Overlay | undefined }
  readonly console?: Console
  readonly vsock?: Vsock
}

/** Told of a failure of the host's that the guest sees as one of the device's. */
export type DeviceFailure = (name: string, error: Error) => void

/**
 * Makes a machine's virtio devices, with what they need of the host. On an error, nothing is left open.
 * @param options.unplugged network cards have no cable: another machine has the same addresses
 * @throws {ConfigError} a part of the host cannot be had: names the field, its value and the remedy
 */
export async function openPeripherals(
  config: MachineConfig,
  onFailure: DeviceFailure,
  { unplugged = false } = {},
): Promise<Peripheral[]> {
  const peripherals: Peripheral[] = []
  try {
    for (const [index, disk] of config.disks.entries()) {
      const name = `disk${index}`
      peripherals.push(openDisk(name, `disks[${index}]`, disk, error => onFailure(name, error)))
    }
    for (const [index, net] of config.nets.entries()) {
      const backend = unplugged ? unpluggedNet(net) : await openNet(net, `nets[${index}]`)
      peripherals.push({ name: `net${index}`, device: new VirtioNet(backend, net.mac) })
    }
    if (config.rng) peripherals.push({ name: 'rng', device: new VirtioRng(bytes => void randomFillSync(bytes)) })
    if (config.console === 'virtio') peripherals.push(makeConsole())
    if (config.vsock) peripherals.push(await openVsock(config.vsock))
    return peripherals
  } catch (error) {
    await closePeripherals(peripherals)
    throw error
  }
}

function openDisk(name: string, field: string, disk: DiskConfig, onError: (error: Error) => void): Peripheral {
  const { path, direct, serial, snapshot } = disk
  const readonly = disk.readonly || snapshot || disk.overlay !== null
  const image = RawImage.open({ field: `${field}.path`, path, readonly, direct, openFile: openImageFile })
  try {
    const overlay = snapshot ? new Overlay(image, () => OverlayLayer.temporary(tmpdir())) : undefined
    const storage = overlay ?? (disk.overlay === null ? image : openKept(image, `${field}.overlay`, disk.overlay))
    const device = new BlockDevice(storage, { serial, onError })
    return { name, device, ...(!disk.readonly && { disk: { path, overlay } }) }
  } catch (error) {
    image.close()
    throw error
  }
}

function openKept(image: RawImage, field: string, path: string): BlockStorage {
  try {
    return new Overlay(image, () => openKeptLayer(path, image.size, openImageFile))
  } catch (error) {
    if (error instanceof ConfigError) throw error
    const problem = `it cannot be used as an overlay: ${(error as Error).message}`
    throw new ConfigError(
      field,
      path,
      problem,
      'give a file that was made for this image, or one that is not there yet',
    )
  }
}

function makeConsole(): Peripheral {
  const device: VirtioConsole = new VirtioConsole({
    output: bytes => console.output(bytes),
    drain: () => console.drain(),
  })
  const console = new Console(bytes => device.input(bytes), {
    goOn: () => device.goOn(),
    resize: (columns, rows) => device.resize(columns, rows),
  })
  return { name: 'console', device, console }
}

async function openVsock({ cid, path }: VsockConfig): Promise<Peripheral> {
  const vsock = new Vsock(cid, path === null ? undefined : await VsockSocket.listen(path))
  const device = new VirtioVsock(cid, vsock)
  vsock.attach(device)
  return { name: 'vsock', device, vsock }
}

async function openNet(net: NetConfig, field: string): Promise<NetBackend> {
  return net.type === 'tap' ? new Tap(net, field) : await Passt.open(net.forward, field)
}

function unpluggedNet({ type }: NetConfig): NetBackend {
  return new Unplugged(type === 'tap' ? Tap.OFFLOADS : NO_OFFLOADS)
}

export async function closePeripherals(peripherals: readonly Peripheral[]): Promise<void> {
  for (const { device } of peripherals) await device.close()
}

import { type Aml, device, edgeInterrupt, integer, memory32Fixed, name, resourceTemplate, string } from './aml.js'
import { VIRTIO_MMIO_SIZE, virtioSlot } from './layout.js'

/** Virtio devices over MMIO for the namespace: `LNRO0005` is the id that Linux and firmware look for (Linux: drivers/virtio/virtio_mmio.c). */
export function virtioMmioDevices(count: number): Aml[] {
  return Array.from({ length: count }, (_, index) => {
    const { address, gsi } = virtioSlot(index)
    return device(
      `VR${index.toString(16).toUpperCase().padStart(2, '0')}`,
      name('_HID', string('LNRO0005')),
      name('_UID', integer(index)),
      // Its accesses to memory are coherent.
      name('_CCA', integer(1)),
      name('_CRS', resourceTemplate(memory32Fixed(address, VIRTIO_MMIO_SIZE), edgeInterrupt(gsi))),
    )
  })
}

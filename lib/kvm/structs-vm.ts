/**
 * The structs of the VM ioctls, as `<asm/kvm.h>` and `<linux/kvm.h>` lay them out for x86-64.
 * What each means: the kernel's "KVM API" document, section 4, under the ioctl that the comment names.
 */
import {
  KVM_IRQ_ROUTING_HV_SINT,
  KVM_IRQ_ROUTING_IRQCHIP,
  KVM_IRQ_ROUTING_MSI,
  KVM_IRQ_ROUTING_XEN_EVTCHN,
  KVM_IRQCHIP_IOAPIC,
  KVM_IRQCHIP_PIC_MASTER,
  KVM_IRQCHIP_PIC_SLAVE,
} from './constants.js'
import { array, bytes, flexible, type Infer, s32, s64, struct, u8, u16, u32, u64, union } from './layout.js'

/** KVM_SET_USER_MEMORY_REGION */
export const kvm_userspace_memory_region = struct('kvm_userspace_memory_region', {
  slot: u32,
  flags: u32,
  guest_phys_addr: u64,
  memory_size: u64,
  userspace_addr: u64,
})

export const kvm_pic_state = struct('kvm_pic_state', {
  last_irr: u8,
  irr: u8,
  imr: u8,
  isr: u8,
  priority_add: u8,
  irq_base: u8,
  read_reg_select: u8,
  poll: u8,
  special_mask: u8,
  init_state: u8,
  auto_eoi: u8,
  rotate_on_auto_eoi: u8,
  special_fully_nested_mode: u8,
  init4: u8,
  elcr: u8,
  elcr_mask: u8,
})
export type KvmPicState = Infer<typeof kvm_pic_state>

/** `redirtbl` has the I/O APIC's 24 redirection entries as the data sheet lays their 64 bits out. */
export const kvm_ioapic_state = struct('kvm_ioapic_state', {
  base_address: u64,
  ioregsel: u32,
  id: u32,
  irr: u32,
  pad: u32,
  redirtbl: array(struct('redirtbl', { bits: u64 }), 24),
})
export type KvmIoapicState = Infer<typeof kvm_ioapic_state>

/** KVM_GET_IRQCHIP, KVM_SET_IRQCHIP */
export const kvm_irqchip = struct('kvm_irqchip', {
  chip_id: u32,
  pad: u32,
  chip: union({ pic: kvm_pic_state, ioapic: kvm_ioapic_state, dummy: bytes(512) }, ({ chip_id }) => {
    if (chip_id === KVM_IRQCHIP_PIC_MASTER || chip_id === KVM_IRQCHIP_PIC_SLAVE) return 'pic'
    return chip_id === KVM_IRQCHIP_IOAPIC ? 'ioapic' : 'dummy'
  }),
})
export type KvmIrqchip = Infer<typeof kvm_irqchip>

/** KVM_CREATE_PIT2 */
export const kvm_pit_config = struct('kvm_pit_config', { flags: u32, pad: array(u32, 15) })

export const kvm_pit_channel_state = struct('kvm_pit_channel_state', {
  count: u32,
  latched_count: u16,
  count_latched: u8,
  status_latched: u8,
  status: u8,
  read_state: u8,
  write_state: u8,
  write_latch: u8,
  rw_mode: u8,
  mode: u8,
  bcd: u8,
  gate: u8,
  count_load_time: s64,
})
export type KvmPitChannelState = Infer<typeof kvm_pit_channel_state>

/** KVM_GET_PIT2, KVM_SET_PIT2 */
export const kvm_pit_state2 = struct('kvm_pit_state2', {
  channels: array(kvm_pit_channel_state, 3),
  flags: u32,
  reserved: array(u32, 9),
})
export type KvmPitState2 = Infer<typeof kvm_pit_state2>

/** KVM_IRQ_LINE */
export const kvm_irq_level = struct('kvm_irq_level', { irq: u32, level: u32 })

const routing = {
  irqchip: struct('kvm_irq_routing_irqchip', { irqchip: u32, pin: u32 }),
  msi: struct('kvm_irq_routing_msi', { address_lo: u32, address_hi: u32, data: u32, devid: u32 }),
  hv_sint: struct('kvm_irq_routing_hv_sint', { vcpu: u32, sint: u32 }),
  xen_evtchn: struct('kvm_irq_routing_xen_evtchn', { port: u32, vcpu: u32, priority: u32 }),
  pad: array(u32, 8),
} as const

const routingMembers = new Map<unknown, keyof typeof routing>([
  [KVM_IRQ_ROUTING_IRQCHIP, 'irqchip'],
  [KVM_IRQ_ROUTING_MSI, 'msi'],
  [KVM_IRQ_ROUTING_HV_SINT, 'hv_sint'],
  [KVM_IRQ_ROUTING_XEN_EVTCHN, 'xen_evtchn'],
])

export const kvm_irq_routing_entry = struct('kvm_irq_routing_entry', {
  gsi: u32,
  type: u32,
  flags: u32,
  pad: u32,
  u: union(routing, ({ type }) => routingMembers.get(type) ?? 'pad'),
})
export type KvmIrqRoutingEntry = Infer<typeof kvm_irq_routing_entry>

/** KVM_SET_GSI_ROUTING */
export const kvm_irq_routing = struct('kvm_irq_routing', {
  nr: u32,
  flags: u32,
  entries: flexible(kvm_irq_routing_entry, 'nr'),
})

/** KVM_SIGNAL_MSI */
export const kvm_msi = struct('kvm_msi', {
  address_lo: u32,
  address_hi: u32,
  data: u32,
  flags: u32,
  devid: u32,
  pad: bytes(12),
})
export type KvmMsi = Infer<typeof kvm_msi>

/** KVM_IRQFD */
export const kvm_irqfd = struct('kvm_irqfd', { fd: u32, gsi: u32, flags: u32, resamplefd: u32, pad: bytes(16) })

/** KVM_IOEVENTFD */
export const kvm_ioeventfd = struct('kvm_ioeventfd', {
  datamatch: u64,
  addr: u64,
  len: u32,
  fd: s32,
  flags: u32,
  pad: bytes(36),
})

/** KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO */
export const kvm_coalesced_mmio_zone = struct('kvm_coalesced_mmio_zone', { addr: u64, size: u32, pio: u32 })

/** One write in the coalesced ring */
export const kvm_coalesced_mmio = struct('kvm_coalesced_mmio', { phys_addr: u64, len: u32, pio: u32, data: bytes(8) })
export type KvmCoalescedMmio = Infer<typeof kvm_coalesced_mmio>

/** What precedes the `kvm_coalesced_mmio` entries in the ring's page */
export const kvm_coalesced_mmio_ring = struct('kvm_coalesced_mmio_ring', { first: u32, last: u32 })

/** KVM_GET_DIRTY_LOG */
export const kvm_dirty_log = struct('kvm_dirty_log', { slot: u32, padding1: u32, dirty_bitmap: u64 })

/** KVM_CLEAR_DIRTY_LOG */
export const kvm_clear_dirty_log = struct('kvm_clear_dirty_log', {
  slot: u32,
  num_pages: u32,
  first_page: u64,
  dirty_bitmap: u64,
})

/** KVM_ENABLE_CAP */
export const kvm_enable_cap = struct('kvm_enable_cap', { cap: u32, flags: u32, args: array(u64, 4), pad: bytes(64) })

/** KVM_GET_CLOCK, KVM_SET_CLOCK */
export const kvm_clock_data = struct('kvm_clock_data', {
  clock: u64,
  flags: u32,
  pad0: u32,
  realtime: u64,
  host_tsc: u64,
  pad: array(u32, 4),
})
export type KvmClockData = Infer<typeof kvm_clock_data>

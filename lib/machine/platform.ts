import * as layout from '../arch/x86_64/layout.js'
import { AcpiPm } from '../devices/acpi-pm.js'
import { Bus } from '../devices/bus.js'
import { DebugExit } from '../devices/debug-exit.js'
import type { StatefulDevice } from '../devices/device.js'
import type { FwCfg } from '../devices/fw-cfg.js'
import { I8042 } from '../devices/i8042.js'
import { type PanicEvent, PvPanic } from '../devices/pvpanic.js'
import { ResetControl } from '../devices/reset-control.js'
import { Rtc } from '../devices/rtc.js'
import { Uart16550 } from '../devices/uart16550.js'
import type { Vm } from '../kvm/vm.js'
import type { GuestMemory } from '../memory/guest-memory.js'
import { Console } from './console.js'
import type { Peripheral } from './peripherals.js'
import { VirtioBus } from './virtio-bus.js'

/** What the platform's devices tell the machine. */
export interface PlatformEvents {
  /** ACPI S5. */
  powerOff(): void
  reset(): void
  debugExit(code: number): void
  panic(event: PanicEvent): void
}

/** The devices that are not in the kernel, and the buses on which they are found. */
export interface Platform {
  readonly ports: Bus
  readonly mmio: Bus
  readonly uart: Uart16550
  readonly pm: AcpiPm
  readonly rtc: Rtc
  readonly console: Console
  readonly virtio: VirtioBus
  /** Those with a state, by the names that a snapshot has for them. */
  readonly stateful: Readonly<Record<string, StatefulDevice>>
}

export interface PlatformParts {
  readonly vm: Vm
  readonly memory: GuestMemory
  readonly peripherals: readonly Peripheral[]
  /** Where there is firmware to read it. */
  readonly fwCfg: FwCfg | undefined
}

export function createPlatform({ vm, memory, peripherals, fwCfg }: PlatformParts, events: PlatformEvents): Platform {
  const console = new Console(bytes => uart.input(bytes))
  const uart = new Uart16550({
    interrupt: { set: level => vm.setIrqLine(layout.COM1_IRQ, level) },
    output: bytes => console.output(bytes),
    drain: () => console.drain(),
  })
  const pm = new AcpiPm({
    sleep: type => type === layout.ACPI_S5_SLEEP_TYPE && events.powerOff(),
    sci: { set: level => vm.setIrqLine(layout.SCI_IRQ, level) },
  })
  const rtc = new Rtc({ interrupt: { set: level => vm.setIrqLine(layout.RTC_IRQ, level) } })
  const ports = new Bus()
  ports.add(layout.COM1_PORT, layout.COM1_PORT_COUNT, uart)
  ports.add(layout.RTC_PORT, layout.RTC_PORT_COUNT, rtc)
  ports.add(layout.I8042_COMMAND_PORT, 1, new I8042(() => events.reset()))
  ports.add(layout.RESET_CONTROL_PORT, layout.RESET_CONTROL_PORT_COUNT, new ResetControl(() => events.reset()))
  ports.add(layout.PVPANIC_PORT, 1, new PvPanic(event => events.panic(event)))
  ports.add(layout.ACPI_PM_PORT, layout.ACPI_PM_PORT_COUNT, pm)
  ports.add(layout.DEBUG_EXIT_PORT, layout.DEBUG_EXIT_PORT_COUNT, new DebugExit(code => events.debugExit(code)))
  if (fwCfg) ports.add(layout.FW_CFG_PORT, layout.FW_CFG_PORT_COUNT, fwCfg)
  const mmio = new Bus()
  const virtio = new VirtioBus(vm, memory, mmio, peripherals)
  const stateful = { com1: uart, rtc, 'acpi-pm': pm, ...(fwCfg && { 'fw-cfg': fwCfg }), ...virtio.stateful }
  return { ports, mmio, uart, pm, rtc, console, virtio, stateful }
}

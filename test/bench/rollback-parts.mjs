/**
 * Where the time of `machine.rollback()` goes, by clocks put around methods of the package's own classes: a part begins
 * where such a method is called, or comes back, and lasts until the next begins.
 */
import { AcpiPm } from '../../dist/devices/acpi-pm.js'
import { Uart16550 } from '../../dist/devices/uart16550.js'
import { GuestRegion } from '../../dist/kvm/guest-region.js'

/** @type {Record<string, number[]>} */
const taken = { 'around it': [], 'dirty log': [], pages: [], devices: [], 'VM state': [], 'vCPU state': [] }
let part = 'around it'
let since = 0

/** @param {string} next */
function begin(next) {
  const now = performance.now()
  taken[part].push((now - since) * 1e3)
  part = next
  since = now
}

/**
 * @param {object} prototype
 * @param {string} method
 * @param {{ before?: string, after?: string }} parts
 */
function clock(prototype, method, { before, after }) {
  const methods = /** @type {Record<string, (...args: unknown[]) => unknown>} */ (prototype)
  const original = methods[method]
  methods[method] = function (...args) {
    if (before) begin(before)
    const result = original.apply(this, args)
    if (after) begin(after)
    return result
  }
}

/** To be called once, when nothing more is to be measured without. */
export function putClocks() {
  taken[part].length = 0
  clock(GuestRegion.prototype, 'takeWritten', { before: 'dirty log' })
  clock(GuestRegion.prototype, 'rollback', { before: 'pages' })
  clock(Uart16550.prototype, 'loadState', { before: 'devices' })
  clock(AcpiPm.prototype, 'loadState', { after: 'VM state' })
  // What comes last before the vCPUs.
  clock(AcpiPm.prototype, 'advance', { after: 'vCPU state' })
}

export function start() {
  part = 'around it'
  since = performance.now()
}

export function end() {
  begin('around it')
}

export function medians() {
  const middle = (/** @type {number[]} */ list) => list.toSorted((a, b) => a - b)[list.length >> 1]
  return Object.fromEntries(Object.entries(taken).map(([name, list]) => [name, middle(list)]))
}

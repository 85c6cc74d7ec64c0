import { addon } from './binding.js'

/**
 * Whether this JS thread, when it wakes up, leaves a busy processor to who has it, until that one sleeps or has had its turn (SCHED_BATCH), or
 * takes it at once (SCHED_OTHER, which it has at first). Where another policy was set, by `chrt` say, that one stays.
 * @returns what holds now
 */
export function setBatch(on: boolean): boolean {
  return addon.setBatch(on)
}

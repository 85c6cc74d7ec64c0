import { readFileSync } from 'node:fs'

/** Scheduling policies, as sched(7) and field 41 of /proc/pid/stat have them. */
export const [OTHER, BATCH] = [0, 3]

/** That of a thread of this process: of the one that asks, if none is named. */
export function policyOf(tid = thisThread()): number {
  const stat = readFileSync(`/proc/self/task/${tid}/stat`, 'latin1')
  // Behind the name, which may have anything in it, is field 3.
  return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[41 - 3])
}

export function thisThread(): string {
  return readFileSync('/proc/thread-self/stat', 'latin1').split(' ')[0]!
}

import { dirname } from 'node:path'

/** What a command needs to find its way and its settings. Everything else of ours stays here, secrets among it. */
const TAKEN =
  /^(PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|XDG_CACHE_HOME|TZ|TERM|COLORTERM|NO_COLOR|FORCE_COLOR|COLUMNS|CI|DEBUG)$/
const TAKEN_PREFIX = /^(NODE|npm|VITEST|NESTED_KVM)_/

/** Where commands are in the lab that this machine may not have, or not where a PATH leads to: `nested-kvm` is one. */
export const LAB_COMMANDS = '/run/nested-kvm-lab/commands'

/**
 * The environment of a command in the lab: the parts of `ours` that concern commands, this `nested-kvm` and `node` first in its PATH, its
 * temporary directory, and `NESTED_KVM_LAB`, which names the extension (`svm` or `vmx`) so that a program can tell where it is.
 */
export function labEnvironment(ours: NodeJS.ProcessEnv, node: string, vendor: string): Record<string, string> {
  const taken = Object.entries(ours).filter(
    (entry): entry is [string, string] =>
      entry[1] !== undefined && (TAKEN.test(entry[0]) || TAKEN_PREFIX.test(entry[0])),
  )
  const path = [LAB_COMMANDS, dirname(node), ours.PATH || '/usr/local/bin:/usr/bin:/bin'].join(':')
  return { ...Object.fromEntries(taken), PATH: path, TMPDIR: '/tmp', NESTED_KVM_LAB: vendor }
}

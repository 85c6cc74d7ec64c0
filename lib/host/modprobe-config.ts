import type { HostSystem } from './system.js'

/** Where modprobe looks, in this order (modprobe.d(5)): a file hides those of its name in later directories. */
const DIRECTORIES = [
  '/etc/modprobe.d',
  '/run/modprobe.d',
  '/usr/local/lib/modprobe.d',
  '/usr/lib/modprobe.d',
  '/lib/modprobe.d',
]

/** Where administrators' own options are. */
export const CONFIG_DIRECTORY = DIRECTORIES[0]!
/** The one file that is ours. */
export const CONFIG_FILE = `${CONFIG_DIRECTORY}/nested-kvm.conf`

/** A place that sets a module's option at every boot. */
export interface OptionPlace {
  /** As in `/etc/modprobe.d/kvm.conf:3`. */
  readonly place: string
  readonly path: string
  readonly value: string
}

/** Every place but our own file that sets `name` of a module: modprobe's files, and the kernel's command line. */
export function optionPlaces(system: HostSystem, module: string, name: string): OptionPlace[] {
  const places: OptionPlace[] = []
  const seen = new Set<string>()
  // /lib is a link to /usr/lib on most hosts.
  const directories = system.link('/lib') === undefined ? DIRECTORIES : DIRECTORIES.slice(0, -1)
  for (const directory of directories) {
    for (const file of system
      .list(directory)
      .filter(file => file.endsWith('.conf'))
      .sort()) {
      const path = `${directory}/${file}`
      if (seen.has(file)) continue
      seen.add(file)
      if (path === CONFIG_FILE) continue
      for (const { line, words } of configLines(system.read(path) ?? '')) {
        const value = optionIn(words, module, name)
        if (value !== undefined) places.push({ place: `${path}:${line}`, path, value })
      }
    }
  }
  const path = '/proc/cmdline'
  for (const word of (system.read(path) ?? '').trim().split(/\s+/)) {
    const [left, value = '1'] = word.split('=')
    const [prefix, option] = left!.split('.')
    if (option !== name || !isModule(prefix!, module)) continue
    places.push({ place: `the kernel's command line`, path, value })
  }
  return places
}

/**
 * The text of our file with `name` of the module set to `value`. What else is in it stays; once it is set, nothing changes.
 */
export function withOption(text: string | undefined, module: string, name: string, value: string): string {
  const wanted = `${name}=${value}`
  if (text === undefined)
    return `# Written by nested-kvm host --persist. It is read by modprobe(8).\noptions ${module} ${wanted}\n`
  let found = false
  const lines = text.split('\n').map(line => {
    const words = line.trim().split(/\s+/)
    if (optionIn(words, module, name) === undefined) return line
    found = true
    return words.map(word => (word === name || word.startsWith(`${name}=`) ? wanted : word)).join(' ')
  })
  if (found) return lines.join('\n')
  return `${text.replace(/\n*$/, text.trim() === '' ? '' : '\n')}options ${module} ${wanted}\n`
}

/** Lines of a modprobe.d file: comments left out, continued ones put together. */
function configLines(text: string): { line: number; words: string[] }[] {
  const found: { line: number; words: string[] }[] = []
  const lines = text.split('\n')
  for (let i = 0; i < lines.length; i++) {
    const line = i + 1
    let whole = lines[i]!
    while (whole.endsWith('\\') && i + 1 < lines.length) whole = `${whole.slice(0, -1)} ${lines[++i]!}`
    const words = whole.trim().split(/\s+/)
    if (!words[0]!.startsWith('#')) found.push({ line, words })
  }
  return found
}

/** The value that a line gives an option: the last one, as for modprobe; a name alone switches a boolean on. */
function optionIn(words: readonly string[], module: string, name: string): string | undefined {
  if (words[0] !== 'options' || !isModule(words[1] ?? '', module)) return undefined
  const word = words.slice(2).findLast(word => word === name || word.startsWith(`${name}=`))
  return word === undefined ? undefined : word === name ? '1' : word.slice(name.length + 1)
}

/** `kvm-amd` and `kvm_amd` are the same module. */
function isModule(text: string, module: string): boolean {
  return text.replaceAll('-', '_') === module
}

import { type Checker, check, type Examined } from './check.js'

/** Huge pages: transparent ones, and the pool of hugetlbfs. */
export const hugePages: Checker = ({ system }) => {
  const title = 'huge pages'
  const mode = /\[(\w+)\]/.exec(system.read('/sys/kernel/mm/transparent_hugepage/enabled') ?? '')?.[1]
  const meminfo = system.read('/proc/meminfo') ?? ''
  const [total, free] = ['HugePages_Total', 'HugePages_Free'].map(
    name => new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(meminfo)?.[1],
  )
  const pool = total === undefined ? 'no pool' : `pool ${free} of ${total} free`
  const detail = `transparent: ${mode ?? 'not in this kernel'}; ${pool}`
  if (mode !== 'never') return check('huge-pages', title, mode === undefined ? 'info' : 'pass', detail)
  const remedy = ['echo madvise > /sys/kernel/mm/transparent_hugepage/enabled']
  return check('huge-pages', title, 'warn', `${detail}; guests run on small pages, and L2 on smaller gains`, remedy)
}

const LEAST_FILES = 1024

/** What a machine with many devices or locked memory runs into. */
export const limits: Checker = ({ system }) => {
  const title = 'limits'
  const text = system.read('/proc/self/limits')
  const soft = (name: string) => new RegExp(`^${name}\\s+(\\S+)`, 'm').exec(text ?? '')?.[1]
  const [files, locked] = [soft('Max open files'), soft('Max locked memory')]
  if (files === undefined) return check('limits', title, 'unknown', '/proc/self/limits cannot be read')
  const memory = locked && /^\d+$/.test(locked) ? `${Math.floor(Number(locked) / 1024)} KiB` : (locked ?? '?')
  const detail = `${files} open files, ${memory} of locked memory`
  if (files === 'unlimited' || Number(files) >= LEAST_FILES) return check('limits', title, 'pass', detail)
  return check('limits', title, 'warn', detail, [`ulimit -n ${LEAST_FILES}`])
}

/** A system-call filter or container around this process: they may withhold the device or the ioctls. */
export const confinement: Checker = host => {
  const title = 'confinement'
  const mode = /^Seccomp:\s*(\d)/m.exec(host.system.read('/proc/self/status') ?? '')?.[1]
  const seccomp =
    { 0: 'no seccomp filter', 1: 'strict seccomp', 2: 'a seccomp filter' }[Number(mode)] ?? 'seccomp unknown'
  const container = containerOf(host)
  const detail = `${seccomp}, ${container ? `container (${container})` : 'no container'}`
  if (host.facts.device.permitted)
    return check('confinement', title, mode === '0' && !container ? 'pass' : 'info', detail)
  if (!container) return check('confinement', title, mode === '2' ? 'warn' : 'info', detail)
  return check('confinement', title, 'warn', detail, ['start the container with: --device /dev/kvm'])
}

/** By the marks that container runtimes leave. */
function containerOf({ system }: Examined): string | undefined {
  const named = /(?:^|\0)container=([^\0]+)/.exec(system.read('/proc/1/environ') ?? '')?.[1]
  if (named) return named
  const systemd = system.read('/run/systemd/container')?.trim()
  if (systemd) return systemd
  if (system.owner('/run/.containerenv')) return 'podman'
  return system.owner('/.dockerenv') ? 'docker' : undefined
}

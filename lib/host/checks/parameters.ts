import { type Checker, check } from './check.js'

/** These cost time where they are on. */
const SLOWING = ['nx_huge_pages', 'vmentry_l1d_flush']

const isOff = (value: string | null) => value === 'N' || value === '0'

/** Nested paging of L0: L1 has none without it, and both levels are shadowed. */
export const paging: Checker = ({ parameters }) => {
  const title = 'nested paging'
  const found = parameters.filter(({ name }) => name === 'ept' || name === 'npt')
  if (found.length === 0) return check('paging', title, 'unknown', 'no loaded module tells')
  const detail = found.map(({ module, name, value }) => `${module} ${name}=${value ?? '?'}`).join(', ')
  const off = found.filter(({ value }) => isOff(value))
  if (off.length === 0) return check('paging', title, 'pass', detail)
  const remedy = off.map(({ module, name }) => `modprobe -r ${module}; modprobe ${module} ${name}=1`)
  return check('paging', title, 'warn', `${detail}: guests in guests are many times slower`, remedy)
}

/** Further parameters that make L2 slower as they are. */
export const speed: Checker = ({ parameters }) => {
  const apart = [...SLOWING, 'ept', 'npt']
  const off = parameters.filter(
    ({ nesting, name, value }) => nesting === 'speed' && isOff(value) && !apart.includes(name),
  )
  const title = 'speed of L2'
  if (parameters.length === 0) return check('speed', title, 'unknown', 'the modules have no parameters here')
  if (off.length === 0) return check('speed', title, 'pass', 'what makes it quicker is on')
  return check('speed', title, 'info', `off, or not in this processor: ${off.map(({ name }) => name).join(', ')}`)
}

import { readFileSync } from 'node:fs'
import { ConfigError, KvmError } from '../errors.js'
import { HUGETLB_PAGE } from '../kvm/guest-region.js'

const POOL = '/sys/kernel/mm/hugepages/hugepages-2048kB'

/** What an error of making a machine's memory of huge pages says to whoever asked for them; another one stays what it is. */
export function aboutHugetlb(error: unknown, memory: number): unknown {
  if (!(error instanceof KvmError) || !error.ioctl.endsWith('of huge pages')) return error
  const needed = memory / HUGETLB_PAGE
  const pool = readPool()
  if (!pool) {
    return new ConfigError(
      'hugePages',
      'hugetlb',
      'this kernel has no pool of pages of 2 MiB',
      "give 'auto' or 'always'",
    )
  }
  const problem = `${memory / 2 ** 20}M need ${needed} huge pages of 2 MiB, and of the pool's ${pool.all} there are ${pool.free} free`
  const more = pool.all + Math.max(needed - pool.free, 0)
  return new ConfigError(
    'hugePages',
    'hugetlb',
    problem,
    `make it larger, as root: echo ${more} > ${POOL}/nr_hugepages`,
  )
}

/** The pool's pages, and those of them that are neither in use nor reserved; undefined where there is none. */
function readPool(): { readonly all: number; readonly free: number } | undefined {
  const count = (name: string) => Number(readFileSync(`${POOL}/${name}`, 'utf8'))
  try {
    return { all: count('nr_hugepages'), free: count('free_hugepages') - count('resv_hugepages') }
  } catch {
    return undefined
  }
}

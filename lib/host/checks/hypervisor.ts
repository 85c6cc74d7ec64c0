import { type Checker, check } from './check.js'

/** What this host itself runs under, and what its operator can do. */
export const outer: Checker = ({ facts, hypervisor }) => {
  const title = 'runs under'
  if (hypervisor === null) return check('hypervisor', title, 'pass', 'no hypervisor (CPUID shows none)')
  const told = hypervisor.signatures.map(text => JSON.stringify(text)).join(', ')
  const name = `${hypervisor.name ?? 'an unknown hypervisor'}${told ? ` (${told})` : ''}`
  if (facts.cpu.length > 0) return check('hypervisor', title, 'pass', `${name}, which gives it ${facts.cpu.join(', ')}`)
  return check('hypervisor', title, 'fail', `${name}, which gives it neither vmx nor svm`, hypervisor.remedy)
}

import { type Checker, check } from './check.js'

/**
 * The kernel's version against what nested state needs. For people only: whether it is there, `nested-state` asks KVM.
 * Linux: Documentation/virt/kvm/x86/running-nested-guests.rst, "Live migration with nested KVM".
 */
export const kernel: Checker = ({ facts }) => {
  const release = facts.kernel
  if (release === null) return check('kernel', 'kernel', 'unknown', 'its release cannot be read')
  const [major = 0, minor = 0] = release.split('.').map(Number.parseFloat)
  const least = (a: number, b: number) => major > a || (major === a && minor >= b)
  if (facts.cpu.includes('svm')) {
    const note = "the kernel's document warns of saving AMD's L2s; this project's tests do it on 6.1"
    return check(
      'kernel',
      'kernel',
      least(6, 1) ? 'info' : 'warn',
      `${release}: ${note}`,
      least(6, 1) ? [] : ['run 6.1 or newer to save an L2 that runs'],
    )
  }
  if (!facts.cpu.includes('vmx')) return check('kernel', 'kernel', 'info', release)
  if (least(5, 3)) return check('kernel', 'kernel', 'pass', `${release}: saves an L2 that runs (since 5.3)`)
  return check('kernel', 'kernel', 'warn', `${release}: too old to save a running L2`, ['run Linux 5.3 or newer'])
}

import { moduleOf } from '../modules.js'
import { type Checker, check } from './check.js'

/** What KVM offers to guests: what the verdict rests on. */
export const offer: Checker = ({ facts }) => {
  const { offered, cpu } = facts
  const title = 'offered to guests'
  if (offered === null) return check('offer', title, 'unknown', 'KVM cannot be asked')
  if (offered.length > 0) return check('offer', title, 'pass', offered.join(', '))
  const remedy = cpu[0] ? [`nested-kvm host enable-nested   (as root; ${moduleOf[cpu[0]]} nested=1)`] : []
  return check('offer', title, 'fail', 'neither vmx nor svm', remedy)
}

/** Whether a vCPU can be saved while its L2 runs. */
export const nestedState: Checker = ({ facts }) => {
  const title = 'nested state'
  const bytes = facts.nestedStateBytes
  if (bytes === null) return check('nested-state', title, 'unknown', 'KVM cannot be asked')
  if (bytes > 0) return check('nested-state', title, 'pass', `up to ${bytes} bytes (KVM_CAP_NESTED_STATE)`)
  const status = facts.offered?.length ? 'warn' : 'fail'
  const remedy = facts.offered?.length ? ['run a newer kernel to save a machine with its L2'] : []
  return check('nested-state', title, status, 'none (KVM_CAP_NESTED_STATE is 0)', remedy)
}

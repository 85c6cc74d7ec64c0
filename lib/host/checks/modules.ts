import { isOn, moduleOf } from '../modules.js'
import { describeUsers } from '../users.js'
import { type Checker, check } from './check.js'

const NESTING: readonly string[] = Object.values(moduleOf)

/** The vendor module: which, and whether it is one that can nest at all. */
export const vendor: Checker = ({ facts }) => {
  const { vendor } = facts.modules
  const title = 'vendor module'
  if (vendor.length === 0) return check('module', title, facts.device.present ? 'unknown' : 'fail', 'none is loaded')
  const names = vendor.join(', ')
  if (vendor.some(name => NESTING.includes(name))) return check('module', title, 'pass', names)
  if (facts.offered?.length) return check('module', title, 'info', `${names}, not known here, but it nests`)
  const remedy = ['it drives guests without vmx or svm: only another host, or the lab, nests']
  return check('module', title, 'fail', `${names}, which has no nested virtualization`, remedy)
}

/** The parameter `nested`. */
export const nested: Checker = ({ facts }) => {
  const title = 'parameter nested'
  const values = Object.entries(facts.modules.nested)
  if (values.length === 0) {
    const status = facts.offered?.length ? 'info' : facts.cpu.length > 0 ? 'unknown' : 'fail'
    return check('nested', title, status, 'no loaded module has it')
  }
  const detail = values.map(([module, value]) => `${module} ${value}`).join(', ')
  if (values.some(([, value]) => isOn(value))) return check('nested', title, 'pass', detail)
  return check('nested', title, 'fail', detail, ['nested-kvm host enable-nested --persist   (as root)'])
}

/** Who keeps the modules from being reloaded. */
export const users: Checker = ({ system, users }) => {
  const title = 'in use by'
  if (users.length > 0) return check('users', title, 'info', describeUsers(users))
  if (system.uid === 0) return check('users', title, 'info', 'no process')
  return check('users', title, 'unknown', "no process of this user's; others are seen by root only")
}

import { moduleOf } from '../modules.js'
import { idName, permissionCommands } from '../permissions.js'
import { type Checker, check } from './check.js'

/** The device, who may open it, and the group for that. */
export const device: Checker = ({ system, facts }) => {
  const { path, present, permitted, problem } = facts.device
  const load = facts.cpu.map(extension => `modprobe ${moduleOf[extension]}`)
  if (!present) return check('device', path, 'fail', problem ?? 'missing', load)
  const owner = system.owner(path)
  const mode = owner ? (owner.mode & 0o777).toString(8).padStart(4, '0') : '?'
  const group = owner ? idName(system, '/etc/group', owner.gid) : '?'
  const whose = `group ${group}, mode ${mode}`
  if (!permitted)
    return check('device', path, 'fail', `not permitted to this user (${whose})`, permissionCommands(system))
  if (facts.apiVersion === null) return check('device', path, 'fail', problem ?? 'it does not answer')
  return check('device', path, 'pass', `KVM API ${facts.apiVersion}; ${whose}`)
}

import type { HostSystem } from './system.js'

/** What lets this user open /dev/kvm. */
export function permissionCommands(system: HostSystem): string[] {
  const owner = system.owner('/dev/kvm')
  const user = idName(system, '/etc/passwd', system.uid)
  // 020 and 040: what the owning group may do. gid 0 is root's, which nobody should be added to.
  if (owner && (owner.mode & 0o060) === 0o060 && owner.gid !== 0) {
    return [`usermod -aG ${idName(system, '/etc/group', owner.gid)} ${user}`, 'log out and in again']
  }
  return ['chgrp kvm /dev/kvm', 'chmod 660 /dev/kvm', `usermod -aG kvm ${user}`, 'log out and in again']
}

/** The name of a user or group id in passwd(5) or group(5), or the id itself. */
export function idName(system: HostSystem, file: string, id: number): string {
  const line = (system.read(file) ?? '').split('\n').find(entry => entry.split(':')[2] === String(id))
  return line?.split(':')[0] ?? String(id)
}

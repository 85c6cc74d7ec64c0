import { ConfigError } from '../errors.js'

/** A machine's vsock, as a user gives it. */
export interface VsockOptions {
  /** The guest's context id, from 3 on. Default: 3. */
  readonly cid?: number | undefined
  /**
   * A Unix socket, made for other processes: who connects writes `CONNECT port`; what the guest connects to a port of the host goes to the
   * socket `path_port` (Firecracker's convention). Default: none, only this process has streams.
   */
  readonly path?: string | null | undefined
}

/** A vsock, complete and checked. */
export interface VsockConfig {
  readonly cid: number
  readonly path: string | null
}

const KEYS = ['cid', 'path']
/** 0 to 2 are the hypervisor, the guest itself and the host; all ones is any (Linux: vm_sockets.h). */
const [FIRST_CID, LAST_CID] = [3, 0xffff_fffe]

/**
 * Checks the vsock of a machine and fills in the defaults. The socket is not looked at.
 * @throws {ConfigError} naming the field, its value and what to do
 */
export function parseVsock(value: unknown): VsockConfig | null {
  if (value === undefined || value === null) return null
  if (typeof value !== 'object') throw new ConfigError('vsock', value, 'it is no object', 'give { path: "v.sock" }')
  const { cid = FIRST_CID, path = null, ...others } = value as Record<string, unknown>
  const [unknown] = Object.keys(others)
  if (unknown !== undefined) {
    const problem = 'there is no such field'
    throw new ConfigError(`vsock.${unknown}`, others[unknown], problem, `the fields are ${KEYS.join(', ')}`)
  }
  if (typeof cid !== 'number' || !Number.isInteger(cid) || cid < FIRST_CID || cid > LAST_CID) {
    throw new ConfigError('vsock.cid', cid, "it is no guest's context id", `give one from ${FIRST_CID} to ${LAST_CID}`)
  }
  if (path !== null && (typeof path !== 'string' || path === '' || path.includes('\0'))) {
    throw new ConfigError('vsock.path', path, 'it is no path', 'give the path of a socket to be made')
  }
  return { cid, path }
}

/**
 * The configuration with another socket; undefined leaves it as it is.
 * @throws {ConfigError} there is no vsock, or it is no path
 */
export function withVsockPath<C extends { readonly vsock: VsockConfig | null }>(
  config: C,
  path: string | null | undefined,
): C {
  if (path === undefined) return config
  if (!config.vsock) throw new ConfigError('vsockPath', path, 'the machine has no vsock', 'leave it out')
  return { ...config, vsock: parseVsock({ ...config.vsock, path }) }
}

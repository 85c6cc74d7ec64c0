import type { Duplex } from 'node:stream'
import type { VsockConnection } from '../devices/virtio/vsock/connection.js'
import type { VirtioVsock } from '../devices/virtio/vsock/vsock.js'
import { ConfigError } from '../errors.js'
import type { VsockSocket } from './vsock-socket.js'

export interface VsockConnectOptions {
  /** Gives it up; its reason is thrown. Without one it waits for as long as the guest does not answer. */
  readonly signal?: AbortSignal
}

/** Takes the guest's connections to one port of the host, until it is closed. */
export interface VsockListener {
  readonly port: number
  close(): void
  [Symbol.dispose](): void
}

type OnConnection = (stream: Duplex) => void

/**
 * The host's side of a machine's vsock. Streams are reset when the guest resets the device, when the machine ends, and on a rollback; a
 * restored or forked machine starts without any, and its guest is told so. While the machine is paused they wait.
 */
export class Vsock {
  /** The guest's context id. */
  readonly cid: number
  readonly #socket: VsockSocket | undefined
  readonly #listeners = new Map<number, OnConnection>()
  #device!: VirtioVsock

  /** @internal */
  constructor(cid: number, socket: VsockSocket | undefined) {
    this.cid = cid
    this.#socket = socket
  }

  /** @internal */
  attach(device: VirtioVsock): void {
    this.#device = device
    this.#socket?.serve((port, signal) => device.connect(port, signal))
  }

  /** The Unix socket for other processes (Firecracker's convention), if there is one. */
  get path(): string | undefined {
    return this.#socket?.path
  }

  /**
   * Connects to a service that listens in the guest (VMADDR_CID_ANY, `port`).
   * @throws {GuestError} nobody listens there, or the guest has no driver (yet)
   */
  async connect(port: number, { signal }: VsockConnectOptions = {}): Promise<Duplex> {
    return this.#device.connect(checkPort(port), signal)
  }

  /**
   * Takes what the guest connects to `port` of the host (VMADDR_CID_HOST); it goes before the Unix socket of that port.
   * @throws {ConfigError} there is a listener already
   */
  listen(port: number, onConnection: OnConnection): VsockListener {
    if (this.#listeners.has(checkPort(port))) {
      throw new ConfigError('port', port, 'somebody listens there', 'give another one, or close that listener')
    }
    this.#listeners.set(port, onConnection)
    const close = () => {
      if (this.#listeners.get(port) === onConnection) this.#listeners.delete(port)
    }
    return { port, close, [Symbol.dispose]: close }
  }

  /** @internal The guest connects to `connection.hostPort`. */
  request(connection: VsockConnection): void {
    const listener = this.#listeners.get(connection.hostPort)
    if (listener) {
      connection.accept()
      listener(connection)
    } else if (this.#socket) this.#socket.forward(connection)
    else connection.destroy()
  }

  /** @internal */
  async close(): Promise<void> {
    await this.#socket?.close()
  }
}

function checkPort(port: number): number {
  // VMADDR_PORT_ANY is none.
  if (Number.isInteger(port) && port >= 0 && port < 2 ** 32 - 1) return port
  throw new ConfigError('port', port, 'it is no port', 'give a number from 0 to 4294967294')
}

import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, it, onTestFinished } from 'vitest'
import { ensureAssets } from '../../lib/lab/assets.js'
import { Machine } from '../../lib/machine/machine.js'
import { BRIDGE, GUEST, HOST, ip, makeBridge } from './bridge.js'
import { BOOT, linuxMachine } from './linux.js'

const MODULES = ['virtio_mmio', 'virtio_net']
const LONG = { timeout: 600_000 }

/** What is sent to whoever connects, and what came from them. */
async function serve(address: string, data: Buffer): Promise<{ port: number; received: Promise<Buffer> }> {
  const server: Server = createServer()
  server.listen(0, address)
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  const received = once(server, 'connection').then(async ([socket]: Socket[]) => {
    socket!.end(data)
    const chunks: Buffer[] = []
    for await (const chunk of socket!) chunks.push(chunk)
    return Buffer.concat(chunks)
  })
  return { port: (server.address() as AddressInfo).port, received }
}

const sha256 = (data: Uint8Array) => createHash('sha256').update(data).digest('hex')

it('a guest on a bridge pings the host and streams TCP both ways, also where a snapshot goes on', LONG, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-net-'))
  onTestFinished(() => rm(directory, { recursive: true }))
  await makeBridge()
  const data = randomBytes(2 << 20)
  const { busybox } = await ensureAssets(['busybox'])
  const { port, received } = await serve(HOST, data)
  const script = `
busybox ifconfig eth0 ${GUEST} up
echo mac $(cat /sys/class/net/eth0/address) up $(cat /sys/class/net/eth0/carrier)
busybox ping -c 3 -i 0.2 ${HOST}
busybox nc ${HOST} ${port} < /bin/busybox | busybox sha256sum
echo went on
lost=0
# What was on its way when the machine was saved is lost.
while [ $lost -lt 3 ]; do
  if busybox ping -c 1 -W 2 ${HOST} > /dev/null; then lost=0; echo pong; usleep 200000; else lost=$((lost + 1)); fi
done
echo no answer
sleep 1000`
  const first = await linuxMachine(script, { nets: [{ type: 'tap', bridge: BRIDGE }], modules: MODULES })
  onTestFinished(() => first.stop())
  await first.start()
  await first.console.expect(`mac ${first.config.nets[0]!.mac} up 1`, BOOT)
  await first.console.expect(/3 packets transmitted, 3 packets received/, BOOT)
  await first.console.expect(sha256(data), BOOT)
  expect(sha256(await received)).toBe(sha256(await readFile(busybox.program)))
  await first.console.expect('pong', BOOT)

  await first.pause()
  await first.snapshot(join(directory, 'snapshot'))
  const twin = await first.fork()
  onTestFinished(() => twin.stop())
  await twin.resume()
  await twin.console.expect('no answer', BOOT)
  await twin.stop()
  await first.stop()
  const second = await Machine.restore(join(directory, 'snapshot'))
  onTestFinished(() => second.stop())
  await second.resume()
  for (let i = 0; i < 3; i++) await second.console.expect('pong', BOOT)
  await second.stop()
  ip(`link del ${BRIDGE}`)
  await expect(Machine.restore(join(directory, 'snapshot'))).rejects.toThrow(/nets\[0\].bridge: .*ip link add nkbr0/)
  ip(`link add ${BRIDGE} type bridge`)
})

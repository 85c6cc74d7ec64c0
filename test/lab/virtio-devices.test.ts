import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { expect, it, onTestFinished } from 'vitest'
import { programFiles } from '../../lib/boot/program-files.js'
import { Machine } from '../../lib/machine/machine.js'
import { BOOT, linuxMachine } from './linux.js'

/**
 * A guest's program with sockets of AF_VSOCK (40), in what each Debian has: `listen PORT` answers one connection, `connect PORT` makes one.
 * Both send what they read back, with its letters upper case, until its end.
 */
const PERL = `
my ($how, $port) = @ARGV;
socket(my $s, 40, 1, 0) or die "socket: $!";
sub address { pack('SSLLx4', 40, 0, $_[1], $_[0]) }
if ($how eq 'listen') {
  bind($s, address(0xffffffff, $port)) or die "bind: $!";
  listen($s, 8) or die "listen: $!";
  print "listening\\n";
  accept(my $c, $s) or die "accept: $!";
  $s = $c;
} else {
  print connect($s, address(2, $port)) ? "connected\\n" : "refused: $!\\n";
}
my $n = 0;
while (my $got = sysread($s, my $data, 65536)) {
  $n += $got;
  for (my $at = 0; $at < $got; ) { $at += syswrite($s, uc($data), $got - $at, $at) or last }
}
print "end after $n: $!\\n";
`

// The console stays open from the start: at its last close the kernel drops what was typed, and echoes again.
const SCRIPT = `
exec 3<> /dev/hvc0
dd if=/dev/hwrng bs=64 count=4 2> /dev/null | cat > /tmp-random
echo "random=$(dd if=/tmp-random bs=1 2> /dev/null | md5sum | head -c 32)." "bytes=$(cat /tmp-random | wc -c)." >&3
while [ "$(stty size <&3)" != "43 132" ]; do usleep 100000; done
# Each character that is typed and shown again would be a packet of its own.
stty -echo <&3
vsock() { /usr/bin/perl /vsock.pl "$@"; }
echo "sized" >&3
while read -r line; do
  echo "doing $line" >&3
  eval "$line" < /dev/null >&3 2>&1
done <&3`

async function machineWithDevices(path: string, image: string): Promise<Machine> {
  const perl = await programFiles('/usr/bin/perl')
  return linuxMachine(SCRIPT, {
    modules: ['virtio_mmio', 'virtio_blk', 'virtio_console', 'virtio_rng', 'vmw_vsock_virtio_transport'],
    files: [...perl, { type: 'file', path: '/vsock.pl', data: PERL }],
    console: 'virtio',
    disks: [{ path: image, snapshot: true }],
    vsock: { path },
    vcpus: 2,
  })
}

async function text(stream: Readable): Promise<string> {
  let all = ''
  for await (const chunk of stream) all += String(chunk)
  return all
}

const forTest = <T extends { destroy(): void }>(stream: T): T => {
  onTestFinished(() => void stream.destroy())
  return stream
}

it('disk, entropy, console and sockets of a Linux guest work, and go on in a restored machine', {
  timeout: 900_000,
}, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'nested-kvm-devices-'))
  onTestFinished(() => rm(directory, { recursive: true }))
  const path = join(directory, 'v.sock')
  const image = join(directory, 'disk.img')
  const content = randomBytes(1 << 20)
  await writeFile(image, content)
  await using machine = await machineWithDevices(path, image)
  machine.console.resize(132, 43)
  await machine.start()

  // rng and console
  const [random] = (await machine.console.expect(/random=(\w{32})\. bytes=256\./, BOOT)).groups
  expect(random).not.toBe('d41d8cd98f00b204e9800998ecf8427e')
  await machine.console.expect('sized', BOOT)
  const run = (command: string) => void machine.console.write(`${command}\n`)
  const expectText = (pattern: string | RegExp, on = machine) => on.console.expect(pattern, BOOT)

  // disk
  const md5 = (bytes: Uint8Array) => createHash('md5').update(bytes).digest('hex')
  const sum = (on = machine) => {
    on.console.write('md5sum < /dev/vda\n')
    return on.console.expect(/^(\w{32}) {2}-/m, BOOT).then(({ groups }) => groups[0])
  }
  expect(await sum()).toBe(md5(content))
  run('dd if=/dev/zero of=/dev/vda bs=4096 seek=3 count=2 conv=notrunc,fsync')
  await expectText(/2\+0 records out/)
  const written = Buffer.from(content).fill(0, 12288, 20480)
  expect(await sum()).toBe(md5(written))

  // host to guest, by the library and by the Unix socket
  await expect(machine.vsock.connect(1000)).rejects.toThrow(/refused a connection to its port 1000/)
  run('vsock listen 1000')
  await expectText(/listening/)
  const stream = forTest(await machine.vsock.connect(1000))
  const big = 'some text, '.repeat(100_000)
  stream.end(big)
  expect(await text(stream)).toBe(big.toUpperCase())
  await expectText(/end after 1100000: /)

  run('vsock listen 1001')
  await expectText(/listening/)
  const client = forTest(connect({ path, allowHalfOpen: true }))
  client.end('CONNECT 1001\nhello')
  expect(await text(client)).toMatch(/^OK \d+\nHELLO$/)
  await expectText(/end after 5: /)

  // guest to host
  run('vsock connect 7')
  await expectText(/refused: Connection reset by peer/)
  const server = createServer({ allowHalfOpen: true }).listen(`${path}_7`)
  onTestFinished(() => void server.close())
  const accepted = once(server, 'connection') as Promise<[Socket]>
  run('vsock connect 7')
  const socket = forTest((await accepted)[0])
  socket.end('from the host')
  expect(await text(socket)).toBe('FROM THE HOST')
  await expectText(/end after 13: /)

  // A connection lives as long as its machine; a restored one tells its guest that it is gone.
  run('vsock listen 1002')
  await expectText(/listening/)
  const kept = forTest(await machine.vsock.connect(1002))
  const back = once(kept, 'data')
  kept.write('before')
  expect(String((await back)[0])).toBe('BEFORE')
  await machine.snapshot(join(directory, 'snap'))
  const again = once(kept, 'data')
  kept.write('after')
  expect(String((await again)[0])).toBe('AFTER')
  await machine.stop()

  await using restored = await Machine.restore(join(directory, 'snap'))
  restored.console.write('echo typed early\n')
  await restored.resume()
  // Whether the guest waited for data at the time, or asks for some next.
  await expectText(/end after 6: (Connection reset by peer|Transport endpoint is not connected)/, restored)
  await expectText(/doing echo typed early/, restored)
  // Its page cache came with it; what is read anew comes from the disk.
  restored.console.write('echo 3 > /proc/sys/vm/drop_caches\n')
  expect(await sum(restored)).toBe(md5(written))
  restored.console.write('vsock listen 1003\n')
  await expectText(/listening/, restored)
  const last = forTest(await restored.vsock.connect(1003))
  last.end('still there')
  expect(await text(last)).toBe('STILL THERE')
  expect(md5(await readFile(image))).toBe(md5(content))
})

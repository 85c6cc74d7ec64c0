import { dirname } from 'node:path'
import type { InitramfsEntry } from '../boot/initramfs.js'
import { CHANNELS, type Emulator, type Share } from './emulator.js'
import { LAB_COMMANDS } from './environment.js'
import type { KernelModule } from './modules.js'

/** Where the lab's own files are in the running guest: below a tmpfs, so nothing of the host is touched. */
const HOME = dirname(LAB_COMMANDS)

/** The busybox commands that the scripts use. */
export const APPLETS = [
  'sh',
  'cat',
  'chmod',
  'cp',
  'env',
  'grep',
  'hostname',
  'ifconfig',
  'insmod',
  'kill',
  'ln',
  'mkdir',
]
APPLETS.push('mkfifo', 'mount', 'poweroff', 'readlink', 'setsid', 'sleep', 'switch_root', 'sync', 'usleep')

/** What the lab's guest is made of. */
export interface GuestPlan {
  readonly busybox: string
  readonly modules: readonly KernelModule[]
  readonly emulator: Emulator
  /** The tag `root` is this machine's `/`; every other share is mounted at its path. */
  readonly shares: readonly Share[]
  /** Paths that a tmpfs of the guest would hide and that are to be seen all the same. */
  readonly visible: readonly string[]
  readonly command: readonly string[]
  /** What `nested-kvm` is in the guest: a program and its first arguments. */
  readonly nestedKvm: readonly string[]
  readonly cwd: string
  readonly env: Readonly<Record<string, string>>
  /** Whether the command's standard input is the `stdin` channel; it is empty otherwise. */
  readonly stdin: boolean
}

/** Directories that the guest has for itself; what this machine has there is not seen. */
export const GUEST_OWN_DIRECTORIES = ['/tmp', '/run', '/dev', '/proc', '/sys', '/var/tmp']

/** The initramfs of the lab's guest: busybox, the modules, and the scripts that turn it into a copy of this machine. */
export function guestFiles(plan: GuestPlan): InitramfsEntry[] {
  const nestedKvm = plan.nestedKvm.map(shellQuote).join(' ')
  const entries: InitramfsEntry[] = [
    { type: 'file', path: '/bin/busybox', source: plan.busybox, mode: 0o755 },
    ...APPLETS.map(name => ({ type: 'symlink' as const, path: `/bin/${name}`, target: 'busybox' })),
    ...['/proc', '/sys', '/dev', '/host', '/root'].map(path => ({ type: 'directory' as const, path })),
    { type: 'device', path: '/dev/console', kind: 'char', major: 5, minor: 1 },
    { type: 'file', path: '/init', data: initScript(plan), mode: 0o755 },
    { type: 'file', path: '/lab/session', data: sessionScript(plan), mode: 0o755 },
    { type: 'file', path: '/lab/command', data: commandScript(plan), mode: 0o755 },
    { type: 'file', path: '/lab/nested-kvm', data: `#!/bin/sh\nexec ${nestedKvm} "$@"\n`, mode: 0o755 },
  ]
  for (const { name, data } of plan.modules) entries.push({ type: 'file', path: `/modules/${name}.ko`, data })
  return entries
}

/** One word for the shell, whatever is in it. */
export function shellQuote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

/** The first script: loads modules, puts this machine's root file system in place and goes over to it. */
function initScript(plan: GuestPlan): string {
  const { emulator } = plan
  const insmod = plan.modules.map(({ name }) => {
    const parameters = name === emulator.kvmModule ? ` ${emulator.kvmParameters.join(' ')}` : ''
    return `insmod /modules/${name}.ko${parameters} || fail "module ${name} does not load"`
  })
  const mount = (share: Share, at: string) =>
    `mount ${emulator.mountWords(share)} ${shellQuote(at)} || fail ${shellQuote(`${share.path} cannot be mounted`)}`
  const root = plan.shares.find(({ tag }) => tag === 'root')!
  const others = plan.shares.filter(share => share !== root)
  const mounts = [
    ...plan.visible.map(path => ({
      path,
      line: `mount --bind ${shellQuote(`/host${path}`)} ${shellQuote(`/root${path}`)}`,
    })),
    ...others.map(share => ({ path: share.path, line: mount(share, `/root${share.path}`) })),
  ]
  // A directory is mounted before what is mounted below it.
  mounts.sort((a, b) => a.path.length - b.path.length)
  return `#!/bin/sh
export PATH=/bin
fail() { echo "nested-kvm lab: $*"; poweroff -f; }
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
${insmod.join('\n')}
${emulator.guestSetup}
${mount(root, '/host')}
mount --bind /host /root
for dir in /tmp /run; do mount -t tmpfs -o mode=1777 tmpfs /root$dir || fail "no place for $dir"; done
[ -d /root/var/tmp ] && mount -t tmpfs -o mode=1777 tmpfs /root/var/tmp
${mounts.map(({ path, line }) => `mkdir -p ${shellQuote(`/root${path}`)}\n${line}`).join('\n')}
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm /root${LAB_COMMANDS}
mount -t devpts -o mode=600,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr
cp -a /bin /lab/session /lab/command /root${HOME}
cp -a /lab/nested-kvm /root${LAB_COMMANDS}
exec switch_root /root ${HOME}/bin/sh ${HOME}/session
`
}

/**
 * The second script, process 1 of the guest: connects the channels, runs the command, tells its exit code. The command
 * talks to FIFOs, as it would to pipes under any other parent: the ports themselves can be opened only once.
 */
function sessionScript(plan: GuestPlan): string {
  const { emulator } = plan
  return `export PATH=${HOME}/bin
cd ${HOME}
fail() { echo "nested-kvm lab: $*"; poweroff -f; }
hostname nested-kvm-lab
ifconfig lo up
# What the command writes to this machine's files is not to sit in the guest: it may be ended at any time.
echo 100 > /proc/sys/vm/dirty_expire_centisecs
echo 50 > /proc/sys/vm/dirty_writeback_centisecs
${emulator.guestPort}
for name in ${CHANNELS.join(' ')}; do port $name; done
mkfifo in out err
# Signals arrive as lines, empty ones mean nothing; when the lab goes away so does the guest.
exec 3> $control
{
  while read -r signal; do
    [ -n "$signal" ] && [ -s pid ] && read -r pid < pid && kill -$signal -$pid
  done < $signals
  poweroff -f
} 2> /dev/null 3>&- &
reader=$!
cat < out > $stdout 3>&- &
out=$!
cat < err > $stderr 3>&- &
err=$!
${plan.stdin ? 'cat < $stdin > in 2> /dev/null 3>&- &' : ''}
echo ready >&3
# Not in the background, where a shell without job control would have it ignore SIGINT.
# In a subshell, or what this shell says of the command's end would go to the command's own standard error.
(exec ${HOME}/bin/sh command < ${plan.stdin ? 'in' : '/dev/null'} > out 2> err 3>&-)
status=$?
# What the command left behind would hold its output open for ever.
for dir in /proc/[0-9]*; do
  pid=\${dir#/proc/}
  case $pid in 1 | $reader | $out | $err) continue ;; esac
  readlink $dir/exe > /dev/null && kill -KILL $pid
done 2> /dev/null
wait $out $err
sync
echo "exit $status" >&3
poweroff -f
`
}

/**
 * Becomes the command, in a session of its own: a signal goes to the whole of it. The program is looked for here, since busybox
 * would take its own `ls` for this machine's.
 */
function commandScript(plan: GuestPlan): string {
  const [program, ...args] = plan.command.map(shellQuote)
  const environment = Object.entries(plan.env).map(([name, value]) => shellQuote(`${name}=${value}`))
  return `echo $$ > pid
cd ${shellQuote(plan.cwd)} || exit 126
program=${program}
case $program in
  */*) ;;
  *)
    name=$program
    program=
    IFS=:
    set -f
    path=${shellQuote(plan.env.PATH || '/usr/local/bin:/usr/bin:/bin')}
    for dir in $path; do
      [ -f "$dir/$name" ] && [ -x "$dir/$name" ] && program=$dir/$name && break
    done
    [ -z "$program" ] && echo "nested-kvm lab: $name: command not found" >&2 && exit 127
    ;;
esac
exec ${HOME}/bin/setsid ${HOME}/bin/env -i ${environment.join(' ')} "$program" ${args.join(' ')}
`
}

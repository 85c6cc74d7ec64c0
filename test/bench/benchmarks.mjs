/**
 * What is measured. Each names the program of ours and its baseline, mostly in C, both of which print one line
 * `{"value": number, "check": number}`: `value` is the measured time in `unit`, taken around the loop alone, and `check`
 * is made from what the guest sent, so that both are known to have done the same work. Ours may add `parts`: what its time
 * is made up of.
 *
 * @import { AssetKind } from 'nested-kvm'
 *
 * @typedef {object} Benchmark
 * @property {string} name
 * @property {string} what one line for the list
 * @property {string} unit
 * @property {number} target the most that ours may be of the baseline; with `absolute`, the most that it may be above it
 * @property {boolean} [absolute]
 * @property {number} [pairs] how often ours and the baseline are each run, 7 by default
 * @property {'svm' | 'vmx'} [lab] runs inside this lab: for it needs a KVM whose guests boot Linux, or a clock that counts instructions
 * @property {AssetKind[]} [assets] what is fetched beforehand: the lab has no network
 * @property {string} [prepare] file beside this one, run once before the trials with the directory for its output
 * @property {string} ours file beside this one
 * @property {string} baseline C file beside this one, or a program of ours
 * @property {string[]} [arguments] given to both, after the directory of `prepare`
 * @property {string[]} [baselineArguments] in their place, given to the baseline
 */

/** @type {Benchmark[]} */
export const benchmarks = [
  {
    name: 'exit-sync',
    what: 'a port-out exit through vcpu.run(), its byte handled in JS; the guest runs at CPL 3',
    unit: 'us/exit',
    target: 1.1,
    pairs: 15,
    ours: 'exit-sync.mjs',
    baseline: 'exit-loop.c',
    arguments: ['user', '20000', '2000'],
  },
  {
    name: 'exit-async',
    what: 'the same burst through VcpuThread',
    unit: 'us/exit',
    target: 1.25,
    pairs: 15,
    ours: 'exit-async.mjs',
    baseline: 'exit-loop.c',
    arguments: ['user', '20000', '2000'],
  },
  {
    name: 'idle-cpu',
    what: 'processor time that a guest uses which halts after a burst of exits on VcpuThread',
    unit: 'ms/s',
    target: 10,
    absolute: true,
    ours: 'idle-cpu.mjs',
    baseline: 'idle-cpu.c',
    arguments: ['2000', '500', '1000'],
  },
  {
    name: 'create-destroy',
    what: 'a VM with one vCPU and 1 MiB created, run to HLT, destroyed',
    unit: 'us/cycle',
    target: 1.25,
    pairs: 15,
    ours: 'create-destroy.mjs',
    baseline: 'create-destroy.c',
    arguments: ['300', '50'],
  },
  {
    name: 'lab-boot',
    what: 'in the lab: a stock kernel from its image to its init, against a VMM in C with the same tables',
    unit: 's',
    target: 1.1,
    pairs: 3,
    lab: 'svm',
    assets: ['guestKernel', 'busybox'],
    prepare: 'lab-boot-image.mjs',
    ours: 'lab-boot.mjs',
    baseline: 'vmm.c',
  },
  {
    name: 'boot-qemu',
    what: 'the same against the faster of the pc and microvm machines of QEMU with KVM',
    unit: 's',
    target: 1,
    pairs: 3,
    lab: 'svm',
    assets: ['guestKernel', 'busybox', 'qemu'],
    prepare: 'lab-boot-image.mjs',
    ours: 'lab-boot.mjs',
    baseline: 'boot-qemu.mjs',
  },
  {
    name: 'reset',
    what: 'in the lab: an L1 that has booted is reset, to its init again, against `nested-kvm run` in a new process',
    unit: 's',
    target: 1,
    pairs: 3,
    lab: 'svm',
    assets: ['guestKernel', 'busybox'],
    prepare: 'reset-image.mjs',
    ours: 'reset.mjs',
    baseline: 'reset-run.mjs',
  },
  ...[
    { name: 'blk-seq', what: '32 requests at a time of 128 KiB, in sequence, read', arguments: ['read', '128', '32'] },
    { name: 'blk-rand', what: '32 requests at a time of 4 KiB, anywhere, read', arguments: ['randread', '4', '32'] },
    {
      name: 'blk-rand-write',
      what: '32 requests at a time of 4 KiB, anywhere, written',
      arguments: ['randwrite', '4', '32'],
    },
    { name: 'blk-rand-one', what: 'one request at a time of 4 KiB, anywhere, read', arguments: ['randread', '4', '1'] },
  ].map(benchmark => ({
    ...benchmark,
    what: `in the lab: fio in L1, ${benchmark.what}, against QEMU's virtio-blk`,
    unit: 'us/request',
    target: 1.25,
    pairs: 2,
    lab: /** @type {const} */ ('svm'),
    assets: /** @type {AssetKind[]} */ (['guestKernel', 'busybox', 'rootDisk', 'qemu']),
    prepare: 'io-image.mjs',
    ours: 'blk.mjs',
    arguments: ['ours', ...benchmark.arguments],
    baseline: 'blk.mjs',
    baselineArguments: ['pc', ...benchmark.arguments],
  })),
  ...[
    // The short ones are over before V8 has compiled what they need; the long ones tell how much goes through.
    { name: 'net-send', what: '16 MiB from L1 to L0', arguments: ['send', '16'] },
    { name: 'net-receive', what: '16 MiB from L0 to L1', arguments: ['receive', '16'] },
    { name: 'net-send-long', what: '128 MiB from L1 to L0', arguments: ['send', '128'] },
    { name: 'net-receive-long', what: '128 MiB from L0 to L1', arguments: ['receive', '128'] },
  ].map(benchmark => ({
    ...benchmark,
    what: `in the lab: a TCP stream of ${benchmark.what} over a tap, against QEMU's virtio-net without vhost`,
    unit: 's/GiB',
    target: 1.43,
    pairs: 3,
    lab: /** @type {const} */ ('svm'),
    assets: /** @type {AssetKind[]} */ (['guestKernel', 'labKernel', 'busybox', 'qemu']),
    prepare: 'io-image.mjs',
    ours: 'net.mjs',
    arguments: ['ours', ...benchmark.arguments],
    baseline: 'net.mjs',
    baselineArguments: ['pc', ...benchmark.arguments],
  })),
  {
    name: 'idle-machines',
    what: 'resident memory of 100 idle machines of 64 MiB beyond what the guests touched, against a process without any',
    unit: 'MiB',
    target: 100,
    absolute: true,
    pairs: 3,
    ours: 'idle-machines.mjs',
    arguments: ['100'],
    baseline: 'idle-machines.mjs',
    baselineArguments: ['0'],
  },
  {
    name: 'vmx-exit-sync',
    what: 'in the vmx lab, whose clock counts instructions: exit-sync',
    unit: 'us/exit',
    target: 1.25,
    pairs: 3,
    lab: 'vmx',
    ours: 'exit-sync.mjs',
    baseline: 'exit-loop.c',
    arguments: ['user', '100000', '50000'],
  },
  {
    name: 'vmx-exit-async',
    what: 'in the vmx lab, which has one processor: exit-async',
    unit: 'us/exit',
    target: 1.25,
    pairs: 3,
    lab: 'vmx',
    ours: 'exit-async.mjs',
    baseline: 'exit-loop.c',
    arguments: ['user', '50000', '30000'],
  },
  {
    name: 'snapshot-save',
    what: 'a guest of 1 GiB, half random and half zero bytes, saved to disk, against cp --sparse and sync',
    unit: 'ms',
    target: 1.25,
    prepare: 'snapshot-save-image.mjs',
    ours: 'snapshot-save.mjs',
    baseline: 'snapshot-save-cp.mjs',
  },
  {
    name: 'restore',
    what: 'a snapshot of a 2 GiB guest restored, to what its first instructions write, against one of 128 MiB',
    unit: 'ms',
    target: 20,
    absolute: true,
    pairs: 15,
    prepare: 'restore-image.mjs',
    ours: 'restore.mjs',
    arguments: ['2G'],
    baseline: 'restore.mjs',
    baselineArguments: ['128M'],
  },
  {
    name: 'rollback',
    what: 'a guest of 256 MiB that wrote 100 pages goes back to a checkpoint, against the same ioctls and copies in C',
    unit: 'us',
    target: 1.43,
    pairs: 9,
    prepare: 'rollback-image.mjs',
    ours: 'rollback.mjs',
    baseline: 'rollback.c',
    arguments: ['1000', '1500'],
  },
  {
    name: 'fork',
    what: 'a guest of 2 GiB with 64 MiB in use forked, against one of 128 MiB',
    unit: 'ms',
    target: 1.1,
    pairs: 9,
    ours: 'fork.mjs',
    arguments: ['2G', '40', '10'],
    baseline: 'fork.mjs',
    baselineArguments: ['128M', '40', '10'],
  },
]

/**
 * What is measured. Each names the program of ours and its baseline in C, both of which print one line
 * `{"value": number, "check": number}`: `value` is the measured time in `unit`, taken around the loop alone, and `check`
 * is made from what the guest sent, so that both are known to have done the same work.
 *
 * @typedef {object} Benchmark
 * @property {string} name
 * @property {string} what one line for the list
 * @property {string} unit
 * @property {number} target the most that ours may be of the baseline; with `absolute`, the most that it may be above it
 * @property {boolean} [absolute]
 * @property {number} [pairs] how often ours and the baseline are each run, 7 by default
 * @property {boolean} [lab] needs a KVM whose guests boot Linux: runs inside the lab
 * @property {string} [prepare] file beside this one, run once before the trials with the directory for its output
 * @property {string} ours file beside this one
 * @property {string} baseline C file beside this one
 * @property {string[]} [arguments] given to both; by default the directory of `prepare`
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
    target: 1.15,
    lab: true,
    prepare: 'lab-boot-image.mjs',
    ours: 'lab-boot.mjs',
    baseline: 'vmm.c',
  },
]

/** A change to a file of QEMU's source. */
export interface Mend {
  /** Below the source's root. */
  readonly file: string
  /** Stands in it once. */
  readonly find: string
  readonly replacement: string
}

const SVM_HELPER = 'target/i386/tcg/sysemu/svm_helper.c'

/**
 * What QEMU 7.2's VMRUN does otherwise than a processor (AMD64 APM Volume 2, sections 15.5.1, 15.20 and 15.21.5), and hypervisors in hypervisors fall over.
 */
export const MENDS: readonly Mend[] = [
  {
    // An interrupt that VMRUN injected is delivered there and then, but stays in `exception_index`. Where the processor's thread next leaves its
    // loop for another reason than an exception, it is delivered again, whatever the guest's IF says. With instructions counted it does so at each
    // of the host's timers.
    file: SVM_HELPER,
    find: 'do_interrupt_x86_hardirq(env, vector, 1);\n',
    replacement: 'do_interrupt_x86_hardirq(env, vector, 1);\n            cs->exception_index = -1;\n',
  },
  {
    // Devices raise interrupts in the same word, under this lock: without it, one that is raised just now can be lost.
    file: SVM_HELPER,
    find: 'cs->interrupt_request |= CPU_INTERRUPT_VIRQ;\n',
    replacement:
      'qemu_mutex_lock_iothread();\n        cs->interrupt_request |= CPU_INTERRUPT_VIRQ;\n        qemu_mutex_unlock_iothread();\n',
  },
  {
    file: SVM_HELPER,
    find: '#include "tcg/helper-tcg.h"\n',
    replacement: '#include "tcg/helper-tcg.h"\n#include "qemu/main-loop.h"\n',
  },
  {
    // The guest's interrupt shadow is the VMCB's. Without this it was the host's, who mostly executes STI before VMRUN, and the guest's own was lost:
    // an interrupt could come between its STI and HLT, which then slept on.
    file: SVM_HELPER,
    find: '    if (virtual_gif_set(env)) {\n',
    replacement: `    env->hflags &= ~HF_INHIBIT_IRQ_MASK;
    if (x86_ldl_phys(cs, env->vm_vmcb + offsetof(struct vmcb, control.int_state)) & SVM_INTERRUPT_SHADOW_MASK) {
        env->hflags |= HF_INHIBIT_IRQ_MASK;
    }

    if (virtual_gif_set(env)) {
`,
  },
]

/**
 * The text of a file with all its mends.
 *
 * @throws Error where what a mend looks for does not stand there exactly once.
 */
export function mended(file: string, text: string, mends: readonly Mend[] = MENDS): string {
  let result = text
  for (const { find, replacement } of mends.filter(mend => mend.file === file)) {
    const [before, after, ...more] = result.split(find)
    if (after === undefined || more.length > 0) {
      throw new Error(`${file} has ${JSON.stringify(find)} ${more.length > 0 ? 'more than once' : 'nowhere'}`)
    }
    result = before + replacement + after
  }
  return result
}

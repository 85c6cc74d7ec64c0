import { elfKernel } from './elf.js'

/**
 * A program for Linux that enters a guest through /dev/kvm: in long mode, with page tables and memory that the guest writes to. (Without
 * nested paging, 32-bit guests with PAE shadow tables are beyond QEMU's svm: it sets accessed bits in page-directory pointers, which KVM
 * then refuses.) What the guest says comes out of the program; it exits with 0 once the guest has halted, with the KVM_EXIT_* where that
 * was another, and with 200 + how far it got where a system call failed.
 */
export function kvmProbe(): Uint8Array {
  return elfKernel(source)
}

// System calls and ioctls of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/kvm.h)
const sys = { write: 1, open: 2, mmap: 9, ioctl: 16, exitGroup: 231 } as const
const ioctl = {
  createVm: 0xae01,
  vcpuMmapSize: 0xae04,
  createVcpu: 0xae41,
  setMemory: 0x4020ae46,
  run: 0xae80,
  setRegs: 0x4090ae82,
  getSregs: 0x8138ae83,
  setSregs: 0x4138ae84,
} as const
const EXIT_IO = 2
const EXIT_HLT = 5

/** Four pages from 0: PML4, code, page-directory pointers, page directory. */
const CODE = 0x1000
const POINTERS = 0x2000
const DIRECTORY = 0x3000

const call = (number: number) => `
  mov eax, ${number}
  syscall
  inc bl
  test rax, rax
  js failed`
const control = (fd: string, request: number, argument: string) => `
  mov edi, ${fd}
  mov esi, ${request}
  mov rdx, ${argument}
  ${call(sys.ioctl)}`
const map = (size: string, flags: number, fd: string) => `
  xor edi, edi
  mov rsi, ${size}
  mov edx, 3
  mov r10d, ${flags}
  mov r8d, ${fd}
  xor r9d, r9d
  ${call(sys.mmap)}`

const source = `
  xor ebx, ebx
  lea rdi, [rip + device]
  mov esi, 2
  xor edx, edx
  ${call(sys.open)}
  mov r12d, eax              # KVM
  ${control('r12d', ioctl.createVm, '0')}
  mov r13d, eax              # VM
  ${map('0x4000', 0x21, '-1')}
  mov [rip + host_address], rax
  lea rdi, [rax + ${CODE}]
  lea rsi, [rip + guest]
  mov ecx, offset guest_end - guest
  rep movsb
  mov rax, [rip + host_address]        # 2 MiB at 0
  mov qword ptr [rax], ${POINTERS} + 7
  mov qword ptr [rax + ${POINTERS}], ${DIRECTORY} + 7
  mov qword ptr [rax + ${DIRECTORY}], 0x87
  ${control('r13d', ioctl.setMemory, 'offset region')}
  ${control('r13d', ioctl.createVcpu, '0')}
  mov r14d, eax              # vCPU
  ${control('r12d', ioctl.vcpuMmapSize, '0')}
  ${map('rax', 1, 'r14d')}
  mov r15, rax               # struct kvm_run
  ${control('r14d', ioctl.getSregs, 'offset buffer')}
  mov qword ptr [rip + buffer], 0      # CS: base, selector, type, db, l
  mov word ptr [rip + buffer + 12], 8
  mov byte ptr [rip + buffer + 14], 11
  mov byte ptr [rip + buffer + 17], 0
  mov byte ptr [rip + buffer + 19], 1
  or dword ptr [rip + buffer + 224], 0x80000001   # CR0: PG, PE
  mov qword ptr [rip + buffer + 240], 0           # CR3
  or dword ptr [rip + buffer + 248], 0x20         # CR4: PAE
  or dword ptr [rip + buffer + 264], 0x500        # EFER: LMA, LME
  ${control('r14d', ioctl.setSregs, 'offset buffer')}
  lea rdi, [rip + buffer]
  xor eax, eax
  mov ecx, 18
  rep stosq
  mov qword ptr [rip + buffer + 128], ${CODE}   # RIP
  mov qword ptr [rip + buffer + 136], 2         # RFLAGS
  ${control('r14d', ioctl.setRegs, 'offset buffer')}
run:
  ${control('r14d', ioctl.run, '0')}
  mov edi, [r15 + 8]         # exit_reason
  cmp edi, ${EXIT_IO}
  jne 1f
  mov rsi, [r15 + 40]        # io.data_offset
  add rsi, r15
  mov edi, 1
  mov edx, 1
  mov eax, ${sys.write}
  syscall
  jmp run
1:
  cmp edi, ${EXIT_HLT}
  jne leave
  xor edi, edi
leave:
  mov eax, ${sys.exitGroup}
  syscall
failed:
  movzx edi, bl
  add edi, 200
  jmp leave

device: .asciz "/dev/kvm"
.balign 8
region:                      # struct kvm_userspace_memory_region
  .long 0, 0
  .quad 0, 0x4000
host_address: .quad 0
buffer: .space 0x140

guest:
  lea rsi, [rip + said]
  mov edi, ${CODE} + 0xc00
  mov ecx, offset said_end - said
  rep movsb
  mov esi, ${CODE} + 0xc00
1:
  lodsb
  test al, al
  jz 2f
  out 0x10, al
  jmp 1b
2:
  hlt
said: .asciz "L2 runs. "
said_end:
guest_end:
`

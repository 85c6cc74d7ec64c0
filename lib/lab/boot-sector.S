# The boot sector of boot-disk.ts, for GNU as in Intel syntax (`.intel_syntax noprefix`), at 0x7c00.
# The fields at its end, from `dap` on, are filled in when a disk is made.
.code16
  cli
  xor ax, ax
  mov ds, ax
  mov es, ax
  mov ss, ax
  mov sp, 0x7c00
  cld
  in al, 0x92                     # the A20 gate
  or al, 2
  out 0x92, al
  cmp byte ptr [started], 0       # a start after a reset is the end
  jne end
  mov byte ptr [started], 1       # and so the disk is told of this one
  mov word ptr [dap + 2], 1
  mov word ptr [dap + 6], 0
  mov word ptr [dap + 4], 0x7c00
  mov dword ptr [dap + 8], 0
  mov si, offset dap
  mov ax, 0x4300                  # INT 13h, extended write
  mov dl, 0x80
  int 0x13
  mov word ptr [dap + 2], 127
  mov word ptr [dap + 6], 0x1000
  mov word ptr [dap + 4], 0
  mov dword ptr [dap + 8], 1
chunk:                            # 127 sectors at a time to 0x10000, and from there up
  sti
  mov si, offset dap
  mov ah, 0x42                    # INT 13h, extended read
  mov dl, 0x80
  int 0x13
  jc end
  cli
  lgdt [gdtr]
  mov eax, cr0                    # in and out of protected mode: DS and ES keep their limit of 4 GiB
  or al, 1
  mov cr0, eax
  mov bx, 0x10
  mov ds, bx
  mov es, bx
  and al, 0xfe
  mov cr0, eax
  xor bx, bx
  mov ds, bx
  mov es, bx
  mov esi, 0x10000
  mov edi, [destination]
  mov ecx, 127 * 128
  addr32 rep movsd
  mov [destination], edi
  add word ptr [dap + 8], 127
  adc word ptr [dap + 10], 0
  dec dword ptr [chunks]
  jnz chunk
  xor ebx, ebx
  mov di, 0x8000
region:                           # the memory map: 24 bytes each for the kernel, 20 from the BIOS
  mov eax, 0xe820
  mov edx, 0x534d4150
  mov ecx, 20
  int 0x15
  jc enter
  mov dword ptr [di + 20], 0
  add di, 24
  inc dword ptr [regions]
  test ebx, ebx
  jnz region
enter:
  cli
  lgdt [gdtr]
  mov eax, cr0
  or al, 1
  mov cr0, eax
  .byte 0x66, 0xea                # a far jump to 32-bit code
  .long protected
  .word 8
end:                              # Bochs: iodev/unmapped.cc, the shutdown port
  mov si, offset farewell
  mov dx, 0x8900
letter:
  lodsb
  out dx, al
  test al, al
  jnz letter
  cli
  hlt
.code32
protected:
  mov eax, 0x10
  mov ds, eax
  mov es, eax
  mov ss, eax
  mov ebx, [start_info]
  mov eax, [regions]
  mov [ebx + 48], eax
  jmp [entry]
gdtr:
  .word 23
  .long gdt
.balign 8
gdt:
  .quad 0
  .quad 0x00cf9b000000ffff
  .quad 0x00cf93000000ffff
farewell: .asciz "Shutdown"
.org 0x1d0
dap:                              # the disk address packet: 127 sectors from 1 on to 1000:0000
  .byte 16, 0
  .word 127, 0, 0x1000
  .quad 1
destination: .long 0
chunks: .long 0
start_info: .long 0
entry: .long 0
regions: .long 0
started: .byte 0
.org 0x1fe
  .word 0xaa55

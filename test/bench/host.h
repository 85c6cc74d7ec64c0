/*
 * What the C baselines share: the KVM calls any minimal VMM makes, and the guests of `guests.mjs`, set up in the same way.
 */
#ifndef NESTED_KVM_BENCH_HOST_H
#define NESTED_KVM_BENCH_HOST_H

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define CHECK(expression)                                                                                              \
  ({                                                                                                                   \
    long check_result = (long)(expression);                                                                            \
    if (check_result == -1) {                                                                                          \
      perror(#expression);                                                                                             \
      exit(1);                                                                                                         \
    }                                                                                                                  \
    check_result;                                                                                                      \
  })

static inline double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

static inline double cpu_us(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

struct guest {
  int vm;
  int vcpu;
  uint8_t *memory;
  size_t size;
  struct kvm_run *run;
  size_t run_size;
};

static inline void guest_open(struct guest *guest, int kvm, size_t size, int run_size, int irqchip) {
  guest->size = size;
  guest->run_size = run_size;
  guest->vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
  if (irqchip) CHECK(ioctl(guest->vm, KVM_CREATE_IRQCHIP, 0));
  guest->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(guest->memory);
  struct kvm_userspace_memory_region region = {.memory_size = size, .userspace_addr = (uintptr_t)guest->memory};
  CHECK(ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &region));
  guest->vcpu = CHECK(ioctl(guest->vm, KVM_CREATE_VCPU, 0));
  guest->run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, guest->vcpu, 0);
  CHECK(guest->run);
}

static inline void guest_close(struct guest *guest) {
  munmap(guest->run, guest->run_size);
  close(guest->vcpu);
  close(guest->vm);
  munmap(guest->memory, guest->size);
}

static inline void guest_cpuid(struct guest *guest, int kvm) {
  enum { MAX = 256 };
  struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + MAX * sizeof(struct kvm_cpuid_entry2));
  cpuid->nent = MAX;
  CHECK(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid));
  CHECK(ioctl(guest->vcpu, KVM_SET_CPUID2, cpuid));
  free(cpuid);
}

enum { CODE = 0x1000, STACK = 0x8000 };

/* Real mode, CPL 0. */
static inline void guest_real_mode(struct guest *guest, struct kvm_regs regs) {
  struct kvm_sregs sregs;
  CHECK(ioctl(guest->vcpu, KVM_GET_SREGS, &sregs));
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  CHECK(ioctl(guest->vcpu, KVM_SET_SREGS, &sregs));
  regs.rip = CODE;
  regs.rsp = STACK;
  regs.rflags = 2;
  CHECK(ioctl(guest->vcpu, KVM_SET_REGS, &regs));
}

/* Long mode, CPL 3 with IOPL 3, the first 2 MiB mapped to themselves. */
static inline void guest_long_mode_user(struct guest *guest, struct kvm_regs regs) {
  uint64_t *tables = (uint64_t *)(guest->memory + 0x2000);
  tables[0] = 0x3000 | 7;
  tables[512] = 0x4000 | 7;
  tables[1024] = 0x87;
  struct kvm_sregs sregs;
  CHECK(ioctl(guest->vcpu, KVM_GET_SREGS, &sregs));
  struct kvm_segment segment = {.limit = 0xffffffff, .present = 1, .dpl = 3, .s = 1, .g = 1};
  sregs.cs = sregs.ss = segment;
  sregs.cs.type = 11;
  sregs.cs.l = 1;
  sregs.cs.selector = 0x23;
  sregs.ss.type = 3;
  sregs.ss.db = 1;
  sregs.ss.selector = 0x1b;
  sregs.ds = sregs.es = sregs.ss;
  sregs.cr0 = 0x80050033;
  sregs.cr3 = 0x2000;
  sregs.cr4 = 0x20;
  sregs.efer = 0x500;
  CHECK(ioctl(guest->vcpu, KVM_SET_SREGS, &sregs));
  regs.rip = CODE;
  regs.rsp = STACK;
  regs.rflags = 0x3002;
  CHECK(ioctl(guest->vcpu, KVM_SET_REGS, &regs));
}

/* out dx, al; inc al; jmp to the first: the bytes 0, 1, 2, ... on port 0x10, without end. */
static const uint8_t OUT_FOREVER[] = {0xee, 0xfe, 0xc0, 0xeb, 0xfb};

/* out dx, al; dec cx; jnz to the first; cli; hlt: cx bytes on port 0x10, then nothing more. */
static const uint8_t OUT_THEN_HALT[] = {0xee, 0x49, 0x75, 0xfc, 0xfa, 0xf4};

static const uint8_t HALT[] = {0xf4};

enum { PORT = 0x10 };

#endif

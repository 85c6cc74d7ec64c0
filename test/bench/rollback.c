/*
 * Baseline of rollback: the same guest, the same ioctls on the same kinds of state in the same order, and the copies of the
 * pages that the dirty log names. rollback DIRECTORY COUNT WARMUP
 */
#define _GNU_SOURCE
#include "host.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum {
  SIZE = 256 << 20,
  PAGE = 4096,
  DIRTY_PAGES = 100,
  DIRTY_START = 0x1100000,
  DIRTY_STRIDE = 0x2000,
  FEATURE_CONTROL = 0x3a,
  TIME_STAMP_COUNTER = 0x10,
  TSC_DEADLINE = 0x6e0,
};

static const char *directory;
static struct guest guest;
static uint64_t bitmap[SIZE / PAGE / 64];

/* The moment to go back to. */
static struct {
  int pages;
  struct kvm_irqchip irqchips[3];
  struct kvm_pit_state2 pit;
  struct kvm_clock_data clock;
  int tsc_khz;
  uint64_t tsc_offset;
  struct kvm_msrs *msrs, *feature_control, *other_msrs;
  struct kvm_sregs2 sregs;
  struct kvm_lapic_state lapic;
  struct kvm_xcrs xcrs;
  struct kvm_xsave *xsave;
  struct kvm_regs regs;
  struct kvm_vcpu_events events;
  struct kvm_mp_state mp_state;
  struct kvm_debugregs debugregs;
} moment;

static int open_in(const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return CHECK(open(path, O_RDONLY | O_CLOEXEC));
}

static void *contents(const char *name) {
  int file = open_in(name);
  off_t size = CHECK(lseek(file, 0, SEEK_END));
  void *bytes = malloc(size);
  if (CHECK(pread(file, bytes, size, 0)) != size) exit(1);
  close(file);
  return bytes;
}

static struct kvm_msrs *new_msrs(uint32_t count) {
  return calloc(1, sizeof(struct kvm_msrs) + count * sizeof(struct kvm_msr_entry));
}

static void set_msrs(struct kvm_msrs *msrs) {
  if ((uint32_t)CHECK(ioctl(guest.vcpu, KVM_SET_MSRS, msrs)) != msrs->nmsrs) exit(1);
}

static void create(int kvm) {
  guest.size = SIZE;
  guest.run_size = CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
  guest.vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
  CHECK(ioctl(guest.vm, KVM_SET_TSS_ADDR, 0xfffbd000));
  CHECK(ioctl(guest.vm, KVM_CREATE_IRQCHIP, 0));
  CHECK(ioctl(guest.vm, KVM_CREATE_PIT2, &(struct kvm_pit_config){.flags = KVM_PIT_SPEAKER_DUMMY}));
  struct kvm_enable_cap payload = {.cap = KVM_CAP_EXCEPTION_PAYLOAD, .args = {1}};
  CHECK(ioctl(guest.vm, KVM_ENABLE_CAP, &payload));
  int file = open_in("saved/memory");
  guest.memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
  CHECK(guest.memory);
  struct kvm_userspace_memory_region region = {
      .memory_size = SIZE, .userspace_addr = (uintptr_t)guest.memory, .flags = KVM_MEM_LOG_DIRTY_PAGES};
  CHECK(ioctl(guest.vm, KVM_SET_USER_MEMORY_REGION, &region));
  guest.vcpu = CHECK(ioctl(guest.vm, KVM_CREATE_VCPU, 0));
  guest.run = mmap(NULL, guest.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
  CHECK(guest.run);
  CHECK(ioctl(guest.vcpu, KVM_SET_CPUID2, contents("KVM_SET_CPUID2")));
  CHECK(ioctl(guest.vcpu, KVM_SET_SREGS2, contents("KVM_GET_SREGS2")));
  set_msrs(contents("KVM_GET_MSRS"));
  CHECK(ioctl(guest.vcpu, KVM_SET_REGS, contents("KVM_GET_REGS")));
}

/* Set to have the guest run, cleared once it has written its pages. */
static atomic_bool running;

/* The vCPU's own thread, which polls for what it is to do next, as that of ours does for a while. */
static void *run_vcpu(void *unused) {
  for (;;) {
    while (!atomic_load(&running)) __builtin_ia32_pause();
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0));
    if (guest.run->exit_reason != KVM_EXIT_IO) {
      fprintf(stderr, "unexpected exit %u\n", guest.run->exit_reason);
      exit(1);
    }
    /* Completes the exit. */
    guest.run->immediate_exit = 1;
    ioctl(guest.vcpu, KVM_RUN, 0);
    guest.run->immediate_exit = 0;
    atomic_store(&running, false);
  }
  return unused;
}

static void run_on(void) {
  atomic_store(&running, true);
  while (atomic_load(&running)) __builtin_ia32_pause();
}

static void dirty_log(void) {
  CHECK(ioctl(guest.vm, KVM_GET_DIRTY_LOG, &(struct kvm_dirty_log){.dirty_bitmap = bitmap}));
}

static struct kvm_device_attr tsc_offset(uint64_t *value) {
  return (struct kvm_device_attr){.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};
}

static void keep_moment(int kvm) {
  dirty_log();
  moment.pages = CHECK(memfd_create("pages", MFD_CLOEXEC));
  CHECK(ftruncate(moment.pages, SIZE));
  for (long page = 0; page < SIZE / PAGE; page++) {
    if (bitmap[page / 64] >> (page % 64) & 1) CHECK(pwrite(moment.pages, guest.memory + page * PAGE, PAGE, page * PAGE));
  }
  for (int i = 0; i < 3; i++) {
    moment.irqchips[i].chip_id = i;
    CHECK(ioctl(guest.vm, KVM_GET_IRQCHIP, &moment.irqchips[i]));
  }
  CHECK(ioctl(guest.vm, KVM_GET_PIT2, &moment.pit));
  CHECK(ioctl(guest.vm, KVM_GET_CLOCK, &moment.clock));
  moment.tsc_khz = CHECK(ioctl(guest.vcpu, KVM_GET_TSC_KHZ, 0));
  struct kvm_device_attr offset = tsc_offset(&moment.tsc_offset);
  CHECK(ioctl(guest.vcpu, KVM_GET_DEVICE_ATTR, &offset));
  moment.msrs = contents("KVM_GET_MSRS");
  if ((uint32_t)CHECK(ioctl(guest.vcpu, KVM_GET_MSRS, moment.msrs)) != moment.msrs->nmsrs) exit(1);
  moment.feature_control = new_msrs(1);
  moment.other_msrs = new_msrs(moment.msrs->nmsrs);
  struct kvm_msr_entry *deadline = NULL;
  for (uint32_t i = 0; i < moment.msrs->nmsrs; i++) {
    struct kvm_msr_entry *entry = &moment.msrs->entries[i];
    if (entry->index == FEATURE_CONTROL) moment.feature_control->entries[moment.feature_control->nmsrs++] = *entry;
    else if (entry->index == TSC_DEADLINE) deadline = entry;
    else if (entry->index != TIME_STAMP_COUNTER) moment.other_msrs->entries[moment.other_msrs->nmsrs++] = *entry;
  }
  if (deadline) moment.other_msrs->entries[moment.other_msrs->nmsrs++] = *deadline;
  CHECK(ioctl(guest.vcpu, KVM_GET_SREGS2, &moment.sregs));
  CHECK(ioctl(guest.vcpu, KVM_GET_LAPIC, &moment.lapic));
  CHECK(ioctl(guest.vcpu, KVM_GET_XCRS, &moment.xcrs));
  moment.xsave = calloc(1, CHECK(ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2)));
  CHECK(ioctl(guest.vcpu, KVM_GET_XSAVE2, moment.xsave));
  CHECK(ioctl(guest.vcpu, KVM_GET_REGS, &moment.regs));
  CHECK(ioctl(guest.vcpu, KVM_GET_VCPU_EVENTS, &moment.events));
  CHECK(ioctl(guest.vcpu, KVM_GET_MP_STATE, &moment.mp_state));
  CHECK(ioctl(guest.vcpu, KVM_GET_DEBUGREGS, &moment.debugregs));
}

static void copy_pages(void) {
  dirty_log();
  for (long word = 0; word < SIZE / PAGE / 64; word++) {
    for (uint64_t bits = bitmap[word]; bits; bits &= bits - 1) {
      long page = word * 64 + __builtin_ctzll(bits);
      CHECK(pread(moment.pages, guest.memory + page * PAGE, PAGE, page * PAGE));
    }
  }
}

static void roll_back(void) {
  copy_pages();
  for (int i = 0; i < 3; i++) CHECK(ioctl(guest.vm, KVM_SET_IRQCHIP, &moment.irqchips[i]));
  CHECK(ioctl(guest.vm, KVM_SET_PIT2, &moment.pit));
  struct kvm_clock_data clock = {.clock = moment.clock.clock}, now;
  CHECK(ioctl(guest.vm, KVM_SET_CLOCK, &clock));
  CHECK(ioctl(guest.vm, KVM_GET_CLOCK, &now));
  if (CHECK(ioctl(guest.vcpu, KVM_GET_TSC_KHZ, 0)) != moment.tsc_khz) exit(1);
  uint64_t elapsed = now.clock - moment.clock.clock;
  uint64_t value = moment.tsc_offset + (elapsed * moment.tsc_khz) / 1000000 + (moment.clock.host_tsc - now.host_tsc);
  struct kvm_device_attr offset = tsc_offset(&value);
  CHECK(ioctl(guest.vcpu, KVM_SET_DEVICE_ATTR, &offset));
  if (moment.feature_control->nmsrs) set_msrs(moment.feature_control);
  CHECK(ioctl(guest.vcpu, KVM_SET_SREGS2, &moment.sregs));
  CHECK(ioctl(guest.vcpu, KVM_SET_LAPIC, &moment.lapic));
  set_msrs(moment.other_msrs);
  CHECK(ioctl(guest.vcpu, KVM_SET_XCRS, &moment.xcrs));
  CHECK(ioctl(guest.vcpu, KVM_SET_XSAVE, moment.xsave));
  CHECK(ioctl(guest.vcpu, KVM_SET_REGS, &moment.regs));
  CHECK(ioctl(guest.vcpu, KVM_SET_VCPU_EVENTS, &moment.events));
  CHECK(ioctl(guest.vcpu, KVM_SET_MP_STATE, &moment.mp_state));
  CHECK(ioctl(guest.vcpu, KVM_SET_DEBUGREGS, &moment.debugregs));
  /* EINVAL where the guest has no pvclock. */
  ioctl(guest.vcpu, KVM_KVMCLOCK_CTRL, 0);
}

static int changed(uint8_t counter) {
  int pages = 0;
  for (int i = 0; i < DIRTY_PAGES; i++) pages += guest.memory[DIRTY_START + i * DIRTY_STRIDE] != counter;
  return pages;
}

static int ascending(const void *a, const void *b) {
  return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b);
}

/* The median: a cycle in which the process was put aside counts no more than another. */
static double cycles(int count, uint8_t counter, long *check) {
  double *spent = calloc(count, sizeof *spent);
  for (int i = 0; i < count; i++) {
    run_on();
    *check += changed(counter);
    double start = now_us();
    roll_back();
    spent[i] = now_us() - start;
    *check -= changed(counter);
  }
  qsort(spent, count, sizeof *spent, ascending);
  return spent[count / 2];
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  directory = argv[1];
  int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  create(kvm);
  pthread_t thread;
  pthread_create(&thread, NULL, run_vcpu, NULL);
  run_on();
  keep_moment(kvm);
  uint8_t counter = guest.memory[DIRTY_START];
  long check = 0;
  cycles(atoi(argv[3]), counter, &check);
  double value = cycles(atoi(argv[2]), counter, &check);
  printf("{\"value\":%f,\"check\":%ld}\n", value, check);
}

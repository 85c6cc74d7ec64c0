/*
 * Baseline of idle-cpu: a burst of port-out exits on a thread of its own, then the guest halts in the kernel's interrupt
 * controller for good; the processor time the process uses in each second from then on. idle-cpu COUNT SETTLE_MS IDLE_MS
 */
#include "host.h"

#include <pthread.h>

static struct guest guest;
static volatile uint32_t seen;

static void *run_vcpu(void *count) {
  while (seen < (uint32_t)(uintptr_t)count) {
    CHECK(ioctl(guest.vcpu, KVM_RUN, 0));
    if (guest.run->exit_reason != KVM_EXIT_IO) exit(1);
    seen++;
  }
  CHECK(ioctl(guest.vcpu, KVM_RUN, 0));
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  uint32_t count = atoi(argv[1]);
  long settle = atol(argv[2]), idle = atol(argv[3]);
  int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  guest_open(&guest, kvm, 1 << 20, CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)), 1);
  memcpy(guest.memory + CODE, OUT_THEN_HALT, sizeof OUT_THEN_HALT);
  guest_real_mode(&guest, (struct kvm_regs){.rdx = PORT, .rcx = count});
  pthread_t thread;
  if (pthread_create(&thread, NULL, run_vcpu, (void *)(uintptr_t)count) != 0) return 1;
  while (seen < count) usleep(1000);
  usleep(settle * 1000);
  double cpu = cpu_us(), start = now_us();
  usleep(idle * 1000);
  double milliseconds = (cpu_us() - cpu) / 1e3, seconds = (now_us() - start) / 1e6;
  printf("{\"value\":%f,\"check\":%u}\n", milliseconds / seconds, seen);
  fflush(stdout);
  _exit(0);
}

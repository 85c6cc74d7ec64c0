/* Baseline of create-destroy: a VM with a vCPU and 1 MiB is created, run to HLT and destroyed. create-destroy COUNT WARMUP */
#include "host.h"

static int kvm;
static int run_size;

static uint32_t cycle(void) {
  struct guest guest;
  guest_open(&guest, kvm, 1 << 20, run_size, 0);
  memcpy(guest.memory + CODE, HALT, sizeof HALT);
  guest_real_mode(&guest, (struct kvm_regs){0});
  CHECK(ioctl(guest.vcpu, KVM_RUN, 0));
  uint32_t halted = guest.run->exit_reason == KVM_EXIT_HLT;
  guest_close(&guest);
  return halted;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int count = atoi(argv[1]), warmup = atoi(argv[2]);
  kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  run_size = CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
  for (int i = 0; i < warmup; i++) cycle();
  uint32_t halted = 0;
  double start = now_us();
  for (int i = 0; i < count; i++) halted += cycle();
  printf("{\"value\":%f,\"check\":%u}\n", (now_us() - start) / count, halted);
}

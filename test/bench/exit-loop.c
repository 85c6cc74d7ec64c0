/* Baseline of exit-sync and exit-async: port-out exits handled one after another. exit-loop real|user COUNT WARMUP */
#include "host.h"

static uint32_t handle(struct guest *guest, long count) {
  struct kvm_run *run = guest->run;
  uint32_t sum = 0;
  for (long i = 0; i < count; i++) {
    CHECK(ioctl(guest->vcpu, KVM_RUN, 0));
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
      if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == PORT) {
        sum = sum * 31 + *((uint8_t *)run + run->io.data_offset);
        break;
      }
    /* fallthrough */
    default:
      fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
      exit(1);
    }
  }
  return sum;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  long count = atol(argv[2]);
  int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  struct guest guest;
  guest_open(&guest, kvm, 1 << 20, CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)), 0);
  guest_cpuid(&guest, kvm);
  memcpy(guest.memory + CODE, OUT_FOREVER, sizeof OUT_FOREVER);
  struct kvm_regs regs = {.rdx = PORT};
  if (strcmp(argv[1], "user") == 0) guest_long_mode_user(&guest, regs);
  else guest_real_mode(&guest, regs);
  handle(&guest, atol(argv[3]));
  double start = now_us();
  uint32_t sum = handle(&guest, count);
  printf("{\"value\":%f,\"check\":%u}\n", (now_us() - start) / count, sum);
}

/*
 * Baseline of lab-boot: a minimal VMM that boots the machine of lab-boot-image.mjs: vmm DIRECTORY
 * Devices: 16550A (output only), i8042 (reads 0), ACPI PM, a CMOS clock that stands still; any other port reads all ones.
 */
#include "host.h"

static int vm;
static struct kvm_run *run;

static void *load(const char *directory, const char *name, size_t *size) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int fd = CHECK(open(path, O_RDONLY));
  *size = CHECK(lseek(fd, 0, SEEK_END));
  char *bytes = malloc(*size);
  CHECK(lseek(fd, 0, SEEK_SET));
  for (size_t at = 0; at < *size;) {
    long count = CHECK(read(fd, bytes + at, *size - at));
    if (count == 0) exit(1);
    at += count;
  }
  close(fd);
  return bytes;
}

static struct {
  uint8_t ier, fcr, lcr, mcr, scr, dll, dlm, level;
  int thr_empty;
} uart;
static const char MARK[] = "@init";
static size_t matched;

static void uart_interrupt(void) {
  uint8_t level = (uart.ier & 2) && uart.thr_empty;
  if (level == uart.level) return;
  uart.level = level;
  struct kvm_irq_level line = {.irq = 4, .level = level};
  CHECK(ioctl(vm, KVM_IRQ_LINE, &line));
}

static void uart_write(int reg, uint8_t value) {
  int dlab = uart.lcr & 0x80;
  switch (reg) {
  case 0:
    if (dlab) {
      uart.dll = value;
      break;
    }
    if (!(uart.mcr & 0x10) && matched < sizeof MARK - 1) {
      matched = value == (uint8_t)MARK[matched] ? matched + 1 : value == (uint8_t)MARK[0];
    }
    uart.thr_empty = 1;
    break;
  case 1:
    if (dlab) {
      uart.dlm = value;
      break;
    }
    if (value & ~uart.ier & 2) uart.thr_empty = 1;
    uart.ier = value & 15;
    break;
  case 2: uart.fcr = value; break;
  case 3: uart.lcr = value; break;
  case 4: uart.mcr = value & 31; break;
  case 7: uart.scr = value; break;
  }
  uart_interrupt();
}

static uint8_t uart_read(int reg) {
  int dlab = uart.lcr & 0x80;
  uint8_t value;
  switch (reg) {
  case 0: return dlab ? uart.dll : 0;
  case 1: return dlab ? uart.dlm : uart.ier;
  case 2:
    value = ((uart.ier & 2) && uart.thr_empty ? 2 : 1) | (uart.fcr & 1 ? 0xc0 : 0);
    uart.thr_empty = 0;
    uart_interrupt();
    return value;
  case 3: return uart.lcr;
  case 4: return uart.mcr;
  case 5: return 0x60;
  case 6:
    if (!(uart.mcr & 0x10)) return 0xb0;
    return (uart.mcr & 2) << 3 | (uart.mcr & 1) << 5 | (uart.mcr & 0xc) << 4;
  default: return uart.scr;
  }
}

static uint16_t pm_enable, pm_control;
static double pm_start;

static uint8_t cmos_index;

/* Never an update in progress, for which a kernel would wait long; BCD, 24 hours. */
static uint8_t cmos_read(void) {
  switch (cmos_index) {
  case 0x07: case 0x08: return 0x01;
  case 0x09: return 0x26;
  case 0x0a: return 0x20;
  case 0x0b: return 0x02;
  case 0x0d: return 0x80;
  case 0x32: return 0x20;
  default: return 0;
  }
}

static uint32_t port_read(uint16_t port) {
  if (port >= 0x3f8 && port < 0x400) return uart_read(port - 0x3f8);
  switch (port) {
  case 0x64: return 0;
  case 0x71: return cmos_read();
  case 0x600: return (uint32_t)pm_enable << 16;
  case 0x602: return pm_enable;
  case 0x604: return pm_control | 1;
  case 0x608: return (uint32_t)((now_us() - pm_start) * 3.579545);
  default: return UINT32_MAX;
  }
}

/* Returns whether the machine is to end. */
static int port_write(uint16_t port, uint32_t value) {
  if (port >= 0x3f8 && port < 0x400) uart_write(port - 0x3f8, value);
  if (port == 0x70) cmos_index = value & 0x7f;
  if (port == 0x602) pm_enable = value;
  if (port == 0x604) {
    pm_control = value & 0x1c00;
    return (value & 0x2000) != 0;
  }
  return port == 0x64 && value == 0xfe;
}

static int handle_io(void) {
  uint8_t *data = (uint8_t *)run + run->io.data_offset;
  for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
    uint32_t value = 0;
    if (run->io.direction == KVM_EXIT_IO_OUT) {
      memcpy(&value, data, run->io.size);
      if (port_write(run->io.port, value)) return 1;
    } else {
      value = port_read(run->io.port);
      memcpy(data, &value, run->io.size);
    }
  }
  return 0;
}

static void load_memory(uint8_t *memory, size_t memory_size, const char *image, size_t size) {
  for (size_t at = 8; at < size;) {
    uint64_t run_of[2];
    memcpy(run_of, image + at, sizeof run_of);
    at += sizeof run_of;
    if (run_of[0] > memory_size || run_of[1] > memory_size - run_of[0] || run_of[1] > size - at) exit(1);
    memcpy(memory + run_of[0], image + at, run_of[1]);
    at += run_of[1];
  }
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  double start = now_us(), booted = 0;
  int kvm = CHECK(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  vm = CHECK(ioctl(kvm, KVM_CREATE_VM, 0));
  CHECK(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000));
  uint64_t identity_map = 0xfffbc000;
  CHECK(ioctl(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
  CHECK(ioctl(vm, KVM_CREATE_IRQCHIP, 0));
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
  CHECK(ioctl(vm, KVM_CREATE_PIT2, &pit));

  size_t size;
  char *image = load(argv[1], "memory", &size);
  uint64_t memory_size;
  memcpy(&memory_size, image, sizeof memory_size);
  uint8_t *memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory);
  struct kvm_userspace_memory_region region = {.memory_size = memory_size, .userspace_addr = (uintptr_t)memory};
  CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
  load_memory(memory, memory_size, image, size);
  free(image);

  int vcpu = CHECK(ioctl(vm, KVM_CREATE_VCPU, 0));
  run = mmap(NULL, CHECK(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0)), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  CHECK(run);
  CHECK(ioctl(vcpu, KVM_SET_CPUID2, load(argv[1], "cpuid", &size)));
  struct kvm_msrs *msrs = load(argv[1], "msrs", &size);
  CHECK(ioctl(vcpu, KVM_SET_MSRS, msrs) == (int)msrs->nmsrs ? 0 : -1);
  CHECK(ioctl(vcpu, KVM_SET_SREGS, load(argv[1], "sregs", &size)));
  CHECK(ioctl(vcpu, KVM_SET_REGS, load(argv[1], "regs", &size)));

  pm_start = now_us();
  for (;;) {
    CHECK(ioctl(vcpu, KVM_RUN, 0));
    if (run->exit_reason == KVM_EXIT_IO) {
      if (handle_io()) break;
      if (booted == 0 && matched == sizeof MARK - 1) booted = now_us();
    } else if (run->exit_reason == KVM_EXIT_MMIO) {
      if (!run->mmio.is_write) memset(run->mmio.data, 0xff, sizeof run->mmio.data);
    } else {
      fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
      return 1;
    }
  }
  if (booted == 0) return 1;
  printf("{\"value\":%f,\"check\":1}\n", (booted - start) / 1e6);
}

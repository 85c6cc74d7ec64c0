#include "vm.h"

#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "env_data.h"
#include "event_fd.h"
#include "ioctl.h"
#include "kvm_uapi.h"
#include "vcpu.h"

namespace nested_kvm {

namespace {

const Op kOps[] = {
    NESTED_KVM_OP("checkExtension", KVM_CHECK_EXTENSION, Argument::kValue),
    NESTED_KVM_OP("setTssAddr", KVM_SET_TSS_ADDR, Argument::kValue),
    NESTED_KVM_OP("setIdentityMapAddr", KVM_SET_IDENTITY_MAP_ADDR),
    NESTED_KVM_OP("createIrqchip", KVM_CREATE_IRQCHIP, Argument::kNone),
    NESTED_KVM_OP("getIrqchip", KVM_GET_IRQCHIP),
    // The header declares KVM_SET_IRQCHIP with the same struct.
    NESTED_KVM_OP("setIrqchip", KVM_SET_IRQCHIP),
    NESTED_KVM_OP("createPit2", KVM_CREATE_PIT2),
    NESTED_KVM_OP("getPit2", KVM_GET_PIT2),
    NESTED_KVM_OP("setPit2", KVM_SET_PIT2),
    NESTED_KVM_OP("irqLine", KVM_IRQ_LINE),
    NESTED_KVM_OP("setGsiRouting", KVM_SET_GSI_ROUTING, Argument::kList, sizeof(kvm_irq_routing),
                  sizeof(kvm_irq_routing_entry)),
    NESTED_KVM_OP("signalMsi", KVM_SIGNAL_MSI),
    NESTED_KVM_OP("registerCoalescedMmio", KVM_REGISTER_COALESCED_MMIO),
    NESTED_KVM_OP("unregisterCoalescedMmio", KVM_UNREGISTER_COALESCED_MMIO),
    NESTED_KVM_OP("getClock", KVM_GET_CLOCK),
    NESTED_KVM_OP("setClock", KVM_SET_CLOCK),
};

// A dirty bitmap has a bit a page, in whole 64-bit words (KVM API 4.8).
uint64_t BitmapBytes(uint64_t size) { return ((size >> 12) + 63) / 64 * 8; }

Napi::Value Result(Napi::Env env, const char* name, int result) {
  if (result < 0) return ThrowKvmError(env, name, errno);
  return Napi::Number::New(env, result);
}

// Capabilities whose arguments are file descriptors or pointers: they do not pass through as numbers.
bool TakesRawArgument(uint32_t capability) {
  switch (capability) {
    case KVM_CAP_HYPERV_ENLIGHTENED_VMCS:
    case KVM_CAP_SGX_ATTRIBUTE:
    case KVM_CAP_VM_COPY_ENC_CONTEXT_FROM:
    case KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM:
      return true;
    default:
      return false;
  }
}

}  // namespace

bool VmCore::AnswerStatusWord(kvm_run* run) const {
  auto& mmio = run->mmio;
  if (run->exit_reason != KVM_EXIT_MMIO || mmio.len != sizeof(uint32_t)) return false;
  const uint32_t count = status_word_count.load(std::memory_order_acquire);
  for (uint32_t i = 0; i < count; i++) {
    const StatusWord& status = status_words[i];
    if (mmio.phys_addr != (mmio.is_write ? status.clear_address : status.read_address)) continue;
    if (mmio.is_write) {
      uint32_t bits;
      std::memcpy(&bits, mmio.data, sizeof bits);
      __atomic_fetch_and(status.word, ~bits, __ATOMIC_SEQ_CST);
    } else {
      const uint32_t value = __atomic_load_n(status.word, __ATOMIC_SEQ_CST);
      std::memcpy(mmio.data, &value, sizeof value);
    }
    return true;
  }
  return false;
}

Napi::Function Vm::Define(Napi::Env env) {
  std::vector<PropertyDescriptor> methods;
  for (const Op& op : kOps) {
    methods.push_back(InstanceMethod(op.method, &Vm::Call, napi_default, const_cast<Op*>(&op)));
  }
  methods.push_back(InstanceMethod<&Vm::CreateVcpu>("createVcpu"));
  methods.push_back(InstanceMethod<&Vm::SetUserMemoryRegion>("setUserMemoryRegion"));
  methods.push_back(InstanceMethod<&Vm::GetDirtyLog>("getDirtyLog"));
  methods.push_back(InstanceMethod<&Vm::ClearDirtyLog>("clearDirtyLog"));
  methods.push_back(InstanceMethod<&Vm::EnableCap>("enableCap"));
  methods.push_back(InstanceMethod<&Vm::Irqfd>("irqfd"));
  methods.push_back(InstanceMethod<&Vm::Ioeventfd>("ioeventfd"));
  methods.push_back(InstanceMethod<&Vm::AddStatusWord>("addStatusWord"));
  methods.push_back(InstanceMethod<&Vm::Close>("close"));
  Napi::Function constructor = DefineClass(env, "Vm", methods);
  EnvData::Of(env)->vm = Napi::Persistent(constructor);
  return constructor;
}

Napi::Value Vm::Create(Napi::Env env, UniqueFd fd, size_t vcpu_mmap_size) {
  auto core = std::make_shared<VmCore>();
  core->fd = std::move(fd);
  core->vcpu_mmap_size = vcpu_mmap_size;
  return NewJs(env, EnvData::Of(env)->vm, {Napi::External<std::shared_ptr<VmCore>>::New(env, &core)});
}

Vm::Vm(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Vm>(info) {
  if (!info[0].IsExternal()) {
    Napi::TypeError::New(info.Env(), "a Vm is made by kvm.createVm()").ThrowAsJavaScriptException();
    return;
  }
  core_ = *info[0].As<Napi::External<std::shared_ptr<VmCore>>>().Data();
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

VmCore* Vm::Open(Napi::Env env, const char* name) {
  if (core_) return core_.get();
  ThrowKvmError(env, name, EBADF, "this Vm is closed");
  return nullptr;
}

Napi::Value Vm::Call(const Napi::CallbackInfo& info) {
  const Op& op = *static_cast<const Op*>(info.Data());
  VmCore* core = Open(info.Env(), op.name);
  return core ? CallOp(info, core->fd.get(), op) : info.Env().Undefined();
}

Napi::Value Vm::CreateVcpu(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t id = 0;
  if (!Open(env, "KVM_CREATE_VCPU") || !IntegerOf(info[0], "KVM_CREATE_VCPU", UINT32_MAX, &id)) return env.Undefined();
  return Vcpu::Create(env, core_, static_cast<uint32_t>(id));
}

// setUserMemoryRegion(slot, flags, guestAddress, size, memory, offset): a size of 0 deletes the slot.
Napi::Value Vm::SetUserMemoryRegion(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_SET_USER_MEMORY_REGION";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  uint64_t slot = 0, flags = 0, guest_address = 0, size = 0, offset = 0;
  if (!core || !IntegerOf(info[0], kName, UINT32_MAX, &slot) || !IntegerOf(info[1], kName, UINT32_MAX, &flags) ||
      !IntegerOf(info[2], kName, UINT64_MAX, &guest_address) || !IntegerOf(info[3], kName, UINT64_MAX, &size)) {
    return env.Undefined();
  }
  kvm_userspace_memory_region region{};
  region.slot = static_cast<uint32_t>(slot);
  region.flags = static_cast<uint32_t>(flags);
  region.guest_phys_addr = guest_address;
  region.memory_size = size;
  std::shared_ptr<Mapping> mapping;
  if (size != 0) {
    Memory* memory = UnwrapAs<Memory>(info[4], "KVM_SET_USER_MEMORY_REGION: takes a Memory");
    if (!memory || !IntegerOf(info[5], kName, UINT64_MAX, &offset)) return env.Undefined();
    mapping = memory->mapping();
    if (!mapping) return ThrowKvmError(env, kName, EBADF, "this Memory is closed");
    if (offset > mapping->size() || size > mapping->size() - offset) {
      Napi::RangeError::New(env, "KVM_SET_USER_MEMORY_REGION: offset and size lie outside the Memory")
          .ThrowAsJavaScriptException();
      return env.Undefined();
    }
    region.userspace_addr = reinterpret_cast<uint64_t>(mapping->address() + offset);
  }
  if (::ioctl(core->fd.get(), KVM_SET_USER_MEMORY_REGION, &region) < 0) return ThrowKvmError(env, kName, errno);
  if (size == 0) {
    core->slots.erase(region.slot);
  } else {
    core->slots[region.slot] = {std::move(mapping), size};
  }
  return env.Undefined();
}

// getDirtyLog(slot, bitmap)
Napi::Value Vm::GetDirtyLog(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_GET_DIRTY_LOG";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  uint64_t slot = 0;
  if (!core || !IntegerOf(info[0], kName, UINT32_MAX, &slot)) return env.Undefined();
  auto bitmap = BytesOf(info[1], kName);
  if (bitmap.data() == nullptr) return env.Undefined();
  auto found = core->slots.find(static_cast<uint32_t>(slot));
  if (found == core->slots.end()) return ThrowKvmError(env, kName, ENOENT, "there is no such memslot");
  if (bitmap.size() < BitmapBytes(found->second.size)) {
    Napi::RangeError::New(env, "KVM_GET_DIRTY_LOG: the bitmap is too short for the memslot").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  kvm_dirty_log log{};
  log.slot = static_cast<uint32_t>(slot);
  log.dirty_bitmap = bitmap.data();
  return Result(env, kName, ::ioctl(core->fd.get(), KVM_GET_DIRTY_LOG, &log));
}

// clearDirtyLog(slot, firstPage, pages, bitmap)
Napi::Value Vm::ClearDirtyLog(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_CLEAR_DIRTY_LOG";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  uint64_t slot = 0, first = 0, pages = 0;
  if (!core || !IntegerOf(info[0], kName, UINT32_MAX, &slot) || !IntegerOf(info[1], kName, UINT64_MAX, &first) ||
      !IntegerOf(info[2], kName, UINT32_MAX, &pages)) {
    return env.Undefined();
  }
  auto bitmap = BytesOf(info[3], kName);
  if (bitmap.data() == nullptr) return env.Undefined();
  if (bitmap.size() < BitmapBytes(pages << 12)) {
    Napi::RangeError::New(env, "KVM_CLEAR_DIRTY_LOG: the bitmap is too short for the pages").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  kvm_clear_dirty_log log{};
  log.slot = static_cast<uint32_t>(slot);
  log.first_page = first;
  log.num_pages = static_cast<uint32_t>(pages);
  log.dirty_bitmap = bitmap.data();
  return Result(env, kName, ::ioctl(core->fd.get(), KVM_CLEAR_DIRTY_LOG, &log));
}

Napi::Value Vm::EnableCap(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_ENABLE_CAP";
  VmCore* core = Open(info.Env(), kName);
  if (!core) return info.Env().Undefined();
  auto bytes = BytesOf(info[0], kName);
  if (bytes.size() >= sizeof(uint32_t)) {
    uint32_t capability;
    std::memcpy(&capability, bytes.data(), sizeof capability);
    if (TakesRawArgument(capability)) {
      return ThrowKvmError(info.Env(), kName, EOPNOTSUPP, "this capability takes a file descriptor or a pointer");
    }
  }
  return CallOp(info, core->fd.get(), NESTED_KVM_OP("enableCap", KVM_ENABLE_CAP));
}

// irqfd(eventFd, gsi, flags, resampleFd | null)
Napi::Value Vm::Irqfd(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_IRQFD";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  if (!core) return env.Undefined();
  const int fd = EventFd::FdOf(info[0], kName);
  uint64_t gsi = 0, flags = 0;
  if (fd < 0 || !IntegerOf(info[1], kName, UINT32_MAX, &gsi) || !IntegerOf(info[2], kName, UINT32_MAX, &flags)) {
    return env.Undefined();
  }
  kvm_irqfd irqfd{};
  irqfd.fd = static_cast<uint32_t>(fd);
  irqfd.gsi = static_cast<uint32_t>(gsi);
  irqfd.flags = static_cast<uint32_t>(flags) & KVM_IRQFD_FLAG_DEASSIGN;
  if (info[3].IsObject()) {
    const int resample = EventFd::FdOf(info[3], kName);
    if (resample < 0) return env.Undefined();
    irqfd.flags |= KVM_IRQFD_FLAG_RESAMPLE;
    irqfd.resamplefd = static_cast<uint32_t>(resample);
  }
  return Result(env, kName, ::ioctl(core->fd.get(), KVM_IRQFD, &irqfd));
}

// ioeventfd(eventFd, struct kvm_ioeventfd): `fd` in the struct is filled in here.
Napi::Value Vm::Ioeventfd(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_IOEVENTFD";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  if (!core) return env.Undefined();
  const int fd = EventFd::FdOf(info[0], kName);
  if (fd < 0) return env.Undefined();
  auto bytes = BytesOf(info[1], kName);
  if (bytes.data() == nullptr) return env.Undefined();
  kvm_ioeventfd ioeventfd{};
  if (bytes.size() != sizeof ioeventfd) {
    Napi::RangeError::New(env, "KVM_IOEVENTFD: takes a struct kvm_ioeventfd").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  std::memcpy(&ioeventfd, bytes.data(), sizeof ioeventfd);
  ioeventfd.fd = fd;
  return Result(env, kName, ::ioctl(core->fd.get(), KVM_IOEVENTFD, &ioeventfd));
}

// addStatusWord(memory, offset, readAddress, clearAddress): while the VM is there.
Napi::Value Vm::AddStatusWord(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "addStatusWord";
  Napi::Env env = info.Env();
  VmCore* core = Open(env, kName);
  if (!core) return env.Undefined();
  Memory* memory = UnwrapAs<Memory>(info[0], "addStatusWord: takes a Memory");
  StatusWord status{};
  uint64_t offset = 0;
  if (!memory || !IntegerOf(info[1], kName, UINT64_MAX, &offset) ||
      !IntegerOf(info[2], kName, UINT64_MAX, &status.read_address) ||
      !IntegerOf(info[3], kName, UINT64_MAX, &status.clear_address)) {
    return env.Undefined();
  }
  status.memory = memory->mapping();
  if (!status.memory) return ThrowKvmError(env, kName, EBADF, "this Memory is closed");
  const uint32_t count = core->status_word_count.load();
  if (offset % sizeof(uint32_t) != 0 || offset >= status.memory->size() || count == core->status_words.size()) {
    Napi::RangeError::New(env, "addStatusWord: the offset lies outside the Memory, or there are too many")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  status.word = reinterpret_cast<uint32_t*>(status.memory->address() + offset);
  core->status_words[count] = std::move(status);
  core->status_word_count.store(count + 1, std::memory_order_release);
  return env.Undefined();
}

Napi::Value Vm::Close(const Napi::CallbackInfo& info) {
  core_.reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm

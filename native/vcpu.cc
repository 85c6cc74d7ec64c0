#include "vcpu.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "env_data.h"
#include "ioctl.h"
#include "run_tick.h"
#include "vcpu_thread.h"

namespace nested_kvm {

namespace {

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

const Op kOps[] = {
    NESTED_KVM_OP("getRegs", KVM_GET_REGS),
    NESTED_KVM_OP("setRegs", KVM_SET_REGS),
    NESTED_KVM_OP("getSregs", KVM_GET_SREGS),
    NESTED_KVM_OP("setSregs", KVM_SET_SREGS),
    NESTED_KVM_OP("getSregs2", KVM_GET_SREGS2),
    NESTED_KVM_OP("setSregs2", KVM_SET_SREGS2),
    NESTED_KVM_OP("getFpu", KVM_GET_FPU),
    NESTED_KVM_OP("setFpu", KVM_SET_FPU),
    NESTED_KVM_OP("getXcrs", KVM_GET_XCRS),
    NESTED_KVM_OP("setXcrs", KVM_SET_XCRS),
    NESTED_KVM_OP("getCpuid2", KVM_GET_CPUID2, Argument::kList, sizeof(kvm_cpuid2), sizeof(kvm_cpuid_entry2)),
    NESTED_KVM_OP("setCpuid2", KVM_SET_CPUID2, Argument::kList, sizeof(kvm_cpuid2), sizeof(kvm_cpuid_entry2)),
    NESTED_KVM_OP("getMsrs", KVM_GET_MSRS, Argument::kList, sizeof(kvm_msrs), sizeof(kvm_msr_entry)),
    NESTED_KVM_OP("setMsrs", KVM_SET_MSRS, Argument::kList, sizeof(kvm_msrs), sizeof(kvm_msr_entry)),
    NESTED_KVM_OP("getLapic", KVM_GET_LAPIC),
    NESTED_KVM_OP("setLapic", KVM_SET_LAPIC),
    NESTED_KVM_OP("getMpState", KVM_GET_MP_STATE),
    NESTED_KVM_OP("setMpState", KVM_SET_MP_STATE),
    NESTED_KVM_OP("getVcpuEvents", KVM_GET_VCPU_EVENTS),
    NESTED_KVM_OP("setVcpuEvents", KVM_SET_VCPU_EVENTS),
    NESTED_KVM_OP("getDebugregs", KVM_GET_DEBUGREGS),
    NESTED_KVM_OP("setDebugregs", KVM_SET_DEBUGREGS),
    NESTED_KVM_OP("getNestedState", KVM_GET_NESTED_STATE, Argument::kNestedState),
    NESTED_KVM_OP("setNestedState", KVM_SET_NESTED_STATE, Argument::kNestedState),
    NESTED_KVM_OP("getTscKhz", KVM_GET_TSC_KHZ, Argument::kNone),
    NESTED_KVM_OP("setTscKhz", KVM_SET_TSC_KHZ, Argument::kValue),
    NESTED_KVM_OP("setGuestDebug", KVM_SET_GUEST_DEBUG),
    NESTED_KVM_OP("translate", KVM_TRANSLATE),
    NESTED_KVM_OP("nmi", KVM_NMI, Argument::kNone),
    NESTED_KVM_OP("interrupt", KVM_INTERRUPT),
    NESTED_KVM_OP("setSignalMask", KVM_SET_SIGNAL_MASK, Argument::kList, sizeof(kvm_signal_mask), 1),
    NESTED_KVM_OP("kvmclockCtrl", KVM_KVMCLOCK_CTRL, Argument::kNone),
};

// Which ioctl of KVM_{GET,SET}_XSAVE{,2}, and of KVM_{GET,SET,HAS}_DEVICE_ATTR.
const Op kXsaveOps[] = {
    NESTED_KVM_OP("getXsave", KVM_GET_XSAVE),
    NESTED_KVM_OP("getXsave2", KVM_GET_XSAVE2),
    NESTED_KVM_OP("setXsave", KVM_SET_XSAVE),
};
const Op kDeviceAttrOps[] = {
    NESTED_KVM_OP("getDeviceAttr", KVM_GET_DEVICE_ATTR),
    NESTED_KVM_OP("setDeviceAttr", KVM_SET_DEVICE_ATTR),
    NESTED_KVM_OP("hasDeviceAttr", KVM_HAS_DEVICE_ATTR),
};

}  // namespace

Napi::Function Vcpu::Define(Napi::Env env) {
  std::vector<PropertyDescriptor> methods;
  auto add = [&methods](const Op& op, Napi::Value (Vcpu::*method)(const Napi::CallbackInfo&)) {
    methods.push_back(InstanceMethod(op.method, method, napi_default, const_cast<Op*>(&op)));
  };
  for (const Op& op : kOps) add(op, &Vcpu::Call);
  for (const Op& op : kXsaveOps) add(op, &Vcpu::Xsave);
  for (const Op& op : kDeviceAttrOps) add(op, &Vcpu::DeviceAttr);
  methods.push_back(InstanceMethod<&Vcpu::RunFunction>("runFunction"));
  methods.push_back(InstanceMethod<&Vcpu::RunBuffer>("runBuffer"));
  methods.push_back(InstanceMethod<&Vcpu::EnableCap>("enableCap"));
  methods.push_back(InstanceMethod<&Vcpu::Close>("close"));
  Napi::Function constructor = DefineClass(env, "Vcpu", methods);
  EnvData::Of(env)->vcpu = Napi::Persistent(constructor);
  return constructor;
}

Napi::Value Vcpu::Create(Napi::Env env, const std::shared_ptr<VmCore>& vm, uint32_t id) {
  auto core = std::make_shared<VcpuCore>();
  core->vm = vm;
  core->fd.Reset(::ioctl(vm->fd.get(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!core->fd) return ThrowKvmError(env, "KVM_CREATE_VCPU", errno);
  void* run = ::mmap(nullptr, vm->vcpu_mmap_size, PROT_READ | PROT_WRITE, MAP_SHARED, core->fd.get(), 0);
  if (run == MAP_FAILED) return ThrowKvmError(env, "mmap of the vCPU", errno);
  core->run_mapping = std::make_shared<Mapping>(run, vm->vcpu_mmap_size);
  return NewJs(env, EnvData::Of(env)->vcpu, {Napi::External<std::shared_ptr<VcpuCore>>::New(env, &core)});
}

Vcpu::Vcpu(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Vcpu>(info) {
  if (!info[0].IsExternal()) {
    Napi::TypeError::New(info.Env(), "a Vcpu is made by vm.createVcpu()").ThrowAsJavaScriptException();
    return;
  }
  core_ = *info[0].As<Napi::External<std::shared_ptr<VcpuCore>>>().Data();
  info.This().As<Napi::Object>().TypeTag(&kTypeTag);
}

VcpuCore* Vcpu::Ready(Napi::Env env, const char* name) {
  if (!core_) {
    ThrowKvmError(env, name, EBADF, "this Vcpu is closed");
    return nullptr;
  }
  // A vCPU ioctl waits for the vCPU's mutex, which KVM_RUN holds: it would hang this thread.
  if (core_->runner && core_->runner->running()) {
    ThrowKvmError(env, name, EBUSY, "the vCPU is in KVM_RUN on its thread: pause() it first");
    return nullptr;
  }
  return core_.get();
}

Napi::Value Vcpu::Call(const Napi::CallbackInfo& info) {
  const Op& op = *static_cast<const Op*>(info.Data());
  VcpuCore* core = Ready(info.Env(), op.name);
  return core ? CallOp(info, core->fd.get(), op) : info.Env().Undefined();
}

namespace {

// Whether this environment may still call into JS: a Worker that is being terminated may not.
bool JsRuns(napi_env env) {
  napi_handle_scope scope = nullptr;
  napi_open_handle_scope(env, &scope);
  napi_value global = nullptr;
  bool ignored = false;
  napi_get_global(env, &global);
  const bool runs = napi_has_named_property(env, global, "", &ignored) == napi_ok;
  napi_close_handle_scope(env, scope);
  return runs;
}

// RunOnce on the caller's thread; a Worker that is being terminated gets KVM_EXIT_INTR.
int RunOnJsThread(napi_env env, VcpuCore* core) {
  RunTick tick;
  for (;;) {
    const int result = RunOnce(core);
    if (result != KVM_EXIT_INTR || !tick.Took() || core->run()->immediate_exit || !JsRuns(env)) return result;
  }
}

// KVM_RUN as a function of its own that takes and returns nothing: the exit reason is in kvm_run, which JS has in view.
// On the way of every exit, each call into V8 that is not made counts: no unwrapping, no arguments, no result.
napi_value RunInPlace(napi_env env, napi_callback_info info) {
  void* data = nullptr;
  napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
  VcpuCore* core = static_cast<std::shared_ptr<RunTarget>*>(data)->get()->core.get();
  if (!core) {
    ThrowKvmError(env, "KVM_RUN", EBADF, "this Vcpu is closed");
  } else if (core->runner) {
    ThrowKvmError(env, "KVM_RUN", EBUSY, "the vCPU belongs to a VcpuThread");
  } else if (const int result = RunOnJsThread(env, core); result < 0) {
    ThrowKvmError(env, "KVM_RUN", -result);
  } else {
    core->run()->exit_reason = static_cast<uint32_t>(result);
  }
  return nullptr;
}

}  // namespace

Napi::Value Vcpu::RunFunction(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!Ready(env, "KVM_RUN")) return env.Undefined();
  if (!run_target_) run_target_ = std::make_shared<RunTarget>(RunTarget{core_});
  auto* data = new std::shared_ptr<RunTarget>(run_target_);
  napi_value function = nullptr;
  napi_create_function(env, "run", NAPI_AUTO_LENGTH, RunInPlace, data, &function);
  napi_add_finalizer(
      env, function, data, [](napi_env, void* held, void*) { delete static_cast<std::shared_ptr<RunTarget>*>(held); },
      nullptr, nullptr);
  return {env, function};
}

Napi::Value Vcpu::RunBuffer(const Napi::CallbackInfo& info) {
  VcpuCore* core = Ready(info.Env(), "kvm_run");
  if (!core) return info.Env().Undefined();
  views_.Detach(info.Env());
  return views_.Add(info.Env(), core->run_mapping, 0, core->run_mapping->size());
}

// The kernel reads and writes as many bytes as KVM_CAP_XSAVE2 says, whatever size the request encodes (KVM API 4.42, 4.134).
Napi::Value Vcpu::Xsave(const Napi::CallbackInfo& info) {
  const Op& op = *static_cast<const Op*>(info.Data());
  Napi::Env env = info.Env();
  VcpuCore* core = Ready(env, op.name);
  if (!core) return env.Undefined();
  auto bytes = BytesOf(info[0], op.name);
  if (bytes.data() == nullptr) return env.Undefined();
  size_t need = sizeof(kvm_xsave);
  if (op.request != KVM_GET_XSAVE) {
    const int size = ::ioctl(core->vm->fd.get(), KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    need = std::max(need, size > 0 ? static_cast<size_t>(size) : 0);
  }
  if (bytes.size() < need) {
    Napi::RangeError::New(env, std::string(op.name) + ": the buffer must have at least " + std::to_string(need) + " bytes")
        .ThrowAsJavaScriptException();
    return env.Undefined();
  }
  if (::ioctl(core->fd.get(), op.request, bytes.data()) < 0) return ThrowKvmError(env, op.name, errno);
  return env.Undefined();
}

// deviceAttr(group, attribute, value: 8 bytes). The kernel follows a pointer whose length only the attribute says:
// those known to be 8 bytes pass (KVM API, devices/vcpu.rst 4.1).
Napi::Value Vcpu::DeviceAttr(const Napi::CallbackInfo& info) {
  const Op& op = *static_cast<const Op*>(info.Data());
  Napi::Env env = info.Env();
  VcpuCore* core = Ready(env, op.name);
  uint64_t group = 0, attribute = 0;
  if (!core || !IntegerOf(info[0], op.name, UINT32_MAX, &group) || !IntegerOf(info[1], op.name, UINT32_MAX, &attribute)) {
    return env.Undefined();
  }
  if (group != KVM_VCPU_TSC_CTRL || attribute != KVM_VCPU_TSC_OFFSET) {
    return ThrowKvmError(env, op.name, ENXIO, "the known attribute is KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET");
  }
  auto bytes = BytesOf(info[2], op.name);
  if (bytes.data() == nullptr) return env.Undefined();
  if (bytes.size() != sizeof(uint64_t)) {
    Napi::RangeError::New(env, std::string(op.name) + ": the attribute has 8 bytes").ThrowAsJavaScriptException();
    return env.Undefined();
  }
  kvm_device_attr attr{};
  attr.group = static_cast<uint32_t>(group);
  attr.attr = attribute;
  attr.addr = reinterpret_cast<uint64_t>(bytes.data());
  if (::ioctl(core->fd.get(), op.request, &attr) < 0) return ThrowKvmError(env, op.name, errno);
  return env.Undefined();
}

// enableCap(struct kvm_enable_cap)
Napi::Value Vcpu::EnableCap(const Napi::CallbackInfo& info) {
  constexpr const char* kName = "KVM_ENABLE_CAP";
  VcpuCore* core = Ready(info.Env(), kName);
  if (!core) return info.Env().Undefined();
  auto bytes = BytesOf(info[0], kName);
  uint32_t capability = 0;
  if (bytes.size() >= sizeof capability) std::memcpy(&capability, bytes.data(), sizeof capability);
  if (capability == KVM_CAP_HYPERV_ENLIGHTENED_VMCS) {
    return ThrowKvmError(info.Env(), kName, EOPNOTSUPP, "this capability takes a pointer");
  }
  return CallOp(info, core->fd.get(), NESTED_KVM_OP("enableCap", KVM_ENABLE_CAP));
}

Napi::Value Vcpu::Close(const Napi::CallbackInfo& info) {
  if (core_ && core_->runner) {
    return ThrowKvmError(info.Env(), "close", EBUSY, "the vCPU belongs to a VcpuThread: close that first");
  }
  views_.Detach(info.Env());
  if (run_target_) run_target_->core.reset();
  core_.reset();
  return info.Env().Undefined();
}

int RunOnce(VcpuCore* core) {
  kvm_run* run = core->run();
  for (;;) {
    run->exit_reason = KVM_EXIT_UNKNOWN;
    if (::ioctl(core->fd.get(), KVM_RUN, 0) == 0) return static_cast<int>(run->exit_reason);
    switch (errno) {
      case EINTR:
        return KVM_EXIT_INTR;
      case EAGAIN:  // an application processor has just left the wait for its SIPI
        continue;
      case EFAULT:
      case EHWPOISON:
        if (run->exit_reason == KVM_EXIT_MEMORY_FAULT) return KVM_EXIT_MEMORY_FAULT;
        [[fallthrough]];
      default:
        return -errno;
    }
  }
}

}  // namespace nested_kvm

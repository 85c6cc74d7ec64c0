#include "kvm.h"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <string>
#include <vector>

#include "env_data.h"
#include "ioctl.h"
#include "kvm_uapi.h"
#include "vm.h"

namespace nested_kvm {

namespace {

const Op kOps[] = {
    NESTED_KVM_OP("getApiVersion", KVM_GET_API_VERSION, Argument::kNone),
    NESTED_KVM_OP("checkExtension", KVM_CHECK_EXTENSION, Argument::kValue),
    NESTED_KVM_OP("getVcpuMmapSize", KVM_GET_VCPU_MMAP_SIZE, Argument::kNone),
    NESTED_KVM_OP("getSupportedCpuid", KVM_GET_SUPPORTED_CPUID, Argument::kList, sizeof(kvm_cpuid2),
                  sizeof(kvm_cpuid_entry2)),
    NESTED_KVM_OP("getEmulatedCpuid", KVM_GET_EMULATED_CPUID, Argument::kList, sizeof(kvm_cpuid2),
                  sizeof(kvm_cpuid_entry2)),
    NESTED_KVM_OP("getMsrIndexList", KVM_GET_MSR_INDEX_LIST, Argument::kList, sizeof(kvm_msr_list), sizeof(uint32_t)),
    NESTED_KVM_OP("getMsrFeatureIndexList", KVM_GET_MSR_FEATURE_INDEX_LIST, Argument::kList, sizeof(kvm_msr_list),
                  sizeof(uint32_t)),
    NESTED_KVM_OP("getMsrs", KVM_GET_MSRS, Argument::kList, sizeof(kvm_msrs), sizeof(kvm_msr_entry)),
};

}  // namespace

Napi::Function Kvm::Define(Napi::Env env) {
  std::vector<PropertyDescriptor> methods;
  for (const Op& op : kOps) {
    methods.push_back(InstanceMethod(op.method, &Kvm::Call, napi_default, const_cast<Op*>(&op)));
  }
  methods.push_back(InstanceMethod<&Kvm::CreateVm>("createVm"));
  methods.push_back(InstanceMethod<&Kvm::Close>("close"));
  return DefineClass(env, "Kvm", methods);
}

Kvm::Kvm(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Kvm>(info) {
  if (!info[0].IsString()) {
    Napi::TypeError::New(info.Env(), "Kvm: takes the path of the device").ThrowAsJavaScriptException();
    return;
  }
  const std::string path = info[0].As<Napi::String>().Utf8Value();
  fd_.Reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd_) ThrowKvmError(info.Env(), ("open " + path).c_str(), errno);
}

Napi::Value Kvm::Call(const Napi::CallbackInfo& info) {
  const Op& op = *static_cast<const Op*>(info.Data());
  if (!fd_) return ThrowKvmError(info.Env(), op.name, EBADF, "this Kvm is closed");
  return CallOp(info, fd_.get(), op);
}

Napi::Value Kvm::CreateVm(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!fd_) return ThrowKvmError(env, "KVM_CREATE_VM", EBADF, "this Kvm is closed");
  uint64_t type = 0;
  if (!IntegerOf(info[0], "KVM_CREATE_VM", UINT32_MAX, &type)) return env.Undefined();
  const int mmap_size = ::ioctl(fd_.get(), KVM_GET_VCPU_MMAP_SIZE, 0);
  if (mmap_size < 0) return ThrowKvmError(env, "KVM_GET_VCPU_MMAP_SIZE", errno);
  int fd;
  do {
    fd = ::ioctl(fd_.get(), KVM_CREATE_VM, static_cast<unsigned long>(type));
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ThrowKvmError(env, "KVM_CREATE_VM", errno);
  return Vm::Create(env, UniqueFd(fd), static_cast<size_t>(mmap_size));
}

Napi::Value Kvm::Close(const Napi::CallbackInfo& info) {
  fd_.Reset();
  return info.Env().Undefined();
}

}  // namespace nested_kvm

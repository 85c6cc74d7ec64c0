#pragma once

#include <napi.h>

#include <memory>

#include "kvm_uapi.h"
#include "mapping.h"
#include "unique_fd.h"
#include "vm.h"

namespace nested_kvm {

class VcpuRunner;

// The vCPU as its thread needs it. `vm` keeps the guest's memory mapped.
struct VcpuCore {
  std::shared_ptr<VmCore> vm;
  UniqueFd fd;
  std::shared_ptr<Mapping> run_mapping;
  VcpuRunner* runner = nullptr;  // set and read on the JS thread only

  kvm_run* run() const { return reinterpret_cast<kvm_run*>(run_mapping->address()); }
};

// What the function of runFunction() runs: nothing once the Vcpu is closed.
struct RunTarget {
  std::shared_ptr<VcpuCore> core;
};

// JS class Vcpu: a vCPU file descriptor and its kvm_run.
class Vcpu : public Napi::ObjectWrap<Vcpu> {
 public:
  static constexpr napi_type_tag kTypeTag = {0x1b6f0e5c6a7d4c11, 0x9d3b52c8e0f1a203};
  static Napi::Function Define(Napi::Env env);
  static Napi::Value Create(Napi::Env env, const std::shared_ptr<VmCore>& vm, uint32_t id);
  explicit Vcpu(const Napi::CallbackInfo& info);

  const std::shared_ptr<VcpuCore>& core() const { return core_; }

 private:
  Napi::Value Call(const Napi::CallbackInfo& info);
  Napi::Value RunFunction(const Napi::CallbackInfo& info);
  Napi::Value RunBuffer(const Napi::CallbackInfo& info);
  Napi::Value Xsave(const Napi::CallbackInfo& info);
  Napi::Value DeviceAttr(const Napi::CallbackInfo& info);
  Napi::Value EnableCap(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  // The core, open and not in KVM_RUN on another thread; or nullptr with a KvmError pending that names the ioctl.
  VcpuCore* Ready(Napi::Env env, const char* name);

  std::shared_ptr<VcpuCore> core_;
  std::shared_ptr<RunTarget> run_target_;
  Views views_;
};

}  // namespace nested_kvm

#include <napi.h>

#include "env_data.h"
#include "event_fd.h"
#include "kvm.h"
#include "mapping.h"
#include "vcpu.h"
#include "vcpu_thread.h"
#include "vm.h"

namespace nested_kvm {

namespace {

Napi::Value SetErrorClass(const Napi::CallbackInfo& info) {
  EnvData::Of(info.Env())->kvm_error = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new EnvData);
  exports.Set("setErrorClass", Napi::Function::New(env, SetErrorClass));
  exports.Set("Kvm", Kvm::Define(env));
  exports.Set("Vm", Vm::Define(env));
  exports.Set("Vcpu", Vcpu::Define(env));
  exports.Set("VcpuThread", VcpuThread::Define(env));
  exports.Set("Memory", Memory::Define(env));
  exports.Set("EventFd", EventFd::Define(env));
  return exports;
}

NODE_API_MODULE(nested_kvm, Init)

}  // namespace

}  // namespace nested_kvm

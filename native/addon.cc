#include <cpuid.h>
#include <napi.h>
#include <net/if.h>

#include <string>

#include "env_data.h"
#include "event_fd.h"
#include "image_file.h"
#include "ioctl.h"
#include "kvm.h"
#include "mapping.h"
#include "memory_file.h"
#include "scheduling.h"
#include "tap.h"
#include "vcpu.h"
#include "vcpu_thread.h"
#include "vm.h"

namespace nested_kvm {

namespace {

Napi::Value SetErrorClass(const Napi::CallbackInfo& info) {
  EnvData::Of(info.Env())->kvm_error = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

// cpuid(leaf, index): what the instruction gives to this very process, as [eax, ebx, ecx, edx].
Napi::Value Cpuid(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  uint64_t leaf = 0, index = 0;
  if (!IntegerOf(info[0], "cpuid", UINT32_MAX, &leaf) || !IntegerOf(info[1], "cpuid", UINT32_MAX, &index)) {
    return env.Undefined();
  }
  uint32_t registers[4];
  __cpuid_count(leaf, index, registers[0], registers[1], registers[2], registers[3]);
  auto result = Napi::Array::New(env, 4);
  for (uint32_t i = 0; i < 4; i++) result.Set(i, registers[i]);
  return result;
}

// hasInterface(name): whether this network namespace has an interface of that name.
Napi::Value HasInterface(const Napi::CallbackInfo& info) {
  const std::string name = info[0].IsString() ? info[0].As<Napi::String>().Utf8Value() : "";
  return Napi::Boolean::New(info.Env(), ::if_nametoindex(name.c_str()) != 0);
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new EnvData);
  exports.Set("setErrorClass", Napi::Function::New(env, SetErrorClass));
  exports.Set("cpuid", Napi::Function::New(env, Cpuid));
  exports.Set("hasInterface", Napi::Function::New(env, HasInterface));
  exports.Set("setBatch", Napi::Function::New(env, SetBatch));
  exports.Set("Kvm", Kvm::Define(env));
  exports.Set("Vm", Vm::Define(env));
  exports.Set("Vcpu", Vcpu::Define(env));
  exports.Set("VcpuThread", VcpuThread::Define(env));
  exports.Set("Memory", Memory::Define(env));
  exports.Set("MemoryFile", MemoryFile::Define(env));
  exports.Set("EventFd", EventFd::Define(env));
  exports.Set("ImageFile", ImageFile::Define(env));
  exports.Set("Tap", Tap::Define(env));
  return exports;
}

NODE_API_MODULE(nested_kvm, Init)

}  // namespace

}  // namespace nested_kvm

#pragma once

#include <napi.h>

#include "unique_fd.h"

namespace nested_kvm {

// JS class Kvm: the /dev/kvm file descriptor (system ioctls).
class Kvm : public Napi::ObjectWrap<Kvm> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Kvm(const Napi::CallbackInfo& info);

 private:
  Napi::Value Call(const Napi::CallbackInfo& info);
  Napi::Value CreateVm(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  UniqueFd fd_;
};

}  // namespace nested_kvm
